//! Text to token ids and back.
//!
//! Ids come from the `tokenizers` library, which is what the models' authors used; this module decides what
//! is asked of it. Encoding runs the library's stages by themselves,
//!
//! ```text
//! text -> added tokens, normalizer -> pre-tokenizer -> model -> ids
//! ```
//!
//! and leaves out its post-processor, truncation and padding: a prompt is to be continued, so nothing may be
//! cut off it or put behind it. What a post-processor puts *in front* (Llama's `<s>`) is found once, at load,
//! and is what `add_bos` adds.
//!
//! Special tokens (`<|endoftext|>`) in a text are text, unless the caller wants them parsed. That is a
//! question of the added vocabulary alone. The library keeps it as a switch inside the tokenizer, which would
//! need a lock or a second copy of the model; two copies of the small added vocabulary do instead. Both ways
//! give exactly the ids that the library gives with its switch on or off.
//!
//! Generation does not use the library's decoder, which works on whole texts: it strips the leading space,
//! which a continuation needs, and turns half characters into U+FFFD, which a stream must hold back. Every
//! token has its bytes in a table instead ([`TokenBytes`]), and a text is their concatenation.

mod bytes;
mod chat;
mod gguf;

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use tokenizers::{
    AddedVocabulary, Encoding, Model, ModelWrapper, OffsetType, PostProcessor, PreTokenizer, Token,
};

use crate::error::{Error, Result};
use bytes::TokenBytes;
pub(crate) use chat::ChatTemplate;
pub use chat::{ChatRequest, Json, Message};
pub(crate) use gguf::GgufVocab;

/// Turns text into token ids and token ids into bytes. Nothing in it changes after loading, but for the
/// library's own word cache, which cannot be told from outside.
pub(crate) struct Tokenizer {
    /// Normalizer, pre-tokenizer and model, and the added tokens with special ones taken for plain text.
    inner: tokenizers::Tokenizer,
    /// The same added tokens, special ones recognised.
    parsing: AddedVocabulary,
    bytes: TokenBytes,
    /// What `add_bos` puts in front of a text.
    prefix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// The part of `tokenizer.json` that the library reads but does not keep.
#[derive(Deserialize)]
struct Declared {
    #[serde(default)]
    added_tokens: Vec<DeclaredToken>,
}

#[derive(Deserialize)]
struct DeclaredToken {
    id: u32,
    content: String,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Dropout, which would make ids random, is switched off.
    pub(crate) fn from_json_file(path: &Path) -> Result<Self> {
        let json = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        Self::from_json(&json)
            .map_err(|reason| Error::Tokenizer(format!("{}: {}", path.display(), strip_label(reason))))
    }

    fn from_json(json: &[u8]) -> Result<Self> {
        let refuse = |reason: serde_json::Error| Error::Tokenizer(format!("not a tokenizer.json: {reason}"));
        // Before the library sees it, which panics on some damaged JSON.
        let declared: Declared = serde_json::from_slice(json).map_err(refuse)?;
        let mut inner = guarded("not a tokenizer.json", || {
            let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
            inner.with_truncation(None)?.with_padding(None);
            Ok(inner)
        })?;
        // The library gives an added token the next free id, whatever the file says; a model has only the
        // file's ids.
        for token in &declared.added_tokens {
            let got = inner.token_to_id(&token.content);
            if got != Some(token.id) {
                let got = got.map_or("none".to_string(), |id| id.to_string());
                let reason = format!("added token {:?}: expected id {got}, got {}", token.content, token.id);
                return Err(Error::Tokenizer(reason));
            }
        }
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            inner.with_model(bpe);
        }
        let bytes = TokenBytes::from_library(&inner)?;
        let prefix = guarded("post-processor", || template_prefix(&inner))?;
        if let Some(id) = prefix.iter().find(|&&id| id as usize >= bytes.len()) {
            let reason = format!("post-processor: expected ids below {}, got {id}", bytes.len());
            return Err(Error::Tokenizer(reason));
        }
        Ok(Self::assemble(inner, bytes, prefix, None))
    }

    /// Builds the tokenizer that a GGUF file describes; see [`GgufVocab`].
    pub(crate) fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        vocab.validate()?;
        let (bos, eos, add_bos) = (vocab.bos, vocab.eos, vocab.add_bos);
        let bytes = vocab.token_bytes()?;
        let inner = vocab.into_library()?;
        let prefix = if add_bos { bos.into_iter().collect() } else { Vec::new() };
        let mut tokenizer = Self::assemble(inner, bytes, prefix, eos);
        tokenizer.bos = bos;
        Ok(tokenizer)
    }

    fn assemble(
        mut inner: tokenizers::Tokenizer,
        bytes: TokenBytes,
        prefix: Vec<u32>,
        eos: Option<u32>,
    ) -> Self {
        inner.set_encode_special_tokens(false);
        let parsing = inner.get_added_vocabulary().clone();
        inner.set_encode_special_tokens(true);
        let bos = prefix.first().copied();
        Tokenizer { inner, parsing, bytes, prefix, bos, eos }
    }

    /// The ids of a text.
    ///
    /// `add_bos` puts the tokenizer's own beginning in front, if it has one. `parse_special` takes special
    /// tokens written in the text for themselves; otherwise they are text like any other. Added tokens that
    /// are not special are found in the text either way.
    pub(crate) fn encode(&self, text: &str, add_bos: bool, parse_special: bool) -> Result<Vec<u32>> {
        let added = if parse_special { &self.parsing } else { self.inner.get_added_vocabulary() };
        let encoding = guarded("encoding failed", || {
            let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            pieces.tokenize(|piece| self.inner.get_model().tokenize(piece.get()))?;
            pieces.into_encoding(None, 0, OffsetType::None)
        })?;
        let prefix: &[u32] = if add_bos { &self.prefix } else { &[] };
        let ids = [prefix, encoding.get_ids()].concat();
        // A library that contradicts itself must not make the engine read outside the embedding.
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.bytes.len()) {
            return Err(Error::Tokenizer(format!("expected ids below {}, got {id}", self.bytes.len())));
        }
        Ok(ids)
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. A leading space stays.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// What the token adds to a text. Empty for special tokens and for ids that no token has.
    pub(crate) fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// Whether the token is a control token, which is no part of a text.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.bytes.is_special(id)
    }

    /// One more than the largest id; the model's embedding may have more rows.
    pub(crate) fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The id of a token as the file spells it, for names that a configuration gives.
    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token that starts a text: the GGUF file's, or the first that `tokenizer.json` puts in front.
    pub(crate) fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, from GGUF; `tokenizer.json` does not say, its model's configuration does.
    pub(crate) fn eos(&self) -> Option<u32> {
        self.eos
    }
}

/// The ids that the post-processor puts in front of a sequence, found by showing it one of a single token.
fn template_prefix(tokenizer: &tokenizers::Tokenizer) -> tokenizers::Result<Vec<u32>> {
    let Some(post_processor) = tokenizer.get_post_processor() else { return Ok(Vec::new()) };
    let sequence = Encoding::from_tokens(vec![Token::new(0, String::new(), (0, 0))], 0);
    let encoding = post_processor.process(sequence, None, true)?;
    let added = encoding.get_special_tokens_mask().iter().take_while(|&&mask| mask == 1).count();
    // A template without the sequence is no beginning of anything.
    if added == encoding.len() {
        return Err("the template has no place for the text".into());
    }
    Ok(encoding.get_ids()[..added].to_vec())
}

/// Runs a piece of the library: its errors and its panics (some on damaged files) become our errors.
fn guarded<T>(what: impl Display, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let reason = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic_message(panic.as_ref()),
    };
    Err(Error::Tokenizer(format!("{what}: {reason}")))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("internal fault").to_string()
}

/// The reason alone, so that a file's name can be put before it.
fn strip_label(error: Error) -> String {
    match error {
        Error::Tokenizer(reason) => reason,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
