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
    pub halves: Vec<Halves>,  // (n / 8, tiles, 8), plain groups only
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

/// Starts and sums of each half of a group, 16 columns: for weights whose scales are for 16 columns.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Halves {
    pub lo_start: [i32; 2],
    pub hi_start: [i32; 2],
    pub sum: [f32; 2],
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
            halves: filled(tiles, Halves::default())?,
            tiles: 0,
            n: 0,
            form: Form { wide: false, grouping: Grouping::Plain },
        })
    }

    /// Bytes that `new` allocates.
    pub fn bytes(max_rows: usize, max_cols: usize) -> u64 {
        (Self::tiles(max_rows, max_cols) * (2 * GROUP + 16 + size_of::<Halves>())) as u64
    }

    /// The index of tile `t` of row `r`.
    pub fn tile_at(&self, r: usize, t: usize) -> usize {
        place(self.tiles, r, t)
    }

    /// The index of scale, sum and starts of group `g` of row `r`.
    pub fn group_at(&self, r: usize, g: usize) -> usize {
        place(self.form.grouping.groups(self.tiles), r, g)
    }

    /// Prepares for `n` rows of `cols` columns. The caller then fills each of them.
    pub fn rows(&mut self, n: usize, cols: usize, form: Form) -> Rows<'_> {
        (self.n, self.tiles, self.form) = (n, cols.div_ceil(GROUP), form);
        Rows {
            lo: Disjoint::new(&mut self.lo),
            hi: Disjoint::new(&mut self.hi),
            scale: Disjoint::new(&mut self.scale),
            sum: Disjoint::new(&mut self.sum),
            lo_start: Disjoint::new(&mut self.lo_start),
            hi_start: Disjoint::new(&mut self.hi_start),
            halves: Disjoint::new(&mut self.halves),
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
    halves: Disjoint<'a, Halves>,
    tiles: usize,
    form: Form,
}

impl Rows<'_> {
    /// Quantises `x` into row `r`, from column `first` on, which is a multiple of [`PART`]. The length of `x` is a
    /// multiple of `PART`, or `x` ends the row.
    ///
    /// # Safety
    /// No two threads fill the same part of a row.
    pub unsafe fn fill(&self, isa: Isa, r: usize, first: usize, x: &[f32]) {
        debug_assert!(first.is_multiple_of(PART));
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(QuantizeRow { x, r, first: first / GROUP, to: self }) }
    }
}

struct QuantizeRow<'a> {
    x: &'a [f32],
    r: usize,
    first: usize, // tile
    to: &'a Rows<'a>,
}

/// The largest magnitude of a 16-bit activation: its high plane is then 127.
const WIDE: f32 = 32_512.0;
/// Tiles whose scales are computed together, in one loop of divisions that the compiler can vectorise. Whole groups.
const AT_ONCE: usize = 16;
/// Columns of a part: these tiles.
pub const PART: usize = AT_ONCE * GROUP;
/// A group whose largest magnitude is at most this is quantised to zeros. For less, `WIDE / largest` would overflow.
const TINY: f32 = 1e-30;

impl QuantizeRow<'_> {
    /// Quantises the columns of `x` to 16 bits (`WIDE_ROWS`) or 8.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn run<S: Simd, const WIDE_ROWS: bool>(&self) {
        let steps = if WIDE_ROWS { WIDE } else { 127.0 };
        let grouping = self.to.form.grouping;
        let per_group = grouping.tiles();
        let mut rotated = [0.0f32; PART];
        for (some, mut values) in self.x.chunks(PART).enumerate() {
            let first = self.first + some * AT_ONCE;
            if grouping == Grouping::Rotated {
                let to = &mut rotated[..values.len()];
                let from = values.as_chunks::<ROTATED>().0;
                for (from, to) in from.iter().zip(to.as_chunks_mut::<ROTATED>().0) {
                    // SAFETY: the instructions are the caller's promise.
                    unsafe { S::rotate(from, to) };
                }
                values = to;
            }
            let (mut largest, mut inverse, mut scale) = ([0; AT_ONCE], [0.0; AT_ONCE], [0.0; AT_ONCE]);
            let (whole, rest) = values.as_chunks::<GROUP>();
            let mut padded = [0.0f32; GROUP];
            padded[..rest.len()].copy_from_slice(rest);
            let tile = |i: usize| whole.get(i).unwrap_or(&padded);
            let n = whole.len() + usize::from(!rest.is_empty());
            for (group, tiles) in largest.iter_mut().zip(whole.chunks(per_group)) {
                // SAFETY: the instructions are the caller's promise.
                *group = unsafe { S::largest_bits(tiles) };
            }
            if !rest.is_empty() {
                // SAFETY: as above. Only plain groups, of one tile each, can end within a tile.
                largest[n - 1] = unsafe { S::largest_bits(&[padded]) };
            }
            for g in 0..AT_ONCE {
                let largest = f32::from_bits(largest[g]);
                let used = largest > TINY && largest < f32::INFINITY;
                inverse[g] = if used { steps / largest } else { 0.0 };
                // A value that is not finite must not be lost: it makes the scale, and so the output, NaN.
                let unused = if largest <= TINY { 0.0 } else { f32::NAN };
                scale[g] = if used { largest / steps } else { unused };
            }
            for g in 0..n.div_ceil(per_group) {
                let (mut lo_sums, mut hi_sums) = ([0; 2], [0; 2]);
                for i in g * per_group..n.min((g + 1) * per_group) {
                    let at = place(self.to.tiles, self.r, first + i);
                    // SAFETY: the row is this thread's.
                    let (lo, hi) =
                        unsafe { (&mut self.to.lo.slice(at, 1)[0], &mut self.to.hi.slice(at, 1)[0]) };
                    if inverse[g] == 0.0 {
                        lo.fill(0);
                        hi.fill(0);
                    } else {
                        // SAFETY: as above; every value times `inverse` is in +-32512.
                        let sums = unsafe { S::quantize_group::<WIDE_ROWS>(tile(i), inverse[g], lo, hi) };
                        for half in 0..2 {
                            lo_sums[half] += sums.0[half];
                            hi_sums[half] += sums.1[half];
                        }
                    }
                }
                let at = place(grouping.groups(self.to.tiles), self.r, first / per_group + g);
                let (lo_sum, hi_sum) = (lo_sums[0] + lo_sums[1], hi_sums[0] + hi_sums[1]);
                // SAFETY: the row is this thread's.
                unsafe {
                    self.to.scale.slice(at, 1)[0] = scale[g];
                    self.to.sum.slice(at, 1)[0] = scale[g] * (256 * hi_sum + lo_sum) as f32;
                    self.to.lo_start.slice(at, 1)[0] = start(WIDE_ROWS) - 128 * lo_sum;
                    self.to.hi_start.slice(at, 1)[0] = -128 * hi_sum;
                    if grouping == Grouping::Plain {
                        self.to.halves.slice(at, 1)[0] = Halves {
                            lo_start: lo_sums.map(|sum| start(WIDE_ROWS) - 128 * sum),
                            hi_start: hi_sums.map(|sum| -128 * sum),
                            sum: [0, 1].map(|i| scale[g] * (256 * hi_sums[i] + lo_sums[i]) as f32),
                        };
                    }
                }
            }
        }
    }
}

impl Kernel for QuantizeRow<'_> {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.to.form.wide {
                QuantizeRow::run::<S, true>(&self);
            } else {
                QuantizeRow::run::<S, false>(&self);
            }
        }
    }
}
