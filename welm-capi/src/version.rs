//! Which library this is.

use std::ffi::c_char;

/// Version of the library that this header belongs to, first number.
pub const WELM_VERSION_MAJOR: u32 = 0;
/// Second number.
pub const WELM_VERSION_MINOR: u32 = 1;
/// Third number.
pub const WELM_VERSION_PATCH: u32 = 0;
/// Changes whenever a program that was compiled with an older header would no longer work.
pub const WELM_ABI_VERSION: u32 = 1;

/// The version of the library that runs, as text: `0.1.0`.
///
/// - ownership: a constant; never freed.
/// - threads: any, at any time.
/// - NULL: never returned.
/// - encoding: ASCII, NUL-terminated.
#[unsafe(no_mangle)]
pub extern "C" fn welm_version() -> *const c_char {
    const { concat!(env!("CARGO_PKG_VERSION"), "\0") }.as_ptr().cast()
}

/// The `WELM_ABI_VERSION` of the library that runs. A program that loads the library itself (`dlopen`) should compare
/// the two.
///
/// - ownership: nothing to free.
/// - threads: any, at any time.
/// - NULL: takes no pointer.
#[unsafe(no_mangle)]
pub extern "C" fn welm_abi_version() -> u32 {
    WELM_ABI_VERSION
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn the_version_is_the_same_everywhere() {
        let numbers = format!("{WELM_VERSION_MAJOR}.{WELM_VERSION_MINOR}.{WELM_VERSION_PATCH}");
        assert_eq!(numbers, env!("CARGO_PKG_VERSION"));
        // SAFETY: the pointer is that of a constant that ends with NUL.
        assert_eq!(unsafe { CStr::from_ptr(welm_version()) }.to_str(), Ok(numbers.as_str()));
    }
}
