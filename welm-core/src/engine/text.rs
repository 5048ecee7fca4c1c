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
//!
//! Each stop string is followed by the automaton of Knuth, Morris and Pratt, over bytes: UTF-8 strings that
//! match bytewise match by characters. Its state is how much of the string the text's end has matched, which
//! answers both questions, and a byte costs O(1) for each stop string however long the text is.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// What stands for bytes that are no character.
const REPLACEMENT: &str = "\u{FFFD}";

/// The text of one sequence, growing token by token.
#[derive(Debug)]
pub(crate) struct TextStream {
    stops: Arc<[String]>,
    watches: Vec<Watch>,
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

    /// The next smaller match of which `matched` bytes are the end.
    fn shorter(&self, matched: usize) -> usize {
        self.borders[matched - 1] as usize
    }

    /// How much of `stop` is matched if `matched` bytes were, and `byte` follows.
    fn step(&self, mut matched: usize, stop: &[u8], byte: u8) -> usize {
        while matched == stop.len() || (matched > 0 && stop[matched] != byte) {
            matched = self.shorter(matched);
        }
        matched + usize::from(stop[matched] == byte)
    }
}

/// The text with special tokens spelled, as far back as a stop string reaches.
#[derive(Debug)]
struct Spelled {
    /// For each stop string, the bytes that the end of this text matches: the most. All, if that match begins or ends
    /// inside a spelling.
    matched: Vec<usize>,
    /// Its length, from some time before the first special token on. // bytes
    len: usize,
    /// The special tokens' places, ascending. // bytes
    tokens: VecDeque<Range<usize>>,
    /// Bytes of the longest stop string.
    longest: usize,
}

impl Spelled {
    fn new(watches: &[Watch]) -> Self {
        let longest = watches.iter().map(|watch| watch.borders.len()).max().unwrap_or(0);
        let matched = watches.iter().map(|watch| watch.matched).collect();
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
    fn held(&self, watches: &[Watch], stops: &[String]) -> usize {
        let held = |((&matched, watch), stop): ((&usize, &Watch), &String)| {
            let mut matched = matched;
            while matched == stop.len() || (matched > 0 && self.begins_inside(matched)) {
                matched = watch.shorter(matched);
            }
            self.shown(matched)
        };
        self.matched.iter().zip(watches).zip(stops).map(held).max().unwrap_or(0)
    }

    /// Takes one more byte; gives the bytes of text that stop strings complete with it, if any is.
    fn step(&mut self, watches: &[Watch], stops: &[String], byte: u8) -> Option<usize> {
        self.len += 1;
        for ((matched, watch), stop) in self.matched.iter_mut().zip(watches).zip(stops) {
            *matched = watch.step(*matched, stop.as_bytes(), byte);
        }
        self.complete(stops)
    }

    /// The bytes of text of the longest stop string that ends here.
    fn complete(&self, stops: &[String]) -> Option<usize> {
        let lens = self.matched.iter().zip(stops).filter(|(matched, stop)| **matched == stop.len());
        lens.filter(|(n, _)| !self.begins_inside(**n)).map(|(&n, _)| self.shown(n)).max()
    }

    /// Takes a special token; gives what `step` does.
    fn token(&mut self, watches: &[Watch], stops: &[String], spelling: &str) -> Option<usize> {
        let start = self.len;
        while self.tokens.front().is_some_and(|token| token.end + self.longest <= start) {
            self.tokens.pop_front();
        }
        self.len += spelling.len();
        self.tokens.push_back(start..self.len);
        for ((matched, watch), stop) in self.matched.iter_mut().zip(watches).zip(stops) {
            for byte in spelling.bytes() {
                *matched = watch.step(*matched, stop.as_bytes(), byte);
            }
        }
        self.complete(stops)
    }

    /// A character is not complete, and nothing matches across it.
    fn interrupt(&mut self) {
        self.matched.fill(0);
    }
}

impl TextStream {
    /// An empty text that ends before the first of `stops`, none of which is empty.
    pub(crate) fn new(stops: Arc<[String]>) -> Self {
        let watches = stops.iter().map(|stop| Watch::new(stop)).collect();
        let (text, tail) = (String::new(), Vec::new());
        TextStream { stops, watches, spelled: None, text, tail, taken: 0, stopped: false }
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
        if self.stopped || self.watches.is_empty() || spelling.is_empty() {
            return self.stopped;
        }
        let inside = !self.tail.is_empty();
        let spelled = self.spelled.get_or_insert_with(|| Spelled::new(&self.watches));
        if inside {
            spelled.interrupt();
        }
        let complete = spelled.token(&self.watches, &self.stops, spelling);
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
        let shown = self.watches.iter().map(|watch| watch.matched).max().unwrap_or(0);
        let spelled = self.spelled.as_ref().map_or(0, |spelled| spelled.held(&self.watches, &self.stops));
        shown.max(spelled)
    }

    /// Ends the text: the piece that was not taken yet, and whether a stop string ended it. A character that
    /// stays incomplete becomes U+FFFD, which may complete a stop string that has one.
    pub(crate) fn finish(&mut self) -> (String, bool) {
        if !std::mem::take(&mut self.tail).is_empty() {
            self.append(REPLACEMENT);
        }
        // Nothing follows, so nothing is held back.
        self.watches.clear();
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
            for (watch, stop) in self.watches.iter_mut().zip(self.stops.iter()) {
                watch.matched = watch.step(watch.matched, stop.as_bytes(), byte);
                if watch.matched == stop.len() {
                    complete = complete.max(Some(stop.len()));
                }
            }
            if let Some(spelled) = &mut self.spelled {
                complete = complete.max(spelled.step(&self.watches, &self.stops, byte));
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

    /// What the text with special tokens spelled is made of.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Part {
        Char(char),
        Special(&'static str),
        /// The place of a character that a special token comes inside of.
        Broken,
    }

    /// Bytes of text that `stop` takes from the end of `parts`, if it ends there.
    fn spelled_at_end(parts: &[Part], mut stop: &str) -> Option<usize> {
        let mut shown = 0;
        for part in parts.iter().rev() {
            if stop.is_empty() {
                break;
            }
            stop = match part {
                Part::Char(c) => {
                    shown += c.len_utf8();
                    stop.strip_suffix(*c)?
                }
                Part::Special(special) => stop.strip_suffix(special)?,
                Part::Broken => return None,
            };
        }
        stop.is_empty().then_some(shown)
    }

    /// The text by the definition: part by part, until the text or the one with special tokens spelled ends in a
    /// stop string. `Err` is a special token.
    fn spelled_reference(tokens: &[Result<&[u8], &'static str>], stops: &[String]) -> (String, bool) {
        let (mut parts, mut text, mut bytes): (Vec<Part>, String, Vec<u8>) = Default::default();
        let longest = |parts: &[Part], text: &str| {
            let shown = stops.iter().filter(|s| text.ends_with(s.as_str())).map(String::len).max();
            shown.max(stops.iter().filter_map(|s| spelled_at_end(parts, s)).max())
        };
        // The text of the bytes so far, without a character that only lacks bytes.
        let decided = |bytes: &[u8]| {
            let lacks = (1..=bytes.len().min(3)).find(|&n| {
                let end = &bytes[bytes.len() - n..];
                String::from_utf8_lossy(bytes).ends_with('\u{FFFD}')
                    && std::str::from_utf8(end)
                        .is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
            });
            let whole = &bytes[..bytes.len() - lacks.unwrap_or(0)];
            (String::from_utf8_lossy(whole).into_owned(), lacks.is_some())
        };
        for token in tokens {
            match token {
                Ok(more) => {
                    bytes.extend_from_slice(more);
                    for c in decided(&bytes).0[text.len()..].chars() {
                        text.push(c);
                        parts.push(Part::Char(c));
                        if let Some(len) = longest(&parts, &text) {
                            return (text[..text.len() - len].to_string(), true);
                        }
                    }
                }
                Err(special) => {
                    let inside = decided(&bytes).1;
                    parts.extend(inside.then_some(Part::Broken));
                    parts.push(Part::Special(special));
                    let found = stops.iter().filter_map(|s| spelled_at_end(&parts, s)).max();
                    if let Some(len) = found {
                        let mut text = text[..text.len() - len].to_string();
                        if inside {
                            text.push('\u{FFFD}');
                            let more =
                                stops.iter().filter(|s| text.ends_with(s.as_str())).map(String::len).max();
                            text.truncate(text.len() - more.unwrap_or(0));
                        }
                        return (text, true);
                    }
                    parts.extend(inside.then_some(Part::Broken));
                }
            }
        }
        if decided(&bytes).1 {
            text.push('\u{FFFD}');
            parts.push(Part::Char('\u{FFFD}'));
            if let Some(len) = longest(&parts, &text) {
                return (text[..text.len() - len].to_string(), true);
            }
        }
        (text, false)
    }

    #[test]
    fn special_tokens_end_a_text_where_a_stop_string_spells_them() {
        const SPECIAL: [&str; 3] = ["<e>", "<a>", "ab"]; // one that could be text, too
        let atoms: [&[u8]; 12] = [
            b"a",
            b"b",
            b"<",
            b"e>",
            b"<e>",
            b"\n",
            "你".as_bytes(),
            "好<".as_bytes(),
            b"\xE4",
            b"\xBD\xA0",
            b"\xFF",
            "\u{FFFD}".as_bytes(),
        ];
        let stop_atoms = ["<e>", "<a>", "ab", "a", "b", "<", ">", "e>", "\n", "你", "\u{FFFD}"];
        let mut random = Random(7);
        let (mut hits, mut by_special, mut inside) = (0, 0, 0);
        for _ in 0..60_000 {
            let tokens: Vec<Result<&[u8], &'static str>> = (0..random.below(14))
                .map(|_| match random.below(4) {
                    0 => Err(SPECIAL[random.below(3)]),
                    _ => Ok(atoms[random.below(12)]),
                })
                .collect();
            let stop = |random: &mut Random| {
                (0..1 + random.below(4)).map(|_| stop_atoms[random.below(11)]).collect::<String>()
            };
            let stops: Vec<String> = (0..random.below(4)).map(|_| stop(&mut random)).collect();
            let (want, want_hit) = spelled_reference(&tokens, &stops);

            let mut text = TextStream::new(stops.clone().into());
            let (mut shown, mut hit) = (String::new(), false);
            for token in &tokens {
                match token {
                    Err(special) => {
                        inside += usize::from(!text.tail.is_empty());
                        hit = text.note(special);
                        by_special += usize::from(hit);
                    }
                    Ok(bytes) => {
                        // Bytes of text are cut anywhere.
                        let (left, right) = bytes.split_at(random.below(bytes.len() + 1));
                        hit = text.push(left) || text.push(right);
                    }
                }
                if random.below(3) > 0 {
                    shown.push_str(&text.take());
                    assert!(want.starts_with(&shown), "{shown:?} {want:?} {tokens:?} {stops:?}");
                }
                if hit {
                    break;
                }
            }
            let (rest, stopped) = text.finish();
            shown.push_str(&rest);
            assert_eq!((&shown, stopped), (&want, want_hit), "{tokens:?} {stops:?}");
            assert!(stops.iter().all(|s| !want.contains(s.as_str())), "{want:?} {stops:?}");
            hits += usize::from(hit);
        }
        assert!(hits > 8_000 && by_special > 1_500 && inside > 1_000, "{hits} {by_special} {inside}");
    }

    #[test]
    fn a_special_token_is_matched_whole_and_holds_back_no_more_than_it_must() {
        // Ends at the token, and not at text that is a part of its spelling.
        for (stop, want) in [
            ("<|im_end|>", Some("x\n")),
            ("\n<|im_end|>", Some("x")),
            ("<|im_end|>y", Some("x\n")),
            ("x\n<|im_end|>yz", Some("")),
            ("|>", None),
            ("im_end", None),
            ("|>y", None),
            ("\n<|im", None),
            ("\ny", Some("x")),
        ] {
            let mut text = stream(&[stop]);
            text.push(b"x\n");
            text.note("<|im_end|>");
            text.push(b"yz");
            let (shown, stopped) = text.finish();
            assert_eq!((shown.as_str(), stopped), (want.unwrap_or("x\nyz"), want.is_some()), "{stop:?}");
        }
        let mut text = stream(&["\n<|im_end|>\nb"]);
        assert!(!text.push(b"x\n"));
        assert_eq!(text.take(), "x");
        assert!(!text.note("<|im_end|>"));
        assert_eq!(text.take(), "");
        assert!(!text.push(b"\n"));
        assert_eq!(text.take(), "");
        assert!(!text.push(b"c"));
        assert_eq!(text.take(), "\n\nc");
        // The end of a spelling is not the beginning of a match.
        let mut text = stream(&["|>ab"]);
        text.note("<|im_end|>");
        assert!(!text.push(b"a"));
        assert_eq!(text.take(), "a");
        // Many special tokens take no more room than the longest stop string reaches back.
        let mut text = stream(&["<e>xy"]);
        for _ in 0..10_000 {
            assert!(!text.note("<e>"));
        }
        assert!(text.spelled.as_ref().unwrap().tokens.len() < 8);
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
