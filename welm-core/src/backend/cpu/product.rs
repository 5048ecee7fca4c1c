//! Products of quantised activations with matrices whose parts may be stored in different formats.

use std::ops::Range;

use welm_cpu::coded::CodedRows;
use welm_cpu::disjoint::Disjoint;
use welm_cpu::i8dot::Tiles;
use welm_cpu::int8::Grouping;
use welm_cpu::isa::{Isa, LANES};
use welm_cpu::outputs::{Epilogue, Outputs};
use welm_cpu::quantize::Quantized;
use welm_cpu::tiles::tile_counts;

use super::pool::Pool;
use super::room::Room;
use crate::weights::tiles::Tiled;
use crate::weights::tiles::int4::Int4Tiles;
use crate::weights::tiles::int8::Int8Tiles;

/// `out = x W^T + bias`, or `out += x W^T + bias`. The rows of `W` are those of all `parts`, one part after the other;
/// `out` is `(n, rows)`, `bias` `(rows)`.
pub(super) fn matmul(
    pool: &mut Pool,
    isa: Isa,
    room: &Room,
    out: &mut [f32],
    x: &Quantized,
    parts: &[Tiled],
    bias: Option<&[f32]>,
    epilogue: Epilogue,
) {
    let rows = parts.iter().map(Tiled::rows).sum();
    assert!(x.n * rows <= out.len() && bias.is_none_or(|bias| bias.len() == rows));
    for part in parts {
        assert!(x.tiles == tile_counts(0, part.cols()).1, "activations and weights have the same tiles");
        assert!(x.form.grouping == part.grouping(), "activations and weights have the same groups");
    }
    let strips = |part: &Tiled| part.rows().div_ceil(LANES);
    let disjoint = Disjoint::new(out);
    pool.run_ranges(parts.iter().map(strips).sum(), |range| {
        let (mut strip, mut row) = (0, 0);
        for part in parts {
            let end = strip + strips(part);
            let own = range.start.max(strip)..range.end.min(end);
            if own.start < own.end {
                let own = own.start - strip..own.end - strip;
                let outputs = own.start * LANES..part.rows().min(own.end * LANES);
                let outputs = Outputs {
                    bias: bias.map(|bias| &bias[row + outputs.start..row + outputs.end]),
                    n: outputs.len(),
                    out: &disjoint,
                    stride: rows,
                    first: row + outputs.start,
                    epilogue,
                };
                // SAFETY: each strip is computed once, and writes its own columns of `out`.
                unsafe { run(isa, room, part, own, x, outputs) };
            }
            (strip, row) = (end, row + part.rows());
        }
    });
}

/// Computes some strips of one part.
///
/// # Safety
/// No other task writes these outputs.
unsafe fn run(isa: Isa, room: &Room, part: &Tiled, own: Range<usize>, x: &Quantized, outputs: Outputs) {
    // SAFETY: the caller's promise; `matmul` checked the sizes of the activations, and packing made those of the tiles.
    unsafe {
        match part {
            Tiled::Int8(w) => int8(w).rows(own, x, outputs).compute(isa),
            Tiled::Int4(w) => int4(w).rows(own, x, outputs).compute(isa),
            Tiled::Coded(w) => {
                let strip = w.coding.strip_bytes(x.tiles);
                let data = &w.data[own.start * strip..own.end * strip];
                let room = &mut room.take()[..];
                CodedRows::new(isa, data, w.coding, x, outputs, room).compute();
            }
        }
    }
}

fn int8(w: &Int8Tiles) -> Tiles<'_> {
    let Int8Tiles { rows, cols, grouping, weight, scale } = w;
    Tiles { rows: *rows, cols: *cols, grouping: *grouping, weight, scale, min: &[] }
}

fn int4(w: &Int4Tiles) -> Tiles<'_> {
    let Int4Tiles { rows, cols, weight, scale, min } = w;
    Tiles { rows: *rows, cols: *cols, grouping: Grouping::Plain, weight, scale, min }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::quantize::fill;
    use super::*;
    use crate::weights::tensor::Segment;
    use crate::weights::tiles::coded::{CodedTiles, tests as coded};
    use welm_cpu::int8::rotate;
    use welm_cpu::quantize::Form;
    use welm_cpu::tiles::INT8_TILE;

    fn noise(n: usize, seed: u32) -> impl Iterator<Item = u32> {
        (0..n as u32).map(move |i| (i.wrapping_mul(2_654_435_761) ^ seed).wrapping_mul(0x85EB_CA6B) >> 9)
    }

    /// A matrix of arbitrary int8 values and scales, not made by quantisation.
    fn matrix(rows: usize, cols: usize, grouping: Grouping, extreme: bool) -> Int8Tiles {
        let (down, across) = tile_counts(rows, cols);
        let weight: Vec<u8> = noise(down * across * INT8_TILE, 5)
            .map(|x| if extreme { [1, 255][x as usize % 2] } else { x as u8 })
            .collect();
        let scale: Vec<f16> = noise(down * grouping.groups(across) * LANES, 6)
            .map(|x| f16::from_f32((x % 100) as f32 / 5_000.0))
            .collect();
        Int8Tiles { rows, cols, grouping, weight: weight.into(), scale: scale.into() }
    }

    /// Like `matrix`, with weights of four bits.
    fn matrix4(rows: usize, cols: usize, extreme: bool) -> Int4Tiles {
        let Int8Tiles { weight, scale, .. } = matrix(rows, cols, Grouping::Plain, extreme);
        let min: Vec<f16> = noise(scale.len(), 8).map(|x| f16::from_f32((x % 100) as f32 / -400.0)).collect();
        let weight = weight.chunks(2).map(|w| if extreme { [0, 255][w[0] as usize % 2] } else { w[0] });
        Int4Tiles { rows, cols, weight: weight.collect::<Vec<_>>().into(), scale, min: min.into() }
    }

    /// Checks products of `x`, `(n, w.cols)`, with `w`, whose values are `dense`: they are near the exact ones, and
    /// have the same bits with every instruction set, number of threads and batch.
    fn check(x: &[f32], n: usize, w: &[Tiled], dense: &[f32], bias: &[f32], wide: bool) {
        let (rows, cols) = (dense.len() / w[0].cols(), w[0].cols());
        let form = Form { wide, grouping: w[0].grouping() };
        let run = |isa: Isa, threads, range: std::ops::Range<usize>| {
            let mut pool = Pool::new(threads).unwrap();
            let mut q = Quantized::new(n + 1, cols + 40).unwrap();
            fill(&mut q, &mut pool, isa, &x[range.start * cols..range.end * cols], cols, form);
            let mut out = vec![0.0; range.len() * rows];
            let room = Room::new(threads, cols).unwrap();
            matmul(&mut pool, isa, &room, &mut out, &q, w, Some(bias), Epilogue::Store);
            out
        };
        let want = run(Isa::all()[0], 1, 0..n);
        let (mut x_seen, mut w_seen) = (x.to_vec(), dense.to_vec());
        if form.grouping == Grouping::Rotated {
            rotate(&mut x_seen);
            rotate(&mut w_seen);
        }
        for (i, &y) in want.iter().enumerate() {
            let (r, o) = (i / rows, i % rows);
            let pairs = x[r * cols..][..cols].iter().zip(&dense[o * cols..][..cols]);
            let exact = pairs.map(|(a, b)| f64::from(a * b)).sum::<f64>() + f64::from(bias[o]);
            // Half a quantisation step of each activation, times its weight.
            let largest = x_seen[r * cols..][..cols].iter().fold(0.0f32, |l, x| l.max(x.abs()));
            let step = f64::from(largest) * if wide { 1.04 / 65_024.0 } else { 1.04 / 254.0 };
            let weights = w_seen[o * cols..][..cols].iter().map(|w| f64::from(w.abs())).sum::<f64>();
            let bound = weights * step + 2e-3;
            assert!((f64::from(y) - exact).abs() <= bound, "{y} {exact} {bound} {form:?}");
        }
        for isa in Isa::all() {
            assert_eq!(run(isa, 3, 0..n), want, "{} {form:?}", isa.name());
            for r in 0..n {
                let alone = run(isa, 1, r..r + 1);
                assert_eq!(alone, want[r * rows..(r + 1) * rows], "row {r} alone");
            }
        }
    }

    #[test]
    fn all_instruction_sets_threads_and_batches_give_the_same_bits() {
        let plain = [(1, 1, 1), (1, 16, 32), (3, 17, 33), (13, 40, 96), (9, 5, 200), (30, 16, 64)];
        let rotated = [(1, 1, 64), (3, 17, 128), (13, 40, 192), (9, 5, 640), (30, 16, 256)];
        let shapes = plain.map(|shape| (shape, Grouping::Plain)).into_iter();
        for ((n, rows, cols), grouping) in shapes.chain(rotated.map(|shape| (shape, Grouping::Rotated))) {
            for (wide, extreme) in [(false, false), (true, false), (false, true), (true, true)] {
                let value = |x: u32| match extreme {
                    true => [-3.0, 3.0][x as usize % 2],
                    false => (x % 4_001) as f32 / 700.0 - 2.8,
                };
                let mut x: Vec<f32> = noise(n * cols, 9).map(value).collect();
                if grouping == Grouping::Rotated {
                    rotate(&mut x); // so that the extreme values are extreme where they are multiplied
                }
                let bias: Vec<f32> = noise(rows, 7).map(|x| (x % 100) as f32 / 50.0).collect();
                let mut dense = vec![0.0; rows * cols];
                let w = Tiled::Int8(matrix(rows, cols, grouping, extreme));
                dense.chunks_mut(cols).enumerate().for_each(|(o, row)| w.row_f32(o, row));
                check(&x, n, &[w], &dense, &bias, wide);
                if grouping == Grouping::Plain {
                    let w = Tiled::Int4(matrix4(rows, cols, extreme));
                    dense.chunks_mut(cols).enumerate().for_each(|(o, row)| w.row_f32(o, row));
                    check(&x, n, &[w], &dense, &bias, wide);
                }
            }
        }
    }

    #[test]
    fn parts_in_every_coded_format_give_the_same_bits_everywhere() {
        for cols in [256, 768, 160] {
            let mut parts = vec![Tiled::Int8(matrix(5, cols, Grouping::Plain, false))];
            for stored in coded::coded().filter(|stored| cols % stored.format().values() == 0) {
                let segments =
                    [Segment { tensor: coded::tensor(stored, 21, cols), first_row: 2, n_rows: 19 }];
                let coding = stored.format().coding().unwrap();
                parts.push(Tiled::Coded(CodedTiles::pack(cols, &segments, coding, 2).unwrap()));
            }
            parts.push(Tiled::Int4(matrix4(17, cols, false)));
            assert!(parts.len() == if cols == 160 { 6 } else { 12 });
            let mut dense = Vec::new();
            for (part, row) in parts.iter().flat_map(|part| (0..part.rows()).map(move |row| (part, row))) {
                dense.resize(dense.len() + cols, 0.0);
                let at = dense.len() - cols;
                part.row_f32(row, &mut dense[at..]);
            }
            let bias: Vec<f32> = noise(dense.len() / cols, 7).map(|x| (x % 100) as f32 / 50.0).collect();
            for (n, wide) in [(1, false), (2, true), (13, false), (8, false), (7, true)] {
                let x: Vec<f32> = noise(n * cols, 9).map(|x| (x % 4_001) as f32 / 700.0 - 2.8).collect();
                check(&x, n, &parts, &dense, &bias, wide);
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_reach_the_output() {
        let mut pool = Pool::new(1).unwrap();
        for (grouping, bad) in [Grouping::Plain, Grouping::Rotated]
            .into_iter()
            .flat_map(|grouping| [f32::NAN, f32::INFINITY].map(|bad| (grouping, bad)))
        {
            let w = [Tiled::Int8(matrix(16, 64, grouping, false))];
            let room = Room::new(1, 64).unwrap();
            let mut x = [1.0; 64];
            x[7] = bad;
            let (mut q, mut out) = (Quantized::new(1, 64).unwrap(), vec![0.0; 16]);
            fill(&mut q, &mut pool, Isa::all()[0], &x, 64, Form { wide: false, grouping });
            matmul(&mut pool, Isa::all()[0], &room, &mut out, &q, &w, None, Epilogue::Store);
            assert!(out.iter().any(|y| !y.is_finite()));
        }
    }
}
