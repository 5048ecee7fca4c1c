//! Tests of streamed text: it has whole characters, and no part of the stop string that ends it. Also tests of streams
//! that are polled: a waiting task is woken when something has come, and at no other time.

use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures_core::Stream as _;
use welm_core::{FinishReason, GenerateOptions, LoadOptions, Model, Piece, Result, Stream};
use welm_tests::at_rest;

/// A text at high temperature: tokens of every kind, bytes that make characters and bytes that do not.
fn options(i: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens: 40,
        temperature: [1.0, 1.6, 5.0][i % 3],
        top_k: 0,
        top_p: 1.0,
        seed: Some(i as u64),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

/// On one thread, where a test does not ask for more: threads that wait for work take it from the tests beside this one.
fn load(options: &LoadOptions) -> Model {
    let options = &LoadOptions { threads: options.threads.or(Some(1)), ..options.clone() };
    Model::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/welm-nano"), options).unwrap()
}

#[test]
fn two_hundred_streams() {
    let model = load(&LoadOptions::default());
    let prompts = ["床前明月光，", "こんにちは、", "😀🎉 ", "春眠\n", "English and 中文 "];
    let (mut from_bytes, mut replaced, mut stopped) = (0, 0, 0);
    for i in 0..200 {
        let (prompt, options) = (prompts[i % prompts.len()], options(i));
        let whole = model.generate(prompt, &options).unwrap().choices.remove(0);
        let bytes: Vec<Vec<u8>> = whole.tokens.iter().map(|t| model.token_bytes(t.id).to_vec()).collect();
        assert_eq!(whole.text, String::from_utf8_lossy(&bytes.concat()), "the text is its tokens' bytes");
        replaced += usize::from(whole.text.contains('\u{FFFD}'));
        from_bytes += usize::from(bytes.iter().any(|b| b.len() == 1 && b[0] >= 0x80));

        // Stop strings of several characters, cut from the text without regard to tokens.
        let chars: Vec<char> = whole.text.chars().collect();
        let cut = |from: usize, len: usize| chars.iter().skip(from).take(len).collect::<String>();
        let stop: Vec<String> = [cut(i % 17 + 3, 2 + i % 4), cut(i % 29 + 5, 3), "永不出现".into()]
            .into_iter()
            .filter(|s| !s.is_empty())
            .collect();
        // The stop string that is complete first counts; if there are several, the longest. The text ends before it.
        let ends = stop.iter().filter_map(|s| whole.text.find(s.as_str()).map(|at| (at + s.len(), at)));
        let want = ends.min().map_or(whole.text.as_str(), |(_, at)| &whole.text[..at]);

        let mut shown = String::new();
        let mut finish = None;
        for piece in model.stream(prompt, &GenerateOptions { stop: stop.clone(), ..options }).unwrap() {
            let piece = piece.unwrap();
            shown.push_str(&piece.text);
            assert!(want.starts_with(&shown), "stream {i} showed {shown:?} of {want:?}, stop {stop:?}");
            finish = piece.finish;
        }
        assert_eq!(shown, want, "stream {i}");
        let reason = finish.unwrap().reason;
        assert_eq!(reason == FinishReason::Stop, want.len() < whole.text.len(), "stream {i}: {reason:?}");
        stopped += usize::from(reason == FinishReason::Stop);
    }
    println!("{from_bytes} texts with byte tokens, {replaced} with U+FFFD, {stopped} ended by a stop string");
    assert!(from_bytes > 20 && replaced > 8 && stopped > 120, "the sample is not what it should be");
}

/// A minimal executor: a thread that sleeps until it is woken, and counts how often that happens.
struct Sleeper {
    thread: Thread,
    woken: AtomicUsize,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Sleeper {
    fn here() -> Arc<Sleeper> {
        Arc::new(Sleeper { thread: thread::current(), woken: AtomicUsize::new(0) })
    }

    fn woken(&self) -> usize {
        self.woken.load(Ordering::SeqCst)
    }

    fn poll(self: &Arc<Self>, stream: &mut Stream) -> Poll<Option<Result<Piece>>> {
        let waker = Waker::from(Arc::clone(self));
        Pin::new(stream).poll_next(&mut Context::from_waker(&waker))
    }

    /// The next piece. It polls only when it is woken, never because time has passed.
    fn next(self: &Arc<Self>, stream: &mut Stream) -> Option<Result<Piece>> {
        loop {
            let before = self.woken();
            match self.poll(stream) {
                Poll::Ready(piece) => return piece,
                Poll::Pending => {
                    let until = Instant::now() + Duration::from_secs(60);
                    while self.woken() == before {
                        thread::park_timeout(Duration::from_secs(60));
                        assert!(Instant::now() < until, "nobody woke the one who waits");
                    }
                }
            }
        }
    }
}

#[test]
fn a_polled_stream_has_the_same_pieces_and_wakes_once_for_each_at_most() {
    let model = load(&LoadOptions::default());
    let sleeper = Sleeper::here();
    for i in 0..24 {
        let options = GenerateOptions { n: 1 + i % 3, ..options(i) };
        let want: Vec<_> = model.stream("春眠不觉晓，", &options).unwrap().map(Result::unwrap).collect();
        let before = sleeper.woken();
        let mut stream = model.stream("春眠不觉晓，", &options).unwrap();
        let got: Vec<_> = std::iter::from_fn(|| sleeper.next(&mut stream)).map(Result::unwrap).collect();
        let without_found = |pieces: &[Piece]| -> Vec<Piece> {
            let mut pieces = pieces.to_vec();
            pieces.iter_mut().filter_map(|p| p.finish.as_mut()).for_each(|finish| finish.cached_tokens = 0);
            pieces
        };
        assert_eq!(without_found(&got), without_found(&want), "stream {i}");
        let woken = sleeper.woken() - before;
        assert!(woken <= got.len() + 1, "{woken} times for {} pieces and the end", got.len());
        assert_eq!(sleeper.poll(&mut stream), Poll::Ready(None));
    }
    assert!(sleeper.woken() > 24);
}

#[test]
fn an_idle_stream_wakes_nobody_and_the_first_piece_does() {
    let model = load(&LoadOptions { max_running: 1, ..LoadOptions::default() });
    let long = GenerateOptions { max_tokens: 480, n: 64, ignore_eos: true, ..GenerateOptions::default() };
    let mut running = model.stream("春", &long).unwrap();
    running.next().unwrap().unwrap();
    let mut waiting = model.stream("夏", &GenerateOptions::greedy(4)).unwrap();
    let sleeper = Sleeper::here();
    assert_eq!(sleeper.poll(&mut waiting), Poll::Pending);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(
        (sleeper.woken(), model.stats().queue_depth),
        (0, 1),
        "it has waited for its turn all the time"
    );
    running.cancel();
    assert_eq!(sleeper.next(&mut waiting).unwrap().unwrap().index, 0);
    assert!(sleeper.woken() >= 1);
    drop((waiting, running));
    assert_eq!(at_rest(&model).open, 0);
}

#[test]
fn a_polled_stream_that_is_dropped_is_cancelled_and_the_ends_of_others_wake() {
    let model = load(&LoadOptions::default());
    let long = GenerateOptions { max_tokens: 480, n: 32, ignore_eos: true, ..GenerateOptions::default() };
    let sleeper = Sleeper::here();
    for _ in 0..50 {
        let fits = GenerateOptions { n: 8, ..long.clone() }; // with all others in the queue
        let mut stream = model.stream("春", &fits).unwrap();
        let _ = sleeper.poll(&mut stream);
    }
    assert_eq!(at_rest(&model).open, 0);
    // A deadline, and a cancel from another thread.
    let soon = GenerateOptions { deadline: Some(Duration::from_millis(20)), ..long.clone() };
    let mut late = model.stream("春", &soon).unwrap();
    let mut cancelled = model.stream("春", &long).unwrap();
    let cancel = cancelled.canceller();
    let canceller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        cancel();
    });
    for (stream, reason) in [(&mut late, FinishReason::Deadline), (&mut cancelled, FinishReason::Cancelled)] {
        let pieces = std::iter::from_fn(|| sleeper.next(stream)).map(Result::unwrap);
        let reasons: Vec<_> = pieces.filter_map(|piece| piece.finish).map(|finish| finish.reason).collect();
        assert_eq!(reasons, [reason; 32]);
    }
    canceller.join().unwrap();
}

/// A waker that owns a task. If an executor has gone, its waker may have the last reference to a task and all its
/// values.
#[test]
fn a_waker_may_drop_the_last_handle_of_the_model() {
    struct Holds {
        task: Mutex<Option<(Model, Stream)>>,
        dropped: Mutex<Sender<()>>,
    }
    impl Wake for Holds {
        fn wake(self: Arc<Self>) {
            drop(self.task.lock().unwrap().take());
            self.dropped.lock().unwrap().send(()).unwrap();
        }
    }
    for _ in 0..5 {
        let model = load(&LoadOptions::default());
        let long = GenerateOptions { max_tokens: 480, ..options(1) };
        let mut stream = model.stream("春眠不觉晓，", &long).unwrap();
        let (dropped, is_dropped) = channel();
        let holds = Arc::new(Holds { task: Mutex::new(None), dropped: Mutex::new(dropped) });
        let waker = Waker::from(Arc::clone(&holds));
        // Locked while it polls, so that the engine cannot wake it before there is a task.
        let mut task = holds.task.lock().unwrap();
        let mut poll = || stream.poll_next(&mut Context::from_waker(&waker));
        while let Poll::Ready(piece) = poll() {
            assert!(piece.is_some(), "the text is too short for this test");
        }
        *task = Some((model, stream));
        drop(task);
        is_dropped.recv_timeout(Duration::from_secs(20)).expect("the engine's thread waits for itself");
    }
}
