//! Large memory for weights, activations, keys and values: zeros from the system, which provides them when they are
//! first written, in huge pages where it has them.
//!
//! A block of one head of the cache is some 4 kB: without huge pages each would cost a walk through the page tables.
//! Pages also start where cache lines do, and vectors of 64 bytes lie in one line each, which a `Vec` does not promise: float
//! products of a prompt lose up to a quarter without.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::error::{Error, Result};
use crate::weights::Plain;

/// Some values, all of which start as zero.
pub(crate) struct Memory<T> {
    map: MmapMut,
    len: usize,
    _element: PhantomData<T>,
}

impl<T: Plain> Memory<T> {
    /// Takes `len` values for what `what` says.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|e| Error::allocation(what, bytes, e))?;
        // A wish, which systems without huge pages refuse.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Memory { map, len, _element: PhantomData })
    }
}

impl<T: Plain> Deref for Memory<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the map starts at a page and has `len` elements, for which `Plain` promises that all bits are valid.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len) }
    }
}
