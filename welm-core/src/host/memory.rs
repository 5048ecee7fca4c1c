//! How much memory this process may still take.

use std::fs;

use memmap2::MmapMut;

use super::cgroup::Cgroups;
use crate::error::{Error, Result};

/// Allocations of at least this many bytes are compared with the available memory first. Smaller ones are not.
const LARGE: usize = 16 << 20;

/// Bytes that the process may still take, by each of three limits; `None` if there is no such limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Available {
    /// Memory: the smaller of `MemAvailable` and the limits of the control groups.
    pub(crate) memory: Option<u64>,
    /// Address space (RLIMIT_AS). Mapped files count.
    pub(crate) address_space: Option<u64>,
    /// Private memory (RLIMIT_DATA). Mapped files do not count.
    pub(crate) data: Option<u64>,
}

/// Gives memory that was freed back to the system, as glibc does not by itself where small pieces lie between.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the heap's own function, which any thread may call at any time.
    unsafe {
        libc::malloc_trim(0)
    };
}

impl Available {
    /// What is available now.
    pub(crate) fn now() -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/{name}")).ok();
        let kilobytes = |text: Option<String>, key: &str| field(&text?, key);
        let system = kilobytes(read("meminfo"), "MemAvailable:");
        let groups = Cgroups::of_this_process().memory();
        let left = |limit: Option<u64>, key: &str| {
            Some(limit?.saturating_sub(kilobytes(read("self/status"), key).unwrap_or(0)))
        };
        let (address_space, data) = limits();
        Available {
            memory: system.into_iter().chain(groups).min(),
            address_space: left(address_space, "VmSize:"),
            data: left(data, "VmData:"),
        }
    }

    /// The smallest of the three: how much private memory the process may take.
    fn own(self) -> Option<u64> {
        [self.memory, self.address_space, self.data].into_iter().flatten().min()
    }
}

/// The field `key`, in bytes, of a text with lines such as `VmSize:  123 kB`.
fn field(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// RLIMIT_AS and RLIMIT_DATA in bytes; `None` for a limit that is not set.
#[cfg(unix)]
fn limits() -> (Option<u64>, Option<u64>) {
    let limit = |resource| {
        let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: a local variable of the right type.
        let got = unsafe { libc::getrlimit(resource, &mut limit) };
        // The type of `rlim_cur` depends on the system: it may have 32 bits, or be signed.
        #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)]
        let bytes = u64::try_from(limit.rlim_cur).ok();
        bytes.filter(|_| got == 0 && limit.rlim_cur != libc::RLIM_INFINITY)
    };
    (limit(libc::RLIMIT_AS), limit(libc::RLIMIT_DATA))
}

#[cfg(not(unix))]
fn limits() -> (Option<u64>, Option<u64>) {
    (None, None)
}

/// Whether `bytes` bytes of address space can be mapped.
pub(crate) fn can_map(bytes: usize) -> bool {
    MmapMut::map_anon(bytes.max(1)).is_ok()
}

/// Checks that `bytes` bytes can be allocated. For code that aborts the process if an allocation fails: libraries, and
/// the small vectors of the engine.
///
/// # Errors
/// [`Error::Allocation`] if they cannot.
pub(crate) fn expect_room(what: &str, bytes: usize) -> Result<()> {
    let reason = "the limit on address space (RLIMIT_AS) may be the cause";
    if can_map(bytes) { Ok(()) } else { Err(Error::allocation(what, bytes, reason)) }
}

/// Checks that so many bytes are available. Linux grants more memory than it has, and kills the process later. So large
/// allocations are checked first.
pub(crate) fn expect_available(what: &str, bytes: usize) -> Result<()> {
    if bytes < LARGE {
        return Ok(());
    }
    match Available::now().own().filter(|&available| bytes as u64 > available) {
        Some(available) => Err(Error::allocation(what, bytes, format!("{available} bytes are available"))),
        None => Ok(()),
    }
}

/// An empty vector with capacity for `len` values. An ordinary `Vec` would abort the process if there were no memory.
///
/// # Errors
/// [`Error::Allocation`] if there is not enough memory.
pub(crate) fn vec_for<T>(what: &str, len: usize) -> Result<Vec<T>> {
    let bytes = len.saturating_mul(size_of::<T>());
    let mut values = Vec::new();
    expect_available(what, bytes)?;
    values.try_reserve_exact(len).map_err(|e| Error::allocation(what, bytes, e))?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc() {
        let status = "Name:\tx\nVmSize:\t   20 kB\nVmData: no kB\nVmLck:\n";
        assert_eq!(field(status, "VmSize:"), Some(20 << 10));
        assert_eq!(
            (field(status, "VmData:"), field(status, "VmLck:"), field("", "VmSize:")),
            (None, None, None)
        );
        assert_eq!(field("VmSize: 18446744073709551615 kB", "VmSize:"), None);
    }

    #[test]
    fn too_much_is_an_error() {
        assert_eq!(vec_for::<u64>("a test", 3).unwrap().capacity(), 3);
        for len in [usize::MAX, usize::MAX / 8, 1 << 50] {
            assert!(matches!(vec_for::<u64>("a test", len), Err(Error::Allocation { .. })), "{len}");
        }
        assert!(expect_room("a test", 1 << 20).is_ok() && expect_room("a test", 1 << 60).is_err());
    }
}
