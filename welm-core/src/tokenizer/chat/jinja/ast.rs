//! The syntax tree of a template: statements and expressions.

use std::rc::Rc;

use super::value::Value;

pub(super) struct Expr {
    pub kind: Kind,
    pub line: usize,
    /// The depth of its deepest part.
    pub depth: u16,
}

pub(super) enum Kind {
    Const(Value),
    Name(Rc<str>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Box<[Expr; 2]>),
    Or(Box<[Expr; 2]>),
    Binary(&'static str, Box<[Expr; 2]>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(&'static str, Expr)>),
    /// `value if condition else other`: condition and value, then the other value.
    If(Box<[Expr; 2]>, Option<Box<Expr>>),
    Attribute(Box<Expr>, Rc<str>),
    Item(Box<[Expr; 2]>),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Args),
    /// A filter of an expression; without one, of the text in the tag.
    Filter(Option<Box<Expr>>, Rc<str>, Args),
    Test(Box<Expr>, Rc<str>, Args),
}

#[derive(Default)]
pub(super) struct Args {
    pub positional: Vec<Expr>,
    pub named: Vec<(Rc<str>, Expr)>,
    /// `*args` and `**kwargs`.
    pub starred: Option<Box<Expr>>,
    pub double_starred: Option<Box<Expr>>,
}

pub(super) enum Target {
    Name(Rc<str>),
    /// `{% set ns.name = ... %}`
    Attribute(Rc<str>, Rc<str>),
    Tuple(Vec<Target>),
}

/// Statements with variables of their own: a template, or what a tag such as `for` encloses.
pub(super) struct Frame {
    pub body: Vec<Statement>,
    /// Names that are undefined at its beginning, see [`super::frames`], with the value that they have then.
    pub unset: Vec<(Rc<str>, Value)>,
}

impl From<Vec<Statement>> for Frame {
    fn from(body: Vec<Statement>) -> Self {
        Frame { body, unset: Vec::new() }
    }
}

pub(super) struct MacroDef {
    pub name: Rc<str>,
    pub parameters: Vec<(Rc<str>, Option<Expr>)>,
    pub body: Frame,
    /// Whether the body uses the names `caller`, `varargs` and `kwargs`. Only then they are defined.
    pub caller: bool,
    pub varargs: bool,
    pub kwargs: bool,
}

pub(super) struct For {
    pub target: Target,
    pub over: Expr,
    pub condition: Option<Expr>,
    pub recursive: bool,
    pub body: Frame,
    pub otherwise: Frame,
}

pub(super) enum Statement {
    Data(Rc<str>),
    Print(Expr),
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    For(Rc<For>),
    Set(Target, Expr, usize),
    /// `{% set name %}..{% endset %}`, with the filters that are applied to its text.
    SetBlock(Target, Option<Expr>, Frame, usize),
    Macro(Rc<MacroDef>),
    CallBlock(Expr, Rc<MacroDef>),
    FilterBlock(Expr, Frame),
    With(Vec<(Target, Expr)>, Frame),
    /// `{% generation %}`, which marks the assistant's text for training.
    Generation(Frame),
    Break,
    Continue,
}

pub(super) fn deepest(items: &[Expr]) -> u16 {
    items.iter().map(|e| e.depth).max().unwrap_or(0)
}

impl Args {
    pub(super) fn depth(&self) -> u16 {
        let named = self.named.iter().map(|(_, e)| e.depth).max().unwrap_or(0);
        let starred = [&self.starred, &self.double_starred].into_iter().flatten().map(|e| e.depth).max();
        deepest(&self.positional).max(named).max(starred.unwrap_or(0))
    }
}
