//! Matrix products with packed weights, `out = f(x W^T + b)` (`cuda/gemm.cu`, `cuda/gemm_sm90.cu`).
//!
//! There are two arithmetics. In both, the bits of a row depend on that row of `x` only, not on how many others are
//! computed with it.
//!
//! - [`Arithmetic::Exact`]: activations are bf16, the f16 scales of int8 weights are not rounded, and sums are f32 in one
//!   order.
//! - [`Arithmetic::Fast`]: whatever the device multiplies fastest with. The bits differ from those of `Exact`.
//!
//! With int8 activations both are the same.
//!
//! Int8 activations with a scale for 32 columns ([`Input::Int8`]) are the slow form of int8: each sum of 32 columns is
//! converted to f32 and scaled. On Hopper this is predicted to take longer than the products themselves, and longer than
//! the same product with bf16 activations. The rotated form ([`Input::RotatedInt8`]) scales once, at the end. Neither was
//! measured on a GPU yet.
//!
//! A rotated weight gives the same product as `(x R) (W R)^T`. R spreads a large value in one column over 64 columns, so
//! that int8 needs only one scale for a row. Its activations are rotated as well ([`crate::norm::rotate`]): as bf16 they
//! are multiplied as in `Exact`, as int8 there is one exact sum.

mod packed;

use std::ops::Range;

use half::{bf16, f16};

use crate::device::{Buffer, Device};
use crate::driver::{Grid, Kernel, Ptr, TensorMap, TensorShape};
use crate::error::{Error, Result, expect};
use crate::norm::{GROUP, Table};

pub use crate::norm::ALIGN;

pub use self::packed::{Packed, RowOrder, bf16_bytes, int8_bytes, rotated_bytes};
use self::packed::{packed_rows, source_row};

const STRIP: usize = 16;
const TILE_ROWS: usize = 128;
const THREADS: u32 = 256;
/// Rows of `x` up to which weights go to registers directly, not through shared memory.
const FEW: usize = 32;
/// Rows of `x` up to which a product may be split along K: those of one tile.
const SPLIT: usize = 64;
/// Tiles of a weight up to which its product may be split along K, on any device. This bounds the scratch memory.
const SPLIT_TILES: usize = 64;
/// Parts of K whose sums are computed separately; see `cuda/gemm.cu`.
const SEGMENTS: usize = 8;
/// Columns whose sum of int8 products fits int32: `127 * 127 * 131,072 < 2^31`.
const MAX_INT8_K: usize = 131_072;

#[derive(Debug)]
enum Values {
    Int8 { q: Buffer<i8>, scale: Buffer<f16> },
    Bf16(Buffer<bf16>),
    Rotated { q: Buffer<i8>, scale: Buffer<f32> },
}

impl Values {
    fn name(&self) -> &'static str {
        match self {
            Values::Int8 { .. } => "int8",
            Values::Bf16(_) => "bf16",
            Values::Rotated { .. } => "rotated",
        }
    }
}

/// A weight `(rows, cols)` on the device, with its bias.
#[derive(Debug)]
pub struct Weight {
    rows: usize,
    cols: usize,
    order: RowOrder,
    values: Values,
    bias: Option<Buffer<f32>>, // (packed_rows)
}

impl Weight {
    /// Copies a packed weight, and its bias `(rows)`, to the device.
    ///
    /// # Errors
    /// [`Error::Shape`] if the packed memory or the bias is not of this shape; [`Error::OutOfMemory`],
    /// [`Error::Driver`], [`Error::ContextLost`].
    pub fn upload(
        device: &Device,
        rows: usize,
        cols: usize,
        order: RowOrder,
        packed: &Packed,
        bias: Option<&[f32]>,
    ) -> Result<Weight> {
        const OPERATION: &str = "Weight::upload";
        expect(rows > 0 && cols > 0, OPERATION, "shape", "rows and columns", format!("({rows}, {cols})"))?;
        let whole = order == RowOrder::Plain || rows.is_multiple_of(2);
        expect(whole, OPERATION, "rows", "as many gates as ups", rows)?;
        let padded = packed_rows(rows, order);
        let (k, max) = (cols.next_multiple_of(ALIGN), i32::MAX as usize);
        expect(padded <= max && k <= max, OPERATION, "shape", "within 31 bits", format!("({rows}, {cols})"))?;
        let values = match packed {
            Packed::Int8 { q, scale } => {
                expect(q.len() == padded * k, OPERATION, "q", padded * k, q.len())?;
                expect(scale.len() == q.len() / GROUP, OPERATION, "scale", q.len() / GROUP, scale.len())?;
                Values::Int8 { q: device.upload(q)?, scale: device.upload(scale)? }
            }
            Packed::Bf16(values) => {
                expect(values.len() == padded * k, OPERATION, "values", padded * k, values.len())?;
                Values::Bf16(device.upload(values)?)
            }
            Packed::Rotated { q, scale } => {
                expect(q.len() == padded * k, OPERATION, "q", padded * k, q.len())?;
                expect(scale.len() == padded, OPERATION, "scale", padded, scale.len())?;
                Values::Rotated { q: device.upload(q)?, scale: device.upload(scale)? }
            }
        };
        let bias = bias.map(|bias| {
            expect(bias.len() == rows, OPERATION, "bias", rows, bias.len())?;
            let row = |i| source_row(i, rows, order).map_or(0.0, |row| bias[row]);
            device.upload(&(0..padded).map(row).collect::<Vec<_>>())
        });
        Ok(Weight { rows, cols, order, values, bias: bias.transpose()? })
    }

    /// `(rows, cols)`.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Columns of the activations that it multiplies: `cols` rounded up to 128.
    pub fn k(&self) -> usize {
        self.cols.next_multiple_of(ALIGN)
    }

    /// Bytes on the device, without the bias.
    pub fn bytes(&self) -> u64 {
        match &self.values {
            Values::Int8 { q, scale } => q.bytes() + scale.bytes(),
            Values::Bf16(values) => values.bytes(),
            Values::Rotated { q, scale } => q.bytes() + scale.bytes(),
        }
    }

    /// Whether it is int8 and not rotated.
    pub fn is_int8(&self) -> bool {
        matches!(self.values, Values::Int8 { .. })
    }

    /// Whether it is rotated: it multiplies [`Input::Rotated`] and [`Input::RotatedInt8`] only.
    pub fn is_rotated(&self) -> bool {
        matches!(self.values, Values::Rotated { .. })
    }

    /// As an embedding table.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a rotated weight: its rows would have to be rotated back.
    pub fn table(&self) -> Result<Table<'_>> {
        match &self.values {
            Values::Int8 { q, scale } => Ok(Table::Int8 { q, scale }),
            Values::Bf16(values) => Ok(Table::Bf16(values)),
            Values::Rotated { .. } => {
                let reason = "a rotated weight is no table of rows".into();
                Err(Error::Unsupported { operation: "Weight::table", reason })
            }
        }
    }
}

/// Activations.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// `(n, K)`, columns past those of the weight being zero.
    Bf16(&'a Buffer<bf16>),
    /// As [`crate::norm::Quantized`] describes; for int8 weights.
    Int8 {
        /// `(n, K)`.
        q: &'a Buffer<i8>,
        /// `(K / 32, scale_stride)`.
        scale: &'a Buffer<f32>,
        /// Rows that the scales have room for.
        scale_stride: usize,
    },
    /// `(n, K)`, as [`crate::norm::Rotated::Bf16`]; for rotated weights.
    Rotated(&'a Buffer<bf16>),
    /// As [`crate::norm::Rotated::Int8`] describes; for rotated weights.
    RotatedInt8 {
        /// `(n, K)`.
        q: &'a Buffer<i8>,
        /// `(n)`.
        scale: &'a Buffer<f32>,
    },
}

impl Input<'_> {
    fn name(&self) -> &'static str {
        match self {
            Input::Bf16(_) => "bf16",
            Input::Int8 { .. } => "int8",
            Input::Rotated(_) => "rotated bf16",
            Input::RotatedInt8 { .. } => "rotated int8",
        }
    }
}

/// The function `f` of a product; others than `Identity` are for feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// Nothing.
    Identity,
    /// `x (1 + erf(x / sqrt 2)) / 2` (arXiv 1606.08415).
    Gelu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `g / (1 + exp(-g)) u` of gates and ups ([`RowOrder::Gated`]), half as many columns (arXiv 2002.05202).
    SwiGlu,
    /// `g (1 + tanh(sqrt(2 / pi) (g + 0.044715 g^3))) / 2 u` of gates and ups, likewise.
    GeGlu,
}

/// Where a product is written. A row of bf16 is filled up with zeros, from the end of the result to the stride.
#[derive(Debug)]
pub enum Output<'a> {
    /// `out = f(x W^T + b)`, `(n, stride)`.
    Bf16(&'a mut Buffer<bf16>, Function),
    /// `out = x W^T + b`.
    F32(&'a mut Buffer<f32>),
    /// `out += x W^T + b`.
    AddF32(&'a mut Buffer<f32>),
}

/// How a product is computed; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// One order of summation, exact scales.
    Exact,
    /// The fastest that the device has.
    Fast,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Params {
    x: Ptr,
    q: Ptr,
    q_scale: Ptr,
    w: Ptr,
    w_scale: Ptr,
    bias: Ptr,
    out: Ptr,
    n: u32,
    n_groups: u32,
    out_cols: u32,
    out_stride: u32,
    q_scale_stride: u32,
    epilogue: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SplitParams {
    params: Params,
    parts: Ptr,
    rows: u64,
}

/// Multiplies rows `rows` of `x` by `w`; they go to the same rows of `out`, `(.., out_stride)`. `scratch` has
/// [`scratch_len`] elements for so many rows and this weight; what is in it does not matter.
///
/// # Errors
/// [`Error::Shape`] for a buffer that is too short, a stride that does not hold the result or, for bf16, is odd or
/// exceeds the packed rows of the weight, or a function that does not go with the order of the rows;
/// [`Error::Unsupported`] for int8 activations before bf16 weights, for a rotated operand beside one that is not, and
/// for rotated int8 of more than 131,072 columns; [`Error::Driver`], [`Error::ContextLost`].
pub fn gemm(
    device: &Device,
    x: Input,
    rows: Range<usize>,
    w: &Weight,
    out: Output,
    out_stride: usize,
    arithmetic: Arithmetic,
    scratch: &mut Buffer<f32>,
) -> Result<()> {
    const OPERATION: &str = "gemm";
    let k = w.k();
    let fit = rows.start <= rows.end && [rows.end, out_stride].iter().all(|&x| i32::try_from(x).is_ok());
    expect(fit, OPERATION, "sizes", "a range, within 31 bits", format!("{rows:?}, {out_stride}"))?;
    let n = rows.len();
    let holds = |len: usize, stride: usize| rows.end.checked_mul(stride).is_some_and(|need| need <= len);
    let mut params = Params {
        x: 0,
        q: 0,
        q_scale: 0,
        w: 0,
        w_scale: 0,
        bias: w.bias.as_ref().map_or(0, Buffer::ptr),
        out: 0,
        n: n as u32,
        n_groups: (k / GROUP) as u32,
        out_cols: 0,
        out_stride: out_stride as u32,
        q_scale_stride: 0,
        epilogue: 0,
    };
    let check_x = |len| expect(holds(len, k), OPERATION, "x", format!("{} rows of {k}", rows.end), len);
    let mode = match (x, &w.values) {
        (Input::Bf16(_), Values::Int8 { .. }) => Mode::W8A16,
        (Input::Bf16(_), Values::Bf16(_)) => Mode::W16A16,
        (Input::Int8 { .. }, Values::Int8 { .. }) => Mode::W8A8,
        (Input::Rotated(_), Values::Rotated { .. }) => Mode::R8A16,
        (Input::RotatedInt8 { .. }, Values::Rotated { .. }) => Mode::R8A8,
        (x, values) => {
            let reason = format!("{} activations do not go with {} weights", x.name(), values.name());
            return Err(Error::Unsupported { operation: OPERATION, reason });
        }
    };
    match x {
        Input::Bf16(x) | Input::Rotated(x) => {
            check_x(x.len())?;
            params.x = x.ptr() + (rows.start * k * size_of::<bf16>()) as u64;
        }
        Input::Int8 { q, scale, scale_stride } => {
            check_x(q.len())?;
            let room =
                scale_stride.is_multiple_of(4) && rows.end <= scale_stride && rows.start.is_multiple_of(4);
            let expected = format!("a multiple of 4 that holds rows from a multiple of 4 to {}", rows.end);
            expect(
                room && u32::try_from(scale_stride).is_ok(),
                OPERATION,
                "scale_stride",
                expected,
                scale_stride,
            )?;
            let need = scale_stride * (k / GROUP);
            expect(scale.len() >= need, OPERATION, "scale", need, scale.len())?;
            params.q = q.ptr() + (rows.start * k) as u64;
            params.q_scale = scale.ptr() + (rows.start * size_of::<f32>()) as u64;
            params.q_scale_stride = scale_stride as u32;
        }
        Input::RotatedInt8 { q, scale } => {
            check_x(q.len())?;
            expect(scale.len() >= rows.end, OPERATION, "scale", rows.end, scale.len())?;
            if k > MAX_INT8_K {
                let reason = format!("sums of {k} columns do not fit int32, at most {MAX_INT8_K} do");
                return Err(Error::Unsupported { operation: OPERATION, reason });
            }
            params.q = q.ptr() + (rows.start * k) as u64;
            params.q_scale = scale.ptr() + (rows.start * size_of::<f32>()) as u64;
        }
    }
    (params.w, params.w_scale) = match &w.values {
        Values::Int8 { q, scale } => (q.ptr(), scale.ptr()),
        Values::Bf16(values) => (values.ptr(), 0),
        Values::Rotated { q, scale } => (q.ptr(), scale.ptr()),
    };
    let gated = matches!(out, Output::Bf16(_, Function::SwiGlu | Function::GeGlu));
    let order = if gated { RowOrder::Gated } else { RowOrder::Plain };
    expect(
        w.order == order,
        OPERATION,
        "function",
        format!("one for {:?} rows", w.order),
        format!("{out:?}"),
    )?;
    let result_cols = if gated { w.rows / 2 } else { w.rows };
    expect(
        out_stride >= result_cols,
        OPERATION,
        "out_stride",
        format!("at least {result_cols}"),
        out_stride,
    )?;
    let (len, ptr, element_bytes) = match &out {
        Output::Bf16(out, _) => (out.len(), out.ptr(), size_of::<bf16>()),
        Output::F32(out) | Output::AddF32(out) => (out.len(), out.ptr(), size_of::<f32>()),
    };
    expect(holds(len, out_stride), OPERATION, "out", format!("{} rows of {out_stride}", rows.end), len)?;
    params.out = ptr + (rows.start * out_stride * element_bytes) as u64;
    (params.out_cols, params.epilogue) = match &out {
        Output::F32(_) => (result_cols as u32, 1),
        Output::AddF32(_) => (result_cols as u32, 2),
        Output::Bf16(_, function) => {
            let most = if gated { packed_rows(w.rows, order) / 2 } else { packed_rows(w.rows, order) };
            let good = out_stride.is_multiple_of(2) && out_stride <= most;
            expect(good, OPERATION, "out_stride", format!("even, at most {most}"), out_stride)?;
            let epilogue = match function {
                Function::Identity => 0,
                Function::Gelu => 3,
                Function::GeluTanh => 4,
                Function::SwiGlu => 5,
                Function::GeGlu => 6,
            };
            (out_stride as u32, epilogue)
        }
    };
    if n == 0 {
        return Ok(());
    }
    let (rows_of_x, rows) = (rows, packed_rows(w.rows, order));
    let multiprocessors = device.info().multiprocessors as usize;
    let sm90 =
        if device.is_hopper() { kernel_sm90(mode, arithmetic, n, rows, multiprocessors) } else { None };
    if let Some((name, grid, box_rows)) = sm90 {
        let shape = |element_bytes: u32| TensorShape {
            element_bytes,
            rows: n as u64,
            cols: k as u64,
            row_bytes: k as u64 * u64::from(element_bytes),
            box_rows,
            box_cols: 128 / element_bytes,
        };
        let x = match x {
            Input::Bf16(x) | Input::Rotated(x) => device.tensor_map_at(x, rows_of_x.start * k, shape(2))?,
            Input::Int8 { q, .. } | Input::RotatedInt8 { q, .. } => {
                device.tensor_map_at(q, rows_of_x.start * k, shape(1))?
            }
        };
        let params = Sm90Params { x, params };
        // SAFETY: as below.
        return unsafe { device.launch(Kernel { file: "gemm_sm90", name }, grid, &params) };
    }
    if let Some(kernels) = split_kernels(mode, n, rows, multiprocessors) {
        let need = SEGMENTS * n * rows;
        expect(scratch.len() >= need, OPERATION, "scratch", need, scratch.len())?;
        let params = SplitParams { params, parts: scratch.ptr(), rows: rows as u64 };
        for (name, grid) in kernels {
            // SAFETY: as below; the first kernel writes all the parts that the second one reads.
            unsafe { device.launch(Kernel { file: "gemm", name }, grid, &params)? };
        }
        return Ok(());
    }
    let (name, grid) = kernel(mode, n, rows);
    expect(grid.blocks[1] <= 65_535, OPERATION, "w", "at most 65535 blocks of rows", w.rows)?;
    // SAFETY: the lengths are checked above, those of the weight by `Weight::upload`.
    unsafe { device.launch(Kernel { file: "gemm", name }, grid, &params) }
}

/// f32s of scratch memory that [`gemm`] needs for up to `max_rows` rows of `x` and a weight of `rows` rows, on any
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
/// multiprocessors, each with few bytes on their way. A block for each of the 8 segments of K keeps all of them busy,
/// at the price of writing and reading the sums of the segments. It pays where at least half of the multiprocessors
/// would have nothing to do.
pub fn split_along_k(n: usize, rows: usize, multiprocessors: usize) -> bool {
    FEW < n && n <= SPLIT && rows.div_ceil(TILE_ROWS) <= (multiprocessors / 2).min(SPLIT_TILES)
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Sm90Params {
    x: TensorMap,
    params: Params,
}

/// The kernel of `gemm_sm90.cu` for `n` rows of x and so many packed ones of the weight, if there is one, and the
/// rows of a box of x.
fn kernel_sm90(
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
/// tiles for each multiprocessor and the narrow tiles are done earlier.
pub fn narrow_tiles(n: usize, rows: usize, multiprocessors: usize) -> bool {
    let tiles = |tokens: usize| n.div_ceil(tokens) * rows.div_ceil(TILE_ROWS);
    let rounds = |tokens| tiles(tokens).div_ceil(multiprocessors);
    n <= 128 || 2 * tiles(256) < 3 * multiprocessors && rounds(128) < 2 * rounds(256)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    W8A16,
    W16A16,
    W8A8,
    R8A16,
    R8A8,
}

/// The kernels of `gemm.cu` for a product that is split along K: the tiles of all segments, then their sum.
fn split_kernels(
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

/// Tiles of `tokens` rows of x by 128 of the weight, in so many stages.
fn tile_grid(mode: Mode, n: usize, rows: usize, tokens: usize, stages: usize) -> Grid {
    // A stage has the weights and scales of 128 rows; a group is 32 columns. Of a row of x it has 128 bytes and, for
    // int8, 4 scales.
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

/// The kernel of `gemm.cu` for `n` rows of x and so many packed ones of the weight.
fn kernel(mode: Mode, n: usize, rows: usize) -> (&'static str, Grid) {
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
        // Of 132 multiprocessors: tokens, rows of the weight, and whether tiles of 128 tokens are through earlier.
        let cases = [
            (128, 128 * 1000, true), // nothing but padding in the other half
            (256, 128 * 40, true),   // 40 tiles, or 80
            (256, 128 * 66, true),   // 66, or 132
            (256, 128 * 67, false),  // 67 in one round, or 134 in two of half the length
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
            (64, 128 * 64 + 1, false), // of the most that any device splits
            (65, 5120, false),         // two tiles of tokens
        ];
        for (n, rows, split) in cases {
            assert_eq!(split_along_k(n, rows, 132), split, "{n} of {rows}");
        }
        // 40 tiles leave half of 80 multiprocessors idle, and less of 79.
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
