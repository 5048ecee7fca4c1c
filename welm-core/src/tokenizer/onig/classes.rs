//! Classes of characters: shorthands such as `\w`, properties such as `\p{L}`, and brackets.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, HirKind};

use super::{MAX_DEPTH, Parser};

pub(super) fn empty() -> ClassUnicode {
    ClassUnicode::empty()
}

pub(super) fn set_of(ranges: &[(char, char)]) -> ClassUnicode {
    ClassUnicode::new(ranges.iter().map(|&(from, to)| ClassUnicodeRange::new(from, to)))
}

pub(super) fn negated(set: &ClassUnicode) -> ClassUnicode {
    let mut set = set.clone();
    set.negate();
    set
}

/// The class that an expression in the syntax of the `regex` crate means. That crate has Unicode tables of the same
/// version as Oniguruma.
pub(super) fn class(notation: &str) -> Option<ClassUnicode> {
    match regex_syntax::parse(notation).ok()?.into_kind() {
        HirKind::Class(Class::Unicode(set)) => Some(set),
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).ok()?;
            let mut chars = text.chars();
            let c = chars.next()?;
            chars.next().is_none().then(|| set_of(&[(c, c)]))
        }
        _ => None,
    }
}

/// Names after `\p` that mean the same in Oniguruma and in the `regex` crate. A test compares each of them.
#[rustfmt::skip]
const PROPERTIES: &[&str] = &[
    "l", "lu", "ll", "lt", "lm", "lo", "m", "mn", "mc", "me", "n", "nd", "nl", "no", "p", "pc", "pd", "ps", "pe", "pi",
    "pf", "po", "s", "sm", "sc", "sk", "so", "z", "zs", "zl", "zp", "cc", "cf", "co",
    "letter", "uppercaseletter", "lowercaseletter", "titlecaseletter", "modifierletter", "otherletter",
    "mark", "nonspacingmark", "spacingmark", "enclosingmark", "number", "decimalnumber", "letternumber", "othernumber",
    "punctuation", "connectorpunctuation", "dashpunctuation", "openpunctuation", "closepunctuation",
    "initialpunctuation", "finalpunctuation", "otherpunctuation", "symbol", "mathsymbol", "currencysymbol",
    "modifiersymbol", "othersymbol", "separator", "spaceseparator", "lineseparator", "paragraphseparator",
    "alphabetic", "uppercase", "lowercase", "whitespace",
    "han", "hiragana", "katakana", "hangul", "latin", "greek", "cyrillic", "arabic", "hebrew", "thai", "lao", "tibetan",
    "myanmar", "devanagari", "bengali", "gurmukhi", "gujarati", "oriya", "tamil", "telugu", "kannada", "malayalam",
    "sinhala", "georgian", "armenian", "ethiopic", "khmer", "mongolian", "bopomofo",
];

/// Unicode's word characters without the two joiners, U+200C and U+200D.
const WORD: &str = r"[\w--[\x{200C}\x{200D}]]";

/// The names of `[[:name:]]`, each with its class in the syntax of [`class`].
const POSIX: &[(&str, &str)] = &[
    ("alnum", r"[\p{Alphabetic}\p{Nd}]"),
    ("alpha", r"\p{Alphabetic}"),
    ("ascii", r"[\x00-\x7F]"),
    ("blank", r"[\p{Zs}\t]"),
    ("cntrl", r"\p{Cc}"),
    ("digit", r"\p{Nd}"),
    ("lower", r"\p{Lowercase}"),
    ("punct", r"[\p{P}\p{S}]"),
    ("space", r"\s"),
    ("upper", r"\p{Uppercase}"),
    ("word", WORD),
    ("xdigit", "[0-9A-Fa-f]"),
];

/// The class of a shorthand such as `\w` or `\D`. In a bracket, `\w` does not have the Latin-1 numbers that are not
/// digits, as in Oniguruma.
pub(super) fn shorthand(letter: char, in_bracket: bool) -> Option<ClassUnicode> {
    let set = class(match letter.to_ascii_lowercase() {
        'w' if in_bracket => WORD,
        'w' => r"[\w²³¹¼½¾--[\x{200C}\x{200D}]]",
        'd' => r"\d",
        's' => r"\s",
        'h' => "[0-9A-Fa-f]",
        _ => return None,
    })?;
    Some(if letter.is_ascii_uppercase() { negated(&set) } else { set })
}

/// The word characters of Rust's `regex` crate, by which the library decides whether an added token is a whole word.
pub(in super::super) fn rust_word() -> ClassUnicode {
    class(r"\w").unwrap_or_else(empty)
}

impl Parser {
    /// Parses what follows a backslash, in a class or outside. Returns its set, and the character if it is a single
    /// one.
    pub(super) fn class_escape(
        &mut self,
        c: char,
        in_bracket: bool,
    ) -> Result<(ClassUnicode, Option<char>), String> {
        if let Some(set) = shorthand(c, in_bracket) {
            return Ok((set, None));
        }
        let literal = match c {
            't' => '\t',
            'n' => '\n',
            'r' => '\r',
            'f' => '\x0C',
            'v' => '\x0B',
            'a' => '\x07',
            'e' => '\x1B',
            'p' | 'P' => return Ok((self.property(c == 'P')?, None)),
            'x' if self.eat("{") => {
                let mut digits = String::new();
                loop {
                    match self.next()? {
                        '}' => break,
                        c => digits.push(c),
                    }
                }
                hexadecimal(&digits)?
            }
            'x' => {
                let digits: String = (0..2).map(|_| self.next()).collect::<Result<_, _>>()?;
                let c = hexadecimal(&digits)?;
                // A larger number is one byte of a UTF-8 character.
                if !c.is_ascii() {
                    return Err(format!("`\\x{digits}`"));
                }
                c
            }
            'u' => {
                let digits: String = (0..4).map(|_| self.next()).collect::<Result<_, _>>()?;
                hexadecimal(&digits)?
            }
            c if c.is_ascii_alphanumeric() || !c.is_ascii() => return Err(format!("`\\{c}`")),
            c => c,
        };
        Ok((set_of(&[(literal, literal)]), Some(literal)))
    }

    /// Parses `{L}` or `{^L}` after `\p`, or after `\P` if `outside`.
    pub(super) fn property(&mut self, outside: bool) -> Result<ClassUnicode, String> {
        if !self.eat("{") {
            return Err("`\\p` without `{`".into());
        }
        let inverted = self.eat("^") != outside;
        let mut name = String::new();
        loop {
            match self.next()? {
                '}' => break,
                c => name.push(c),
            }
        }
        let plain: String =
            name.chars().filter(|c| !matches!(c, ' ' | '_' | '-')).map(|c| c.to_ascii_lowercase()).collect();
        let set = if PROPERTIES.contains(&plain.as_str()) {
            class(&format!("\\p{{{plain}}}"))
        } else {
            // `\p{punct}` and `\p{word}` are other classes than `[[:punct:]]` and `[[:word:]]`.
            let posix = POSIX.iter().filter(|(posix, _)| !matches!(*posix, "punct" | "word"));
            posix.clone().find(|(posix, _)| *posix == plain).and_then(|(_, notation)| class(notation))
        };
        let set = set.ok_or_else(|| format!("the property `{name}`"))?;
        Ok(if inverted { negated(&set) } else { set })
    }

    /// Parses a class after its `[`, up to its `]`.
    pub(super) fn bracket(&mut self) -> Result<ClassUnicode, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("classes nested deeper than {MAX_DEPTH}"));
        }
        let inverted = self.eat("^");
        if self.peek() == Some(']') {
            return Err("`[]`".into());
        }
        let mut all: Option<ClassUnicode> = None; // the intersection of all parts before the last `&&`
        let mut set = empty();
        let mut first = true;
        loop {
            if self.eat("]") {
                break;
            }
            if self.eat("&&") {
                if first || self.peek() == Some(']') {
                    return Err("`&&` with nothing on one side".into());
                }
                all = Some(meet(all, set));
                set = empty();
                first = true;
                continue;
            }
            let (item, literal) = self.class_item(first)?;
            first = false;
            match literal {
                Some(from) if self.peek() == Some('-') && self.chars.get(self.at + 1) != Some(&']') => {
                    self.at += 1;
                    let (_, to) = self.class_item(false)?;
                    let to = to.ok_or("a range that ends with a class")?;
                    if to < from {
                        return Err(format!("the range {from:?} to {to:?}"));
                    }
                    set.union(&self.folded(set_of(&[(from, to)]))?);
                    if self.peek() == Some('-') && self.chars.get(self.at + 1) != Some(&']') {
                        return Err("`-` after a range".into());
                    }
                }
                Some(_) => set.union(&self.folded(item)?),
                None => set.union(&item),
            }
        }
        self.depth -= 1;
        let mut set = meet(all, set);
        if self.flags.ignore_case
            && (inverted || set.ranges().iter().any(|r| !r.end().is_ascii() && !is_fold(r)))
        {
            return Err("a class that is inverted or beyond ASCII without regard to case".into());
        }
        if inverted {
            set.negate();
        }
        Ok(set)
    }

    /// Parses an item of a class: a character, a class such as `\w`, or a nested bracket. Returns its set, and the
    /// character if it is a single one.
    pub(super) fn class_item(&mut self, first: bool) -> Result<(ClassUnicode, Option<char>), String> {
        match self.next()? {
            '[' if self.peek() == Some(':') => Ok((self.posix()?, None)),
            '[' => Ok((self.bracket()?, None)),
            '\\' => {
                let c = self.next()?;
                if c == 'b' {
                    return Ok((set_of(&[('\x08', '\x08')]), Some('\x08')));
                }
                if matches!(c, '0'..='9' | 'R' | 'X' | 'N' | 'O') {
                    return Err(format!("`\\{c}` in a class"));
                }
                self.class_escape(c, true)
            }
            // At the beginning or end of a class, `-` is a literal. After a class, Ruby has special rules.
            '-' if !first && self.peek() != Some(']') => Err("`-` in the middle of a class".into()),
            c => Ok((set_of(&[(c, c)]), Some(c))),
        }
    }

    /// Parses a name such as `[:alpha:]`, after its `[`.
    pub(super) fn posix(&mut self) -> Result<ClassUnicode, String> {
        let rest: String = self.chars[self.at..].iter().take(12).collect();
        for (name, notation) in POSIX {
            for (inverted, text) in [(false, format!(":{name}:]")), (true, format!(":^{name}:]"))] {
                if self.eat(&text) {
                    let set = class(notation).ok_or_else(|| format!("the class `{name}`"))?;
                    return Ok(if inverted { negated(&set) } else { set });
                }
            }
        }
        Err(format!("the class `[{rest}`"))
    }
}

/// Whether a range is one of the two characters beyond ASCII that ASCII letters fold to: ſ and the Kelvin sign.
pub(super) fn is_fold(range: &ClassUnicodeRange) -> bool {
    range.start() == range.end() && matches!(range.start(), '\u{17F}' | '\u{212A}')
}

pub(super) fn meet(all: Option<ClassUnicode>, set: ClassUnicode) -> ClassUnicode {
    match all {
        None => set,
        Some(mut all) => {
            all.intersect(&set);
            all
        }
    }
}

pub(super) fn hexadecimal(digits: &str) -> Result<char, String> {
    let valid = !digits.is_empty() && digits.bytes().all(|d| d.is_ascii_hexdigit());
    let code = if valid { u32::from_str_radix(digits, 16).ok() } else { None };
    code.and_then(char::from_u32).ok_or_else(|| format!("the character `{digits}`"))
}
