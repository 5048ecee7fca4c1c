//! The engine thread: `step = schedule, run, postprocess`, until the last handle is gone.
//!
//! One thread owns weights, cache and scratch; requests reach it through a channel, and pieces leave it
//! through one channel per request. Calls from many threads therefore share each forward pass without
//! knowing of each other (continuous batching), and nothing in here needs a lock.
//!
//! If a step fails on the device, its requests are told why, and the others go on. If the device is lost or a step
//! panics, every open request and every later one is told why; the host goes on.

pub(crate) mod block_manager;
pub(crate) mod scheduler;
pub(crate) mod sequence;
pub(crate) mod stats;
pub(crate) mod text;

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use self::block_manager::BlockManager;
use self::scheduler::{Queue, Scheduler, Work};
use self::sequence::{Request, Sequence, Shared};
use self::stats::{Counters, Ticket};
use crate::backend::{Backend, Limits, Top};
use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::host::bus::Unblocked;
use crate::host::fork::Local;
use crate::host::memory::expect_room;
use crate::host::threads::{STACK, refused};
use crate::host::{panics, quiet};
use crate::kv_cache::KvCache;
use crate::options::LoadOptions;
use crate::output::{FinishReason, Token};
use crate::sampler::{Sampler, not_finite, uniform};
use crate::tokenizer::Tokenizer;
use crate::transformer::{Scratch, Weights, forward, logits, origins};
use crate::weights::map::Files;

/// A message to the engine thread.
enum Command {
    Submit(Box<Request>, Ticket),
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
    pub(crate) kv: KvCache<B::KvLayer>,
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
        let max_running = options.max_running;
        let fault = Arc::new(Mutex::new(None));
        let (thread_counters, thread_fault) = (Arc::clone(&counters), Arc::clone(&fault));
        // What the thread takes by itself, in vectors that end the process if they get no memory.
        let Limits { chunk_tokens, max_rows, .. } = engine.limits;
        expect_room(
            "the engine's queues",
            STACK + (8 << 20) + 128 * n_blocks + 64 * max_rows + 16 * engine.vocab_size,
        )?;
        let quiet = quiet::is_quiet();
        let run = move || {
            let _unblocked = Unblocked::here();
            quiet::set(quiet);
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
                if let Command::Submit(request, ticket) = command {
                    ticket.close();
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
        let (n, limit) = (request.n, self.queue_limit);
        if n > limit {
            let reason = format!("expected at most {limit}, the queue_limit of the model, got {n}");
            return Err(Error::option("n", reason));
        }
        let ticket =
            Ticket::take(&self.counters, n, limit).map_err(|waiting| Error::QueueFull { waiting, limit })?;
        link.commands.send(Command::Submit(Box::new(request), ticket)).map_err(|_| self.fault())
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
    /// Sequences that begin in this step, after the prompt of another.
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
                    Ok(Command::Submit(request, ticket)) => self.accept(*request, ticket),
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
                if matches!(seq.ended, Some(Err(_))) {
                    continue;
                }
                if let Some(got) = not_finite(row, ids) {
                    let began = String::new(); // looked for when all rows were read
                    seq.ended = Some(Err(Error::NotFinite { position: r.pos, got, began }));
                    continue;
                }
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
                while let Some(mut sibling) = seq.fork() {
                    sibling.share_blocks(seq, &mut self.scheduler.blocks);
                    chooser.choose(&mut sibling, row, &self.raw);
                    row.copy_from_slice(&self.raw);
                    let blocks = &mut self.scheduler.blocks;
                    let copied = copy_partial(seq, &mut sibling, blocks, &mut e.kv, &mut e.backend);
                    self.forked.push(sibling);
                    copied?;
                }
                chooser.choose(seq, row, &self.raw);
            }
        }
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
    fn fail_all(&mut self, error: &Error) {
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
    /// Samples from `row`, which the sampler changes; `raw` is the same row unchanged. If nothing is left to choose
    /// from, the sequence ends with an error.
    fn choose(&mut self, seq: &mut Sequence, row: &mut [f32], raw: &[f32]) {
        let request = seq.request();
        let u = uniform(request.seed, seq.index as u32, seq.tokens.len() as u64);
        let (prompt, text) = seq.tokens.split_at(request.prompt.len());
        let Some(id) = self.sampler.sample(row, &request.sampling, prompt, text, u) else {
            let option =
                if request.sampling.logit_bias.is_empty() { "repetition_penalty" } else { "logit_bias" };
            let position = seq.tokens.len();
            let reason = format!("expected to leave a token to choose, got none at position {position}");
            seq.ended = Some(Err(Error::option(option, reason)));
            return;
        };
        let id = self.ids.map_or(id, |ids| ids[id as usize]);
        let now = Instant::now();
        match seq.last_token_at {
            None => self.counters.first_token(now - request.submitted),
            Some(before) => self.counters.next_token(now - before),
        }
        self.counters.completion_tokens.fetch_add(1, Ordering::Relaxed);
        seq.last_token_at = Some(now);
        let bytes = self.tokenizer.map_or(&[][..], |t| t.token_bytes(id));
        let spelling = self.tokenizer.map(|t| t.spelling(id)).unwrap_or_default();
        match seq.request().end_by(id, self.eos) {
            Some(reason) => seq.end_with(id, spelling, reason),
            None => {
                let token = Token::with_logprobs(id, seq.request().logprobs, raw);
                seq.push(token, bytes, spelling);
            }
        }
    }
}
