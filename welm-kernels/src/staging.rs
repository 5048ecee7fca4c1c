//! Small arrays that go to the device in one copy.

use crate::device::{Buffer, Device, Element};
use crate::error::{Result, expect};

/// Every array begins at a multiple of this many bytes, as an allocation of its own would.
const ALIGN: usize = 256;

/// Arrays that lie one after another in one piece of device memory. They are added one by one and copied together.
///
/// The address of an array depends only on the lengths of the arrays before it. So a recording that reads these arrays can
/// be repeated for other values, as long as the lengths are the same.
#[derive(Debug)]
pub struct Staging {
    memory: Buffer<u8>,
    host: Vec<u8>, // the bytes to copy
    end: usize,    // where the last array ends, with the elements for which there are no values
}

impl Staging {
    /// Bytes that an array takes.
    pub fn bytes_of<T: Element>(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(ALIGN)
    }

    /// Room for arrays of `bytes` bytes together, as [`Staging::bytes_of`] counts them.
    ///
    /// # Errors
    /// As [`Device::zeros`].
    pub fn new(device: &Device, bytes: usize) -> Result<Self> {
        Ok(Staging { memory: device.zeros(bytes)?, host: Vec::with_capacity(bytes), end: 0 })
    }

    /// Removes all arrays.
    pub fn clear(&mut self) {
        self.host.clear();
        self.end = 0;
    }

    /// Adds an array of `len` elements: `values`, then `rest` in all elements after them. [`Staging::upload`] copies it
    /// to the device.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if there are more values than elements, or no room for them.
    pub fn push<T: Element>(&mut self, values: &[T], rest: T, len: usize) -> Result<Buffer<T>> {
        let array = self.place(values, len)?;
        for _ in values.len()..len {
            self.host.extend_from_slice(bytemuck::bytes_of(&rest));
        }
        Ok(array)
    }

    /// Adds the last array. It has `len` elements: the first are `values`, the others keep what the memory held.
    ///
    /// # Errors
    /// As [`Staging::push`].
    pub fn push_last<T: Element>(&mut self, values: &[T], len: usize) -> Result<Buffer<T>> {
        self.place(values, len)
    }

    fn place<T: Element>(&mut self, values: &[T], len: usize) -> Result<Buffer<T>> {
        expect(values.len() <= len, "staging", "values", format!("at most {len}"), values.len())?;
        let first = self.end;
        let array = self.memory.part(first, len)?;
        self.end = first + Self::bytes_of::<T>(len);
        self.host.resize(first, 0);
        self.host.extend_from_slice(bytemuck::cast_slice(values));
        Ok(array)
    }

    /// Copies all arrays to the device, in one copy.
    ///
    /// # Errors
    /// [`Error::Driver`](crate::Error::Driver), [`Error::ContextLost`](crate::Error::ContextLost).
    pub fn upload(&mut self) -> Result<()> {
        self.memory.write(0, &self.host)
    }
}
