//! Tests with a real model: SmolLM2-135M-Instruct, from its GGUF file in Q4_1.
//!
//! The file is not in the repository; `tests/run` fetches it (93 MB) and sets `WELM_SMOLLM2`. References
//! come from `reference/smollm2.py` (transformers in f32 over the dequantised weights, and llama.cpp's
//! token ids) and `reference/truth.py` (llama.cpp's Q8_0 against its own f32).

use std::path::PathBuf;

use serde_json::Value;
use welm_core::{Activations, CacheDtype, Dtype, FinishReason, GenerateOptions, LoadOptions, Message, Model};
use welm_tests::{Reference, exact, fixture, log_softmax};

fn model_file() -> PathBuf {
    let path = std::env::var_os("WELM_SMOLLM2").expect("WELM_SMOLLM2 names the GGUF file; tests/run sets it");
    PathBuf::from(path)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn log_probabilities_and_greedy_tokens_of_transformers() {
    as_transformers(&LoadOptions { dtype: Dtype::F32, ..exact() }, 1e-3);
}

#[test]
fn four_bit_weights_as_stored_have_the_greedy_tokens_of_transformers() {
    // The weights are exact; only the 16-bit activations differ from f32.
    as_transformers(&LoadOptions { dtype: Dtype::Auto, activations: Activations::Int16, ..exact() }, 0.03);
}

/// Compares log-probabilities, within `bound`, and greedy tokens of all prompts.
fn as_transformers(options: &LoadOptions, bound: f64) {
    let model = Model::load(model_file(), options).unwrap();
    let vocab = model.config().vocab_size;
    let (reference, texts) = (Reference::read("smollm2.safetensors"), json("smollm2.json"));
    for (i, prompt) in texts["prompts"].as_array().unwrap().iter().enumerate() {
        let tokens = reference.ints(&format!("prompt.{i}")).to_vec();
        let special = prompt["special"].as_bool().unwrap();
        assert_eq!(model.tokenize(prompt["prompt"].as_str().unwrap(), special).unwrap(), tokens);

        let ours = log_softmax(&model.logits(&tokens, 0).unwrap(), vocab);
        let some = reference.ints("vocab_ids");
        let mut worst = 0.0f64;
        for (row, theirs) in
            ours.chunks(vocab).zip(reference.floats(&format!("logprobs.{i}")).chunks(some.len()))
        {
            for (&id, &theirs) in some.iter().zip(theirs) {
                worst = worst.max((row[id as usize] - f64::from(theirs)).abs());
            }
        }
        println!("prompt {i}: largest difference of a log-probability {worst:.1e}");
        assert!(worst < bound, "prompt {i}: {worst:.1e}");

        let greedy = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(64) };
        let answer = model.generate(&tokens, &greedy).unwrap();
        let got: Vec<u32> = answer.choices[0].tokens.iter().map(|t| t.id).collect();
        assert_eq!(got, reference.ints(&format!("greedy.{i}")), "prompt {i}");
    }
}

#[test]
fn token_ids_of_llama_cpp() {
    let options = LoadOptions { cache_tokens: Some(64), ..LoadOptions::default() };
    let model = Model::load(model_file(), &options).unwrap();
    let cases = json("smollm2_tokens.json");
    for case in cases["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let plain = model.tokenize(text, false).unwrap();
        assert_eq!(plain, ids(&case["ids"]), "{text:?}");
        assert_eq!(model.detokenize(&plain), text);
        if case["ids_special"].is_array() {
            assert_eq!(model.tokenize(text, true).unwrap(), ids(&case["ids_special"]), "{text:?}");
        }
    }
}

/// For each row of logits the likeliest token, and the logarithm of the sum of exponentials.
fn sums(logits: &[f32], vocab: usize) -> Vec<(usize, f64)> {
    let sum = |row: &[f32]| {
        let (mut at, mut max) = (0, row[0]);
        for (i, &x) in row.iter().enumerate() {
            if x > max {
                (at, max) = (i, x);
            }
        }
        let over: f64 = row.iter().map(|&x| f64::from((x - max).exp())).sum();
        (at, f64::from(max) + over.ln())
    };
    logits.chunks(vocab).map(sum).collect()
}

/// The true answer for a window: that of f32 weights with an f32 cache.
struct Truth {
    logits: Vec<f32>, // (positions, vocab)
    sums: Vec<(usize, f64)>,
    probabilities: Vec<f32>, // (positions, vocab)
}

impl Truth {
    fn new(logits: Vec<f32>, vocab: usize) -> Truth {
        let sums = sums(&logits, vocab);
        let rows = logits.chunks(vocab).zip(&sums);
        let probabilities =
            rows.flat_map(|(row, &(_, sum))| row.iter().map(move |&x| (x - sum as f32).exp())).collect();
        Truth { logits, sums, probabilities }
    }
}

/// How far an engine is from the truth, position by position.
struct Divergence {
    name: &'static str,
    model: Model,
    kl: Vec<f64>,
    /// For each token that has a predecessor, by how much less likely it is than in truth.
    less: Vec<f64>,
    same: usize,
}

impl Divergence {
    fn new(name: &'static str, options: LoadOptions) -> Divergence {
        Divergence { name, model: load_window(&options), kl: Vec::new(), less: Vec::new(), same: 0 }
    }

    fn add(&mut self, truth: &Truth, window: &[u32]) {
        let logits = self.model.logits(window, 0).unwrap();
        let vocab = logits.len() / window.len();
        for (row, &(q_max, q_sum)) in sums(&logits, vocab).iter().enumerate() {
            let at = row * vocab..(row + 1) * vocab;
            let (p, q) = (&truth.logits[at.clone()], &logits[at.clone()]);
            let (p_max, p_sum) = truth.sums[row];
            // The difference of both logarithms of sums is the same for all tokens.
            let mut mean = 0.0;
            for ((&w, &p), &q) in truth.probabilities[at].iter().zip(p).zip(q) {
                mean += f64::from(w) * f64::from(p - q);
            }
            self.kl.push(mean - (p_sum - q_sum));
            self.same += usize::from(p_max == q_max);
            if let Some(&id) = window.get(row + 1) {
                self.less.push(f64::from(p[id as usize] - q[id as usize]) - (p_sum - q_sum));
            }
        }
    }

    /// The figures of all positions so far.
    fn figures(&self) -> Figures {
        let mut kl = self.kl.clone();
        kl.sort_by(f64::total_cmp);
        Figures {
            ppl_ratio: (self.less.iter().sum::<f64>() / self.less.len() as f64).exp(),
            mean_kl: kl.iter().sum::<f64>() / kl.len() as f64,
            median_kl: kl[kl.len() / 2],
            p99_kl: kl[kl.len() * 99 / 100],
            top1: self.same as f64 / kl.len() as f64,
        }
    }
}

fn load_window(options: &LoadOptions) -> Model {
    // On one thread: threads that wait for work take it from the tests beside this one.
    let options = LoadOptions { context_tokens: Some(512), threads: Some(1), ..options.clone() };
    Model::load(model_file(), &options).unwrap()
}

/// Figures of one engine against its own f32.
struct Figures {
    ppl_ratio: f64,
    mean_kl: f64,
    median_kl: f64,
    p99_kl: f64,
    top1: f64,
}

impl Figures {
    fn line(&self, name: &str) {
        println!(
            "| {name} | {:.5} | {:.5} | {:.5} | {:.5} | {:.4} |",
            self.ppl_ratio, self.mean_kl, self.median_kl, self.p99_kl, self.top1
        );
    }
}

/// Windows for figures that are far from what they are compared with.
const PART: usize = 3;

#[test]
fn int8_is_no_less_true_than_q8_0_of_llama_cpp() {
    let text = json("running_text.json");
    let windows: Vec<Vec<u32>> = text["windows"].as_array().unwrap().iter().map(|w| ids(&w["ids"])).collect();
    assert!(windows.iter().map(Vec::len).sum::<usize>() >= 4_000);
    let theirs = |cache: &str| {
        let r = &text["llama_cpp"]["results"][format!("q8_0_weights_{cache}_cache")];
        let figure = |key: &str| r[key].as_f64().unwrap();
        Figures {
            ppl_ratio: figure("ppl_ratio"),
            mean_kl: figure("mean_kl"),
            median_kl: figure("median_kl"),
            p99_kl: figure("p99_kl"),
            top1: figure("top1_agreement"),
        }
    };
    let exactly = load_window(&LoadOptions { dtype: Dtype::F32, ..exact() });
    let vocab = exactly.config().vocab_size;
    let int8 = LoadOptions { dtype: Dtype::Int8, ..LoadOptions::default() };
    let f32_cache = LoadOptions { cache_dtype: CacheDtype::F32, ..int8.clone() };
    let wide = LoadOptions { activations: Activations::Int16, ..int8.clone() };
    let four = LoadOptions { dtype: Dtype::Auto, ..int8.clone() };
    let mut default = Divergence::new("welm int8, f16 cache", int8);
    let mut others = [
        Divergence::new("welm int8, f32 cache, part of the text", f32_cache),
        Divergence::new("welm int8, 16-bit activations, f16 cache, part of the text", wide),
        Divergence::new("welm four bits as stored, f16 cache (default), part of the text", four),
    ];
    let mut part = None;
    for (i, window) in windows.iter().enumerate() {
        let truth = Truth::new(exactly.logits(window, 0).unwrap(), vocab);
        default.add(&truth, window);
        if i < PART {
            others.iter_mut().for_each(|other| other.add(&truth, window));
            part = Some(default.figures());
        }
    }

    println!(
        "| against f32 weights, f32 cache of the same engine | ppl ratio | mean KL | median | p99 | top-1 |"
    );
    println!("|---|---|---|---|---|---|");
    let (ours, part) = (default.figures(), part.unwrap());
    ours.line(default.name);
    part.line("the same, part of the text");
    let [f32_cache, wide, four] = others.each_ref().map(Divergence::figures);
    others.iter().zip([&f32_cache, &wide, &four]).for_each(|(other, figures)| figures.line(other.name));
    theirs("f16").line("llama.cpp Q8_0, f16 cache (default)");
    theirs("f32").line("llama.cpp Q8_0, f32 cache");

    for (name, ours, theirs) in
        [("f16 cache", &ours, theirs("f16")), ("f32 cache", &f32_cache, theirs("f32"))]
    {
        assert!(
            ours.mean_kl <= theirs.mean_kl,
            "{name}: mean KL {} against {}",
            ours.mean_kl,
            theirs.mean_kl
        );
        assert!(ours.median_kl <= theirs.median_kl, "{name}: median KL");
        assert!((ours.ppl_ratio - 1.0).abs() <= (theirs.ppl_ratio - 1.0).abs(), "{name}: perplexity");
    }
    assert!(wide.mean_kl < 0.8 * part.mean_kl);
    assert!(ours.p99_kl < theirs("f16").p99_kl, "99th percentile");
    assert!(four.mean_kl < theirs("f32").mean_kl, "weights that are not rounded again: {}", four.mean_kl);
}

#[test]
fn chat_template_of_the_file() {
    let options = LoadOptions { cache_tokens: Some(64), ..LoadOptions::default() };
    let model = Model::load(model_file(), &options).unwrap();
    assert!(model.has_chat_template());
    let fixture = json("chat.json");
    let cases = fixture["cases"].as_array().unwrap().iter().filter(|case| case["template"] == "smollm2");
    for case in cases {
        let conversation = &fixture["conversations"][case["conversation"].as_u64().unwrap() as usize];
        let message = |m: &Value| Message::new(m[0].as_str().unwrap(), m[1].as_str().unwrap());
        let messages: Vec<Message> = conversation.as_array().unwrap().iter().map(message).collect();
        let generation = case["add_generation_prompt"].as_bool().unwrap();
        let text = model.chat_prompt(&messages, generation).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
        let tokens = model.chat_tokens(&messages, generation).unwrap();
        assert_eq!(tokens, model.tokenize(&text, true).unwrap());
        assert_eq!(tokens[0], model.token_id("<|im_start|>").unwrap());
    }
}

#[test]
fn every_token_of_a_continuation_is_scored() {
    let model = Model::load(model_file(), &exact()).unwrap();
    let (start, vocab) = (model.config().bos_token_id.unwrap(), model.config().vocab_size);
    let echo = GenerateOptions { echo: true, logprobs: Some(0), ..GenerateOptions::greedy(0) };
    // `Hel` and `lo` merge into the token `Hello`, and `The` and `re` into `There`: only the start token is before it.
    for (prompt, continuation, shares) in [
        ("Hel", "lo", false),
        ("Hel", " there", true),
        ("The", "re", false),
        ("The", " cat", true),
        ("", "The", false),
        ("", " Zxq", false),
        ("The sky is", " blue", true),
    ] {
        let (own, mut tokens) = (
            model.tokenize(prompt, false).unwrap(),
            model.tokenize(&format!("{prompt}{continuation}"), false).unwrap(),
        );
        let mut given = own.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        assert_eq!(given > 0, shares, "{prompt:?} {continuation:?}");
        if !shares {
            tokens.insert(0, start);
            given = 1;
        }
        let score = model.score(prompt, &[continuation]).unwrap().remove(0);
        let echoed = model.generate(&tokens, &echo).unwrap().choices.remove(0).tokens;
        assert_eq!(score.tokens[..], echoed[given..], "{prompt:?} {continuation:?}");
        let rows = log_softmax(&model.logits(&tokens, given - 1).unwrap(), vocab);
        let want =
            tokens[given..].iter().enumerate().map(|(i, &id)| rows[i * vocab + id as usize]).sum::<f64>();
        assert!(score.logprob < 0.0 && (score.logprob - want).abs() < 1e-3, "{} {want}", score.logprob);
    }
}

#[test]
fn special_tokens_in_stop_strings_end_a_text() {
    let model = Model::load(model_file(), &LoadOptions::default()).unwrap();
    let end = model.token_id("<|im_start|>").unwrap();
    assert!(!model.config().eos_token_ids.contains(&end));
    let line = model.tokenize("\n", false).unwrap()[0];
    // A line's end, then the special token.
    let options = GenerateOptions {
        logit_bias: vec![(line, 100.0), (end, 50.0)],
        presence_penalty: 100.0,
        ..GenerateOptions::greedy(6)
    };
    for (stop, text) in [("<|im_start|>", "\n"), ("\n<|im_start|>", "")] {
        let options = GenerateOptions { stop: vec![stop.into()], ..options.clone() };
        let choice = model.generate("Hello", &options).unwrap().choices.remove(0);
        let ids: Vec<u32> = choice.tokens.iter().map(|t| t.id).collect();
        assert_eq!(
            (choice.text.as_str(), choice.finish_reason, ids),
            (text, FinishReason::Stop, vec![line, end])
        );
    }
}
