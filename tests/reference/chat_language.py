"""Renders short templates with transformers' Jinja2. Tests compare these texts with those of welm-core.

    pip install transformers jinja2
    python tests/reference/chat_language.py [--out tests/fixtures]     writes chat_language.json
    python tests/reference/chat_language.py --compare                  compares with an installed welm

chat_language.json   variables   the variables of all templates
                     cases       [template, its text, or null if Python raises]

The cases have each function, filter, test and method, and statements. `--compare` also tries all operators on all pairs
of values, and all filters, tests and methods on all values. The texts must be the same, or welm must name what it does
not support.
"""

import argparse
import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import _compile_jinja_template

VARIABLES = {
    "n": 3,
    "f": 2.5,
    "s": "Hello wOrld",
    "u": "Größe ÉTÉ 你好 👍",
    "w": "  a b\t\n c  ",
    "e": "",
    "t": True,
    "z": None,
    "xs": [3, 1, 2],
    "ws": ["b", "A", "c", "a"],
    "d": {"b": 1, "a": [1, 2.0, None, True, "x'y"], "items": "own", "C": {"deep": {"er": "!"}}},
    "people": [
        {"name": "Ann", "age": 30, "city": "oslo", "ok": True},
        {"name": "bob", "age": 25, "city": "Bern", "ok": False},
        {"name": "Cid", "age": 30, "city": "Oslo", "ok": True, "nick": None},
        {"name": "dan", "age": 41, "city": "bern"},
    ],
    "nested": [[1, 2], [3, [4, 5]], []],
    "tool": {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The "weather" <now> & later: é 你 \u2028',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
}

# One expression on each line.
EXPRESSIONS = r"""
1
-1
007
1_000
0x1F + 0b11 + 0o17
1.5
1e3
1.5E-7
100000000000000000.0
12345678901234567890
1e16
1e15
0.1 + 0.2
1/3
-0.0
1e-5
0.0001
'a' 'b' "c"
'it''s'
"a\nb\tc\\d\"e\'f"
'\x41\u00e9\U0001F44D\101\0end'
'\d\q'
'a\
b'
true, false, none, True, False, None
(1,)
()
(1, 'a', 2.0)
[]
[1, [2, ['x']]]
{}
{'a': 1, 2: 'b', 'c': [none]}
{1: 'a', 1.0: 'b', true: 'c'}
{'a': 1, 'a': 2}
[1, 2][0], [1, 2][-1], [1, 2][5]
'abc'[1], 'abc'[-1], u[2], u[-1]
'abc'[5]
xs[1:], xs[:1], xs[-2:], xs[::-1], xs[::2], xs[5:], xs[:-5], xs[2:0:-1]
s[1:4], s[::-1], s[::3], s[-3:], s[:-3], s[10:2:-2], u[8:12], u[::-2]
(1, 2, 3)[1:]
range(10)[2:8:2] | list
range(5), range(1, 5), range(5, 1, -2)
range(5) | list
range(0) | list
range(2, 9, 3) | list
range(3)[1], range(3)[-1]
3 in range(5), 7 in range(0, 10, 2)
xs[n - 2]
xs['a']
d['b'], d.b, d.items, d['items'], d.a[4], d.a.0, d.C.deep.er
d.missing
d['missing']
d.missing is defined, d.b is defined
d.get('b'), d.get('nope'), d.get('nope', 5), d.get('nope', default=5)
d.keys() | list, d.values() | list
d.items() | list
d.keys()
d.values()
{'a': 1}.items()
d.keys() | length
d | list, d | length
d['get'] is defined, d['keys'] is callable
'b' in d, 'q' in d, 'q' not in d
missing
missing.attribute
missing['item']
missing()
missing + 1
missing ~ 'a'
'a' + missing
missing | length
missing | list
missing | string
missing | upper
missing | default('x')
missing == missing, missing == none, missing != 1, not missing
missing in [1], 1 in missing
missing in 'abc'
missing < 1
missing[1:]
[missing]
missing is sequence, missing is iterable, missing is callable, missing is mapping, missing is none
z.attribute
z['x']
z | length
z | list
z | string, z ~ z
z + 1
z | default('x'), z | default('x', true), z | d('y', boolean=true)
1 + 2 * 3 - 4 / 2
7 // 2, -7 // 2, 7 % 3, -7 % 3, 7 % -3, 7.5 // 2, -7.5 % 2, 7 // 2.0
2 ** 10, 2 ** -1, 2 ** 0.5, 2 ** 3 ** 2, -2 ** 2
10 ** 20
2 ** 100
2 ** 200
4 / 2, 1 / 0.5
1 / 0
1 // 0
1 % 0
1.0 / 0
true + true, true * 3, -true, +true
'ab' * 3, 3 * 'ab', 'ab' * 0, 'ab' * -1, [1] * 2, 2 * [1], (1,) * 2
'a' + 'b', [1] + [2], (1,) + (2,)
'a' + 1
1 + 'a'
[1] + (2,)
'a' - 'b'
'a' * 'b'
'a' * 1.0
{} + {}
-'a'
1 ~ 2.0 ~ none ~ true ~ [1] ~ 'x'
'a' ~ 1 + 2
1 + 2 ~ 3
1 == 1.0, 1 == true, '1' == 1, [1] == [1.0], (1,) == [1], {'a': 1} == {'a': 1.0}
1 < 2, 1 < 1.5, 'a' < 'b', [1, 2] < [1, 3], (1,) < (1, 2), true < 2
1 < 2 < 3, 1 < 3 < 2, 3 > 2 >= 2, 1 == 1 != 2
1 < 'a'
none < 1
[1] < (1,)
{} < {}
[1, 'a'] < [1, 2]
1 in [1, 2], 1.0 in [1], '1' in [1], 'a' in 'abc', '' in 'abc', [1] in [[1]]
1 in 'abc'
1 in 5
1 not in [2], not 1 in [2]
[] in {}
1 and 2, 0 and 2, 1 or 2, 0 or 2, '' or none, not '', not []
not 1 == 2
1 if t else 2, 1 if z else 2, 1 if z
(1 if z) is defined
'a' if n > 2 else 'b' if n > 1 else 'c'
'%s and %s' % ('a', 1)
'%s' % 'x', '%s' % none, '%s' % [1], '%s' % {'a': 1}, '%s' % missing, '%s' % 1.0, '%s' % true
'%r %r %r' % ('a', "it's", 1.0)
'%d %i %5d|%-5d|%05d|%+d|% d' % (1, 2.7, 3, 4, 5, 6, 7)
'%x %X %o %#x %#o' % (255, 255, 8, 255, 8)
'%f %.2f %8.3f|%-8.1f|%08.2f' % (1.5, 2.345, 3.14159, 2.5, -1.5)
'%e %.3E %g %g %g %G' % (12345.678, 0.00012, 1e10, 0.0001, 123456789, 1e-7)
'%c%c' % ('a', 98)
'%5s|%-5s|%.2s' % ('ab', 'cd', 'xyz')
'%%' % ()
'100%%'
'%(a)s %(b)05.1f' % {'a': 'x', 'b': 2.25}
'%*d|%-*d' % (5, 1, 5, 2)
'%s' % ()
'%s %s' % ('a',)
'%s' % ('a', 'b')
'%d' % 'a'
'%q' % 1
'x' % [1]
'x' % 1
'%s' % (1, 2)[0]
'{} {}'.format('a', 1)
'{1} {0}'.format('a', 'b')
'{a} {b}'.format(a=1, b=2.0)
'{:>5}|{:<5}|{:^5}|{:*^7}'.format('a', 'b', 'c', 'd')
'{:5}|{:5}'.format('a', 1)
'{:05d}|{:+d}|{:x}|{:#b}|{:,}'.format(42, 7, 255, 5, 1234567)
'{:.2f}|{:8.3f}|{:e}|{:g}|{:%}|{:.1%}'.format(3.14159, 2.5, 12345.6, 1e-10, 0.25, 0.125)
'{!r} {!s}'.format('a', 'b')
'{{}} {}'.format(1)
'{}'.format(none)
'{:5}'.format(none)
'{} {0}'.format(1)
'{'.format(1)
'{}'.format()
'{a}'.format(1)
'{0[0]}'.format([1])
'{:.3}'.format('abcdef')
'{:d}'.format('a')
'{:010.2f}|{:<08d}|{:,.2f}|{:_}'.format(3.14159, 5, 1234567.891, 1234567)
'{:5}|{:<5}|{}'.format(true, 2.5, 1e16)
s.upper(), s.lower(), s.title(), s.capitalize(), s.swapcase(), u.upper(), u.lower(), u.title(), u.capitalize()
"they're bill's".title(), 'ß'.upper(), 'ß'.capitalize(), 'ΑΣ'.lower()
w.strip(), w.lstrip(), w.rstrip(), 'xxaxx'.strip('x'), 'xyaxy'.lstrip('yx'), 'axy'.rstrip('xy'), 'a'.strip(none)
'a,b,,c'.split(','), 'a b  c'.split(), w.split(), 'a,b,c'.split(',', 1), 'a b c'.split(none, 1), 'abc'.split('x'), ''.split(), ''.split(',')
'a,b,c'.rsplit(',', 1), ' a b c '.rsplit(none, 1), 'a b c'.split(maxsplit=1), 'a-b'.split(sep='-')
'a'.split('')
'a\nb\r\nc\rd\n'.splitlines(), 'a\n\nb'.splitlines(true), ''.splitlines(), 'a\x0bb\x1cc\u2028d'.splitlines()
'a-b-c'.partition('-'), 'a-b-c'.rpartition('-'), 'abc'.partition('-'), 'abc'.rpartition('-')
'abc'.removeprefix('a'), 'abc'.removeprefix('x'), 'abc'.removesuffix('c'), 'abc'.removesuffix('x')
'42'.zfill(5), '-42'.zfill(5), '+4'.zfill(4), 'abc'.zfill(2), '長'.zfill(3)
'ab'.center(5), 'ab'.center(6), 'abc'.center(6), 'abc'.center(7, '*'), 'ab'.ljust(4, '.'), 'ab'.rjust(4), 'ab'.center(1)
'ab'.center(5, 'xy')
'abcabc'.count('bc'), 'aaa'.count('aa'), 'abc'.count(''), 'abcabc'.find('c'), 'abcabc'.rfind('c'), 'abc'.find('x'), u.find('你'), 'abc'.index('b'), 'abab'.rindex('b')
'abc'.index('x')
'aXbX'.replace('X', '-'), 'aXbX'.replace('X', '-', 1), 'abc'.replace('', '-'), 'abc'.replace('', '-', 2), 'a'.replace('b', 'c')
'a'.replace(1, 'b')
s.startswith('He'), s.startswith(('x', 'H')), s.endswith('ld'), s.startswith('l', 2), s.endswith(('a', 'b')), s.startswith('')
s.startswith(['H'])
s.startswith(1)
', '.join(['a', 'b']), ''.join('abc'), '-'.join({'a': 1, 'b': 2}), ','.join(ws | map('upper'))
', '.join([1, 2])
'abc'.isalpha(), 'ab1'.isalnum(), '12'.isdigit(), '12'.isdecimal(), '12'.isnumeric(), ' '.isspace(), ''.isspace(), 'Ab'.istitle(), 'AB'.isupper(), 'ab'.islower(), 'a1'.islower(), '1'.isupper(), 'ab'.isascii(), 'é'.isascii(), ''.isalpha(), '你好'.isalpha(), 'é1'.isalnum()
'AbC'.casefold()
'abc'.nope()
'abc'.nope
'abc'.upper
s.upper is callable, s.upper is defined, s.nope is defined
s.__class__
xs.count(1), xs.index(2)
xs.append(4)
xs.append is defined
d.update({'x': 1})
d.pop('b')
xs.copy(), d.copy()
1 is integer, 1.0 is integer, true is integer, 1.0 is float, 1 is number, true is number, '1' is number, true is boolean, 1 is boolean, true is true, 1 is true, false is false, 0 is false, none is none
1 is odd, 2 is even, 6 is divisibleby 3, 6 is divisibleby(4), 2.0 is even
'a' is odd
'a' is lower, 'A' is upper, 'aB' is lower, 1 is lower, 'a1' is lower
'a' is string, 1 is string, [] is sequence, {} is sequence, 'a' is sequence, 1 is sequence, () is sequence, range(2) is sequence, d.items() is sequence
[] is iterable, {} is iterable, 'a' is iterable, 1 is iterable, d.items() is iterable, none is iterable
{} is mapping, [] is mapping, namespace() is mapping, range is callable, 1 is callable, namespace() is iterable
1 is sameas 1, none is sameas none, true is sameas true, true is sameas 1, [] is sameas []
1 is eq 1, 1 is equalto 1, 1 is ne 2, 1 is lt 2, 1 is le 1, 2 is gt 1, 2 is ge 2, 1 is lessthan 2, 2 is greaterthan 1, 1 is == 1
1 is in [1], 'a' is in 'abc', 1 is not in [2]
1 is not none, missing is not defined, 1 is defined and 2 is defined
'upper' is filter, 'nope' is filter, 'odd' is test, 'nope' is test, 'random' is filter
'a' is escaped, ('a' | e) is escaped
1 is nope
'a' | nope
(1 if true else ('a' | nope))
-5 | abs, -2.5 | abs, true | abs
'a' | abs
xs | first, xs | last, 'abc' | first, 'abc' | last, d | first, (xs | map('string')) | first
[] | first, [] | last
([] | first) is defined
xs | length, 'abc' | count, d | length, u | length
5 | length
(xs | map('string')) | length
xs | sum, xs | sum(start=10), people | sum(attribute='age'), [] | sum, [0.5, 1] | sum, [[1], [2]] | sum(start=[])
['a'] | sum
ws | sum(start='')
xs | min, xs | max, ws | min, ws | max, ws | min(case_sensitive=true), (people | max(attribute='age')).name, ([] | max) is defined
[1, 'a'] | max
xs | sort, xs | sort(reverse=true), ws | sort, ws | sort(case_sensitive=true), ws | sort(true), people | sort(attribute='age') | map(attribute='name') | list
people | sort(attribute='age,name', reverse=true) | map(attribute='name') | list
[1, 'a'] | sort
[none, 1] | sort
d | dictsort | list | length, {'b': 1, 'A': 2} | dictsort, {'b': 1, 'A': 2} | dictsort(true), {'b': 1, 'A': 2} | dictsort(by='value'), {'b': 1, 'A': 2} | dictsort(reverse=true)
xs | dictsort
ws | unique | list, [1, 1.0, true, 2] | unique | list, ws | unique(true) | list, people | unique(attribute='age') | map(attribute='name') | list
people | groupby('city') | map(attribute='grouper') | list
people | groupby('age') | map('first') | list
people | groupby('nick', default='-') | map(attribute='list') | map('length') | list
people | groupby('city', case_sensitive=true) | map('last') | map('length') | list
xs | batch(2) | list, xs | batch(2, 'x') | list, xs | slice(2) | list, xs | slice(2, 'x') | list, range(7) | batch(3) | list
xs | reverse | list, 'abc' | reverse, d | reverse | list, (1, 2) | reverse | list
5 | reverse
ws | map('upper') | list, people | map(attribute='name') | join(','), people | map(attribute='nick', default='-') | list, nested | map('length') | list, ws | map('replace', 'a', 'z') | list, people | map(attribute='missing') | list
ws | map
ws | map('nope') | list
xs | select | list, [0, 1, '', 'a'] | select | list, xs | select('odd') | list, xs | reject('odd') | list, xs | select('gt', 1) | list, xs | select('in', [1, 2]) | list
people | selectattr('ok') | map(attribute='name') | list, people | rejectattr('ok') | map(attribute='name') | list, people | selectattr('age', 'eq', 30) | map(attribute='name') | list, people | selectattr('nick', 'defined') | map(attribute='name') | list, people | rejectattr('age', 'gt', 26) | map(attribute='name') | list
people | selectattr('city', 'in', ['oslo', 'Oslo']) | list | length
xs | map('string')
xs | join, xs | join(', '), people | join('/', attribute='name'), 'abc' | join('-'), [1, none, true, 1.0, 'a'] | join(','), d | join(' ')
5 | join
s | upper, s | lower, s | capitalize, s | title, 'foo-bar (baz) {q}' | title, 'ß a' | title, 1 | upper, none | lower, [1] | title
w | trim, 'xxaxx' | trim('x'), 5 | trim, none | trim
'ab' | center(6), 'abc' | center(8), 'a' | center(4) | length
'a' | replace('a', 'b'), 'aaa' | replace('a', 'b', 2), 123 | replace(2, 'x'), none | replace('N', 'n')
'%s-%s' | format(1, 'b'), '%(a)s' | format(a=1), 'x' | format, '%d%%' | format(5)
'a\nb\n\nc' | indent, 'a\nb' | indent(2), 'a\nb' | indent(2, true), 'a\n\nb' | indent(2, blank=true), 'a\nb' | indent('> '), 'a\r\nb' | indent(1), '' | indent, 'a\n' | indent
5 | indent
s | truncate(5), s | truncate(5, true), s | truncate(8, leeway=0), s | truncate(5, end='…', leeway=0), s | truncate, 'foo bar baz qux' | truncate(9), 'foo bar baz qux' | truncate(11, false, '...', 0)
s | wordcount, u | wordcount, 'a_b c-d' | wordcount
'12' | int, '12.7' | int, 'x' | int, 'x' | int(5), '0x1f' | int(0, 16), '1f' | int(base=16), 'ff' | int(default=1, base=16), 2.9 | int, -2.9 | int, true | int, none | int, ' 7 ' | int, '1_000' | int, [] | int(3), '' | int, '1e3' | int, '-5' | int, '٣' | int
'12.5' | float, '1e3' | float, 'x' | float, 'x' | float(1.5), 3 | float, true | float, none | float, ' 1.5 ' | float, 'inf' | float, '1_0.5' | float
2.5 | round, 3.5 | round, 42.55 | round(1), 42.55 | round(1, 'floor'), 42.51 | round(0, 'ceil'), 5 | round, 5 | round(1), 1234.5678 | round(2), -2.5 | round, 2.675 | round(2), 7 | round(0, 'floor')
'a' | round
1 | string, 1.0 | string, none | string, [1, 'a'] | string, 'a' | string, true | string
500 | filesizeformat, 1 | filesizeformat, 1500 | filesizeformat, 1500000 | filesizeformat, 1024 | filesizeformat(true), 123456789 | filesizeformat(binary=true), '3000' | filesizeformat
'a b/c?d=é' | urlencode, {'a': 1, 'b c': 'd/e'} | urlencode, [['a', 1]] | urlencode, 5 | urlencode
'a' | attr('upper') is defined, d | attr('b'), (d | attr('b')) is defined
d | items | list | length, {'a': 1} | items | list, missing | items | list
xs | items | list
[1, 'a'] | pprint, 'a' | pprint, none | pprint
'<a & "b">' | e, "it's" | escape, '<a>' | e | e, '<a>' | forceescape, '<a>' | safe, 5 | e, ('<' | safe) ~ '<', ('a' | safe) is string, '<a>' | safe | length
('<' | safe) + '<'
'x' | safe | upper, ' x ' | safe | trim
tool | tojson
tool | tojson(indent=2)
tool | tojson(indent=4, sort_keys=true)
tool | tojson(ensure_ascii=true)
tool | tojson(separators=(',', ':'))
tool | tojson(separators=[', ', '='], indent=1)
[] | tojson(indent=2), {} | tojson(indent=2), [[]] | tojson(indent=2), [1] | tojson(indent=0), [1] | tojson(indent='--'), [1, [2]] | tojson(indent=none)
'a\x7f\x80' | tojson(ensure_ascii=true)
'oslo' in people | map(attribute='city'), 'Rome' in people | map(attribute='city'), 'Rome' not in people | map(attribute='city')
none | tojson, true | tojson, 1 | tojson, 1.0 | tojson, 1e100 | tojson, 'a"\\\n\t\x01\x7f' | tojson, (1, 2) | tojson, {1: 2, none: 3, true: 4, 1.5: 5} | tojson, range(2) | list | tojson
missing | tojson
range(2) | tojson
d.items() | tojson
xs | map('string') | tojson
namespace() | tojson
{(1, 2): 3} | tojson
{'b': 1, 'a': 2} | tojson(sort_keys=true), {'b': 1, 2: 2} | tojson
{'b': 1, 2: 2} | tojson(sort_keys=true)
[s] | string, [u] | string, ["it's"] | string, ['"'] | string, ["'\""] | string, ['\n\t\r\x00\x1f\x7f\x85\xa0é\u200b\u2028👍\\'] | string, ['\u0301'] | string
[1.0, 1e16, 1e-5, 0.1, 123456789.123, 1e22, -0.0, 5e-324, 1.7976931348623157e308]
dict(a=1, b='x'), dict([['a', 1]]), dict({'a': 1}, b=2), dict()
namespace(a=1).a, namespace(a=1).b is defined, namespace({'a': 2}).a
namespace(_a=1)
cycler('a', 'b').current
cycler()
range(100001)
range(99999999999) | length
range('a')
range(1, 2, 0)
range()
raise_exception('stop')
lipsum is defined, lipsum is callable
loop
self is defined
caller is defined, varargs is defined, kwargs is defined
5()
'a'()
n.real
f.is_integer()
[1, 2, 3,]
{'a': 1,}
range(3,) | list
(1, 2,)
1,
d . b
d
. b
xs [0]
- 1
not not true
(1).real is defined
1.5.real
'a'.upper().lower().title()
'a'.join(xs | map('string') | list)
xs | sort | first + 10
-xs | first
-n | abs
n ** 2 | string
'a' 'b' | upper
'a' ~ 'b' | upper
1 in [1] | list
1 is odd | string
{'a': {'b': {'c': [1, {'d': 2}]}}}.a.b.c[1].d
'a' is not string or 1 is number
xs is iterable and xs is not string
1 if xs
[x for x in xs]
lambda x: x
a := 1
1 ! 2
@
'unclosed
(1
1)
{{ 1 }}
xs[1, 2]
xs[:1, :2]
dict(**{'a': 1}), range(*[1, 3]) | list, '{}{}'.format(*['a', 'b']), '{a}'.format(**{'a': 1})
range(*[1], 2)
dict(a=1, a=2)
dict(a=1, 2)
[1, 2] | map('string') | join(',') | upper
d[d.nope] is defined, d.nope in d, nope in {'a': 1}, d.get(d.nope), d.get(nope, 1), {nope: 1}[d.nope], {nope: 1}
[d.a_, none, d.b_, 0] | unique | list | length
{(nope, 1): 2}[(d.nope, true)], {(nope, 1): 2}.get((none, 1)), (nope,) in {(d.nope,): 1}
d[d.nope.deeper]
{1e31: 1}[10 ** 31] is defined, {1e30: 1}[1000000000000000019884624838656], 10 ** 38 < 1.5e38, 1.5e38 > 10 ** 38
() * 4000000000000000000, [] * 4000000000000000000, '' * 4000000000000000000, () * -1, (1, 2) * 2, [1] * 0
range(10)[::100], range(0, 10, 10 ** 18)[::1000], range(10)[2:5][::-1], range(10)[:10 ** 30], range(10)[-10 ** 30:]
range(0, 9 * 10 ** 18, 10 ** 18)[::10 ** 30]
'a\éb\你', '\👍\n', '\\é', '\é', 'é\x41'
'\x+f'
'\u+123'
'\xé'
('x' | safe + '<') ~ ' ' ~ ('<' + 'x' | safe) ~ ' ' ~ ('<' | safe + '>' | safe) ~ ' ' ~ (('a' | safe + '<') + "'>&") ~ ('x' | safe + '<') is escaped
(tool | tojson | safe + '\n') ~ ('"' | safe + '"') ~ ('<' | safe) * 2 ~ 2 * ('<' | safe) ~ (('<' | safe) * 2) is escaped
'x' | safe + 1
[1] + ('x' | safe)
{'a': 1}['a' | safe], {'a' | safe: 1}.a
'hello'.find('l', 3), 'hello'.rfind('l', 0, 3), 'hello'.index('l', 3), 'hello'.rindex('l', none, 3), 'hello'.count('l', 3), 'éàl'.find('l', 1)
'hello'.count('', 2), 'hello'.count('', 5), 'hello'.count('', 6), 'hello'.find('', 5), 'hello'.find('', 6), 'hello'.rfind('', 1, 3), 'hello'.find('', 3, 1)
'hello'.find('l', -2), 'hello'.find('l', none, -2), 'hello'.find('h', 1), 'hello'.find('l', 3, 100), 'hello'.count('l', -100, -1)
'hello'.index('h', 1)
'hello'.startswith('', 6), 'hello'.endswith('', 3, 1), 'hello'.startswith('', 5)
""".strip().split("\n")

# One template in each block; blocks are separated by a line of dashes.
TEMPLATES = r"""
{% for x in xs %}{{ s }}{% endfor %}|{% set s = 'own' %}{{ s }}{% for x in xs %}{{ s }}{% endfor %}
----
{% for x in xs %}{% if loop.last and t %}last{% endif %}{% endfor %}{% set t = false %}
----
{% set xs %}{% for x in xs %}{{ x }}{% endfor %}{% endset %}[{{ xs }}]
----
{% macro m(s=s, n=e, e='d') %}{{ s }},{{ n }},{{ e }}{% endmacro %}{{ m() }};{{ m('a') }};{{ m(e='f') }}
----
{% macro m() %}{{ s }}{% endmacro %}{{ m() }}{% set s = 'X' %}{{ m() }}
----
{% macro m() %}{{ s }}{% endmacro %}{{ s }}{{ m() }}{% set s = 'X' %}{{ m() }}
----
{% macro m() %}{{ s }}{% endmacro %}{{ m() }}{% if n %}{% set s = 'X' %}{% endif %}{{ m() }}
----
{% macro m() %}{{ s }}{% endmacro %}{{ m() }}{% if n %}{% set s = 'X' %}{% elif e %}{% set s = 'Y' %}{% else %}{% set s = 'Z' %}{% endif %}{{ m() }}
----
{% macro m() %}{{ s }}{% endmacro %}{% if n %}{{ s }}{% endif %}{{ m() }}{% set s = 'X' %}{{ m() }}
----
{% macro m() %}{{ s }}{% endmacro %}{% if n %}{% if e %}{% elif t %}{% set s = 'X' %}{% endif %}{% endif %}{{ m() }}{% set s = 'Y' %}{{ m() }}
----
{% for x in xs %}{% for y in xs %}{{ s }}{% endfor %}{% set s = x %}{{ s }}{% for y in xs %}{{ s }}{% endfor %};{% endfor %}
----
{{ s }}{% for x in xs %}{% for y in xs %}{{ s }}{% endfor %}{% set s = x %}{{ s }};{% endfor %}
----
{% for x in xs %}{% for y in xs %}{{ s }}{% endfor %}{% set s = x %};{% endfor %}{{ s }}
----
{% filter upper %}{{ s }}{% endfilter %}{% set s = 'x' %}{% filter upper %}{{ s }}{% endfilter %}
----
{% filter replace('a', s) %}a{% for x in xs %}{{ s }}{% endfor %}{% set s = 'b' %}{% endfilter %}
----
{% with s = s %}{{ s }}{% endwith %}{% with s = 1, u = s %}{{ s }}{{ u }}{% for x in xs %}{{ w }}{% endfor %}{% set w = 2 %}{% endwith %}
----
{% generation %}{{ s }}{% for x in xs %}{{ s }}{% endfor %}{% set s = 2 %}{{ s }}{% endgeneration %}{% generation %}{% for x in xs %}{{ s }}{% endfor %}{% set s = 2 %}{{ s }}{% endgeneration %}
----
{% macro m() %}[{{ caller(1) }}]{% endmacro %}{% call(s) m() %}{{ s }}{% for x in xs %}{{ u }}{% endfor %}{% set u = 2 %}{{ u }}{% endcall %}
----
{% set a, s = 1, s %}{{ s }}{% for x in xs %}{{ e is defined }}{{ d is defined }}{% endfor %}{% set e, (d, f) = 1, (2, 3) %}{{ e }}{{ d }}
----
{% macro m() %}{{ s is defined }}{% endmacro %}{{ m() }}{% macro s() %}{% endmacro %}{{ m() }}
----
{% for x in xs if s %}{{ x }}{% else %}{% for y in xs %}{{ s }}{% endfor %}{% set s = 1 %}{% endfor %}{% for x in [] %}{% else %}{% for y in xs %}{{ s }}{% endfor %}{% set s = 1 %}{% endfor %}
----
{% set ns = namespace(a=1) %}{% for x in xs %}{{ d }}{% endfor %}{% set d.a = 1 %}
----
{% for x in xs %}{{ range is defined }}{% endfor %}{% set range = 1 %}
----
{% for x in xs %}{{ x }}{% endfor %}
----
{% for x in xs %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }};{% endfor %}{{ loop }}
----
{% for p in people %}{% if loop.changed(p.age) %}[{{ p.age }}]{% endif %}{{ p.name }}{% endfor %}
----
{% for x in [] %}x{% else %}none{% endfor %}{% for x in xs if x > 1 %}{{ x }}/{{ loop.length }}{% else %}no{% endfor %}{% for x in xs if x > 9 %}{% else %}no{% endfor %}
----
{% for a, b in [(1, 2), [3, 4]] %}{{ a }}-{{ b }} {% endfor %}{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}
----
{% for a, b in [(1, 2, 3)] %}{% endfor %}
----
{% for a, b in [1] %}{% endfor %}
----
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in 'aé' %}{{ c }},{% endfor %}
----
{% for x in 5 %}{% endfor %}
----
{% for x in none %}{% endfor %}
----
{% for x in missing %}{% else %}e{% endfor %}
----
{% for x in nested recursive %}[{{ loop.depth }}{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{% endif %}]{% endfor %}
----
{% for x in xs %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if loop.index == 3 %}{% break %}{% endif %}!{% endfor %}
----
{% break %}
----
{% set a = 1 %}{% for x in xs %}{% set a = a + x %}{{ a }},{% endfor %}{{ a }}
----
{% set ns = namespace(a=1) %}{% for x in xs %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}{% set ns.b = 'new' %}{{ ns.b }}{{ ns.c }}
----
{% set d.b = 1 %}
----
{% set ns = namespace() %}{% set ns._x = 1 %}
----
{% if t %}{% set a = 1 %}{% endif %}{{ a }}{% if z %}{% set b = 1 %}{% endif %}{{ b }}
----
{% if n > 5 %}a{% elif n > 2 %}b{% else %}c{% endif %}{% if z %}a{% elif z %}b{% else %}c{% endif %}
----
{% set a, b = 1, [2] %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c }}{% set (x, y) = 'ab' %}{{ y }}{{ x }}
----
{% set a, b = 1 %}
----
{% set x %}a {{ n }} b{% endset %}{{ x | upper }}{% set y | upper | replace('A', 'x') %}a{{ n }}{% endset %}{{ y }}{% set z1 %}{% set inner = 1 %}{% endset %}{{ inner }}
----
{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=5) }}{{ m(b=1, a=2) }}{{ m() }}{{ m(*[1, 2], **{'c': 3}) }}
----
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
----
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}
----
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}
----
{% macro m(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}
----
{% macro m(a, b=a ~ '!') %}{{ a }}{{ b }}{% endmacro %}{{ m('x') }}{{ m.name }}{{ m.arguments }}
----
{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{% set x = 2 %}{{ m() }}
----
{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}
----
{% macro m() %}{% set q = 1 %}{% endmacro %}{{ m() }}{{ q }}
----
{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}in {{ n }}{% endcall %}
----
{% macro m() %}[{{ caller(1, 2) }}]{% endmacro %}{% call(a, b=5) m() %}{{ a }}{{ b }}{% endcall %}
----
{% macro m() %}x{% endmacro %}{% call m() %}in{% endcall %}
----
{% macro m() %}{{ caller() if caller else 'none' }}{% endmacro %}{{ m() }}{% call m() %}x{% endcall %}
----
{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}{% endmacro %}{{ outer() }}{{ inner is defined }}
----
{% filter upper %}a {{ s }}{% endfilter %}{% filter replace('a', 'b') | upper %}banana{% endfilter %}
----
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% set c = 3 %}{% endwith %}{{ a }}{{ c }}{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}{% set a = 5 %}{% with a = 1, b = a %}{{ b }}{% endwith %}
----
{% generation %}a{% set g = 1 %}{{ g }}{% endgeneration %}{{ g }}
----
{% raw %}{{ x }}{% if %}{% endraw %}{%- raw -%}  a  {%- endraw -%}  b
----
{# comment {{ x }} #}a{#- b -#}  c
----
  {% if t %}
    a
  {% endif %}
b
----
  {%- if t -%}
    a
  {%- endif -%}
b
----
  {%+ if t +%}
    a
  {%+ endif %}
b
----
a  {% if t %}  b  {% endif %}  c
	{% if t %}	
x{% endif %}
----
{{ 1 }}
{{ 2 }}

{{- 3 -}}

4
----
{% for x in xs %}
  {{ x }}
{% endfor %}
end


----
{% for x in xs -%}
  {{ x }}
{%- endfor %}

{%- if t %} y {% endif -%}
  z
----
a
  {# comment #}
b {# c #} d
{#- e #}
f
----
{% set c = cycler('a', 'b', 'c') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{% set _ = c.reset() %}{{ c.next() }}
----
{% set j = joiner() %}{{ j() }}a{{ j() }}b{{ j() }}{% set k = joiner('|') %}{{ k() }}{{ k() }}
----
{% set g = xs | map('string') %}{{ g | join }}{{ g | join }}{{ g is defined }}{{ g | list }}
----
{% set g = xs | select %}{{ g | first }}{{ g | list }}{% if g %}t{% endif %}
----
{% for g in people | groupby('age') %}{{ g.grouper }}:{{ g.list | length }}:{{ g[0] }} {% endfor %}{% for k, v in people | groupby('ok') %}{{ k }}{{ v | length }}{% endfor %}
----
{% for k, v in d | dictsort %}{{ k }}{% endfor %}{% for k, v in d | items %}{{ k }}{% endfor %}
----
{% for row in range(5) | batch(2, '-') %}{{ row }}{% endfor %}{% for col in range(5) | slice(3, '-') %}{{ col }}{% endfor %}
----
{% print 1 %}{% print 1, 2 %}
----
{% if t: %}a{% else: %}b{% endif %}
----
{% if t %}a
----
{% endif %}
----
{% nope %}
----
{% include 'a' %}
----
{% import 'a' as b %}
----
{% set x = %}
----
{% for x xs %}{% endfor %}
----
{{ 1 + }}
----
{% if t %}{{ 'a' | nope }}{% endif %}
----
{% if z %}{{ 'a' | nope }}{% endif %}ok
----
{% for x in xs %}{{ 'a' is nope }}{% endfor %}
----
{{ '{{' }}{{ '%}' }}{{ "}}" }}{{ {'a': {'b': 1}} }}
----
{{ "a" }}{{- " b " -}} c {%- set x = 1 -%} d
----
a{{ '' }}

b

{{ n }}
 
----
{% for x in xs %}{% for y in xs %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}
----
{% for x in xs %}{% set loop_x = loop.index %}{{ loop_x }}{% endfor %}{{ x }}
----
{% set ns = namespace(f=false, s='') %}{% for m in people %}{% if m.ok is defined and m.ok %}{% set ns.f = true %}{% set ns.s = ns.s ~ m.name %}{% endif %}{% endfor %}{{ ns.f }}{{ ns.s }}
----
{% set messages2 = [{'role': 'system', 'content': 'x'}] + people %}{{ messages2 | length }}{{ messages2[1:][0].name }}{{ messages2[0]['role'] }}
----
{%- macro render(v, depth=0) -%}{%- if v is mapping -%}{{ '{' }}{%- for k, x in v | dictsort -%}{{ k }}:{{ render(x, depth + 1) }}{%- if not loop.last %},{% endif -%}{%- endfor -%}{{ '}' }}{%- elif v is iterable and v is not string -%}[{%- for x in v -%}{{ render(x) }};{%- endfor -%}]{%- else -%}{{ v }}{%- endif -%}{%- endmacro -%}{{ render(tool) }} {{ render(d) }}
----
{% set x = 'a' %}{% set f = 'upper' %}{{ x | attr(f) is defined }}{% for i in range(3) %}{{ i }}{% endfor %}{{ range(3) | last }}
----
{% for p in people | sort(attribute='name') | rejectattr('ok', 'undefined') %}{{ p.name }}{{ '' if loop.last else ', ' }}{% endfor %}
----
{{ people | selectattr('age', '>', 26) | map(attribute='name') | map('upper') | join(' & ') }}
----
{% set a = [] %}{% set a = a + [1] %}{% set a = a + ['x'] %}{{ a }}{% set _ = a.append(2) %}
----
{% set d2 = dict(d, x=1) %}{{ d2.x }}{{ d2 | length }}{{ d.x is defined }}
----
{% autoescape true %}{{ '<' }}{% endautoescape %}
----
{% block a %}x{% endblock %}
----
{% set x = 5 if z %}[{{ x }}]{{ x is defined }}
----
{% for x in xs %}{{ caller is defined }}{% endfor %}{% macro m(caller=1) %}{{ caller }}{% endmacro %}{{ m() }}
----
{%- for x in range(3) %}{%- if x is divisibleby 2 %} even{{ x }}{% else %} odd{{ x }}{% endif %}{%- endfor %}
----
{% for x in xs %}{% break %}{% else %}none{% endfor %}{% for x in xs %}{% continue %}{% else %}none{% endfor %}
----
{% for x in xs %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% else %}none{% endfor %}{% for x in xs %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% else %}none{% endfor %}
----
{% for x in xs if x > 1 %}{% continue %}{% else %}none{% endfor %}{% for x in xs %}{% for y in xs %}{% break %}{% else %}inner{% endfor %}{% else %}outer{% endfor %}
----
{% for x in xs recursive %}{% continue %}{% else %}none{% endfor %}{% for x in nope %}{% else %}none{% endfor %}
----
{% for x in ws %}{{ loop.changed(x | upper) }}{{ loop.changed() }}{{ loop.changed(1, 'a') }}{{ loop.changed(1.0, 'a') }}{% endfor %}
----
{%- set names = {"string": "str", "number": "float", "array": "list"} %}
{%- macro type_of(spec) %}
    {%- if names[spec.type] is defined %}{{- names[spec.type] }}
    {%- elif spec.type in names %}{{- 'never' }}
    {%- elif spec.anyOf is defined %}{% for one in spec.anyOf %}{{ type_of(one) }}{{ ' | ' if not loop.last }}{% endfor %}
    {%- else %}{{- names.get(spec.type, 'Any') }}{%- endif %}
{%- endmacro %}
{%- for name, spec in {'a': {'type': 'string'}, 'b': {'anyOf': [{'type': 'number'}, {}]}, 'c': {'enum': [1]}}.items() %}{{ name }}: {{ type_of(spec) }}
{% endfor %}
----
{{ strftime_now('') }}|{{ strftime_now('100%% %n%t') }}|{{ strftime_now('%Z%z') }}|{{ strftime_now('%Y') | length }}{{ strftime_now('%d %b %Y') | length }}{{ strftime_now('%H:%M:%S') | length }}
""".strip("\n").split("\n----\n")

# Values for --compare, which uses all pairs of them.
VALUES = [
    "0", "1", "-7", "2.5", "-0.0", "1e16", "true", "false", "none", "missing", "''", "'abc'", "'ABC 12'", "'é你'", "' x '",
    "[]", "[1, 'a']", "[3, 1]", "(1, 2)", "()", "{}", "{'a': 1}", "range(3)", "{'k': 'v'}.items()", "'%s'", "namespace(a=1)",
    "[[2, 1], [1]]", "range", "'12'", "'-3.5'", "[{'a': 2}, {'a': 1}]",
]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or", "is sameas", "is in"]
FILTER_CALLS = [
    "abs", "attr('upper')", "batch(2) | list", "capitalize", "center(7)", "count", "default('D')", "default('D', true)", "dictsort",
    "e", "filesizeformat", "first", "float", "float('F')", "forceescape", "format(1)", "format(1, 2)", "groupby('a')", "indent", "indent(1, true)",
    "int", "int('I')", "items | list", "join", "join('-')", "last", "length", "list", "lower", "map('upper') | list", "map(attribute='a') | list",
    "max", "min", "pprint", "reject('odd') | list", "rejectattr('a') | list", "replace('a', 'b')", "reverse | list", "reverse", "round",
    "round(1)", "round(1, 'floor')", "safe", "select | list", "selectattr('a') | list", "slice(2) | list", "sort", "sort(reverse=true)",
    "sort(attribute='a')", "string", "sum", "sum(attribute='a')", "title", "tojson", "tojson(indent=1)", "trim", "trim('a')", "truncate(2)",
    "truncate(4, true, '', 0)", "unique | list", "upper", "urlencode", "wordcount", "map('string') | join(',')", "first | string",
]
TEST_CALLS = [
    "boolean", "callable", "defined", "divisibleby 2", "escaped", "even", "false", "filter", "float", "integer", "iterable", "lower",
    "mapping", "none", "number", "odd", "sequence", "string", "test", "true", "undefined", "upper", "eq 1", "lt 2", "ge 'a'", "in [1, 'abc']",
]
METHOD_CALLS = [
    "upper()", "lower()", "title()", "capitalize()", "swapcase()", "casefold()", "strip()", "lstrip('a')", "rstrip('c')", "split()",
    "split('b')", "rsplit('b', 1)", "splitlines()", "partition('b')", "rpartition('b')", "replace('a', 'b')", "removeprefix('a')",
    "removesuffix('c')", "zfill(5)", "center(6)", "center(7, '*')", "ljust(5)", "rjust(5)", "find('b')", "rfind('b')", "index('b')",
    "count('a')", "count(1)", "index(1)", "startswith('a')", "endswith('c')", "isalpha()", "isalnum()", "isdigit()", "isdecimal()",
    "isnumeric()", "isspace()", "islower()", "isupper()", "istitle()", "isascii()", "join(['a', 'b'])", "format(1)", "get('a')",
    "get('z', 1)", "items() | list", "keys() | list", "values() | list", "copy()", "append(1)", "pop()", "update({})", "clear()", "a", "nope",
    "keys", "0", "real", "encode()", "isidentifier()", "expandtabs()", "start", "stop",
]
SUBSCRIPTS = ["[0]", "[-1]", "[5]", "['a']", "['upper']", "[1:]", "[:-1]", "[::-1]", "[::2]", "[none]", "[1.0]", "[true]", "[[]]", "['a':]"]


def render(template):
    try:
        return _compile_jinja_template(template).render(**VARIABLES)
    except Exception:
        return None


def known():
    for expression in EXPRESSIONS:
        yield "{{ " + expression + " }}"
        # If one expression in a list raises, the results of the others are lost. So each is then tried alone.
        if render("{{ " + expression + " }}") is None and ", " in expression:
            parts = expression.split(", ")
            yield from ("{{ " + part + " }}" for part in parts)
    yield from TEMPLATES


def pairs():
    for a in VALUES:
        for b in VALUES:
            for operator in OPERATORS:
                yield "{{ " + f"{a} {operator} {b}" + " }}"
        yield from ("{{ " + f"{a} | {call}" + " }}" for call in FILTER_CALLS)
        yield from ("{{ " + f"{a} is {call}" + " }}" for call in TEST_CALLS)
        yield from ("{{ " + f"({a}).{call}" + " }}" for call in METHOD_CALLS)
        # Uses a variable, because Jinja2 evaluates items of constants while it compiles, by other rules.
        yield from ("{% set v = " + a + " %}{{ v" + call + " }}" for call in SUBSCRIPTS)
        yield from ("{% if " + a + " %}t{% endif %}", "{% for x in " + a + " %}{{ x }},{% endfor %}", "{{ " + a + " }}", "{{ [" + a + "] }}", "{{ -(" + a + ") }}")


def has_address(text):
    """Whether the text has the address of an object, which differs in each run."""
    return text is not None and (" at 0x" in text or "<function" in text or "<class" in text or "<built-in" in text)


def compare(run):
    """Prints cases that are neither the same nor named as not supported, and counts those that are not supported."""
    templates = [*known(), *pairs()]
    wrong = unsupported = 0
    for template, (text, error) in zip(templates, run(templates), strict=True):
        expected = render(template)
        if text is None and "not supported in templates" in error:
            unsupported += 1
        elif text != expected and not has_address(expected):
            wrong += 1
            print(f"{template}\n    transformers {expected!r}\n    welm         {text!r} {error or ''}")
    print(f"{len(templates)} templates, {unsupported} with something that is not supported, {wrong} wrong")
    return wrong


def with_welm(templates):
    import welm

    model = welm.Model()
    for template in templates:
        try:
            yield model.chat_prompt([{"role": "user"}], chat_template=template, **VARIABLES), None
        except welm.ChatTemplateError as error:
            yield None, str(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "fixtures")
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    if args.compare:
        sys.exit(compare(with_welm) > 0)
    cases = [[template, render(template)] for template in dict.fromkeys(known())]
    cases = [case for case in cases if not has_address(case[1])]
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    variables = json.dumps(VARIABLES, ensure_ascii=False)
    text = f'{{\n "variables": {variables},\n "cases": [\n{lines}\n ]\n}}\n'
    (args.out / "chat_language.json").write_text(text, newline="\n")


if __name__ == "__main__":
    main()
