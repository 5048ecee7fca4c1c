//! Buffers in which threads unpack coded weights.

use std::sync::{Mutex, MutexGuard, TryLockError};

use welm_cpu::coded::Unit;
use welm_cpu::codes::UNIT;
use welm_cpu::isa::GROUP;

use crate::error::Result;
use crate::host::memory::vec_for;

/// Units that a thread unpacks at a time for many rows of activations: a tenth of an L2 cache.
const SHARED_UNITS: usize = 32;

/// Buffers in which threads unpack weights, one for each thread.
pub(crate) struct Room(Vec<Mutex<Vec<Unit>>>);

impl Room {
    fn units(max_cols: usize) -> usize {
        max_cols.div_ceil(UNIT * GROUP).max(SHARED_UNITS)
    }

    pub(crate) fn bytes(threads: usize, max_cols: usize) -> u64 {
        (threads * Self::units(max_cols) * size_of::<Unit>()) as u64
    }

    pub(crate) fn new(threads: usize, max_cols: usize) -> Result<Room> {
        let room = || {
            let n = Self::units(max_cols);
            let mut units = vec_for("unpacked weights", n)?;
            units.resize(n, Unit::ZERO);
            Ok(Mutex::new(units))
        };
        Ok(Room((0..threads).map(|_| room()).collect::<Result<_>>()?))
    }

    /// A buffer that no thread uses. There is always one, because there are as many as threads.
    pub(crate) fn take(&self) -> MutexGuard<'_, Vec<Unit>> {
        loop {
            for room in &self.0 {
                match room.try_lock() {
                    Ok(free) => return free,
                    // A task panicked with it. What it left is overwritten.
                    Err(TryLockError::Poisoned(free)) => return free.into_inner(),
                    Err(TryLockError::WouldBlock) => {}
                }
            }
            std::hint::spin_loop();
        }
    }
}
