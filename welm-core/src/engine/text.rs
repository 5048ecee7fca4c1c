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
//! same byte, the longest, which starts first; of equal ones the first in the list. The text ends before it.
//! So the same bytes give the same text however tokens cut them, and that text contains no stop string, since
//! one inside it would have been complete earlier. To take the one that *starts* first would not do: with
//! `ab` and `xabc`, the text `xab` could only be ended after it is known whether `c` follows.
//!
//! Each stop string is followed by the automaton of Knuth, Morris and Pratt, over bytes: UTF-8 strings that
//! match bytewise match by characters. Its state is how much of the string the text's end has matched, which
//! answers both questions, and a byte costs O(1) for each stop string however long the text is.

use std::sync::Arc;

/// What stands for bytes that are no character.
const REPLACEMENT: &str = "\u{FFFD}";

/// The text of one sequence, growing token by token.
#[derive(Debug)]
pub(crate) struct TextStream {
    stops: Arc<[String]>,
    watches: Vec<Watch>,
    text: String,
    /// The bytes of a character that is not complete: at most 3.
    tail: Vec<u8>,
    /// How much of `text` was taken. // bytes
    taken: usize,
    /// The stop string that ended the text.
    stopped: Option<usize>,
}

/// One stop string and how much of it the end of the text matches.
#[derive(Debug)]
struct Watch {
    /// `borders[m]`: the longest proper beginning of the string's first `m + 1` bytes that is also their end.
    borders: Vec<u32>,
    /// Bytes of the stop string that the end of the text matches: the most, and never all.
    matched: usize,
}

impl Watch {
    fn new(stop: &str) -> Self {
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
        Watch { borders, matched: 0 }
    }

    /// Whether `byte` completes `stop`.
    fn step(&mut self, stop: &[u8], byte: u8) -> bool {
        while self.matched > 0 && stop[self.matched] != byte {
            self.matched = self.borders[self.matched - 1] as usize;
        }
        self.matched += usize::from(stop[self.matched] == byte);
        self.matched == stop.len()
    }
}

impl TextStream {
    /// An empty text that ends before the first of `stops`, none of which is empty.
    pub(crate) fn new(stops: Arc<[String]>) -> Self {
        let watches = stops.iter().map(|stop| Watch::new(stop)).collect();
        TextStream { stops, watches, text: String::new(), tail: Vec::new(), taken: 0, stopped: None }
    }

    /// Appends the bytes of a token. True if a stop string has ended the text, which takes no more then.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        if self.stopped.is_some() {
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
        self.stopped.is_some()
    }

    /// The piece that may be shown now; empty if there is none.
    pub(crate) fn take(&mut self) -> String {
        let held = self.watches.iter().map(|watch| watch.matched).max().unwrap_or(0);
        // After a stop string nothing can be completed any more.
        let end = self.text.len() - if self.stopped.is_some() { 0 } else { held };
        // The place where a match may begin only moves on, so what was taken is never held back again.
        let piece = self.text[self.taken..end].to_string();
        self.taken = end;
        piece
    }

    /// Ends the text: the piece that was not taken yet, and whether a stop string ended it. A character that
    /// stays incomplete becomes U+FFFD, which may complete a stop string that has one.
    pub(crate) fn finish(&mut self) -> (String, bool) {
        if !std::mem::take(&mut self.tail).is_empty() {
            self.append(REPLACEMENT);
        }
        self.watches.clear(); // nothing follows, so nothing is held back
        (self.take(), self.stopped.is_some())
    }

    /// Everything so far: what was taken, and what is held back.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Appends up to the end of the first stop string, and cuts that off.
    fn append(&mut self, piece: &str) {
        if self.stopped.is_some() {
            return;
        }
        let mut end = piece.len();
        for (at, byte) in piece.bytes().enumerate() {
            for (n, (watch, stop)) in self.watches.iter_mut().zip(self.stops.iter()).enumerate() {
                if watch.step(stop.as_bytes(), byte)
                    && self.stopped.is_none_or(|m| self.stops[m].len() < stop.len())
                {
                    self.stopped = Some(n);
                }
            }
            if self.stopped.is_some() {
                end = at + 1;
                break;
            }
        }
        self.text.push_str(&piece[..end]); // the end of a stop string is the end of a character
        if let Some(stop) = self.stopped {
            self.tail.clear();
            self.text.truncate(self.text.len() - self.stops[stop].len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A linear congruential generator is random enough to cut strings.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((self.0 >> 33) as usize) % n
        }
    }

    fn stream(stops: &[&str]) -> TextStream {
        TextStream::new(stops.iter().map(|s| s.to_string()).collect())
    }

    /// The text by the definition: the shortest beginning that ends in a stop string, without it.
    fn reference(bytes: &[u8], stops: &[String]) -> (String, bool) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
            let found = stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(String::len).max();
            if let Some(len) = found {
                return (text[..end - len].to_string(), true);
            }
        }
        (text, false)
    }

    /// How much of the text may be shown: up to where a stop string may have begun. // bytes
    fn showable(text: &str, stops: &[String]) -> usize {
        let begins = |end: &str| stops.iter().any(|s| s.starts_with(end));
        text.char_indices().map(|(at, _)| at).find(|&at| begins(&text[at..])).unwrap_or(text.len())
    }

    #[test]
    fn any_cut_gives_the_same_text_as_the_whole() {
        let atoms: [&[u8]; 18] = [
            b"a",
            b"b",
            b"ab",
            b"aab",
            b"\n",
            b" ",
            "你".as_bytes(),
            "好".as_bytes(),
            "。".as_bytes(),
            "日本".as_bytes(),
            "かな".as_bytes(),
            "😀".as_bytes(),
            "👨‍👩‍👧".as_bytes(),
            b"\xE4",
            b"\xBD\xA0",
            b"\xFF",
            b"\xF0\x9F\x98",
            "\u{FFFD}".as_bytes(),
        ];
        let stop_atoms = ["a", "b", "ab", "\n", " ", "你", "好", "。", "日", "か", "😀", "\u{FFFD}", "👨"];
        let mut random = Random(1);
        let (mut hits, mut late) = (0, 0);
        for _ in 0..30_000 {
            let bytes: Vec<u8> =
                (0..random.below(16)).flat_map(|_| atoms[random.below(18)]).copied().collect();
            let stop = |random: &mut Random| {
                (0..1 + random.below(4)).map(|_| stop_atoms[random.below(13)]).collect::<String>()
            };
            let stops: Vec<String> = (0..random.below(4)).map(|_| stop(&mut random)).collect();
            let (want, want_hit) = reference(&bytes, &stops);

            let mut text = TextStream::new(stops.clone().into());
            let (mut shown, mut hit, mut from) = (String::new(), false, 0);
            while from < bytes.len() && !hit {
                let to = (from + 1 + random.below(6)).min(bytes.len());
                hit = text.push(&bytes[from..to]);
                from = to;
                if random.below(3) > 0 {
                    shown.push_str(&text.take());
                    assert!(want.starts_with(&shown), "{shown:?} {want:?} {stops:?}");
                    let may = if hit { want.len() } else { showable(text.text(), &stops) };
                    assert_eq!(shown.len(), may, "{shown:?} of {:?} {stops:?}", text.text());
                }
            }
            let (rest, stopped) = text.finish();
            shown.push_str(&rest);
            assert_eq!(
                (&shown, stopped),
                (&want, want_hit),
                "{:?} {stops:?}",
                String::from_utf8_lossy(&bytes)
            );
            assert_eq!(text.text(), want);
            assert!(stops.iter().all(|s| !want.contains(s.as_str())));
            hits += usize::from(hit);
            late += usize::from(stopped && !hit);
        }
        assert!(hits > 4_000 && late > 10, "{hits} {late}");
    }

    #[test]
    fn characters_are_shown_whole() {
        let mut text = stream(&[]);
        let mut pieces = Vec::new();
        for byte in "你😀é".bytes() {
            text.push(&[byte]);
            pieces.push(text.take());
        }
        assert_eq!(pieces, ["", "", "你", "", "", "", "😀", "", "é"]);
        assert_eq!(text.finish(), (String::new(), false));
    }

    #[test]
    fn bytes_that_are_no_character_are_replaced_as_in_the_whole() {
        for bytes in [
            &b"\xE4\xBD"[..],
            b"\xE4a",
            b"\xE4\xE4\xBD\xA0",
            b"\xF0\x9F\x98\xE4",
            b"\xC0\xAF",
            b"\xED\xA0\x80",
        ] {
            let mut text = stream(&[]);
            let mut shown = String::new();
            for &byte in bytes {
                text.push(&[byte]);
                shown.push_str(&text.take());
            }
            shown.push_str(&text.finish().0);
            assert_eq!(shown, String::from_utf8_lossy(bytes), "{bytes:?}");
        }
    }

    #[test]
    fn the_beginning_of_a_stop_string_waits() {
        let mut text = stream(&["\n\nQ:", "###"]);
        assert!(!text.push(b"42\n"));
        assert_eq!(text.take(), "42");
        assert!(!text.push(b"\nQ"));
        assert_eq!(text.take(), "");
        assert!(!text.push(b"uite ##"));
        assert_eq!(text.take(), "\n\nQuite ");
        assert!(text.push(b"#!"));
        assert_eq!(text.take(), "");
        assert!(text.push(b"more"), "nothing follows a stop string");
        assert_eq!(text.finish(), (String::new(), true));
        assert_eq!(text.text(), "42\n\nQuite ");
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins_then_the_longest() {
        for (stops, want) in [
            (["bc", "abcd"], "xa"),
            (["abcd", "bc"], "xa"),
            (["c", "abc"], "x"),
            (["abc", "c"], "x"),
            (["abcde", "cd"], "xab"),
        ] {
            for cut in 0..=6 {
                let mut text = stream(&stops);
                let (left, right) = b"xabcde".split_at(cut);
                text.push(left);
                assert!(text.push(right));
                assert_eq!(text.finish(), (want.to_string(), true), "{stops:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn long_texts_and_repetitive_stop_strings_take_linear_time() {
        // Quadratic work would be 10^10 steps here.
        let stop = "a".repeat(255) + "b";
        let mut text = stream(&[&stop]);
        for _ in 0..100_000 {
            assert!(!text.push(b"aaaaa"));
            text.take();
        }
        assert_eq!(text.text().len(), 500_000);
        assert!(text.push(b"b"));
        assert_eq!(text.text().len(), 500_000 - 255);
    }
}
