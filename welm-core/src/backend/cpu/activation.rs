//! Activations, shared by threads; see [`welm_cpu::activation`].

use welm_cpu::activation::{Formula, Part};
use welm_cpu::disjoint::Disjoint;
use welm_cpu::isa::Isa;
use welm_cpu::quantize::{BLOCK, PART, Rows};

use super::pool::Pool;
use super::quantize::columns;
use crate::config::Activation;

/// Outputs of one task. They take some microseconds; with less work, waking a second thread saves nothing.
const SHARE: usize = 8_192;
/// Columns of a row that are computed at once. In parts of 128, eight rows take half as long again.
const RUN: usize = 4 * PART;

/// `out = f(up)`, `out` `(rows, cols)`. `up` is `(rows, cols)`, or `(rows, 2 * cols)` for gated functions: a row has
/// all gates, then all values that they multiply. With `quantized`, the outputs are also quantised, while they are in
/// the L1 cache.
pub(crate) fn activate(
    pool: &mut Pool,
    isa: Isa,
    out: &mut [f32],
    cols: usize,
    up: &[f32],
    f: Activation,
    quantized: Option<&Rows>,
) {
    let formula = match f {
        Activation::Gelu => Formula::Gelu,
        Activation::GeluTanh => Formula::GeluTanh,
        Activation::SwiGlu => Formula::SwiGlu,
        Activation::GeGlu => Formula::GeGlu,
    };
    if out.is_empty() {
        return;
    }
    let rows = out.len() / cols;
    // Where a row is cut changes no value.
    let share = columns(rows, cols, SHARE);
    let shares = cols.div_ceil(share);
    let work = if out.len() <= SHARE { 0 } else { usize::MAX };
    // For functions of one argument, the ignored second input is the first one again.
    let (width, second) = (up.len() / rows, if f.is_gated() { cols } else { 0 });
    let values = Disjoint::new(out);
    pool.run_if_worth(rows.div_ceil(BLOCK) * shares, work, |task| {
        let (block, first) = (task / shares, task % shares * share);
        let of_block = block * BLOCK..rows.min((block + 1) * BLOCK);
        for (at, n) in runs(first, cols.min(first + share)) {
            let mut outputs = [&[][..]; BLOCK];
            for (output, r) in outputs.iter_mut().zip(of_block.clone()) {
                let up = &up[r * width..(r + 1) * width];
                // SAFETY: each task has its own columns of its own rows; `part`'s slices have one length.
                unsafe {
                    let out = values.slice(r * cols + at, n);
                    let (gate, up) = (&up[at..at + n], &up[second + at..][..n]);
                    Part { out: &mut *out, gate, up, f: formula }.compute(isa);
                    *output = out;
                }
            }
            if let Some(rows) = quantized {
                // SAFETY: as above.
                unsafe { rows.fill(isa, block, at, &outputs[..of_block.len()]) };
            }
        }
    });
}

/// The runs of a task that has the columns from `first` to `end`: where each starts, and its length.
fn runs(first: usize, end: usize) -> impl Iterator<Item = (usize, usize)> {
    (first..end).step_by(RUN).map(move |at| (at, RUN.min(end - at)))
}

#[cfg(test)]
mod tests {
    use welm_cpu::int8::Grouping;
    use welm_cpu::quantize::{Form, Quantized};

    use super::super::quantize::fill;
    use super::*;

    const ALL: [Activation; 4] =
        [Activation::Gelu, Activation::GeluTanh, Activation::SwiGlu, Activation::GeGlu];

    fn run(isa: Isa, threads: usize, up: &[f32], cols: usize, f: Activation) -> Vec<f32> {
        let width = if f.is_gated() { 2 * cols } else { cols };
        let mut out = vec![9.0; up.len() / width * cols];
        activate(&mut Pool::new(threads).unwrap(), isa, &mut out, cols, up, f, None);
        out
    }

    fn exact(x: f64, f: Activation) -> f64 {
        let cube = x + 0.044_715 * x * x * x;
        match f {
            Activation::Gelu => 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2),
            Activation::GeluTanh | Activation::GeGlu => {
                x / (1.0 + (-2.0 * std::f64::consts::FRAC_2_PI.sqrt() * cube).exp())
            }
            Activation::SwiGlu => x / (1.0 + (-x).exp()),
        }
    }

    #[test]
    fn values_of_all_functions_and_equal_bits_everywhere() {
        let x: Vec<f32> = (-200_000..200_000).map(|i| i as f32 * 1e-4).collect();
        for f in ALL {
            let up: Vec<f32> = if f.is_gated() {
                x.iter().copied().chain(x.iter().map(|_| 1.0)).collect()
            } else {
                x.clone()
            };
            let best = run(*Isa::all().last().unwrap(), 1, &up, x.len(), f);
            for (&x, &y) in x.iter().zip(&best) {
                let want = exact(f64::from(x), f);
                let error = (f64::from(y) - want).abs();
                assert!(error < 1e-7 + 1.2e-7 * want.abs(), "{f:?}({x}) is {y}, not {want}");
            }
            for isa in Isa::all() {
                assert_eq!(run(isa, 3, &up, x.len(), f), best, "{} {f:?}", isa.name());
            }
        }
    }

    #[test]
    fn rows_of_odd_lengths_and_extreme_values() {
        let hash = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 9) % 1_000;
        for (rows, cols) in [(1, 1), (3, 37), (2, 8_193), (1, 20_001)] {
            let up: Vec<f32> = (0..2 * rows * cols).map(|i| hash(i) as f32 / 100.0 - 5.0).collect();
            for f in ALL {
                let y = run(*Isa::all().last().unwrap(), 2, &up, cols, f);
                for (i, &y) in y.iter().enumerate() {
                    let (r, c) = (i / cols, i % cols);
                    let want = match f {
                        f if f.is_gated() => {
                            let row = &up[2 * r * cols..];
                            exact(f64::from(row[c]), f) * f64::from(row[cols + c])
                        }
                        _ => exact(f64::from(up[i]), f),
                    };
                    assert!((f64::from(y) - want).abs() < 5e-6, "{f:?} {rows} {cols} at {i}");
                }
            }
        }
        let far = [0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0, 1e30, -1e30, f32::INFINITY, f32::NAN];
        for isa in Isa::all() {
            for f in [Activation::Gelu, Activation::GeluTanh] {
                let y = run(isa, 1, &far, far.len(), f);
                let want = [0.0, 0.0, 5e-31, -5e-31, 30.0, 0.0, 1e30, 0.0, f32::INFINITY];
                let near = |(y, want): (&f32, f32)| *y == want || (y - want).abs() < 1e-36;
                assert!(y.iter().zip(want).all(near), "{f:?} {y:?}");
                assert!(y[9].is_nan());
            }
            let y = run(isa, 1, &[100.0, -100.0, f32::NAN, 2.0, 3.0, 1.0], 3, Activation::SwiGlu);
            assert!(y[0] == 200.0 && y[1] == 0.0 && y[2].is_nan(), "{y:?}");
            let y = run(isa, 1, &[100.0, -100.0, f32::NAN, 2.0, 3.0, 1.0], 3, Activation::GeGlu);
            assert!(y[0] == 200.0 && y[1] == 0.0 && y[2].is_nan(), "{y:?}");
        }
    }

    #[test]
    fn each_column_has_one_task() {
        for (rows, cols) in
            [(1, 8_960), (3, 8_960), (8, 1_536), (6, 4_864), (1, 11_008), (5, 14_337), (8, 31)]
        {
            let share = columns(rows, cols, SHARE);
            let tasks = (0..cols).step_by(share).map(|first| runs(first, cols.min(first + share)));
            let end = tasks.flatten().fold(0, |end, (at, n)| {
                assert!(at == end && n > 0 && at.is_multiple_of(PART), "{rows} {cols} {at}");
                at + n
            });
            assert_eq!(end, cols);
        }
    }

    #[test]
    fn outputs_are_quantised_as_they_would_be_alone() {
        let isa = *Isa::all().last().unwrap();
        for (rows, cols) in [(3, 640), (9, 64), (2, 9_216)] {
            let up: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * 4.0).collect();
            for grouping in [Grouping::Plain, Grouping::Rotated] {
                let form = Form { wide: false, grouping };
                let mut pool = Pool::new(3).unwrap();
                let (mut fused, mut alone) =
                    (Quantized::new(rows, cols).unwrap(), Quantized::new(rows, cols).unwrap());
                let mut out = vec![0.0; rows * cols];
                let to = fused.rows(rows, cols, form);
                activate(&mut pool, isa, &mut out, cols, &up, Activation::Gelu, Some(&to));
                fill(&mut alone, &mut pool, isa, &out, cols, form);
                assert!(fused.lo == alone.lo && fused.scale == alone.scale, "{rows} {cols} {grouping:?}");
                assert!(fused.lo_start == alone.lo_start && fused.sum == alone.sum);
            }
        }
    }
}
