//! Normalizers, which change a text before it is cut into words.

use serde_json::Value;
use tokenizers::normalizers as library;
use tokenizers::{NormalizedString, Normalizer as _, NormalizerWrapper};

use super::super::dfa::{Found, MAX_BUILD, Regex};
use super::super::guarded;
use super::super::watch::{Halt, Watch};
use super::{Fields, Find, MAX_PREFIX, flatten, refuse};
use crate::error::{Error, Result};

/// By how much all normalizers together may lengthen a text: bytes after for each byte before. NFKC with `▁` for spaces
/// has 36. SentencePiece's table (33, for U+FDFA) with lowercase and `▁` has 198.
const MAX_GROWTH: usize = 256;
/// The most bytes of a whole text after a normalizer. The library needs 16 more bytes for each of them.
const MAX_NORMALIZED: usize = 1 << 28;

/// One step of the normalizer.
enum Normalizer {
    Library(Box<NormalizerWrapper>),
    Replace(Box<Regex>, String),
}

/// All normalizers of a file.
pub(in super::super) struct Normalizers {
    /// The stages, each with the most bytes that it makes from one byte.
    stages: Vec<(Normalizer, usize)>,
    /// Whether they can make a text shorter.
    pub(in super::super) shrinks: bool,
    /// Whether one of them is `ByteLevel`.
    pub(in super::super) byte_level: bool,
}

impl Normalizers {
    pub(in super::super) fn read(value: &Value) -> Result<Self> {
        let mut all = Normalizers { stages: Vec::new(), shrinks: false, byte_level: false };
        let mut fields = Vec::new();
        flatten("normalizer", "normalizers", value, &mut fields)?;
        let (mut growth, mut prefix, mut work) = (1usize, 0, MAX_BUILD);
        for fields in &fields {
            let (stage, factor, shrinks) = Self::stage(fields, &mut prefix, &mut work)?;
            all.byte_level |= fields.kind == "ByteLevel";
            all.stages.push((stage, factor));
            all.shrinks |= shrinks;
            growth = growth.saturating_mul(factor);
            if growth > MAX_GROWTH || prefix > MAX_PREFIX {
                return refuse(format!(
                    "normalizer: expected to expand a text at most {MAX_GROWTH}-fold and by {MAX_PREFIX} bytes, got \
                     {growth}-fold and {prefix} bytes"
                ));
            }
        }
        Ok(all)
    }

    /// Reads a stage. Also returns the most bytes that it makes from one byte, and whether it can make a text shorter.
    fn stage(fields: &Fields<'_>, prefix: &mut usize, work: &mut usize) -> Result<(Normalizer, usize, bool)> {
        let none = || fields.check(&[]);
        let (wrapper, growth, shrinks) = match fields.kind {
            "NFC" => (none().map(|()| NormalizerWrapper::NFC(library::NFC))?, 3, true),
            "NFD" => (none().map(|()| NormalizerWrapper::NFD(library::NFD))?, 3, false),
            "NFKC" => (none().map(|()| NormalizerWrapper::NFKC(library::NFKC))?, 12, true),
            "NFKD" => (none().map(|()| NormalizerWrapper::NFKD(library::NFKD))?, 12, true),
            "Lowercase" => (none().map(|()| NormalizerWrapper::Lowercase(library::Lowercase))?, 2, true),
            "StripAccents" => {
                (none().map(|()| NormalizerWrapper::StripAccents(library::StripAccents))?, 1, true)
            }
            "Nmt" => (none().map(|()| NormalizerWrapper::Nmt(library::Nmt))?, 1, true),
            "ByteLevel" => {
                (none().map(|()| NormalizerWrapper::ByteLevel(library::ByteLevel::new()))?, 2, false)
            }
            "Strip" => {
                fields.check(&["strip_left", "strip_right"])?;
                let (left, right) = (fields.flag("strip_left", true)?, fields.flag("strip_right", true)?);
                (NormalizerWrapper::StripNormalizer(library::Strip::new(left, right)), 1, true)
            }
            "BertNormalizer" => {
                fields.check(&["clean_text", "handle_chinese_chars", "strip_accents?", "lowercase"])?;
                let accents = match &fields.value["strip_accents"] {
                    Value::Null => None,
                    _ => Some(fields.flag("strip_accents", false)?),
                };
                let (clean, chinese) =
                    (fields.flag("clean_text", true)?, fields.flag("handle_chinese_chars", true)?);
                let lowercase = fields.flag("lowercase", true)?;
                let bert = library::BertNormalizer::new(clean, chinese, accents, lowercase);
                (NormalizerWrapper::BertNormalizer(bert), 12, true)
            }
            "Prepend" => {
                fields.check(&["prepend"])?;
                let text = fields.text("prepend")?;
                *prefix += text.len();
                (NormalizerWrapper::Prepend(library::Prepend::new(text.to_string())), 1, false)
            }
            "Precompiled" => {
                fields.check(&["precompiled_charsmap"])?;
                let (precompiled, longest) = precompiled(fields.text("precompiled_charsmap")?)?;
                (NormalizerWrapper::Precompiled(precompiled), longest.max(1), true)
            }
            "Replace" => {
                fields.check(&["pattern", "content"])?;
                let content = fields.text("content")?;
                match fields.pattern(work)? {
                    Find::Text(text) => {
                        let (growth, shrinks) =
                            (content.len().div_ceil(text.len()).max(1), content.len() < text.len());
                        let replace = guarded("normalizer Replace", || library::Replace::new(text, content))?;
                        (NormalizerWrapper::Replace(replace), growth, shrinks)
                    }
                    // If the expression matches the empty string, the content is put between all characters.
                    Find::Regex(regex) => {
                        let growth = (content.len() + usize::from(regex.nullable)).max(1);
                        return Ok((Normalizer::Replace(regex, content.to_string()), growth, true));
                    }
                }
            }
            kind => return refuse(format!("normalizer: unknown type `{kind}`")),
        };
        Ok((Normalizer::Library(Box::new(wrapper)), growth, shrinks))
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Changes a text in place. Between the stages it checks whether to go on. It is an error if the next stage could
    /// make the text too long. The actual length of the text counts, not the length that earlier stages could have
    /// made.
    pub(in super::super) fn run(
        &self,
        text: &mut NormalizedString,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<(), Halt> {
        for (stage, growth) in &self.stages {
            watch.work(text.len())?;
            let len = text.len();
            if len.saturating_mul(*growth) > MAX_NORMALIZED {
                let most = MAX_NORMALIZED / growth;
                return Err(Error::Tokenizer(format!(
                    "a normalizer that may expand a text {growth}-fold: expected a text of at most {most} bytes, got {len}"
                ))
                .into());
            }
            match stage {
                Normalizer::Library(library) => guarded("normalizer", || library.normalize(text))?,
                Normalizer::Replace(regex, content) => {
                    let found = Found(regex.find_all(text.get(), watch)?);
                    guarded("normalizer", || text.replace(found, content))?;
                }
            }
        }
        Ok(())
    }
}

/// SentencePiece's table of replacements, and the length of the longest in bytes. The header of the table says how long
/// its trie is. The library allocates that much without a check, so it is checked here.
fn precompiled(encoded: &str) -> Result<(library::Precompiled, usize)> {
    let bytes = from_base64(encoded).unwrap_or_default();
    let trie_len = bytes.first_chunk().map_or(0, |head| u32::from_le_bytes(*head) as usize);
    let Some(texts) = bytes.get(4..).and_then(|rest| rest.get(trie_len..)).filter(|_| trie_len >= 4) else {
        let len = bytes.len();
        return refuse(format!(
            "normalizer Precompiled: expected a trie and texts in base64, got {len} bytes, {trie_len} of them the trie"
        ));
    };
    // The replacements come after the trie; each ends with a zero byte.
    let longest = texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    let table = guarded("normalizer Precompiled", || Ok(library::Precompiled::from(&bytes)?))?;
    Ok((table, longest))
}

fn from_base64(encoded: &str) -> Option<Vec<u8>> {
    let digits = encoded.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut bits, mut n) = (0u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (bits, n) = (bits << 6 | u32::from(value), n + 6);
        if n >= 8 {
            n -= 8;
            bytes.push((bits >> n) as u8);
        }
    }
    Some(bytes)
}
