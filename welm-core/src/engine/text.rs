//! From the bytes of tokens to text that may be shown.
//!
//! A token may end inside a character, and a stop string may span tokens, so not all that is known may be
//! shown at once. Held back are
//!
//! * the bytes of a character that is not complete. Bytes that can become no character any more turn into
//!   U+FFFD, exactly as `String::from_utf8_lossy` of all the bytes would have it;
//! * the longest end of the text that is the beginning of a stop string.
//!
//! **Which stop string ends the text:** the one that is complete first. Of several that are complete at the
//! same byte, the longest, which starts first. The text ends before it.
//! So the same bytes give the same text however tokens cut them, and that text contains no stop string, since
//! one inside it would have been complete earlier. To take the one that *starts* first would not do: with
//! `ab` and `xabc`, the text `xab` could only be ended after it is known whether `c` follows.
//!
//! **Special tokens** are no part of the text, but stop strings may spell them: `<|im_end|>`, `\n<|im_end|>`. So stop
//! strings are looked for in two texts: the one that is shown, and the one with special tokens spelled, where a match
//! may begin and end at a spelling but not inside it (`|>` does not end a text at `<|im_end|>`). A special token that
//! comes inside a character has no text next to it.

mod stop;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::stop::{Spelled, StopMatcher};
use crate::tokenizer::Tokenizer;

/// What stands for bytes that are no character.
const REPLACEMENT: &str = "\u{FFFD}";

/// The text of one sequence, growing token by token.
#[derive(Debug)]
pub(crate) struct TextStream {
    stops: Arc<[String]>,
    matchers: Vec<StopMatcher>,
    /// What is matched with special tokens spelled, as soon as there was one.
    spelled: Option<Spelled>,
    text: String,
    /// The bytes of a character that is not complete: at most 3.
    tail: Vec<u8>,
    /// How much of `text` was taken. // bytes
    taken: usize,
    /// Whether a stop string has ended the text.
    stopped: bool,
}

impl TextStream {
    /// An empty text that ends before the first of `stops`, none of which is empty.
    pub(crate) fn new(stops: Arc<[String]>) -> Self {
        let matchers = stops.iter().map(|stop| StopMatcher::new(stop)).collect();
        let (text, tail) = (String::new(), Vec::new());
        TextStream { stops, matchers, spelled: None, text, tail, taken: 0, stopped: false }
    }

    /// Appends a token: its bytes, or if it has none, how stop strings spell it. True if a stop string has ended the text.
    pub(crate) fn add(&mut self, bytes: &[u8], spelling: &str) -> bool {
        if bytes.is_empty() { self.note(spelling) } else { self.push(bytes) }
    }

    /// As if no more than these had been added, which are the first of those that were. What was taken stays taken.
    pub(crate) fn rewind<'t>(&mut self, tokens: impl Iterator<Item = (&'t [u8], &'t str)>) {
        let taken = self.taken;
        *self = TextStream::new(Arc::clone(&self.stops));
        for (bytes, spelling) in tokens {
            self.add(bytes, spelling);
        }
        debug_assert!(taken <= self.text.len(), "what is shown cannot be taken back");
        self.taken = taken;
    }

    /// Appends the bytes of a token. True if a stop string has ended the text, which takes no more then.
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
            // Bytes at the end that only lack others are no error yet: `from_utf8` gives those no length.
            if left == 0 && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none()) {
                self.tail = invalid.to_vec();
            } else if !invalid.is_empty() {
                self.append(REPLACEMENT);
            }
        }
        self.stopped
    }

    /// Notes a token that is no part of the text, but that stop strings may spell. True if one has ended the text.
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

    /// The piece that may be shown now; empty if there is none.
    pub(crate) fn take(&mut self) -> String {
        // After a stop string nothing can be completed any more.
        let held = if self.stopped { 0 } else { self.held() };
        let end = self.text.len() - held;
        // The place where a match may begin only moves on, so what was taken is never held back again.
        let piece = self.text[self.taken..end].to_string();
        self.taken = end;
        piece
    }

    /// Bytes at the end of the text that are the beginning of a stop string.
    fn held(&self) -> usize {
        let shown = self.matchers.iter().map(|matcher| matcher.matched).max().unwrap_or(0);
        let spelled = self.spelled.as_ref().map_or(0, |spelled| spelled.held(&self.matchers, &self.stops));
        shown.max(spelled)
    }

    /// Ends the text: the piece that was not taken yet, and whether a stop string ended it. A character that
    /// stays incomplete becomes U+FFFD, which may complete a stop string that has one.
    pub(crate) fn finish(&mut self) -> (String, bool) {
        if !std::mem::take(&mut self.tail).is_empty() {
            self.append(REPLACEMENT);
        }
        // Nothing follows, so nothing is held back.
        self.matchers.clear();
        self.spelled = None;
        (self.take(), self.stopped)
    }

    /// Everything so far: what was taken, and what is held back.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Appends up to the end of the first stop string, and cuts that off.
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

/// What a token adds to the text, and how stop strings spell it if that is nothing.
pub(super) fn written(tokenizer: Option<&Tokenizer>, id: u32) -> (&[u8], &str) {
    tokenizer.map_or((&[][..], ""), |t| (t.token_bytes(id), t.spelling(id)))
}
