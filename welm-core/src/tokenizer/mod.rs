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
//! A tokenizer is read from `tokenizer.json`, or else from SentencePiece's `tokenizer.model`, or from a GGUF file
//! (gguf.rs).
//!
//! The ids of a `tokenizer.json` are those of the `tokenizers` library, which the models' authors used. Its normalizers
//! and models run here. All other stages are written here, and tested against the library. But a `tokenizer.json` comes
//! from somebody else, and is like a program that runs here. So every stage and field of the file is known here or
//! refused by name, expressions run in linear time, and the work for a text is bounded by its length. Every now and
//! then the code asks whether to go on ([`Watch`]).
//!
//! Post-processor, truncation and padding are left out: the model is to continue a prompt, so nothing may be cut off
//! its end or added after it. The tokens that a post-processor puts *in front* (Llama's `<s>`) are found once, at load;
//! `add_bos` adds them. If there is a `tokenizer.json`, `add_bos_token`, `add_prefix_space` and `legacy` of
//! `tokenizer_config.json` are ignored. (transformers 5 does not ignore the latter two for its class LlamaTokenizer: of
//! TinyLlama's file it takes the vocabulary alone, and puts a space before the first text only.)
//!
//! Special tokens (`<|endoftext|>`) that are written in a text are ordinary text, unless the caller wants them parsed.
//! Text for which the vocabulary has no token, and no token for unknown text, is an error. (The library drops such
//! text.)
//!
//! Generation does not use the library's decoder, because that works on whole texts. It strips the leading space, which
//! a continuation needs. It also turns incomplete characters into U+FFFD, which a stream must hold back instead. Here,
//! each token has its bytes in a table ([`TokenBytes`]), and a text is their concatenation.
//! `clean_up_tokenization_spaces` is not supported.

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

/// Turns text into token ids, and token ids into bytes. Nothing in it changes after loading, except the library's word
/// cache, which does not change results.
pub(crate) struct Tokenizer {
    added: AddedTokens,
    encoder: Encoder,
    bytes: TokenBytes,
    /// The tokens that `add_bos` puts in front of a text.
    prefix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
}

/// Turns the text between added tokens into ids.
enum Encoder {
    Pipeline(Box<Pipeline>),
    Pieces {
        model: Box<SentencePiece>,
        /// Whether only the beginning of a text can get the model's extra space, and not the text after an added token.
        prefix_once: bool,
    },
}

/// The keys of a `tokenizer.json`. The library ignores all other keys, too.
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
    /// Reads a `tokenizer.json`, and what the files beside it say about its tokens.
    pub(crate) fn from_json_file(path: &Path) -> Result<Self> {
        Self::from_file(TOKENIZER, path, Self::from_json)
    }

    /// Reads SentencePiece's `tokenizer.model`, and what the files beside it say about its tokens.
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

    /// What kind of tokenizer it is, such as `byte-level BPE`, and how many tokens it has.
    pub(crate) fn kind_and_tokens(&self) -> (&'static str, usize) {
        let kind = match &self.encoder {
            Encoder::Pipeline(pipeline) => pipeline.vocabulary.kind(),
            Encoder::Pieces { model, .. } => model.kind(),
        };
        (kind, self.bytes.len())
    }

    /// The token ids of a text.
    ///
    /// `add_bos` puts the tokenizer's first tokens in front, if it has any. With `parse_special`, a special token that
    /// is written in the text becomes that token; without it, it is ordinary text. Added tokens that are not special
    /// are found in the text either way.
    pub(crate) fn encode(&self, text: &str, add_bos: bool, parse_special: bool) -> Result<Vec<u32>> {
        self.encode_watched(text, add_bos, parse_special, &mut Watch::none()).map_err(Halt::into_error)
    }

    /// The same as [`Tokenizer::encode`], but `watch` may stop it.
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
        // An id that is too large would make the engine read outside the embedding. So the library's ids are checked.
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.bytes.len()) {
            return Err(Error::Tokenizer(format!("expected ids below {}, got {id}", self.bytes.len())).into());
        }
        Ok(ids)
    }

    /// The text of `ids`. Bytes that are not UTF-8 become U+FFFD. A leading space is kept.
    pub(crate) fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes that a token adds to a text. Empty for special tokens and for ids without a token.
    pub(crate) fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id)
    }

    /// Whether the token is a control token, which adds nothing to a text.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.bytes.is_special(id)
    }

    /// The spelling, as in the file, of a token that adds nothing to a text, such as a special token. Stop strings may
    /// contain it. Empty for all other tokens.
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

    /// One more than the largest id. The model's embedding may have more rows.
    pub(crate) fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The id of the token that the file spells `token`. For tokens that a configuration gives by name.
    pub(crate) fn token_to_id(&self, token: &str) -> Option<u32> {
        let ids = match &self.encoder {
            Encoder::Pipeline(pipeline) => &pipeline.vocabulary.ids,
            Encoder::Pieces { model, .. } => model.ids(),
        };
        self.added.id(token).or_else(|| ids.get(token).copied())
    }

    /// The token that starts a text: that of the GGUF or SentencePiece file, or the first token that a `tokenizer.json`
    /// puts in front.
    pub(crate) fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, as the GGUF or SentencePiece file says. `None` for a `tokenizer.json`, which does
    /// not say; the model's configuration does.
    pub(crate) fn eos(&self) -> Option<u32> {
        self.eos
    }
}

/// The ids that the post-processor puts in front of a sequence. Found by processing a sequence of a single token.
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
        // All tokens are special: the template has no place for the sequence.
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

/// Runs code of the library. Its errors, and its panics (which some damaged files cause), become our errors.
fn guarded<T>(what: impl Display, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let reason = match panics::catch(work) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic,
    };
    Err(Error::Tokenizer(format!("{what}: {reason}")))
}

/// The reason of an error without its label, so that the name of a file can be put in front.
fn strip_label(error: Error) -> String {
    match error {
        Error::Tokenizer(reason) => reason,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
