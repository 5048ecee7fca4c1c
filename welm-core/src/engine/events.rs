//! The channel from the engine to the holder of a stream. A holder that does not block a thread is woken by a waker.
//!
//! A waker is woken once, after an event or the end of the channel, and must then be registered again. An event may
//! come just before a waker is registered. So the receiver looks for events once more after registering. The lock is
//! held only while the waker is exchanged, and never while code of the caller runs.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel as queue};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::Result;
use crate::host::panics;
use crate::output::Piece;

/// What the engine sends to the holder of a stream.
pub(crate) enum Event {
    /// Text and tokens that a stream may show.
    Piece(Piece),
    /// The logits of all rows that the request asks for, `(rows, vocab_size)`.
    Logits(Vec<f32>),
}

/// The two ends of a new channel.
pub(super) fn channel() -> (EventSender, EventReceiver) {
    let (sender, receiver) = queue();
    let waker = Arc::new(Slot::default());
    (EventSender { sender, bell: Bell(Arc::clone(&waker)) }, EventReceiver { receiver, waker })
}

/// The waker of the receiver, if it waits.
#[derive(Default)]
struct Slot(Mutex<Option<Waker>>);

impl Slot {
    fn replace(&self, waker: Option<Waker>) -> Option<Waker> {
        std::mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), waker)
    }
}

/// The engine's end.
pub(super) struct EventSender {
    // Dropped before the bell, so that the receiver finds the channel closed when the bell wakes it.
    sender: Sender<Result<Event>>,
    bell: Bell,
}

impl EventSender {
    /// Sends an event and wakes the receiver. False if the receiver is gone.
    pub(super) fn send(&self, event: Result<Event>) -> bool {
        let sent = self.sender.send(event).is_ok();
        self.bell.ring();
        sent
    }
}

struct Bell(Arc<Slot>);

impl Bell {
    fn ring(&self) {
        if let Some(waker) = self.0.replace(None) {
            // This is code of the caller. A panic must not end the thread that serves all requests.
            if let Err(panic) = panics::catch(|| waker.wake()) {
                tracing::warn!(panic, "a stream's waker panicked");
            }
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

/// The receiver's end. Its functions return `None` instead of an event if the engine's end is gone.
pub(crate) struct EventReceiver {
    receiver: Receiver<Result<Event>>,
    waker: Arc<Slot>,
}

impl EventReceiver {
    /// Waits for the next event.
    pub(crate) fn receive(&self) -> Option<Result<Event>> {
        self.receiver.recv().ok()
    }

    /// Waits for the next event, at most for `timeout`; `Pending` if none has come.
    pub(crate) fn receive_timeout(&self, timeout: Duration) -> Poll<Option<Result<Event>>> {
        match self.receiver.recv_timeout(timeout) {
            Ok(event) => Poll::Ready(Some(event)),
            Err(RecvTimeoutError::Timeout) => Poll::Pending,
            Err(RecvTimeoutError::Disconnected) => Poll::Ready(None),
        }
    }

    /// Does not wait. If there is no event yet, the waker is woken when there is one.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Event>>> {
        let look = || match self.receiver.try_recv() {
            Ok(event) => Poll::Ready(Some(event)),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
        };
        let mut found = look();
        if found.is_pending() {
            drop(self.waker.replace(Some(cx.waker().clone())));
            found = look();
        }
        found
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        drop(self.waker.replace(None));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::thread;

    use super::*;
    use crate::error::Error;

    /// Counts how often it is woken, and unparks the thread that made it.
    struct Count {
        woken: AtomicUsize,
        thread: thread::Thread,
    }

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.woken.fetch_add(1, Ordering::SeqCst);
            self.thread.unpark();
        }
    }

    fn count() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count { woken: AtomicUsize::new(0), thread: thread::current() });
        (Arc::clone(&count), Waker::from(count))
    }

    fn logits(n: usize) -> Result<Event> {
        Ok(Event::Logits(vec![0.0; n]))
    }

    fn len(event: Poll<Option<Result<Event>>>) -> Poll<Option<Result<usize>>> {
        event.map(|event| {
            event.map(|event| match event? {
                Event::Logits(logits) => Ok(logits.len()),
                Event::Piece(_) => unreachable!("none was sent"),
            })
        })
    }

    #[test]
    fn who_waits_is_woken_once_for_what_comes_the_error_and_the_end() {
        let (sender, receiver) = channel();
        let (count, waker) = count();
        let (mut cx, woken) = (Context::from_waker(&waker), || count.woken.load(Ordering::SeqCst));
        assert!(sender.send(logits(1)));
        assert_eq!(len(receiver.poll(&mut cx)), Poll::Ready(Some(Ok(1))));
        assert_eq!(woken(), 0, "nobody has waited");
        assert_eq!(len(receiver.poll(&mut cx)), Poll::Pending);
        assert_eq!(len(receiver.poll(&mut cx)), Poll::Pending);
        (2..5).for_each(|n| assert!(sender.send(logits(n))));
        assert_eq!(woken(), 1, "once, until it has looked");
        for n in 2..5 {
            assert_eq!(len(receiver.poll(&mut cx)), Poll::Ready(Some(Ok(n))));
        }
        assert_eq!(len(receiver.poll(&mut cx)), Poll::Pending);
        assert!(sender.send(Err(Error::EmptyPrompt)));
        assert_eq!(woken(), 2);
        assert_eq!(len(receiver.poll(&mut cx)), Poll::Ready(Some(Err(Error::EmptyPrompt))));
        assert_eq!(len(receiver.poll(&mut cx)), Poll::Pending);
        drop(sender);
        assert_eq!(woken(), 3);
        assert_eq!(len(receiver.poll(&mut cx)), Poll::Ready(None));
    }

    #[test]
    fn nobody_is_woken_who_has_gone_and_a_waker_that_panics_does_no_harm() {
        let (sender, receiver) = channel();
        let (count, waker) = count();
        assert_eq!(len(receiver.poll(&mut Context::from_waker(&waker))), Poll::Pending);
        drop((receiver, waker));
        assert_eq!(Arc::strong_count(&count), 1, "the waker is dropped with the end that waits");
        assert!(!sender.send(logits(1)));
        assert_eq!(count.woken.load(Ordering::SeqCst), 0);

        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("an executor's fault");
            }
        }
        let (sender, receiver) = channel();
        let waker = Waker::from(Arc::new(Panics));
        assert_eq!(len(receiver.poll(&mut Context::from_waker(&waker))), Poll::Pending);
        assert!(sender.send(logits(1)));
        assert_eq!(len(receiver.poll(&mut Context::from_waker(&waker))), Poll::Ready(Some(Ok(1))));
    }

    #[test]
    fn no_event_is_missed_however_the_two_ends_meet() {
        const EVENTS: usize = 200_000;
        let (sender, receiver) = channel();
        let (count, waker) = count();
        let sends = thread::spawn(move || {
            for n in 0..EVENTS {
                assert!(sender.send(logits(n % 3)));
                (0..n % 97).for_each(|_| std::hint::spin_loop());
            }
        });
        let (mut seen, mut waits) = (0, 0);
        loop {
            let before = count.woken.load(Ordering::SeqCst);
            match len(receiver.poll(&mut Context::from_waker(&waker))) {
                Poll::Ready(None) => break,
                Poll::Ready(event) => {
                    assert_eq!(event, Some(Ok(seen % 3)));
                    seen += 1;
                }
                Poll::Pending => {
                    waits += 1;
                    // No time limit: if an event is missed, the test never ends.
                    while count.woken.load(Ordering::SeqCst) == before {
                        thread::park();
                    }
                }
            }
        }
        sends.join().unwrap();
        assert_eq!(seen, EVENTS);
        assert!(waits > 10, "{waits}");
    }
}
