//! Texts from C and to C.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::slice;

use crate::error::Failure;
use crate::error::welm_status::{WELM_INVALID_ARGUMENT, WELM_INVALID_UTF8};
use crate::guard::{free, value};

/// As a length: the text ends at its NUL.
///
/// cbindgen:ignore
pub const WELM_NUL_TERMINATED: usize = usize::MAX;

/// A borrowed array; no pointer is needed for an empty one.
///
/// # Safety
/// If `len` is not 0, `data` is NULL or points to `len` values that do not change during `'a`.
pub(crate) unsafe fn array<'a, T>(argument: &str, data: *const T, len: usize) -> Result<&'a [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    Failure::unless_null(argument, data)?;
    if len > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::new(WELM_INVALID_ARGUMENT, format!("`{argument}`: length {len} is impossible")));
    }
    // SAFETY: not NULL, and by this function's contract.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// A borrowed text.
///
/// # Safety
/// As for `array`; with the length `WELM_NUL_TERMINATED`, `data` is NULL or ends with a NUL.
pub(crate) unsafe fn text<'a>(argument: &str, data: *const c_char, len: usize) -> Result<&'a str, Failure> {
    let bytes = match len {
        WELM_NUL_TERMINATED if data.is_null() => return Err(Failure::null(argument)),
        // SAFETY: not NULL, and by this function's contract.
        WELM_NUL_TERMINATED => unsafe { CStr::from_ptr(data) }.to_bytes(),
        // SAFETY: by this function's contract.
        len => unsafe { array(argument, data.cast::<u8>(), len) }?,
    };
    std::str::from_utf8(bytes).map_err(|e| {
        let (at, len) = (e.valid_up_to(), bytes.len());
        Failure::new(WELM_INVALID_UTF8, format!("`{argument}` is no UTF-8 from byte {at} of {len} on"))
    })
}

/// A text that may be NULL, as a value of its own.
///
/// # Safety
/// As for `text`.
pub(crate) unsafe fn optional_text(
    argument: &str,
    data: *const c_char,
    len: usize,
) -> Result<Option<String>, Failure> {
    if data.is_null() {
        return Ok(None);
    }
    // SAFETY: by this function's contract.
    Ok(Some(unsafe { text(argument, data, len) }?.to_string()))
}

/// A NUL-terminated text that may be NULL.
///
/// # Safety
/// `data` is NULL or ends with a NUL, and does not change during `'a`.
pub(crate) unsafe fn optional<'a>(argument: &str, data: *const c_char) -> Result<Option<&'a str>, Failure> {
    if data.is_null() {
        return Ok(None);
    }
    // SAFETY: by this function's contract.
    unsafe { text(argument, data, WELM_NUL_TERMINATED) }.map(Some)
}

/// Several texts; without `lens` they are NUL-terminated.
///
/// # Safety
/// As for `array` and `text`, for both arrays and each text.
pub(crate) unsafe fn texts<'a>(
    argument: &str,
    texts: *const *const c_char,
    lens: *const usize,
    n: usize,
) -> Result<Vec<&'a str>, Failure> {
    // SAFETY: by this function's contract.
    let data = unsafe { array(argument, texts, n) }?;
    let lens = match lens.is_null() {
        true => None,
        // SAFETY: by this function's contract.
        false => Some(unsafe { array(argument, lens, n) }?),
    };
    let one = |(i, &data): (usize, &*const c_char)| {
        let len = lens.map_or(WELM_NUL_TERMINATED, |lens| lens[i]);
        // SAFETY: by this function's contract.
        unsafe { text(&format!("{argument}[{i}]"), data, len) }
    };
    data.iter().enumerate().map(one).collect()
}

/// A path: on Unix any bytes that the system takes, on other systems UTF-8.
///
/// # Safety
/// `data` is NULL or ends with a NUL.
pub(crate) unsafe fn path(argument: &str, data: *const c_char) -> Result<PathBuf, Failure> {
    Failure::unless_null(argument, data)?;
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: not NULL, and by this function's contract.
        let bytes = unsafe { CStr::from_ptr(data) }.to_bytes();
        Ok(std::ffi::OsStr::from_bytes(bytes).into())
    }
    #[cfg(not(unix))]
    // SAFETY: by this function's contract.
    unsafe { text(argument, data, WELM_NUL_TERMINATED) }.map(PathBuf::from)
}

/// A text for C, with a NUL after it that is not part of it.
#[derive(Debug)]
pub(crate) struct Text(String);

impl Text {
    pub(crate) fn new(mut text: String) -> Self {
        text.push('\0');
        Text(text)
    }

    pub(crate) fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    /// Bytes without the NUL.
    pub(crate) fn len(&self) -> usize {
        self.0.len() - 1
    }
}

/// A text that a function returned. It never changes, so that any number of threads may read it at once.
pub struct welm_string(Text);

impl welm_string {
    pub(crate) fn new(text: String) -> Box<Self> {
        Box::new(welm_string(Text::new(text)))
    }
}

/// The text itself.
///
/// - ownership: belongs to `string`; valid until `string` is freed.
/// - threads: any number at once on one string.
/// - NULL: returned for a NULL `string`, with the length 0; allowed for `len`.
/// - encoding: UTF-8: `*len` bytes, then a NUL. A text may contain NULs, too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_string_data(string: *const welm_string, len: *mut usize) -> *const c_char {
    value(std::ptr::null(), || {
        // SAFETY: NULL, or a string of this library that was not freed, by the function's contract.
        let text = unsafe { string.as_ref() }.map(|s| &s.0);
        // SAFETY: by the function's contract.
        unsafe { put(len, text.map_or(0, Text::len)) };
        text.map_or(std::ptr::null(), Text::as_ptr)
    })
}

/// Frees a string.
///
/// - ownership: takes `string`, and frees its text, too.
/// - threads: once, when nobody reads it any more.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_string_free(string: *mut welm_string) {
    // SAFETY: NULL, or a box of this library that the caller gives back.
    unsafe { free(string) }
}

/// Writes an output, unless the caller gave NULL for it.
///
/// # Safety
/// `to` is NULL or may be written to.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: by this function's contract.
        unsafe { to.write(value) };
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::null;

    use super::*;
    use crate::error::welm_status;
    use crate::error::welm_status::WELM_NULL_POINTER;

    fn read(bytes: &[u8], len: usize) -> Result<&str, (welm_status, String)> {
        // SAFETY: each case's length is within its bytes, or its bytes end with a NUL.
        unsafe { text("t", bytes.as_ptr().cast(), len) }.map_err(|f| (f.status, f.message))
    }

    #[test]
    fn texts_have_a_length_or_end_with_nul() {
        assert_eq!(read(b"a\0b\0", 3), Ok("a\0b"));
        assert_eq!(read(b"a\0b\0", WELM_NUL_TERMINATED), Ok("a"));
        assert_eq!(read("明月\0".as_bytes(), 3), Ok("明"));
        // SAFETY: no byte is read.
        let null = |len| unsafe { text("t", null(), len) }.map_err(|f| f.status);
        assert_eq!(null(0), Ok(""));
        assert_eq!((null(1), null(WELM_NUL_TERMINATED)), (Err(WELM_NULL_POINTER), Err(WELM_NULL_POINTER)));
        let (status, message) = read(b"", isize::MAX as usize + 1).unwrap_err();
        assert_eq!((status, message.contains("length")), (WELM_INVALID_ARGUMENT, true));
    }

    #[test]
    fn what_is_no_utf8_is_told_by_its_place() {
        let error = read("明月\0".as_bytes(), 4).unwrap_err();
        assert_eq!(error, (WELM_INVALID_UTF8, "`t` is no UTF-8 from byte 3 of 4 on".into()));
        assert_eq!(read(b"ok\xff\0", WELM_NUL_TERMINATED).unwrap_err().0, WELM_INVALID_UTF8);
    }

    #[test]
    fn lists_of_texts_name_the_one_at_fault() {
        let list = [c"one".as_ptr(), c"\xffx".as_ptr(), null()];
        // SAFETY: the list has three texts, each NULL or longer than its length.
        let read =
            |lens: *const usize, n| unsafe { texts("list", list.as_ptr(), lens, n) }.map_err(|f| f.message);
        assert_eq!(read(null(), 1), Ok(vec!["one"]));
        assert_eq!(read([2usize, 0, 0].as_ptr(), 3), Ok(vec!["on", "", ""]));
        assert_eq!(read(null(), 2), Err("`list[1]` is no UTF-8 from byte 0 of 2 on".into()));
        assert_eq!(read([3usize, 0, 1].as_ptr(), 3), Err("`list[2]` is NULL".into()));
        // SAFETY: no text is read.
        assert_eq!(unsafe { texts("list", null(), null(), 0) }.map_err(|f| f.message), Ok(vec![]));
    }
}
