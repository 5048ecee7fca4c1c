//! Text to token ids and back.
//!
//! ```text
//! text -> added tokens (added.rs)
//!      -> pipeline.rs: normalizers (stages.rs)
//!           -> words: pre-tokenizers (stages.rs), expressions (onig.rs, dfa.rs)
//!           -> model (vocabulary.rs) -> ids
//!      or sentencepiece/ -> ids
//! ```
//!
//! Files are `tokenizer.json`, without it SentencePiece's `tokenizer.model`, or a GGUF file (gguf.rs).
//!
//! Ids of a `tokenizer.json` are those of the `tokenizers` library, which is what the models' authors used: its normalizers and models run
//! here, and what is not its own is tested against it. But a `tokenizer.json` is a program of somebody else. So the file is
//! read here, every stage and field of it is known or refused by name, expressions run in linear time, the work for a text is
//! bounded by its length, and in between it is asked whether to go on ([`Watch`]).
//!
//! Left out are post-processor, truncation and padding: a prompt is to be continued, so nothing may be
//! cut off it or put after it. What a post-processor puts *in front* (Llama's `<s>`) is found once, at load,
//! and is what `add_bos` adds. Beside a `tokenizer.json`, `add_bos_token` and `add_prefix_space` of
//! `tokenizer_config.json` count for nothing, as in transformers 5.
//!
//! Special tokens (`<|endoftext|>`) in a text are text, unless the caller wants them parsed. Text that the vocabulary has
//! no token for, where it has none for unknown text either, is an error: the library leaves it out.
//!
//! Generation does not use the library's decoder, which works on whole texts: it strips the leading space,
//! which a continuation needs, and turns half characters into U+FFFD, which a stream must hold back. Every
//! token has its bytes in a table instead ([`TokenBytes`]), and a text is their concatenation
//! (`clean_up_tokenization_spaces` is not done).

mod added;
mod byte_alphabet;
mod bytes;
mod chat;
mod cuts;
mod dfa;
mod gguf;
mod model_file;
mod onig;
mod piece;
mod pipeline;
mod sentencepiece;
mod size;
mod stages;
mod vocabulary;
mod watch;

use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{Encoding, PostProcessor, PostProcessorWrapper, Token};

use crate::error::{Error, Result};
use crate::host::panics;
use crate::side_file::{
    ADDED_TOKENS, SPECIAL_TOKENS_MAP, SideFile, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_MODEL,
};
use added::{AddedToken, AddedTokens, Part, SideFiles};
use bytes::TokenBytes;
pub(crate) use chat::ChatTemplate;
pub use chat::{ChatRequest, Json, Message};
pub(crate) use gguf::GgufVocab;
use pipeline::Pipeline;
use sentencepiece::SentencePiece;
use stages::{Fields, Normalizers, PreTokenizers};
use vocabulary::Vocabulary;
pub(crate) use watch::{Halt, Watch};

/// The most tokens that a post-processor may put in front of a text.
const MAX_PREFIX: usize = 64;

/// Turns text into token ids and token ids into bytes. Nothing in it changes after loading, but for the
/// library's own word cache, which cannot be told from outside.
pub(crate) struct Tokenizer {
    added: AddedTokens,
    encoder: Encoder,
    bytes: TokenBytes,
    /// What `add_bos` puts in front of a text.
    prefix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// What makes ids of the text between added tokens.
enum Encoder {
    Pipeline(Box<Pipeline>),
    Pieces {
        model: Box<SentencePiece>,
        /// Whether only the beginning of a text can get the model's space, and not what follows an added token.
        prefix_once: bool,
    },
}

/// A `tokenizer.json`. Keys that are not named here are the library's to ignore, too.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: vocabulary::Declared,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` and what the files beside it say of its tokens.
    pub(crate) fn from_json_file(path: &Path) -> Result<Self> {
        Self::from_file(TOKENIZER, path, Self::from_json)
    }

    /// The same of SentencePiece's `tokenizer.model`.
    pub(crate) fn from_model_file(path: &Path) -> Result<Self> {
        Self::from_file(TOKENIZER_MODEL, path, Self::from_model)
    }

    fn from_file(
        file: SideFile,
        path: &Path,
        read: impl FnOnce(&[u8], &SideFiles) -> Result<Self>,
    ) -> Result<Self> {
        let bytes = file.require_path(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = |file: SideFile| Ok::<_, Error>(file.json(folder)?.unwrap_or_default());
        let files = SideFiles {
            tokenizer_config: beside(TOKENIZER_CONFIG)?,
            special_tokens_map: beside(SPECIAL_TOKENS_MAP)?,
            added_tokens: beside(ADDED_TOKENS)?,
        };
        read(&bytes, &files)
            .map_err(|reason| Error::Tokenizer(format!("{}: {}", path.display(), strip_label(reason))))
    }

    fn from_json(json: &[u8], files: &SideFiles) -> Result<Self> {
        let refuse = |reason: serde_json::Error| Error::Tokenizer(format!("not a tokenizer.json: {reason}"));
        let file: File = serde_json::from_slice(json).map_err(refuse)?;
        if let Some(version) = file.version.filter(|version| version != "1.0") {
            return Err(Error::Tokenizer(format!("expected version 1.0, got {version}")));
        }
        let normalizers = Normalizers::read(&file.normalizer)?;
        let pre_tokenizers = PreTokenizers::read(&file.pre_tokenizer)?;
        let byte_level = normalizers.byte_level || pre_tokenizers.byte_level;
        let vocabulary = Vocabulary::new(file.model, byte_level)?;
        let added = added::collect(file.added_tokens, TOKENIZER.name, files, &vocabulary.ids)?;
        let bytes = TokenBytes::from_json(&vocabulary.ids, &added, &file.decoder, byte_level)?;
        let added = AddedTokens::new(&added, &normalizers)?;
        let prefix = template_prefix(&file.post_processor)?;
        if let Some(id) = prefix.iter().find(|&&id| id as usize >= bytes.len()) {
            let reason = format!("post-processor: expected ids below {}, got {id}", bytes.len());
            return Err(Error::Tokenizer(reason));
        }
        let bos = prefix.first().copied();
        let encoder = Encoder::Pipeline(Box::new(Pipeline { normalizers, pre_tokenizers, vocabulary }));
        Ok(Tokenizer { added, encoder, bytes, prefix, bos, eos: None })
    }

    /// Builds the tokenizer that a GGUF file describes; see [`GgufVocab`].
    pub(crate) fn from_gguf(vocab: GgufVocab) -> Result<Self> {
        vocab.validate()?;
        let (bos, eos) = (vocab.bos, vocab.eos);
        let prefix = if vocab.add_bos { bos.into_iter().collect() } else { Vec::new() };
        let bytes = vocab.token_bytes()?;
        let normalizers = Normalizers::read(&Value::Null)?;
        let key = "tokenizer.ggml.tokens";
        let added = added::collect(vocab.added(), key, &SideFiles::default(), &Default::default())?;
        let added = AddedTokens::new(&added, &normalizers)?;
        let encoder = if vocab.is_byte_level() {
            let pre_tokenizers = vocab.pre_tokenizers()?;
            let vocabulary = vocab.into_vocabulary()?;
            Encoder::Pipeline(Box::new(Pipeline { normalizers, pre_tokenizers, vocabulary }))
        } else {
            let model = Box::new(SentencePiece::new(vocab.into_pieces())?);
            Encoder::Pieces { model, prefix_once: false }
        };
        Ok(Tokenizer { added, encoder, bytes, prefix, bos, eos })
    }

    /// The ids of a text.
    ///
    /// `add_bos` puts the tokenizer's own beginning in front, if it has one. `parse_special` takes special
    /// tokens written in the text for themselves; otherwise they are text like any other. Added tokens that
    /// are not special are found in the text either way.
    pub(crate) fn encode(&self, text: &str, add_bos: bool, parse_special: bool) -> Result<Vec<u32>> {
        self.encode_watched(text, add_bos, parse_special, &mut Watch::none()).map_err(Halt::into_error)
    }

    /// As [`Tokenizer::encode`], as long as `watch` lets it.
    pub(crate) fn encode_watched(
        &self,
        text: &str,
        add_bos: bool,
        parse_special: bool,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<Vec<u32>, Halt> {
        let mut ids = if add_bos { self.prefix.clone() } else { Vec::new() };
        for part in self.added.raw().split(text, parse_special, watch)? {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(start, end) => {
                    let (text, ids) = (&text[start..end], &mut ids);
                    match &self.encoder {
                        Encoder::Pipeline(pipeline) => {
                            let normalized = &self.added.normalized;
                            pipeline.encode(normalized, text, start, parse_special, ids, watch)?;
                        }
                        Encoder::Pieces { model, prefix_once } => {
                            model.encode(text, start == 0 || !prefix_once, start, ids, watch)?;
                        }
                    }
                }
            }
            watch.tokens(ids.len())?;
        }
        // A library that contradicts itself must not make the engine read outside the embedding.
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.bytes.len()) {
            return Err(Error::Tokenizer(format!("expected ids below {}, got {id}", self.bytes.len())).into());
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

    /// How stop strings spell a token that adds nothing to a text, as a special one: as the file does. Empty for others.
    pub(crate) fn spelling(&self, id: u32) -> &str {
        match self.token_bytes(id) {
            [] => self.added.content(id).unwrap_or_default(),
            _ => "",
        }
    }

    /// Bytes of memory that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        let encoder = match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.vocabulary.size(),
            Encoder::Pieces { model, .. } => model.size(),
        };
        (encoder + self.added.size() + self.bytes.size()) as u64
    }

    /// One more than the largest id; the model's embedding may have more rows.
    pub(crate) fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The id of a token as the file spells it, for names that a configuration gives.
    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        let ids = match &self.encoder {
            Encoder::Pipeline(pipeline) => &pipeline.vocabulary.ids,
            Encoder::Pieces { model, .. } => model.ids(),
        };
        self.added.id(token).or_else(|| ids.get(token).copied())
    }

    /// The token that starts a text: the GGUF file's or SentencePiece's, or the first that `tokenizer.json` puts in front.
    pub(crate) fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, from GGUF or SentencePiece; `tokenizer.json` does not say, its model's configuration does.
    pub(crate) fn eos(&self) -> Option<u32> {
        self.eos
    }
}

/// The ids that the post-processor puts in front of a sequence, found by showing it one of a single token.
fn template_prefix(value: &Value) -> Result<Vec<u32>> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    check_post_processor(value)?;
    let ids = guarded("post-processor", || {
        let post_processor: PostProcessorWrapper = serde_json::from_value(value.clone())?;
        let sequence = Encoding::from_tokens(vec![Token::new(0, String::new(), (0, 0))], 0);
        let encoding = post_processor.process(sequence, None, true)?;
        let added = encoding.get_special_tokens_mask().iter().take_while(|&&mask| mask == 1).count();
        // A template without the sequence is no beginning of anything.
        if added == encoding.len() {
            return Err("the template has no place for the text".into());
        }
        Ok(encoding.get_ids()[..added].to_vec())
    })?;
    if ids.len() > MAX_PREFIX {
        let n = ids.len();
        return Err(Error::Tokenizer(format!(
            "post-processor: expected at most {MAX_PREFIX} tokens, got {n}"
        )));
    }
    Ok(ids)
}

fn check_post_processor(value: &Value) -> Result<()> {
    let fields = Fields::new("post_processor", value)?;
    match fields.kind {
        "Sequence" => {
            fields.check(&["processors"])?;
            fields.list("processors")?.iter().try_for_each(check_post_processor)
        }
        "TemplateProcessing" => fields.check(&["single", "pair", "special_tokens"]),
        "ByteLevel" => fields.check(&["add_prefix_space?", "trim_offsets?", "use_regex?"]),
        "BertProcessing" => fields.check(&["sep", "cls"]),
        "RobertaProcessing" => fields.check(&["sep", "cls", "trim_offsets?", "add_prefix_space?"]),
        kind => Err(Error::Tokenizer(format!("post_processor: unknown type `{kind}`"))),
    }
}

/// Runs a piece of the library: its errors and its panics (some on damaged files) become our errors.
fn guarded<T>(what: impl Display, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let reason = match panics::catch(work) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic,
    };
    Err(Error::Tokenizer(format!("{what}: {reason}")))
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
