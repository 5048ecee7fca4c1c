//! CUDA: every operation through the launchers of `welm-kernels`.
//!
//! The residual stream and the logits are f32, all other activations are bf16. Weights are bf16, or int8 with the
//! values that the CPU has, in another layout.
//!
//! Rows of prompts and rows of generated tokens are computed by different kernels. Prompts have kernels for many rows,
//! which use the fastest tensor cores that [`Activations`] allows. Generated tokens have kernels for one row of each
//! sequence, with 16-bit activations and one order of summation. The bits of a row depend on that row and its own
//! sequence only, and a token is always computed by the same kind of kernel. So a request gets the same bits in every
//! batch.
//!
//! A step without prompts is recorded as a CUDA graph, once for each number of rows (rounded up), and then repeated.

mod activations;
mod graphs;
mod step;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use welm_cpu::int8::Grouping;
use welm_kernels::attention::{Attention, attention_decode, attention_prefill, decode_scratch_len};
use welm_kernels::gemm::{self, ALIGN, Arithmetic, Function, Input, Output, RowOrder, Weight, gemm};
use welm_kernels::norm::{self, Rows};
use welm_kernels::rope::{self, rope_and_cache};
use welm_kernels::sample::{self, MAX_VOCAB, TopK};
use welm_kernels::{Device, Graph};

use self::activations::{Buffer, Converted, Form};
use self::graphs::Graphs;
use self::step::{RECORDED_ROWS, Step};
use super::{Backend, Limits, Role, TOP, Top};
use crate::batch::{BLOCK_TOKENS, Batch};
use crate::checkpoint::load::{LinearSource, MatrixSource, NormSource};
use crate::config::part::PartKind;
use crate::config::{Activation, LayerConfig, ModelConfig, NormKind, QkNorm, RopePairing};
use crate::error::{Error, Result};
use crate::kv_cache::block_values;
use crate::options::{CacheDtype, Dtype, LoadOptions};
use crate::weights::computed::{Computed, Kernels};
use crate::weights::tensor::{release, row_error, rows_of};
use crate::weights::tiles::int8::Int8Tiles;

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

/// The backend.
pub(crate) struct Cuda {
    device: Device,
    config: ModelConfig,
    dtype: Dtype,
    threads: usize,
    step: Step,
    graphs: Graphs<Graph>,
    /// Whether steps are recorded; they no longer are when a recording has failed.
    records: bool,
    form: Form,
    /// Activations that are converted for a product, if the normalisation before it has not done so.
    converted: Option<Converted>,
    /// Whether the weights of all layers take activations in `form`, so that a normalisation can write this form.
    all_fit: bool,
    /// Values that one kernel of a product or an attention writes and the next one reads.
    scratch: welm_kernels::Buffer<f32>,
    top: Option<TopK>,    // none if there are too many tokens
    top_values: Vec<f32>, // (max_logit_rows, TOP)
    top_ids: Vec<u32>,    // (max_logit_rows, TOP)
}

/// Writes a row of a matrix as f32.
type RowFn<'a> = Box<dyn Fn(usize, &mut [f32]) + Sync + 'a>;

fn stored_rows(matrix: &MatrixSource) -> RowFn<'_> {
    match matrix {
        MatrixSource::Packed(tiles) => Box::new(|i, to| tiles.row_f32(i, to)),
        MatrixSource::Stored(segments) => {
            let stored = rows_of(segments);
            Box::new(move |i, to| {
                let (segment, row) = stored[i];
                segment.tensor.row_f32(row, to);
            })
        }
    }
}

fn order(kind: PartKind) -> RowOrder {
    if kind == PartKind::Gated { RowOrder::Gated } else { RowOrder::Plain }
}

/// Columns of the widest input of a product.
fn max_cols(config: &ModelConfig) -> usize {
    let widest = config.dim.max(config.hidden_dim).max(config.n_heads * config.head_dim);
    widest.next_multiple_of(ALIGN)
}

/// Entries of the block tables of a batch: every sequence may have a prompt's rows and generated ones.
fn table_len(options: &LoadOptions, limits: Limits) -> usize {
    2 * options.max_running * limits.max_context.div_ceil(BLOCK_TOKENS)
}

/// How many largest logits are found, if the kernel is made for so many tokens.
fn top_k(config: &ModelConfig) -> Option<usize> {
    (config.vocab_size <= MAX_VOCAB).then_some(TOP)
}

/// Values of scratch memory for the operation that needs most of it.
fn scratch_len(config: &ModelConfig, limits: Limits) -> usize {
    let rows = RECORDED_ROWS.min(limits.max_rows);
    let attention = decode_scratch_len(rows, config.n_heads, config.head_dim, limits.max_context);
    let layer = [config.qkv_dim(), config.dim, config.up_dim()].map(|rows| (limits.max_rows, rows));
    let products = layer.into_iter().chain([(limits.max_logit_rows, config.vocab_size)]);
    products.map(|(n, rows)| gemm::scratch_len(n, rows)).fold(attention, usize::max)
}

impl Cuda {
    /// Refuses a model or an option that no kernel is written for.
    pub(crate) fn check(config: &ModelConfig, options: &LoadOptions) -> Result<()> {
        if ![64, 80, 96, 128].contains(&config.head_dim) {
            let reason = format!("cuda attention is written for 64, 80, 96 and 128, not {}", config.head_dim);
            return Err(Error::config("head_dim", reason));
        }
        let layers = || config.layers.iter();
        if let Some(other) = layers().find_map(|l| l.qk_norm.filter(|&kind| kind != QkNorm::Head)) {
            let reason = format!("cuda normalises each head before it is turned, not as {other:?}");
            return Err(Error::config("norm of q and k", reason));
        }
        let most = Limits::of::<Self>(config, options)?.max_context;
        if let Some(scale) = layers().find_map(|l| l.query_scale.filter(|scale| scale.length < most)) {
            let reason = format!(
                "cuda does not scale q in long texts: set context_tokens to at most {}",
                scale.length
            );
            return Err(Error::config("query scale", reason));
        }
        if layers().any(|layer| !layer.pre_norms) {
            let reason = "cuda computes layers with norms before their halves, and these have none";
            return Err(Error::config("norms before each half", reason));
        }
        if !matches!(options.cache_dtype, CacheDtype::Auto | CacheDtype::Bf16) {
            let reason = format!("expected auto or bf16 on cuda, got {}", options.cache_dtype);
            return Err(Error::option("cache_dtype", reason));
        }
        Ok(())
    }

    /// Allocates what the operations need besides the buffers of activations.
    pub(crate) fn new(
        device: Device,
        config: &ModelConfig,
        options: &LoadOptions,
        limits: Limits,
    ) -> Result<Self> {
        Self::check(config, options)?;
        let (rows, form) = (limits.max_rows, Form::of(options));
        Ok(Cuda {
            step: Step::new(&device, config, options, limits)?,
            graphs: Graphs::new(),
            records: true,
            form,
            converted: Converted::new(&device, form, rows, max_cols(config))?,
            all_fit: true,
            scratch: device.uninit(scratch_len(config, limits))?,
            config: config.clone(),
            dtype: options.dtype,
            threads: options.threads.unwrap_or_else(crate::host::threads::available),
            top: top_k(config)
                .map(|k| TopK::new(&device, limits.max_logit_rows, config.vocab_size, k))
                .transpose()?,
            top_values: vec![0.0; limits.max_logit_rows * TOP],
            top_ids: vec![0; limits.max_logit_rows * TOP],
            device,
        })
    }

    /// Whether int8 weights are rotated and have one scale for each row.
    fn rotates(form: Form, kind: PartKind) -> bool {
        form == Form::Rotated && kind != PartKind::Table
    }

    fn device_norm<'a>(&self, norm: &'a Norm) -> norm::Norm<'a> {
        let layernorm = self.config.norm == NormKind::LayerNorm;
        norm::Norm { weight: &norm.weight, bias: norm.bias.as_ref(), eps: norm.eps, layernorm }
    }

    /// The rows of prompts and those of generated tokens, each with the arithmetic of their products.
    fn parts(&self) -> impl Iterator<Item = (Range<usize>, Arithmetic)> + use<> {
        let Step { n, n_prompt, .. } = self.step;
        let parts = [(0..n_prompt, Arithmetic::Fast), (n_prompt..n, Arithmetic::Exact)];
        // If both have the same arithmetic, one product reads the weights once.
        let one = !self.device.is_hopper() && self.form == Form::Bf16;
        let whole = (0..n, Arithmetic::Exact);
        let parts = if one { vec![whole] } else { parts.to_vec() };
        parts.into_iter().filter(|(rows, _)| !rows.is_empty())
    }

    /// `f(rows, input, arithmetic)` for each part of the batch.
    fn product(
        &mut self,
        x: &Buffer,
        w: &Weight,
        mut f: impl FnMut(
            &Device,
            Input,
            Range<usize>,
            Arithmetic,
            &mut welm_kernels::Buffer<f32>,
        ) -> welm_kernels::Result<()>,
    ) -> Result<()> {
        for (rows, arithmetic) in self.parts() {
            let prompts = arithmetic == Arithmetic::Fast;
            let converted = match (&x.converted, &mut self.converted) {
                (Some(made), _) if x.is_converted => made.input(prompts),
                (_, Some(own)) if self.form.fits(w) => {
                    own.convert(&self.device, x, rows.clone(), prompts)?;
                    own.input(prompts)
                }
                _ => None,
            };
            let input = converted.unwrap_or(Input::Bf16(x.bf16s()));
            f(&self.device, input, rows, arithmetic, &mut self.scratch)?;
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
        self.product(x, w, |device, input, rows, arithmetic, scratch| {
            gemm(device, input, rows, w, Output::Bf16(out, function), stride, arithmetic, scratch)
        })
    }
}

impl Backend for Cuda {
    const ONE_ARITHMETIC: bool = false;
    const KERNELS: Kernels = Kernels { backend: "cuda", types: &[Computed::Int8, Computed::Bf16] };
    const CHUNK_TOKENS: usize = 2048;
    type Buffer = Buffer;
    type Norm = Norm;
    type Linear = Weight;
    type KvLayer = KvLayer;

    fn scratch_bytes(config: &ModelConfig, options: &LoadOptions, limits: Limits) -> u64 {
        let (rows, step) = (limits.max_rows, Step::bytes(config, options, limits));
        // Converted activations: those that normalisations write, and all others.
        let dim = config.dim.next_multiple_of(ALIGN);
        let shapes = [(rows, max_cols(config)), (rows, dim)];
        let bytes = |(rows, stride)| Converted::bytes(Form::of(options), rows, stride);
        let converted: usize = shapes.into_iter().map(bytes).sum();
        let top = top_k(config).map_or(0, |k| TopK::bytes(limits.max_logit_rows, config.vocab_size, k));
        (step + converted + 4 * scratch_len(config, limits)) as u64 + top
    }

    fn buffer_bytes(max_rows: usize, cols: usize, role: Role) -> u64 {
        Buffer::bytes(max_rows, cols, role)
    }

    fn linear_bytes(source: &LinearSource, options: &LoadOptions) -> Result<(u64, bool)> {
        let (rows, cols, order) = (source.rows, source.cols, order(source.kind));
        let bytes = match source.computed(options.dtype, &Self::KERNELS)? {
            Computed::Int8 if Self::rotates(Form::of(options), source.kind) => {
                gemm::rotated_bytes(rows, cols, order)
            }
            Computed::Int8 => gemm::int8_bytes(rows, cols, order),
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
        let computed = source.computed(self.dtype, &Self::KERNELS)?;
        let LinearSource { name, kind, rows, cols, matrix, bias } = source;
        let (order, threads) = (order(kind), self.threads);
        let int8 = |tiles: &Int8Tiles| {
            gemm::Packed::int8(rows, cols, order, threads, |row, q, scale| tiles.row_int8(row, q, scale))
        };
        let packed = match (computed, &matrix) {
            (Computed::Int8, matrix) if Self::rotates(self.form, kind) => {
                let row = stored_rows(matrix);
                let packed = gemm::Packed::rotated(rows, cols, order, threads, |i, to| row(i, to));
                packed.map_err(|e| Error::tensor(&name, e))?
            }
            (Computed::Int8, MatrixSource::Packed(tiles)) => int8(&tiles.to_plain(&name, threads)?),
            (Computed::Int8, MatrixSource::Stored(segments)) => {
                int8(&Int8Tiles::pack(&name, rows, cols, segments, Grouping::Plain, threads)?)
            }
            (_, matrix) => {
                let row = stored_rows(matrix);
                let wrong = AtomicUsize::new(usize::MAX); // the first row with a value that bf16 does not have
                let packed = gemm::Packed::bf16(rows, cols, order, threads, |i, to| {
                    let mut values = vec![0.0; cols];
                    row(i, &mut values);
                    to.iter_mut().zip(values).for_each(|(to, x)| *to = bf16::from_f32(x));
                    if !to.iter().all(|x| x.is_finite()) {
                        wrong.fetch_min(i, Ordering::Relaxed);
                    }
                });
                let reason = "a weight is not a finite number in BF16";
                match (wrong.into_inner(), matrix) {
                    (usize::MAX, _) => packed,
                    (row, MatrixSource::Stored(segments)) => {
                        return Err(row_error(&rows_of(segments), row, &name, reason));
                    }
                    (row, MatrixSource::Packed(_)) => {
                        return Err(Error::tensor(&name, format!("row {row}: {reason}")));
                    }
                }
            }
        };
        if let MatrixSource::Stored(segments) = &matrix {
            release(segments);
        }
        let weight = Weight::upload(&self.device, rows, cols, order, &packed, bias.as_deref())?;
        self.all_fit &= kind == PartKind::Table || self.form.fits(&weight);
        Ok(weight)
    }

    fn kv_layer(&mut self, n_blocks: usize) -> Result<KvLayer> {
        let len = n_blocks * block_values(&self.config);
        Ok(KvLayer { k: self.device.zeros(len)?, v: self.device.zeros(len)? })
    }

    fn buffer(&mut self, max_rows: usize, cols: usize, role: Role) -> Result<Buffer> {
        Buffer::new(&self.device, self.form, max_rows, cols, role)
    }

    fn describe(&self) -> String {
        let info = self.device.info();
        let (major, minor) = info.capability;
        let without = info.capability == (9, 0) && !self.device.is_hopper();
        let kernels = if without { ", without the kernels of sm_90a" } else { "" };
        format!("cuda, {}, compute capability {major}.{minor}{kernels}", info.name)
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        self.step.begin(&self.device, batch)
    }

    fn repeat(&mut self, mut body: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        if !self.step.is_recorded || !self.records {
            return body(self);
        }
        let key = (self.step.n, self.step.max_kv_len);
        if let Some(graph) = self.graphs.get(key) {
            return Ok(graph.launch()?);
        }
        // First without a recording: the driver loads code when it is launched first, and may not do so while it records.
        body(self)?;
        let device = self.device.clone();
        match device.capture(|| body(self)) {
            Ok(graph) => _ = self.graphs.insert(key, graph),
            Err(error) => {
                tracing::warn!(%error, "steps are not recorded any more, which is slower");
                self.records = false;
            }
        }
        Ok(())
    }

    fn embed(&mut self, x: &mut Buffer, table: &Weight, scale: f32, batch: &Batch) -> Result<()> {
        x.rows = batch.len();
        let (vocab, dim) = table.shape();
        let (ids, n) = (&self.step.arrays.token_ids, self.step.n);
        norm::embed(&self.device, ids, n, table.table()?, vocab, dim, scale, x.f32s_mut())?;
        Ok(())
    }

    fn norm(&mut self, out: &mut Buffer, x: &Buffer, norm: &Norm) -> Result<()> {
        out.rows = x.rows;
        out.is_converted = self.all_fit && out.converted.is_some();
        let (stride, formula) = (out.stride(), self.device_norm(norm));
        for (rows, arithmetic) in self.parts() {
            let prompts = arithmetic == Arithmetic::Fast;
            let converted = out.is_converted.then(|| out.converted.as_mut()?.target(prompts)).flatten();
            match converted {
                Some(to) => norm::norm(&self.device, &formula, x.f32s(), x.cols, None, rows, to, stride)?,
                None => {
                    let to = Rows::Bf16(out.bf16s_mut());
                    norm::norm(&self.device, &formula, x.f32s(), x.cols, None, rows, to, stride)?;
                }
            }
        }
        Ok(())
    }

    fn norm_add(&mut self, x: &mut Buffer, y: &mut Buffer, norm: &Norm) -> Result<()> {
        let (formula, rows) = (self.device_norm(norm), 0..self.step.n);
        norm::norm_add(&self.device, &formula, y.f32s(), y.cols, rows, x.f32s_mut())?;
        Ok(())
    }

    fn norm_rows(&mut self, out: &mut Buffer, x: &Buffer, some: Range<usize>, norm: &Norm) -> Result<()> {
        out.rows = some.len();
        let (stride, formula) = (out.stride(), self.device_norm(norm));
        let (at, rows) = (self.step.wanted(some)?, 0..out.rows);
        let to = Rows::Bf16(out.bf16s_mut());
        norm::norm(&self.device, &formula, x.f32s(), x.cols, Some(&at), rows, to, stride)?;
        Ok(())
    }

    fn linear(&mut self, out: &mut Buffer, x: &Buffer, w: &Weight) -> Result<()> {
        if !out.is_f32() {
            return self.linear_function(out, x, w, Function::Identity);
        }
        out.rows = x.rows;
        let stride = out.cols;
        let out = out.f32s_mut();
        self.product(x, w, |device, input, rows, arithmetic, scratch| {
            gemm(device, input, rows, w, Output::F32(out), stride, arithmetic, scratch)
        })
    }

    fn linear_add(&mut self, out: &mut Buffer, x: &Buffer, w: &Weight) -> Result<()> {
        let stride = out.cols;
        let out = out.f32s_mut();
        self.product(x, w, |device, input, rows, arithmetic, scratch| {
            gemm(device, input, rows, w, Output::AddF32(out), stride, arithmetic, scratch)
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
            Activation::GeGlu => Function::GeGlu,
        };
        self.linear_function(out, x, w, function)
    }

    fn logits(&mut self, out: &mut Buffer, x: &Buffer, w: &Weight, soft_cap: Option<f32>) -> Result<()> {
        out.rows = x.rows;
        let (stride, rows) = (out.cols, 0..x.rows);
        let to = Output::F32(out.f32s_mut());
        let (input, exact) = (Input::Bf16(x.bf16s()), Arithmetic::Exact);
        gemm(&self.device, input, rows, w, to, stride, exact, &mut self.scratch)?;
        if let Some(cap) = soft_cap {
            sample::soft_cap(&self.device, out.f32s_mut(), x.rows, stride, cap)?;
        }
        Ok(())
    }

    fn rope_and_cache(
        &mut self,
        qkv: &mut Buffer,
        kv: &mut KvLayer,
        _batch: &Batch,
        layer: &LayerConfig,
        norms: Option<&[Norm; 2]>,
    ) -> Result<()> {
        let c = &self.config;
        let at = layer.rope.unwrap_or(0);
        let table = &c.ropes[at];
        let pairing = match table.pairing {
            RopePairing::HalfSplit => rope::Pairing::HalfSplit,
            RopePairing::Interleaved => rope::Pairing::Interleaved,
        };
        let formula = rope::Rope {
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            rotary_dim: if layer.rope.is_some() { table.rotary_dim } else { 0 },
            pairing,
            q_norm: norms.map(|[q_norm, _]| &q_norm.weight),
            k_norm: norms.map(|[_, k_norm]| &k_norm.weight),
            eps: c.norm_eps,
        };
        let (stride, n, b) = (qkv.stride(), self.step.n, &self.step.arrays);
        let (k, v, (cos, sin)) = (&mut kv.k, &mut kv.v, &b.angles[at]);
        let qkv = qkv.bf16s_mut();
        rope_and_cache(&self.device, &formula, qkv, stride, n, cos, sin, &b.slot_mapping, k, v)?;
        Ok(())
    }

    fn attention(
        &mut self,
        out: &mut Buffer,
        qkv: &Buffer,
        kv: &KvLayer,
        _batch: &Batch,
        layer: &LayerConfig,
    ) -> Result<()> {
        out.rows = qkv.rows;
        let (c, step, b) = (&self.config, &self.step, &self.step.arrays);
        let operands = Attention {
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            // A window that no position reaches is the same as none.
            window: layer.window.and_then(|window| u32::try_from(window).ok()).unwrap_or(0),
            scale: layer.scale,
            soft_cap: layer.soft_cap,
            qkv: qkv.bf16s(),
            qkv_stride: qkv.stride(),
            k: &kv.k,
            v: &kv.v,
            block_tables: &b.block_tables,
            n_rows: step.n,
            out_stride: out.stride(),
        };
        let out = out.bf16s_mut();
        attention_prefill(&self.device, &operands, &b.spans, &b.tiles, b.tiles.len(), out)?;
        for first in (step.n_prompt..step.n).step_by(RECORDED_ROWS) {
            let (rows, scratch) = (first..step.n.min(first + RECORDED_ROWS), &mut self.scratch);
            let (positions, starts, max) = (&b.positions, &b.table_starts, step.max_kv_len);
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

    fn top(&mut self, logits: &Buffer) -> Result<Option<Top<'_>>> {
        let Some(top) = &mut self.top else { return Ok(None) };
        let (rows, vocab) = (logits.rows, logits.cols);
        sample::top_k(&self.device, logits.f32s(), rows, vocab, top)?;
        let (values, ids) = (&mut self.top_values[..rows * TOP], &mut self.top_ids[..rows * TOP]);
        top.values().read(0, values)?;
        top.ids().read(0, ids)?;
        Ok(Some(Top { k: TOP, values, ids }))
    }

    fn read<'a>(&mut self, buffer: &'a mut Buffer) -> Result<&'a mut [f32]> {
        buffer.read()
    }
}
