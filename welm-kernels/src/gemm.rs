//! Matrix products with packed weights, `out = f(x W^T + b)` (`cuda/gemm.cu`, `cuda/gemm_sm90.cu`).
//!
//! [`Arithmetic::Exact`] gives a row of `x` the same bits however many others are computed with it: weights of int8
//! keep their f16 scales unrounded, activations are bf16, sums are f32 in one order. [`Arithmetic::Fast`] may use
//! whatever the device multiplies fastest with; a row's bits then still depend on that row only, but differ from
//! those of `Exact`. With int8 activations both are the same.

use std::ops::Range;

use half::{bf16, f16};

use crate::device::{Buffer, Device};
use crate::driver::{Grid, Kernel, Ptr, TensorMap, TensorShape};
use crate::error::{Error, Result, expect};
use crate::norm::{GROUP, Table};

/// Columns of a weight, and of the activations before it, are rounded up to a multiple of this.
pub const ALIGN: usize = 128;
const STRIP: usize = 16;
const TILE_ROWS: usize = 128;
const THREADS: u32 = 256;
/// Rows of `x` up to which weights go straight to registers.
const FEW: usize = 32;

/// Columns in the order of a lane: `2 t, 2 t + 1, 2 t + 8, 2 t + 9` of 16.
fn column(lane: usize, i: usize) -> usize {
    lane % 4 * 2 + i % 2 + i / 2 * 8
}

/// How the rows of a weight follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As they are.
    Plain,
    /// For [`Function::SwiGlu`]: the first half are gates, the second half ups; packed 8 gates, then their 8 ups.
    Gated,
}

/// Rows of a packed weight, a multiple of 128.
fn packed_rows(rows: usize, order: RowOrder) -> usize {
    match order {
        RowOrder::Plain => rows.next_multiple_of(TILE_ROWS),
        RowOrder::Gated => 2 * (rows / 2).next_multiple_of(TILE_ROWS / 2),
    }
}

/// The row that packed row `i` holds; none for padding.
fn source_row(i: usize, rows: usize, order: RowOrder) -> Option<usize> {
    let row = match order {
        RowOrder::Plain => i,
        RowOrder::Gated => {
            let gate = i / 16 * 8 + i % 8;
            let half = rows / 2;
            if gate >= half {
                return None;
            }
            gate + if i % 16 < 8 { 0 } else { half }
        }
    };
    (row < rows).then_some(row)
}

/// Bytes on the device of a packed int8 weight `(rows, cols)` with its scales.
pub fn int8_bytes(rows: usize, cols: usize, order: RowOrder) -> u64 {
    let size = packed_rows(rows, order) as u64 * cols.next_multiple_of(ALIGN) as u64;
    size + size / GROUP as u64 * size_of::<f16>() as u64
}

/// Bytes on the device of a packed bf16 weight `(rows, cols)`.
pub fn bf16_bytes(rows: usize, cols: usize, order: RowOrder) -> u64 {
    2 * packed_rows(rows, order) as u64 * cols.next_multiple_of(ALIGN) as u64
}

/// A weight on the host, packed as the kernels want it (`cuda/gemm.cuh`).
#[derive(Debug, Clone, PartialEq)]
pub enum Packed {
    /// A value is `q * scale`.
    Int8 {
        /// `(rows / 16, K / 32, 32, 16)`.
        q: Vec<i8>,
        /// `(rows / 16, K / 32, 8, 2)`.
        scale: Vec<f16>,
    },
    /// `(rows / 16, K / 32, 2, 32, 8)`.
    Bf16(Vec<bf16>),
}

impl Packed {
    /// Packs an int8 weight `(rows, cols)` on some threads. `row(i, q, scale)` fills in row `i`: `cols` values, and
    /// a scale for each 32 of them; what it leaves alone is zero.
    pub fn int8(
        rows: usize,
        cols: usize,
        order: RowOrder,
        threads: usize,
        row: impl Fn(usize, &mut [i8], &mut [f16]) + Sync,
    ) -> Packed {
        let (n_strips, k) = (packed_rows(rows, order) / STRIP, cols.next_multiple_of(ALIGN));
        let groups = k / GROUP;
        let mut q = vec![0i8; n_strips * STRIP * k];
        let mut scale = vec![f16::ZERO; n_strips * STRIP * groups];
        let part = n_strips.div_ceil(threads.max(1)).max(1);
        let strip = |strip: usize, q: &mut [i8], scale: &mut [f16]| {
            let (mut q_row, mut scale_row) = (vec![0i8; k], vec![f16::ZERO; groups]);
            for r in 0..STRIP {
                let Some(source) = source_row(strip * STRIP + r, rows, order) else { continue };
                q_row.fill(0);
                scale_row.fill(f16::ZERO);
                row(source, &mut q_row[..cols], &mut scale_row[..cols.div_ceil(GROUP)]);
                for (group, values) in q_row.chunks_exact(GROUP).enumerate() {
                    for (lane, half) in (0..4).flat_map(|t| [(r % 8 * 4 + t, 0), (r % 8 * 4 + t, 1)]) {
                        let to = ((group * 32 + lane) * 2 + half) * 8 + r / 8 * 4;
                        for i in 0..4 {
                            q[to + i] = values[half * 16 + column(lane, i)];
                        }
                    }
                    scale[group * STRIP + r % 8 * 2 + r / 8] = scale_row[group];
                }
            }
        };
        std::thread::scope(|scope| {
            let parts = q.chunks_mut(part * STRIP * k).zip(scale.chunks_mut(part * STRIP * groups));
            for (first, (q, scale)) in parts.enumerate() {
                let strip = &strip;
                scope.spawn(move || {
                    let strips = q.chunks_mut(STRIP * k).zip(scale.chunks_mut(STRIP * groups));
                    strips.enumerate().for_each(|(i, (q, scale))| strip(first * part + i, q, scale));
                });
            }
        });
        Packed::Int8 { q, scale }
    }

    /// Packs a bf16 weight `(rows, cols)` on some threads; `row(i, values)` fills in `cols` values of row `i`.
    pub fn bf16(
        rows: usize,
        cols: usize,
        order: RowOrder,
        threads: usize,
        row: impl Fn(usize, &mut [bf16]) + Sync,
    ) -> Packed {
        let (n_strips, k) = (packed_rows(rows, order) / STRIP, cols.next_multiple_of(ALIGN));
        let mut values = vec![bf16::ZERO; n_strips * STRIP * k];
        let part = n_strips.div_ceil(threads.max(1)).max(1);
        let strip = |strip: usize, to: &mut [bf16]| {
            let mut from = vec![bf16::ZERO; k];
            for r in 0..STRIP {
                let Some(source) = source_row(strip * STRIP + r, rows, order) else { continue };
                from.fill(bf16::ZERO);
                row(source, &mut from[..cols]);
                for (piece, from) in from.chunks_exact(16).enumerate() {
                    for lane in r % 8 * 4..r % 8 * 4 + 4 {
                        let at = (piece * 32 + lane) * 8 + r / 8 * 4;
                        (0..4).for_each(|i| to[at + i] = from[column(lane, i)]);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for (first, values) in values.chunks_mut(part * STRIP * k).enumerate() {
                let strip = &strip;
                scope.spawn(move || {
                    values.chunks_mut(STRIP * k).enumerate().for_each(|(i, to)| strip(first * part + i, to));
                });
            }
        });
        Packed::Bf16(values)
    }
}

#[derive(Debug)]
enum Values {
    Int8 { q: Buffer<i8>, scale: Buffer<f16> },
    Bf16(Buffer<bf16>),
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
        }
    }

    /// As an embedding table.
    pub fn table(&self) -> Table<'_> {
        match &self.values {
            Values::Int8 { q, scale } => Table::Int8 { q, scale },
            Values::Bf16(values) => Table::Bf16(values),
        }
    }
}

/// Activations before a product.
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
}

/// What the feed-forward half does with its first product.
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
}

/// Where a product goes. Columns of `out` past those of the result and within its stride are zeroed if it is bf16.
#[derive(Debug)]
pub enum Output<'a> {
    /// `out = f(x W^T + b)`, `(n, stride)`.
    Bf16(&'a mut Buffer<bf16>, Function),
    /// `out = x W^T + b`.
    F32(&'a mut Buffer<f32>),
    /// `out += x W^T + b`.
    AddF32(&'a mut Buffer<f32>),
}

/// How exact a product is, and what its bits depend on; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    /// One order of summation, exact scales.
    Exact,
    /// The fastest of the device.
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

/// Multiplies rows `rows` of `x` by `w`; they go to the same rows of `out`, `(.., out_stride)`.
///
/// # Errors
/// [`Error::Shape`] for a buffer that is too short, a stride that does not hold the result or, for bf16, is odd or
/// exceeds the packed rows of the weight, or a function that does not go with the order of the rows;
/// [`Error::Unsupported`] for int8 activations before bf16 weights; [`Error::Driver`], [`Error::ContextLost`].
pub fn gemm(
    device: &Device,
    x: Input,
    rows: Range<usize>,
    w: &Weight,
    out: Output,
    out_stride: usize,
    arithmetic: Arithmetic,
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
    let mode = match (x, &w.values) {
        (Input::Bf16(x), values) => {
            expect(holds(x.len(), k), OPERATION, "x", format!("{} rows of {k}", rows.end), x.len())?;
            params.x = x.ptr() + (rows.start * k * size_of::<bf16>()) as u64;
            if matches!(values, Values::Bf16(_)) { Mode::W16A16 } else { Mode::W8A16 }
        }
        (Input::Int8 { q, scale, scale_stride }, Values::Int8 { .. }) => {
            expect(holds(q.len(), k), OPERATION, "x", format!("{} rows of {k}", rows.end), q.len())?;
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
            Mode::W8A8
        }
        (Input::Int8 { .. }, Values::Bf16(_)) => {
            let reason = "int8 activations go with int8 weights, not with bf16 ones".into();
            return Err(Error::Unsupported { operation: OPERATION, reason });
        }
    };
    (params.w, params.w_scale) = match &w.values {
        Values::Int8 { q, scale } => (q.ptr(), scale.ptr()),
        Values::Bf16(values) => (values.ptr(), 0),
    };
    let gated = matches!(out, Output::Bf16(_, Function::SwiGlu));
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
            };
            (out_stride as u32, epilogue)
        }
    };
    if n == 0 {
        return Ok(());
    }
    let (rows_of_x, rows) = (rows, packed_rows(w.rows, order));
    if device.is_hopper() && (arithmetic == Arithmetic::Fast || mode == Mode::W8A8) {
        let (name, grid, box_rows) = kernel_sm90(mode, n, rows);
        let shape = |element_bytes: u32| TensorShape {
            element_bytes,
            rows: n as u64,
            cols: k as u64,
            row_bytes: k as u64 * u64::from(element_bytes),
            box_rows,
            box_cols: 128 / element_bytes,
        };
        let x = match x {
            Input::Bf16(x) => device.tensor_map_at(x, rows_of_x.start * k, shape(2))?,
            Input::Int8 { q, .. } => device.tensor_map_at(q, rows_of_x.start * k, shape(1))?,
        };
        let params = Sm90Params { x, params };
        // SAFETY: as below.
        return unsafe { device.launch(Kernel { file: "gemm_sm90", name }, grid, &params) };
    }
    let (name, grid) = kernel(mode, n, rows);
    expect(grid.blocks[1] <= 65_535, OPERATION, "w", "at most 65535 blocks of rows", w.rows)?;
    // SAFETY: the lengths are checked above, those of the weight by `Weight::upload`.
    unsafe { device.launch(Kernel { file: "gemm", name }, grid, &params) }
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Sm90Params {
    x: TensorMap,
    params: Params,
}

/// The kernel of `gemm_sm90.cu` for a mode, and the rows of a box of x.
fn kernel_sm90(mode: Mode, n: usize, rows: usize) -> (&'static str, Grid, u32) {
    // A stage: x, weights, scales of weights, scales of x; rounded up to 1,024 bytes.
    let kernel = |name, tokens: usize, stages: usize, stage: usize| {
        let barriers = 2 * stages * size_of::<u64>();
        let shared_bytes = (stages * stage.next_multiple_of(1024) + barriers) as u32;
        let blocks = [n.div_ceil(tokens) as u32, (rows / TILE_ROWS) as u32, 1];
        (name, Grid { blocks, threads: 384, shared_bytes }, tokens as u32)
    };
    let groups = TILE_ROWS * GROUP;
    match mode {
        Mode::W8A16 => kernel("gemm_w8a16_sm90", 256, 5, 256 * 128 + 2 * (groups + 2 * TILE_ROWS)),
        Mode::W16A16 => kernel("gemm_w16a16_sm90", 256, 4, 256 * 128 + 2 * 2 * groups),
        Mode::W8A8 => kernel("gemm_w8a8_sm90", 128, 6, 128 * 144 + 4 * (groups + 2 * TILE_ROWS)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    W8A16,
    W16A16,
    W8A8,
}

/// The kernel of `gemm.cu` for `n` rows of x and so many packed ones of the weight.
fn kernel(mode: Mode, n: usize, rows: usize) -> (&'static str, Grid) {
    // A strip's sums of all segments: (8, tokens, rows + 4) f32.
    let few = |name, tokens: usize, strips: usize| {
        let blocks = [n.div_ceil(tokens) as u32, (rows / STRIP / strips) as u32, 1];
        let shared_bytes = (8 * tokens * (strips * STRIP + 4) * size_of::<f32>()) as u32;
        (name, Grid { blocks, threads: THREADS, shared_bytes })
    };
    if n <= FEW && mode != Mode::W8A8 {
        return match (mode, n <= 8) {
            (Mode::W8A16, true) => few("gemm_w8a16_few8", 8, 1),
            (Mode::W8A16, false) => few("gemm_w8a16_few16", 16, 2),
            (_, true) => few("gemm_w16a16_few8", 8, 1),
            (_, false) => few("gemm_w16a16_few16", 16, 1),
        };
    }
    // Of 128 rows and 32 columns: weights, scales; of a row of x: 128 bytes and, if int8, 4 scales.
    let tile = |name, tokens: usize, stages: usize| {
        let stage = match mode {
            Mode::W8A16 => 2 * (TILE_ROWS * GROUP + 2 * TILE_ROWS) + tokens * 128,
            Mode::W16A16 => 2 * (2 * TILE_ROWS * GROUP) + tokens * 128,
            Mode::W8A8 => 4 * (TILE_ROWS * GROUP + 2 * TILE_ROWS) + tokens * 144,
        };
        let sums = tokens * (TILE_ROWS + 4) * size_of::<f32>();
        let blocks = [n.div_ceil(tokens) as u32, (rows / TILE_ROWS) as u32, 1];
        (name, Grid { blocks, threads: THREADS, shared_bytes: (stages * stage).max(sums) as u32 })
    };
    match (mode, n <= 128) {
        (Mode::W8A16, true) => tile("gemm_w8a16_tile64", 64, 4),
        (Mode::W8A16, false) => tile("gemm_w8a16_tile128", 128, 3),
        (Mode::W16A16, true) => tile("gemm_w16a16_tile64", 64, 3),
        (Mode::W16A16, false) => tile("gemm_w16a16_tile128", 128, 3),
        (Mode::W8A8, true) => tile("gemm_w8a8_tile64", 64, 3),
        (Mode::W8A8, false) => tile("gemm_w8a8_tile128", 128, 2),
    }
}
