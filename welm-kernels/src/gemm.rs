//! Matrix products with packed weights, `out = f(x W^T + b)` (`cuda/gemm.cu`, `cuda/gemm_sm90.cu`).
//!
//! There are two kinds of arithmetic. In both, the bits of a row depend on that row of `x` only, not on how many others
//! are computed with it.
//!
//! - [`Arithmetic::Exact`]: activations are bf16, the f16 scales of int8 weights are not rounded, and sums are f32 in one
//!   order.
//! - [`Arithmetic::Fast`]: whatever the device multiplies fastest with. The bits differ from those of `Exact`.
//!
//! With int8 activations both are the same.
//!
//! Int8 activations with a scale for every 32 columns ([`Input::Int8`]) are the slow form of int8: each sum of 32
//! columns is converted to f32 and scaled. On Hopper this is predicted to take longer than the products themselves, and
//! longer than the same product with bf16 activations. The rotated form ([`Input::RotatedInt8`]) scales once, at the
//! end. Neither was measured on a GPU yet.
//!
//! A rotated weight gives the same product as `(x R) (W R)^T`. R spreads a large value in one column over 64 columns, so
//! that int8 needs only one scale for a row. Its activations are rotated as well ([`crate::norm::rotate`]): as bf16 they
//! are multiplied as in `Exact`, as int8 there is one exact sum.

mod choice;
mod packed;

use std::ops::Range;

use half::{bf16, f16};

use crate::device::{Buffer, Device};
use crate::driver::{Kernel, Ptr, TensorMap, TensorShape};
use crate::error::{Error, Result, expect};
use crate::norm::{GROUP, Table};

pub use crate::norm::ALIGN;

use self::choice::{Mode, SEGMENTS, kernel, kernel_sm90, split_kernels};
pub use self::choice::{narrow_tiles, scratch_len, split_along_k};
pub use self::packed::{Packed, RowOrder, bf16_bytes, int8_bytes, rotated_bytes};
use self::packed::{packed_rows, source_row};

const STRIP: usize = 16;
const TILE_ROWS: usize = 128;
/// Most columns whose sum of int8 products fits int32: `127 * 127 * 131,072 < 2^31`.
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
    /// `(n, K)`. Columns past those of the weight are zero.
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

/// The function `f` of a product. All but `Identity` are for feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// Nothing.
    Identity,
    /// `x (1 + erf(x / sqrt 2)) / 2` (arXiv 1606.08415).
    Gelu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `g / (1 + exp(-g)) u` of gates and ups ([`RowOrder::Gated`]). The result has half as many columns as the weight
    /// has rows (arXiv 2002.05202).
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

const OPERATION: &str = "gemm";

/// Multiplies rows `rows` of `x` by `w`; the results go to the same rows of `out`, `(.., out_stride)`. `scratch` has
/// [`scratch_len`] elements for this number of rows and this weight; what is in it does not matter.
///
/// # Errors
/// [`Error::Shape`] for a buffer that is too short, a stride that does not hold the result or, for bf16, is odd or
/// exceeds the packed rows of the weight, or a function that does not go with the order of the rows;
/// [`Error::Unsupported`] for int8 activations with bf16 weights, for a rotated operand with one that is not, and
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
    let k = w.k();
    let fit = rows.start <= rows.end && [rows.end, out_stride].iter().all(|&x| i32::try_from(x).is_ok());
    expect(fit, OPERATION, "sizes", "a range, within 31 bits", format!("{rows:?}, {out_stride}"))?;
    let mut params = Params {
        x: 0,
        q: 0,
        q_scale: 0,
        w: 0,
        w_scale: 0,
        bias: w.bias.as_ref().map_or(0, Buffer::ptr),
        out: 0,
        n: rows.len() as u32,
        n_groups: (k / GROUP) as u32,
        out_cols: 0,
        out_stride: out_stride as u32,
        q_scale_stride: 0,
        epilogue: 0,
    };
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
    take_x(&mut params, x, &rows, k)?;
    (params.w, params.w_scale) = match &w.values {
        Values::Int8 { q, scale } => (q.ptr(), scale.ptr()),
        Values::Bf16(values) => (values.ptr(), 0),
        Values::Rotated { q, scale } => (q.ptr(), scale.ptr()),
    };
    take_out(&mut params, &out, &rows, w)?;
    if rows.is_empty() {
        return Ok(());
    }
    launch(device, params, mode, x, rows, w, arithmetic, scratch)
}

/// Whether rows `..end` at this stride are within `len` elements.
fn holds(end: usize, stride: usize, len: usize) -> bool {
    end.checked_mul(stride).is_some_and(|need| need <= len)
}

/// Checks the rows of x and sets their addresses.
fn take_x(params: &mut Params, x: Input, rows: &Range<usize>, k: usize) -> Result<()> {
    let check_x =
        |len| expect(holds(rows.end, k, len), OPERATION, "x", format!("{} rows of {k}", rows.end), len);
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
    Ok(())
}

/// Checks the room for the result, and sets its address and the epilogue.
fn take_out(params: &mut Params, out: &Output, rows: &Range<usize>, w: &Weight) -> Result<()> {
    let out_stride = params.out_stride as usize;
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
    let (len, ptr, element_bytes) = match out {
        Output::Bf16(out, _) => (out.len(), out.ptr(), size_of::<bf16>()),
        Output::F32(out) | Output::AddF32(out) => (out.len(), out.ptr(), size_of::<f32>()),
    };
    expect(
        holds(rows.end, out_stride, len),
        OPERATION,
        "out",
        format!("{} rows of {out_stride}", rows.end),
        len,
    )?;
    params.out = ptr + (rows.start * out_stride * element_bytes) as u64;
    (params.out_cols, params.epilogue) = match out {
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
    Ok(())
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Sm90Params {
    x: TensorMap,
    params: Params,
}

/// Launches the kernels of a product whose operands are checked.
fn launch(
    device: &Device,
    params: Params,
    mode: Mode,
    x: Input,
    rows_of_x: Range<usize>,
    w: &Weight,
    arithmetic: Arithmetic,
    scratch: &mut Buffer<f32>,
) -> Result<()> {
    let (n, k, rows) = (rows_of_x.len(), w.k(), packed_rows(w.rows, w.order));
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
