//! Statistics of an engine, for services: counters and two histograms.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// A histogram of times. The upper bounds of its buckets double: 0.1 ms, 0.2 ms, ... , 209 s; the last has no bound.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Histogram {
    /// Number of observations in each bucket.
    pub counts: [u64; Histogram::BUCKETS],
    /// Sum of the observations, in seconds.
    pub sum_s: f64,
}

impl Histogram {
    /// Number of buckets.
    pub const BUCKETS: usize = 23;

    /// Upper bound of a bucket in seconds; infinity for the last.
    pub fn bound_s(bucket: usize) -> f64 {
        if bucket + 1 >= Self::BUCKETS { f64::INFINITY } else { 1e-4 * (1u64 << bucket) as f64 }
    }

    /// Number of observations in all buckets.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The quantile `q` (0 to 1) in seconds, rounded up to the upper bound of its bucket; 0 if there are no
    /// observations.
    pub fn quantile_s(&self, q: f64) -> f64 {
        let rank = (q.clamp(0.0, 1.0) * self.count() as f64).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return Self::bound_s(bucket);
            }
        }
        0.0
    }
}

/// A [`Histogram`] to which one thread adds and which others read. It has no lock: the engine's thread might hold it
/// when the process forks, and a child that reads would then wait for ever.
#[derive(Debug, Default)]
struct Times {
    counts: [AtomicU64; Histogram::BUCKETS],
    sum_ns: AtomicU64,
}

impl Times {
    fn add(&self, time: Duration) {
        let (s, last) = (time.as_secs_f64(), Histogram::BUCKETS - 1);
        let bucket = (0..last).find(|&b| s <= Histogram::bound_s(b)).unwrap_or(last);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn snapshot(&self) -> Histogram {
        let counts = std::array::from_fn(|b| self.counts[b].load(Ordering::Relaxed));
        Histogram { counts, sum_s: self.sum_ns.load(Ordering::Relaxed) as f64 * 1e-9 }
    }
}

/// A snapshot of an engine's statistics; see [`crate::Model::stats`].
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Requests accepted into the queue.
    pub requests: u64,
    /// Requests refused because the queue was full.
    pub rejected: u64,
    /// Requests that are not finished.
    pub open: u64,
    /// Sequences in the queue that were never admitted.
    pub queue_depth: usize,
    /// Sequences in the current step.
    pub running: usize,
    /// How often a sequence gave its cache blocks to others and had to be computed again.
    pub preemptions: u64,
    /// Steps of the engine.
    pub steps: u64,
    /// Prompt tokens of requests that began to run, found in the prefix cache or to be computed.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub prefix_hit_tokens: u64,
    /// Generated tokens, with those that ended a sequence.
    pub completion_tokens: u64,
    /// Blocks of the KV cache.
    pub blocks_total: usize,
    /// Blocks that sequences hold.
    pub blocks_used: usize,
    /// Blocks that no sequence holds, but that the prefix cache may reuse.
    pub blocks_cached: usize,
    /// Times from the submission of a request to its first token.
    pub time_to_first_token: Histogram,
    /// Times between two tokens of a sequence.
    pub time_between_tokens: Histogram,
}

/// The counters from which [`Stats`] are made, shared by the engine's thread and the handles.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) finished: AtomicU64,
    pub(crate) queue_depth: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) preemptions: AtomicU64,
    pub(crate) steps: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) prefix_hit_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
    pub(crate) blocks_total: AtomicUsize,
    pub(crate) blocks_used: AtomicUsize,
    pub(crate) blocks_cached: AtomicUsize,
    first_token: Times,
    next_token: Times,
}

impl Counters {
    /// Adds a time to first token.
    pub(crate) fn first_token(&self, time: Duration) {
        self.first_token.add(time);
    }

    /// Adds a time between two tokens.
    pub(crate) fn next_token(&self, time: Duration) {
        self.next_token.add(time);
    }

    /// The present values.
    pub(crate) fn snapshot(&self) -> Stats {
        let get = |x: &AtomicU64| x.load(Ordering::Relaxed);
        let size = |x: &AtomicUsize| x.load(Ordering::Relaxed);
        let finished = self.finished.load(Ordering::Acquire); // before `requests`, so that `open` is not negative
        let requests = get(&self.requests);
        Stats {
            requests,
            rejected: get(&self.rejected),
            open: requests.saturating_sub(finished),
            queue_depth: size(&self.queue_depth),
            running: size(&self.running),
            preemptions: get(&self.preemptions),
            steps: get(&self.steps),
            prompt_tokens: get(&self.prompt_tokens),
            prefix_hit_tokens: get(&self.prefix_hit_tokens),
            completion_tokens: get(&self.completion_tokens),
            blocks_total: size(&self.blocks_total),
            blocks_used: size(&self.blocks_used),
            blocks_cached: size(&self.blocks_cached),
            time_to_first_token: self.first_token.snapshot(),
            time_between_tokens: self.next_token.snapshot(),
        }
    }
}

/// Counts a request as open and queued, from its submission to its end. Dropping the ticket undoes that. So a request
/// that ends in whatever way is no longer counted.
pub(crate) struct Ticket {
    counters: Arc<Counters>,
    /// Number of sequences of the request.
    n: usize,
    queued: Cell<bool>,
    open: Cell<bool>,
}

impl Ticket {
    /// Takes places for `n` sequences in a queue of `limit` places. If there are too few: how many sequences wait.
    pub(crate) fn take(counters: &Arc<Counters>, n: usize, limit: usize) -> Result<Ticket, usize> {
        let longer = |waiting: usize| waiting.checked_add(n).filter(|&waiting| waiting <= limit);
        if let Err(waiting) = counters.queue_depth.fetch_update(Ordering::AcqRel, Ordering::Acquire, longer) {
            counters.rejected.fetch_add(1, Ordering::Relaxed);
            return Err(waiting);
        }
        counters.requests.fetch_add(1, Ordering::Relaxed);
        Ok(Ticket { counters: Arc::clone(counters), n, queued: Cell::new(true), open: Cell::new(true) })
    }

    /// Whether the request's sequences count as queued.
    pub(crate) fn is_queued(&self) -> bool {
        self.queued.get()
    }

    /// Removes the sequences from the count of the queue. False if they had left it before.
    pub(crate) fn leave_queue(&self) -> bool {
        let was_queued = self.queued.replace(false);
        if was_queued {
            self.counters.queue_depth.fetch_sub(self.n, Ordering::AcqRel);
        }
        was_queued
    }

    /// Counts the request as ended. A second call does nothing.
    pub(crate) fn close(&self) {
        self.leave_queue();
        if self.open.replace(false) {
            self.counters.finished.fetch_add(1, Ordering::Release);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_gives_its_place_back_once() {
        let counters = Arc::new(Counters::default());
        let now = |open, queue_depth, rejected| {
            let stats = counters.snapshot();
            assert_eq!((stats.open, stats.queue_depth, stats.rejected), (open, queue_depth, rejected));
        };
        let dropped = Ticket::take(&counters, 3, 4).unwrap();
        assert_eq!(Ticket::take(&counters, 2, 4).map(drop), Err(3));
        assert_eq!(Ticket::take(&counters, usize::MAX, 4).map(drop), Err(3));
        now(1, 3, 2);
        let closed = Ticket::take(&counters, 1, 4).unwrap();
        assert!(closed.leave_queue() && !closed.leave_queue() && !closed.is_queued());
        now(2, 3, 2);
        closed.close();
        closed.close();
        drop(closed);
        now(1, 3, 2);
        drop(dropped);
        now(0, 0, 2);
    }

    #[test]
    fn times_fall_into_doubling_buckets() {
        let times = Times::default();
        assert_eq!(times.snapshot(), Histogram::default());
        assert_eq!(times.snapshot().quantile_s(0.5), 0.0);
        for ms in [0.05, 0.15, 0.15, 1e9] {
            times.add(Duration::from_secs_f64(ms / 1e3));
        }
        let h = times.snapshot();
        assert_eq!((h.count(), h.counts[0], h.counts[1], h.counts[22]), (4, 1, 2, 1));
        assert_eq!((h.quantile_s(0.5), h.quantile_s(1.0)), (2e-4, f64::INFINITY));
    }
}
