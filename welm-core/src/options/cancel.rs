//! [`CancelToken`]: ends requests from outside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::table::Value;

/// Stops a request from another thread. Clones share one flag.
#[derive(Debug, Clone, Default)]
pub struct CancelToken {
    flag: Arc<AtomicBool>,
    /// Flags of the tokens that this one was made from.
    above: Vec<Arc<AtomicBool>>,
}

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that is cancelled with this one, and can be cancelled alone: for a caller that has a reason of its own to
    /// stop a request that was given a token.
    ///
    /// ```
    /// use welm_core::CancelToken;
    /// let all = CancelToken::new();
    /// let (one, other) = (all.child(), all.child());
    /// one.cancel();
    /// assert_eq!([&all, &one, &other].map(|token| token.is_cancelled()), [false, true, false]);
    /// all.cancel();
    /// assert!(other.is_cancelled());
    /// ```
    pub fn child(&self) -> Self {
        let above = self.above.iter().chain([&self.flag]).cloned().collect();
        CancelToken { flag: Arc::default(), above }
    }

    /// Asks every request that holds this token to stop; takes effect within one step.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Release);
    }

    /// Whether [`CancelToken::cancel`] was called on this token, or on one that it was made from.
    pub fn is_cancelled(&self) -> bool {
        self.above.iter().chain([&self.flag]).any(|flag| flag.load(Ordering::Acquire))
    }
}

impl Value for CancelToken {}
