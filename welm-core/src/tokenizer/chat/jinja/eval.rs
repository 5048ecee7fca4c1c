//! Runs a template.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::super::json::Json;
use super::ast::{self, Expr, For, Frame, Kind, MacroDef, Statement, Target};
use super::attributes;
use super::checks;
use super::compare::{compare, equal};
use super::filters;
use super::functions;
use super::loops::Loop;
use super::ops;
use super::parser::parse;
use super::value::{Dict, Fault, Fuel, Result, Value, fault, undefined, undefined_name, unsupported};

/// How deep statements, expressions and macros may be nested while they run. Each level takes stack.
const MAX_DEPTH: usize = 1500;

/// The variables of a scope: names with their values.
pub(super) struct Scope {
    names: RefCell<HashMap<Rc<str>, Value>>,
    outer: Option<Rc<Scope>>,
}

impl Scope {
    fn inner(outer: &Rc<Scope>) -> Rc<Scope> {
        Rc::new(Scope { names: RefCell::default(), outer: Some(outer.clone()) })
    }

    fn set(&self, name: &Rc<str>, value: Value) {
        self.names.borrow_mut().insert(name.clone(), value);
    }

    fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(here) = scope {
            if let Some(value) = here.names.borrow().get(name) {
                return Some(value.clone());
            }
            scope = here.outer.as_deref();
        }
        None
    }
}

/// A macro, or the body of a `call` block, with the scope in which it was defined.
pub(super) struct Macro {
    pub(super) def: Rc<MacroDef>,
    scope: Rc<Scope>,
}

pub(super) struct Cycler {
    pub(super) items: Vec<Value>,
    pub(super) at: Cell<usize>,
}

/// The arguments of a call.
#[derive(Default)]
pub(super) struct CallArgs {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Rc<str>, Value)>,
}

impl CallArgs {
    pub(super) fn of(positional: Vec<Value>) -> Self {
        CallArgs { positional, named: Vec::new() }
    }

    /// Assigns the arguments to parameters with these names, in the order of `names`.
    pub(super) fn bind<const N: usize>(self, what: &str, names: [&str; N]) -> Result<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            return fault(format!("{what} takes {N} arguments but {} were given", self.positional.len()));
        }
        for (to, value) in bound.iter_mut().zip(self.positional) {
            *to = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|n| **n == *name) {
                Some(i) if bound[i].is_none() => bound[i] = Some(value),
                Some(_) => return fault(format!("{what} got multiple values for argument '{name}'")),
                None => return fault(format!("{what} got an unexpected keyword argument '{name}'")),
            }
        }
        Ok(bound)
    }
}

enum Flow {
    Next,
    Break,
    Continue,
}

pub(super) struct Interpreter {
    pub(super) fuel: Fuel,
    depth: Cell<usize>,
    /// Scopes that a value in them may refer to. They are emptied at the end, so that such cycles are freed.
    captured: RefCell<Vec<Rc<Scope>>>,
}

/// Renders a template to text. Each variable is a name and a value.
pub(in super::super) fn render(source: &str, variables: &[(&str, &Json)], fuel: u64) -> Result<String> {
    let template = parse(source)?;
    let fuel = Fuel::new(fuel);
    let variable = |(name, json): &(&str, &Json)| Ok((Rc::from(*name), Value::from_json(json, &fuel)?));
    let variables = variables.iter().map(variable).collect::<Result<HashMap<Rc<str>, _>>>()?;
    let interpreter = Interpreter { fuel, depth: Cell::new(0), captured: RefCell::default() };
    let globals = Rc::new(Scope { names: RefCell::new(variables), outer: None });
    let scope = Scope::inner(&globals);
    let mut out = String::new();
    let ended = interpreter.frame(&template, &scope, &mut out);
    for scope in interpreter.captured.take() {
        scope.names.take();
    }
    scope.names.take();
    ended.map(|_| out)
}

fn at_line<T>(result: Result<T>, line: usize) -> Result<T> {
    result.map_err(|f| Fault { line: f.line.or(Some(line)), ..f })
}

impl Interpreter {
    fn deeper<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        self.deeper_by(1, f)
    }

    /// Runs `f`, which takes as much stack as `levels` levels.
    pub(super) fn deeper_by<T>(&self, levels: usize, f: impl FnOnce() -> Result<T>) -> Result<T> {
        self.fuel.pay(1)?;
        let depth = self.depth.get();
        if depth + levels > MAX_DEPTH {
            return fault(format!("expected statements and macros at most {MAX_DEPTH} deep, got more"));
        }
        self.depth.set(depth + levels);
        let result = f();
        self.depth.set(depth);
        result
    }

    /// Runs a frame in its scope, which is new.
    fn frame(&self, frame: &Frame, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        self.unset(frame, scope)?;
        self.body(&frame.body, scope, out)
    }

    fn unset(&self, frame: &Frame, scope: &Scope) -> Result<()> {
        self.fuel.pay(frame.unset.len())?;
        frame.unset.iter().for_each(|(name, value)| scope.set(name, value.clone()));
        Ok(())
    }

    fn body(&self, body: &[Statement], scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        for statement in body {
            match self.deeper(|| self.statement(statement, scope, out))? {
                Flow::Next => {}
                flow => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    fn statement(&self, statement: &Statement, scope: &Rc<Scope>, out: &mut String) -> Result<Flow> {
        match statement {
            Statement::Data(text) => {
                self.fuel.text(text.len())?;
                out.push_str(text);
            }
            Statement::Print(expr) => {
                let value = self.eval(expr, scope)?;
                at_line(value.print(&self.fuel, out), expr.line)?;
            }
            Statement::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.eval(condition, scope)?.truth() {
                        return self.body(body, scope, out);
                    }
                }
                return self.body(otherwise, scope, out);
            }
            Statement::For(statement) => {
                let over = self.eval(&statement.over, scope)?;
                return at_line(self.run_loop(statement, &over, scope, 0, out), statement.over.line);
            }
            Statement::Set(target, expr, line) => {
                let value = self.eval(expr, scope)?;
                at_line(self.assign(target, value, scope), *line)?;
            }
            Statement::SetBlock(target, filters, body, line) => {
                let mut text = String::new();
                match self.frame(body, &Scope::inner(scope), &mut text)? {
                    Flow::Next => {}
                    flow => return Ok(flow),
                }
                let mut value = Value::from(text);
                if let Some(filters) = filters {
                    value = self.filter_chain(filters, value, scope)?;
                }
                at_line(self.assign(target, value, scope), *line)?;
            }
            Statement::Macro(def) => {
                let value = self.new_macro(def, scope);
                scope.set(&def.name, value);
            }
            Statement::CallBlock(call, def) => {
                let caller = self.new_macro(def, scope);
                let Kind::Call(callee, args) = &call.kind else { return fault("expected call") };
                let callee = self.eval(callee, scope)?;
                let mut args = self.args(args, scope)?;
                if args.named.iter().any(|(name, _)| **name == *"caller") {
                    return fault("got multiple values for keyword argument 'caller'");
                }
                args.named.push(("caller".into(), caller));
                let value = at_line(self.call(&callee, args), call.line)?;
                at_line(value.print(&self.fuel, out), call.line)?;
            }
            Statement::FilterBlock(filters, body) => {
                let mut text = String::new();
                let inner = Scope::inner(scope);
                match self.frame(body, &inner, &mut text)? {
                    Flow::Next => {}
                    flow => return Ok(flow),
                }
                let value = self.filter_chain(filters, Value::from(text), &inner)?;
                at_line(value.print(&self.fuel, out), filters.line)?;
            }
            Statement::With(values, body) => {
                let inner = Scope::inner(scope);
                self.unset(body, &inner)?;
                for (target, expr) in values {
                    let value = self.eval(expr, scope)?;
                    at_line(self.assign(target, value, &inner), expr.line)?;
                }
                return self.body(&body.body, &inner, out);
            }
            Statement::Generation(body) => {
                return self.frame(body, &Scope::inner(scope), out);
            }
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn new_macro(&self, def: &Rc<MacroDef>, scope: &Rc<Scope>) -> Value {
        self.capture(scope);
        Value::Macro(Rc::new(Macro { def: def.clone(), scope: scope.clone() }))
    }

    fn capture(&self, scope: &Rc<Scope>) {
        self.captured.borrow_mut().push(scope.clone());
    }

    fn assign(&self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(name, attribute) => match scope.get(name) {
                Some(Value::Namespace(namespace)) => {
                    set_attribute(&mut namespace.borrow_mut(), attribute, value, &self.fuel)?;
                }
                _ => return fault("cannot assign attribute on non-namespace object"),
            },
            Target::Tuple(targets) => {
                let items = match &value {
                    Value::Undefined(what) if !targets.is_empty() => return fault(&**what),
                    value => value.items(&self.fuel)?,
                };
                if items.len() != targets.len() {
                    let (n, expected) = (items.len(), targets.len());
                    return fault(format!("cannot unpack: expected {expected} values, got {n}"));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
        }
        Ok(())
    }

    fn run_loop(
        &self,
        statement: &Rc<For>,
        over: &Value,
        scope: &Rc<Scope>,
        depth: usize,
        out: &mut String,
    ) -> Result<Flow> {
        let mut items = over.items(&self.fuel)?;
        if let Some(condition) = &statement.condition {
            let mut kept = Vec::new();
            for item in items {
                let inner = Scope::inner(scope);
                self.assign(&statement.target, item.clone(), &inner)?;
                if self.eval(condition, &inner)?.truth() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        let again = statement.recursive.then(|| {
            self.capture(scope);
            (statement.clone(), scope.clone())
        });
        let state = Rc::new(Loop { items, at: Cell::new(0), depth, changed: RefCell::new(None), again });
        let name: Rc<str> = "loop".into();
        // As in Jinja2, an iteration that `break` or `continue` ends does not count for `else`.
        let mut whole_rounds = false;
        for (i, item) in state.items.iter().enumerate() {
            self.fuel.pay(1)?;
            state.at.set(i);
            let inner = Scope::inner(scope);
            inner.set(&name, Value::Loop(state.clone()));
            self.assign(&statement.target, item.clone(), &inner)?;
            match self.frame(&statement.body, &inner, out)? {
                Flow::Break => break,
                Flow::Continue => {}
                Flow::Next => whole_rounds = true,
            }
        }
        if !whole_rounds {
            return self.frame(&statement.otherwise, &Scope::inner(scope), out);
        }
        Ok(Flow::Next)
    }

    fn filter_chain(&self, filters: &Expr, value: Value, scope: &Rc<Scope>) -> Result<Value> {
        let Kind::Filter(inner, name, args) = &filters.kind else { return fault("expected a filter") };
        let value = match inner {
            Some(inner) => self.deeper(|| self.filter_chain(inner, value, scope))?,
            None => value,
        };
        let args = self.args(args, scope)?;
        at_line(filters::apply(self, name, value, args), filters.line)
    }

    pub(super) fn eval(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        let value = self.deeper(|| match &expr.kind {
            Kind::Const(value) => Ok(value.clone()),
            Kind::Name(name) => match scope.get(name).or_else(|| functions::global(name)) {
                Some(value) => Ok(value),
                None if **name == *"self" => unsupported("the variable self"),
                None => {
                    self.fuel.text(name.len())?;
                    Ok(undefined_name(name))
                }
            },
            Kind::Not(inner) => Ok(Value::Bool(!self.eval(inner, scope)?.truth())),
            Kind::And(sides) => {
                let left = self.eval(&sides[0], scope)?;
                if left.truth() { self.eval(&sides[1], scope) } else { Ok(left) }
            }
            Kind::Or(sides) => {
                let left = self.eval(&sides[0], scope)?;
                if left.truth() { Ok(left) } else { self.eval(&sides[1], scope) }
            }
            Kind::If(parts, otherwise) => {
                if self.eval(&parts[0], scope)?.truth() {
                    return self.eval(&parts[1], scope);
                }
                match otherwise {
                    Some(otherwise) => self.eval(otherwise, scope),
                    None => Ok(undefined(
                        "the inline if-expression evaluated to false and no else section was defined",
                    )),
                }
            }
            Kind::Attribute(of, name) => {
                let of = self.eval(of, scope)?;
                attributes::attribute(self, &of, name)
            }
            _ => self.eval_other(expr, scope),
        });
        at_line(value, expr.line)
    }

    fn eval_other(&self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        let all =
            |items: &[Expr]| items.iter().map(|item| self.eval(item, scope)).collect::<Result<Vec<_>>>();
        match &expr.kind {
            Kind::List(items) => Value::list(all(items)?),
            Kind::Tuple(items) => Value::tuple(all(items)?),
            Kind::Dict(entries) => {
                let mut dict = Dict::default();
                for (key, value) in entries {
                    dict.insert(self.eval(key, scope)?, self.eval(value, scope)?, &self.fuel)?;
                }
                Ok(Value::Dict(Rc::new(dict)))
            }
            Kind::Negative(inner) => ops::negative(&self.eval(inner, scope)?),
            Kind::Positive(inner) => ops::positive(&self.eval(inner, scope)?),
            Kind::Binary(sign, sides) => {
                let (left, right) = (self.eval(&sides[0], scope)?, self.eval(&sides[1], scope)?);
                ops::binary(self, sign, &left, &right)
            }
            Kind::Concat(items) => {
                let mut text = String::new();
                for value in all(items)? {
                    value.print(&self.fuel, &mut text)?;
                }
                Ok(text.into())
            }
            Kind::Compare(first, others) => {
                let mut left = self.eval(first, scope)?;
                let mut holds = Value::Bool(true);
                for (sign, right) in others {
                    let right = self.eval(right, scope)?;
                    holds = Value::Bool(self.compare(sign, &left, &right)?);
                    if !holds.truth() {
                        break;
                    }
                    left = right;
                }
                Ok(holds)
            }
            Kind::Item(parts) => {
                let of = self.eval(&parts[0], scope)?;
                if let Kind::Slice(bounds) = &parts[1].kind {
                    let bound = |e: &Option<Expr>| match e {
                        Some(e) => self.eval(e, scope),
                        None => Ok(Value::None),
                    };
                    let bounds = [bound(&bounds[0])?, bound(&bounds[1])?, bound(&bounds[2])?];
                    return ops::slice(&self.fuel, &of, bounds);
                }
                let index = self.eval(&parts[1], scope)?;
                attributes::item(self, &of, &index)
            }
            Kind::Slice(_) => fault("not supported in templates: a slice among other indices"),
            Kind::Call(callee, args) => {
                let callee = self.eval(callee, scope)?;
                let args = self.args(args, scope)?;
                self.call(&callee, args)
            }
            Kind::Filter(of, name, args) => {
                let Some(of) = of else { return fault("a filter of nothing") };
                let of = self.eval(of, scope)?;
                let args = self.args(args, scope)?;
                filters::apply(self, name, of, args)
            }
            Kind::Test(of, name, args) => {
                let of = self.eval(of, scope)?;
                let args = self.args(args, scope)?;
                checks::apply(self, name, &of, args).map(Value::Bool)
            }
            // `eval` handles all other kinds.
            _ => fault("an expression that is not known"),
        }
    }

    fn args(&self, args: &ast::Args, scope: &Rc<Scope>) -> Result<CallArgs> {
        let mut given = CallArgs::default();
        for arg in &args.positional {
            given.positional.push(self.eval(arg, scope)?);
        }
        if let Some(starred) = &args.starred {
            let starred = self.eval(starred, scope)?;
            given.positional.extend(starred.items(&self.fuel)?);
        }
        for (name, arg) in &args.named {
            given.named.push((name.clone(), self.eval(arg, scope)?));
        }
        if let Some(starred) = &args.double_starred {
            let Value::Dict(dict) = self.eval(starred, scope)? else {
                return fault("argument after ** must be a mapping");
            };
            self.fuel.items(2 * (given.named.len() + dict.entries.len()))?;
            let known: HashSet<Rc<str>> = given.named.iter().map(|(name, _)| name.clone()).collect();
            for (name, value) in &dict.entries {
                let Value::Str(name) = name else { return fault("keywords must be strings") };
                if known.contains(name) {
                    return fault(format!("got multiple values for keyword argument '{name}'"));
                }
                given.named.push((name.clone(), value.clone()));
            }
        }
        Ok(given)
    }

    fn compare(&self, sign: &str, left: &Value, right: &Value) -> Result<bool> {
        Ok(match sign {
            "==" => equal(left, right, &self.fuel)?,
            "!=" => !equal(left, right, &self.fuel)?,
            "in" => ops::contains(&self.fuel, right, left)?,
            "not in" => !ops::contains(&self.fuel, right, left)?,
            sign => {
                let ordering = compare(left, right, sign, &self.fuel)?;
                match sign {
                    "<" => ordering.is_some_and(|o| o.is_lt()),
                    "<=" => ordering.is_some_and(|o| o.is_le()),
                    ">" => ordering.is_some_and(|o| o.is_gt()),
                    _ => ordering.is_some_and(|o| o.is_ge()),
                }
            }
        })
    }

    pub(super) fn call(&self, callee: &Value, args: CallArgs) -> Result<Value> {
        match callee {
            Value::Function(name) => functions::call(self, name, args),
            Value::Method(method) => attributes::call_method(self, &method.0, &method.1, args),
            Value::Macro(called) => self.deeper(|| self.call_macro(called, args)),
            Value::Joiner(joiner) => {
                let [] = args.bind("joiner", [])?;
                Ok(if joiner.1.replace(true) { Value::Str(joiner.0.clone()) } else { "".into() })
            }
            Value::Loop(state) => {
                let [over] = args.bind("loop", ["iterable"])?;
                let (Some((statement, scope)), Some(over)) = (&state.again, over) else {
                    return fault("the loop must have the 'recursive' marker to be called with an iterable");
                };
                let mut text = String::new();
                self.deeper(|| self.run_loop(statement, &over, scope, state.depth + 1, &mut text))?;
                Ok(text.into())
            }
            Value::Undefined(what) => fault(&**what),
            other => fault(format!("'{}' object is not callable", other.type_name())),
        }
    }

    fn call_macro(&self, called: &Macro, args: CallArgs) -> Result<Value> {
        let def = &called.def;
        let scope = Scope::inner(&called.scope);
        self.unset(&def.body, &scope)?;
        let CallArgs { positional, mut named } = args;
        let mut positional = positional.into_iter();
        self.fuel.pay(def.parameters.len().saturating_mul(1 + named.len()))?;
        let take = |named: &mut Vec<(Rc<str>, Value)>, name: &str| {
            named.iter().position(|(n, _)| **n == *name).map(|i| named.remove(i).1)
        };
        let mut missing = Vec::new();
        for (name, default) in &def.parameters {
            match positional.next().or_else(|| take(&mut named, name)) {
                Some(value) => scope.set(name, value),
                None => {
                    // A default that names its own parameter reads nothing, also if there is such a variable outside.
                    self.fuel.text(name.len())?;
                    scope.set(name, undefined_name(name));
                    missing.push((name, default));
                }
            }
        }
        if def.caller {
            let caller = take(&mut named, "caller").unwrap_or_else(|| undefined("No caller defined"));
            scope.set(&"caller".into(), caller);
        }
        if def.kwargs {
            let entries = named.into_iter().map(|(name, value)| (Value::Str(name), value));
            scope.set(&"kwargs".into(), Value::dict(entries, &self.fuel)?);
        } else if let Some((name, _)) = named.first() {
            return fault(format!("macro '{}' takes no keyword argument '{name}'", def.name));
        }
        if def.varargs {
            scope.set(&"varargs".into(), Value::tuple(positional.collect())?);
        } else if positional.next().is_some() {
            let n = def.parameters.len();
            return fault(format!("macro '{}' takes not more than {n} argument(s)", def.name));
        }
        for (name, default) in missing {
            let value = match default {
                Some(default) => self.eval(default, &scope)?,
                None => undefined(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
        let mut text = String::new();
        self.body(&def.body.body, &scope, &mut text)?;
        Ok(text.into())
    }
}

/// Sets an attribute of a `namespace`, if it may have that name.
pub(super) fn set_attribute(namespace: &mut Dict, name: &Rc<str>, value: Value, fuel: &Fuel) -> Result<()> {
    if name.starts_with('_') {
        return fault(format!("cannot store the attribute '{name}', which begins with _, on a namespace"));
    }
    namespace.insert(Value::Str(name.clone()), value, fuel)
}
