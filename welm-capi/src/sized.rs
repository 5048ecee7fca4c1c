//! Structs that may grow: their first field says how large they were when the caller was compiled.
//!
//! A caller that is older than the library has a smaller struct. Only this much is read or written; the other fields
//! have their defaults. A caller that is newer has a larger struct. The bytes that this library does not know have to
//! be zero, so that no option is ignored silently. In an output, such bytes are set to zero.

use std::ptr;

use crate::error::Failure;
use crate::error::welm_status::WELM_INVALID_ARGUMENT;

/// No struct will ever be larger. With a larger number, the caller has not set the size.
const MAX_SIZE: usize = 4096;

/// A `bool` of a struct that the caller fills: any byte is valid.
///
/// cbindgen:ignore
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct flag(u8);

impl flag {
    pub(crate) fn get(self) -> bool {
        self.0 != 0
    }
}

impl From<bool> for flag {
    fn from(value: bool) -> Self {
        flag(u8::from(value))
    }
}

/// A struct that may grow at its end.
///
/// # Safety
/// It is `repr(C)`, its first field is `struct_size: usize`, and any bytes are a valid value of it. There is no padding
/// after the last field, because a field that is added later must not use padding that older callers never wrote.
pub(crate) unsafe trait Growing: Copy {}

/// The size that the caller knows.
///
/// # Safety
/// `object` is not NULL and may be read.
unsafe fn known_size<T: Growing>(argument: &str, object: *const T) -> Result<usize, Failure> {
    // SAFETY: readable by contract, and `struct_size` is the first field.
    let size = unsafe { object.cast::<usize>().read() };
    if size < size_of::<usize>() || size > MAX_SIZE || !size.is_multiple_of(align_of::<T>()) {
        let expected = size_of::<T>();
        let reason =
            format!("`{argument}->struct_size`: expected {expected}, the size of the struct, got {size}");
        return Err(Failure::new(WELM_INVALID_ARGUMENT, reason));
    }
    Ok(size)
}

/// The defaults, overwritten by what the caller set; only the defaults for NULL.
///
/// # Safety
/// `from` is NULL, or `from->struct_size` bytes of it may be read.
pub(crate) unsafe fn read<T: Growing>(argument: &str, from: *const T, mut defaults: T) -> Result<T, Failure> {
    if from.is_null() {
        return Ok(defaults);
    }
    // SAFETY: not NULL; readable by contract.
    let size = unsafe { known_size(argument, from) }?;
    let ours = size_of::<T>();
    // SAFETY: both are at least `min(size, ours)` long, by contract and by type; any bytes are a valid `T`.
    unsafe {
        ptr::copy_nonoverlapping(from.cast::<u8>(), ptr::from_mut(&mut defaults).cast(), size.min(ours))
    };
    for at in ours..size {
        // SAFETY: `at` is below the struct's size, by contract.
        if unsafe { from.cast::<u8>().add(at).read() } != 0 {
            let reason = format!("`{argument}` sets an option at byte {at}; this library knows {ours} bytes");
            return Err(Failure::new(WELM_INVALID_ARGUMENT, reason));
        }
    }
    Ok(defaults)
}

/// Writes as much as the caller's struct holds, and zeros after the fields that we know; `struct_size` stays.
///
/// # Safety
/// `to` is NULL, or `to->struct_size` may be read and as many bytes written.
pub(crate) unsafe fn write<T: Growing>(argument: &str, to: *mut T, value: &T) -> Result<(), Failure> {
    Failure::unless_null(argument, to)?;
    // SAFETY: not NULL; readable by contract.
    let size = unsafe { known_size(argument, to) }?;
    // SAFETY: by contract; `size` was checked.
    unsafe { fill(to, size, value) };
    Ok(())
}

/// Writes `value` into a struct of any content, with `size` as its `struct_size`.
///
/// # Safety
/// `to` is NULL, or `size` bytes may be written to it.
pub(crate) unsafe fn init<T: Growing>(
    argument: &str,
    to: *mut T,
    size: usize,
    value: &T,
) -> Result<(), Failure> {
    Failure::unless_null(argument, to)?;
    // SAFETY: `size` is read in the place of the struct's own.
    unsafe { known_size::<T>(argument, ptr::from_ref(&size).cast()) }?;
    // SAFETY: by contract.
    unsafe { fill(to, size, value) };
    Ok(())
}

/// # Safety
/// `size` bytes, at least those of a `usize`, may be written to `to`.
unsafe fn fill<T: Growing>(to: *mut T, size: usize, value: &T) {
    let ours = size_of::<T>();
    // SAFETY: `to` has `size` bytes, by contract, and `value` has `ours`.
    unsafe {
        ptr::copy_nonoverlapping(ptr::from_ref(value).cast::<u8>(), to.cast(), size.min(ours));
        ptr::write_bytes(to.cast::<u8>().add(size.min(ours)), 0, size.saturating_sub(ours));
        to.cast::<usize>().write(size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Now {
        struct_size: usize,
        a: usize,
        b: u32,
        c: u32,
    }
    // SAFETY: `repr(C)`, size first, integers, no padding.
    unsafe impl Growing for Now {}

    const DEFAULTS: Now = Now { struct_size: 24, a: 1, b: 2, c: 3 };

    fn read_words(words: &[usize]) -> Result<Now, String> {
        // SAFETY: the first word says no more than the slice has, in each case below.
        unsafe { read("o", words.as_ptr().cast(), DEFAULTS) }.map_err(|f| f.message)
    }

    #[test]
    fn older_callers_set_what_they_know() {
        assert_eq!(read_words(&[8]), Ok(Now { struct_size: 8, ..DEFAULTS }));
        assert_eq!(read_words(&[16, 7]), Ok(Now { struct_size: 16, a: 7, ..DEFAULTS }));
        assert_eq!(read_words(&[24, 7, 9 | 8 << 32]), Ok(Now { struct_size: 24, a: 7, b: 9, c: 8 }));
    }

    #[test]
    fn newer_callers_may_not_ask_for_what_is_unknown() {
        assert_eq!(read_words(&[40, 7, 0, 0, 0]), Ok(Now { struct_size: 40, a: 7, b: 0, c: 0 }));
        let error = read_words(&[40, 7, 0, 0, 1]).unwrap_err();
        assert_eq!(error, "`o` sets an option at byte 32; this library knows 24 bytes");
    }

    #[test]
    fn impossible_sizes_are_named() {
        for size in [0, 4, 7, 17, 4104, usize::MAX] {
            let error = read_words(&[size]).unwrap_err();
            assert_eq!(error, format!("`o->struct_size`: expected 24, the size of the struct, got {size}"));
        }
    }

    #[test]
    fn outputs_end_where_the_caller_ends() {
        let mut words = [16usize, 5, 5, 5, 5];
        // SAFETY: five words, of which no more than the first says are written.
        unsafe { write("o", words.as_mut_ptr().cast(), &DEFAULTS) }.unwrap();
        assert_eq!(words, [16, 1, 5, 5, 5]);
        words[0] = 32;
        // SAFETY: as above.
        unsafe { write("o", words.as_mut_ptr().cast(), &DEFAULTS) }.unwrap();
        assert_eq!(words, [32, 1, 2 | 3 << 32, 0, 5]);
        // SAFETY: as above.
        unsafe { init("o", words.as_mut_ptr().cast(), 16, &Now { a: 6, ..DEFAULTS }) }.unwrap();
        assert_eq!(words, [16, 6, 2 | 3 << 32, 0, 5]);
        // SAFETY: nothing is written.
        assert!(unsafe { init("o", words.as_mut_ptr().cast(), 12, &DEFAULTS) }.is_err());
        // SAFETY: NULL is allowed.
        assert!(unsafe { write("o", ptr::null_mut(), &DEFAULTS) }.is_err());
    }
}
