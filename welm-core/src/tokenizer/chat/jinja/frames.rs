//! Which names are undefined while a frame has not set them, although a variable of that name is outside.
//!
//! Jinja2 compiles templates to Python, whose functions decide for the whole of their body which variables are their own.
//! A frame is the template, or the body of a tag that has variables of its own, such as `for`. If the first thing that a
//! frame does with a name is to set it, on all paths, then the name is undefined for what reads it before, inside of other
//! frames:
//!
//! ```text
//! {% for m in messages %}{{ bos_token }}{% endfor %}{% set bos_token = 'X' %}     the loop writes nothing
//! ```
//!
//! This follows the rules of `jinja2/idtracking.py`.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::ast::{Args, Expr, For, Frame, Kind, MacroDef, Statement, Target};
use super::value::undefined_name;

/// Finds the names for a template, in all of its frames.
pub(super) fn resolve(template: &mut Frame) {
    let mut names = Names::of(None);
    names.statements(&template.body);
    names.finish(template);
}

/// What a frame does with a name first.
#[derive(Clone, Copy, PartialEq)]
enum First {
    /// It has a value from the beginning: a parameter, or a variable of a frame outside.
    Given,
    /// It is read, or set on some paths only. So it begins with the value of the context's variable.
    Read,
    /// It is set.
    Set,
}

/// The names that one path through a frame uses.
#[derive(Default)]
struct Path {
    first: HashMap<Rc<str>, First>,
    /// Names that it sets, and that no path around it had set before.
    set: HashSet<Rc<str>>,
    /// Those of them that it sets in any case, and not in a branch of its own.
    always: Vec<Rc<str>>,
}

impl Path {
    /// Adds what another path uses, in a time that depends on the smaller of the two.
    fn join(&mut self, mut other: Path) {
        if other.first.len() > self.first.len() {
            std::mem::swap(&mut self.first, &mut other.first);
        }
        if other.set.len() > self.set.len() {
            std::mem::swap(&mut self.set, &mut other.set);
        }
        self.first.extend(other.first);
        self.set.extend(other.set);
    }
}

/// The names of a frame.
struct Names<'a> {
    outer: Option<&'a Names<'a>>,
    /// The path outside of all `if`s, and those of the branches that are open.
    paths: Vec<Path>,
}

impl<'a> Names<'a> {
    fn of(outer: Option<&'a Names<'a>>) -> Self {
        Names { outer, paths: vec![Path::default()] }
    }

    fn is_own(&self, name: &str) -> bool {
        self.paths.iter().any(|path| path.first.contains_key(name))
    }

    fn is_known(&self, name: &str) -> bool {
        self.is_own(name) || self.is_known_outside(name)
    }

    fn is_known_outside(&self, name: &str) -> bool {
        self.outer.is_some_and(|outer| outer.is_known(name))
    }

    fn path(&mut self) -> &mut Path {
        // There is one always.
        let last = self.paths.len() - 1;
        &mut self.paths[last]
    }

    fn give(&mut self, name: &Rc<str>) {
        self.note_set(name);
        let path = self.path();
        path.first.insert(name.clone(), First::Given);
    }

    fn read(&mut self, name: &Rc<str>) {
        if !self.is_known(name) {
            self.path().first.insert(name.clone(), First::Read);
        }
    }

    fn note_set(&mut self, name: &Rc<str>) {
        if !self.paths.iter().any(|path| path.set.contains(name)) {
            let path = self.path();
            path.set.insert(name.clone());
            path.always.push(name.clone());
        }
    }

    fn set(&mut self, name: &Rc<str>) {
        self.note_set(name);
        if !self.is_own(name) {
            let first = if self.is_known_outside(name) { First::Given } else { First::Set };
            self.path().first.insert(name.clone(), first);
        }
    }

    /// Goes through the branches of an `if`, each by itself. What they set may be unset afterwards.
    fn branches(&mut self, branches: Vec<impl FnOnce(&mut Self)>) {
        let mut all = Path::default();
        for branch in branches {
            self.paths.push(Path::default());
            branch(self);
            let Some(mut path) = self.paths.pop() else { return };
            for name in std::mem::take(&mut path.always) {
                let first = if self.is_known_outside(&name) { First::Given } else { First::Read };
                path.first.insert(name, first);
            }
            all.join(path);
        }
        self.path().join(all);
    }

    fn target(&mut self, target: &Target, act: fn(&mut Self, &Rc<str>)) {
        match target {
            Target::Name(name) => act(self, name),
            Target::Attribute(name, _) => self.read(name),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target, act)),
        }
    }

    /// What statements do in this frame, and not in the frames inside.
    fn statements(&mut self, body: &[Statement]) {
        for statement in body {
            match statement {
                Statement::Data(_) | Statement::Generation(_) | Statement::Break | Statement::Continue => {}
                Statement::Print(expr) => self.expr(expr),
                Statement::If(branches, otherwise) => self.conditional(branches, otherwise),
                Statement::For(statement) => self.expr(&statement.over),
                Statement::Set(target, value, _) => {
                    self.expr(value);
                    self.target(target, Self::set);
                }
                Statement::SetBlock(target, ..) => self.target(target, Self::set),
                Statement::Macro(def) => self.set(&def.name),
                Statement::CallBlock(call, _) => self.expr(call),
                Statement::FilterBlock(filters, _) => self.expr(filters),
                Statement::With(values, _) => values.iter().for_each(|(_, value)| self.expr(value)),
            }
        }
    }

    /// An `if` with its `elif`s, each of which is an `if` by itself.
    fn conditional(&mut self, branches: &[(Expr, Vec<Statement>)], otherwise: &[Statement]) {
        let Some(((condition, body), elifs)) = branches.split_first() else { return };
        self.expr(condition);
        type Branch<'b, 'n> = Box<dyn FnOnce(&mut Names<'n>) + 'b>;
        let all: Vec<Branch<'_, 'a>> = vec![
            Box::new(|names| names.statements(body)),
            Box::new(|names| elifs.iter().for_each(|one| names.conditional(std::slice::from_ref(one), &[]))),
            Box::new(|names| names.statements(otherwise)),
        ];
        self.branches(all);
    }

    fn expr(&mut self, expr: &Expr) {
        match &expr.kind {
            Kind::Const(_) => {}
            Kind::Name(name) => self.read(name),
            Kind::List(items) | Kind::Tuple(items) | Kind::Concat(items) => {
                items.iter().for_each(|item| self.expr(item));
            }
            Kind::Dict(entries) => entries.iter().for_each(|(key, value)| {
                self.expr(key);
                self.expr(value);
            }),
            Kind::Not(of) | Kind::Negative(of) | Kind::Positive(of) | Kind::Attribute(of, _) => self.expr(of),
            Kind::And(sides) | Kind::Or(sides) | Kind::Binary(_, sides) | Kind::Item(sides) => {
                sides.iter().for_each(|side| self.expr(side));
            }
            Kind::Compare(first, others) => {
                self.expr(first);
                others.iter().for_each(|(_, other)| self.expr(other));
            }
            Kind::If(parts, otherwise) => {
                parts.iter().for_each(|part| self.expr(part));
                otherwise.iter().for_each(|other| self.expr(other));
            }
            Kind::Slice(bounds) => bounds.iter().flatten().for_each(|bound| self.expr(bound)),
            Kind::Call(of, args) | Kind::Test(of, _, args) => {
                self.expr(of);
                self.args(args);
            }
            Kind::Filter(of, _, args) => {
                of.iter().for_each(|of| self.expr(of));
                self.args(args);
            }
        }
    }

    fn args(&mut self, args: &Args) {
        args.positional.iter().for_each(|arg| self.expr(arg));
        args.named.iter().for_each(|(_, arg)| self.expr(arg));
        [&args.starred, &args.double_starred].into_iter().flatten().for_each(|arg| self.expr(arg));
    }

    /// Notes in the frame what it sets first, and goes on with the frames inside.
    fn finish(self, frame: &mut Frame) {
        let first = self.paths.iter().flat_map(|path| &path.first);
        let set = first.filter(|(_, first)| **first == First::Set);
        frame.unset = set.map(|(name, _)| (name.clone(), undefined_name(name))).collect();
        self.inside(&mut frame.body);
    }

    fn inside(&self, body: &mut [Statement]) {
        for statement in body {
            match statement {
                Statement::If(branches, otherwise) => {
                    branches.iter_mut().for_each(|(_, body)| self.inside(body));
                    self.inside(otherwise);
                }
                // Nobody else has them yet.
                Statement::For(statement) => {
                    if let Some(statement) = Rc::get_mut(statement) {
                        self.inner_for(statement);
                    }
                }
                Statement::Macro(def) | Statement::CallBlock(_, def) => {
                    if let Some(def) = Rc::get_mut(def) {
                        self.inner_macro(def);
                    }
                }
                Statement::SetBlock(_, _, frame, _) | Statement::Generation(frame) => {
                    self.inner(frame, |names, frame| names.statements(&frame.body));
                }
                Statement::FilterBlock(filters, frame) => self.inner(frame, |names, frame| {
                    names.statements(&frame.body);
                    names.expr(filters);
                }),
                Statement::With(values, frame) => self.inner(frame, |names, frame| {
                    values.iter().for_each(|(target, _)| names.target(target, Names::set));
                    names.statements(&frame.body);
                }),
                Statement::Data(_)
                | Statement::Print(_)
                | Statement::Set(..)
                | Statement::Break
                | Statement::Continue => {}
            }
        }
    }

    fn inner(&self, frame: &mut Frame, look: impl FnOnce(&mut Names, &Frame)) {
        let mut names = Names::of(Some(self));
        look(&mut names, frame);
        names.finish(frame);
    }

    fn inner_for(&self, statement: &mut For) {
        let For { target, body, otherwise, .. } = statement;
        self.inner(body, |names, frame| {
            names.give(&"loop".into());
            names.target(target, Names::give);
            names.statements(&frame.body);
        });
        self.inner(otherwise, |names, frame| names.statements(&frame.body));
    }

    fn inner_macro(&self, def: &mut MacroDef) {
        let MacroDef { parameters, body, caller, varargs, kwargs, .. } = def;
        self.inner(body, |names, frame| {
            for (name, used) in [("caller", *caller), ("varargs", *varargs), ("kwargs", *kwargs)] {
                if used {
                    names.give(&name.into());
                }
            }
            parameters.iter().for_each(|(name, _)| names.give(name));
            parameters.iter().filter_map(|(_, default)| default.as_ref()).for_each(|d| names.expr(d));
            names.statements(&frame.body);
        });
    }
}
