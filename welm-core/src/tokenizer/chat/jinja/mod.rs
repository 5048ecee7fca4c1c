//! Jinja2 with the settings of transformers, and with Python's values.
//!
//! Chat templates are written for Python: they print lists by `repr`, join the text of `None`, and compare by Python's
//! rules. Engines for Rust have other values. For all operators, filters, tests and methods on all pairs of some 30
//! values, `minijinja` gives another text than Jinja2 in one of five cases, without an error. This engine has one rule:
//! it gives the same text as transformers, or an error that names what is not supported.
//!
//! Templates are not trusted. Every step, and everything that is read or made, is paid for from one budget
//! ([`value::Fuel`]). The nesting of values, expressions, tags and calls is bounded. The only result is text.

mod ast;
mod attributes;
mod checks;
mod compare;
mod eval;
mod filters;
mod format;
mod frames;
mod functions;
mod json_dump;
mod lexer;
mod loops;
mod ops;
mod parser;
mod text;
mod time;
mod value;

pub(super) use eval::render;
pub(super) use text::is_space;
pub(super) use value::Fault;
