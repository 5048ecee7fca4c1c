//! Requests for the coroutines of `welm._aio`. One thread waits for all of them.
//!
//! An engine's thread never asks for the GIL: a step must not wait for Python, and if the interpreter is ending, no
//! thread may ask for it (see [`crate::exit`]). So the engine's thread calls no event loop. It rings a [`Bell`], which
//! needs no Python. One Python thread sleeps in [`Selector::wait`] until a bell rings, and passes new pieces to the
//! event loops.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use pyo3::prelude::*;
use welm_core as core;

use crate::engine::Owned;
use crate::error::exception;
use crate::exit::{detached, enter};
use crate::output;

/// What the event loop wants of a request.
#[derive(Default)]
struct Flags {
    /// End it, and return what there is.
    cancel: AtomicBool,
    /// End it; nobody waits for it any more.
    abandon: AtomicBool,
    /// Set by the selector that takes the request.
    bell: OnceLock<Arc<Bell>>,
}

/// A submitted request.
#[pyclass(frozen, module = "welm._welm")]
pub(crate) struct Request {
    /// Set until a selector takes it.
    open: Owned<Mutex<Option<Open>>>,
    flags: Arc<Flags>,
    seed: u64,
    prompt_tokens: usize,
}

impl Request {
    /// With `whole`, its pieces are returned as one generation.
    pub(crate) fn new(model: core::Model, stream: core::Stream, whole: bool) -> Self {
        let (seed, prompt_tokens) = (stream.seed(), stream.prompt_tokens());
        let flags = Arc::<Flags>::default();
        let collected = whole.then(|| stream.generation());
        let (told, ended) = (false, false);
        let open = Open { model, stream, collected, listener: None, flags: Arc::clone(&flags), told, ended };
        Request { open: Owned::new(Mutex::new(Some(open))), flags, seed, prompt_tokens }
    }

    /// Makes the waiting thread look at the flags; in a forked child there is no such thread.
    fn ring(&self) {
        if let Some(bell) = self.flags.bell.get().filter(|_| self.open.is_here()) {
            bell.ring();
        }
    }
}

#[pymethods]
impl Request {
    /// Ends the request; what is already generated still comes.
    fn cancel(&self) {
        self.flags.cancel.store(true, Ordering::Relaxed);
        self.ring();
    }

    /// Ends the request; nothing more comes.
    fn abandon(&self) {
        self.flags.abandon.store(true, Ordering::Relaxed);
        self.ring();
    }

    #[getter]
    fn seed(&self) -> u64 {
        self.seed
    }

    #[getter]
    fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }
}

/// A request that the selector waits for.
struct Open {
    model: core::Model,
    stream: core::Stream,
    collected: Option<core::Generation>,
    listener: Option<Py<PyAny>>,
    flags: Arc<Flags>,
    told: bool, // the stream was told to cancel
    ended: bool,
}

impl Drop for Request {
    /// Nobody can read the pieces any more.
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Something for a listener. All but a piece are the last item of their request.
enum Item {
    Piece(core::Piece),
    Whole(core::Generation),
    Failed(core::Error),
    End,
}

impl Open {
    /// The next item; `Ready(None)` if it is not for the listener. After `Pending` the bell rings when more comes.
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.stream.poll_next(cx).map(|piece| match (piece, &mut self.collected) {
            (Some(Err(error)), _) => Some(Item::Failed(error)),
            (Some(Ok(piece)), None) => Some(Item::Piece(piece)),
            (Some(Ok(piece)), Some(collected)) => {
                collected.push(piece);
                None
            }
            (None, collected) => Some(collected.take().map_or(Item::End, Item::Whole)),
        })
    }

    /// Adds all items that have come to the events.
    fn look(&mut self, number: u64, events: &mut Events) {
        if self.ended {
            return;
        }
        if !self.told && self.flags.cancel.load(Ordering::Relaxed) {
            self.stream.cancel();
            self.told = true;
        }
        let Some(bell) = self.flags.bell.get() else { return };
        let waker = Waker::from(Arc::clone(bell));
        while let (false, Poll::Ready(item)) = (self.ended, self.next(&mut Context::from_waker(&waker))) {
            if let Some(item) = item {
                self.ended = !matches!(item, Item::Piece(_));
                events.push((number, item));
            }
        }
    }
}

/// The bell of one request. The engine rings it when something comes, Python when it sets a flag.
struct Bell {
    request: u64,
    calls: Arc<Calls>,
}

impl Bell {
    fn ring(&self) {
        let mut calls = lock(&self.calls.list);
        calls.rung.push(self.request);
        // One notification is enough for all bells that ring before the thread looks.
        if calls.rung.len() == 1 {
            self.calls.changed.notify_one();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }
}

/// What the waiting thread has to look at. Threads that have the GIL take the lock, and so do engines' threads. So it
/// is only held for a moment, and nobody who holds it may ask for the GIL or call an engine.
#[derive(Default)]
struct Calls {
    list: Mutex<List>,
    changed: Condvar,
}

#[derive(Default)]
struct List {
    arrivals: Vec<(u64, Open)>,
    /// Requests whose bell has rung.
    rung: Vec<u64>,
    /// The thread that waits, or is about to.
    thread: Option<Thread>,
    /// Number of threads and requests so far.
    threads: u64,
    requests: u64,
}

struct Thread {
    number: u64,
    has_begun: bool,
}

/// The requests that one thread waits for.
#[pyclass(frozen, module = "welm._welm")]
pub(crate) struct Selector {
    calls: Owned<Arc<Calls>>,
    open: Owned<Mutex<BTreeMap<u64, Open>>>, // only the waiting thread uses it
}

/// Items that came, each with the number of its request.
type Events = Vec<(u64, Item)>;

/// The same for Python: listeners, each with its item.
type Told<'py> = Vec<(Py<PyAny>, Bound<'py, PyAny>)>;

/// Sleeps until something comes; `None` when no request is left, or another thread waits.
fn wait(calls: &Calls, open: &mut BTreeMap<u64, Open>, number: u64) -> Option<Events> {
    let mut events = Events::new();
    while events.is_empty() {
        for request in next_rung(calls, open, number)? {
            let Some(waits) = open.get_mut(&request) else { continue };
            if waits.flags.abandon.load(Ordering::Relaxed) {
                open.remove(&request);
            } else {
                waits.look(request, &mut events);
            }
        }
    }
    Some(events)
}

/// Takes in the requests that have arrived, and sleeps until a bell rings. Gives the requests whose bells rang.
fn next_rung(calls: &Calls, open: &mut BTreeMap<u64, Open>, number: u64) -> Option<Vec<u64>> {
    let mut list = lock(&calls.list);
    loop {
        list.thread.as_mut().filter(|thread| thread.number == number)?.has_begun = true;
        open.extend(list.arrivals.drain(..));
        if open.is_empty() {
            list.thread = None;
            list.rung.clear();
            return None;
        }
        if !list.rung.is_empty() {
            return Some(std::mem::take(&mut list.rung));
        }
        list = calls.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
    }
}

#[pymethods]
impl Selector {
    #[new]
    fn new() -> Self {
        Selector { calls: Owned::new(Arc::default()), open: Owned::new(Mutex::default()) }
    }

    /// Adds a request; :meth:`wait` returns its listener with each item. If no thread waits, gives the number of the
    /// thread that has to be started.
    fn add(&self, py: Python<'_>, request: &Request, listener: Py<PyAny>) -> PyResult<Option<u64>> {
        let Some(mut open) = lock(request.open.get(py)?).take() else { return Ok(None) };
        open.listener = Some(listener);
        let calls = self.calls.get(py)?;
        let mut list = lock(&calls.list);
        list.requests += 1;
        let bell = Arc::new(Bell { request: list.requests, calls: Arc::clone(calls) });
        let arrival = (list.requests, open);
        list.arrivals.push(arrival);
        let mut to_start = None;
        if list.thread.is_none() {
            list.threads += 1;
            to_start = Some(list.threads);
            list.thread = Some(Thread { number: list.threads, has_begun: false });
        }
        drop(list);
        request.flags.bell.get_or_init(|| bell).ring(); // the thread looks once; after that the engine rings
        Ok(to_start)
    }

    /// Waits until something comes: pairs of a listener and a :class:`Piece`, a :class:`Generation`, an exception or
    /// ``None`` for the end. ``None`` when no request is left; the thread ends then.
    fn wait<'py>(&self, py: Python<'py>, number: u64) -> PyResult<Option<Told<'py>>> {
        let _inside = enter(py);
        let (calls, open) = (self.calls.get(py)?, self.open.get(py)?);
        // While this lock is held, the GIL must not be asked for: the next thread may begin before this one has ended.
        let Some(events) = detached(py, || wait(calls, &mut lock(open), number)) else { return Ok(None) };
        let mut open = lock(open);
        let mut told = Vec::with_capacity(events.len());
        let mut ended = Vec::new();
        for (number, item) in events {
            let Some(request) = open.get_mut(&number) else { continue };
            let last = !matches!(item, Item::Piece(_));
            let object = match item {
                Item::Piece(piece) => output::piece(py, &request.model, &piece),
                Item::Whole(whole) => output::generation(py, &request.model, &whole),
                Item::Failed(error) => Err(exception(py, &error)),
                Item::End => Ok(py.None().into_bound(py)),
            };
            if let Some(listener) = &request.listener {
                let object = object.unwrap_or_else(|error| error.into_value(py).into_bound(py).into_any());
                told.push((listener.clone_ref(py), object));
            }
            if last {
                request.listener = None;
                ended.extend(open.remove(&number));
            }
        }
        drop(open);
        // Dropping the last stream may wait for the engine to end. That is done without the GIL.
        detached(py, move || drop(ended));
        Ok(Some(told))
    }

    /// To be called if the thread cannot be started: takes its requests back, and gives their listeners. If the thread
    /// has begun after all, nothing is taken back. If it begins later, it ends at once.
    fn give_up(&self, py: Python<'_>, number: u64) -> PyResult<Vec<Py<PyAny>>> {
        let _inside = enter(py);
        let mut list = lock(&self.calls.get(py)?.list);
        if list.thread.take_if(|thread| thread.number == number && !thread.has_begun).is_none() {
            return Ok(Vec::new());
        }
        let requests = std::mem::take(&mut list.arrivals);
        drop(list);
        let listeners =
            requests.iter().filter_map(|(_, r)| Some(r.listener.as_ref()?.clone_ref(py))).collect();
        detached(py, move || drop(requests));
        Ok(listeners)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
