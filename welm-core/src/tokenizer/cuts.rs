//! Where a text may be cut without a change of its tokens.

use std::collections::HashSet;

use super::size::of_map;

/// Where a word can be cut without a change of its tokens: between two characters that stand side by side in no result
/// of a merge, since no merge can then reach from one to the other. SentencePiece's vocabularies have `▁` at the
/// beginnings of tokens only, so that a whole text, which is one word there, falls into its words.
pub(super) struct Cuts {
    /// The characters that are tokens, where only those can stand at a cut: unknown ones may become one token together.
    known: Option<HashSet<char>>,
    /// Those that stand side by side in results of merges.
    joined: HashSet<(char, char)>,
}

impl Cuts {
    /// `results` has the characters of each result of a merge.
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

    /// The bytes of the first piece.
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
