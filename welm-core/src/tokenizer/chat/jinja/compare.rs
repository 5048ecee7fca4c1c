//! Compares values as Python does.

use std::cmp::Ordering;
use std::rc::Rc;

use super::value::{Fuel, INT_END, Result, Value, fault, range_len, unsupported};

/// `==`.
pub(super) fn equal(a: &Value, b: &Value, fuel: &Fuel) -> Result<bool> {
    use Value::*;
    fuel.pay(1)?;
    Ok(match (a, b) {
        (Undefined(_), Undefined(_)) | (None, None) => true,
        (Str(a) | Markup(a), Str(b) | Markup(b)) => {
            fuel.text(a.len().min(b.len()))?;
            a == b
        }
        (List(a), List(b)) | (Tuple(a), Tuple(b)) => equal_items(&a.items, &b.items, fuel)?,
        (Range(a, b, c), Range(d, e, f)) => {
            let (n, m) = (range_len(*a, *b, *c), range_len(*d, *e, *f));
            n == m && (n == 0 || (a == d && (n == 1 || c == f)))
        }
        (Dict(a), Dict(b)) => {
            if a.entries.len() != b.entries.len() {
                return Ok(false);
            }
            for (key, value) in &a.entries {
                match b.get(key, fuel)? {
                    Some(other) if equal(value, other, fuel)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (View(..), View(..)) => return unsupported("== of two views of dicts"),
        (Namespace(a), Namespace(b)) => Rc::ptr_eq(a, b),
        (Macro(a), Macro(b)) => Rc::ptr_eq(a, b),
        (Loop(a), Loop(b)) => Rc::ptr_eq(a, b),
        (Generator(a), Generator(b)) => Rc::ptr_eq(a, b),
        (Cycler(a), Cycler(b)) => Rc::ptr_eq(a, b),
        (Joiner(a), Joiner(b)) => Rc::ptr_eq(a, b),
        (Function(a), Function(b)) => a == b,
        (Method(_), Method(_)) => return unsupported("== of two methods"),
        _ => match numbers(a, b) {
            Some(ordering) => ordering == Some(Ordering::Equal),
            Option::None => false,
        },
    })
}

fn equal_items(a: &[Value], b: &[Value], fuel: &Fuel) -> Result<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(b) {
        if !equal(a, b, fuel)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares two numbers. `None` if one of the values is not a number; `Some(None)` if one is NaN.
fn numbers(a: &Value, b: &Value) -> Option<Option<Ordering>> {
    match (a.as_int(), b.as_int()) {
        (Some(a), Some(b)) => Some(Some(a.cmp(&b))),
        (Some(a), None) => Some(int_with_float(a, b.as_float()?)),
        (None, Some(b)) => Some(int_with_float(b, a.as_float()?).map(Ordering::reverse)),
        (None, None) => Some(a.as_float()?.partial_cmp(&b.as_float()?)),
    }
}

/// Compares an integer with a float exactly, as Python does.
fn int_with_float(a: i128, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        return None;
    }
    if b.abs() >= INT_END {
        return Some(if b > 0.0 { Ordering::Less } else { Ordering::Greater });
    }
    let floor = b.floor();
    Some(a.cmp(&(floor as i128)).then(if b > floor { Ordering::Less } else { Ordering::Equal }))
}

/// Compares two values for `<` and its like; `symbol` is the operator, for errors. `None` if they are neither less,
/// greater nor equal.
pub(super) fn compare(a: &Value, b: &Value, symbol: &str, fuel: &Fuel) -> Result<Option<Ordering>> {
    use Value::*;
    fuel.pay(1)?;
    match (a, b) {
        (Undefined(what), _) | (_, Undefined(what)) => fault(&**what),
        (Str(a) | Markup(a), Str(b) | Markup(b)) => {
            fuel.text(a.len().min(b.len()))?;
            Ok(Some(a.cmp(b)))
        }
        (List(x), List(y)) | (Tuple(x), Tuple(y)) => {
            for (a, b) in x.items.iter().zip(&y.items) {
                if !equal(a, b, fuel)? {
                    return compare(a, b, symbol, fuel);
                }
            }
            Ok(Some(x.items.len().cmp(&y.items.len())))
        }
        (View(..), View(..)) => unsupported("comparing views of dicts"),
        _ => match numbers(a, b) {
            Some(ordering) => Ok(ordering),
            Option::None => fault(format!(
                "'{symbol}' not supported between instances of '{}' and '{}'",
                a.type_name(),
                b.type_name()
            )),
        },
    }
}
