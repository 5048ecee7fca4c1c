//! Takes single steps of the engine by hand: with constraints, and with tokens that are taken back.

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use super::super::constraint::Constraint;
use super::super::events::{Event, EventReceiver};
use super::*;
use crate::backend::Limits;
use crate::backend::cpu::Cpu;
use crate::checkpoint::open::{Opened, open};
use crate::options::{GenerateOptions, LoadOptions};
use crate::output::Token;

/// An engine whose steps the test takes, with a KV cache for `cache_tokens` tokens.
fn engine(cache_tokens: usize) -> EngineLoop<Cpu> {
    let options = LoadOptions {
        threads: Some(1),
        cache_tokens: Some(cache_tokens),
        chunk_tokens: Some(64),
        ..LoadOptions::default()
    };
    let Opened { source, tokenizer, .. } = open(Path::new("../examples/welm-nano"), true, false).unwrap();
    let config = source.config.clone();
    let limits = Limits::of::<Cpu>(&config, &options).unwrap();
    let backend = Cpu::new(&config, &options, limits).unwrap();
    let tokenizer = tokenizer.map(Arc::new);
    let engine = Engine::load(backend, &source, &config, tokenizer, limits, &options).unwrap();
    let scheduler =
        Scheduler::new(BlockManager::new(limits.n_blocks, true), limits.chunk_tokens, options.max_running);
    EngineLoop::new(engine, scheduler, Arc::default())
}

impl EngineLoop<Cpu> {
    fn take(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        constraint: Option<Box<dyn Constraint>>,
    ) -> EventReceiver {
        let (mut request, events) = Request::generate(prompt.to_vec(), options);
        request.seed = options.seed.unwrap();
        request.constraint = constraint;
        let ticket = Ticket::take(&self.counters, request.n, 1_000).unwrap();
        self.accept(request, ticket);
        events
    }

    /// Takes steps until all requests have ended.
    fn step_to_the_end(&mut self) {
        while !self.scheduler.is_idle() {
            self.step().unwrap();
        }
    }

    /// Takes a step that chooses tokens, but does not send them.
    fn step_unsent(&mut self) {
        self.schedule();
        self.compute().unwrap();
        self.choose().unwrap();
        self.forked.drain(..).for_each(|sibling| self.scheduler.resume(sibling));
    }

    fn truncate(&mut self, n: usize) {
        let (blocks, tokenizer) = (&mut self.scheduler.blocks, self.engine.tokenizer.as_deref());
        let all = self.scheduler.running.iter_mut().chain(&mut self.scheduler.waiting);
        all.for_each(|seq| seq.truncate(n, blocks, tokenizer));
    }

    /// Adds `tokens` to all sequences, computes them, in one step or one by one, and takes them back. Returns the
    /// tokens that the first sequence had then.
    fn draft(&mut self, tokens: &[u32], at_once: bool) -> Vec<u32> {
        let mut longest = Vec::new();
        for (at, &id) in tokens.iter().enumerate() {
            for seq in &mut self.scheduler.running {
                let bare = Token { id, logprob: None, alternatives: Vec::new() };
                seq.push(bare, "春\n".as_bytes(), "");
            }
            if !at_once || at + 1 == tokens.len() {
                self.schedule();
                self.compute().unwrap();
            }
        }
        if let Some(seq) = self.scheduler.running.first() {
            longest.clone_from(&seq.tokens);
        }
        self.truncate(tokens.len());
        longest
    }

    /// Whether each sequence has chosen a token, and none waits.
    fn all_generate(&self) -> bool {
        let (s, begun) = (&self.scheduler, |seq: &Sequence| seq.generated() > 0);
        s.waiting.is_empty() && !s.running.is_empty() && s.running.iter().all(begun)
    }
}

/// Text, tokens and number of cached prompt tokens of each sequence.
type Answer = Vec<(String, Vec<Token>, usize)>;

fn answer(events: &EventReceiver, n: usize) -> Result<Answer> {
    let mut answer = vec![(String::new(), Vec::new(), 0); n];
    while let Some(event) = events.receive() {
        let Event::Piece(piece) = event? else { continue };
        let (text, tokens, found) = &mut answer[piece.index];
        text.push_str(&piece.text);
        tokens.extend(piece.tokens);
        *found += piece.finish.map_or(0, |finish| finish.cached_tokens);
    }
    Ok(answer)
}

/// An answer without the numbers of cached tokens.
fn bare(answer: Answer) -> Vec<(String, Vec<Token>)> {
    answer.into_iter().map(|(text, tokens, _)| (text, tokens)).collect()
}

/// A constraint: even token ids after an even number of tokens, odd ones after an odd number.
#[derive(Debug)]
struct Alternating {
    accepted: usize,
    forks: Arc<AtomicUsize>,
}

impl Constraint for Alternating {
    fn mask(&mut self, logits: &mut [f32]) {
        logits
            .iter_mut()
            .skip((self.accepted + 1) % 2)
            .step_by(2)
            .for_each(|logit| *logit = f32::NEG_INFINITY);
    }

    fn accept(&mut self, _: u32) {
        self.accepted += 1;
    }

    fn fork(&self) -> Box<dyn Constraint> {
        self.forks.fetch_add(1, Ordering::Relaxed);
        Box::new(Alternating { accepted: self.accepted, forks: Arc::clone(&self.forks) })
    }

    fn roll_back(&mut self, n: usize) {
        self.accepted -= n;
    }
}

fn alternating() -> Box<Alternating> {
    Box::new(Alternating { accepted: 0, forks: Arc::default() })
}

/// A linear congruential generator, to choose cases.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }
}

fn sampled(seed: u64) -> GenerateOptions {
    GenerateOptions {
        max_tokens: 40,
        seed: Some(seed),
        ignore_eos: true,
        logprobs: Some(2),
        ..GenerateOptions::default()
    }
}

fn prompt(len: usize, of: u32) -> Vec<u32> {
    (0..len as u32).map(|i| 300 + (i * 7 + of * 13) % 5_000).collect()
}

#[test]
fn each_sequence_says_only_what_its_constraint_lets_it() {
    // Memory for all sequences, and for a part of them, so that sequences are preempted.
    for cache_tokens in [2_048, 176] {
        let mut engine = engine(cache_tokens);
        let options = GenerateOptions { n: 4, ..sampled(3) };
        let constraint = alternating();
        let forks = Arc::clone(&constraint.forks);
        let with = engine.take(&prompt(20, 1), &options, Some(constraint));
        let greedy = GenerateOptions { seed: Some(1), ignore_eos: true, ..GenerateOptions::greedy(30) };
        let also = engine.take(&prompt(21, 1), &greedy, Some(alternating()));
        let without = engine.take(&prompt(20, 2), &options, None);
        engine.step_to_the_end();
        assert_eq!(engine.scheduler.preemptions > 0, cache_tokens == 176);
        assert_eq!(forks.load(Ordering::Relaxed), 3);
        let parities = |answer: Answer| -> Vec<Vec<usize>> {
            let parity = |(at, token): (usize, &Token)| (token.id as usize + at) % 2;
            answer.iter().map(|(_, tokens, _)| tokens.iter().enumerate().map(parity).collect()).collect()
        };
        assert_eq!(parities(answer(&with, 4).unwrap()), vec![vec![0; 40]; 4]);
        assert_eq!(parities(answer(&also, 1).unwrap()), vec![vec![0; 30]]);
        let free = parities(answer(&without, 4).unwrap());
        assert!(free.iter().all(|text| text.contains(&0) && text.contains(&1)), "the others are free");
    }
}

#[test]
fn a_constraint_that_leaves_nothing_is_an_error_of_its_request() {
    #[derive(Debug)]
    struct Nothing;
    impl Constraint for Nothing {
        fn mask(&mut self, logits: &mut [f32]) {
            logits.fill(f32::NEG_INFINITY);
        }
        fn accept(&mut self, _: u32) {}
        fn fork(&self) -> Box<dyn Constraint> {
            Box::new(Nothing)
        }
        fn roll_back(&mut self, _: usize) {}
    }
    let mut engine = engine(1_024);
    let options = GenerateOptions { n: 2, repetition_penalty: 1.2, ..sampled(1) };
    let failed = engine.take(&prompt(5, 1), &options, Some(Box::new(Nothing)));
    let other = engine.take(&prompt(5, 1), &options, None);
    engine.step_to_the_end();
    let reason = "expected to leave a token to choose, got none at position 5";
    assert_eq!(answer(&failed, 2).unwrap_err(), Error::option("constraint", reason));
    assert_eq!(answer(&other, 2).unwrap()[1].1.len(), 40);
}

#[test]
fn what_is_truncated_might_never_have_been_chosen() {
    let (mut plain, mut engine) = (engine(32_768), engine(32_768));
    let (mut random, mut drafts) = (Random(5), 0);
    for case in 0..36 {
        let n = 1 + case % 3;
        let prompt = prompt([5, 16, 17, 31, 32, 48][case % 6], (case / 12) as u32);
        let stop = if case % 5 == 0 { vec!["春\n春".into(), "的".into()] } else { Vec::new() };
        let seed = case as u64 / 6;
        let options = GenerateOptions { n, stop, echo: case % 7 == 0, max_tokens: 24, ..sampled(seed) };
        let constraint = || if case % 2 == 0 { None } else { Some(alternating() as Box<dyn Constraint>) };
        let want = plain.take(&prompt, &options, constraint());
        plain.step_to_the_end();

        let got = engine.take(&prompt, &options, constraint());
        // Take steps until the first token is chosen. It comes right after the blocks that all siblings and the prefix
        // cache share.
        for _ in 0..prompt.len().div_ceil(64) {
            engine.step_unsent();
        }
        assert!(engine.all_generate() && engine.scheduler.running.len() == n);
        engine.truncate(1);
        assert!(engine.scheduler.running.iter().all(|seq| seq.generated() == 0));
        let mut drafted = Vec::new();
        while !engine.scheduler.is_idle() {
            engine.step().unwrap();
            if random.below(3) == 0 && engine.all_generate() {
                let tokens: Vec<u32> =
                    (0..1 + random.below(24)).map(|_| 300 + random.below(5_000) as u32).collect();
                let at_once = random.below(2) == 0;
                drafted = engine.draft(&tokens, at_once);
            }
        }
        let (want, got) = (answer(&want, n).unwrap(), answer(&got, n).unwrap());
        assert_eq!(bare(got), bare(want), "case {case}");
        let cache = |engine: &EngineLoop<Cpu>| {
            let blocks = &engine.scheduler.blocks;
            (blocks.total() - blocks.available(), blocks.cached())
        };
        assert_eq!(cache(&engine), cache(&plain), "case {case}: blocks that are held, and kept");

        // Use the drafted tokens as a prompt: the cache has no drafted token left, and the blocks before them are
        // right.
        let drafted = &drafted[..drafted.len().min(100)];
        if !drafted.is_empty() {
            let both = [&mut plain, &mut engine].map(|engine| {
                let events = engine.take(drafted, &sampled(1), None);
                engine.step_to_the_end();
                answer(&events, 1)
            });
            assert_eq!(both[0], both[1], "case {case}");
            drafts += 1;
        }
    }
    assert!(drafts > 25, "{drafts}");
}

#[test]
fn logits_are_copied_for_those_who_need_them_unchanged() {
    let mut engine = engine(1_024);
    let vocab = engine.engine.vocab_size;
    let plain = GenerateOptions { logprobs: None, ..sampled(1) };
    let cases = [
        (plain.clone(), 0, 0),
        (GenerateOptions { repetition_penalty: 1.3, top_k: 0, ..plain.clone() }, 0, 0),
        (GenerateOptions { logprobs: Some(0), ..plain.clone() }, vocab, vocab),
        // Siblings choose from the same row, but only for their first token.
        (GenerateOptions { n: 2, ..plain }, vocab, 0),
    ];
    for (options, first, later) in cases {
        let events = engine.take(&prompt(9, 1), &options, None);
        engine.step().unwrap();
        assert_eq!(engine.chooser.copied(), first, "{options:?}");
        engine.step().unwrap();
        assert_eq!(engine.chooser.copied(), later, "{options:?}");
        engine.step_to_the_end();
        answer(&events, options.n).unwrap();
    }
}
