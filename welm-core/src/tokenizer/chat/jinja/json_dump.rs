//! The filter `tojson`, which writes JSON as Python's `json.dumps` does.

use super::compare::compare;
use super::value::{Fuel, Result, Value, fault, float, size, unsupported};

pub(super) struct Style {
    pub(super) ascii: bool,
    pub(super) sorted: bool,
    /// The indentation of one level; `None` for everything on one line.
    pub(super) indent: Option<String>,
    pub(super) between: String,
    pub(super) colon: String,
}

pub(super) fn dump(fuel: &Fuel, style: &Style, value: &Value, level: usize, out: &mut String) -> Result<()> {
    fuel.pay(1)?;
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(i) => out.push_str(&i.to_string()),
        Value::Float(f) => out.push_str(&number(*f)),
        Value::Str(text) | Value::Markup(text) => {
            fuel.text(text.len())?;
            string(text, style.ascii, out);
        }
        Value::List(seq) | Value::Tuple(seq) => {
            out.push('[');
            for (i, item) in seq.items.iter().enumerate() {
                start(fuel, style, i, level + 1, out)?;
                dump(fuel, style, item, level + 1, out)?;
            }
            end(fuel, style, seq.items.len(), level, out)?;
            out.push(']');
        }
        Value::Dict(dict) => {
            let mut entries: Vec<_> = dict.entries.iter().collect();
            if style.sorted {
                entries = super::filters::in_order(entries, false, |a, b| {
                    compare(&a.0, &b.0, "<", fuel).map(|o| o.is_some_and(|o| o.is_lt()))
                })?;
            }
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                start(fuel, style, i, level + 1, out)?;
                let key = match key {
                    Value::Str(key) => key.to_string(),
                    Value::Float(f) => number(*f),
                    Value::Bool(b) => b.to_string(),
                    Value::None => "null".into(),
                    Value::Int(i) => i.to_string(),
                    other => {
                        let name = other.type_name();
                        return fault(format!("keys must be str, int, float, bool or None, not {name}"));
                    }
                };
                string(&key, style.ascii, out);
                out.push_str(&style.colon);
                dump(fuel, style, item, level + 1, out)?;
            }
            end(fuel, style, dict.entries.len(), level, out)?;
            out.push('}');
        }
        other => return fault(format!("Object of type {} is not JSON serializable", other.type_name())),
    }
    Ok(())
}

fn line(fuel: &Fuel, indent: &str, level: usize, out: &mut String) -> Result<()> {
    fuel.text(indent.len().saturating_mul(level))?;
    out.push('\n');
    out.push_str(&indent.repeat(level));
    Ok(())
}

fn start(fuel: &Fuel, style: &Style, i: usize, level: usize, out: &mut String) -> Result<()> {
    if i > 0 {
        fuel.text(style.between.len())?;
        out.push_str(&style.between);
    }
    fuel.text(style.colon.len())?;
    match &style.indent {
        Some(indent) => line(fuel, indent, level, out),
        None => Ok(()),
    }
}

fn end(fuel: &Fuel, style: &Style, n: usize, level: usize, out: &mut String) -> Result<()> {
    match &style.indent {
        Some(indent) if n > 0 => line(fuel, indent, level, out),
        _ => Ok(()),
    }
}

fn number(f: f64) -> String {
    match f {
        f if f.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        f => float(f),
    }
}

fn string(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if c < ' ' || (ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The style that the filter's arguments ask for.
pub(super) fn style(
    ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    sorted: Option<Value>,
) -> Result<Style> {
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(indent)) => Some(indent.to_string()),
        Some(other) => match other.as_int() {
            Some(n) if n > 1000 => return unsupported("tojson with an indent of more than 1000"),
            Some(n) => Some(" ".repeat(size(n)?)),
            None => return fault("tojson: indent must be a number or a string"),
        },
    };
    let (mut between, mut colon) = (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string());
    match separators {
        None | Some(Value::None) => {}
        Some(Value::List(seq) | Value::Tuple(seq)) => match &seq.items[..] {
            [Value::Str(a), Value::Str(b)] => (between, colon) = (a.to_string(), b.to_string()),
            _ => return fault("tojson: separators must be two strings"),
        },
        Some(_) => return fault("tojson: separators must be two strings"),
    }
    let truth = |value: Option<Value>| value.is_some_and(|value| value.truth());
    Ok(Style { ascii: truth(ascii), sorted: truth(sorted), indent, between, colon })
}
