//! Products of random activations and random weights. Weights are scaled so that results have the size of the
//! activations.

use half::bf16;
use welm_kernels::gemm::{
    ALIGN, Arithmetic, Function, Input, Output, Packed, RowOrder, Weight, bf16_bytes, gemm, int8_bytes,
    scratch_len,
};
use welm_kernels::norm::GROUP;
use welm_kernels::{Buffer, Device, Result};

use super::{Epilogue, Operands, Work, beginning, bf16_beginning, noise};

/// Rows up to which a product is timed as one of generated tokens (`Arithmetic::Exact`); with more it is one of a
/// prompt.
pub(super) const FEW: usize = 64;

enum X {
    Bf16(Buffer<bf16>),
    Int8 { q: Buffer<i8>, scale: Buffer<f32>, scale_stride: usize },
    Rotated(Buffer<bf16>),
    RotatedInt8 { q: Buffer<i8>, scale: Buffer<f32> },
}

impl X {
    fn new(device: &Device, operands: Operands, n: usize, k: usize) -> Result<X> {
        // Random int8 values have a standard deviation of 73.
        let size = 1.0 / 73.0;
        Ok(match operands {
            Operands::W8A16 | Operands::W16A16 => X::Bf16(noise::bf16s(device, n * k, 1.7, 1)?),
            Operands::R8A16 => X::Rotated(noise::bf16s(device, n * k, 1.7, 1)?),
            Operands::W8A8 => {
                let scale_stride = n.next_multiple_of(4);
                let scale = noise::scales(device, k / GROUP * scale_stride, size, 2)?;
                X::Int8 { q: noise::i8s(device, n * k, 1)?, scale, scale_stride }
            }
            Operands::R8A8 => {
                let scale = noise::scales(device, n, size, 2)?;
                X::RotatedInt8 { q: noise::i8s(device, n * k, 1)?, scale }
            }
        })
    }

    fn input(&self) -> Input<'_> {
        match self {
            X::Bf16(x) => Input::Bf16(x),
            X::Int8 { q, scale, scale_stride } => Input::Int8 { q, scale, scale_stride: *scale_stride },
            X::Rotated(x) => Input::Rotated(x),
            X::RotatedInt8 { q, scale } => Input::RotatedInt8 { q, scale },
        }
    }
}

enum Out {
    Bf16(Buffer<bf16>, Function),
    Add(Buffer<f32>),
}

/// Each set has a weight of its own.
pub(super) struct Product {
    weights: Vec<Weight>, // (rows, cols)
    x: X,                 // (n, cols)
    out: Out,             // (n, rows)
    scratch: Buffer<f32>,
    n: usize,
    rows: usize,
}

impl Product {
    pub(super) fn new(
        device: &Device,
        sets: usize,
        operands: Operands,
        epilogue: Epilogue,
        n: usize,
        cols: usize,
        rows: usize,
    ) -> Result<Self> {
        let packed = random(operands, rows, cols);
        let bias = vec![0.01; rows];
        let weight = || Weight::upload(device, rows, cols, RowOrder::Plain, &packed, Some(&bias));
        let weights = (0..sets).map(|_| weight()).collect::<Result<Vec<_>>>()?;
        let x = X::new(device, operands, n, cols.next_multiple_of(ALIGN))?;
        let out = match epilogue {
            Epilogue::Bf16 => Out::Bf16(device.zeros(n * rows)?, Function::Identity),
            Epilogue::Gelu => Out::Bf16(device.zeros(n * rows)?, Function::Gelu),
            Epilogue::Add => Out::Add(device.zeros(n * rows)?),
        };
        let scratch = device.uninit(scratch_len(n, rows))?;
        Ok(Product { weights, x, out, scratch, n, rows })
    }
}

impl Work for Product {
    fn launch(&mut self, device: &Device, set: usize) -> Result<()> {
        let out = match &mut self.out {
            Out::Bf16(out, function) => Output::Bf16(out, *function),
            Out::Add(out) => Output::AddF32(out),
        };
        let arithmetic = if self.n <= FEW { Arithmetic::Exact } else { Arithmetic::Fast };
        let (x, w) = (self.x.input(), &self.weights[set]);
        gemm(device, x, 0..self.n, w, out, self.rows, arithmetic, &mut self.scratch)
    }

    fn output(&self) -> Result<Vec<f32>> {
        match &self.out {
            Out::Bf16(out, _) => bf16_beginning(out),
            Out::Add(out) => beginning(out, |x| x),
        }
    }
}

/// A random weight whose products have the size of the activations. The order of the values in the packed form does not
/// matter.
fn random(operands: Operands, rows: usize, cols: usize) -> Packed {
    let size = 1.0 / (cols as f32).sqrt();
    // Bytes of a packed weight; of an int8 one, 16 of 17 bytes are values.
    let len = bf16_bytes(rows, cols, RowOrder::Plain) as usize / 2;
    debug_assert_eq!(int8_bytes(rows, cols, RowOrder::Plain) as usize, len + len / 16);
    match operands {
        Operands::W16A16 => Packed::Bf16(noise::host_bf16s(len, 1.7 * size, 5)),
        Operands::W8A16 | Operands::W8A8 => Packed::Int8 {
            q: noise::host_i8s(len, 5),
            scale: noise::host_f16_scales(len / GROUP, size / 73.0, 6),
        },
        Operands::R8A16 | Operands::R8A8 => Packed::Rotated {
            q: noise::host_i8s(len, 5),
            scale: noise::host_f32_scales(len / cols.next_multiple_of(ALIGN), size / 73.0, 6),
        },
    }
}
