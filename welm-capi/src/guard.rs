//! Guards that catch panics, so that none unwinds into C.
//!
//! Every exported function runs inside `status`, `value` or `free`. In this crate's own tests, each of them panics when
//! it is told to, so that a test can make any function fail inside.

use welm_core::catch_quietly;

use crate::failure::welm_status::{WELM_END, WELM_OK, WELM_PANIC, WELM_PENDING};
use crate::failure::{Failure, welm_error, welm_status};

/// Runs a function that can fail. Returns its status, and writes the error to `error` if that is not NULL.
///
/// # Safety
/// `error` is NULL or may be written to.
pub(crate) unsafe fn status(
    error: *mut *mut welm_error,
    body: impl FnOnce() -> Result<(), Failure>,
) -> welm_status {
    let failure = match caught(body) {
        Ok(Ok(())) => return WELM_OK,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::new(WELM_PANIC, format!("panic: {panic}")),
    };
    let status = failure.status;
    if !error.is_null() && !matches!(status, WELM_END | WELM_PENDING) {
        // SAFETY: by this function's contract.
        unsafe { error.write(Box::into_raw(welm_error::new(failure))) };
    }
    status
}

/// Runs a function that cannot fail. If it panics, which is a bug of ours, returns `otherwise`.
pub(crate) fn value<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    caught(body).unwrap_or(otherwise)
}

/// Frees an object that the caller gives back.
///
/// # Safety
/// `object` is NULL, or came from `Box::into_raw` and is not used after this.
pub(crate) unsafe fn free<T>(object: *mut T) {
    value((), || {
        if !object.is_null() {
            // SAFETY: by this function's contract.
            drop(unsafe { Box::from_raw(object) });
        }
    });
}

fn caught<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    // Unwind safety: after a panic, all values are either dropped or guarded by the engine's own locks.
    catch_quietly(|| {
        #[cfg(test)]
        tests::panic_if_told();
        body()
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::ptr::null_mut;

    use super::*;

    thread_local! { static PANIC: Cell<bool> = const { Cell::new(false) } }

    pub(super) fn panic_if_told() {
        assert!(!PANIC.replace(false), "a test asked for this");
    }

    /// Makes the next exported function that this thread calls panic.
    pub(crate) fn panicking<T>(call: impl FnOnce() -> T) -> T {
        PANIC.set(true);
        let result = call();
        assert!(!PANIC.get(), "the call went through no guard");
        result
    }

    #[test]
    fn panics_become_statuses() {
        let bodies: [(fn() -> Result<(), Failure>, _); 3] = [
            (|| panic!("a {}", 1), "panic: a 1"),
            (|| panic!("a constant"), "panic: a constant"),
            (|| std::panic::panic_any(7), "panic: unknown fault"),
        ];
        for (body, text) in bodies {
            let mut error = null_mut();
            // SAFETY: a local variable.
            assert_eq!(unsafe { status(&mut error, body) }, WELM_PANIC);
            // SAFETY: just made by `status`.
            let error = unsafe { Box::from_raw(error) };
            // SAFETY: the error lives.
            let message = unsafe { std::ffi::CStr::from_ptr(crate::error::welm_error_message(&*error)) };
            assert_eq!(message.to_str(), Ok(text));
        }
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { status(null_mut(), || panic!("nobody listens")) }, WELM_PANIC);
        assert_eq!(value(3, || panic!("instead")), 3);
    }
}
