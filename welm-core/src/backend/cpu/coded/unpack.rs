//! Unpacks coded weights: codes to bytes, scales to f32.

use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::backend::cpu::i8dot::LINE;
use crate::error::Result;
use crate::host::memory::vec_for;
use crate::isa::{BIAS, GROUP, Kernel, LANES, Simd};
use crate::weights::formats::codes::{Coding, Scales, Values, power};
use crate::weights::tiles::INT8_TILE;
use crate::weights::tiles::coded::{Places, UNIT};

/// 16 rows and 256 columns of weights, unpacked.
#[derive(Clone)]
#[repr(C, align(64))]
pub(crate) struct Unit {
    pub(super) weight: [[u8; INT8_TILE]; UNIT], // codes as they are, or values with an offset of 128: see `plain`
    pub(super) scale: [[f32; LANES]; 2 * UNIT], // of each group: 8 or 16 groups of 16 rows
    pub(super) bias: [[f32; LANES]; 2 * UNIT],  // -BIAS * scale
    pub(super) min: [[f32; LANES]; 2 * UNIT],
}

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
            let groups = [[0.0; LANES]; 2 * UNIT];
            units
                .resize(n, Unit { weight: [[0; INT8_TILE]; UNIT], scale: groups, bias: groups, min: groups });
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

/// Whether codes are the values themselves and are multiplied without an offset of 128.
pub(super) fn plain(values: Values) -> bool {
    values == Values::Less(0)
}

/// Unpacks consecutive units; implements [`Kernel`].
pub(super) struct Unpack {
    pub(super) coding: &'static Coding,
    /// Tiles of all units together.
    pub(super) tiles: usize,
    /// Unpack scales and minima, but no codes.
    pub(super) scales_only: bool,
    pub(super) from: *const u8,
    pub(super) to: *mut Unit,
}

/// One unit to unpack.
struct UnpackUnit {
    coding: &'static Coding,
    places: Places,
    tiles: usize,
    from: *const u8,
    to: *mut Unit,
}

/// Four columns of a tile for its 16 rows, from column `4 * kk` on: codes, or values with an offset of 128 (see
/// [`plain`]).
///
/// # Safety
/// The CPU has the instructions of `S`; a tile of `BITS` times 64 bytes is at `from`.
#[inline(always)]
pub(super) unsafe fn code<S: Simd, const BITS: usize, const TABLE: bool>(
    values: Values,
    from: *const u8,
    kk: usize,
) -> S::B {
    // SAFETY: the caller's promise.
    unsafe {
        let load = |plane: usize| S::load_bytes(from.add(plane * LINE));
        let down = kk as i32;
        let low = match BITS {
            4.. => S::bits(load(kk / 2), 4 * (down % 2), 15),
            _ => S::bits(load(kk / 4), 2 * (down % 4), 3),
        };
        let code = match BITS {
            3 => S::either(low, S::bits(load(2), down - 2, 4)),
            5 => S::either(low, S::bits(load(4), down - 4, 16)),
            6 => S::either(low, S::bits(load(4 + kk / 4), 2 * (down % 4) - 4, 48)),
            _ => low,
        };
        match (values, BITS) {
            (Values::Table(table), _) if TABLE => {
                S::look_up(&table.map(|x| x.cast_unsigned().wrapping_add(128)), code)
            }
            (Values::Less(offset), 3 | 5 | 6) if !plain(values) => S::add_byte(code, 128 - offset),
            _ => code,
        }
    }
}

impl UnpackUnit {
    /// Unpacks codes of `BITS` bits to bytes.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; the unit is at `from`, and only this thread uses `to`.
    #[inline(always)]
    unsafe fn codes<S: Simd, const BITS: usize, const TABLE: bool>(&self) {
        for tile in 0..self.tiles {
            // SAFETY: the caller's promise; a tile has `BITS` times 64 bytes.
            unsafe {
                let from = self.from.add(tile * BITS * LINE);
                let to = (*self.to).weight[tile].as_mut_ptr();
                for kk in 0..8 {
                    S::store_bytes(to.add(kk * LINE), code::<S, BITS, TABLE>(self.coding.values, from, kk));
                }
            }
        }
    }

    /// Unpacks scales and minima to f32, and multiplies each scale by `-BIAS`.
    ///
    /// # Safety
    /// As [`UnpackUnit::codes`].
    #[inline(always)]
    unsafe fn scales<S: Simd>(&self) {
        let Places { scale, min, block, .. } = self.places;
        let groups = self.tiles * (GROUP / self.coding.group);
        // SAFETY: the caller's promise; `Coding::places` says what lies where.
        unsafe {
            let at = |place: usize| self.from.add(place);
            let (to_scale, to_min) = (&mut (*self.to).scale, &mut (*self.to).min);
            match self.coding.scales {
                Scales::F16 | Scales::F16Min => {
                    for g in 0..groups {
                        S::store(to_scale[g].as_mut_ptr(), S::load_f16(at(scale + 2 * LANES * g).cast()));
                        if self.coding.scales == Scales::F16Min {
                            S::store(to_min[g].as_mut_ptr(), S::load_f16(at(min + 2 * LANES * g).cast()));
                        }
                    }
                }
                Scales::Exponent => {
                    for g in 0..groups {
                        for o in 0..LANES {
                            to_scale[g][o] = power(*at(scale + LANES * g + o));
                        }
                    }
                }
                Scales::Super | Scales::SuperMin => {
                    let d = S::load_f16(at(block).cast());
                    for g in 0..groups {
                        let sc = S::load_i8(at(scale + LANES * g).cast());
                        S::store(to_scale[g].as_mut_ptr(), S::mul(d, sc));
                    }
                    if self.coding.scales == Scales::SuperMin {
                        let d = S::load_f16(at(block + 2 * LANES).cast());
                        for g in 0..groups {
                            let m = S::load_i8(at(min + LANES * g).cast());
                            S::store(to_min[g].as_mut_ptr(), S::mul(d, m));
                        }
                    }
                }
            }
            for g in 0..groups {
                let scale = S::load(to_scale[g].as_ptr());
                S::store((&mut (*self.to).bias)[g].as_mut_ptr(), S::mul(scale, S::splat(-BIAS)));
            }
        }
    }
}

impl UnpackUnit {
    /// Unpacks the codes of any format to bytes.
    ///
    /// # Safety
    /// As [`UnpackUnit::codes`].
    #[inline(always)]
    unsafe fn weights<S: Simd>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.coding.bits, self.coding.values) {
                (2, _) => self.codes::<S, 2, false>(),
                (3, _) => self.codes::<S, 3, false>(),
                (4, Values::Less(_)) => self.codes::<S, 4, false>(),
                (4, Values::Table(_)) => self.codes::<S, 4, true>(),
                (5, _) => self.codes::<S, 5, false>(),
                (6, _) => self.codes::<S, 6, false>(),
                _ => unreachable!("codes have 2 to 6 bits"),
            }
        }
    }
}

impl Kernel for Unpack {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Unpack { coding, tiles, scales_only, from, to } = self;
        let whole = coding.places(UNIT);
        for u in 0..tiles.div_ceil(UNIT) {
            let tiles = UNIT.min(tiles - u * UNIT);
            let places = if tiles == UNIT { whole } else { coding.places(tiles) };
            // SAFETY: the caller's promise.
            unsafe {
                let (from, to) = (from.add(u * whole.end), to.add(u));
                let unit = UnpackUnit { coding, places, tiles, from, to };
                if !scales_only {
                    unit.weights::<S>();
                }
                unit.scales::<S>();
            }
        }
    }
}
