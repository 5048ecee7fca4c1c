//! The methods of Python's strings.

use super::eval::CallArgs;
use super::format;
use super::value::{Fuel, Result, Value, fault, limit, size, unsupported};

pub(super) const METHODS: [&str; 40] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
/// Methods that Python has and that are not supported.
pub(super) const METHODS_ABSENT: [&str; 7] =
    ["encode", "expandtabs", "format_map", "isidentifier", "isprintable", "maketrans", "translate"];

/// Whether Python counts a character as whitespace: Unicode's whitespace, and four control characters.
pub(in super::super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `str.splitlines()`.
pub(super) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(ends_line) {
        let ending = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(&rest[..end + if keep_ends { ending } else { 0 }]);
        rest = &rest[end + ending..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Python's `str.capitalize` of one word, also for `title`: the first letter becomes upper case, the others lower case.
pub(super) fn capitalize(text: &str) -> Result<String> {
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return Ok(String::new()) };
    let mut capital = title_case(first)?;
    // Not letter by letter, because the lower case of a sigma is different at the end of a word.
    let whole = text.to_lowercase();
    let lower_first = first.to_lowercase().collect::<String>();
    capital.push_str(whole.strip_prefix(&lower_first).unwrap_or(&whole));
    Ok(capital)
}

fn title_case(c: char) -> Result<String> {
    match c {
        // Letters that have a title case, which differs from their upper case.
        'Ǆ'..='ǌ'
        | 'Ǳ'..='ǳ'
        | '\u{149}'
        | '\u{1f0}'
        | '\u{390}'
        | '\u{3b0}'
        | '\u{587}'
        | '\u{1e96}'..='\u{1e9a}'
        | '\u{1f50}'..='\u{1ffc}'
        | '\u{10d0}'..='\u{10ff}' => unsupported(format_args!("the capital of {c:?} at the start of a word")),
        // If the upper case of another letter has two characters, only the first is upper case in title case.
        c => {
            let mut upper = c.to_uppercase();
            let mut text = String::from(upper.next().unwrap_or(c));
            text.extend(upper.flat_map(char::to_lowercase));
            Ok(text)
        }
    }
}

fn is_cased(c: char) -> bool {
    c.is_lowercase()
        || c.is_uppercase()
        || matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

fn title(text: &str) -> Result<String> {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        if inside {
            if c == 'Σ' {
                return unsupported("title() of a capital sigma");
            }
            out.extend(c.to_lowercase());
        } else {
            out.push_str(&title_case(c)?);
        }
        inside = is_cased(c);
    }
    Ok(out)
}

fn swap_case(text: &str) -> Result<String> {
    if text.contains('Σ') {
        return unsupported("swapcase() of a capital sigma");
    }
    let mut out = String::new();
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
    }
    Ok(out)
}

fn is_title(text: &str) -> bool {
    let (mut any, mut inside) = (false, false);
    for c in text.chars() {
        let good = if c.is_uppercase() { !inside } else { !c.is_lowercase() || inside };
        if !good {
            return false;
        }
        inside = is_cased(c);
        any |= inside;
    }
    any
}

/// Whether a character is a letter: alphabetic by Unicode. Python does not count some marks, which are an error here.
fn is_letter(c: char) -> Result<bool> {
    let known = c.is_ascii()
        || !c.is_alphabetic()
        || matches!(c, '\u{aa}'..='\u{2af}' | '\u{370}'..='\u{481}' | '\u{48a}'..='\u{556}' | '\u{5d0}'..='\u{5ea}'
            | '\u{620}'..='\u{64a}' | '\u{1e00}'..='\u{1fff}' | '\u{3041}'..='\u{3096}' | '\u{30a1}'..='\u{30fa}'
            | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | '\u{ff21}'..='\u{ff5a}'
            | '\u{20000}'..='\u{2ffff}');
    if known { Ok(c.is_alphabetic()) } else { unsupported(format_args!("whether {c:?} is a letter")) }
}

/// Whether an ASCII character is a digit. Digits and numbers beyond ASCII are an error, and so are ideographs, some of
/// which are numbers, if `ideographs` is set.
fn is_number(c: char, ideographs: bool) -> Result<bool> {
    let ideograph = matches!(c, '\u{3007}' | '\u{3021}'..='\u{3029}' | '\u{3038}'..='\u{303a}' | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{2ffff}');
    if c.is_ascii() {
        Ok(c.is_ascii_digit())
    } else if c.is_numeric() || (ideographs && ideograph) {
        unsupported(format_args!("whether {c:?} is a digit"))
    } else {
        Ok(false)
    }
}

pub(super) fn is_alphanumeric(c: char) -> Result<bool> {
    Ok(is_letter(c)? || is_number(c, true)?)
}

fn all(text: &str, test: impl Fn(char) -> Result<bool>) -> Result<Value> {
    for c in text.chars() {
        if !test(c)? {
            return Ok(false.into());
        }
    }
    Ok((!text.is_empty()).into())
}

/// The positional-only arguments of a method. The first `required` of them must be given.
fn positional<const N: usize>(name: &str, args: CallArgs, required: usize) -> Result<[Option<Value>; N]> {
    if !args.named.is_empty() {
        return fault(format!("{name}() takes no keyword arguments"));
    }
    if args.positional.len() < required {
        return fault(format!(
            "{name}() takes at least {required} arguments ({} given)",
            args.positional.len()
        ));
    }
    args.bind(&format!("{name}()"), [""; N])
}

fn string<'v>(name: &str, value: &'v Value) -> Result<&'v str> {
    match value {
        Value::Str(text) => Ok(text),
        Value::Markup(_) => unsupported(format_args!("{name}() with text that `safe` has marked")),
        other => fault(format!("{name}() argument must be str, not {}", other.type_name())),
    }
}

fn number(name: &str, value: &Value) -> Result<i128> {
    match value.as_int() {
        Some(i) => Ok(i),
        None => fault(format!("{name}() argument must be int, not {}", value.type_name())),
    }
}

/// Fills a text up to `width` characters. `left` says how many of the missing characters come in front.
pub(super) fn pad(
    fuel: &Fuel,
    text: &str,
    width: i128,
    fill: char,
    left: impl Fn(usize) -> usize,
) -> Result<String> {
    let n = text.chars().count();
    let width = size(width)?;
    let missing = width.saturating_sub(n);
    fuel.text(text.len().saturating_add(missing.saturating_mul(fill.len_utf8())))?;
    let before = left(missing);
    let fill = |n: usize| std::iter::repeat_n(fill, n);
    Ok(fill(before).chain(text.chars()).chain(fill(missing - before)).collect())
}

/// How many characters Python's `center` puts in front.
pub(super) fn middle(missing: usize, width: i128) -> usize {
    missing / 2 + (missing & 1 & usize::from(width & 1 == 1))
}

pub(super) fn call_method(fuel: &Fuel, text: &str, name: &str, args: CallArgs) -> Result<Value> {
    fuel.text(2 * text.len())?;
    match name {
        "format" => format::braces(fuel, text, args).map(Value::from),
        "split" | "rsplit" => split(fuel, text, name, args),
        "splitlines" => split_lines(fuel, text, args),
        "strip" | "lstrip" | "rstrip" => strip(fuel, text, name, args),
        "startswith" | "endswith" => starts_or_ends(fuel, text, name, args),
        "find" | "rfind" | "index" | "rindex" | "count" => find(text, name, args),
        "replace" => replace_method(fuel, text, name, args),
        "join" => join(fuel, text, name, args),
        "partition" | "rpartition" => partition(text, name, args),
        "removeprefix" | "removesuffix" => remove(text, name, args),
        "center" | "ljust" | "rjust" => justify(fuel, text, name, args),
        "zfill" => zfill(fuel, text, name, args),
        _ => without_arguments(text, name, args),
    }
}

fn split_lines(fuel: &Fuel, text: &str, args: CallArgs) -> Result<Value> {
    let [keep] = args.bind("splitlines()", ["keepends"])?;
    let lines = lines(text, keep.is_some_and(|keep| keep.truth()));
    fuel.items(lines.len())?;
    Value::list(lines.into_iter().map(Value::from).collect())
}

fn strip(fuel: &Fuel, text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [chars] = positional(name, args, 0)?;
    let chars: Option<Vec<char>> = match &chars {
        None | Some(Value::None) => None,
        Some(chars) => Some(string(name, chars)?.chars().collect()),
    };
    if let Some(chars) = &chars {
        fuel.pay(text.len().saturating_mul(chars.len()) / 64)?;
    }
    let strips = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(&c));
    Ok(match name {
        "strip" => text.trim_matches(strips),
        "lstrip" => text.trim_start_matches(strips),
        _ => text.trim_end_matches(strips),
    }
    .into())
}

fn starts_or_ends(fuel: &Fuel, text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [Some(wanted), start, end] = positional(name, args, 1)? else { return fault("no argument") };
    let Some((_, text)) = part(text, name, start, end)? else { return Ok(false.into()) };
    let one = |wanted: &Value| match wanted {
        Value::Str(wanted) if name == "startswith" => Ok(text.starts_with(&**wanted)),
        Value::Str(wanted) => Ok(text.ends_with(&**wanted)),
        other => fault(format!("{name} first arg must be str or a tuple of str, not {}", other.type_name())),
    };
    match &wanted {
        Value::Tuple(seq) => {
            for wanted in &seq.items {
                fuel.pay(1)?;
                fuel.text(wanted.as_str().map_or(0, str::len).min(text.len()))?;
                if one(wanted)? {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        wanted => one(wanted).map(Value::from),
    }
}

fn find(text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [Some(wanted), start, end] = positional(name, args, 1)? else { return fault("no argument") };
    let wanted = string(name, &wanted)?;
    let part = part(text, name, start, end)?;
    if name == "count" {
        return Ok(match part {
            None => 0,
            Some((_, text)) if wanted.is_empty() => text.chars().count() + 1,
            Some((_, text)) => text.matches(wanted).count(),
        }
        .into());
    }
    let found = part.and_then(|(before, text)| {
        let at = if name.starts_with('r') { text.rfind(wanted) } else { text.find(wanted) }?;
        Some(before + text[..at].chars().count())
    });
    match found {
        Some(at) => Ok(at.into()),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => fault("substring not found"),
    }
}

fn replace_method(fuel: &Fuel, text: &str, name: &str, args: CallArgs) -> Result<Value> {
    // The count is also positional-only in Python.
    let [Some(old), Some(new), count] = positional(name, args, 2)? else {
        return fault("no argument");
    };
    let count = count.map_or(Ok(-1), |count| number(name, &count))?;
    replace(fuel, text, string(name, &old)?, string(name, &new)?, count).map(Value::from)
}

fn join(fuel: &Fuel, text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [Some(items)] = positional(name, args, 1)? else { return fault("no argument") };
    let mut out = String::new();
    for (i, item) in items.items(fuel)?.iter().enumerate() {
        let Value::Str(item) = item else {
            let item = item.type_name();
            return fault(format!("sequence item {i}: expected str instance, {item} found"));
        };
        let between = if i > 0 { text } else { "" };
        fuel.text(between.len() + item.len())?;
        fuel.pay(1)?;
        out.push_str(between);
        out.push_str(item);
    }
    Ok(out.into())
}

fn partition(text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [Some(wanted)] = positional(name, args, 1)? else { return fault("no argument") };
    let wanted = string(name, &wanted)?;
    if wanted.is_empty() {
        return fault("empty separator");
    }
    let parts = if name == "partition" { text.split_once(wanted) } else { text.rsplit_once(wanted) };
    let parts = match parts {
        Some((before, after)) => [before, wanted, after],
        None if name == "partition" => [text, "", ""],
        None => ["", "", text],
    };
    Value::tuple(parts.into_iter().map(Value::from).collect())
}

fn remove(text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [Some(wanted)] = positional(name, args, 1)? else { return fault("no argument") };
    let wanted = string(name, &wanted)?;
    let rest = if name == "removeprefix" { text.strip_prefix(wanted) } else { text.strip_suffix(wanted) };
    Ok(rest.unwrap_or(text).into())
}

fn justify(fuel: &Fuel, text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [Some(width), fill] = positional(name, args, 1)? else { return fault("no argument") };
    let width = number(name, &width)?;
    let fill = match &fill {
        None => ' ',
        Some(fill) => match string(name, fill)?.chars().collect::<Vec<_>>()[..] {
            [fill] => fill,
            _ => return fault("The fill character must be exactly one character long"),
        },
    };
    let left = |missing| match name {
        "ljust" => 0,
        "rjust" => missing,
        _ => middle(missing, width),
    };
    Ok(pad(fuel, text, width, fill, left)?.into())
}

fn zfill(fuel: &Fuel, text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [Some(width)] = positional(name, args, 1)? else { return fault("no argument") };
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (&text[..1], digits),
        None => ("", text),
    };
    let width = number(name, &width)?.saturating_sub(sign.len() as i128);
    Ok(format!("{sign}{}", pad(fuel, digits, width, '0', |missing| missing)?).into())
}

fn without_arguments(text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [] = positional(name, args, 0)?;
    Ok(match name {
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "casefold" if text.is_ascii() => text.to_lowercase().into(),
        "casefold" => return unsupported("casefold() of text that is no ASCII"),
        "capitalize" => capitalize(text)?.into(),
        "title" => title(text)?.into(),
        "swapcase" => swap_case(text)?.into(),
        "isspace" => return all(text, |c| Ok(is_space(c))),
        "isascii" => text.is_ascii().into(),
        "islower" => {
            (text.chars().any(is_cased) && !text.chars().any(|c| is_cased(c) && !c.is_lowercase())).into()
        }
        "isupper" => {
            (text.chars().any(is_cased) && !text.chars().any(|c| is_cased(c) && !c.is_uppercase())).into()
        }
        "istitle" => is_title(text).into(),
        "isalpha" => return all(text, is_letter),
        "isalnum" => return all(text, |c| Ok(is_letter(c)? || is_number(c, false)?)),
        "isdecimal" | "isdigit" => return all(text, |c| is_number(c, false)),
        "isnumeric" => return all(text, |c| is_number(c, true)),
        _ => return unsupported(format_args!("the method {name} of a str")),
    })
}

/// The part of a text that a method searches, and the number of characters before it. `None` if the part would begin
/// after its end; then not even an empty text is found.
fn part<'t>(
    text: &'t str,
    name: &str,
    start: Option<Value>,
    end: Option<Value>,
) -> Result<Option<(usize, &'t str)>> {
    let n = text.chars().count() as i128;
    let bound = |value: Option<Value>, default: i128| -> Result<i128> {
        Ok(match value {
            None | Some(Value::None) => default,
            Some(value) => match number(name, &value)? {
                i if i < 0 => (i + n).max(0),
                i => i,
            },
        })
    };
    let (start, end) = (bound(start, 0)?, bound(end, n)?.min(n));
    if start > end {
        return Ok(None);
    }
    let byte = |at: i128| text.char_indices().map(|(i, _)| i).nth(at as usize).unwrap_or(text.len());
    Ok(Some((start as usize, &text[byte(start)..byte(end)])))
}

/// `str.replace`. Replaces all matches if `count` is negative.
pub(super) fn replace(fuel: &Fuel, text: &str, old: &str, new: &str, count: i128) -> Result<String> {
    let matches = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    let n = limit(count)?.min(matches);
    fuel.text(text.len().saturating_add(n.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, n))
}

fn split(fuel: &Fuel, text: &str, name: &str, args: CallArgs) -> Result<Value> {
    let [separator, given] = args.bind(&format!("{name}()"), ["sep", "maxsplit"])?;
    let limit = limit(given.map_or(Ok(-1), |given| number(name, &given))?)?;
    let from_end = name == "rsplit";
    let mut parts: Vec<&str> = Vec::new();
    match &separator {
        None | Some(Value::None) => {
            let mut rest = text;
            loop {
                rest = if from_end {
                    rest.trim_end_matches(is_space)
                } else {
                    rest.trim_start_matches(is_space)
                };
                if rest.is_empty() {
                    break;
                }
                let cut = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
                match cut {
                    Some(at) if parts.len() < limit => {
                        let space = rest[at..].chars().next().map_or(1, char::len_utf8);
                        let (word, others) = if from_end {
                            (&rest[at + space..], &rest[..at])
                        } else {
                            (&rest[..at], &rest[at..])
                        };
                        parts.push(word);
                        rest = others;
                    }
                    // The rest is one part. Spaces at its other end are kept only if the limit ended the splitting.
                    _ => {
                        parts.push(rest);
                        break;
                    }
                }
            }
            if from_end {
                parts.reverse();
            }
        }
        Some(separator) => {
            let separator = string(name, separator)?;
            if separator.is_empty() {
                return fault("empty separator");
            }
            let limit = limit.saturating_add(1);
            parts = if from_end {
                text.rsplitn(limit, separator).collect()
            } else {
                text.splitn(limit, separator).collect()
            };
            if from_end {
                parts.reverse();
            }
        }
    }
    fuel.items(parts.len())?;
    Value::list(parts.into_iter().map(Value::from).collect())
}
