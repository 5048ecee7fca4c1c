//! Norms, int8 activations and the embedding (`cuda/norm.cu`).

use half::{bf16, f16};

use crate::device::{Buffer, Device};
use crate::driver::{Grid, Kernel, Ptr};
use crate::error::{Error, Result, expect};
use crate::gemm::ALIGN;

/// Columns that share a scale.
pub const GROUP: usize = 32;
const THREADS: u32 = 256;
/// Columns that the threads of a block take at a time.
const BLOCK_COLUMNS: usize = 4 * THREADS as usize;

/// An rmsnorm or a layernorm over rows of `weight.len()` columns.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// `(dim)`.
    pub weight: &'a Buffer<f32>,
    /// `(dim)`.
    pub bias: Option<&'a Buffer<f32>>,
    /// Added to the variance.
    pub eps: f32,
    /// Subtracts the mean; an rmsnorm does not.
    pub layernorm: bool,
}

/// Where int8 activations of `(n, stride)` rows go.
///
/// Columns are permuted within each 32: position `16 h + 4 t + i` has column
/// `16 h + [2 t, 2 t + 1, 2 t + 8, 2 t + 9][i]` for `h < 2`, `t < 4`, `i < 4`.
#[derive(Debug)]
pub struct Quantized<'a> {
    /// `(n, stride)`, in -127..=127.
    pub q: &'a mut Buffer<i8>,
    /// `(stride / 32, scale_stride)`: the largest magnitude of 32 columns of a row, divided by 127.
    pub scale: &'a mut Buffer<f32>,
    /// Rows that the scales have room for.
    pub scale_stride: usize,
}

/// A packed table of rows: `K` is dim rounded up to 128, as are rows.
#[derive(Debug, Clone, Copy)]
pub enum Table<'a> {
    /// `(rows / 16, K / 32, 2, 32, 8)`, tiles as `cuda/gemm.cuh` describes.
    Bf16(&'a Buffer<bf16>),
    /// A value is `q * scale`.
    Int8 {
        /// `(rows / 16, K / 32, 32, 16)`, tiles as `cuda/gemm.cuh` describes.
        q: &'a Buffer<i8>,
        /// `(rows / 16, K / 32, 8, 2)`.
        scale: &'a Buffer<f16>,
    },
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct NormParams {
    x: Ptr,
    rows: Ptr,
    weight: Ptr,
    bias: Ptr,
    out: Ptr,
    q: Ptr,
    scale: Ptr,
    n_rows: u32,
    dim: u32,
    stride: u32,
    layernorm: u32,
    scale_stride: u32,
    eps: f32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct QuantizeParams {
    x: Ptr,
    q: Ptr,
    scale: Ptr,
    n: u32,
    stride: u32,
    scale_stride: u32,
    reserved: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct EmbedParams {
    tokens: Ptr,
    table: Ptr,
    scale: Ptr,
    x: Ptr,
    vocab: u32,
    dim: u32,
    n_groups: u32,
    reserved: u32,
}

/// Checks that `n_rows` rows of `stride` columns fit the buffers of `quantized`.
fn check_quantized(
    operation: &'static str,
    n_rows: usize,
    stride: usize,
    quantized: &Quantized,
) -> Result<()> {
    let scale_stride = quantized.scale_stride;
    let (size, scales) = (n_rows.saturating_mul(stride), scale_stride.saturating_mul(stride / GROUP));
    expect(quantized.q.len() >= size, operation, "q", size, quantized.q.len())?;
    expect(scale_stride >= n_rows, operation, "scale_stride", format!("at least {n_rows}"), scale_stride)?;
    expect(quantized.scale.len() >= scales, operation, "scale", scales, quantized.scale.len())
}

/// Checks that sizes are numbers of a kernel, and a number of rows that of a grid.
fn check_sizes(operation: &'static str, sizes: &[usize]) -> Result<()> {
    let fit = sizes.iter().all(|&size| i32::try_from(size).is_ok());
    expect(fit, operation, "sizes", "within 31 bits", format!("{sizes:?}"))
}

/// Normalises rows of `x`, `(n, dim)`, into `out`, `(m, stride)`; columns from `dim` on become zero.
///
/// Row `i` of `out` is made of row `rows[i]` of `x`, or of row `i` without `rows`; a row that is not there
/// counts as the last. `quantized` takes the rounded values of `out` as int8, too.
///
/// # Errors
/// [`Error::Shape`] for a buffer that is too short, a weight or a bias that is not `(dim)`, or a stride that
/// is no multiple of 64 or less than `dim`; [`Error::Unsupported`] for a row that exceeds the shared memory
/// of a block; [`Error::Driver`], [`Error::ContextLost`].
pub fn norm(
    device: &Device,
    norm: &Norm,
    x: &Buffer<f32>,
    dim: usize,
    rows: Option<&Buffer<u32>>,
    m: usize,
    out: &mut Buffer<bf16>,
    stride: usize,
    quantized: Option<Quantized>,
) -> Result<()> {
    const OPERATION: &str = "norm";
    expect(dim > 0, OPERATION, "dim", "more than 0", dim)?;
    let whole = stride >= dim && stride.is_multiple_of(64);
    expect(whole, OPERATION, "stride", format!("a multiple of 64 from {dim} on"), stride)?;
    expect(norm.weight.len() == dim, OPERATION, "weight", dim, norm.weight.len())?;
    let bias_len = norm.bias.map_or(dim, Buffer::len);
    expect(bias_len == dim, OPERATION, "bias", dim, bias_len)?;
    let n_rows = x.len() / dim;
    let need = if rows.is_some() { m.min(1) } else { m };
    expect(n_rows >= need, OPERATION, "x", format!("{need} rows of {dim}"), x.len())?;
    let rows_len = rows.map_or(m, Buffer::len);
    expect(rows_len >= m, OPERATION, "rows", m, rows_len)?;
    expect(
        out.len() >= m.saturating_mul(stride),
        OPERATION,
        "out",
        format!("{m} rows of {stride}"),
        out.len(),
    )?;
    if let Some(quantized) = &quantized {
        check_quantized(OPERATION, m, stride, quantized)?;
    }
    let scale_stride = quantized.as_ref().map_or(0, |quantized| quantized.scale_stride);
    check_sizes(OPERATION, &[m, n_rows, stride, scale_stride])?;
    let shared_bytes = (stride + 2 * THREADS as usize / 32) * size_of::<f32>();
    let most = device.info().shared_bytes as usize;
    if shared_bytes > most {
        let reason = format!("a row of {stride} columns takes {shared_bytes} bytes of {most} shared ones");
        return Err(Error::Unsupported { operation: OPERATION, reason });
    }
    if m == 0 {
        return Ok(());
    }
    let params = NormParams {
        x: x.ptr(),
        rows: rows.map_or(0, Buffer::ptr),
        weight: norm.weight.ptr(),
        bias: norm.bias.map_or(0, Buffer::ptr),
        out: out.ptr(),
        q: quantized.as_ref().map_or(0, |quantized| quantized.q.ptr()),
        scale: quantized.as_ref().map_or(0, |quantized| quantized.scale.ptr()),
        n_rows: n_rows as u32,
        dim: dim as u32,
        stride: stride as u32,
        layernorm: norm.layernorm.into(),
        scale_stride: scale_stride as u32,
        eps: norm.eps,
    };
    let kernel = Kernel { file: "norm", name: "norm_rows" };
    let grid = Grid { blocks: [m as u32, 1, 1], threads: THREADS, shared_bytes: shared_bytes as u32 };
    // SAFETY: the lengths are checked above; the kernel bounds what it reads from rows.
    unsafe { device.launch(kernel, grid, &params) }
}

/// Quantises `n` rows of `x`, `(n, stride)`.
///
/// # Errors
/// [`Error::Shape`] for a buffer that is too short, or a stride that is no multiple of 64;
/// [`Error::Driver`], [`Error::ContextLost`].
pub fn quantize(
    device: &Device,
    x: &Buffer<bf16>,
    n: usize,
    stride: usize,
    quantized: Quantized,
) -> Result<()> {
    const OPERATION: &str = "quantize";
    expect(stride.is_multiple_of(64), OPERATION, "stride", "a multiple of 64", stride)?;
    let size = n.saturating_mul(stride);
    expect(x.len() >= size, OPERATION, "x", format!("{n} rows of {stride}"), x.len())?;
    check_quantized(OPERATION, n, stride, &quantized)?;
    check_sizes(OPERATION, &[n, stride, quantized.scale_stride])?;
    if size == 0 {
        return Ok(());
    }
    let params = QuantizeParams {
        x: x.ptr(),
        q: quantized.q.ptr(),
        scale: quantized.scale.ptr(),
        n: n as u32,
        stride: stride as u32,
        scale_stride: quantized.scale_stride as u32,
        reserved: 0,
    };
    let blocks = [n as u32, stride.div_ceil(BLOCK_COLUMNS) as u32, 1];
    expect(blocks[1] <= 65_535, OPERATION, "stride", "at most 65535 blocks", stride)?;
    let kernel = Kernel { file: "norm", name: "quantize_rows" };
    let grid = Grid { blocks, threads: THREADS, shared_bytes: 0 };
    // SAFETY: the lengths are checked above.
    unsafe { device.launch(kernel, grid, &params) }
}

/// Writes the rows `tokens[..n]` of `table`, which has `vocab` rows, to `x`, `(n, dim)`. A token that is not
/// in the table counts as its last.
///
/// # Errors
/// [`Error::Shape`] for a buffer that is too short, or a table that is not packed from `(vocab, dim)`;
/// [`Error::Driver`], [`Error::ContextLost`].
pub fn embed(
    device: &Device,
    tokens: &Buffer<u32>,
    n: usize,
    table: Table,
    vocab: usize,
    dim: usize,
    x: &mut Buffer<f32>,
) -> Result<()> {
    const OPERATION: &str = "embed";
    expect(vocab > 0 && dim > 0, OPERATION, "table", "rows and columns", format!("{vocab}, {dim}"))?;
    check_sizes(OPERATION, &[n, vocab, dim])?;
    let (rows, cols) = (vocab.next_multiple_of(ALIGN), dim.next_multiple_of(ALIGN));
    let size = rows.saturating_mul(cols);
    expect(tokens.len() >= n, OPERATION, "tokens", n, tokens.len())?;
    expect(x.len() >= n.saturating_mul(dim), OPERATION, "x", format!("{n} rows of {dim}"), x.len())?;
    let (name, len, table, scale) = match table {
        Table::Bf16(table) => ("embed_bf16", table.len(), table.ptr(), 0),
        Table::Int8 { q, scale } => {
            expect(scale.len() == size / GROUP, OPERATION, "scale", size / GROUP, scale.len())?;
            ("embed_int8", q.len(), q.ptr(), scale.ptr())
        }
    };
    expect(len == size, OPERATION, "table", size, len)?;
    if n == 0 {
        return Ok(());
    }
    let params = EmbedParams {
        tokens: tokens.ptr(),
        table,
        scale,
        x: x.ptr(),
        vocab: vocab as u32,
        dim: dim as u32,
        n_groups: (cols / GROUP) as u32,
        reserved: 0,
    };
    let blocks = [n as u32, cols.div_ceil(BLOCK_COLUMNS) as u32, 1];
    expect(blocks[1] <= 65_535, OPERATION, "dim", "at most 65535 blocks", dim)?;
    let kernel = Kernel { file: "norm", name };
    // SAFETY: the lengths are checked above; the kernel bounds the tokens.
    unsafe { device.launch(kernel, Grid { blocks, threads: THREADS, shared_bytes: 0 }, &params) }
}
