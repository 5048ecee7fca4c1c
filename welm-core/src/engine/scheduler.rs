//! Decides which sequences get how many rows in the next step. It touches no tensor.
//!
//! - Every running sequence that has one token to compute (it is decoding) gets its row in each step.
//! - Prompts share `chunk_tokens` rows in a step. Prompts that had no rows for longest come first. So a long prompt
//!   delays a short one, or anybody's next token, by at most one chunk.
//! - Sequences are admitted in order of arrival. A sequence is admitted when there are blocks for its whole prompt, and
//!   one more for every running sequence. It gets all blocks of its prompt at once, so a prompt never waits for memory
//!   after it has begun.
//! - If there is no block for a running sequence that grows, the youngest running sequence is preempted. It gives its
//!   blocks back and waits, before all that came later, to be computed again. Its text does not change, because the
//!   bits of a row do not depend on when it is computed.

use std::collections::VecDeque;

use super::block_manager::BlockManager;
use super::sequence::Sequence;
use crate::batch::BLOCK_TOKENS;

/// The rows of one running sequence in the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Index of the sequence in `Scheduler::running`.
    pub(crate) seq: usize,
    /// How many of its tokens to compute, from `Sequence::computed` on.
    pub(crate) n_tokens: usize,
}

/// The list that a sequence is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// It holds no blocks.
    Waiting,
    /// It holds its blocks.
    Running,
}

/// The waiting and the running sequences, and the cache blocks.
pub(crate) struct Scheduler {
    pub(crate) waiting: VecDeque<Sequence>,
    pub(crate) running: Vec<Sequence>,
    pub(crate) blocks: BlockManager,
    pub(crate) preemptions: u64,
    chunk_tokens: usize,
    max_running: usize,
    step: u64,
}

impl Scheduler {
    /// A scheduler without sequences. A step has at most `chunk_tokens` rows of prompts, and at most `max_running`
    /// sequences run.
    pub(crate) fn new(blocks: BlockManager, chunk_tokens: usize, max_running: usize) -> Self {
        Scheduler {
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks,
            preemptions: 0,
            chunk_tokens,
            max_running,
            step: 0,
        }
    }

    /// Whether there is nothing to do.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The sequence at index `at`, if there is one.
    pub(crate) fn get(&self, queue: Queue, at: usize) -> Option<&Sequence> {
        match queue {
            Queue::Waiting => self.waiting.get(at),
            Queue::Running => self.running.get(at),
        }
    }

    /// Removes the sequence at index `at`, which must exist.
    pub(crate) fn remove(&mut self, queue: Queue, at: usize) -> Sequence {
        match queue {
            Queue::Waiting => self.waiting.remove(at).expect("the place exists"),
            Queue::Running => self.running.remove(at),
        }
    }

    /// Removes all sequences, running or waiting, for which `asked` is true.
    pub(crate) fn take(&mut self, asked: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let (mut taken, running): (Vec<_>, _) =
            std::mem::take(&mut self.running).into_iter().partition(&asked);
        let (more, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition::<VecDeque<_>, _>(&asked);
        (self.running, self.waiting) = (running, waiting);
        taken.extend(more);
        taken
    }

    /// Adds a sequence that has begun. It runs if its tokens are computed and there is room for it; else it waits.
    pub(crate) fn resume(&mut self, mut seq: Sequence) {
        let complete = seq.computed + 1 >= seq.target();
        if seq.ended.is_some() || (complete && self.running.len() < self.max_running) {
            self.running.push(seq);
        } else {
            seq.release(&mut self.blocks);
            self.enqueue(seq);
        }
    }

    /// Plans the next step. Calls `admitted` with each sequence that leaves the queue.
    pub(crate) fn schedule(&mut self, plan: &mut Vec<Work>, mut admitted: impl FnMut(&Sequence)) {
        self.step += 1;
        if !self.grow() {
            self.admit(&mut admitted);
        }
        plan.clear();
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.sort_by_key(|&i| (self.running[i].served, self.running[i].arrival, self.running[i].index));
        let mut budget = self.chunk_tokens;
        for seq in order {
            let s = &mut self.running[seq];
            let pending = s.target() - s.computed;
            let n_tokens = if pending == 1 { 1 } else { pending.min(budget) };
            if n_tokens == 0 {
                continue;
            }
            if pending > 1 {
                budget -= n_tokens;
            }
            s.served = self.step;
            plan.push(Work { seq, n_tokens });
        }
    }

    /// Gives every running sequence a block for its next token if it needs one. True if a sequence was preempted.
    fn grow(&mut self) -> bool {
        let before = self.preemptions;
        self.running.sort_by_key(|s| (s.arrival, s.index));
        let mut i = 0;
        while i < self.running.len() {
            let s = &mut self.running[i];
            if s.blocks.len() * BLOCK_TOKENS >= s.target() {
                i += 1;
            } else if let Some(block) = self.blocks.allocate() {
                s.blocks.push(block);
            } else {
                self.preempt_youngest();
            }
        }
        self.preemptions > before
    }

    fn preempt_youngest(&mut self) {
        let mut victim = self.running.pop().expect("a sequence that grows is running");
        tracing::debug!(arrival = victim.arrival, tokens = victim.tokens.len(), "preempted");
        victim.release(&mut self.blocks);
        self.preemptions += 1;
        self.enqueue(victim);
    }

    /// Puts a sequence that has begun back into the queue, before those that arrived later.
    fn enqueue(&mut self, seq: Sequence) {
        let key = |s: &Sequence| (s.arrival, s.index);
        let at = self.waiting.partition_point(|other| key(other) < key(&seq));
        self.waiting.insert(at, seq);
    }

    fn admit(&mut self, admitted: &mut impl FnMut(&Sequence)) {
        while self.running.len() < self.max_running {
            let Some(mut seq) = self.waiting.pop_front() else { break };
            seq.find_prefix(&mut self.blocks);
            let need = seq.target().div_ceil(BLOCK_TOKENS) - seq.blocks.len();
            if need + self.running.len() > self.blocks.available() {
                seq.release(&mut self.blocks);
                self.waiting.push_front(seq);
                break;
            }
            for _ in 0..need {
                seq.blocks.push(self.blocks.allocate().expect("counted above"));
            }
            if seq.shared.ticket.is_queued() {
                seq.cached_tokens = seq.computed;
            }
            admitted(&seq);
            self.running.push(seq);
        }
    }
}
