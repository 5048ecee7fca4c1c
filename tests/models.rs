//! Real models, from the GGUF files that people have. They are not in the repository: `tests/models` fetches them, sets
//! `WELM_MODELS` and runs this. The references come from `reference/real_models.py` (transformers in f32 over the
//! dequantised weights).

use std::path::PathBuf;

use serde_json::Value;
use welm_core::{Dtype, FinishReason, GenerateOptions, LoadOptions, Message, Model};
use welm_tests::{exact, fixture, log_softmax};

const GEMMA3: &str = "gemma3-270m-q4_k_m";
const QWEN_0_5B: &str = "qwen2.5-coder-0.5b-q4_k_m";
const QWEN_1_5B: &str = "qwen2.5-coder-1.5b-q4_k_m";

fn file(name: &str) -> PathBuf {
    let folder = std::env::var_os("WELM_MODELS").expect("WELM_MODELS names the folder; tests/models sets it");
    PathBuf::from(folder).join(format!("{name}.gguf"))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Each prompt with what transformers makes of it.
fn cases(reference: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture("models").join(reference)).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 8);
    cases
}

/// Ids of the prompts, with the token that starts a text.
fn ids_as_transformers(name: &str, reference: &str) {
    let options = LoadOptions { context_tokens: Some(64), ..LoadOptions::default() };
    let model = Model::load(file(name), &options).unwrap();
    for case in cases(reference) {
        let prompt = case["prompt"].as_str().unwrap();
        let echo = GenerateOptions { echo: true, ..GenerateOptions::greedy(0) };
        let answer = model.generate(prompt, &echo).unwrap();
        let own: Vec<u32> = answer.choices[0].tokens.iter().map(|t| t.id).collect();
        assert_eq!(own, ids(&case["ids"]), "{prompt:?}");
    }
}

/// In f32: log-probabilities, and greedy tokens. A row has the same bits in a prompt as in a generated text, so one pass
/// over prompt and continuation tells which token comes after each; the first continuation is generated, too.
fn as_transformers(name: &str, reference: &str) {
    let options = LoadOptions { dtype: Dtype::F32, context_tokens: Some(256), ..exact() };
    let model = Model::load(file(name), &options).unwrap();
    let vocab = model.config().vocab_size;
    for (i, case) in cases(reference).iter().enumerate() {
        let (prompt, tokens, greedy) =
            (case["prompt"].as_str().unwrap(), ids(&case["ids"]), ids(&case["greedy"]));
        let n = tokens.len();
        let logits = model.logits(&[&tokens[..], &greedy[..63]].concat(), 0).unwrap();
        let rows = log_softmax(&logits[..n * vocab], vocab);
        let theirs = case["logprobs"].as_array().unwrap().iter().enumerate();
        let of_prompt = theirs.map(|(i, p)| (rows[i * vocab + tokens[i + 1] as usize], p));
        let last = &rows[(n - 1) * vocab..];
        let top = case["top"].as_array().unwrap().iter();
        let of_top = top.map(|pair| (last[pair[0].as_u64().unwrap() as usize], &pair[1]));
        let difference = |(ours, theirs): (f64, &Value)| (ours - theirs.as_f64().unwrap()).abs();
        let worst = of_prompt.chain(of_top).map(difference).fold(0.0, f64::max);
        println!("{prompt:?}: largest difference of a log-probability {worst:.1e}");
        assert!(worst < 1e-3, "{prompt:?}: {worst:.1e}");

        let best = |row: &[f32]| (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32;
        let follow: Vec<u32> = logits[(n - 1) * vocab..].chunks(vocab).map(best).collect();
        assert_eq!(follow, greedy, "{prompt:?}: greedy tokens");
        if i == 0 {
            let options = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(64) };
            let answer = model.generate(&tokens, &options).unwrap();
            let got: Vec<u32> = answer.choices[0].tokens.iter().map(|t| t.id).collect();
            assert_eq!(got, greedy, "{prompt:?}: generated");
        }
    }
}

#[test]
#[ignore = "tests/models fetches the model"]
fn gemma3_ids_are_those_of_transformers() {
    ids_as_transformers(GEMMA3, "gemma3.json");
}

#[test]
#[ignore = "tests/models fetches the model"]
fn qwen0_5b_ids_are_those_of_transformers() {
    ids_as_transformers(QWEN_0_5B, "qwen0.5b.json");
}

#[test]
#[ignore = "tests/models fetches the model"]
fn gemma3_in_f32_is_that_of_transformers() {
    as_transformers(GEMMA3, "gemma3.json");
}

#[test]
#[ignore = "tests/models fetches the model"]
fn qwen0_5b_in_f32_is_that_of_transformers() {
    as_transformers(QWEN_0_5B, "qwen0.5b.json");
}

#[test]
#[ignore = "tests/models fetches the model"]
fn qwen1_5b_in_f32_is_that_of_transformers() {
    as_transformers(QWEN_1_5B, "qwen1.5b.json");
}

/// By the template of the file, in the precision that it has if nobody asks for another.
#[test]
#[ignore = "tests/models fetches the model"]
fn qwen0_5b_answers_in_chinese() {
    let model = Model::load(file(QWEN_0_5B), &LoadOptions::default()).unwrap();
    let question = [Message::new("user", "中国的首都是哪座城市？请用一句话回答。")];
    let prompt = model.chat_prompt(&question, true).unwrap();
    assert!(prompt.ends_with("<|im_start|>assistant\n") && prompt.contains("首都"), "{prompt}");
    let answer = model.chat(&question, &GenerateOptions::greedy(64)).unwrap();
    let choice = &answer.choices[0];
    println!("{}", choice.text);
    assert!(choice.text.contains("北京"), "{}", choice.text);
    assert_eq!(choice.finish_reason, FinishReason::EndOfText, "{}", choice.text);
}

fn described(name: &str, family: &str, types: &[&str]) {
    let got = Model::describe(file(name)).unwrap();
    let names: Vec<&str> = got.types.iter().map(|t| t.name.as_str()).collect();
    assert_eq!((got.family.as_deref(), got.unsupported.as_deref()), (Some(family), None));
    assert_eq!(names, types, "{name}");
}

#[test]
#[ignore = "tests/models fetches the model"]
fn gemma3_is_described() {
    described(GEMMA3, "gemma3", &["Q8_0", "Q5_0", "Q4_K", "Q6_K", "F32"]);
}

#[test]
#[ignore = "tests/models fetches the model"]
fn qwen0_5b_is_described() {
    described(QWEN_0_5B, "qwen2", &["Q5_0", "Q8_0", "Q4_K", "Q6_K", "F32"]);
}

#[test]
#[ignore = "tests/models fetches the model"]
fn qwen1_5b_is_described() {
    described(QWEN_1_5B, "qwen2", &["Q4_K", "Q6_K", "F32"]);
}
