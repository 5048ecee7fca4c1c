//! Splits a template into tokens. Whitespace follows Jinja2's rules with `trim_blocks` and `lstrip_blocks` on.

use std::rc::Rc;

use super::text::is_space;
use super::value::{Fault, Result};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Text outside tags.
    Data(Rc<str>),
    /// `{%`, `%}`, `{{` and `}}`.
    BlockBegin,
    BlockEnd,
    PrintBegin,
    PrintEnd,
    Name(Rc<str>),
    Str(Rc<str>),
    Int(i128),
    Float(f64),
    Sign(&'static str),
    End,
}

impl Token {
    /// A description for error messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Token::Data(_) => "text".into(),
            Token::BlockBegin => "'{%'".into(),
            Token::BlockEnd => "'%}'".into(),
            Token::PrintBegin => "'{{'".into(),
            Token::PrintEnd => "'}}'".into(),
            Token::Name(name) => format!("'{name}'"),
            Token::Str(_) => "a string".into(),
            Token::Int(i) => format!("'{i}'"),
            Token::Float(f) => format!("'{f}'"),
            Token::Sign(sign) => format!("'{sign}'"),
            Token::End => "the end of the template".into(),
        }
    }
}

/// Most bytes of a name. Each look-up of a name reads all of it.
const MAX_NAME: usize = 1000;

/// Operators and brackets, the longer ones first.
const SIGNS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    tokens: Vec<(Token, usize)>,
    /// The line number at byte `counted`.
    line: usize,
    counted: usize,
}

/// The tokens of a template, each with its line number.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, usize)>> {
    // Line breaks are read as Python reads a text file. Jinja2 drops one line break at the end.
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, tokens: Vec::new(), line: 1, counted: 0 };
    lexer.template()?;
    let line = lexer.line_at(source.len());
    lexer.tokens.push((Token::End, line));
    Ok(lexer.tokens)
}

/// For a tag that is the single word `word`: its length after `{%` and the sign, and whether `-` closes it.
fn basic_tag(text: &str, word: &str) -> Option<(usize, bool)> {
    let spaces = |text: &str| text.len() - text.trim_start_matches(is_space).len();
    let mut at = spaces(text);
    at += text[at..].strip_prefix(word).map(|_| word.len())?;
    at += spaces(&text[at..]);
    let minus = text[at..].starts_with('-');
    let plus = word == "endraw" && text[at..].starts_with('+');
    at += usize::from(minus || plus);
    text[at..].starts_with("%}").then_some((at + 2, minus))
}

impl<'s> Lexer<'s> {
    fn line_at(&mut self, at: usize) -> usize {
        self.line += self.source[self.counted..at].matches('\n').count();
        self.counted = at;
        self.line
    }

    fn push(&mut self, token: Token, at: usize) {
        let line = self.line_at(at.max(self.counted));
        self.tokens.push((token, line));
    }

    fn fault<T>(&mut self, message: impl Into<String>, at: usize) -> Result<T> {
        let line = Some(self.line_at(at.max(self.counted)));
        Err(Fault { message: message.into(), line })
    }

    /// Adds the text from `from` to a tag at `to`. `sign` is the sign of the tag (`-`, `+` or none); `block` says
    /// whether spaces before it on its line are dropped.
    fn data(&mut self, from: usize, to: usize, sign: u8, block: bool) {
        let mut text = &self.source[from..to];
        if sign == b'-' {
            text = text.trim_end_matches(is_space);
        } else if sign != b'+' && block {
            let line = text.rfind('\n').map_or(0, |i| i + 1);
            let starts = line > 0 || from == 0 || self.source[..from].ends_with('\n');
            if starts && text[line..].chars().all(is_space) {
                text = &text[..line];
            }
        }
        if !text.is_empty() {
            self.push(Token::Data(text.into()), from);
        }
    }

    fn skip_spaces(&mut self) {
        let rest = &self.source[self.at..];
        self.at += rest.len() - rest.trim_start_matches(is_space).len();
    }

    /// Skips the whitespace that a tag drops after it: all if `-` closed it; else one line break, unless `+` closed it.
    fn closed(&mut self, minus: bool, plus: bool) {
        if minus {
            self.skip_spaces();
        } else if !plus && self.source[self.at..].starts_with('\n') {
            self.at += 1;
        }
    }

    fn template(&mut self) -> Result<()> {
        loop {
            let from = self.at;
            let mut search = from;
            let (open, kind) = loop {
                let Some(open) = self.source[search..].find('{') else {
                    self.data(from, self.source.len(), b'+', false);
                    return Ok(());
                };
                let open = search + open;
                match self.source.as_bytes().get(open + 1) {
                    Some(&kind @ (b'{' | b'%' | b'#')) => break (open, kind),
                    _ => search = open + 1,
                }
            };
            let sign = match self.source.as_bytes().get(open + 2) {
                Some(&sign @ (b'-' | b'+')) => sign,
                _ => 0,
            };
            self.data(from, open, sign, kind != b'{');
            self.at = open + 2 + usize::from(sign != 0);
            match kind {
                b'#' => {
                    let Some(end) = self.source[self.at..].find("#}") else {
                        return self.fault("a comment is not closed", open);
                    };
                    let last = self.source.as_bytes()[self.at..self.at + end].last().copied();
                    self.at += end + 2;
                    self.closed(last == Some(b'-'), last == Some(b'+'));
                }
                b'%' => match basic_tag(&self.source[self.at..], "raw") {
                    Some((len, minus)) => {
                        self.at += len;
                        if minus {
                            self.skip_spaces();
                        }
                        self.raw(open)?;
                    }
                    None => {
                        self.push(Token::BlockBegin, open);
                        self.tag("%}", open)?;
                    }
                },
                _ => {
                    self.push(Token::PrintBegin, open);
                    self.tag("}}", open)?;
                }
            }
        }
    }

    fn raw(&mut self, open: usize) -> Result<()> {
        let from = self.at;
        let mut search = from;
        while let Some(end) = self.source[search..].find("{%") {
            let end = search + end;
            let sign = match self.source.as_bytes().get(end + 2) {
                Some(&sign @ (b'-' | b'+')) => sign,
                _ => 0,
            };
            let after = end + 2 + usize::from(sign != 0);
            if let Some((len, minus)) = basic_tag(&self.source[after..], "endraw") {
                self.data(from, end, sign, true);
                self.at = after + len;
                let plus = self.source[..self.at].ends_with("+%}");
                self.closed(minus, plus);
                return Ok(());
            }
            search = end + 2;
        }
        self.fault("raw is not closed", open)
    }

    /// Reads the tokens inside a tag, up to `end`.
    fn tag(&mut self, end: &'static str, open: usize) -> Result<()> {
        let mut brackets = Vec::new();
        loop {
            let rest = &self.source[self.at..];
            if brackets.is_empty() {
                let block = end == "%}";
                let signed = rest.strip_prefix('-').or(rest.strip_prefix('+').filter(|_| block));
                if let Some(closing) = [Some(rest), signed].into_iter().flatten().find(|r| r.starts_with(end))
                {
                    let (minus, plus) = (rest.starts_with('-'), rest.starts_with('+'));
                    self.push(if block { Token::BlockEnd } else { Token::PrintEnd }, self.at);
                    self.at += rest.len() - closing.len() + 2;
                    if block {
                        self.closed(minus, plus);
                    } else if minus {
                        self.skip_spaces();
                    }
                    return Ok(());
                }
            }
            let Some(first) = rest.chars().next() else {
                return self.fault("a tag is not closed", open);
            };
            let start = self.at;
            let token = match first {
                c if is_space(c) => {
                    self.skip_spaces();
                    continue;
                }
                '\'' | '"' => self.string(first)?,
                '0'..='9' => self.number()?,
                c if c == '_' || c.is_alphabetic() => {
                    let len = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
                    if len > MAX_NAME {
                        return self.fault(format!("expected a name of at most {MAX_NAME} bytes"), start);
                    }
                    self.at += len;
                    Token::Name(rest[..len].into())
                }
                _ => {
                    let Some(&sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) else {
                        return self.fault(format!("unexpected char {first:?}"), start);
                    };
                    match sign {
                        "(" => brackets.push(")"),
                        "[" => brackets.push("]"),
                        "{" => brackets.push("}"),
                        ")" | "]" | "}" => match brackets.pop() {
                            Some(expected) if expected == sign => {}
                            Some(expected) => {
                                return self
                                    .fault(format!("unexpected '{sign}', expected '{expected}'"), start);
                            }
                            None => {
                                return self.fault(format!("unexpected '{sign}', which is not open"), start);
                            }
                        },
                        _ => {}
                    }
                    self.at += sign.len();
                    Token::Sign(sign)
                }
            };
            self.push(token, start);
        }
    }

    fn string(&mut self, quote: char) -> Result<Token> {
        let start = self.at;
        let body = &self.source[start + 1..];
        let mut text = String::new();
        let mut chars = body.char_indices();
        while let Some((i, c)) = chars.next() {
            if c == quote {
                self.at += i + 2;
                return Ok(Token::Str(text.into()));
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some((i, escaped)) = chars.next() else { break };
            let digits = |n: usize| {
                // Only digits: `from_str_radix` would accept a sign.
                let hex =
                    body.get(i + 1..i + 1 + n).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
                u32::from_str_radix(hex, 16).ok()
            };
            let hex = match escaped {
                'x' => Some(2),
                'u' => Some(4),
                'U' => Some(8),
                _ => None,
            };
            match escaped {
                '\n' => {}
                '\\' | '\'' | '"' => text.push(escaped),
                'a' => text.push('\x07'),
                'b' => text.push('\x08'),
                'f' => text.push('\x0c'),
                'n' => text.push('\n'),
                'r' => text.push('\r'),
                't' => text.push('\t'),
                'v' => text.push('\x0b'),
                '0'..='7' => {
                    let octal: String = body[i..].chars().take(3).take_while(|c| c.is_digit(8)).collect();
                    let code = u32::from_str_radix(&octal, 8).unwrap_or(0);
                    text.extend(char::from_u32(code));
                    for _ in 1..octal.len() {
                        chars.next();
                    }
                }
                'x' | 'u' | 'U' => {
                    let n = hex.unwrap_or(0);
                    let Some(c) = digits(n).and_then(char::from_u32) else {
                        return self
                            .fault(format!("expected {n} digits of a character after \\{escaped}"), start);
                    };
                    text.push(c);
                    for _ in 0..n {
                        chars.next();
                    }
                }
                'N' => return self.fault("not supported in templates: \\N in a string", start),
                other => {
                    text.push('\\');
                    // Jinja2 first writes characters beyond ASCII as escapes such as `\xe9`. The backslash before one
                    // then makes it literal text.
                    match other as u32 {
                        ..=0x7f => text.push(other),
                        code @ ..=0xff => text.push_str(&format!("x{code:02x}")),
                        code @ ..=0xffff => text.push_str(&format!("u{code:04x}")),
                        code => text.push_str(&format!("U{code:08x}")),
                    }
                }
            }
        }
        self.fault("a string is not closed", start)
    }

    fn number(&mut self) -> Result<Token> {
        let start = self.at;
        let bytes = &self.source.as_bytes()[start..];
        let digits = |at: usize, allowed: fn(&u8) -> bool| {
            // There may be single underscores between digits.
            let mut end = at;
            while let Some(b) = bytes.get(end) {
                let underscore = *b == b'_' && end > at && bytes.get(end + 1).is_some_and(allowed);
                if !allowed(b) && !underscore {
                    break;
                }
                end += 1;
            }
            end
        };
        for (prefix, radix, allowed) in [
            (b'x', 16, u8::is_ascii_hexdigit as fn(&u8) -> bool),
            (b'o', 8, |b| (b'0'..=b'7').contains(b)),
            (b'b', 2, |b| matches!(b, b'0' | b'1')),
        ] {
            if bytes[0] == b'0' && bytes.get(1).is_some_and(|b| b.eq_ignore_ascii_case(&prefix)) {
                let end = digits(2, allowed);
                let text = self.source[start + 2..start + end].replace('_', "");
                let Ok(value) = i128::from_str_radix(&text, radix) else {
                    return self.fault("expected a number of at most 127 bits", start);
                };
                self.at += end;
                return Ok(Token::Int(value));
            }
        }
        let whole = digits(0, u8::is_ascii_digit);
        let mut end = whole;
        // `x.0.1` are two items, and not the number 0.1.
        let dotted =
            matches!(self.tokens.last(), Some((Token::Sign("."), _))) && self.source[..start].ends_with('.');
        if !dotted {
            if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
                end = digits(end + 1, u8::is_ascii_digit);
            }
            if bytes.get(end).is_some_and(|b| b.eq_ignore_ascii_case(&b'e')) {
                let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                if bytes.get(end + 1 + sign).is_some_and(u8::is_ascii_digit) {
                    end = digits(end + 1 + sign, u8::is_ascii_digit);
                }
            }
        }
        let text = self.source[start..start + end].replace('_', "");
        if end > whole {
            self.at += end;
            return match text.parse() {
                Ok(value) => Ok(Token::Float(value)),
                Err(_) => self.fault("expected a number", start),
            };
        }
        // As in Python, no other digits follow a `0`: `007` are three numbers.
        let end = if bytes[0] == b'0' { digits(0, |b| *b == b'0') } else { whole };
        self.at += end;
        match self.source[start..start + end].replace('_', "").parse() {
            Ok(value) => Ok(Token::Int(value)),
            Err(_) => self.fault("expected a number of at most 127 bits", start),
        }
    }
}
