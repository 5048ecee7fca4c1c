//! Weights at rest: named, shape-checked tensors inside memory-mapped model files.
//!
//! `safetensors` and `gguf` each turn a file into a [`TensorMap`]. Both are thin: everything that must hold
//! for a tensor to be read safely is checked once, in [`StoredTensor::new`], and every read afterwards is an
//! ordinary bounds-checked slice. Files are untrusted: no content of a file can cause a panic, an allocation
//! that its size does not justify, or a read outside of it.
//!
//! Files are mapped, not read: weights that are used as they are stored ([`Slab`]) cost no memory of their
//! own, start-up does not copy them, and processes that run the same model share its pages. The price is
//! that **a model file must not be modified while a model uses it**: the operating system would show the
//! change. If it is truncated, the model's requests end with an error ([`map`], and
//! [`crate::LoadOptions::guard_mapped_files`]). Replacing a file by renaming a new one over it is safe.
//!
//! Long for one file, because tensor, map and slab share the checks and their tests.

pub(crate) mod describe;
mod draft;
pub(crate) mod gguf;
pub(crate) mod int4;
pub(crate) mod int8;
pub(crate) mod load;
pub(crate) mod map;
pub(crate) mod open;
pub(crate) mod quantize;
pub(crate) mod safetensors;
mod unread;

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::backend::cpu::memory::Memory;
use crate::error::{Error, Result};
use crate::weights::map::{FileMap, Files};

/// Most dimensions a tensor may have; models have 1 or 2, GGUF allows 4.
const MAX_RANK: usize = 8;
/// Most tensors of a model; each takes memory of its own, however few bytes a file describes it with.
const MAX_TENSORS: usize = 1 << 17;

/// How the elements of a tensor are stored. The last three are ggml's blocks of 32 elements of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StoredType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Unsigned bytes.
    U8,
    /// Signed bytes.
    I8,
    /// `d: f16, q: [i8; 32]`; an element is `d * q`.
    Q8_0,
    /// `d: f16, q: [u4; 32]`; an element is `d * (q - 8)`. Low nibbles are the first 16 elements.
    Q4_0,
    /// `d: f16, m: f16, q: [u4; 32]`; an element is `d * q + m`. Nibbles as in `Q4_0`.
    Q4_1,
}

impl StoredType {
    /// As GGUF and safetensors name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            StoredType::F32 => "F32",
            StoredType::F16 => "F16",
            StoredType::Bf16 => "BF16",
            StoredType::U8 => "U8",
            StoredType::I8 => "I8",
            StoredType::Q8_0 => "Q8_0",
            StoredType::Q4_0 => "Q4_0",
            StoredType::Q4_1 => "Q4_1",
        }
    }

    /// Elements of one block; 1 for types without blocks.
    pub(crate) const fn block_len(self) -> usize {
        match self {
            StoredType::Q8_0 | StoredType::Q4_0 | StoredType::Q4_1 => 32,
            _ => 1,
        }
    }

    /// Bytes of one block.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            StoredType::F32 => 4,
            StoredType::F16 | StoredType::Bf16 => 2,
            StoredType::U8 | StoredType::I8 => 1,
            StoredType::Q8_0 => 2 + 32,
            StoredType::Q4_0 => 2 + 16,
            StoredType::Q4_1 => 2 + 2 + 16,
        }
    }

    /// Converts whole blocks to f32: `bytes` holds exactly `out.len()` elements.
    ///
    /// Every step is exact but the one multiplication (and addition) of a block format, which rounds once
    /// per operation, as ggml's own conversion does.
    fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len(), out.len() / self.block_len() * self.block_bytes());
        match self {
            StoredType::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            // By 64, because `half` looks for the hardware's conversion once per slice.
            StoredType::F16 => {
                for (out, bytes) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                    let mut halves = [f16::ZERO; 64];
                    for (h, b) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *h = f16::from_le_bytes(*b);
                    }
                    halves[..out.len()].convert_to_f32_slice(out);
                }
            }
            StoredType::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }
            StoredType::U8 => {
                for (o, b) in out.iter_mut().zip(bytes) {
                    *o = f32::from(*b);
                }
            }
            StoredType::I8 => {
                for (o, b) in out.iter_mut().zip(bytes) {
                    *o = f32::from(b.cast_signed());
                }
            }
            StoredType::Q8_0 => {
                for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<34>().0) {
                    let d = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    for (o, q) in out.iter_mut().zip(&b[2..]) {
                        *o = d * f32::from(q.cast_signed());
                    }
                }
            }
            StoredType::Q4_0 => {
                for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<18>().0) {
                    let d = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    for (i, q) in b[2..].iter().enumerate() {
                        out[i] = d * (f32::from(q & 15) - 8.0);
                        out[i + 16] = d * (f32::from(q >> 4) - 8.0);
                    }
                }
            }
            StoredType::Q4_1 => {
                for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<20>().0) {
                    let d = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    let m = f16::from_le_bytes([b[2], b[3]]).to_f32();
                    for (i, q) in b[4..].iter().enumerate() {
                        out[i] = d * f32::from(q & 15) + m;
                        out[i + 16] = d * f32::from(q >> 4) + m;
                    }
                }
            }
        }
    }
}

/// A tensor inside a mapped file. Cloning is cheap, and keeps the file mapped.
///
/// No dimension is zero, the size in bytes does not overflow, rows are whole blocks, and the bytes lie
/// inside the file: all of it checked by [`StoredTensor::new`].
#[derive(Debug, Clone)]
pub(crate) struct StoredTensor {
    /// Name in the file.
    pub(crate) name: String,
    /// Type of the elements.
    pub(crate) dtype: StoredType,
    /// Outermost dimension first, row-major: `(rows, cols)` for a matrix.
    pub(crate) shape: Vec<usize>,
    map: Arc<FileMap>,
    range: Range<usize>, // bytes of `map`
}

impl StoredTensor {
    /// A tensor whose first byte is at `start` of `map`.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if the shape is impossible or the bytes are not all in the file.
    pub(crate) fn new(
        map: &Arc<FileMap>,
        name: &str,
        dtype: StoredType,
        shape: &[usize],
        start: usize,
    ) -> Result<Self> {
        if shape.len() > MAX_RANK {
            let reason = format!("expected at most {MAX_RANK} dimensions, got {}", shape.len());
            return Err(Error::tensor(name, reason));
        }
        if shape.contains(&0) {
            return Err(Error::tensor(name, format!("shape {} holds no element", ShapeText(shape))));
        }
        let cols = shape.last().copied().unwrap_or(1);
        if !cols.is_multiple_of(dtype.block_len()) {
            let reason = format!(
                "{dtype:?} needs rows of a multiple of {} elements, got shape {}",
                dtype.block_len(),
                ShapeText(shape)
            );
            return Err(Error::tensor(name, reason));
        }
        let end = shape
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim))
            .and_then(|n| (n / dtype.block_len()).checked_mul(dtype.block_bytes()))
            .and_then(|n_bytes| start.checked_add(n_bytes))
            .filter(|&end| end <= map.len());
        match end {
            Some(end) => Ok(StoredTensor {
                name: name.to_string(),
                dtype,
                shape: shape.to_vec(),
                map: Arc::clone(map),
                range: start..end,
            }),
            None => {
                let reason = format!(
                    "{dtype:?} of shape {} at byte {start} does not fit in the file of {} bytes",
                    ShapeText(shape),
                    map.len()
                );
                Err(Error::tensor(name, reason))
            }
        }
    }

    /// The stored bytes, little endian.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map[self.range.clone()]
    }

    /// Rows: the product of all dimensions but the last; a vector is one row.
    pub(crate) fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Elements of a row: the last dimension.
    pub(crate) fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The stored bytes of row `row`: whole blocks, for those who use them as they are.
    ///
    /// # Panics
    ///
    /// If `row` is not below [`rows`](Self::rows).
    pub(crate) fn row_bytes(&self, row: usize) -> &[u8] {
        assert!(row < self.rows(), "row {row} of tensor `{}`, which has {}", self.name, self.rows());
        let n_bytes = self.cols() / self.dtype.block_len() * self.dtype.block_bytes();
        &self.bytes()[row * n_bytes..][..n_bytes]
    }

    /// Writes row `row` to `out` `// (cols) f32`, dequantised as the format defines.
    ///
    /// # Panics
    ///
    /// If `row` is not below [`rows`](Self::rows) or `out` is not of [`cols`](Self::cols): a caller checks
    /// the tensor's shape before it reads.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols(), "a row of tensor `{}`", self.name);
        self.dtype.dequantise(self.row_bytes(row), out);
    }

    /// The whole tensor, dequantised, row-major.
    pub(crate) fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        self.dtype.dequantise(self.bytes(), &mut out);
        out
    }

    /// The whole tensor as f32, of which every value must be finite.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] with the place of a value that is not.
    pub(crate) fn finite(&self) -> Result<Vec<f32>> {
        let values = self.to_f32();
        match values.iter().position(|x| !x.is_finite()) {
            Some(i) => {
                Err(Error::tensor(&self.name, format!("expected finite values, got {} at {i}", values[i])))
            }
            None => Ok(values),
        }
    }

    /// Whether the elements are floats or blocks of them, as weights are.
    pub(crate) fn is_float(&self) -> bool {
        !matches!(self.dtype, StoredType::U8 | StoredType::I8)
    }

    /// Checks that the scales of a block format are finite; other formats have none.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] with the place of the first that is not.
    pub(crate) fn check_scales(&self) -> Result<()> {
        let n_scales = match self.dtype {
            StoredType::Q8_0 | StoredType::Q4_0 => 1,
            StoredType::Q4_1 => 2,
            _ => return Ok(()),
        };
        let finite = |block: &[u8]| {
            block[..2 * n_scales].as_chunks().0.iter().all(|b| f16::from_le_bytes(*b).is_finite())
        };
        match self.bytes().chunks_exact(self.dtype.block_bytes()).position(|block| !finite(block)) {
            Some(i) => {
                let first = i * self.dtype.block_len();
                let (row, col) = (first / self.cols(), first % self.cols());
                Err(Error::tensor(
                    &self.name,
                    format!("the scale of row {row} from column {col} on is not finite"),
                ))
            }
            None => Ok(()),
        }
    }

    /// Checks the shape.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] with the expected shape and the tensor's own.
    pub(crate) fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        let reason = format!("expected shape {}, got {}", ShapeText(shape), ShapeText(&self.shape));
        Err(Error::tensor(&self.name, reason))
    }
}

/// Prints a shape as `(rows, cols)`.
struct ShapeText<'a>(&'a [usize]);

impl fmt::Display for ShapeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.0.iter().map(usize::to_string).collect();
        write!(f, "({})", dims.join(", "))
    }
}

/// Why a tensor cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unreadable {
    /// Its elements have a type that is not supported, of this name.
    Type(String),
    /// A dimension of its shape is zero.
    Empty,
}

/// The tensors of a model, by name, whichever files they lie in.
///
/// It remembers which of them were asked for, so that what nobody reads can be told: [`TensorMap::check_all_read`].
#[derive(Debug, Clone, Default)]
pub(crate) struct TensorMap {
    tensors: HashMap<String, Entry>,
    /// The `__metadata__` of safetensors files; empty for GGUF, which has its own.
    pub(crate) metadata: HashMap<String, String>,
    /// The types that weights can have in files of this format, for errors about others.
    supported_types: &'static str,
}

#[derive(Debug, Clone)]
struct Entry {
    stored: Result<StoredTensor, Unreadable>,
    shape: Vec<usize>,
    read: Cell<bool>,
}

impl TensorMap {
    /// The tensor `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if it is absent or cannot be read.
    pub(crate) fn get(&self, name: &str) -> Result<&StoredTensor> {
        let missing = || format!("missing; it is not among the model's {} tensors", self.tensors.len());
        self.find(name)?.ok_or_else(|| Error::tensor(name, missing()))
    }

    /// The tensor `name`, if the model has it.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if it has it, but it cannot be read.
    pub(crate) fn find(&self, name: &str) -> Result<Option<&StoredTensor>> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        entry.read.set(true);
        entry.stored.as_ref().map(Some).map_err(|unreadable| {
            let reason = match unreadable {
                Unreadable::Empty => format!("shape {} holds no element", ShapeText(&entry.shape)),
                Unreadable::Type(own) => {
                    let others: Vec<_> = self.unsupported_types().into_iter().filter(|t| t != own).collect();
                    let others = match others.len() {
                        0 => String::new(),
                        1 => format!(", nor is {} of other tensors", others[0]),
                        _ => format!(", nor are {} of other tensors", others.join(", ")),
                    };
                    format!("type {own} is not supported{others}; {} are", self.supported_types)
                }
            };
            Error::tensor(name, reason)
        })
    }

    /// The types of tensors that cannot be read for their types, each once, in the order of their names.
    fn unsupported_types(&self) -> Vec<&str> {
        let types = self.tensors.values().filter_map(|entry| match &entry.stored {
            Err(Unreadable::Type(name)) => Some(name.as_str()),
            _ => None,
        });
        let mut types: Vec<&str> = types.collect();
        types.sort_unstable();
        types.dedup();
        types
    }

    /// What an error about something else adds on types that are not supported; empty if all are.
    pub(crate) fn unsupported_types_too(&self) -> String {
        match &self.unsupported_types()[..] {
            [] => String::new(),
            [one] => {
                format!("; nor is the type {one} of its tensors supported, only {}", self.supported_types)
            }
            several => format!(
                "; nor are the types {} of its tensors supported, only {}",
                several.join(", "),
                self.supported_types
            ),
        }
    }

    /// The type's name and the shape of each tensor, whether it can be read or not, in no order.
    pub(crate) fn types_and_shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.values().map(|entry| {
            let name = match &entry.stored {
                Ok(tensor) => tensor.dtype.name(),
                Err(Unreadable::Type(name)) => name,
                Err(Unreadable::Empty) => "without elements",
            };
            (name, &entry.shape[..])
        })
    }

    /// Whether the model has a tensor of this name; it is not thereby read.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Refuses tensors that nobody asked for, but those whose values cannot matter; with `allow`, tells the log.
    pub(crate) fn check_all_read(&self, allow: bool) -> Result<()> {
        let mut unread: Vec<&str> = self
            .tensors
            .iter()
            .filter(|(name, entry)| !entry.read.get() && !unread::may_be(name, &entry.shape))
            .map(|(name, _)| name.as_str())
            .collect();
        unread.sort_unstable();
        let Some((first, others)) = unread.split_first() else { return Ok(()) };
        if allow {
            tracing::warn!(
                count = unread.len(),
                names = unread[..unread.len().min(8)].join(", "),
                "the model has tensors that nothing reads"
            );
            return Ok(());
        }
        let others = match others {
            [] => String::new(),
            [.., last] if others.len() > 4 => {
                format!(", like {} others up to `{last}`", others.len())
            }
            _ => format!(
                ", like {}",
                others.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            ),
        };
        let reason = format!(
            "nothing reads it{others}; if the model is good without, load it with allow_unread_tensors"
        );
        Err(Error::tensor(first, reason))
    }

    /// The files that they lie in.
    pub(crate) fn files(&self) -> Files {
        Files::of(
            self.tensors.values().filter_map(|entry| entry.stored.as_ref().ok()).map(|tensor| &tensor.map),
        )
    }

    /// Names of all tensors that can be read, in no order.
    #[cfg(test)]
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().filter(|(_, entry)| entry.stored.is_ok()).map(|(name, _)| name.as_str())
    }

    /// Bytes of all tensors as they are stored.
    #[cfg(test)]
    pub(crate) fn total_bytes(&self) -> u64 {
        self.tensors.values().filter_map(|e| e.stored.as_ref().ok()).map(|t| t.range.len() as u64).sum()
    }

    fn insert(&mut self, tensor: StoredTensor) -> Result<()> {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        self.insert_entry(name, Entry { stored: Ok(tensor), shape, read: Cell::new(false) })
    }

    /// Notes a tensor that cannot be read, and why: an error for who asks for it.
    fn refuse(&mut self, name: &str, shape: &[usize], why: Unreadable) -> Result<()> {
        let entry = Entry { stored: Err(why), shape: shape.to_vec(), read: Cell::new(false) };
        self.insert_entry(name.to_string(), entry)
    }

    fn insert_entry(&mut self, name: String, entry: Entry) -> Result<()> {
        if self.tensors.contains_key(&name) {
            return Err(Error::tensor(name, "the model holds it twice"));
        }
        if self.tensors.len() == MAX_TENSORS {
            return Err(Error::tensor(name, format!("the model has more than {MAX_TENSORS} tensors")));
        }
        self.tensors.insert(name, entry);
        Ok(())
    }
}

mod sealed {
    pub(crate) trait Sealed {}
}

/// An element type that can be read in place from a mapped file.
///
/// # Safety
///
/// Every pattern of `size_of::<Self>()` bytes is a valid value, and the type has no interior mutability.
pub(crate) unsafe trait Plain: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The stored type of the same layout.
    const STORED: StoredType;

    /// Reads one value from exactly `size_of::<Self>()` little-endian bytes.
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($t:ty => $stored:ident),*) => {$(
        impl sealed::Sealed for $t {}
        // SAFETY: a number, or a transparent struct around one: no invalid patterns, no padding, no cells.
        unsafe impl Plain for $t {
            const STORED: StoredType = StoredType::$stored;

            fn from_le(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$t>()];
                raw.copy_from_slice(bytes);
                <$t>::from_le_bytes(raw)
            }
        }
    )*};
}

plain!(f32 => F32, f16 => F16, bf16 => Bf16, u8 => U8, i8 => I8);

/// The bytes as values, if the memory is aligned for them and the byte order is the machine's.
fn cast<T: Plain>(bytes: &[u8]) -> Option<&[T]> {
    let len = bytes.len() / size_of::<T>();
    let native = cfg!(target_endian = "little") || size_of::<T>() == 1;
    if !native || !bytes.len().is_multiple_of(size_of::<T>()) || !bytes.as_ptr().cast::<T>().is_aligned() {
        return None;
    }
    // SAFETY: the pointer is aligned and starts `len * size_of::<T>()` initialised bytes that live and stay
    // unchanged as long as `bytes`; `Plain` promises that any bytes are values of `T`.
    Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), len) })
}

/// A slice of weights, either in memory of its own or in a mapped file that it keeps mapped.
///
/// Cloning shares the memory.
#[derive(Clone)]
pub(crate) struct Slab<T: Plain>(Storage<T>);

#[derive(Clone)]
enum Storage<T: Plain> {
    Owned(Arc<Memory<T>>),
    /// `cast` succeeded on these bytes when the slab was made, so it always does.
    Mapped {
        map: Arc<FileMap>,
        range: Range<usize>, // bytes of `map`
    },
}

impl<T: Plain> Slab<T> {
    /// The elements of a tensor in its stored type: in place where the file's alignment and the machine's
    /// byte order allow, else a copy.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if the tensor is stored in another type.
    pub(crate) fn from_tensor(tensor: &StoredTensor) -> Result<Self> {
        if tensor.dtype != T::STORED {
            let reason = format!("expected type {:?}, got {:?}", T::STORED, tensor.dtype);
            return Err(Error::tensor(&tensor.name, reason));
        }
        let bytes = tensor.bytes();
        Ok(match cast::<T>(bytes) {
            Some(_) => Slab(Storage::Mapped { map: Arc::clone(&tensor.map), range: tensor.range.clone() }),
            None => {
                let mut values = Memory::zeroed(bytes.len() / size_of::<T>(), "weights")?;
                values
                    .iter_mut()
                    .zip(bytes.chunks_exact(size_of::<T>()))
                    .for_each(|(x, bytes)| *x = T::from_le(bytes));
                values.into()
            }
        })
    }

    /// The same elements in memory of their own.
    pub(crate) fn copied(&self) -> Result<Self> {
        let mut values = Memory::zeroed(self.len(), "weights")?;
        values.copy_from_slice(self);
        Ok(values.into())
    }

    /// Whether the elements lie in a mapped file, and so take no memory of their own.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.0, Storage::Mapped { .. })
    }
}

impl<T: Plain> From<Memory<T>> for Slab<T> {
    fn from(values: Memory<T>) -> Self {
        Slab(Storage::Owned(Arc::new(values)))
    }
}

#[cfg(test)]
impl<T: Plain> From<Vec<T>> for Slab<T> {
    fn from(values: Vec<T>) -> Self {
        let mut memory = Memory::zeroed(values.len(), "a test").unwrap();
        memory.copy_from_slice(&values);
        memory.into()
    }
}

impl<T: Plain> Deref for Slab<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.0 {
            Storage::Owned(values) => values,
            Storage::Mapped { map, range } => {
                cast(&map[range.clone()]).expect("alignment was checked when the slab was made")
            }
        }
    }
}

impl<T: Plain> fmt::Debug for Slab<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.is_mapped() { "mapped" } else { "owned" };
        write!(f, "Slab({:?} x {}, {place})", T::STORED, self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes in a page-aligned read-only mapping, as if they were a file.
    pub(crate) fn mapped(bytes: &[u8]) -> Arc<FileMap> {
        let mut map = memmap2::MmapMut::map_anon(bytes.len()).unwrap();
        map.copy_from_slice(bytes);
        Arc::new(map.make_read_only().unwrap().into())
    }

    /// Calls `open` with the file cut at every length and with every single bit flipped. It may fail with
    /// an error or succeed, but not panic; a model that opens must also be readable.
    pub(crate) fn damage(file: &[u8], open: impl Fn(Arc<FileMap>) -> Result<TensorMap>) {
        let check = |bytes: &[u8], what: String| {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let model = open(mapped(bytes))?;
                assert!(model.total_bytes() <= bytes.len() as u64);
                for name in model.names() {
                    let tensor = model.get(name)?;
                    assert_eq!(tensor.to_f32().len(), tensor.rows() * tensor.cols());
                }
                Ok::<_, Error>(())
            }));
            assert!(outcome.is_ok(), "panic with {what}");
            outcome.unwrap()
        };
        check(file, "the intact file".to_string()).unwrap();
        for len in 0..file.len() {
            let cut = check(&file[..len], format!("{len} bytes"));
            assert!(cut.is_err(), "opened with only {len} bytes of {}", file.len());
        }
        for bit in 0..8 * file.len() {
            let mut flipped = file.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = check(&flipped, format!("bit {bit} flipped"));
        }
    }

    fn tensor(dtype: StoredType, shape: &[usize], bytes: &[u8]) -> Result<StoredTensor> {
        StoredTensor::new(&mapped(bytes), "t", dtype, shape, 0)
    }

    fn values(dtype: StoredType, shape: &[usize], bytes: &[u8]) -> Vec<f32> {
        let t = tensor(dtype, shape, bytes).unwrap();
        let mut by_row = vec![0.0; t.rows() * t.cols()];
        for (row, out) in by_row.chunks_mut(t.cols()).enumerate() {
            t.row_f32(row, out);
        }
        assert_eq!(by_row, t.to_f32());
        by_row
    }

    #[test]
    fn plain_types_become_f32() {
        let f32s: Vec<u8> = [1.5f32, -0.1, f32::MIN_POSITIVE].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(values(StoredType::F32, &[3], &f32s), [1.5, -0.1, f32::MIN_POSITIVE]);
        // binary16: 1.0, -2.0, the largest, the smallest subnormal.
        let f16s = [0x00, 0x3c, 0x00, 0xc0, 0xff, 0x7b, 0x01, 0x00];
        assert_eq!(values(StoredType::F16, &[2, 2], &f16s), [1.0, -2.0, 65504.0, 2f32.powi(-24)]);
        // bfloat16: 1.0, -3.140625, 2^-126.
        let bf16s = [0x80, 0x3f, 0x49, 0xc0, 0x80, 0x00];
        assert_eq!(values(StoredType::Bf16, &[3, 1], &bf16s), [1.0, -3.140625, 2f32.powi(-126)]);
        assert_eq!(values(StoredType::U8, &[2], &[0, 255]), [0.0, 255.0]);
        assert_eq!(values(StoredType::I8, &[1, 1, 2], &[0x80, 0x7f]), [-128.0, 127.0]);
    }

    #[test]
    fn rows_longer_than_the_conversion_chunk() {
        let halves: Vec<f16> = (0..3 * 131).map(|i| f16::from_f32(i as f32)).collect();
        let bytes: Vec<u8> = halves.iter().flat_map(|h| h.to_le_bytes()).collect();
        let expected: Vec<f32> = (0..3 * 131).map(|i| i as f32).collect();
        assert_eq!(values(StoredType::F16, &[3, 131], &bytes), expected);
    }

    #[test]
    fn blocks_become_f32() {
        // One row of two Q8_0 blocks: scales 0.5 and -2, quants i - 16 and 127 - i.
        let mut q8 = vec![0x00, 0x38];
        q8.extend((0..32).map(|i| (i - 16i8).cast_unsigned()));
        q8.extend([0x00, 0xc0]);
        q8.extend((0..32).map(|i| 127 - i));
        let row = values(StoredType::Q8_0, &[64], &q8);
        for i in 0..32 {
            assert_eq!(row[i], 0.5 * (i as f32 - 16.0));
            assert_eq!(row[32 + i], -2.0 * (127.0 - i as f32));
        }

        // Two rows of one block; byte i holds i in the low and 15 - i in the high nibble.
        let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
        let q4_0 = [&[0x00, 0x38], &nibbles[..], &[0x00, 0x3c], &nibbles[..]].concat();
        let rows = values(StoredType::Q4_0, &[2, 32], &q4_0);
        let q4_1 = [&[0x00, 0x38, 0x00, 0xc0], &nibbles[..]].concat();
        let with_min = values(StoredType::Q4_1, &[32], &q4_1);
        for i in 0..16 {
            let (low, high) = (i as f32, 15.0 - i as f32);
            assert_eq!((rows[i], rows[16 + i]), (0.5 * (low - 8.0), 0.5 * (high - 8.0)));
            assert_eq!((rows[32 + i], rows[48 + i]), (low - 8.0, high - 8.0));
            assert_eq!((with_min[i], with_min[16 + i]), (0.5 * low - 2.0, 0.5 * high - 2.0));
        }
    }

    #[test]
    fn impossible_shapes_are_refused() {
        let big = 1 << (usize::BITS / 2);
        for (dtype, shape, reason) in [
            (StoredType::F32, &[2, 0][..], "shape (2, 0) holds no element"),
            (StoredType::F32, &[17], "F32 of shape (17) at byte 0 does not fit in the file of 64 bytes"),
            (StoredType::F32, &[big, big], "does not fit"),
            (StoredType::F32, &[usize::MAX / 2], "does not fit"),
            (StoredType::U8, &[usize::MAX], "does not fit"),
            (StoredType::Q8_0, &[2, 48], "Q8_0 needs rows of a multiple of 32 elements, got shape (2, 48)"),
            (StoredType::Q4_0, &[], "multiple of 32"),
            (StoredType::U8, &[1; 9], "expected at most 8 dimensions, got 9"),
        ] {
            let error = tensor(dtype, shape, &[0; 64]).unwrap_err();
            assert!(matches!(&error, Error::Tensor { name, .. } if name == "t"));
            assert!(error.to_string().contains(reason), "{error}");
        }
        let far = StoredTensor::new(&mapped(&[0; 64]), "t", StoredType::U8, &[1], usize::MAX);
        assert!(far.is_err());
        let scalar = tensor(StoredType::U8, &[], &[7]).unwrap();
        assert_eq!((scalar.rows(), scalar.cols(), scalar.to_f32()), (1, 1, vec![7.0]));
    }

    #[test]
    fn wrong_shape_names_both() {
        let t = tensor(StoredType::U8, &[2, 3], &[0; 6]).unwrap();
        assert_eq!((t.rows(), t.cols()), (2, 3));
        t.expect_shape(&[2, 3]).unwrap();
        let error = t.expect_shape(&[3, 2]).unwrap_err().to_string();
        assert_eq!(error, "tensor `t`: expected shape (3, 2), got (2, 3)");
    }

    #[test]
    fn slabs_map_aligned_bytes_and_copy_others() {
        let map = mapped(&[9, 0, 0, 0x80, 0x3f, 0, 0, 0x80, 0x40]);
        let at = |start, len| StoredTensor::new(&map, "t", StoredType::F32, &[len], start).unwrap();
        let (odd, even) =
            (Slab::<f32>::from_tensor(&at(1, 2)).unwrap(), Slab::<f32>::from_tensor(&at(4, 1)).unwrap());
        assert_eq!(odd[..], [1.0, 4.0]);
        assert!(!odd.is_mapped());
        assert_eq!(even[..], [f32::from_le_bytes([0x3f, 0, 0, 0x80])]);
        assert_eq!(even.is_mapped(), cfg!(target_endian = "little"));

        let error = Slab::<bf16>::from_tensor(&at(0, 1)).unwrap_err().to_string();
        assert_eq!(error, "tensor `t`: expected type Bf16, got F32");

        let owned = Slab::from(vec![1i8, -2]);
        assert_eq!(owned.clone()[..], [1, -2]);
        assert_eq!(format!("{owned:?}"), "Slab(I8 x 2, owned)");
        fn shared_between_threads<T: Send + Sync>(_: &T) {}
        shared_between_threads(&odd);
    }

    #[test]
    fn a_slab_outlives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, [1, 2, 3, 4]).unwrap();
        let map = FileMap::open(&path).unwrap();
        let tensor = StoredTensor::new(&map, "t", StoredType::U8, &[4], 0).unwrap();
        let slab = Slab::<u8>::from_tensor(&tensor).unwrap().clone();
        drop(tensor);
        drop(map);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(slab[..], [1, 2, 3, 4]);
    }

    #[test]
    fn what_is_no_file_is_not_mapped() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        std::fs::write(&empty, []).unwrap();
        assert!(matches!(FileMap::open(&empty), Err(Error::InvalidFile { path, .. }) if path == empty));
        assert!(matches!(FileMap::open(folder.path()), Err(Error::Io { .. })));
        assert!(matches!(FileMap::open(&folder.path().join("absent")), Err(Error::Io { .. })));
    }

    #[test]
    fn a_map_names_what_it_lacks() {
        let mut map = TensorMap::default();
        map.insert(tensor(StoredType::U8, &[3], &[0; 3]).unwrap()).unwrap();
        map.supported_types = "F32 and F16";
        map.refuse("mask", &[1, 3], Unreadable::Type("BOOL".into())).unwrap();
        map.refuse("none", &[1, 0], Unreadable::Empty).unwrap();
        assert_eq!(map.total_bytes(), 3);
        assert_eq!(map.names().collect::<Vec<_>>(), ["t"]);
        assert!(map.contains("mask") && map.find("mask").is_err() && map.find("u").unwrap().is_none());
        let message = |r: Result<&StoredTensor>| r.unwrap_err().to_string();
        assert_eq!(message(map.get("u")), "tensor `u`: missing; it is not among the model's 3 tensors");
        assert_eq!(message(map.get("none")), "tensor `none`: shape (1, 0) holds no element");
        assert_eq!(
            map.unsupported_types_too(),
            "; nor is the type BOOL of its tensors supported, only F32 and F16"
        );
        let alone = "tensor `mask`: type BOOL is not supported; F32 and F16 are";
        assert_eq!(message(map.get("mask")), alone);
        for (name, of) in [("x", "F64"), ("y", "F64"), ("z", "I64")] {
            map.refuse(name, &[1], Unreadable::Type(of.into())).unwrap();
        }
        let too = "; nor are the types BOOL, F64, I64 of its tensors supported, only F32 and F16";
        assert_eq!(map.unsupported_types_too(), too);
        let with =
            "tensor `mask`: type BOOL is not supported, nor are F64, I64 of other tensors; F32 and F16 are";
        assert_eq!(message(map.get("mask")), with);
        assert!(map.insert(tensor(StoredType::U8, &[3], &[0; 3]).unwrap()).is_err());
        assert!(map.refuse("t", &[], Unreadable::Empty).is_err());
    }
}
