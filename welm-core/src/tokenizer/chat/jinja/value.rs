//! The values of templates: Python's values, as far as templates can see them.

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::super::json::Json;
use super::eval::{Cycler, Macro};
use super::loops::Loop;

/// How deep values may be nested, because they are read by recursion.
pub(super) const MAX_DEPTH: usize = 128;

/// 2 to the power of 127. Numbers from here on do not fit in a [`Value::Int`].
pub(super) const INT_END: f64 = -(i128::MIN as f64);

/// The error that ended a template.
#[derive(Debug)]
pub(in super::super) struct Fault {
    pub message: String,
    pub line: Option<usize>,
}

pub(super) type Result<T> = std::result::Result<T, Fault>;

pub(super) fn fault<T>(message: impl Into<String>) -> Result<T> {
    Err(Fault { message: message.into(), line: None })
}

/// An error for something that Python supports and this module does not.
pub(super) fn unsupported<T>(what: impl std::fmt::Display) -> Result<T> {
    fault(format!("not supported in templates: {what}"))
}

/// The budget of a rendering. One unit is one step, or 64 bytes of text or of values.
pub(super) struct Fuel(Cell<u64>);

impl Fuel {
    pub(super) fn new(units: u64) -> Self {
        Fuel(Cell::new(units))
    }

    pub(super) fn pay(&self, units: usize) -> Result<()> {
        match self.0.get().checked_sub(units as u64) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => {
                self.0.set(0);
                fault("the template ran out of its budget of steps and memory")
            }
        }
    }

    /// Pays for reading or making `bytes` bytes of text.
    pub(super) fn text(&self, bytes: usize) -> Result<()> {
        self.pay(bytes / 64)
    }

    /// Pays for reading or making `n` values.
    pub(super) fn items(&self, n: usize) -> Result<()> {
        self.pay(n / 2)
    }
}

#[derive(Clone)]
pub(super) enum Value {
    /// An undefined value, with a description for errors.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    /// Text that was marked by `safe`. Nothing is escaped automatically, so only its type differs from other text.
    Markup(Rc<str>),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    Dict(Rc<Dict>),
    /// A view of a dictionary, such as `dict.items()`: the name of its type, and its items.
    View(&'static str, Rc<Seq>),
    Range(i128, i128, i128),
    /// The result of filters such as `map`. It can be iterated once.
    Generator(Rc<Generator>),
    Namespace(Rc<RefCell<Dict>>),
    Macro(Rc<Macro>),
    Loop(Rc<Loop>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<(Rc<str>, Cell<bool>)>),
    /// A method, with the value on which it is called.
    Method(Rc<(Value, Rc<str>)>),
    /// A global function.
    Function(&'static str),
}

pub(super) struct Generator {
    pub(super) left: RefCell<VecDeque<Value>>,
    depth: usize,
}

impl Generator {
    /// The next item, which is then no longer in it.
    pub(super) fn take_next(&self) -> Option<Value> {
        self.left.borrow_mut().pop_front()
    }
}

#[derive(Default)]
pub(super) struct Seq {
    pub(super) items: Vec<Value>,
    depth: usize,
    /// Whether it is a group made by `groupby`, with the attributes `grouper` and `list`.
    pub(super) group: bool,
}

/// A dictionary. It keeps the order in which keys were added.
#[derive(Default, Clone)]
pub(super) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    depth: usize,
}

/// A dictionary's key. `1`, `1.0` and `true` are the same key, and so are all undefined values.
#[derive(PartialEq, Eq, Hash, Clone)]
enum Key {
    Undefined,
    None,
    Int(i128),
    Float(u64),
    Str(Rc<str>),
    Tuple(Rc<[Key]>),
}

/// Makes a key. Pays for each part, because a tuple may contain the same tuple many times.
fn key(value: &Value, fuel: &Fuel) -> Result<Key> {
    fuel.pay(1)?;
    Ok(match value {
        Value::Undefined(_) => Key::Undefined,
        Value::None => Key::None,
        Value::Bool(b) => Key::Int((*b).into()),
        Value::Int(i) => Key::Int(*i),
        Value::Float(f) if f.fract() == 0.0 && f.abs() < INT_END => Key::Int(*f as i128),
        Value::Float(f) => Key::Float(f.to_bits()),
        Value::Str(s) | Value::Markup(s) => {
            fuel.text(s.len())?;
            Key::Str(s.clone())
        }
        Value::Tuple(seq) => Key::Tuple(seq.items.iter().map(|item| key(item, fuel)).collect::<Result<_>>()?),
        Value::List(_) | Value::Dict(_) => return fault(format!("unhashable type: '{}'", value.type_name())),
        other => return unsupported(format_args!("a {} as a key of a dict", other.type_name())),
    })
}

impl Dict {
    pub(super) fn get(&self, name: &Value, fuel: &Fuel) -> Result<Option<&Value>> {
        Ok(self.index.get(&key(name, fuel)?).map(|&i| &self.entries[i].1))
    }

    /// The value of a key that is a name; reading the name was already paid for.
    pub(super) fn get_str(&self, name: &Rc<str>) -> Option<&Value> {
        self.index.get(&Key::Str(name.clone())).map(|&i| &self.entries[i].1)
    }

    pub(super) fn insert(&mut self, name: Value, value: Value, fuel: &Fuel) -> Result<()> {
        self.depth = self.depth.max(inner_depth(&name)?).max(inner_depth(&value)?);
        match self.index.entry(key(&name, fuel)?) {
            Entry::Occupied(known) => self.entries[*known.get()].1 = value,
            Entry::Vacant(free) => {
                free.insert(self.entries.len());
                self.entries.push((name, value));
            }
        }
        Ok(())
    }
}

/// The depth of a container that holds this value.
fn inner_depth(value: &Value) -> Result<usize> {
    let depth = match value {
        Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => seq.depth,
        Value::Dict(dict) => dict.depth,
        Value::Generator(generator) => generator.depth,
        Value::Method(method) => inner_depth(&method.0)?,
        // These values can change later, so they could come to contain themselves.
        Value::Namespace(_) | Value::Loop(_) | Value::Cycler(_) => {
            return unsupported(format_args!("a {} in another value", value.type_name()));
        }
        _ => 0,
    };
    if depth >= MAX_DEPTH {
        return fault(format!("expected values in at most {MAX_DEPTH} others, got more"));
    }
    Ok(depth + 1)
}

impl Seq {
    pub(super) fn new(items: Vec<Value>) -> Result<Rc<Self>> {
        let depth = items.iter().try_fold(0, |depth, item| Ok(depth.max(inner_depth(item)?)))?;
        Ok(Rc::new(Seq { items, depth, group: false }))
    }

    pub(super) fn group(key: Value, list: Value) -> Result<Value> {
        let seq = Seq::new(vec![key, list])?;
        Ok(Value::Tuple(Rc::new(Seq { group: true, items: seq.items.clone(), depth: seq.depth })))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Str(text.into())
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Value::Bool(b)
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        Value::Int(n as i128)
    }
}

pub(super) fn undefined(what: impl AsRef<str>) -> Value {
    Value::Undefined(what.as_ref().into())
}

pub(super) fn undefined_name(name: &str) -> Value {
    undefined(format!("'{name}' is undefined"))
}

impl Value {
    pub(super) fn list(items: Vec<Value>) -> Result<Value> {
        Seq::new(items).map(Value::List)
    }

    pub(super) fn tuple(items: Vec<Value>) -> Result<Value> {
        Seq::new(items).map(Value::Tuple)
    }

    pub(super) fn generator(items: Vec<Value>) -> Result<Value> {
        let seq = Seq::new(items)?;
        let left = RefCell::new(seq.items.iter().cloned().collect());
        Ok(Value::Generator(Rc::new(Generator { left, depth: seq.depth })))
    }

    pub(super) fn dict(entries: impl IntoIterator<Item = (Value, Value)>, fuel: &Fuel) -> Result<Value> {
        let mut dict = Dict::default();
        for (key, value) in entries {
            dict.insert(key, value, fuel)?;
        }
        Ok(Value::Dict(Rc::new(dict)))
    }

    pub(super) fn from_json(json: &Json, fuel: &Fuel) -> Result<Value> {
        Ok(match json {
            Json::Null => Value::None,
            Json::Bool(b) => Value::Bool(*b),
            Json::Int(i) => Value::Int(*i),
            Json::Float(f) => Value::Float(*f),
            Json::String(s) => Value::Str(s.as_str().into()),
            Json::List(items) => {
                Value::list(items.iter().map(|item| Value::from_json(item, fuel)).collect::<Result<_>>()?)?
            }
            Json::Object(fields) => {
                let mut dict = Dict::default();
                for (key, value) in fields {
                    dict.insert(key.as_str().into(), Value::from_json(value, fuel)?, fuel)?;
                }
                Value::Dict(Rc::new(dict))
            }
        })
    }

    /// The name of its type in Python.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Undefined(_) => "Undefined",
            Value::None => "NoneType",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "str",
            Value::Markup(_) => "Markup",
            Value::List(_) => "list",
            Value::Tuple(_) => "tuple",
            Value::Dict(_) => "dict",
            Value::View(name, _) => name,
            Value::Range(..) => "range",
            Value::Generator(_) => "generator",
            Value::Namespace(_) => "Namespace",
            Value::Macro(_) => "Macro",
            Value::Loop(_) => "LoopContext",
            Value::Cycler(_) => "Cycler",
            Value::Joiner(_) => "Joiner",
            Value::Method(_) => "method",
            Value::Function(_) => "function",
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(s) | Value::Markup(s) => Some(s),
            _ => None,
        }
    }

    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Value::Int(i) => Some(*i),
            Value::Bool(b) => Some((*b).into()),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Value::Float(f) => Some(*f),
            other => other.as_int().map(|i| i as f64),
        }
    }

    pub(super) fn is_callable(&self) -> bool {
        matches!(
            self,
            Value::Macro(_) | Value::Method(_) | Value::Function(_) | Value::Loop(_) | Value::Joiner(_)
        )
    }

    pub(super) fn truth(&self) -> bool {
        match self {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(i) => *i != 0,
            Value::Float(f) => *f != 0.0,
            Value::Str(s) | Value::Markup(s) => !s.is_empty(),
            Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => !seq.items.is_empty(),
            Value::Dict(dict) => !dict.entries.is_empty(),
            Value::Range(start, stop, step) => range_len(*start, *stop, *step) > 0,
            Value::Loop(_)
            | Value::Generator(_)
            | Value::Namespace(_)
            | Value::Macro(_)
            | Value::Cycler(_)
            | Value::Joiner(_)
            | Value::Method(_)
            | Value::Function(_) => true,
        }
    }

    /// `len()`.
    pub(super) fn len(&self, fuel: &Fuel) -> Result<usize> {
        Ok(match self {
            Value::Undefined(_) => 0,
            Value::Str(s) | Value::Markup(s) => {
                fuel.text(s.len())?;
                s.chars().count()
            }
            Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => seq.items.len(),
            Value::Dict(dict) => dict.entries.len(),
            Value::Range(start, stop, step) => range_len(*start, *stop, *step),
            Value::Loop(l) => l.len(),
            other => return fault(format!("object of type '{}' has no len()", other.type_name())),
        })
    }

    /// The items of a loop over it. A generator is empty afterwards.
    pub(super) fn items(&self, fuel: &Fuel) -> Result<Vec<Value>> {
        let items: Vec<Value> = match self {
            Value::Undefined(_) => Vec::new(),
            Value::Str(s) => {
                fuel.pay(s.len())?;
                s.chars().map(|c| Value::from(c.encode_utf8(&mut [0; 4]) as &str)).collect()
            }
            Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => {
                fuel.items(seq.items.len())?;
                seq.items.clone()
            }
            Value::Dict(dict) => {
                fuel.items(dict.entries.len())?;
                dict.entries.iter().map(|(key, _)| key.clone()).collect()
            }
            Value::Range(start, stop, step) => {
                let n = range_len(*start, *stop, *step);
                fuel.items(n)?;
                (0..n).map(|i| Value::Int(start + i as i128 * step)).collect()
            }
            Value::Generator(generator) => generator.left.take().into(),
            other @ (Value::Loop(_) | Value::Markup(_)) => {
                return unsupported(format_args!("going through a {}", other.type_name()));
            }
            other => return fault(format!("'{}' object is not iterable", other.type_name())),
        };
        Ok(items)
    }

    /// Appends `str()` of the value to a text.
    pub(super) fn print(&self, fuel: &Fuel, out: &mut String) -> Result<()> {
        match self {
            Value::Undefined(_) => Ok(()),
            Value::Str(s) | Value::Markup(s) => {
                fuel.text(s.len())?;
                out.push_str(s);
                Ok(())
            }
            other => other.repr(fuel, out),
        }
    }

    pub(super) fn to_text(&self, fuel: &Fuel) -> Result<Rc<str>> {
        if let Value::Str(s) | Value::Markup(s) = self {
            return Ok(s.clone());
        }
        let mut out = String::new();
        self.print(fuel, &mut out)?;
        Ok(out.into())
    }

    /// Appends `repr()` of the value to a text.
    pub(super) fn repr(&self, fuel: &Fuel, out: &mut String) -> Result<()> {
        let start = out.len();
        match self {
            Value::Undefined(_) => out.push_str("Undefined"),
            Value::None => out.push_str("None"),
            Value::Bool(b) => out.push_str(if *b { "True" } else { "False" }),
            Value::Int(i) => out.push_str(&i.to_string()),
            Value::Float(f) => out.push_str(&float(*f)),
            Value::Str(s) => quote(s, out),
            Value::Range(start, stop, 1) => out.push_str(&format!("range({start}, {stop})")),
            Value::Range(start, stop, step) => out.push_str(&format!("range({start}, {stop}, {step})")),
            Value::List(seq) => {
                out.push('[');
                sequence(&seq.items, fuel, out)?;
                out.push(']');
            }
            Value::View(name, seq) => {
                out.push_str(name);
                out.push_str("([");
                sequence(&seq.items, fuel, out)?;
                out.push_str("])");
            }
            Value::Tuple(seq) => {
                out.push('(');
                sequence(&seq.items, fuel, out)?;
                if seq.items.len() == 1 {
                    out.push(',');
                }
                out.push(')');
            }
            Value::Dict(dict) => {
                out.push('{');
                for (i, (key, value)) in dict.entries.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    fuel.pay(1)?;
                    key.repr(fuel, out)?;
                    out.push_str(": ");
                    value.repr(fuel, out)?;
                }
                out.push('}');
            }
            other => return unsupported(format_args!("the text of a {}", other.type_name())),
        }
        // Nested values have already paid for their text. Paying twice does no harm.
        fuel.text(out.len() - start)
    }
}

fn sequence(items: &[Value], fuel: &Fuel, out: &mut String) -> Result<()> {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        fuel.pay(1)?;
        item.repr(fuel, out)?;
    }
    Ok(())
}

/// A number as a count or a width: 0 if it is negative, and an error if it is so large that Python refuses it.
pub(super) fn size(i: i128) -> Result<usize> {
    match i64::try_from(i) {
        Ok(i) => Ok(usize::try_from(i).unwrap_or(0)),
        Err(_) => fault("cannot fit 'int' into an index-sized integer"),
    }
}

/// The same as [`size`], but a negative number means no limit.
pub(super) fn limit(i: i128) -> Result<usize> {
    let limit = size(i)?;
    Ok(if i < 0 { usize::MAX } else { limit })
}

pub(super) fn range_len(start: i128, stop: i128, step: i128) -> usize {
    let span = if step > 0 { stop - start } else { start - stop };
    if span <= 0 { 0 } else { ((span - 1) / step.abs() + 1) as usize }
}

/// Whether Python's `repr` shows a character as it is.
pub(super) fn is_printable(c: char) -> bool {
    // `escape_debug` escapes a combining character only at the beginning of a text.
    format!("a{c}").escape_debug().nth(1).is_none_or(|first| first != '\\') || matches!(c, '\\' | '\'' | '"')
}

/// Appends `repr()` of a text.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            c if c.is_ascii() || !is_printable(c) => match c as u32 {
                code @ ..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ ..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// `repr()` of a float: the shortest digits that read back as the same number.
pub(super) fn float(f: f64) -> String {
    if f.is_nan() {
        return "nan".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{f:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if f != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{f}");
    if plain.contains('.') { plain } else { plain + ".0" }
}
