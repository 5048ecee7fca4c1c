//! The unigram model: the pieces of a text whose scores have the largest sum.
//!
//! ```text
//! best(0) = 0
//! best(e) = max over pieces p that end at e:  best(start of p) + score(p)
//! ```
//!
//! This is Viterbi's algorithm, one place of the text after the other. Of equal sums, the one found first is kept. If
//! two sums are nearly equal, rounding decides. So sums are in f32, as in SentencePiece, or in f64, as in llama.cpp
//! and the crate `tokenizers`. Source: T. Kudo, arXiv:1804.10959, and SentencePiece's `EncodeOptimized`.

use super::Pieces;
use super::trie::Trie;
use crate::tokenizer::piece::PieceKind;
use crate::tokenizer::watch::{Halt, Watch};

/// How much lower the score of an unknown character is than that of the worst piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The score of a user-defined piece for each byte after the first: better than those of normal pieces. Found by trying
/// SentencePiece 0.2.3. Older versions had -0.1 for nearly all of them.
const DEFINED_BONUS: f64 = 0.1;

/// The pieces as a trie.
pub(super) struct Unigram {
    trie: Trie,
    /// The score of an unknown character.
    unknown: f32,
    /// Whether sums are rounded to f32.
    single: bool,
}

/// The last piece of the best sum up to a place.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    /// Where the last piece begins; [`NOWHERE`] if no pieces end here.
    start: u32,
    /// The last piece; [`UNKNOWN`] for a character without one.
    id: u32,
}

const NOWHERE: u32 = u32::MAX;
const UNKNOWN: u32 = u32::MAX;

impl Unigram {
    pub(super) fn new(pieces: &Pieces, single: bool) -> Self {
        let texts = pieces.ids.iter().filter(|(_, id)| pieces.kind(**id).is_text());
        let trie = Trie::new(texts.map(|(text, &id)| (text.as_bytes(), id)).collect());
        let all = pieces.kinds.iter().zip(&pieces.scores);
        let normal = all.filter(|(kind, _)| **kind == PieceKind::Normal).map(|(_, &score)| score);
        Unigram { trie, unknown: normal.fold(f32::MAX, f32::min) - UNKNOWN_PENALTY, single }
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        self.trie.size()
    }

    /// Cuts a text into pieces, and hands out the text and the id of each. The id of a character without a piece is
    /// `None`.
    pub(super) fn segment(
        &self,
        pieces: &Pieces,
        text: &str,
        watch: &mut Watch<'_>,
        piece: &mut dyn FnMut(&str, Option<u32>) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        let bytes = text.as_bytes();
        let mut best = vec![Best { score: 0.0, start: NOWHERE, id: UNKNOWN }; bytes.len() + 1];
        for (start, c) in text.char_indices() {
            let before = best[start].score;
            let mut end_with = |end: usize, score: f32, id: u32| {
                // A sum of two f32 is their sum in f64, rounded.
                let sum = before + f64::from(score);
                let sum = if self.single { f64::from(sum as f32) } else { sum };
                let best = &mut best[end];
                if best.start == NOWHERE || sum > best.score {
                    *best = Best { score: sum, start: start as u32, id };
                }
            };
            let (mut alone, mut longest) = (false, 1);
            for (len, id) in self.trie.prefixes(&bytes[start..]) {
                longest = len;
                let score = match pieces.kind(id) {
                    PieceKind::Unused => continue,
                    PieceKind::UserDefined => (DEFINED_BONUS * (len - 1) as f64) as f32,
                    _ => pieces.scores[id as usize],
                };
                end_with(start + len, score, id);
                alone |= len == c.len_utf8();
            }
            if !alone {
                end_with(start + c.len_utf8(), self.unknown, UNKNOWN);
            }
            watch.work(longest)?;
        }
        let mut way = Vec::new();
        let mut end = bytes.len();
        while end > 0 {
            let Best { start, id, .. } = best[end];
            way.push((start as usize, end, id));
            end = start as usize;
        }
        for (start, end, id) in way.into_iter().rev() {
            piece(&text[start..end], (id != UNKNOWN).then_some(id))?;
        }
        Ok(())
    }
}
