//! [`ScoreOptions`]: how texts are scored.

use std::time::Duration;

use super::CancelToken;
use super::table::options;

options! {
    /// How texts are scored, by [`Model::score_pairs`](crate::Model::score_pairs).
    ///
    /// Later versions may add fields: end a literal with `..ScoreOptions::default()`.
    #[derive(Debug, Clone)]
    pub struct ScoreOptions {
        /// Time after which the scoring ends without a result, counted from the call.
        ///
        /// It is [`Error::Interrupted`](crate::Error::Interrupted) then.
        pub deadline: Option<Duration> = None, Duration, "never";
        /// Token that ends the scoring from another thread.
        ///
        /// It is [`Error::Interrupted`](crate::Error::Interrupted) then.
        pub cancel: Option<CancelToken> = None, Cancel, "none";
    }
}
