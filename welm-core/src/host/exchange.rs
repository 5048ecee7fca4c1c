//! Exchanges two folders in one atomic step, so that neither another process nor a crash sees a state in between.

use std::io;
use std::path::Path;

/// Exchanges the files or folders at two paths in the same file system.
///
/// # Errors
/// Errors of the system. `Unsupported` if the system has no such call; often `InvalidInput` if the file system does not
/// support it.
#[cfg(target_os = "linux")]
pub(crate) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    let name = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from);
    let (a, b) = (name(a)?, name(b)?);
    // Called by its number, because not every C library that Rust supports has the function.
    // SAFETY: two strings that end with NUL and outlive the call, which keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
