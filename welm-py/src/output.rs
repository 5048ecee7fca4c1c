//! Converts the core's results to the dataclasses of `welm._output`.
//!
//! These are dataclasses and not classes of this module, because type checkers can read their source, and equality,
//! pickling, `match` and `dataclasses.asdict` come with them. Making one takes about a microsecond; a token of a small
//! model takes hundreds.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyTuple, PyType};
use welm_core as core;

use crate::argument::Argument;
use crate::error::invalid_option;

/// A class of `welm._output`, looked up once.
macro_rules! class {
    ($py:expr, $name:literal) => {{
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        CLASS.import($py, "welm._output", $name)
    }};
}

/// An object of such a class from its fields.
macro_rules! record {
    ($py:expr, $name:literal { $($field:ident: $value:expr),* $(,)? }) => {{
        let fields = PyDict::new($py);
        $(fields.set_item(intern!($py, stringify!($field)), $value)?;)*
        class!($py, $name)?.call((), Some(&fields))
    }};
}

type Object<'py> = PyResult<Bound<'py, PyAny>>;

fn tuple<'py, T>(
    py: Python<'py>,
    items: impl IntoIterator<Item = T>,
    object: impl Fn(T) -> Object<'py>,
) -> PyResult<Bound<'py, PyTuple>> {
    let objects = items.into_iter().map(object).collect::<PyResult<Vec<_>>>()?;
    PyTuple::new(py, objects)
}

fn token<'py>(py: Python<'py>, model: &core::Model, token: &core::Token) -> Object<'py> {
    let class = class!(py, "Token")?;
    let bytes = |id| PyBytes::new(py, model.token_bytes(id));
    let alternatives =
        tuple(py, &token.alternatives, |&(id, logprob)| class.call1((id, logprob, (), bytes(id))))?;
    class.call1((token.id, token.logprob, alternatives, bytes(token.id)))
}

fn tokens<'py>(
    py: Python<'py>,
    model: &core::Model,
    tokens: &[core::Token],
) -> PyResult<Bound<'py, PyTuple>> {
    tuple(py, tokens, |t| token(py, model, t))
}

pub(crate) fn piece<'py>(py: Python<'py>, model: &core::Model, piece: &core::Piece) -> Object<'py> {
    let finish = piece.finish.as_ref().map(|f| {
        record!(py, "Finish" {
            reason: f.reason.as_str(),
            completion_tokens: f.completion_tokens,
            cached_tokens: f.cached_tokens,
            end_token: f.end_token,
        })
    });
    record!(py, "Piece" {
        index: piece.index,
        text: &piece.text,
        tokens: tokens(py, model, &piece.tokens)?,
        finish: finish.transpose()?,
    })
}

pub(crate) fn generation<'py>(
    py: Python<'py>,
    model: &core::Model,
    generation: &core::Generation,
) -> Object<'py> {
    let choice = |choice: &core::Choice| {
        record!(py, "Choice" {
            text: &choice.text,
            tokens: tokens(py, model, &choice.tokens)?,
            finish_reason: choice.finish_reason.as_str(),
            end_token: choice.end_token,
        })
    };
    let usage = &generation.usage;
    record!(py, "Generation" {
        choices: tuple(py, &generation.choices, choice)?,
        seed: generation.seed,
        usage: record!(py, "Usage" {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
        })?,
    })
}

pub(crate) fn score<'py>(py: Python<'py>, model: &core::Model, score: &core::Score) -> Object<'py> {
    record!(py, "Score" { logprob: score.logprob, tokens: tokens(py, model, &score.tokens)? })
}

pub(crate) fn estimate<'py>(py: Python<'py>, e: &core::Estimate) -> Object<'py> {
    record!(py, "Estimate" {
        total_bytes: e.total_bytes(),
        mapped_bytes: e.mapped_bytes,
        converted_bytes: e.converted_bytes,
        cache_bytes: e.cache_bytes,
        scratch_bytes: e.scratch_bytes,
        context_tokens: e.context_tokens,
        cache_tokens: e.cache_tokens,
    })
}

pub(crate) fn description<'py>(py: Python<'py>, d: &core::Description) -> Object<'py> {
    let types = tuple(
        py,
        &d.types,
        |t| record!(py, "TypeCount" { name: &t.name, tensors: t.tensors, elements: t.elements, bytes: t.bytes }),
    )?;
    let config = d.config.as_ref().map(|c| config(py, c)).transpose()?;
    let settings = PyDict::new(py);
    for (name, value) in &d.settings {
        settings.set_item(name, value)?;
    }
    record!(py, "Description" {
        format: d.format,
        family: d.family.as_deref(),
        elements: d.elements,
        types: types,
        settings: settings,
        config: config,
        tokenizer: d.tokenizer.map(|(kind, _)| kind),
        tokenizer_tokens: d.tokenizer.map(|(_, tokens)| tokens),
        has_chat_template: d.has_chat_template,
        unsupported: d.unsupported.as_deref(),
    })
}

pub(crate) fn stats<'py>(py: Python<'py>, s: core::Stats) -> Object<'py> {
    record!(py, "Stats" {
        requests: s.requests,
        rejected: s.rejected,
        open: s.open,
        queue_depth: s.queue_depth,
        running: s.running,
        preemptions: s.preemptions,
        steps: s.steps,
        prompt_tokens: s.prompt_tokens,
        prefix_hit_tokens: s.prefix_hit_tokens,
        completion_tokens: s.completion_tokens,
        blocks_total: s.blocks_total,
        blocks_used: s.blocks_used,
        blocks_cached: s.blocks_cached,
        time_to_first_token: Histogram(s.time_to_first_token),
        time_between_tokens: Histogram(s.time_between_tokens),
    })
}

pub(crate) fn config<'py>(py: Python<'py>, c: &core::ModelConfig) -> Object<'py> {
    // The first. Gemma 3 has a second one, for its local layers, which is not shown.
    let rope = &c.ropes[0];
    record!(py, "ModelConfig" {
        family: &c.family,
        n_params: c.n_params(),
        vocab_size: c.vocab_size,
        dim: c.dim,
        n_layers: c.n_layers,
        n_heads: c.n_heads,
        n_kv_heads: c.n_kv_heads,
        head_dim: c.head_dim,
        hidden_dim: c.hidden_dim,
        max_context: c.max_context,
        norm: c.norm.as_str(),
        norm_eps: c.norm_eps,
        activation: c.activation.as_str(),
        rotary_dim: rope.rotary_dim,
        rope_base: rope.base,
        rope_scaling: rope.scaling.as_str(),
        parallel_residual: c.parallel_residual,
        tied_output: c.tied_output,
        attention_bias: c.attention_bias,
        mlp_bias: c.mlp_bias,
        bos_token_id: c.bos_token_id,
        eos_token_ids: PyTuple::new(py, &c.eos_token_ids)?,
    })
}

/// Times in buckets whose upper bounds double: 0.1 ms, 0.2 ms, …, 209 s, more.
///
/// >>> times = model.stats().time_to_first_token
/// >>> times.quantile(0.5) <= times.quantile(0.99)
/// True
#[pyclass(frozen, eq, module = "welm")]
#[derive(PartialEq)]
pub(crate) struct Histogram(core::Histogram);

#[pymethods]
impl Histogram {
    #[new]
    fn new(counts: &Bound<'_, PyAny>, sum: &Bound<'_, PyAny>) -> PyResult<Self> {
        const BUCKETS: usize = core::Histogram::BUCKETS;
        let argument = Argument::new("counts", counts);
        let given = argument.sequence("a sequence of counts", BUCKETS, |count| {
            Argument::new("counts", count).count::<u64>()
        })?;
        let given = argument.all(given, BUCKETS, "counts")?;
        let wrong = |reason| invalid_option(counts.py(), "counts", reason);
        if given.iter().try_fold(0, |sum: u64, &count| sum.checked_add(count)).is_none() {
            return Err(wrong(format!("expected a sum of {} at most", u64::MAX)));
        }
        let counts = given
            .try_into()
            .map_err(|given: Vec<u64>| wrong(format!("expected {BUCKETS} counts, got {}", given.len())))?;
        Ok(Histogram(core::Histogram { counts, sum_s: Argument::new("sum", sum).real()? }))
    }

    /// Observations in each bucket.
    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.counts)
    }

    /// Upper bounds of the buckets in seconds, the last infinite.
    #[getter]
    fn bounds<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, (0..core::Histogram::BUCKETS).map(core::Histogram::bound_s).collect::<Vec<_>>())
    }

    /// Sum of the observations, in seconds.
    #[getter]
    fn sum(&self) -> f64 {
        self.0.sum_s
    }

    /// Observations in all.
    #[getter]
    fn count(&self) -> u64 {
        self.0.count()
    }

    /// The quantile ``q`` (0 to 1): the upper bound, in seconds, of the bucket in which this share of the observations
    /// is reached; 0 if there are none.
    fn quantile(&self, q: &Bound<'_, PyAny>) -> PyResult<f64> {
        Ok(self.0.quantile_s(Argument::new("q", q).real()?))
    }

    fn __getnewargs__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyTuple>, f64)> {
        Ok((self.counts(py)?, self.0.sum_s))
    }

    fn __repr__(&self) -> String {
        let h = &self.0;
        let (count, p50, p99) = (h.count(), h.quantile_s(0.5), h.quantile_s(0.99));
        format!("Histogram(count={count}, sum={}, p50={p50}, p99={p99})", h.sum_s)
    }
}
