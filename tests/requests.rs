//! Tests of requests: every pair and triple of options, ends by tokens, biases that leave few tokens, logits that are
//! not finite, salts, scores, chats.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use safetensors::SafeTensors;
use welm_core::{
    CacheDtype, CancelToken, ChatRequest, Choice, Error, FinishReason, GenerateOptions, Generation,
    LoadOptions, Message, Model, Prompt, Score, ScoreOptions,
};
use welm_tests::{at_rest, exact, fixture, log_softmax, nano};

/// On one thread: threads that wait for work take it from the tests beside this one.
fn load(options: &LoadOptions) -> Model {
    Model::load(nano(), &LoadOptions { threads: Some(1), ..options.clone() }).unwrap()
}

fn ids(choice: &Choice) -> Vec<u32> {
    choice.tokens.iter().map(|token| token.id).collect()
}

/// Checks the counters of an idle engine, which must be right as soon as the answer is there.
fn assert_at_rest(model: &Model, what: &str) {
    let s = model.stats();
    assert_eq!((s.open, s.blocks_used, s.queue_depth, s.running), (0, 0, 0, 0), "{what}");
}

/// Longer than a block of the cache. Answers need one block more than it does.
const PROMPT: [u32; 46] = {
    let mut ids = [0; 46];
    let mut i = 0;
    while i < 46 {
        ids[i] = 300 + (i as u32 * 131) % 5_000;
        i += 1;
    }
    ids
};

type Setting = (&'static str, fn(&mut GenerateOptions));

/// Options, each with values other than its default. Tokens 41 and 42 are made likely, so that texts end by them.
const SETTINGS: &[Setting] = &[
    ("n", |o| o.n = 3),
    ("echo", |o| o.echo = true),
    ("logprobs", |o| o.logprobs = Some(0)),
    ("logprobs", |o| o.logprobs = Some(2)),
    ("max_tokens", |o| o.max_tokens = 0),
    ("max_tokens", |o| o.max_tokens = 1),
    ("temperature", |o| o.temperature = 0.0),
    ("top_k", |o| o.top_k = 0),
    ("top_k", |o| o.top_k = 2),
    ("top_p", |o| o.top_p = 1.0),
    ("min_p", |o| o.min_p = 0.1),
    ("repetition_penalty", |o| o.repetition_penalty = 1.3),
    ("frequency_penalty", |o| o.frequency_penalty = 1.0),
    ("logit_bias", |o| o.logit_bias = vec![(41, 100.0), (42, 99.0)]),
    ("logit_bias", |o| o.logit_bias = vec![(1, 100.0)]),
    ("stop", |o| o.stop = vec!["<|endoftext|>".into(), "，".into()]),
    ("stop_token_ids", |o| o.stop_token_ids = vec![41, 7]),
    ("ignore_eos", |o| o.ignore_eos = true),
    ("deadline", |o| o.deadline = Some(Duration::ZERO)),
    ("cancel", |o| {
        let token = CancelToken::new();
        token.cancel();
        o.cancel = Some(token);
    }),
    ("cache_salt", |o| o.cache_salt = Some("tenant".into())),
];

/// Every single setting, pair and triple of different options, with a prompt of one token and a long one.
fn cases() -> Vec<(String, Vec<u32>, GenerateOptions)> {
    let mut sets: Vec<Vec<Setting>> = vec![Vec::new()];
    for (a, &first) in SETTINGS.iter().enumerate() {
        sets.push(vec![first]);
        for (b, &second) in SETTINGS.iter().enumerate().skip(a + 1).filter(|(_, s)| s.0 != first.0) {
            sets.push(vec![first, second]);
            let third = SETTINGS.iter().skip(b + 1).filter(|s| s.0 != first.0 && s.0 != second.0);
            sets.extend(third.map(|&third| vec![first, second, third]));
        }
    }
    let mut cases = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        let mut options = GenerateOptions { max_tokens: 5, seed: Some(9), ..GenerateOptions::default() };
        set.iter().for_each(|(_, apply)| apply(&mut options));
        let names: Vec<&str> = set.iter().map(|s| s.0).collect();
        let prompt = if i.is_multiple_of(3) { PROMPT[..1].to_vec() } else { PROMPT.to_vec() };
        cases.push((format!("case {i}, {names:?}"), prompt, options));
    }
    cases
}

/// Checks what must be true of every answer.
fn assert_right(model: &Model, prompt: &[u32], o: &GenerateOptions, got: &Generation, what: &str) {
    assert_eq!(got.choices.len(), o.n, "{what}");
    assert_eq!(got.usage.prompt_tokens, prompt.len(), "{what}");
    assert!(got.usage.cached_tokens < prompt.len(), "{what}");
    let echoed = if o.echo { prompt.len() } else { 0 };
    let interrupted = o.cancel.is_some() || o.deadline.is_some();
    let mut completion_tokens = 0;
    for choice in &got.choices {
        let all = ids(choice);
        if interrupted {
            // Nothing is computed, but the parts that need no computing are there.
            let computed = o.max_tokens > 0 || (o.echo && o.logprobs.is_some() && prompt.len() > 1);
            let want = match (computed, &o.cancel) {
                (false, _) => FinishReason::Length,
                (true, Some(_)) => FinishReason::Cancelled,
                (true, None) => FinishReason::Deadline,
            };
            assert_eq!((choice.finish_reason, got.usage.completion_tokens), (want, 0), "{what}");
            continue;
        }
        assert_eq!(all[..echoed], prompt[..echoed], "{what}");
        let generated = &all[echoed..];
        completion_tokens += generated.len();
        let given = if o.echo { model.detokenize(prompt) } else { String::new() };
        let text = choice.text.strip_prefix(&given).expect(what);
        for (at, token) in choice.tokens.iter().enumerate() {
            let nothing_before = o.echo && at == 0;
            let has = o.logprobs.is_some() && !nothing_before;
            assert_eq!(token.logprob.is_some(), has, "{what}: token {at}");
            assert_eq!(token.alternatives.len(), if has { o.logprobs.unwrap() } else { 0 }, "{what}");
        }
        assert!(generated.len() <= o.max_tokens, "{what}");
        assert!(o.stop.iter().all(|stop| !text.contains(stop.as_str())), "{what}: {text}");
        let ends = |id: &u32| o.stop_token_ids.contains(id) || (!o.ignore_eos && *id == 1);
        assert!(!generated.iter().any(ends), "{what}: {generated:?}");
        let whole = model.detokenize(generated);
        match (choice.finish_reason, choice.end_token) {
            (FinishReason::Length, None) => {
                assert_eq!((generated.len(), text), (o.max_tokens, &*whole), "{what}");
            }
            (FinishReason::EndOfText, Some(1)) => assert!(!o.ignore_eos && text == whole, "{what}"),
            (FinishReason::Stop, None) => {
                let by_token = generated.last() == Some(&1);
                assert!(!o.stop.is_empty() && (by_token || text.len() < whole.len()), "{what}");
            }
            (FinishReason::Stop, Some(id)) => {
                let spelled = id == 1 && !o.stop.is_empty();
                assert!((o.stop_token_ids.contains(&id) || spelled) && text == whole, "{what}");
            }
            other => panic!("{what}: {other:?}"),
        }
    }
    if !interrupted {
        assert_eq!(got.usage.completion_tokens, completion_tokens, "{what}");
    }
}

#[test]
fn all_pairs_and_triples_of_options_alone_in_pieces_and_in_company() {
    let model = load(&LoadOptions::default());
    let cases = cases();
    let mut reasons = std::collections::HashMap::<_, usize>::new();
    let mut answers = Vec::new();
    for (what, prompt, options) in &cases {
        let whole = model.generate(prompt, options).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_at_rest(&model, what);
        assert_right(&model, prompt, options, &whole, what);
        let stream = model.stream(prompt, options).unwrap();
        let mut collected = stream.generation();
        stream.for_each(|piece| collected.push(piece.unwrap()));
        assert_at_rest(&model, what);
        // Only what was found in the cache depends on what was there before.
        assert_eq!((&collected.choices, collected.seed), (&whole.choices, whole.seed), "{what}");
        assert_eq!(collected.usage.completion_tokens, whole.usage.completion_tokens, "{what}");
        whole.choices.iter().for_each(|choice| *reasons.entry(choice.finish_reason).or_default() += 1);
        answers.push(whole);
    }
    println!("{} cases, {reasons:?}", cases.len());
    assert!(reasons.len() == 5 && reasons.values().all(|&n| n > 50), "{reasons:?}");
    // The first sequence is the same as if it were the only one.
    for ((what, prompt, options), whole) in cases.iter().zip(&answers).filter(|(case, _)| case.2.n > 1) {
        let one = model.generate(prompt, &GenerateOptions { n: 1, ..options.clone() }).unwrap();
        assert_eq!(one.choices[0], whole.choices[0], "{what}");
    }

    // A small cache, so that sequences are preempted.
    let small =
        load(&LoadOptions { cache_tokens: Some(112), context_tokens: Some(64), ..LoadOptions::default() });
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((what, prompt, options)) = cases.get(at) else { return };
                    let got = small.generate(prompt, options).unwrap();
                    assert_eq!(got.choices, answers[at].choices, "{what}");
                    assert_eq!(got.usage.completion_tokens, answers[at].usage.completion_tokens, "{what}");
                }
            });
        }
    });
    let stats = at_rest(&small);
    assert_eq!((stats.open, stats.blocks_used, stats.queue_depth, stats.running), (0, 0, 0, 0));
    println!("{} preemptions", stats.preemptions);
    assert!(stats.preemptions > 0);
}

/// Windows of 8 or 12 tokens, in all layers or in some: what is found in the cache, computed again after a preemption or
/// shared by siblings is what a fresh request computes.
#[test]
fn layers_with_windows_alone_and_in_company() {
    for name in ["mistral", "ministral", "gemma3", "qwen2", "phi3"] {
        let load = |cache_tokens, prefix_cache| {
            let options = LoadOptions {
                cache_tokens: Some(cache_tokens),
                context_tokens: Some(96),
                prefix_cache,
                threads: Some(1),
                ..exact()
            };
            Model::load(fixture(name), &options).unwrap()
        };
        let (fresh, small) = (load(1024, false), load(160, true));
        let prompt = |i: usize| -> Vec<u32> {
            (0..20 + 7 * (i % 5))
                .map(|at| if at < 17 { at } else { at * (i + 3) })
                .map(|x| 3 + x as u32 % 90)
                .collect()
        };
        let options = |i: usize| GenerateOptions {
            n: 1 + i % 3,
            max_tokens: 8 + i,
            ignore_eos: true,
            seed: Some(i as u64),
            logprobs: i.is_multiple_of(2).then_some(2),
            ..GenerateOptions::default()
        };
        let score = |model: &Model, i: usize| {
            let pair = (Prompt::Tokens(&prompt(i)), Prompt::Tokens(&prompt(i + 1)));
            model.score_pairs(&[pair], &ScoreOptions::default()).unwrap()
        };
        let wanted: Vec<_> =
            (0..24).map(|i| (fresh.generate(&prompt(i), &options(i)).unwrap(), score(&fresh, i))).collect();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (small, wanted, options, prompt, score) = (&small, &wanted, &options, &prompt, &score);
                scope.spawn(move || {
                    for i in (thread..24).step_by(8).chain(thread % 3..4) {
                        let got = small.generate(&prompt(i), &options(i)).unwrap();
                        assert_eq!(got.choices, wanted[i].0.choices, "{name}: {i}");
                        assert_eq!(score(small, i), wanted[i].1, "{name}: {i}");
                    }
                });
            }
        });
        let stats = at_rest(&small);
        assert!(stats.preemptions > 0 && stats.prefix_hit_tokens > 0, "{name}: {stats:?}");
    }
}

#[test]
fn siblings_end_with_a_sequence_that_ends_before_they_begin() {
    let model = load(&LoadOptions::default());
    for n in 1..4 {
        let options =
            GenerateOptions { n, echo: true, logprobs: Some(1), max_tokens: 0, ..GenerateOptions::default() };
        let got = model.generate(&PROMPT[..20], &options).unwrap();
        assert_at_rest(&model, "n");
        assert!(got.choices.iter().all(|choice| *choice == got.choices[0] && choice.tokens.len() == 20));
        assert_eq!((got.choices.len(), got.usage.completion_tokens), (n, 0));
        let finishes =
            model.stream(&PROMPT[..20], &options).unwrap().filter(|p| p.as_ref().unwrap().finish.is_some());
        assert_eq!(finishes.count(), n);
    }
}

/// Bias that makes these tokens come one after the other, each once, with greedy decoding.
fn in_order(tokens: &[u32]) -> GenerateOptions {
    let logit_bias = tokens.iter().zip(0..).map(|(&id, at)| (id, 100.0 - 20.0 * at as f32)).collect();
    GenerateOptions { logit_bias, frequency_penalty: 100.0, ..GenerateOptions::greedy(tokens.len()) }
}

#[test]
fn stop_strings_with_special_tokens_end_at_them() {
    let model = load(&LoadOptions::default());
    let (end, pad) = (model.token_id("<|endoftext|>").unwrap(), model.token_id("<pad>").unwrap());
    let letter = |text: &str| {
        let ids = model.tokenize(text, false).unwrap();
        assert_eq!(ids.len(), 1, "{text}");
        ids[0]
    };
    let (moon, spring) = (letter("月"), letter("春"));
    let run = |tokens: &[u32], stop: &[&str], ignore_eos: bool| {
        let stop = stop.iter().map(|s| s.to_string()).collect();
        let options = GenerateOptions { stop, ignore_eos, ..in_order(tokens) };
        let got = model.generate("床", &options).unwrap().choices.remove(0);
        let mut shown = String::new();
        for piece in model.stream("床", &options).unwrap() {
            shown.push_str(&piece.unwrap().text);
        }
        assert_eq!(shown, got.text);
        (got.text.clone(), got.finish_reason, ids(&got).len(), got.end_token)
    };
    let is = |text: &str, reason, tokens, end_token| (text.to_string(), reason, tokens, end_token);
    use FinishReason::{EndOfText, Length, Stop};
    let tokens = [moon, pad, spring];
    assert_eq!(run(&tokens, &[], true), is("月春", Length, 3, None));
    assert_eq!(run(&tokens, &["<pad>"], true), is("月", Stop, 2, None));
    assert_eq!(run(&tokens, &["月<pad>"], true), is("", Stop, 2, None));
    assert_eq!(run(&tokens, &["<pad>春"], true), is("月", Stop, 3, None));
    assert_eq!(run(&tokens, &["月<pad>春"], true), is("", Stop, 3, None));
    assert_eq!(run(&tokens, &["月春"], true), is("", Stop, 3, None));
    assert_eq!(run(&tokens, &["pad>", "<pad", "春<pad>"], true), is("月春", Length, 3, None));
    // The model's own end token, too: ignored, not ignored, and after text.
    let tokens = [moon, end, spring];
    assert_eq!(run(&tokens, &["<|endoftext|>"], true), is("月", Stop, 2, None));
    assert_eq!(run(&tokens, &["月<|endoftext|>"], false), is("", Stop, 1, Some(end)));
    assert_eq!(run(&tokens, &["<|endoftext|>春"], false), is("月", EndOfText, 1, Some(end)));
    // A spelling that comes as text is text.
    let spelled = model.tokenize("<pad>", false).unwrap();
    assert!(spelled.len() == 5 && !spelled.contains(&pad), "{spelled:?}");
    assert_eq!(run(&spelled, &[], true), is("<pad>", Length, 5, None));
    assert_eq!(run(&spelled, &["<pad>"], true), is("", Stop, 5, None));
}

#[test]
fn stop_tokens_end_a_sequence_as_end_tokens_do() {
    let model = load(&LoadOptions::default());
    let end = model.config().eos_token_ids[0];
    let base = in_order(&[400, 401, 402, 403]);
    let run = |stop_token_ids: Vec<u32>, ignore_eos, logit_bias: Vec<(u32, f32)>| {
        let logit_bias = [base.logit_bias.clone(), logit_bias].concat();
        let options = GenerateOptions { stop_token_ids, ignore_eos, logit_bias, ..base.clone() };
        let got = model.generate("床", &options).unwrap();
        let choice = &got.choices[0];
        assert_eq!(got.usage.completion_tokens, choice.tokens.len());
        assert_eq!(choice.text, model.detokenize(&ids(choice)));
        (ids(choice), choice.finish_reason, choice.end_token)
    };
    use FinishReason::{EndOfText, Length, Stop};
    let all = vec![400, 401, 402, 403];
    assert_eq!(run(vec![], true, vec![]), (all.clone(), Length, None));
    for ignore_eos in [false, true] {
        assert_eq!(run(vec![9, 402], ignore_eos, vec![]), (all[..2].to_vec(), Stop, Some(402)));
        assert_eq!(run(vec![400], ignore_eos, vec![]), (vec![], Stop, Some(400)));
    }
    // Its text is not part of the generated text, so it does not complete a stop string.
    let text = |ids: &[u32]| model.detokenize(ids);
    let stop = vec![text(&[401, 402]), text(&[402])];
    let both = GenerateOptions { stop, stop_token_ids: vec![402], ..base.clone() };
    let got = model.generate("床", &both).unwrap();
    assert_eq!((got.text(), got.choices[0].end_token), (&*text(&[400, 401]), Some(402)));
    // An end token that is asked for, too.
    let first = vec![(end, 100.0), (400, -30.0)];
    assert_eq!(run(vec![end], true, first.clone()), (vec![], Stop, Some(end)));
    assert_eq!(run(vec![end], false, first), (vec![], EndOfText, Some(end)));

    let wrong = |options: GenerateOptions| model.generate("床", &options).unwrap_err().to_string();
    let vocab = model.config().vocab_size;
    let beyond = GenerateOptions { stop_token_ids: vec![3, vocab as u32], ..GenerateOptions::default() };
    assert_eq!(wrong(beyond), format!("option `stop_token_ids`: expected tokens below {vocab}, got {vocab}"));
    // A model without a tokenizer has no text that could match.
    let bare = Model::load(fixture("llama_gqa"), &exact()).unwrap();
    let options = GenerateOptions { stop: vec!["x".into()], ..GenerateOptions::greedy(2) };
    let refused = bare.generate(&[1u32][..], &options);
    assert!(matches!(refused, Err(Error::InvalidOption { option: "stop", .. })), "{refused:?}");
    let options = GenerateOptions { stop_token_ids: (0..97).collect(), ..in_order(&[5]) };
    assert!(matches!(
        bare.generate(&[1u32][..], &GenerateOptions { stop_token_ids: vec![5], ..options.clone() }),
        Ok(Generation { choices, .. }) if choices[0].end_token == Some(5) && choices[0].tokens.is_empty()
    ));
    assert_eq!(bare.generate(&[1u32][..], &options).unwrap().choices[0].end_token, Some(5));
}

/// Stop tokens, several sequences, salts, sampling: a preempted sequence goes on as if it had not been preempted.
#[test]
fn stop_tokens_salts_and_siblings_do_not_notice_preemption() {
    let request = |i: usize| {
        let options = GenerateOptions {
            n: 1 + i % 4,
            max_tokens: 60,
            temperature: [0.0, 0.9, 1.5][i % 3],
            top_k: [50, 0][i % 2],
            stop_token_ids: [1183, 1140, 1310, 7037][..i % 5].to_vec(), // frequent ones
            stop: if i % 3 == 1 { vec!["。\n".into(), "<pad>".into()] } else { Vec::new() },
            cache_salt: [None, Some("a"), Some("b")][i % 3].map(String::from),
            logprobs: [None, Some(1)][(i / 2) % 2],
            ignore_eos: i.is_multiple_of(2),
            seed: Some(i as u64),
            ..GenerateOptions::default()
        };
        (PROMPT[..20 + i % 15].to_vec(), options)
    };
    let alone = load(&LoadOptions { prefix_cache: false, ..LoadOptions::default() });
    let want: Vec<_> = (0..60).map(request).map(|(p, o)| alone.generate(&p, &o).unwrap().choices).collect();
    let by_token =
        want.iter().flatten().filter(|c| c.finish_reason == FinishReason::Stop && c.end_token.is_some());
    assert!(by_token.count() > 3);
    let model =
        load(&LoadOptions { cache_tokens: Some(320), context_tokens: Some(128), ..LoadOptions::default() });
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(want) = want.get(i) else { return };
                    let (prompt, options) = request(i);
                    assert_eq!(&model.generate(&prompt, &options).unwrap().choices, want, "request {i}");
                }
            });
        }
    });
    let stats = at_rest(&model);
    assert!(stats.preemptions > 0);
    assert_eq!((stats.open, stats.blocks_used, stats.queue_depth), (0, 0, 0));
}

#[test]
fn a_request_that_follows_a_cancelled_one_is_what_it_would_be() {
    let model = load(&LoadOptions { cache_tokens: Some(512), ..LoadOptions::default() });
    let options = GenerateOptions { n: 2, logprobs: Some(1), seed: Some(4), ..GenerateOptions::default() };
    let want = model.generate(&PROMPT[..], &options).unwrap().choices;
    for i in 0..40 {
        let long = GenerateOptions {
            n: 1 + i % 3,
            max_tokens: 200,
            ignore_eos: true,
            echo: i % 2 == 1,
            logprobs: [None, Some(0)][(i / 2) % 2],
            ..GenerateOptions::default()
        };
        let mut stream = model.stream(&PROMPT[..], &long).unwrap();
        (0..i % 5).for_each(|_| drop(stream.next()));
        stream.cancel();
        let rest: Vec<_> = stream.by_ref().map(Result::unwrap).collect();
        let ends = rest.iter().filter_map(|piece| piece.finish).collect::<Vec<_>>();
        assert!(ends.len() == long.n && ends.iter().all(|f| f.reason == FinishReason::Cancelled), "{ends:?}");
        assert_at_rest(&model, "after a cancelled request");
        assert_eq!(model.generate(&PROMPT[..], &options).unwrap().choices, want, "after cancelling {i}");
    }
}

#[test]
fn where_bias_rules_all_tokens_out_that_is_an_error() {
    let model = load(&LoadOptions::default());
    let vocab = model.config().vocab_size as u32;
    let ruled_out = |from: u32| (from..vocab).map(|id| (id, f32::NEG_INFINITY)).collect::<Vec<_>>();
    for options in
        [GenerateOptions::greedy(3), GenerateOptions { n: 3, ignore_eos: true, ..Default::default() }]
    {
        let all = GenerateOptions { logit_bias: ruled_out(0), ..options.clone() };
        let error = model.generate("床", &all).unwrap_err();
        let want = format!("expected to leave a token to choose, got -inf for all {vocab}");
        assert_eq!(error.to_string(), format!("option `logit_bias`: {want}"));
        // Twice the same token is not two tokens.
        let twice = [ruled_out(1), ruled_out(vocab - 1)].concat();
        let one = GenerateOptions { logit_bias: twice, ..options };
        let got = model.generate("床", &one).unwrap();
        assert!(got.choices.iter().all(|c| !c.tokens.is_empty() && c.tokens.iter().all(|t| t.id == 0)));
    }
    // Only the end token is left.
    let mut bias = ruled_out(0);
    bias.remove(1);
    let got = model.generate("床", &GenerateOptions { logit_bias: bias, ..Default::default() }).unwrap();
    assert_eq!((got.choices[0].finish_reason, got.choices[0].end_token), (FinishReason::EndOfText, Some(1)));
    assert_at_rest(&model, "after errors");
}

#[test]
fn more_sequences_than_the_queue_ever_takes_are_an_invalid_option() {
    let model = load(&LoadOptions { queue_limit: 2, ..LoadOptions::default() });
    let run = |n| model.generate("床", &GenerateOptions { n, ..GenerateOptions::greedy(1) });
    assert_eq!(run(2).unwrap().choices.len(), 2);
    let error = run(3).unwrap_err().to_string();
    assert_eq!(error, "option `n`: expected at most 2, the queue_limit of the model, got 3");
    assert_eq!(model.stats().rejected, 0);
    assert_at_rest(&model, "after a refusal");
}

/// A copy of a fixture with some values of a tensor replaced.
fn with_values(name: &str, tensor: &str, at: std::ops::Range<usize>, value: f32, folder: &Path) -> Model {
    for file in std::fs::read_dir(fixture(name)).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    replace(folder, tensor, at, value);
    Model::load(folder, &exact()).unwrap()
}

/// Replaces some values of a tensor of f32.
fn replace(folder: &Path, tensor: &str, at: std::ops::Range<usize>, value: f32) {
    let file = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let view = SafeTensors::deserialize(&bytes).unwrap();
    let start = view.tensor(tensor).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    for i in at {
        bytes[start + 4 * i..][..4].copy_from_slice(&value.to_le_bytes());
    }
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn logits_that_are_no_numbers_end_their_request_alone() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // The embedding of one token, which only some prompts have.
        let folder = tempfile::tempdir().unwrap();
        let broken = "model.embed_tokens.weight";
        let model = with_values("llama_mha", broken, 96 * 32..96 * 32 + 1, value, folder.path());
        let sound = Model::load(fixture("llama_mha"), &exact()).unwrap();
        let options = GenerateOptions {
            n: 3,
            max_tokens: 12,
            logit_bias: vec![(96, f32::NEG_INFINITY)],
            seed: Some(1),
            ..GenerateOptions::default()
        };
        let prompt = |i: u32| (0..20 + i).map(|t| (t * 13 + i) % 96).collect::<Vec<u32>>();
        let bad = |i: u32| [prompt(i), vec![96, 3, 4, 5]].concat();
        let position = |error: Error, what: &str| match error {
            Error::NotFinite { position, began, .. } => (position, began),
            other => panic!("{what}: {other}"),
        };
        std::thread::scope(|scope| {
            for i in 0..12 {
                let (model, sound, options) = (&model, &sound, &options);
                scope.spawn(move || {
                    if i % 3 == 0 {
                        let (at, began) = position(model.generate(&bad(i), options).unwrap_err(), "generate");
                        let len = prompt(i).len();
                        assert_eq!((at, began), (len + 3, format!("in the embedding, at position {len}")));
                    } else {
                        let want = sound.generate(&prompt(i), options).unwrap().choices;
                        assert_eq!(model.generate(&prompt(i), options).unwrap().choices, want);
                    }
                });
            }
        });
        let stats = at_rest(&model);
        assert_eq!((stats.open, stats.blocks_used, stats.queue_depth), (0, 0, 0));
        // Log-probabilities and logits of given tokens: those before it are finite, those after it are not.
        let echo = GenerateOptions { echo: true, logprobs: Some(1), max_tokens: 0, n: 2, ..options.clone() };
        assert_eq!(position(model.generate(&bad(1), &echo).unwrap_err(), "echo").0, 21);
        assert_eq!(position(model.logits(&bad(1), 0).unwrap_err(), "logits").0, 21);
        assert_eq!(model.logits(&prompt(1), 0).unwrap(), sound.logits(&prompt(1), 0).unwrap());
        assert_at_rest(&model, "after errors");
        // Other requests do not find its results in the prefix cache.
        let twice = || model.generate(&bad(2), &GenerateOptions::greedy(1)).unwrap_err();
        assert_eq!((twice(), model.stats().prefix_hit_tokens), (twice(), model.stats().prefix_hit_tokens));

        // A layer, and the output projection, which affect all tokens.
        for (tensor, at, began) in [
            ("model.layers.0.mlp.down_proj.weight", 7, "in layer 0, at position 0"),
            // Of the last layer, only rows whose logits are wanted are computed to the end.
            ("model.layers.1.self_attn.o_proj.weight", 40, "in layer 1, at position 20"),
            ("lm_head.weight", 32 * 9, "after the last layer"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let model = with_values("llama_mha", tensor, at..at + 1, value, folder.path());
            let error = model.generate(&prompt(1), &GenerateOptions::greedy(4)).unwrap_err();
            let text = error.to_string();
            let (at, origin) = position(error, tensor);
            assert_eq!(origin, began, "{tensor} {value}");
            // A weight of -inf gives one token a logit of -inf, which is allowed, or of +inf, which is an error.
            assert!(
                at == 20 || (tensor == "lm_head.weight" && value == f32::NEG_INFINITY),
                "{tensor} {value}"
            );
            let said = format!("logits at position {at}: expected finite numbers, got ");
            assert!(text.starts_with(&said) && text.ends_with(began), "{text}");
        }
    }
}

/// An infinite key could have a score of minus infinity: then its token would be ignored, and nobody would know.
#[test]
fn a_key_or_value_that_an_f16_cache_cannot_hold_is_an_error() {
    for (part, sign) in [("k", 1.0), ("k", -1.0), ("v", 1.0)] {
        // Token 90 is nearly all in dimension 3, whose key or value is then above 65,504; those of others stay below.
        let folder = tempfile::tempdir().unwrap();
        let tensor = format!("model.layers.0.self_attn.{part}_proj.weight");
        with_values("llama_mha", &tensor, 5 * 32 + 3..5 * 32 + 4, sign * 1.5e4, folder.path());
        replace(folder.path(), "model.embed_tokens.weight", 90 * 32 + 3..90 * 32 + 4, 1e3);
        for (kind, holds) in [
            (CacheDtype::F32, true),
            (CacheDtype::Bf16, true),
            (CacheDtype::Auto, false),
            (CacheDtype::F16, false),
        ] {
            let options = LoadOptions { cache_dtype: kind, ..LoadOptions::default() };
            let model = Model::load(folder.path(), &options).unwrap();
            for at in 1..20 {
                let sound: Vec<u32> = (0..25).map(|i| (at * 7 + i * 3) % 90).collect();
                assert!(model.logits(&sound, 0).is_ok(), "{part} {kind}");
                let mut prompt = sound;
                prompt[at as usize] = 90;
                let got = model.logits(&prompt, 24);
                if holds {
                    assert!(got.is_ok(), "{part} {kind}");
                    continue;
                }
                let text = got.unwrap_err().to_string();
                let began = format!(
                    "it began in layer 0, at position {at}; keys and values above 65504 need the cache_dtype bf16 or f32"
                );
                assert!(text.ends_with(&began), "{part} {kind}: {text}");
            }
        }
    }
}

#[test]
fn only_requests_of_the_same_salt_share_what_was_computed() {
    let model = load(&LoadOptions::default());
    let prompt: Vec<u32> = (0..64u32).map(|i| 300 + (i * 7) % 5_000).collect();
    let run = |salt: Option<&str>, n| {
        let cache_salt = salt.map(String::from);
        let options = GenerateOptions { n, cache_salt, seed: Some(2), ..GenerateOptions::default() };
        let got = model.generate(&prompt, &options).unwrap();
        (got.usage.cached_tokens, got.choices)
    };
    let hits = || model.stats().prefix_hit_tokens;
    let (cached, want) = run(Some("a"), 3);
    assert_eq!(cached, 0);
    // Scores and logits without a salt find nothing of those that have one.
    let pair = [(Prompt::Tokens(&prompt), Prompt::Tokens(&[400, 500]))];
    let score = |salt: Option<&str>| {
        let before = model.stats().prefix_hit_tokens;
        let options = ScoreOptions { cache_salt: salt.map(String::from), ..ScoreOptions::default() };
        let score = model.score_pairs(&pair, &options).unwrap();
        (model.stats().prefix_hit_tokens - before, score)
    };
    let (cached, scores) = score(Some("other"));
    assert_eq!(cached, 0);
    assert_eq!(score(Some("a")), (48, scores.clone()));
    assert_eq!(score(Some("other")).1, scores);
    let empty = ScoreOptions { cache_salt: Some(String::new()), ..ScoreOptions::default() };
    let error = model.score_pairs(&pair, &empty).unwrap_err();
    assert!(matches!(&error, Error::InvalidOption { option, .. } if *option == "cache_salt"), "{error}");
    let before = hits();
    let logits = model.logits(&prompt, 63).unwrap();
    assert_eq!(hits() - before, 0);
    assert_eq!(run(Some("a"), 3), (48, want.clone()));
    assert_eq!(run(Some("a"), 1), (48, want[..1].to_vec()));
    assert_eq!(run(Some("b"), 3), (0, want.clone()));
    assert_eq!(run(Some("a "), 3).0, 0);
    let before = hits();
    assert_eq!(model.logits(&prompt, 63).unwrap(), logits);
    assert_eq!(hits() - before, 48);
    assert_eq!(run(None, 3), (48, want.clone()), "of the logits");
    assert_eq!(run(Some("b"), 3), (48, want.clone()));

    // More salts than the cache has blocks.
    let small = load(&LoadOptions { cache_tokens: Some(128), ..LoadOptions::default() });
    for salt in 0..200 {
        let options = GenerateOptions { cache_salt: Some(salt.to_string()), ..GenerateOptions::greedy(1) };
        assert_eq!(small.generate(&prompt, &options).unwrap().usage.cached_tokens, 0);
    }
    let stats = at_rest(&small);
    assert!(stats.blocks_cached <= stats.blocks_total && stats.blocks_used == 0);
}

/// Sum of log-probabilities of the tokens after the first `given`, from logits.
fn from_logits(model: &Model, tokens: &[u32], given: usize) -> f64 {
    let vocab = model.config().vocab_size;
    let rows = log_softmax(&model.logits(tokens, given - 1).unwrap(), vocab);
    tokens[given..].iter().enumerate().map(|(i, &id)| rows[i * vocab + id as usize]).sum()
}

#[test]
fn every_token_of_a_continuation_is_scored() {
    let model = load(&exact());
    let start = model.config().bos_token_id.unwrap();
    let echoed = |tokens: &[u32]| {
        let options =
            GenerateOptions { echo: true, logprobs: Some(0), max_tokens: 0, ..GenerateOptions::default() };
        model.generate(tokens, &options).unwrap().choices.remove(0).tokens
    };
    let check = |prompt: &str, continuation: &str| {
        let score = model.score(prompt, &[continuation]).unwrap().remove(0);
        let own = model.tokenize(prompt, false).unwrap();
        let all = model.tokenize(&format!("{prompt}{continuation}"), false).unwrap();
        let shared = own.iter().zip(&all).take_while(|(a, b)| a == b).count();
        // With nothing in common, only the start token is before it.
        let tokens = if shared == 0 { [vec![start], all].concat() } else { all };
        let given = shared.max(1);
        assert_eq!(score.tokens[..], echoed(&tokens)[given..], "{prompt:?} {continuation:?}");
        assert!(!score.tokens.is_empty() && score.logprob < 0.0, "{prompt:?} {continuation:?}");
        let want = from_logits(&model, &tokens, given);
        assert!((score.logprob - want).abs() < 1e-3, "{prompt:?} {continuation:?}: {} {want}", score.logprob);
        shared
    };
    for continuation in ["春", "明月", "春眠不觉晓，", "the", "\n", "😀"] {
        assert_eq!(check("", continuation), 0);
        check("床前明月光，", continuation);
    }
    // Boundaries inside a token: nothing of the prompt's own is left, or not all.
    let merged = [("t", "he"), ("床", "前"), ("床前明月", "光"), ("你好wor", "ld"), ("\n", "\n")];
    println!("{:?}", merged.map(|(prompt, continuation)| check(prompt, continuation)));

    // The same as the begin token, given by the caller, and as generating from nothing.
    let bare = model.score("", &["春"]).unwrap().remove(0);
    let spring = model.tokenize("春", false).unwrap();
    assert_eq!(bare.tokens.iter().map(|t| t.id).collect::<Vec<_>>(), spring);
    let options = GenerateOptions { logprobs: Some(100), ..GenerateOptions::greedy(1) };
    let first = model.generate("", &options).unwrap().choices.remove(0).tokens.remove(0);
    let same = model.score("", &[model.detokenize(&[first.id])]).unwrap().remove(0);
    assert_eq!((same.tokens[0].id, same.tokens[0].logprob), (first.id, first.logprob));

    // An empty continuation has probability 1. Another one without tokens is an error that names it.
    let nothing = model.score("", &["", "春"]).unwrap();
    assert_eq!((nothing[0].logprob, nothing[0].tokens.len(), nothing[1].tokens.len()), (0.0, 0, 1));
    assert!(model.score("春", &[] as &[&str]).unwrap().is_empty());
    let without = Model::load(fixture("llama_gqa"), &exact()).unwrap();
    assert!(matches!(without.score("a", &["b"]), Err(Error::Tokenizer(_))));
    assert_eq!(without.logits(Prompt::Tokens(&[]), 0), Err(Error::EmptyPrompt));
}

/// A model with a tokenizer of two letters and `ab`, whose settings and normalizer are given.
fn two_letters(folder: &Path, normalizer: &str, config: &[(&str, u32)]) -> Model {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("llama_gqa").join(file), folder.join(file)).unwrap();
    }
    let tokenizer = format!(
        r#"{{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": {normalizer},
            "pre_tokenizer": null, "post_processor": null, "decoder": null, "model": {{"type": "BPE", "dropout": null,
            "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "vocab": {{"a": 3, "b": 4, "ab": 5}}, "merges": ["a b"]}}}}"#
    );
    std::fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    let mut settings: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config.iter().for_each(|&(key, value)| settings[key] = value.into());
    std::fs::write(folder.join("config.json"), settings.to_string()).unwrap();
    Model::load(folder, &exact()).unwrap()
}

#[test]
fn scores_without_a_start_token_or_without_tokens_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let model = two_letters(folder.path(), "null", &[]);
    assert!((model.score("a", &["a"]).unwrap()[0].logprob - from_logits(&model, &[3, 3], 1)).abs() < 1e-4);
    // `ab` is one token, which shares nothing with `a`.
    let error = model.score("a", &["a", "b"]).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "continuations", .. }), "{error}");
    assert!(error.to_string().ends_with(r#"none that starts a text, got "b""#), "{error}");
    let empty = model.score("", &["a"]).unwrap_err();
    assert!(matches!(empty, Error::InvalidOption { option: "continuations", .. }), "{empty}");
    // The end token starts a text if no other token does.
    let folder = tempfile::tempdir().unwrap();
    let model = two_letters(folder.path(), "null", &[("eos_token_id", 7)]);
    for (prompt, continuation, tokens) in
        [("a", "b", &[7, 5][..]), ("", "a", &[7, 3]), ("", "ab", &[7, 5]), ("b", "ab", &[4, 5])]
    {
        let score = model.score(prompt, &[continuation]).unwrap().remove(0);
        assert_eq!(
            score.tokens.iter().map(|t| t.id).collect::<Vec<_>>(),
            tokens[1..],
            "{prompt} {continuation}"
        );
        assert!((score.logprob - from_logits(&model, tokens, 1)).abs() < 1e-4);
    }
    // A continuation that the normalizer removes has no probability; it is an error.
    let folder = tempfile::tempdir().unwrap();
    let strip = r#"{"type": "Strip", "strip_left": true, "strip_right": true}"#;
    let model = two_letters(folder.path(), strip, &[("eos_token_id", 7)]);
    let error = model.score("a", &["b", " "]).unwrap_err().to_string();
    assert_eq!(
        error,
        r#"option `continuations`: expected texts that have tokens after this prompt, got " ""#
    );
}

/// Scores of text pairs.
fn scored(model: &Model, pairs: &[(&str, &str)]) -> Vec<Score> {
    let pairs: Vec<_> = pairs.iter().map(|&(p, c)| (Prompt::Text(p), Prompt::Text(c))).collect();
    model.score_pairs(&pairs, &ScoreOptions::default()).unwrap()
}

#[test]
fn many_pairs_score_as_one_by_one_to_the_bit() {
    // Questions that begin with the same examples, with answers; other texts, equal pairs, and empty texts.
    let examples = "问：白日依山尽？答：黄河入海流。\n".repeat(4);
    let questions: Vec<String> = (0..30).map(|i| format!("{examples}问：第{i}句？答：")).collect();
    let answers = ["疑是地上霜。", "黄河", "", "处处闻啼鸟。"];
    let mut pairs: Vec<(&str, &str)> =
        questions.iter().flat_map(|question| answers.map(|answer| (question.as_str(), answer))).collect();
    pairs.extend([
        ("", "春"),
        ("床", "前"),
        ("春眠不觉晓，", "处处闻啼鸟。"),
        ("春眠不觉晓，", "处处闻啼鸟。"),
    ]);
    let first = load(&LoadOptions::default());
    let want: Vec<Score> = pairs.iter().map(|&(p, c)| first.score(p, &[c]).unwrap().remove(0)).collect();
    assert_eq!(want[2], Score::default());
    let settings = [
        LoadOptions::default(),
        LoadOptions { prefix_cache: false, ..LoadOptions::default() },
        // A queue shorter than the number of pairs that are scored together, a small cache, small chunks.
        LoadOptions { queue_limit: 2, max_running: 1, ..LoadOptions::default() },
        LoadOptions { cache_tokens: Some(512), chunk_tokens: Some(16), ..LoadOptions::default() },
    ];
    for options in settings {
        let model = load(&options);
        let before = model.stats().prompt_tokens;
        assert_eq!(scored(&model, &pairs), want, "{options:?}");
        let again = scored(&model, &pairs);
        assert_eq!(again, want, "{options:?}, a second time");
        let stats = at_rest(&model);
        assert_eq!((stats.open, stats.blocks_used), (0, 0));
        if options.prefix_cache && options.cache_tokens.is_none() {
            // The examples, and each question, are computed once.
            let (all, found) = (stats.prompt_tokens - before, stats.prefix_hit_tokens);
            assert!(found * 10 > all * 8, "{found} of {all} tokens were found: {options:?}");
        }
    }
}

#[test]
fn other_requests_fill_the_queue_of_a_scoring() {
    let model = load(&LoadOptions { queue_limit: 2, max_running: 1, ..LoadOptions::default() });
    let endless = GenerateOptions { max_tokens: 500, ignore_eos: true, ..GenerateOptions::default() };
    let mut running = model.stream("春", &endless).unwrap();
    running.next().unwrap().unwrap();
    let waiting = [model.stream("春", &endless).unwrap(), model.stream("春", &endless).unwrap()];
    let pairs = [(Prompt::Text("春"), Prompt::Text("眠"))];
    let error = model.score_pairs(&pairs, &ScoreOptions::default()).unwrap_err();
    assert_eq!(error, Error::QueueFull { waiting: 2, limit: 2 });
    drop((running, waiting));
    at_rest(&model);
    assert_eq!(scored(&model, &[("春", "眠")]), model.score("春", &["眠"]).unwrap());
}

#[test]
fn tokens_and_conversations_are_scored() {
    let model = load(&exact());
    let options = ScoreOptions::default();
    let (prompt, continuation) = ("床前明月光，", "疑是地上霜。");
    let ids = |text: &str| model.tokenize(text, false).unwrap();
    let (prompt_ids, ids_after) = (ids(prompt), ids(continuation));
    let want = model.score(prompt, &[continuation]).unwrap().remove(0);
    assert_eq!(want.tokens.len(), ids_after.len(), "these two do not merge");
    let mut chat = ChatRequest::new([Message::new("user", prompt)]);
    chat.chat_template = Some("{{ messages[0].content }}".into());
    let prompts = [Prompt::Text(prompt), Prompt::Tokens(&prompt_ids), Prompt::Chat(&chat)];
    let continuations = [Prompt::Text(continuation), Prompt::Tokens(&ids_after)];
    let pairs: Vec<_> = prompts.iter().flat_map(|&p| continuations.map(|c| (p, c))).collect();
    assert_eq!(model.score_pairs(&pairs, &options).unwrap(), vec![want.clone(); 6]);
    assert_eq!(model.score(&chat, &[continuation]).unwrap(), std::slice::from_ref(&want));
    assert_eq!(model.score(&prompt_ids, &[continuation]).unwrap(), [want]);

    // As texts these two would merge into one token. As ids they stay two tokens.
    let (bright, moon) = (ids("明"), ids("月"));
    assert_ne!([&bright[..], &moon[..]].concat(), ids("明月"));
    for pair in [(Prompt::Tokens(&bright), Prompt::Text("月")), (Prompt::Text("明"), Prompt::Tokens(&moon))]
    {
        let score = model.score_pairs(&[pair], &options).unwrap().remove(0);
        assert_eq!(score.tokens.iter().map(|t| t.id).collect::<Vec<_>>(), moon);
    }
    // With no tokens before, the context is the token that starts a text. With no tokens after, the probability is 1.
    let nothing = model.score_pairs(&[(Prompt::Tokens(&[]), Prompt::Tokens(&moon))], &options).unwrap();
    assert_eq!(nothing, model.score("", &["月"]).unwrap());
    let empty = model.score_pairs(&[(Prompt::Text("t"), Prompt::Tokens(&[]))], &options).unwrap();
    assert_eq!(empty, [Score::default()]);

    // A model without a tokenizer scores tokens.
    let bare = Model::load(fixture("llama_gqa"), &exact()).unwrap();
    let score = bare.score_pairs(&[(Prompt::Tokens(&[3, 4]), Prompt::Tokens(&[5]))], &options).unwrap();
    assert!((score[0].logprob - from_logits(&bare, &[3, 4, 5], 2)).abs() < 1e-4);

    // A pair that cannot be scored is named, and the others leave nothing open.
    let vocab = model.config().vocab_size as u32;
    let wrong: [(Prompt<'_>, Prompt<'_>, &str); 5] = [
        (
            Prompt::Text("t"),
            Prompt::Chat(&chat),
            "option `continuations`: expected text or tokens, got a conversation",
        ),
        (
            Prompt::Tokens(&[vocab]),
            Prompt::Text("a"),
            "option `prompt`: expected tokens below 7040, got 7040",
        ),
        (
            Prompt::Text("t"),
            Prompt::Tokens(&[vocab]),
            "option `continuations`: expected tokens below 7040, got 7040",
        ),
        (
            Prompt::Tokens(&[3; 513]),
            Prompt::Text("a"),
            "request of 513 tokens (prompt 513) does not fit: the context holds 512",
        ),
        (
            Prompt::Tokens(&[3; 512]),
            Prompt::Tokens(&[3]),
            "request of 513 tokens (prompt 513) does not fit: the context holds 512",
        ),
    ];
    for (prompt, continuation, message) in wrong {
        let pairs = [(Prompt::Text("春"), Prompt::Text("眠")), (prompt, continuation)];
        assert_eq!(model.score_pairs(&pairs, &options).unwrap_err().to_string(), message);
        assert_at_rest(&model, message);
    }
    let tokenless = bare.score_pairs(&[(Prompt::Tokens(&[3]), Prompt::Text("a"))], &options);
    assert!(matches!(tokenless, Err(Error::Tokenizer(_))));
}

#[test]
fn a_chat_is_what_its_tokens_give() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(welm_tests::nano().join(file), folder.path().join(file)).unwrap();
    }
    // The template writes a special token, and the model's own end token ends the answer.
    let template = "<|endoftext|>{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}，{% endif %}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = Model::load(folder.path(), &LoadOptions::default()).unwrap();
    let messages = [Message::new("user", "床前明月光")];
    let tokens = model.chat_tokens(&messages, true).unwrap();
    assert_eq!(tokens.iter().filter(|&&id| model.is_special(id)).count(), 1, "no second one is put in front");
    let request = ChatRequest::new(messages.clone());
    let prompt = model.chat_prompt(&messages, true).unwrap();

    let answer = |options: &GenerateOptions| {
        let want = model.generate(&tokens, options).unwrap();
        let mut got = model.chat(&messages, options).unwrap();
        let mut stream = model.chat_stream(&messages, options).unwrap();
        let mut streamed = stream.generation();
        stream.by_ref().for_each(|piece| streamed.push(piece.unwrap()));
        let requested = model.generate(&request, options).unwrap();
        streamed.usage = got.usage;
        assert_eq!((&streamed.choices, &requested.choices), (&got.choices, &got.choices), "{options:?}");
        assert_eq!(got.usage.prompt_tokens, tokens.len());
        if options.echo {
            // In the text of a prompt of tokens, special tokens are left out.
            for choice in &mut got.choices {
                let rest =
                    choice.text.strip_prefix(prompt.as_str()).expect("the text begins with the prompt");
                choice.text = format!("{}{rest}", model.detokenize(&tokens));
            }
        }
        assert_eq!(got.choices, want.choices, "{options:?}");
        got
    };
    let seeded = |change: fn(&mut GenerateOptions)| {
        let mut options = GenerateOptions { seed: Some(7), max_tokens: 12, ..GenerateOptions::default() };
        change(&mut options);
        options
    };
    let changes: [fn(&mut GenerateOptions); 10] = [
        |_| {},
        |o| o.n = 3,
        |o| o.echo = true,
        |o| (o.echo, o.n, o.logprobs) = (true, 2, Some(1)),
        |o| (o.echo, o.max_tokens, o.logprobs) = (true, 0, Some(0)),
        |o| o.parse_special = true,
        |o| o.stop = vec!["，".into()],
        |o| (o.cache_salt, o.n) = (Some("a".into()), 2),
        |o| (o.ignore_eos, o.stop_token_ids) = (true, vec![41]),
        |o| o.deadline = Some(Duration::MAX),
    ];
    for change in changes {
        answer(&seeded(change));
    }
    let whole = answer(&GenerateOptions::greedy(400));
    assert_eq!(whole.finish_reason(), Some(FinishReason::EndOfText));
    assert!(whole.choices[0].end_token.is_some());

    // Cancelled before it runs, cancelled while it runs, and after a deadline.
    let cancel = CancelToken::new();
    let endless = GenerateOptions {
        cancel: Some(cancel.clone()),
        ignore_eos: true,
        n: 2,
        ..GenerateOptions::greedy(400)
    };
    let mut stream = model.chat_stream(&messages, &endless).unwrap();
    stream.next().unwrap().unwrap();
    cancel.cancel();
    let reasons: Vec<_> =
        stream.filter_map(|piece| piece.unwrap().finish).map(|finish| finish.reason).collect();
    assert_eq!(reasons, [FinishReason::Cancelled; 2]);
    assert_eq!(model.chat(&messages, &endless).unwrap().finish_reason(), Some(FinishReason::Cancelled));
    let late = GenerateOptions { deadline: Some(Duration::ZERO), echo: true, ..GenerateOptions::default() };
    let late = model.chat(&messages, &late).unwrap();
    assert_eq!((late.finish_reason(), late.text()), (Some(FinishReason::Deadline), prompt.as_str()));

    // Errors of a conversation, and of a request.
    let options = GenerateOptions::greedy(4);
    let none = model.chat(&[], &options).unwrap_err();
    assert!(matches!(none, Error::InvalidOption { option: "messages", .. }), "{none}");
    let plain = load(&LoadOptions::default());
    assert!(matches!(plain.chat(&messages, &options), Err(Error::ChatTemplate(_))));
    assert!(matches!(plain.chat_stream(&messages, &options), Err(Error::ChatTemplate(_))));
    let long = [Message::new("user", "春".repeat(600))];
    assert!(matches!(model.chat(&long, &options), Err(Error::TooLong { limit: 512, .. })));
    let hot = GenerateOptions { temperature: -1.0, ..GenerateOptions::default() };
    assert!(matches!(model.chat(&messages, &hot), Err(Error::InvalidOption { option: "temperature", .. })));
    assert_eq!(model.logits(&request, 0).unwrap(), model.logits(&tokens, 0).unwrap());
    assert_at_rest(&model, "after all that");
}

#[test]
fn a_context_may_be_full_to_the_last_token() {
    let model = load(&LoadOptions::default());
    let limit = model.memory().context_tokens;
    let prompt: Vec<u32> = PROMPT.iter().copied().cycle().take(limit).collect();
    let options = |max_tokens| GenerateOptions { ignore_eos: true, ..GenerateOptions::greedy(max_tokens) };
    let got = model.generate(&prompt[..limit - 1], &options(1)).unwrap();
    assert_eq!((got.usage.prompt_tokens, got.usage.completion_tokens), (limit - 1, 1));
    let echoed = GenerateOptions { echo: true, logprobs: Some(1), ..options(0) };
    let got = model.generate(&prompt, &echoed).unwrap();
    assert!(got.choices[0].tokens.len() == limit && got.choices[0].tokens[limit - 1].logprob.is_some());
    assert_eq!(model.logits(&prompt[..], 0).unwrap().len(), limit * model.config().vocab_size);
    let pair = |at: usize, n: usize| (Prompt::Tokens(&prompt[..at]), Prompt::Tokens(&prompt[at..n]));
    let scored = model.score_pairs(&[pair(limit - 2, limit)], &ScoreOptions::default()).unwrap();
    assert_eq!(scored[0].tokens.len(), 2);

    let longer: Vec<u32> = PROMPT.iter().copied().cycle().take(limit + 1).collect();
    let too_long = |error| matches!(error, Error::TooLong { .. });
    assert!(too_long(model.generate(&prompt, &options(1)).unwrap_err()));
    assert!(too_long(model.generate(&longer, &options(0)).unwrap_err()));
    assert!(too_long(model.logits(&longer[..], 0).unwrap_err()));
    assert_at_rest(&model, "full");
}

#[test]
fn a_cache_has_whole_blocks() {
    let options = LoadOptions { cache_tokens: Some(20), ..LoadOptions::default() };
    let model = load(&options);
    assert_eq!((model.memory().cache_tokens, model.stats().blocks_total), (32, 2));
    let answer = model.generate(&PROMPT[..30], &GenerateOptions::greedy(2)).unwrap();
    assert_eq!(answer.usage.prompt_tokens, 30);
    let error = model.generate(&PROMPT[..30], &GenerateOptions::greedy(3)).unwrap_err();
    assert!(error.to_string().contains("KV cache"), "{error}");
}

#[test]
fn a_request_that_waits_its_turn_may_be_late_or_cancelled() {
    let model = load(&LoadOptions { max_running: 1, ..LoadOptions::default() });
    let long = GenerateOptions { n: 64, ignore_eos: true, ..GenerateOptions::greedy(400) };
    let mut running = model.stream(&PROMPT[..5], &long).unwrap();
    running.next().unwrap().unwrap();
    let late = GenerateOptions { deadline: Some(Duration::from_millis(10)), ..GenerateOptions::greedy(5) };
    let token = CancelToken::new();
    let cancelled = GenerateOptions { cancel: Some(token.clone()), ..GenerateOptions::greedy(5) };
    let waiting = model.stream(&PROMPT[..7], &cancelled).unwrap();
    let got = model.generate(&PROMPT[..6], &late).unwrap();
    let reason = |choice: &Choice| (choice.finish_reason, choice.tokens.len());
    assert_eq!(reason(&got.choices[0]), (FinishReason::Deadline, 0));
    token.cancel();
    let mut got = waiting.generation();
    waiting.for_each(|piece| got.push(piece.unwrap()));
    assert_eq!(reason(&got.choices[0]), (FinishReason::Cancelled, 0));
    assert_eq!(model.stats().running, 1, "the first one goes on");
    drop(running);
    assert_eq!(model.generate(&PROMPT[..6], &GenerateOptions::greedy(3)).unwrap().usage.completion_tokens, 3);
}
