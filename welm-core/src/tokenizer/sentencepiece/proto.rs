//! `tokenizer.model`: the few fields of SentencePiece's `ModelProto` that matter for a text.
//!
//! Protocol buffers are a list of numbered fields. A field is a number and a kind (varint), and by kind a varint, 8
//! bytes, bytes with their length before them, or 4 bytes. A message within a message is such bytes; here there is one
//! level of them. Fields with other numbers are about training, and are ignored. Source: `sentencepiece_model.proto`.

use super::{Declared, WhiteSpace};
use crate::config::MAX_VOCAB;
use crate::error::{Error, Result};
use crate::tokenizer::piece::{Piece, PieceKind};

/// A field's value.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Value<'a> {
    Number(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

fn refuse<T>(reason: String) -> Result<T> {
    Err(Error::Tokenizer(reason))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7F).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let head = varint(bytes)?;
    let value = match head & 7 {
        0 => Value::Number(varint(bytes)?),
        1 => {
            *bytes = bytes.split_first_chunk::<8>()?.1;
            Value::Fixed64
        }
        2 => {
            let len = usize::try_from(varint(bytes)?).ok()?;
            let (inside, rest) = bytes.split_at_checked(len)?;
            *bytes = rest;
            Value::Bytes(inside)
        }
        5 => {
            let (number, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Value::Fixed32(u32::from_le_bytes(*number))
        }
        _ => return None, // groups, which nobody writes
    };
    (head >> 3 != 0).then_some((head >> 3, value))
}

/// Hands each field of a message to `take`, which gives false for one of a wrong kind.
fn message<'a>(
    what: &str,
    mut bytes: &'a [u8],
    take: &mut dyn FnMut(u64, Value<'a>) -> Result<bool>,
) -> Result<()> {
    let len = bytes.len();
    while !bytes.is_empty() {
        let at = len - bytes.len();
        let Some((number, value)) = field(&mut bytes) else {
            return refuse(format!("{what}: expected a field at byte {at} of {len}, got none"));
        };
        if !take(number, value)? {
            return refuse(format!("{what}: field {number} has another kind of value than expected"));
        }
    }
    Ok(())
}

/// Puts a value where it belongs; false if it is of another kind.
fn put<T>(place: &mut T, value: Option<T>) -> Result<bool> {
    let right = value.is_some();
    if let Some(value) = value {
        *place = value;
    }
    Ok(right)
}

impl<'a> Value<'a> {
    fn number(self) -> Option<u64> {
        if let Value::Number(number) = self { Some(number) } else { None }
    }

    fn flag(self) -> Option<bool> {
        self.number().map(|number| number != 0)
    }

    /// An id; negative numbers mean that there is none.
    fn id(self) -> Option<Option<u32>> {
        self.number().map(|number| u32::try_from(number).ok().filter(|&id| id < 1 << 31))
    }

    fn bytes(self) -> Option<&'a [u8]> {
        if let Value::Bytes(bytes) = self { Some(bytes) } else { None }
    }
}

/// Whether the first line is a token in base64 and its number, as Llama 3 has them in a file of this name.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut parts = line.split(|&byte| byte == b' ');
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
    match (parts.next(), parts.next(), parts.next()) {
        (Some(token), Some(number), None) => {
            let (token_is, number_is) = (token.iter().all(is_base64), number.iter().all(u8::is_ascii_digit));
            !token.is_empty() && !number.is_empty() && token_is && number_is
        }
        _ => false,
    }
}

impl Declared {
    /// Reads a `tokenizer.model`.
    pub(in super::super) fn from_proto(bytes: &[u8]) -> Result<Self> {
        if is_tiktoken(bytes) {
            return refuse(
                "expected SentencePiece's, got a vocabulary of tiktoken; tokenizer.json has it, too".into(),
            );
        }
        let mut all = Declared {
            pieces: Vec::new(),
            unigram: true,
            single: true,
            byte_fallback: false,
            charsmap: Vec::new(),
            space: WhiteSpace {
                add_dummy_prefix: true,
                remove_extra_whitespaces: true,
                escape_whitespaces: true,
                treat_whitespace_as_suffix: false,
            },
            bos: Some(1),
            eos: Some(2),
        };
        let mut model_type = 1;
        message("tokenizer.model", bytes, &mut |number, value| {
            let Some(inside) = value.bytes() else { return Ok(!(1..=5).contains(&number)) };
            match number {
                1 if all.pieces.len() == MAX_VOCAB => {
                    return refuse(format!("expected at most {MAX_VOCAB} pieces"));
                }
                1 => all.pieces.push(piece(all.pieces.len(), inside)?),
                2 => message("trainer_spec", inside, &mut |number, value| match number {
                    3 => put(&mut model_type, value.number()),
                    24 => put(&mut all.space.treat_whitespace_as_suffix, value.flag()),
                    35 => put(&mut all.byte_fallback, value.flag()),
                    41 => put(&mut all.bos, value.id()),
                    42 => put(&mut all.eos, value.id()),
                    _ => Ok(true),
                })?,
                3 => message("normalizer_spec", inside, &mut |number, value| match number {
                    2 => put(&mut all.charsmap, value.bytes().map(<[u8]>::to_vec)),
                    3 => put(&mut all.space.add_dummy_prefix, value.flag()),
                    4 => put(&mut all.space.remove_extra_whitespaces, value.flag()),
                    5 => put(&mut all.space.escape_whitespaces, value.flag()),
                    _ => Ok(true),
                })?,
                5 => message(
                    "denormalizer_spec",
                    inside,
                    &mut |number, value| match (number, value.bytes()) {
                        (2, Some(table)) if !table.is_empty() => refuse(
                            "denormalizer_spec: expected no rules for generated texts, got some".into(),
                        ),
                        _ => Ok(true),
                    },
                )?,
                _ => {}
            }
            Ok(true)
        })?;
        all.unigram = match model_type {
            1 => true,
            2 => false,
            3 => return refuse("model_type: expected UNIGRAM or BPE, got WORD".into()),
            4 => return refuse("model_type: expected UNIGRAM or BPE, got CHAR".into()),
            other => return refuse(format!("model_type: expected 1 (UNIGRAM) or 2 (BPE), got {other}")),
        };
        all.check_proto()?;
        Ok(all)
    }

    /// Checks what SentencePiece demands of a file, beyond what every vocabulary needs.
    fn check_proto(&self) -> Result<()> {
        let count = |kind| self.pieces.iter().filter(|piece| piece.kind == kind).count();
        let (unknown, bytes) = (count(PieceKind::Unknown), count(PieceKind::Byte));
        if unknown != 1 {
            return refuse(format!("expected one piece for unknown text, got {unknown}"));
        }
        let expected = if self.byte_fallback { 256 } else { 0 };
        if bytes != expected {
            return refuse(format!("expected {expected} pieces of bytes, got {bytes}"));
        }
        for (id, name) in [(self.bos, "bos_id"), (self.eos, "eos_id")] {
            if let Some(id) = id.filter(|&id| id as usize >= self.pieces.len()) {
                return refuse(format!("{name}: expected an id below {}, got {id}", self.pieces.len()));
            }
        }
        Ok(())
    }
}

fn piece(id: usize, bytes: &[u8]) -> Result<Piece> {
    let (mut text, mut score, mut kind) = (&[][..], 0, 1);
    message("pieces", bytes, &mut |number, value| match number {
        1 => put(&mut text, value.bytes()),
        2 => put(&mut score, if let Value::Fixed32(bits) = value { Some(bits) } else { None }),
        3 => put(&mut kind, value.number()),
        _ => Ok(true),
    })?;
    let Ok(text) = std::str::from_utf8(text) else {
        return refuse(format!("piece {id}: expected UTF-8, got {text:?}"));
    };
    let Some(kind) = PieceKind::numbered(kind) else {
        return refuse(format!("piece {id}, {text:?}: expected a type of 1 to 6, got {kind}"));
    };
    Ok(Piece { text: text.to_string(), score: f32::from_bits(score), kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_ten_bytes() {
        let read = |mut bytes: &[u8]| varint(&mut bytes).map(|value| (value, bytes.len()));
        assert_eq!(read(&[0x96, 0x01, 7]), Some((150, 1)));
        assert_eq!(read(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]), Some((u64::MAX, 0)));
        assert_eq!(read(&[0x80; 11]), None);
        assert_eq!(read(&[0x80]), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_vocabulary_of_tiktoken_is_told() {
        let told = |bytes: &[u8]| Declared::from_proto(bytes).unwrap_err().to_string();
        assert!(told(b"IQ== 0\nIg== 1\n").contains("got a vocabulary of tiktoken"));
        for other in [&b""[..], b"IQ==\n", b" 0\n", b"IQ== x\n", b"IQ== 0 1\n", b"\x0a\x05 1"] {
            assert!(!is_tiktoken(other), "{other:?}");
        }
    }

    #[test]
    fn fields_are_read_by_kind() {
        let read = |mut bytes: &'static [u8]| field(&mut bytes);
        assert_eq!(read(&[0x08, 0x05]), Some((1, Value::Number(5))));
        assert_eq!(read(&[0x12, 0x02, 7, 8, 9]), Some((2, Value::Bytes(&[7, 8]))));
        assert_eq!(read(&[0x1D, 1, 0, 0, 0]), Some((3, Value::Fixed32(1))));
        assert_eq!(read(&[0x21, 1, 0, 0, 0, 0, 0, 0, 0]), Some((4, Value::Fixed64)));
        // Too few bytes, a group (an old kind of field), or the field number 0.
        for bytes in [
            &[0x12, 0x03, 7][..],
            &[0x0B],
            &[0x1D, 1],
            &[0x21, 1],
            &[0x00, 0x01],
            &[0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
        ] {
            assert_eq!(read(bytes), None, "{bytes:?}");
        }
    }
}
