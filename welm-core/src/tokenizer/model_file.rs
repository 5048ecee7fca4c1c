//! Reads SentencePiece's `tokenizer.model` in a folder without `tokenizer.json`, and these settings of the files beside
//! it:
//!
//! ```text
//! added_tokens_decoder, added_tokens.json   tokens that are found before the text is cut into pieces; a token with the
//!                                           id of a piece replaces that piece
//! bos_token, eos_token                      replace those of tokenizer.model
//! add_bos_token                             true if it is absent
//! legacy                                    true: text after an added token also gets the model's extra space in front
//! add_prefix_space                          false: no text gets the extra space
//! ```

use std::collections::HashMap;

use serde_json::Value;

use super::added::{self, AddedToken, AddedTokens, SideFiles};
use super::bytes::TokenBytes;
use super::piece::PieceKind;
use super::sentencepiece::{Declared, SentencePiece};
use super::stages::{Normalizers, shown};
use super::{Encoder, Tokenizer};
use crate::error::{Error, Result};

/// Tokenizer classes for which `legacy` is false if it is absent.
const NOT_LEGACY: [&str; 2] = ["LlamaTokenizer", "LlamaTokenizerFast"];
/// Tokenizer classes that put no token in front of a text: rinna's and LINE's GPT-NeoX models have T5's.
const NO_BOS: [&str; 2] = ["T5Tokenizer", "T5TokenizerFast"];

/// A boolean of tokenizer_config.json; `None` if it is absent.
fn flag(config: &Value, key: &str) -> Result<Option<bool>> {
    match &config[key] {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(*flag)),
        other => {
            let reason =
                format!("tokenizer_config.json: {key}: expected true or false, got {}", shown(other));
            Err(Error::Tokenizer(reason))
        }
    }
}

impl Tokenizer {
    pub(super) fn from_model(file: &[u8], files: &SideFiles) -> Result<Self> {
        let mut declared = Declared::from_proto(file)?;
        let config = &files.tokenizer_config;
        let named = files.names_of_ids();
        for (piece, id) in declared.pieces.iter_mut().zip(0..) {
            if let Some(name) = named.get(&id).filter(|name| **name != piece.text) {
                piece.text = name.to_string();
                piece.kind = if piece.kind == PieceKind::Unknown { piece.kind } else { PieceKind::Control };
            }
        }
        let own = || declared.pieces.iter().zip(0..).filter(|(_, id)| !named.contains_key(id));
        let controls = own().filter(|(piece, _)| piece.kind.is_special());
        let controls = controls.map(|(piece, id)| AddedToken::plain(id, &piece.text, true)).collect();
        let vocab: HashMap<String, u32> = own().map(|(piece, id)| (piece.text.clone(), id)).collect();
        let mut added = added::collect(controls, "the model", files, &vocab)?;
        // Added tokens are found in the original text, because there is no normalizer before the model.
        added.iter_mut().for_each(|token| token.normalized = false);
        let bytes = TokenBytes::from_pieces(&declared.pieces, &added)?;
        let class = config["tokenizer_class"].as_str().unwrap_or_default();
        let legacy = flag(config, "legacy")?.unwrap_or(!NOT_LEGACY.contains(&class));
        declared.space.add_dummy_prefix &= flag(config, "add_prefix_space")?.unwrap_or(true);
        let (bos, eos) = (declared.bos, declared.eos);
        let model = Box::new(SentencePiece::new(declared)?);
        let added = AddedTokens::new(&added, &Normalizers::read(&Value::Null)?)?;
        let id = |key: &str, own: Option<u32>| match files.token(key) {
            None => own,
            Some(name) => name.and_then(|name| added.id(name).or_else(|| model.ids().get(name).copied())),
        };
        let (bos, eos) = (id("bos_token", bos), id("eos_token", eos));
        let add_bos = flag(config, "add_bos_token")?.unwrap_or(true) && !NO_BOS.contains(&class);
        let prefix = bos.into_iter().filter(|_| add_bos).collect();
        let encoder = Encoder::Pieces { model, prefix_once: !legacy };
        Ok(Tokenizer { added, encoder, bytes, prefix, bos, eos })
    }
}
