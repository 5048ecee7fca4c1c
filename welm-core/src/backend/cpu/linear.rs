//! Products with float weights, shared by threads; see [`welm_cpu::linear`].

use welm_cpu::disjoint::Disjoint;
use welm_cpu::isa::Isa;
use welm_cpu::linear::{Element, Tile};
use welm_cpu::outputs::Epilogue;

use super::pool::Pool;

/// Up to this many rows, tasks are small (`TASK_FEW` outputs), so that threads share the work more evenly.
const FEW: usize = 8;
/// Outputs of a task with at most `FEW` rows; a multiple of the register tile's.
const TASK_FEW: usize = 16;
const TASK: usize = 64;
/// About how many bytes of x a task reads: half of a small L2 cache.
const TASK_BYTES: usize = 1 << 18;

/// `out[.., first..first + outputs] (+)= x W^T + bias`.
///
/// `x` is `(n, cols)`, `w` `(outputs, cols)`, `out` `(n, stride)`, `bias` `(outputs)`.
pub(crate) fn matmul<T: Element>(
    pool: &mut Pool,
    isa: Isa,
    out: (&mut [f32], usize, usize), // values, stride, first
    x: &[f32],
    w: &[T],
    cols: usize,
    bias: Option<&[f32]>,
    epilogue: Epilogue,
) {
    let (n, outputs) = (x.len() / cols, w.len() / cols);
    let (values, stride, first) = out;
    assert!(first + outputs <= stride && n * stride <= values.len());
    let disjoint = Disjoint::new(values);
    let share = if n <= FEW { TASK_FEW } else { TASK };
    let down = n.div_ceil((TASK_BYTES / size_of::<f32>() / cols).max(FEW));
    // Tasks that read the same weights follow each other.
    pool.run(down * outputs.div_ceil(share), |task| {
        let rows = task % down * n / down..(task % down + 1) * n / down;
        let range = task / down * share..outputs.min((task / down + 1) * share);
        let tile = Tile {
            x: &x[rows.start * cols..rows.end * cols],
            w: &w[range.start * cols..range.end * cols],
            cols,
            bias: bias.map(|b| &b[range.clone()]),
            out: &disjoint,
            stride,
            first: rows.start * stride + first + range.start,
            epilogue,
        };
        // SAFETY: each task has its own part of `out`.
        unsafe { T::multiply(tile, isa) }
    });
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let hash = |i: u32| (i.wrapping_mul(2_654_435_761) ^ seed).wrapping_mul(0x85EB_CA6B) >> 9;
        (0..n as u32).map(|i| (hash(i) % 4_001) as f32 / 1_000.0 - 2.0).collect()
    }

    fn check<T: Element>(convert: impl Fn(f32) -> T, back: impl Fn(T) -> f32) {
        for (n, outputs, cols) in
            [(1, 1, 1), (1, 5, 20), (3, 17, 33), (9, 70, 64), (4, 6, 100), (17, 3, 9_000)]
        {
            let (x, bias) = (noise(n * cols, 1), noise(outputs, 3));
            let w: Vec<T> = noise(outputs * cols, 2).into_iter().map(&convert).collect();
            let run = |isa, threads, rows: std::ops::Range<usize>, epilogue| {
                let mut pool = Pool::new(threads).unwrap();
                let mut out = vec![0.5; rows.len() * (outputs + 2)];
                let x = &x[rows.start * cols..rows.end * cols];
                matmul(&mut pool, isa, (&mut out, outputs + 2, 1), x, &w, cols, Some(&bias), epilogue);
                out
            };
            let want = run(Isa::all()[0], 1, 0..n, Epilogue::Store);
            for r in 0..n {
                assert_eq!((want[r * (outputs + 2)], want[(r + 1) * (outputs + 2) - 1]), (0.5, 0.5));
                for o in 0..outputs {
                    let products =
                        (0..cols).map(|k| f64::from(x[r * cols + k]) * f64::from(back(w[o * cols + k])));
                    let exact = products.sum::<f64>() + f64::from(bias[o]);
                    assert!(
                        (f64::from(want[r * (outputs + 2) + 1 + o]) - exact).abs()
                            < 1e-6 * (100 + cols) as f64
                    );
                }
            }
            for isa in Isa::all() {
                assert_eq!(run(isa, 3, 0..n, Epilogue::Store), want, "{}", isa.name());
                for r in 0..n {
                    let alone = run(isa, 1, r..r + 1, Epilogue::Store);
                    assert_eq!(alone, want[r * (outputs + 2)..(r + 1) * (outputs + 2)], "row {r} alone");
                }
                let added = run(isa, 1, 0..n, Epilogue::Add);
                assert_eq!(added[1], 0.5 + want[1]);
            }
        }
    }

    #[test]
    fn all_instruction_sets_threads_and_batches_give_the_same_bits() {
        check(|x| x, |x: f32| x);
        check(bf16::from_f32, bf16::to_f32);
        check(f16::from_f32, f16::to_f32);
    }
}
