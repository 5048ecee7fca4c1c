//! Attention of one tile of query vectors with one piece of keys and values: scores, softmax, weighted sum of values.
//!
//! Both products keep their sums in registers: of `M` query vectors times `N` blocks of keys, or times `N` vectors of
//! 16 dimensions. The order of additions in a sum depends on neither `M` nor `N`.

use std::ops::Range;

use super::super::exp::exp_to_most;
use super::super::linear::load_at;
use super::super::pages::{CacheElement, Heads};
use super::super::soft_cap::soft_cap;
use crate::batch::BLOCK_TOKENS;
use crate::isa::{LANES, Simd};

/// Positions of a piece.
pub(super) const PIECE: usize = 128;
/// Dimensions of a strip. A tile's query vectors are stored as `(strips, TILE, STRIP)`, so that the distances between
/// them are constants.
pub(super) const STRIP: usize = 64;
/// Blocks of a piece.
pub(super) const BLOCKS: usize = PIECE / BLOCK_TOKENS;
/// Query vectors of a tile. With two vectors of keys or values their sums take 24 registers, three quarters of those of
/// AVX-512.
pub(super) const TILE: usize = 12;
/// `0, 1, 2, ...`
const LANE: [f32; LANES] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// The largest lane, found in the order in which [`Simd::sum`] adds.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn max_lane<S: Simd>(v: S::V) -> f32 {
    let mut lanes = [0.0; LANES];
    // SAFETY: the caller's promise; 16 values.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = if lanes[i] > lanes[i + half] { lanes[i] } else { lanes[i + half] };
        }
        half /= 2;
    }
    lanes[0]
}

/// Maxima, sums and weighted values of a tile's query vectors: of one piece (M, L, P of the formula), or of all pieces
/// so far (m, l, O).
pub(super) struct Sums<'a> {
    pub(super) max: &'a mut [f32], // (LANES): m, M
    pub(super) sum: &'a mut [f32], // (LANES): l, L
    pub(super) out: &'a mut [f32], // (TILE, whole vectors of head_dim): O, P
}

impl Sums<'_> {
    /// Length of the slice for [`Sums::of`], in f32.
    pub(super) fn len(heads: Heads) -> usize {
        2 * LANES + TILE * heads.head_dim.next_multiple_of(LANES)
    }

    /// The sums stored in `values`.
    #[inline(always)]
    pub(super) fn of(values: &mut [f32]) -> Sums<'_> {
        let (max, rest) = values.split_at_mut(LANES);
        let (sum, out) = rest.split_at_mut(LANES);
        Sums { max, sum, out }
    }

    /// Sets the sums to those of no piece.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
        self.out.fill(0.0);
    }
}

/// Where one piece lies in memory, and which of its keys each query vector sees.
pub(super) struct Piece<T> {
    pub(super) d: usize,                   // head_dim
    pub(super) keys: [*const T; BLOCKS],   // (d, BLOCK_TOKENS) each
    pub(super) values: [*const T; BLOCKS], // (BLOCK_TOKENS, d) each
    pub(super) next: [*const T; BLOCKS],   // keys of the next piece, to prefetch; only the addresses are used
    pub(super) from: [usize; TILE],        // each vector's first key in the piece
    pub(super) n: [usize; TILE],           // each vector's last key plus one; 0 if it has no key here
    pub(super) most: usize,                // the largest `n`
    pub(super) blocks: Range<usize>,       // the blocks that hold a key of any vector
    pub(super) cap: Option<f32>,           // soft cap of scores
}

impl<T: CacheElement> Piece<T> {
    /// Scores of `M` vectors with all keys of the blocks, `N` blocks at a time. Scores of keys that a vector does not
    /// see are arbitrary.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; `BLOCKS` is a multiple of `N`; the pointers are as the fields say.
    #[inline(always)]
    pub(super) unsafe fn scores<S: Simd, const M: usize, const N: usize>(&self, q: &[f32], p: &mut [f32]) {
        assert!(q.len() >= (self.d.div_ceil(STRIP) * TILE - TILE + M) * STRIP && p.len() >= M * PIECE);
        for b in (self.blocks.start / N * N..self.blocks.end).step_by(N) {
            // SAFETY: by the assertion, the caller's promise, and because blocks are BLOCK_TOKENS * d long.
            unsafe {
                let mut acc = [[S::splat(0.0); N]; M];
                for first in (0..self.d).step_by(STRIP) {
                    let strip = q.as_ptr().add(first * TILE);
                    for i in first..self.d.min(first + STRIP) {
                        let k: [S::V; N] =
                            std::array::from_fn(|j| T::load::<S>(self.keys[b + j].add(i * LANES)));
                        for m in 0..M {
                            let q = S::splat(*strip.add(m * STRIP + i - first));
                            for j in 0..N {
                                acc[m][j] = S::fma(q, k[j], acc[m][j]);
                            }
                        }
                        if M < TILE && (i * LANES * size_of::<T>()).is_multiple_of(64) {
                            for j in 0..N {
                                S::prefetch(self.values[b + j].wrapping_add(i * LANES));
                            }
                        }
                    }
                }
                for m in 0..M {
                    for j in 0..N {
                        S::store(p.as_mut_ptr().add(m * PIECE + (b + j) * LANES), acc[m][j]);
                    }
                }
            }
        }
    }

    /// Replaces scores by weights, `exp(score - max)`, and writes each vector's maximum and sum to `to`.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline(always)]
    pub(super) unsafe fn softmax<S: Simd>(&self, p: &mut [f32], to: &mut Sums) {
        to.max.fill(f32::NEG_INFINITY);
        to.sum.fill(0.0);
        for (m, p) in p.chunks_exact_mut(PIECE).enumerate() {
            let (from, n) = (self.from[m], self.n[m]);
            if n == 0 {
                continue;
            }
            // Of these SIMD vectors of scores, only the first and the last may have keys that the query does not see.
            let (first, last) = (from / LANES * LANES, (n - 1) / LANES * LANES);
            // SAFETY: instructions by the caller's promise; `last + LANES <= PIECE`.
            unsafe {
                let start = p.as_mut_ptr();
                let at = |i: usize| start.add(i);
                if let Some(cap) = self.cap {
                    for i in (first..=last).step_by(LANES) {
                        S::store(at(i), soft_cap::<S>(S::load(at(i)), cap));
                    }
                }
                let lowest = S::splat(f32::NEG_INFINITY);
                if from > first {
                    let others = S::splat((from - first) as f32);
                    let masked = S::if_greater(others, S::load(LANE.as_ptr()), lowest, S::load(at(first)));
                    S::store(at(first), masked);
                }
                let own = S::splat((n - last) as f32);
                let masked = S::if_greater(own, S::load(LANE.as_ptr()), S::load(at(last)), lowest);
                S::store(at(last), masked);
                let mut max = lowest;
                for i in (first..=last).step_by(LANES) {
                    max = S::max(max, S::load(at(i)));
                }
                let max = max_lane::<S>(max);
                let mut sum = S::splat(0.0);
                for i in (first..=last).step_by(LANES) {
                    let y = exp_to_most::<S>(S::sub(S::load(at(i)), S::splat(max)));
                    S::store(at(i), y);
                    sum = S::add(sum, y);
                }
                (to.max[m], to.sum[m]) = (max, S::sum(sum));
            }
        }
    }

    /// Weighted sums of the values, for query vectors `first..first + M`: `N` SIMD vectors of dimensions at a time,
    /// then `FEW`, then one.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; the pointers are as the fields say.
    #[inline(always)]
    pub(super) unsafe fn values<S: Simd, const M: usize, const N: usize, const FEW: usize>(
        &self,
        p: &[f32],
        first: usize,
        out: &mut [f32],
    ) {
        let stride = self.d.next_multiple_of(LANES);
        let (p, out) = (&p[first * PIECE..][..M * PIECE], &mut out[first * stride..][..M * stride]);
        let keys: [_; M] = std::array::from_fn(|m| self.from[first + m]..self.n[first + m]);
        let mut at = 0;
        // SAFETY: by the caller's promise.
        unsafe {
            while at + N * LANES <= self.d {
                self.columns::<S, M, N, false>(p, &keys, at, out);
                at += N * LANES;
            }
            while at + FEW * LANES <= self.d {
                self.columns::<S, M, FEW, false>(p, &keys, at, out);
                at += FEW * LANES;
            }
            while at + LANES <= self.d {
                self.columns::<S, M, 1, false>(p, &keys, at, out);
                at += LANES;
            }
            if at < self.d {
                self.columns::<S, M, 1, true>(p, &keys, at, out);
            }
        }
    }

    /// Value `i` of block `b`: `N` SIMD vectors of its dimensions, from dimension `at` on; zeros after the block's end.
    ///
    /// # Safety
    /// As `values`; `i` is below `BLOCK_TOKENS`; without `TAIL` the vectors end within the value.
    #[inline(always)]
    unsafe fn row<S: Simd, const N: usize, const TAIL: bool>(
        &self,
        b: usize,
        i: usize,
        at: usize,
    ) -> [S::V; N] {
        let (block, from) = (self.values[b], i * self.d + at);
        // SAFETY: by the caller's promise.
        let mut row = [unsafe { S::splat(0.0) }; N];
        for (c, v) in row.iter_mut().enumerate() {
            // SAFETY: by the caller's promise; a block has BLOCK_TOKENS * d values.
            unsafe {
                *v = if TAIL {
                    let block = std::slice::from_raw_parts(block, BLOCK_TOKENS * self.d);
                    load_at::<S, T>(block, from + c * LANES)
                } else {
                    T::load::<S>(block.add(from + c * LANES))
                };
            }
        }
        row
    }

    /// Weighted sums for `N` SIMD vectors of dimensions, from dimension `at` on; with `TAIL` the last is not whole.
    ///
    /// # Safety
    /// As `values`.
    #[inline(always)]
    unsafe fn columns<S: Simd, const M: usize, const N: usize, const TAIL: bool>(
        &self,
        p: &[f32], // (M, PIECE)
        keys: &[Range<usize>; M],
        at: usize,
        out: &mut [f32], // (M, whole vectors of d)
    ) {
        let stride = self.d.next_multiple_of(LANES);
        assert!(p.len() == M * PIECE && out.len() == M * stride && at + N * LANES <= stride);
        // `joint` becomes the keys that all vectors see. Vectors without keys here are left out; nobody reads their
        // sums.
        let (mut least, mut joint) = (self.most, 0..self.most);
        for keys in keys.iter().filter(|keys| keys.end > 0) {
            least = least.min(keys.start);
            joint = joint.start.max(keys.start)..joint.end.min(keys.end);
        }
        joint.end = joint.end.max(joint.start);
        // SAFETY: by the caller's promise, the assertion, and because j is below PIECE and i below BLOCK_TOKENS.
        unsafe {
            let mut acc = [[S::splat(0.0); N]; M];
            if least < joint.start {
                for m in 0..M {
                    out[m * stride + at..][..N * LANES].fill(0.0);
                }
                self.apart::<S, M, N, TAIL>(p, keys, least..joint.start, at, out);
                for m in 0..M {
                    for c in 0..N {
                        acc[m][c] = S::load(out.as_ptr().add(m * stride + at + c * LANES));
                    }
                }
            }
            for b in joint.start / BLOCK_TOKENS..joint.end.div_ceil(BLOCK_TOKENS) {
                let first = b * BLOCK_TOKENS;
                for j in first.max(joint.start)..joint.end.min(first + BLOCK_TOKENS) {
                    let v = self.row::<S, N, TAIL>(b, j - first, at);
                    for m in 0..M {
                        let p = S::splat(*p.get_unchecked(m * PIECE + j));
                        for c in 0..N {
                            acc[m][c] = S::fma(p, v[c], acc[m][c]);
                        }
                    }
                    if M < TILE {
                        for c in (0..N).step_by(64 / (LANES * size_of::<T>())) {
                            let from = (j - first) * self.d + at + c * LANES;
                            S::prefetch(self.next[b].wrapping_add(from));
                        }
                    }
                }
            }
            for m in 0..M {
                for c in 0..N {
                    S::store(out.as_mut_ptr().add(m * stride + at + c * LANES), acc[m][c]);
                }
            }
            self.apart::<S, M, N, TAIL>(p, keys, joint.end..self.most, at, out);
        }
    }

    /// Adds the values of keys `those`, which not all vectors see, to the sums in memory. Conditions on sums in
    /// registers would add moves to the loop of `columns` as well.
    ///
    /// # Safety
    /// As `columns`, with the same lengths; `those` are in the piece.
    #[inline(always)]
    unsafe fn apart<S: Simd, const M: usize, const N: usize, const TAIL: bool>(
        &self,
        p: &[f32], // (M, PIECE)
        keys: &[Range<usize>; M],
        those: Range<usize>,
        at: usize,
        out: &mut [f32], // (M, whole vectors of d)
    ) {
        let stride = self.d.next_multiple_of(LANES);
        for j in those {
            // SAFETY: by the caller's promise.
            unsafe {
                let v = self.row::<S, N, TAIL>(j / BLOCK_TOKENS, j % BLOCK_TOKENS, at);
                for m in 0..M {
                    if !keys[m].contains(&j) {
                        continue;
                    }
                    let p = S::splat(p[m * PIECE + j]);
                    for c in 0..N {
                        let y = out.as_mut_ptr().add(m * stride + at + c * LANES);
                        S::store(y, S::fma(p, v[c], S::load(y)));
                    }
                }
            }
        }
    }
}
