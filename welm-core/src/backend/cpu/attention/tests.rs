//! Compares attention with its formula, computed one number at a time, for all tilings and instruction sets.

use half::{bf16, f16};
use welm_cpu::exp::exp_to_most;
use welm_cpu::isa::{LANES, Scalar, Simd};
use welm_cpu::soft_cap::soft_cap;

use super::*;
use crate::batch::BLOCK_TOKENS;

fn hash(i: usize) -> f32 {
    (((i as u32).wrapping_mul(2_654_435_761) >> 9) % 1_000) as f32 / 500.0 - 1.0
}

/// Rows of several sequences, and a cache that is NaN wherever no row sees it. In block tables, blocks that no row sees
/// have an invalid number.
struct Case<T> {
    heads: Heads,
    layer: LayerConfig,
    batch: Batch,
    qkv: Vec<f32>,
    pages: Pages<T>,
}

impl<T: Attend + Pod + Into<f32>> Case<T> {
    /// `runs` are the first position and the number of rows of each sequence. If a sequence has more than two rows, its
    /// last key and value are also NaN: only the result of its last row may be NaN then.
    fn new(heads: Heads, runs: &[(usize, usize)], round: impl Fn(f32) -> T) -> Self {
        Self::with(heads, LayerConfig::new(heads.head_dim), runs, round)
    }

    fn with(heads: Heads, layer: LayerConfig, runs: &[(usize, usize)], round: impl Fn(f32) -> T) -> Self {
        let d = heads.head_dim;
        let n_blocks = runs.iter().map(|(first, n)| (first + n).div_ceil(BLOCK_TOKENS)).sum::<usize>() + 1;
        let mut free = (0..n_blocks as u32).rev();
        let mut batch = Batch::default();
        let mut pages = Pages::new(n_blocks * heads.start(1, 0)).unwrap();
        let (k, v) = pages.both_mut();
        k.fill(round(f32::NAN));
        v.fill(round(f32::NAN));
        for &(first, n) in runs {
            let mut table: Vec<u32> = free.by_ref().take((first + n).div_ceil(BLOCK_TOKENS)).collect();
            let first_key = scores(&layer).first_key(first);
            table[..first_key / BLOCK_TOKENS].fill(u32::MAX);
            batch.push_generated(&vec![1; n], first, &table);
            for pos in first_key..first + n - usize::from(n > 2) {
                for (kv_head, i) in (0..heads.n_kv_heads).flat_map(|h| (0..d).map(move |i| (h, i))) {
                    let start = heads.start(table[pos / BLOCK_TOKENS] as usize, kv_head);
                    let seed = start + pos % BLOCK_TOKENS * d + i;
                    k[start + i * BLOCK_TOKENS + pos % BLOCK_TOKENS] = round(1.5 * hash(seed));
                    v[start + pos % BLOCK_TOKENS * d + i] = round(hash(seed + 77_777));
                }
            }
        }
        let qkv = (0..batch.len() * heads.cols()).map(|i| 2.0 * hash(i + 5)).collect();
        Case { heads, layer, batch, qkv, pages }
    }

    fn run(&self, isa: Isa, threads: usize) -> Vec<f32> {
        let n = self.batch.len();
        let mut attention = Attention::new(self.heads, threads, n).unwrap();
        let mut out = vec![9.0; n * self.heads.n_heads * self.heads.head_dim];
        let mut pool = Pool::new(threads).unwrap();
        // Run it twice: the second time, scratch holds what the first left.
        for _ in 0..2 {
            attention.run(&mut pool, isa, &mut out, &self.qkv, &self.pages, &self.batch, &self.layer);
        }
        out
    }

    /// Key and value at position `pos` of the sequence of `row`.
    fn at(&self, row: usize, kv_head: usize, pos: usize) -> (Vec<f32>, Vec<f32>) {
        let d = self.heads.head_dim;
        let start = self.heads.start(self.batch.table(row)[pos / BLOCK_TOKENS] as usize, kv_head);
        let offset = pos % BLOCK_TOKENS;
        let (keys, values) = self.pages.both();
        let k = (0..d).map(|i| keys[start + i * BLOCK_TOKENS + offset].into()).collect();
        let v = (0..d).map(|i| values[start + offset * d + i].into()).collect();
        (k, v)
    }

    /// The output by the formula of the module, one number at a time; and in f64 with an ordinary softmax.
    fn want(&self, row: usize, head: usize) -> (Vec<f32>, Vec<f64>) {
        let (d, group) = (self.heads.head_dim, self.heads.group());
        let q = &self.qkv[row * self.heads.cols() + head * d..][..d];
        let pos = self.batch.positions[row] as usize;
        let first = scores(&self.layer).first_key(pos);
        let keys: Vec<_> = (first..=pos).map(|pos| self.at(row, head / group, pos)).collect();
        // SAFETY: plain Rust.
        let exp = |x: f32| unsafe { exp_to_most::<Scalar>([x; LANES])[0] };
        let scale = self.layer.scale;
        let (mut m, mut l, mut out) = (f32::NEG_INFINITY, 0.0, vec![0.0_f32; d]);
        for start in (first / PIECE * PIECE..=pos).step_by(PIECE) {
            let here = first.max(start)..(start + PIECE).min(pos + 1);
            let lane = |j: usize| (here.start + j) % LANES;
            let piece = &keys[here.start - first..here.end - first];
            let score = |k: &[f32]| {
                let s = q.iter().zip(k).fold(0.0, |s, (q, k)| (q * scale).mul_add(*k, s));
                // SAFETY: plain Rust.
                self.layer.soft_cap.map_or(s, |cap| unsafe { soft_cap::<Scalar>([s; LANES], cap)[0] })
            };
            let s: Vec<f32> = piece.iter().map(|(k, _)| score(k)).collect();
            let max = s.iter().fold(f32::NEG_INFINITY, |m, &s| if m > s { m } else { s });
            let p: Vec<f32> = s.iter().map(|s| exp(s - max)).collect();
            let mut lanes = [0.0; LANES];
            p.iter().enumerate().for_each(|(j, p)| lanes[lane(j)] += p);
            // SAFETY: plain Rust.
            let sum = unsafe { Scalar::sum(lanes) };
            let both = if m > max { m } else { max };
            let (a, b) = (exp(m - both), exp(max - both));
            (m, l) = (both, sum.mul_add(b, l * a));
            for (i, out) in out.iter_mut().enumerate() {
                let y = p.iter().zip(piece).fold(0.0_f32, |y, (p, (_, v))| p.mul_add(v[i], y));
                *out = y.mul_add(b, *out * a);
            }
        }
        let dot = |k: &[f32]| q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>();
        let score = |k: &[f32]| {
            let s = dot(k) * f64::from(scale);
            self.layer.soft_cap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
        };
        let weights: Vec<f64> = keys.iter().map(|(k, _)| score(k).exp()).collect();
        let total: f64 = weights.iter().sum();
        let exact =
            |i: usize| weights.iter().zip(&keys).map(|(w, (_, v))| w * f64::from(v[i])).sum::<f64>() / total;
        (out.into_iter().map(|y| y / l).collect(), (0..d).map(exact).collect())
    }

    fn check(&self, threads: &[usize]) {
        let (d, n_heads) = (self.heads.head_dim, self.heads.n_heads);
        let vectors = (0..self.batch.len()).flat_map(|r| (0..n_heads).map(move |h| (r, h)));
        let want: Vec<_> = vectors.map(|(r, h)| self.want(r, h)).collect();
        for isa in Isa::all() {
            for &threads in threads {
                let out = self.run(isa, threads);
                for (i, (bits, exact)) in want.iter().enumerate() {
                    let y = &out[i * d..(i + 1) * d];
                    let which = || {
                        let (row, head) = (i / n_heads, i % n_heads);
                        format!("{} {threads} {:?} row {row} head {head}", isa.name(), self.heads)
                    };
                    let same = |(y, x): (&f32, &f32)| y.to_bits() == x.to_bits() || y.is_nan() && x.is_nan();
                    assert!(y.iter().zip(bits).all(same), "{}: {y:?}, not {bits:?}", which());
                    for (y, x) in y.iter().zip(exact) {
                        let error = (f64::from(*y) - x).abs();
                        assert!(error < 2e-6 || y.is_nan() && x.is_nan(), "{}: {y}, not {x}", which());
                    }
                }
            }
        }
    }
}

#[test]
fn tiles_of_rows_are_the_definition_bit_for_bit() {
    let runs = [(0, 37), (120, 21), (5, 1), (250, 13), (126, 2), (15, 3), (123, 6)];
    for (n_heads, n_kv_heads, head_dim) in [(2, 2, 64), (6, 2, 20), (7, 1, 80), (4, 1, 16), (13, 1, 33)] {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        Case::new(heads, &runs, |x| x).check(&[1, 3]);
        Case::new(heads, &runs, bf16::from_f32).check(&[2]);
        Case::new(heads, &runs, f16::from_f32).check(&[1]);
    }
}

#[test]
fn single_rows_at_the_edges_of_blocks_and_pieces() {
    for heads in [
        Heads { n_heads: 2, n_kv_heads: 2, head_dim: 128 },
        Heads { n_heads: 9, n_kv_heads: 3, head_dim: 20 },
        Heads { n_heads: 8, n_kv_heads: 1, head_dim: 80 },
    ] {
        for last in [0, 1, 14, 15, 16, 17, 126, 127, 128, 129, 255, 256, 257, 400] {
            // Alone, so that threads take pieces of the tile; and with others, so that they take whole tiles.
            Case::new(heads, &[(last, 1)], bf16::from_f32).check(&[1, 2, 5]);
            Case::new(heads, &[(last, 1)], f16::from_f32).check(&[2]);
        }
        let all = [0, 1, 15, 16, 17, 127, 128, 255, 256, 300].map(|last| (last, 1));
        Case::new(heads, &all, |x| x).check(&[2]);
    }
}

#[test]
fn more_pieces_than_scratch_are_folded_in_several_rounds() {
    let heads = Heads { n_heads: 3, n_kv_heads: 3, head_dim: 20 };
    Case::new(heads, &[(2 * PIECES * PIECE + 70, 1)], |x| x).check(&[1, 2]);
    // Four tiles for three threads; the sequence of one tile is shorter than a round. Then a round that is full.
    let heads = Heads { n_heads: 5, n_kv_heads: 1, head_dim: 32 };
    Case::new(heads, &[(PIECES * PIECE - 3, 5), (90, 2)], bf16::from_f32).check(&[3]);
    let heads = Heads { n_heads: 3, n_kv_heads: 1, head_dim: 16 };
    Case::new(heads, &[(2 * PIECES * PIECE - 1, 1)], |x| x).check(&[2]);
}

#[test]
fn scores_that_are_not_finite_stay_in_their_row() {
    let heads = Heads { n_heads: 2, n_kv_heads: 1, head_dim: 16 };
    let mut case = Case::new(heads, &[(130, 1), (131, 1)], |x| x);
    // Makes all scores of row 0 minus infinity, for both heads.
    case.qkv[..32].fill(f32::NEG_INFINITY);
    case.pages.both_mut().0.iter_mut().for_each(|k| *k = k.abs().max(0.1));
    let base = case.run(Isa::all()[0], 1);
    assert!(base[..32].iter().all(|y| y.is_nan()));
    assert!(base[32..].iter().all(|y| y.is_finite()));
    for isa in Isa::all() {
        assert_eq!(case.run(isa, 3)[32..], base[32..], "{}", isa.name());
    }
}

/// Layers with each setting alone, and with all of them.
fn layers(head_dim: usize, windows: &[usize]) -> Vec<LayerConfig> {
    let plain = LayerConfig::new(head_dim);
    let (scale, soft_cap) = (0.3 * plain.scale, Some(1.5));
    let windowed = windows.iter().map(|&window| LayerConfig { window: Some(window), ..plain });
    let all = windows.iter().map(|&window| LayerConfig { window: Some(window), scale, soft_cap, ..plain });
    let alone = [LayerConfig { scale, ..plain }, LayerConfig { soft_cap, ..plain }];
    alone.into_iter().chain(windowed).chain(all).collect()
}

#[test]
fn windows_scales_and_soft_caps_are_the_definition_bit_for_bit() {
    let runs = [(0, 37), (120, 21), (5, 1), (250, 13), (126, 2), (15, 3), (300, 25)];
    for (n_heads, n_kv_heads, head_dim) in [(2, 2, 64), (6, 2, 20), (7, 1, 80), (13, 1, 33)] {
        let heads = Heads { n_heads, n_kv_heads, head_dim };
        for layer in layers(head_dim, &[1, 2, 16, 33, 128, 129, 200]) {
            Case::with(heads, layer, &runs, |x| x).check(&[1, 3]);
            Case::with(heads, layer, &runs, bf16::from_f32).check(&[2]);
        }
    }
}

#[test]
fn windows_of_single_rows_at_the_edges_of_blocks_and_pieces() {
    for heads in [
        Heads { n_heads: 2, n_kv_heads: 2, head_dim: 128 },
        Heads { n_heads: 9, n_kv_heads: 3, head_dim: 20 },
    ] {
        for layer in layers(heads.head_dim, &[1, 15, 16, 17, 127, 128, 129, 272]) {
            for last in [0, 15, 16, 127, 128, 255, 256, 257, 400] {
                Case::with(heads, layer, &[(last, 1)], bf16::from_f32).check(&[1, 5]);
            }
            let all = [0, 1, 15, 16, 17, 127, 128, 255, 256, 300].map(|last| (last, 1));
            Case::with(heads, layer, &all, |x| x).check(&[2]);
        }
    }
}

#[test]
fn rounds_of_pieces_begin_at_the_window() {
    let heads = Heads { n_heads: 3, n_kv_heads: 3, head_dim: 20 };
    let far = 2 * PIECES * PIECE + 70;
    for window in [1, PIECE, 5 * PIECE + 3, PIECES * PIECE + 100] {
        let layer = LayerConfig { window: Some(window), ..LayerConfig::new(20) };
        Case::with(heads, layer, &[(far, 1)], |x| x).check(&[1, 2]);
        // Two sequences; the second has fewer pieces, and another first piece.
        Case::with(heads, layer, &[(far, 2), (500, 1)], bf16::from_f32).check(&[4]);
    }
}
