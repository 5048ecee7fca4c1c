//! Chat templates, and conversations for them.

use serde_json::{Value, json};
use welm_core::{Message, Model};

use super::files::{Folder, config, expected, join, parts, repository, small, weights};

/// The template, then role, content, role, content, with 0xFF between them.
pub fn run(input: &[u8]) {
    let [template, rest] = parts(input);
    let mut texts = rest.split(|&byte| byte == 0xFF).map(|text| String::from_utf8_lossy(text).into_owned());
    let mut messages = Vec::new();
    while let (Some(role), Some(content)) = (texts.next(), texts.next()) {
        messages.push(Message::new(role, content));
    }
    let config = config(&json!({})).to_string();
    let weights = weights(8);
    let folder = Folder::with(&[
        ("config.json", config.as_bytes()),
        ("model.safetensors", &weights),
        ("tokenizer_config.json", br#"{"bos_token": "<s>", "eos_token": "</s>"}"#),
        ("chat_template.jinja", template),
    ]);
    let Some(model) = expected(Model::load(folder.path(), &small())) else { return };
    for add_generation_prompt in [false, true] {
        expected(model.chat_prompt(&messages, add_generation_prompt));
    }
}

/// The templates of the tests, with a conversation.
pub fn seeds() -> Vec<Vec<u8>> {
    let chat: Value = serde_json::from_slice(&repository("tests/fixtures/chat.json")).expect("a fixture");
    let templates = chat["templates"].as_object().expect("templates");
    let conversation: [&[u8]; 6] =
        [b"system", b"Be brief.", b"user", b"<think>a</think> b\n", b"assistant", "一".as_bytes()];
    let source = |template: &Value| template.as_str().expect("a text").as_bytes().to_vec();
    templates.values().map(|template| join(&[&[&source(template)[..]], &conversation[..]].concat())).collect()
}
