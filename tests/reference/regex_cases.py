"""Splits texts with Oniguruma, by the tokenizers library. Tests compare welm-core's regular expressions with it.

    pip install tokenizers
    python tests/reference/regex_cases.py welm-core/src/tokenizer/dfa               # what is committed
    python tests/reference/regex_cases.py /tmp/big --texts 1000 --patterns 20000     # more cases
    WELM_REGEX_CASES=/tmp/big/cases.json cargo nextest run -p welm-core --run-ignored all more_words

cases.json    [expression, text, words] of published models and of generated expressions; no text if the library
              refuses the expression
classes.txt   classes, each with the number of its characters and an FNV hash of these
"""

import argparse
import json
import random
import sys
from pathlib import Path

from tokenizers import NormalizedString, Regex
from tokenizers.normalizers import Replace

random.seed(7)
REAL={
"gpt2":r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
"llama3":r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
"qwen2":r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
"cl100k":r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
"o200k":r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
"tekken":r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
"tekken_gguf":r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
"deepseek3":r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
"deepseek_cjk":"[一-龥\u3040-ゟ゠-ヿ]+",
"deepseek_coder1":r"\s?\p{L}+","deepseek_coder2":r"\s?\p{P}+","deepseek_coder3":"[一-龥ࠀ-一가-퟿]+","deepseek_coder0":r"[\r\n]","ds_punct":r"\s?[!-/:-~！-／：-～‘-‟　-。]+","ds_ws":r"\s+$",
"bloom":r" ?[^(\s|.,!?…。，、।۔،)]+","bloom2":r" ?[^(\s|[.,!?…。，、।۔،])]+",
"falcon":r"[0-9][0-9][0-9]","digits":r"\d","rx_possessive":r"\p{N}{1,3}+|\P{N}","kimi":r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
"qwen35":r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
"glm":r"\p{Nd}{1,3}","gemma":r" ","spaces":r" {2,}","phi":r"\s{2,}|\S+","xlnet":r" {2,}",
"minicpm":r"(?:\r\n|\n|\r)+", "words":r"\w+|[^\w\s]+","code":r"(?:\s|^)\w+\b",
}
atoms=["a","b","A","Z","s","t","K","\u212a","ſ","ß","é","É","\u0301","ǅ","ʰ","你","好","龥","の","カ","가","क","ि","1","12","1234","Ⅷ","²","٣"," ","  ","   ","\n","\r\n","\r","\t","\u00a0","\u3000","\u0085","\u180e","\u200b","\u2028","\ufeff",".",",","!?","。","，","-","_","'","'s","'LL","'re","'ſ","don't","<",">","$","+","^","`","|","~","€","😀","\u200d","/","\\","(",")","[","]","{","}","&","\x00","\x07","\x7f","\x1c","ff","ﬁ","İ","ı","Σ","ς","word","Hello"," world","HTTPServer","camelCase","\n\n","=","#","\U000E0001","\U0001F1E9\U0001F1EA","Ꮓ","\u1c80"]
def text(n): return "".join(random.choice(atoms) for _ in range(random.randint(0,n)))
# small generated patterns
C=["a","b","1"," ","\\n",".","\\s","\\S","\\w","\\W","\\d","\\D","\\h","\\H","\\p{L}","\\P{L}","\\p{^N}","\\p{Lu}","[ab]","[^a]","[a-c&&[^b]]","[[:alpha:]]","[[:punct:]]","[[:^space:]]","[\\w\\-]","[^\\s\\d]","[[:digit:]a]","\\x{4f60}","\\u4f60","\\x41","[\\x41-\\x5a]","\\.","[-a]","[a-]","[\\]]","é","\\t","[^[:alnum:]\\s]","\\p{Han}","[[a][b-c]]","[a[^b]]","\\N","\\O","[[:upper:]]","[[:lower:]]","[[:blank:]]","[[:cntrl:]]","[[:xdigit:]]","[\\p{L}\\p{M}]","[^\\p{L}\\n]","{","}","]","-","&","[\\s&&[^\\n]]","\\/","[.+*?]","[\\b]","ß"]
Q=["","","","*","+","?","*?","+?","??","*+","++","?+","{2}","{1,2}","{,2}","{1,}","{1,3}?","{1,3}+","{2}+","{1,2}?","{0,1}","{a}","{,}"]
L=["(?=%s)","(?!%s)","(?<=%s)","(?<!%s)"]
A=["^","$","\\b","\\B","\\A","\\z"]
def atom(d):
    r=random.random()
    if d>0 and r<.3:
        g=random.choice(["(%s)","(?:%s)","(?:%s)","(?<n>%s)","(?i:%s)","(?m:%s)","(?>%s)","(?-i:%s)"])
        return g%alt(d-1)
    if r<.4: return random.choice(L)%random.choice(C+["\\s|$","a|b","[ab]+"])
    if r<.46: return random.choice(A)
    return random.choice(C)
def seq(d): return "".join(atom(d)+random.choice(Q) for _ in range(random.randint(1,3)))
def alt(d): return "|".join(seq(d) for _ in range(random.choice([1,1,1,2,3])))
def splits(p,t):
    n=NormalizedString(t)
    return [x.normalized for x in n.split(Regex(p),"isolated") if x.normalized]
SMALL=["a","b","c","A","B","1","12"," ","  ","\n","é","É","你","_","-",".","{","]","s","S","ſ","ss","ß","\u0085","\r","ab","aab","\u00a0","}","&"]

def members(pattern):
    """The characters that the expression matches, one at a time."""
    replace, found = Replace(Regex(pattern), ""), []
    for base in range(0, 0x110000, 1024):
        codes = [c for c in range(base, base + 1024) if not 0xD800 <= c <= 0xDFFF]
        kept = set(replace.normalize_str("".join(map(chr, codes)))) if codes else set()
        found += [c for c in codes if chr(c) not in kept]
    return found


def fnv(codes):
    state = 0xCBF29CE484222325
    for code in codes:
        state = ((state ^ code) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return state


PROPERTIES = """
L Lu Ll Lt Lm Lo LC M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Cn Co Cs
Letter Uppercase_Letter Lowercase_Letter Titlecase_Letter Cased_Letter Modifier_Letter Other_Letter Mark
Nonspacing_Mark Spacing_Mark Enclosing_Mark Number Decimal_Number Letter_Number Other_Number Punctuation
Connector_Punctuation Dash_Punctuation Open_Punctuation Close_Punctuation Initial_Punctuation
Final_Punctuation Other_Punctuation Symbol Math_Symbol Currency_Symbol Modifier_Symbol Other_Symbol Separator
Space_Separator Line_Separator Paragraph_Separator Other Control Format Unassigned Private_Use Alphabetic
Alpha Uppercase Lowercase White_Space Ideographic Emoji Extended_Pictographic Math Dash Hex_Digit
ASCII_Hex_Digit XID_Start XID_Continue ID_Start ID_Continue Any ASCII Assigned Han Hiragana Katakana Hangul
Latin Greek Cyrillic Arabic Hebrew Thai Lao Tibetan Myanmar Devanagari Bengali Gurmukhi Gujarati Oriya Tamil
Telugu Kannada Malayalam Sinhala Georgian Armenian Ethiopic Khmer Mongolian Bopomofo Common Inherited Braille
Cherokee Alnum Blank Cntrl Digit Graph Print Punct Space Upper Lower XDigit Word
""".split()
POSIX = "alnum alpha ascii blank cntrl digit graph lower print punct space upper xdigit word".split()
CLASSES = [r"[\w]", r"[^\w]", r"[\W]", r"[[:^word:]]", r"[a\w]", r"[\w&&[^a]]", r"[\d]", r"[\s]", r"[\h]",
           r"[[:^alpha:]]", r"(?i:[k])", r"(?i:[s])", r"(?i:1)", r"[\b]", r"(?i:[a-f0-9])", r"\w", r"\d", r"\s",
           r"\h", ".", r"\N", r"\O", "(?m:.)", r"\W", r"\S", r"\D", r"\p{^L}", r"\P{L}", r"[^\p{L}]", "[^a]",
           "(?i:k)", "(?i:s)", "(?i:[a-z])", "(?i:a)"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--patterns", type=int, default=700)
    args = parser.parse_args()
    cases = []
    for pattern in REAL.values():
        for _ in range(args.texts):
            t = text(14)
            cases.append([pattern, t, splits(pattern, t)])
    for _ in range(args.patterns):
        pattern = random.choice(["", "", "", "", "(?i)", "(?m)"]) + alt(2)
        try:
            Regex(pattern)
        except Exception:
            cases.append([pattern, None, None])
            continue
        for _ in range(6):
            t = "".join(random.choice(SMALL) for _ in range(random.randint(0, 9)))
            cases.append([pattern, t, splits(pattern, t)])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cases.json").write_text(json.dumps(cases))
    with open(args.out / "classes.txt", "w") as out:
        for pattern in [rf"\p{{{n}}}" for n in PROPERTIES] + [f"[[:{n}:]]" for n in POSIX] + CLASSES:
            try:
                found = members(pattern)
            except Exception:
                continue
            print(pattern, len(found), fnv(found), file=out)
    print(len(cases), "cases", file=sys.stderr)


if __name__ == "__main__":
    main()
