//! Finds stop strings in a growing text, and how much of each the end of the text matches.
//!
//! Each stop string has an automaton of Knuth, Morris and Pratt. It works on bytes, which is correct because UTF-8
//! strings that match by bytes also match by characters. Its state is the number of bytes of the string that the end of
//! the text matches. It tells when the string is complete, and how much of the text has to be held back. A byte costs
//! O(1) for each stop string, however long the text is.

use std::collections::VecDeque;
use std::ops::Range;

/// One stop string and how much of it the end of the text matches.
#[derive(Debug)]
pub(super) struct StopMatcher {
    /// `borders[m]`: the length of the longest proper beginning of the string's first `m + 1` bytes that is also their
    /// end.
    borders: Vec<u32>,
    /// The largest number of bytes of the stop string that the end of the text matches. Never all of them.
    pub(super) matched: usize,
}

impl StopMatcher {
    pub(super) fn new(stop: &str) -> Self {
        let stop = stop.as_bytes();
        let mut borders = vec![0; stop.len()];
        let mut border = 0;
        for m in 1..stop.len() {
            while border > 0 && stop[m] != stop[border] {
                border = borders[border - 1] as usize;
            }
            border += usize::from(stop[m] == stop[border]);
            borders[m] = border as u32;
        }
        StopMatcher { borders, matched: 0 }
    }

    /// The next shorter match, if `matched` bytes match now.
    fn shorter(&self, matched: usize) -> usize {
        self.borders[matched - 1] as usize
    }

    /// How many bytes of `stop` match after `byte`, if `matched` bytes did before it.
    pub(super) fn step(&self, mut matched: usize, stop: &[u8], byte: u8) -> usize {
        while matched == stop.len() || (matched > 0 && stop[matched] != byte) {
            matched = self.shorter(matched);
        }
        matched + usize::from(stop[matched] == byte)
    }
}

/// Matches in the text with special tokens spelled, as far back as the longest stop string reaches.
#[derive(Debug)]
pub(super) struct Spelled {
    /// For each stop string, the largest number of its bytes that the end of this text matches. It may be all of them
    /// if that match does not count, because it begins or ends inside a spelling.
    matched: Vec<usize>,
    /// Length of this text in bytes, counted from some place before the first special token.
    len: usize,
    /// The places of the special tokens in this text, in bytes, ascending.
    pub(super) tokens: VecDeque<Range<usize>>,
    /// Bytes of the longest stop string.
    longest: usize,
}

impl Spelled {
    pub(super) fn new(matchers: &[StopMatcher]) -> Self {
        let longest = matchers.iter().map(|matcher| matcher.borders.len()).max().unwrap_or(0);
        let matched = matchers.iter().map(|matcher| matcher.matched).collect();
        Spelled { matched, len: longest, tokens: VecDeque::new(), longest }
    }

    /// Whether the last `n` bytes of this text begin inside the spelling of a special token.
    fn begins_inside(&self, n: usize) -> bool {
        let start = self.len - n;
        self.tokens.iter().any(|token| token.start < start && start < token.end)
    }

    /// How many of the last `n` bytes of this text are shown, and no spelling.
    fn shown(&self, n: usize) -> usize {
        let start = self.len - n;
        n - self.tokens.iter().map(|token| token.end.saturating_sub(token.start.max(start))).sum::<usize>()
    }

    /// How many bytes at the end of the shown text belong to the beginning of a stop string.
    pub(super) fn held(&self, matchers: &[StopMatcher], stops: &[String]) -> usize {
        let held = |((&matched, matcher), stop): ((&usize, &StopMatcher), &String)| {
            let mut matched = matched;
            while matched == stop.len() || (matched > 0 && self.begins_inside(matched)) {
                matched = matcher.shorter(matched);
            }
            self.shown(matched)
        };
        self.matched.iter().zip(matchers).zip(stops).map(held).max().unwrap_or(0)
    }

    /// Takes one more byte of text. If it completes a stop string: how many bytes of shown text that string covers.
    pub(super) fn step(&mut self, matchers: &[StopMatcher], stops: &[String], byte: u8) -> Option<usize> {
        self.len += 1;
        for ((matched, matcher), stop) in self.matched.iter_mut().zip(matchers).zip(stops) {
            *matched = matcher.step(*matched, stop.as_bytes(), byte);
        }
        self.complete(stops)
    }

    /// How many bytes of shown text the longest stop string covers that ends here; `None` if none ends here.
    fn complete(&self, stops: &[String]) -> Option<usize> {
        let lens = self.matched.iter().zip(stops).filter(|(matched, stop)| **matched == stop.len());
        lens.filter(|(n, _)| !self.begins_inside(**n)).map(|(&n, _)| self.shown(n)).max()
    }

    /// Takes a special token. Returns the same as `step`.
    pub(super) fn token(
        &mut self,
        matchers: &[StopMatcher],
        stops: &[String],
        spelling: &str,
    ) -> Option<usize> {
        let start = self.len;
        while self.tokens.front().is_some_and(|token| token.end + self.longest <= start) {
            self.tokens.pop_front();
        }
        self.len += spelling.len();
        self.tokens.push_back(start..self.len);
        for ((matched, matcher), stop) in self.matched.iter_mut().zip(matchers).zip(stops) {
            for byte in spelling.bytes() {
                *matched = matcher.step(*matched, stop.as_bytes(), byte);
            }
        }
        self.complete(stops)
    }

    /// Resets all matches, because no stop string matches across an incomplete character.
    pub(super) fn interrupt(&mut self) {
        self.matched.fill(0);
    }
}
