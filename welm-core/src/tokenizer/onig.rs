//! Parses the regular expressions of `tokenizer.json` with the meaning that they have in the `tokenizers` library.
//!
//! That library uses Oniguruma with Ruby's syntax. Other engines understand the same expression differently: `{1,3}+`
//! is a possessive quantifier in Java and a repeated group in Ruby; in Ruby, `^` matches at the beginning of each line,
//! and `\h` is a hexadecimal digit. So the expression is parsed here, into the few parts that [`super::dfa`] runs in
//! linear time:
//!
//! ```text
//! set          one character of a class
//! look         whether the next, or the last, character is in a class, or there is none
//! concatenation, alternation (the first that matches is taken), repetition (greedy or lazy)
//! ```
//!
//! Some constructs are rewritten: `[a]*+` as `[a]*(?![a])`, and `\b` as a look at the characters on both sides. Some
//! have no such form: back references, looks at more than one character, atomic groups. Others may not mean the same in
//! both engines: case folding that changes the number of characters. Each of these is an error that names it.

mod classes;

use regex_syntax::hir::ClassUnicode;

pub(super) use classes::rust_word;
use classes::{empty, negated, set_of, shorthand};

/// Most bytes of an expression. Real ones have some hundreds.
const MAX_PATTERN: usize = 1 << 14;
/// How deep groups and classes may be nested.
const MAX_DEPTH: usize = 64;
/// The largest number in `{n,m}`.
const MAX_COUNT: u32 = 1_000;

/// A part of an expression.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Set(ClassUnicode),
    Look(Look),
    Concat(Vec<Node>),
    Alt(Vec<Node>),
    Repeat { node: Box<Node>, min: u32, max: Option<u32>, greedy: bool },
}

/// A condition on the character before or after a place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Look {
    /// Looks at the next character; otherwise at the one before.
    pub(super) ahead: bool,
    /// The characters for which it holds.
    pub(super) set: ClassUnicode,
    /// Whether it holds if there is no such character: at the end of the text, or at its beginning.
    pub(super) at_edge: bool,
}

impl Node {
    /// Whether it can match the empty string.
    pub(super) fn nullable(&self) -> bool {
        match self {
            Node::Set(_) => false,
            Node::Look(_) => true,
            Node::Concat(nodes) => nodes.iter().all(Node::nullable),
            Node::Alt(nodes) => nodes.iter().any(Node::nullable),
            Node::Repeat { node, min, .. } => *min == 0 || node.nullable(),
        }
    }

    /// Whether it can match only the empty string.
    fn is_empty(&self) -> bool {
        match self {
            Node::Set(_) => false,
            Node::Look(_) => true,
            Node::Concat(nodes) | Node::Alt(nodes) => nodes.iter().all(Node::is_empty),
            Node::Repeat { node, .. } => node.is_empty(),
        }
    }

    fn look(ahead: bool, set: ClassUnicode, at_edge: bool) -> Node {
        Node::Look(Look { ahead, set, at_edge })
    }

    /// The set of characters that it matches, if it always matches exactly one character.
    fn as_set(&self) -> Option<ClassUnicode> {
        match self {
            Node::Set(set) => Some(set.clone()),
            Node::Concat(nodes) if nodes.len() == 1 => nodes[0].as_set(),
            Node::Alt(nodes) => nodes.iter().map(Node::as_set).try_fold(empty(), |mut all, set| {
                all.union(&set?);
                Some(all)
            }),
            _ => None,
        }
    }

    /// Its form as a look to one side: the set of characters for which it holds, and whether it holds at the edge of
    /// the text. `None` if one character does not decide it.
    fn as_look(&self, ahead: bool) -> Option<(ClassUnicode, bool)> {
        match self {
            Node::Set(set) => Some((set.clone(), false)),
            Node::Look(look) if look.ahead == ahead => Some((look.set.clone(), look.at_edge)),
            Node::Concat(nodes) if nodes.len() == 1 => nodes[0].as_look(ahead),
            Node::Alt(nodes) => {
                nodes.iter().map(|n| n.as_look(ahead)).try_fold((empty(), false), |(mut all, edge), one| {
                    let (set, at_edge) = one?;
                    all.union(&set);
                    Some((all, edge || at_edge))
                })
            }
            Node::Repeat { node, min: 1, .. } => Some((node.as_set()?, false)),
            _ => None,
        }
    }
}

/// Parses an expression. An error names what is not supported.
pub(super) fn parse(pattern: &str) -> Result<Node, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("expected at most {MAX_PATTERN} bytes, got {}", pattern.len()));
    }
    let mut parser = Parser {
        chars: pattern.chars().collect(),
        at: 0,
        depth: 0,
        flags: Flags::default(),
        written: Vec::new(),
    };
    let node = parser.alternation()?;
    match parser.peek() {
        None => Ok(node),
        Some(_) => Err("`)` without `(`".into()),
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Flags {
    ignore_case: bool,
    /// `.` also matches the end of a line. Ruby's option `m`.
    dot_all: bool,
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: usize,
    flags: Flags,
    /// The literal characters directly before this place, to find pairs that fold to one character, such as `ss`.
    written: Vec<char>,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn eat(&mut self, text: &str) -> bool {
        let n = text.chars().count();
        let here = self.chars.get(self.at..self.at + n).is_some_and(|c| c.iter().copied().eq(text.chars()));
        self.at += if here { n } else { 0 };
        here
    }

    fn next(&mut self) -> Result<char, String> {
        let c = self.peek().ok_or("it ends in the middle of a construct")?;
        self.at += 1;
        Ok(c)
    }

    /// Parses alternatives, up to a `)` or the end.
    fn alternation(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("groups nested deeper than {MAX_DEPTH}"));
        }
        let flags = self.flags;
        let mut branches = Vec::new();
        loop {
            branches.push(self.concatenation()?);
            if !self.eat("|") {
                break;
            }
        }
        self.flags = flags;
        self.depth -= 1;
        Ok(if branches.len() == 1 { branches.remove(0) } else { Node::Alt(branches) })
    }

    fn concatenation(&mut self) -> Result<Node, String> {
        self.written.clear();
        let mut nodes = Vec::new();
        while let Some(c) = self.peek() {
            if c == '|' || c == ')' {
                break;
            }
            if let Some(flags) = self.switched_flags()? {
                // In Ruby, such flags hold to the end of the group, also after a `|`.
                self.flags = flags;
                nodes.push(self.alternation()?);
                break;
            }
            let literal = self.written.len();
            let node = self.atom()?;
            // Anything but a literal character ends the run of literals. A quantifier does not, so that pairs are also
            // found across it.
            if self.written.len() == literal {
                self.written.clear();
            }
            nodes.push(self.repetition(node)?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { Node::Concat(nodes) })
    }

    /// Parses flags such as `(?i)`, which are not a group; `None` if there are none here.
    fn switched_flags(&mut self) -> Result<Option<Flags>, String> {
        let start = self.at;
        if self.eat("(?") {
            let flags = self.flag_letters()?;
            if let Some(flags) = flags.filter(|_| self.eat(")")) {
                return Ok(Some(flags));
            }
        }
        self.at = start;
        Ok(None)
    }

    /// Parses letters of flags, such as `i-m`, up to a `:` or `)`.
    fn flag_letters(&mut self) -> Result<Option<Flags>, String> {
        let (mut flags, mut on, start) = (self.flags, true, self.at);
        while let Some(c) = self.peek() {
            match c {
                '-' => on = false,
                'i' => flags.ignore_case = on,
                'm' => flags.dot_all = on,
                ':' | ')' if self.at > start => return Ok(Some(flags)),
                'x' | 's' | 'a' | 'd' | 'u' | 'W' | 'D' | 'S' | 'P' | 'y' | 'I' | 'L' | 'C' => {
                    return Err(format!("the option `(?{c})`"));
                }
                _ => break,
            }
            self.at += 1;
        }
        self.at = start;
        Ok(None)
    }

    fn atom(&mut self) -> Result<Node, String> {
        let c = self.next()?;
        Ok(match c {
            '(' => self.group()?,
            '[' => Node::Set(self.bracket()?),
            '.' => Node::Set(if self.flags.dot_all {
                negated(&empty())
            } else {
                negated(&set_of(&[('\n', '\n')]))
            }),
            // No line begins after a line break at the end of the text.
            '^' => Node::Alt(vec![
                Node::look(false, empty(), true),
                Node::Concat(vec![
                    Node::look(false, set_of(&[('\n', '\n')]), false),
                    Node::look(true, negated(&empty()), false),
                ]),
            ]),
            '$' => Node::look(true, set_of(&[('\n', '\n')]), true),
            '*' | '+' | '?' => return Err(format!("`{c}` with nothing to repeat")),
            '{' if self.peek().is_some_and(|c| c.is_ascii_digit() || c == ',') => {
                return Err("`{` with nothing to repeat".into());
            }
            '\\' => self.escape()?,
            c => Node::Set(self.literal(c)?),
        })
    }

    /// The set of a literal character: the character itself, or also its other case if case is ignored.
    fn literal(&mut self, c: char) -> Result<ClassUnicode, String> {
        self.written.push(c);
        if let [.., before, _] = self.written[..]
            && self.flags.ignore_case
        {
            // `ß` folds to `ss`, `ﬁ` to `fi`: one character of a text can match two of the pattern.
            let pair = [before, c].map(|c| c.to_ascii_lowercase());
            let folds = [['s', 's'], ['s', 't'], ['f', 'f'], ['f', 'i'], ['f', 'l']];
            if folds.contains(&pair) {
                return Err(format!(
                    "`{before}{c}` without regard to case, which one character may stand for"
                ));
            }
        }
        self.folded(set_of(&[(c, c)]))
    }

    /// The class itself, or also with the other case of its characters if case is ignored.
    fn folded(&self, set: ClassUnicode) -> Result<ClassUnicode, String> {
        if !self.flags.ignore_case {
            return Ok(set);
        }
        if set.ranges().iter().any(|r| !r.end().is_ascii()) {
            return Err("a character beyond ASCII without regard to case".into());
        }
        let mut folded = set;
        folded.case_fold_simple();
        Ok(folded)
    }

    fn group(&mut self) -> Result<Node, String> {
        let flags = self.flags;
        if !self.eat("?") {
            if self.peek() == Some('*') {
                return Err("a callout `(*...)`".into());
            }
            return self.inside();
        }
        if self.eat(":") {
            return self.inside();
        }
        if self.eat("#") {
            return Err("a comment `(?#...)`".into());
        }
        if self.eat(">") {
            let node = self.inside()?;
            return match node {
                node if node.as_set().is_some() => Ok(node),
                Node::Repeat { node, min, max, greedy: true } => Self::possessive(*node, min, max),
                _ => Err("an atomic group `(?>...)` around more than one class".into()),
            };
        }
        for (start, ahead, holds) in
            [("=", true, true), ("!", true, false), ("<=", false, true), ("<!", false, false)]
        {
            if self.eat(start) {
                let node = self.inside()?;
                let Some((set, at_edge)) = node.as_look(ahead) else {
                    return Err(format!("`(?{start}...)` that looks at more than one character"));
                };
                let set = if holds { set } else { negated(&set) };
                return Ok(Node::look(ahead, set, at_edge == holds));
            }
        }
        if self.eat("<") {
            // A named group. The name is not used, because back references are not supported.
            let mut name = String::new();
            loop {
                match self.next()? {
                    '>' => break,
                    c => name.push(c),
                }
            }
            let starts = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
            if !starts || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(format!("the group name `{name}`"));
            }
            return self.inside();
        }
        if let Some(inner) = self.flag_letters()? {
            self.at += 1; // the `:`, since `)` was looked for before
            self.flags = inner;
            let node = self.inside();
            self.flags = flags;
            return node;
        }
        let c = self.peek().map_or(String::new(), String::from);
        Err(format!("the group `(?{c}...)`"))
    }

    fn inside(&mut self) -> Result<Node, String> {
        let written = std::mem::take(&mut self.written);
        let node = self.alternation()?;
        self.written = written;
        if self.flags.ignore_case && !self.written.is_empty() {
            // Pairs that fold to one character are not looked for across the end of a group.
            self.written.clear();
        }
        if self.eat(")") { Ok(node) } else { Err("`(` without `)`".into()) }
    }

    /// Parses the quantifiers after an atom.
    fn repetition(&mut self, mut node: Node) -> Result<Node, String> {
        let mut counted_before = false;
        loop {
            let (min, max, counted) = match self.peek() {
                Some('*') => (0, None, false),
                Some('+') => (1, None, false),
                Some('?') => (0, Some(1), false),
                Some('{') => match self.counts()? {
                    Some((min, max)) => (min, max, true),
                    None => return Ok(node),
                },
                _ => return Ok(node),
            };
            self.at += usize::from(!counted);
            if node.is_empty() {
                return Err("a repeated look-around or anchor".into());
            }
            let lazy = self.peek() == Some('?');
            if lazy && counted && Some(min) == max {
                return Err("`{n}?`, which is optional in Ruby".into());
            }
            self.at += usize::from(lazy);
            let possessive = !counted && !lazy && self.eat("+");
            if max.is_none() && node.nullable() {
                return Err("an endless repetition of what may be empty".into());
            }
            // Of two quantifiers in a row, only `{n,m}+` is supported. Oniguruma rewrites others, such as `a+?*`.
            if counted_before && (min != 1 || max.is_some() || lazy || possessive) {
                return Err("a repeated quantifier".into());
            }
            node = match possessive {
                true => Self::possessive(node, min, max)?,
                false => Node::Repeat { node: Box::new(node), min, max, greedy: !lazy },
            };
            if !counted || lazy {
                let again = match self.peek() {
                    Some('*' | '+' | '?') => true,
                    Some('{') => self.counts()?.is_some(),
                    _ => false,
                };
                return if again { Err("a repeated quantifier".into()) } else { Ok(node) };
            }
            counted_before = true;
        }
    }

    /// Parses `{n}`, `{n,}`, `{,m}` or `{n,m}`; `None` if the `{` begins none of these and is an ordinary character.
    fn counts(&mut self) -> Result<Option<(u32, Option<u32>)>, String> {
        let (start, mut last, mut before) = (self.at, String::new(), None::<String>);
        self.at += 1;
        loop {
            match self.peek() {
                Some(c) if c.is_ascii_digit() => last.push(c),
                Some(',') if before.is_none() => before = Some(std::mem::take(&mut last)),
                Some('}') if !last.is_empty() || before.as_ref().is_some_and(|n| !n.is_empty()) => break,
                // Ruby takes `a{` and `a{,}` literally.
                _ => {
                    self.at = start;
                    return Ok(None);
                }
            }
            self.at += 1;
        }
        self.at += 1;
        let number = |text: &str| text.parse().ok().filter(|n| *n <= MAX_COUNT);
        let refuse = || format!("a repetition of more than {MAX_COUNT} times");
        let (min, max) = match before {
            None => (number(&last).ok_or_else(refuse)?, number(&last)),
            Some(min) => {
                let min = if min.is_empty() { 0 } else { number(&min).ok_or_else(refuse)? };
                let max = if last.is_empty() { None } else { Some(number(&last).ok_or_else(refuse)?) };
                (min, max)
            }
        };
        match max.filter(|max| *max < min || *max == 0) {
            Some(max) => Err(format!("the repetition {{{min},{max}}}")),
            None => Ok(Some((min, max))),
        }
    }

    /// `x*+`: takes as many as there are, and never fewer. For a class, that is `x*` followed by no character of the
    /// class.
    fn possessive(node: Node, min: u32, max: Option<u32>) -> Result<Node, String> {
        let set = node.as_set().ok_or("a possessive quantifier after more than one class")?;
        let no_more = Node::look(true, negated(&set), true);
        Ok(match max {
            None => {
                let all = Node::Repeat { node: Box::new(node), min, max, greedy: true };
                Node::Concat(vec![all, no_more])
            }
            Some(1) if min == 0 => Node::Alt(vec![node, no_more]),
            _ => return Err("an atomic group around a counted repetition".into()),
        })
    }

    /// Parses what follows a backslash outside a class.
    fn escape(&mut self) -> Result<Node, String> {
        let c = self.next()?;
        let word = || shorthand('w', false).ok_or("the class of words");
        Ok(match c {
            'b' | 'B' => {
                let (word, other) = (word()?, negated(&word()?));
                let both = |last: (&ClassUnicode, bool), next: (&ClassUnicode, bool)| {
                    let last = Node::look(false, last.0.clone(), last.1);
                    Node::Concat(vec![last, Node::look(true, next.0.clone(), next.1)])
                };
                let (inside, outside) = ((&word, false), (&other, true));
                Node::Alt(match c {
                    'b' => vec![both(inside, outside), both(outside, inside)],
                    _ => vec![both(inside, inside), both(outside, outside)],
                })
            }
            'A' => Node::look(false, empty(), true),
            'z' => Node::look(true, empty(), true),
            'N' => Node::Set(negated(&set_of(&[('\n', '\n')]))),
            'O' => Node::Set(negated(&empty())),
            'Z' | 'G' | 'K' | 'R' | 'X' | 'y' | 'Y' | 'k' | 'g' => return Err(format!("`\\{c}`")),
            '1'..='9' => return Err(format!("the back reference `\\{c}`")),
            c => {
                let (set, literal) = self.class_escape(c, false)?;
                match literal {
                    Some(c) => Node::Set(self.literal(c)?),
                    None => Node::Set(self.folded(set)?),
                }
            }
        })
    }
}
