//! Products with coded weights (see `weights::tiles::coded`) as they are stored.
//!
//! ```text
//! y[r][o] = sum over tiles t of (p[t] * sx[r][t])  +  min[o][g] * sum(x[r] of g) for each group g
//! p[t] = float(dot_t) * scale[o][t], or float(first 16) * scale[o][2 t] + float(last 16) * scale[o][2 t + 1]
//! ```
//!
//! all fused, in ascending t, and the minima of 256 columns after their products; activations are those of
//! [`super::quantize`]. So there is one order of f32 sums, as in [`super::i8dot`].
//!
//! Weights are unpacked by 16 rows and 256 columns, into int8 tiles with f32 scales, which one kernel takes whatever the
//! format: ten formats times all counts of rows would be as many kernels to compile. Few rows multiply a unit while it is
//! in the first cache; for more rows, whole strips are unpacked into the second, once for all rows.

use std::sync::{Mutex, MutexGuard, TryLockError};

use super::i8dot::{FAR, LINE, NEAR};
use super::outputs::Outputs;
use super::quantize::Quantized;
use crate::error::Result;
use crate::host::memory::vec_for;
use crate::isa::{GROUP, Isa, Kernel, LANES, Simd};
use crate::weights::formats::codes::{Coding, Scales, Values, power};
use crate::weights::tiles::INT8_TILE;
use crate::weights::tiles::coded::{Places, UNIT};

/// 16 rows and 256 columns of weights, unpacked.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Unit {
    weight: [[u8; INT8_TILE]; UNIT],
    scale: [[f32; LANES]; 2 * UNIT], // of each group
    min: [[f32; LANES]; 2 * UNIT],
}

/// Units that a thread unpacks for many rows of activations: a tenth of a second cache.
const SHARED_UNITS: usize = 32;

/// Room for each thread to unpack weights in.
pub(super) struct Room(Vec<Mutex<Vec<Unit>>>);

impl Room {
    fn units(max_cols: usize) -> usize {
        max_cols.div_ceil(UNIT * GROUP).max(SHARED_UNITS)
    }

    pub(super) fn bytes(threads: usize, max_cols: usize) -> u64 {
        (threads * Self::units(max_cols) * size_of::<Unit>()) as u64
    }

    pub(super) fn new(threads: usize, max_cols: usize) -> Result<Room> {
        let room = || {
            let n = Self::units(max_cols);
            let mut units = vec_for("unpacked weights", n)?;
            let unit =
                Unit { weight: [[0; INT8_TILE]; UNIT], scale: [[0.0; LANES]; 16], min: [[0.0; LANES]; 16] };
            units.resize(n, unit);
            Ok(Mutex::new(units))
        };
        Ok(Room((0..threads).map(|_| room()).collect::<Result<_>>()?))
    }

    /// One that nobody uses: there are as many as threads.
    pub(super) fn take(&self) -> MutexGuard<'_, Vec<Unit>> {
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

/// Some strips, 16 outputs each, for all activation rows.
pub(super) struct CodedRows<'a> {
    pub(super) isa: Isa,
    pub(super) data: &'a [u8], // strips
    pub(super) coding: &'static Coding,
    pub(super) x: &'a Quantized,
    pub(super) outputs: Outputs<'a>,
    pub(super) room: &'a mut [Unit],
}

/// One unit to unpack.
struct Unpack {
    coding: &'static Coding,
    places: Places,
    tiles: usize,
    from: *const u8,
    to: *mut Unit,
    /// How far ahead memory is fetched.
    ahead: usize,
}

impl Unpack {
    /// # Safety
    /// The CPU has `S`; the unit is at `from`, and `to` is this thread's.
    #[inline(always)]
    unsafe fn codes<S: Simd, const BITS: usize, const TABLE: bool>(&self) {
        let (table, add) = match self.coding.values {
            Values::Less(offset) => ([0; 16], 128 - offset),
            Values::Table(table) => (table.map(|x| x.cast_unsigned().wrapping_add(128)), 0),
        };
        for tile in 0..self.tiles {
            // SAFETY: the caller's promise; a tile has `BITS` times 64 bytes. A prefetch may go anywhere.
            unsafe {
                let from = self.from.add(tile * BITS * LINE);
                let to = (*self.to).weight[tile].as_mut_ptr();
                for line in 0..BITS {
                    S::prefetch(from.wrapping_add(self.ahead + line * LINE));
                }
                let load = |plane: usize| S::load_bytes(from.add(plane * LINE));
                let high = [load(if BITS > 4 { 4 } else { BITS - 1 }), load(BITS - 1)];
                for kk in 0..8 {
                    let down = kk as i32;
                    let low = match BITS {
                        4.. => S::bits(load(kk / 2), 4 * (down % 2), 15),
                        _ => S::bits(load(kk / 4), 2 * (down % 4), 3),
                    };
                    let code = match BITS {
                        3 => S::either(low, S::bits(high[0], down - 2, 4)),
                        5 => S::either(low, S::bits(high[0], down - 4, 16)),
                        6 => S::either(low, S::bits(high[kk / 4], 2 * (down % 4) - 4, 48)),
                        _ => low,
                    };
                    let byte = if TABLE { S::look_up(&table, code) } else { S::add_byte(code, add) };
                    S::store_bytes(to.add(kk * LINE), byte);
                }
            }
        }
    }

    /// # Safety
    /// As [`Unpack::codes`].
    #[inline(always)]
    unsafe fn scales<S: Simd>(&self) {
        let Places { scale, min, block, .. } = self.places;
        let groups = self.tiles * (GROUP / self.coding.group);
        // SAFETY: the caller's promise; `Coding::places` says what lies where.
        unsafe {
            let at = |place: usize| self.from.add(place);
            let (to_scale, to_min) = (&mut (*self.to).scale, &mut (*self.to).min);
            for line in (scale..self.places.end).step_by(LINE) {
                S::prefetch(at(0).wrapping_add(self.ahead + line));
            }
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
        }
    }
}

impl Kernel for Unpack {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
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
            self.scales::<S>();
        }
    }
}

impl CodedRows<'_> {
    fn units(&self) -> usize {
        self.x.tiles.div_ceil(UNIT)
    }

    /// Unpacks unit `u` of strip `t`.
    ///
    /// # Safety
    /// The unit exists, and `to` is this thread's.
    #[inline(always)]
    unsafe fn unpack(&self, t: usize, u: usize, to: *mut Unit, ahead: usize) {
        let (coding, tiles) = (self.coding, UNIT.min(self.x.tiles - u * UNIT));
        let at = t * coding.strip_bytes(self.x.tiles) + u * coding.places(UNIT).end;
        let places = coding.places(tiles);
        debug_assert!(at + places.end <= self.data.len());
        // SAFETY: the caller's promise.
        unsafe {
            let from = self.data.as_ptr().add(at);
            self.isa.dispatch(Unpack { coding, places, tiles, from, to, ahead });
        }
    }

    /// Dot products of `R` rows with `4 * FOURS` columns of one tile of `T` strips, the first or the last.
    ///
    /// # Safety
    /// The CPU has `S`; the weights are at `w`, the rows lie in one block, and have the tile at `at`.
    #[inline(always)]
    unsafe fn dots<S: Simd, const R: usize, const T: usize, const WIDE: bool, const FOURS: usize>(
        &self,
        w: [*const u8; T],
        at: usize,
        half: usize,
    ) -> [[S::I; R]; T] {
        let x = self.x;
        // SAFETY: the caller's promise.
        unsafe {
            let mut start = [S::splat_i32(0); R];
            let mut values = [x.lo.as_ptr().cast::<i8>(); R];
            for i in 0..R {
                start[i] = S::splat_i32(match FOURS {
                    4 => x.halves.get_unchecked(at + i).lo_start[half],
                    _ => *x.lo_start.get_unchecked(at + i),
                });
                values[i] = x.lo.as_ptr().add(at + i).cast::<i8>().add(half * LANES);
            }
            let mut lo = S::dot_groups::<R, T, FOURS>(w, values, [start; T]);
            if WIDE {
                for i in 0..R {
                    start[i] = S::splat_i32(match FOURS {
                        4 => x.halves.get_unchecked(at + i).hi_start[half],
                        _ => *x.hi_start.get_unchecked(at + i),
                    });
                    values[i] = x.hi.as_ptr().add(at + i).cast::<i8>().add(half * LANES);
                }
                let hi = S::dot_groups::<R, T, FOURS>(w, values, [start; T]);
                for t in 0..T {
                    for i in 0..R {
                        lo[t][i] = S::join(hi[t][i], lo[t][i]);
                    }
                }
            }
            lo
        }
    }

    /// `T` strips from `t` on for `R` rows from `r` on, which lie in one block, and of which there are `rows`; of units at
    /// `units`, those of a strip after each other, or unpacked as they come.
    ///
    /// # Safety
    /// The CPU has `S`; the rows and the strips exist; no other task has these outputs.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const T: usize, const WIDE: bool, const HALVES: bool>(
        &self,
        t: usize,
        r: usize,
        rows: usize,
        units: *mut Unit,
        unpacked: bool,
    ) {
        let (x, per_strip) = (self.x, self.units());
        // SAFETY: instructions by the caller's promise; `product::matmul` and `Quantized` establish the sizes.
        unsafe {
            let mut acc = [[S::splat(0.0); R]; T];
            for u in 0..per_strip {
                let to = if unpacked { units.add(u) } else { units };
                if !unpacked {
                    self.unpack(t, u, to, if R == 1 { NEAR } else { FAR });
                }
                let mut unit = [&*to; T];
                for i in 1..T {
                    unit[i] = &*to.add(i * per_strip);
                }
                let tiles = UNIT.min(x.tiles - u * UNIT);
                for k in 0..tiles {
                    let at = x.tile_at(r, u * UNIT + k);
                    let mut product = [[S::splat(0.0); R]; T];
                    for half in 0..if HALVES { 2 } else { 1 } {
                        let w = unit
                            .map(|unit| unit.weight.as_ptr().add(k).cast::<u8>().add(half * INT8_TILE / 2));
                        let dot = match HALVES {
                            true => self.dots::<S, R, T, WIDE, 4>(w, at, half),
                            false => self.dots::<S, R, T, WIDE, 8>(w, at, 0),
                        };
                        for t in 0..T {
                            let group = if HALVES { 2 * k + half } else { k };
                            let scale = S::load(unit[t].scale.as_ptr().add(group).cast());
                            for i in 0..R {
                                let dot = S::to_f32(dot[t][i]);
                                product[t][i] = match half {
                                    0 => S::mul(dot, scale),
                                    _ => S::fma(dot, scale, product[t][i]),
                                };
                            }
                        }
                    }
                    for i in 0..R {
                        let scale = S::splat(*x.scale.get_unchecked(at + i));
                        for t in 0..T {
                            acc[t][i] = S::fma(product[t][i], scale, acc[t][i]);
                        }
                    }
                }
                if self.coding.scales.has_min() {
                    for k in 0..tiles {
                        let at = x.tile_at(r, u * UNIT + k);
                        for half in 0..if HALVES { 2 } else { 1 } {
                            let group = if HALVES { 2 * k + half } else { k };
                            for i in 0..R {
                                let sum = S::splat(match HALVES {
                                    true => x.halves.get_unchecked(at + i).sum[half],
                                    false => *x.sum.get_unchecked(at + i),
                                });
                                for t in 0..T {
                                    let min = S::load(unit[t].min.as_ptr().add(group).cast());
                                    acc[t][i] = S::fma(min, sum, acc[t][i]);
                                }
                            }
                        }
                    }
                }
            }
            for i in 0..T {
                self.outputs.write::<S, R>(t + i, r, rows, acc[i]);
            }
        }
    }

    /// # Safety
    /// As [`CodedRows::block`], for all of them.
    #[inline(always)]
    unsafe fn all<S: Simd, const WIDE: bool, const HALVES: bool>(&mut self) {
        let (n, units, strips) = (self.x.n, self.units(), self.outputs.strips());
        let room = self.room.as_mut_ptr();
        let at_once = n <= S::ROWS;
        let together = if at_once { 1 } else { (self.room.len() / units).clamp(1, strips) };
        for first in (0..strips).step_by(together) {
            let last = strips.min(first + together);
            if !at_once {
                for (t, u) in (first..last).flat_map(|t| (0..units).map(move |u| (t, u))) {
                    // SAFETY: the unit exists, and has room.
                    unsafe { self.unpack(t, u, room.add((t - first) * units + u), FAR) };
                }
            }
            let mut r = 0;
            while r < n {
                // Where there are fewer rows than the kernel takes, it computes others of their block that nobody reads.
                let rows = n - r;
                let pairs = S::PAIRS && !at_once && last - first > 1;
                let take = rows.next_power_of_two().min(if pairs { 4 } else { S::ROWS });
                let mut t = first;
                while t < last {
                    // SAFETY: `r` and `t` stay below their ends, and `take` divides a block and what is before `r`.
                    unsafe {
                        let at = room.add((t - first) * units);
                        if S::PAIRS && pairs && t + 2 <= last {
                            self.block::<S, 4, 2, WIDE, HALVES>(t, r, rows, at, true);
                            t += 2;
                            continue;
                        }
                        match take {
                            1 => self.block::<S, 1, 1, WIDE, HALVES>(t, r, rows, at, !at_once),
                            2 if S::ROWS >= 2 => {
                                self.block::<S, 2, 1, WIDE, HALVES>(t, r, rows, at, !at_once)
                            }
                            4 if S::ROWS >= 4 => {
                                self.block::<S, 4, 1, WIDE, HALVES>(t, r, rows, at, !at_once)
                            }
                            8 if S::ROWS >= 8 => {
                                self.block::<S, 8, 1, WIDE, HALVES>(t, r, rows, at, !at_once)
                            }
                            _ => unreachable!("a block has 1, 2, 4 or 8 rows, at most {}", S::ROWS),
                        }
                    }
                    t += 1;
                }
                r += if pairs { 4 } else { take };
            }
        }
    }
}

impl Kernel for CodedRows<'_> {
    type Out = ();
    const DOTS: bool = true;
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        assert!(self.room.len() >= self.units(), "a strip has room");
        // SAFETY: `matmul` gives ranges that exist and outputs of its own to each task.
        unsafe {
            match (self.x.form.wide, self.coding.group < GROUP) {
                (false, false) => self.all::<S, false, false>(),
                (true, false) => self.all::<S, true, false>(),
                (false, true) => self.all::<S, false, true>(),
                (true, true) => self.all::<S, true, true>(),
            }
        }
    }
}
