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
        #[cfg(test)]
        tests::count(map.len() as isize);
        Ok(Memory { map, len, _element: PhantomData })
    }

    /// After the values were written: asks for huge pages once more. Where this memory ends within one, the system could give
    /// none before its neighbour was there. Products with one row are as fast as memory, and twice as fast in huge pages.
    pub(crate) fn collapse(&self) {
        #[cfg(target_os = "linux")]
        {
            const HUGE_PAGE: usize = 2 << 20;
            let start = self.map.as_ptr().addr() / HUGE_PAGE * HUGE_PAGE;
            let end = (self.map.as_ptr().addr() + self.map.len()).next_multiple_of(HUGE_PAGE);
            // SAFETY: a wish again, which changes no byte, also not of the neighbours; systems before Linux 6.1 refuse it.
            unsafe {
                libc::madvise(
                    self.map.as_ptr().with_addr(start).cast_mut().cast(),
                    end - start,
                    libc::MADV_COLLAPSE,
                )
            };
        }
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

#[cfg(test)]
impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        tests::count(-(self.map.len() as isize));
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    thread_local! {
        static BYTES: Cell<isize> = const { Cell::new(0) };
    }

    pub(super) fn count(bytes: isize) {
        let _ = BYTES.try_with(|count| count.set(count.get() + bytes));
    }

    /// Bytes of [`Memory`](super::Memory) that this thread has taken and not given back.
    pub(crate) fn memory_bytes() -> isize {
        BYTES.get()
    }
}
