//! Filters of text, and of any value's text.

use std::rc::Rc;

use super::super::eval::{CallArgs, Interpreter};
use super::super::format;
use super::super::json_dump;
use super::super::text;
use super::super::value::{Fuel, Result, Value, fault, size, unsupported};
use super::{marked, number, only_text, some, truth};

/// A value's text escaped for HTML. Text that was marked by `safe` stays as it is.
pub(in super::super) fn escaped(fuel: &Fuel, value: &Value) -> Result<Rc<str>> {
    let text = value.to_text(fuel)?;
    if matches!(value, Value::Markup(_)) {
        return Ok(text);
    }
    fuel.text(6 * text.len())?;
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(text.replace('\'', "&#39;").replace('"', "&#34;").into())
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

pub(super) fn tojson(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [ascii, indent, separators, sorted] =
        args.bind(name, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let style = json_dump::style(ascii, indent, separators, sorted)?;
    let mut out = String::new();
    json_dump::dump(fuel, &style, &value, 0, &mut out)?;
    fuel.text(out.len())?;
    Ok(out.into())
}

pub(super) fn safe(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [] = args.bind(name, [])?;
    Ok(Value::Markup(value.to_text(fuel)?))
}

pub(super) fn escape(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [] = args.bind(name, [])?;
    let value = match value {
        Value::Markup(text) if name == "forceescape" => Value::Str(text),
        value => value,
    };
    escaped(fuel, &value).map(Value::Markup)
}

pub(super) fn replace(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [Some(old), Some(new), count] = args.bind(name, ["old", "new", "count"])? else {
        return fault("replace misses an argument");
    };
    let (text, old, new) = (value.to_text(fuel)?, old.to_text(fuel)?, new.to_text(fuel)?);
    let count = number("replace", some(count), -1)?;
    text::replace(fuel, &text, &old, &new, count).map(Value::from)
}

pub(super) fn format_filter(cx: &Interpreter, _name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let text = value.to_text(fuel)?;
    let given = match (args.positional.is_empty(), args.named.is_empty()) {
        (false, false) => {
            return fault("can't handle positional and keyword arguments at the same time");
        }
        (_, true) => Value::tuple(args.positional)?,
        _ => Value::dict(args.named.into_iter().map(|(name, value)| (Value::Str(name), value)), fuel)?,
    };
    format::printf(fuel, &text, &given).map(Value::from)
}

pub(super) fn wordcount(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
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

pub(super) fn urlencode(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
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

pub(super) fn pprint(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [] = args.bind(name, [])?;
    let mut out = String::new();
    value.repr(fuel, &mut out)?;
    let dict = matches!(&value, Value::Dict(_)) || out.contains('{');
    if out.chars().count() > 78 || out.contains("\\n") || dict {
        return unsupported("pprint of a dict, or of what is longer than a line");
    }
    Ok(out.into())
}

/// Filters that take any value as its text.
pub(super) fn plain(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
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

pub(super) fn indent(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [width, first, blank] = args.bind(name, ["width", "first", "blank"])?;
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

pub(super) fn truncate(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [length, kill, end, leeway] = args.bind(name, ["length", "killwords", "end", "leeway"])?;
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
