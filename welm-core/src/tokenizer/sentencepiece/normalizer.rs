//! Changes a text before it is cut into pieces: by the rules of a table, and in its white space.
//!
//! ```text
//! at each place: user-defined piece -> itself;  longest rule of the table -> its replacement;  character -> itself
//! spaces: those in front and at the end go, several become one (remove_extra_whitespaces)
//!         one is put in front, or at the end (add_dummy_prefix, treat_whitespace_as_suffix)
//!         they are written ▁ (escape_whitespaces)
//! ```
//!
//! A file holds the rules of `nmt_nfkc`, `nfkc_cf` and others as a table, `precompiled_charsmap`. So there are no
//! rules of Unicode in this code. The table has the length of a double array (u32), the array (of u32), and the
//! replacements, each with a zero after it. An element of the array holds
//!
//! ```text
//! bits 0..8  the byte that leads to it     bit 8  a replacement is at its offset     bit 31  it is a replacement's place
//! offset = bits 10..32, times 256 if bit 9 is set: where its children are, each at `offset ^ byte`
//! ```
//!
//! `Precompiled` of the crate `tokenizers` reads the same table, but applies it to grapheme clusters. That gives other
//! texts than SentencePiece. Source: SentencePiece's `Normalizer`, and S. Yata's darts-clone.

use super::trie::Trie;
use crate::error::{Error, Result};
use crate::tokenizer::watch::{Halt, Watch};

/// The most bytes that a rule replaces; those of `nfkc` have about twenty.
const MAX_RULE: usize = 256;
/// The most bytes that a rule makes; those of Unicode's normal forms make at most 33.
const MAX_REPLACEMENT: usize = 256;
/// The most bytes that a text may become.
const MAX_NORMALIZED: usize = 1 << 28;

/// The settings, with the names that SentencePiece gives them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in super::super) struct WhiteSpace {
    pub(in super::super) add_dummy_prefix: bool,
    pub(in super::super) remove_extra_whitespaces: bool,
    pub(in super::super) escape_whitespaces: bool,
    pub(in super::super) treat_whitespace_as_suffix: bool,
}

/// The table of rules.
pub(super) struct CharsMap {
    units: Vec<u32>,
    replacements: String,
}

fn refuse<T>(reason: &str) -> Result<T> {
    Err(Error::Tokenizer(format!("precompiled_charsmap: {reason}")))
}

impl CharsMap {
    /// Bytes of memory.
    pub(super) fn size(&self) -> usize {
        size_of_val(&self.units[..]) + self.replacements.len()
    }

    /// Reads a table; `None` if there are no bytes.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let parts = bytes.split_first_chunk().and_then(|(len, rest)| {
            rest.split_at_checked(u32::from_le_bytes(*len) as usize).filter(|(array, _)| array.len() % 4 == 0)
        });
        let Some((array, replacements)) = parts else {
            return refuse("expected the length of an array, the array and replacements, got fewer bytes");
        };
        let Ok(replacements) = String::from_utf8(replacements.to_vec()) else {
            return refuse("expected replacements in UTF-8, got others");
        };
        if !replacements.ends_with('\0') {
            return refuse("expected a zero after the last replacement, got none");
        }
        if replacements.split('\0').any(|replacement| replacement.len() > MAX_REPLACEMENT) {
            return refuse(&format!(
                "expected replacements of at most {MAX_REPLACEMENT} bytes, got a longer one"
            ));
        }
        let units = array.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        Ok(Some(CharsMap { units, replacements }))
    }

    /// The longest rule for the beginning of a text: how many bytes it replaces, and what they become.
    fn rule(&self, text: &str) -> Result<Option<(usize, &str)>> {
        let damaged = || refuse("expected a rule for whole characters that leads into it, got another");
        let unit = |at: u32| self.units.get(at as usize).copied();
        let offset = |unit: u32| (unit >> 10) << ((unit & 1 << 9) >> 6);
        let Some(root) = unit(0) else { return Ok(None) };
        let (mut at, mut found) = (offset(root), None);
        for (i, &byte) in text.as_bytes().iter().enumerate() {
            at ^= u32::from(byte);
            let Some(here) = unit(at) else { return damaged() };
            if here & (1 << 31 | 0xFF) != u32::from(byte) {
                break;
            }
            if i == MAX_RULE {
                return refuse(&format!("expected rules of at most {MAX_RULE} bytes, got a longer one"));
            }
            at ^= offset(here);
            if here & 1 << 8 != 0 {
                let Some(place) = unit(at) else { return damaged() };
                found = Some((i + 1, (place & !(1 << 31)) as usize));
            }
        }
        let Some((len, place)) = found else { return Ok(None) };
        let replacement = self.replacements.get(place..).and_then(|rest| rest.split('\0').next());
        match replacement {
            Some(replacement) if text.is_char_boundary(len) && place < self.replacements.len() => {
                Ok(Some((len, replacement)))
            }
            _ => damaged(),
        }
    }
}

/// The text that the model gets. With `prefix`, a space is added in front or at the end, if the settings want one.
pub(super) fn normalize(
    text: &str,
    space: WhiteSpace,
    prefix: bool,
    table: Option<&CharsMap>,
    defined: &Trie,
    watch: &mut Watch<'_>,
) -> std::result::Result<String, Halt> {
    // The replacement of the beginning of the text, and how many bytes it replaces.
    let begin = |rest: &'_ str| -> Result<(usize, Option<&str>)> {
        if let Some(len) = defined.longest(rest.as_bytes()) {
            return Ok((len, None));
        }
        if let Some((len, replacement)) = table.map(|table| table.rule(rest)).transpose()?.flatten() {
            return Ok((len, Some(replacement)));
        }
        Ok((rest.chars().next().map_or(0, char::len_utf8), None))
    };
    let mark = if space.escape_whitespaces { "▁" } else { " " };
    let (mut rest, mut normalized) = (text, String::with_capacity(text.len() + 8));
    if space.remove_extra_whitespaces {
        while !rest.is_empty() {
            let (len, replacement) = begin(rest)?;
            if replacement.unwrap_or(&rest[..len]) != " " {
                break;
            }
            watch.work(len)?;
            rest = &rest[len..];
        }
    }
    if rest.is_empty() {
        return Ok(normalized);
    }
    let dummy = space.add_dummy_prefix && prefix;
    if dummy && !space.treat_whitespace_as_suffix {
        normalized.push_str(mark);
    }
    let mut after_space = space.remove_extra_whitespaces;
    while !rest.is_empty() {
        let (len, replacement) = begin(rest)?;
        let mut part = replacement.unwrap_or(&rest[..len]);
        if after_space {
            part = part.trim_start_matches(' ');
        }
        for piece in part.split_inclusive(' ') {
            let (word, is_space) = piece.strip_suffix(' ').map_or((piece, false), |word| (word, true));
            normalized.push_str(word);
            normalized.push_str(if is_space { mark } else { "" });
        }
        if !part.is_empty() {
            after_space = space.remove_extra_whitespaces && part.ends_with(' ');
        }
        if normalized.len() > MAX_NORMALIZED {
            let reason = format!("expected at most {MAX_NORMALIZED} bytes of a normalized text, got more");
            return Err(Error::Tokenizer(reason).into());
        }
        watch.work(len)?;
        rest = &rest[len..];
    }
    if space.remove_extra_whitespaces {
        normalized.truncate(normalized.trim_end_matches(mark).len());
    }
    if dummy && space.treat_whitespace_as_suffix {
        normalized.push_str(mark);
    }
    Ok(normalized)
}
