//! Attention, shared by threads; see [`welm_cpu::attention`].
//!
//! Threads take whole tiles; where those are too few to go round, pieces of tiles, folded afterwards.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::Pod;
use welm_cpu::attention::{Attend, PIECE, Run, Scores, Step, Sums, TILE, Task, Tile, Work};
use welm_cpu::cache::Heads;
use welm_cpu::disjoint::Disjoint;
use welm_cpu::isa::Isa;

use super::pages::Pages;
use super::pool::Pool;
use crate::batch::Batch;
use crate::config::LayerConfig;
use crate::error::Result;
use crate::memory::Memory;

/// How a layer makes scores, for the kernel.
fn scores(layer: &LayerConfig) -> Scores {
    Scores { window: layer.window, scale: layer.scale, soft_cap: layer.soft_cap }
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
    pub(crate) fn run<T: Attend + Pod>(
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
        let scores = scores(layer);
        let (heads, threads, tiles) = (self.heads, pool.threads(), &self.tiles);
        let (tasks, sums_len) = (tiles.len() * heads.n_kv_heads, Sums::len(heads));
        let positions = || batch.positions.iter().map(|&pos| pos as usize);
        let begin = positions().map(|pos| scores.first_key(pos) / PIECE).min().unwrap_or(0);
        let longest = positions().map(|pos| pos / PIECE + 1).max().unwrap_or(0);
        let keys: usize = positions().map(|pos| pos + 1 - scores.first_key(pos)).sum();
        let macs = 2 * keys * heads.n_heads * heads.head_dim;
        let strand_len = Self::strand_len(heads);
        let (out, strands) = (Disjoint::new(out), Disjoint::new(&mut self.strands));
        let (k, v) = pages.both();
        let step = Step { qkv, heads, k, v, batch: batch.rows(), scores };
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
                unsafe { T::attend(Run { task, work, out: &out }, isa) }
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
                        T::attend(Run { task, work, out: &out }, isa);
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
                    T::attend(Run { task, work, out: &out }, isa);
                }
            });
        }
    }
}
