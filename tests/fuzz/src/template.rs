//! Fuzzes chat templates, and conversations for them.

use serde_json::{Value, json};
use welm_core::{ChatRequest, Message, Model};

use super::files::{Folder, config, expected, join, parts, repository, small, weights};

/// Input: the template, 0xFF, a request as JSON.
pub fn run(input: &[u8]) {
    let [template, request] = parts(input);
    let request = expected(ChatRequest::from_json(&String::from_utf8_lossy(request)));
    let config = config(&json!({})).to_string();
    let weights = weights(8);
    let folder = Folder::with(&[
        ("config.json", config.as_bytes()),
        ("model.safetensors", &weights),
        ("tokenizer_config.json", br#"{"bos_token": "<s>", "eos_token": "</s>"}"#),
        ("chat_template.jinja", template),
    ]);
    let Some(model) = expected(Model::load(folder.path(), &small())) else { return };
    let plain = [Message::new("user", "a"), Message::new("assistant", "b")];
    expected(model.chat_prompt(&plain, true));
    if let Some(request) = request {
        expected(model.chat_request_prompt(&request));
    }
}

/// The templates of the tests, with a conversation.
pub fn seeds() -> Vec<Vec<u8>> {
    let chat: Value = serde_json::from_slice(&repository("tests/fixtures/chat.json")).expect("a fixture");
    let templates = chat["templates"].as_object().expect("templates");
    let call =
        json!({"type": "function", "function": {"name": "f", "arguments": {"x": [1, 2.5, null, "é\""]}}});
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": {
        "type": "object", "properties": {"x": {"type": "array"}}, "required": ["x"]}}});
    let requests = [
        json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<think>a</think> b\n"},
            {"role": "assistant", "content": "一", "reasoning_content": "c"}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant",
            "content": null, "tool_calls": [call]}, {"role": "tool", "name": "f", "content": "1"}], "tools": [tool],
            "documents": [{"title": "t", "text": "u"}], "add_generation_prompt": true, "enable_thinking": false}),
    ];
    let source = |template: &Value| template.as_str().expect("a text").as_bytes().to_vec();
    let seed = |(i, template): (usize, &Value)| {
        join(&[&source(template), requests[i % requests.len()].to_string().as_bytes()])
    };
    templates.values().enumerate().map(seed).collect()
}
