//! Causal attention over the paged cache of keys and values (`cuda/attention.cu`, `cuda/attention_sm90.cu`).
//!
//! A row is one token of one sequence. [`attention_prefill`] takes several rows of a sequence at a time,
//! [`attention_decode`] one. In both, the result of a row depends only on its position, its q, and the keys and values
//! that it sees. It does not depend on the rest of the batch, nor on how a prompt was cut into chunks. The two functions
//! sum in different orders, so that their results differ by rounding.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use half::bf16;

use crate::device::{Buffer, Device};
use crate::driver::{Grid, Kernel, Ptr, TensorMap, TensorShape};
use crate::error::{Error, Result, expect};

/// Keys of a cache block.
pub const BLOCK_KEYS: usize = 16;
/// Rows of a prefill tile, and keys of a step.
const TILE: u32 = 64;
/// The same on Hopper.
const TILE_SM90: u32 = 128;
/// Prefill steps on Hopper whose keys and values are in shared memory.
const STAGES_SM90: u32 = 3;
/// Keys of a decode split. It is the same in every launch, because each of four warps sums a quarter of a split. If
/// splits were shorter for small batches, sums would round differently, and a row's bits would depend on the rest of
/// the batch.
const SPLIT_KEYS: usize = 512;
/// Query heads of a decode block.
const PASS_HEADS: usize = 16;
const WARPS: u32 = 4;
/// K and V buffers of a decode warp.
const DECODE_STAGES: u32 = 3;

/// Consecutive rows of one sequence: rows `first_row..first_row + n_rows` are the tokens at positions
/// `first_pos..`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Span {
    /// First row of q and of the output.
    pub first_row: u32,
    /// Rows.
    pub n_rows: u32,
    /// Position of the first row.
    pub first_pos: u32,
    /// Where the block table of the sequence begins in `Attention::block_tables`.
    pub table_start: u32,
    /// Not used.
    pub reserved: u32,
}

/// The operands that [`attention_prefill`] and [`attention_decode`] have in common.
///
/// The block table of a sequence maps its keys to the cache: key `j` is slot `j % 16` of block
/// `block_tables[table_start + j / 16]`. The keys and values of the rows themselves are in the cache already.
/// Slots and table entries of keys that no row sees are not read; what they hold does not matter.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Query heads, a multiple of `n_kv_heads`; `n_heads / n_kv_heads` consecutive ones share a key-value head.
    pub n_heads: usize,
    /// Key-value heads.
    pub n_kv_heads: usize,
    /// Columns of a head: 64, 80, 96 or 128.
    pub head_dim: usize,
    /// Keys a row sees, itself included; 0 for all.
    pub window: u32,
    /// Factor of `q . k`, usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// With a soft cap, scores become `cap tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// `(n_rows, qkv_stride)`: q of head `h`, after the rotary embedding, at column `h * head_dim`. Further columns are
    /// not read.
    pub qkv: &'a Buffer<bf16>,
    /// Columns of a row of `qkv`, a multiple of 64.
    pub qkv_stride: usize,
    /// `(n_blocks, n_kv_heads, 16, head_dim)`.
    pub k: &'a Buffer<bf16>,
    /// `(n_blocks, n_kv_heads, 16, head_dim)`.
    pub v: &'a Buffer<bf16>,
    /// The block tables of all sequences.
    pub block_tables: &'a Buffer<u32>,
    /// Rows of `qkv` and of the output.
    pub n_rows: usize,
    /// Columns of a row of the output, a multiple of 64; those past the heads are zeroed.
    pub out_stride: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct PrefillParams {
    qkv: Ptr,
    k: Ptr,
    v: Ptr,
    block_tables: Ptr,
    spans: Ptr,
    tiles: Ptr,
    out: Ptr,
    qkv_stride: u32,
    out_stride: u32,
    n_rows: u32,
    table_len: u32,
    n_blocks: u32,
    n_spans: u32,
    n_heads: u32,
    n_kv_heads: u32,
    window: u32,
    c: f32,
    cap_c: f32,
    reserved: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Sm90Params {
    k: TensorMap,
    v: TensorMap,
    v_row: TensorMap,
    params: PrefillParams,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct DecodeParams {
    qkv: Ptr,
    k: Ptr,
    v: Ptr,
    block_tables: Ptr,
    positions: Ptr,
    table_starts: Ptr,
    acc: Ptr,
    max: Ptr,
    sum: Ptr,
    out: Ptr,
    qkv_stride: u32,
    out_stride: u32,
    n_rows: u32,
    table_len: u32,
    n_blocks: u32,
    n_splits: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    window: u32,
    c: f32,
    cap_c: f32,
}

impl Attention<'_> {
    /// Checks the common operands and gives the kernel for the head_dim, and the blocks of the cache.
    fn check(&self, operation: &'static str, names: [&'static str; 4], out: usize) -> Result<(Kernel, u32)> {
        let name = match self.head_dim {
            64 => names[0],
            80 => names[1],
            96 => names[2],
            128 => names[3],
            other => {
                let reason = format!("head_dim is 64, 80, 96 or 128, not {other}");
                return Err(Error::Unsupported { operation, reason });
            }
        };
        let (heads, kv_heads) = (self.n_heads, self.n_kv_heads);
        let whole = kv_heads > 0 && heads > 0 && heads.is_multiple_of(kv_heads);
        let got = format!("{heads} and {kv_heads}");
        expect(whole, operation, "n_heads", "a multiple of n_kv_heads, both more than 0", got)?;
        let columns = heads * self.head_dim;
        for (factor, operand) in [(self.scale, "scale"), (self.soft_cap.unwrap_or(1.0), "soft_cap")] {
            expect(factor > 0.0 && factor.is_finite(), operation, operand, "more than 0", factor)?;
        }
        let strides = [(self.qkv_stride, "qkv_stride"), (self.out_stride, "out_stride")];
        for (stride, operand) in strides {
            let good = stride >= columns && stride.is_multiple_of(64);
            expect(good, operation, operand, format!("a multiple of 64, at least {columns}"), stride)?;
        }
        let lengths = [(self.qkv.len(), self.qkv_stride, "qkv"), (out, self.out_stride, "out")];
        for (len, stride, operand) in lengths {
            let need = self.n_rows.checked_mul(stride);
            let enough = need.is_some_and(|need| need <= len);
            expect(enough, operation, operand, format!("{} rows of {stride}", self.n_rows), len)?;
        }
        let block = kv_heads * BLOCK_KEYS * self.head_dim;
        let n_blocks = self.k.len() / block;
        let whole = n_blocks > 0 && self.k.len().is_multiple_of(block);
        expect(whole, operation, "k", format!("blocks of {block}"), self.k.len())?;
        expect(self.v.len() == self.k.len(), operation, "v", self.k.len(), self.v.len())?;
        expect(!self.block_tables.is_empty(), operation, "block_tables", "an entry", "none")?;
        let largest = [self.n_rows, self.qkv_stride, self.out_stride, self.block_tables.len(), n_blocks];
        let fit = largest.into_iter().all(|x| u32::try_from(x).is_ok());
        expect(fit, operation, "sizes", "within 32 bits", format!("{largest:?}"))?;
        Ok((Kernel { file: "attention", name }, n_blocks as u32))
    }

    /// The factor of scores before the exponential: `scale * log2(e)`, because the kernels raise 2, not e, to a power.
    /// With a soft cap scores are the tanh, and the cap takes the place of `scale`.
    fn c(&self) -> f32 {
        self.soft_cap.unwrap_or(self.scale) * std::f32::consts::LOG2_E
    }

    /// The factor of scores before the tanh: `2 log2(e) scale / cap`; 0 without a soft cap.
    fn cap_c(&self) -> f32 {
        self.soft_cap.map_or(0.0, |cap| 2.0 * std::f32::consts::LOG2_E * self.scale / cap)
    }
}

fn tile_rows(device: &Device) -> u32 {
    if device.is_hopper() { TILE_SM90 } else { TILE }
}

/// The tiles of [`attention_prefill`] on this device: `[span, first row in the span]`, each of up to 64 rows, 128
/// on Hopper; those that reach the most keys first, so that the longest work does not start last.
pub fn prefill_tiles(device: &Device, spans: &[Span]) -> Vec<[u32; 2]> {
    let tile_rows = tile_rows(device);
    let rows = |(i, span): (usize, &Span)| {
        (0..span.n_rows).step_by(tile_rows as usize).map(move |row| [i as u32, row])
    };
    let mut tiles: Vec<_> = spans.iter().enumerate().flat_map(rows).collect();
    tiles.sort_by_key(|&[i, row]| {
        let span = &spans[i as usize];
        let n_rows = tile_rows.min(span.n_rows - row);
        std::cmp::Reverse(u64::from(span.first_pos) + u64::from(row) + u64::from(n_rows))
    });
    tiles
}

/// Attention of the rows of `spans`: to `out`, `(n_rows, out_stride)`, head `h` at column `h * head_dim`.
/// Rows that are in no span are left unchanged.
///
/// `tiles` are those of [`prefill_tiles`] for the same spans; the first `n_tiles` are computed. Spans, tiles and
/// block tables that do not belong together give wrong results, but no access outside of the buffers.
///
/// # Errors
/// [`Error::Unsupported`] for another `head_dim`; [`Error::Shape`] for a buffer that is too short, a stride
/// that is no multiple of 64, or more than 65,535 tiles; [`Error::Driver`], [`Error::ContextLost`].
pub fn attention_prefill(
    device: &Device,
    attention: &Attention,
    spans: &Buffer<Span>,
    tiles: &Buffer<[u32; 2]>,
    n_tiles: usize,
    out: &mut Buffer<bf16>,
) -> Result<()> {
    const OPERATION: &str = "attention_prefill";
    const NAMES: [&str; 4] = [
        "attention_prefill_hd64",
        "attention_prefill_hd80",
        "attention_prefill_hd96",
        "attention_prefill_hd128",
    ];
    const SM90_NAMES: [&str; 4] = [
        "attention_prefill_sm90_hd64",
        "attention_prefill_sm90_hd80",
        "attention_prefill_sm90_hd96",
        "attention_prefill_sm90_hd128",
    ];
    let names = if device.is_hopper() { SM90_NAMES } else { NAMES };
    let (kernel, n_blocks) = attention.check(OPERATION, names, out.len())?;
    let enough = n_tiles <= tiles.len() && n_tiles <= 65_535;
    expect(enough, OPERATION, "tiles", format!("{n_tiles}, at most 65535"), tiles.len())?;
    expect(u32::try_from(spans.len()).is_ok(), OPERATION, "spans", "within 32 bits", spans.len())?;
    if n_tiles == 0 {
        return Ok(());
    }
    let params = PrefillParams {
        qkv: attention.qkv.ptr(),
        k: attention.k.ptr(),
        v: attention.v.ptr(),
        block_tables: attention.block_tables.ptr(),
        spans: spans.ptr(),
        tiles: tiles.ptr(),
        out: out.ptr(),
        qkv_stride: attention.qkv_stride as u32,
        out_stride: attention.out_stride as u32,
        n_rows: attention.n_rows as u32,
        table_len: attention.block_tables.len() as u32,
        n_blocks,
        n_spans: spans.len() as u32,
        n_heads: attention.n_heads as u32,
        n_kv_heads: attention.n_kv_heads as u32,
        window: attention.window,
        c: attention.c(),
        cap_c: attention.cap_c(),
        reserved: 0,
    };
    let blocks = [attention.n_heads as u32, n_tiles as u32, 1];
    if device.is_hopper() {
        return prefill_sm90(device, attention, kernel.name, blocks, params);
    }
    let step_bytes = 2 * TILE * attention.head_dim as u32 * 2;
    let grid = Grid { blocks, threads: 32 * WARPS, shared_bytes: 2 * step_bytes };
    // SAFETY: the lengths are checked above; the kernel bounds what it reads from spans, tiles and tables.
    unsafe { device.launch(kernel, grid, &params) }
}

/// The launch of [`attention_prefill`] on Hopper; `params` are checked.
fn prefill_sm90(
    device: &Device,
    attention: &Attention,
    name: &'static str,
    blocks: [u32; 3],
    params: PrefillParams,
) -> Result<()> {
    let head_dim = attention.head_dim;
    let rows = u64::from(params.n_blocks) * (attention.n_kv_heads * BLOCK_KEYS) as u64;
    // The copy engine counts rows in i32.
    expect(i32::try_from(rows).is_ok(), "attention_prefill", "k", "at most 2^31 - 1 rows", rows)?;
    let row_bytes = (head_dim * size_of::<bf16>()) as u64;
    let cols = head_dim as u64;
    let shape = |box_rows| TensorShape { element_bytes: 2, rows, cols, row_bytes, box_rows, box_cols: 64 };
    let params = Sm90Params {
        k: device.tensor_map(attention.k, shape(BLOCK_KEYS as u32))?,
        v: device.tensor_map(attention.v, shape(BLOCK_KEYS as u32))?,
        v_row: device.tensor_map(attention.v, shape(1))?,
        params,
    };
    // 64 columns are 128 bytes; 4 barriers of 8 bytes guard a stage.
    let tile_bytes = TILE_SM90 * head_dim.div_ceil(64) as u32 * 128;
    let grid = Grid { blocks, threads: 384, shared_bytes: STAGES_SM90 * (2 * tile_bytes + 4 * 8) };
    // SAFETY: as in `attention_prefill`.
    unsafe { device.launch(Kernel { file: "attention_sm90", name }, grid, &params) }
}

/// Most splits that a row with up to `max_kv_len` keys can have.
fn n_splits(max_kv_len: usize, window: u32) -> usize {
    let all = max_kv_len.div_ceil(SPLIT_KEYS).max(1);
    if window == 0 { all } else { all.min((window as usize - 1).div_ceil(SPLIT_KEYS) + 1) }
}

/// f32s of scratch memory that [`attention_decode`] needs, whatever the window; 0 if every row has one split.
pub fn decode_scratch_len(n_rows: usize, n_heads: usize, head_dim: usize, max_kv_len: usize) -> usize {
    match n_splits(max_kv_len, 0) {
        1 => 0,
        n => n_rows * n * n_heads * (head_dim + 2),
    }
}

/// Attention of the rows `rows`, one token of a sequence each: row `i` is at position `positions[i]`, its block
/// table begins at `table_starts[i]`, and the result goes to row `i` of `out`, `(n_rows, out_stride)`, head
/// `h` at column `h * head_dim`. Other rows are left alone.
///
/// Every position has to be less than `max_kv_len`. This number only decides how many blocks are started, and no bit of a
/// row depends on it. So a recorded launch can be repeated with any other positions below it. `scratch` has
/// [`decode_scratch_len`] elements for this number of rows. Wrong positions and tables give wrong results, but no
/// access outside of the buffers.
///
/// # Errors
/// [`Error::Unsupported`] for another `head_dim`; [`Error::Shape`] for a buffer that is too short, a stride
/// that is no multiple of 64, or a grid of more than 65,535 blocks in y or z (a `max_kv_len` of 33 million);
/// [`Error::Driver`], [`Error::ContextLost`].
pub fn attention_decode(
    device: &Device,
    attention: &Attention,
    rows: Range<usize>,
    positions: &Buffer<u32>,
    table_starts: &Buffer<u32>,
    max_kv_len: usize,
    scratch: &mut Buffer<f32>,
    out: &mut Buffer<bf16>,
) -> Result<()> {
    const OPERATION: &str = "attention_decode";
    const NAMES: [&str; 4] =
        ["attention_decode_hd64", "attention_decode_hd80", "attention_decode_hd96", "attention_decode_hd128"];
    let (kernel, n_blocks) = attention.check(OPERATION, NAMES, out.len())?;
    let Attention { n_heads, n_kv_heads, head_dim, .. } = *attention;
    let inside = rows.start <= rows.end && rows.end <= attention.n_rows;
    expect(inside, OPERATION, "rows", format!("within {}", attention.n_rows), format!("{rows:?}"))?;
    expect(positions.len() >= rows.end, OPERATION, "positions", rows.end, positions.len())?;
    expect(table_starts.len() >= rows.end, OPERATION, "table_starts", rows.end, table_starts.len())?;
    let n_rows = rows.len();
    let n_splits = n_splits(max_kv_len, attention.window);
    let groups = n_kv_heads * (n_heads / n_kv_heads).div_ceil(PASS_HEADS);
    let fits = groups <= 65_535 && n_splits <= 65_535;
    expect(fits, OPERATION, "grid", "at most 65535 blocks", format!("{groups}, {n_splits}"))?;
    let parts = n_rows * n_splits * n_heads;
    let need = if n_splits == 1 { 0 } else { parts * (head_dim + 2) };
    expect(scratch.len() >= need, OPERATION, "scratch", need, scratch.len())?;
    if n_rows == 0 {
        return Ok(());
    }
    let f32s = |n: usize| (n * size_of::<f32>()) as u64;
    let to_first = |stride: usize, bytes: usize| (rows.start * stride * bytes) as u64;
    let params = DecodeParams {
        qkv: attention.qkv.ptr() + to_first(attention.qkv_stride, size_of::<bf16>()),
        k: attention.k.ptr(),
        v: attention.v.ptr(),
        block_tables: attention.block_tables.ptr(),
        positions: positions.ptr() + to_first(1, size_of::<u32>()),
        table_starts: table_starts.ptr() + to_first(1, size_of::<u32>()),
        acc: scratch.ptr(),
        max: scratch.ptr() + f32s(parts * head_dim),
        sum: scratch.ptr() + f32s(parts * (head_dim + 1)),
        out: out.ptr() + to_first(attention.out_stride, size_of::<bf16>()),
        qkv_stride: attention.qkv_stride as u32,
        out_stride: attention.out_stride as u32,
        n_rows: n_rows as u32,
        table_len: attention.block_tables.len() as u32,
        n_blocks,
        n_splits: n_splits as u32,
        n_heads: n_heads as u32,
        n_kv_heads: n_kv_heads as u32,
        head_dim: head_dim as u32,
        window: attention.window,
        c: attention.c(),
        cap_c: attention.cap_c(),
    };
    let threads = 32 * WARPS;
    let blocks = [n_rows as u32, groups as u32, n_splits as u32];
    let copies = WARPS * DECODE_STAGES * 2 * (BLOCK_KEYS * head_dim * size_of::<bf16>()) as u32;
    let grid = Grid { blocks, threads, shared_bytes: copies + WARPS * 16 * 2 * 4 };
    // SAFETY: the lengths are checked above, and the kernel bounds what it reads from positions and tables.
    unsafe { device.launch(kernel, grid, &params)? };
    if n_splits == 1 {
        return Ok(());
    }
    let blocks = [n_rows as u32, (attention.out_stride as u32).div_ceil(4 * threads), 1];
    let combine = Kernel { file: "attention", name: "attention_combine" };
    // SAFETY: as above.
    unsafe { device.launch(combine, Grid { blocks, threads, shared_bytes: 0 }, &params) }
}
