//! Quantises rows of activations to int8 before a product, with one scale for each group of columns.
//!
//! ```text
//! 8 bits:  x ~ s * lo,              s = max |x| / 127      of the group
//! 16 bits: x ~ s * (256 * hi + lo), s = max |x| / 32512    so that `hi` fits an i8
//! ```
//!
//! The groups are those of the weights: 32 columns, or 128 columns that were rotated 64 at a time (see
//! `weights::formats::int8`).
//!
//! 16-bit activations are two planes of int8. A product runs the same instruction on both and needs no second kernel.
//!
//! Eight rows form a block and are interleaved tile by tile: a product reads 32 columns of eight rows from consecutive
//! memory. (Plain rows whose length is a power of two would compete for the same lines of the L1 cache.)
//!
//! A group also has the integers that its dot products start from, for weights stored with an offset of 128, and the
//! sum of its values, for weights with a minimum (see [`super::i8dot`]).

use super::pool::{Disjoint, Pool};
use crate::error::Result;
use crate::host::memory::vec_for;
use crate::isa::{BIAS, GROUP, Isa, Kernel, ROTATED, Simd};
use crate::weights::formats::int8::Grouping;

/// Rows of a block, whose tiles are interleaved.
pub(super) const BLOCK: usize = 8;

/// How rows are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// 16 bits instead of 8.
    pub(crate) wide: bool,
    pub(crate) grouping: Grouping,
}

/// The index of item `i` of row `r`, if each row has `items` items: tiles or groups.
fn place(items: usize, r: usize, i: usize) -> usize {
    (r / BLOCK * items + i) * BLOCK + r % BLOCK
}

/// Quantised rows. Allocated once, for the largest batch and the widest matrix.
pub(crate) struct Quantized {
    pub(super) lo: Vec<[i8; GROUP]>, // (n / 8, tiles, 8)
    pub(super) hi: Vec<[i8; GROUP]>, // (n / 8, tiles, 8), 16 bits only
    pub(super) scale: Vec<f32>,      // (n / 8, groups, 8)
    pub(super) sum: Vec<f32>,        // (n / 8, groups, 8), scale * sum of the group's integers
    pub(super) lo_start: Vec<i32>,   // (n / 8, groups, 8), `start` - 128 * sum of lo
    pub(super) hi_start: Vec<i32>,   // (n / 8, groups, 8), -128 * sum of hi
    pub(super) halves: Vec<Halves>,  // (n / 8, tiles, 8), plain groups only
    /// Tiles of 32 columns in a row; the last is padded with zeros.
    pub(super) tiles: usize,
    pub(super) n: usize,
    pub(super) form: Form,
}

/// The integer that dot products start from, before the offset of weights is subtracted. With 8-bit activations it is
/// the bits of [`BIAS`], so that the sum is read as an f32.
pub(super) const fn start(wide: bool) -> i32 {
    if wide { 0 } else { BIAS.to_bits().cast_signed() }
}

/// Starts and sums of each half of a group, 16 columns: for weights whose scales are for 16 columns.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Halves {
    pub(super) lo_start: [i32; 2],
    pub(super) hi_start: [i32; 2],
    pub(super) sum: [f32; 2],
}

impl Quantized {
    /// The number of tiles of `rows` rows of `cols` columns, in whole blocks. There are never more groups than tiles.
    fn tiles(rows: usize, cols: usize) -> usize {
        rows.next_multiple_of(BLOCK) * cols.div_ceil(GROUP)
    }

    /// Room for `max_rows` rows of `max_cols` columns.
    pub(crate) fn new(max_rows: usize, max_cols: usize) -> Result<Self> {
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
    pub(crate) fn bytes(max_rows: usize, max_cols: usize) -> u64 {
        (Self::tiles(max_rows, max_cols) * (2 * GROUP + 16 + size_of::<Halves>())) as u64
    }

    /// The index of tile `t` of row `r`.
    pub(super) fn tile_at(&self, r: usize, t: usize) -> usize {
        place(self.tiles, r, t)
    }

    /// The index of scale, sum and starts of group `g` of row `r`.
    pub(super) fn group_at(&self, r: usize, g: usize) -> usize {
        place(self.form.grouping.groups(self.tiles), r, g)
    }

    /// Prepares for `n` rows of `cols` columns. The caller then fills each of them.
    pub(crate) fn rows(&mut self, n: usize, cols: usize, form: Form) -> Rows<'_> {
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

    /// Quantises the rows of `x`, `(n, cols)`.
    pub(crate) fn fill(&mut self, pool: &mut Pool, isa: Isa, x: &[f32], cols: usize, form: Form) {
        let n = x.len() / cols;
        let rows = self.rows(n, cols, form);
        pool.run_if_worth(n, x.len(), |r| {
            // SAFETY: each task has its own row.
            unsafe { rows.fill(isa, r, 0, &x[r * cols..(r + 1) * cols]) }
        });
    }
}

/// A vector of `len` times `value`. If the memory is not available, this is an error and no abort.
fn filled<T: Copy>(len: usize, value: T) -> Result<Vec<T>> {
    let mut values = vec_for("quantised activations", len)?;
    values.resize(len, value);
    Ok(values)
}

/// The rows of [`Quantized`], shared by the tasks that fill them.
pub(crate) struct Rows<'a> {
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
    pub(crate) unsafe fn fill(&self, isa: Isa, r: usize, first: usize, x: &[f32]) {
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
pub(super) const PART: usize = AT_ONCE * GROUP;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::formats::int8::rotate;

    fn forms() -> impl Iterator<Item = Form> {
        let groupings = [Grouping::Plain, Grouping::Rotated];
        groupings.into_iter().flat_map(|grouping| [false, true].map(|wide| Form { wide, grouping }))
    }

    #[test]
    fn values_are_within_half_a_step_and_sums_are_theirs() {
        let mut pool = Pool::new(2).unwrap();
        let shapes = [(1, 1), (3, 32), (11, 100), (1, 31), (2, 545), (9, 64), (2, 192), (3, 640), (1, 1_088)];
        for ((n, cols), form) in shapes.into_iter().flat_map(|shape| forms().map(move |form| (shape, form))) {
            if form.grouping != Grouping::of_cols(cols) && form.grouping == Grouping::Rotated {
                continue; // rows that cannot be rotated
            }
            let hash = |i: usize| ((i as u32 + 1).wrapping_mul(2_654_435_761) >> 9) % 4_001;
            let mut x: Vec<f32> = (0..n * cols).map(|i| hash(i) as f32 / 700.0 - 2.8).collect();
            x[0] = 0.0;
            let run = |pool: &mut Pool, isa| {
                let mut q = Quantized::new(n, cols + 40).unwrap();
                q.fill(pool, isa, &x, cols, form);
                q
            };
            let want = run(&mut pool, Isa::all()[0]);
            let mut exact = x.clone();
            if form.grouping == Grouping::Rotated {
                rotate(&mut exact);
            }
            let per_group = form.grouping.tiles();
            let scale = |r, tile| want.scale[want.group_at(r, tile / per_group)];
            for (i, x) in exact.iter().enumerate() {
                let (r, k) = (i / cols, i % cols);
                let at = want.tile_at(r, k / GROUP);
                let q = 256 * i32::from(want.hi[at][k % GROUP]) + i32::from(want.lo[at][k % GROUP]);
                let scale = scale(r, k / GROUP);
                assert!((q as f32 * scale - x).abs() <= 0.51 * scale, "{x} {q} {scale}");
            }
            let groups = form.grouping.groups(want.tiles);
            for (r, g) in (0..n).flat_map(|r| (0..groups).map(move |g| (r, g))) {
                let tiles = g * per_group..want.tiles.min((g + 1) * per_group);
                let sum = |plane: &[[i8; GROUP]]| -> i32 {
                    let of_tile = |t| plane[want.tile_at(r, t)].iter().map(|&q| i32::from(q)).sum::<i32>();
                    tiles.clone().map(of_tile).sum()
                };
                let (lo, hi) = (sum(&want.lo), if form.wide { sum(&want.hi) } else { 0 });
                let at = want.group_at(r, g);
                assert_eq!((want.lo_start[at], want.hi_start[at]), (start(form.wide) - 128 * lo, -128 * hi));
                assert_eq!(want.sum[at], want.scale[at] * (256 * hi + lo) as f32);
                if form.grouping == Grouping::Plain {
                    for (half, values) in want.lo[at].chunks(16).enumerate() {
                        let lo = values.iter().map(|&q| i32::from(q)).sum::<i32>();
                        let hi = want.hi[at].chunks(16).nth(half).unwrap();
                        let hi = if form.wide { hi.iter().map(|&q| i32::from(q)).sum::<i32>() } else { 0 };
                        let of = want.halves[at];
                        assert_eq!(
                            (of.lo_start[half], of.hi_start[half]),
                            (start(form.wide) - 128 * lo, -128 * hi)
                        );
                        assert_eq!(of.sum[half], want.scale[at] * (256 * hi + lo) as f32);
                    }
                }
            }
            for isa in Isa::all() {
                let got = run(&mut pool, isa);
                assert!(got.lo == want.lo && got.hi == want.hi, "{} {form:?}", isa.name());
                assert!(got.scale == want.scale && got.sum == want.sum);
                assert!(got.lo_start == want.lo_start && got.hi_start == want.hi_start);
                assert!(got.halves == want.halves);
            }
        }
    }

    #[test]
    fn a_rotation_is_its_own_inverse_and_keeps_lengths() {
        let mut x: [f32; ROTATED] = std::array::from_fn(|i| (i as f32 * 0.7).sin() * 3.0);
        let was = x;
        let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
        rotate(&mut x);
        assert!((length(&x) / length(&was) - 1.0).abs() < 1e-6 && x != was);
        assert!((x[0] - was.iter().sum::<f32>() / 8.0).abs() < 1e-5, "the first row of the matrix is ones");
        rotate(&mut x);
        assert!(x.iter().zip(was).all(|(x, was)| (x - was).abs() < 1e-6));
    }

    #[test]
    fn zeros_tiny_values_and_values_that_are_not_finite() {
        let mut pool = Pool::new(1).unwrap();
        for (isa, form) in Isa::all().into_iter().flat_map(|isa| forms().map(move |form| (isa, form))) {
            for (value, scale) in
                [(0.0, 0.0), (-0.0, 0.0), (1e-40, 0.0), (f32::INFINITY, f32::NAN), (-f32::NAN, f32::NAN)]
            {
                let mut q = Quantized::new(1, 192).unwrap();
                let mut x = [1.0; 192];
                let first = 32 * form.grouping.tiles();
                x[..first].fill(value);
                q.fill(&mut pool, isa, &x, 192, form);
                assert_eq!(q.scale[0].is_nan(), scale.is_nan(), "{value} {form:?}");
                assert!(q.scale[0] == scale || scale.is_nan());
                assert!(q.lo[0] == [0; GROUP] && q.lo_start[0] == start(form.wide));
                let at = q.group_at(0, 1);
                assert!(q.scale[at] > 0.0, "the next group is not touched");
            }
        }
    }
}
