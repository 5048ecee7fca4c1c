//! All kernels that the launchers start, each with the threads and the shared memory of a block.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use welm_kernels::attention::{
    Attention, Span, attention_decode, attention_prefill, decode_scratch_len, prefill_tiles,
};
use welm_kernels::driver::{DeviceInfo, Driver, Grid, Kernel, Ptr, TensorMap, TensorShape};
use welm_kernels::gemm::{Arithmetic, Function, Input, Output, Packed, RowOrder, Weight, gemm, scratch_len};
use welm_kernels::norm::{Norm, Quantized, Rotated, Rows, embed, norm, norm_add, quantize, rotate};
use welm_kernels::rope::{Pairing, Rope, rope_and_cache};
use welm_kernels::sample::{Sampling, TopK, argmax, sample_top, soft_cap, top_k};
use welm_kernels::{Buffer, Device, Result};

/// Widths of normalised rows, one for every kind of kernel. The last is too wide for registers, so that its row is in
/// shared memory.
pub(crate) const WIDTHS: [usize; 4] = [2048, 5120, 8192, 9216];
/// Rows of x in products, likewise. The last gives more tiles than a device can run at once.
const ROWS: [usize; 9] = [1, 8, 16, 32, 48, 64, 128, 256, 1 << 16];

/// For the name of each kernel, the grid with the most shared memory.
pub(crate) type Launches = BTreeMap<&'static str, Grid>;

/// The launches of all launchers on devices of capability 8.0 and 9.0.
pub(crate) fn launches() -> Launches {
    let launches = Arc::new(Mutex::new(Launches::new()));
    for (capability, shared_bytes) in [((8, 0), 163 << 10), ((9, 0), 227 << 10)] {
        let recorder = Recorder { capability, shared_bytes, launches: launches.clone() };
        let device = Device::with_driver(Arc::new(recorder));
        all(&device).unwrap_or_else(|error| panic!("{capability:?}: {error}"));
    }
    let launches = launches.lock().unwrap();
    launches.clone()
}

fn all(device: &Device) -> Result<()> {
    for head_dim in [64, 80, 96, 128] {
        heads(device, head_dim)?;
    }
    for n in ROWS {
        products(device, n)?;
    }
    for width in WIDTHS {
        rows(device, width)?;
    }
    embeddings(device)?;
    tokens(device)
}

fn heads(device: &Device, head_dim: usize) -> Result<()> {
    let (n_rows, stride) = (1, (3 * head_dim).next_multiple_of(64));
    let mut qkv = device.zeros(stride)?;
    let (mut k, mut v) = (device.zeros(16 * head_dim)?, device.zeros(16 * head_dim)?);
    let one = device.upload(&[0u32])?;
    let angles = device.zeros(head_dim / 2)?;
    let rope = Rope {
        n_heads: 1,
        n_kv_heads: 1,
        head_dim,
        rotary_dim: head_dim,
        pairing: Pairing::HalfSplit,
        q_norm: None,
        k_norm: None,
        eps: 0.0,
    };
    rope_and_cache(device, &rope, &mut qkv, stride, 1, &angles, &angles, &one, &mut k, &mut v)?;
    let attention = Attention {
        n_heads: 1,
        n_kv_heads: 1,
        head_dim,
        window: 0,
        scale: 1.0,
        soft_cap: None,
        qkv: &qkv,
        qkv_stride: stride,
        k: &k,
        v: &v,
        block_tables: &one,
        n_rows,
        out_stride: stride,
    };
    let mut out = device.zeros(stride)?;
    let spans = [Span { n_rows: 1, ..Span::default() }];
    let tiles = device.upload(&prefill_tiles(device, &spans))?;
    attention_prefill(device, &attention, &device.upload(&spans)?, &tiles, tiles.len(), &mut out)?;
    // This many keys are split among several blocks.
    let keys = 1 << 16;
    let mut scratch = device.zeros(decode_scratch_len(n_rows, 1, head_dim, keys))?;
    attention_decode(device, &attention, 0..1, &one, &one, keys, &mut scratch, &mut out)
}

fn products(device: &Device, n: usize) -> Result<()> {
    let (out_cols, k, order) = (128, 128, RowOrder::Plain);
    let int8 = Packed::int8(out_cols, k, order, 1, |_, _, _| {});
    let wide = Packed::bf16(out_cols, k, order, 1, |_, _| {});
    let rotated = Packed::rotated(out_cols, k, order, 1, |_, _| {})?;
    let [int8, wide, rotated] =
        [int8, wide, rotated].map(|packed| Weight::upload(device, out_cols, k, order, &packed, None));
    let (int8, wide, rotated) = (int8?, wide?, rotated?);
    let (x, q, scale) = (device.zeros(n * k)?, device.zeros(n * k)?, device.zeros(n * k)?);
    let (mut halves, mut floats) = (device.zeros(n * out_cols)?, device.zeros(n * out_cols)?);
    let mut scratch = device.uninit(scratch_len(n, out_cols))?;
    let inputs = [
        (Input::Bf16(&x), &int8),
        (Input::Bf16(&x), &wide),
        (Input::Int8 { q: &q, scale: &scale, scale_stride: n.next_multiple_of(4) }, &int8),
        (Input::Rotated(&x), &rotated),
        (Input::RotatedInt8 { q: &q, scale: &scale }, &rotated),
    ];
    for (input, weight) in inputs {
        for arithmetic in [Arithmetic::Exact, Arithmetic::Fast] {
            let outputs = [Output::Bf16(&mut halves, Function::Gelu), Output::AddF32(&mut floats)];
            for output in outputs {
                gemm(device, input, 0..n, weight, output, out_cols, arithmetic, &mut scratch)?;
            }
        }
    }
    Ok(())
}

fn rows(device: &Device, width: usize) -> Result<()> {
    let (weight, x) = (device.zeros::<f32>(width)?, device.zeros::<f32>(width)?);
    let mut out = device.zeros::<bf16>(width)?;
    let (mut q, mut scale) = (device.zeros::<i8>(width)?, device.zeros::<f32>(width)?);
    let rmsnorm = Norm { weight: &weight, bias: None, eps: 0.0, layernorm: false };
    let normed = |rows: Rows| norm(device, &rmsnorm, &x, width, None, 0..1, rows, width);
    normed(Rows::Bf16(&mut out))?;
    normed(Rows::Int8(Quantized { q: &mut q, scale: &mut scale, scale_stride: 4 }))?;
    normed(Rows::Rotated(Rotated::Bf16(&mut out)))?;
    normed(Rows::Rotated(Rotated::Int8 { q: &mut q, scale: &mut scale }))?;
    norm_add(device, &rmsnorm, &x, width, 0..1, &mut device.zeros(width)?)?;
    let halves = device.zeros::<bf16>(width)?;
    let to = Quantized { q: &mut q, scale: &mut scale, scale_stride: 4 };
    quantize(device, &halves, 0..1, width, to)?;
    rotate(device, &halves, 0..1, width, Rotated::Bf16(&mut out))?;
    rotate(device, &halves, 0..1, width, Rotated::Int8 { q: &mut q, scale: &mut scale })
}

fn embeddings(device: &Device) -> Result<()> {
    let (token, mut x) = (device.upload(&[0u32])?, device.zeros::<f32>(128)?);
    let (rows, cols, order) = (128, 128, RowOrder::Plain);
    let int8 = Packed::int8(rows, cols, order, 1, |_, _: &mut [i8], _: &mut [f16]| {});
    for packed in [int8, Packed::bf16(rows, cols, order, 1, |_, _| {})] {
        let weight = Weight::upload(device, rows, cols, order, &packed, None)?;
        embed(device, &token, 1, weight.table()?, rows, cols, 1.0, &mut x)?;
    }
    Ok(())
}

fn tokens(device: &Device) -> Result<()> {
    let vocab = 1 << 16;
    let (mut logits, mut tokens) = (device.zeros::<f32>(vocab)?, device.zeros::<u32>(1)?);
    soft_cap(device, &mut logits, 1, vocab, 30.0)?;
    let mut top = TopK::new(device, 1, vocab, 64)?;
    argmax(device, &logits, 1, vocab, &mut tokens)?;
    top_k(device, &logits, 1, vocab, &mut top)?;
    let sampling: Buffer<Sampling> = device.uninit(1)?;
    sample_top(device, &top, 1, &sampling, &mut tokens)
}

/// A device that only records launches. Its memory is never read, so it has none.
struct Recorder {
    capability: (u32, u32),
    shared_bytes: u32,
    launches: Arc<Mutex<Launches>>,
}

// SAFETY: no address that it gives is ever used.
unsafe impl Driver for Recorder {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            name: "recorder".into(),
            capability: self.capability,
            multiprocessors: 132,
            memory_bytes: 1 << 40,
            shared_bytes: self.shared_bytes,
        }
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(1 << 40)
    }

    fn alloc(&self, _bytes: u64) -> Result<Ptr> {
        Ok(1 << 20)
    }

    unsafe fn free(&self, _at: Ptr) {}

    unsafe fn upload(&self, _to: Ptr, _from: &[u8]) -> Result<()> {
        Ok(())
    }

    unsafe fn download(&self, to: &mut [u8], _from: Ptr) -> Result<()> {
        to.fill(0);
        Ok(())
    }

    unsafe fn copy(&self, _to: Ptr, _from: Ptr, _bytes: u64) -> Result<()> {
        Ok(())
    }

    unsafe fn fill(&self, _at: Ptr, _byte: u8, _bytes: u64) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, _params: &[u8]) -> Result<()> {
        let mut launches = self.launches.lock().unwrap();
        let most = launches.entry(kernel.name).or_insert(grid);
        if grid.shared_bytes > most.shared_bytes {
            *most = grid;
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn tensor_map(&self, _at: Ptr, _shape: TensorShape) -> Result<TensorMap> {
        Ok(TensorMap([0; 16]))
    }

    fn begin_capture(&self) -> Result<()> {
        Ok(())
    }

    fn end_capture(&self) -> Result<u64> {
        Ok(0)
    }

    unsafe fn launch_graph(&self, _graph: u64) -> Result<()> {
        Ok(())
    }

    fn free_graph(&self, _graph: u64) {}
}
