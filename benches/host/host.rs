//! Times the work of a step outside of the model: choosing a token, making text, scheduling. Also times the work of a
//! request before its first step: tokenizing a prompt, rendering a chat template. `cargo bench -p welm-benches-host`
//! takes about a minute, and compares with the previous run.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use welm_core::measured::{Sampling, Text};
use welm_core::{GenerateOptions, LoadOptions, Message, Model, ModelConfig};

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

fn nano() -> Model {
    Model::load(file("examples/welm-nano"), &LoadOptions::default()).expect("the small model loads")
}

/// Chinese and English, some kilobytes.
fn prose() -> String {
    std::fs::read_to_string(file("tests/fixtures/nano_greedy.json")).expect("a text of this repository")
}

/// Samples from a row of logits as long as WeLM's vocabulary, of which few are large.
fn sampler(c: &mut Criterion) {
    const VOCAB: usize = 62_080;
    let mut group = c.benchmark_group("sampler");
    let noise = |i: usize| ((i * 7_919 + i * i % 104_729) % 10_007) as f32 / 10_007.0;
    let logits: Vec<f32> = (0..VOCAB).map(|i| 8.0 * noise(i).powi(8) - 4.0).collect();
    let text: Vec<u32> = (0..256).map(|i| i * 97 % VOCAB as u32).collect();
    let default = GenerateOptions::default();
    for (name, options) in [
        ("greedy", GenerateOptions::greedy(1)),
        ("default", default.clone()),
        ("top-p of all", GenerateOptions { top_k: 0, ..default.clone() }),
        ("all", GenerateOptions { top_k: 0, top_p: 1.0, ..default.clone() }),
        ("penalties", GenerateOptions { repetition_penalty: 1.1, presence_penalty: 0.1, ..default }),
    ] {
        let mut sampling = Sampling::new(VOCAB, &options);
        group.bench_function(name, |b| {
            let row = || logits.clone();
            b.iter_batched_ref(row, |row| sampling.draw(row, &text, black_box(0.37)), BatchSize::LargeInput);
        });
    }
    group.finish();
}

/// A thousand tokens of text, one token at a time.
fn text(c: &mut Criterion) {
    let model = nano();
    let tokens = model.tokenize(&prose(), false).expect("it has a tokenizer");
    let bytes: Vec<Vec<u8>> = tokens.iter().take(1_000).map(|&id| model.token_bytes(id).to_vec()).collect();
    let mut group = c.benchmark_group("text");
    group.throughput(Throughput::Elements(bytes.len() as u64));
    for n in [0, 1, 16] {
        // Parts of the text match their beginnings, but never all of a string.
        let stop: Vec<String> = (0..n).map(|i| format!("， {i} never")).collect();
        group.bench_with_input(BenchmarkId::new("stop strings", n), &stop, |b, stop| {
            b.iter(|| {
                let mut text = Text::new(stop);
                bytes.iter().map(|bytes| text.push(bytes).len()).sum::<usize>()
            });
        });
    }
    group.finish();
}

fn tokenizer(c: &mut Criterion) {
    let (model, text) = (nano(), prose());
    assert!(model.has_chat_template());
    let tokens = model.tokenize(&text, false).expect("it has a tokenizer");
    let mut group = c.benchmark_group("tokenizer");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("encode", |b| b.iter(|| model.tokenize(black_box(&text), false)));
    group.bench_function("decode", |b| b.iter(|| model.detokenize(black_box(&tokens))));
    let messages =
        [Message::new("user", "春眠不觉晓"), Message::new("assistant", "，"), Message::new("user", &text)];
    group.bench_function("chat template", |b| b.iter(|| model.chat_prompt(black_box(&messages), true)));
    group.finish();
}

/// A model so small that the scheduler, the sampler and the events are most of a step.
fn scheduler(c: &mut Criterion) {
    let options = LoadOptions { threads: Some(1), ..LoadOptions::default() };
    let model = Model::load(file("tests/fixtures/llama_gqa"), &options).expect("the fixture loads");
    let mut group = c.benchmark_group("scheduler");
    for n in [1, 16, 64] {
        let options = GenerateOptions {
            n,
            ignore_eos: true,
            seed: Some(1),
            max_tokens: 32,
            ..GenerateOptions::default()
        };
        group.throughput(Throughput::Elements(32 * n as u64));
        group.bench_with_input(BenchmarkId::new("sequences", n), &options, |b, options| {
            b.iter(|| model.generate(&vec![1, 2, 3], options));
        });
    }
    group.finish();
}

fn config(c: &mut Criterion) {
    let folder = file("examples/welm-nano");
    c.bench_function("config.json", |b| b.iter(|| ModelConfig::from_folder(black_box(&folder))));
}

criterion_group! {
    name = host;
    // Fifteen measurements in a minute.
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(50);
    targets = sampler, text, tokenizer, scheduler, config
}
criterion_main!(host);
