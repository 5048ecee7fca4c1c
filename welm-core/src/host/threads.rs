//! How many threads this process may use, and what happens if the system refuses to start one.

use std::io;
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::bus::Unblocked;
use super::cgroup::Cgroups;
use super::float::Usual;
use super::memory::{can_map, expect_room};
use crate::error::{Error, Result};

/// Bytes of a thread's stack: the default of the standard library.
pub(crate) const STACK: usize = 2 << 20;

/// How many threads this process may use: limited by its CPU affinity and by the quota of its control groups.
pub(crate) fn available() -> usize {
    let own = thread::available_parallelism().map_or(1, |n| n.get());
    Cgroups::of_this_process().cpus().map_or(own, |quota| own.min(quota))
}

/// The error for a thread with a stack of `stack` bytes that could not be started. The system reports too many threads
/// and too little address space by the same error number. Trying to map as much tells them apart.
pub(crate) fn refused(what: &str, stack: usize, error: &io::Error) -> Error {
    if can_map(stack) {
        let reason = format!("{error}; the limits on threads (RLIMIT_NPROC, pids.max) may be the cause");
        Error::Unavailable { what: what.into(), reason }
    } else {
        Error::allocation(format!("the stack of {what}"), stack, error)
    }
}

/// Checks that there is address space for a thread with a stack of `stack` bytes, and for what the standard library
/// allocates when it starts a thread. If that allocation failed, the process would be aborted.
pub(crate) fn expect_room_for(what: &str, stack: usize) -> Result<()> {
    expect_room(&format!("the stack of {what}"), stack + BESIDE_STACK)
}

/// Bytes that starting a thread takes beside its stack: a signal stack, and the thread's data.
const BESIDE_STACK: usize = 1 << 20;

/// What a thread that computes or reads mapped files does first; until the result is dropped.
pub(crate) fn prepared() -> (Unblocked, Usual) {
    (Unblocked::here(), Usual::here())
}

/// Calls `work` for all parts, and returns the least number that it gave, such as that of the first row that is wrong.
/// There is a thread for each part, and this thread is one of them. If the system starts fewer threads, these do all the
/// work.
pub(crate) fn least<P: Send>(
    parts: impl Iterator<Item = P>,
    work: impl Fn(P) -> Option<usize> + Sync,
) -> Option<usize> {
    let parts: Vec<P> = parts.collect();
    let more = parts.len().saturating_sub(1);
    let parts = Mutex::new(parts.into_iter());
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let _prepared = prepared();
        let mut least = None;
        while let Some(part) = next() {
            least = lesser(least, work(part));
        }
        least
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
        let joined =
            |w: thread::ScopedJoinHandle<'_, _>| w.join().unwrap_or_else(|panic| resume_unwind(panic));
        workers.into_iter().fold(own, |least, w| lesser(least, joined(w)))
    })
}

fn lesser(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn all_parts_are_looked_at_once() {
        for n in [0, 1, 7] {
            let seen: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            let count = |i: usize| (seen[i].fetch_add(1, Ordering::Relaxed) != 0).then_some(i);
            assert_eq!(least(0..n, count), None);
            assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
            assert_eq!(least(0..n, |i| (i >= n / 2).then_some(i)), (n > 0).then_some(n / 2));
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
