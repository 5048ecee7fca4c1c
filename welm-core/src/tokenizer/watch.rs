//! Stops a tokenization early: at a deadline, if the request is cancelled, or if there are too many tokens.

use std::fmt;

use crate::error::Error;
use crate::finish_reason::FinishReason;

/// Units of work between two calls of `stop`. A unit is about one byte of text that is read.
const INTERVAL: usize = 1 << 15;

/// Why an encoding ended early.
#[derive(Debug)]
pub(crate) enum Halt {
    /// It failed.
    Failed(Error),
    /// The request was cancelled or is past its deadline.
    Stopped(FinishReason),
    /// There are at least this many tokens, which are more than allowed.
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
    /// The error of an encoding that is never stopped early.
    pub(crate) fn into_error(self) -> Error {
        match self {
            Halt::Failed(error) => error,
            other => Error::Tokenizer(other.to_string()),
        }
    }
}

/// Checks from time to time whether to go on.
pub(crate) struct Watch<'a> {
    stop: Option<&'a dyn Fn() -> Option<FinishReason>>,
    /// The most tokens that are allowed.
    pub(crate) most_tokens: usize,
    work: usize,
}

impl<'a> Watch<'a> {
    /// A watch that never stops an encoding.
    pub(crate) fn none() -> Self {
        Watch { stop: None, most_tokens: usize::MAX, work: 0 }
    }

    /// A watch that calls `stop` at the first work, and then after every `INTERVAL` units of work.
    pub(crate) fn new(stop: &'a dyn Fn() -> Option<FinishReason>, most_tokens: usize) -> Self {
        Watch { stop: Some(stop), most_tokens, work: INTERVAL }
    }

    /// Notes that `units` of work were done.
    ///
    /// # Errors
    /// [`Halt::Stopped`] if the encoding must stop.
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

    /// Checks the number of tokens, of which there are at least `at_least`.
    ///
    /// # Errors
    /// [`Halt::TooMany`] if they are more than allowed.
    pub(crate) fn tokens(&self, at_least: usize) -> Result<(), Halt> {
        if at_least > self.most_tokens { Err(Halt::TooMany(at_least)) } else { Ok(()) }
    }
}
