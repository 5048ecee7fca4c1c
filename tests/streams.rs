//! Streamed text: whole characters, no stop string and none of its beginnings.

use std::path::Path;

use welm_core::{FinishReason, GenerateOptions, LoadOptions, Model};

/// A text at high temperature: tokens of every kind, bytes that make characters and bytes that do not.
fn options(i: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens: 40,
        temperature: [1.0, 1.6, 5.0][i % 3],
        top_k: 0,
        top_p: 1.0,
        seed: Some(i as u64),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

#[test]
fn five_hundred_streams() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/welm-nano");
    let model = Model::load(nano, &LoadOptions::default()).unwrap();
    let prompts = ["床前明月光，", "こんにちは、", "😀🎉 ", "春眠\n", "English and 中文 "];
    let (mut from_bytes, mut replaced, mut stopped) = (0, 0, 0);
    for i in 0..500 {
        let (prompt, options) = (prompts[i % prompts.len()], options(i));
        let whole = model.generate(prompt, &options).unwrap().choices.remove(0);
        let bytes: Vec<Vec<u8>> = whole.tokens.iter().map(|t| model.token_bytes(t.id).to_vec()).collect();
        assert_eq!(whole.text, String::from_utf8_lossy(&bytes.concat()), "the text is its tokens' bytes");
        replaced += usize::from(whole.text.contains('\u{FFFD}'));
        from_bytes += usize::from(bytes.iter().any(|b| b.len() == 1 && b[0] >= 0x80));

        // Stop strings of several characters, cut from the text wherever tokens happen to meet.
        let chars: Vec<char> = whole.text.chars().collect();
        let cut = |from: usize, len: usize| chars.iter().skip(from).take(len).collect::<String>();
        let stop: Vec<String> = [cut(i % 17 + 3, 2 + i % 4), cut(i % 29 + 5, 3), "永不出现".into()]
            .into_iter()
            .filter(|s| !s.is_empty())
            .collect();
        // The one that is complete first, the longest of those; the text ends before it.
        let ends = stop.iter().filter_map(|s| whole.text.find(s.as_str()).map(|at| (at + s.len(), at)));
        let want = ends.min().map_or(whole.text.as_str(), |(_, at)| &whole.text[..at]);

        let mut shown = String::new();
        let mut finish = None;
        for piece in model.stream(prompt, &GenerateOptions { stop: stop.clone(), ..options }).unwrap() {
            let piece = piece.unwrap();
            shown.push_str(&piece.text);
            assert!(want.starts_with(&shown), "stream {i} showed {shown:?} of {want:?}, stop {stop:?}");
            finish = piece.finish;
        }
        assert_eq!(shown, want, "stream {i}");
        let reason = finish.unwrap().reason;
        assert_eq!(reason == FinishReason::Stop, want.len() < whole.text.len(), "stream {i}: {reason:?}");
        stopped += usize::from(reason == FinishReason::Stop);
    }
    println!("{from_bytes} texts with byte tokens, {replaced} with U+FFFD, {stopped} ended by a stop string");
    assert!(from_bytes > 50 && replaced > 20 && stopped > 300, "the sample is not what it should be");
}
