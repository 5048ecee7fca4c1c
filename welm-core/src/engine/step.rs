//! One step of the engine's thread: schedule, compute, choose, send.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use super::Engine;
use super::block_manager::BlockManager;
use super::choose::{Chooser, TopRows};
use super::request::Request;
use super::scheduler::{Queue, Scheduler, Work};
use super::sequence::{Sequence, Shared};
use super::stats::{Counters, Ticket};
use crate::backend::{Backend, Limits};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::kv_cache::KvCache;
use crate::output::FinishReason;
use crate::sampler::Logits;
use crate::transformer::{forward, logits, origins};

/// A message to the engine's thread.
pub(super) enum Command {
    Submit(Box<Request>, Ticket),
    /// A flag was set, such as that of a cancelled request. The thread checks flags only between steps.
    Wake,
    Stop,
}

/// To which sequence and position one of the batch's wanted rows belongs.
struct LogitRow {
    seq: usize, // index in `Scheduler::running`
    pos: usize, // position in that sequence
}

/// The loop of the engine's thread, and its state between steps.
pub(super) struct EngineLoop<B: Backend> {
    engine: Engine<B>,
    scheduler: Scheduler,
    counters: Arc<Counters>,
    arrivals: u64,
    plan: Vec<Work>,
    batch: Batch,
    logit_rows: Vec<LogitRow>,
    /// Siblings that were forked in this step.
    forked: Vec<Sequence>,
    top_rows: TopRows,
    chooser: Chooser,
}

impl<B: Backend> EngineLoop<B> {
    pub(super) fn new(engine: Engine<B>, scheduler: Scheduler, counters: Arc<Counters>) -> Self {
        let Limits { max_rows, n_blocks, .. } = engine.limits;
        let tokenizer = engine.tokenizer.clone();
        EngineLoop {
            top_rows: TopRows::default(),
            chooser: Chooser::new(engine.vocab_size, engine.eos.clone(), tokenizer, Arc::clone(&counters)),
            engine,
            scheduler,
            counters,
            arrivals: 0,
            plan: Vec::new(),
            batch: Batch::with_capacity(max_rows, n_blocks),
            logit_rows: Vec::with_capacity(max_rows),
            forked: Vec::new(),
        }
    }

    /// Takes steps until it is told to stop.
    pub(super) fn run(&mut self, inbox: &Receiver<Command>) -> Result<()> {
        loop {
            self.publish();
            // Waits for a command if there is nothing to do. Otherwise takes the commands that have come, and goes on.
            let mut command = if self.scheduler.is_idle() {
                inbox.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                inbox.try_recv()
            };
            loop {
                match command {
                    Ok(Command::Submit(request, ticket)) => self.accept(*request, ticket),
                    Ok(Command::Wake) => {}
                    Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
                    Err(TryRecvError::Empty) => break,
                }
                command = inbox.try_recv();
            }
            self.step()?;
        }
    }

    /// Schedules, computes, chooses and sends. If the device fails, the requests of this step fail, and no others.
    fn step(&mut self) -> Result<()> {
        self.interrupt();
        self.schedule();
        if self.plan.is_empty() {
            return Ok(());
        }
        match self.compute().and_then(|()| self.choose()).and_then(|()| self.settle()) {
            Err(Error::Device(reason)) => {
                self.fail_step(&Error::Device(reason));
                Ok(())
            }
            done => done,
        }
    }

    fn accept(&mut self, request: Request, ticket: Ticket) {
        self.arrivals += 1;
        let seq = Sequence::new(request, ticket, self.arrivals);
        if seq.is_complete() {
            self.finish(seq, FinishReason::Length);
        } else {
            self.scheduler.waiting.push_back(seq);
        }
    }

    /// Ends sequences of requests that were cancelled or are past their deadline.
    fn interrupt(&mut self) {
        let now = Instant::now();
        for queue in [Queue::Waiting, Queue::Running] {
            let mut at = 0;
            while let Some(seq) = self.scheduler.get(queue, at) {
                match seq.request().interrupted(now) {
                    Some(reason) => {
                        let seq = self.scheduler.remove(queue, at);
                        self.finish(seq, reason);
                    }
                    None => at += 1,
                }
            }
        }
    }

    fn schedule(&mut self) {
        let counters = &self.counters;
        self.scheduler.schedule(&mut self.plan, |seq| {
            if seq.shared.ticket.leave_queue() {
                counters.prefix_hit_tokens.fetch_add(seq.computed as u64, Ordering::Relaxed);
                counters.prompt_tokens.fetch_add(seq.tokens.len() as u64, Ordering::Relaxed);
            }
        });
    }

    /// Fills the batch and computes it.
    fn compute(&mut self) -> Result<()> {
        let running = &mut self.scheduler.running;
        self.batch.clear();
        self.logit_rows.clear();
        // Rows of prompts come first.
        for prompt in [true, false] {
            for &Work { seq, n_tokens } in &self.plan {
                let s = &running[seq];
                let (start, end, prompt_len) = (s.computed, s.computed + n_tokens, s.request().prompt.len());
                let part = if prompt { start..end.min(prompt_len) } else { start.max(prompt_len)..end };
                if part.is_empty() {
                    continue;
                }
                let (start, first_row) = (part.start, self.batch.len());
                let ids = &s.tokens[part.clone()];
                if prompt {
                    self.batch.push_prompt(ids, start, &s.blocks);
                } else {
                    self.batch.push_generated(ids, start, &s.blocks);
                }
                for pos in s.wanted.max(start)..part.end {
                    self.batch.want((first_row + pos - start) as u32);
                    self.logit_rows.push(LogitRow { seq, pos });
                }
            }
        }
        let e = &mut self.engine;
        forward(&mut e.backend, &e.weights, &mut e.kv, &mut e.scratch, &self.batch)?;
        for &Work { seq, n_tokens } in &self.plan {
            running[seq].advance(n_tokens, &mut self.scheduler.blocks);
        }
        self.counters.steps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Computes logits and chooses tokens from them.
    fn choose(&mut self) -> Result<()> {
        let mut first = 0;
        for tile in self.logit_rows.chunks(self.engine.limits.max_logit_rows) {
            let e = &mut self.engine;
            let wanted = first..first + tile.len();
            first = wanted.end;
            let computed = logits(&mut e.backend, &e.weights, &mut e.scratch, wanted)?;
            // If tokens can only be chosen among the largest logits, these are enough. The choice is exactly the same.
            let top_is_enough = tile.iter().all(|r| self.scheduler.running[r.seq].needs_only_top());
            let from_top = top_is_enough && self.top_rows.take(e.backend.top(computed)?);
            let values: &mut [f32] = if from_top { &mut [] } else { e.backend.read(computed)? };
            for (i, r) in tile.iter().enumerate() {
                let seq = &mut self.scheduler.running[r.seq];
                if matches!(seq.ended, Some(Err(_))) {
                    continue;
                }
                let mut row = if from_top {
                    self.top_rows.row(i)
                } else {
                    Logits::All(&mut values[i * e.vocab_size..(i + 1) * e.vocab_size])
                };
                if let Some(got) = row.not_finite() {
                    let began = String::new(); // `fail_broken` finds it after all rows were read
                    seq.ended = Some(Err(Error::NotFinite { position: r.pos, got, began }));
                    continue;
                }
                if seq.use_logits(r.pos, &row) {
                    continue;
                }
                self.chooser.begin(seq, &row);
                while let Some(mut sibling) = seq.fork() {
                    let blocks = &mut self.scheduler.blocks;
                    sibling.share_blocks(seq, blocks);
                    self.chooser.choose(&mut sibling, &mut row);
                    self.chooser.restore(&mut row);
                    let copied = copy_partial(seq, &mut sibling, blocks, &mut e.kv, &mut e.backend);
                    self.forked.push(sibling);
                    copied?;
                }
                self.chooser.choose(seq, &mut row);
            }
        }
        Ok(())
    }

    /// Lets siblings begin, removes sequences that ended, and sends the text that may be shown.
    fn settle(&mut self) -> Result<()> {
        // Before any result is sent that was computed from damaged files.
        self.engine.files.check()?;
        for sibling in self.forked.drain(..) {
            self.scheduler.resume(sibling);
        }
        self.fail_broken()?;
        for at in (0..self.scheduler.running.len()).rev() {
            let seq = &mut self.scheduler.running[at];
            if let Some(Ok(reason)) = seq.ended {
                let seq = self.scheduler.remove(Queue::Running, at);
                self.finish(seq, reason);
            } else {
                seq.emit_ready();
            }
        }
        Ok(())
    }

    /// Ends each request that has an unusable row of logits, with its own error.
    fn fail_broken(&mut self) -> Result<()> {
        let is_broken = |seq: &Sequence| matches!(seq.ended, Some(Err(_)));
        let broken: Vec<usize> =
            (0..self.scheduler.running.len()).filter(|&at| is_broken(&self.scheduler.running[at])).collect();
        if broken.is_empty() {
            return Ok(());
        }
        let is_not_finite =
            |at: &usize| matches!(self.scheduler.running[*at].ended, Some(Err(Error::NotFinite { .. })));
        let origins = if broken.iter().any(is_not_finite) { self.origins(&broken)? } else { Vec::new() };
        let mut failed = Vec::with_capacity(broken.len());
        for (n, at) in broken.into_iter().enumerate() {
            let seq = &mut self.scheduler.running[at];
            let Some(Err(mut error)) = seq.ended.take() else { continue };
            if let Error::NotFinite { began, .. } = &mut error {
                began.clone_from(&origins[n]);
            }
            failed.push((Rc::clone(&seq.shared), error));
        }
        for (request, error) in failed {
            tracing::warn!(%error, "a request failed");
            self.fail(|seq| Rc::ptr_eq(&seq.shared, &request), &error);
        }
        Ok(())
    }

    /// Finds where the values of some running sequences stopped being finite, by computing the step once more. Each row
    /// gets the same bits again, so this changes no other sequence.
    fn origins(&mut self, sequences: &[usize]) -> Result<Vec<String>> {
        let (b, running) = (&self.batch, &self.scheduler.running);
        let is_of = |row: usize, seq: &Sequence| {
            let (pos, table) = (b.positions[row] as usize, b.table(row));
            pos < seq.computed && *table == seq.blocks[..table.len()]
        };
        let owner = |row| sequences.iter().position(|&at| is_of(row, &running[at]));
        let owners: Vec<Option<usize>> = (0..b.len()).map(owner).collect();
        let e = &mut self.engine;
        let found = origins(&mut e.backend, &e.weights, &mut e.kv, &mut e.scratch, b, &owners)?;
        let largest = e.backend.largest_cached();
        let cache = largest.map_or(String::new(), |largest| {
            format!("; keys and values above {largest} need the cache_dtype bf16 or f32")
        });
        let say = |origin: Option<&(usize, usize)>| match origin {
            None => "after the last layer".into(),
            Some((0, row)) => format!("in the embedding, at position {}", b.positions[*row]),
            Some((n, row)) => format!("in layer {}, at position {}{cache}", n - 1, b.positions[*row]),
        };
        Ok((0..sequences.len()).map(|owner| say(found.get(&owner))).collect())
    }

    /// Ends all requests of this step with an error.
    fn fail_step(&mut self, error: &Error) {
        tracing::warn!(%error, sequences = self.plan.len(), "a step failed");
        self.scheduler.running.append(&mut self.forked);
        let running = &self.scheduler.running;
        let hit: HashSet<*const Shared> =
            self.plan.iter().map(|work| Rc::as_ptr(&running[work.seq].shared)).collect();
        self.fail(|seq| hit.contains(&Rc::as_ptr(&seq.shared)), error);
    }

    /// Ends requests with an error: all their sequences, running or waiting. If the device or the model is at fault,
    /// their blocks are not shared with later requests.
    fn fail(&mut self, asked: impl Fn(&Sequence) -> bool, error: &Error) {
        let mut hit = self.scheduler.take(asked);
        let blocks_are_sound = matches!(error, Error::InvalidOption { .. });
        for seq in &mut hit {
            if !blocks_are_sound {
                self.scheduler.blocks.forget(&seq.blocks);
            }
            seq.release(&mut self.scheduler.blocks);
        }
        self.tell(hit, error);
    }

    /// Sends the error to the requests of these sequences. All sequences of each request are among them.
    fn tell(&self, ended: Vec<Sequence>, error: &Error) {
        let once = |seq: Sequence| (seq.shared.open.replace(0) > 0).then_some(seq.shared);
        let requests: Vec<Rc<Shared>> = ended.into_iter().filter_map(once).collect();
        requests.iter().for_each(|shared| shared.ticket.close());
        self.publish(); // before the callers know, so that the stats already show the requests as ended
        requests.iter().for_each(|shared| shared.request.send(Err(error.clone())));
    }

    /// Ends a sequence, which was removed from its queue, and the siblings still to be forked from it. Takes its blocks
    /// back and sends the reason. Every sequence that ends without an error ends here.
    fn finish(&mut self, mut seq: Sequence, reason: FinishReason) {
        while let Some(sibling) = seq.fork() {
            self.finish(sibling, reason);
        }
        seq.release(&mut self.scheduler.blocks);
        seq.shared.ticket.leave_queue();
        seq.shared.open.set(seq.shared.open.get() - 1);
        if seq.shared.open.get() == 0 {
            seq.shared.ticket.close();
            self.publish(); // before the caller knows, so that the stats already show its blocks as free
        }
        seq.emit(Some(reason));
    }

    fn publish(&self) {
        let (c, s) = (&self.counters, &self.scheduler);
        c.running.store(s.running.len(), Ordering::Relaxed);
        c.blocks_used.store(s.blocks.total() - s.blocks.available(), Ordering::Relaxed);
        c.blocks_cached.store(s.blocks.cached(), Ordering::Relaxed);
        c.preemptions.store(s.preemptions, Ordering::Relaxed);
    }

    /// Ends all requests with an error. Does not touch the blocks, because after a fault their state is unknown.
    pub(super) fn fail_all(&mut self, error: &Error) {
        let mut all = self.scheduler.take(|_| true);
        all.append(&mut self.forked);
        self.tell(all, error);
    }
}

/// Gives a forked sequence its own copy of the block that the prompt fills only partly, if a block is available.
fn copy_partial<B: Backend>(
    from: &Sequence,
    to: &mut Sequence,
    blocks: &mut BlockManager,
    kv: &mut KvCache<B::KvLayer>,
    backend: &mut B,
) -> Result<()> {
    let Some(&partial) = from.blocks.get(to.blocks.len()).filter(|_| from.computed > to.computed) else {
        return Ok(());
    };
    if let Some(block) = blocks.allocate() {
        to.blocks.push(block); // before the copy: if that fails, it is given back with the others
        kv.copy_block(|layer| backend.copy_block(layer, partial, block))?;
        to.computed = from.computed;
    }
    Ok(())
}
