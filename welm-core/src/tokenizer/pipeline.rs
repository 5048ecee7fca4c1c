//! The pipeline of a `tokenizer.json` or of a byte-level GGUF file: normalizers, then pre-tokenizers, then a model.

use tokenizers::NormalizedString;
use tokenizers::normalizer::Range;

use super::added::{Finder, Part};
use super::stages::{Normalizers, PreTokenizers, Word};
use super::vocabulary::Vocabulary;
use super::watch::{Halt, Watch};
use crate::error::Error;

/// Turns text into ids.
pub(super) struct Pipeline {
    pub(super) normalizers: Normalizers,
    pub(super) pre_tokenizers: PreTokenizers,
    pub(super) vocabulary: Vocabulary,
}

impl Pipeline {
    /// Appends the ids of a text between added tokens, which begins at byte `at` of the whole text. `added` finds the
    /// tokens that are found in the normalized text.
    pub(super) fn encode(
        &self,
        added: &Finder,
        text: &str,
        at: usize,
        parse_special: bool,
        ids: &mut Vec<u32>,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<(), Halt> {
        // A text that certainly has too many tokens is not read at all.
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
        // A `NormalizedString` knows where it begins in the original text. Only whether that is 0 matters here.
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

    /// Appends the ids of a normalized text. `at` is where it begins in the original text; `None` if normalizers may
    /// have changed it. `first` says whether a range of it begins at the beginning of the original text.
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
