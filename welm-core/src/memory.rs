//! Large memory for weights, activations, keys and values: zeros from the system, which provides them when they are
//! first written, in huge pages where it has them.
//!
//! A block of one head of the cache is some 4 kB: without huge pages each would cost a walk through the page tables.
//! Pages also start where cache lines do, and vectors of 64 bytes lie in one line each, which a `Vec` does not promise: float
//! products of a prompt lose up to a quarter without.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::error::{Error, Result};

/// Some values, all of which start as zero.
pub(crate) struct Memory<T> {
    map: MmapMut,
    len: usize,
    _element: PhantomData<T>,
}

impl<T: Pod> Memory<T> {
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

impl<T: Pod> Deref for Memory<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[..self.len * size_of::<T>()])
    }
}

impl<T: Pod> DerefMut for Memory<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.map[..self.len * size_of::<T>()])
    }
}
