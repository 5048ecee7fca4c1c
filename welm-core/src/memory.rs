//! Large memory for weights, activations, keys and values. The system maps it as zeros, provides pages when they are
//! first written, and uses huge pages if it can.
//!
//! A cache block of one head has about 4 kB, so without huge pages reading each block would need a walk through the
//! page tables. Pages also begin at cache lines, so each vector of 64 bytes lies in one line. A `Vec` does not
//! guarantee that, and float products of a prompt are up to a quarter slower without it.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::error::{Error, Result};

/// A slice of values in mapped memory. All start as zero.
pub(crate) struct Memory<T> {
    map: MmapMut,
    len: usize,
    _element: PhantomData<T>,
}

impl<T: Pod> Memory<T> {
    /// Allocates `len` values; `what` says for what, in errors.
    ///
    /// # Errors
    /// If the system does not give the memory.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        let map = MmapMut::map_anon(bytes.max(1)).map_err(|e| Error::allocation(what, bytes, e))?;
        // Only a hint: systems without huge pages refuse it.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        #[cfg(test)]
        tests::count(map.len() as isize);
        Ok(Memory { map, len, _element: PhantomData })
    }

    /// Asks for huge pages once more, after the values were written. If this memory ends within a huge page, the system
    /// could not give one before the neighbouring memory was mapped. Products with one row are bound by memory, and
    /// twice as fast in huge pages.
    pub(crate) fn collapse(&self) {
        #[cfg(target_os = "linux")]
        {
            const HUGE_PAGE: usize = 2 << 20;
            let start = self.map.as_ptr().addr() / HUGE_PAGE * HUGE_PAGE;
            let end = (self.map.as_ptr().addr() + self.map.len()).next_multiple_of(HUGE_PAGE);
            // SAFETY: a hint, too: it changes no byte, not even of neighbouring memory. Linux before 6.1 refuses it.
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
