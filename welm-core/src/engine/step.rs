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
    /// A flag was set that is only looked at between steps.
    Wake,
    Stop,
}

/// Whose logits one of the batch's wanted rows gives.
struct LogitRow {
    seq: usize, // of the running sequences
    pos: usize, // in that sequence
}

/// The thread's loop, and what lives from step to step.
pub(super) struct EngineLoop<B: Backend> {
    engine: Engine<B>,
    scheduler: Scheduler,
    counters: Arc<Counters>,
    arrivals: u64,
    plan: Vec<Work>,
    batch: Batch,
    logit_rows: Vec<LogitRow>,
    /// Sequences that begin in this step, after the prompt of another.
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

    /// Steps until it is told to stop.
    pub(super) fn run(&mut self, inbox: &Receiver<Command>) -> Result<()> {
        loop {
            self.publish();
            // Sleeps while there is nothing to do; otherwise takes what has come and goes on.
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

    /// Schedules, computes, chooses and sends. Where the device fails, so do the requests of the step, and no others.
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

    /// Ends what was cancelled or is late.
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
        // Rows of prompts first.
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

    /// Logits to tokens.
    fn choose(&mut self) -> Result<()> {
        let mut first = 0;
        for tile in self.logit_rows.chunks(self.engine.limits.max_logit_rows) {
            let e = &mut self.engine;
            let wanted = first..first + tile.len();
            first = wanted.end;
            let computed = logits(&mut e.backend, &e.weights, &mut e.scratch, &self.batch, wanted)?;
            // The largest are enough where only they can be chosen; the choice is the same, to the bit.
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
                    let began = String::new(); // looked for when all rows were read
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

    /// Siblings begin, ended sequences leave, and what may be shown is sent.
    fn settle(&mut self) -> Result<()> {
        // Before anything is sent that came of it.
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

    /// Ends the requests of which a row of logits was of no use, each with its own error.
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

    /// Where the values of some running sequences stopped being finite, from computing the step once more. That gives
    /// each row the same bits, so that nothing else notices.
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
        let say = |origin: Option<&(usize, usize)>| match origin {
            None => "after the last layer".into(),
            Some((0, row)) => format!("in the embedding, at position {}", b.positions[*row]),
            Some((n, row)) => format!("in layer {}, at position {}", n - 1, b.positions[*row]),
        };
        Ok((0..sequences.len()).map(|owner| say(found.get(&owner))).collect())
    }

    /// Ends the requests of this step with an error.
    fn fail_step(&mut self, error: &Error) {
        tracing::warn!(%error, sequences = self.plan.len(), "a step failed");
        self.scheduler.running.append(&mut self.forked);
        let running = &self.scheduler.running;
        let hit: HashSet<*const Shared> =
            self.plan.iter().map(|work| Rc::as_ptr(&running[work.seq].shared)).collect();
        self.fail(|seq| hit.contains(&Rc::as_ptr(&seq.shared)), error);
    }

    /// Ends requests with an error: all their sequences, wherever they are. Where the device or the model is at fault, what
    /// they have computed is not shared with later ones.
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

    /// Says to the requests of these sequences, which are all that they have, why they ended.
    fn tell(&self, ended: Vec<Sequence>, error: &Error) {
        let once = |seq: Sequence| (seq.shared.open.replace(0) > 0).then_some(seq.shared);
        let requests: Vec<Rc<Shared>> = ended.into_iter().filter_map(once).collect();
        requests.iter().for_each(|shared| shared.ticket.close());
        self.publish(); // before the callers can know, so that a look at the stats sees them ended
        requests.iter().for_each(|shared| shared.request.send(Err(error.clone())));
    }

    /// Ends a sequence that was taken out, and the siblings that are still to be forked from it: takes the blocks back
    /// and says why. The only way for a sequence to end without an error.
    fn finish(&mut self, mut seq: Sequence, reason: FinishReason) {
        while let Some(sibling) = seq.fork() {
            self.finish(sibling, reason);
        }
        seq.release(&mut self.scheduler.blocks);
        seq.shared.ticket.leave_queue();
        seq.shared.open.set(seq.shared.open.get() - 1);
        if seq.shared.open.get() == 0 {
            seq.shared.ticket.close();
            self.publish(); // before the caller can know, so that a look at the stats sees its blocks free
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

    /// Ends everything with an error. After a fault, the blocks are not to be touched.
    pub(super) fn fail_all(&mut self, error: &Error) {
        let mut all = self.scheduler.take(|_| true);
        all.append(&mut self.forked);
        self.tell(all, error);
    }
}

/// Gives a forked sequence its own copy of the block that the prompt fills in part, if there is memory.
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
        kv.copy_block(|layer| backend.copy_block(layer, partial, block))?;
        to.blocks.push(block);
        to.computed = from.computed;
    }
    Ok(())
}
