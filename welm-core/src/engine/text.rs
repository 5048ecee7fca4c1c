//! Turns the bytes of tokens into text, and decides which part of the text a stream may show.
//!
//! A token may end inside a character, and a stop string may span several tokens. So the end of the text cannot always
//! be shown at once. Held back are
//!
//! * the bytes of an incomplete character. Bytes that cannot become a character any more are replaced by U+FFFD, in the
//!   same way as by `String::from_utf8_lossy` on all bytes;
//! * the longest end of the text that is the beginning of a stop string.
//!
//! **Which stop string ends the text:** the one that is complete first. If several are complete at the same byte, the
//! longest of them. The text ends before it. So the same bytes give the same text, however tokens divide them. The text
//! contains no stop string, because one inside it would have been complete earlier. The rule cannot be to take the one
//! that *starts* first: with `ab` and `xabc`, the text `xab` could only end once it is known whether `c` follows.
//!
//! **Special tokens** are not part of the text, but stop strings may contain their spelling: `<|im_end|>`,
//! `\n<|im_end|>`. So stop strings are searched in two texts: the one that is shown, and the same with the spelling of
//! special tokens. In the latter, a match may begin or end where a spelling does, but not inside it (`|>` does not end
//! a text at `<|im_end|>`). If a special token comes inside an incomplete character, no match goes across that
//! character.

mod stop;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::stop::{Spelled, StopMatcher};
use crate::tokenizer::Tokenizer;

/// The replacement for bytes that are not UTF-8.
const REPLACEMENT: &str = "\u{FFFD}";

/// The text of one sequence, growing token by token.
#[derive(Debug)]
pub(crate) struct TextStream {
    stops: Arc<[String]>,
    matchers: Vec<StopMatcher>,
    /// Matches in the text with special tokens spelled; `None` until the first special token.
    spelled: Option<Spelled>,
    text: String,
    /// The bytes of an incomplete character: at most 3.
    tail: Vec<u8>,
    /// How many bytes of `text` were taken.
    taken: usize,
    /// Whether a stop string has ended the text.
    stopped: bool,
}

impl TextStream {
    /// An empty text, which will end before the first stop string of `stops`. No stop string is empty.
    pub(crate) fn new(stops: Arc<[String]>) -> Self {
        let matchers = stops.iter().map(|stop| StopMatcher::new(stop)).collect();
        let (text, tail) = (String::new(), Vec::new());
        TextStream { stops, matchers, spelled: None, text, tail, taken: 0, stopped: false }
    }

    /// Appends a token: its bytes, or, if it has none, its spelling in stop strings. True if a stop string has ended
    /// the text.
    pub(crate) fn add(&mut self, bytes: &[u8], spelling: &str) -> bool {
        if bytes.is_empty() { self.note(spelling) } else { self.push(bytes) }
    }

    /// Sets the state to that after `tokens` alone, which are the first of the tokens that were added. The part of the
    /// text that was taken stays taken.
    pub(crate) fn rewind<'t>(&mut self, tokens: impl Iterator<Item = (&'t [u8], &'t str)>) {
        let taken = self.taken;
        *self = TextStream::new(Arc::clone(&self.stops));
        for (bytes, spelling) in tokens {
            self.add(bytes, spelling);
        }
        debug_assert!(taken <= self.text.len(), "what is shown cannot be taken back");
        self.taken = taken;
    }

    /// Appends the bytes of a token. True if a stop string has ended the text; bytes are ignored then.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        if self.stopped {
            return true;
        }
        let joined;
        let bytes = if self.tail.is_empty() {
            bytes
        } else {
            joined = [&std::mem::take(&mut self.tail), bytes].concat();
            &joined
        };
        let mut left = bytes.len();
        for chunk in bytes.utf8_chunks() {
            let invalid = chunk.invalid();
            self.append(chunk.valid());
            left -= chunk.valid().len() + invalid.len();
            // Bytes at the end may be the beginning of a character. They are no error yet; `error_len` is `None` then.
            if left == 0 && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) {
                self.tail = invalid.to_vec();
            } else if !invalid.is_empty() {
                self.append(REPLACEMENT);
            }
        }
        self.stopped
    }

    /// Notes a special token, which is not part of the text but may be part of a stop string. True if a stop string has
    /// ended the text.
    pub(crate) fn note(&mut self, spelling: &str) -> bool {
        if self.stopped || self.matchers.is_empty() || spelling.is_empty() {
            return self.stopped;
        }
        let inside = !self.tail.is_empty();
        let spelled = self.spelled.get_or_insert_with(|| Spelled::new(&self.matchers));
        if inside {
            spelled.interrupt();
        }
        let complete = spelled.token(&self.matchers, &self.stops, spelling);
        if inside {
            spelled.interrupt();
        }
        if let Some(len) = complete {
            self.text.truncate(self.text.len() - len);
            if inside {
                self.tail.clear();
                self.append(REPLACEMENT);
            }
            self.stopped = true;
        }
        self.stopped
    }

    /// Takes the piece of text that may be shown now; empty if there is none.
    pub(crate) fn take(&mut self) -> String {
        // After a stop string there is nothing left to wait for.
        let held = if self.stopped { 0 } else { self.held() };
        let end = self.text.len() - held;
        // The place where a match may begin only moves forward. So what was taken never needs to be held back again.
        let piece = self.text[self.taken..end].to_string();
        self.taken = end;
        piece
    }

    /// How many bytes at the end of the text are the beginning of a stop string.
    fn held(&self) -> usize {
        let shown = self.matchers.iter().map(|matcher| matcher.matched).max().unwrap_or(0);
        let spelled = self.spelled.as_ref().map_or(0, |spelled| spelled.held(&self.matchers, &self.stops));
        shown.max(spelled)
    }

    /// Ends the text. Returns the rest that was not taken yet, and whether a stop string ended the text. An incomplete
    /// character becomes U+FFFD, which may complete a stop string that contains U+FFFD.
    pub(crate) fn finish(&mut self) -> (String, bool) {
        if !std::mem::take(&mut self.tail).is_empty() {
            self.append(REPLACEMENT);
        }
        // Nothing follows, so nothing is held back.
        self.matchers.clear();
        self.spelled = None;
        (self.take(), self.stopped)
    }

    /// The whole text so far, with the part that is held back.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Appends a piece. If a stop string is complete in it, the text ends before that string.
    fn append(&mut self, piece: &str) {
        if self.stopped {
            return;
        }
        for (at, byte) in piece.bytes().enumerate() {
            let mut complete = None;
            for (matcher, stop) in self.matchers.iter_mut().zip(self.stops.iter()) {
                matcher.matched = matcher.step(matcher.matched, stop.as_bytes(), byte);
                if matcher.matched == stop.len() {
                    complete = complete.max(Some(stop.len()));
                }
            }
            if let Some(spelled) = &mut self.spelled {
                complete = complete.max(spelled.step(&self.matchers, &self.stops, byte));
            }
            if let Some(len) = complete {
                self.text.push_str(&piece[..=at]); // the end of a stop string is the end of a character
                self.text.truncate(self.text.len() - len);
                self.tail.clear();
                self.stopped = true;
                return;
            }
        }
        self.text.push_str(piece);
    }
}

/// The bytes that a token adds to the text, and its spelling in stop strings if it adds none.
pub(super) fn written(tokenizer: Option<&Tokenizer>, id: u32) -> (&[u8], &str) {
    tokenizer.map_or((&[][..], ""), |t| (t.token_bytes(id), t.spelling(id)))
}
