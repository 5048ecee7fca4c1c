//! Quantises rows of activations to int8 before a product, with one scale for each group of columns.
//!
//! ```text
//! 8 bits:  x ~ s * lo,              s = max |x| / 127      of the group
//! 16 bits: x ~ s * (256 * hi + lo), s = max |x| / 32512    so that `hi` fits an i8
//! ```
//!
//! The groups are those of the weights: 32 columns, or 128 columns that were rotated 64 at a time (see
//! [`crate::int8`]).
//!
//! 16-bit activations are two planes of int8. A product runs the same instruction on both and needs no second kernel.
//!
//! Eight rows form a block and are interleaved tile by tile: a product reads 32 columns of eight rows from consecutive
//! memory. (Plain rows whose length is a power of two would compete for the same lines of the L1 cache.)
//!
//! A group also has the integers that its dot products start from, for weights stored with an offset of 128, and the
//! sum of its values, for weights with a minimum (see [`crate::i8dot`]).

use std::collections::TryReserveError;

use crate::disjoint::Disjoint;
use crate::int8::Grouping;
use crate::isa::{BIAS, GROUP, Isa, Kernel, ROTATED, Simd};

/// Rows of a block, whose tiles are interleaved.
pub const BLOCK: usize = 8;

/// How rows are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// 16 bits instead of 8.
    pub wide: bool,
    pub grouping: Grouping,
}

/// The index of item `i` of row `r`, if each row has `items` items: tiles or groups.
fn place(items: usize, r: usize, i: usize) -> usize {
    (r / BLOCK * items + i) * BLOCK + r % BLOCK
}

/// Quantised rows. Allocated once, for the largest batch and the widest matrix.
pub struct Quantized {
    pub lo: Vec<[i8; GROUP]>, // (n / 8, tiles, 8)
    pub hi: Vec<[i8; GROUP]>, // (n / 8, tiles, 8), 16 bits only
    pub scale: Vec<f32>,      // (n / 8, groups, 8)
    pub sum: Vec<f32>,        // (n / 8, groups, 8), scale * sum of the group's integers
    pub lo_start: Vec<i32>,   // (n / 8, groups, 8), `start` - 128 * sum of lo
    pub hi_start: Vec<i32>,   // (n / 8, groups, 8), -128 * sum of hi
    pub halves: Halves,
    /// Tiles of 32 columns in a row; the last is padded with zeros.
    pub tiles: usize,
    pub n: usize,
    pub form: Form,
}

/// The integer that dot products start from, before the offset of weights is subtracted. With 8-bit activations it is
/// the bits of [`BIAS`], so that the sum is read as an f32.
pub const fn start(wide: bool) -> i32 {
    if wide { 0 } else { BIAS.to_bits().cast_signed() }
}

/// Starts and sums of each half of a tile, 16 columns: for weights whose scales are for 16 columns. Plain groups only.
#[derive(Debug, PartialEq)]
pub struct Halves {
    pub lo_start: Vec<i32>, // (n / 8, tiles, 2, 8)
    pub hi_start: Vec<i32>, // (n / 8, tiles, 2, 8)
    pub sum: Vec<f32>,      // (n / 8, tiles, 2, 8)
}

impl Quantized {
    /// The number of tiles of `rows` rows of `cols` columns, in whole blocks. There are never more groups than tiles.
    fn tiles(rows: usize, cols: usize) -> usize {
        rows.next_multiple_of(BLOCK) * cols.div_ceil(GROUP)
    }

    /// Room for `max_rows` rows of `max_cols`.
    pub fn new(max_rows: usize, max_cols: usize) -> Result<Self, TryReserveError> {
        let tiles = Self::tiles(max_rows, max_cols);
        Ok(Quantized {
            lo: filled(tiles, [0; GROUP])?,
            hi: filled(tiles, [0; GROUP])?,
            scale: filled(tiles, 0.0)?,
            sum: filled(tiles, 0.0)?,
            lo_start: filled(tiles, 0)?,
            hi_start: filled(tiles, 0)?,
            halves: Halves {
                lo_start: filled(2 * tiles, 0)?,
                hi_start: filled(2 * tiles, 0)?,
                sum: filled(2 * tiles, 0.0)?,
            },
            tiles: 0,
            n: 0,
            form: Form { wide: false, grouping: Grouping::Plain },
        })
    }

    /// Bytes that `new` allocates.
    pub fn bytes(max_rows: usize, max_cols: usize) -> u64 {
        (Self::tiles(max_rows, max_cols) * (2 * GROUP + 16 + 2 * 12)) as u64
    }

    /// The index of tile `t` of row `r`.
    pub fn tile_at(&self, r: usize, t: usize) -> usize {
        place(self.tiles, r, t)
    }

    /// The index of sum and starts of the first half of the tile at `at`, see [`Quantized::tile_at`]. Those of the
    /// other half are `BLOCK` places further.
    pub fn halves_at(&self, at: usize) -> usize {
        2 * at - at % BLOCK
    }

    /// The index of scale, sum and starts of group `g` of row `r`.
    pub fn group_at(&self, r: usize, g: usize) -> usize {
        place(self.form.grouping.groups(self.tiles), r, g)
    }

    /// Prepares for `n` rows of `cols` columns. The caller then fills each block of them.
    pub fn rows(&mut self, n: usize, cols: usize, form: Form) -> Rows<'_> {
        (self.n, self.tiles, self.form) = (n, cols.div_ceil(GROUP), form);
        Rows {
            lo: Disjoint::new(&mut self.lo),
            hi: Disjoint::new(&mut self.hi),
            scale: Disjoint::new(&mut self.scale),
            sum: Disjoint::new(&mut self.sum),
            lo_start: Disjoint::new(&mut self.lo_start),
            hi_start: Disjoint::new(&mut self.hi_start),
            halves_lo_start: Disjoint::new(&mut self.halves.lo_start),
            halves_hi_start: Disjoint::new(&mut self.halves.hi_start),
            halves_sum: Disjoint::new(&mut self.halves.sum),
            tiles: self.tiles,
            form,
        }
    }
}

/// A vector of `len` times `value`. If the memory is not available, this is an error and no abort.
fn filled<T: Copy>(len: usize, value: T) -> Result<Vec<T>, TryReserveError> {
    let mut values = Vec::new();
    values.try_reserve_exact(len)?;
    values.resize(len, value);
    Ok(values)
}

/// The rows of [`Quantized`], shared by the tasks that fill them.
pub struct Rows<'a> {
    lo: Disjoint<'a, [i8; GROUP]>,
    hi: Disjoint<'a, [i8; GROUP]>,
    scale: Disjoint<'a, f32>,
    sum: Disjoint<'a, f32>,
    lo_start: Disjoint<'a, i32>,
    hi_start: Disjoint<'a, i32>,
    halves_lo_start: Disjoint<'a, i32>,
    halves_hi_start: Disjoint<'a, i32>,
    halves_sum: Disjoint<'a, f32>,
    tiles: usize,
    form: Form,
}

impl Rows<'_> {
    /// Quantises some columns of all rows of block `block`, from column `first` on, which is a multiple of [`PART`].
    /// `x` has these columns of each row. Their number is a multiple of `PART`, or they end the row.
    ///
    /// # Safety
    /// No two threads fill the same columns of a block.
    pub unsafe fn fill(&self, isa: Isa, block: usize, first: usize, x: &[&[f32]]) {
        debug_assert!(first.is_multiple_of(PART) && (1..=BLOCK).contains(&x.len()));
        debug_assert!(x.iter().all(|row| row.len() == x[0].len()));
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(Quantize { x, block, first: first / GROUP, to: self }) }
    }
}

struct Quantize<'a> {
    x: &'a [&'a [f32]],
    block: usize,
    first: usize, // tile
    to: &'a Rows<'a>,
}

/// The largest magnitude of a 16-bit activation: its high plane is then 127.
const WIDE: f32 = 32_512.0;
/// Columns of a part: whole groups of each kind.
pub const PART: usize = 4 * GROUP;
/// A group whose largest magnitude is at most this is quantised to zeros. For less, `WIDE / largest` would overflow.
const TINY: f32 = 1e-30;

/// Groups that are quantised at once.
const AT_ONCE: usize = 8;

/// Writes the results of `n` groups, `stride` places apart. With a stride of 1 all eight are written: a block has room
/// for eight rows, whether they exist or not.
///
/// # Safety
/// As [`Disjoint::slice`].
#[inline(always)]
unsafe fn put<T: Copy>(to: &Disjoint<T>, at: usize, stride: usize, n: usize, values: &[T; AT_ONCE]) {
    // SAFETY: the caller's promise.
    unsafe {
        if stride == 1 {
            to.slice(at, AT_ONCE).copy_from_slice(values);
        } else {
            for (i, value) in values[..n].iter().enumerate() {
                to.slice(at + i * stride, 1)[0] = *value;
            }
        }
    }
}

/// Writes the sums and the starts that come from the sums of the integers `lo` and `hi`, as [`put`] does.
///
/// # Safety
/// As [`Disjoint::slice`].
#[inline(always)]
unsafe fn put_sums<const WIDE_ROWS: bool>(
    (sums, lo_starts, hi_starts): (&Disjoint<f32>, &Disjoint<i32>, &Disjoint<i32>),
    at: usize,
    stride: usize,
    n: usize,
    scale: &[f32; AT_ONCE],
    lo: [i32; AT_ONCE],
    hi: [i32; AT_ONCE],
) {
    let mut sum = [0.0; AT_ONCE];
    for i in 0..AT_ONCE {
        sum[i] = scale[i] * (256 * hi[i] + lo[i]) as f32;
    }
    // SAFETY: the caller's promise.
    unsafe {
        put(sums, at, stride, n, &sum);
        put(lo_starts, at, stride, n, &lo.map(|lo| start(WIDE_ROWS) - 128 * lo));
        put(hi_starts, at, stride, n, &hi.map(|hi| -128 * hi));
    }
}

impl Quantize<'_> {
    /// Quantises to 16 bits (`WIDE_ROWS`) or 8: at once one group of eight rows, or eight groups of one row. In a block
    /// of two to seven rows the last one takes the places of those that do not exist. Products may compute with them,
    /// but do not store the results.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn run<S: Simd, const WIDE_ROWS: bool>(&self) {
        let steps = if WIDE_ROWS { WIDE } else { 127.0 };
        let (to, x, grouping) = (self.to, self.x, self.to.form.grouping);
        let (cols, per_group, one_row) = (x[0].len(), grouping.tiles(), x.len() == 1);
        let groups = cols.div_ceil(per_group * GROUP);
        let (zeros, mut buffer) = ([0.0f32; GROUP], [[[0.0f32; ROTATED]; PART / ROTATED]; AT_ONCE]);
        for first in (0..groups).step_by(if one_row { AT_ONCE } else { 1 }) {
            let values = |i: usize| -> &[f32] {
                let (r, g) = if one_row { (0, first + i) } else { (i, first) };
                let from = g.min(groups - 1) * per_group * GROUP;
                &x[r.min(x.len() - 1)][from..cols.min(from + per_group * GROUP)]
            };
            let buffered = |i| grouping == Grouping::Rotated || values(i).len() < GROUP;
            for i in 0..AT_ONCE {
                if buffered(i) {
                    let to = buffer[i].as_flattened_mut();
                    if grouping == Grouping::Rotated {
                        for (from, to) in values(i).as_chunks().0.iter().zip(to.as_chunks_mut().0) {
                            // SAFETY: the instructions are the caller's promise.
                            unsafe { S::rotate(from, to) };
                        }
                    } else {
                        to[..values(i).len()].copy_from_slice(values(i)); // the end of a row, padded with zeros
                    }
                }
            }
            let mut tiles: [&[[f32; GROUP]]; AT_ONCE] = [&[]; AT_ONCE];
            for i in 0..AT_ONCE {
                tiles[i] = if buffered(i) {
                    &buffer[i].as_flattened().as_chunks().0[..values(i).len().div_ceil(GROUP)]
                } else {
                    values(i).as_chunks().0
                };
            }
            // SAFETY: the instructions are the caller's promise.
            let largest = unsafe { S::largest_bits(tiles) };
            let (mut inverse, mut scale) = ([0.0; AT_ONCE], [0.0; AT_ONCE]);
            for i in 0..AT_ONCE {
                let largest = f32::from_bits(largest[i]);
                let used = largest > TINY && largest < f32::INFINITY;
                inverse[i] = if used { steps / largest } else { 0.0 };
                // A value that is not finite must not be lost: it makes the scale, and so the output, NaN.
                let unused = if largest <= TINY { 0.0 } else { f32::NAN };
                scale[i] = if used { largest / steps } else { unused };
            }
            let (mut lo_sums, mut hi_sums) = ([[0; AT_ONCE]; 2], [[0; AT_ONCE]; 2]);
            let n = if one_row { AT_ONCE.min(groups - first) } else { AT_ONCE };
            // The first group may be longer than the last one of a row.
            for t in 0..tiles[0].len() {
                let mut tile = [&zeros; AT_ONCE];
                for i in 0..AT_ONCE {
                    if inverse[i] != 0.0 && t < tiles[i].len() {
                        tile[i] = &tiles[i][t];
                    }
                }
                let at = |i| place(to.tiles, self.block * BLOCK, self.first + (first + i) * per_group + t);
                let (mut lo, mut hi) = ([[0; GROUP]; AT_ONCE], [[0; GROUP]; AT_ONCE]);
                // SAFETY: every value times `inverse` is in +-32512.
                let sums = unsafe { S::quantize::<WIDE_ROWS>(tile, &inverse, &mut lo, &mut hi) };
                // SAFETY: these columns of the block are this thread's.
                unsafe {
                    for (plane, codes) in
                        [(&to.lo, &lo), (&to.hi, &hi)].into_iter().take(1 + usize::from(WIDE_ROWS))
                    {
                        if one_row {
                            for i in (0..n).filter(|&i| t < tiles[i].len()) {
                                plane.slice(at(i), 1)[0] = codes[i];
                            }
                        } else {
                            plane.slice(at(0), BLOCK).copy_from_slice(codes);
                        }
                    }
                }
                for (half, i) in (0..2).flat_map(|half| (0..AT_ONCE).map(move |i| (half, i))) {
                    lo_sums[half][i] += sums.0[half][i];
                    hi_sums[half][i] += sums.1[half][i];
                }
            }
            let at = place(grouping.groups(to.tiles), self.block * BLOCK, self.first / per_group + first);
            let stride = if one_row { BLOCK } else { 1 };
            let whole = |halves: [[i32; AT_ONCE]; 2]| std::array::from_fn(|i| halves[0][i] + halves[1][i]);
            // SAFETY: these columns of the block are this thread's.
            unsafe {
                put(&to.scale, at, stride, n, &scale);
                let sums = (&to.sum, &to.lo_start, &to.hi_start);
                put_sums::<WIDE_ROWS>(sums, at, stride, n, &scale, whole(lo_sums), whole(hi_sums));
            }
            if grouping == Grouping::Rotated {
                continue;
            }
            let stride = if one_row { 2 * BLOCK } else { 1 };
            for half in 0..2 {
                let at = 2 * at + half * BLOCK;
                // SAFETY: as above.
                unsafe {
                    let sums = (&to.halves_sum, &to.halves_lo_start, &to.halves_hi_start);
                    put_sums::<WIDE_ROWS>(sums, at, stride, n, &scale, lo_sums[half], hi_sums[half]);
                }
            }
        }
    }
}

impl Kernel for Quantize<'_> {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.to.form.wide {
                Quantize::run::<S, true>(&self);
            } else {
                Quantize::run::<S, false>(&self);
            }
        }
    }
}
