//! Turns SIGBUS on mapped weight files into an error. If a mapped file is truncated, or its device fails, reading there
//! raises SIGBUS, which would kill the process.
//!
//! A signal handler belongs to the whole process, so this one does little. If the address is in a watched map, the
//! handler replaces that page, and all pages after it in the map, by zeros, and notes the fault. The read then goes on.
//! Whoever watches the map checks [`faults`] before using what was read. For any other address, and for a signal that
//! was sent by a process, the handler does what happened before it was installed: it calls the previous handler, or
//! ends the process. It costs nothing until there is a fault. It runs on the thread's alternate signal stack if there
//! is one, as the runtimes of Go and the JVM require.
//!
//! The handler is installed once, when the first model is loaded that asks for it, and stays. A handler that the
//! program installs later replaces it, and should call it for addresses that it does not know.
//!
//! This works on Linux only. On other systems nothing is watched.

pub(crate) use system::{Unblocked, Watched, faults, install};

#[cfg(target_os = "linux")]
mod system {
    use std::mem::{MaybeUninit, zeroed};
    use std::ptr::{null, null_mut};
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

    use libc::{c_int, c_void, siginfo_t};

    /// A map that is or was watched, in a linked list. Nodes are never freed but used again, so that the handler can
    /// read the list at any time.
    struct Node {
        taken: AtomicBool,
        /// Whether a page was replaced.
        hit: AtomicBool,
        /// Incremented before and after each change of the range.
        version: AtomicUsize,
        /// The addresses `start..end` are watched; empty while nothing is.
        start: AtomicUsize,
        end: AtomicUsize,
        next: AtomicPtr<Node>,
    }

    impl Node {
        /// Watches another range. Only the owner of the node may call this.
        fn set(&self, start: usize, end: usize) {
            self.version.fetch_add(1, Ordering::AcqRel);
            self.end.store(0, Ordering::Release);
            self.start.store(start, Ordering::Release);
            self.end.store(end, Ordering::Release);
            self.version.fetch_add(1, Ordering::AcqRel);
        }
    }

    static NODES: AtomicPtr<Node> = AtomicPtr::new(null_mut());
    static FAULTS: AtomicUsize = AtomicUsize::new(0);
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    /// The action before ours. Written once, before the handler is installed.
    static mut BEFORE: MaybeUninit<libc::sigaction> = MaybeUninit::uninit();

    /// How many faults there were so far, in all maps.
    pub(crate) fn faults() -> usize {
        FAULTS.load(Ordering::Acquire) // so that `is_hit` is also seen
    }

    fn nodes() -> impl Iterator<Item = &'static Node> {
        // SAFETY: null, or a node, which is never freed.
        let node = |at: &AtomicPtr<Node>| unsafe { at.load(Ordering::Acquire).as_ref() };
        std::iter::successors(node(&NODES), move |n| node(&n.next))
    }

    /// Watches a map until it is dropped.
    #[derive(Debug)]
    pub(crate) struct Watched(&'static Node);

    impl std::fmt::Debug for Node {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Node").field("hit", &self.hit).finish_non_exhaustive()
        }
    }

    impl Watched {
        /// Watches a map of a file.
        pub(crate) fn new(map: &[u8]) -> Self {
            let take = |n: &&Node| {
                n.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            };
            let node = nodes().find(take).unwrap_or_else(|| {
                let node = Box::leak(Box::new(Node {
                    taken: AtomicBool::new(true),
                    hit: AtomicBool::new(false),
                    version: AtomicUsize::new(0),
                    start: AtomicUsize::new(0),
                    end: AtomicUsize::new(0),
                    next: AtomicPtr::new(null_mut()),
                }));
                // Without a lock, because another thread might hold it when the process forks.
                let mut head = NODES.load(Ordering::Acquire);
                loop {
                    node.next.store(head, Ordering::Relaxed);
                    match NODES.compare_exchange(head, node, Ordering::AcqRel, Ordering::Acquire) {
                        Ok(_) => return node,
                        Err(now) => head = now,
                    }
                }
            });
            node.hit.store(false, Ordering::Relaxed);
            let start = map.as_ptr() as usize;
            node.set(start, start + map.len());
            Watched(node)
        }

        /// Whether a part of the map was replaced by zeros.
        pub(crate) fn is_hit(&self) -> bool {
            self.0.hit.load(Ordering::Relaxed)
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            self.0.set(0, 0);
            self.0.taken.store(false, Ordering::Release);
        }
    }

    static INSTALLED: Once = Once::new();

    /// Installs the handler, once. If the system refuses, nothing changes.
    pub(crate) fn install() {
        INSTALLED.call_once(|| {
            // SAFETY: the structs are local or written before anybody can read them; the handler is of the type that
            // SA_SIGINFO asks for.
            unsafe {
                PAGE.store(
                    usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(4096),
                    Ordering::Relaxed,
                );
                let before = (&raw mut BEFORE).cast::<libc::sigaction>();
                if libc::sigaction(libc::SIGBUS, null(), before) != 0 {
                    return;
                }
                let mut action: libc::sigaction = zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_mask = (*before).sa_mask;
                let kept = (*before).sa_flags & (libc::SA_NODEFER | libc::SA_RESTART);
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | kept;
                libc::sigaction(libc::SIGBUS, &action, null_mut());
            }
        });
    }

    /// The handler. It only makes system calls, because other functions are not safe in a signal handler.
    extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the system gives a valid `siginfo_t`, whose address is one if the system sent the signal itself.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        // These codes mean that memory was not there. BUS_ADRALN (alignment) is not handled: zeros would not help.
        let absent =
            matches!(code, libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR | libc::BUS_MCEERR_AO);
        if absent && replace(address) {
            return;
        }
        // SAFETY: the arguments are the system's own.
        unsafe { as_before(signal, info, context) }
    }

    /// Replaces a watched page, and all pages after it in its map, by zeros. False if the address is not watched.
    fn replace(address: usize) -> bool {
        // If a node is used again for another map meanwhile, its version changes. It is odd while that is written: one half
        // of a range may then be old. Nobody reads a map before it is watched.
        let range = |n: &'static Node| {
            let version = n.version.load(Ordering::Acquire);
            let (start, end) = (n.start.load(Ordering::Acquire), n.end.load(Ordering::Acquire));
            let same = n.version.load(Ordering::Acquire) == version;
            (same && version.is_multiple_of(2) && (start..end).contains(&address)).then_some((n, end))
        };
        let Some((node, end)) = nodes().find_map(range) else { return false };
        let page = address & !(PAGE.load(Ordering::Relaxed) - 1);
        let len = end - page;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the range is the end of a map that belongs to the node's owner, who only reads it, and who keeps it
        // while this thread reads there. The interrupted code may use `errno`, so it is restored.
        unsafe {
            let errno = *libc::__errno_location();
            let zeros = libc::mmap(page as *mut c_void, len, libc::PROT_READ, flags, -1, 0);
            *libc::__errno_location() = errno;
            if zeros == libc::MAP_FAILED {
                return false;
            }
        }
        node.hit.store(true, Ordering::Relaxed);
        FAULTS.fetch_add(1, Ordering::Release);
        true
    }

    /// Does what the action before ours would have done.
    ///
    /// # Safety
    /// The arguments are those that the system gave a handler.
    unsafe fn as_before(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: written before the handler was installed; functions in it are what their flags say.
        unsafe {
            let before = *(&raw const BEFORE).cast::<libc::sigaction>();
            let sent = (*info).si_code <= 0;
            let end = before.sa_sigaction == libc::SIG_DFL || before.sa_flags & libc::SA_RESETHAND != 0;
            if before.sa_sigaction == libc::SIG_IGN && sent {
                return;
            }
            if end || before.sa_sigaction == libc::SIG_IGN {
                // If the system raised the signal, it raises it again after the return. If a process sent it, we raise
                // it.
                let mut default: libc::sigaction = zeroed();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &default, null_mut());
            }
            match before.sa_sigaction {
                libc::SIG_DFL if sent => _ = libc::raise(signal),
                libc::SIG_DFL | libc::SIG_IGN => {}
                handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
                    type Full = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
                    std::mem::transmute::<usize, Full>(handler)(signal, info, context);
                }
                handler => std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal),
            }
        }
    }

    /// While this lives, SIGBUS is not blocked on the thread, if the handler was installed. A fault while SIGBUS is
    /// blocked ends the process without calling a handler. Threads inherit blocked signals, and some programs block all
    /// signals on the threads that start others.
    pub(crate) struct Unblocked {
        before: Option<libc::sigset_t>,
        thread: std::marker::PhantomData<*const ()>,
    }

    impl Unblocked {
        /// Unblocks SIGBUS on this thread.
        pub(crate) fn here() -> Self {
            // SAFETY: local variables.
            let before = INSTALLED.is_completed().then(|| unsafe {
                let (mut bus, mut before) = (zeroed(), zeroed());
                libc::sigemptyset(&mut bus);
                libc::sigaddset(&mut bus, libc::SIGBUS);
                libc::pthread_sigmask(libc::SIG_UNBLOCK, &bus, &mut before);
                before
            });
            Unblocked { before, thread: std::marker::PhantomData }
        }
    }

    impl Drop for Unblocked {
        fn drop(&mut self) {
            if let Some(before) = &self.before {
                // SAFETY: it was this thread's mask; `Unblocked` cannot move to another thread.
                unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, null_mut()) };
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    /// Does nothing on this system.
    #[derive(Debug)]
    pub(crate) struct Watched;

    impl Watched {
        /// Watches nothing.
        pub(crate) fn new(_map: &[u8]) -> Self {
            Watched
        }

        /// Always false.
        pub(crate) fn is_hit(&self) -> bool {
            false
        }
    }

    /// Does nothing on this system.
    pub(crate) struct Unblocked;

    impl Unblocked {
        /// Changes nothing.
        pub(crate) fn here() -> Self {
            Unblocked
        }
    }

    /// Always 0.
    pub(crate) fn faults() -> usize {
        0
    }

    /// Installs nothing.
    pub(crate) fn install() {}
}
