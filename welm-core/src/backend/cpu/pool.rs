//! The compute threads: one job at a time, cut into tasks that any free thread takes.
//!
//! A forward pass is some hundred short jobs, one after the other, so starting and ending a job must be cheap. A
//! worker therefore spins for a few dozen microseconds after its last task before it parks. A job ends when its
//! *tasks* are done, not when every worker has reported: a worker that the operating system has suspended between
//! tasks delays nobody.
//!
//! The whole state of a job is one atomic word: the number of tasks and the index of the next. A thread claims tasks by
//! one compare-exchange on that word. A claim that succeeds belongs to the current job, and a job cannot end while a
//! claimed task is not done. So a worker that wakes up late can neither touch a finished job nor miss the current one.
//! A claim takes five sixths of an equal share of the tasks that are left, so the first claims are many tasks in a row.
//! Threads then read long runs of memory, of which only the beginnings are not prefetched, and rarely contend for the
//! word. What is left is for threads that are faster than others.
//!
//! Which thread computes a task must not matter: tasks write disjoint outputs and share no sums.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crate::error::Result;
use crate::host::fork::Local;
use crate::host::panics;
use crate::host::threads::{STACK, expect_room_for, prepared, refused};

/// Splits the job's word into the number of tasks and the index of the next one.
fn split(word: u64) -> (u64, u64) {
    (word >> 32, word & 0xFFFF_FFFF)
}

/// How often a worker reads the word and finds no task before it parks. That takes longer than the pause between two
/// steps, in which tokens are sampled.
const SPINS: u32 = 20_000;

/// With fewer multiplications than this, one thread is faster than two.
pub(crate) const WORTH_SHARING: usize = 1 << 14;

/// The job's closure. Threads share a pointer to this reference, because a pointer to the closure itself would be fat.
type Task<'a> = &'a (dyn Fn(Range<usize>) + Sync);

/// Keeps a value in cache lines of its own, because several threads write it. 128 bytes, because processors fetch
/// lines of 64 bytes in pairs.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared {
    /// `tasks << 32 | next`.
    word: Apart<AtomicU64>,
    done: Apart<AtomicUsize>,
    /// The current job's closure; valid while a claimed task of the job is not done.
    task: AtomicPtr<Task<'static>>,
    /// The message of the first task that panicked.
    panicked: Mutex<Option<String>>,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
}

impl Shared {
    /// Runs tasks of the current job until none is left.
    fn work(&self) {
        let threads = self.parked.len() as u64 + 1;
        loop {
            let word = self.word.0.load(Ordering::Acquire);
            let (tasks, next) = split(word);
            if next >= tasks {
                return;
            }
            let claimed = (5 * (tasks - next) / (6 * threads)).max(1);
            let exchange =
                self.word.0.compare_exchange(word, word + claimed, Ordering::AcqRel, Ordering::Relaxed);
            if exchange.is_err() {
                continue;
            }
            // SAFETY: `next < tasks`, so the job is not over before `done` is raised below; until then the
            // caller of `run` keeps the closure alive and leaves the pointer as it is.
            let task = unsafe { *self.task.load(Ordering::Acquire) };
            let range = next as usize..(next + claimed) as usize;
            if let Err(message) = panics::catch(|| task(range)) {
                let mut panicked = self.panicked.lock().unwrap_or_else(PoisonError::into_inner);
                panicked.get_or_insert(message);
            }
            self.done.0.fetch_add(claimed as usize, Ordering::Release);
        }
    }

    /// Whether the current job has a task that nobody has claimed. Claims nothing.
    fn has_work(&self) -> bool {
        let (tasks, next) = split(self.word.0.load(Ordering::SeqCst));
        next < tasks
    }

    fn worker(&self, index: usize) {
        let mut idle = 0;
        while !self.stop.load(Ordering::Acquire) {
            if self.has_work() {
                self.work();
                idle = 0;
            } else if idle < SPINS {
                idle += 1;
                std::hint::spin_loop();
            } else {
                self.parked[index].store(true, Ordering::SeqCst);
                // Look for work again now that the flag is set: a job that started before saw no flag and wakes nobody.
                while !self.has_work()
                    && !self.stop.load(Ordering::SeqCst)
                    && self.parked[index].load(Ordering::SeqCst)
                {
                    thread::park();
                }
                self.parked[index].store(false, Ordering::SeqCst);
                idle = 0;
            }
        }
    }
}

/// The pool of compute threads; the calling thread is one of them.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Thread>,
    /// To be joined, except in a forked child, which has none of these threads.
    handles: Local<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// A pool of `threads` threads, of which `threads - 1` are started.
    pub(crate) fn new(threads: usize) -> Result<Pool> {
        let n_workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            word: Apart(AtomicU64::new(0)),
            done: Apart(AtomicUsize::new(0)),
            task: AtomicPtr::new(std::ptr::null_mut()),
            panicked: Mutex::new(None),
            stop: AtomicBool::new(false),
            parked: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let mut pool = Pool { shared, workers: Vec::new(), handles: Local::new(Vec::new()) };
        for index in 0..n_workers {
            let shared = Arc::clone(&pool.shared);
            let what = format!("compute thread {} of {threads}", index + 1);
            expect_room_for(&what, STACK)?;
            let builder =
                thread::Builder::new().name(format!("welm-compute-{}", index + 1)).stack_size(STACK);
            let worker = builder.spawn(move || {
                let _prepared = prepared();
                shared.worker(index);
            });
            let worker = worker.map_err(|e| refused(&what, STACK, &e))?;
            pool.workers.push(worker.thread().clone());
            pool.handles.get_mut()?.push(worker);
        }
        Ok(pool)
    }

    /// The number of threads that compute, including the caller.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// As [`Pool::run`], but on this thread alone if there is too little work to wake others. `work` is about the
    /// number of multiplications.
    pub(crate) fn run_if_worth(&mut self, tasks: usize, work: usize, task: impl Fn(usize) + Sync) {
        if work < WORTH_SHARING { (0..tasks).for_each(task) } else { self.run(tasks, task) }
    }

    /// Calls `task(0)` to `task(tasks - 1)`, each once, on any thread, and returns when all are done.
    /// Takes `&mut self` because there is one job at a time.
    ///
    /// # Panics
    /// If a task panicked.
    pub(crate) fn run(&mut self, tasks: usize, task: impl Fn(usize) + Sync) {
        self.run_ranges(tasks, |range| range.for_each(&task));
    }

    /// As [`Pool::run`], but a thread gets consecutive tasks in one call. For tasks that are short or share work.
    pub(crate) fn run_ranges(&mut self, tasks: usize, task: impl Fn(Range<usize>) + Sync) {
        if tasks <= 1 || self.workers.is_empty() {
            if tasks > 0 {
                task(0..tasks);
            }
            return;
        }
        assert!(tasks < 1 << 31, "a job has less than 2^31 tasks");
        let mut thin: Task<'_> = &task;
        let shared = &*self.shared;
        shared.done.0.store(0, Ordering::Relaxed);
        shared.task.store((&raw mut thin).cast(), Ordering::Release);
        shared.word.0.store((tasks as u64) << 32, Ordering::SeqCst);
        for (parked, worker) in shared.parked.iter().zip(&self.workers) {
            if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                worker.unpark();
            }
        }
        shared.work();
        let mut spins = 0u32;
        while shared.done.0.load(Ordering::Acquire) < tasks {
            // If the machine is busy, the worker may need this core to finish.
            spins += 1;
            if spins.is_multiple_of(1_000) { thread::yield_now() } else { std::hint::spin_loop() }
        }
        let panicked = shared.panicked.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(message) = panicked {
            panic!("a compute task panicked: {message}");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.workers.iter().for_each(Thread::unpark);
        let handles = self.handles.get_mut().map(std::mem::take).unwrap_or_default();
        for handle in handles {
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in 1..=4 {
            let mut pool = Pool::new(threads).unwrap();
            for round in 0..2_000 {
                let tasks = round % 37;
                let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |i| {
                    hits[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
                if round % 500 == 0 {
                    thread::sleep(std::time::Duration::from_millis(3)); // lets the workers park
                }
            }
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, |i| assert!(i != 40, "boom"));
        }));
        assert!(caught.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(100, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4_950);
    }
}
