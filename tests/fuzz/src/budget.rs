//! An allocator that ends the process if an input makes it allocate too much.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Most bytes of one allocation, and of all together. Targets ask for at most 64 MiB of weights, cache and scratch, and
/// their inputs are below 1 MiB: an allocation of more than the limit and twice the input is a finding.
const MOST_AT_ONCE: usize = 66 << 20;
const MOST: usize = 128 << 20;

static USED: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with a limit.
pub struct Budget;

/// Counts an allocation. If it is too much, it ends the process here. After a NULL the Rust library would end it, too,
/// but then the place of the failure would not show.
fn count(size: usize) {
    let used = USED.fetch_add(size, Relaxed) + size;
    if size > MOST_AT_ONCE || used > MOST {
        // Printing allocates, too.
        USED.store(0, Relaxed);
        eprintln!("budget: {size} bytes at once, {used} bytes in use");
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Budget {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: by this function's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: by this function's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: by this function's contract.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: by this function's contract.
        unsafe { System.dealloc(memory, layout) }
    }
}
