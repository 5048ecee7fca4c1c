//! `x.name`, `x[index]` and methods, by the rules of Jinja2's immutable sandbox.

use std::rc::Rc;

use super::compare::equal;
use super::eval::{CallArgs, Interpreter};
use super::text;
use super::value::{Dict, Result, Value, fault, undefined, unsupported};

const LIST: [&str; 3] = ["copy", "count", "index"];
const DICT: [&str; 5] = ["copy", "get", "items", "keys", "values"];
/// Methods that change a list. Python has them, but templates may not call them.
const LIST_CHANGES: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
/// Attributes that Python's numbers have, and that are not supported because templates hardly use them.
const NUMBER: [&str; 14] = [
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "denominator",
    "from_bytes",
    "fromhex",
    "hex",
    "imag",
    "is_integer",
    "numerator",
    "real",
    "to_bytes",
    "from_number",
];

/// An attribute of the value, as in Python; `None` if it does not have one.
fn own(value: &Value, name: &Rc<str>) -> Result<Option<Value>> {
    if name.starts_with("__") && name.ends_with("__") {
        return unsupported(format_args!("the attribute {name}"));
    }
    let method = || Some(Value::Method(Rc::new((value.clone(), name.clone()))));
    let unsafe_ = |name: &str| {
        undefined(format!("access to attribute '{name}' of '{}' object is unsafe.", value.type_name()))
    };
    let absent = || unsupported(format_args!("the attribute {name} of a {}", value.type_name()));
    Ok(match value {
        Value::Str(_) if text::METHODS.contains(&&**name) => method(),
        Value::Str(_) if text::METHODS_ABSENT.contains(&&**name) => return absent(),
        Value::Markup(_) => return absent(),
        Value::List(_) if LIST.contains(&&**name) => method(),
        Value::List(_) if LIST_CHANGES.contains(&&**name) => Some(unsafe_(name)),
        Value::Dict(_) if DICT.contains(&&**name) => method(),
        Value::Dict(_) if DICT_CHANGES.contains(&&**name) => Some(unsafe_(name)),
        Value::Dict(_) if **name == *"fromkeys" => return absent(),
        Value::Tuple(seq) if seq.group && **name == *"grouper" => Some(seq.items[0].clone()),
        Value::Tuple(seq) if seq.group && **name == *"list" => Some(seq.items[1].clone()),
        Value::Tuple(_) if matches!(&**name, "count" | "index") => method(),
        Value::Range(start, stop, step) => match &**name {
            "start" => Some(Value::Int(*start)),
            "stop" => Some(Value::Int(*stop)),
            "step" => Some(Value::Int(*step)),
            "count" | "index" => method(),
            _ => None,
        },
        Value::View(..) if matches!(&**name, "isdisjoint" | "mapping") => return absent(),
        Value::Generator(_) if matches!(&**name, "send" | "throw" | "close") => return absent(),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) if NUMBER.contains(&&**name) => return absent(),
        Value::Namespace(namespace) => namespace.borrow().get_str(name).cloned(),
        Value::Loop(_) if matches!(&**name, "cycle" | "changed") => method(),
        Value::Loop(state) => state.attribute(name),
        Value::Cycler(cycler) => match &**name {
            "current" => cycler.items.get(cycler.at.get()).cloned(),
            "next" | "reset" => method(),
            "items" | "pos" => return absent(),
            _ => None,
        },
        Value::Joiner(_) if matches!(&**name, "sep" | "used") => return absent(),
        Value::Macro(called) if **name == *"name" => Some(Value::Str(called.def.name.clone())),
        Value::Macro(called) if **name == *"arguments" => Some(Value::tuple(
            called.def.parameters.iter().map(|(name, _)| Value::Str(name.clone())).collect(),
        )?),
        Value::Macro(_)
            if matches!(&**name, "caller" | "catch_kwargs" | "catch_varargs" | "explicit_caller") =>
        {
            return absent();
        }
        _ => None,
    })
}

/// An item of the value, as in Python; `None` if there is no such item, or if the value has no items.
fn entry(cx: &Interpreter, value: &Value, index: &Value) -> Result<Option<Value>> {
    let at = |n: usize| {
        let i = index.as_int()?;
        let i = if i < 0 { i + n as i128 } else { i };
        usize::try_from(i).ok().filter(|&i| i < n)
    };
    Ok(match value {
        Value::Dict(_) if matches!(index, Value::List(_) | Value::Dict(_)) => None,
        Value::Dict(dict) => dict.get(index, &cx.fuel)?.cloned(),
        Value::List(seq) | Value::Tuple(seq) => at(seq.items.len()).map(|i| seq.items[i].clone()),
        Value::Str(text) if index.as_int().is_some() => {
            let n = value.len(&cx.fuel)?;
            cx.fuel.text(text.len())?;
            at(n).and_then(|i| text.chars().nth(i)).map(|c| (c.encode_utf8(&mut [0; 4]) as &str).into())
        }
        Value::Range(start, _, step) => {
            at(value.len(&cx.fuel)?).map(|i| Value::Int(start + i as i128 * step))
        }
        Value::Markup(_) => return unsupported("an item of text that `safe` has marked"),
        _ => None,
    })
}

fn no_attribute(value: &Value, name: &str) -> Value {
    undefined(format!("'{} object' has no attribute '{name}'", value.type_name()))
}

/// `value.name`: an attribute, else an item.
pub(super) fn attribute(cx: &Interpreter, value: &Value, name: &Rc<str>) -> Result<Value> {
    if let Value::Undefined(what) = value {
        return fault(&**what);
    }
    cx.fuel.text(name.len())?;
    if let Some(found) = own(value, name)? {
        return Ok(found);
    }
    Ok(entry(cx, value, &Value::Str(name.clone()))?.unwrap_or_else(|| no_attribute(value, name)))
}

/// `value[index]`: an item, else an attribute.
pub(super) fn item(cx: &Interpreter, value: &Value, index: &Value) -> Result<Value> {
    if let Value::Undefined(what) = value {
        return fault(&**what);
    }
    if let Some(found) = entry(cx, value, index)? {
        return Ok(found);
    }
    if let Value::Str(name) = index {
        cx.fuel.text(name.len())?;
        return Ok(own(value, name)?.unwrap_or_else(|| no_attribute(value, name)));
    }
    Ok(undefined(format!("'{} object' has no such element", value.type_name())))
}

pub(super) fn call_method(cx: &Interpreter, value: &Value, name: &str, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    if let Value::Str(text) = value {
        return text::call_method(fuel, text, name, args);
    }
    match (value, name) {
        (Value::List(seq), "copy") => {
            let [] = args.bind("copy()", [])?;
            Ok(Value::List(seq.clone()))
        }
        (Value::List(_) | Value::Tuple(_) | Value::Range(..), "count") => {
            let [Some(needle)] = args.bind("count()", ["value"])? else {
                return fault("count() takes one argument");
            };
            let mut n = 0usize;
            for item in value.items(fuel)? {
                n += usize::from(equal(&item, &needle, fuel)?);
            }
            Ok(n.into())
        }
        (Value::List(_) | Value::Tuple(_) | Value::Range(..), "index") => {
            let [Some(needle), start, stop] = args.bind("index()", ["value", "start", "stop"])? else {
                return fault("index() takes at least one argument");
            };
            if start.is_some() || stop.is_some() {
                return unsupported("index() with a start");
            }
            for (i, item) in value.items(fuel)?.iter().enumerate() {
                if equal(item, &needle, fuel)? {
                    return Ok(i.into());
                }
            }
            fault("the value is not in the list")
        }
        (Value::Dict(dict), "copy") => {
            let [] = args.bind("copy()", [])?;
            Ok(Value::Dict(dict.clone()))
        }
        (Value::Dict(dict), "get") => {
            if !args.named.is_empty() {
                return fault("get() takes no keyword arguments");
            }
            let [Some(key), default] = args.bind("get()", ["key", "default"])? else {
                return fault("get() takes at least one argument");
            };
            Ok(dict.get(&key, fuel)?.cloned().unwrap_or_else(|| default.unwrap_or(Value::None)))
        }
        (Value::Dict(dict), "items" | "keys" | "values") => {
            let [] = args.bind("a method of a dict", [])?;
            view(cx, dict, name)
        }
        (Value::Cycler(cycler), "next") => {
            let [] = args.bind("next()", [])?;
            let i = cycler.at.get();
            cycler.at.set((i + 1) % cycler.items.len().max(1));
            Ok(cycler.items[i].clone())
        }
        (Value::Cycler(cycler), "reset") => {
            let [] = args.bind("reset()", [])?;
            cycler.at.set(0);
            Ok(Value::None)
        }
        (Value::Loop(state), "cycle") => state.cycle(args.positional),
        (Value::Loop(state), "changed") => state.changed(args.positional, fuel),
        _ => unsupported(format_args!("the method {name} of a {}", value.type_name())),
    }
}

fn view(cx: &Interpreter, dict: &Dict, name: &str) -> Result<Value> {
    cx.fuel.items(2 * dict.entries.len())?;
    let of = |(key, value): &(Value, Value)| match name {
        "keys" => Ok(key.clone()),
        "values" => Ok(value.clone()),
        _ => Value::tuple(vec![key.clone(), value.clone()]),
    };
    let items = dict.entries.iter().map(of).collect::<Result<_>>()?;
    let Value::List(seq) = Value::list(items)? else { return fault("a view without items") };
    Ok(Value::View(
        match name {
            "keys" => "dict_keys",
            "values" => "dict_values",
            _ => "dict_items",
        },
        seq,
    ))
}

/// Follows a path such as that of `map(attribute="a.b.0")`: reads items by name or number, one after the other.
pub(super) fn path(cx: &Interpreter, value: &Value, path: &Value) -> Result<Value> {
    let Value::Str(path) = path else {
        return item(cx, value, path);
    };
    let mut value = value.clone();
    for part in path.split('.') {
        cx.fuel.pay(1)?;
        let index = match part.parse::<u32>() {
            Ok(i) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(i.into()),
            _ => Value::from(part),
        };
        value = item(cx, &value, &index)?;
    }
    Ok(value)
}
