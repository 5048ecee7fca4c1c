//! Parses expressions, from the operators that bind least to those that bind most.

use std::collections::HashSet;
use std::rc::Rc;

use super::super::ast::{Args, Expr, Kind, deepest};
use super::super::checks::TESTS;
use super::super::filters;
use super::super::lexer::Token;
use super::super::value::{Result, Value};
use super::Parser;

impl Parser {
    pub(super) fn tuple(&mut self, conditions: bool, ends: &[&str]) -> Result<Expr> {
        self.tuple_in(conditions, ends, false)
    }

    pub(super) fn tuple_in(&mut self, conditions: bool, ends: &[&str], brackets: bool) -> Result<Expr> {
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

    pub(super) fn expression(&mut self, conditions: bool) -> Result<Expr> {
        self.nested(|p| if conditions { p.condition() } else { p.or() })
    }

    pub(super) fn condition(&mut self) -> Result<Expr> {
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

    pub(super) fn or(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            let right = self.and()?;
            let depth = left.depth.max(right.depth);
            left = self.node(Kind::Or(Box::new([left, right])), depth, line)?;
        }
        Ok(left)
    }

    pub(super) fn and(&mut self) -> Result<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            let right = self.not()?;
            let depth = left.depth.max(right.depth);
            left = self.node(Kind::And(Box::new([left, right])), depth, line)?;
        }
        Ok(left)
    }

    pub(super) fn not(&mut self) -> Result<Expr> {
        let line = self.line();
        if self.skip_name("not") {
            let inner = self.nested(|p| p.not())?;
            let depth = inner.depth;
            return self.node(Kind::Not(Box::new(inner)), depth, line);
        }
        self.comparison()
    }

    pub(super) fn comparison(&mut self) -> Result<Expr> {
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

    pub(super) fn binary(
        &mut self,
        signs: &[&'static str],
        operand: fn(&mut Self) -> Result<Expr>,
    ) -> Result<Expr> {
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

    pub(super) fn sum(&mut self) -> Result<Expr> {
        self.binary(&["+", "-"], Self::concat)
    }

    pub(super) fn concat(&mut self) -> Result<Expr> {
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

    pub(super) fn product(&mut self) -> Result<Expr> {
        self.binary(&["*", "/", "//", "%"], Self::power)
    }

    pub(super) fn power(&mut self) -> Result<Expr> {
        self.binary(&["**"], |p| p.unary(true))
    }

    pub(super) fn unary(&mut self, filters: bool) -> Result<Expr> {
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
                // The result of a filter can have no item or attribute here, only more filters, tests and calls.
                return self.filtered(expr);
            } else if filters && self.is_name("is") {
                expr = self.test(expr)?;
                return self.filtered(expr);
            } else {
                return Ok(expr);
            }
        }
    }

    pub(super) fn filtered(&mut self, mut expr: Expr) -> Result<Expr> {
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

    pub(super) fn constant(&self, value: Value, line: usize) -> Expr {
        Expr { kind: Kind::Const(value), line, depth: 1 }
    }

    pub(super) fn primary(&mut self) -> Result<Expr> {
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

    pub(super) fn subscript(&mut self, of: Expr) -> Result<Expr> {
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

    pub(super) fn slice(&mut self) -> Result<Expr> {
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

    pub(super) fn call(&mut self, of: Expr) -> Result<Expr> {
        let line = self.line();
        let args = self.args()?;
        let depth = of.depth.max(args.depth());
        self.node(Kind::Call(Box::new(of), args), depth, line)
    }

    pub(super) fn args(&mut self) -> Result<Args> {
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

    pub(super) fn dotted_name(&mut self) -> Result<Rc<str>> {
        let mut name = self.expect_name()?.to_string();
        while self.skip(".") {
            name.push('.');
            name.push_str(&self.expect_name()?);
        }
        Ok(name.into())
    }

    /// Parses `| filter(args) | ...`. With `inline`, the first filter has no `|` in front.
    pub(super) fn filters(&mut self, mut of: Option<Expr>, mut inline: bool) -> Result<Option<Expr>> {
        while inline || self.is("|") {
            let line = self.line();
            self.at += usize::from(!inline);
            inline = false;
            let name = self.dotted_name()?;
            let known = filters::is_known(&name);
            if !known && !self.soft {
                return self.fault(format!("no filter named '{name}'"));
            }
            let args = if self.is("(") { self.args()? } else { Args::default() };
            let depth = of.as_ref().map_or(0, |e| e.depth).max(args.depth());
            of = Some(self.node(Kind::Filter(of.map(Box::new), name, args), depth, line)?);
        }
        Ok(of)
    }

    pub(super) fn test(&mut self, of: Expr) -> Result<Expr> {
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
