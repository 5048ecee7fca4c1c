//! Filters of sequences and other values that can be iterated.

use super::super::checks;
use super::super::compare::{compare, equal};
use super::super::eval::{CallArgs, Interpreter};
use super::super::ops;
use super::super::value::{Dict, Fuel, Result, Seq, Value, fault, size, undefined};
use super::{apply, get, marked, number, some, truth};

/// How many levels of depth the filter of a `map` counts for. It may be a `map` itself, and a filter takes more stack
/// than an expression.
const MAP_LEVELS: usize = 8;

/// Sorts values by `less` with a stable merge sort. An inconsistent `less` does no harm.
pub(in super::super) fn in_order<T>(
    mut items: Vec<T>,
    reverse: bool,
    mut less: impl FnMut(&T, &T) -> Result<bool>,
) -> Result<Vec<T>> {
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        let mut rest = items.into_iter();
        loop {
            let mut left = rest.by_ref().take(width).collect::<Vec<_>>().into_iter().peekable();
            let mut right = rest.by_ref().take(width).collect::<Vec<_>>().into_iter().peekable();
            if left.peek().is_none() {
                break;
            }
            while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
                let second = if reverse { less(a, b)? } else { less(b, a)? };
                merged.extend(if second { right.next() } else { left.next() });
            }
            merged.extend(left);
            merged.extend(right);
        }
        items = merged;
        width *= 2;
    }
    Ok(items)
}

/// The value by which filters compare: without `case_sensitive`, text in lower case.
fn folded(fuel: &Fuel, value: Value, case_sensitive: bool) -> Result<Value> {
    fuel.pay(1)?;
    Ok(match value {
        Value::Str(text) if !case_sensitive => {
            fuel.text(2 * text.len())?;
            text.to_lowercase().into()
        }
        value => value,
    })
}

fn less(fuel: &Fuel, a: &Value, b: &Value) -> Result<bool> {
    compare(a, b, "<", fuel).map(|ordering| ordering.is_some_and(|o| o.is_lt()))
}

pub(super) fn list(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [] = args.bind(name, [])?;
    Value::list(value.items(fuel)?)
}

pub(super) fn items(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [] = args.bind(name, [])?;
    match &value {
        Value::Undefined(_) => Value::generator(Vec::new()),
        Value::Dict(dict) => {
            fuel.items(2 * dict.entries.len())?;
            let pair = |(k, v): &(Value, Value)| Value::tuple(vec![k.clone(), v.clone()]);
            Value::generator(dict.entries.iter().map(pair).collect::<Result<_>>()?)
        }
        _ => fault("Can only get item pairs from a mapping."),
    }
}

pub(super) fn first(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [] = args.bind(name, [])?;
    let first = match &value {
        Value::Generator(generator) => generator.left.borrow_mut().pop_front(),
        Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => seq.items.first().cloned(),
        other => other.items(fuel)?.into_iter().next(),
    };
    Ok(first.unwrap_or_else(|| undefined("No first item, sequence was empty.")))
}

pub(super) fn last(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [] = args.bind(name, [])?;
    let last = match &value {
        Value::Generator(_) => return fault("'generator' object is not reversible"),
        Value::List(seq) | Value::Tuple(seq) | Value::View(_, seq) => seq.items.last().cloned(),
        other => other.items(fuel)?.into_iter().next_back(),
    };
    Ok(last.unwrap_or_else(|| undefined("No last item, sequence was empty.")))
}

pub(super) fn reverse(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [] = args.bind(name, [])?;
    if let Value::Str(text) | Value::Markup(text) = &value {
        fuel.text(2 * text.len())?;
        return Ok(marked(&value, text.chars().rev().collect::<String>()));
    }
    let mut items = value.items(fuel)?;
    items.reverse();
    if matches!(value, Value::Generator(_)) { Value::list(items) } else { Value::generator(items) }
}

pub(super) fn join(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [between, attribute] = args.bind(name, ["d", "attribute"])?;
    let between = match between {
        None => "".into(),
        Some(between) => between.to_text(fuel)?,
    };
    let attribute = some(attribute);
    let mut out = String::new();
    for (i, item) in value.items(fuel)?.iter().enumerate() {
        fuel.pay(1)?;
        if i > 0 {
            fuel.text(between.len())?;
            out.push_str(&between);
        }
        get(cx, item, attribute.as_ref(), None)?.print(fuel, &mut out)?;
    }
    Ok(out.into())
}

pub(super) fn sum(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [attribute, start] = args.bind(name, ["attribute", "start"])?;
    let attribute = some(attribute);
    let mut sum = start.unwrap_or(Value::Int(0));
    if sum.as_str().is_some() {
        return fault("sum() can't sum strings [use ''.join(seq) instead]");
    }
    for item in value.items(fuel)? {
        fuel.pay(1)?;
        let item = get(cx, &item, attribute.as_ref(), None)?;
        sum = ops::binary(cx, "+", &sum, &item)?;
    }
    Ok(sum)
}

pub(super) fn extreme(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
    let (case, attribute) = (truth(case), some(attribute));
    let mut best: Option<(Value, Value)> = None;
    for item in value.items(fuel)? {
        let key = folded(fuel, get(cx, &item, attribute.as_ref(), None)?, case)?;
        let better = match &best {
            None => true,
            Some((_, known)) if name == "min" => less(fuel, &key, known)?,
            Some((_, known)) => compare(&key, known, ">", fuel)?.is_some_and(|o| o.is_gt()),
        };
        if better {
            best = Some((item, key));
        }
    }
    Ok(best.map_or_else(|| undefined("No aggregated item, sequence was empty."), |(item, _)| item))
}

pub(super) fn unique(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
    let (case, attribute) = (truth(case), some(attribute));
    let mut seen = Dict::default();
    let mut unique = Vec::new();
    for item in value.items(fuel)? {
        fuel.pay(1)?;
        let key = folded(fuel, get(cx, &item, attribute.as_ref(), None)?, case)?;
        if seen.get(&key, fuel)?.is_none() {
            seen.insert(key, Value::None, fuel)?;
            unique.push(item);
        }
    }
    Value::generator(unique)
}

pub(super) fn sort(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [reverse, case, attribute] = args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
    let (case, attribute) = (truth(case), some(attribute));
    let attributes: Vec<Option<Value>> = match &attribute {
        Some(Value::Str(names)) => {
            fuel.text(names.len())?;
            fuel.items(names.matches(',').count())?;
            names.split(',').map(|name| Some(name.into())).collect()
        }
        other => vec![other.clone()],
    };
    let mut keyed = Vec::new();
    for item in value.items(fuel)? {
        let key = |attribute: &Option<Value>| folded(fuel, get(cx, &item, attribute.as_ref(), None)?, case);
        let keys = attributes.iter().map(key).collect::<Result<_>>()?;
        keyed.push((Value::list(keys)?, item));
    }
    let sorted = in_order(keyed, truth(reverse), |a, b| less(fuel, &a.0, &b.0))?;
    Value::list(sorted.into_iter().map(|(_, item)| item).collect())
}

pub(super) fn dictsort(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [case, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"])?;
    let Value::Dict(dict) = &value else {
        return match &value {
            Value::Undefined(what) => fault(&**what),
            other => fault(format!("'{}' object has no attribute 'items'", other.type_name())),
        };
    };
    let by_value = match by.as_ref().map(|by| by.as_str()) {
        None | Some(Some("key")) => false,
        Some(Some("value")) => true,
        _ => return fault("You can only sort by either \"key\" or \"value\""),
    };
    let case = truth(case);
    let mut keyed = Vec::new();
    for (key, value) in &dict.entries {
        let by = if by_value { value } else { key };
        keyed.push((folded(fuel, by.clone(), case)?, Value::tuple(vec![key.clone(), value.clone()])?));
    }
    let sorted = in_order(keyed, truth(reverse), |a, b| less(fuel, &a.0, &b.0))?;
    Value::list(sorted.into_iter().map(|(_, item)| item).collect())
}

pub(super) fn groupby(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [Some(attribute), default, case] = args.bind(name, ["attribute", "default", "case_sensitive"])?
    else {
        return fault("groupby misses an attribute");
    };
    let (default, case) = (some(default), truth(case));
    let mut keyed = Vec::new();
    for item in value.items(fuel)? {
        let key = get(cx, &item, Some(&attribute), default.as_ref())?;
        keyed.push((folded(fuel, key.clone(), case)?, key, item));
    }
    let sorted = in_order(keyed, false, |a, b| less(fuel, &a.0, &b.0))?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (folded, key, item) in sorted {
        match groups.last_mut() {
            Some((known, _, items)) if equal(known, &folded, fuel)? => items.push(item),
            _ => groups.push((folded, key, vec![item])),
        }
    }
    let group = |(_, key, items)| Seq::group(key, Value::list(items)?);
    Value::list(groups.into_iter().map(group).collect::<Result<_>>()?)
}

pub(super) fn batch(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [Some(n), fill] = args.bind(name, ["linecount", "fill_with"])? else {
        return fault("batch misses a number");
    };
    let n = number("batch", Some(n), 1)?;
    let fill = some(fill);
    let mut batches = Vec::new();
    let mut batch: Vec<Value> = Vec::new();
    for item in value.items(fuel)? {
        if batch.len() as i128 == n {
            batches.push(Value::list(std::mem::take(&mut batch))?);
        }
        batch.push(item);
    }
    if !batch.is_empty() {
        if let Some(fill) = fill {
            let n = size(n)?;
            fuel.items(n)?;
            batch.resize(n.max(batch.len()), fill);
        }
        batches.push(Value::list(batch)?);
    }
    Value::generator(batches)
}

pub(super) fn slice(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    let fuel = &cx.fuel;
    let [Some(n), fill] = args.bind(name, ["slices", "fill_with"])? else {
        return fault("slice misses a number");
    };
    let n = number("slice", Some(n), 1)?;
    let fill = some(fill);
    let items = value.items(fuel)?;
    let Ok(n @ 1..) = usize::try_from(n) else {
        return fault("slice: expected a number of slices of at least 1");
    };
    fuel.items(n)?;
    let (each, extra) = (items.len() / n, items.len() % n);
    let mut items = items.into_iter();
    let mut slices = Vec::new();
    for i in 0..n {
        let mut slice: Vec<Value> = items.by_ref().take(each + usize::from(i < extra)).collect();
        if i >= extra {
            slice.extend(fill.clone());
        }
        slices.push(Value::list(slice)?);
    }
    Value::generator(slices)
}

pub(super) fn map(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    if !value.truth() {
        return Value::generator(Vec::new());
    }
    let items = value.items(&cx.fuel)?;
    let mut mapped = Vec::with_capacity(items.len());
    if args.positional.is_empty() && args.named.iter().any(|(name, _)| **name == *"attribute") {
        let [attribute, default] = args.bind(name, ["attribute", "default"])?;
        let (attribute, default) = (some(attribute), some(default));
        for item in items {
            cx.fuel.pay(1)?;
            mapped.push(get(cx, &item, attribute.as_ref(), default.as_ref())?);
        }
        return Value::generator(mapped);
    }
    let CallArgs { positional, named } = args;
    let Some((Value::Str(name), rest)) = positional.split_first() else {
        return fault("map requires a filter argument");
    };
    for item in items {
        cx.fuel.pay(1 + rest.len() + named.len())?;
        let args = CallArgs { positional: rest.to_vec(), named: named.clone() };
        mapped.push(cx.deeper_by(MAP_LEVELS, || apply(cx, name, item, args))?);
    }
    Value::generator(mapped)
}

pub(super) fn select(cx: &Interpreter, name: &str, value: Value, args: CallArgs) -> Result<Value> {
    if !value.truth() {
        return Value::generator(Vec::new());
    }
    let CallArgs { positional, named } = args;
    let mut rest = &positional[..];
    let mut attribute = None;
    if name.ends_with("attr") {
        let Some((first, others)) = rest.split_first() else {
            return fault("Missing parameter for attribute name");
        };
        (attribute, rest) = (some(Some(first.clone())), others);
    }
    let test = rest.split_first();
    let mut kept = Vec::new();
    for item in value.items(&cx.fuel)? {
        cx.fuel.pay(1)?;
        let looked_at = get(cx, &item, attribute.as_ref(), None)?;
        let holds = match test {
            None => looked_at.truth(),
            Some((Value::Str(test), args)) => {
                cx.fuel.pay(args.len() + named.len())?;
                let args = CallArgs { positional: args.to_vec(), named: named.clone() };
                checks::apply(cx, test, &looked_at, args)?
            }
            Some((other, _)) => return fault(format!("no test named a {}", other.type_name())),
        };
        if holds == name.starts_with("select") {
            kept.push(item);
        }
    }
    Value::generator(kept)
}
