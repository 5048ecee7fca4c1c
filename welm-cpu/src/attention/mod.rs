//! Attention of a step's rows over the KV caches of their sequences, by online softmax.
//!
//! Positions are cut into pieces of [`PIECE`]. For each query vector, `m`, `l` and `O` start from `-inf`, 0 and 0, and
//! take the pieces of its sequence in ascending order (arXiv 1805.02867, 2205.14135):
//!
//! ```text
//! s[j] = sum_d (q[d] * scale) k[j][d]               j of the piece, position - window < j <= position
//! M = max s[j],   p[j] = exp(s[j] - M),   L = sum_j p[j],   P[d] = sum_j p[j] v[j][d]
//! m' = max(m, M),   a = exp(m - m'),   b = exp(M - m')
//! l = l a + L b,   O = O a + P b                    out = O / l after the last piece
//! ```
//!
//! Scale and window are the layer's ([`Scores`]). With a soft cap, `s` becomes `cap(s)` ([`crate::soft_cap`]).
//!
//! Sums over d and j are chains of fused multiply-adds in ascending order. L first adds the blocks of keys lane by
//! lane, then its lanes. This fixes the result: a row has the same bits alone or in a tile, whichever thread computed
//! which piece, and in whatever chunk the row came. Each chain of additions is slow alone; several chains, of other
//! vectors, keys or dimensions, run at the same time.
//!
//! - **Prompts.** The query vectors of one sequence that share a key/value head form tiles of [`TILE`]: there is one
//!   for each row and each query head of the group. A tile loads and widens each key and each value once. The vectors
//!   of a tile see different ranges of keys. Keys that all of them see are added in registers, without conditions. For
//!   each of the other keys, every vector is checked.
//! - **Generated tokens.** A tile of few vectors is bound by memory. It prefetches the values while it reads the keys,
//!   and the next piece's keys while it reads the values.
//! - **Threads** take whole tiles. If there are too few tiles for all threads, they take pieces of tiles, whose results
//!   are folded together afterwards.
//!
//! Keys and values, a row's own included, are read only from the cache, in its element type. So a row sees the same
//! bits whether its neighbours were computed with it, before it, or by another request. Slots after a row's position,
//! or before its window, may hold anything: nothing computed from them reaches the row. Blocks that no row of a tile
//! sees are not read.

mod piece;

use std::ops::Range;

use half::{bf16, f16};

use self::piece::{BLOCKS, Piece, STRIP};
pub use self::piece::{PIECE, Sums, TILE};
use crate::batch::{BLOCK_TOKENS, BatchRows};
use crate::cache::{CacheElement, Heads};
use crate::disjoint::Disjoint;
use crate::exp::exp_to_most;
use crate::isa::{Isa, Kernel, LANES, Simd};

/// Some consecutive query vectors of one sequence. Vector `row * group + h` is head `h` of the group in row `row`.
#[derive(Debug, Clone, Copy)]
pub struct Tile {
    pub first: usize,
    pub len: usize,
}

/// How scores are made.
#[derive(Debug, Clone, Copy)]
pub struct Scores {
    /// Keys that a token sees, its own included; all if there is none.
    pub window: Option<usize>,
    pub scale: f32,
    /// `c`, if scores become `c tanh(score / c)`.
    pub soft_cap: Option<f32>,
}

impl Scores {
    /// The first key that a token at `pos` sees.
    #[inline]
    pub fn first_key(self, pos: usize) -> usize {
        self.window.map_or(0, |window| (pos + 1).saturating_sub(window))
    }
}

/// The inputs that all tasks of a step share.
pub struct Step<'a, T> {
    pub qkv: &'a [f32], // (n, Heads::cols)
    pub heads: Heads,
    pub k: &'a [T], // (n_blocks, n_kv_heads, head_dim, BLOCK_TOKENS)
    pub v: &'a [T], // (n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim)
    pub batch: BatchRows<'a>,
    pub scores: Scores,
}

impl<T> Step<'_, T> {
    /// The task of one tile and one key/value head.
    pub fn task<'a>(&'a self, tile: Tile, kv_head: usize, scratch: &'a mut [f32]) -> Task<'a, T> {
        let (mut first_key, mut kv_len) = ([0; TILE], [0; TILE]);
        for m in 0..tile.len {
            let pos = self.batch.positions[(tile.first + m) / self.heads.group()] as usize;
            (first_key[m], kv_len[m]) = (self.scores.first_key(pos), pos + 1);
        }
        Task { step: self, tile, kv_head, first_key, kv_len, scratch }
    }
}

/// The work on one tile and one key/value head.
pub struct Task<'a, T> {
    step: &'a Step<'a, T>,
    tile: Tile,
    kv_head: usize,
    first_key: [usize; TILE], // the first key that each vector sees
    kv_len: [usize; TILE],    // the number of keys up to the vector's own; 0 after the tile's end
    scratch: &'a mut [f32],   // q as `pack` writes it, then scores (TILE, PIECE)
}

impl<T: CacheElement> Task<'_, T> {
    /// f32 that it needs.
    pub fn scratch_len(heads: Heads) -> usize {
        Self::q_len(heads) + TILE * PIECE
    }

    /// The pieces in which any vector of the tile has keys.
    pub fn pieces(&self) -> Range<usize> {
        let first = self.first_key[..self.tile.len].iter().min().map_or(0, |first| first / PIECE);
        first..self.kv_len.iter().max().map_or(0, |n| n.div_ceil(PIECE))
    }

    /// The keys of a piece that vector `m` sees, counted from the start of the piece.
    #[inline(always)]
    fn keys(&self, m: usize, piece: usize) -> Range<usize> {
        let within = |key: usize| key.saturating_sub(piece * PIECE).min(PIECE);
        within(self.first_key[m])..within(self.kv_len[m])
    }

    /// Length of the tile's packed query vectors, in f32.
    fn q_len(heads: Heads) -> usize {
        heads.head_dim.next_multiple_of(STRIP) * TILE
    }

    /// Copies the tile's query vectors to scratch, multiplied by the scale: `(strips of head_dim, TILE, STRIP)`.
    #[inline(always)]
    fn pack(&mut self) {
        let (d, group) = (self.step.heads.head_dim, self.step.heads.group());
        let scale = self.step.scores.scale;
        for m in 0..self.tile.len {
            let (r, h) = ((self.tile.first + m) / group, (self.tile.first + m) % group);
            let q = &self.step.qkv[r * self.step.heads.cols() + (self.kv_head * group + h) * d..][..d];
            for (i, q) in q.chunks(STRIP).enumerate() {
                let strip = &mut self.scratch[(i * TILE + m) * STRIP..][..STRIP];
                strip.iter_mut().zip(q).for_each(|(to, &x)| *to = x * scale);
            }
        }
    }

    /// Computes M, L and P of one piece, for the vectors that have keys in it. The maximum of the others is `-inf`.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; `pack` has run; `piece` is in `pieces()`.
    #[inline(always)]
    unsafe fn piece<S: Simd>(&mut self, piece: usize, to: &mut Sums) {
        let (d, len) = (self.step.heads.head_dim, self.tile.len);
        let (mut from, mut n) = ([0; TILE], [0; TILE]);
        let (mut least, mut most) = (PIECE, 0);
        for m in 0..len {
            let keys = self.keys(m, piece);
            if !keys.is_empty() {
                (from[m], n[m]) = (keys.start, keys.end);
                (least, most) = (least.min(keys.start), most.max(keys.end));
            }
        }
        let (q, p) = self.scratch.split_at_mut(Self::q_len(self.step.heads));
        let p = &mut p[..TILE * PIECE];
        // The block tables of all rows of a sequence start alike; that of the last row is the longest.
        let table = self.step.batch.table((self.tile.first + len - 1) / self.step.heads.group());
        let (k, v) = (self.step.k, self.step.v);
        let block = |b: usize| {
            let start = self.step.heads.start(table[b] as usize, self.kv_head);
            let both = start..start + BLOCK_TOKENS * d;
            (k[both.clone()].as_ptr(), v[both].as_ptr())
        };
        // The first and the last block that are seen stand in for those before and after them. So every pointer is
        // valid, and blocks can be read two or four at a time.
        let blocks = least / BLOCK_TOKENS..most.div_ceil(BLOCK_TOKENS);
        let here: [_; BLOCKS] =
            std::array::from_fn(|b| block(piece * BLOCKS + b.clamp(blocks.start, blocks.end - 1)));
        let next: [_; BLOCKS] =
            std::array::from_fn(|b| block(((piece + 1) * BLOCKS + b).min(table.len() - 1)).0);
        let (keys, values) = (here.map(|b| b.0), here.map(|b| b.1));
        let piece = Piece { d, keys, values, next, from, n, most, blocks, cap: self.step.scores.soft_cap };
        // SAFETY: instructions by the caller's promise; lengths as the fields of `Piece` say.
        unsafe {
            if S::VECTORS >= 32 {
                match len {
                    1 => piece.scores::<S, 1, 4>(q, p),
                    2..=4 => piece.scores::<S, 4, 4>(q, p),
                    5..=8 => piece.scores::<S, 8, 2>(q, p),
                    _ => piece.scores::<S, 12, 2>(q, p),
                }
            } else if S::VECTORS < 8 {
                // Few registers: several vectors together gain nothing.
                for m in 0..len {
                    piece.scores::<S, 1, 1>(&q[m * STRIP..], &mut p[m * PIECE..]);
                }
            } else {
                for m in (0..len).step_by(6) {
                    let (q, p) = (&q[m * STRIP..], &mut p[m * PIECE..]);
                    match len - m {
                        1 => piece.scores::<S, 1, 4>(q, p),
                        2..=4 => piece.scores::<S, 4, 1>(q, p),
                        _ => piece.scores::<S, 6, 1>(q, p),
                    }
                }
            }
            piece.softmax::<S>(p, to);
            if S::VECTORS >= 32 {
                match len {
                    1 => piece.values::<S, 1, 8, 4>(p, 0, to.out),
                    2..=4 => piece.values::<S, 4, 4, 2>(p, 0, to.out),
                    5..=8 => piece.values::<S, 8, 2, 2>(p, 0, to.out),
                    _ => piece.values::<S, 12, 2, 2>(p, 0, to.out),
                }
            } else if S::VECTORS < 8 {
                for m in 0..len {
                    piece.values::<S, 1, 1, 1>(p, m, to.out);
                }
            } else {
                for m in (0..len).step_by(6) {
                    match len - m {
                        1 => piece.values::<S, 1, 4, 2>(p, m, to.out),
                        2..=4 => piece.values::<S, 4, 1, 1>(p, m, to.out),
                        _ => piece.values::<S, 6, 1, 1>(p, m, to.out),
                    }
                }
            }
        }
    }

    /// Adds the sums of one more piece to those of the pieces before it: m', l and O of the formula.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn fold<S: Simd>(&self, piece: usize, all: &mut Sums, one: &Sums) {
        let stride = self.step.heads.head_dim.next_multiple_of(LANES);
        let [mut max, mut sum, mut a, mut b] = [[0.0; LANES]; 4];
        // SAFETY: instructions by the caller's promise; all slices are whole vectors, and long enough.
        unsafe {
            let (m, more) = (S::load(all.max.as_ptr()), S::load(one.max.as_ptr()));
            let most = S::max(m, more);
            let (va, vb) = (exp_to_most::<S>(S::sub(m, most)), exp_to_most::<S>(S::sub(more, most)));
            let scaled = S::mul(S::load(all.sum.as_ptr()), va);
            S::store(sum.as_mut_ptr(), S::fma(S::load(one.sum.as_ptr()), vb, scaled));
            S::store(max.as_mut_ptr(), most);
            S::store(a.as_mut_ptr(), va);
            S::store(b.as_mut_ptr(), vb);
        }
        for m in 0..self.tile.len {
            // The vector has no keys here. If it had none before either, both maxima are -inf, and their difference is
            // NaN.
            if self.keys(m, piece).is_empty() {
                continue;
            }
            (all.max[m], all.sum[m]) = (max[m], sum[m]);
            let (out, one) = (&mut all.out[m * stride..][..stride], &one.out[m * stride..][..stride]);
            for i in (0..stride).step_by(LANES) {
                // SAFETY: as above.
                unsafe {
                    let scaled = S::mul(S::load(out.as_ptr().add(i)), S::splat(a[m]));
                    let y = S::fma(S::load(one.as_ptr().add(i)), S::splat(b[m]), scaled);
                    S::store(out.as_mut_ptr().add(i), y);
                }
            }
        }
    }

    /// Writes `O / l` to the rows' places in `out`.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; no other task writes the outputs of this tile and head.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, all: &Sums, out: &Disjoint<f32>) {
        let Heads { n_heads, head_dim: d, .. } = self.step.heads;
        let (group, stride) = (self.step.heads.group(), d.next_multiple_of(LANES));
        for m in 0..self.tile.len {
            let (r, h) = ((self.tile.first + m) / group, (self.tile.first + m) % group);
            let sums = &all.out[m * stride..][..stride];
            // SAFETY: by the caller's promise; 16 values each.
            unsafe {
                let row = out.slice((r * n_heads + self.kv_head * group + h) * d, d);
                for i in (0..d).step_by(LANES) {
                    let y = S::div(S::load(sums.as_ptr().add(i)), S::splat(all.sum[m]));
                    if i + LANES <= d {
                        S::store(row.as_mut_ptr().add(i), y);
                    } else {
                        let mut lanes = [0.0; LANES];
                        S::store(lanes.as_mut_ptr(), y);
                        row[i..].copy_from_slice(&lanes[..d - i]);
                    }
                }
            }
        }
    }
}

/// What to do with consecutive pieces of a tile: compute them, fold them, or both. One loop does all three, so that
/// each operation is compiled once.
pub struct Work<'a> {
    pub pieces: Range<usize>,
    /// Whether to compute the pieces. Each piece then overwrites the one before it in `sums`.
    pub compute: bool,
    /// Room for the `Sums` of one piece; or, if the pieces were computed before, the `Sums` of all of them.
    pub sums: &'a mut [f32],
    /// The `Sums` into which the pieces are folded, and whether to clear these first. `None`: do not fold.
    pub all: Option<(&'a mut [f32], bool)>,
    /// Whether these pieces are the last: then the outputs are written.
    pub last: bool,
}

/// Does some work on one tile; implements [`Kernel`].
pub struct Run<'a, T> {
    pub task: Task<'a, T>,
    pub work: Work<'a>,
    pub out: &'a Disjoint<'a, f32>, // (n, n_heads * head_dim)
}

impl<T: CacheElement> Kernel for Run<'_, T> {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let len = Sums::len(self.task.step.heads);
        let Run { mut task, work, out } = self;
        let Work { pieces, compute, sums, all, last } = work;
        let own = task.pieces();
        let mut all = all.map(|(all, clear)| {
            let mut all = Sums::of(all);
            if clear {
                all.clear();
            }
            all
        });
        if compute {
            task.pack();
        }
        for (i, piece) in pieces.enumerate().filter(|(_, piece)| own.contains(piece)) {
            let at = if compute { 0 } else { i * len };
            let mut one = Sums::of(&mut sums[at..at + len]);
            // SAFETY: the instructions are there, and `pack` has run if `piece` is called.
            unsafe {
                if compute {
                    task.piece::<S>(piece, &mut one);
                }
                if let Some(all) = &mut all {
                    task.fold::<S>(piece, all, &one);
                }
            }
        }
        if let Some(all) = all.filter(|_| last) {
            // SAFETY: the instructions are there, and only this task has the tile.
            unsafe { task.finish::<S>(&all, out) };
        }
    }
}

/// An element of the cache over which attention is computed.
pub trait Attend: CacheElement {
    /// Computes it.
    ///
    /// # Safety
    /// The tile and the head are this task's alone.
    unsafe fn attend(run: Run<Self>, isa: Isa);
}

impl Attend for f32 {
    unsafe fn attend(run: Run<f32>, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(run) }
    }
}

impl Attend for bf16 {
    unsafe fn attend(run: Run<bf16>, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(run) }
    }
}

impl Attend for f16 {
    unsafe fn attend(run: Run<f16>, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(run) }
    }
}
