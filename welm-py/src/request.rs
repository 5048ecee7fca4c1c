//! What `welm._aio` builds its coroutines on: requests that one thread waits for, however many there are.
//!
//! `asyncio` cannot wait for the core's channels, and a thread for each request would be waste. So one thread for all
//! waits in [`Selector::wait`], and hands to the event loops what has come.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use welm_core as core;

use crate::engine::Owned;
use crate::error::exception;
use crate::exit::{detached, enter};
use crate::output;

/// How long a piece may lie: the steps of a large model take several times this, those of a small one end the
/// waiting themselves.
const LOOK: Duration = Duration::from_millis(2);

/// How long the thread may be away from Python, which may want to exit.
const BREATH: Duration = Duration::from_millis(100);

/// What the event loop asks of a request; the waiting thread sees it within [`LOOK`].
#[derive(Default)]
struct Flags {
    /// End it, and tell what there is.
    cancel: AtomicBool,
    /// End it, nobody listens.
    abandon: AtomicBool,
}

/// A submitted request.
#[pyclass(frozen, module = "welm._welm")]
pub(crate) struct Request {
    /// Until a selector takes it.
    open: Owned<Mutex<Option<Open>>>,
    flags: Arc<Flags>,
    seed: u64,
    prompt_tokens: usize,
}

impl Request {
    /// `whole`: its pieces are wanted as one generation.
    pub(crate) fn new(model: core::Model, stream: core::Stream, whole: bool) -> Self {
        let (seed, prompt_tokens) = (stream.seed(), stream.prompt_tokens());
        let flags = Arc::<Flags>::default();
        let collected = whole.then(|| stream.generation());
        let open = Open { model, stream, collected, listener: None, flags: Arc::clone(&flags), told: false };
        Request { open: Owned::new(Mutex::new(Some(open))), flags, seed, prompt_tokens }
    }
}

#[pymethods]
impl Request {
    /// Ends the request; what there is still comes.
    fn cancel(&self) {
        self.flags.cancel.store(true, Ordering::Relaxed);
    }

    /// Ends the request; nothing more comes.
    fn abandon(&self) {
        self.flags.abandon.store(true, Ordering::Relaxed);
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

/// A request that is waited for.
struct Open {
    model: core::Model,
    stream: core::Stream,
    collected: Option<core::Generation>,
    listener: Option<Py<PyAny>>,
    flags: Arc<Flags>,
    told: bool, // of its cancelling
}

impl Drop for Request {
    /// Nobody can ask for what comes any more.
    fn drop(&mut self) {
        self.abandon();
    }
}

/// Something for a listener; all but a piece are the last.
enum Item {
    Piece(core::Piece),
    Whole(core::Generation),
    Failed(core::Error),
    End,
}

impl Open {
    /// What comes within `timeout`; `Ready(None)` if it is not for the listener.
    fn next(&mut self, timeout: Duration) -> Poll<Option<Item>> {
        self.stream.next_timeout(timeout).map(|piece| match (piece, &mut self.collected) {
            (Some(Err(error)), _) => Some(Item::Failed(error)),
            (Some(Ok(piece)), None) => Some(Item::Piece(piece)),
            (Some(Ok(piece)), Some(collected)) => {
                collected.push(piece);
                None
            }
            (None, collected) => Some(collected.take().map_or(Item::End, Item::Whole)),
        })
    }
}

/// The requests that one thread waits for.
#[pyclass(frozen, module = "welm._welm")]
pub(crate) struct Selector {
    arrivals: Owned<Mutex<Arrivals>>,
    open: Owned<Mutex<Vec<Open>>>, // the waiting thread's
}

#[derive(Default)]
struct Arrivals {
    requests: Vec<Open>,
    /// The thread that waits, or is about to.
    thread: Option<Thread>,
    /// Threads so far.
    threads: u64,
}

struct Thread {
    number: u64,
    has_begun: bool,
}

/// What came, with the place of its request.
type Events = Vec<(usize, Item)>;

/// The same for Python: listeners, and what is for them.
type Told<'py> = Vec<(Py<PyAny>, Bound<'py, PyAny>)>;

/// Waits until something comes, or [`BREATH`] is over; `None` when no request is left, or another thread waits.
fn wait(arrivals: &Mutex<Arrivals>, open: &mut Vec<Open>, number: u64) -> Option<Events> {
    let mut events = Events::new();
    // All are looked at, but waited is at the one that moved last: the next step of its engine ends it.
    let (mut timeout, mut moved) = (Duration::ZERO, 0);
    let end = Instant::now() + BREATH;
    loop {
        open.retain(|request| !request.flags.abandon.load(Ordering::Relaxed));
        {
            let mut arrivals = lock(arrivals);
            arrivals.thread.as_mut().filter(|thread| thread.number == number)?.has_begun = true;
            open.append(&mut arrivals.requests);
            if open.is_empty() {
                arrivals.thread = None;
                return None;
            }
        }
        moved = moved.min(open.len() - 1);
        for at in (moved..open.len()).chain(0..moved) {
            let request = &mut open[at];
            if !request.told && request.flags.cancel.load(Ordering::Relaxed) {
                request.stream.cancel();
                request.told = true;
            }
            while let Poll::Ready(item) = request.next(std::mem::take(&mut timeout)) {
                moved = at;
                let Some(item) = item else { continue };
                let last = !matches!(item, Item::Piece(_));
                events.push((at, item));
                if last {
                    break;
                }
            }
        }
        if !events.is_empty() || Instant::now() > end {
            return Some(events);
        }
        timeout = LOOK;
    }
}

#[pymethods]
impl Selector {
    #[new]
    fn new() -> Self {
        Selector { arrivals: Owned::new(Mutex::default()), open: Owned::new(Mutex::default()) }
    }

    /// Adds a request; its listener is handed back by :meth:`wait` with what comes. The number of the thread that has
    /// to be started for it, if none waits.
    fn add(&self, py: Python<'_>, request: &Request, listener: Py<PyAny>) -> PyResult<Option<u64>> {
        let Some(mut open) = lock(request.open.get(py)?).take() else { return Ok(None) };
        open.listener = Some(listener);
        let mut arrivals = lock(self.arrivals.get(py)?);
        arrivals.requests.push(open);
        if arrivals.thread.is_some() {
            return Ok(None);
        }
        arrivals.threads += 1;
        let number = arrivals.threads;
        arrivals.thread = Some(Thread { number, has_begun: false });
        Ok(Some(number))
    }

    /// Waits until something comes, for a tenth of a second at most: pairs of a listener and a :class:`Piece`, a
    /// :class:`Generation`, an exception or ``None`` for the end. ``None`` when no request is left; the thread ends then.
    fn wait<'py>(&self, py: Python<'py>, number: u64) -> PyResult<Option<Told<'py>>> {
        let _inside = enter(py);
        let (arrivals, open) = (self.arrivals.get(py)?, self.open.get(py)?);
        // Nobody may ask for the GIL with this lock: the next thread may begin before this one has gone.
        let Some(events) = detached(py, || wait(arrivals, &mut lock(open), number)) else { return Ok(None) };
        let mut open = lock(open);
        let mut told = Vec::with_capacity(events.len());
        let mut ended = Vec::new();
        for (at, item) in events {
            let request = &mut open[at];
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
                ended.push(at);
            }
        }
        // From the end, so that places stay what they were; the engine's end is waited for without the GIL.
        ended.sort_unstable();
        let ended: Vec<_> = ended.into_iter().rev().map(|at| open.swap_remove(at)).collect();
        drop(open);
        detached(py, move || drop(ended));
        Ok(Some(told))
    }

    /// The thread cannot be started: takes its requests back, and gives their listeners. None if it has begun after
    /// all; if not, it will find that it is not waited for.
    fn give_up(&self, py: Python<'_>, number: u64) -> PyResult<Vec<Py<PyAny>>> {
        let _inside = enter(py);
        let mut arrivals = lock(self.arrivals.get(py)?);
        if arrivals.thread.take_if(|thread| thread.number == number && !thread.has_begun).is_none() {
            return Ok(Vec::new());
        }
        let requests = std::mem::take(&mut arrivals.requests);
        drop(arrivals);
        let listeners = requests.iter().filter_map(|r| Some(r.listener.as_ref()?.clone_ref(py))).collect();
        detached(py, move || drop(requests));
        Ok(listeners)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
