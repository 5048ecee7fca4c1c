//! Detects forked children. After `fork`, a child has the memory of its parent's engines but none of their threads. A
//! lock that another thread held at that moment stays locked for ever.
//!
//! So everything that belongs to those threads (channels, handles, locks) is in a [`Local`]. In a child, it can be
//! neither used nor dropped, because dropping would join a thread that does not exist, or wait for it.
//!
//! A child is recognised by its process id, and by a handler that `fork` calls in it. Either alone is not enough: the
//! first process of a PID namespace has id 1, and so may its parent; and a program that calls the system call `clone`
//! directly runs no handler.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};

/// How many forks are between the first process that called [`Process::current`] and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The identity of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    id: u32,
    forks: u32,
}

impl Process {
    /// The present process.
    pub(crate) fn current() -> Process {
        #[cfg(unix)]
        {
            static HANDLER: std::sync::Once = std::sync::Once::new();
            extern "C" fn in_child() {
                FORKS.fetch_add(1, Ordering::Relaxed);
            }
            // SAFETY: the handler only increments a counter. If there is no memory to register it, only the ids differ.
            HANDLER.call_once(|| _ = unsafe { libc::pthread_atfork(None, None, Some(in_child)) });
        }
        Process::now()
    }

    fn now() -> Process {
        Process { id: std::process::id(), forks: FORKS.load(Ordering::Relaxed) }
    }

    /// Whether the code now runs in a child of this process.
    pub(crate) fn is_parent(self) -> bool {
        self != Process::now()
    }
}

/// A value that is valid only in the process that made it, and not in a forked child.
pub(crate) struct Local<T> {
    value: ManuallyDrop<T>,
    process: Process,
}

impl<T> Local<T> {
    /// A value for the present process.
    pub(crate) fn new(value: T) -> Self {
        Local { value: ManuallyDrop::new(value), process: Process::current() }
    }

    /// The value.
    ///
    /// # Errors
    /// [`Error::Forked`] in a child.
    pub(crate) fn get(&self) -> Result<&T> {
        if self.process.is_parent() { Err(Error::Forked) } else { Ok(&self.value) }
    }

    /// The same as [`Local::get`], mutable.
    pub(crate) fn get_mut(&mut self) -> Result<&mut T> {
        if self.process.is_parent() { Err(Error::Forked) } else { Ok(&mut self.value) }
    }
}

impl<T> Drop for Local<T> {
    fn drop(&mut self) {
        if !self.process.is_parent() {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.value) };
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_child_can_neither_use_nor_drop_a_local() {
        struct Loud;
        impl Drop for Loud {
            fn drop(&mut self) {
                // SAFETY: ends the process, whatever it is in the middle of.
                unsafe { libc::_exit(9) };
            }
        }
        let mut local = Local::new(ManuallyDrop::new(Loud));
        assert!(local.get().is_ok() && local.get_mut().is_ok());
        // Also if the child has its parent's process id.
        for forks in [0, 1] {
            // SAFETY: the child does nothing but compare numbers, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                if forks == 1 {
                    local.process.id = std::process::id();
                }
                let loud = Local { value: ManuallyDrop::new(Loud), process: local.process };
                let refused = matches!(loud.get(), Err(Error::Forked)) && local.get_mut().is_err();
                drop(loud);
                // SAFETY: as above.
                unsafe { libc::_exit(if refused { 7 } else { 8 }) };
            }
            let mut status = 0;
            // SAFETY: a child of this process, and a local variable.
            assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
            assert_eq!(libc::WEXITSTATUS(status), 7);
        }
    }
}
