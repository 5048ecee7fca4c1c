//! Parses tokens into a syntax tree, by Jinja2's grammar. This file parses statements.

mod expressions;

use std::rc::Rc;

use super::ast::{Expr, For, Frame, Kind, MacroDef, Statement, Target};
use super::frames;
use super::lexer::{Token, tokens};
use super::value::{Fault, Result};

/// How deep expressions may be nested. Chains such as `a + b + ...` count, because they are evaluated by recursion.
const MAX_DEPTH: u16 = 600;
/// How deep brackets, tags and prefixes may be nested. Each takes several recursive calls of the parser.
const MAX_NEST: usize = 150;

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    nest: usize,
    /// Whether it is inside a loop, where `break` is allowed.
    in_loop: bool,
    /// Whether this code may never run. Then an unknown filter is an error only when it runs.
    soft: bool,
    /// Names that were used so far in the macros that are open.
    names: Vec<Rc<str>>,
}

pub(super) fn parse(source: &str) -> Result<Frame> {
    let tokens = tokens(source)?;
    let mut parser = Parser { tokens, at: 0, nest: 0, in_loop: false, soft: false, names: Vec::new() };
    let body = parser.body(&[])?;
    match parser.peek() {
        Token::End => {
            let mut template = body.into();
            frames::resolve(&mut template);
            Ok(template)
        }
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

    /// An expression with parts, of which the deepest has depth `inner`.
    fn node(&self, kind: Kind, inner: u16, line: usize) -> Result<Expr> {
        if inner >= MAX_DEPTH {
            let message = format!("expected expressions at most {MAX_DEPTH} deep, got a deeper one");
            return Err(Fault { message, line: Some(line) });
        }
        Ok(Expr { kind, line, depth: inner + 1 })
    }

    // Statements.

    /// Parses statements up to a tag with one of the names in `ends`. The name is consumed, but not what follows it.
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

    /// Parses what a tag encloses, from the end of that tag to the name of the closing tag, which is consumed.
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
                    Statement::SetBlock(target, filters, self.enclosed("endset")?.into(), line)
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
                Statement::With(values, self.enclosed("endwith")?.into())
            }
            "macro" => {
                (self.soft, self.in_loop) = (false, false);
                let name = self.expect_name()?;
                Statement::Macro(self.macro_def(name, "endmacro")?)
            }
            "call" => {
                // The parameters of the block come before the call.
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
                Statement::FilterBlock(filters, self.enclosed("endfilter")?.into())
            }
            "generation" => {
                (self.soft, self.in_loop) = (false, false);
                Statement::Generation(self.enclosed("endgeneration")?.into())
            }
            "print" => {
                // `{% print a, b %}` prints each value, unlike `{{ a, b }}`, which is a tuple.
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
        let (body, otherwise) = (body.into(), otherwise.into());
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
        // Names used in a nested macro also count for this one, as in Jinja2.
        outer.append(&mut self.names);
        self.names = outer;
        Rc::new(MacroDef { name, parameters, body: body.into(), caller, varargs, kwargs })
    }

    /// Parses the target of an assignment.
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
}
