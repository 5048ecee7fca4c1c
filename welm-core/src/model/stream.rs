//! [`Stream`]: the pieces of a request as they come.

use std::fmt;
#[cfg(feature = "futures")]
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Model;
use crate::engine::request::Request;
use crate::engine::{Event, EventReceiver};
use crate::error::{Error, Result};
use crate::host::fork::Local;
use crate::options::CancelToken;
use crate::output::{Choice, FinishReason, Generation, Piece, Usage};

/// Pieces of a request as they come; an iterator that ends when all `n` sequences have.
///
/// Asynchronous code polls it: [`Stream::poll_next`]. With the feature `futures` it is a `futures_core::Stream`, too; pin it
/// (`let mut stream = pin!(stream)`), so that `next` is that of `StreamExt` and not the iterator's.
///
/// Dropping it cancels the request. An error is the last item.
pub struct Stream {
    model: Model,
    events: Local<EventReceiver>,
    dropped: CancelToken,
    n: usize,    // sequences
    open: usize, // of which have not ended
    seed: u64,
    prompt_tokens: usize,
}

impl Stream {
    /// Of a request that is about to be submitted.
    pub(super) fn of(model: Model, request: &Request, events: EventReceiver) -> Self {
        let (n, seed, prompt_tokens) = (request.n, request.seed, request.prompt.len());
        let (events, dropped) = (Local::new(events), request.dropped.clone());
        Stream { model, events, dropped, n, open: n, seed, prompt_tokens }
    }

    /// Submits a request and listens to it.
    pub(super) fn submit(model: &Model, (request, events): (Request, EventReceiver)) -> Result<Self> {
        let mut stream = Stream::of(model.clone(), &request, events);
        stream.open = 0; // there is nothing to cancel if it is refused
        model.inner.engine.submit(request)?;
        stream.open = stream.n;
        Ok(stream)
    }

    /// The seed that is used; the same request with this seed gives the same bits.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Tokens of the prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// An empty [`Generation`] with one choice for each sequence of this stream. Add the pieces to it with
    /// [`Generation::push`].
    pub fn generation(&self) -> Generation {
        let choice = Choice {
            text: String::new(),
            tokens: Vec::new(),
            finish_reason: FinishReason::Length,
            end_token: None,
        };
        let usage = Usage { prompt_tokens: self.prompt_tokens, ..Usage::default() };
        Generation { choices: vec![choice; self.n], seed: self.seed, usage }
    }

    /// Ends the request. Pieces that were computed already still come, then the last piece of each sequence.
    pub fn cancel(&self) {
        self.canceller()();
    }

    /// As [`Stream::cancel`], for another thread while this one waits for a piece.
    pub fn canceller(&self) -> impl Fn() + Send + Sync + 'static {
        // It keeps no model alive.
        let (model, dropped) = (Arc::downgrade(&self.model.inner), self.dropped.clone());
        move || {
            dropped.cancel();
            if let Some(model) = model.upgrade() {
                model.engine.wake();
            }
        }
    }

    /// As the iterator's `next`, but waits at most for `timeout`. `Pending` means that nothing came in that time; the
    /// request goes on. For programs that must look at something else from time to time, such as signals.
    ///
    /// ```
    /// # fn main() -> welm_core::Result<()> {
    /// use std::task::Poll;
    /// use std::time::Duration;
    /// use welm_core::{GenerateOptions, LoadOptions, Model};
    /// let model = Model::load("../examples/welm-nano", &LoadOptions::default())?;
    /// let mut stream = model.stream("床前明月光，", &GenerateOptions::greedy(18))?;
    /// loop {
    ///     match stream.next_timeout(Duration::from_millis(20)) {
    ///         Poll::Ready(Some(piece)) => print!("{}", piece?.text),
    ///         Poll::Ready(None) => break,
    ///         Poll::Pending => {} // the place to look at something else
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn next_timeout(&mut self, timeout: Duration) -> Poll<Option<Result<Piece>>> {
        self.next_by(|events| events.receive_timeout(timeout))
    }

    /// As the iterator's `next`, but does not wait. `Pending` means that nothing is there yet. The task is then woken when a
    /// piece, the end or an error has come, and at no other time. Dropping the stream still cancels the request.
    ///
    /// The engine's thread calls the waker, so the waker must not block. Those of the usual executors do not.
    ///
    /// ```
    /// # fn main() -> welm_core::Result<()> {
    /// use std::sync::Arc;
    /// use std::task::{Context, Poll, Wake, Waker};
    /// use std::thread::{self, Thread};
    /// use welm_core::{GenerateOptions, LoadOptions, Model};
    ///
    /// struct Unpark(Thread);
    /// impl Wake for Unpark {
    ///     fn wake(self: Arc<Self>) {
    ///         self.0.unpark();
    ///     }
    /// }
    ///
    /// let model = Model::load("../examples/welm-nano", &LoadOptions::default())?;
    /// let mut stream = model.stream("床前明月光，", &GenerateOptions::greedy(18))?;
    /// let waker = Waker::from(Arc::new(Unpark(thread::current())));
    /// loop {
    ///     match stream.poll_next(&mut Context::from_waker(&waker)) {
    ///         Poll::Ready(Some(piece)) => print!("{}", piece?.text),
    ///         Poll::Ready(None) => break,
    ///         Poll::Pending => thread::park(),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece>>> {
        self.next_by(|events| events.poll(cx))
    }

    /// The next item, from what `next` makes of the channel; keeps count of what is open.
    fn next_by(
        &mut self,
        mut next: impl FnMut(&EventReceiver) -> Poll<Option<Result<Event>>>,
    ) -> Poll<Option<Result<Piece>>> {
        if self.open == 0 {
            return Poll::Ready(None);
        }
        loop {
            match self.events.get().map(&mut next) {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(Some(Ok(Event::Logits(_))))) => {} // for `Model::logits` only
                Ok(Poll::Ready(Some(Ok(Event::Piece(piece))))) => {
                    self.open -= usize::from(piece.finish.is_some());
                    return Poll::Ready(Some(Ok(piece)));
                }
                Ok(Poll::Ready(Some(Err(error)))) | Err(error) => return self.fail(error),
                Ok(Poll::Ready(None)) => return self.fail(self.model.inner.engine.fault()),
            }
        }
    }

    fn fail(&mut self, error: Error) -> Poll<Option<Result<Piece>>> {
        self.open = 0;
        Poll::Ready(Some(Err(error)))
    }

    /// The next event as the engine has sent it.
    pub(super) fn receive(&self) -> Result<Event> {
        self.events.get()?.receive().unwrap_or_else(|| Err(self.model.inner.engine.fault()))
    }
}

impl Iterator for Stream {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_by(|events| Poll::Ready(events.receive())) {
            Poll::Ready(item) => item,
            Poll::Pending => unreachable!("it waits"),
        }
    }
}

#[cfg(feature = "futures")]
impl futures_core::Stream for Stream {
    type Item = Result<Piece>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Stream::poll_next(self.get_mut(), cx)
    }
}

#[cfg(feature = "futures")]
impl futures_core::FusedStream for Stream {
    fn is_terminated(&self) -> bool {
        self.open == 0
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.open > 0 {
            self.cancel();
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("open", &self.open).field("seed", &self.seed).finish_non_exhaustive()
    }
}
