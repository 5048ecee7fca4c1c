//! SentencePiece: turns a whole text, with its spaces, into pieces.
//!
//! ```text
//! text -> normalizer.rs -> unigram.rs, or merges.rs (BPE) -> ids
//!         a character without a piece becomes the pieces of its bytes (byte_fallback); otherwise a run of such
//!         characters becomes the unknown piece
//! ```
//!
//! Ids are those of the library `sentencepiece`. Its models are in `tokenizer.model` (`proto.rs`) and in GGUF files
//! (`gguf.rs`). The crate `tokenizers` has these parts too, but for some texts each of them gives other ids. Its BPE
//! merges by ranks of pairs, and these files have scores. Its unigram model adds in another precision. Its table of
//! rules is applied to grapheme clusters.
//!
//! The text of a control piece never becomes that piece. welm looks for control pieces only where special tokens are
//! parsed.

mod merges;
mod normalizer;
mod proto;
mod trie;
mod unigram;

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::bytes::spelled_byte;
use super::piece::{Piece, PieceKind};
use super::size::of_texts;
use super::watch::{Halt, Watch};
use crate::config::MAX_VOCAB;
use crate::error::{Error, Result};
use merges::Merges;
use normalizer::CharsMap;
pub(super) use normalizer::WhiteSpace;
use trie::Trie;
use unigram::Unigram;

/// The most bytes of a piece of a BPE model.
const MAX_PIECE: usize = 4_096;
/// The same for a unigram model. It looks for every piece at every place of the text, so long pieces take time.
const MAX_UNIGRAM_PIECE: usize = 512;
/// The most bytes of the table of rules; that of `nmt_nfkc_cf` has 310,000.
const MAX_CHARSMAP: usize = 1 << 24;

/// A model as a file has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Declared {
    /// The pieces, in the order of their ids.
    pub(super) pieces: Vec<Piece>,
    /// Whether it is a unigram model; otherwise it is BPE.
    pub(super) unigram: bool,
    /// Whether a unigram model adds in f32, as SentencePiece does; otherwise in f64, as llama.cpp does.
    pub(super) single: bool,
    /// Whether unknown characters become their bytes' pieces.
    pub(super) byte_fallback: bool,
    /// The table of rules; empty for none.
    pub(super) charsmap: Vec<u8>,
    pub(super) space: WhiteSpace,
    /// The pieces that begin and end a text.
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
}

/// Pieces by text and by id.
struct Pieces {
    ids: HashMap<String, u32>,
    scores: Vec<f32>, // (vocab_size) f32
    kinds: Vec<PieceKind>,
}

impl Pieces {
    fn kind(&self, id: u32) -> PieceKind {
        self.kinds[id as usize]
    }

    /// The piece with this text, if a text can lead to it.
    fn of_text(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied().filter(|&id| self.kind(id).is_text())
    }
}

/// A model that is ready to run.
pub(super) struct SentencePiece {
    pieces: Pieces,
    model: Segmentation,
    /// User-defined pieces.
    defined: Trie,
    table: Option<CharsMap>,
    space: WhiteSpace,
    unknown: Option<u32>,
    /// The pieces of bytes, if unknown characters become them.
    bytes: Option<Box<[u32; 256]>>,
    /// Bytes of the longest piece; one token stands for no more, unless it is the unknown one.
    longest: usize,
}

enum Segmentation {
    Merges(Merges),
    Unigram(Unigram),
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::Tokenizer(reason))
}

impl SentencePiece {
    pub(super) fn new(declared: Declared) -> Result<Self> {
        let Declared { pieces: all, unigram, single, byte_fallback, charsmap, space, .. } = declared;
        if all.is_empty() || all.len() > MAX_VOCAB {
            return refuse(format!("expected 1 to {MAX_VOCAB} pieces, got {}", all.len()));
        }
        if charsmap.len() > MAX_CHARSMAP {
            let got = charsmap.len();
            return refuse(format!("precompiled_charsmap: expected at most {MAX_CHARSMAP} bytes, got {got}"));
        }
        let unknown = all.iter().position(|piece| piece.kind == PieceKind::Unknown).map(|id| id as u32);
        let most = if unigram { MAX_UNIGRAM_PIECE } else { MAX_PIECE };
        let mut pieces = Pieces {
            ids: HashMap::with_capacity(all.len()),
            scores: Vec::with_capacity(all.len()),
            kinds: Vec::with_capacity(all.len()),
        };
        for (Piece { text, score, kind }, id) in all.into_iter().zip(0..) {
            if text.is_empty() || text.len() > most {
                let (start, got): (String, _) = (text.chars().take(20).collect(), text.len());
                return refuse(format!("piece {id}, {start:?}...: expected 1 to {most} bytes, got {got}"));
            }
            if !score.is_finite() {
                return refuse(format!("piece {id}, {text:?}: expected a finite score, got {score}"));
            }
            match pieces.ids.entry(text) {
                Entry::Vacant(place) => drop(place.insert(id)),
                Entry::Occupied(other) => {
                    let (text, other) = (other.key(), other.get());
                    return refuse(format!("piece {text:?} has two ids, {other} and {id}"));
                }
            }
            pieces.scores.push(score);
            pieces.kinds.push(kind);
        }
        let byte = |byte: u8| pieces.ids.get(&spelled_byte(byte)).copied();
        let bytes: Option<Vec<u32>> = if byte_fallback { (0..=255).map(byte).collect() } else { None };
        if byte_fallback && bytes.is_none() {
            return refuse("expected a piece for each of 256 bytes, got fewer".into());
        }
        let defined = pieces.ids.iter().filter(|(_, id)| pieces.kind(**id) == PieceKind::UserDefined);
        Ok(SentencePiece {
            model: match unigram {
                true => Segmentation::Unigram(Unigram::new(&pieces, single)),
                false => Segmentation::Merges(Merges::new(&pieces)),
            },
            defined: Trie::new(defined.map(|(text, &id)| (text.as_bytes(), id)).collect()),
            table: CharsMap::read(&charsmap)?,
            space,
            unknown,
            bytes: bytes.and_then(|bytes| bytes.try_into().ok()),
            longest: pieces.ids.keys().map(String::len).max().unwrap_or(1),
            pieces,
        })
    }

    /// The usual name of the model.
    pub(super) fn kind(&self) -> &'static str {
        match self.model {
            Segmentation::Merges(_) => "SentencePiece BPE",
            Segmentation::Unigram(_) => "SentencePiece unigram",
        }
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        let SentencePiece { pieces, model, defined, table, .. } = self;
        let model = match model {
            Segmentation::Merges(merges) => merges.size(),
            Segmentation::Unigram(unigram) => unigram.size(),
        };
        let pieces = of_texts(&pieces.ids) + size_of_val(&pieces.scores[..]) + size_of_val(&pieces.kinds[..]);
        pieces + model + defined.size() + table.as_ref().map_or(0, CharsMap::size)
    }

    /// The ids of all pieces by their spelling.
    pub(super) fn ids(&self) -> &HashMap<String, u32> {
        &self.pieces.ids
    }

    /// Appends the ids of a text to `into`. With `prefix` the model adds its space in front, if its settings have one.
    /// `at` is where the text begins, for messages.
    pub(super) fn encode(
        &self,
        text: &str,
        prefix: bool,
        at: usize,
        into: &mut Vec<u32>,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<(), Halt> {
        let normalized =
            normalizer::normalize(text, self.space, prefix, self.table.as_ref(), &self.defined, watch)?;
        let most = watch.most_tokens;
        if self.bytes.is_some() {
            watch.tokens(into.len() + normalized.len().div_ceil(self.longest))?;
        }
        // Whether the piece before was unknown.
        let mut run = false;
        let mut piece = |text: &str, id: Option<u32>| {
            match (id, &self.bytes, self.unknown) {
                (Some(id), ..) => into.push(id),
                (None, Some(bytes), _) => into.extend(text.bytes().map(|byte| bytes[usize::from(byte)])),
                (None, None, Some(_)) if run => {}
                (None, None, Some(unknown)) => into.push(unknown),
                (None, None, None) => {
                    let reason =
                        format!("the vocabulary has no token for {text:?} after byte {at} of the text");
                    return Err(Error::Tokenizer(reason).into());
                }
            }
            run = id.is_none();
            if into.len() > most { Err(Halt::TooMany(into.len())) } else { Ok(()) }
        };
        match &self.model {
            Segmentation::Merges(merges) => {
                merges.segment(&self.pieces, &self.defined, &normalized, watch, &mut piece)
            }
            Segmentation::Unigram(unigram) => unigram.segment(&self.pieces, &normalized, watch, &mut piece),
        }
    }
}

#[cfg(test)]
mod tests;
