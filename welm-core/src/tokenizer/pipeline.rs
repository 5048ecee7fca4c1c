//! Normalizers, pre-tokenizers and a model one after the other, as a `tokenizer.json` has them, and byte-level GGUF files.

use tokenizers::NormalizedString;
use tokenizers::normalizer::Range;

use super::added::{Finder, Part};
use super::stages::{Normalizers, PreTokenizers, Word};
use super::vocabulary::Vocabulary;
use super::watch::{Halt, Watch};
use crate::error::Error;

/// From a text to ids.
pub(super) struct Pipeline {
    pub(super) normalizers: Normalizers,
    pub(super) pre_tokenizers: PreTokenizers,
    pub(super) vocabulary: Vocabulary,
}

impl Pipeline {
    /// The ids of a text between added tokens, which begins at byte `at` of the whole one; `added` are the tokens that are
    /// looked for in the normalized text.
    pub(super) fn encode(
        &self,
        added: &Finder,
        text: &str,
        at: usize,
        parse_special: bool,
        ids: &mut Vec<u32>,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<(), Halt> {
        // What certainly is too much is not looked at.
        if !self.normalizers.shrinks && !self.pre_tokenizers.shrinks && added.is_empty() {
            watch.tokens(ids.len() + self.vocabulary.at_least(text.len()))?;
        }
        if self.normalizers.is_empty() {
            return self.encode_normalized(
                added,
                text,
                Some(at),
                &|_| Some(at == 0),
                parse_special,
                ids,
                watch,
            );
        }
        // The library's text knows where it begins in the original one: at 0, or not.
        let mut normalized = if at == 0 {
            NormalizedString::from(text)
        } else {
            let longer = NormalizedString::from(format!(" {text}"));
            let slice = longer.slice(Range::Original(1..text.len() + 1));
            slice.ok_or_else(|| Error::Tokenizer("a text cannot be cut".into()))?
        };
        self.normalizers.run(&mut normalized, watch)?;
        let first = |range: (usize, usize)| {
            let slice = normalized.slice(Range::Normalized(range.0..range.1))?;
            Some(slice.offsets_original().0 == 0)
        };
        self.encode_normalized(added, normalized.get(), None, &first, parse_special, ids, watch)
    }

    /// The ids of a normalized text; `at`, where it begins in the original one, if it is the same as there; `first` says
    /// whether a part of it is the original's beginning.
    fn encode_normalized(
        &self,
        added: &Finder,
        text: &str,
        at: Option<usize>,
        first: &dyn Fn((usize, usize)) -> Option<bool>,
        parse_special: bool,
        ids: &mut Vec<u32>,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<(), Halt> {
        for part in added.split(text, parse_special, watch)? {
            let (start, end) = match part {
                Part::Token(id) => {
                    ids.push(id);
                    continue;
                }
                Part::Text(start, end) => (start, end),
            };
            let whole = at.is_some() && start != 0;
            let first = self.pre_tokenizers.knows_first && !whole && first((start, end)).unwrap_or(false);
            let word = Word { text: &text[start..end], at: start, first };
            self.pre_tokenizers.run(word, watch, &mut |word, watch| {
                let place = |offset: usize| match at {
                    Some(at) => format!("near byte {} of the text", at + word.at + offset),
                    None => format!("near byte {} of the normalized text", word.at + offset),
                };
                self.vocabulary.tokenize(word.text, ids, watch, &place)
            })?;
        }
        Ok(())
    }
}
