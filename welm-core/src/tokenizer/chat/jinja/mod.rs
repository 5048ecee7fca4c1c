//! Jinja2 as transformers sets it up, with Python's values.
//!
//! Chat templates are written for Python: they print lists by `repr`, join what `None` prints, compare by Python's
//! rules. Engines for Rust have values of their own: of all pairs of some 30 values with all operators, filters, tests and
//! methods, `minijinja` gives another text than Jinja2 for one in five, without a word. This one has a single rule: a text is the one that transformers gives, or there is an error that names what is not supported.
//!
//! Templates are not trusted. Every step, and all that is read or made, is paid for from one budget ([`value::Fuel`]);
//! values, expressions, tags and calls lie in each other only so deep; and nothing but text comes out.

mod ast;
mod attributes;
mod checks;
mod compare;
mod eval;
mod filters;
mod format;
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
pub(super) use value::Fault;
