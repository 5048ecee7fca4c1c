//! Jinja2's global functions, such as `range`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::eval::{CallArgs, Cycler, Interpreter, set_attribute};
use super::time;
use super::value::{Dict, Result, Value, fault, range_len, unsupported};

/// Most numbers in a range, as in Jinja2's sandbox.
const MAX_RANGE: usize = 100_000;

pub(super) fn global(name: &str) -> Option<Value> {
    const NAMES: [&str; 8] =
        ["range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now"];
    NAMES.iter().find(|n| **n == name).map(|name| Value::Function(name))
}

pub(super) fn call(cx: &Interpreter, name: &str, args: CallArgs) -> Result<Value> {
    match name {
        "range" => {
            let n = args.positional.len();
            let [first, second, step] = if args.named.is_empty() {
                args.bind("range()", ["", "", ""])?
            } else {
                return fault("range() takes no keyword arguments");
            };
            let number = |value: Option<Value>, default: i128| match value {
                None => Ok(default),
                Some(value) => match value.as_int() {
                    Some(i) if i64::try_from(i).is_ok() => Ok(i),
                    Some(_) => unsupported("a range with numbers of more than 64 bits"),
                    None => {
                        fault(format!("'{}' object cannot be interpreted as an integer", value.type_name()))
                    }
                },
            };
            let (start, stop) = match n {
                0 => return fault("range expected at least 1 argument, got 0"),
                1 => (0, number(first, 0)?),
                _ => (number(first, 0)?, number(second, 0)?),
            };
            let step = number(step, 1)?;
            if step == 0 {
                return fault("range() arg 3 must not be zero");
            }
            if range_len(start, stop, step) > MAX_RANGE {
                return fault(format!("range too big: the sandbox blocks ranges larger than {MAX_RANGE}"));
            }
            Ok(Value::Range(start, stop, step))
        }
        "dict" => Ok(Value::Dict(Rc::new(dict(cx, args)?))),
        "namespace" => {
            let mut namespace = Dict::default();
            for (name, value) in dict(cx, args)?.entries {
                match name {
                    Value::Str(name) => set_attribute(&mut namespace, &name, value, &cx.fuel)?,
                    _ => return unsupported("a namespace with names that are no strings"),
                }
            }
            Ok(Value::Namespace(Rc::new(RefCell::new(namespace))))
        }
        "cycler" => {
            if !args.named.is_empty() {
                return fault("cycler() takes no keyword arguments");
            }
            if args.positional.is_empty() {
                return fault("at least one item has to be provided");
            }
            // Made as a list, which checks how deep the values are nested.
            let Value::List(seq) = Value::list(args.positional)? else { return fault("no items") };
            Ok(Value::Cycler(Rc::new(Cycler { items: seq.items.clone(), at: Cell::new(0) })))
        }
        "joiner" => {
            let [separator] = args.bind("joiner()", ["sep"])?;
            let separator = match separator {
                None => ", ".into(),
                Some(Value::Str(separator)) => separator,
                Some(_) => return unsupported("joiner() with a separator that is no string"),
            };
            Ok(Value::Joiner(Rc::new((separator, Cell::new(false)))))
        }
        "raise_exception" => {
            let [message] = args.bind("raise_exception()", ["message"])?;
            match message {
                Some(message) => fault(message.to_text(&cx.fuel)?.to_string()),
                None => fault("raise_exception() missing 1 required positional argument: 'message'"),
            }
        }
        "strftime_now" => {
            let [format] = args.bind("strftime_now()", ["format"])?;
            match format {
                Some(Value::Str(format)) => {
                    cx.fuel.pay(format.len())?;
                    time::strftime_now(&format).map(Value::from)
                }
                _ => fault("strftime() argument 1 must be str"),
            }
        }
        other => unsupported(format_args!("the function {other}")),
    }
}

/// `dict(mapping_or_pairs, **named)`.
fn dict(cx: &Interpreter, args: CallArgs) -> Result<Dict> {
    let mut dict = Dict::default();
    let mut positional = args.positional.into_iter();
    match positional.next() {
        None => {}
        Some(Value::Dict(other)) => {
            cx.fuel.items(2 * other.entries.len())?;
            dict = (*other).clone();
        }
        Some(other) => {
            for pair in other.items(&cx.fuel)? {
                match &pair.items(&cx.fuel)?[..] {
                    [key, value] => dict.insert(key.clone(), value.clone(), &cx.fuel)?,
                    _ => return fault("dictionary update sequence element has another length than 2"),
                }
            }
        }
    }
    if positional.next().is_some() {
        return fault("dict expected at most 1 argument");
    }
    for (name, value) in args.named {
        dict.insert(Value::Str(name), value, &cx.fuel)?;
    }
    Ok(dict)
}
