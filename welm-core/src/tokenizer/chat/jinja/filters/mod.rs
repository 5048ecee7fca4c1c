//! Jinja2's filters: the names after `|`.

mod numbers;
mod sequences;
mod strings;

use std::rc::Rc;

use super::attributes::{item, path};
use super::eval::{CallArgs, Interpreter};
use super::value::{Result, Value, fault, unsupported};
pub(super) use sequences::in_order;
pub(super) use strings::escaped;

/// A filter. It gets the name by which it was called, because some filters have several names.
type Filter = fn(&Interpreter, &str, Value, CallArgs) -> Result<Value>;

/// All supported filters.
const FILTERS: [(&str, Filter); 49] = [
    ("abs", numbers::abs),
    ("attr", attr),
    ("batch", sequences::batch),
    ("capitalize", strings::plain),
    ("center", strings::plain),
    ("count", length),
    ("d", default),
    ("default", default),
    ("dictsort", sequences::dictsort),
    ("e", strings::escape),
    ("escape", strings::escape),
    ("filesizeformat", numbers::filesizeformat),
    ("first", sequences::first),
    ("float", numbers::float),
    ("forceescape", strings::escape),
    ("format", strings::format_filter),
    ("groupby", sequences::groupby),
    ("indent", strings::indent),
    ("int", numbers::int),
    ("items", sequences::items),
    ("join", sequences::join),
    ("last", sequences::last),
    ("length", length),
    ("list", sequences::list),
    ("lower", strings::plain),
    ("map", sequences::map),
    ("max", sequences::extreme),
    ("min", sequences::extreme),
    ("pprint", strings::pprint),
    ("reject", sequences::select),
    ("rejectattr", sequences::select),
    ("replace", strings::replace),
    ("reverse", sequences::reverse),
    ("round", numbers::round),
    ("safe", strings::safe),
    ("select", sequences::select),
    ("selectattr", sequences::select),
    ("slice", sequences::slice),
    ("sort", sequences::sort),
    ("string", strings::plain),
    ("sum", sequences::sum),
    ("title", strings::plain),
    ("tojson", strings::tojson),
    ("trim", strings::plain),
    ("truncate", strings::truncate),
    ("unique", sequences::unique),
    ("upper", strings::plain),
    ("urlencode", strings::urlencode),
    ("wordcount", strings::wordcount),
];
/// Filters that Jinja2 has and that are not supported: they make HTML, or a random choice.
const FILTERS_ABSENT: [&str; 5] = ["random", "striptags", "urlize", "wordwrap", "xmlattr"];

/// Whether Jinja2 has a filter with this name, supported or not.
pub(super) fn is_known(name: &str) -> bool {
    find(name).is_some() || FILTERS_ABSENT.contains(&name)
}

fn find(name: &str) -> Option<Filter> {
    FILTERS.iter().find(|(known, _)| *known == name).map(|(_, filter)| *filter)
}

pub(super) fn apply(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    match find(name) {
        Some(filter) => filter(cx, name, value, args),
        None if FILTERS_ABSENT.contains(&name) => unsupported(format_args!("the filter {name}")),
        None => fault(format!("no filter named '{name}'")),
    }
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

/// Text that a filter made from `of`. It is marked as safe if `of` is.
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

/// The attribute of a value, or `default` if the value does not have it.
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

fn length(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [] = args.bind(name, [])?;
    value.len(fuel).map(Value::from)
}

fn default(_cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let [default, boolean] = args.bind(name, ["default_value", "boolean"])?;
    let absent = matches!(value, Value::Undefined(_)) || (truth(boolean) && !value.truth());
    Ok(if absent { default.unwrap_or_else(|| "".into()) } else { value })
}

fn attr(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [Some(attribute)] = args.bind(name, ["name"])? else { return fault("attr misses a name") };
    let Value::Str(attribute) = attribute else { return fault("attribute name must be string") };
    fuel.text(attribute.len())?;
    match &value {
        Value::Undefined(what) => fault(&**what),
        // The items of a dictionary are not attributes.
        Value::Dict(dict) if dict.get_str(&attribute).is_some() => {
            let empty = Value::dict([], fuel)?;
            item(cx, &empty, &Value::Str(attribute))
        }
        _ => super::attributes::attribute(cx, &value, &attribute),
    }
}
