//! Tokens to a tree, by Jinja2's grammar.

use std::collections::HashSet;
use std::rc::Rc;

use super::checks::TESTS;
use super::filters::{FILTERS, FILTERS_ABSENT};
use super::lexer::{Token, tokens};
use super::value::{Fault, Result, Value};

/// How deep expressions may nest, chains (`a + b + ...`) included: they are followed by recursion.
const MAX_DEPTH: u16 = 600;
/// How deep brackets, tags and prefixes may nest, each of which takes several calls of the parser.
const MAX_NEST: usize = 150;

pub(super) struct Expr {
    pub kind: Kind,
    pub line: usize,
    depth: u16,
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
    /// Condition, value, other value.
    If(Box<[Expr; 2]>, Option<Box<Expr>>),
    Attribute(Box<Expr>, Rc<str>),
    Item(Box<[Expr; 2]>),
    Slice(Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Args),
    /// Without an expression, of the text of the tag that it stands in.
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

pub(super) struct MacroDef {
    pub name: Rc<str>,
    pub parameters: Vec<(Rc<str>, Option<Expr>)>,
    pub body: Vec<Statement>,
    /// Whether the body names `caller`, `varargs` and `kwargs`, which it then gets.
    pub caller: bool,
    pub varargs: bool,
    pub kwargs: bool,
}

pub(super) struct For {
    pub target: Target,
    pub over: Expr,
    pub condition: Option<Expr>,
    pub recursive: bool,
    pub body: Vec<Statement>,
    pub otherwise: Vec<Statement>,
}

pub(super) enum Statement {
    Data(Rc<str>),
    Print(Expr),
    If(Vec<(Expr, Vec<Statement>)>, Vec<Statement>),
    For(Rc<For>),
    Set(Target, Expr, usize),
    /// With the filters that its text goes through.
    SetBlock(Target, Option<Expr>, Vec<Statement>, usize),
    Macro(Rc<MacroDef>),
    CallBlock(Expr, Rc<MacroDef>),
    FilterBlock(Expr, Vec<Statement>),
    With(Vec<(Target, Expr)>, Vec<Statement>),
    /// `{% generation %}`, which marks, for training, what the assistant says.
    Generation(Vec<Statement>),
    Break,
    Continue,
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    nest: usize,
    /// Whether `break` has a loop.
    in_loop: bool,
    /// Whether this may never run, so that filters without a name are an error only then.
    soft: bool,
    /// Names that have been read in the macros that are open.
    names: Vec<Rc<str>>,
}

pub(super) fn parse(source: &str) -> Result<Vec<Statement>> {
    let tokens = tokens(source)?;
    let mut parser = Parser { tokens, at: 0, nest: 0, in_loop: false, soft: false, names: Vec::new() };
    let body = parser.body(&[])?;
    match parser.peek() {
        Token::End => Ok(body),
        other => {
            let other = other.describe();
            parser.fault(format!("unexpected {other}"))
        }
    }
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn line(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn fault<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Fault { message: message.into(), line: Some(self.line()) })
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(s) if *s == sign)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Token::Name(n) if **n == *name)
    }

    fn skip(&mut self, sign: &str) -> bool {
        let is = self.is(sign);
        self.at += usize::from(is);
        is
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let is = self.is_name(name);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.skip(sign) {
            return Ok(());
        }
        self.fault(format!("expected '{sign}', got {}", self.peek().describe()))
    }

    fn expect_name(&mut self) -> Result<Rc<str>> {
        match self.peek().clone() {
            Token::Name(name) => {
                self.at += 1;
                Ok(name)
            }
            other => self.fault(format!("expected a name, got {}", other.describe())),
        }
    }

    fn expect_token(&mut self, token: &Token) -> Result<()> {
        if self.peek() == token {
            self.at += 1;
            return Ok(());
        }
        self.fault(format!("expected {}, got {}", token.describe(), self.peek().describe()))
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nest >= MAX_NEST {
            return self
                .fault(format!("expected at most {MAX_NEST} tags or brackets in each other, got more"));
        }
        self.nest += 1;
        let parsed = parse(self);
        self.nest -= 1;
        parsed
    }

    /// An expression that holds others, the deepest of which is `inner` deep.
    fn node(&self, kind: Kind, inner: u16, line: usize) -> Result<Expr> {
        if inner >= MAX_DEPTH {
            let message = format!("expected expressions at most {MAX_DEPTH} deep, got a deeper one");
            return Err(Fault { message, line: Some(line) });
        }
        Ok(Expr { kind, line, depth: inner + 1 })
    }

    // Statements.

    /// Statements up to a tag of one of these names, which is read, but not what follows its name.
    fn body(&mut self, ends: &[&str]) -> Result<Vec<Statement>> {
        let mut body = Vec::new();
        loop {
            match self.peek().clone() {
                Token::Data(text) => {
                    self.at += 1;
                    body.push(Statement::Data(text));
                }
                Token::PrintBegin => {
                    self.at += 1;
                    body.push(Statement::Print(self.tuple(true, &[])?));
                    self.expect_token(&Token::PrintEnd)?;
                }
                Token::BlockBegin => {
                    self.at += 1;
                    let name = self.expect_name()?;
                    if ends.contains(&&*name) {
                        self.at -= 1;
                        return Ok(body);
                    }
                    let statement = self.nested(|p| p.statement(&name))?;
                    body.extend(statement);
                    self.expect_token(&Token::BlockEnd)?;
                }
                _ if ends.is_empty() => return Ok(body),
                other => {
                    let ends = ends.join("' or '");
                    return self.fault(format!("expected '{ends}', got {}", other.describe()));
                }
            }
        }
    }

    /// What a tag encloses: from the tag's end to the name of the closing one, which is read.
    fn enclosed(&mut self, end: &str) -> Result<Vec<Statement>> {
        self.open_body()?;
        let body = self.body(&[end])?;
        self.at += 1;
        Ok(body)
    }

    fn open_body(&mut self) -> Result<()> {
        self.skip(":");
        self.expect_token(&Token::BlockEnd)
    }

    fn statement(&mut self, name: &str) -> Result<Vec<Statement>> {
        let line = self.line();
        let (soft, in_loop) = (self.soft, self.in_loop);
        let statement = match name {
            "if" => self.if_statement()?,
            "for" => {
                self.soft = false;
                self.for_statement()?
            }
            "set" => {
                let target = self.target(true, &[])?;
                if self.skip("=") {
                    Statement::Set(target, self.tuple(true, &[])?, line)
                } else {
                    let filters = self.filters(None, false)?;
                    Statement::SetBlock(target, filters, self.enclosed("endset")?, line)
                }
            }
            "with" => {
                let mut values = Vec::new();
                while *self.peek() != Token::BlockEnd {
                    if !values.is_empty() {
                        self.expect(",")?;
                    }
                    let target = self.target(false, &[])?;
                    self.expect("=")?;
                    values.push((target, self.expression(true)?));
                }
                self.soft = false;
                Statement::With(values, self.enclosed("endwith")?)
            }
            "macro" => {
                (self.soft, self.in_loop) = (false, false);
                let name = self.expect_name()?;
                Statement::Macro(self.macro_def(name, "endmacro")?)
            }
            "call" => {
                // What the block takes stands in front of what is called.
                let outer = std::mem::take(&mut self.names);
                let parameters = if self.is("(") { self.signature()? } else { Vec::new() };
                let call = self.expression(true)?;
                if !matches!(call.kind, Kind::Call(..)) {
                    return self.fault("expected call");
                }
                (self.soft, self.in_loop) = (false, false);
                let body = self.enclosed("endcall")?;
                let def = self.finish_macro("caller".into(), parameters, body, outer);
                Statement::CallBlock(call, def)
            }
            "filter" => {
                let filters = self.filters(None, true)?;
                let Some(filters) = filters else { return self.fault("expected a filter") };
                self.soft = false;
                Statement::FilterBlock(filters, self.enclosed("endfilter")?)
            }
            "generation" => {
                (self.soft, self.in_loop) = (false, false);
                Statement::Generation(self.enclosed("endgeneration")?)
            }
            "print" => {
                // Unlike `{{ a, b }}`, which is a tuple.
                let mut prints = vec![Statement::Print(self.expression(true)?)];
                while self.skip(",") {
                    prints.push(Statement::Print(self.expression(true)?));
                }
                return Ok(prints);
            }
            "break" | "continue" if !self.in_loop => {
                return self.fault(format!("'{name}' outside of a loop"));
            }
            "break" => Statement::Break,
            "continue" => Statement::Continue,
            "include" | "import" | "from" | "extends" | "block" | "autoescape" => {
                return self.fault(format!("not supported in templates: the tag {name}"));
            }
            other => return self.fault(format!("unknown tag {other}")),
        };
        (self.soft, self.in_loop) = (soft, in_loop);
        Ok(vec![statement])
    }

    fn if_statement(&mut self) -> Result<Statement> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple(false, &[])?;
            self.soft = true;
            self.open_body()?;
            let body = self.body(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            if self.skip_name("elif") {
                continue;
            }
            let otherwise = if self.skip_name("else") {
                self.enclosed("endif")?
            } else {
                self.at += 1;
                Vec::new()
            };
            return Ok(Statement::If(branches, otherwise));
        }
    }

    fn for_statement(&mut self) -> Result<Statement> {
        let target = self.target(false, &["in"])?;
        if !self.skip_name("in") {
            return self.fault(format!("expected 'in', got {}", self.peek().describe()));
        }
        let over = self.tuple(false, &["recursive"])?;
        let condition = if self.skip_name("if") { Some(self.expression(true)?) } else { None };
        let recursive = self.skip_name("recursive");
        let outside = std::mem::replace(&mut self.in_loop, true);
        self.open_body()?;
        let body = self.body(&["endfor", "else"])?;
        self.in_loop = outside;
        let otherwise = if self.skip_name("else") {
            self.enclosed("endfor")?
        } else {
            self.at += 1;
            Vec::new()
        };
        Ok(Statement::For(Rc::new(For { target, over, condition, recursive, body, otherwise })))
    }

    fn signature(&mut self) -> Result<Vec<(Rc<str>, Option<Expr>)>> {
        self.expect("(")?;
        let mut parameters: Vec<(Rc<str>, Option<Expr>)> = Vec::new();
        let mut defaults = false;
        while !self.is(")") {
            if !parameters.is_empty() {
                self.expect(",")?;
            }
            let name = self.expect_name()?;
            let default = if self.skip("=") {
                defaults = true;
                Some(self.expression(true)?)
            } else if defaults {
                return self.fault("non-default argument follows default argument");
            } else {
                None
            };
            parameters.push((name, default));
        }
        self.expect(")")?;
        Ok(parameters)
    }

    fn macro_def(&mut self, name: Rc<str>, end: &str) -> Result<Rc<MacroDef>> {
        let outer = std::mem::take(&mut self.names);
        let parameters = self.signature()?;
        let body = self.enclosed(end)?;
        Ok(self.finish_macro(name, parameters, body, outer))
    }

    fn finish_macro(
        &mut self,
        name: Rc<str>,
        parameters: Vec<(Rc<str>, Option<Expr>)>,
        body: Vec<Statement>,
        mut outer: Vec<Rc<str>>,
    ) -> Rc<MacroDef> {
        let names = |what: &str| {
            self.names.iter().any(|n| **n == *what) && parameters.iter().all(|(name, _)| **name != *what)
        };
        let (caller, varargs, kwargs) = (names("caller"), names("varargs"), names("kwargs"));
        // A macro inside of this one names them for this one, too, as in Jinja2.
        outer.append(&mut self.names);
        self.names = outer;
        Rc::new(MacroDef { name, parameters, body, caller, varargs, kwargs })
    }

    /// What is given a value.
    fn target(&mut self, attributes: bool, ends: &[&str]) -> Result<Target> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            if ends.iter().any(|end| self.is_name(end)) || self.is(")") {
                break;
            }
            if self.skip("(") {
                let inner = self.nested(|p| p.target(attributes, &[]))?;
                self.expect(")")?;
                targets.push(inner);
            } else {
                let name = self.expect_name()?;
                if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
                    return self.fault(format!("can't assign to '{name}'"));
                }
                if attributes && self.skip(".") {
                    self.names.push(name.clone());
                    targets.push(Target::Attribute(name, self.expect_name()?));
                } else {
                    targets.push(Target::Name(name));
                }
            }
            if !self.skip(",") {
                break;
            }
            tuple = true;
        }
        match targets.pop() {
            Some(only) if targets.is_empty() && !tuple => Ok(only),
            Some(last) => {
                targets.push(last);
                Ok(Target::Tuple(targets))
            }
            None => self.fault(format!("expected a name, got {}", self.peek().describe())),
        }
    }

    // Expressions.

    fn tuple(&mut self, conditions: bool, ends: &[&str]) -> Result<Expr> {
        self.tuple_in(conditions, ends, false)
    }

    fn tuple_in(&mut self, conditions: bool, ends: &[&str], brackets: bool) -> Result<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut tuple = false;
        loop {
            let ended = matches!(self.peek(), Token::PrintEnd | Token::BlockEnd)
                || self.is(")")
                || ends.iter().any(|end| self.is_name(end));
            if ended {
                break;
            }
            items.push(self.expression(conditions)?);
            if !self.skip(",") {
                break;
            }
            tuple = true;
        }
        if !tuple {
            match items.pop() {
                Some(only) => return Ok(only),
                None if !brackets => {
                    return self.fault(format!("expected an expression, got {}", self.peek().describe()));
                }
                None => {}
            }
        }
        let depth = deepest(&items);
        self.node(Kind::Tuple(items), depth, line)
    }

    fn expression(&mut self, conditions: bool) -> Result<Expr> {
        self.nested(|p| if conditions { p.condition() } else { p.or() })
    }

    fn condition(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut value = self.or()?;
        while self.skip_name("if") {
            let soft = std::mem::replace(&mut self.soft, true);
            let condition = self.or()?;
            let otherwise =
                if self.skip_name("else") { Some(Box::new(self.nested(|p| p.condition())?)) } else { None };
            self.soft = soft;
            let other = otherwise.as_ref().map_or(0, |e| e.depth);
            let depth = condition.depth.max(value.depth).max(other);
            value = self.node(Kind::If(Box::new([condition, value]), otherwise), depth, line)?;
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            let right = self.and()?;
            let depth = left.depth.max(right.depth);
            left = self.node(Kind::Or(Box::new([left, right])), depth, line)?;
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            let right = self.not()?;
            let depth = left.depth.max(right.depth);
            left = self.node(Kind::And(Box::new([left, right])), depth, line)?;
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        let line = self.line();
        if self.skip_name("not") {
            let inner = self.nested(|p| p.not())?;
            let depth = inner.depth;
            return self.node(Kind::Not(Box::new(inner)), depth, line);
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut others = Vec::new();
        loop {
            let sign = match self.peek() {
                Token::Sign(sign @ ("==" | "!=" | "<" | "<=" | ">" | ">=")) => *sign,
                Token::Name(name) if **name == *"in" => "in",
                Token::Name(name)
                    if **name == *"not"
                        && matches!(&self.tokens[self.at + 1].0, Token::Name(n) if **n == *"in") =>
                {
                    self.at += 1;
                    "not in"
                }
                _ => break,
            };
            self.at += 1;
            others.push((sign, self.sum()?));
        }
        if others.is_empty() {
            return Ok(first);
        }
        let depth = others.iter().fold(first.depth, |depth, (_, e)| depth.max(e.depth));
        self.node(Kind::Compare(Box::new(first), others), depth, line)
    }

    fn binary(&mut self, signs: &[&'static str], operand: fn(&mut Self) -> Result<Expr>) -> Result<Expr> {
        let line = self.line();
        let mut left = operand(self)?;
        while let Some(&sign) = signs.iter().find(|sign| self.is(sign)) {
            self.at += 1;
            let right = operand(self)?;
            let depth = left.depth.max(right.depth);
            left = self.node(Kind::Binary(sign, Box::new([left, right])), depth, line)?;
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<Expr> {
        self.binary(&["+", "-"], Self::concat)
    }

    fn concat(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut items = vec![self.product()?];
        while self.skip("~") {
            items.push(self.product()?);
        }
        if items.len() == 1 {
            return Ok(items.remove(0));
        }
        let depth = deepest(&items);
        self.node(Kind::Concat(items), depth, line)
    }

    fn product(&mut self) -> Result<Expr> {
        self.binary(&["*", "/", "//", "%"], Self::power)
    }

    fn power(&mut self) -> Result<Expr> {
        self.binary(&["**"], |p| p.unary(true))
    }

    fn unary(&mut self, filters: bool) -> Result<Expr> {
        let line = self.line();
        let sign = if self.is("-") { Kind::Negative as fn(Box<Expr>) -> Kind } else { Kind::Positive };
        let mut expr = if self.skip("-") || self.skip("+") {
            let inner = self.nested(|p| p.unary(false))?;
            let depth = inner.depth;
            self.node(sign(Box::new(inner)), depth, line)?
        } else {
            self.primary()?
        };
        loop {
            if self.is(".") || self.is("[") {
                expr = self.subscript(expr)?;
            } else if self.is("(") {
                expr = self.call(expr)?;
            } else if filters && self.is("|") {
                expr = match self.filters(Some(expr), false)? {
                    Some(expr) => expr,
                    None => return self.fault("expected a filter"),
                };
                // No item of what a filter gives, but more filters, tests and calls.
                return self.filtered(expr);
            } else if filters && self.is_name("is") {
                expr = self.test(expr)?;
                return self.filtered(expr);
            } else {
                return Ok(expr);
            }
        }
    }

    fn filtered(&mut self, mut expr: Expr) -> Result<Expr> {
        loop {
            if self.is("|") {
                expr = match self.filters(Some(expr), false)? {
                    Some(expr) => expr,
                    None => return self.fault("expected a filter"),
                };
            } else if self.is_name("is") {
                expr = self.test(expr)?;
            } else if self.is("(") {
                expr = self.call(expr)?;
            } else {
                return Ok(expr);
            }
        }
    }

    fn constant(&self, value: Value, line: usize) -> Expr {
        Expr { kind: Kind::Const(value), line, depth: 1 }
    }

    fn primary(&mut self) -> Result<Expr> {
        let line = self.line();
        match self.next() {
            Token::Name(name) => Ok(match &*name {
                "true" | "True" => self.constant(Value::Bool(true), line),
                "false" | "False" => self.constant(Value::Bool(false), line),
                "none" | "None" => self.constant(Value::None, line),
                _ => {
                    self.names.push(name.clone());
                    Expr { kind: Kind::Name(name), line, depth: 1 }
                }
            }),
            Token::Str(first) => {
                let mut text = first.to_string();
                while let Token::Str(more) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Ok(self.constant(text.into(), line))
            }
            Token::Int(i) => Ok(self.constant(Value::Int(i), line)),
            Token::Float(f) => Ok(self.constant(Value::Float(f), line)),
            Token::Sign("(") => {
                let inner = self.tuple_in(true, &[], true)?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => {
                let mut items = Vec::new();
                while !self.is("]") {
                    if !items.is_empty() {
                        self.expect(",")?;
                    }
                    if self.is("]") {
                        break;
                    }
                    items.push(self.expression(true)?);
                }
                self.expect("]")?;
                let depth = deepest(&items);
                self.node(Kind::List(items), depth, line)
            }
            Token::Sign("{") => {
                let mut entries = Vec::new();
                while !self.is("}") {
                    if !entries.is_empty() {
                        self.expect(",")?;
                    }
                    if self.is("}") {
                        break;
                    }
                    let key = self.expression(true)?;
                    self.expect(":")?;
                    entries.push((key, self.expression(true)?));
                }
                self.expect("}")?;
                let depth = entries.iter().fold(0, |depth, (k, v)| depth.max(k.depth).max(v.depth));
                self.node(Kind::Dict(entries), depth, line)
            }
            other => {
                self.at -= 1;
                self.fault(format!("unexpected {}", other.describe()))
            }
        }
    }

    fn subscript(&mut self, of: Expr) -> Result<Expr> {
        let line = self.line();
        if self.skip(".") {
            return match self.next() {
                Token::Name(name) => {
                    let depth = of.depth;
                    self.node(Kind::Attribute(Box::new(of), name), depth, line)
                }
                Token::Int(i) => {
                    let depth = of.depth;
                    let index = self.constant(Value::Int(i), line);
                    self.node(Kind::Item(Box::new([of, index])), depth, line)
                }
                other => {
                    self.at -= 1;
                    self.fault(format!("expected a name or a number, got {}", other.describe()))
                }
            };
        }
        self.expect("[")?;
        let mut items = Vec::new();
        while !self.is("]") {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(self.slice()?);
        }
        self.expect("]")?;
        let index = if items.len() == 1 {
            items.remove(0)
        } else {
            let depth = deepest(&items);
            self.node(Kind::Tuple(items), depth, line)?
        };
        let depth = of.depth.max(index.depth);
        self.node(Kind::Item(Box::new([of, index])), depth, line)
    }

    fn slice(&mut self) -> Result<Expr> {
        let line = self.line();
        let start = if self.is(":") {
            None
        } else {
            let index = self.expression(true)?;
            if !self.is(":") {
                return Ok(index);
            }
            Some(index)
        };
        self.expect(":")?;
        let part = |p: &mut Self| {
            if p.is(":") || p.is("]") || p.is(",") { Ok(None) } else { p.expression(true).map(Some) }
        };
        let stop = part(self)?;
        let step = if self.skip(":") { part(self)? } else { None };
        let parts = [start, stop, step];
        let depth = parts.iter().flatten().fold(0, |depth, e| depth.max(e.depth));
        self.node(Kind::Slice(Box::new(parts)), depth, line)
    }

    fn call(&mut self, of: Expr) -> Result<Expr> {
        let line = self.line();
        let args = self.args()?;
        let depth = of.depth.max(args.depth());
        self.node(Kind::Call(Box::new(of), args), depth, line)
    }

    fn args(&mut self) -> Result<Args> {
        self.expect("(")?;
        let mut args = Args::default();
        let mut names = HashSet::new();
        let mut first = true;
        while !self.is(")") {
            if !first {
                self.expect(",")?;
                if self.is(")") {
                    break;
                }
            }
            first = false;
            let named = matches!(self.peek(), Token::Name(_))
                && matches!(self.tokens.get(self.at + 1), Some((Token::Sign("="), _)));
            if self.skip("*") {
                if args.starred.is_some() || args.double_starred.is_some() {
                    return self.fault("invalid syntax for function call expression");
                }
                args.starred = Some(Box::new(self.expression(true)?));
            } else if self.skip("**") {
                if args.double_starred.is_some() {
                    return self.fault("invalid syntax for function call expression");
                }
                args.double_starred = Some(Box::new(self.expression(true)?));
            } else if named {
                if args.double_starred.is_some() {
                    return self.fault("invalid syntax for function call expression");
                }
                let name = self.expect_name()?;
                self.expect("=")?;
                if !names.insert(name.clone()) {
                    return self.fault(format!("keyword argument repeated: {name}"));
                }
                args.named.push((name, self.expression(true)?));
            } else {
                let late = args.starred.is_some() || args.double_starred.is_some() || !args.named.is_empty();
                if late {
                    return self.fault("invalid syntax for function call expression");
                }
                args.positional.push(self.expression(true)?);
            }
        }
        self.expect(")")?;
        Ok(args)
    }

    fn dotted_name(&mut self) -> Result<Rc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name.into())
    }

    /// `| filter(args) | ...`; with `inline` the first has no `|` in front.
    fn filters(&mut self, mut of: Option<Expr>, mut inline: bool) -> Result<Option<Expr>> {
        while inline || self.is("|") {
            let line = self.line();
            self.at += usize::from(!inline);
            inline = false;
            let name = self.dotted_name()?;
            let known = FILTERS.contains(&&*name) || FILTERS_ABSENT.contains(&&*name);
            if !known && !self.soft {
                return self.fault(format!("no filter named '{name}'"));
            }
            let args = if self.is("(") { self.args()? } else { Args::default() };
            let depth = of.as_ref().map_or(0, |e| e.depth).max(args.depth());
            of = Some(self.node(Kind::Filter(of.map(Box::new), name, args), depth, line)?);
        }
        Ok(of)
    }

    fn test(&mut self, of: Expr) -> Result<Expr> {
        let line = self.line();
        self.at += 1;
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        if !TESTS.contains(&&*name) && !self.soft {
            return self.fault(format!("no test named '{name}'"));
        }
        let mut args = Args::default();
        if self.is("(") {
            args = self.args()?;
        } else {
            let operand = match self.peek() {
                Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
                Token::Str(_) | Token::Int(_) | Token::Float(_) | Token::Sign("(" | "[" | "{") => true,
                _ => false,
            };
            if operand {
                if self.is_name("is") {
                    return self.fault("You cannot chain multiple tests with is");
                }
                let mut arg = self.nested(|p| p.primary())?;
                while self.is(".") || self.is("[") || self.is("(") {
                    arg = if self.is("(") { self.call(arg)? } else { self.subscript(arg)? };
                }
                args.positional.push(arg);
            }
        }
        let depth = of.depth.max(args.depth());
        let test = self.node(Kind::Test(Box::new(of), name, args), depth, line)?;
        if negated {
            let depth = test.depth;
            return self.node(Kind::Not(Box::new(test)), depth, line);
        }
        Ok(test)
    }
}

fn deepest(items: &[Expr]) -> u16 {
    items.iter().map(|e| e.depth).max().unwrap_or(0)
}

impl Args {
    fn depth(&self) -> u16 {
        let named = self.named.iter().map(|(_, e)| e.depth).max().unwrap_or(0);
        let starred = [&self.starred, &self.double_starred].into_iter().flatten().map(|e| e.depth).max();
        deepest(&self.positional).max(named).max(starred.unwrap_or(0))
    }
}
