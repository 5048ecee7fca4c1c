//! The engine thread: `step = schedule, run, postprocess`, until the last handle is gone.
//!
//! One thread owns weights, cache and scratch; requests reach it through a channel, and pieces leave it
//! through one channel per request. Calls from many threads therefore share each forward pass without
//! knowing of each other (continuous batching), and nothing in here needs a lock.
//!
//! If a step fails on the device, its requests are told why, and the others go on. If the device is lost or a step
//! panics, every open request and every later one is told why; the host goes on.

pub(crate) mod batch;
pub(crate) mod block_manager;
pub(crate) mod scheduler;
pub(crate) mod sequence;
pub(crate) mod stats;
pub(crate) mod text;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use self::batch::Batch;
use self::block_manager::BlockManager;
use self::scheduler::{Queue, Scheduler, Work};
use self::sequence::{Request, Sequence};
use self::stats::Counters;
use crate::backend::{Backend, Limits, Top};
use crate::error::{Error, Result};
use crate::host::bus::Unblocked;
use crate::host::fork::Local;
use crate::host::memory::expect_room;
use crate::host::panics;
use crate::host::threads::{STACK, refused};
use crate::kv_cache::KvCache;
use crate::options::LoadOptions;
use crate::output::{FinishReason, Token};
use crate::sampler::{Sampler, uniform};
use crate::tokenizer::Tokenizer;
use crate::transformer::{Scratch, Weights, forward, logits};
use crate::weights::map::Files;

/// A message to the engine thread.
enum Command {
    Submit(Box<Request>),
    /// A flag was set that is only looked at between steps.
    Wake,
    Stop,
}

/// What the handles hold of the engine.
pub(crate) struct Handle {
    link: Local<Link>,
    pub(crate) counters: Arc<Counters>,
    queue_limit: usize,
}

/// The way to the engine's thread, which a forked child does not have.
struct Link {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    fault: Arc<Mutex<Option<Error>>>,
}

/// Everything the engine thread owns.
pub(crate) struct Engine<B: Backend> {
    pub(crate) backend: B,
    pub(crate) weights: Weights<B>,
    pub(crate) kv: KvCache<B>,
    pub(crate) scratch: Scratch<B>,
    pub(crate) limits: Limits,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    pub(crate) eos: Vec<u32>,
    pub(crate) vocab_size: usize,
    /// What weights are read from.
    pub(crate) files: Files,
}

impl Handle {
    /// Moves the engine to a thread of its own.
    pub(crate) fn start<B: Backend>(engine: Engine<B>, options: &LoadOptions) -> Result<Handle> {
        let (commands, inbox) = channel();
        let counters = Arc::new(Counters::default());
        let n_blocks = engine.limits.n_blocks;
        counters.blocks_total.store(n_blocks, Ordering::Relaxed);
        let (prefix_cache, queue_limit) = (options.prefix_cache, options.queue_limit);
        let (chunk_tokens, max_running) = (options.chunk_tokens, options.max_running);
        let fault = Arc::new(Mutex::new(None));
        let (thread_counters, thread_fault) = (Arc::clone(&counters), Arc::clone(&fault));
        // What the thread takes by itself, in vectors that end the process if they get no memory.
        let Limits { max_rows, .. } = engine.limits;
        expect_room(
            "the engine's queues",
            STACK + (8 << 20) + 128 * n_blocks + 64 * max_rows + 16 * engine.vocab_size,
        )?;
        let run = move || {
            let _unblocked = Unblocked::here();
            let mut blocks = BlockManager::new(n_blocks, prefix_cache);
            blocks.share_generated = B::ONE_ARITHMETIC;
            let scheduler = Scheduler::new(blocks, chunk_tokens, max_running);
            let mut step = Step::new(engine, scheduler, thread_counters);
            let error = match panics::catch(|| step.run(&inbox)) {
                Ok(Ok(())) => Error::EngineStopped("the model was dropped".into()),
                Ok(Err(error)) => error,
                Err(panic) => Error::EngineStopped(panic),
            };
            tracing::debug!(%error, "engine ends");
            *thread_fault.lock().unwrap_or_else(|e| e.into_inner()) = Some(error.clone());
            step.fail_all(&error);
            // Whoever submitted before the fault was published waits in the inbox.
            while let Ok(command) = inbox.try_recv() {
                if let Command::Submit(request) = command {
                    request.send(Err(error.clone()));
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("welm-engine".into())
            .stack_size(STACK)
            .spawn(run)
            .map_err(|e| refused("the engine's thread", STACK, &e))?;
        let link = Local::new(Link { commands, thread: Some(thread), fault });
        Ok(Handle { link, counters, queue_limit })
    }

    /// Whether the engine can be asked from this process.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub(crate) fn expect_here(&self) -> Result<()> {
        self.link.get().map(drop)
    }

    /// Queues a request, or refuses it.
    pub(crate) fn submit(&self, request: Request) -> Result<()> {
        let link = self.link.get()?;
        let n = request.n;
        let queued = self.counters.queue_depth.fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
            (waiting + n <= self.queue_limit).then_some(waiting + n)
        });
        if let Err(waiting) = queued {
            self.counters.rejected.fetch_add(1, Ordering::Relaxed);
            return Err(Error::QueueFull { waiting, limit: self.queue_limit });
        }
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        link.commands.send(Command::Submit(Box::new(request))).map_err(|_| self.fault())
    }

    /// Lets the engine look at its flags now.
    pub(crate) fn wake(&self) {
        if let Ok(link) = self.link.get() {
            let _ = link.commands.send(Command::Wake);
        }
    }

    /// Why the engine ended.
    pub(crate) fn fault(&self) -> Error {
        let link = match self.link.get() {
            Ok(link) => link,
            Err(forked) => return forked,
        };
        let fault = link.fault.lock().unwrap_or_else(|e| e.into_inner()).clone();
        fault.unwrap_or_else(|| Error::EngineStopped("its thread is gone".into()))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whose logits one of the batch's wanted rows gives.
struct LogitRow {
    seq: usize, // of the running sequences
    pos: usize, // in that sequence
}

/// The thread's loop, and what lives from step to step.
struct Step<B: Backend> {
    engine: Engine<B>,
    scheduler: Scheduler,
    counters: Arc<Counters>,
    arrivals: u64,
    plan: Vec<Work>,
    batch: Batch,
    logit_rows: Vec<LogitRow>,
    /// Sequences that begin in this step, behind the prompt of another.
    forked: Vec<Sequence>,
    sampler: Sampler,
    candidates: Candidates,
    raw: Vec<f32>, // (up to vocab_size), logits as they were before sampling changed them
}

impl<B: Backend> Step<B> {
    fn new(engine: Engine<B>, scheduler: Scheduler, counters: Arc<Counters>) -> Self {
        let Limits { max_rows, n_blocks, .. } = engine.limits;
        Step {
            sampler: Sampler::new(engine.vocab_size),
            candidates: Candidates::default(),
            raw: Vec::with_capacity(engine.vocab_size),
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
    fn run(&mut self, inbox: &Receiver<Command>) -> Result<()> {
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
                    Ok(Command::Submit(request)) => self.accept(*request),
                    Ok(Command::Wake) => {}
                    Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
                    Err(TryRecvError::Empty) => break,
                }
                command = inbox.try_recv();
            }
            self.interrupt();
            self.schedule();
            if !self.plan.is_empty() {
                match self.compute().and_then(|()| self.postprocess()) {
                    Err(Error::Device(reason)) => self.fail_step(&Error::Device(reason)),
                    done => done?,
                }
            }
        }
    }

    fn accept(&mut self, request: Request) {
        self.arrivals += 1;
        let mut seq = Sequence::new(request, self.arrivals);
        if seq.is_complete() {
            self.finish_unforked(&mut seq, FinishReason::Length);
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
                        let mut seq = self.scheduler.remove(queue, at);
                        self.finish_unforked(&mut seq, reason);
                    }
                    None => at += 1,
                }
            }
        }
    }

    fn schedule(&mut self) {
        let counters = &self.counters;
        self.scheduler.schedule(&mut self.plan, |seq| {
            if leave_queue(counters, seq) {
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

    /// Logits to tokens, tokens to events; ended sequences leave.
    fn postprocess(&mut self) -> Result<()> {
        let mut first = 0;
        for tile in self.logit_rows.chunks(self.engine.limits.max_logit_rows) {
            let e = &mut self.engine;
            let wanted = first..first + tile.len();
            first = wanted.end;
            let computed = logits(&mut e.backend, &e.weights, &mut e.scratch, &self.batch, wanted)?;
            // The largest are enough where only they can be chosen; the choice is the same, to the bit.
            let few = tile.iter().all(|r| self.scheduler.running[r.seq].request().needs_few());
            let chosen_from_few = few && self.candidates.take(e.backend.top(computed)?);
            let values: &mut [f32] = if chosen_from_few { &mut [] } else { e.backend.read(computed)? };
            for (i, r) in tile.iter().enumerate() {
                let seq = &mut self.scheduler.running[r.seq];
                let (row, ids) = if chosen_from_few {
                    self.candidates.row(i)
                } else {
                    (&mut values[i * e.vocab_size..(i + 1) * e.vocab_size], None)
                };
                if seq.use_logits(r.pos, row) {
                    continue;
                }
                let mut chooser = Chooser {
                    sampler: &mut self.sampler,
                    ids,
                    eos: &e.eos,
                    tokenizer: e.tokenizer.as_deref(),
                    counters: &self.counters,
                };
                self.raw.clear();
                self.raw.extend_from_slice(row);
                if !seq.shared.started.replace(true) {
                    for index in 1..seq.request().n {
                        let mut sibling = seq.fork(index);
                        sibling.share_blocks(seq, &mut self.scheduler.blocks);
                        chooser.choose(&mut sibling, row, &self.raw);
                        row.copy_from_slice(&self.raw);
                        let blocks = &mut self.scheduler.blocks;
                        let copied = copy_partial(seq, &mut sibling, blocks, &mut e.kv, &mut e.backend);
                        self.forked.push(sibling);
                        copied?;
                    }
                }
                chooser.choose(seq, row, &self.raw);
            }
        }
        // Before anything is sent that came of it.
        self.engine.files.check()?;
        for sibling in self.forked.drain(..) {
            self.scheduler.resume(sibling);
        }
        for at in (0..self.scheduler.running.len()).rev() {
            let seq = &mut self.scheduler.running[at];
            match seq.ended {
                Some(reason) => {
                    let mut seq = self.scheduler.remove(Queue::Running, at);
                    self.finish(&mut seq, reason);
                }
                None => seq.emit_ready(),
            }
        }
        Ok(())
    }

    /// Ends the requests of this step with an error. What they have computed is not shared with later ones.
    fn fail_step(&mut self, error: &Error) {
        tracing::warn!(%error, sequences = self.plan.len(), "a step failed");
        let mut hit: Vec<usize> = self.plan.iter().map(|work| work.seq).collect();
        hit.sort_unstable();
        let running = &mut self.scheduler.running;
        let failed: Vec<Sequence> = hit.iter().rev().map(|&at| running.remove(at)).collect();
        for mut seq in failed.into_iter().chain(std::mem::take(&mut self.forked)) {
            self.scheduler.blocks.forget(&seq.blocks);
            seq.release(&mut self.scheduler.blocks);
            leave_queue(&self.counters, &seq);
            // Siblings elsewhere end as cancelled; nobody listens to them any more.
            seq.request().dropped.cancel();
            let ended = if seq.index == 0 && !seq.shared.started.get() { seq.request().n } else { 1 };
            let open = seq.shared.open.get() - ended;
            seq.shared.open.set(open);
            if open == 0 {
                self.counters.finished.fetch_add(1, Ordering::Release);
            }
            self.publish();
            seq.request().send(Err(error.clone()));
        }
    }

    /// Ends a sequence, and the siblings that were still to be forked from it.
    fn finish_unforked(&mut self, seq: &mut Sequence, reason: FinishReason) {
        if seq.index == 0 && !seq.shared.started.get() {
            for index in 1..seq.request().n {
                self.finish(&mut seq.fork(index), reason);
            }
        }
        self.finish(seq, reason);
    }

    /// Says how a sequence ended and takes its blocks back.
    fn finish(&mut self, seq: &mut Sequence, reason: FinishReason) {
        seq.release(&mut self.scheduler.blocks);
        leave_queue(&self.counters, seq);
        let open = seq.shared.open.get() - 1;
        seq.shared.open.set(open);
        if open == 0 {
            self.counters.finished.fetch_add(1, Ordering::Release);
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

    fn fail_all(&mut self, error: &Error) {
        for seq in self.scheduler.waiting.drain(..).chain(self.scheduler.running.drain(..)) {
            seq.request().send(Err(error.clone()));
            leave_queue(&self.counters, &seq);
        }
        self.publish();
    }
}

/// Takes a request off the queue's count, once; false if it was off already.
fn leave_queue(counters: &Counters, seq: &Sequence) -> bool {
    let was_queued = seq.shared.queued.replace(false);
    if was_queued {
        counters.queue_depth.fetch_sub(seq.request().n, Ordering::AcqRel);
    }
    was_queued
}

/// Gives a forked sequence its own copy of the block that the prompt fills in part, if there is memory.
fn copy_partial<B: Backend>(
    from: &Sequence,
    to: &mut Sequence,
    blocks: &mut BlockManager,
    kv: &mut KvCache<B>,
    backend: &mut B,
) -> Result<()> {
    let Some(&partial) = from.blocks.get(to.blocks.len()).filter(|_| from.computed > to.computed) else {
        return Ok(());
    };
    if let Some(block) = blocks.allocate() {
        kv.copy_block(backend, partial, block)?;
        to.blocks.push(block);
        to.computed = from.computed;
    }
    Ok(())
}

/// The largest logits of some rows, by token, as [`Sampler`] wants them.
#[derive(Default)]
struct Candidates {
    values: Vec<f32>,
    ids: Vec<u32>,
    rows: Vec<std::ops::Range<usize>>,
}

impl Candidates {
    /// Takes over what the backend has found; false if it does not look.
    fn take(&mut self, top: Option<Top>) -> bool {
        let Some(top) = top else { return false };
        self.values.clear();
        self.ids.clear();
        self.rows.clear();
        for (values, ids) in top.values.chunks(top.k).zip(top.ids.chunks(top.k)) {
            let mut row: Vec<(u32, f32)> = ids.iter().copied().zip(values.iter().copied()).collect();
            row.retain(|&(id, _)| id != u32::MAX);
            if row.is_empty() {
                row.push((0, f32::NEG_INFINITY)); // what a row of nothing gives
            }
            row.sort_unstable_by_key(|&(id, _)| id);
            let start = self.ids.len();
            self.ids.extend(row.iter().map(|&(id, _)| id));
            self.values.extend(row.iter().map(|&(_, value)| value));
            self.rows.push(start..self.ids.len());
        }
        true
    }

    fn row(&mut self, i: usize) -> (&mut [f32], Option<&[u32]>) {
        let range = self.rows[i].clone();
        (&mut self.values[range.clone()], Some(&self.ids[range]))
    }
}

/// Logits to the next token.
struct Chooser<'a> {
    sampler: &'a mut Sampler,
    /// The tokens that the logits are of; none if they are of all.
    ids: Option<&'a [u32]>,
    eos: &'a [u32],
    tokenizer: Option<&'a Tokenizer>,
    counters: &'a Counters,
}

impl Chooser<'_> {
    /// Samples from `row`, which the sampler changes; `raw` is the same row unchanged.
    fn choose(&mut self, seq: &mut Sequence, row: &mut [f32], raw: &[f32]) {
        let request = seq.request();
        let u = uniform(request.seed, seq.index as u32, seq.tokens.len() as u64);
        let (prompt, text) = seq.tokens.split_at(request.prompt.len());
        let id = self.sampler.sample(row, &request.sampling, prompt, text, u);
        let id = self.ids.map_or(id, |ids| ids[id as usize]);
        let now = Instant::now();
        match seq.last_token_at {
            None => self.counters.first_token(now - request.submitted),
            Some(before) => self.counters.next_token(now - before),
        }
        self.counters.completion_tokens.fetch_add(1, Ordering::Relaxed);
        let token = Token::with_logprobs(id, request.logprobs, raw);
        let bytes = self.tokenizer.map_or(&[][..], |t| t.token_bytes(id));
        seq.last_token_at = Some(now);
        seq.push(token, bytes, self.eos.contains(&id));
    }
}
