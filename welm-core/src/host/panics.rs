//! Panics of foreign code that become errors, without a word on stderr.
//!
//! What prints is the process's panic hook, before anything can be caught. It is the host's, so it stays: at the first
//! call a hook is put in front of it that passes every panic on, but for those of a thread that is inside [`catch`]. A
//! host that sets another hook later replaces both, and sees those panics again, which is its choice.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread is inside `catch`.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn install_hook() {
    static INSTALLED: Once = Once::new();
    // A panicking thread may not change the hook.
    if std::thread::panicking() {
        return;
    }
    INSTALLED.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.try_with(Cell::get).unwrap_or(false) {
                before(info);
            }
        }));
    });
}

/// Runs `work`; a panic of it, on this thread, is its message and is printed nowhere.
pub fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    install_hook();
    let outer = QUIET.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    done.map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown fault").to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_hook_of_the_host_sees_all_panics_but_the_caught_ones() {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        // That of the host, from before the first `catch`.
        set_hook(Box::new(|_| _ = SEEN.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(catch(|| 3), Ok(3));
        assert_eq!(catch(|| -> u8 { panic!("a {}", 1) }), Err("a 1".into()));
        let inner = || (catch(|| -> u8 { panic!("inner") }), catch(|| -> u8 { std::panic::panic_any(7) }));
        assert_eq!(catch(inner), Ok((Err("inner".into()), Err("unknown fault".into()))));
        assert_eq!(SEEN.load(Ordering::Relaxed), 0);
        // Others: this thread outside of `catch`, and another thread while this one is inside.
        assert!(catch_unwind(|| panic!("seen")).is_err());
        assert_eq!(SEEN.load(Ordering::Relaxed), 1);
        let other = || std::thread::spawn(|| panic!("seen")).join().is_err();
        assert_eq!(catch(other), Ok(true));
        assert_eq!(SEEN.load(Ordering::Relaxed), 2);
    }
}
