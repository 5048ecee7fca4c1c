//! Pre-tokenizers, which cut a text into words.

use serde_json::Value;
use tokenizers::{
    OffsetReferential, OffsetType, Offsets, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper,
    SplitDelimiterBehavior,
};

use super::super::byte_alphabet::char_of;
use super::super::dfa::{MAX_BUILD, Regex, with_gaps};
use super::super::guarded;
use super::super::watch::{Halt, Watch};
use super::{Fields, Find, flatten, refuse};
use crate::error::Result;

/// GPT-2's expression for words, by which the stage `ByteLevel` splits.
pub(in super::super) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// One step of the pre-tokenizer.
enum PreTokenizer {
    Split {
        find: Find,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// Splits at single characters of a kind.
    Chars(Kind, SplitDelimiterBehavior),
    /// Replaces each byte by its character of the byte alphabet.
    Bytes,
    /// Puts a character in front of a word that does not begin with it.
    Prefix {
        text: char,
        only_first: bool,
    },
    /// Replaces each space by a character.
    Spaces(char),
    Library(Box<PreTokenizerWrapper>),
}

#[derive(Clone, Copy)]
enum Kind {
    Numeric,
    Space,
    Is(char),
}

impl Kind {
    fn has(self, c: char) -> bool {
        match self {
            Kind::Numeric => c.is_numeric(),
            Kind::Space => c.is_whitespace(),
            Kind::Is(other) => c == other,
        }
    }
}

/// All pre-tokenizers of a file.
pub(in super::super) struct PreTokenizers {
    stages: Vec<PreTokenizer>,
    /// Whether a stage can drop a part of a text.
    pub(in super::super) shrinks: bool,
    /// Whether words are written in the byte alphabet.
    pub(in super::super) byte_level: bool,
    /// Whether the first word of a text is treated differently.
    pub(in super::super) knows_first: bool,
}

/// A word. `at` is where it begins in the text that the first stage got; `first` says whether it begins the whole
/// prompt.
#[derive(Clone, Copy)]
pub(in super::super) struct Word<'a> {
    pub(in super::super) text: &'a str,
    pub(in super::super) at: usize,
    pub(in super::super) first: bool,
}

impl PreTokenizers {
    pub(in super::super) fn read(value: &Value) -> Result<Self> {
        let mut all =
            PreTokenizers { stages: Vec::new(), shrinks: false, byte_level: false, knows_first: false };
        let mut fields = Vec::new();
        flatten("pre_tokenizer", "pretokenizers", value, &mut fields)?;
        let mut work = MAX_BUILD;
        for fields in &fields {
            let kind = fields.kind;
            // The byte alphabet applied twice would encode bytes of bytes.
            if all.byte_level && kind == "ByteLevel" || all.knows_first && kind == "Metaspace" {
                return refuse(format!("pre_tokenizer {kind}: more than one of this kind"));
            }
            all.stage(fields, &mut work)?;
        }
        Ok(all)
    }

    /// The pre-tokenizers of a GGUF file: they split by these expressions, one after the other, and then write the byte
    /// alphabet.
    pub(in super::super) fn of_splits(patterns: &[&str]) -> Result<Self> {
        let mut all =
            PreTokenizers { stages: Vec::new(), shrinks: false, byte_level: true, knows_first: false };
        for pattern in patterns {
            all.split(Find::Regex(Box::new(Regex::new(pattern)?)));
        }
        all.stages.push(PreTokenizer::Bytes);
        Ok(all)
    }

    fn split(&mut self, find: Find) {
        let behavior = SplitDelimiterBehavior::Isolated;
        self.stages.push(PreTokenizer::Split { find, behavior, invert: false });
    }

    fn stage(&mut self, fields: &Fields<'_>, work: &mut usize) -> Result<()> {
        let chars = |kind, behavior| PreTokenizer::Chars(kind, behavior);
        match fields.kind {
            "Split" => {
                fields.check(&["pattern", "behavior", "invert"])?;
                let (behavior, invert) = (fields.behavior("behavior")?, fields.flag("invert", false)?);
                self.shrinks |= behavior == SplitDelimiterBehavior::Removed;
                self.stages.push(PreTokenizer::Split { find: fields.pattern(work)?, behavior, invert });
            }
            "ByteLevel" => {
                fields.check(&["add_prefix_space", "trim_offsets", "use_regex?"])?;
                fields.flag("trim_offsets", true)?; // it changes offsets only, which are not used
                if fields.flag("add_prefix_space", true)? {
                    self.stages.push(PreTokenizer::Prefix { text: ' ', only_first: false });
                }
                if fields.flag("use_regex", true)? {
                    self.split(Find::Regex(Box::new(Regex::within(GPT2, work)?)));
                }
                self.stages.push(PreTokenizer::Bytes);
                self.byte_level = true;
            }
            "Metaspace" => self.metaspace(fields)?,
            "Digits" => {
                fields.check(&["individual_digits"])?;
                let each = fields.flag("individual_digits", false)?;
                let behavior =
                    if each { SplitDelimiterBehavior::Isolated } else { SplitDelimiterBehavior::Contiguous };
                self.stages.push(chars(Kind::Numeric, behavior));
            }
            "WhitespaceSplit" => {
                fields.check(&[])?;
                self.shrinks = true;
                self.stages.push(chars(Kind::Space, SplitDelimiterBehavior::Removed));
            }
            "CharDelimiterSplit" => {
                fields.check(&["delimiter"])?;
                self.shrinks = true;
                let delimiter = fields.character("delimiter")?;
                self.stages.push(chars(Kind::Is(delimiter), SplitDelimiterBehavior::Removed));
            }
            "Punctuation" | "Whitespace" | "BertPreTokenizer" | "UnicodeScripts" => {
                let punctuation = fields.kind == "Punctuation";
                fields.check(if punctuation { &["behavior?"] } else { &[] })?;
                if punctuation && fields.value.get("behavior").is_some() {
                    fields.behavior("behavior")?;
                }
                self.shrinks |= fields.kind != "UnicodeScripts";
                let read = || serde_json::from_value(fields.value.clone()).map_err(Into::into);
                self.stages.push(PreTokenizer::Library(Box::new(guarded("pre_tokenizer", read)?)));
            }
            kind => return refuse(format!("pre_tokenizer: unknown type `{kind}`")),
        }
        Ok(())
    }

    fn metaspace(&mut self, fields: &Fields<'_>) -> Result<()> {
        fields.check(&["replacement", "prepend_scheme?", "split?", "add_prefix_space?", "str_rep?"])?;
        let replacement = fields.character("replacement")?;
        let scheme = match &fields.value["prepend_scheme"] {
            Value::Null => "always",
            _ => fields.text("prepend_scheme")?,
        };
        // `add_prefix_space` is the older setting. It must agree with `prepend_scheme` if both are there.
        let scheme = match (fields.flag("add_prefix_space", true)?, scheme) {
            (false, "never") => "never",
            (false, _) => return fields.wrong("add_prefix_space", "what `prepend_scheme` says"),
            (true, scheme) => scheme,
        };
        let prefix = |only_first| PreTokenizer::Prefix { text: replacement, only_first };
        self.stages.push(PreTokenizer::Spaces(replacement));
        match scheme {
            "always" => self.stages.push(prefix(false)),
            "first" => self.stages.push(prefix(true)),
            "never" => {}
            _ => return fields.wrong("prepend_scheme", "always, first or never"),
        }
        self.knows_first = true;
        if fields.flag("split", true)? {
            let behavior = SplitDelimiterBehavior::MergedWithNext;
            self.stages.push(PreTokenizer::Chars(Kind::Is(replacement), behavior));
        }
        Ok(())
    }

    /// Cuts a text into words, and calls `model` with each word.
    pub(in super::super) fn run(
        &self,
        word: Word<'_>,
        watch: &mut Watch<'_>,
        model: &mut dyn FnMut(Word<'_>, &mut Watch<'_>) -> std::result::Result<(), Halt>,
    ) -> std::result::Result<(), Halt> {
        self.run_from(0, word, watch, model)
    }

    fn run_from(
        &self,
        stage: usize,
        word: Word<'_>,
        watch: &mut Watch<'_>,
        model: &mut dyn FnMut(Word<'_>, &mut Watch<'_>) -> std::result::Result<(), Halt>,
    ) -> std::result::Result<(), Halt> {
        let Word { text, at, first } = word;
        if text.is_empty() {
            return Ok(());
        }
        let Some(this) = self.stages.get(stage) else { return model(word, watch) };
        let parts = match this {
            PreTokenizer::Split { find, behavior, invert } => {
                let matches = match find {
                    Find::Regex(regex) => regex.find_all(text, watch)?,
                    Find::Text(find) => {
                        text.match_indices(find.as_str()).map(|(at, m)| (at, at + m.len())).collect()
                    }
                };
                let mut parts = with_gaps(&matches, text.len());
                parts.iter_mut().for_each(|part| part.1 ^= invert);
                arrange(parts, *behavior)
            }
            PreTokenizer::Chars(kind, behavior) => {
                let matches: Vec<Offsets> = text
                    .char_indices()
                    .filter(|(_, c)| kind.has(*c))
                    .map(|(at, c)| (at, at + c.len_utf8()))
                    .collect();
                arrange(with_gaps(&matches, text.len()), *behavior)
            }
            PreTokenizer::Library(library) => guarded("pre_tokenizer", || {
                let mut pieces = PreTokenizedString::from(text);
                library.pre_tokenize(&mut pieces)?;
                let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
                Ok(splits.into_iter().map(|(_, offsets, _)| offsets).collect())
            })?,
            // These stages do not cut the word; they change its text.
            PreTokenizer::Prefix { text: prefix, only_first } => {
                if text.starts_with(*prefix) || *only_first && !first {
                    return self.run_from(stage + 1, word, watch, model);
                }
                let text = format!("{prefix}{text}");
                return self.run_from(stage + 1, Word { text: &text, at, first }, watch, model);
            }
            PreTokenizer::Spaces(replacement) => {
                let text = text.replace(' ', replacement.encode_utf8(&mut [0; 4]));
                return self.run_from(stage + 1, Word { text: &text, at, first }, watch, model);
            }
            PreTokenizer::Bytes => {
                let text: String = text.bytes().map(char_of).collect();
                return self.run_from(stage + 1, Word { text: &text, at, first }, watch, model);
            }
        };
        for (start, end) in parts {
            watch.work(end - start)?;
            let part = Word { text: &text[start..end], at: at + start, first: first && start == 0 };
            self.run_from(stage + 1, part, watch, model)?;
        }
        Ok(())
    }
}

/// The words made from matches and the parts between them, which are `parts`, as `behavior` says.
fn arrange(parts: Vec<(Offsets, bool)>, behavior: SplitDelimiterBehavior) -> Vec<Offsets> {
    use SplitDelimiterBehavior as Behavior;
    let mut words: Vec<Offsets> = Vec::with_capacity(parts.len());
    // Whether the part before was a match. The first part always begins a word.
    let mut before = false;
    match behavior {
        Behavior::Isolated => words.extend(parts.into_iter().map(|(part, _)| part)),
        Behavior::Removed => {
            words.extend(parts.into_iter().filter(|(_, is_match)| !is_match).map(|(part, _)| part))
        }
        Behavior::Contiguous | Behavior::MergedWithPrevious => {
            for (part, is_match) in parts {
                let joins = match behavior {
                    Behavior::Contiguous => is_match == before,
                    _ => is_match && !before,
                };
                match words.last_mut().filter(|_| joins) {
                    Some(last) => last.1 = part.1,
                    None => words.push(part),
                }
                before = is_match;
            }
        }
        Behavior::MergedWithNext => {
            for (part, is_match) in parts.into_iter().rev() {
                match words.last_mut().filter(|_| is_match && !before) {
                    Some(next) => next.0 = part.0,
                    None => words.push(part),
                }
                before = is_match;
            }
            words.reverse();
        }
    }
    words
}
