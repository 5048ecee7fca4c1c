//! GGUF, the single-file format of llama.cpp: metadata, tokenizer and tensors together.
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
//!
//! Long for one file, because two fifths are tests: the writer of damaged files belongs beside the reader.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::map::FileMap;
use super::{MAX_TENSORS, StoredTensor, StoredType, TensorMap, Unreadable};
use crate::error::{Error, Result};

/// Most levels of arrays in arrays; no known key has more than one.
const MAX_NESTING: usize = 4;
/// Most keys; models have some dozens.
const MAX_KEYS: u64 = 1 << 16;

/// A metadata value. Integers are widened to 64 bits and floats to f64, without loss.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// u8, u16, u32 or u64.
    Unsigned(u64),
    /// i8, i16, i32 or i64.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A byte, 0 or 1.
    Bool(bool),
    /// Text, which lies in these bytes of the file: UTF-8, or it is an error of who asks for it.
    Str(Range<usize>),
    /// Elements of one type.
    Array(Array),
}

/// An array value, as it lies in the file: vocabularies have hundreds of thousands of entries.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array {
    type_id: u32,
    len: usize,
    /// Bytes of the file with the elements, which have been checked.
    elements: Range<usize>,
}

/// Types of values by their number in a file.
const KINDS: [&str; 13] = [
    "unsigned integers",
    "signed integers",
    "unsigned integers",
    "signed integers",
    "unsigned integers",
    "signed integers",
    "floats",
    "booleans",
    "strings",
    "arrays",
    "unsigned integers",
    "signed integers",
    "floats",
];

/// What a value is, for the `got` of an error: its kind, and for numbers the value.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(x) => write!(f, "{x}"),
            Value::Signed(x) => write!(f, "{x}"),
            Value::Float(x) => write!(f, "{x:?}"),
            Value::Bool(x) => write!(f, "{x}"),
            Value::Str(_) => f.write_str("a string"),
            Value::Array(a) => write!(f, "an array of {} {}", a.len, KINDS[a.type_id as usize]),
        }
    }
}

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
    /// Maps a file and reads its metadata and tensor table; no tensor data is read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::InvalidFile`] for a file that is absent or damaged; [`Error::Tensor`] for a
    /// tensor of an impossible shape or place, or one that is there twice; one of an unsupported type, or without
    /// elements, is an error of who asks for it; [`Error::Config`] for one part of a model that was split over several files.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::parse(path, &FileMap::open(path)?)
    }

    fn parse(path: &Path, map: &Arc<FileMap>) -> Result<Self> {
        let mut cursor = Cursor { path, bytes: map, pos: 0 };
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
            tensors: TensorMap { supported_types: SUPPORTED, ..TensorMap::default() },
        };
        for _ in 0..n_keys {
            let key = cursor.name("a key")?.to_string();
            let value = cursor.value(&key)?;
            if gguf.metadata.contains_key(&key) {
                return Err(Error::file(path, format!("key `{key}` appears twice")));
            }
            gguf.metadata.insert(key, value);
        }
        if let Some(parts @ 2..) = gguf.opt_u64("split.count")? {
            let reason = format!("expected a model in one file, got one of {parts} parts; merge them first");
            return Err(Error::config("split.count", reason));
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

    /// A value as JSON, unless it is an array.
    pub(crate) fn to_json(&self, value: &Value) -> Option<serde_json::Value> {
        match value {
            Value::Unsigned(x) => Some((*x).into()),
            Value::Signed(x) => Some((*x).into()),
            Value::Float(x) => Some((*x).into()),
            Value::Bool(x) => Some((*x).into()),
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
        match read(value) {
            Some(x) => Ok(Some(x)),
            None => Err(Error::config(key, format!("expected {expected}, got {value}"))),
        }
    }
}

/// Text that somebody asked for. What nobody asks for, such as a title, may be any bytes.
fn utf8<'a>(key: &str, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes)
        .map_err(|e| Error::config(key, format!("expected UTF-8, got other bytes: {e}")))
}

fn missing(key: &str, expected: &str) -> Error {
    Error::config(key, format!("missing from the file, expected {expected}"))
}

/// One line of the tensor table.
struct TensorInfo {
    name: String,
    /// Or why it cannot be read.
    dtype: Result<StoredType, String>,
    shape: Vec<usize>, // outermost first
    offset: u64,       // into the data
}

/// Reads a file from the front; every read checks what is left.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
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

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The name of something.
    fn name(&mut self, what: &str) -> Result<&'a str> {
        let bytes = self.string(what)?;
        std::str::from_utf8(bytes).map_err(|e| self.error(format!("{what} is not UTF-8: {e}")))
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8]> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// A type and a value of it.
    fn value(&mut self, key: &str) -> Result<Value> {
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

    fn tensor_info(&mut self) -> Result<TensorInfo> {
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
            Some("F32") => Ok(StoredType::F32),
            Some("F16") => Ok(StoredType::F16),
            Some("BF16") => Ok(StoredType::Bf16),
            Some("Q8_0") => Ok(StoredType::Q8_0),
            Some("Q4_0") => Ok(StoredType::Q4_0),
            Some("Q4_1") => Ok(StoredType::Q4_1),
            None | Some("") => Err(format!("number {type_id}")),
            Some(other) => Err(other.to_string()),
        };
        let offset = self.u64(&name)?;
        Ok(TensorInfo { name, dtype, shape, offset })
    }
}

/// The types that can be read; see `Cursor::tensor_info`.
const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0 and Q4_1";

/// ggml's tensor types by number; empty where a type was withdrawn.
const GGML_TYPES: [&str; 40] = [
    "F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8",
    "I16", "I32", "I64", "F64", "IQ1_M", "BF16", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4",
];

#[cfg(test)]
pub(crate) mod tests {
    use super::super::tests::{damage, mapped};
    use super::*;

    /// Writes small files, right or wrong.
    #[derive(Default)]
    pub(crate) struct Writer {
        n_keys: u64,
        keys: Vec<u8>,
        n_tensors: u64,
        table: Vec<u8>,
        data: Vec<u8>,
    }

    pub(crate) fn string(s: &str) -> Vec<u8> {
        [&(s.len() as u64).to_le_bytes(), s.as_bytes()].concat()
    }

    /// The bytes of an array value of `n` elements.
    pub(crate) fn array(type_id: u32, n: u64, elements: &[u8]) -> Vec<u8> {
        [&type_id.to_le_bytes(), &n.to_le_bytes()[..], elements].concat()
    }

    impl Writer {
        pub(crate) fn key(mut self, key: &str, type_id: u32, value: &[u8]) -> Self {
            self.n_keys += 1;
            self.keys.extend([&string(key), &type_id.to_le_bytes()[..], value].concat());
            self
        }

        /// A line of the table; `dims` innermost first, as in the file.
        pub(crate) fn info(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
            self.n_tensors += 1;
            self.table.extend([&string(name), &(dims.len() as u32).to_le_bytes()[..]].concat());
            self.table.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
            self.table.extend([&type_id.to_le_bytes()[..], &offset.to_le_bytes()].concat());
            self
        }

        pub(crate) fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, bytes: &[u8]) -> Self {
            self.data.resize(self.data.len().next_multiple_of(32), 0);
            let offset = self.data.len() as u64;
            self.data.extend(bytes);
            self.info(name, dims, type_id, offset)
        }

        pub(crate) fn finish(&self) -> Vec<u8> {
            let mut file = [&b"GGUF"[..], &3u32.to_le_bytes(), &self.n_tensors.to_le_bytes()].concat();
            file.extend([&self.n_keys.to_le_bytes(), &self.keys[..], &self.table].concat());
            file.resize(file.len().next_multiple_of(32), 0);
            file.extend(&self.data);
            file
        }

        pub(crate) fn open(&self) -> Result<Gguf> {
            parse(&self.finish())
        }

        fn error(&self) -> String {
            self.open().unwrap_err().to_string()
        }
    }

    fn parse(bytes: &[u8]) -> Result<Gguf> {
        Gguf::parse(Path::new("test.gguf"), &mapped(bytes))
    }

    #[test]
    fn reads_tensors_of_every_type() {
        let q8 = [&[0x00, 0x38], &[2; 32][..]].concat(); // d = 0.5
        let q4_0 = [&[0x00, 0x38], &[0x1f; 16][..]].concat();
        let q4_1 = [&[0x00, 0x38, 0x00, 0x3c], &[0x1f; 16][..]].concat(); // m = 1
        let gguf = Writer::default()
            .tensor("f32", &[3, 2], 0, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].map(f32::to_le_bytes).concat())
            .tensor("f16", &[1], 1, &[0x00, 0xc0])
            .tensor("bf16", &[1, 2], 30, &[0x80, 0x3f, 0x00, 0x40])
            .tensor("q8_0", &[32, 1], 8, &q8)
            .tensor("q4_0", &[32], 2, &q4_0)
            .tensor("q4_1", &[32], 3, &q4_1)
            .open()
            .unwrap();
        let get = |name| gguf.tensors.get(name).unwrap();
        let mut row = [0.0; 3];
        get("f32").row_f32(1, &mut row);
        assert_eq!((&get("f32").shape[..], row), (&[2, 3][..], [4.0, 5.0, 6.0]));
        assert_eq!(get("f16").to_f32(), [-2.0]);
        assert_eq!((&get("bf16").shape[..], get("bf16").to_f32()), (&[2, 1][..], vec![1.0, 2.0]));
        assert_eq!((&get("q8_0").shape[..], get("q8_0").to_f32()), (&[1, 32][..], vec![1.0; 32]));
        assert_eq!(get("q4_0").to_f32(), [[3.5; 16], [-3.5; 16]].concat());
        assert_eq!(get("q4_1").to_f32(), [[8.5; 16], [1.5; 16]].concat());
        assert_eq!(gguf.tensors.names().count(), 6);
        assert_eq!(gguf.tensors.total_bytes(), 24 + 2 + 4 + 34 + 18 + 20);
    }

    fn all_keys() -> Writer {
        Writer::default()
            .key("u8", 0, &[200])
            .key("i8", 1, &[0xfe])
            .key("u16", 2, &[1, 2])
            .key("i16", 3, &[0xff, 0xff])
            .key("u32", 4, &[0, 0, 0, 0x80])
            .key("i32", 5, &[7, 0, 0, 0])
            .key("f32", 6, &0.1f32.to_le_bytes())
            .key("bool", 7, &[1])
            .key("str", 8, &string("微信"))
            .key("u64", 10, &u64::MAX.to_le_bytes())
            .key("i64", 11, &[0xff; 8])
            .key("f64", 12, &1e-5f64.to_le_bytes())
            .key("strs", 9, &array(8, 2, &[string("a"), string("")].concat()))
            .key("ints", 9, &array(5, 2, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]))
            .key("bytes", 9, &array(0, 3, &[1, 2, 3]))
            .key("huge", 9, &array(10, 1, &[0xff; 8]))
            .key("floats", 9, &array(6, 1, &(-0.5f32).to_le_bytes()))
            .key("bools", 9, &array(7, 2, &[0, 1]))
            .key("nested", 9, &array(9, 2, &[array(0, 1, &[5]), array(8, 0, &[])].concat()))
    }

    #[test]
    fn reads_values_of_every_type() {
        let gguf = all_keys().open().unwrap();
        assert_eq!(gguf.u64("u8").unwrap(), 200);
        assert_eq!(gguf.u64("u16").unwrap(), 0x201);
        assert_eq!(gguf.u64("u32").unwrap(), 1 << 31);
        assert_eq!(gguf.u64("i32").unwrap(), 7);
        assert_eq!(gguf.opt_u64("u64").unwrap(), Some(u64::MAX));
        assert_eq!(gguf.metadata["i8"], Value::Signed(-2));
        assert_eq!(gguf.metadata["i16"], Value::Signed(-1));
        assert_eq!(gguf.opt_f32("f32").unwrap(), Some(0.1));
        assert_eq!(gguf.opt_f32("f64").unwrap(), Some(1e-5));
        assert_eq!(gguf.opt_bool("bool").unwrap(), Some(true));
        assert_eq!(gguf.str("str").unwrap(), "微信");
        assert_eq!(gguf.str_array("strs").unwrap(), ["a", ""]);
        assert_eq!(gguf.opt_i64_array("ints").unwrap().unwrap(), [1, -1]);
        assert_eq!(gguf.opt_i64_array("bytes").unwrap().unwrap(), [1, 2, 3]);
        assert_eq!(gguf.opt_strs("strs").unwrap().unwrap(), ["a", ""]);
        for (key, shown) in [
            ("floats", "an array of 1 floats"),
            ("bools", "an array of 2 booleans"),
            ("nested", "an array of 2 arrays"),
            ("str", "a string"),
        ] {
            assert_eq!(gguf.metadata[key].to_string(), shown);
        }
        assert!(gguf.opt_str("absent").unwrap().is_none());
        assert!(gguf.opt_strs("absent").unwrap().is_none());
        for (key, json) in [
            ("u8", serde_json::json!(200)),
            ("i16", serde_json::json!(-1)),
            ("f64", serde_json::json!(1e-5)),
            ("bool", serde_json::json!(true)),
            ("str", serde_json::json!("微信")),
        ] {
            assert_eq!(gguf.to_json(&gguf.metadata[key]), Some(json));
        }
        assert_eq!(gguf.to_json(&gguf.metadata["bools"]), None);
    }

    #[test]
    fn keys_that_nobody_asked_for_are_known() {
        let gguf = Writer::default().key("a", 0, &[1]).key("b", 0, &[2]).key("c", 0, &[3]).open().unwrap();
        assert_eq!(gguf.u64("b").unwrap(), 2);
        gguf.mark_read("c");
        assert_eq!(gguf.unread().collect::<Vec<_>>(), [("a", &Value::Unsigned(1))]);
    }

    #[test]
    fn wrong_types_name_the_key() {
        let gguf = all_keys().open().unwrap();
        for (error, message) in [
            (gguf.str("u8").err(), "`u8`: expected a string, got 200"),
            (gguf.str("absent").err(), "`absent`: missing from the file, expected a string"),
            (gguf.u64("absent").err(), "`absent`: missing from the file, expected an integer"),
            (gguf.u64("i64").err(), "`i64`: expected an integer, not negative, got -1"),
            (gguf.opt_u64("ints").err(), "got an array of 2 signed integers"),
            (gguf.opt_f32("str").err(), "`str`: expected a float, got a string"),
            (gguf.opt_bool("f64").err(), "`f64`: expected a boolean, got 1e-5"),
            (gguf.str_array("absent").err(), "missing from the file, expected an array of strings"),
            (gguf.str_array("bools").err(), "expected an array of strings, got an array of 2 booleans"),
            (gguf.opt_i64_array("huge").err(), "got an array of 1 unsigned integers"),
            (gguf.opt_i64_array("nested").err(), "below 2^63, got an array of 2 arrays"),
        ] {
            let error = error.unwrap();
            assert!(matches!(error, Error::Config { .. }));
            assert!(error.to_string().ends_with(message), "{error}");
        }
    }

    #[test]
    fn survives_any_damage() {
        let file = all_keys()
            .key("general.alignment", 4, &32u32.to_le_bytes())
            .tensor("a", &[2, 2], 0, &[0x3f; 16])
            .tensor("b", &[32, 1], 2, &[0x11; 18])
            .finish();
        damage(&file, |map| Gguf::parse(Path::new("test.gguf"), &map).map(|gguf| gguf.tensors));
    }

    #[test]
    fn heads_are_checked() {
        let good = Writer::default().finish();
        parse(&good).unwrap();
        let with = |at: usize, bytes: &[u8]| {
            let mut file = good.clone();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            parse(&file).map(|_| ()).map_err(|e| e.to_string())
        };
        with(4, &2u32.to_le_bytes()).unwrap();
        assert!(with(0, b"ggjt").unwrap_err().contains("expected the magic number GGUF"));
        assert!(with(4, &1u32.to_le_bytes()).unwrap_err().ends_with("got version 1"));
        assert!(with(4, &3u32.to_be_bytes()).unwrap_err().ends_with("got a big-endian file of version 3"));
        // Counts that only a file of their size could have.
        for n in [1, 1 << 40, u64::MAX] {
            assert!(with(8, &u64::to_le_bytes(n)).is_err());
            assert!(with(16, &u64::to_le_bytes(n)).is_err());
        }
    }

    #[test]
    fn huge_lengths_are_refused() {
        for n in [1000, 1 << 32, 1 << 61, u64::MAX - 15, u64::MAX] {
            for type_id in 0..13 {
                let error = Writer::default().key("k", 9, &array(type_id, n, &[])).error();
                assert!(error.contains("are left"), "{error}");
            }
            assert!(Writer::default().key("k", 8, &n.to_le_bytes()).error().contains("k takes"));
            let long_key = Writer { n_keys: 1, keys: n.to_le_bytes().to_vec(), ..Writer::default() };
            assert!(long_key.error().contains("a key takes"));
            let long_name = Writer { n_tensors: 1, table: n.to_le_bytes().to_vec(), ..Writer::default() };
            assert!(long_name.error().contains("a tensor's name takes"));
        }
    }

    #[test]
    fn bad_values_are_refused() {
        let error = |type_id, value: &[u8]| Writer::default().key("k", type_id, value).error();
        assert!(error(13, &[0; 8]).contains("`k`: expected a type of 0 to 12, got 13"));
        assert!(error(9, &array(13, 0, &[])).contains("got 13"));
        assert!(error(7, &[2]).contains("`k`: expected a boolean of 0 or 1, got 2"));
        let other = [1, 0, 0, 0, 0, 0, 0, 0, 0xff];
        let keys = Writer { n_keys: 1, keys: other.to_vec(), ..Writer::default() };
        assert!(keys.error().contains("a key is not UTF-8"));
        // In a title it does not matter.
        let title = Writer::default().key("k", 8, &other).key("ks", 9, &array(8, 1, &other)).open().unwrap();
        let of = |r: Result<()>| r.unwrap_err().to_string();
        let want = "config setting `k`: expected UTF-8, got other bytes: invalid utf-8 sequence of 1 bytes from index 0";
        assert_eq!(of(title.opt_str("k").map(drop)), want);
        assert!(of(title.opt_strs("ks").map(drop)).contains("`ks`: expected UTF-8, got other bytes"));
        let nest = |n: usize| [array(9, 1, &[]).repeat(n - 1), array(0, 0, &[])].concat();
        Writer::default().key("k", 9, &nest(4)).open().unwrap();
        assert!(error(9, &nest(5)).contains("`k`: arrays are nested deeper than 4"));
        assert!(error(9, &nest(100_000)).contains("`k`: arrays are nested deeper than 4"));
        let twice = Writer::default().key("k", 0, &[1]).key("k", 0, &[1]);
        assert!(twice.error().ends_with("key `k` appears twice"));
    }

    #[test]
    fn split_models_are_refused() {
        let error = Writer::default().key("split.count", 2, &[3, 0]).error();
        assert!(error.contains("`split.count`: expected a model in one file, got one of 3 parts"), "{error}");
        Writer::default().key("split.count", 2, &[1, 0]).open().unwrap();
    }

    #[test]
    fn alignment_is_followed() {
        let with = |n: u32| Writer::default().key("general.alignment", 4, &n.to_le_bytes());
        for n in [0, 3, 48] {
            let error = with(n).error();
            assert!(error.contains(&format!("expected a power of two, got {n}")), "{error}");
        }
        with(1 << 31).open().unwrap();
        assert!(with(1 << 31).tensor("t", &[1], 0, &[0; 4]).error().contains("does not fit"));
        let mut writer = with(64).info("t", &[4], 0, 0);
        writer.data =
            [[1.0f32; 8], [2.0; 8], [3.0; 8]].concat().iter().flat_map(|x| x.to_le_bytes()).collect();
        let head = writer.finish().len() - writer.data.len();
        assert_eq!(head % 64, 32, "or the test shows nothing");
        assert_eq!(writer.open().unwrap().tensors.get("t").unwrap().to_f32(), [2.0; 4]);
    }

    #[test]
    fn tensor_table_is_checked() {
        let error = |dims: &[u64], type_id, offset| {
            let mut writer = Writer::default().info("t", dims, type_id, offset);
            writer.data = vec![0; 128];
            let error = writer.error();
            assert!(error.starts_with("tensor `t`: "), "{error}");
            error
        };
        assert!(error(&[], 0, 0).ends_with("expected 1 to 4 dimensions, got 0"));
        assert!(error(&[1; 5], 0, 0).ends_with("expected 1 to 4 dimensions, got 5"));
        assert!(error(&[31, 2], 8, 0).contains("Q8_0 needs rows of a multiple of 32 elements"));
        assert!(error(&[4], 0, 8).ends_with("expected an offset that is a multiple of 32, got 8"));
        assert!(error(&[1], 0, 128).contains("does not fit"));
        assert!(error(&[1], 0, u64::MAX - 31).contains("does not fit"));
        assert!(error(&[33], 0, 0).contains("does not fit"));
        assert!(error(&[u64::MAX], 0, 0).contains("does not fit"));
        assert!(error(&[1 << 32, 1 << 32], 0, 0).contains("does not fit"));
        assert!(error(&[1 << 31; 4], 0, 0).contains("does not fit"));
    }

    #[test]
    fn a_tensor_that_cannot_be_read_is_an_error_of_who_reads_it() {
        let error = |dims: &[u64], type_id| {
            let gguf =
                Writer::default().info("t", dims, type_id, 0).tensor("u", &[1], 0, &[0; 4]).open().unwrap();
            assert_eq!(gguf.tensors.get("u").unwrap().to_f32(), [0.0]);
            gguf.tensors.get("t").unwrap_err().to_string()
        };
        assert_eq!(error(&[4, 0], 0), "tensor `t`: shape (0, 4) holds no element");
        let supported = "is not supported; F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are";
        assert!(error(&[256], 12).ends_with(&format!("type Q4_K {supported}")));
        assert!(error(&[256], 14).ends_with(&format!("type Q6_K {supported}")));
        assert!(error(&[256], 36).ends_with(&format!("type number 36 {supported}")));
        assert!(error(&[256], 77).ends_with(&format!("type number 77 {supported}")));
    }

    #[test]
    fn counts_have_limits() {
        let keys = Writer { n_keys: MAX_KEYS + 1, ..Writer::default() }.error();
        assert!(keys.ends_with("expected at most 65536 keys, got 65537"), "{keys}");
        let tensors = Writer { n_tensors: u64::MAX, ..Writer::default() }.error();
        assert!(tensors.contains("expected at most 131072 tensors, got 18446744073709551615"), "{tensors}");
    }

    #[test]
    fn tensors_share_neither_names_nor_bytes() {
        let mut writer = Writer::default().info("a", &[16], 0, 0).info("b", &[8], 0, 32);
        writer.data = vec![0; 64];
        assert_eq!(writer.error(), "tensor `b`: overlaps tensor `a`");
        let twice = Writer::default().tensor("a", &[8], 0, &[0; 32]).tensor("a", &[8], 0, &[0; 32]);
        assert_eq!(twice.error(), "tensor `a`: the model holds it twice");
    }

    #[test]
    fn opens_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        assert!(matches!(Gguf::open(&path), Err(Error::Io { .. })));
        std::fs::write(&path, all_keys().finish()).unwrap();
        assert_eq!(Gguf::open(&path).unwrap().metadata.len(), 19);
    }
}
