use super::*;

/// A linear congruential generator, to choose where to cut strings.
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

/// The text by its definition: the shortest beginning that ends with a stop string, without that string.
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

/// How many bytes of the text may be shown: those before the place where a stop string may have begun.
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
        let bytes: Vec<u8> = (0..random.below(16)).flat_map(|_| atoms[random.below(18)]).copied().collect();
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
        assert_eq!((&shown, stopped), (&want, want_hit), "{:?} {stops:?}", String::from_utf8_lossy(&bytes));
        assert_eq!(text.text(), want);
        assert!(stops.iter().all(|s| !want.contains(s.as_str())));
        hits += usize::from(hit);
        late += usize::from(stopped && !hit);
    }
    assert!(hits > 4_000 && late > 10, "{hits} {late}");
}

/// A part of the text with special tokens spelled.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Part {
    Char(char),
    Special(&'static str),
    /// A character that is incomplete because a special token comes inside it.
    Broken,
}

/// How many bytes of shown text `stop` covers at the end of `parts`, if it ends there.
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

/// The text by its definition: part by part, until the text, or the one with special tokens spelled, ends with a stop
/// string. `Err` is a special token.
fn spelled_reference(tokens: &[Result<&[u8], &'static str>], stops: &[String]) -> (String, bool) {
    let (mut parts, mut text, mut bytes): (Vec<Part>, String, Vec<u8>) = Default::default();
    let longest = |parts: &[Part], text: &str| {
        let shown = stops.iter().filter(|s| text.ends_with(s.as_str())).map(String::len).max();
        shown.max(stops.iter().filter_map(|s| spelled_at_end(parts, s)).max())
    };
    // The text of the bytes so far, without an incomplete character at its end.
    let decided = |bytes: &[u8]| {
        let lacks = (1..=bytes.len().min(3)).find(|&n| {
            let end = &bytes[bytes.len() - n..];
            String::from_utf8_lossy(bytes).ends_with('\u{FFFD}')
                && std::str::from_utf8(end).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
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
                        let more = stops.iter().filter(|s| text.ends_with(s.as_str())).map(String::len).max();
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
    const SPECIAL: [&str; 3] = ["<e>", "<a>", "ab"]; // the last may also be text
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
                    // Bytes of text may be cut anywhere.
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
    // The text ends at the token, and not at a stop string that is only a part of the token's spelling.
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
    // A match cannot begin inside a spelling, here at its end.
    let mut text = stream(&["|>ab"]);
    text.note("<|im_end|>");
    assert!(!text.push(b"a"));
    assert_eq!(text.take(), "a");
    // Only special tokens within the length of the longest stop string are kept.
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
    for bytes in
        [&b"\xE4\xBD"[..], b"\xE4a", b"\xE4\xE4\xBD\xA0", b"\xF0\x9F\x98\xE4", b"\xC0\xAF", b"\xED\xA0\x80"]
    {
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

#[test]
fn a_text_that_is_rewound_goes_on_as_if_nothing_had_come() {
    const TOKENS: [(&[u8], &str); 8] = [
        (b"a", ""),
        (b"ab", ""),
        (b"\n", ""),
        (b"", "<e>"),
        (b"\xE4", ""),
        (b"\xBD\xA0", ""),
        (b"b", ""),
        (b"", ""),
    ];
    let stops: [&[&str]; 4] = [&[], &["abb"], &["a<e>", "\n\n"], &["你b", "\u{FFFD}a"]];
    let mut random = Random(11);
    let (mut undone, mut stopped) = (0, 0);
    for _ in 0..20_000 {
        let stops = stops[random.below(4)];
        let token = |random: &mut Random| TOKENS[random.below(8)];
        let kept: Vec<_> = (0..random.below(8)).map(|_| token(&mut random)).collect();
        let (mut text, mut never) = (stream(stops), stream(stops));
        let shown = random.below(kept.len() + 1);
        for (at, (bytes, spelling)) in kept.iter().enumerate() {
            assert_eq!(text.add(bytes, spelling), never.add(bytes, spelling));
            if at < shown {
                assert_eq!(text.take(), never.take());
            }
        }
        for _ in 0..random.below(4) {
            let (bytes, spelling) = token(&mut random);
            undone += usize::from(text.add(bytes, spelling) && !never.stopped);
        }
        text.rewind(kept.iter().copied());
        assert_eq!(format!("{text:?}"), format!("{never:?}"), "the whole state");
        for _ in 0..random.below(4) {
            let (bytes, spelling) = token(&mut random);
            assert_eq!(text.add(bytes, spelling), never.add(bytes, spelling));
            assert_eq!(text.take(), never.take());
        }
        let (rest, ended) = text.finish();
        assert_eq!((rest, ended), never.finish());
        stopped += usize::from(ended);
    }
    assert!(undone > 500 && stopped > 2_000, "{undone} {stopped}");
}
