//! Rows of activations quantised by all threads, before a product.

use welm_cpu::isa::Isa;
use welm_cpu::quantize::{BLOCK, Form, PART, Quantized};

use super::pool::Pool;
use crate::error::{Error, Result};
use crate::host::memory::expect_available;

/// Room for `max_rows` rows of `max_cols` columns.
pub(super) fn room(max_rows: usize, max_cols: usize) -> Result<Quantized> {
    let (what, bytes) = ("quantised activations", Quantized::bytes(max_rows, max_cols) as usize);
    expect_available(what, bytes)?;
    Quantized::new(max_rows, max_cols).map_err(|e| Error::allocation(what, bytes, e))
}

/// Values of one task, about.
const SHARE: usize = 2_048;

/// Quantises the rows of `x`, `(n, cols)`, into `to`.
pub(super) fn fill(to: &mut Quantized, pool: &mut Pool, isa: Isa, x: &[f32], cols: usize, form: Form) {
    let n = x.len() / cols;
    let rows = to.rows(n, cols, form);
    let share = columns(n, cols, SHARE);
    let shares = cols.div_ceil(share);
    pool.run_if_worth(n.div_ceil(BLOCK) * shares, x.len(), |task| {
        let (block, first) = (task / shares, task % shares * share);
        let some = &x[block * BLOCK * cols..x.len().min((block + 1) * BLOCK * cols)];
        let mut of_rows = [&[][..]; BLOCK];
        for (of, row) in of_rows.iter_mut().zip(some.chunks(cols)) {
            *of = &row[first..cols.min(first + share)];
        }
        // SAFETY: each task has its own columns of a block.
        unsafe { rows.fill(isa, block, first, &of_rows[..some.len() / cols]) }
    });
}

/// Columns of a task that takes those of all rows of a block: about `values` values, if there are `n` rows of `cols`
/// columns. Tasks of this kind write hardly a cache line together.
pub(super) fn columns(n: usize, cols: usize, values: usize) -> usize {
    let tasks = (cols * n.min(BLOCK)).div_ceil(values).max(1);
    cols.div_ceil(tasks).next_multiple_of(PART)
}

#[cfg(test)]
mod tests {
    use super::*;
    use welm_cpu::int8::{Grouping, rotate};
    use welm_cpu::isa::{GROUP, ROTATED};
    use welm_cpu::quantize::start;

    fn forms() -> impl Iterator<Item = Form> {
        let groupings = [Grouping::Plain, Grouping::Rotated];
        groupings.into_iter().flat_map(|grouping| [false, true].map(|wide| Form { wide, grouping }))
    }

    #[test]
    fn values_are_within_half_a_step_and_sums_are_theirs() {
        let mut pool = Pool::new(2).unwrap();
        let shapes = [
            (1, 1),
            (3, 32),
            (11, 100),
            (1, 31),
            (2, 545),
            (9, 64),
            (2, 192),
            (3, 640),
            (1, 1_088),
            (9, 2_112),
            (1, 545),
            (9, 300),
        ];
        for ((n, cols), form) in shapes.into_iter().flat_map(|shape| forms().map(move |form| (shape, form))) {
            if form.grouping != Grouping::of_cols(cols) && form.grouping == Grouping::Rotated {
                continue; // rows that cannot be rotated
            }
            let hash = |i: usize| ((i as u32 + 1).wrapping_mul(2_654_435_761) >> 9) % 4_001;
            let mut x: Vec<f32> = (0..n * cols).map(|i| hash(i) as f32 / 700.0 - 2.8).collect();
            x[0] = 0.0;
            let run = |pool: &mut Pool, isa| {
                let mut q = Quantized::new(n, cols + 40).unwrap();
                fill(&mut q, pool, isa, &x, cols, form);
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
                        let (of, half_at) = (&want.halves, want.halves_at(at) + half * BLOCK);
                        let starts = (of.lo_start[half_at], of.hi_start[half_at]);
                        assert_eq!(starts, (start(form.wide) - 128 * lo, -128 * hi));
                        assert_eq!(of.sum[half_at], want.scale[at] * (256 * hi + lo) as f32);
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
                fill(&mut q, &mut pool, isa, &x, 192, form);
                assert_eq!(q.scale[0].is_nan(), scale.is_nan(), "{value} {form:?}");
                assert!(q.scale[0] == scale || scale.is_nan());
                assert!(q.lo[0] == [0; GROUP] && q.lo_start[0] == start(form.wide));
                let at = q.group_at(0, 1);
                assert!(q.scale[at] > 0.0, "the next group is not touched");
            }
        }
    }
}
