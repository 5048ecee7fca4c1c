//! Norms, int8 and rotated activations, and the embedding (`cuda/norm.cu`).
//!
//! A matrix product takes its activations in one of four forms ([`crate::gemm::Input`]). [`norm`] writes any of them;
//! [`quantize`] and [`rotate`] convert bf16 rows. All of them work on a range of rows and do not touch the others, so that
//! the rows of one batch can have different forms. The bits of a row depend on that row only.

use std::ops::Range;

use half::{bf16, f16};

use crate::device::{Buffer, Device, Element};
use crate::driver::{Grid, Kernel, Ptr};
use crate::error::{Error, Result, expect};

/// Columns of a weight, and of the activations that it multiplies, are rounded up to a multiple of this.
pub const ALIGN: usize = 128;
/// Columns that share a scale.
pub const GROUP: usize = 32;
const THREADS: u32 = 256;
/// Columns that a block processes in one round.
const BLOCK_COLUMNS: usize = 4 * THREADS as usize;
/// How many rounds of columns each kernel of a norm can keep in registers, if `dim` is a multiple of four.
const KEPT_ROUNDS: [usize; 3] = [2, 5, 8];

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

/// Memory for int8 activations, `(n, stride)`, with a scale for each 32 columns ([`crate::gemm::Input::Int8`]).
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

/// Memory for rotated activations, `(n, stride)`: each 64 columns times the Walsh-Hadamard matrix, divided by 8.
#[derive(Debug)]
pub enum Rotated<'a> {
    /// As bf16, `(n, stride)` ([`crate::gemm::Input::Rotated`]).
    Bf16(&'a mut Buffer<bf16>),
    /// As int8 with one scale for a row ([`crate::gemm::Input::RotatedInt8`]).
    Int8 {
        /// `(n, stride)`, in -127..=127, columns permuted as [`Quantized`] says.
        q: &'a mut Buffer<i8>,
        /// `(n)`: the largest magnitude of the row, divided by 127.
        scale: &'a mut Buffer<f32>,
    },
}

/// Memory for the result, in one of the forms.
#[derive(Debug)]
pub enum Rows<'a> {
    /// As they are, `(n, stride)` ([`crate::gemm::Input::Bf16`]).
    Bf16(&'a mut Buffer<bf16>),
    /// As int8 ([`crate::gemm::Input::Int8`]).
    Int8(Quantized<'a>),
    /// Rotated.
    Rotated(Rotated<'a>),
}

/// A packed embedding table. `K` is `dim` rounded up to 128; the rows are rounded up to 128, too.
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
    source: Ptr,
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
struct ConvertParams {
    x: Ptr,
    out: Ptr,
    q: Ptr,
    scale: Ptr,
    stride: u32,
    scale_stride: u32,
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
    factor: f32,
}

/// Where a range of rows is written: the addresses of its first row.
struct Target {
    out: Ptr,
    q: Ptr,
    scale: Ptr,
    scale_stride: u32,
}

impl Target {
    /// Checks that rows up to the last of `rows` have room, `stride` columns each.
    fn new(operation: &'static str, rows: &Range<usize>, stride: usize, to: &Rows) -> Result<Target> {
        let check = |operand, len: usize, need: usize| expect(len >= need, operation, operand, need, len);
        let size = rows.end.saturating_mul(stride);
        let (mut out, mut q, mut scale, mut scale_stride) = (0, 0, 0, 0);
        match to {
            Rows::Bf16(buffer) | Rows::Rotated(Rotated::Bf16(buffer)) => {
                check("out", buffer.len(), size)?;
                out = row_ptr(buffer, rows.start, stride);
            }
            Rows::Int8(to) => {
                check("q", to.q.len(), size)?;
                check("scale_stride", to.scale_stride, rows.end)?;
                check("scale", to.scale.len(), to.scale_stride.saturating_mul(stride / GROUP))?;
                check_sizes(operation, &[to.scale_stride])?;
                q = row_ptr(to.q, rows.start, stride);
                scale = row_ptr(to.scale, rows.start, 1);
                scale_stride = to.scale_stride as u32;
            }
            Rows::Rotated(Rotated::Int8 { q: to, scale: to_scale }) => {
                check("q", to.len(), size)?;
                check("scale", to_scale.len(), rows.end)?;
                q = row_ptr(to, rows.start, stride);
                scale = row_ptr(to_scale, rows.start, 1);
            }
        }
        Ok(Target { out, q, scale, scale_stride })
    }
}

/// Where row `row` of `(n, stride)` begins.
fn row_ptr<T: Element>(buffer: &Buffer<T>, row: usize, stride: usize) -> Ptr {
    buffer.ptr() + (row * stride * size_of::<T>()) as u64
}

/// Checks that sizes fit the integers of a kernel, and that a number of rows fits a grid.
fn check_sizes(operation: &'static str, sizes: &[usize]) -> Result<()> {
    let fit = sizes.iter().all(|&size| i32::try_from(size).is_ok());
    expect(fit, operation, "sizes", "within 31 bits", format!("{sizes:?}"))
}

fn check_rows(operation: &'static str, rows: &Range<usize>) -> Result<()> {
    expect(rows.start <= rows.end, operation, "rows", "a range", format!("{rows:?}"))?;
    check_sizes(operation, &[rows.end])
}

/// Normalises rows of `x`, `(n, dim)`, and writes them as rows `rows` of `out`, `(.., stride)`; columns from `dim`
/// on become zero (before they are rotated).
///
/// Row `i` of `out` is made of row `source[i]` of `x`, or of row `i` without `source`. A `source[i]` past the end of
/// `x` means its last row.
///
/// # Errors
/// [`Error::Shape`] for a buffer that is too short, a weight or a bias that is not `(dim)`, or a stride that
/// is no multiple of 64 or less than `dim`; [`Error::Unsupported`] for a row that fits neither the registers nor the
/// shared memory of a block; [`Error::Driver`], [`Error::ContextLost`].
pub fn norm(
    device: &Device,
    norm: &Norm,
    x: &Buffer<f32>,
    dim: usize,
    source: Option<&Buffer<u32>>,
    rows: Range<usize>,
    out: Rows,
    stride: usize,
) -> Result<()> {
    const OPERATION: &str = "norm";
    let names = match &out {
        Rows::Bf16(_) => ["norm_bf16", "norm_bf16_2048", "norm_bf16_5120", "norm_bf16_8192"],
        Rows::Int8(_) => ["norm_int8", "norm_int8_2048", "norm_int8_5120", "norm_int8_8192"],
        Rows::Rotated(Rotated::Bf16(_)) => {
            ["norm_rotated", "norm_rotated_2048", "norm_rotated_5120", "norm_rotated_8192"]
        }
        Rows::Rotated(Rotated::Int8 { .. }) => [
            "norm_rotated_int8",
            "norm_rotated_int8_2048",
            "norm_rotated_int8_5120",
            "norm_rotated_int8_8192",
        ],
    };
    let target = |rows: &Range<usize>| Target::new(OPERATION, rows, stride, &out);
    launch(device, OPERATION, norm, x, dim, source, rows, stride, target, names)
}

/// Normalises rows `rows` of `x`, `(n, dim)`, and adds them to the same rows of `to`, `(n, dim)`.
///
/// # Errors
/// As [`norm`].
pub fn norm_add(
    device: &Device,
    norm: &Norm,
    x: &Buffer<f32>,
    dim: usize,
    rows: Range<usize>,
    to: &mut Buffer<f32>,
) -> Result<()> {
    const OPERATION: &str = "norm_add";
    let names = ["norm_add", "norm_add_2048", "norm_add_5120", "norm_add_8192"];
    let target = |rows: &Range<usize>| {
        let need = rows.end.saturating_mul(dim);
        expect(to.len() >= need, OPERATION, "to", need, to.len())?;
        Ok(Target { out: row_ptr(to, rows.start, dim), q: 0, scale: 0, scale_stride: 0 })
    };
    launch(device, OPERATION, norm, x, dim, None, rows, dim.next_multiple_of(64), target, names)
}

/// Checks a norm of rows and launches it. `names` are the kernel for every width, and those that keep rows in
/// registers.
fn launch(
    device: &Device,
    operation: &'static str,
    norm: &Norm,
    x: &Buffer<f32>,
    dim: usize,
    source: Option<&Buffer<u32>>,
    rows: Range<usize>,
    stride: usize,
    target: impl FnOnce(&Range<usize>) -> Result<Target>,
    names: [&'static str; 4],
) -> Result<()> {
    expect(dim > 0, operation, "dim", "more than 0", dim)?;
    let whole = stride >= dim && stride.is_multiple_of(64);
    expect(whole, operation, "stride", format!("a multiple of 64 from {dim} on"), stride)?;
    expect(norm.weight.len() == dim, operation, "weight", dim, norm.weight.len())?;
    let bias_len = norm.bias.map_or(dim, Buffer::len);
    expect(bias_len == dim, operation, "bias", dim, bias_len)?;
    check_rows(operation, &rows)?;
    let n_rows = x.len() / dim;
    let need = if source.is_some() { rows.len().min(1) } else { rows.end };
    expect(n_rows >= need, operation, "x", format!("{need} rows of {dim}"), x.len())?;
    let source_len = source.map_or(rows.end, Buffer::len);
    expect(source_len >= rows.end, operation, "source", rows.end, source_len)?;
    let target = target(&rows)?;
    check_sizes(operation, &[n_rows, stride])?;
    let width = if dim.is_multiple_of(4) { stride.div_ceil(BLOCK_COLUMNS) } else { usize::MAX };
    let kept = KEPT_ROUNDS.iter().position(|&rounds| width <= rounds);
    // Rows that are not kept in registers are in shared memory, in whole rounds of a block.
    let row_len = if kept.is_some() { 0 } else { stride.next_multiple_of(BLOCK_COLUMNS) };
    let shared_bytes = (row_len + 2 * THREADS as usize / 32) * size_of::<f32>();
    let most = device.info().shared_bytes as usize;
    if shared_bytes > most {
        let reason = format!("a row of {stride} columns takes {shared_bytes} bytes of {most} shared ones");
        return Err(Error::Unsupported { operation, reason });
    }
    if rows.is_empty() {
        return Ok(());
    }
    let params = NormParams {
        // `source` has row numbers that count from the first row of x.
        x: if source.is_some() { x.ptr() } else { row_ptr(x, rows.start, dim) },
        source: source.map_or(0, |source| row_ptr(source, rows.start, 1)),
        weight: norm.weight.ptr(),
        bias: norm.bias.map_or(0, Buffer::ptr),
        out: target.out,
        q: target.q,
        scale: target.scale,
        n_rows: n_rows as u32,
        dim: dim as u32,
        stride: stride as u32,
        layernorm: norm.layernorm.into(),
        scale_stride: target.scale_stride,
        eps: norm.eps,
    };
    let [any, kept_names @ ..] = names;
    let name = kept.map_or(any, |i| kept_names[i]);
    let grid =
        Grid { blocks: [rows.len() as u32, 1, 1], threads: THREADS, shared_bytes: shared_bytes as u32 };
    // SAFETY: the lengths are checked above; the kernel bounds what it reads from source.
    unsafe { device.launch(Kernel { file: "norm", name }, grid, &params) }
}

/// Quantises rows `rows` of `x`, `(n, stride)`, to the same rows of `out`.
///
/// # Errors
/// [`Error::Shape`] for a buffer that is too short, or a stride that is no multiple of 64;
/// [`Error::Driver`], [`Error::ContextLost`].
pub fn quantize(
    device: &Device,
    x: &Buffer<bf16>,
    rows: Range<usize>,
    stride: usize,
    out: Quantized,
) -> Result<()> {
    convert(device, "quantize", x, rows, stride, Rows::Int8(out))
}

/// Rotates rows `rows` of `x`, `(n, stride)`, to the same rows of `out`.
///
/// # Errors
/// As [`quantize`].
pub fn rotate(
    device: &Device,
    x: &Buffer<bf16>,
    rows: Range<usize>,
    stride: usize,
    out: Rotated,
) -> Result<()> {
    convert(device, "rotate", x, rows, stride, Rows::Rotated(out))
}

fn convert(
    device: &Device,
    operation: &'static str,
    x: &Buffer<bf16>,
    rows: Range<usize>,
    stride: usize,
    out: Rows,
) -> Result<()> {
    expect(stride.is_multiple_of(64), operation, "stride", "a multiple of 64", stride)?;
    check_rows(operation, &rows)?;
    let need = rows.end.saturating_mul(stride);
    expect(x.len() >= need, operation, "x", format!("{} rows of {stride}", rows.end), x.len())?;
    let target = Target::new(operation, &rows, stride, &out)?;
    check_sizes(operation, &[stride])?;
    if rows.is_empty() || stride == 0 {
        return Ok(());
    }
    let params = ConvertParams {
        x: row_ptr(x, rows.start, stride),
        out: target.out,
        q: target.q,
        scale: target.scale,
        stride: stride as u32,
        scale_stride: target.scale_stride,
    };
    let (name, across, shared_bytes) = match out {
        Rows::Rotated(Rotated::Int8 { .. }) => ("rotate_rows_int8", 1, THREADS / 32 * 4),
        Rows::Rotated(Rotated::Bf16(_)) => ("rotate_rows", stride.div_ceil(BLOCK_COLUMNS), 0),
        _ => ("quantize_rows", stride.div_ceil(BLOCK_COLUMNS), 0),
    };
    expect(across <= 65_535, operation, "stride", "at most 65535 blocks", stride)?;
    let grid = Grid { blocks: [rows.len() as u32, across as u32, 1], threads: THREADS, shared_bytes };
    // SAFETY: the lengths are checked above.
    unsafe { device.launch(Kernel { file: "norm", name }, grid, &params) }
}

/// Writes the rows `tokens[..n]` of `table`, which has `vocab` rows, times `factor`, to `x`, `(n, dim)`. A token past
/// the end of the table gets its last row.
///
/// # Errors
/// [`Error::Shape`] for a buffer that is too short, a table that is not packed from `(vocab, dim)`, or a factor that is
/// not finite; [`Error::Driver`], [`Error::ContextLost`].
pub fn embed(
    device: &Device,
    tokens: &Buffer<u32>,
    n: usize,
    table: Table,
    vocab: usize,
    dim: usize,
    factor: f32,
    x: &mut Buffer<f32>,
) -> Result<()> {
    const OPERATION: &str = "embed";
    expect(factor.is_finite(), OPERATION, "factor", "a finite number", factor)?;
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
        factor,
    };
    let blocks = [n as u32, cols.div_ceil(BLOCK_COLUMNS) as u32, 1];
    expect(blocks[1] <= 65_535, OPERATION, "dim", "at most 65535 blocks", dim)?;
    let kernel = Kernel { file: "norm", name };
    // SAFETY: the lengths are checked above; the kernel bounds the tokens.
    unsafe { device.launch(kernel, Grid { blocks, threads: THREADS, shared_bytes: 0 }, &params) }
}
