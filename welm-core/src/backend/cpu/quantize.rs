//! Rows of activations as int8: one scale for each group of 32, made on the fly before a product.
//!
//! ```text
//! 8 bits:  x ~ s * lo,              s = max |x| / 127      of the group
//! 16 bits: x ~ s * (256 * hi + lo), s = max |x| / 32512    so that `hi` fits an i8
//! ```
//!
//! 16-bit activations are two int8 planes: the same instruction twice, and no second kernel.
//!
//! Eight rows lie together, group by group: a product reads a group of eight rows as one piece of memory. (Rows one
//! after the other meet in the same lines of the first cache where their length is a power of two.)
//!
//! Beside the values a group keeps what its sum of products starts with, and its own sum, for weights that are
//! stored with an offset of 128 or with a minimum (see [`super::i8dot`]).

use super::isa::{GROUP, Isa, Kernel, Simd};
use super::pool::{Disjoint, Pool};
use crate::error::{Error, Result};

/// Rows that lie together.
pub(super) const BLOCK: usize = 8;

/// Where group `g` of row `r` is, of rows of `groups` groups.
fn place(groups: usize, r: usize, g: usize) -> usize {
    (r / BLOCK * groups + g) * BLOCK + r % BLOCK
}

/// Quantised rows: allocated once for the largest batch and the widest matrix.
pub(crate) struct Quantized {
    pub(super) lo: Vec<[i8; GROUP]>, // (n / 8, groups, 8)
    pub(super) hi: Vec<[i8; GROUP]>, // (n / 8, groups, 8), 16 bits only
    pub(super) scale: Vec<f32>,      // (n / 8, groups, 8)
    pub(super) sum: Vec<f32>,        // (n / 8, groups, 8), scale * sum of the group's integers
    pub(super) lo_start: Vec<i32>,   // (n / 8, groups, 8), -128 * sum of lo
    pub(super) hi_start: Vec<i32>,   // (n / 8, groups, 8), -128 * sum of hi
    pub(super) groups: usize,
    pub(super) n: usize,
    pub(super) wide: bool,
}

impl Quantized {
    /// Groups of `rows` rows of `cols`, in whole blocks.
    fn groups(rows: usize, cols: usize) -> usize {
        rows.next_multiple_of(BLOCK) * cols.div_ceil(GROUP)
    }

    /// Room for `max_rows` rows of `max_cols`.
    pub(crate) fn new(max_rows: usize, max_cols: usize) -> Result<Self> {
        let groups = Self::groups(max_rows, max_cols);
        Ok(Quantized {
            lo: filled(groups, [0; GROUP])?,
            hi: filled(groups, [0; GROUP])?,
            scale: filled(groups, 0.0)?,
            sum: filled(groups, 0.0)?,
            lo_start: filled(groups, 0)?,
            hi_start: filled(groups, 0)?,
            groups: 0,
            n: 0,
            wide: false,
        })
    }

    /// Bytes that `new` allocates.
    pub(crate) fn bytes(max_rows: usize, max_cols: usize) -> u64 {
        (Self::groups(max_rows, max_cols) * (2 * GROUP + 16)) as u64
    }

    /// Where group `g` of row `r` is.
    pub(super) fn at(&self, r: usize, g: usize) -> usize {
        place(self.groups, r, g)
    }

    /// Takes `n` rows of `cols`, of 16 bits if `wide`, else of 8; each is to be filled.
    pub(crate) fn rows(&mut self, n: usize, cols: usize, wide: bool) -> Rows<'_> {
        (self.n, self.groups, self.wide) = (n, cols.div_ceil(GROUP), wide);
        Rows {
            lo: Disjoint::new(&mut self.lo),
            hi: Disjoint::new(&mut self.hi),
            scale: Disjoint::new(&mut self.scale),
            sum: Disjoint::new(&mut self.sum),
            lo_start: Disjoint::new(&mut self.lo_start),
            hi_start: Disjoint::new(&mut self.hi_start),
            groups: self.groups,
            wide,
        }
    }

    /// Quantises rows `(n, cols)`.
    pub(crate) fn fill(&mut self, pool: &mut Pool, isa: Isa, x: &[f32], cols: usize, wide: bool) {
        let n = x.len() / cols;
        let rows = self.rows(n, cols, wide);
        pool.run_if_worth(n, x.len(), |r| {
            // SAFETY: each task has its own row.
            unsafe { rows.fill(isa, r, &x[r * cols..(r + 1) * cols]) }
        });
    }
}

/// `len` times `value`, or an error instead of an abort.
fn filled<T: Copy>(len: usize, value: T) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|e| Error::Unavailable {
        what: format!("{} bytes for quantised activations", len * size_of::<T>()),
        reason: e.to_string(),
    })?;
    values.resize(len, value);
    Ok(values)
}

/// Rows that tasks of one job fill.
pub(crate) struct Rows<'a> {
    lo: Disjoint<'a, [i8; GROUP]>,
    hi: Disjoint<'a, [i8; GROUP]>,
    scale: Disjoint<'a, f32>,
    sum: Disjoint<'a, f32>,
    lo_start: Disjoint<'a, i32>,
    hi_start: Disjoint<'a, i32>,
    groups: usize,
    wide: bool,
}

impl Rows<'_> {
    /// Quantises `x`, `(cols)`, into row `r`.
    ///
    /// # Safety
    /// No two threads fill one row.
    pub(crate) unsafe fn fill(&self, isa: Isa, r: usize, x: &[f32]) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(QuantizeRow { x, r, to: self }) }
    }
}

struct QuantizeRow<'a> {
    x: &'a [f32],
    r: usize,
    to: &'a Rows<'a>,
}

/// The largest 16-bit magnitude whose high plane still fits in an i8.
const WIDE: f32 = 32_512.0;
/// Groups whose scales are computed together.
const AT_ONCE: usize = 16;
/// A group with nothing larger counts as zeros: below this, `WIDE / largest` overflows.
const TINY: f32 = 1e-30;

impl QuantizeRow<'_> {
    /// # Safety
    /// The CPU has `S`.
    #[inline(always)]
    unsafe fn run<S: Simd, const WIDE_ROWS: bool>(&self) {
        let steps = if WIDE_ROWS { WIDE } else { 127.0 };
        // Sixteen groups at a time, so that their divisions are one.
        for (some, values) in self.x.chunks(AT_ONCE * GROUP).enumerate() {
            let (mut largest, mut inverse, mut scale) = ([0.0f32; AT_ONCE], [0.0; AT_ONCE], [0.0; AT_ONCE]);
            let (whole, rest) = values.as_chunks::<GROUP>();
            let mut padded = [0.0f32; GROUP];
            padded[..rest.len()].copy_from_slice(rest);
            let n = whole.len() + usize::from(!rest.is_empty());
            for (i, largest) in largest.iter_mut().enumerate().take(n) {
                // SAFETY: the instructions are the caller's promise.
                *largest = f32::from_bits(unsafe { S::largest_bits(whole.get(i).unwrap_or(&padded)) });
            }
            for i in 0..AT_ONCE {
                let used = largest[i] > TINY && largest[i] < f32::INFINITY;
                inverse[i] = if used { steps / largest[i] } else { 0.0 };
                // A value that is not finite must not vanish: it makes the scale, and so the output, NaN.
                let unused = if largest[i] <= TINY { 0.0 } else { f32::NAN };
                scale[i] = if used { largest[i] / steps } else { unused };
            }
            for i in 0..n {
                let at = place(self.to.groups, self.r, some * AT_ONCE + i);
                // SAFETY: the row is this thread's.
                let (lo, hi) = unsafe { (&mut self.to.lo.slice(at, 1)[0], &mut self.to.hi.slice(at, 1)[0]) };
                let (mut lo_sum, mut hi_sum) = (0, 0);
                if inverse[i] == 0.0 {
                    lo.fill(0);
                    hi.fill(0);
                } else {
                    let group = whole.get(i).unwrap_or(&padded);
                    // SAFETY: as above; every value times `inverse` is in +-32512.
                    (lo_sum, hi_sum) = unsafe { S::quantize_group::<WIDE_ROWS>(group, inverse[i], lo, hi) };
                }
                // SAFETY: the row is this thread's.
                unsafe {
                    self.to.scale.slice(at, 1)[0] = scale[i];
                    self.to.sum.slice(at, 1)[0] = scale[i] * (256 * hi_sum + lo_sum) as f32;
                    self.to.lo_start.slice(at, 1)[0] = -128 * lo_sum;
                    self.to.hi_start.slice(at, 1)[0] = -128 * hi_sum;
                }
            }
        }
    }
}

impl Kernel for QuantizeRow<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.to.wide {
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

    #[test]
    fn values_are_within_half_a_step_and_sums_are_theirs() {
        let mut pool = Pool::new(2).unwrap();
        for (n, cols) in [(1, 1), (3, 32), (11, 100), (1, 31), (2, 545)] {
            let hash = |i: usize| ((i as u32 + 1).wrapping_mul(2_654_435_761) >> 9) % 4_001;
            let mut x: Vec<f32> = (0..n * cols).map(|i| hash(i) as f32 / 700.0 - 2.8).collect();
            x[0] = 0.0;
            for wide in [false, true] {
                let run = |pool: &mut Pool, isa| {
                    let mut q = Quantized::new(n, cols + 40).unwrap();
                    q.fill(pool, isa, &x, cols, wide);
                    q
                };
                let want = run(&mut pool, Isa::all()[0]);
                for (i, x) in x.iter().enumerate() {
                    let (r, k) = (i / cols, i % cols);
                    let at = want.at(r, k / GROUP);
                    let q = 256 * i32::from(want.hi[at][k % GROUP]) + i32::from(want.lo[at][k % GROUP]);
                    let scale = want.scale[at];
                    assert!((q as f32 * scale - x).abs() <= 0.51 * scale, "{x} {q} {scale}");
                }
                let groups = (0..n).flat_map(|r| (0..want.groups).map(move |g| (r, g)));
                for at in groups.map(|(r, g)| want.at(r, g)) {
                    let sum = |plane: &[[i8; GROUP]]| plane[at].iter().map(|&q| i32::from(q)).sum::<i32>();
                    let (lo, hi) = (sum(&want.lo), if wide { sum(&want.hi) } else { 0 });
                    assert_eq!((want.lo_start[at], want.hi_start[at]), (-128 * lo, -128 * hi));
                    assert_eq!(want.sum[at], want.scale[at] * (256 * hi + lo) as f32);
                }
                for isa in Isa::all() {
                    let got = run(&mut pool, isa);
                    assert!(got.lo == want.lo && got.hi == want.hi, "{}", isa.name());
                    assert!(got.scale == want.scale && got.sum == want.sum);
                    assert!(got.lo_start == want.lo_start && got.hi_start == want.hi_start);
                }
            }
        }
    }

    #[test]
    fn zeros_tiny_values_and_values_that_are_not_finite() {
        let mut pool = Pool::new(1).unwrap();
        for isa in Isa::all() {
            for (value, scale) in
                [(0.0, 0.0), (-0.0, 0.0), (1e-40, 0.0), (f32::INFINITY, f32::NAN), (-f32::NAN, f32::NAN)]
            {
                for wide in [false, true] {
                    let mut q = Quantized::new(1, 64).unwrap();
                    let mut x = [value; 64];
                    x[40] = 1.0;
                    q.fill(&mut pool, isa, &x, 64, wide);
                    assert_eq!(q.scale[0].is_nan(), scale.is_nan(), "{value}");
                    assert!(q.scale[0] == scale || scale.is_nan());
                    assert!(q.lo[0] == [0; GROUP] && q.lo_start[0] == 0);
                }
            }
        }
    }
}
