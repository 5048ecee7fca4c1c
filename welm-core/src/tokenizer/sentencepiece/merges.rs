//! The BPE model: characters are merged to pieces, the pair whose result has the best score first.
//!
//! Of pairs with equal scores, the leftmost is merged first. A queue holds the pairs of neighbours, so that a text of n
//! characters takes n log n steps. Pairs are also merged to unused pieces. At the end these are split again.
//! Source: SentencePiece's `bpe::Model`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::Pieces;
use super::trie::Trie;
use crate::tokenizer::cuts::Cuts;
use crate::tokenizer::piece::PieceKind;
use crate::tokenizer::watch::{Halt, Watch};

/// The model, beside the pieces.
pub(super) struct Merges {
    /// Where a text may be cut. Nowhere if a piece is unused, because then the whole text decides what is split again.
    cuts: Option<Cuts>,
}

/// A piece of the text, as far as merges have come.
struct Symbol {
    start: u32,
    /// 0 if it has become part of the piece before it.
    len: u32,
    before: u32,
    after: u32,
    /// User-defined pieces are not merged.
    frozen: bool,
}

const END: u32 = u32::MAX;

/// Two neighbours whose text together is a piece.
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both together. If the sum is another one by now, one of them has been merged, and this pair is ignored.
    len: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Merges {
    pub(super) fn new(pieces: &Pieces) -> Self {
        let texts = pieces.ids.iter().filter(|(_, id)| pieces.kind(**id).is_text());
        let unused = pieces.kinds.contains(&PieceKind::Unused);
        Merges { cuts: (!unused).then(|| Cuts::new(None, texts.map(|(text, _)| text.chars()))) }
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        self.cuts.as_ref().map_or(0, Cuts::size)
    }

    /// Cuts a text into pieces, and hands out the text and the id of each. The id of a character without a piece is
    /// `None`.
    pub(super) fn segment(
        &self,
        pieces: &Pieces,
        frozen: &Trie,
        text: &str,
        watch: &mut Watch<'_>,
        piece: &mut dyn FnMut(&str, Option<u32>) -> Result<(), Halt>,
    ) -> Result<(), Halt> {
        let mut rest = text;
        let mut run =
            Run { pieces, text: "", symbols: Vec::new(), queue: BinaryHeap::new(), unused: HashMap::new() };
        while !rest.is_empty() {
            let word;
            (word, rest) = rest.split_at(self.cuts.as_ref().map_or(rest.len(), |cuts| cuts.first(rest)));
            watch.work(word.len())?;
            run.merge(word, frozen, watch)?;
            run.hand_out(piece)?;
        }
        Ok(())
    }
}

/// The merges of one word.
struct Run<'a> {
    pieces: &'a Pieces,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Pair>,
    /// For each unused piece that was merged, the bytes of its left part.
    unused: HashMap<u32, usize>,
}

impl<'a> Run<'a> {
    fn merge(&mut self, word: &'a str, frozen: &Trie, watch: &mut Watch<'_>) -> Result<(), Halt> {
        self.text = word;
        self.symbols.clear();
        self.queue.clear();
        let mut start = 0;
        while let Some(c) = word[start..].chars().next() {
            let defined = frozen.longest(&word.as_bytes()[start..]);
            watch.work(1)?; // of a piece's length
            let len = defined.unwrap_or(c.len_utf8());
            let at = self.symbols.len() as u32;
            start += len;
            self.symbols.push(Symbol {
                start: (start - len) as u32,
                len: len as u32,
                before: at.checked_sub(1).unwrap_or(END),
                after: if start == word.len() { END } else { at + 1 },
                frozen: defined.is_some(),
            });
        }
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right);
        }
        while let Some(Pair { left, right, len, .. }) = self.queue.pop() {
            watch.work(1)?;
            let (left_len, right_len) = (self.symbols[left as usize].len, self.symbols[right as usize].len);
            if left_len == 0 || right_len == 0 || left_len + right_len != len {
                continue;
            }
            let after = self.symbols[right as usize].after;
            self.symbols[right as usize].len = 0;
            let merged = &mut self.symbols[left as usize];
            (merged.len, merged.after) = (len, after);
            let before = merged.before;
            if after != END {
                self.symbols[after as usize].before = left;
            }
            self.consider(before, left);
            self.consider(left, after);
        }
        Ok(())
    }

    /// Queues a pair if its text is a piece.
    fn consider(&mut self, left: u32, right: u32) {
        if left == END || right == END {
            return;
        }
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if l.frozen || r.frozen {
            return;
        }
        let (start, len) = (l.start as usize, l.len + r.len);
        let Some(id) = self.pieces.of_text(&self.text[start..start + len as usize]) else { return };
        if self.pieces.kind(id) == PieceKind::Unused {
            self.unused.insert(id, l.len as usize);
        }
        // So that 0 and -0 are equal scores.
        self.queue.push(Pair { score: self.pieces.scores[id as usize] + 0.0, left, right, len });
    }

    fn hand_out(&self, piece: &mut dyn FnMut(&str, Option<u32>) -> Result<(), Halt>) -> Result<(), Halt> {
        let mut at = if self.symbols.is_empty() { END } else { 0 };
        let mut parts = Vec::new();
        while at != END {
            let symbol = &self.symbols[at as usize];
            let (start, len) = (symbol.start as usize, symbol.len as usize);
            at = symbol.after;
            parts.push(&self.text[start..start + len]);
            while let Some(part) = parts.pop() {
                let id = self.pieces.of_text(part);
                let unused = id.filter(|id| self.pieces.kind(*id) == PieceKind::Unused);
                match unused.and_then(|id| self.unused.get(&id)) {
                    Some(&left) => {
                        parts.push(&part[left..]);
                        parts.push(&part[..left]);
                    }
                    None => piece(part, id)?,
                }
            }
        }
        Ok(())
    }
}
