//! Which kernel computes a product, and with which grid.

use super::{Arithmetic, GROUP, STRIP, TILE_ROWS};
use crate::driver::Grid;

const THREADS: u32 = 256;
/// Rows of `x` up to which weights go to registers directly, not through shared memory.
const FEW: usize = 32;
/// Rows of `x` up to which a product may be split along K: those of one tile.
const SPLIT: usize = 64;
/// Tiles of a weight up to which its product may be split along K, on any device. This bounds the scratch memory.
const SPLIT_TILES: usize = 64;
/// Parts of K whose sums are computed separately; see `cuda/gemm.cu`.
pub(super) const SEGMENTS: usize = 8;

/// f32s of scratch memory that [`gemm`](super::gemm) needs for up to `max_rows` rows of `x` and a weight of `rows` rows, on any
/// device; 0 if such products are never split along K.
pub fn scratch_len(max_rows: usize, rows: usize) -> usize {
    let tiles = rows.div_ceil(TILE_ROWS);
    if max_rows <= FEW || tiles > SPLIT_TILES {
        0
    } else {
        SEGMENTS * max_rows.min(SPLIT) * tiles * TILE_ROWS
    }
}

/// Whether a product of `n` rows of bf16 and a weight of `rows` rows is split along K, where tiles run on `mma.sync`.
/// No bit of a result depends on it.
///
/// 33 to 64 rows are one tile of tokens. A weight of 5,120 rows then has 40 tiles, and so 40 blocks for 132
/// multiprocessors. Most would be idle, and the others would have too few loads in flight. With a block for each of the
/// 8 segments of K all are busy, but the sums of the segments have to be written and read. That is worth it where at
/// least half of the multiprocessors would have nothing to do.
pub fn split_along_k(n: usize, rows: usize, multiprocessors: usize) -> bool {
    FEW < n && n <= SPLIT && rows.div_ceil(TILE_ROWS) <= (multiprocessors / 2).min(SPLIT_TILES)
}

/// The kernel of `gemm_sm90.cu` for `n` rows of x and a weight of `rows` packed rows, if there is one; its grid; and
/// the rows of a box of x.
pub(super) fn kernel_sm90(
    mode: Mode,
    arithmetic: Arithmetic,
    n: usize,
    rows: usize,
    multiprocessors: usize,
) -> Option<(&'static str, Grid, u32)> {
    // A stage has x, weights, scales of weights and scales of x. It is rounded up to 1,024 bytes.
    let kernel = |name, tokens: usize, stages: usize, stage: usize| {
        let barriers = 2 * stages * size_of::<u64>();
        let shared_bytes = (stages * stage.next_multiple_of(1024) + barriers) as u32;
        let blocks = [n.div_ceil(tokens) as u32, (rows / TILE_ROWS) as u32, 1];
        Some((name, Grid { blocks, threads: 384, shared_bytes }, tokens as u32))
    };
    let groups = TILE_ROWS * GROUP;
    let (w8, w16) = (2 * (groups + 2 * TILE_ROWS), 2 * 2 * groups);
    match (mode, arithmetic, narrow_tiles(n, rows, multiprocessors)) {
        (Mode::W8A16, Arithmetic::Fast, true) => kernel("gemm_w8a16_few_sm90", 128, 8, 128 * 128 + w8),
        (Mode::W8A16, Arithmetic::Fast, false) => kernel("gemm_w8a16_sm90", 256, 5, 256 * 128 + w8),
        (Mode::W16A16, Arithmetic::Fast, true) => kernel("gemm_w16a16_few_sm90", 128, 6, 128 * 128 + w16),
        (Mode::W16A16, Arithmetic::Fast, false) => kernel("gemm_w16a16_sm90", 256, 4, 256 * 128 + w16),
        (Mode::W8A8, ..) => kernel("gemm_w8a8_sm90", 128, 6, 128 * 144 + 4 * (groups + 2 * TILE_ROWS)),
        (Mode::R8A8, _, true) => kernel("gemm_r8a8_few_sm90", 128, 6, 128 * 128 + 4 * groups),
        (Mode::R8A8, _, false) => kernel("gemm_r8a8_sm90", 256, 4, 256 * 128 + 4 * groups),
        (Mode::W8A16 | Mode::W16A16, Arithmetic::Exact, _) | (Mode::R8A16, ..) => None,
    }
}

/// Whether products of prompts on Hopper take narrow tiles (128 tokens) instead of wide ones (256), for `n` tokens and a
/// weight of `rows` rows. No bit of a result depends on it.
///
/// Wide tiles read weights half as often. A multiprocessor runs one tile at a time, and a narrow one is expected to take
/// half as long. Narrow tiles are taken in two cases: if wide ones would be half empty; or if there are fewer than 1.5 wide
/// tiles for each multiprocessor and narrow tiles finish earlier.
pub fn narrow_tiles(n: usize, rows: usize, multiprocessors: usize) -> bool {
    let tiles = |tokens: usize| n.div_ceil(tokens) * rows.div_ceil(TILE_ROWS);
    let rounds = |tokens| tiles(tokens).div_ceil(multiprocessors);
    n <= 128 || 2 * tiles(256) < 3 * multiprocessors && rounds(128) < 2 * rounds(256)
}

/// The types of weights and activations: `W8A16` has int8 weights and bf16 activations. `R` is for rotated int8
/// weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    W8A16,
    W16A16,
    W8A8,
    R8A16,
    R8A8,
}

/// The kernels of `gemm.cu` for a product that is split along K: the tiles of all segments, then their sum.
pub(super) fn split_kernels(
    mode: Mode,
    n: usize,
    rows: usize,
    multiprocessors: usize,
) -> Option<[(&'static str, Grid); 2]> {
    if !split_along_k(n, rows, multiprocessors) {
        return None;
    }
    let kernels = |[split, sum]: [&'static str; 2], stages| {
        let tile = tile_grid(mode, n, rows, 64, stages);
        let blocks = [tile.blocks[0], tile.blocks[1], SEGMENTS as u32];
        let tokens = THREADS as usize * 4 / TILE_ROWS;
        let shared_bytes = (tokens * (TILE_ROWS + 4) * size_of::<f32>()) as u32;
        let sums = Grid { blocks: [n.div_ceil(tokens) as u32, tile.blocks[1], 1], shared_bytes, ..tile };
        Some([(split, Grid { blocks, ..tile }), (sum, sums)])
    };
    match mode {
        Mode::W8A16 => kernels(["gemm_w8a16_split", "gemm_w8a16_sum"], 4),
        Mode::W16A16 => kernels(["gemm_w16a16_split", "gemm_w16a16_sum"], 3),
        Mode::R8A16 => kernels(["gemm_r8a16_split", "gemm_r8a16_sum"], 4),
        Mode::W8A8 | Mode::R8A8 => None,
    }
}

/// The grid for tiles of `tokens` rows of x by 128 of the weight, with `stages` buffers in shared memory.
fn tile_grid(mode: Mode, n: usize, rows: usize, tokens: usize, stages: usize) -> Grid {
    // A stage has the weights of 128 rows, with their scales if there is one for every 32 columns. Of a row of x it has
    // 128 bytes and, for W8A8, 4 scales.
    let stage = match mode {
        Mode::W8A16 => 2 * (TILE_ROWS * GROUP + 2 * TILE_ROWS) + tokens * 128,
        Mode::W16A16 => 2 * (2 * TILE_ROWS * GROUP) + tokens * 128,
        Mode::W8A8 => 4 * (TILE_ROWS * GROUP + 2 * TILE_ROWS) + tokens * 144,
        Mode::R8A16 => 2 * (TILE_ROWS * GROUP) + tokens * 128,
        Mode::R8A8 => 4 * (TILE_ROWS * GROUP) + tokens * 128,
    };
    let sums = tokens * (TILE_ROWS + 4) * size_of::<f32>();
    let blocks = [n.div_ceil(tokens) as u32, (rows / TILE_ROWS) as u32, 1];
    Grid { blocks, threads: THREADS, shared_bytes: (stages * stage).max(sums) as u32 }
}

/// The kernel of `gemm.cu` for `n` rows of x and a weight of `rows` packed rows.
pub(super) fn kernel(mode: Mode, n: usize, rows: usize) -> (&'static str, Grid) {
    // Shared memory is for the sums of all segments, (8, tokens, rows + 4) f32.
    let few = |name, tokens: usize, strips: usize| {
        let blocks = [n.div_ceil(tokens) as u32, (rows / STRIP / strips) as u32, 1];
        let shared_bytes = (8 * tokens * (strips * STRIP + 4) * size_of::<f32>()) as u32;
        (name, Grid { blocks, threads: THREADS, shared_bytes })
    };
    if n <= FEW {
        match (mode, n <= 8) {
            (Mode::W8A16, true) => return few("gemm_w8a16_few8", 8, 1),
            (Mode::W8A16, false) => return few("gemm_w8a16_few16", 16, 2),
            (Mode::W16A16, true) => return few("gemm_w16a16_few8", 8, 1),
            (Mode::W16A16, false) => return few("gemm_w16a16_few16", 16, 1),
            (Mode::R8A16, true) => return few("gemm_r8a16_few8", 8, 1),
            (Mode::R8A16, false) => return few("gemm_r8a16_few16", 16, 2),
            (Mode::W8A8 | Mode::R8A8, _) => {}
        }
    }
    let tile = |name, tokens, stages| (name, tile_grid(mode, n, rows, tokens, stages));
    match (mode, n <= 128) {
        (Mode::W8A16, true) => tile("gemm_w8a16_tile64", 64, 4),
        (Mode::W8A16, false) => tile("gemm_w8a16_tile128", 128, 3),
        (Mode::W16A16, true) => tile("gemm_w16a16_tile64", 64, 3),
        (Mode::W16A16, false) => tile("gemm_w16a16_tile128", 128, 3),
        (Mode::W8A8, true) => tile("gemm_w8a8_tile64", 64, 3),
        (Mode::W8A8, false) => tile("gemm_w8a8_tile128", 128, 2),
        (Mode::R8A16, true) => tile("gemm_r8a16_tile64", 64, 4),
        (Mode::R8A16, false) => tile("gemm_r8a16_tile128", 128, 3),
        (Mode::R8A8, true) => tile("gemm_r8a8_tile64", 64, 3),
        (Mode::R8A8, false) => tile("gemm_r8a8_tile128", 128, 2),
    }
}

#[cfg(test)]
mod tests {
    use super::{narrow_tiles, scratch_len, split_along_k};

    #[test]
    fn tiles_by_waves() {
        // On 132 multiprocessors: tokens, rows of the weight, and whether tiles of 128 tokens finish earlier.
        let cases = [
            (128, 128 * 1000, true), // half of a wide tile would be padding
            (256, 128 * 40, true),   // 40 wide tiles, or 80 narrow ones
            (256, 128 * 66, true),   // 66, or 132
            (256, 128 * 67, false),  // 67 in one round, or 134 in two rounds of half the length
            (256, 128 * 132, false), // one full round, or two
            (256, 128 * 133, true),  // two rounds, or three
            (256, 128 * 197, true),
            (256, 128 * 198, false), // 1.5 waves
            (2048, 128 * 40, false), // 320 tiles
            (384, 128 * 40, true),   // 80, or 120, which fit at once
        ];
        for (n, rows, narrow) in cases {
            assert_eq!(narrow_tiles(n, rows, 132), narrow, "{n} tokens, {rows} rows");
        }
    }

    #[test]
    fn split_where_tiles_are_few() {
        // Rows of x and of the weight, and whether 132 multiprocessors split their product.
        let cases = [
            (32, 5120, false), // no tiles
            (33, 5120, true),
            (64, 128 * 64, true),
            (64, 128 * 64 + 1, false), // more tiles than SPLIT_TILES
            (65, 5120, false),         // two tiles of tokens
        ];
        for (n, rows, split) in cases {
            assert_eq!(split_along_k(n, rows, 132), split, "{n} of {rows}");
        }
        // 40 tiles leave half of 80 multiprocessors idle, and less than half of 79.
        assert!(split_along_k(64, 5120, 80) && !split_along_k(64, 5120, 79));
    }

    #[test]
    fn scratch_is_enough_for_every_split() {
        for (n, rows) in [(32, 5120), (33, 1), (40, 129), (64, 8192), (64, 8193), (2048, 5120)] {
            let most = (1..=n).filter(|&n| split_along_k(n, rows, 1 << 20)).max().unwrap_or(0);
            assert_eq!(scratch_len(n, rows), 8 * most * rows.next_multiple_of(128), "{n} of {rows}");
        }
    }
}
