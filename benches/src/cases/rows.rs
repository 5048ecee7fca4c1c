//! Kernels that work on single rows. Each set has rows and results of its own.

use half::bf16;
use welm_kernels::attention::BLOCK_KEYS;
use welm_kernels::gemm::ALIGN;
use welm_kernels::norm::{GROUP, Norm, Quantized, Rotated, Rows, norm, quantize, rotate};
use welm_kernels::rope::{Pairing, Rope, rope_and_cache};
use welm_kernels::sample::{TopK, top_k};
use welm_kernels::{Buffer, Device, Result};

use super::{Form, Heads, Work, beginning, bf16_beginning, noise};

/// Rows in one of the forms.
enum Out {
    Bf16(Buffer<bf16>),
    Int8 { q: Buffer<i8>, scale: Buffer<f32>, scale_stride: usize },
    Rotated(Buffer<bf16>),
    RotatedInt8 { q: Buffer<i8>, scale: Buffer<f32> },
}

impl Out {
    fn new(device: &Device, form: Form, n: usize, stride: usize) -> Result<Out> {
        Ok(match form {
            Form::Bf16 => Out::Bf16(device.zeros(n * stride)?),
            Form::Rotated => Out::Rotated(device.zeros(n * stride)?),
            Form::Int8 => {
                let scale_stride = n.next_multiple_of(4);
                let scale = device.zeros(stride / GROUP * scale_stride)?;
                Out::Int8 { q: device.zeros(n * stride)?, scale, scale_stride }
            }
            Form::RotatedInt8 => Out::RotatedInt8 { q: device.zeros(n * stride)?, scale: device.zeros(n)? },
        })
    }

    fn rows(&mut self) -> Rows<'_> {
        match self {
            Out::Bf16(out) => Rows::Bf16(out),
            Out::Int8 { q, scale, scale_stride } => {
                Rows::Int8(Quantized { q, scale, scale_stride: *scale_stride })
            }
            Out::Rotated(out) => Rows::Rotated(Rotated::Bf16(out)),
            Out::RotatedInt8 { q, scale } => Rows::Rotated(Rotated::Int8 { q, scale }),
        }
    }

    fn beginning(&self) -> Result<Vec<f32>> {
        match self {
            Out::Bf16(out) | Out::Rotated(out) => bf16_beginning(out),
            Out::Int8 { q, .. } | Out::RotatedInt8 { q, .. } => beginning(q, f32::from),
        }
    }
}

/// A layernorm of the residual stream.
pub(super) struct Normed {
    x: Vec<Buffer<f32>>, // (n, dim) each
    weight: Buffer<f32>, // (dim)
    bias: Buffer<f32>,   // (dim)
    out: Vec<Out>,       // (n, stride) each
    n: usize,
    dim: usize,
}

impl Normed {
    pub(super) fn new(device: &Device, sets: usize, form: Form, n: usize, dim: usize) -> Result<Self> {
        let stride = dim.next_multiple_of(ALIGN);
        Ok(Normed {
            x: (0..sets).map(|i| noise::f32s(device, n * dim, 3.0, i as u64)).collect::<Result<_>>()?,
            weight: noise::scales(device, dim, 1.0, 1)?,
            bias: noise::f32s(device, dim, 0.1, 2)?,
            out: (0..sets).map(|_| Out::new(device, form, n, stride)).collect::<Result<_>>()?,
            n,
            dim,
        })
    }
}

impl Work for Normed {
    fn launch(&mut self, device: &Device, set: usize) -> Result<()> {
        let formula = Norm { weight: &self.weight, bias: Some(&self.bias), eps: 1e-5, layernorm: true };
        let (out, stride) = (self.out[set].rows(), self.dim.next_multiple_of(ALIGN));
        norm(device, &formula, &self.x[set], self.dim, None, 0..self.n, out, stride)
    }

    fn output(&self) -> Result<Vec<f32>> {
        self.out[0].beginning()
    }
}

/// bf16 rows to int8, rotated or both.
pub(super) struct Converted {
    x: Vec<Buffer<bf16>>, // (n, stride) each
    out: Vec<Out>,        // likewise
    n: usize,
    stride: usize,
}

impl Converted {
    pub(super) fn new(device: &Device, sets: usize, form: Form, n: usize, dim: usize) -> Result<Self> {
        let stride = dim.next_multiple_of(ALIGN);
        Ok(Converted {
            x: (0..sets).map(|i| noise::bf16s(device, n * stride, 2.0, i as u64)).collect::<Result<_>>()?,
            out: (0..sets).map(|_| Out::new(device, form, n, stride)).collect::<Result<_>>()?,
            n,
            stride,
        })
    }
}

impl Work for Converted {
    fn launch(&mut self, device: &Device, set: usize) -> Result<()> {
        let (x, rows) = (&self.x[set], 0..self.n);
        match self.out[set].rows() {
            Rows::Int8(out) => quantize(device, x, rows, self.stride, out),
            Rows::Rotated(out) => rotate(device, x, rows, self.stride, out),
            Rows::Bf16(_) => unreachable!("no shape converts bf16 to bf16"),
        }
    }

    fn output(&self) -> Result<Vec<f32>> {
        self.out[0].beginning()
    }
}

/// Rotary embedding of queries and keys. A rotation does not change their size, however often it is repeated.
pub(super) struct Turned {
    heads: Heads,
    n: usize,
    qkv: Vec<Buffer<bf16>>,  // (n, qkv_dim) each
    slots: Vec<Buffer<u32>>, // (n) each
    cos: Buffer<f32>,        // (n, head_dim / 2)
    sin: Buffer<f32>,        // likewise
    k: Buffer<bf16>,         // (n_blocks, n_kv_heads, BLOCK_KEYS, head_dim)
    v: Buffer<bf16>,         // likewise
}

impl Turned {
    pub(super) fn new(device: &Device, sets: usize, heads: Heads, n: usize) -> Result<Self> {
        let blocks = n.div_ceil(BLOCK_KEYS);
        let cache = sets * blocks * heads.n_kv_heads * BLOCK_KEYS * heads.head_dim;
        let order = noise::order(sets * blocks, 3);
        let slots = |set: usize| {
            let slot =
                |i: usize| order[set * blocks + i / BLOCK_KEYS] * BLOCK_KEYS as u32 + (i % BLOCK_KEYS) as u32;
            device.upload(&(0..n).map(slot).collect::<Vec<_>>())
        };
        let half = heads.head_dim / 2;
        let angles =
            (0..n * half).map(|i| (i / half) as f32 * 10_000f32.powf(-((i % half) as f32) / half as f32));
        let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
        let rows = n * heads.qkv_dim();
        Ok(Turned {
            heads,
            n,
            qkv: (0..sets).map(|i| noise::bf16s(device, rows, 1.0, i as u64)).collect::<Result<_>>()?,
            slots: (0..sets).map(slots).collect::<Result<_>>()?,
            cos: device.upload(&cos)?,
            sin: device.upload(&sin)?,
            k: device.zeros(cache)?,
            v: device.zeros(cache)?,
        })
    }
}

impl Work for Turned {
    fn launch(&mut self, device: &Device, set: usize) -> Result<()> {
        let Heads { n_heads, n_kv_heads, head_dim } = self.heads;
        let rope = Rope {
            n_heads,
            n_kv_heads,
            head_dim,
            rotary_dim: head_dim,
            pairing: Pairing::HalfSplit,
            q_norm: None,
            k_norm: None,
            eps: 0.0,
        };
        let (qkv, stride, slots) = (&mut self.qkv[set], self.heads.qkv_dim(), &self.slots[set]);
        let (k, v) = (&mut self.k, &mut self.v);
        rope_and_cache(device, &rope, qkv, stride, self.n, &self.cos, &self.sin, slots, k, v)
    }

    fn output(&self) -> Result<Vec<f32>> {
        bf16_beginning(&self.qkv[0])
    }
}

/// The largest logits of a row.
pub(super) struct Largest {
    logits: Vec<Buffer<f32>>, // (n, vocab) each
    top: TopK,
    n: usize,
    vocab: usize,
}

impl Largest {
    pub(super) fn new(device: &Device, sets: usize, n: usize, vocab: usize, k: usize) -> Result<Self> {
        let logits = (0..sets).map(|i| noise::f32s(device, n * vocab, 10.0, i as u64));
        Ok(Largest { logits: logits.collect::<Result<_>>()?, top: TopK::new(device, n, vocab, k)?, n, vocab })
    }
}

impl Work for Largest {
    fn launch(&mut self, device: &Device, set: usize) -> Result<()> {
        top_k(device, &self.logits[set], self.n, self.vocab, &mut self.top)
    }

    fn output(&self) -> Result<Vec<f32>> {
        beginning(self.top.values(), |x| x)
    }
}
