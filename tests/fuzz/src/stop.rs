//! Fuzzes stop strings. The text with stop strings must be the text without them, cut as the definition says.

use std::sync::OnceLock;

use arbitrary::{Arbitrary, Unstructured};
use welm_core::{FinishReason, GenerateOptions, Model};

use super::files::{BYTE_LEVEL_ROWS, Folder, byte_level, config, small, weights};

#[derive(Arbitrary)]
struct Input {
    prompt: Vec<u8>,
    seed: u64,
    temperature: u8,
    max_tokens: u8,
    n: u8,
    echo: bool,
    stops: Vec<Stop>,
    /// Stop tokens, as positions in the text without stop strings.
    ids: Vec<u8>,
}

#[derive(Arbitrary)]
enum Stop {
    /// A part of the text without stop strings: where it starts, and its length.
    Own(u8, u8),
    Text(String),
}

/// A model that writes any byte.
pub(crate) fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| {
        let config = config(&serde_json::json!({"vocab_size": BYTE_LEVEL_ROWS})).to_string();
        let folder = Folder::with(&[
            ("config.json", config.as_bytes()),
            ("model.safetensors", &weights(BYTE_LEVEL_ROWS)),
            ("tokenizer.json", byte_level().to_string().as_bytes()),
            ("chat_template.jinja", b"{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"),
        ]);
        Model::load(folder.path(), &small()).expect("a sound model")
    })
}

/// The text before the stop string that is complete first; and whether there is one.
fn definition(bytes: &[u8], stops: &[String]) -> (String, bool) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
        if let Some(len) = stops.iter().filter(|s| text[..end].ends_with(s.as_str())).map(String::len).max() {
            return (text[..end - len].to_string(), true);
        }
    }
    (text, false)
}

/// Characters `start..start + len` of a text, or fewer if the text is shorter.
fn part(text: &str, start: u8, len: u8) -> String {
    let n = text.chars().count().max(1);
    text.chars().skip(start as usize % n).take(len as usize).collect()
}

/// Generates without stop strings, cuts, and compares with generating with them, at once and piece by piece.
pub fn run(input: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(input)) else { return };
    let model = model();
    let prompt: Vec<u32> = input.prompt.iter().take(8).map(|&b| 3 + u32::from(b)).chain([5]).collect();
    let mut options = GenerateOptions {
        max_tokens: input.max_tokens as usize % 32,
        temperature: f32::from(input.temperature) / 16.0,
        top_p: 1.0,
        top_k: 0,
        n: 1 + input.n as usize % 2,
        seed: Some(input.seed),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let free = model.generate(&prompt, &options).expect("a sound request");
    let bytes_of = |tokens: &[welm_core::Token]| -> Vec<u8> {
        tokens.iter().flat_map(|t| model.token_bytes(t.id)).copied().collect()
    };
    let mut stops: Vec<String> = input
        .stops
        .into_iter()
        .take(8)
        .map(|stop| match stop {
            Stop::Own(start, len) => part(free.text(), start, len),
            Stop::Text(text) => text,
        })
        .collect();
    // Names of special tokens match the token, which is not in the text.
    let special = ["<unk>", "<s>", "</s>"];
    stops.retain(|s| !s.is_empty() && s.len() <= 256 && !special.iter().any(|name| s.contains(name)));
    let places = input.ids.iter().take(3).filter_map(|&i| free.choices[0].tokens.get(i as usize));
    options.stop_token_ids = places.map(|t| t.id).collect();
    options.stop = stops.clone();
    options.echo = input.echo;
    let stopped = model.generate(&prompt, &options).expect("a sound request");
    let mut streamed = vec![String::new(); options.n];
    for piece in model.stream(&prompt, &options).expect("a sound request") {
        let piece = piece.expect("a sound engine");
        streamed[piece.index] += &piece.text;
    }
    let echo = if input.echo { model.detokenize(&prompt) } else { String::new() };
    let echoed = if input.echo { prompt.len() } else { 0 };
    for ((free, got), streamed) in free.choices.iter().zip(&stopped.choices).zip(streamed) {
        // A stop token ends it, too, and is not part of it.
        let end = free.tokens.iter().position(|t| options.stop_token_ids.contains(&t.id));
        let before = &free.tokens[..end.unwrap_or(free.tokens.len())];
        let (want, by_string) = definition(&bytes_of(before), &stops);
        assert_eq!(got.text, echo.clone() + &want, "stop strings {stops:?} of {:?}", free.text);
        assert_eq!(got.text, streamed, "stop strings {stops:?}");
        let reason = if by_string || end.is_some() { FinishReason::Stop } else { FinishReason::Length };
        assert_eq!(got.finish_reason, reason);
        let tokens = &got.tokens[echoed..];
        assert!(before.starts_with(tokens));
        assert_eq!(definition(&bytes_of(tokens), &stops), (want, by_string));
    }
}

/// Some requests, as the bytes that they are made of.
pub fn seeds() -> Vec<Vec<u8>> {
    (0..8u8).map(|i| (0..96).map(|j| i.wrapping_mul(31).wrapping_add(j).wrapping_mul(7)).collect()).collect()
}
