//! Stop strings, and how much of each the end of a text matches.
//!
//! Each stop string is followed by the automaton of Knuth, Morris and Pratt, over bytes: UTF-8 strings that
//! match bytewise match by characters. Its state is how much of the string the text's end has matched: so it
//! tells when the string is complete, and how much of the text has to wait. A byte costs O(1) for each stop string
//! however long the text is.

use std::collections::VecDeque;
use std::ops::Range;

/// One stop string and how much of it the end of the text matches.
#[derive(Debug)]
pub(super) struct StopMatcher {
    /// `borders[m]`: the longest proper beginning of the string's first `m + 1` bytes that is also their end.
    borders: Vec<u32>,
    /// Bytes of the stop string that the end of the text matches: the most, and never all.
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

    /// The next smaller match of which `matched` bytes are the end.
    fn shorter(&self, matched: usize) -> usize {
        self.borders[matched - 1] as usize
    }

    /// How much of `stop` is matched if `matched` bytes were, and `byte` follows.
    pub(super) fn step(&self, mut matched: usize, stop: &[u8], byte: u8) -> usize {
        while matched == stop.len() || (matched > 0 && stop[matched] != byte) {
            matched = self.shorter(matched);
        }
        matched + usize::from(stop[matched] == byte)
    }
}

/// The text with special tokens spelled, as far back as a stop string reaches.
#[derive(Debug)]
pub(super) struct Spelled {
    /// For each stop string, the bytes that the end of this text matches: the most. All, if that match begins or ends
    /// inside a spelling.
    matched: Vec<usize>,
    /// Its length, from some time before the first special token on. // bytes
    len: usize,
    /// The special tokens' places, ascending. // bytes
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

    /// Whether its last `n` bytes begin inside a special token.
    fn begins_inside(&self, n: usize) -> bool {
        let start = self.len - n;
        self.tokens.iter().any(|token| token.start < start && start < token.end)
    }

    /// How many of its last `n` bytes are text that is shown.
    fn shown(&self, n: usize) -> usize {
        let start = self.len - n;
        n - self.tokens.iter().map(|token| token.end.saturating_sub(token.start.max(start))).sum::<usize>()
    }

    /// Bytes of text that are the beginning of a stop string.
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

    /// Takes one more byte; gives the bytes of text that stop strings complete with it, if any is.
    pub(super) fn step(&mut self, matchers: &[StopMatcher], stops: &[String], byte: u8) -> Option<usize> {
        self.len += 1;
        for ((matched, matcher), stop) in self.matched.iter_mut().zip(matchers).zip(stops) {
            *matched = matcher.step(*matched, stop.as_bytes(), byte);
        }
        self.complete(stops)
    }

    /// The bytes of text of the longest stop string that ends here.
    fn complete(&self, stops: &[String]) -> Option<usize> {
        let lens = self.matched.iter().zip(stops).filter(|(matched, stop)| **matched == stop.len());
        lens.filter(|(n, _)| !self.begins_inside(**n)).map(|(&n, _)| self.shown(n)).max()
    }

    /// Takes a special token; gives what `step` does.
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

    /// A character is not complete, and nothing matches across it.
    pub(super) fn interrupt(&mut self) {
        self.matched.fill(0);
    }
}
