//! Room for each thread to unpack coded weights in.

use std::sync::{Mutex, MutexGuard, TryLockError};

use welm_cpu::coded::Unit;
use welm_cpu::codes::UNIT;
use welm_cpu::isa::GROUP;

use crate::error::Result;
use crate::host::memory::vec_for;

/// Units that a thread unpacks for many rows of activations: a tenth of a second cache.
const SHARED_UNITS: usize = 32;

/// Room for each thread to unpack weights in.
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

    /// One that nobody uses: there are as many as threads.
    pub(crate) fn take(&self) -> MutexGuard<'_, Vec<Unit>> {
        loop {
            for room in &self.0 {
                match room.try_lock() {
                    Ok(free) => return free,
                    // After a task that panicked; what it left is written over.
                    Err(TryLockError::Poisoned(free)) => return free.into_inner(),
                    Err(TryLockError::WouldBlock) => {}
                }
            }
            std::hint::spin_loop();
        }
    }
}
