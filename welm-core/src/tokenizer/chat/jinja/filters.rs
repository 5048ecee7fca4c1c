//! Filters: what follows `|`.

use std::rc::Rc;

use super::attributes::{item, path};
use super::checks;
use super::eval::{CallArgs, Interpreter};
use super::format;
use super::json_dump;
use super::ops;
use super::text;
use super::value::{Fuel, Result, Seq, Value, compare, equal, fault, size, undefined, unsupported};

pub(super) const FILTERS: [&str; 49] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
];
/// Those that Jinja2 has besides: they make HTML, or something by chance.
pub(super) const FILTERS_ABSENT: [&str; 5] = ["random", "striptags", "urlize", "wordwrap", "xmlattr"];

/// How deep the filter of a `map` counts, which may be a `map`: a filter takes more of the stack than an expression.
const MAP_LEVELS: usize = 8;

/// Values in order by a `less`, by merging: equal ones stay as they are, and a `less` without sense does no harm.
pub(super) fn sort<T>(
    mut items: Vec<T>,
    reverse: bool,
    mut less: impl FnMut(&T, &T) -> Result<bool>,
) -> Result<Vec<T>> {
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        let mut rest = items.into_iter();
        loop {
            let mut left = rest.by_ref().take(width).collect::<Vec<_>>().into_iter().peekable();
            let mut right = rest.by_ref().take(width).collect::<Vec<_>>().into_iter().peekable();
            if left.peek().is_none() {
                break;
            }
            while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
                let second = if reverse { less(a, b)? } else { less(b, a)? };
                merged.extend(if second { right.next() } else { left.next() });
            }
            merged.extend(left);
            merged.extend(right);
        }
        items = merged;
        width *= 2;
    }
    Ok(items)
}

fn truth(value: Option<Value>) -> bool {
    value.is_some_and(|value| value.truth())
}

fn some(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}

fn number(what: &str, value: Option<Value>, default: i128) -> Result<i128> {
    match value {
        None => Ok(default),
        Some(value) => match value.as_int() {
            Some(i) => Ok(i),
            None => fault(format!("{what}: expected a whole number, got a {}", value.type_name())),
        },
    }
}

/// Text that a filter makes of text, marked as safe if that was.
pub(super) fn marked(of: &Value, text: impl Into<Rc<str>>) -> Value {
    match of {
        Value::Markup(_) => Value::Markup(text.into()),
        _ => Value::Str(text.into()),
    }
}

fn only_text<'v>(what: &str, value: &'v Value) -> Result<&'v str> {
    match value {
        Value::Str(text) => Ok(text),
        Value::Undefined(reason) => fault(&**reason),
        Value::Markup(_) => unsupported(format_args!("{what} of text that `safe` has marked")),
        other => fault(format!("{what}: expected a string, got a {}", other.type_name())),
    }
}

/// Text for HTML, as it is if `safe` has marked it.
pub(super) fn escaped(fuel: &Fuel, value: &Value) -> Result<Rc<str>> {
    let text = value.to_text(fuel)?;
    if matches!(value, Value::Markup(_)) {
        return Ok(text);
    }
    fuel.text(6 * text.len())?;
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(text.replace('\'', "&#39;").replace('"', "&#34;").into())
}

/// By what filters compare that do not tell capitals from small letters.
fn folded(fuel: &Fuel, value: Value, case_sensitive: bool) -> Result<Value> {
    fuel.pay(1)?;
    Ok(match value {
        Value::Str(text) if !case_sensitive => {
            fuel.text(2 * text.len())?;
            text.to_lowercase().into()
        }
        value => value,
    })
}

/// The attribute of a value, or the default for one that has none.
fn get(cx: &Interpreter, value: &Value, attribute: Option<&Value>, default: Option<&Value>) -> Result<Value> {
    let Some(attribute) = attribute else { return Ok(value.clone()) };
    let (Some(default), Value::Str(names)) = (default, attribute) else {
        let found = path(cx, value, attribute)?;
        return Ok(match (default, found) {
            (Some(default), Value::Undefined(_)) => default.clone(),
            (_, found) => found,
        });
    };
    let mut value = value.clone();
    for name in names.split('.') {
        value = path(cx, &value, &name.into())?;
        if matches!(value, Value::Undefined(_)) {
            value = default.clone();
        }
    }
    Ok(value)
}

fn less(fuel: &Fuel, a: &Value, b: &Value) -> Result<bool> {
    compare(a, b, "<", fuel).map(|ordering| ordering.is_some_and(|o| o.is_lt()))
}

pub(super) fn apply(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    match name {
        "length" | "count" => {
            let [] = args.bind(name, [])?;
            value.len(fuel).map(Value::from)
        }
        "default" | "d" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
            let absent = matches!(value, Value::Undefined(_)) || (truth(boolean) && !value.truth());
            Ok(if absent { default.unwrap_or_else(|| "".into()) } else { value })
        }
        "tojson" => {
            let [ascii, indent, separators, sorted] =
                args.bind(name, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
            let style = json_dump::style(ascii, indent, separators, sorted)?;
            let mut out = String::new();
            json_dump::dump(fuel, &style, &value, 0, &mut out)?;
            fuel.text(out.len())?;
            Ok(out.into())
        }
        "upper" | "lower" | "capitalize" | "title" | "trim" | "center" | "string" => {
            plain(fuel, name, value, args)
        }
        "safe" => {
            let [] = args.bind(name, [])?;
            Ok(Value::Markup(value.to_text(fuel)?))
        }
        "escape" | "e" | "forceescape" => {
            let [] = args.bind(name, [])?;
            let value = match value {
                Value::Markup(text) if name == "forceescape" => Value::Str(text),
                value => value,
            };
            escaped(fuel, &value).map(Value::Markup)
        }
        "replace" => {
            let [Some(old), Some(new), count] = args.bind(name, ["old", "new", "count"])? else {
                return fault("replace misses an argument");
            };
            let (text, old, new) = (value.to_text(fuel)?, old.to_text(fuel)?, new.to_text(fuel)?);
            let count = number("replace", some(count), -1)?;
            text::replace(fuel, &text, &old, &new, count).map(Value::from)
        }
        "format" => {
            let text = value.to_text(fuel)?;
            let given = match (args.positional.is_empty(), args.named.is_empty()) {
                (false, false) => {
                    return fault("can't handle positional and keyword arguments at the same time");
                }
                (_, true) => Value::tuple(args.positional)?,
                _ => {
                    Value::dict(args.named.into_iter().map(|(name, value)| (Value::Str(name), value)), fuel)?
                }
            };
            format::printf(fuel, &text, &given).map(Value::from)
        }
        "indent" => indent(fuel, value, args),
        "truncate" => truncate(fuel, value, args),
        "wordcount" => {
            let [] = args.bind(name, [])?;
            let text = value.to_text(fuel)?;
            fuel.text(8 * text.len())?;
            let (mut n, mut inside) = (0usize, false);
            for c in text.chars() {
                let word = c == '_' || text::is_alphanumeric(c)?;
                n += usize::from(word && !inside);
                inside = word;
            }
            Ok(n.into())
        }
        "urlencode" => {
            let [] = args.bind(name, [])?;
            match &value {
                Value::Dict(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::View(..)
                | Value::Range(..)
                | Value::Generator(_) => {
                    let mut out = String::new();
                    let pairs = match &value {
                        Value::Dict(dict) => {
                            fuel.items(2 * dict.entries.len())?;
                            let pair = |(k, v): &(Value, Value)| Value::tuple(vec![k.clone(), v.clone()]);
                            dict.entries.iter().map(pair).collect::<Result<Vec<_>>>()?
                        }
                        other => other.items(fuel)?,
                    };
                    for (i, pair) in pairs.iter().enumerate() {
                        let [key, value] = &pair.items(fuel)?[..] else {
                            return fault("urlencode: expected pairs");
                        };
                        let (key, value) = (key.to_text(fuel)?, value.to_text(fuel)?);
                        let (key, value) = (quoted(fuel, &key, true)?, quoted(fuel, &value, true)?);
                        out.push_str(&format!("{}{key}={value}", if i > 0 { "&" } else { "" }));
                    }
                    Ok(out.into())
                }
                one => quoted(fuel, &one.to_text(fuel)?, false).map(Value::from),
            }
        }
        "int" | "float" | "abs" | "round" | "filesizeformat" => numeric(cx, name, value, args),
        "attr" => {
            let [Some(attribute)] = args.bind(name, ["name"])? else { return fault("attr misses a name") };
            let Value::Str(attribute) = attribute else { return fault("attribute name must be string") };
            fuel.text(attribute.len())?;
            match &value {
                Value::Undefined(what) => fault(&**what),
                // Its items are no attributes.
                Value::Dict(dict) if dict.get_str(&attribute).is_some() => {
                    let empty = Value::dict([], fuel)?;
                    item(cx, &empty, &Value::Str(attribute))
                }
                _ => super::attributes::attribute(cx, &value, &attribute),
            }
        }
        "pprint" => {
            let [] = args.bind(name, [])?;
            let mut out = String::new();
            value.repr(fuel, &mut out)?;
            let dict = matches!(&value, Value::Dict(_)) || out.contains('{');
            if out.chars().count() > 78 || out.contains("\\n") || dict {
                return unsupported("pprint of a dict, or of what is longer than a line");
            }
            Ok(out.into())
        }
        "random" | "striptags" | "urlize" | "wordwrap" | "xmlattr" => {
            unsupported(format_args!("the filter {name}"))
        }
        _ => sequence(cx, name, value, args),
    }
}

/// Filters that take anything for its text.
fn plain(fuel: &Fuel, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    if name == "string" && matches!(value, Value::Markup(_)) {
        return Ok(value);
    }
    let text = value.to_text(fuel)?;
    fuel.text(2 * text.len())?;
    let method = |args| text::call_method(fuel, &text, if name == "trim" { "strip" } else { name }, args);
    let out = match name {
        "trim" => {
            let [chars] = args.bind(name, ["chars"])?;
            method(CallArgs::of(chars.into_iter().collect()))?
        }
        "center" => {
            let [width] = args.bind(name, ["width"])?;
            format::center(fuel, &text, number("center", width, 80)?)?.into()
        }
        "string" => {
            let [] = args.bind(name, [])?;
            Value::Str(text.clone())
        }
        "title" => {
            let [] = args.bind(name, [])?;
            let separates = |c: char| text::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
            let mut out = String::new();
            let mut rest = &*text;
            while let Some(first) = rest.chars().next() {
                let end = rest.find(|c| separates(c) != separates(first)).unwrap_or(rest.len());
                out.extend(first.to_uppercase());
                out.push_str(&rest[first.len_utf8()..end].to_lowercase());
                rest = &rest[end..];
            }
            out.into()
        }
        _ => {
            let [] = args.bind(name, [])?;
            method(CallArgs::default())?
        }
    };
    match out {
        Value::Str(text) => Ok(marked(&value, text)),
        other => Ok(other),
    }
}

fn indent(fuel: &Fuel, value: Value, args: CallArgs) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"])?;
    let source = only_text("indent", &value)?;
    let indention = match width {
        None => "    ".to_string(),
        Some(Value::Str(text)) => text.to_string(),
        Some(other) => {
            let n = size(number("indent", Some(other), 4)?)?;
            fuel.text(n)?;
            " ".repeat(n)
        }
    };
    let (first, blank) = (truth(first), truth(blank));
    let source = format!("{source}\n");
    let lines = text::lines(&source, false);
    fuel.text(source.len().saturating_add(lines.len().saturating_mul(indention.len())))?;
    let mut out = if first { indention.clone() } else { String::new() };
    for (i, line) in lines.into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&indention);
            }
        }
        out.push_str(line);
    }
    Ok(out.into())
}

fn truncate(fuel: &Fuel, value: Value, args: CallArgs) -> Result<Value> {
    let [length, kill, end, leeway] = args.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let (length, leeway) = (number("truncate", length, 255)?, number("truncate", some(leeway), 5)?);
    let end = match &end {
        None => "...",
        Some(end) => only_text("truncate", end)?,
    };
    let end_length = end.chars().count() as i128;
    if length < end_length || leeway < 0 {
        return fault(format!(
            "truncate: expected length >= {end_length} and leeway >= 0, got {length} and {leeway}"
        ));
    }
    if value.len(fuel)? as i128 <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let source = only_text("truncate", &value)?;
    fuel.text(source.len() + end.len())?;
    let mut kept: String = source.chars().take((length - end_length) as usize).collect();
    if !truth(kill)
        && let Some(space) = kept.rfind(' ')
    {
        kept.truncate(space);
    }
    Ok((kept + end).into())
}

/// `urllib.parse.quote`.
fn quoted(fuel: &Fuel, text: &str, query: bool) -> Result<String> {
    fuel.text(3 * text.len())?;
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(byte.into()),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    Ok(out)
}

/// `int(text, base)`; none if it is no number.
fn parse_int(text: &str, base: i128) -> Result<Option<i128>> {
    let text = text.trim_matches(text::is_space);
    if !text.is_ascii() {
        return unsupported("int of text that is no ASCII");
    }
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if !(2..=36).contains(&base) {
        return unsupported("int with such a base");
    }
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "-",
    };
    let prefixed = digits.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let digits = if prefixed { digits[2..].strip_prefix('_').unwrap_or(&digits[2..]) } else { digits };
    let parts: Vec<&str> = digits.split('_').collect();
    let good = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_digit(base as u32));
    if !parts.iter().all(good) {
        return Ok(None);
    }
    match i128::from_str_radix(&parts.concat(), base as u32) {
        Ok(i) => Ok(Some(if negative { -i } else { i })),
        Err(_) => unsupported("a whole number of more than 127 bits"),
    }
}

/// `float(text)`; none if it is no number.
fn parse_float(text: &str) -> Result<Option<f64>> {
    let text = text.trim_matches(text::is_space);
    if !text.is_ascii() {
        return unsupported("float of text that is no ASCII");
    }
    if text.starts_with('_') || text.ends_with('_') || text.contains("__") {
        return Ok(None);
    }
    let bytes = text.as_bytes();
    let lonely = |(i, b): (usize, &u8)| {
        *b == b'_' && !(bytes[i - 1].is_ascii_digit() && bytes[i + 1].is_ascii_digit())
    };
    if bytes.iter().enumerate().any(lonely) {
        return Ok(None);
    }
    Ok(text.replace('_', "").parse().ok())
}

fn truncated(f: f64) -> Result<Option<i128>> {
    if !f.is_finite() {
        return Ok(None);
    }
    if f.abs() >= 1e38 {
        return unsupported("a whole number of more than 127 bits");
    }
    Ok(Some(f.trunc() as i128))
}

fn numeric(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    if let Value::Undefined(what) = &value {
        return fault(&**what);
    }
    match name {
        "int" => {
            let [default, base] = args.bind(name, ["default", "base"])?;
            let base = number("int", base, 10)?;
            let found = match &value {
                Value::Str(text) | Value::Markup(text) => {
                    cx.fuel.text(text.len())?;
                    match parse_int(text, base)? {
                        Some(i) => Some(i),
                        None => parse_float(text)?.map_or(Ok(None), truncated)?,
                    }
                }
                Value::Float(f) if f.is_infinite() => {
                    return fault("cannot convert float infinity to integer");
                }
                Value::Float(f) => truncated(*f)?,
                other => other.as_int(),
            };
            Ok(found.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
        }
        "float" => {
            let [default] = args.bind(name, ["default"])?;
            let found = match &value {
                Value::Str(text) | Value::Markup(text) => {
                    cx.fuel.text(text.len())?;
                    parse_float(text)?
                }
                other => other.as_float(),
            };
            Ok(found.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "abs" => {
            let [] = args.bind(name, [])?;
            match &value {
                Value::Float(f) => Ok(Value::Float(f.abs())),
                other => match other.as_int() {
                    Some(i) if i < 0 => ops::negative(other),
                    Some(i) => Ok(Value::Int(i)),
                    None => fault(format!("bad operand type for abs(): '{}'", other.type_name())),
                },
            }
        }
        "round" => {
            let [precision, method] = args.bind(name, ["precision", "method"])?;
            let precision = number("round", precision, 0)?;
            let method = match &method {
                None => "common",
                Some(method) => only_text("round", method)?,
            };
            let Some(f) = value.as_float() else {
                return fault(format!("type {} doesn't define __round__ method", value.type_name()));
            };
            if !(0..=300).contains(&precision) {
                return unsupported("round with such a precision");
            }
            match (method, value.as_int()) {
                ("common", Some(i)) => Ok(Value::Int(i)),
                ("common", None) => {
                    let rounded = if f.is_finite() {
                        format!("{f:.*}", precision as usize).parse().unwrap_or(f)
                    } else {
                        f
                    };
                    Ok(Value::Float(rounded))
                }
                ("ceil" | "floor", _) => {
                    let power = ops::binary(cx, "**", &Value::Int(10), &Value::Int(precision))?;
                    let whole = match ops::binary(cx, "*", &value, &power)? {
                        Value::Float(f) => truncated(if method == "ceil" { f.ceil() } else { f.floor() })?,
                        other => other.as_int(),
                    };
                    let Some(whole) = whole else { return fault("cannot convert float to integer") };
                    ops::binary(cx, "/", &Value::Int(whole), &power)
                }
                _ => fault("method must be common, ceil or floor"),
            }
        }
        _ => {
            let [binary] = args.bind(name, ["binary"])?;
            let bytes = match apply(cx, "float", value, CallArgs::of(vec![Value::None]))? {
                Value::Float(f) => f,
                _ => return fault("could not convert to float"),
            };
            let binary = truth(binary);
            let base: f64 = if binary { 1024.0 } else { 1000.0 };
            if bytes == 1.0 {
                return Ok("1 Byte".into());
            }
            if bytes < base {
                return Ok(format!("{} Bytes", truncated(bytes)?.unwrap_or(0)).into());
            }
            let prefixes = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
            for (i, prefix) in prefixes.iter().enumerate() {
                let unit = base.powi(i as i32 + 2);
                if bytes < unit || i + 1 == prefixes.len() {
                    let prefix = if binary && i == 0 { "K" } else { prefix };
                    let suffix = if binary { "iB" } else { "B" };
                    return Ok(format!("{:.1} {prefix}{suffix}", base * bytes / unit).into());
                }
            }
            fault("filesizeformat")
        }
    }
}

/// Filters of what can be gone through.
fn sequence(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    match name {
        "list" => {
            let [] = args.bind(name, [])?;
            Value::list(value.items(fuel)?)
        }
        "items" => {
            let [] = args.bind(name, [])?;
            match &value {
                Value::Undefined(_) => Value::generator(Vec::new()),
                Value::Dict(dict) => {
                    fuel.items(2 * dict.entries.len())?;
                    let pair = |(k, v): &(Value, Value)| Value::tuple(vec![k.clone(), v.clone()]);
                    Value::generator(dict.entries.iter().map(pair).collect::<Result<_>>()?)
                }
                _ => fault("Can only get item pairs from a mapping."),
            }
        }
        "first" => {
            let [] = args.bind(name, [])?;
            let first = match &value {
                Value::Generator(generator) => generator.left.borrow_mut().pop_front(),
                Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => seq.items.first().cloned(),
                other => other.items(fuel)?.into_iter().next(),
            };
            Ok(first.unwrap_or_else(|| undefined("No first item, sequence was empty.")))
        }
        "last" => {
            let [] = args.bind(name, [])?;
            let last = match &value {
                Value::Generator(_) => return fault("'generator' object is not reversible"),
                Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => seq.items.last().cloned(),
                other => other.items(fuel)?.into_iter().next_back(),
            };
            Ok(last.unwrap_or_else(|| undefined("No last item, sequence was empty.")))
        }
        "reverse" => {
            let [] = args.bind(name, [])?;
            if let Value::Str(text) | Value::Markup(text) = &value {
                fuel.text(2 * text.len())?;
                return Ok(marked(&value, text.chars().rev().collect::<String>()));
            }
            let mut items = value.items(fuel)?;
            items.reverse();
            if matches!(value, Value::Generator(_)) { Value::list(items) } else { Value::generator(items) }
        }
        "join" => {
            let [between, attribute] = args.bind(name, ["d", "attribute"])?;
            let between = match between {
                None => "".into(),
                Some(between) => between.to_text(fuel)?,
            };
            let attribute = some(attribute);
            let mut out = String::new();
            for (i, item) in value.items(fuel)?.iter().enumerate() {
                fuel.pay(1)?;
                if i > 0 {
                    fuel.text(between.len())?;
                    out.push_str(&between);
                }
                get(cx, item, attribute.as_ref(), None)?.print(fuel, &mut out)?;
            }
            Ok(out.into())
        }
        "map" => map(cx, value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(cx, name, value, args),
        "sum" => {
            let [attribute, start] = args.bind(name, ["attribute", "start"])?;
            let attribute = some(attribute);
            let mut sum = start.unwrap_or(Value::Int(0));
            if sum.as_str().is_some() {
                return fault("sum() can't sum strings [use ''.join(seq) instead]");
            }
            for item in value.items(fuel)? {
                fuel.pay(1)?;
                let item = get(cx, &item, attribute.as_ref(), None)?;
                sum = ops::binary(cx, "+", &sum, &item)?;
            }
            Ok(sum)
        }
        "min" | "max" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let (case, attribute) = (truth(case), some(attribute));
            let mut best: Option<(Value, Value)> = None;
            for item in value.items(fuel)? {
                let key = folded(fuel, get(cx, &item, attribute.as_ref(), None)?, case)?;
                let better = match &best {
                    None => true,
                    Some((_, known)) if name == "min" => less(fuel, &key, known)?,
                    Some((_, known)) => compare(&key, known, ">", fuel)?.is_some_and(|o| o.is_gt()),
                };
                if better {
                    best = Some((item, key));
                }
            }
            Ok(best.map_or_else(|| undefined("No aggregated item, sequence was empty."), |(item, _)| item))
        }
        "unique" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let (case, attribute) = (truth(case), some(attribute));
            let mut seen = super::value::Dict::default();
            let mut unique = Vec::new();
            for item in value.items(fuel)? {
                fuel.pay(1)?;
                let key = folded(fuel, get(cx, &item, attribute.as_ref(), None)?, case)?;
                if seen.get(&key, fuel)?.is_none() {
                    seen.insert(key, Value::None, fuel)?;
                    unique.push(item);
                }
            }
            Value::generator(unique)
        }
        "sort" => {
            let [reverse, case, attribute] = args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let (case, attribute) = (truth(case), some(attribute));
            let attributes: Vec<Option<Value>> = match &attribute {
                Some(Value::Str(names)) => {
                    fuel.text(names.len())?;
                    fuel.items(names.matches(',').count())?;
                    names.split(',').map(|name| Some(name.into())).collect()
                }
                other => vec![other.clone()],
            };
            let mut keyed = Vec::new();
            for item in value.items(fuel)? {
                let key =
                    |attribute: &Option<Value>| folded(fuel, get(cx, &item, attribute.as_ref(), None)?, case);
                let keys = attributes.iter().map(key).collect::<Result<_>>()?;
                keyed.push((Value::list(keys)?, item));
            }
            let sorted = sort(keyed, truth(reverse), |a, b| less(fuel, &a.0, &b.0))?;
            Value::list(sorted.into_iter().map(|(_, item)| item).collect())
        }
        "dictsort" => {
            let [case, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"])?;
            let Value::Dict(dict) = &value else {
                return match &value {
                    Value::Undefined(what) => fault(&**what),
                    other => fault(format!("'{}' object has no attribute 'items'", other.type_name())),
                };
            };
            let by_value = match by.as_ref().map(|by| by.as_str()) {
                None | Some(Some("key")) => false,
                Some(Some("value")) => true,
                _ => return fault("You can only sort by either \"key\" or \"value\""),
            };
            let case = truth(case);
            let mut keyed = Vec::new();
            for (key, value) in &dict.entries {
                let by = if by_value { value } else { key };
                keyed
                    .push((folded(fuel, by.clone(), case)?, Value::tuple(vec![key.clone(), value.clone()])?));
            }
            let sorted = sort(keyed, truth(reverse), |a, b| less(fuel, &a.0, &b.0))?;
            Value::list(sorted.into_iter().map(|(_, item)| item).collect())
        }
        "groupby" => {
            let [Some(attribute), default, case] =
                args.bind(name, ["attribute", "default", "case_sensitive"])?
            else {
                return fault("groupby misses an attribute");
            };
            let (default, case) = (some(default), truth(case));
            let mut keyed = Vec::new();
            for item in value.items(fuel)? {
                let key = get(cx, &item, Some(&attribute), default.as_ref())?;
                keyed.push((folded(fuel, key.clone(), case)?, key, item));
            }
            let sorted = sort(keyed, false, |a, b| less(fuel, &a.0, &b.0))?;
            let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
            for (folded, key, item) in sorted {
                match groups.last_mut() {
                    Some((known, _, items)) if equal(known, &folded, fuel)? => items.push(item),
                    _ => groups.push((folded, key, vec![item])),
                }
            }
            let group = |(_, key, items)| Seq::group(key, Value::list(items)?);
            Value::list(groups.into_iter().map(group).collect::<Result<_>>()?)
        }
        "batch" => {
            let [Some(n), fill] = args.bind(name, ["linecount", "fill_with"])? else {
                return fault("batch misses a number");
            };
            let n = number("batch", Some(n), 1)?;
            let fill = some(fill);
            let mut batches = Vec::new();
            let mut batch: Vec<Value> = Vec::new();
            for item in value.items(fuel)? {
                if batch.len() as i128 == n {
                    batches.push(Value::list(std::mem::take(&mut batch))?);
                }
                batch.push(item);
            }
            if !batch.is_empty() {
                if let Some(fill) = fill {
                    let n = size(n)?;
                    fuel.items(n)?;
                    batch.resize(n.max(batch.len()), fill);
                }
                batches.push(Value::list(batch)?);
            }
            Value::generator(batches)
        }
        "slice" => {
            let [Some(n), fill] = args.bind(name, ["slices", "fill_with"])? else {
                return fault("slice misses a number");
            };
            let n = number("slice", Some(n), 1)?;
            let fill = some(fill);
            let items = value.items(fuel)?;
            let Ok(n @ 1..) = usize::try_from(n) else {
                return fault("slice: expected a number of slices of at least 1");
            };
            fuel.items(n)?;
            let (each, extra) = (items.len() / n, items.len() % n);
            let mut items = items.into_iter();
            let mut slices = Vec::new();
            for i in 0..n {
                let mut slice: Vec<Value> = items.by_ref().take(each + usize::from(i < extra)).collect();
                if i >= extra {
                    slice.extend(fill.clone());
                }
                slices.push(Value::list(slice)?);
            }
            Value::generator(slices)
        }
        other => fault(format!("no filter named '{other}'")),
    }
}

fn map(cx: &Interpreter, value: Value, args: CallArgs) -> Result<Value> {
    if !value.truth() {
        return Value::generator(Vec::new());
    }
    let items = value.items(&cx.fuel)?;
    let mut mapped = Vec::with_capacity(items.len());
    if args.positional.is_empty() && args.named.iter().any(|(name, _)| **name == *"attribute") {
        let [attribute, default] = args.bind("map", ["attribute", "default"])?;
        let (attribute, default) = (some(attribute), some(default));
        for item in items {
            cx.fuel.pay(1)?;
            mapped.push(get(cx, &item, attribute.as_ref(), default.as_ref())?);
        }
        return Value::generator(mapped);
    }
    let CallArgs { positional, named } = args;
    let Some((Value::Str(name), rest)) = positional.split_first() else {
        return fault("map requires a filter argument");
    };
    for item in items {
        cx.fuel.pay(1 + rest.len() + named.len())?;
        let args = CallArgs { positional: rest.to_vec(), named: named.clone() };
        mapped.push(cx.deeper_by(MAP_LEVELS, || apply(cx, name, item, args))?);
    }
    Value::generator(mapped)
}

fn select(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    if !value.truth() {
        return Value::generator(Vec::new());
    }
    let CallArgs { positional, named } = args;
    let mut rest = &positional[..];
    let mut attribute = None;
    if name.ends_with("attr") {
        let Some((first, others)) = rest.split_first() else {
            return fault("Missing parameter for attribute name");
        };
        (attribute, rest) = (some(Some(first.clone())), others);
    }
    let test = rest.split_first();
    let mut kept = Vec::new();
    for item in value.items(&cx.fuel)? {
        cx.fuel.pay(1)?;
        let looked_at = get(cx, &item, attribute.as_ref(), None)?;
        let holds = match test {
            None => looked_at.truth(),
            Some((Value::Str(test), args)) => {
                cx.fuel.pay(args.len() + named.len())?;
                let args = CallArgs { positional: args.to_vec(), named: named.clone() };
                checks::apply(cx, test, &looked_at, args)?
            }
            Some((other, _)) => return fault(format!("no test named a {}", other.type_name())),
        };
        if holds == name.starts_with("select") {
            kept.push(item);
        }
    }
    Value::generator(kept)
}
