//! Products with weights of 2 to 6 bits as they are stored: codes with scales (see [`crate::codes`]).
//!
//! ```text
//! y[r][o] = sum over tiles t of (p[t] * sx[r][t])  +  min[o][g] * sum(x[r] of g) for each group g
//! p[t] = float(dot_t) * scale[o][t], or float(first 16) * scale[o][2 t] + float(last 16) * scale[o][2 t + 1]
//! ```
//!
//! All of these are fused multiply-adds, in ascending t. The minima of 256 columns are added after the products of
//! these columns. The activations are those of [`crate::quantize`]. So the f32 sums have one order, as in
//! [`crate::i8dot`].
//!
//! With 8-bit activations, `float(dot)` costs nothing. A dot product starts from the bits of the f32 `isa::BIAS`, so
//! its bits are those of the f32 `BIAS + dot`. Then `(BIAS + dot) * scale - BIAS * scale` is one fused multiply-add.
//! Both products are exact, so the result is rounded once, like that of `float(dot) * scale`.
//!
//! Weights are unpacked in units of 16 rows and 256 columns, into int8 tiles with f32 scales. One kernel multiplies
//! these, whatever the format. A kernel for each of ten formats and each number of rows would be too many to compile.
//! For many rows, whole strips are unpacked into the L2 cache, once for all rows. For few rows, a unit is multiplied
//! while it is in the L1 cache.
//!
//! If there are enough registers, few rows are multiplied with codes and scales that are unpacked in registers
//! (`CodedRows::in_registers`). Writing unpacked codes to the L1 cache and reading them back took up to twice the time,
//! most of all if another process shares the core. Doing so with scales took up to 1.8 times the time, too.

mod unpack;

use crate::codes::{Coding, Places, UNIT, Values};
use crate::i8dot::LINE;
use crate::isa::{BIAS, GROUP, Isa, Kernel, LANES, Simd};
use crate::outputs::Outputs;
use crate::quantize::{BLOCK, Quantized, start};
use crate::tiles::INT8_TILE;

pub use unpack::Unit;
use unpack::{GroupScales, Unpack, code, plain};

/// How many units ahead memory is prefetched. Of 1 to 16 units, three were the best or as good, with any format and
/// number of rows.
const AHEAD: usize = 3;
/// The most cache lines of a stored unit for each of its tiles, rounded up: formats of six bits have that many.
const MOST_LINES: usize = 7;

/// The product of some strips, 16 outputs each, with all activation rows; implements [`Kernel`].
pub struct CodedRows<'a> {
    isa: Isa,
    data: &'a [u8], // strips
    coding: &'static Coding,
    x: &'a Quantized,
    outputs: Outputs<'a>,
    room: &'a mut [Unit],
    strip_bytes: usize,
    whole: Places, // of a unit of 256 columns
    last: Places,  // of the last unit of a strip
}

/// What is prefetched into the L2 cache while a unit is multiplied: how many bytes ahead, and how many lines for each
/// tile.
#[derive(Clone, Copy)]
struct Fetch {
    ahead: usize,
    lines: usize,
}

impl<'a> CodedRows<'a> {
    /// The product of the strips of `data` with `x`. `room` is for units of one strip at least, while they are
    /// multiplied.
    pub fn new(
        isa: Isa,
        data: &'a [u8],
        coding: &'static Coding,
        x: &'a Quantized,
        outputs: Outputs<'a>,
        room: &'a mut [Unit],
    ) -> Self {
        let whole = coding.places(UNIT);
        let last = coding.places((x.tiles - 1) % UNIT + 1);
        let strip_bytes = coding.strip_bytes(x.tiles);
        CodedRows { isa, data, coding, x, outputs, room, strip_bytes, whole, last }
    }

    /// Computes them.
    ///
    /// # Safety
    /// No other task has these outputs; `data` is that many strips, of as many columns as `x` was quantised with; a bias has
    /// a value for each output.
    pub unsafe fn compute(self) {
        // SAFETY: the caller's promise.
        unsafe { self.isa.dispatch(self) }
    }

    /// The number of units of a strip.
    fn units(&self) -> usize {
        self.x.tiles.div_ceil(UNIT)
    }

    /// Where unit `u` of strip `t` is stored.
    fn unit(&self, t: usize, u: usize) -> *const u8 {
        let at = t * self.strip_bytes + u * self.whole.end;
        debug_assert!(at < self.data.len());
        self.data.as_ptr().wrapping_add(at)
    }

    /// Unpacks `n` units of strip `t`, from unit `u` on.
    ///
    /// # Safety
    /// The units exist, and only this thread uses `to`.
    #[inline(always)]
    unsafe fn unpack(&self, t: usize, u: usize, n: usize, to: *mut Unit) {
        let tiles = (n * UNIT).min(self.x.tiles - u * UNIT);
        let from = self.unit(t, u);
        // SAFETY: the caller's promise.
        unsafe { self.isa.dispatch(Unpack { coding: self.coding, tiles, from, to }) };
    }

    /// Dot products of one plane of `R` rows with one tile of each of `T` strips: over its 32 columns, or with `HALVES`
    /// over the first or last 16, as `half` says. The weights are codes of `BITS` bits, or unpacked bytes if `BITS` is
    /// 0.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; the weights are at `w`, and the plane's rows at `x`.
    #[inline(always)]
    unsafe fn dots<
        S: Simd,
        const R: usize,
        const T: usize,
        const HALVES: bool,
        const BITS: usize,
        const TABLE: bool,
    >(
        &self,
        w: [*const u8; T],
        x: *const [i8; GROUP],
        starts: [S::I; R],
        half: usize,
    ) -> [[S::I; R]; T] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut values = [x.cast::<i8>(); R];
            for i in 0..R {
                values[i] = x.add(i).cast::<i8>().add(half * LANES);
            }
            if BITS == 0 {
                let w = w.map(|w| w.add(half * INT8_TILE / 2));
                return match HALVES {
                    true => S::dot_groups::<R, T, 4>(w, values, [starts; T]),
                    false => S::dot_groups::<R, T, 8>(w, values, [starts; T]),
                };
            }
            let mut dot = [starts; T];
            for t in 0..T {
                for kk in 0..if HALVES { 4 } else { 8 } {
                    let four = code::<S, BITS, TABLE>(self.coding.values, w[t], 4 * half + kk);
                    dot[t] = S::dot_four::<R>(four, values.map(|x| x.add(4 * kk)), dot[t]);
                }
            }
            dot
        }
    }

    /// The same dot products, with both planes if the rows are `WIDE` (16 bits).
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; the weights are at `w`; the rows lie in one block, and their tile is at
    /// `at`.
    #[inline(always)]
    unsafe fn both<
        S: Simd,
        const R: usize,
        const T: usize,
        const WIDE: bool,
        const HALVES: bool,
        const BITS: usize,
        const TABLE: bool,
    >(
        &self,
        w: [*const u8; T],
        at: usize,
        half: usize,
    ) -> [[S::I; R]; T] {
        let x = self.x;
        let half_at = x.halves_at(at) + half * BLOCK;
        // SAFETY: the caller's promise.
        unsafe {
            let plain = plain(self.coding.values);
            let mut starts = [S::splat_i32(start(WIDE)); R];
            for i in 0..R {
                if !plain {
                    starts[i] = S::splat_i32(match HALVES {
                        true => *x.halves.lo_start.get_unchecked(half_at + i),
                        false => *x.lo_start.get_unchecked(at + i),
                    });
                }
            }
            let mut lo = self.dots::<S, R, T, HALVES, BITS, TABLE>(w, x.lo.as_ptr().add(at), starts, half);
            if WIDE {
                for i in 0..R {
                    if !plain {
                        starts[i] = S::splat_i32(match HALVES {
                            true => *x.halves.hi_start.get_unchecked(half_at + i),
                            false => *x.hi_start.get_unchecked(at + i),
                        });
                    }
                }
                let hi = self.dots::<S, R, T, HALVES, BITS, TABLE>(w, x.hi.as_ptr().add(at), starts, half);
                for t in 0..T {
                    for i in 0..R {
                        lo[t][i] = S::join(hi[t][i], lo[t][i]);
                    }
                }
            }
            lo
        }
    }

    /// Adds to `acc` the products of unit `u` of `T` strips with `R` rows from `r` on.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`. `unit` has the unpacked unit of each strip, or if `BITS` is not 0, the stored
    /// unit is at `codes`. The rows lie in one block.
    #[inline(always)]
    unsafe fn multiply<
        S: Simd,
        const R: usize,
        const T: usize,
        const WIDE: bool,
        const HALVES: bool,
        const BITS: usize,
        const TABLE: bool,
    >(
        &self,
        unit: [&Unit; T],
        codes: [*const u8; T],
        (r, u): (usize, usize),
        fetch: Fetch,
        acc: &mut [[S::V; R]; T],
    ) {
        let x = self.x;
        let (halves, tiles) = (if HALVES { 2 } else { 1 }, UNIT.min(x.tiles - u * UNIT));
        let places = if tiles == UNIT { self.whole } else { self.last };
        // SAFETY: the caller's promise. A prefetch may go anywhere.
        unsafe {
            let mut stored = [GroupScales::<S>::of(self.coding.scales, places, codes[0]); T];
            for t in 1..T {
                stored[t] = GroupScales::of(self.coding.scales, places, codes[t]);
            }
            for k in 0..tiles {
                for t in 0..T {
                    // Not `0..fetch.lines`: a loop of unknown length costs as much as the prefetches in it.
                    for line in 0..MOST_LINES {
                        if line < fetch.lines {
                            let at = codes[t].wrapping_add(fetch.ahead + (k * fetch.lines + line) * LINE);
                            S::prefetch(at);
                        }
                    }
                }
                let at = x.tile_at(r, u * UNIT + k);
                let mut w = [self.data.as_ptr(); T];
                for t in 0..T {
                    w[t] = match BITS {
                        0 => unit[t].weight.as_ptr().add(k).cast(),
                        _ => codes[t].add(k * BITS * LINE),
                    };
                }
                let mut product = [[S::splat(0.0); R]; T];
                for half in 0..halves {
                    let g = halves * k + half;
                    // Before the dot products: a branch after them made the compiler keep all their operands.
                    let mut scales = [S::splat(0.0); T];
                    for t in 0..T {
                        scales[t] = match BITS {
                            0 => S::load(unit[t].scale.as_ptr().add(g).cast()),
                            _ => stored[t].scale(g),
                        };
                    }
                    let dot = self.both::<S, R, T, WIDE, HALVES, BITS, TABLE>(w, at, half);
                    for t in 0..T {
                        let scale = scales[t];
                        let bias = match BITS {
                            0 => S::load(unit[t].bias.as_ptr().add(halves * k + half).cast()),
                            _ => S::mul(scale, S::splat(-BIAS)),
                        };
                        for i in 0..R {
                            product[t][i] = match (WIDE, half) {
                                (true, 0) => S::mul(S::to_f32(dot[t][i]), scale),
                                (true, _) => S::fma(S::to_f32(dot[t][i]), scale, product[t][i]),
                                (false, 0) => S::fma(S::from_bits(dot[t][i]), scale, bias),
                                (false, _) => S::fma(S::unbias(dot[t][i]), scale, product[t][i]),
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
            if !self.coding.scales.has_min() {
                return;
            }
            for k in 0..tiles {
                let at = x.tile_at(r, u * UNIT + k);
                for half in 0..halves {
                    let g = halves * k + half;
                    let mut mins = [S::splat(0.0); T];
                    for t in 0..T {
                        mins[t] = match BITS {
                            0 => S::load(unit[t].min.as_ptr().add(g).cast()),
                            _ => stored[t].min(g),
                        };
                    }
                    for i in 0..R {
                        let sum = S::splat(match HALVES {
                            true => *x.halves.sum.get_unchecked(x.halves_at(at) + half * BLOCK + i),
                            false => *x.sum.get_unchecked(at + i),
                        });
                        for t in 0..T {
                            acc[t][i] = S::fma(mins[t], sum, acc[t][i]);
                        }
                    }
                }
            }
        }
    }

    /// Multiplies `T` strips from `t` on with `R` rows from `r` on, which lie in one block; the first `rows` of them
    /// exist.
    ///
    /// If `unpacked`, the strips' units are at `units`, those of one strip after the other. Otherwise `units` is room
    /// in which they are unpacked here, one of each strip. If `BITS` is not 0, `units` is not used: codes and scales are
    /// unpacked in registers.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; the rows and the strips exist; no other task writes these outputs.
    #[inline(always)]
    unsafe fn block<
        S: Simd,
        const R: usize,
        const T: usize,
        const WIDE: bool,
        const HALVES: bool,
        const BITS: usize,
        const TABLE: bool,
    >(
        &self,
        t: usize,
        r: usize,
        rows: usize,
        units: *mut Unit,
        unpacked: bool,
    ) {
        let per_strip = self.units();
        let bytes = self.whole.end;
        let fetch = match unpacked {
            true => Fetch { ahead: 0, lines: 0 },
            false => Fetch { ahead: AHEAD * bytes, lines: bytes.div_ceil(UNIT * LINE) },
        };
        // SAFETY: instructions by the caller's promise; `product::matmul` and `Quantized` establish the sizes.
        unsafe {
            let mut acc = [[S::splat(0.0); R]; T];
            for u in 0..per_strip {
                let (mut unit, mut codes) = ([&*units; T], [self.data.as_ptr(); T]);
                for i in 0..T {
                    let at = units.add(if unpacked { i * per_strip + u } else { i });
                    if BITS == 0 && !unpacked {
                        self.unpack(t + i, u, 1, at);
                    }
                    (unit[i], codes[i]) = (&*at, self.unit(t + i, u));
                }
                self.multiply::<S, R, T, WIDE, HALVES, BITS, TABLE>(unit, codes, (r, u), fetch, &mut acc);
            }
            for i in 0..T {
                self.outputs.write::<S, R>(t + i, r, rows, acc[i]);
            }
        }
    }

    /// Multiplies all strips with few rows; codes are unpacked in registers.
    ///
    /// # Safety
    /// As [`CodedRows::block`].
    #[inline(always)]
    unsafe fn in_registers<S: Simd, const HALVES: bool, const BITS: usize, const TABLE: bool>(&mut self) {
        let (n, units) = (self.x.n, self.room.as_mut_ptr());
        for t in 0..self.outputs.strips() {
            // SAFETY: the caller's promise. Rows after the last are in the same block; their results are not written.
            unsafe {
                match n {
                    1 => self.block::<S, 1, 1, false, HALVES, BITS, TABLE>(t, 0, n, units, false),
                    2..=4 => self.block::<S, 4, 1, false, HALVES, BITS, TABLE>(t, 0, n, units, false),
                    _ => self.block::<S, 8, 1, false, HALVES, BITS, TABLE>(t, 0, n, units, false),
                }
            }
        }
    }

    /// # Safety
    /// As [`CodedRows::block`], for all strips and rows.
    #[inline(always)]
    unsafe fn all<S: Simd, const WIDE: bool, const HALVES: bool>(&mut self) {
        let (n, units, strips) = (self.x.n, self.units(), self.outputs.strips());
        let room = self.room.as_mut_ptr();
        let at_once = n <= S::ROWS;
        let together = if at_once { 1 } else { (self.room.len() / units).clamp(1, strips) };
        for first in (0..strips).step_by(together) {
            let last = strips.min(first + together);
            if !at_once {
                for t in first..last {
                    // SAFETY: the strip exists, and has room.
                    unsafe { self.unpack(t, 0, units, room.add((t - first) * units)) };
                }
            }
            let mut r = 0;
            while r < n {
                // If there are fewer rows than the kernel takes, it also computes other rows of their block. Their
                // results are not written.
                let rows = n - r;
                let take = rows.next_power_of_two().min(S::ROWS);
                let mut t = first;
                while t < last {
                    let two = S::PAIRS && take > 1 && t + 2 <= last;
                    // SAFETY: `r` and `t` stay below their ends, and `take` divides a block and what is before `r`.
                    unsafe {
                        let at = room.add((t - first) * units);
                        let at = if at_once { room } else { at };
                        match (take, two) {
                            (1, _) => self.block::<S, 1, 1, WIDE, HALVES, 0, false>(t, r, rows, at, !at_once),
                            (2, true) if S::PAIRS => {
                                self.block::<S, 2, 2, WIDE, HALVES, 0, false>(t, r, rows, at, !at_once)
                            }
                            (4, true) if S::PAIRS => {
                                self.block::<S, 4, 2, WIDE, HALVES, 0, false>(t, r, rows, at, !at_once)
                            }
                            (8, true) if S::PAIRS => {
                                self.block::<S, 8, 2, WIDE, HALVES, 0, false>(t, r, rows, at, !at_once)
                            }
                            (2, _) if S::ROWS >= 2 => {
                                self.block::<S, 2, 1, WIDE, HALVES, 0, false>(t, r, rows, at, !at_once)
                            }
                            (4, _) if S::ROWS >= 4 => {
                                self.block::<S, 4, 1, WIDE, HALVES, 0, false>(t, r, rows, at, !at_once)
                            }
                            (8, _) if S::ROWS >= 8 => {
                                self.block::<S, 8, 1, WIDE, HALVES, 0, false>(t, r, rows, at, !at_once)
                            }
                            _ => unreachable!("a block has 1, 2, 4 or 8 rows, at most {}", S::ROWS),
                        }
                    }
                    t += if two { 2 } else { 1 };
                }
                r += take;
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
        // SAFETY: `matmul` gives each task a range that exists and outputs of its own.
        unsafe {
            if S::IN_REGISTERS && self.x.n <= S::ROWS && !self.x.form.wide {
                return match (self.coding.bits, self.coding.values, self.coding.group < GROUP) {
                    (2, _, true) => self.in_registers::<S, true, 2, false>(),
                    (3, _, true) => self.in_registers::<S, true, 3, false>(),
                    (4, Values::Less(_), false) => self.in_registers::<S, false, 4, false>(),
                    (4, Values::Table(_), false) => self.in_registers::<S, false, 4, true>(),
                    (5, _, false) => self.in_registers::<S, false, 5, false>(),
                    (6, _, true) => self.in_registers::<S, true, 6, false>(),
                    (bits, values, _) => unreachable!("no format has {bits} bits of {values:?}"),
                };
            }
            match (self.x.form.wide, self.coding.group < GROUP) {
                (false, false) => self.all::<S, false, false>(),
                (true, false) => self.all::<S, true, false>(),
                (false, true) => self.all::<S, false, true>(),
                (true, true) => self.all::<S, true, true>(),
            }
        }
    }
}
