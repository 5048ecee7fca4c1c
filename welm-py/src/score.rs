//! Scoring: prompts with their continuations, and the class that `welm._aio` uses.

use pyo3::prelude::*;
use pyo3::types::PyList;
use welm_core::{self as core, CancelToken, Score, ScoreOptions};

use crate::argument::{Argument, Elements};
use crate::engine::Owned;
use crate::error::{OrRaise, invalid_option};
use crate::exit::{detached, enter};
use crate::log;
use crate::output;
use crate::prompt::{OnePrompt, Prompts, has_len, is_text};

/// What is expected of the continuations of one prompt.
const ONE: &str = "a sequence of str, or of sequences of token ids";

/// Prompts with the continuations of each.
pub(crate) struct Pairs {
    prompts: Vec<OnePrompt>,
    continuations: Continuations,
    /// Whether one prompt was given, not a list. Then its scores are not in a list of lists.
    is_one: bool,
}

enum Continuations {
    /// The same after every prompt.
    Shared(Vec<OnePrompt>),
    /// Those of each prompt.
    Each(Vec<Vec<OnePrompt>>),
}

impl Pairs {
    pub(crate) fn new(
        model: &core::Model,
        prompt: &Bound<'_, PyAny>,
        continuations: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let (prompts, is_one) = match Prompts::new(model, prompt)? {
            Prompts::One(prompt) => (vec![prompt], true),
            Prompts::Many(prompts) => (prompts, false),
        };
        let argument = Argument::new("continuations", continuations);
        if is_one || !has_lists(continuations) {
            let continuations = Continuations::Shared(list(model, argument)?);
            return Ok(Pairs { prompts, continuations, is_one });
        }
        const EXPECTED: &str = "a list of continuations, or such a list for each prompt";
        let n = prompts.len();
        let lists =
            argument.sequence(EXPECTED, n, |element| list(model, Argument::new("continuations", element)))?;
        let got = match lists {
            Elements::All(lists) if lists.len() == n => {
                return Ok(Pairs { prompts, continuations: Continuations::Each(lists), is_one });
            }
            Elements::All(lists) => lists.len(),
            Elements::TooMany(count) => count,
        };
        let reason = format!("expected {n} lists, one for each prompt, got {got}");
        Err(invalid_option(prompt.py(), "continuations", reason))
    }

    fn of(&self, prompt: usize) -> &[OnePrompt] {
        match &self.continuations {
            Continuations::Shared(continuations) => continuations,
            Continuations::Each(lists) => &lists[prompt],
        }
    }

    /// `Model::score_pairs` of all.
    pub(crate) fn score(&self, model: &core::Model, options: &ScoreOptions) -> core::Result<Vec<Score>> {
        let mut pairs = Vec::new();
        for (at, prompt) in self.prompts.iter().enumerate() {
            let prompt = prompt.as_prompt(model, 0)?;
            for continuation in self.of(at) {
                pairs.push((prompt, continuation.as_prompt(model, 0)?));
            }
        }
        model.score_pairs(&pairs, options)
    }

    /// Scores as they were asked for: a list, or a list for each prompt.
    pub(crate) fn shaped<'py>(
        &self,
        py: Python<'py>,
        model: &core::Model,
        scores: &[Score],
    ) -> PyResult<Bound<'py, PyAny>> {
        let list = |scores: &[Score]| -> PyResult<_> {
            let scores = scores.iter().map(|score| output::score(py, model, score));
            PyList::new(py, scores.collect::<PyResult<Vec<_>>>()?)
        };
        if self.is_one {
            return Ok(list(scores)?.into_any());
        }
        let (whole, mut left) = (PyList::empty(py), scores);
        for at in 0..self.prompts.len() {
            let (own, others) = left.split_at(self.of(at).len());
            whole.append(list(own)?)?;
            left = others;
        }
        Ok(whole.into_any())
    }
}

/// Whether the elements are lists of continuations: neither texts nor tokens.
fn has_lists(continuations: &Bound<'_, PyAny>) -> bool {
    let Ok(first) = continuations.get_item(0) else { return false };
    if is_text(continuations) || is_text(&first) || !has_len(&first) {
        return false;
    }
    // Token ids have no length. An empty list counts as a list of continuations.
    first.get_item(0).map_or(true, |element| is_text(&element) || has_len(&element))
}

/// The continuations of a prompt.
fn list(model: &core::Model, argument: Argument<'_, '_>) -> PyResult<Vec<OnePrompt>> {
    let continuations = argument.sequence(ONE, usize::MAX, |element| {
        if !is_text(element) && !has_len(element) {
            return Err(argument.not_of(ONE, element));
        }
        let element = Argument::new("continuations", element);
        OnePrompt::text_or_tokens(model, element, "str or a sequence of token ids")
    })?;
    argument.all(continuations, usize::MAX, "continuations")
}

/// A scoring that a thread of `welm._aio` runs.
#[pyclass(frozen, module = "welm._welm")]
pub(crate) struct Scoring {
    model: Owned<core::Model>,
    pairs: Pairs,
    options: ScoreOptions,
    stop: CancelToken,
}

impl Scoring {
    pub(crate) fn new(model: core::Model, pairs: Pairs, options: ScoreOptions) -> Self {
        let stop = options.cancel.as_ref().map_or_else(CancelToken::new, CancelToken::child);
        let options = ScoreOptions { cancel: Some(stop.clone()), ..options };
        Scoring { model: Owned::new(model), pairs, options, stop }
    }
}

#[pymethods]
impl Scoring {
    /// Waits for the scores.
    fn run<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let _inside = enter(py);
        let model = self.model.get(py)?;
        let scores = detached(py, || self.pairs.score(model, &self.options)).or_raise(py)?;
        log::flush(py)?;
        self.pairs.shaped(py, model, &scores)
    }

    /// Ends the scoring; nobody waits for the scores any more.
    fn cancel(&self) {
        self.stop.cancel();
    }
}
