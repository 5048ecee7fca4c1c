//! Counters of the engine, for monitoring.

use welm_core::{Histogram, Stats};

use crate::error::{welm_error, welm_status};
use crate::guard::{status, value};
use crate::model::welm_model;
use crate::sized::{self, Growing};

/// Buckets of a histogram.
pub const WELM_HISTOGRAM_BUCKETS: usize = 23;
const _: () = assert!(WELM_HISTOGRAM_BUCKETS == Histogram::BUCKETS);

/// Times in buckets whose upper bounds double.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_histogram {
    /// Upper bound of each bucket, in seconds, from 0.1 ms on; infinite for the last.
    pub bounds_s: [f64; WELM_HISTOGRAM_BUCKETS],
    /// Observations in each bucket.
    pub counts: [u64; WELM_HISTOGRAM_BUCKETS],
    /// Sum of the observations, in seconds.
    pub sum_s: f64,
}

impl From<&Histogram> for welm_histogram {
    fn from(h: &Histogram) -> Self {
        welm_histogram { bounds_s: std::array::from_fn(Histogram::bound_s), counts: h.counts, sum_s: h.sum_s }
    }
}

/// Counters of an engine. Set `struct_size` before the call that fills it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_stats {
    /// `sizeof(welm_stats)`.
    pub struct_size: usize,
    /// Requests accepted into the queue.
    pub requests: u64,
    /// Requests refused because the queue was full.
    pub rejected: u64,
    /// Requests that are not finished.
    pub open: u64,
    /// Sequences that wait in the queue and have not started.
    pub queue_depth: usize,
    /// Sequences in the current step.
    pub running: usize,
    /// How often a sequence lost its part of the KV cache to others, and was computed again.
    pub preemptions: u64,
    /// Steps of the engine.
    pub steps: u64,
    /// Prompt tokens, computed or found in the prefix cache.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hit_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Blocks of the KV cache.
    pub blocks_total: usize,
    /// Blocks that sequences use.
    pub blocks_used: usize,
    /// Blocks that no sequence uses, kept because a later prompt may begin with the same tokens.
    pub blocks_cached: usize,
    /// From submission to the first token of each sequence.
    pub time_to_first_token: welm_histogram,
    /// Between two tokens of a sequence.
    pub time_between_tokens: welm_histogram,
}

// SAFETY: `repr(C)`, size first; numbers of the same size.
unsafe impl Growing for welm_stats {}

impl From<Stats> for welm_stats {
    fn from(s: Stats) -> Self {
        welm_stats {
            struct_size: size_of::<Self>(),
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
            time_to_first_token: (&s.time_to_first_token).into(),
            time_between_tokens: (&s.time_between_tokens).into(),
        }
    }
}

/// Whether the engine still runs: for the liveness probe of a service. It computes nothing, and returns at once.
///
/// It looks for no faults. A lost device, or a file that was cut short, is noticed by the next request that computes; from
/// then on this returns the error. An engine that has ended does not come back: load the model again, or start the process
/// again.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one model; requests do not wait for it.
/// - NULL: not allowed for `model`; allowed for `error`.
/// - errors: that with which the engine ended: `WELM_DEVICE_LOST`, `WELM_INVALID_FILE` for a mapped file that was cut
///   short, `WELM_ENGINE_STOPPED` after an internal fault; `WELM_FORKED`; the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_check_health(
    model: *const welm_model,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: the handle is the caller's, as the comment asks.
    let body = || Ok(unsafe { welm_model::get(model) }?.check_health()?);
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// Counters of the engine, at this moment. Set `stats->struct_size` before.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one model; requests do not wait for it.
/// - NULL: not allowed for `model` and `stats`; allowed for `error`.
/// - errors: only the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_stats(
    model: *const welm_model,
    stats: *mut welm_stats,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle and struct are the caller's, as the comment asks.
    let body = || unsafe { sized::write("stats", stats, &welm_model::get(model)?.stats().into()) };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// The quantile `q` (0 to 1): the upper bound, in seconds, of the bucket in which this share of the observations is
/// reached; 0 if there are none.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one histogram.
/// - NULL: 0 for a NULL `histogram`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_histogram_quantile_s(histogram: *const welm_histogram, q: f64) -> f64 {
    value(0.0, || {
        // SAFETY: NULL, or a histogram of the caller's, by the function's contract.
        let histogram = unsafe { histogram.as_ref() };
        histogram.map_or(0.0, |h| Histogram { counts: h.counts, sum_s: h.sum_s }.quantile_s(q))
    })
}
