//! Functions that read an error.

use std::ffi::c_char;

pub(crate) use crate::failure::Failure;
use crate::failure::NAMES;
use crate::failure::welm_status::WELM_OK;
pub use crate::failure::{welm_error, welm_status};
use crate::guard::{free, value};

/// The status that came with this error.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one error.
/// - NULL: `WELM_OK` for a NULL `error`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_error_code(error: *const welm_error) -> welm_status {
    value(WELM_OK, || {
        // SAFETY: NULL, or an error of this library that was not freed, by the function's contract.
        unsafe { error.as_ref() }.map_or(WELM_OK, |e| e.status)
    })
}

/// What happened, in one line: which file, option or argument, what was expected and what was found.
///
/// - ownership: belongs to `error`; valid until `error` is freed.
/// - threads: any number at once on one error.
/// - NULL: an empty text for a NULL `error`; never returns NULL.
/// - encoding: UTF-8, NUL-terminated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_error_message(error: *const welm_error) -> *const c_char {
    value(c"".as_ptr(), || {
        // SAFETY: as in `welm_error_code`.
        unsafe { error.as_ref() }.map_or(c"".as_ptr(), |e| e.message.as_ptr())
    })
}

/// Frees an error.
///
/// - ownership: takes `error`, and frees its message, too.
/// - threads: once, when nobody reads it any more.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_error_free(error: *mut welm_error) {
    // SAFETY: NULL, or a box of this library that the caller gives back.
    unsafe { free(error) }
}

/// The name of a status as in this header, such as `WELM_QUEUE_FULL`; `unknown status` for any other number.
///
/// - ownership: a constant; never freed.
/// - threads: any, at any time.
/// - NULL: never returned.
/// - encoding: ASCII, NUL-terminated.
#[unsafe(no_mangle)]
pub extern "C" fn welm_status_name(status: i32) -> *const c_char {
    value(c"unknown status".as_ptr(), || {
        let named = NAMES.iter().find(|(s, _)| *s as i32 == status);
        named.map_or(c"unknown status", |(_, name)| name).as_ptr()
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;
    use crate::failure::welm_status::WELM_IO;

    #[test]
    fn statuses_have_their_own_names() {
        for (status, name) in NAMES {
            assert_eq!(format!("{status:?}"), name.to_str().unwrap());
            // SAFETY: a constant that ends with NUL.
            assert_eq!(unsafe { CStr::from_ptr(welm_status_name(status as i32)) }, name);
        }
        // SAFETY: as above.
        let name = |status| unsafe { CStr::from_ptr(welm_status_name(status)) };
        assert_eq!((name(9), name(-1)), (c"unknown status", c"unknown status"));
    }

    #[test]
    fn a_nul_in_a_message_does_not_cut_it() {
        let error = welm_error::new(Failure::new(WELM_IO, "a\0b"));
        assert_eq!(error.message.to_str(), Ok("a\u{FFFD}b"));
    }
}
