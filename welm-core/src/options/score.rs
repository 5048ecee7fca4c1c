//! [`ScoreOptions`]: how texts are scored.

use std::time::Duration;

use super::table::options;
use super::{CancelToken, GenerateOptions};

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
        /// How many of the likeliest tokens are reported at each place of a continuation, with log-probabilities.
        ///
        /// With one it is seen whether greedy decoding would have given the continuation. More take longer.
        pub logprobs: usize = 0, Whole(0, GenerateOptions::MAX_LOGPROBS as u64);
        /// Prefix-cache entries are shared only between requests with the same salt.
        ///
        /// As [`GenerateOptions::cache_salt`]. It changes no score.
        pub cache_salt: Option<String> = None, Text(Some(GenerateOptions::MAX_CACHE_SALT)), "shared by all that have none";
    }
}
