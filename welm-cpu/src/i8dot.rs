//! Products of int8 or four-bit weights with quantised activations: the sums within a group are integers.
//!
//! ```text
//! y[r][o] = sum over g of (float(dot_g(q[o], x[r])) * (sw[o][g] * sx[r][g])),   fused, in ascending g
//! ```
//!
//! The activations are those of [`crate::quantize`]. A group is 32 columns, or 128 columns of which both weights and
//! activations were rotated (see [`crate::int8`]); a rotation of both changes no product. The dot product of a group is exact, and the f32
//! sum over groups has one order, whatever the instruction set, the tile, the thread or the other rows: equal
//! bits everywhere.
//!
//! int8 weights are stored with an offset of 128 (see [`crate::tiles`]), so a group's sum starts at
//! `-128 * sum(x)` instead of at zero. Four-bit weights are unsigned and need no offset. Their minimum
//! (`w = sw * q + min`) adds `min[o][g] * (sx[r][g] * sum(x))` to each group.
//!
//! A task computes one or more strips of sixteen outputs, for all rows of activations. Each 64 bytes of weights are
//! loaded into a register once and multiplied with up to eight rows of activations. So a prompt is bound by `vpdpbusd`:
//! 32 of 34 operations of the inner loop for groups of 128, eight of ten for groups of 32. A strip's weights are read
//! from memory once, and are still in the L2 cache for the next eight rows. Meanwhile the next strip is prefetched.

use std::ops::Range;

use half::f16;

use crate::int8::Grouping;
use crate::isa::{GROUP, Isa, Kernel, LANES, Simd};
use crate::outputs::Outputs;
use crate::quantize::{BLOCK, Quantized};
use crate::tiles::{INT4_TILE, INT8_TILE, tile_counts};

/// Bytes of weights that are multiplied with all blocks of activation rows before the next weights are read: a quarter
/// of a small L2 cache. Not more, because memory in pages of 4 KiB does not fill that cache evenly.
const SHARED_BYTES: usize = 1 << 17;

/// Quantised weights `(rows, cols)` in tiles of 16 rows and 32 columns.
#[derive(Clone, Copy)]
pub struct Tiles<'a> {
    pub rows: usize,
    pub cols: usize,
    pub grouping: Grouping,
    pub weight: &'a [u8], // (rows / 16, cols / 32, 512 or 256)
    pub scale: &'a [f16], // (rows / 16, groups, 16)
    pub min: &'a [f16],   // as `scale`; empty for int8
}

/// The product of some tile rows, 16 outputs each, with all activation rows; implements [`Kernel`].
pub struct TileRows<'a> {
    w: &'a [u8],      // (n_tile_rows, tiles, 512 or 256)
    scale: &'a [f16], // (n_tile_rows, groups, 16)
    min: &'a [f16],   // (n_tile_rows, groups, 16); empty for int8
    x: &'a Quantized,
    outputs: Outputs<'a>,
}

impl<'a> Tiles<'a> {
    /// The kernel that multiplies the tile rows of `range` with `x`.
    pub fn rows(self, range: Range<usize>, x: &'a Quantized, outputs: Outputs<'a>) -> TileRows<'a> {
        let (down, across) = tile_counts(self.rows, self.cols);
        let tile = if self.min.is_empty() { INT8_TILE } else { INT4_TILE };
        let groups = self.grouping.groups(across);
        assert!(self.weight.len() == down * across * tile && self.scale.len() == down * groups * LANES);
        assert!(self.min.is_empty() || self.min.len() == self.scale.len());
        let scales = range.start * groups * LANES..range.end * groups * LANES;
        TileRows {
            w: &self.weight[range.start * across * tile..range.end * across * tile],
            scale: &self.scale[scales.clone()],
            min: if self.min.is_empty() { &[] } else { &self.min[scales] },
            x,
            outputs,
        }
    }
}

/// Weights that are prefetched into the L2 cache while others are multiplied.
#[derive(Clone, Copy)]
struct Fetch {
    at: *const u8,
    /// Cache lines for each tile that is multiplied.
    lines: usize,
}

/// Bytes of a cache line.
pub const LINE: usize = 64;

/// How many bytes ahead weights that are used once are prefetched, into the L2 cache. Of 3 to 34 KiB, distances of 4 to
/// 16 KiB were alike, and 10 to 25 % better than no prefetch. Prefetching into the L1 cache, or into both, was never
/// better.
const FAR: usize = 8 << 10;
/// The same for one row of activations, which is bound by memory: with memory of 60 GB/s it reads 41 GB/s when it
/// prefetches 8 KiB ahead, and 56 GB/s with 3 KiB. More rows lose 3 % with 3 KiB.
const NEAR: usize = 3 << 10;

impl TileRows<'_> {
    /// Computes them.
    ///
    /// # Safety
    /// No other task has these outputs. Weights, scales and minima are those of as many columns as `x` was quantised with,
    /// and a bias has a value for each output.
    pub unsafe fn compute(self, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(self) }
    }

    /// Multiplies tile row `t` with the `R` rows from `r` on, which lie in one block; `PER` tiles share a scale.
    ///
    /// This is one loop over tiles, which applies the scales after every `PER` tiles. Of two nested loops the compiler
    /// unrolls the inner one and keeps its sums in memory.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; the rows and the tile row exist; no other task writes these outputs.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize, const WIDE: bool, const FOUR: bool, const PER: usize>(
        &self,
        t: usize,
        r: usize,
        fetch: Fetch,
    ) {
        let (x, tiles) = (self.x, self.x.tiles);
        let groups = tiles.div_ceil(PER);
        let tile = if FOUR { INT4_TILE } else { INT8_TILE };
        let (w, scales) = (t * tiles * tile, t * groups * LANES);
        debug_assert!(self.w.len() >= w + tiles * tile && self.scale.len() >= scales + groups * LANES);
        debug_assert!(!FOUR || (PER == 1 && self.min.len() >= scales + groups * LANES));
        debug_assert!(R <= BLOCK - r % BLOCK && x.tile_at(r, 0) + (tiles - 1) * BLOCK + R <= x.lo.len());
        // SAFETY: instructions by the caller's promise; offsets stay inside by the assertions above, which
        // `Tiles::rows` and `Quantized` establish. A prefetch may go anywhere.
        unsafe {
            let mut acc = [S::splat(0.0); R];
            let (mut dot, mut hi) = ([S::splat_i32(0); R], [S::splat_i32(0); R]);
            let weights = self.w.as_ptr().add(w);
            // Tiles of a block of rows lie one after the other, `BLOCK` apart; so do groups. Indices are not computed
            // from `r` in the loop: with too few registers for that, each tile's address came from the stack.
            let (first, first_group) = (x.tile_at(r, 0), x.group_at(r, 0));
            for k in 0..tiles {
                for line in 0..fetch.lines {
                    S::prefetch(fetch.at.wrapping_add((k * fetch.lines + line) * LINE));
                }
                let w = weights.add(k * tile);
                let (at, group_at) = (first + k * BLOCK, first_group + k / PER * BLOCK);
                if PER == 1 || k % PER == 0 {
                    for i in 0..R {
                        dot[i] = S::splat_i32(*x.lo_start.get_unchecked(group_at + i));
                        if WIDE {
                            hi[i] = S::splat_i32(*x.hi_start.get_unchecked(group_at + i));
                        }
                    }
                }
                dot = Self::dots::<S, R, FOUR>(w, x.lo.as_ptr().add(at), dot);
                if WIDE {
                    hi = Self::dots::<S, R, FOUR>(w, x.hi.as_ptr().add(at), hi);
                }
                if PER > 1 && k % PER + 1 < PER && k + 1 < tiles {
                    continue;
                }
                let scales = scales + k / PER * LANES;
                let sw = S::load_f16(self.scale.as_ptr().add(scales));
                for i in 0..R {
                    let sum = match (WIDE, FOUR) {
                        (true, _) => S::to_f32(S::join(hi[i], dot[i])),
                        (false, true) => S::to_f32(dot[i]),
                        (false, false) => S::unbias(dot[i]),
                    };
                    let scale = S::mul(sw, S::splat(*x.scale.get_unchecked(group_at + i)));
                    acc[i] = S::fma(sum, scale, acc[i]);
                }
                if FOUR {
                    let min = S::load_f16(self.min.as_ptr().add(scales));
                    for i in 0..R {
                        acc[i] = S::fma(min, S::splat(*x.sum.get_unchecked(group_at + i)), acc[i]);
                    }
                }
            }
            self.outputs.write::<S, R>(t, r, R, acc);
        }
    }

    /// Adds one tile's dot products with one plane of `R` rows to `sums`. With four-bit weights (`FOUR`) it starts from
    /// zero instead.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; a tile of weights is at `w`, `R` tiles of activations are at `plane`.
    #[inline(always)] // a closure might not be inlined, and would then be compiled without the instructions of `S`
    unsafe fn dots<S: Simd, const R: usize, const FOUR: bool>(
        w: *const u8,
        plane: *const [i8; GROUP],
        sums: [S::I; R],
    ) -> [S::I; R] {
        let mut values = [plane.cast(); R];
        for i in 0..R {
            // SAFETY: the caller's promise.
            values[i] = unsafe { plane.add(i).cast() };
        }
        // SAFETY: as above.
        unsafe { if FOUR { S::dot_group4::<R>(w, values) } else { S::dot_group::<R, 8>(w, values, sums) } }
    }

    /// Multiplies all tile rows with all rows of activations.
    ///
    /// # Safety
    /// As [`TileRows::block`], for all rows and tile rows.
    #[inline(always)]
    unsafe fn all<S: Simd, const WIDE: bool, const FOUR: bool, const PER: usize>(&self) {
        let (n, across) = (self.x.n, self.x.tiles);
        let tiles = self.outputs.strips();
        let tile_bytes = self.w.len() / tiles;
        let tile_lines = tile_bytes / across / LINE;
        // Activations of many rows come from the L3 cache. So several tile rows, as many as the L2 cache holds, are
        // multiplied with each block of rows. Meanwhile each block prefetches its share of the tile rows after those.
        let (together, lines, ahead) = if n <= S::ROWS {
            (tiles, tile_lines, if n == 1 { NEAR } else { FAR })
        } else {
            let together = (SHARED_BYTES / tile_bytes).clamp(1, tiles);
            (together, tile_lines.div_ceil(n.div_ceil(S::ROWS)), together * tile_bytes)
        };
        for first in (0..tiles).step_by(together) {
            let mut fetched = 0;
            for r in (0..n).step_by(S::ROWS) {
                for t in first..tiles.min(first + together) {
                    let at = self.w.as_ptr().wrapping_add(t * tile_bytes + ahead + fetched);
                    let fetch = Fetch { at, lines: if fetched < tile_bytes { lines } else { 0 } };
                    // SAFETY: `r` and `t` stay below their ends; `ROWS` divides a block.
                    unsafe {
                        match S::ROWS.min(n - r) {
                            1 => self.block::<S, 1, WIDE, FOUR, PER>(t, r, fetch),
                            2 if S::ROWS >= 2 => self.block::<S, 2, WIDE, FOUR, PER>(t, r, fetch),
                            3 if S::ROWS >= 3 => self.block::<S, 3, WIDE, FOUR, PER>(t, r, fetch),
                            4 if S::ROWS >= 4 => self.block::<S, 4, WIDE, FOUR, PER>(t, r, fetch),
                            5 if S::ROWS >= 5 => self.block::<S, 5, WIDE, FOUR, PER>(t, r, fetch),
                            6 if S::ROWS >= 6 => self.block::<S, 6, WIDE, FOUR, PER>(t, r, fetch),
                            7 if S::ROWS >= 7 => self.block::<S, 7, WIDE, FOUR, PER>(t, r, fetch),
                            8 if S::ROWS >= 8 => self.block::<S, 8, WIDE, FOUR, PER>(t, r, fetch),
                            _ => unreachable!("a block has 1 to {} rows", S::ROWS),
                        }
                    }
                }
                fetched += across * lines * LINE;
            }
        }
    }
}

impl Kernel for TileRows<'_> {
    type Out = ();
    const DOTS: bool = true;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `matmul` gives each task a range that exists and outputs of its own.
        unsafe {
            match (self.x.form.wide, self.min.is_empty(), self.x.form.grouping) {
                (false, true, Grouping::Plain) => self.all::<S, false, false, 1>(),
                (true, true, Grouping::Plain) => self.all::<S, true, false, 1>(),
                (false, true, Grouping::Rotated) => self.all::<S, false, false, 4>(),
                (true, true, Grouping::Rotated) => self.all::<S, true, false, 4>(),
                (false, false, _) => self.all::<S, false, true, 1>(),
                (true, false, _) => self.all::<S, true, true, 1>(),
            }
        }
    }
}
