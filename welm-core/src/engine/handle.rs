//! [`Handle`]: the connection of a model to its engine's thread.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use super::Engine;
use super::block_manager::BlockManager;
use super::request::Request;
use super::scheduler::Scheduler;
use super::stats::{Counters, Ticket};
use super::step::{Command, EngineLoop};
use crate::backend::{Backend, Limits};
use crate::error::{Error, Result};
use crate::host::fork::Local;
use crate::host::memory::expect_room;
use crate::host::threads::{STACK, prepared, refused};
use crate::host::{panics, quiet};
use crate::options::LoadOptions;

/// Bytes that the engine's thread takes for each block of the cache: what the block manager has of a block in the prefix
/// cache. Its index doubles its room when it is full, so it may have twice as many places as blocks.
pub(crate) const BLOCK_BYTES: usize = 384;

/// Bytes that the engine's thread takes by itself: for blocks of the cache, the rows of a step, and choosing tokens.
pub(crate) fn queue_bytes(limits: Limits, vocab_size: usize) -> usize {
    BLOCK_BYTES * limits.n_blocks + 64 * limits.max_rows + 16 * vocab_size
}

/// A model's connection to its engine.
pub(crate) struct Handle {
    link: Local<Link>,
    pub(crate) counters: Arc<Counters>,
    queue_limit: usize,
}

/// The channel to the engine's thread, and the thread itself. A forked child has neither.
struct Link {
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    fault: Arc<Mutex<Option<Error>>>,
}

impl Handle {
    /// Starts the engine on a thread of its own.
    pub(crate) fn start<B: Backend>(engine: Engine<B>, options: &LoadOptions) -> Result<Handle> {
        let (commands, inbox) = channel();
        let counters = Arc::new(Counters::default());
        let n_blocks = engine.limits.n_blocks;
        counters.blocks_total.store(n_blocks, Ordering::Relaxed);
        let (prefix_cache, queue_limit) = (options.prefix_cache, options.queue_limit);
        let max_running = options.max_running;
        let fault = Arc::new(Mutex::new(None));
        let (thread_counters, thread_fault) = (Arc::clone(&counters), Arc::clone(&fault));
        // The memory of the thread's own vectors. They would abort the process if they got none.
        let chunk_tokens = engine.limits.chunk_tokens;
        let queues = queue_bytes(engine.limits, engine.vocab_size);
        expect_room("the engine's queues", STACK + (8 << 20) + queues)?;
        let quiet = quiet::is_quiet();
        let run = move || {
            let _prepared = prepared();
            quiet::set(quiet);
            let mut blocks = BlockManager::new(n_blocks, prefix_cache);
            blocks.share_generated = B::ONE_ARITHMETIC;
            let scheduler = Scheduler::new(blocks, chunk_tokens, max_running);
            let mut step = EngineLoop::new(engine, scheduler, thread_counters);
            let error = match panics::catch(|| step.run(&inbox)) {
                Ok(Ok(())) => Error::EngineStopped("the model was dropped".into()),
                Ok(Err(error)) => error,
                Err(panic) => Error::EngineStopped(panic),
            };
            tracing::debug!(%error, "engine ends");
            *thread_fault.lock().unwrap_or_else(|e| e.into_inner()) = Some(error.clone());
            step.fail_all(&error);
            // Requests that were submitted before the fault was published are still in the inbox.
            while let Ok(command) = inbox.try_recv() {
                if let Command::Submit(request, ticket) = command {
                    ticket.close();
                    request.send(Err(error.clone()));
                }
            }
        };
        let thread = thread::Builder::new()
            .name("welm-engine".into())
            .stack_size(STACK)
            .spawn(run)
            .map_err(|e| refused("the engine's thread", STACK, &e))?;
        let link = Local::new(Link { commands, thread: Some(thread), fault });
        Ok(Handle { link, counters, queue_limit })
    }

    /// Checks that this process has the engine's thread, and that it has not ended.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child; the fault if the engine has ended.
    pub(crate) fn check(&self) -> Result<()> {
        let fault = self.link.get()?.fault.lock().unwrap_or_else(|e| e.into_inner()).clone();
        fault.map_or(Ok(()), Err)
    }

    /// Queues a request.
    ///
    /// # Errors
    /// [`Error::QueueFull`] or [`Error::InvalidOption`] if the queue has no room for its `n` sequences;
    /// [`Error::Forked`] in a forked child; the fault if the engine has ended.
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

    /// Makes the engine check its flags now, also if it waits for a command.
    pub(crate) fn wake(&self) {
        if let Ok(link) = self.link.get() {
            let _ = link.commands.send(Command::Wake);
        }
    }

    /// The error with which the engine ended.
    pub(crate) fn fault(&self) -> Error {
        self.check().err().unwrap_or_else(|| Error::EngineStopped("its thread is gone".into()))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        // The thread must not join itself. It drops the last handle if a waker that it wakes holds that handle.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Task;
    use super::*;

    #[test]
    fn a_request_that_cannot_be_sent_leaves_the_queue() {
        let counters = Arc::new(Counters::default());
        let (commands, inbox) = channel();
        let fault = Arc::new(Mutex::new(Some(Error::EngineStopped("a fault".into()))));
        let link = Local::new(Link { commands, thread: None, fault });
        let handle = Handle { link, counters, queue_limit: 3 };
        let submit = || {
            let (mut request, events) = Request::new(Task::Generate, vec![1]);
            request.n = 2;
            (handle.submit(request), events)
        };
        // The request is sent, but nobody takes it: the caller sees the end of its channel.
        let (submitted, events) = submit();
        assert_eq!((submitted, handle.counters.snapshot().queue_depth), (Ok(()), 2));
        drop(inbox);
        assert!(events.receive().is_none());
        // Nobody can take the request any more: sending it fails.
        for _ in 0..3 {
            let (submitted, events) = submit();
            assert_eq!(submitted, Err(Error::EngineStopped("a fault".into())));
            assert!(events.receive().is_none());
            let stats = handle.counters.snapshot();
            assert_eq!((stats.queue_depth, stats.open, stats.rejected), (0, 0, 0));
        }
    }
}
