//! Tests of the engine with many requests at once: other requests, little memory and more threads never change a text.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use welm_core::{
    CancelToken, Choice, Dtype, Error, FinishReason, GenerateOptions, LoadOptions, Model, Prompt, Stats,
};
use welm_tests::{at_rest, exact, fixture, nano, pins};

fn load(options: &LoadOptions) -> Model {
    Model::load(nano(), options).unwrap()
}

/// Request `i` of the mix: greedy and sampled, short and long, one sequence and several, with every option.
fn mixed(i: usize) -> (String, GenerateOptions) {
    let openings = [
        "床前明月光，",
        "春眠不觉晓，",
        "《秋思》\n",
        "甲：你好",
        "Hello, world. ",
        "白日依山尽，黄河入海流。",
    ];
    let mut prompt = openings[i % openings.len()].repeat(1 + (i / 7) % 9);
    if i.is_multiple_of(5) {
        // A long beginning that many share.
        prompt = format!("{}{prompt}", "红豆生南国，春来发几枝。愿君多采撷，此物最相思。\n".repeat(2));
    }
    let options = GenerateOptions {
        max_tokens: 1 + (i * 7) % 40,
        temperature: [0.0, 0.7, 0.85, 1.3][i % 4],
        top_p: [0.95, 1.0, 0.5][i % 3],
        top_k: [50, 0, 5][(i / 3) % 3],
        min_p: [0.0, 0.05][(i / 2) % 2],
        repetition_penalty: [1.0, 1.2][(i / 5) % 2],
        frequency_penalty: [0.0, 0.3][(i / 7) % 2],
        presence_penalty: [0.0, -0.1][(i / 11) % 2],
        logit_bias: if i % 9 == 4 { vec![(3, f32::NEG_INFINITY), (40, 2.0)] } else { Vec::new() },
        n: 1 + (i / 4) % 4,
        echo: i % 6 == 1,
        stop: if i % 4 == 2 { vec!["。\n".into(), "，不".into()] } else { Vec::new() },
        logprobs: [None, Some(0), Some(3)][i % 3],
        seed: Some(1_000 + i as u64),
        ignore_eos: i.is_multiple_of(2),
        ..GenerateOptions::default()
    };
    (prompt, options)
}

const REQUESTS: usize = 160;

/// Every request by itself, on an engine without prefix cache.
fn alone() -> Vec<Vec<Choice>> {
    let model = load(&LoadOptions { prefix_cache: false, threads: Some(1), ..LoadOptions::default() });
    let run = |i| {
        let (prompt, options) = mixed(i);
        model.generate(&prompt, &options).unwrap().choices
    };
    (0..REQUESTS).map(run).collect()
}

/// All requests from 64 threads; every seventh is cancelled while it runs.
fn together(options: &LoadOptions, want: &[Vec<Choice>]) -> Stats {
    let model = load(options);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= REQUESTS {
                        return;
                    }
                    let (prompt, mut options) = mixed(i);
                    if i % 7 != 3 {
                        let got = model.generate(&prompt, &options).unwrap().choices;
                        assert_eq!(got, want[i], "request {i}"); // logprobs included, f32 equal
                        continue;
                    }
                    let cancel = CancelToken::new();
                    options.cancel = Some(cancel.clone());
                    let mut texts = vec![String::new(); options.n];
                    for (k, piece) in model.stream(&prompt, &options).unwrap().enumerate() {
                        let piece = piece.unwrap();
                        texts[piece.index].push_str(&piece.text);
                        if k == i % 5 {
                            cancel.cancel();
                        }
                    }
                    for (text, whole) in texts.iter().zip(&want[i]) {
                        // A cancelled text may end inside a character, which shows as U+FFFD.
                        let text = text.trim_end_matches('\u{FFFD}');
                        assert!(whole.text.starts_with(text), "request {i}: {text} {}", whole.text);
                    }
                }
            });
        }
    });
    let stats = at_rest(&model);
    assert_eq!((stats.open, stats.blocks_used, stats.queue_depth), (0, 0, 0));
    stats
}

#[test]
fn copied_weights_give_the_same_text_and_outlive_their_file() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(nano()).unwrap().map(|entry| entry.unwrap()) {
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let mapped = load(&LoadOptions::default());
    let options = LoadOptions { copy_weights: true, ..LoadOptions::default() };
    let copied = Model::load(folder.path(), &options).unwrap();
    let (before, after) = (mapped.memory(), copied.memory());
    assert!(before.mapped_bytes > 0 && after.mapped_bytes == 0);
    assert_eq!(before.total_bytes(), after.total_bytes());
    // If the file were mapped, this would end the process.
    std::fs::File::create(folder.path().join("model.safetensors")).unwrap();
    let options = GenerateOptions { seed: Some(3), ..GenerateOptions::greedy(40) };
    let text = |model: &Model| model.generate("床前明月光，", &options).unwrap();
    assert_eq!(text(&copied), text(&mapped));
}

/// The pinned texts, which C, C++, Python and the command line must give, too.
#[test]
fn greedy_tokens_of_the_small_model_are_pinned() {
    let model = load(&LoadOptions::default());
    let ids = |choice: &Choice| choice.tokens.iter().map(|token| token.id).collect::<Vec<_>>();
    for pin in pins() {
        let n = pin.ids.len();
        let answer = model.generate(&pin.prompt, &GenerateOptions::greedy(n)).unwrap();
        assert_eq!((ids(&answer.choices[0]), answer.text()), (pin.ids.clone(), pin.text.as_str()));
        let more = GenerateOptions::greedy(n + pin.beyond.len());
        let options = GenerateOptions { ignore_eos: true, ..more };
        let answer = model.generate(&pin.prompt, &options).unwrap();
        assert_eq!(ids(&answer.choices[0]), [pin.ids, pin.beyond].concat(), "{}", pin.prompt);
    }
}

#[test]
fn company_never_changes_a_text() {
    fn shared<T: Clone + Send + Sync>() {}
    shared::<Model>();
    let want = alone();
    for (threads, prefix_cache) in [(1, true), (2, false)] {
        let options = LoadOptions { threads: Some(threads), prefix_cache, ..LoadOptions::default() };
        let stats = together(&options, &want);
        assert_eq!(prefix_cache, stats.prefix_hit_tokens > 0);
    }
    // Little memory and small chunks: sequences are preempted and computed again.
    let tight = LoadOptions {
        cache_tokens: Some(400),
        chunk_tokens: Some(16),
        max_running: 24,
        ..LoadOptions::default()
    };
    let stats = together(&tight, &want);
    println!("{} preemptions, {} prefix hits", stats.preemptions, stats.prefix_hit_tokens);
    assert!(stats.preemptions > 0);
}

#[test]
fn every_instruction_set_gives_the_same_text() {
    let want: Vec<_> = {
        let model = load(&LoadOptions::default());
        (0..6).map(|i| mixed(i * 5)).map(|(p, o)| model.generate(&p, &o).unwrap().choices).collect()
    };
    for isa in ["scalar", "avx2", "avxvnni", "avx512vnni", "neon", "neondot"] {
        let options = LoadOptions { isa: Some(isa.into()), ..LoadOptions::default() };
        let model = match Model::load(nano(), &options) {
            Ok(model) => model,
            Err(Error::Unavailable { .. }) => {
                println!("{isa} is not on this machine");
                continue;
            }
            Err(error) => panic!("{isa}: {error}"),
        };
        assert!(model.backend().ends_with(isa));
        for (i, want) in want.iter().enumerate() {
            let (prompt, options) = mixed(i * 5);
            assert_eq!(&model.generate(&prompt, &options).unwrap().choices, want, "{isa}, request {i}");
        }
    }
}

#[test]
fn float_weights_do_not_notice_company_either() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let model =
            Model::load(fixture("llama_gqa"), &LoadOptions { dtype, ..LoadOptions::default() }).unwrap();
        let prompt = |i: usize| (0..3 + i as u32 * 2).map(|t| (t * 13 + i as u32) % 97).collect::<Vec<_>>();
        let run = |i| {
            let options = GenerateOptions { logprobs: Some(2), seed: Some(5), ..GenerateOptions::default() };
            model.generate(&prompt(i), &options).unwrap().choices
        };
        let want: Vec<_> = (0..16).map(run).collect();
        std::thread::scope(|scope| {
            for (i, want) in want.iter().enumerate() {
                scope.spawn(move || assert_eq!(&run(i), want));
            }
        });
    }
}

#[test]
fn a_thousand_dropped_streams_leave_nothing_behind() {
    let model = load(&LoadOptions { queue_limit: 4_096, ..LoadOptions::default() });
    let (prompt, options) = mixed(3);
    let want = model.generate(&prompt, &options).unwrap().choices;
    for i in 0..1_000 {
        let (prompt, mut options) = mixed(i);
        options.max_tokens = 200;
        let mut stream = model.stream(&prompt, &options).unwrap();
        for _ in 0..i % 6 {
            stream.next();
        }
    }
    let stats = at_rest(&model);
    assert_eq!((stats.open, stats.blocks_used, stats.queue_depth, stats.running), (0, 0, 0, 0));
    assert_eq!(model.generate(&prompt, &options).unwrap().choices, want);
}

#[test]
fn the_queue_is_bounded_and_the_ends_of_a_request_are_told() {
    let model = load(&LoadOptions { max_running: 1, queue_limit: 2, ..LoadOptions::default() });
    let long = GenerateOptions { max_tokens: 480, ignore_eos: true, ..GenerateOptions::default() };
    let mut first = model.stream("春", &long).unwrap();
    first.next().unwrap().unwrap(); // runs, so the queue is empty
    let waiting: Vec<_> = (0..2).map(|_| model.stream("夏", &long).unwrap()).collect();
    assert_eq!(model.stream("秋", &long).map(drop), Err(Error::QueueFull { waiting: 2, limit: 2 }));
    drop(waiting);
    first.cancel();
    let last = first.map(Result::unwrap).last().unwrap();
    assert_eq!(last.finish.unwrap().reason, FinishReason::Cancelled);

    let reason = |options: GenerateOptions| {
        model.generate("春", &options).unwrap().choices.iter().map(|c| c.finish_reason).collect::<Vec<_>>()
    };
    let late = GenerateOptions { deadline: Some(Duration::ZERO), n: 2, ..long.clone() };
    assert_eq!(reason(late), [FinishReason::Deadline; 2]);
    let soon = GenerateOptions { deadline: Some(Duration::from_millis(20)), ..long.clone() };
    assert_eq!(reason(soon), [FinishReason::Deadline]);
    let cancel = CancelToken::new();
    cancel.cancel();
    assert_eq!(reason(GenerateOptions { cancel: Some(cancel), ..long }), [FinishReason::Cancelled]);
    assert_eq!(
        reason(GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(5) }),
        [FinishReason::Length]
    );
    assert_eq!(at_rest(&model).blocks_used, 0);
}

#[test]
fn echo_logprobs_score_and_logits_agree() {
    let model = load(&exact());
    let text = "床前明月光，疑是地上霜。";
    let options =
        GenerateOptions { echo: true, logprobs: Some(0), max_tokens: 0, ..GenerateOptions::default() };
    let echoed = model.generate(text, &options).unwrap();
    assert_eq!(echoed.text(), text);
    let tokens = &echoed.choices[0].tokens;
    assert_eq!(tokens.iter().map(|t| t.id).collect::<Vec<_>>(), model.tokenize(text, false).unwrap());
    assert_eq!(tokens[0].logprob, None);
    let logits = model.logits(text, 0).unwrap();
    let log_probs = welm_tests::log_softmax(&logits, model.config().vocab_size);
    for (i, token) in tokens.iter().enumerate().skip(1) {
        let want = log_probs[(i - 1) * model.config().vocab_size + token.id as usize];
        assert!((f64::from(token.logprob.unwrap()) - want).abs() < 1e-4);
    }
    // A prompt of one token, which has no token before it: nothing is computed, but there is an answer.
    let one = model.generate("，", &options).unwrap();
    assert_eq!((one.text(), one.choices[0].tokens.len()), ("，", 1));
    // Thirty continuations: more than one window, and equal ones score equally, cached or not.
    let mut continuations = vec!["疑是地上霜。"; 30];
    continuations[7] = "";
    let scores = model.score("床前明月光，", &continuations).unwrap();
    let sum: f64 = scores[0].tokens.iter().map(|t| f64::from(t.logprob.unwrap())).sum();
    assert_eq!(scores[0].logprob, sum);
    assert_eq!(scores[0], scores[29]);
    let given = tokens.len() - scores[0].tokens.len();
    assert_eq!(scores[0].tokens[..], tokens[given..]);
    assert_eq!((scores[7].tokens.len(), scores[7].logprob), (0, 0.0));
}

#[test]
fn options_and_limits() {
    let model = load(&LoadOptions { cache_tokens: Some(256), ..LoadOptions::default() });
    let greedy = GenerateOptions::greedy(4);
    assert!(matches!(
        model.generate("春", &GenerateOptions::greedy(300)),
        Err(Error::TooLong { limit: 256, what: "KV cache", .. })
    ));
    let full = load(&LoadOptions::default());
    assert!(matches!(
        full.generate("春", &GenerateOptions::greedy(512)),
        Err(Error::TooLong { limit: 512, what: "context", .. })
    ));
    assert!(matches!(model.generate(&vec![9_999_999u32], &greedy), Err(Error::InvalidOption { .. })));
    assert!(model.generate("", &greedy).is_ok(), "the end token starts an empty text");
    let bare = Model::load(fixture("llama_gqa"), &exact()).unwrap();
    assert_eq!(bare.generate(Prompt::Tokens(&[]), &greedy), Err(Error::EmptyPrompt));
    assert!(matches!(bare.generate("text", &greedy), Err(Error::Tokenizer(_))));

    // A special token in a prompt is text unless asked for.
    let written = "<|endoftext|>";
    assert_eq!(model.tokenize(written, true).unwrap().len(), 1);
    assert!(model.tokenize(written, false).unwrap().len() > 1);
    assert_eq!(model.detokenize(&model.tokenize(written, false).unwrap()), written);

    let end = model.token_id(written).unwrap();
    assert!(model.is_special(end) && model.token_bytes(end).is_empty() && !model.is_special(500));

    // A sequence depends on its own index, not on how many there are. The reported seed gives the same text again.
    let three = GenerateOptions { n: 3, max_tokens: 20, logprobs: Some(1), ..GenerateOptions::default() };
    let drawn = model.generate("春", &three).unwrap();
    let five = GenerateOptions { n: 5, seed: Some(drawn.seed), ..three.clone() };
    assert_eq!(model.generate("春", &five).unwrap().choices[..3], drawn.choices[..]);
    assert_ne!(drawn.choices[0].tokens, drawn.choices[1].tokens);
    assert_ne!(model.generate("春", &three).unwrap().seed, drawn.seed);
}

#[test]
fn a_long_prompt_delays_others_by_one_chunk_at_most() {
    let model = load(&LoadOptions { chunk_tokens: Some(16), ..LoadOptions::default() });
    let endless = GenerateOptions { max_tokens: 500, ignore_eos: true, ..GenerateOptions::default() };
    let mut running = model.stream("春", &endless).unwrap();
    running.next().unwrap().unwrap();
    let prompt: Vec<u32> = (0..480u32).map(|i| 300 + (i * 7) % 5_000).collect();
    let before = model.stats();
    let mut long = model.stream(&prompt, &GenerateOptions::greedy(1)).unwrap();
    long.next().unwrap().unwrap();
    let after = model.stats();
    let (steps, tokens) = (after.steps - before.steps, after.completion_tokens - before.completion_tokens);
    assert!(steps >= 30, "480 tokens in chunks of 16 take 30 steps, not {steps}");
    // One token of the running stream in each of these steps, and the long prompt's own.
    assert!(tokens >= steps, "{tokens} tokens in {steps} steps");
}

/// Runs in a process of its own, in which nothing else computes.
#[test]
#[cfg(target_os = "linux")]
fn without_a_request_no_time_is_used() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "idle_for_a_second", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "a part of `without_a_request_no_time_is_used`"]
fn idle_for_a_second() {
    let model = load(&LoadOptions { threads: Some(4), ..LoadOptions::default() });
    model.generate("床前明月光，", &GenerateOptions::greedy(16)).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    };
    let used = || {
        let before = ticks();
        std::thread::sleep(Duration::from_secs(1));
        ticks() - before
    };
    // On a busy machine a thread may be on its way to sleep for longer than that.
    assert!((0..5).any(|_| used() == 0), "ticks of 10 ms in each of five seconds without a request");
    drop(model);
}

/// A program may have set how its thread rounds, and that an invalid operation ends it.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_host_may_round_and_trap() {
    const USUAL: u32 = 0x1f80;
    // SAFETY: values of this register.
    let set = |value: u32| unsafe {
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack, readonly));
    };
    let options = LoadOptions { threads: Some(2), ..LoadOptions::default() };
    let logits =
        || Model::load(nano(), &options).and_then(|model| model.logits("床前明月光，疑是地上霜。", 0));
    let usual = logits().unwrap();
    for (rounds, traps) in [(0x4000, 0), (0x6000, 0), (0x8040, 0), (0, 0x0e80)] {
        set((USUAL | rounds) & !traps);
        let got = logits();
        set(USUAL);
        assert!(got.unwrap() == usual, "{rounds:x}, {traps:x}");
    }
}

#[test]
fn memory_is_estimated_refused_and_given_back() {
    let options = LoadOptions { cache_tokens: Some(1_024), ..LoadOptions::default() };
    let estimate = Model::estimate(nano(), &options).unwrap();
    let file = std::fs::metadata(nano().join("model.safetensors")).unwrap().len();
    // 20,480 values of norms and biases.
    assert!(estimate.converted_bytes == 4 * 20_480 && estimate.mapped_bytes <= file);
    assert!(estimate.mapped_bytes as f64 > 0.95 * file as f64, "{estimate:?} of {file}");
    let limited = LoadOptions { memory_limit: Some(estimate.total_bytes() - 1), ..options.clone() };
    assert!(matches!(Model::load(nano(), &limited), Err(Error::OutOfMemory { .. })));
    // What was asked for is refused, whatever the limit, and what is said to fit does. (Blocks take memory beside the cache.)
    let load = |memory_limit, cache_tokens| {
        let (memory_limit, cache_tokens) = (Some(memory_limit), Some(cache_tokens));
        Model::load(nano(), &LoadOptions { memory_limit, cache_tokens, ..LoadOptions::default() }).map(drop)
    };
    assert!(matches!(load(u64::MAX, 1 << 32), Err(Error::OutOfMemory { .. })));
    let Err(Error::OutOfMemory { fitting_cache_tokens: Some(fits), .. }) = load(20_000_000, 4_000_000) else {
        panic!("a cache that fits into 20 MB")
    };
    assert_eq!(load(20_000_000, fits), Ok(()));
    assert!(matches!(load(20_000_000, fits + 16), Err(Error::OutOfMemory { .. })));
    let stopped = LoadOptions { progress: Some(std::sync::Arc::new(|_| false)), ..options.clone() };
    assert_eq!(Model::load(nano(), &stopped).map(drop), Err(Error::LoadCancelled));

    let threads = || {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let names = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
        names.filter(|name| name.starts_with("welm-")).count()
    };
    let count = threads();
    let model = Model::load(nano(), &LoadOptions { threads: Some(3), ..options }).unwrap();
    assert_eq!(model.memory(), estimate_with_threads(&estimate, &model));
    let stream = model.stream("春", &GenerateOptions::greedy(50)).unwrap();
    let cancel = stream.canceller();
    drop(model);
    assert_eq!(
        stream.map(Result::unwrap).filter(|p| p.finish.is_some()).count(),
        1,
        "a stream keeps it alive"
    );
    if cfg!(target_os = "linux") && std::env::var_os("NEXTEST").is_some() {
        assert_eq!(threads(), count, "the last handle ends the threads"); // nextest: a process of its own
    }
    cancel(); // it kept nothing alive, and finds nothing to end
}

/// Scratch grows with the threads; all else must be as estimated.
fn estimate_with_threads(estimate: &welm_core::Estimate, model: &Model) -> welm_core::Estimate {
    let mut estimate = *estimate;
    estimate.scratch_bytes = model.memory().scratch_bytes;
    estimate
}
