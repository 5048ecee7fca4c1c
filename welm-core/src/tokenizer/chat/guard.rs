//! Closes the ways around a template's budget.
//!
//! minijinja's fuel pays for steps and for the strings they make, but not for the text of a list: `q` is one value
//! in `[q, q]`, and forty such lines make a text of 2^40 pieces, for which the process would end. Nor does it bound
//! how deep values lie in each other, and the library follows them by recursion.
//!
//! So every operand that may be a container goes through a filter, `PAID`, before anything else sees it:
//! `f(q)[0] ~ r` becomes `f(q|paid)[0]|paid ~ r|paid`. The filter gives its value back as it is, having paid for all
//! that lies in it, and refuses what lies too deep, cycles with it. An operand of `*` goes through `SCALAR`, which
//! takes no containers at all. To see where operands end, tags are split into tokens just as minijinja does it; the
//! text outside of tags stays as it is. Tags that the library does not know are refused, as it would refuse them.
//!
//! Long chains (`a.b.c...`, `elif` after `elif`), along which the library also recurses, are bounded here too.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

const PAID: &str = "|__paid";
const SCALAR: &str = "|__scalar";
/// Most tokens of a tag, and most `elif` of a template.
const MAX_TOKENS: usize = 4096;
const MAX_ELIF: usize = 512;
/// How deep values may lie in each other.
const MAX_DEPTH: usize = 64;
/// Values in a container that one unit of fuel pays for, and bytes.
const VALUES_PER_FUEL: usize = 4;
const BYTES_PER_FUEL: usize = 64;

/// Adds the filters.
pub(super) fn add_to(env: &mut Environment<'_>) {
    env.add_filter(&PAID[1..], |state: &State, value: Value| {
        Bill { state, values: 0, bytes: 0 }.pay(&value, 0)?;
        Ok::<_, Error>(value)
    });
    env.add_filter(&SCALAR[1..], |value: Value| match value.kind() {
        ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::String => {
            Ok(value)
        }
        kind => {
            let reason = format!("expected a number or a string as an operand of *, got {kind}");
            Err(Error::new(ErrorKind::InvalidOperation, reason))
        }
    });
}

/// What a value costs beyond what it has cost so far.
struct Bill<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    values: usize,
    bytes: usize,
}

impl Bill<'_, '_, '_> {
    fn pay(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            let reason = format!("expected values in at most {MAX_DEPTH} others, got more");
            return Err(Error::new(ErrorKind::InvalidOperation, reason));
        }
        match value.kind() {
            // One that stands alone was paid for when it was made.
            ValueKind::String if depth > 0 => self.add(0, value.as_str().map_or(0, str::len)),
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.add(1, 0)?;
                    self.pay(&item, depth + 1)?;
                }
                Ok(())
            }
            ValueKind::Map => {
                let Some(object) = value.as_object() else { return Ok(()) };
                for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                    self.add(2, 0)?;
                    self.pay(&key, depth + 1)?;
                    self.pay(&item, depth + 1)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, values: usize, bytes: usize) -> Result<(), Error> {
        self.values += values;
        self.bytes += bytes;
        let fuel = self.values / VALUES_PER_FUEL + self.bytes / BYTES_PER_FUEL;
        self.values %= VALUES_PER_FUEL;
        self.bytes %= BYTES_PER_FUEL;
        if fuel > 0 { self.state.consume_fuel(fuel as u64) } else { Ok(()) }
    }
}

/// The template with the filters put in.
pub(super) fn guarded(source: &str) -> Result<String, String> {
    let mut pass = Pass { source, at: 0, copied: 0, out: String::with_capacity(2 * source.len()), elifs: 0 };
    while let Some(start) = pass.source[pass.at..].find('{') {
        pass.at += start + 1;
        let opened = pass.byte(0);
        // Whitespace control, which belongs to the opening.
        let sign = usize::from(matches!(pass.byte(1), b'-' | b'+'));
        match opened {
            b'#' => {
                let Some(end) = pass.source[pass.at + 1 + sign..].find("#}") else { break };
                pass.at += 1 + sign + end + 2;
            }
            b'{' => {
                pass.at += 1 + sign;
                pass.tag("}}")?;
            }
            b'%' => {
                pass.at += 1 + sign;
                match basic_tag(&pass.source[pass.at..], "raw") {
                    Some(len) => {
                        pass.at += len;
                        if !pass.skip_raw() {
                            break;
                        }
                    }
                    None => pass.tag("%}")?,
                }
            }
            _ => {}
        }
    }
    pass.out.push_str(&source[pass.copied..]);
    Ok(pass.out)
}

/// The length of a tag of one word, behind its opening.
fn basic_tag(text: &str, word: &str) -> Option<usize> {
    let space = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_whitespace()).len();
    let mut at = space(text);
    at += text[at..].strip_prefix(word).map(|_| word.len())?;
    at += space(&text[at..]);
    at += usize::from(text[at..].starts_with(['-', '+']));
    text[at..].starts_with("%}").then_some(at + 2)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token<'s> {
    Name(&'s str),
    Number,
    Text,
    /// An operator or a bracket.
    Sign(&'s str),
    /// The tag's closing.
    End,
}

/// What was read last.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Last {
    /// Nothing that a value could end with: an operand comes.
    Nothing,
    /// A string or a number, or something as harmless.
    Constant,
    /// Any other operand.
    Operand,
    /// The name of a test behind `is`; what follows may be its argument.
    Test,
}

/// A bracket that is open, or the tag itself.
#[derive(Clone, Copy)]
struct Group {
    /// What stands here is given a value, up to `=` or `in`: no operand.
    target: bool,
    /// Whether that is so again behind a comma.
    targets: bool,
    /// `*` stands before the operand.
    factor: bool,
    /// What has been read when the bracket closes.
    then: Last,
}

/// Goes through a template once.
struct Pass<'s> {
    source: &'s str,
    at: usize,
    copied: usize,
    out: String,
    elifs: usize,
}

impl<'s> Pass<'s> {
    fn byte(&self, ahead: usize) -> u8 {
        self.source.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    /// Goes behind `endraw`.
    fn skip_raw(&mut self) -> bool {
        while let Some(open) = self.source[self.at..].find("{%") {
            self.at += open + 2;
            let sign = usize::from(matches!(self.byte(0), b'-' | b'+'));
            if let Some(len) = basic_tag(&self.source[self.at + sign..], "endraw") {
                self.at += sign + len;
                return true;
            }
        }
        false
    }

    /// Puts something into the text at `at`.
    fn insert(&mut self, at: usize, what: &str) {
        self.out.push_str(&self.source[self.copied..at]);
        self.out.push_str(what);
        self.copied = at;
    }

    /// Reads a token; `outer` if no bracket is open, so that the tag may end, and `dotted` behind a dot.
    fn token(&mut self, end: &str, outer: bool, dotted: bool) -> Result<Token<'s>, String> {
        let source = self.source;
        self.at += source.as_bytes()[self.at..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        let (rest, start) = (&source[self.at..], self.at);
        let signed = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        if outer && signed.starts_with(end) {
            self.at += rest.len() - signed.len() + end.len();
            return Ok(Token::End);
        }
        let word =
            |bytes: &[u8]| bytes.iter().take_while(|&&b| b == b'_' || b.is_ascii_alphanumeric()).count();
        let Some(&first) = rest.as_bytes().first() else { return Err("a tag is not closed".into()) };
        Ok(match first {
            b'\'' | b'"' => {
                let mut escaped = false;
                let closes = |&b: &u8| {
                    let closes = !escaped && b == first;
                    escaped = !escaped && b == b'\\';
                    closes
                };
                let Some(len) = rest.as_bytes()[1..].iter().position(closes) else {
                    return Err("a string is not closed".into());
                };
                self.at += len + 2;
                Token::Text
            }
            b'0'..=b'9' => {
                self.at += word(rest.as_bytes());
                if !dotted && self.byte(0) == b'.' && self.byte(1).is_ascii_digit() {
                    self.at += 1;
                    self.at += word(&source.as_bytes()[self.at..]);
                }
                Token::Number
            }
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                self.at += word(rest.as_bytes());
                Token::Name(&source[start..self.at])
            }
            _ => {
                let two = ["//", "**", "==", "!=", ">=", "<="].iter().any(|sign| rest.starts_with(sign));
                let Some(c) = rest.chars().next() else { return Err("a tag is not closed".into()) };
                self.at += if two { 2 } else { c.len_utf8() };
                Token::Sign(&source[start..self.at])
            }
        })
    }

    /// Goes through a tag, from behind its opening.
    fn tag(&mut self, end: &str) -> Result<(), String> {
        let mut group = Group { target: false, targets: false, factor: false, then: Last::Nothing };
        // Whether the next `(` holds the parameters of a macro or of a `caller`.
        let mut parameters = false;
        // Whether the tag wants a call, and nothing put behind it.
        let mut bare = false;
        let mut last = Last::Nothing;
        if end == "%}" {
            let Token::Name(name) = self.token(end, true, false)? else {
                return Err("a tag has no name".into());
            };
            let name_at = self.at - name.len();
            match name {
                "if" => {}
                "elif" => {
                    self.elifs += 1;
                    if self.elifs > MAX_ELIF {
                        return Err(format!("expected at most {MAX_ELIF} elif, got more"));
                    }
                }
                "for" | "set" => group.target = true,
                "with" => (group.target, group.targets) = (true, true),
                "macro" => {
                    self.token(end, true, false)?;
                    (group.target, parameters) = (true, true);
                    last = Last::Operand;
                }
                "call" => {
                    bare = true;
                    parameters = self.source[self.at..].trim_start().starts_with('(');
                }
                "filter" => {
                    self.token(end, true, false)?;
                    group.target = true;
                    last = Last::Operand;
                }
                "else" | "endif" | "endfor" | "endset" | "endwith" | "endmacro" | "endcall" | "endfilter"
                | "break" | "continue" => group.target = true,
                // Marks, for training, what the assistant says; otherwise without effect.
                "generation" | "endgeneration" => {
                    self.insert(name_at, if name == "generation" { "if true" } else { "endif" });
                    self.copied = self.at;
                    group.target = true;
                }
                other => return Err(format!("unknown tag {other}")),
            }
        }
        let mut open: Vec<Group> = Vec::new();
        for _ in 0..MAX_TOKENS {
            // Where a filter is put: behind the last token.
            let behind = self.at;
            let token = self.token(end, open.is_empty(), false)?;
            let ended = match last {
                Last::Operand | Last::Constant => !matches!(token, Token::Sign("." | "[" | "(" | "|")),
                Last::Test | Last::Nothing => false,
            };
            if ended {
                let name = matches!(token, Token::Sign("=")) || group.target;
                let factor = std::mem::take(&mut group.factor) || token == Token::Sign("*");
                let bare = bare && token == Token::End;
                if last == Last::Operand && !name && !bare {
                    self.insert(behind, if factor { SCALAR } else { PAID });
                }
            }
            last = match token {
                Token::End => return Ok(()),
                Token::Text | Token::Number => Last::Constant,
                Token::Name("is") if last != Last::Nothing => {
                    if self.token(end, open.is_empty(), false)? == Token::Name("not") {
                        self.token(end, open.is_empty(), false)?;
                    }
                    while self.byte(0) == b'.' {
                        self.at += 1;
                        self.token(end, open.is_empty(), true)?;
                    }
                    Last::Test
                }
                Token::Name("in") => {
                    group.target = false;
                    Last::Nothing
                }
                Token::Name("and" | "or" | "not" | "if" | "else" | "recursive") => Last::Nothing,
                Token::Name(_) => Last::Operand,
                Token::Sign(".") => {
                    self.token(end, open.is_empty(), true)?;
                    Last::Operand
                }
                Token::Sign("|") => {
                    let filter = self.token(end, open.is_empty(), false)?;
                    // These take a container without looking into it.
                    let shallow =
                        matches!(filter, Token::Name("length" | "count" | "first" | "last" | "default"));
                    if last == Last::Operand && !group.target && !shallow {
                        self.insert(behind, PAID);
                    }
                    while self.byte(0) == b'.' {
                        self.at += 1;
                        self.token(end, open.is_empty(), true)?;
                    }
                    Last::Operand
                }
                Token::Sign("(" | "[" | "{") => {
                    let then = match last {
                        Last::Test if token == Token::Sign("(") => Last::Test,
                        Last::Nothing if bare && parameters => Last::Nothing,
                        _ => Last::Operand,
                    };
                    open.push(group);
                    // `(a, b)` is a target where `a, b` would be.
                    let nested = group.target && last == Last::Nothing;
                    let targets = token == Token::Sign("(") && (std::mem::take(&mut parameters) || nested);
                    group = Group { target: targets, targets, factor: false, then };
                    Last::Nothing
                }
                Token::Sign(")" | "]" | "}") => {
                    let then = group.then;
                    group = open.pop().ok_or("a bracket is closed that is not open")?;
                    then
                }
                Token::Sign(",") => {
                    group.target |= group.targets;
                    Last::Nothing
                }
                Token::Sign("=") => {
                    group.target = false;
                    Last::Nothing
                }
                Token::Sign("*") => {
                    group.factor = last != Last::Nothing;
                    Last::Nothing
                }
                Token::Sign(_) => Last::Nothing,
            };
        }
        Err(format!("expected at most {MAX_TOKENS} words and signs in a tag, got more"))
    }
}
