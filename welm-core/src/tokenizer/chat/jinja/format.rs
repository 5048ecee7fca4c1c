//! Formats text as Python does: `"%s" % x` and `"{}".format(x)`.

use std::rc::Rc;

use super::eval::CallArgs;
use super::text::{middle, pad};
use super::value::{Fuel, Result, Value, fault, float, size, unsupported};

/// Most digits after the decimal point.
const MAX_PRECISION: usize = 1000;

/// How to write a value: fill, alignment, sign, width, precision and so on.
#[derive(Default, Clone)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^` or `=`.
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// The number at the start of a text, if there is one, and the rest of the text.
fn digits(text: &str) -> Result<(Option<usize>, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    match text[..end].parse() {
        Ok(n) => Ok((Some(n), &text[end..])),
        Err(_) if end == 0 => Ok((None, text)),
        Err(_) => fault("too many decimal digits in format string"),
    }
}

fn precision(n: usize) -> Result<usize> {
    if n > MAX_PRECISION {
        return unsupported(format_args!("a precision of more than {MAX_PRECISION}"));
    }
    Ok(n)
}

/// Parses flags, width and precision of a `%` format. `next` gives the values for `*`.
fn spec_of_printf<'t, 'v>(
    mut rest: &'t str,
    mut next: impl FnMut() -> Result<&'v Value>,
) -> Result<(Spec, &'t str)> {
    let mut spec = Spec::default();
    while let Some(flag) = rest.chars().next().filter(|c| "#0- +".contains(*c)) {
        match flag {
            '#' => spec.alternate = true,
            '0' => spec.zero = true,
            '-' => spec.align = Some('<'),
            '+' => spec.sign = Some('+'),
            _ => spec.sign = spec.sign.or(Some(' ')),
        }
        rest = &rest[1..];
    }
    let star = |value: &Value| match value.as_int() {
        Some(i) => Ok(i),
        None => fault("* wants int"),
    };
    if let Some(after) = rest.strip_prefix('*') {
        let width = star(next()?)?;
        if width < 0 {
            spec.align = Some('<');
        }
        spec.width = size(width.checked_abs().unwrap_or(i128::MAX))?;
        rest = after;
    } else {
        let (width, after) = digits(rest)?;
        spec.width = width.unwrap_or(0);
        rest = after;
    }
    if let Some(after) = rest.strip_prefix('.') {
        if let Some(after) = after.strip_prefix('*') {
            spec.precision = Some(size(star(next()?)?)?);
            rest = after;
        } else {
            let (n, after) = digits(after)?;
            spec.precision = Some(n.unwrap_or(0));
            rest = after;
        }
    }
    Ok((spec, rest))
}

/// `"text %s" % value`.
pub(super) fn printf(fuel: &Fuel, text: &str, value: &Value) -> Result<String> {
    let mut args = match value {
        Value::Tuple(seq) => seq.items.iter(),
        one => std::slice::from_ref(one).iter(),
    };
    let mapping = matches!(value, Value::Dict(_) | Value::List(_) | Value::Undefined(_) | Value::Range(..));
    let mut named = false;
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        fuel.pay(1)?;
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut key = None;
        if let Some(after) = rest.strip_prefix('(') {
            let Some(end) = after.find(')') else { return fault("incomplete format key") };
            if after[..end].contains('(') {
                return unsupported("brackets in the key of a format");
            }
            let Value::Dict(dict) = value else { return fault("format requires a mapping") };
            let name: Rc<str> = after[..end].into();
            let Some(found) = dict.get_str(&name) else { return fault(format!("KeyError: '{name}'")) };
            (key, named) = (Some(found), true);
            rest = &after[end + 1..];
        }
        let mut next = || match args.next() {
            Some(value) => Ok(value),
            None => fault("not enough arguments for format string"),
        };
        let spec;
        (spec, rest) = spec_of_printf(rest, &mut next)?;
        rest = rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest);
        let Some(kind) = rest.chars().next() else { return fault("incomplete format") };
        rest = &rest[kind.len_utf8()..];
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match key {
            Some(value) => value,
            None => next()?,
        };
        one_of_printf(fuel, value, kind, spec, &mut out)?;
    }
    out.push_str(rest);
    if args.next().is_some() && !mapping && !named {
        return fault("not all arguments converted during string formatting");
    }
    fuel.text(out.len())?;
    Ok(out)
}

fn one_of_printf(fuel: &Fuel, value: &Value, kind: char, mut spec: Spec, out: &mut String) -> Result<()> {
    spec.align = spec.align.or(Some(if spec.zero && !matches!(kind, 's' | 'r' | 'c') { '=' } else { '>' }));
    spec.fill = (spec.align == Some('=')).then_some('0');
    let text = match kind {
        's' | 'r' => {
            let mut text = String::new();
            if kind == 's' {
                value.print(fuel, &mut text)?
            } else {
                value.repr(fuel, &mut text)?
            }
            if let Some(precision) = spec.precision {
                text = text.chars().take(precision).collect();
            }
            aligned(fuel, "", &text, &spec, '>')?
        }
        'c' => {
            let c = match value {
                Value::Str(text) if text.chars().count() == 1 => text.to_string(),
                other => match other.as_int().map(|i| u32::try_from(i).ok().and_then(char::from_u32)) {
                    Some(Some(c)) => c.into(),
                    Some(None) => return fault("%c arg not in range(0x110000)"),
                    None => return fault("%c requires int or char"),
                },
            };
            aligned(fuel, "", &c, &spec, '>')?
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let value = match value {
                Value::Float(f) if matches!(kind, 'd' | 'i' | 'u') => {
                    if !f.is_finite() || f.abs() >= 1e38 {
                        return fault(format!("cannot convert float {} to integer", float(*f)));
                    }
                    f.trunc() as i128
                }
                other => match other.as_int() {
                    Some(i) => i,
                    None => {
                        let name = other.type_name();
                        return fault(format!("%{kind} format: a number is required, not {name}"));
                    }
                },
            };
            let kind = if matches!(kind, 'i' | 'u') { 'd' } else { kind };
            let (prefix, mut digits) = integer(value, kind, spec.alternate);
            if let Some(n) = spec.precision {
                let n = precision(n)?;
                digits = "0".repeat(n.saturating_sub(digits.len())) + &digits;
            }
            aligned(fuel, &(sign(value < 0, &spec) + &prefix), &digits, &spec, '>')?
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(value) = value.as_float() else {
                return fault(format!("must be real number, not {}", value.type_name()));
            };
            real(fuel, value, kind, &spec)?
        }
        'a' => return unsupported("%a in a format"),
        other => return fault(format!("unsupported format character '{other}'")),
    };
    out.push_str(&text);
    Ok(())
}

fn sign(negative: bool, spec: &Spec) -> String {
    match (negative, spec.sign) {
        (true, _) => "-".into(),
        (false, Some('+')) => "+".into(),
        (false, Some(' ')) => " ".into(),
        _ => String::new(),
    }
}

/// The prefix and the digits of a number without its sign.
fn integer(value: i128, kind: char, alternate: bool) -> (String, String) {
    let value = value.unsigned_abs();
    let (prefix, digits) = match kind {
        'x' => ("0x", format!("{value:x}")),
        'X' => ("0X", format!("{value:X}")),
        'o' => ("0o", format!("{value:o}")),
        'b' => ("0b", format!("{value:b}")),
        _ => ("", value.to_string()),
    };
    (if alternate { prefix.into() } else { String::new() }, digits)
}

/// A number with its sign, filled up to the width.
fn aligned(fuel: &Fuel, sign: &str, body: &str, spec: &Spec, default: char) -> Result<String> {
    let fill = spec.fill.unwrap_or(' ');
    let width = spec.width as i128;
    match spec.align.unwrap_or(default) {
        '=' => {
            let inner = width - sign.chars().count() as i128;
            Ok(format!("{sign}{}", pad(fuel, body, inner, fill, |missing| missing)?))
        }
        align => {
            let left = |missing| match align {
                '<' => 0,
                '>' => missing,
                _ => missing / 2,
            };
            pad(fuel, &format!("{sign}{body}"), width, fill, left)
        }
    }
}

fn exponent(text: &str) -> String {
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text.into(),
    }
}

/// Formats a floating-point number by `e`, `f`, `g` or `%`.
fn real(fuel: &Fuel, value: f64, kind: char, spec: &Spec) -> Result<String> {
    if spec.alternate {
        return unsupported("# in the format of a floating-point number");
    }
    let digits = precision(spec.precision.unwrap_or(6))?;
    let negative = value.is_sign_negative() && !value.is_nan();
    let size = value.abs();
    let mut text = if !value.is_finite() {
        if value.is_nan() { "nan".into() } else { "inf".to_string() }
    } else {
        match kind.to_ascii_lowercase() {
            'e' => exponent(&format!("{size:.digits$e}")),
            'f' => format!("{size:.digits$}"),
            '%' => format!("{:.digits$}%", size * 100.0),
            _ => {
                let digits = digits.max(1);
                let scientific = format!("{size:.*e}", digits - 1);
                let power: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
                let trimmed = |text: &str| match text.contains('.') {
                    true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
                    false => text.to_string(),
                };
                if (-4..digits as i32).contains(&power) {
                    trimmed(&format!("{size:.*}", (digits as i32 - 1 - power).max(0) as usize))
                } else {
                    let (mantissa, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
                    exponent(&format!("{}e{power}", trimmed(mantissa)))
                }
            }
        }
    };
    if kind.is_ascii_uppercase() {
        text = text.to_uppercase();
    }
    let text = grouped(&text, spec)?;
    aligned(fuel, &sign(negative, spec), &text, spec, '>')
}

/// Puts `,` or `_` after every third digit, if the format asks for it.
fn grouped(text: &str, spec: &Spec) -> Result<String> {
    let Some(separator) = spec.grouping else { return Ok(text.into()) };
    if spec.zero || spec.align == Some('=') {
        return unsupported("a format with both a separator of thousands and zeros");
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let mut out = String::new();
    for (i, c) in text[..end].chars().enumerate() {
        if i > 0 && (end - i) % 3 == 0 {
            out.push(separator);
        }
        out.push(c);
    }
    Ok(out + &text[end..])
}

fn parse_spec(text: &str) -> Result<Spec> {
    let mut spec = Spec::default();
    let mut rest = text;
    let mut chars = rest.chars();
    let (first, second) = (chars.next(), chars.next());
    let is_align = |c: Option<char>| c.filter(|c| "<>=^".contains(*c));
    if let (Some(fill), Some(align)) = (first, is_align(second)) {
        (spec.fill, spec.align) = (Some(fill), Some(align));
        rest = &rest[fill.len_utf8() + 1..];
    } else if let Some(align) = is_align(first) {
        spec.align = Some(align);
        rest = &rest[1..];
    }
    if let Some(sign) = rest.chars().next().filter(|c| "+- ".contains(*c)) {
        spec.sign = Some(sign);
        rest = &rest[1..];
    }
    if rest.starts_with('z') {
        return unsupported("z in a format");
    }
    if let Some(after) = rest.strip_prefix('#') {
        spec.alternate = true;
        rest = after;
    }
    if let Some(after) = rest.strip_prefix('0') {
        spec.zero = true;
        rest = after;
    }
    let (width, after) = digits(rest)?;
    spec.width = width.unwrap_or(0);
    rest = after;
    if let Some(grouping) = rest.chars().next().filter(|c| ",_".contains(*c)) {
        spec.grouping = Some(grouping);
        rest = &rest[1..];
    }
    if let Some(after) = rest.strip_prefix('.') {
        let (n, after) = digits(after)?;
        let Some(n) = n else { return fault("Format specifier missing precision") };
        spec.precision = Some(n);
        rest = after;
    }
    let mut chars = rest.chars();
    spec.kind = chars.next();
    if chars.next().is_some() {
        return fault(format!("Invalid format specifier '{text}'"));
    }
    Ok(spec)
}

/// `format(value, spec)`.
fn formatted(fuel: &Fuel, value: &Value, text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok(value.to_text(fuel)?.to_string());
    }
    let mut spec = parse_spec(text)?;
    let unknown = |kind: char| {
        let name = value.type_name();
        fault(format!("Unknown format code '{kind}' for object of type '{name}'"))
    };
    match value {
        Value::Str(text) => {
            if let Some(kind) = spec.kind.filter(|kind| *kind != 's') {
                return unknown(kind);
            }
            if spec.sign.is_some() || spec.alternate || spec.grouping.is_some() || spec.align == Some('=') {
                return fault("a format for numbers with a string");
            }
            if spec.zero {
                spec.fill = spec.fill.or(Some('0'));
            }
            let text: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            aligned(fuel, "", &text, &spec, '<')
        }
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            if spec.zero {
                spec.fill = spec.fill.or(Some('0'));
                spec.align = spec.align.or(Some('='));
            }
            match (value.as_int(), spec.kind) {
                (Some(i), None | Some('d' | 'b' | 'o' | 'x' | 'X')) => {
                    if spec.precision.is_some() {
                        return fault("Precision not allowed in integer format specifier");
                    }
                    let kind = spec.kind.unwrap_or('d');
                    if spec.grouping.is_some() && kind != 'd' {
                        return unsupported("a separator of digits that are not decimal");
                    }
                    let (prefix, digits) = integer(i, kind, spec.alternate);
                    let digits = grouped(&digits, &spec)?;
                    aligned(fuel, &(sign(i < 0, &spec) + &prefix), &digits, &spec, '>')
                }
                (_, Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%'))) => {
                    real(fuel, value.as_float().unwrap_or(0.0), kind, &spec)
                }
                (None, None) if spec.precision.is_none() && !spec.alternate => {
                    let number = value.as_float().unwrap_or(0.0);
                    let text = grouped(&float(number.abs()), &spec)?;
                    aligned(
                        fuel,
                        &sign(number.is_sign_negative() && !number.is_nan(), &spec),
                        &text,
                        &spec,
                        '>',
                    )
                }
                (None, None) => unsupported("a format of a floating-point number without its type"),
                (_, Some('n' | 'c')) => unsupported("the types n and c in a format"),
                (_, Some(kind)) => unknown(kind),
            }
        }
        other => fault(format!("unsupported format string passed to {}.__format__", other.type_name())),
    }
}

/// `"{} {name}".format(...)`.
pub(super) fn braces(fuel: &Fuel, text: &str, args: CallArgs) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    let (mut automatic, mut manual) = (0usize, false);
    while let Some(at) = rest.find(['{', '}']) {
        fuel.pay(1)?;
        out.push_str(&rest[..at]);
        let open = rest[at..].starts_with('{');
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(if open { '{' } else { '}' }) {
            out.push(if open { '{' } else { '}' });
            rest = after;
            continue;
        }
        if !open {
            return fault("Single '}' encountered in format string");
        }
        let Some(end) = rest.find(['{', '}']) else { return fault("expected '}' before end of string") };
        if rest[end..].starts_with('{') {
            return unsupported("a field in a field of format()");
        }
        let field = &rest[..end];
        rest = &rest[end + 1..];
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = match field.split_once('!') {
            Some((name, conversion)) => (name, Some(conversion)),
            None => (field, None),
        };
        if name.contains(['.', '[']) {
            return unsupported("an attribute or an item in a field of format()");
        }
        let (number, _) = digits(name)?;
        let value = if name.is_empty() || (number.is_some() && name.bytes().all(|b| b.is_ascii_digit())) {
            let i = match number {
                Some(_) if automatic > 0 => {
                    return fault(
                        "cannot switch from automatic field numbering to manual field specification",
                    );
                }
                Some(i) => {
                    manual = true;
                    i
                }
                None if manual => {
                    return fault(
                        "cannot switch from manual field specification to automatic field numbering",
                    );
                }
                None => {
                    automatic += 1;
                    automatic - 1
                }
            };
            args.positional.get(i)
        } else {
            args.named.iter().find(|(n, _)| **n == *name).map(|(_, value)| value)
        };
        let Some(value) = value else { return fault(format!("format() has no argument '{name}'")) };
        let shown = match conversion {
            None => formatted(fuel, value, spec)?,
            Some("s") => formatted(fuel, &Value::Str(value.to_text(fuel)?), spec)?,
            Some("r") => {
                let mut repr = String::new();
                value.repr(fuel, &mut repr)?;
                formatted(fuel, &repr.into(), spec)?
            }
            Some(other) => return unsupported(format_args!("the conversion !{other} in format()")),
        };
        out.push_str(&shown);
        fuel.text(out.len() / 16)?;
    }
    out.push_str(rest);
    fuel.text(out.len())?;
    Ok(out)
}

/// `str.center`. The alignment `^` rounds differently in Python.
pub(super) fn center(fuel: &Fuel, text: &str, width: i128) -> Result<String> {
    pad(fuel, text, width, ' ', |missing| middle(missing, width))
}
