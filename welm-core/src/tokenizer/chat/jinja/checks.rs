//! Jinja2's tests: the names after `is`.

use std::rc::Rc;

use super::compare::{compare, equal};
use super::eval::{CallArgs, Interpreter};
use super::filters;
use super::ops;
use super::value::{Result, Value, fault};

pub(super) const TESTS: [&str; 39] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

pub(super) fn apply(cx: &Interpreter, name: &str, value: &Value, args: CallArgs) -> Result<bool> {
    let fuel = &cx.fuel;
    let binary = |args: CallArgs| match args.bind(name, [""])? {
        [Some(other)] => Ok(other),
        [None] => fault(format!("the test {name} misses an argument")),
    };
    let ordered = |args: CallArgs, sign: &str, holds: fn(std::cmp::Ordering) -> bool| {
        Ok(compare(value, &binary(args)?, sign, fuel)?.is_some_and(holds))
    };
    match name {
        "==" | "eq" | "equalto" => return equal(value, &binary(args)?, fuel),
        "!=" | "ne" => return equal(value, &binary(args)?, fuel).map(|equal| !equal),
        "<" | "lt" | "lessthan" => return ordered(args, "<", |o| o.is_lt()),
        "<=" | "le" => return ordered(args, "<=", |o| o.is_le()),
        ">" | "gt" | "greaterthan" => return ordered(args, ">", |o| o.is_gt()),
        ">=" | "ge" => return ordered(args, ">=", |o| o.is_ge()),
        "in" => return ops::contains(fuel, &binary(args)?, value),
        "sameas" => return same(value, &binary(args)?),
        "divisibleby" => {
            let remainder = ops::binary(cx, "%", value, &binary(args)?)?;
            return equal(&remainder, &Value::Int(0), fuel);
        }
        _ => {}
    }
    let [] = args.bind(name, [])?;
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Float(_)),
        "string" => matches!(value, Value::Str(_) | Value::Markup(_)),
        "escaped" => matches!(value, Value::Markup(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => matches!(
            value,
            Value::Undefined(_)
                | Value::Str(_)
                | Value::Markup(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(..)
        ),
        "iterable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Str(_)
                | Value::Markup(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Dict(_)
                | Value::Range(..)
                | Value::View(..)
                | Value::Generator(_)
                | Value::Loop(_)
        ),
        "callable" => value.is_callable() || matches!(value, Value::Undefined(_)),
        "odd" | "even" => {
            let remainder = ops::binary(cx, "%", value, &Value::Int(2))?;
            equal(&remainder, &Value::Int((name == "odd").into()), fuel)?
        }
        "lower" | "upper" => {
            let text = value.to_text(fuel)?;
            let method: &str = if name == "lower" { "islower" } else { "isupper" };
            super::text::call_method(fuel, &text, method, CallArgs::default())?.truth()
        }
        "filter" | "test" => match value {
            Value::Str(asked) if name == "test" => TESTS.contains(&&**asked),
            Value::Str(asked) => filters::is_known(asked),
            Value::List(_) | Value::Dict(_) | Value::View(..) => {
                return fault(format!("unhashable type: '{}'", value.type_name()));
            }
            _ => false,
        },
        other => return fault(format!("no test named '{other}'")),
    })
}

/// Python's `is`: whether two constants are the same, or whether two other values are the same object.
fn same(a: &Value, b: &Value) -> Result<bool> {
    use Value::*;
    Ok(match (a, b) {
        (None, None) => true,
        (Bool(a), Bool(b)) => a == b,
        (List(a), List(b)) | (Tuple(a), Tuple(b)) => Rc::ptr_eq(a, b),
        (Dict(a), Dict(b)) => Rc::ptr_eq(a, b),
        (Namespace(a), Namespace(b)) => Rc::ptr_eq(a, b),
        (Function(a), Function(b)) => a == b,
        // In Python, equal large numbers may or may not be the same object.
        (Int(a), Int(b)) if a == b && !(-5..=256).contains(a) => {
            return super::value::unsupported("sameas of equal numbers");
        }
        (Int(a), Int(b)) => a == b,
        (Str(a), Str(b)) if a == b && !Rc::ptr_eq(a, b) => {
            return super::value::unsupported("sameas of equal strings");
        }
        (Str(a), Str(b)) => Rc::ptr_eq(a, b),
        (Float(a), Float(b)) if a == b => return super::value::unsupported("sameas of equal numbers"),
        (Undefined(_), Undefined(_)) => return super::value::unsupported("sameas of undefined values"),
        _ => false,
    })
}
