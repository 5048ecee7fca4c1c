//! Memory that this process may still take.

use std::fs;

use memmap2::MmapMut;

use super::cgroup::Cgroups;
use crate::error::{Error, Result};

/// What large structures of a request are checked against; smaller ones must fit anyhow.
const LARGE: usize = 16 << 20;

/// Bytes that may be taken in each of three ways; none where nothing limits it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Available {
    /// Memory: what the system calls available, within the limits of the control groups.
    pub(crate) memory: Option<u64>,
    /// Address space (RLIMIT_AS): files count as soon as they are mapped.
    pub(crate) address_space: Option<u64>,
    /// Memory of the process's own (RLIMIT_DATA): mapped files do not count.
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
    /// Now.
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

    /// The least of all for memory that a process takes for itself.
    fn own(self) -> Option<u64> {
        [self.memory, self.address_space, self.data].into_iter().flatten().min()
    }
}

/// The field `key` of a file of lines such as `VmSize:  123 kB`, in bytes.
fn field(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// RLIMIT_AS and RLIMIT_DATA, where there are limits.
#[cfg(unix)]
fn limits() -> (Option<u64>, Option<u64>) {
    let limit = |resource| {
        let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: a local variable of the right type.
        let got = unsafe { libc::getrlimit(resource, &mut limit) };
        // Its type is the system's own: of 32 bits, or signed.
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

/// Whether so many bytes of address space are left.
pub(crate) fn can_map(bytes: usize) -> bool {
    MmapMut::map_anon(bytes.max(1)).is_ok()
}

/// Checks that so many bytes can be taken by code that would end the process if it got none: libraries, and the small
/// vectors of the engine.
pub(crate) fn expect_room(what: &str, bytes: usize) -> Result<()> {
    let reason = "the limit on address space (RLIMIT_AS) may be the cause";
    if can_map(bytes) { Ok(()) } else { Err(Error::allocation(what, bytes, reason)) }
}

/// A vector for `len` values, which it will not outgrow; an error where an ordinary one would end the process.
pub(crate) fn vec_for<T>(what: &str, len: usize) -> Result<Vec<T>> {
    let bytes = len.saturating_mul(size_of::<T>());
    let mut values = Vec::new();
    // The system would promise more than it has, and kill the process later.
    if bytes >= LARGE
        && let Some(available) = Available::now().own()
        && bytes as u64 > available
    {
        return Err(Error::allocation(what, bytes, format!("{available} bytes are available")));
    }
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
