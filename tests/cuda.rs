//! Tests of whole models on the CUDA backend: compared with the CPU backend, alone and in a batch, and when the device
//! fails. The kernels by themselves are tested in `kernels/`.
//!
//! The tests run on the emulator. With the feature `gpu` and `WELM_TEST_GPU=<number>` they run on that device, except
//! tests with planned failures.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::tensor::{Dtype as Stored, TensorView};
use serde_json::json;
use tempfile::TempDir;
use welm_core::{
    Activation, Activations, CacheDtype, Choice, Device, Dtype, Error, GenerateOptions, LoadOptions, Model,
    ModelConfig, QkNorm, QueryScale, Rope, RopePairing,
};
use welm_tests::emulator::{Emulator, Fault, Options};
use welm_tests::{at_rest, nano};

/// The real device to test on, if one is asked for.
fn gpu() -> Option<welm_kernels::Device> {
    let ordinal = std::env::var("WELM_TEST_GPU").ok()?.parse().expect("WELM_TEST_GPU is a number");
    // Warnings, for instance that steps are not recorded, are in the output, where `benches/gpu/run` looks for them.
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .try_init();
    Some(welm_kernels::Device::open(ordinal).expect("the device of WELM_TEST_GPU opens"))
}

/// The devices to test on.
fn devices() -> Vec<welm_kernels::Device> {
    gpu().map_or_else(|| vec![Emulator::device((8, 0)), Emulator::device((9, 0))], |device| vec![device])
}

fn load(path: &Path, options: &LoadOptions, device: &welm_kernels::Device) -> Model {
    Model::load_on_device(path, options, device.clone()).unwrap()
}

fn emulated(path: &Path, options: &LoadOptions, capability: (u32, u32)) -> (Model, Arc<Emulator>) {
    let emulator = Emulator::new(Options { capability, ..Options::default() });
    let device = welm_kernels::Device::with_driver(emulator.clone());
    (Model::load_on_device(path, options, device).unwrap(), emulator)
}

/// A small model of random weights, in bf16, as a Hugging Face folder.
struct Toy {
    tensors: HashMap<String, (Vec<usize>, Vec<u8>)>,
    random: u64,
}

impl Toy {
    /// Values are uniform in `around - size .. around + size`.
    fn tensor(&mut self, name: &str, shape: &[usize], around: f32, size: f32) {
        let len = shape.iter().product();
        let value = |_| {
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = (self.random >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            half::bf16::from_f32(around + uniform * size).to_le_bytes()
        };
        let bytes = (0..len).flat_map(value).collect();
        self.tensors.insert(name.into(), (shape.to_vec(), bytes));
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, bias: bool) {
        self.tensor(&format!("{name}.weight"), &[rows, cols], 0.0, 1.7 / (cols as f32).sqrt());
        if bias {
            self.tensor(&format!("{name}.bias"), &[rows], 0.0, 0.3);
        }
    }

    fn norm(&mut self, name: &str, dim: usize, bias: bool) {
        self.tensor(&format!("{name}.weight"), &[dim], 1.0, 0.3);
        if bias {
            self.tensor(&format!("{name}.bias"), &[dim], 0.0, 0.2);
        }
    }

    fn write(self, config: &serde_json::Value) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let tensors = self.tensors.iter();
        let views: HashMap<_, _> = tensors
            .map(|(name, (shape, bytes))| {
                (name, TensorView::new(Stored::BF16, shape.clone(), bytes).unwrap())
            })
            .collect();
        safetensors::serialize_to_file(&views, None, &folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        folder
    }

    fn new(seed: u64) -> Toy {
        Toy { tensors: HashMap::new(), random: seed }
    }

    /// GPT-NeoX: layernorms, biases, GELU.
    fn neox(
        heads: usize,
        head_dim: usize,
        hidden: usize,
        vocab: usize,
        parallel: bool,
        rotary: f64,
    ) -> TempDir {
        let dim = heads * head_dim;
        let mut toy = Toy::new(dim as u64);
        toy.tensor("gpt_neox.embed_in.weight", &[vocab, dim], 0.0, 1.0);
        for l in 0..2 {
            let layer = format!("gpt_neox.layers.{l}");
            toy.norm(&format!("{layer}.input_layernorm"), dim, true);
            toy.norm(&format!("{layer}.post_attention_layernorm"), dim, true);
            toy.linear(&format!("{layer}.attention.query_key_value"), 3 * dim, dim, true);
            toy.linear(&format!("{layer}.attention.dense"), dim, dim, true);
            toy.linear(&format!("{layer}.mlp.dense_h_to_4h"), hidden, dim, true);
            toy.linear(&format!("{layer}.mlp.dense_4h_to_h"), dim, hidden, true);
        }
        toy.norm("gpt_neox.final_layer_norm", dim, true);
        toy.linear("embed_out", vocab, dim, false);
        toy.write(&json!({
            "model_type": "gpt_neox", "vocab_size": vocab, "hidden_size": dim, "num_hidden_layers": 2,
            "num_attention_heads": heads, "intermediate_size": hidden, "hidden_act": "gelu",
            "max_position_embeddings": 700, "rotary_pct": rotary, "rotary_emb_base": 10000,
            "layer_norm_eps": 1e-5, "use_parallel_residual": parallel, "tie_word_embeddings": false,
        }))
    }

    /// Llama: rmsnorms, SwiGLU, grouped queries.
    fn llama(heads: usize, kv_heads: usize, head_dim: usize, hidden: usize, vocab: usize) -> TempDir {
        let dim = heads * head_dim;
        let mut toy = Toy::new(hidden as u64);
        toy.tensor("model.embed_tokens.weight", &[vocab, dim], 0.0, 1.0);
        for l in 0..2 {
            let layer = format!("model.layers.{l}");
            toy.norm(&format!("{layer}.input_layernorm"), dim, false);
            toy.norm(&format!("{layer}.post_attention_layernorm"), dim, false);
            toy.linear(&format!("{layer}.self_attn.q_proj"), dim, dim, false);
            toy.linear(&format!("{layer}.self_attn.k_proj"), kv_heads * head_dim, dim, false);
            toy.linear(&format!("{layer}.self_attn.v_proj"), kv_heads * head_dim, dim, false);
            toy.linear(&format!("{layer}.self_attn.o_proj"), dim, dim, false);
            toy.linear(&format!("{layer}.mlp.gate_proj"), hidden, dim, false);
            toy.linear(&format!("{layer}.mlp.up_proj"), hidden, dim, false);
            toy.linear(&format!("{layer}.mlp.down_proj"), dim, hidden, false);
        }
        toy.norm("model.norm", dim, false);
        toy.write(&json!({
            "model_type": "llama", "vocab_size": vocab, "hidden_size": dim, "num_hidden_layers": 2,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "intermediate_size": hidden, "hidden_act": "silu", "max_position_embeddings": 700,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        }))
    }
}

fn tokens(n: usize, vocab: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i) % vocab) as u32).collect()
}

/// Largest relative error, in the L2 norm, of the logits of a position.
fn worst_error(got: &[f32], want: &[f32], vocab: usize) -> f64 {
    let norm = |row: &mut dyn Iterator<Item = f64>| row.map(|x| x * x).sum::<f64>().sqrt();
    let error = |(got, want): (&[f32], &[f32])| {
        assert!(got.iter().all(|x| x.is_finite()));
        let difference = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(a - b)));
        difference / norm(&mut want.iter().map(|&x| f64::from(x)))
    };
    got.chunks(vocab).zip(want.chunks(vocab)).map(error).fold(0.0, f64::max)
}

/// Logits of prompts, and of the same texts as generated tokens, against the CPU with the same weights.
#[test]
fn logits_are_those_of_the_cpu() {
    let models = [
        ("neox 2 x 64", Toy::neox(2, 64, 256, 300, false, 1.0)),
        ("neox 2 x 80, parallel, partial", Toy::neox(2, 80, 200, 131, true, 0.25)),
        ("llama 4 / 2 x 64", Toy::llama(4, 2, 64, 200, 300)),
        ("llama 2 / 1 x 128", Toy::llama(2, 1, 128, 90, 97)),
        ("llama 2 / 2 x 96", Toy::llama(2, 2, 96, 256, 256)),
    ];
    for (name, folder) in &models {
        for dtype in [Dtype::Bf16, Dtype::Int8] {
            let options = LoadOptions { dtype, chunk_tokens: Some(48), ..LoadOptions::default() };
            let on_cpu =
                LoadOptions { activations: Activations::Int16, device: Device::Cpu, ..options.clone() };
            let cpu = Model::load(folder.path(), &on_cpu).unwrap();
            let vocab = cpu.config().vocab_size;
            let prompt = tokens(101, vocab, 1);
            let want = cpu.logits(&prompt, 0).unwrap();
            for device in devices() {
                let model = load(folder.path(), &options, &device);
                let got = model.logits(&prompt, 0).unwrap();
                let error = worst_error(&got, &want, vocab);
                println!("{name}, {dtype:?}, {device:?}: {error:.4}");
                // The two backends quantise floats to int8 in different groups, so each has an error of its own.
                let most = if dtype == Dtype::Int8 { 6e-2 } else { 1e-2 };
                assert!(error < most, "{name}, {dtype:?}, {device:?}: relative error {error}");
            }
        }
    }
}

/// A Llama as an int8 folder, with all the further norms that a layer may have. Its widths are such that weights are
/// not rotated, so that both backends compute with the same weights.
fn with_more_norms() -> TempDir {
    const HEAD_DIM: usize = 80;
    let dim = 2 * HEAD_DIM;
    let folder = tempfile::tempdir().unwrap();
    welm_core::quantize(Toy::llama(2, 1, HEAD_DIM, 200, 97).path(), folder.path(), |_| true).unwrap();
    let mut more = Toy::new(3);
    for l in 0..2 {
        for (part, len) in
            [("q_norm", HEAD_DIM), ("k_norm", HEAD_DIM), ("attn_post_norm", dim), ("ffn_post_norm", dim)]
        {
            more.norm(&format!("layers.{l}.{part}"), len, false);
        }
    }
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let stored = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let more = more.tensors.iter().map(|(name, (shape, bytes))| {
        (name.clone(), TensorView::new(Stored::BF16, shape.clone(), bytes).unwrap())
    });
    let all = stored.tensors().into_iter().chain(more).collect::<Vec<_>>();
    let metadata = header.metadata().clone();
    // The file is written under another name and moved, because the old one may be mapped.
    let beside = folder.path().join("beside");
    safetensors::serialize_to_file(all, metadata, &beside).unwrap();
    std::fs::rename(beside, file).unwrap();
    folder
}

type Change = fn(&mut ModelConfig);

/// Settings of models and layers that no family uses yet: each field alone, and all together.
const CHANGES: [(&str, Change); 11] = [
    ("window", |c| c.layers[1].window = Some(20)),
    ("scale", |c| c.layers[1].scale *= 3.0),
    ("soft cap", |c| c.layers[0].soft_cap = Some(0.5)),
    ("a second rotary embedding", |c| {
        c.ropes.push(second_rope());
        c.layers[1].rope = Some(1);
    }),
    ("a part of each head in pairs of neighbours, with a factor", |c| {
        c.ropes[0] = second_rope();
        (c.ropes[0].attention_factor, c.logit_scale) = (1.5, 0.5);
    }),
    ("no rotary embedding", |c| c.layers[1].rope = None),
    ("norms of heads", |c| c.layers[0].qk_norm = Some(QkNorm::Head)),
    ("norms after each half", |c| c.layers.iter_mut().for_each(|layer| layer.post_norms = true)),
    ("gated gelu", |c| c.activation = Activation::GeGlu),
    ("soft cap of logits, scale of the embedding", |c| {
        // A smaller scale would leave more of the sum to layers, whose products CUDA rounds to bf16.
        (c.embed_scale, c.logit_soft_cap) = (4.0, Some(1.5));
    }),
    ("all", |c| {
        (c.activation, c.embed_scale, c.logit_soft_cap) = (Activation::GeGlu, 3.0, Some(2.0));
        c.ropes.push(second_rope());
        for layer in &mut c.layers {
            (layer.qk_norm, layer.post_norms) = (Some(QkNorm::Head), true);
            (layer.soft_cap, layer.scale) = (Some(2.0), 0.3);
        }
        (c.layers[0].window, c.layers[0].rope) = (Some(17), Some(1));
    }),
];

fn second_rope() -> Rope {
    let mut rope = Rope::new(32, 100.0);
    rope.pairing = RopePairing::Interleaved;
    rope
}

/// Every field of a configuration has the same effect as on the CPU, where other tests compare it with a formula.
#[test]
fn what_layers_differ_in_is_that_of_the_cpu() {
    let folder = with_more_norms();
    let options =
        LoadOptions { allow_unread_tensors: true, chunk_tokens: Some(48), ..LoadOptions::default() };
    let prompt = tokens(75, 97, 1);
    let on_cpu = |change: Change| {
        let options = LoadOptions { activations: Activations::Int16, ..options.clone() };
        Model::load_as(folder.path(), &options, None, change).unwrap().logits(&prompt, 0).unwrap()
    };
    let without = on_cpu(|_| {});
    for (name, change) in CHANGES {
        let want = on_cpu(change);
        for device in devices() {
            let model = Model::load_as(folder.path(), &options, Some(device.clone()), change).unwrap();
            let got = model.logits(&prompt, 0).unwrap();
            let (error, effect) = (worst_error(&got, &want, 97), worst_error(&without, &want, 97));
            println!("{name}, {device:?}: {error:.4}, {effect:.4} without");
            assert!(error < 2e-2, "{name}, {device:?}: relative error {error}");
            assert!(effect > 5.0 * error, "{name}: not to be told from none, {effect} and {error}");
        }
    }
}

/// Generated tokens have the same bits alone and in a batch, with a window and all other settings, and also if the
/// prompt comes from the prefix cache.
#[test]
fn company_never_changes_a_bit_of_layers_that_differ() {
    let folder = with_more_norms();
    let options = LoadOptions { allow_unread_tensors: true, ..LoadOptions::default() };
    let tight = LoadOptions { cache_tokens: Some(256), chunk_tokens: Some(24), ..options.clone() };
    let change = CHANGES[CHANGES.len() - 1].1;
    for device in [None, Some(devices()[0].clone())] {
        let bare = LoadOptions { prefix_cache: false, ..options.clone() };
        let model = Model::load_as(folder.path(), &bare, device.clone(), change).unwrap();
        let answer = |model: &Model, i: usize| {
            let (prompt, options) = mixed(i);
            model.generate(&prompt, &options).unwrap()
        };
        let alone: Vec<_> = (0..6).map(|i| answer(&model, i).choices).collect();
        let model = Model::load_as(folder.path(), &tight, device, change).unwrap();
        std::thread::scope(|scope| {
            for (i, alone) in alone.iter().enumerate() {
                let (model, answer) = (&model, &answer);
                scope.spawn(move || assert_eq!(answer(model, i).choices, *alone, "request {i}"));
            }
        });
        // The others may have taken its blocks; after it was alone, they are its own.
        assert_eq!(answer(&model, 3).choices, alone[3]);
        let again = answer(&model, 3);
        assert_eq!(again.choices, alone[3]);
        assert!(again.usage.cached_tokens >= 16, "{:?}", again.usage);
    }
}

/// The memory plan includes a second table of angles, and the buffer for values that are normalised before they are
/// added.
#[test]
fn memory_of_layers_that_differ_is_planned() {
    let folder = with_more_norms();
    let options = LoadOptions { allow_unread_tensors: true, ..LoadOptions::default() };
    let emulator = Emulator::new(Options::default());
    let device = welm_kernels::Device::with_driver(emulator.clone());
    let change = CHANGES[CHANGES.len() - 1].1;
    let model = Model::load_as(folder.path(), &options, Some(device), change).unwrap();
    // The norms and biases are not counted.
    let (used, planned) = (emulator.used_bytes(), model.memory().total_bytes());
    assert!(used >= planned && used - planned < 64 << 10, "{used} bytes in use, {planned} planned");
}

/// The int8 modes of prefill, compared with the CPU. Each mode has an error of its own; the CPU groups weights
/// differently.
#[test]
fn int8_activations_are_as_exact_as_they_say() {
    let folder = Toy::llama(4, 2, 64, 200, 300);
    let options = LoadOptions { dtype: Dtype::Int8, ..LoadOptions::default() };
    let cpu = Model::load(folder.path(), &LoadOptions { device: Device::Cpu, ..options.clone() }).unwrap();
    let prompt = tokens(70, 300, 2);
    let want = cpu.logits(&prompt, 0).unwrap();
    let modes = [(Activations::Int16, 0.06), (Activations::Int8, 0.06), (Activations::Int8Rotated, 0.08)];
    for (activations, most) in modes {
        for device in devices() {
            let model = load(folder.path(), &LoadOptions { activations, ..options.clone() }, &device);
            let error = worst_error(&model.logits(&prompt, 0).unwrap(), &want, 300);
            println!("{activations:?}, {device:?}: {error:.4}");
            assert!(error < most, "{activations:?}, {device:?}: relative error {error}");
        }
    }
}

/// Greedy tokens of the model in the repository, which is int8: along the text that the device writes, the CPU finds
/// each of its tokens the likeliest, or all but. (Two texts may part for good where two tokens are as likely.)
#[test]
fn greedy_tokens_are_those_of_the_cpu() {
    // Fewer tokens on the second device, because the emulator is slow.
    for (device, n) in devices().into_iter().zip([if gpu().is_some() { 64 } else { 32 }, 16]) {
        let options = LoadOptions { activations: Activations::Int16, ..LoadOptions::default() };
        let cpu = Model::load(nano(), &LoadOptions { device: Device::Cpu, ..options.clone() }).unwrap();
        let model = load(&nano(), &options, &device);
        let prompt = cpu.tokenize("床前明月光，", false).unwrap();
        let greedy = GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(n) };
        let answer = model.generate(&prompt, &greedy).unwrap();
        let got: Vec<u32> = answer.choices[0].tokens.iter().map(|t| t.id).collect();
        let text = [&prompt[..], &got[..n - 1]].concat();
        let logits = cpu.logits(&text, prompt.len() - 1).unwrap();
        let less: Vec<f32> = logits
            .chunks(cpu.config().vocab_size)
            .zip(&got)
            .map(|(row, &id)| row.iter().copied().fold(f32::MIN, f32::max) - row[id as usize])
            .collect();
        let equal = less.iter().filter(|&&x| x == 0.0).count();
        let most = less.iter().copied().fold(0.0, f32::max);
        println!("{device:?}: {equal} of {n} tokens are the CPU's, the logits of others at most {most} less");
        assert_eq!(less.len(), n);
        assert!(most < 0.1 && equal * 64 >= n * 60, "{device:?}: {equal} of {n} tokens, {less:?}");
    }
}

/// Request `i` of a mix of prompts that share beginnings, short and long, sampled and greedy.
fn mixed(i: usize) -> (Vec<u32>, GenerateOptions) {
    let mut prompt = tokens(if i.is_multiple_of(3) { 40 } else { 0 }, 97, 5);
    prompt.extend(tokens(1 + (i * 11) % 37, 97, i % 4));
    let options = GenerateOptions {
        max_tokens: 1 + (i * 5) % 23,
        temperature: [0.0, 0.8, 1.2][i % 3],
        n: 1 + (i / 3) % 3,
        logprobs: Some(2),
        seed: Some(i as u64),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    (prompt, options)
}

/// Requests have the same bits alone and together, with the prefix cache, and in a cache so small that sequences are
/// preempted.
fn company(activations: Activations, device: &welm_kernels::Device) {
    const REQUESTS: usize = 16;
    let folder = Toy::llama(2, 1, 64, 100, 97);
    let options = LoadOptions { dtype: Dtype::Int8, activations, ..LoadOptions::default() };
    let bare = LoadOptions { prefix_cache: false, ..options.clone() };
    let model = load(folder.path(), &bare, device);
    let alone: Vec<Vec<Choice>> = (0..REQUESTS)
        .map(|i| {
            let (prompt, options) = mixed(i);
            model.generate(&prompt, &options).unwrap().choices
        })
        .collect();
    let tight = LoadOptions { cache_tokens: Some(160), chunk_tokens: Some(24), ..options.clone() };
    for (options, preempts) in [(options, false), (tight, true)] {
        let model = load(folder.path(), &options, device);
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= REQUESTS {
                            return;
                        }
                        let (prompt, options) = mixed(i);
                        let got = model.generate(&prompt, &options).unwrap().choices;
                        assert_eq!(got, alone[i], "request {i}");
                    }
                });
            }
        });
        let stats = at_rest(&model);
        assert_eq!((stats.open, stats.blocks_used, stats.queue_depth), (0, 0, 0));
        assert!(stats.preemptions > 0 || !preempts, "nothing was preempted");
        // A repeated request finds its prompt in the cache, and has the same bits.
        let (prompt, again) = mixed(3);
        let answer = model.generate(&prompt, &again).unwrap();
        assert_eq!(answer.choices, alone[3]);
        assert!(answer.usage.cached_tokens >= 16, "{:?}", answer.usage);
    }
}

#[test]
fn company_never_changes_a_bit_of_int8() {
    company(Activations::Int8, &devices()[0]);
}

#[test]
fn company_never_changes_a_bit_of_bf16() {
    company(Activations::Auto, devices().last().unwrap());
}

#[test]
fn company_never_changes_a_bit_of_rotated_int8() {
    company(Activations::Int8Rotated, devices().last().unwrap());
}

/// With more than 32 sequences at a time products are split along K. That changes no bit.
#[test]
fn many_at_a_time_never_change_a_bit() {
    if gpu().is_some() {
        return println!("needs the emulator");
    }
    let folder = Toy::llama(2, 1, 64, 100, 97);
    let prompt = tokens(9, 97, 1);
    let request = GenerateOptions {
        max_tokens: 3,
        temperature: 1.0,
        n: 33,
        logprobs: Some(2),
        seed: Some(7),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    for (dtype, activations, kernel) in [
        (Dtype::Int8, Activations::Auto, "gemm_w8a16_split"),
        (Dtype::Int8, Activations::Int8Rotated, "gemm_r8a16_split"),
        (Dtype::Bf16, Activations::Auto, "gemm_w16a16_split"),
    ] {
        let answer = |max_running| {
            let options = LoadOptions { dtype, activations, max_running, ..LoadOptions::default() };
            let (model, emulator) = emulated(folder.path(), &options, (9, 0));
            let choices = model.generate(&prompt, &request).unwrap().choices;
            (choices, emulator.used().kernels.contains(kernel))
        };
        let (few, many) = (answer(17), answer(33));
        assert_eq!(few.0, many.0, "{dtype:?} {activations:?}");
        assert_eq!((few.1, many.1), (false, true), "{kernel} is used for many only");
    }
}

/// Choosing from the largest logits, which the device finds, gives the same tokens as choosing from all.
#[test]
fn the_largest_logits_are_enough() {
    let folder = Toy::llama(2, 1, 64, 100, 97);
    let options = LoadOptions { dtype: Dtype::Int8, ..LoadOptions::default() };
    let model = load(folder.path(), &options, &devices()[0]);
    for i in 0..8 {
        let request = GenerateOptions {
            max_tokens: 12,
            temperature: [0.0, 0.7, 1.5][i % 3],
            top_k: [50, 5, 63, 1][i % 4],
            top_p: [1.0, 0.9][i % 2],
            min_p: [0.0, 0.05][i / 2 % 2],
            seed: Some(i as u64),
            n: 1 + i % 2,
            ignore_eos: true,
            ..GenerateOptions::default()
        };
        let prompt = tokens(9, 97, i);
        let ids = |logprobs| {
            let answer = model.generate(&prompt, &GenerateOptions { logprobs, ..request.clone() }).unwrap();
            let ids = |choice: &Choice| choice.tokens.iter().map(|t| t.id).collect::<Vec<_>>();
            answer.choices.iter().map(ids).collect::<Vec<_>>()
        };
        assert_eq!(ids(None), ids(Some(0)), "request {i}");
    }
}

/// A step's small arrays go to the device in one copy, whatever is in the step.
#[test]
fn a_step_is_one_copy_to_the_device() {
    if gpu().is_some() {
        return println!("needs the emulator");
    }
    let folder = Toy::llama(2, 1, 64, 100, 97);
    let (model, emulator) = emulated(folder.path(), &LoadOptions::default(), (9, 0));
    let counts = || (emulator.uploads(), model.stats().steps);
    let (copies, steps) = counts();
    // A prompt, its sequences, and all rows of a prompt, whose logits are taken 32 at a time.
    let options = GenerateOptions { n: 3, ignore_eos: true, ..GenerateOptions::greedy(7) };
    model.generate(&tokens(20, 97, 1), &options).unwrap();
    model.logits(&tokens(70, 97, 1), 0).unwrap();
    at_rest(&model);
    let (copies, steps) = (emulator.uploads() - copies, model.stats().steps - steps);
    assert_eq!((copies, steps), (8, 8));
}

/// Steps of any number of rows and any length use few recordings, which have some unused rows. They give the same bits
/// as steps that are not recorded.
#[test]
fn few_recordings_serve_all_steps() {
    if gpu().is_some() {
        return println!("needs the emulator");
    }
    let folder = Toy::llama(2, 1, 64, 100, 97);
    for dtype in [Dtype::Bf16, Dtype::Int8] {
        let options = LoadOptions { dtype, max_running: 66, ..LoadOptions::default() };
        let (model, emulator) = emulated(folder.path(), &options, (8, 0));
        let run = |n| {
            let request = GenerateOptions {
                max_tokens: 4,
                temperature: 1.2,
                n,
                logprobs: Some(2),
                seed: Some(7),
                ignore_eos: true,
                ..GenerateOptions::default()
            };
            model.generate(&tokens(5, 97, 1), &request).unwrap().choices
        };
        let bare = run(66);
        assert_eq!(emulator.recordings(), 0, "so many rows are not recorded");
        for (n, recorded) in
            [(1, 1), (3, 2), (9, 3), (4, 3), (6, 4), (41, 5), (16, 5), (7, 5), (2, 6), (48, 6)]
        {
            assert_eq!(run(n), bare[..n], "{n} rows as {dtype:?}");
            assert_eq!(emulator.recordings(), recorded, "{n} rows as {dtype:?}");
        }
        // Past 512 keys there is one more.
        for _ in 0..2 {
            model
                .generate(
                    &tokens(508, 97, 2),
                    &GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(9) },
                )
                .unwrap();
            assert_eq!(emulator.recordings(), 7);
        }
    }
}

/// A driver may have no memory for a graph, or refuse to load code while it records.
#[test]
fn steps_go_on_without_recordings() {
    if gpu().is_some() {
        return println!("needs the emulator");
    }
    let folder = Toy::llama(2, 1, 64, 100, 97);
    let answers = |fault: Option<Fault>| {
        let (model, emulator) = emulated(folder.path(), &LoadOptions::default(), (8, 0));
        fault.into_iter().for_each(|fault| emulator.plan(fault));
        let request = GenerateOptions { ignore_eos: true, logprobs: Some(1), ..GenerateOptions::greedy(6) };
        let answers = [5, 9].map(|n| model.generate(&tokens(n, 97, 1), &request).unwrap().choices);
        (answers, emulator.recordings())
    };
    let (want, recorded) = answers(None);
    assert!(recorded > 0);
    assert_eq!(answers(Some(Fault::Recording)), (want, 0));
}

/// Without the option `chunk_tokens`, chunks are as long as memory allows. No bit depends on that.
#[test]
fn a_step_takes_what_memory_has_room_for() {
    if gpu().is_some() {
        return println!("needs the emulator");
    }
    let folder = Toy::llama(2, 1, 64, 100, 97);
    let options = LoadOptions { device: Device::Cuda(0), prefix_cache: false, ..LoadOptions::default() };
    let chunk = |chunk_tokens| LoadOptions { chunk_tokens: Some(chunk_tokens), ..options.clone() };
    let plan = |options: &LoadOptions| Model::estimate(folder.path(), options).unwrap();
    // As many as a sequence has, which is less than 2,048.
    assert_eq!(plan(&options), plan(&chunk(700)));
    let short = |options| plan(&LoadOptions { context_tokens: Some(16), ..options });
    assert_eq!(short(options.clone()), short(chunk(256)));
    let load = |options: &LoadOptions, memory_bytes| {
        let emulator = Emulator::new(Options { memory_bytes, ..Options::default() });
        Model::load_on_device(folder.path(), options, welm_kernels::Device::with_driver(emulator))
    };
    let prompt = tokens(300, 97, 1);
    let greedy = GenerateOptions { logprobs: Some(2), ignore_eos: true, ..GenerateOptions::greedy(2) };
    // Norms are not counted.
    let room = |chunk_tokens| plan(&chunk(chunk_tokens)).total_bytes() + (64 << 10);
    let mut answers = Vec::new();
    for (memory_bytes, chunk_tokens, steps) in
        [(8 << 30, 700, 2), (room(700) - (128 << 10), 350, 2), (room(350) - (128 << 10), 256, 3)]
    {
        let model = load(&options, memory_bytes).unwrap();
        assert_eq!(model.memory(), plan(&chunk(chunk_tokens)));
        answers.push(model.generate(&prompt, &greedy).unwrap().choices);
        at_rest(&model);
        assert_eq!(model.stats().steps, steps, "{chunk_tokens} tokens");
    }
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]));
    // The default is never below 256, and a given number is not reduced.
    let least = plan(&chunk(256)).total_bytes();
    for (asked, memory_bytes, required) in
        [(&options, least - 1, least), (&chunk(700), room(350), plan(&chunk(700)).total_bytes())]
    {
        let error = load(asked, memory_bytes).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { required: r, .. } if r == required), "{error}");
    }
}

/// A failed launch ends the requests of its step. Later requests get the right answers.
#[test]
fn a_failed_launch_hits_its_own_requests_only() {
    if gpu().is_some() {
        return println!("needs the emulator");
    }
    let folder = Toy::llama(2, 1, 64, 100, 97);
    let options = LoadOptions { dtype: Dtype::Int8, ..LoadOptions::default() };
    let (model, emulator) = emulated(folder.path(), &options, (8, 0));
    let (prompt, request) =
        (tokens(50, 97, 3), GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(9) });
    let want = model.generate(&prompt, &request).unwrap().choices;
    let per_step = emulator.launches() as u32 / 9;
    for after in [0, 1, per_step / 2, per_step - 1, per_step, 3 * per_step + 1] {
        emulator.plan(Fault::Launch(after));
        let several = GenerateOptions { n: 3, ..request.clone() };
        let failed = model.generate(&prompt, &several);
        assert!(matches!(failed, Err(Error::Device(_))), "after {after} launches: {failed:?}");
        assert_eq!(model.generate(&prompt, &request).unwrap().choices, want, "after {after} launches");
        let stats = at_rest(&model);
        assert_eq!(
            (stats.blocks_used, stats.running, stats.queue_depth),
            (0, 0, 0),
            "after {after} launches"
        );
    }
}

/// After the context is lost, every call returns that error, and the process goes on.
#[test]
fn a_lost_context_is_told_to_everybody() {
    if gpu().is_some() {
        return println!("needs the emulator");
    }
    let folder = Toy::llama(2, 1, 64, 100, 97);
    let options = LoadOptions { dtype: Dtype::Bf16, ..LoadOptions::default() };
    let (model, emulator) = emulated(folder.path(), &options, (9, 0));
    let prompt = tokens(20, 97, 3);
    emulator.plan(Fault::ContextLost(30));
    for _ in 0..3 {
        let failed = model.generate(&prompt, &GenerateOptions::greedy(20));
        assert!(matches!(failed, Err(Error::DeviceLost(_))), "{failed:?}");
    }
    drop(model);
    assert_eq!(emulator.used_bytes(), 0);
}

/// The memory plan is made before loading, and says what would fit. Loading takes as much as planned.
#[test]
fn memory_is_planned() {
    if gpu().is_some() {
        return println!("needs the emulator");
    }
    let folder = Toy::neox(2, 64, 256, 300, false, 1.0);
    let modes = [
        (Dtype::Int8, Activations::Int8),
        (Dtype::Int8, Activations::Int8Rotated),
        (Dtype::Bf16, Activations::Auto),
    ];
    for (dtype, activations) in modes {
        let options = LoadOptions {
            dtype,
            activations,
            cache_tokens: Some(1024),
            chunk_tokens: Some(300),
            ..LoadOptions::default()
        };
        let plan =
            Model::estimate(folder.path(), &LoadOptions { device: Device::Cuda(0), ..options.clone() });
        let plan = plan.unwrap();
        let (model, emulator) = emulated(folder.path(), &options, (8, 0));
        assert_eq!(model.memory(), plan);
        // The norms and biases are not counted.
        let (used, planned) = (emulator.used_bytes(), plan.total_bytes());
        assert!(used >= planned && used - planned < 64 << 10, "{used} bytes in use, {planned} planned");
        drop(model);
        assert_eq!(emulator.used_bytes(), 0);

        for (memory_bytes, fits) in [(planned - 1, true), (plan.converted_bytes, false)] {
            let emulator = Emulator::new(Options { memory_bytes, ..Options::default() });
            let device = welm_kernels::Device::with_driver(emulator.clone());
            let error = Model::load_on_device(folder.path(), &options, device.clone()).unwrap_err();
            let Error::OutOfMemory { required, available, fitting_cache_tokens, .. } = error else {
                panic!("{error}");
            };
            // A part stays free.
            assert_eq!((required, available), (planned, memory_bytes - memory_bytes / 64));
            assert_eq!(fitting_cache_tokens.is_some(), fits);
            assert_eq!(emulator.used_bytes(), 0);
            if let Some(tokens) = fitting_cache_tokens {
                assert!(tokens.is_multiple_of(16) && (512..1024).contains(&tokens), "{tokens}");
                let smaller = LoadOptions { cache_tokens: Some(tokens), ..options.clone() };
                Model::load_on_device(folder.path(), &smaller, device).unwrap();
            }
        }
    }
}

/// If the backend has no kernel for something, the error names it. Nothing is converted without being asked for.
#[test]
fn what_cuda_cannot_do_is_refused() {
    if gpu().is_some() {
        return println!("needs the emulator");
    }
    let device = || Emulator::device((8, 0));
    let folder = Toy::neox(2, 64, 256, 300, false, 1.0);
    let refuse = |path: &Path, options: LoadOptions| {
        Model::load_on_device(path, &options, device()).map(drop).unwrap_err().to_string()
    };
    let f32s = refuse(folder.path(), LoadOptions { dtype: Dtype::F32, ..LoadOptions::default() });
    let message =
        "option `dtype`: cuda computes with bf16 or int8 weights, and `embed` is stored as Bf16; got f32";
    assert_eq!(f32s, message);
    for (cache_dtype, name) in [(CacheDtype::F32, "f32"), (CacheDtype::F16, "f16")] {
        let cache = refuse(folder.path(), LoadOptions { cache_dtype, ..LoadOptions::default() });
        assert_eq!(cache, format!("option `cache_dtype`: expected auto or bf16 on cuda, got {name}"));
    }
    let changed = |change: Change| {
        let options = LoadOptions { allow_unread_tensors: true, ..LoadOptions::default() };
        let folder = with_more_norms();
        Model::load_as(folder.path(), &options, Some(device()), change).map(drop).unwrap_err().to_string()
    };
    let turned = changed(|c| c.layers[0].qk_norm = Some(QkNorm::TurnedHead));
    assert!(turned.starts_with("config setting `norm of q and k`: cuda normalises each head"), "{turned}");
    let without = changed(|c| c.layers[1].pre_norms = false);
    assert!(without.starts_with("config setting `norms before each half`: cuda computes"), "{without}");
    // A context that does not reach the scale is fine.
    let scaled = |options: LoadOptions| {
        let change: Change = |c| c.layers[1].query_scale = Some(QueryScale { beta: 0.1, length: 32 });
        Model::load_as(folder.path(), &options, Some(device()), change).map(drop)
    };
    let context = |n| LoadOptions { context_tokens: Some(n), ..LoadOptions::default() };
    scaled(context(32)).unwrap();
    scaled(LoadOptions { cache_tokens: Some(32), ..LoadOptions::default() }).unwrap();
    let long = scaled(context(33)).unwrap_err().to_string();
    assert!(long.contains("`query scale`") && long.contains("context_tokens to at most 32"), "{long}");
    let heads = refuse(&welm_tests::fixture("llama_bf16"), LoadOptions::default());
    assert_eq!(heads, "config setting `head_dim`: cuda attention is written for 64, 80, 96 and 128, not 8");
}

/// A binary with the backend on a machine without a device: `cuda` is an error, `auto` is the CPU.
#[test]
fn without_a_device_there_is_the_cpu() {
    if welm_kernels::Device::open(0).is_ok() {
        return println!("needs a machine without a device");
    }
    let folder = Toy::neox(2, 64, 256, 300, false, 1.0);
    let asked = LoadOptions { device: Device::Cuda(0), ..LoadOptions::default() };
    let rotated = LoadOptions { activations: Activations::Int8Rotated, ..LoadOptions::default() };
    let error = Model::load(folder.path(), &rotated).unwrap_err().to_string();
    assert!(error.starts_with("option `activations`: expected auto, int8 or int16 on the cpu"), "{error}");
    let error = Model::load(folder.path(), &asked).unwrap_err();
    assert!(matches!(&error, Error::Unavailable { what, .. } if what == "cuda device"), "{error}");
    let model = Model::load(folder.path(), &LoadOptions::default()).unwrap();
    assert!(model.backend().starts_with("cpu"), "{}", model.backend());
}
