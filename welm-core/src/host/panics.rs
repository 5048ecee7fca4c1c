//! Turns panics into errors without printing them on stderr.
//!
//! The process's panic hook prints a panic before it can be caught. That hook belongs to the program, so it stays. The
//! first call of [`catch`] installs another hook, which passes every panic on to it, except panics of a thread that is
//! inside [`catch`]. If the program sets a hook later, it replaces both, and sees those panics again.

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

/// Runs `work`. If it panics on this thread, returns the message of the panic, which is not printed.
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
        // The program's hook, set before the first `catch`.
        set_hook(Box::new(|_| _ = SEEN.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(catch(|| 3), Ok(3));
        assert_eq!(catch(|| -> u8 { panic!("a {}", 1) }), Err("a 1".into()));
        let inner = || (catch(|| -> u8 { panic!("inner") }), catch(|| -> u8 { std::panic::panic_any(7) }));
        assert_eq!(catch(inner), Ok((Err("inner".into()), Err("unknown fault".into()))));
        assert_eq!(SEEN.load(Ordering::Relaxed), 0);
        // Other panics reach the hook: of this thread outside `catch`, and of another thread while this one is inside.
        assert!(catch_unwind(|| panic!("seen")).is_err());
        assert_eq!(SEEN.load(Ordering::Relaxed), 1);
        let other = || std::thread::spawn(|| panic!("seen")).join().is_err();
        assert_eq!(catch(other), Ok(true));
        assert_eq!(SEEN.load(Ordering::Relaxed), 2);
    }
}
