//! The table of the bytes that each token adds to a text.
//!
//! Vocabularies spell tokens in one of three ways. Byte-level vocabularies (GPT-2, Llama 3, Qwen, NeoX) write every
//! byte as one printable character, such as `Ġ` for a space. SentencePiece vocabularies write `▁` for a space, and
//! `<0xE4>` for a byte of a character that has no token. All others spell tokens as they are in texts. The decoder in
//! `tokenizer.json` tells which. Only those of its steps are used that act on one token at a time:
//!
//! ```text
//! ByteLevel               each character of the byte alphabet -> its byte
//! Replace, Metaspace      text -> text, `▁` -> space
//! ByteFallback            `<0xE4>` -> the byte E4
//! Fuse                    ignored: the bytes of tokens are concatenated anyway
//! Strip after Fuse        ignored: it removes the space at the start of a *whole* text, but a continuation
//!                         needs that space
//! ```
//!
//! Any other step is refused by name, because a wrong guess would change every text. Without a decoder, the vocabulary
//! is byte-level if its pre-tokenizer or normalizer is. Otherwise it is plain. (The library would then put spaces
//! between tokens, which no model for generation wants.)

use std::collections::HashMap;

use serde_json::Value;

use super::added::AddedToken;
use super::byte_alphabet::from_byte_alphabet;
use super::piece::{Piece, PieceKind};
use super::stages::{Fields, shown};
use crate::config::MAX_VOCAB;
use crate::error::{Error, Result};

/// Most bytes of all tokens together. Published vocabularies have some megabytes.
const MAX_BYTES: usize = 1 << 28;
/// By how much a decoder's replacements together may lengthen a token: bytes after for each byte before.
const MAX_GROWTH: usize = 128;

/// The bytes of all tokens, one after the other.
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// `(vocab_size)` where each token ends in `bytes`. It begins where the token before it ends.
    ends: Vec<u32>,
    /// Ids of control tokens, ascending.
    special: Vec<u32>,
}

/// One step from a token's spelling to its bytes.
#[derive(Debug, PartialEq)]
enum Step {
    ByteLevel,
    Replace(String, String),
    ByteFallback,
}

impl TokenBytes {
    /// Makes the table. `tokens` has the bytes of each id, `special` the ids of control tokens.
    pub(super) fn new(tokens: &[Vec<u8>], mut special: Vec<u32>) -> Result<Self> {
        let total: usize = tokens.iter().map(Vec::len).sum();
        if u32::try_from(total).is_err() || tokens.len() > MAX_VOCAB {
            let reason = format!("expected at most {MAX_VOCAB} tokens, got {} ({total} bytes)", tokens.len());
            return Err(Error::Tokenizer(reason));
        }
        let mut bytes = Vec::with_capacity(total);
        let mut ends = Vec::with_capacity(tokens.len());
        for token in tokens {
            bytes.extend_from_slice(token);
            ends.push(bytes.len() as u32);
        }
        special.sort_unstable();
        Ok(TokenBytes { bytes, ends, special })
    }

    /// The table of a `tokenizer.json`, from its vocabulary, its added tokens, and its decoder.
    pub(super) fn from_json(
        vocab: &HashMap<String, u32>,
        added: &[AddedToken],
        decoder: &Value,
        byte_level: bool,
    ) -> Result<Self> {
        let steps = decoder_steps(decoder, byte_level)?;
        let of_vocab = vocab.iter().map(|(token, &id)| (id, token.as_str()));
        let spellings = of_vocab.chain(added.iter().map(|token| (token.id, token.content.as_str())));
        let size = spellings.clone().map(|(id, _)| id as usize + 1).max().unwrap_or(0);
        if size > MAX_VOCAB {
            return Err(Error::Tokenizer(format!("expected ids below {MAX_VOCAB}, got {}", size - 1)));
        }
        let mut spelling: Vec<Option<&str>> = vec![None; size];
        for (id, token) in spellings {
            if let Some(other) = spelling[id as usize].replace(token).filter(|other| *other != token) {
                let (first, second) = if other < token { (other, token) } else { (token, other) };
                return Err(Error::Tokenizer(format!("id {id} is given to both {first:?} and {second:?}")));
            }
        }
        let added: HashMap<u32, bool> = added.iter().map(|token| (token.id, token.special)).collect();
        let (mut special, mut total) = (Vec::new(), 0);
        let mut tokens = Vec::with_capacity(size);
        for (id, spelling) in (0..).zip(spelling) {
            let token = match (spelling, added.get(&id)) {
                (_, Some(true)) => {
                    special.push(id);
                    Vec::new()
                }
                // An added token is spelled as it is in texts, not in the byte alphabet.
                (Some(token), Some(false)) => {
                    spell(token, steps.iter().filter(|step| **step != Step::ByteLevel))
                }
                (Some(token), None) => spell(token, steps.iter()),
                (None, _) => Vec::new(),
            };
            total += token.len();
            if total > MAX_BYTES {
                let reason = format!("expected at most {MAX_BYTES} bytes of all tokens, got more");
                return Err(Error::Tokenizer(reason));
            }
            tokens.push(token);
        }
        Self::new(&tokens, special)
    }

    /// The table of SentencePiece's pieces, and of tokens that other files add to them or put in their place.
    pub(super) fn from_pieces(pieces: &[Piece], added: &[AddedToken]) -> Result<Self> {
        let mut tokens: Vec<Vec<u8>> =
            pieces.iter().map(|piece| piece_bytes(&piece.text, piece.kind)).collect();
        let mut special: HashMap<u32, bool> =
            pieces.iter().zip(0..).map(|(piece, id)| (id, piece.kind.is_special())).collect();
        for token in added {
            let id = token.id as usize;
            if id >= MAX_VOCAB {
                let content = &token.content;
                let reason = format!("token {content:?}: expected an id below {MAX_VOCAB}, got {id}");
                return Err(Error::Tokenizer(reason));
            }
            tokens.resize(tokens.len().max(id + 1), Vec::new());
            tokens[id] = if token.special { Vec::new() } else { token.content.clone().into_bytes() };
            special.insert(token.id, token.special);
        }
        Self::new(&tokens, special.into_iter().filter(|(_, special)| *special).map(|(id, _)| id).collect())
    }

    pub(super) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.binary_search(&id).is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        self.bytes.len() + 4 * (self.ends.len() + self.special.len())
    }
}

/// The byte of a token that is spelled like `<0xE4>`; `None` for other tokens.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// How SentencePiece spells a byte: what [`byte_token`] reads.
pub(super) fn spelled_byte(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The bytes that a SentencePiece piece adds to a text.
pub(super) fn piece_bytes(piece: &str, kind: PieceKind) -> Vec<u8> {
    match kind {
        PieceKind::Byte => byte_token(piece).into_iter().collect(),
        PieceKind::Unknown | PieceKind::Control => Vec::new(),
        PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused => {
            piece.replace('▁', " ").into_bytes()
        }
    }
}

fn spell<'a>(token: &str, steps: impl Iterator<Item = &'a Step>) -> Vec<u8> {
    let mut token = token.to_string();
    for step in steps {
        match step {
            Step::ByteLevel => return from_byte_alphabet(&token),
            Step::Replace(from, to) => token = token.replace(from, to),
            Step::ByteFallback => {
                if let Some(byte) = byte_token(&token) {
                    return vec![byte];
                }
            }
        }
    }
    token.into_bytes()
}

/// The steps of a decoder. Without a decoder, a tokenizer whose other stages use the byte alphabet is byte-level.
fn decoder_steps(decoder: &Value, byte_level: bool) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if decoder.is_null() {
        steps.extend(byte_level.then_some(Step::ByteLevel));
        return Ok(steps);
    }
    add_steps(decoder, &mut steps, &mut false)?;
    let growth = steps.iter().fold(1usize, |growth, step| match step {
        Step::Replace(from, to) => growth.saturating_mul(to.len().div_ceil(from.len()).max(1)),
        _ => growth,
    });
    if growth > MAX_GROWTH || steps.len() > 64 {
        let n = steps.len();
        let reason =
            format!("expected to expand a token at most {MAX_GROWTH}-fold, got {growth}-fold in {n} steps");
        return Err(Error::Tokenizer(format!("decoder: {reason}")));
    }
    Ok(steps)
}

/// Appends the steps of one decoder. `fused` is set once a step has joined the tokens to one text; later steps may then
/// change only the start of that text.
fn add_steps(decoder: &Value, steps: &mut Vec<Step>, fused: &mut bool) -> Result<()> {
    let fields = Fields::new("decoder", decoder)?;
    match fields.kind {
        "Sequence" => {
            fields.check(&["decoders"])?;
            for inner in fields.list("decoders")? {
                add_steps(inner, steps, fused)?;
            }
        }
        "Fuse" => {
            fields.check(&[])?;
            *fused = true;
        }
        "Strip" if (*fused || decoder["start"] == 0) && decoder["stop"] == 0 => {
            fields.check(&["content", "start", "stop"])?;
        }
        "ByteLevel" if !*fused => {
            fields.check(&["add_prefix_space?", "trim_offsets?", "use_regex?"])?;
            steps.push(Step::ByteLevel);
            *fused = true;
        }
        "ByteFallback" if !*fused => {
            fields.check(&[])?;
            steps.push(Step::ByteFallback);
        }
        "Metaspace" if !*fused => {
            fields.check(&["replacement", "prepend_scheme?", "split?", "add_prefix_space?", "str_rep?"])?;
            steps.push(Step::Replace(fields.text("replacement")?.to_string(), " ".to_string()));
        }
        "Replace"
            if !*fused && decoder["pattern"]["String"].as_str().is_some_and(|from| !from.is_empty()) =>
        {
            fields.check(&["pattern", "content"])?;
            let from = decoder["pattern"]["String"].as_str().unwrap_or_default().to_string();
            steps.push(Step::Replace(from, fields.text("content")?.to_string()));
        }
        _ => {
            let supported =
                "ByteLevel, Metaspace, or a Sequence of Replace (text), ByteFallback, Fuse, Strip (start)";
            return Err(Error::Tokenizer(format!("decoder: expected {supported}, got {}", shown(decoder))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_tokens_are_two_hexadecimal_digits() {
        assert_eq!(byte_token("<0xE4>"), Some(0xE4));
        assert_eq!(byte_token("<0x0a>"), Some(10));
        for token in ["<0x+1>", "<0xE>", "<0xE4", "<0xE40>", "<0xGG>", "<0x>", "", "<0xé>"] {
            assert_eq!(byte_token(token), None, "{token}");
        }
    }

    #[test]
    fn decoders_are_read_or_refused_by_name() {
        let steps = |json: &str| {
            let mut steps = Vec::new();
            add_steps(&serde_json::from_str(json).unwrap(), &mut steps, &mut false).map(|()| steps)
        };
        let llama = r#"{"type":"Sequence","decoders":[
            {"type":"Replace","pattern":{"String":"▁"},"content":" "},
            {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#;
        let space = Step::Replace("▁".into(), " ".into());
        assert_eq!(steps(llama).unwrap(), [space, Step::ByteFallback]);
        assert_eq!(steps(r#"{"type":"ByteLevel"}"#).unwrap(), [Step::ByteLevel]);
        assert_eq!(steps(r#"{"type":"Metaspace","replacement":"_"}"#).unwrap().len(), 1);
        for (json, name) in [
            (
                r#"{"type":"WordPiece","prefix":"\#\#","cleanup":true}"#.replace("\\#", "#").as_str(),
                "WordPiece",
            ),
            (r#"{"type":"CTC"}"#, "CTC"),
            (r#"{"type":"BPEDecoder","suffix":"</w>"}"#, "BPEDecoder"),
            (r#"{"type":"Replace","pattern":{"Regex":"a+"},"content":""}"#, "Regex"),
            (r#"{"type":"Strip","content":" ","start":1,"stop":0}"#, "Strip"),
            (r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]}"#, "ByteFallback"),
            (r#"{}"#, "{}"),
        ] {
            let message = steps(json).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn the_table_keeps_each_tokens_bytes() {
        let tokens = [b"ab".to_vec(), vec![], vec![0xE4], b"c".to_vec()];
        let table = TokenBytes::new(&tokens, vec![3, 1]).unwrap();
        assert_eq!(table.len(), 4);
        for (id, token) in tokens.iter().enumerate() {
            assert_eq!(table.get(id as u32), token);
        }
        assert_eq!(table.get(4), b"");
        assert_eq!(table.get(u32::MAX), b"");
        assert_eq!([0, 1, 2, 3, 4].map(|id| table.is_special(id)), [false, true, false, true, false]);
    }
}
