//! Operators.

use super::compare::equal;
use super::eval::Interpreter;
use super::filters::{escaped, marked};
use super::format;
use super::value::{Fuel, Result, Value, fault, range_len, size, unsupported};

const TOO_BIG: &str = "a whole number of more than 127 bits";

fn wrong<T>(sign: &str, left: &Value, right: &Value) -> Result<T> {
    let (left, right) = (left.type_name(), right.type_name());
    fault(format!("unsupported operand type(s) for {sign}: '{left}' and '{right}'"))
}

fn whole(value: Option<i128>) -> Result<Value> {
    value.map_or_else(|| unsupported(TOO_BIG), |i| Ok(Value::Int(i)))
}

pub(super) fn negative(value: &Value) -> Result<Value> {
    match value {
        Value::Float(f) => Ok(Value::Float(-f)),
        Value::Undefined(what) => fault(&**what),
        other => match other.as_int() {
            Some(i) => whole(i.checked_neg()),
            None => fault(format!("bad operand type for unary -: '{}'", other.type_name())),
        },
    }
}

pub(super) fn positive(value: &Value) -> Result<Value> {
    match value {
        Value::Float(f) => Ok(Value::Float(*f)),
        Value::Undefined(what) => fault(&**what),
        other => match other.as_int() {
            Some(i) => Ok(Value::Int(i)),
            None => fault(format!("bad operand type for unary +: '{}'", other.type_name())),
        },
    }
}

pub(super) fn binary(cx: &Interpreter, sign: &str, left: &Value, right: &Value) -> Result<Value> {
    let fuel = &cx.fuel;
    if let (Value::Str(text), "%") = (left, sign) {
        return format::printf(fuel, text, right).map(Value::from);
    }
    if matches!(left, Value::View(..)) || matches!(right, Value::View(..)) {
        return unsupported(format_args!("{sign} with a view of a dict"));
    }
    if let Value::Undefined(what) = left {
        return fault(&**what);
    }
    if let Value::Undefined(what) = right {
        return fault(&**what);
    }
    if let (Value::Markup(_), Value::Str(_) | Value::Markup(_), "+")
    | (Value::Str(_), Value::Markup(_), "+") = (left, right, sign)
    {
        let (left, right) = (escaped(fuel, left)?, escaped(fuel, right)?);
        fuel.text(left.len() + right.len())?;
        return Ok(Value::Markup(format!("{left}{right}").into()));
    }
    if sign != "*" && (matches!(left, Value::Markup(_)) || matches!(right, Value::Markup(_))) {
        return unsupported(format_args!("{sign} with text that `safe` has marked"));
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return integers(sign, a, b);
    }
    if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
        return floats(sign, a, b);
    }
    match (sign, left, right) {
        ("+", Value::Str(a), Value::Str(b)) => {
            fuel.text(a.len() + b.len())?;
            Ok(format!("{a}{b}").into())
        }
        ("+", Value::List(a), Value::List(b)) => {
            fuel.items(a.items.len() + b.items.len())?;
            Value::list(a.items.iter().chain(&b.items).cloned().collect())
        }
        ("+", Value::Tuple(a), Value::Tuple(b)) => {
            fuel.items(a.items.len() + b.items.len())?;
            Value::tuple(a.items.iter().chain(&b.items).cloned().collect())
        }
        ("*", many, n) | ("*", n, many) if n.as_int().is_some() => {
            let n = size(n.as_int().unwrap_or(0))?;
            repeat(fuel, many, n).unwrap_or_else(|| wrong(sign, left, right))
        }
        _ => wrong(sign, left, right),
    }
}

fn repeat(fuel: &Fuel, many: &Value, n: usize) -> Option<Result<Value>> {
    let items = |items: &Vec<Value>| {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        fuel.items(items.len().saturating_mul(n))?;
        Ok((0..n).flat_map(|_| items.iter().cloned()).collect::<Vec<_>>())
    };
    Some(match many {
        Value::Str(text) | Value::Markup(text) => fuel
            .text(text.len().saturating_mul(n))
            .map(|()| marked(many, text.repeat(if text.is_empty() { 0 } else { n }))),
        Value::List(seq) => items(&seq.items).and_then(Value::list),
        Value::Tuple(seq) => items(&seq.items).and_then(Value::tuple),
        _ => return None,
    })
}

fn integers(sign: &str, a: i128, b: i128) -> Result<Value> {
    match sign {
        "+" => whole(a.checked_add(b)),
        "-" => whole(a.checked_sub(b)),
        "*" => whole(a.checked_mul(b)),
        "/" => {
            if b == 0 {
                return fault("division by zero");
            }
            let exact = |i: i128| i.unsigned_abs() <= 1 << 53;
            if !exact(a) || !exact(b) {
                return unsupported("/ of whole numbers of more than 53 bits");
            }
            Ok(Value::Float(a as f64 / b as f64))
        }
        "//" | "%" => {
            if b == 0 {
                return fault("integer division or modulo by zero");
            }
            let (Some(quotient), Some(remainder)) = (a.checked_div(b), a.checked_rem(b)) else {
                return unsupported(TOO_BIG);
            };
            let uneven = remainder != 0 && (remainder < 0) != (b < 0);
            Ok(Value::Int(match sign {
                "//" => quotient - i128::from(uneven),
                _ => remainder + if uneven { b } else { 0 },
            }))
        }
        "**" if b < 0 => floats(sign, a as f64, b as f64),
        "**" => match a {
            0 | 1 => Ok(Value::Int(if b == 0 { 1 } else { a })),
            -1 => Ok(Value::Int(if b % 2 == 0 { 1 } else { -1 })),
            a => whole(u32::try_from(b).ok().and_then(|b| a.checked_pow(b))),
        },
        _ => unsupported(sign),
    }
}

fn floats(sign: &str, a: f64, b: f64) -> Result<Value> {
    Ok(Value::Float(match sign {
        "+" => a + b,
        "-" => a - b,
        "*" => a * b,
        "/" if b != 0.0 => a / b,
        "//" | "%" if b != 0.0 => {
            let mut remainder = a % b;
            let mut quotient = (a - remainder) / b;
            if remainder == 0.0 {
                remainder = 0f64.copysign(b);
            } else if (b < 0.0) != (remainder < 0.0) {
                remainder += b;
                quotient -= 1.0;
            }
            if sign == "%" {
                remainder
            } else if quotient == 0.0 {
                0f64.copysign(a / b)
            } else {
                let floor = quotient.floor();
                if quotient - floor > 0.5 { floor + 1.0 } else { floor }
            }
        }
        "/" | "//" | "%" => return fault("float division by zero"),
        "**" => {
            if a == 0.0 && b < 0.0 {
                return fault("0.0 cannot be raised to a negative power");
            }
            if a < 0.0 && b.fract() != 0.0 {
                return unsupported("complex numbers");
            }
            let power = a.powf(b);
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return fault("the result of ** is too large");
            }
            power
        }
        _ => return unsupported(sign),
    }))
}

/// `needle in haystack`.
pub(super) fn contains(fuel: &Fuel, haystack: &Value, needle: &Value) -> Result<bool> {
    match haystack {
        Value::Str(text) | Value::Markup(text) => match needle.as_str() {
            Some(needle) => {
                fuel.text(text.len() + needle.len())?;
                Ok(text.contains(needle))
            }
            None => {
                let name = needle.type_name();
                fault(format!("'in <string>' requires string as left operand, not {name}"))
            }
        },
        Value::Dict(dict) => Ok(dict.get(needle, fuel)?.is_some()),
        Value::Range(start, stop, step) => match needle.as_int() {
            Some(i) => {
                let inside = if *step > 0 { (*start..*stop).contains(&i) } else { *stop < i && i <= *start };
                Ok(inside && (i - start) % step == 0)
            }
            None => any_equal(fuel, &haystack.items(fuel)?, needle),
        },
        Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => any_equal(fuel, &seq.items, needle),
        Value::Undefined(_) => Ok(false),
        // What comes after an equal item stays in it, as in Python.
        Value::Generator(generator) => {
            while let Some(item) = generator.take_next() {
                if equal(&item, needle, fuel)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => fault(format!("argument of type '{}' is not iterable", other.type_name())),
    }
}

fn any_equal(fuel: &Fuel, items: &[Value], needle: &Value) -> Result<bool> {
    for item in items {
        if equal(item, needle, fuel)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// `value[start:stop:step]`.
pub(super) fn slice(fuel: &Fuel, value: &Value, bounds: [Value; 3]) -> Result<Value> {
    if let Value::Undefined(what) = value {
        return fault(&**what);
    }
    let n = match value {
        Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Range(..) => value.len(fuel)? as i128,
        Value::Markup(_) => return unsupported("a slice of text that `safe` has marked"),
        other => return fault(format!("'{}' object is not subscriptable", other.type_name())),
    };
    let [start, stop, step] = bounds;
    let number = |value: &Value| match value {
        Value::None => Ok(None),
        other => match other.as_int() {
            Some(i) => Ok(Some(i)),
            None => fault("slice indices must be integers or None"),
        },
    };
    let step = number(&step)?.unwrap_or(1);
    if step == 0 {
        return fault("slice step cannot be zero");
    }
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let bound = |value: Option<i128>, default: i128| match value {
        None => default,
        Some(i) if i < 0 => i.saturating_add(n).clamp(low, high),
        Some(i) => i.clamp(low, high),
    };
    let (first, last) = if step > 0 { (0, n) } else { (n - 1, -1) };
    let (start, stop) = (bound(number(&start)?, first), bound(number(&stop)?, last));
    let count = range_len(start, stop, step.clamp(-i128::from(u64::MAX), i128::from(u64::MAX)));
    let near = |i: &i128| i.unsigned_abs() < 1 << 120;
    let (whole_step, step) = (step, step.clamp(-n - 1, n + 1));
    let at = |i: usize| (start + i as i128 * step) as usize;
    match value {
        Value::Str(text) if step == 1 => {
            let from = text.char_indices().map(|(i, _)| i).chain([text.len()]).nth(start as usize);
            let rest = &text[from.unwrap_or(text.len())..];
            let to = rest.char_indices().map(|(i, _)| i).nth(count).unwrap_or(rest.len());
            Ok(rest[..to].into())
        }
        Value::Str(text) => {
            let chars: Vec<char> = text.chars().collect();
            fuel.text(4 * chars.len())?;
            Ok((0..count).map(|i| chars[at(i)]).collect::<String>().into())
        }
        Value::List(seq) | Value::Tuple(seq) => {
            fuel.items(count)?;
            let items = (0..count).map(|i| seq.items[at(i)].clone()).collect();
            if matches!(value, Value::List(_)) { Value::list(items) } else { Value::tuple(items) }
        }
        Value::Range(from, _, by) => {
            let at = |i: i128| i.checked_mul(*by).and_then(|i| i.checked_add(*from));
            match (at(start), at(stop), by.checked_mul(whole_step)) {
                // With larger numbers, the difference of two of them could overflow.
                (Some(start), Some(stop), Some(step)) if [start, stop, step].iter().all(near) => {
                    Ok(Value::Range(start, stop, step))
                }
                _ => unsupported("a range with numbers of more than 120 bits"),
            }
        }
        other => fault(format!("'{}' object is not subscriptable", other.type_name())),
    }
}
