//! Slices of weights, in a mapped file where they can be, else in memory.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::Pod;
use half::{bf16, f16};

use super::formats::StoredType;
use super::map::FileMap;
use super::tensor::StoredTensor;
use crate::error::{Error, Result};
use crate::memory::Memory;

/// An element type that can be read in place from a mapped file.
pub(crate) trait Plain: Pod + Send + Sync {
    /// The stored type of the same layout.
    const STORED: StoredType;

    /// Reads one value from exactly `size_of::<Self>()` little-endian bytes.
    fn from_le(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($t:ty => $stored:ident),*) => {$(
        impl Plain for $t {
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
    let native = cfg!(target_endian = "little") || size_of::<T>() == 1;
    if native { bytemuck::try_cast_slice(bytes).ok() } else { None }
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
            Some(_) => {
                #[cfg(test)]
                tests::note(bytes);
                Slab(Storage::Mapped { map: Arc::clone(&tensor.map), range: tensor.range.clone() })
            }
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
        values.collapse();
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
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::collections::HashMap;

    thread_local! {
        /// The places that became slabs, and their lengths.
        static MAPPED: RefCell<HashMap<usize, usize>> = RefCell::default();
    }

    pub(super) fn note(bytes: &[u8]) {
        MAPPED.with_borrow_mut(|mapped| mapped.insert(bytes.as_ptr().addr(), bytes.len()));
    }

    /// The bytes of mapped files that became slabs on this thread while it did this, each once.
    pub(crate) fn mapped_bytes<T>(work: impl FnOnce() -> T) -> (T, u64) {
        MAPPED.take();
        let result = work();
        (result, MAPPED.take().values().sum::<usize>() as u64)
    }
}
