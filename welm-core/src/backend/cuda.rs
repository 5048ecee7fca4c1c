//! CUDA: every operation through the launchers of `welm-kernels`.
//!
//! The residual stream and the logits are f32, everything between is bf16; weights are bf16, or int8 as on the CPU,
//! repacked. Prompts and generated tokens are computed in two ways: a prompt's rows with the kernels for many rows
//! (whatever the device multiplies fastest with, as [`Activations`] allows), a generated token's with those for one
//! row of a sequence, 16-bit activations and one order of summation. Either way a row's bits depend on that row and
//! its own sequence only, and a token never changes sides, so that a request gets the same bits in every batch.
//!
//! A step without prompts is recorded once for each number of rows as a CUDA graph, and repeated after that.

use std::collections::HashMap;
use std::ops::Range;

use half::bf16;
use welm_kernels::attention::{
    Attention, Span, attention_decode, attention_prefill, decode_scratch_len, prefill_tiles,
};
use welm_kernels::gemm::{self, ALIGN, Arithmetic, Function, Input, Output, RowOrder, Weight, gemm};
use welm_kernels::norm::{self, GROUP, Quantized, Rows};
use welm_kernels::rope::{self, rope_and_cache};
use welm_kernels::{Device, Graph};

use super::{Backend, Limits, Role};
use crate::config::{Activation, ModelConfig, NormKind, RopePairing};
use crate::engine::batch::{BLOCK_TOKENS, Batch};
use crate::error::{Error, Result};
use crate::options::{Activations, CacheDtype, Dtype, LoadOptions};
use crate::weights::StoredType;
use crate::weights::int8::Packed;
use crate::weights::load::{LinearSource, MatrixSource, NormSource, Part, Segment};

/// Rows of generated tokens that attention takes at a time: what its scratch is for.
const DECODE_ROWS: usize = 64;
/// Recordings that are kept.
const MAX_GRAPHS: usize = 128;

/// Activations on the device, `(max_rows, stride)`.
pub(crate) struct Buffer {
    data: Data,
    rows: usize, // in use
    cols: usize,
    /// What a normalisation writes for the prompts' rows, in place of `data`, if `converted` says so.
    int8: Option<Int8Rows>,
    converted: bool,
    host: Vec<f32>, // (max_rows, cols), for reading
}

enum Data {
    /// Columns side by side.
    F32(welm_kernels::Buffer<f32>),
    /// `stride` is a multiple of 128, and columns past those of the buffer are zero.
    Bf16(welm_kernels::Buffer<bf16>),
    /// What is fused away.
    None,
}

impl Buffer {
    fn stride(&self) -> usize {
        self.cols.next_multiple_of(ALIGN)
    }

    fn f32s(&self) -> &welm_kernels::Buffer<f32> {
        let Data::F32(data) = &self.data else { unreachable!("forward gives a residual here") };
        data
    }

    fn f32s_mut(&mut self) -> &mut welm_kernels::Buffer<f32> {
        let Data::F32(data) = &mut self.data else { unreachable!("forward gives a residual here") };
        data
    }

    fn bf16s(&self) -> &welm_kernels::Buffer<bf16> {
        let Data::Bf16(data) = &self.data else { unreachable!("forward gives a hidden buffer here") };
        data
    }

    fn bf16s_mut(&mut self) -> &mut welm_kernels::Buffer<bf16> {
        let Data::Bf16(data) = &mut self.data else { unreachable!("forward gives a hidden buffer here") };
        data
    }
}

/// A normalisation on the device.
pub(crate) struct Norm {
    weight: welm_kernels::Buffer<f32>,       // (dim)
    bias: Option<welm_kernels::Buffer<f32>>, // (dim)
    eps: f32,
}

/// Keys and values of one layer, `(n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim)` each.
pub(crate) struct KvLayer {
    k: welm_kernels::Buffer<bf16>,
    v: welm_kernels::Buffer<bf16>,
}

/// A batch on the device.
struct DeviceBatch {
    token_ids: welm_kernels::Buffer<u32>,    // (max_rows)
    positions: welm_kernels::Buffer<u32>,    // (max_rows)
    slot_mapping: welm_kernels::Buffer<u32>, // (max_rows)
    table_starts: welm_kernels::Buffer<u32>, // (max_rows)
    block_tables: welm_kernels::Buffer<u32>, // (table_len)
    spans: welm_kernels::Buffer<Span>,       // (max_rows)
    tiles: welm_kernels::Buffer<[u32; 2]>,   // (max_rows)
    cos: welm_kernels::Buffer<f32>,          // (max_rows, rotary_dim / 2)
    sin: welm_kernels::Buffer<f32>,          // (max_rows, rotary_dim / 2)
    logit_rows: welm_kernels::Buffer<u32>,   // (max_logit_rows)
}

/// int8 activations of prompts.
struct Int8Rows {
    q: welm_kernels::Buffer<i8>,      // (max_rows, stride)
    scale: welm_kernels::Buffer<f32>, // (stride / 32, scale_stride)
    scale_stride: usize,              // max_rows, rounded up to 4
}

impl Int8Rows {
    fn bytes(max_rows: usize, stride: usize) -> usize {
        max_rows * stride + max_rows.next_multiple_of(4) * (stride / GROUP) * size_of::<f32>()
    }

    fn new(device: &Device, max_rows: usize, stride: usize) -> Result<Self> {
        let scale_stride = max_rows.next_multiple_of(4);
        let scale = device.uninit(scale_stride * (stride / GROUP))?;
        Ok(Int8Rows { q: device.uninit(max_rows * stride)?, scale, scale_stride })
    }

    fn quantized(&mut self) -> Quantized<'_> {
        Quantized { q: &mut self.q, scale: &mut self.scale, scale_stride: self.scale_stride }
    }

    fn input(&self) -> Input<'_> {
        Input::Int8 { q: &self.q, scale: &self.scale, scale_stride: self.scale_stride }
    }
}

/// The backend.
pub(crate) struct Cuda {
    device: Device,
    config: ModelConfig,
    dtype: Dtype,
    threads: usize,
    batch: DeviceBatch,
    /// int8 activations of prompts that no normalisation has made; none if prompts take 16 bits.
    int8: Option<Int8Rows>,
    /// Whether every layer's weights are int8, so that a normalisation can round for the product behind it.
    all_int8: bool,
    decode_scratch: welm_kernels::Buffer<f32>,
    inv_freq: Vec<f32>, // (rotary_dim / 2)
    cos: Vec<f32>,      // (max_rows, rotary_dim / 2)
    sin: Vec<f32>,
    max_context: usize,
    // Of the batch under way.
    n: usize,
    n_prompt: usize,
    n_tiles: usize,
    max_kv_len: usize,
    graphs: HashMap<(usize, usize), Graph>, // by rows and most keys
}

/// The element type that a matrix is computed with.
fn compute_type(source: &LinearSource, asked: Dtype) -> Result<StoredType> {
    let stored = match &source.matrix {
        MatrixSource::Packed(_) => return Ok(StoredType::I8),
        MatrixSource::Stored(segments) => segments[0].tensor.dtype,
    };
    match (asked, stored) {
        (Dtype::Int8, _) | (Dtype::Auto, StoredType::Q8_0 | StoredType::Q4_0) => Ok(StoredType::I8),
        (Dtype::Bf16, _) | (Dtype::Auto, StoredType::Bf16) => Ok(StoredType::Bf16),
        (Dtype::F32, _) | (Dtype::Auto, _) => {
            let (name, got) = (&source.name, if asked == Dtype::F32 { "f32" } else { "auto" });
            let reason = format!(
                "cuda computes with bf16 or int8 weights, and `{name}` is stored as {stored:?}; got {got}"
            );
            Err(Error::option("dtype", reason))
        }
    }
}

fn order(part: Part) -> RowOrder {
    if part == Part::Gated { RowOrder::Gated } else { RowOrder::Plain }
}

/// Values of one block, of keys or of values, in one layer.
fn block_values(config: &ModelConfig) -> usize {
    BLOCK_TOKENS * config.n_kv_heads * config.head_dim
}

/// The widest input of a product.
fn max_cols(config: &ModelConfig) -> usize {
    let widest = config.dim.max(config.hidden_dim).max(config.n_heads * config.head_dim);
    widest.next_multiple_of(ALIGN)
}

/// Entries of the block tables of a batch: every sequence may have a prompt's rows and generated ones.
fn table_len(options: &LoadOptions, limits: Limits) -> usize {
    2 * options.max_running * limits.max_context.div_ceil(BLOCK_TOKENS)
}

fn scratch_len(config: &ModelConfig, limits: Limits) -> usize {
    let rows = DECODE_ROWS.min(limits.max_rows);
    decode_scratch_len(rows, config.n_heads, config.head_dim, limits.max_context)
}

impl Cuda {
    /// Refuses what no kernel is written for.
    pub(crate) fn check(config: &ModelConfig, options: &LoadOptions) -> Result<()> {
        if ![64, 80, 96, 128].contains(&config.head_dim) {
            let reason = format!("cuda attention is written for 64, 80, 96 and 128, not {}", config.head_dim);
            return Err(Error::config("head_dim", reason));
        }
        if options.cache_dtype == CacheDtype::F32 {
            return Err(Error::option("cache_dtype", "the cache is bf16 on cuda, got f32"));
        }
        Ok(())
    }

    /// Takes the device, and allocates what the arithmetic needs beside the buffers.
    pub(crate) fn new(
        device: Device,
        config: &ModelConfig,
        options: &LoadOptions,
        limits: Limits,
    ) -> Result<Self> {
        Self::check(config, options)?;
        let (rows, half) = (limits.max_rows, config.rope.rotary_dim / 2);
        let int8 = options.activations == Activations::Int8;
        let int8 = int8.then(|| Int8Rows::new(&device, rows, max_cols(config)));
        Ok(Cuda {
            batch: DeviceBatch {
                token_ids: device.zeros(rows)?,
                positions: device.zeros(rows)?,
                slot_mapping: device.zeros(rows)?,
                table_starts: device.zeros(rows)?,
                block_tables: device.zeros(table_len(options, limits))?,
                spans: device.zeros(rows)?,
                tiles: device.zeros(rows)?,
                cos: device.zeros(rows * half)?,
                sin: device.zeros(rows * half)?,
                logit_rows: device.zeros(limits.max_logit_rows)?,
            },
            int8: int8.transpose()?,
            all_int8: true,
            decode_scratch: device.uninit(scratch_len(config, limits))?,
            inv_freq: config.rope.inv_freq(),
            cos: Vec::with_capacity(rows * half),
            sin: Vec::with_capacity(rows * half),
            config: config.clone(),
            dtype: options.dtype,
            threads: options.threads.unwrap_or_else(super::cpu::pool::available_threads),
            max_context: limits.max_context,
            n: 0,
            n_prompt: 0,
            n_tiles: 0,
            max_kv_len: 0,
            graphs: HashMap::new(),
            device,
        })
    }

    fn device_norm<'a>(&self, norm: &'a Norm) -> norm::Norm<'a> {
        let layernorm = self.config.norm == NormKind::LayerNorm;
        norm::Norm { weight: &norm.weight, bias: norm.bias.as_ref(), eps: norm.eps, layernorm }
    }

    /// Rows of a product, each part with its arithmetic: prompts, generated tokens.
    fn parts(&self) -> impl Iterator<Item = (Range<usize>, Arithmetic)> + use<> {
        let parts = [(0..self.n_prompt, Arithmetic::Fast), (self.n_prompt..self.n, Arithmetic::Exact)];
        // Where both come to the same, weights are read once.
        let one = !self.device.is_hopper() && self.int8.is_none();
        let whole = (0..self.n, Arithmetic::Exact);
        let parts = if one { vec![whole] } else { parts.to_vec() };
        parts.into_iter().filter(|(rows, _)| !rows.is_empty())
    }

    /// `f(rows, input, arithmetic)` for each part of the batch.
    fn product(
        &mut self,
        x: &Buffer,
        w: &Weight,
        mut f: impl FnMut(&Device, Input, Range<usize>, Arithmetic) -> welm_kernels::Result<()>,
    ) -> Result<()> {
        for (rows, arithmetic) in self.parts() {
            let prompts = arithmetic == Arithmetic::Fast;
            let input = match (&x.int8, &mut self.int8) {
                (Some(made), _) if prompts && x.converted => made.input(),
                (_, Some(int8)) if prompts && w.is_int8() => {
                    norm::quantize(&self.device, x.bf16s(), rows.clone(), x.stride(), int8.quantized())?;
                    int8.input()
                }
                _ => Input::Bf16(x.bf16s()),
            };
            f(&self.device, input, rows, arithmetic)?;
        }
        Ok(())
    }

    fn linear_function(
        &mut self,
        out: &mut Buffer,
        x: &Buffer,
        w: &Weight,
        function: Function,
    ) -> Result<()> {
        out.rows = x.rows;
        let stride = out.stride();
        let out = out.bf16s_mut();
        self.product(x, w, |device, input, rows, arithmetic| {
            gemm(device, input, rows, w, Output::Bf16(out, function), stride, arithmetic)
        })
    }

    /// A weight from stored rows.
    fn bf16_weight(&self, rows: usize, cols: usize, order: RowOrder, segments: &[Segment]) -> gemm::Packed {
        let stored: Vec<(&Segment, usize)> = segments
            .iter()
            .flat_map(|s| (s.first_row..s.first_row + s.n_rows).map(move |r| (s, r)))
            .collect();
        gemm::Packed::bf16(rows, cols, order, self.threads, |row, to| {
            let (segment, row) = stored[row];
            let mut values = vec![0.0; cols];
            segment.tensor.row_f32(row, &mut values);
            to.iter_mut().zip(values).for_each(|(to, x)| *to = bf16::from_f32(x));
        })
    }
}

impl Backend for Cuda {
    const ONE_ARITHMETIC: bool = false;
    type Buffer = Buffer;
    type Norm = Norm;
    type Linear = Weight;
    type KvLayer = KvLayer;

    fn scratch_bytes(config: &ModelConfig, options: &LoadOptions, limits: Limits) -> u64 {
        let (rows, half) = (limits.max_rows, config.rope.rotary_dim / 2);
        // Four numbers, a span and a tile for each row.
        let batch = rows * (4 * 4 + size_of::<Span>() + 8 + 2 * half * 4)
            + 4 * (table_len(options, limits) + limits.max_logit_rows);
        // Of what normalisations make, and of everything else.
        let int8 = match options.activations {
            Activations::Int8 => {
                Int8Rows::bytes(rows, max_cols(config))
                    + Int8Rows::bytes(rows, config.dim.next_multiple_of(ALIGN))
            }
            _ => 0,
        };
        (batch + int8 + 4 * scratch_len(config, limits)) as u64
    }

    fn buffer_bytes(max_rows: usize, cols: usize, role: Role) -> u64 {
        let bytes = match role {
            Role::Residual | Role::Logits => 4 * cols,
            Role::Normed | Role::Hidden => 2 * cols.next_multiple_of(ALIGN),
            Role::Gates => 0,
        };
        (max_rows * bytes) as u64
    }

    fn linear_bytes(source: &LinearSource, options: &LoadOptions) -> Result<(u64, bool)> {
        let (rows, cols, order) = (source.rows, source.cols, order(source.part));
        let bytes = match compute_type(source, options.dtype)? {
            StoredType::I8 => gemm::int8_bytes(rows, cols, order),
            _ => gemm::bf16_bytes(rows, cols, order),
        };
        Ok((bytes, false))
    }

    fn kv_layer_bytes(config: &ModelConfig, _options: &LoadOptions, n_blocks: usize) -> u64 {
        2 * 2 * (n_blocks * block_values(config)) as u64
    }

    fn load_norm(&mut self, source: NormSource) -> Result<Norm> {
        let bias = source.bias.as_deref().map(|bias| self.device.upload(bias)).transpose()?;
        Ok(Norm { weight: self.device.upload(&source.weight)?, bias, eps: source.eps })
    }

    fn load_linear(&mut self, source: LinearSource) -> Result<Weight> {
        let wanted = compute_type(&source, self.dtype)?;
        let LinearSource { name, part, rows, cols, matrix, bias } = source;
        let order = order(part);
        self.all_int8 &= part == Part::Table || wanted == StoredType::I8;
        let int8 = |packed: &Packed| {
            gemm::Packed::int8(rows, cols, order, self.threads, |row, q, scale| {
                packed.row_int8(row, q, scale)
            })
        };
        let packed = match (&matrix, wanted) {
            (MatrixSource::Packed(packed), _) => int8(packed),
            (MatrixSource::Stored(segments), StoredType::I8) => {
                int8(&Packed::pack(&name, rows, cols, segments, self.threads)?)
            }
            (MatrixSource::Stored(segments), _) => self.bf16_weight(rows, cols, order, segments),
        };
        Ok(Weight::upload(&self.device, rows, cols, order, &packed, bias.as_deref())?)
    }

    fn kv_layer(&mut self, n_blocks: usize) -> Result<KvLayer> {
        let len = n_blocks * block_values(&self.config);
        Ok(KvLayer { k: self.device.zeros(len)?, v: self.device.zeros(len)? })
    }

    fn buffer(&mut self, max_rows: usize, cols: usize, role: Role) -> Result<Buffer> {
        let data = match role {
            Role::Residual | Role::Logits => Data::F32(self.device.zeros(max_rows * cols)?),
            Role::Normed | Role::Hidden => {
                Data::Bf16(self.device.zeros(max_rows * cols.next_multiple_of(ALIGN))?)
            }
            Role::Gates => Data::None,
        };
        let int8 = (role == Role::Normed && self.int8.is_some())
            .then(|| Int8Rows::new(&self.device, max_rows, cols.next_multiple_of(ALIGN)));
        let host = if role == Role::Logits { vec![0.0; max_rows * cols] } else { Vec::new() };
        Ok(Buffer { data, rows: 0, cols, int8: int8.transpose()?, converted: false, host })
    }

    fn describe(&self) -> String {
        let info = self.device.info();
        let (major, minor) = info.capability;
        format!("cuda, {}, compute capability {major}.{minor}", info.name)
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        self.n = batch.len();
        self.n_prompt = batch.n_prompt_rows();
        self.cos.clear();
        self.sin.clear();
        for &pos in &batch.positions {
            for f in &self.inv_freq {
                let (sin, cos) = (pos as f32 * f).sin_cos();
                self.sin.push(sin);
                self.cos.push(cos);
            }
        }
        let to = &mut self.batch;
        to.token_ids.write(0, &batch.token_ids)?;
        to.positions.write(0, &batch.positions)?;
        to.slot_mapping.write(0, &batch.slot_mapping)?;
        to.table_starts.write(0, &batch.table_start)?;
        to.block_tables.write(0, &batch.block_tables)?;
        to.cos.write(0, &self.cos)?;
        to.sin.write(0, &self.sin)?;
        let span = |s: &crate::engine::batch::Span| Span {
            first_row: s.first_row,
            n_rows: s.n_rows,
            first_pos: s.first_pos,
            table_start: s.table_start,
            reserved: 0,
        };
        let spans: Vec<Span> = batch.spans.iter().map(span).collect();
        let tiles = prefill_tiles(&self.device, &spans);
        to.spans.write(0, &spans)?;
        to.tiles.write(0, &tiles)?;
        self.n_tiles = tiles.len();
        // How far a decode step's blocks may reach: rounded up, so that recordings serve for long.
        let last = batch.positions[self.n_prompt..].iter().max().map_or(0, |&pos| pos as usize);
        self.max_kv_len = (last + 1).next_power_of_two().max(512).min(self.max_context);
        Ok(())
    }

    fn repeat(&mut self, batch: &Batch, body: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        if self.n_prompt > 0 || batch.len() > DECODE_ROWS {
            return body(self);
        }
        let key = (self.n, self.max_kv_len);
        if !self.graphs.contains_key(&key) {
            if self.graphs.len() == MAX_GRAPHS {
                self.graphs.clear();
            }
            let device = self.device.clone();
            let graph = device.capture(|| body(self))?;
            self.graphs.insert(key, graph);
        }
        Ok(self.graphs[&key].launch()?)
    }

    fn embed(&mut self, x: &mut Buffer, table: &Weight, batch: &Batch) -> Result<()> {
        x.rows = batch.len();
        let (vocab, dim) = table.shape();
        norm::embed(&self.device, &self.batch.token_ids, self.n, table.table()?, vocab, dim, x.f32s_mut())?;
        Ok(())
    }

    fn norm(&mut self, out: &mut Buffer, x: &Buffer, norm: &Norm) -> Result<()> {
        out.rows = x.rows;
        let (stride, formula) = (out.stride(), self.device_norm(norm));
        let (x, dim, n) = (x.f32s(), x.cols, self.n);
        let mut first = 0;
        out.converted = self.all_int8 && out.int8.is_some();
        if let Some(int8) = out.int8.as_mut().filter(|_| out.converted) {
            first = self.n_prompt;
            norm::norm(&self.device, &formula, x, dim, None, 0..first, Rows::Int8(int8.quantized()), stride)?;
        }
        norm::norm(&self.device, &formula, x, dim, None, first..n, Rows::Bf16(out.bf16s_mut()), stride)?;
        Ok(())
    }

    fn norm_rows(&mut self, out: &mut Buffer, x: &Buffer, rows: &[u32], norm: &Norm) -> Result<()> {
        out.rows = rows.len();
        self.batch.logit_rows.write(0, rows)?;
        let (stride, formula) = (out.stride(), self.device_norm(norm));
        let (at, rows) = (Some(&self.batch.logit_rows), 0..rows.len());
        norm::norm(&self.device, &formula, x.f32s(), x.cols, at, rows, Rows::Bf16(out.bf16s_mut()), stride)?;
        Ok(())
    }

    fn linear(&mut self, out: &mut Buffer, x: &Buffer, w: &Weight) -> Result<()> {
        self.linear_function(out, x, w, Function::Identity)
    }

    fn linear_add(&mut self, out: &mut Buffer, x: &Buffer, w: &Weight) -> Result<()> {
        let stride = out.cols;
        let out = out.f32s_mut();
        self.product(x, w, |device, input, rows, arithmetic| {
            gemm(device, input, rows, w, Output::AddF32(out), stride, arithmetic)
        })
    }

    fn linear_activate(
        &mut self,
        out: &mut Buffer,
        _gates: &mut Buffer,
        x: &Buffer,
        w: &Weight,
        f: Activation,
    ) -> Result<()> {
        let function = match f {
            Activation::Gelu => Function::Gelu,
            Activation::GeluTanh => Function::GeluTanh,
            Activation::SwiGlu => Function::SwiGlu,
        };
        self.linear_function(out, x, w, function)
    }

    fn logits(&mut self, out: &mut Buffer, x: &Buffer, w: &Weight) -> Result<()> {
        out.rows = x.rows;
        let (stride, rows) = (out.cols, 0..x.rows);
        let to = Output::F32(out.f32s_mut());
        gemm(&self.device, Input::Bf16(x.bf16s()), rows, w, to, stride, Arithmetic::Exact)?;
        Ok(())
    }

    fn rope_and_cache(&mut self, qkv: &mut Buffer, kv: &mut KvLayer, _batch: &Batch) -> Result<()> {
        let c = &self.config;
        let pairing = match c.rope.pairing {
            RopePairing::HalfSplit => rope::Pairing::HalfSplit,
            RopePairing::Interleaved => rope::Pairing::Interleaved,
        };
        let formula = rope::Rope {
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            rotary_dim: c.rope.rotary_dim,
            pairing,
            q_norm: None,
            k_norm: None,
            eps: 0.0,
        };
        let (stride, b) = (qkv.stride(), &self.batch);
        let (k, v) = (&mut kv.k, &mut kv.v);
        let qkv = qkv.bf16s_mut();
        rope_and_cache(&self.device, &formula, qkv, stride, self.n, &b.cos, &b.sin, &b.slot_mapping, k, v)?;
        Ok(())
    }

    fn attention(&mut self, out: &mut Buffer, qkv: &Buffer, kv: &KvLayer, _batch: &Batch) -> Result<()> {
        out.rows = qkv.rows;
        let c = &self.config;
        let operands = Attention {
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            window: 0,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            qkv: qkv.bf16s(),
            qkv_stride: qkv.stride(),
            k: &kv.k,
            v: &kv.v,
            block_tables: &self.batch.block_tables,
            n_rows: self.n,
            out_stride: out.stride(),
        };
        let (out, b) = (out.bf16s_mut(), &self.batch);
        attention_prefill(&self.device, &operands, &b.spans, &b.tiles, self.n_tiles, out)?;
        for first in (self.n_prompt..self.n).step_by(DECODE_ROWS) {
            let (rows, scratch) = (first..self.n.min(first + DECODE_ROWS), &mut self.decode_scratch);
            let (positions, starts) = (&b.positions, &b.table_starts);
            let max = self.max_kv_len;
            attention_decode(&self.device, &operands, rows, positions, starts, max, scratch, out)?;
        }
        Ok(())
    }

    fn copy_block(&mut self, kv: &mut KvLayer, from: u32, to: u32) -> Result<()> {
        let len = block_values(&self.config);
        for values in [&mut kv.k, &mut kv.v] {
            values.copy_within(from as usize * len, to as usize * len, len)?;
        }
        Ok(())
    }

    fn read<'a>(&mut self, buffer: &'a mut Buffer) -> Result<&'a mut [f32]> {
        let len = buffer.rows * buffer.cols;
        let Buffer { data: Data::F32(data), host, .. } = buffer else {
            unreachable!("forward reads logits");
        };
        data.read(0, &mut host[..len])?;
        Ok(&mut host[..len])
    }
}
