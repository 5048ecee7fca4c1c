//! Threads, as far as the system gives them.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::bus::Unblocked;
use super::cgroup::Cgroups;
use super::memory::{can_map, expect_room};
use crate::error::{Error, Result};

/// Bytes of address space that a thread's stack takes if nothing else is asked for: the standard library's.
pub(crate) const STACK: usize = 2 << 20;

/// Threads that this process may use: its affinity and its control groups' quota, not the machine's size.
pub(crate) fn available() -> usize {
    let own = thread::available_parallelism().map_or(1, |n| n.get());
    Cgroups::of_this_process().cpus().map_or(own, |quota| own.min(quota))
}

/// Why a thread with a stack of so many bytes could not be started. The system has one number for too many threads
/// and for no room; a look at the room tells them apart.
pub(crate) fn refused(what: &str, stack: usize, error: &io::Error) -> Error {
    if can_map(stack) {
        let reason = format!("{error}; the limits on threads (RLIMIT_NPROC, pids.max) may be the cause");
        Error::Unavailable { what: what.into(), reason }
    } else {
        Error::allocation(format!("the stack of {what}"), stack, error)
    }
}

/// Checks that there is room for a thread with a stack of so many bytes, and for what the standard library needs when it
/// starts one; without that it would end the process.
pub(crate) fn expect_room_for(what: &str, stack: usize) -> Result<()> {
    expect_room(&format!("the stack of {what}"), stack + BESIDE_STACK)
}

/// A signal stack and the thread's own data.
const BESIDE_STACK: usize = 1 << 20;

/// Whether `work` is true of all parts: on this thread, and on as many more as there are parts. Where the system gives
/// no more threads, those that there are do it all.
pub(crate) fn all<P: Send>(parts: impl Iterator<Item = P>, work: impl Fn(P) -> bool + Sync) -> bool {
    let parts: Vec<P> = parts.collect();
    let more = parts.len().saturating_sub(1);
    let parts = Mutex::new(parts.into_iter());
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let _unblocked = Unblocked::here();
        let mut all = true;
        while let Some(part) = next() {
            all &= work(part);
        }
        all
    };
    thread::scope(|scope| {
        let builder = |_| thread::Builder::new().name("welm-load".into());
        let start = |i| {
            expect_room_for("a loading thread", STACK)
                .ok()
                .and_then(|()| builder(i).spawn_scoped(scope, run).ok())
        };
        let workers: Vec<_> = (0..more).map_while(start).collect();
        let own = run();
        workers.into_iter().fold(own, |all, w| all & w.join().unwrap_or(false))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn all_parts_are_looked_at_once() {
        for n in [0, 1, 7] {
            let seen: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            let count = |i: usize| seen[i].fetch_add(1, Ordering::Relaxed) == 0;
            assert!(all(0..n, count));
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
            assert!(n == 0 || !all(0..n, |i| i != n - 1));
        }
    }

    #[test]
    fn a_refusal_says_whether_room_or_threads_are_short() {
        let full = io::Error::from(io::ErrorKind::WouldBlock);
        assert!(matches!(refused("a thread", STACK, &full), Error::Unavailable { .. }));
        assert!(matches!(refused("a thread", usize::MAX / 2, &full), Error::Allocation { .. }));
        assert!(available() >= 1);
    }
}
