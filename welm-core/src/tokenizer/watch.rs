//! What may end a tokenization before its text does: a deadline, a cancelled request, more tokens than fit.

use std::fmt;

use crate::error::Error;
use crate::finish_reason::FinishReason;

/// Units of work (about a byte looked at) between two questions whether to go on.
const INTERVAL: usize = 1 << 15;

/// Why an encoding ended without all its tokens.
#[derive(Debug)]
pub(crate) enum Halt {
    /// It failed.
    Failed(Error),
    /// Whoever asked for it wants it no longer.
    Stopped(FinishReason),
    /// There are at least this many tokens, which is more than wanted.
    TooMany(usize),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Halt::Failed(error)
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Halt::Failed(Error::Tokenizer(reason)) => f.write_str(reason),
            Halt::Failed(error) => error.fmt(f),
            Halt::Stopped(reason) => f.write_str(reason.as_str()),
            Halt::TooMany(n) => write!(f, "more than {n} tokens"),
        }
    }
}

impl Halt {
    /// As an error, for an encoding that nothing stops.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Halt::Failed(error) => error,
            other => Error::Tokenizer(other.to_string()),
        }
    }
}

/// Asks from time to time whether to go on.
pub(crate) struct Watch<'a> {
    stop: Option<&'a dyn Fn() -> Option<FinishReason>>,
    /// More tokens than this are not wanted.
    pub(crate) most_tokens: usize,
    work: usize,
}

impl<'a> Watch<'a> {
    /// Never stops.
    pub(crate) fn none() -> Self {
        Watch { stop: None, most_tokens: usize::MAX, work: 0 }
    }

    /// Asks `stop`, at once and then every so much work.
    pub(crate) fn new(stop: &'a dyn Fn() -> Option<FinishReason>, most_tokens: usize) -> Self {
        Watch { stop: Some(stop), most_tokens, work: INTERVAL }
    }

    /// Some work was done.
    pub(crate) fn work(&mut self, units: usize) -> Result<(), Halt> {
        self.work += units;
        if self.work < INTERVAL {
            return Ok(());
        }
        self.work = 0;
        match self.stop.and_then(|stop| stop()) {
            Some(reason) => Err(Halt::Stopped(reason)),
            None => Ok(()),
        }
    }

    /// There are at least this many tokens.
    pub(crate) fn tokens(&self, at_least: usize) -> Result<(), Halt> {
        if at_least > self.most_tokens { Err(Halt::TooMany(at_least)) } else { Ok(()) }
    }
}
