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
//! Scale and window are the layer's ([`LayerConfig`]). With a soft cap, `s` becomes `cap(s)` ([`super::soft_cap`]).
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
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use self::piece::{BLOCKS, PIECE, Piece, STRIP, Sums, TILE};
use super::exp::exp_to_most;
use super::pages::{CacheElement, Heads, Pages};
use super::pool::{Disjoint, Pool};
use crate::batch::{BLOCK_TOKENS, Batch};
use crate::config::LayerConfig;
use crate::error::Result;
use crate::isa::{Isa, Kernel, LANES, Simd};
use crate::memory::Memory;

/// Some consecutive query vectors of one sequence. Vector `row * group + h` is head `h` of the group in row `row`.
#[derive(Debug, Clone, Copy)]
struct Tile {
    first: usize,
    len: usize,
}

/// The inputs that all tasks of a step share.
struct Step<'a, T> {
    qkv: &'a [f32], // (n, Heads::cols)
    heads: Heads,
    pages: &'a Pages<T>,
    batch: &'a Batch,
    layer: &'a LayerConfig,
}

impl<T> Step<'_, T> {
    fn task<'a>(&'a self, tile: Tile, kv_head: usize, scratch: &'a mut [f32]) -> Task<'a, T> {
        let (mut first_key, mut kv_len) = ([0; TILE], [0; TILE]);
        for m in 0..tile.len {
            let pos = self.batch.positions[(tile.first + m) / self.heads.group()] as usize;
            (first_key[m], kv_len[m]) = (self.layer.first_key(pos), pos + 1);
        }
        Task { step: self, tile, kv_head, first_key, kv_len, scratch }
    }
}

/// The work on one tile and one key/value head.
struct Task<'a, T> {
    step: &'a Step<'a, T>,
    tile: Tile,
    kv_head: usize,
    first_key: [usize; TILE], // the first key that each vector sees
    kv_len: [usize; TILE],    // the number of keys up to the vector's own; 0 after the tile's end
    scratch: &'a mut [f32],   // q as `pack` writes it, then scores (TILE, PIECE)
}

impl<T: CacheElement> Task<'_, T> {
    fn scratch_len(heads: Heads) -> usize {
        Self::q_len(heads) + TILE * PIECE
    }

    /// The pieces in which any vector of the tile has keys.
    fn pieces(&self) -> Range<usize> {
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
        let scale = self.step.layer.scale;
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
        let (k, v) = self.step.pages.both();
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
        let piece = Piece { d, keys, values, next, from, n, most, blocks, cap: self.step.layer.soft_cap };
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
struct Work<'a> {
    pieces: Range<usize>,
    /// Whether to compute the pieces. Each piece then overwrites the one before it in `sums`.
    compute: bool,
    /// Room for the `Sums` of one piece; or, if the pieces were computed before, the `Sums` of all of them.
    sums: &'a mut [f32],
    /// The `Sums` into which the pieces are folded, and whether to clear these first. `None`: do not fold.
    all: Option<(&'a mut [f32], bool)>,
    /// Whether these pieces are the last: then the outputs are written.
    last: bool,
}

/// Does some work on one tile; implements [`Kernel`].
struct Run<'a, T> {
    task: Task<'a, T>,
    work: Work<'a>,
    out: &'a Disjoint<'a, f32>, // (n, n_heads * head_dim)
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

/// The tiles of a step, and scratch for each thread. Allocated once.
pub(crate) struct Attention {
    heads: Heads,
    tiles: Vec<Tile>,
    strands: Memory<f32>, // (threads, strand_len): for each thread a task's scratch and two `Sums`
    sums: Memory<f32>,    // (SPLIT_BELOW * threads) `Sums`, of tiles whose pieces are computed apart
    pieces: Memory<f32>,  // (PIECES * threads) `Sums`, of these pieces
}

/// With this many tasks (tiles times key/value heads) per thread or more, whole tiles keep all threads busy.
const SPLIT_BELOW: usize = 4;
/// How many pieces per thread are computed before they are folded.
const PIECES: usize = 16;

impl Attention {
    /// Lengths of `tiles`, `strands`, `sums` and `pieces`, in elements.
    fn lens(heads: Heads, threads: usize, max_rows: usize) -> [usize; 4] {
        let split = if threads > 1 { threads * Sums::len(heads) } else { 0 };
        [
            max_rows * heads.group().div_ceil(TILE),
            threads * Self::strand_len(heads),
            SPLIT_BELOW * split,
            PIECES * split,
        ]
    }

    fn strand_len(heads: Heads) -> usize {
        Task::<f32>::scratch_len(heads) + 2 * Sums::len(heads)
    }

    /// Bytes that `new` allocates.
    pub(crate) fn bytes(heads: Heads, threads: usize, max_rows: usize) -> u64 {
        let [tiles, strands, sums, pieces] = Self::lens(heads, threads, max_rows);
        (tiles * size_of::<Tile>() + 4 * (strands + sums + pieces)) as u64
    }

    /// Allocates for steps of at most `max_rows` rows.
    pub(crate) fn new(heads: Heads, threads: usize, max_rows: usize) -> Result<Self> {
        let [tiles, strands, sums, pieces] = Self::lens(heads, threads, max_rows);
        Ok(Attention {
            heads,
            tiles: Vec::with_capacity(tiles),
            strands: Memory::zeroed(strands, "attention tiles")?,
            sums: Memory::zeroed(sums, "attention sums")?,
            pieces: Memory::zeroed(pieces, "attention pieces")?,
        })
    }

    /// Cuts the rows of each sequence into tiles.
    fn cut(&mut self, batch: &Batch) {
        self.tiles.clear();
        let group = self.heads.group();
        let mut row = 0;
        for run in batch.table_start.chunk_by(|a, b| a == b) {
            let (first, end) = (row * group, (row + run.len()) * group);
            row += run.len();
            self.tiles
                .extend((first..end).step_by(TILE).map(|first| Tile { first, len: TILE.min(end - first) }));
        }
    }

    /// Writes the attention of all rows to `out`, `(n, n_heads * head_dim)`. `qkv` has q, k and v of each row,
    /// `(n, Heads::cols)`; the keys and values are read from `pages`.
    pub(crate) fn run<T: CacheElement>(
        &mut self,
        pool: &mut Pool,
        isa: Isa,
        out: &mut [f32],
        qkv: &[f32],
        pages: &Pages<T>,
        batch: &Batch,
        layer: &LayerConfig,
    ) {
        self.cut(batch);
        let (heads, threads, tiles) = (self.heads, pool.threads(), &self.tiles);
        let (tasks, sums_len) = (tiles.len() * heads.n_kv_heads, Sums::len(heads));
        let positions = || batch.positions.iter().map(|&pos| pos as usize);
        let begin = positions().map(|pos| layer.first_key(pos) / PIECE).min().unwrap_or(0);
        let longest = positions().map(|pos| pos / PIECE + 1).max().unwrap_or(0);
        let keys: usize = positions().map(|pos| pos + 1 - layer.first_key(pos)).sum();
        let macs = 2 * keys * heads.n_heads * heads.head_dim;
        let strand_len = Self::strand_len(heads);
        let (out, strands) = (Disjoint::new(out), Disjoint::new(&mut self.strands));
        let step = Step { qkv, heads, pages, batch, layer };
        // All tiles of one head, then those of the next: a head's keys and values stay in the CPU's caches.
        let place = |at: usize| (tiles[at % tiles.len()], at / tiles.len());
        // Runs tasks 0 to n - 1 on as many strands as there are threads. Each strand has its own scratch, and takes the
        // next task whenever it is free.
        let share = |pool: &mut Pool, n: usize, run: &(dyn Fn(usize, &mut [f32]) + Sync)| {
            let next = AtomicUsize::new(0);
            pool.run_if_worth(threads.min(n), macs, |strand| {
                // SAFETY: each strand has its own scratch.
                let scratch = unsafe { strands.slice(strand * strand_len, strand_len) };
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= n {
                        return;
                    }
                    run(at, scratch);
                }
            });
        };
        if longest - begin <= 1 || threads == 1 || tasks >= SPLIT_BELOW * threads || tasks % threads == 0 {
            share(pool, tasks, &|at, scratch| {
                let (scratch, sums) = scratch.split_at_mut(strand_len - 2 * sums_len);
                let (tile, kv_head) = place(at);
                let task = step.task(tile, kv_head, scratch);
                let (all, sums) = sums.split_at_mut(sums_len);
                let (pieces, all) = (task.pieces(), Some((all, true)));
                let work = Work { pieces, compute: true, sums, all, last: true };
                // SAFETY: each `at` is handed out once, and has query vectors of its own.
                unsafe { isa.dispatch(Run { task, work, out: &out }) }
            });
            return;
        }
        let at_once = PIECES * threads / tasks;
        let (sums, pieces) = (Disjoint::new(&mut self.sums), Disjoint::new(&mut self.pieces));
        for first in (begin..longest).step_by(at_once) {
            share(pool, tasks * at_once, &|i, scratch| {
                let (at, piece) = (i % tasks, first + i / tasks);
                let (tile, kv_head) = place(at);
                let task = step.task(tile, kv_head, scratch);
                if task.pieces().contains(&piece) {
                    // SAFETY: each `i` is handed out once, and has sums of its own.
                    unsafe {
                        let sums = pieces.slice((at * at_once + i / tasks) * sums_len, sums_len);
                        let pieces = piece..piece + 1;
                        let work = Work { pieces, compute: true, sums, all: None, last: false };
                        isa.dispatch(Run { task, work, out: &out });
                    }
                }
            });
            share(pool, tasks, &|at, scratch| {
                let (tile, kv_head) = place(at);
                let task = step.task(tile, kv_head, scratch);
                // SAFETY: each `at` is handed out once, and has sums and query vectors of its own.
                unsafe {
                    let work = Work {
                        pieces: first..first + at_once,
                        compute: false,
                        sums: pieces.slice(at * at_once * sums_len, at_once * sums_len),
                        all: Some((sums.slice(at * sums_len, sums_len), first == begin)),
                        last: first + at_once >= longest,
                    };
                    isa.dispatch(Run { task, work, out: &out });
                }
            });
        }
    }
}
