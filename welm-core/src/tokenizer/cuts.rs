//! Finds where a text may be cut without changing its tokens.

use std::collections::HashSet;

use super::size::of_map;

/// The places where a word can be cut without changing its tokens: between two characters that are neighbours in no
/// result of a merge. No merge can then join them. In SentencePiece vocabularies, `▁` is only at the beginning of
/// tokens. So a whole text, which is one word for them, is cut into its words.
pub(super) struct Cuts {
    /// If set, a cut is only between two characters that are tokens. Other characters may become one token together.
    known: Option<HashSet<char>>,
    /// Pairs of characters that are neighbours in a result of a merge.
    joined: HashSet<(char, char)>,
}

impl Cuts {
    /// `results` gives the characters of the result of each merge.
    pub(super) fn new<R: Iterator<Item = char> + Clone>(
        known: Option<HashSet<char>>,
        results: impl Iterator<Item = R>,
    ) -> Self {
        let mut joined = HashSet::new();
        for result in results {
            joined.extend(result.clone().zip(result.skip(1)));
        }
        Cuts { known, joined }
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        let known = self.known.as_ref().map_or(0, |known| of_map::<char>(known.len()));
        known + of_map::<(char, char)>(self.joined.len())
    }

    /// The number of bytes of `word` before the first cut.
    pub(super) fn first(&self, word: &str) -> usize {
        let is_known = |c: &char| self.known.as_ref().is_none_or(|known| known.contains(c));
        let mut chars = word.char_indices();
        let Some((_, mut before)) = chars.next() else { return 0 };
        let mut before_known = is_known(&before);
        for (at, c) in chars {
            let known = is_known(&c);
            if before_known && known && !self.joined.contains(&(before, c)) {
                return at;
            }
            (before, before_known) = (c, known);
        }
        word.len()
    }
}
