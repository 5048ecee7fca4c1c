//! Filters that return or take numbers.

use super::super::eval::{CallArgs, Interpreter};
use super::super::ops;
use super::super::text;
use super::super::value::{Result, Value, fault, unsupported};
use super::{number, only_text, truth};

/// `int(text, base)`; `None` if the text is not a number.
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

/// `float(text)`; `None` if the text is not a number.
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

fn defined(value: &Value) -> Result<()> {
    match value {
        Value::Undefined(what) => fault(&**what),
        _ => Ok(()),
    }
}

pub(super) fn int(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    defined(&value)?;
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

pub(super) fn float(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    defined(&value)?;
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

pub(super) fn abs(_cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    defined(&value)?;
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

pub(super) fn round(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    defined(&value)?;
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
            let rounded =
                if f.is_finite() { format!("{f:.*}", precision as usize).parse().unwrap_or(f) } else { f };
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

pub(super) fn filesizeformat(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    defined(&value)?;
    let [binary] = args.bind(name, ["binary"])?;
    let bytes = match float(cx, "float", value, CallArgs::of(vec![Value::None]))? {
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
