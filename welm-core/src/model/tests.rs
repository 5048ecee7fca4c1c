use std::task::Poll;
use std::time::Duration;

use super::*;
use crate::options::{CancelToken, LoadOptions};

#[test]
fn waiting_with_a_timeout_loses_nothing() {
    let model = Model::load("../examples/welm-nano", &LoadOptions::default()).unwrap();
    let options = GenerateOptions { n: 3, ignore_eos: true, seed: Some(1), ..GenerateOptions::default() };
    let want: Vec<_> = model.stream("春", &options).unwrap().map(Result::unwrap).collect();
    let mut stream = model.stream("春", &options).unwrap();
    let (mut pieces, mut waits) = (Vec::new(), 0);
    loop {
        match stream.next_timeout(Duration::ZERO) {
            Poll::Ready(Some(piece)) => pieces.push(piece.unwrap()),
            Poll::Ready(None) => break,
            Poll::Pending => waits += 1,
        }
    }
    assert_eq!(pieces, want);
    assert!(waits > 0, "the first step takes longer than no time");
    assert_eq!((stream.next_timeout(Duration::MAX), stream.next()), (Poll::Ready(None), None));
}

#[test]
fn a_deadline_and_a_cancel_reach_the_tokenizer() {
    let model = Model::load("../examples/welm-nano", &LoadOptions::default()).unwrap();
    let text = "春".repeat(500);
    let cancel = CancelToken::new();
    cancel.cancel();
    let late = GenerateOptions { n: 2, deadline: Some(Duration::ZERO), ..GenerateOptions::default() };
    let cancelled = GenerateOptions { n: 2, cancel: Some(cancel), ..GenerateOptions::default() };
    for (options, want) in [(late, FinishReason::Deadline), (cancelled, FinishReason::Cancelled)] {
        let answer = model.generate(text.as_str(), &options).unwrap();
        let reasons: Vec<_> = answer.choices.iter().map(|c| (c.finish_reason, c.tokens.len())).collect();
        assert_eq!(reasons, [(want, 0), (want, 0)]);
    }
    assert_eq!(model.stats().open, 0);
}

#[test]
fn a_prompt_that_must_be_too_long_is_refused_before_all_of_it_is_looked_at() {
    let model = Model::load("../examples/welm-nano", &LoadOptions::default()).unwrap();
    let limit = model.context().0;
    for (n, exact) in [(limit + 1, true), (10_000_000, false)] {
        match model.generate("\n".repeat(n).as_str(), &GenerateOptions::greedy(1)) {
            Err(Error::TooLong { prompt, requested, .. }) => {
                assert_eq!((requested, prompt > limit), (prompt + 1, true));
                assert!(exact || prompt < n, "{prompt}");
            }
            other => panic!("{other:?}"),
        }
    }
}
