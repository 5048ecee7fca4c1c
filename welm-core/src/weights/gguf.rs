//! GGUF, the file format of llama.cpp: metadata, tokenizer and tensors together. [`parts`] joins a model in several files.
//!
//! Versions 2 and 3, little endian:
//!
//! ```text
//! "GGUF", version: u32, n_tensors: u64, n_keys: u64
//! n_keys x    (key: string, type: u32, value)
//! n_tensors x (name: string, n_dims: u32, dims: u64 x n_dims, type: u32, offset: u64)
//! padding to `general.alignment` (32 unless the metadata says otherwise)
//! data, in which every `offset` is a multiple of the alignment
//! ```
//!
//! A string is `len: u64` and that many bytes, which should be UTF-8; an array is `type: u32, len: u64` and its elements.
//! `dims` lists the innermost dimension first, [`StoredTensor::shape`] the outermost.
//!
//! Counts and lengths come from the file and may be anything. Each is compared with the bytes that are left, and keys
//! and tensors with a limit. Texts and arrays stay in the file: they are checked once, and read when they are asked for.
//! Tensors may not overlap, so what is later computed from all of them cannot exceed the file either.

mod cursor;
pub(crate) mod parts;
pub(crate) mod value;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use self::cursor::{Cursor, TensorInfo};
use self::value::Value;
use super::formats::StoredType;
use super::map::FileMap;
use super::tensor::StoredTensor;
use super::tensor_map::{MAX_TENSORS, TensorMap, Unreadable};
use crate::error::{Error, Result};

/// Most keys; models have some dozens.
const MAX_KEYS: u64 = 1 << 16;

/// Most bytes of a text; chat templates have some thousands.
const MAX_TEXT: usize = 16 << 20;
/// Most bytes of an array, as they lie in the file; vocabularies and merges have some millions.
const MAX_ARRAY: usize = 256 << 20;

/// An opened GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    map: Arc<FileMap>,
    /// Metadata by key, such as `llama.block_count`.
    metadata: HashMap<String, Value>,
    /// Keys that were asked for.
    read: RefCell<HashSet<String>>,
    /// The tensors, by ggml's names, such as `blk.0.attn_q.weight`.
    pub(crate) tensors: TensorMap,
}

impl Gguf {
    /// Maps a file, or all parts of the model of which it is one, and reads metadata and tensor tables; no tensor data
    /// is read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::InvalidFile`] for a file that is absent or damaged; [`Error::Tensor`] for a
    /// tensor of an impossible shape or place, or one that is there twice; one of an unsupported type, or without
    /// elements, is an error of who asks for it; [`Error::InvalidFile`] for parts that do not belong together.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        parts::join(path, Self::open_one(path)?)
    }

    /// Whether all that was read of its metadata was the file's. (A file without tensors is in no [`Files`](super::map::Files).)
    ///
    /// # Errors
    /// [`Error::InvalidFile`].
    pub(crate) fn check(&self) -> Result<()> {
        self.map.check()
    }

    /// As [`Gguf::open`], of this file alone.
    fn open_one(path: &Path) -> Result<Self> {
        Self::parse(path, &FileMap::open(path)?)
    }

    fn parse(path: &Path, map: &Arc<FileMap>) -> Result<Self> {
        let mut cursor = Cursor::new(path, map);
        let magic = cursor.array::<4>("the magic number")?;
        if magic != *b"GGUF" {
            return Err(Error::file(path, format!("expected the magic number GGUF, got {magic:02x?}")));
        }
        let version = cursor.u32("the version")?;
        if !matches!(version, 2 | 3) {
            let got = match version.swap_bytes() {
                2 | 3 => format!("a big-endian file of version {}", version.swap_bytes()),
                _ => format!("version {version}"),
            };
            return Err(Error::file(path, format!("expected GGUF version 2 or 3, got {got}")));
        }
        let n_tensors = cursor.u64("the number of tensors")?;
        let n_keys = cursor.u64("the number of keys")?;
        for (what, n, most) in [("tensors", n_tensors, MAX_TENSORS as u64), ("keys", n_keys, MAX_KEYS)] {
            if n > most {
                return Err(Error::file(path, format!("expected at most {most} {what}, got {n}")));
            }
        }

        let mut gguf = Gguf {
            map: Arc::clone(map),
            metadata: HashMap::new(),
            read: RefCell::default(),
            tensors: TensorMap { supported_types: StoredType::of_weights(true), ..TensorMap::default() },
        };
        for _ in 0..n_keys {
            let key = cursor.name("a key")?.to_string();
            let value = cursor.value(&key)?;
            if gguf.metadata.contains_key(&key) {
                return Err(Error::file(path, format!("key `{key}` appears twice")));
            }
            gguf.metadata.insert(key, value);
        }
        let alignment = gguf.opt_u64("general.alignment")?.unwrap_or(32);
        if !alignment.is_power_of_two() {
            let reason = format!("expected a power of two, got {alignment}");
            return Err(Error::config("general.alignment", reason));
        }

        let mut table = Vec::new();
        for _ in 0..n_tensors {
            table.push(cursor.tensor_info()?);
        }
        // Saturated, a start lies outside of every file, and `StoredTensor::new` says so.
        let data = (cursor.pos as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let mut ranges = Vec::with_capacity(table.len());
        for TensorInfo { name, dtype, shape, offset } in table {
            if !offset.is_multiple_of(alignment) {
                let reason = format!("expected an offset that is a multiple of {alignment}, got {offset}");
                return Err(Error::tensor(name, reason));
            }
            let readable = match dtype {
                Ok(_) if shape.contains(&0) => Err(Unreadable::Empty),
                Ok(dtype) => Ok(dtype),
                Err(name) => Err(Unreadable::Type(name)),
            };
            let dtype = match readable {
                Ok(dtype) => dtype,
                Err(why) => {
                    gguf.tensors.refuse(&name, &shape, why)?;
                    continue;
                }
            };
            let start = usize::try_from(data.saturating_add(offset)).unwrap_or(usize::MAX);
            let tensor = StoredTensor::new(map, &name, dtype, &shape, start)?;
            ranges.push((start, tensor.range.end, name));
            gguf.tensors.insert(tensor)?;
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            if let [(_, end, before), (start, _, name)] = pair
                && start < end
            {
                return Err(Error::tensor(name, format!("overlaps tensor `{before}`")));
            }
        }
        Ok(gguf)
    }

    /// The string at `key`. Like the other accessors, fails with [`Error::Config`] naming the key and what
    /// was expected; the `opt_` ones accept absence, but not a value of another type.
    pub(crate) fn str(&self, key: &str) -> Result<&str> {
        self.opt_str(key)?.ok_or_else(|| missing(key, "a string"))
    }

    /// The string at `key`, if there is one.
    pub(crate) fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        let bytes = self.opt(key, "a string", |value| match value {
            Value::Str(range) => Some(&self.map[range.clone()]),
            _ => None,
        })?;
        bytes.map(|bytes| utf8(key, bytes)).transpose()
    }

    /// The integer at `key`, of any width and not negative.
    pub(crate) fn u64(&self, key: &str) -> Result<u64> {
        self.opt_u64(key)?.ok_or_else(|| missing(key, "an integer"))
    }

    /// The integer at `key`, of any width and not negative, if there is one.
    pub(crate) fn opt_u64(&self, key: &str) -> Result<Option<u64>> {
        self.opt(key, "an integer, not negative", |value| match *value {
            Value::Unsigned(x) => Some(x),
            Value::Signed(x) => u64::try_from(x).ok(),
            _ => None,
        })
    }

    /// The float at `key`, if there is one; an f64 is rounded.
    pub(crate) fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        self.opt(key, "a float", |value| match *value {
            Value::Float(x) => Some(x as f32),
            _ => None,
        })
    }

    /// The boolean at `key`, if there is one.
    pub(crate) fn opt_bool(&self, key: &str) -> Result<Option<bool>> {
        self.opt(key, "a boolean", |value| match *value {
            Value::Bool(x) => Some(x),
            _ => None,
        })
    }

    /// The strings at `key`.
    pub(crate) fn str_array(&self, key: &str) -> Result<Vec<String>> {
        let expected = "an array of strings";
        self.opt_strs(key)?
            .map(|strings| strings.into_iter().map(str::to_string).collect())
            .ok_or_else(|| missing(key, expected))
    }

    /// The strings at `key`, if there are any, where they lie in the file.
    pub(crate) fn opt_strs(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let strings: Option<Vec<&[u8]>> = self.opt(key, "an array of strings", |value| match value {
            Value::Array(a) if a.type_id == 8 => {
                let mut rest = &self.map[a.elements.clone()];
                let mut next = || {
                    let (len, after) = rest.split_first_chunk()?;
                    let (text, after) =
                        after.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
                    rest = after;
                    Some(text)
                };
                (0..a.len).map(|_| next()).collect()
            }
            _ => None,
        })?;
        strings.map(|strings| strings.into_iter().map(|bytes| utf8(key, bytes)).collect()).transpose()
    }

    /// Elements of the array at `key`, if there is one.
    pub(crate) fn len_of(&self, key: &str) -> Option<usize> {
        match self.metadata.get(key) {
            Some(Value::Array(a)) => Some(a.len),
            _ => None,
        }
    }

    /// The integers at `key`, of any width, if there are any.
    pub(crate) fn opt_i64_array(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.opt(key, "an array of integers below 2^63", |value| {
            let Value::Array(a) = value else { return None };
            let bytes = &self.map[a.elements.clone()];
            macro_rules! numbers {
                ($t:ty) => {
                    bytes.as_chunks().0.iter().map(|b| i64::try_from(<$t>::from_le_bytes(*b)).ok()).collect()
                };
            }
            match a.type_id {
                0 => numbers!(u8),
                1 => numbers!(i8),
                2 => numbers!(u16),
                3 => numbers!(i16),
                4 => numbers!(u32),
                5 => numbers!(i32),
                10 => numbers!(u64),
                11 => numbers!(i64),
                _ => None,
            }
        })
    }

    /// The booleans at `key`, if there are any.
    pub(crate) fn opt_flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.opt(key, "an array of booleans", |value| match value {
            Value::Array(a) if a.type_id == 7 => {
                Some(self.map[a.elements.clone()].iter().map(|&x| x != 0).collect())
            }
            _ => None,
        })
    }

    /// The numbers at `key`, f32 or i32, if there are any.
    pub(crate) fn opt_f32_array(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.opt(key, "an array of f32 or i32", |value| {
            let Value::Array(a) = value else { return None };
            let numbers = self.map[a.elements.clone()].as_chunks().0.iter();
            match a.type_id {
                5 => Some(numbers.map(|b| i32::from_le_bytes(*b) as f32).collect()),
                6 => Some(numbers.map(|b| f32::from_le_bytes(*b)).collect()),
                _ => None,
            }
        })
    }

    /// The bytes at `key`, an array of u8 or i8, if there are any.
    pub(crate) fn opt_bytes(&self, key: &str) -> Result<Option<&[u8]>> {
        self.opt(key, "an array of bytes", |value| match value {
            Value::Array(a) if matches!(a.type_id, 0 | 1) => Some(&self.map[a.elements.clone()]),
            _ => None,
        })
    }

    /// Notes that a key has been dealt with.
    pub(crate) fn mark_read(&self, key: &str) {
        self.read.borrow_mut().insert(key.to_string());
    }

    /// The keys that nobody asked for.
    pub(crate) fn unread(&self) -> impl Iterator<Item = (&str, &Value)> {
        let read = self.read.borrow();
        let unread: Vec<_> = self.metadata.iter().filter(|(key, _)| !read.contains(*key)).collect();
        unread.into_iter().map(|(key, value)| (key.as_str(), value))
    }

    /// All keys with their values, in no order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A value as JSON, unless it is an array or a text that is too long to read.
    pub(crate) fn to_json(&self, value: &Value) -> Option<serde_json::Value> {
        match value {
            Value::Unsigned(x) => Some((*x).into()),
            Value::Signed(x) => Some((*x).into()),
            Value::Float(x) => Some((*x).into()),
            Value::Bool(x) => Some((*x).into()),
            Value::Str(range) if range.len() > MAX_TEXT => None,
            Value::Str(range) => std::str::from_utf8(&self.map[range.clone()]).ok().map(Into::into),
            Value::Array(_) => None,
        }
    }

    fn opt<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        self.mark_read(key);
        match value {
            Value::Str(range) => _ = at_most(key, &self.map[range.clone()], MAX_TEXT)?,
            Value::Array(a) => _ = at_most(key, &self.map[a.elements.clone()], MAX_ARRAY)?,
            _ => {}
        }
        match read(value) {
            Some(x) => Ok(Some(x)),
            None => Err(Error::config(key, format!("expected {expected}, got {value}"))),
        }
    }
}

/// Values that somebody asked for, if they have no more bytes than a model's have.
fn at_most<'a>(key: &str, bytes: &'a [u8], most: usize) -> Result<&'a [u8]> {
    let reason = || format!("expected at most {most} bytes, got {}", bytes.len());
    if bytes.len() <= most { Ok(bytes) } else { Err(Error::config(key, reason())) }
}

/// Text that somebody asked for. What nobody asks for, such as a title, may be any bytes.
fn utf8<'a>(key: &str, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes)
        .map_err(|e| Error::config(key, format!("expected UTF-8, got other bytes: {e}")))
}

fn missing(key: &str, expected: &str) -> Error {
    Error::config(key, format!("missing from the file, expected {expected}"))
}

#[cfg(test)]
pub(crate) mod tests;
