//! Reads a GGUF file from the front, and compares every count and length with the bytes that are left.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use super::super::formats::StoredType;
use super::value::{Array, Value};
use crate::error::{Error, Result};

/// Most levels of arrays in arrays; no known key has more than one.
const MAX_NESTING: usize = 4;

/// ggml's tensor types by number; empty where a type was withdrawn.
const GGML_TYPES: [&str; 40] = [
    "F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",
    "I16", "I32", "I64", "F64", "IQ1_M", "BF16", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4",
];

/// One line of the tensor table.
pub(super) struct TensorInfo {
    pub(super) name: String,
    /// Or why it cannot be read.
    pub(super) dtype: Result<StoredType, String>,
    pub(super) shape: Vec<usize>, // outermost first
    pub(super) offset: u64,       // into the data
}

/// Reads a file from the front; every read checks what is left.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pub(super) pos: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Cursor { path, bytes, pos: 0 }
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.pos..];
        match usize::try_from(n).ok().and_then(|n| rest.get(..n)) {
            Some(taken) => {
                self.pos += taken.len();
                Ok(taken)
            }
            None => Err(self.error(format!("{what} takes {n} bytes, {} are left", rest.len()))),
        }
    }

    fn error(&self, reason: impl fmt::Display) -> Error {
        Error::file(self.path, format!("at byte {}: {reason}", self.pos))
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The name of something.
    pub(super) fn name(&mut self, what: &str) -> Result<&'a str> {
        let bytes = self.string(what)?;
        std::str::from_utf8(bytes).map_err(|e| self.error(format!("{what} is not UTF-8: {e}")))
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8]> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// A type and a value of it.
    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
        macro_rules! number {
            ($t:ty, $kind:ident) => {
                Value::$kind(<$t>::from_le_bytes(self.array(key)?).into())
            };
        }
        Ok(match self.u32(key)? {
            0 => number!(u8, Unsigned),
            1 => number!(i8, Signed),
            2 => number!(u16, Unsigned),
            3 => number!(i16, Signed),
            4 => number!(u32, Unsigned),
            5 => number!(i32, Signed),
            6 => number!(f32, Float),
            7 => {
                let byte = self.elements(7, 1, key, 0)?;
                Value::Bool(self.bytes[byte.start] == 1)
            }
            8 => {
                let len = self.string(key)?.len();
                Value::Str(self.pos - len..self.pos)
            }
            9 => Value::Array(self.typed_elements(key, 1)?),
            10 => number!(u64, Unsigned),
            11 => number!(i64, Signed),
            12 => number!(f64, Float),
            other => return Err(self.error(format!("`{key}`: expected a type of 0 to 12, got {other}"))),
        })
    }

    /// An array with its head.
    fn typed_elements(&mut self, key: &str, depth: usize) -> Result<Array> {
        let type_id = self.u32(key)?;
        let n = self.u64(key)?;
        let elements = self.elements(type_id, n, key, depth)?;
        // Each element has a byte in the file, or `n` is no length of anything.
        let len = usize::try_from(n).map_err(|_| self.error(format!("`{key}`: {n} elements")))?;
        Ok(Array { type_id, len, elements })
    }

    /// Checks `n` values of one type, and gives the bytes that they take. `depth` counts the arrays around them.
    fn elements(&mut self, type_id: u32, n: u64, key: &str, depth: usize) -> Result<Range<usize>> {
        let start = self.pos;
        let size = match type_id {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..n {
                    self.string(key)?;
                }
                0
            }
            9 if depth >= MAX_NESTING => {
                return Err(self.error(format!("`{key}`: arrays are nested deeper than {MAX_NESTING}")));
            }
            9 => {
                for _ in 0..n {
                    self.typed_elements(key, depth + 1)?;
                }
                0
            }
            _ => return Err(self.error(format!("`{key}`: expected a type of 0 to 12, got {type_id}"))),
        };
        let bytes = self.take(n.saturating_mul(size), key)?;
        if type_id == 7
            && let Some(other) = bytes.iter().find(|&&b| b > 1)
        {
            return Err(self.error(format!("`{key}`: expected a boolean of 0 or 1, got {other}")));
        }
        Ok(start..self.pos)
    }

    pub(super) fn tensor_info(&mut self) -> Result<TensorInfo> {
        let name = self.name("a tensor's name")?.to_string();
        let n_dims = self.u32(&name)?;
        if !matches!(n_dims, 1..=4) {
            return Err(Error::tensor(name, format!("expected 1 to 4 dimensions, got {n_dims}")));
        }
        let mut shape = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            let dim = self.u64(&name)?;
            // Saturated, the size of the tensor exceeds every file.
            shape.push(usize::try_from(dim).unwrap_or(usize::MAX));
        }
        shape.reverse();
        let type_id = self.u32(&name)?;
        let type_name = usize::try_from(type_id).ok().and_then(|id| GGML_TYPES.get(id)).copied();
        let dtype = match type_name {
            None | Some("") => Err(format!("number {type_id}")),
            Some(name) => StoredType::named(name)
                .filter(|stored| stored.format().is_weight())
                .ok_or_else(|| name.to_string()),
        };
        let offset = self.u64(&name)?;
        Ok(TensorInfo { name, dtype, shape, offset })
    }
}

#[cfg(test)]
impl StoredType {
    /// The number that GGUF files give this type.
    pub(crate) fn ggml_number(self) -> u32 {
        let name = self.format().name();
        GGML_TYPES.iter().position(|known| *known == name).expect("GGUF files have it") as u32
    }
}
