//! The CPU backend: all operations run on one small pool of threads, all kernels on vectors of sixteen lanes.
//!
//! Activations are f32 throughout. Weights have the type that the file or the options say. Each sum has one fixed
//! order (see [`welm_cpu::isa`]), so results depend neither on the number of threads nor on the instruction set.

mod activation;
mod attention;
mod linear;
mod matrix;
mod pages;
pub(crate) mod pool;
mod product;
mod quantize;
mod room;
pub(crate) mod rope;
mod soft_cap;

use std::ops::Range;

use bytemuck::Pod;
use half::{bf16, f16};
use welm_cpu::attention::Attend;
use welm_cpu::cache::{CacheRows, NormOf};
use welm_cpu::disjoint::Disjoint;
use welm_cpu::isa::Isa;
use welm_cpu::linear::Element;
use welm_cpu::norm::{self, norm_add_row, norm_row};
use welm_cpu::outputs::Epilogue;
use welm_cpu::quantize::{Form, Quantized};

use self::attention::Attention;
use self::matrix::Part;
use self::pages::{Pages, heads};
use self::pool::Pool;
use self::room::Room;
use self::rope::Angles;
use super::{Backend, Limits, Role};
use crate::batch::{BLOCK_TOKENS, Batch};
use crate::checkpoint::load::{LinearSource, NormSource};
use crate::config::part::PartKind;
use crate::config::{Activation, LayerConfig, ModelConfig, QkNorm};
use crate::error::{Error, Result};
use crate::host::threads;
use crate::kv_cache::block_values;
use crate::memory::Memory;
use crate::options::{Activations, CacheDtype, Dtype, LoadOptions};
use crate::weights::computed::{Computed, Kernels};
use crate::weights::slab::Plain;

pub(crate) use self::matrix::Matrix;

/// Activations, row-major.
pub(crate) struct Buffer {
    data: Memory<f32>, // (max_rows, cols)
    rows: usize,       // in use
    cols: usize,
    id: usize,
}

impl Buffer {
    fn used(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }

    fn used_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.rows * self.cols]
    }

    fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }
}

/// A matrix `(rows, cols)` and its bias `(rows)`.
pub(crate) struct Linear {
    matrix: Matrix,
    cols: usize,
    bias: Option<Vec<f32>>,
}

/// Keys and values of one layer.
pub(crate) enum KvLayer {
    F32(Pages<f32>),
    Bf16(Pages<bf16>),
    F16(Pages<f16>),
}

/// See [`NormSource`].
pub(crate) type Norm = NormSource;

/// The backend.
pub(crate) struct Cpu {
    pool: Pool,
    isa: Isa,
    dtype: Dtype,
    wide: bool,         // 16-bit activations in all quantised products
    copy_weights: bool, // see `LoadOptions::copy_weights`
    cache_dtype: CacheDtype,
    config: ModelConfig,
    quantized: Quantized,
    room: Room, // buffers in which the threads unpack weights
    /// The id of the buffer whose rows `quantized` holds, and their form. Each write to that buffer sets this to
    /// `None`.
    quantized_from: Option<(usize, Form)>,
    /// In which form the matrices that follow an activation function take its output; `None` if they take it as f32.
    activated: Option<Form>,
    n_buffers: usize,
    angles: Vec<Angles>, // one for each entry of `ModelConfig::ropes`
    attention: Attention,
}

/// The set `asked` for, else the one that `WELM_ISA` names, else the best of this machine.
///
/// # Errors
/// [`Error::Unavailable`] if this machine does not have the set.
fn isa(asked: Option<&str>) -> Result<Isa> {
    let from_env = std::env::var("WELM_ISA").ok().filter(|name| !name.is_empty());
    let Some(name) = asked.or(from_env.as_deref()) else {
        return Ok(Isa::best());
    };
    Isa::named(name).ok_or_else(|| Error::Unavailable {
        what: format!("instruction set `{name}`"),
        reason: format!(
            "this machine has {}",
            Isa::all().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
        ),
    })
}

/// The parameters of a norm, for a kernel.
fn view(norm: &Norm) -> norm::Norm<'_> {
    norm::Norm { weight: &norm.weight, bias: norm.bias.as_deref(), eps: norm.eps }
}

/// What a norm of q and k is of, for a kernel.
fn norm_of(norm: QkNorm) -> NormOf {
    match norm {
        QkNorm::Head => NormOf::Head,
        QkNorm::TurnedHead => NormOf::TurnedHead,
        QkNorm::AllHeads => NormOf::AllHeads,
    }
}

impl Cpu {
    /// The widest input of a quantised product.
    fn max_cols(config: &ModelConfig) -> usize {
        config.dim.max(config.hidden_dim).max(config.n_heads * config.head_dim)
    }

    fn threads(options: &LoadOptions) -> usize {
        options.threads.unwrap_or_else(threads::available)
    }

    /// Marks the quantised rows as out of date if they were made from `out`, which is about to change.
    fn overwrites(&mut self, out: &Buffer) {
        if self.quantized_from.is_some_and(|(id, _)| id == out.id) {
            self.quantized_from = None;
        }
    }

    fn matmul(&mut self, out: &mut Buffer, x: &Buffer, w: &Linear, epilogue: Epilogue, wide: bool) {
        self.overwrites(out);
        let (pool, isa) = (&mut self.pool, self.isa);
        debug_assert_eq!(x.cols, w.cols);
        if epilogue == Epilogue::Store {
            out.rows = x.rows;
        }
        let bias = w.bias.as_deref();
        if let Some(grouping) = w.matrix.grouping() {
            let form = Form { wide, grouping };
            if self.quantized_from != Some((x.id, form)) {
                self.quantized_from = None;
                quantize::fill(&mut self.quantized, pool, isa, x.used(), x.cols, form);
                self.quantized_from = Some((x.id, form));
            }
        }
        fn parts<T: Element + Plain>(
            pool: &mut Pool,
            isa: Isa,
            out: &mut Buffer,
            x: &Buffer,
            parts: &[Part<T>],
            bias: Option<&[f32]>,
            epilogue: Epilogue,
        ) {
            let (cols, stride) = (x.cols, out.cols);
            let mut first = 0;
            for part in parts {
                let w = &part.values[part.first_row * cols..(part.first_row + part.n_rows) * cols];
                let bias = bias.map(|b| &b[first..first + part.n_rows]);
                linear::matmul(pool, isa, (out.used_mut(), stride, first), x.used(), w, cols, bias, epilogue);
                first += part.n_rows;
            }
        }
        match &w.matrix {
            Matrix::F32(p) => parts(pool, isa, out, x, p, bias, epilogue),
            Matrix::F16(p) => parts(pool, isa, out, x, p, bias, epilogue),
            Matrix::Bf16(p) => parts(pool, isa, out, x, p, bias, epilogue),
            Matrix::Quantized(parts) => {
                product::matmul(
                    pool,
                    isa,
                    &self.room,
                    out.used_mut(),
                    &self.quantized,
                    parts,
                    bias,
                    epilogue,
                );
            }
        }
    }

    fn cache_rows<T: Attend + Pod>(
        &mut self,
        qkv: &mut Buffer,
        pages: &mut Pages<T>,
        batch: &Batch,
        layer: &LayerConfig,
        norms: Option<&[Norm; 2]>,
    ) {
        let (rows, cols, isa) = (qkv.rows, qkv.cols, self.isa);
        let heads = heads(&self.config);
        let rope = layer.rope.map(|rope| self.angles[rope].of_step(self.config.ropes[rope].pairing));
        let norms = layer.qk_norm.zip(norms).map(|(of, norms)| (norm_of(of), norms.each_ref().map(view)));
        let scale = layer
            .query_scale
            .map(|scale| (scale, &batch.positions, self.config.n_heads * self.config.head_dim));
        let (k, v) = pages.both_mut();
        let batch = batch.rows();
        let (qkv, k, v) = (Disjoint::new(qkv.used_mut()), Disjoint::new(k), Disjoint::new(v));
        // Keys of neighbouring rows lie in the same cache lines. So a task takes several rows if there are many.
        let share = rows.div_ceil(2 * self.pool.threads()).clamp(1, BLOCK_TOKENS);
        self.pool.run_if_worth(rows.div_ceil(share), rows * cols, |task| {
            let (rows, qkv, k, v) = (task * share..rows.min((task + 1) * share), &qkv, &k, &v);
            // SAFETY: each task has its own rows, and the engine gives each row of a batch a slot of its own.
            unsafe { T::cache(CacheRows { rows: rows.clone(), qkv, k, v, heads, rope, norms, batch }, isa) };
            let Some((scale, positions, q_cols)) = scale else { return };
            for row in rows {
                let factor = scale.factor(positions[row]);
                if factor != 1.0 {
                    // SAFETY: as above.
                    unsafe { qkv.slice(row * cols, q_cols) }.iter_mut().for_each(|q| *q *= factor);
                }
            }
        });
    }

    fn attend<T: Attend + Pod>(
        &mut self,
        out: &mut Buffer,
        qkv: &Buffer,
        pages: &Pages<T>,
        batch: &Batch,
        layer: &LayerConfig,
    ) {
        out.rows = qkv.rows;
        self.attention.run(&mut self.pool, self.isa, out.used_mut(), qkv.used(), pages, batch, layer);
    }
}

impl Cpu {
    /// Starts the threads, and allocates the memory that the operations need in addition to the buffers.
    pub(crate) fn new(config: &ModelConfig, options: &LoadOptions, limits: Limits) -> Result<Self> {
        let isa = isa(options.isa.as_deref())?;
        let threads = Self::threads(options);
        let pool = Pool::new(threads)?;
        Ok(Cpu {
            pool,
            isa,
            dtype: options.dtype,
            wide: options.activations == Activations::Int16,
            copy_weights: options.copy_weights,
            cache_dtype: options.cache_dtype,
            quantized: quantize::room(limits.max_rows.max(limits.max_logit_rows), Self::max_cols(config))?,
            room: Room::new(threads, Self::max_cols(config))?,
            quantized_from: None,
            activated: None,
            n_buffers: 0,
            angles: config.ropes.iter().map(|rope| Angles::of(rope, limits)).collect(),
            attention: Attention::new(heads(config), threads, limits.max_rows)?,
            config: config.clone(),
        })
    }
}

impl Backend for Cpu {
    const ONE_ARITHMETIC: bool = true;
    const KERNELS: Kernels = Kernels {
        backend: "cpu",
        types: &[Computed::Blocks, Computed::Int8, Computed::F16, Computed::Bf16, Computed::F32],
    };
    const KEEPS: bool = true;
    type Buffer = Buffer;
    type Norm = Norm;
    type Linear = Linear;
    type KvLayer = KvLayer;

    fn buffer_bytes(max_rows: usize, cols: usize, _role: Role) -> u64 {
        4 * (max_rows * cols) as u64
    }

    fn linear_bytes(source: &LinearSource, options: &LoadOptions) -> Result<(u64, bool)> {
        let computed = source.computed(options.dtype, &Self::KERNELS)?;
        let (bytes, in_place) = Matrix::bytes_of_source(source, computed);
        Ok((bytes, in_place && !options.copy_weights))
    }

    fn scratch_bytes(config: &ModelConfig, options: &LoadOptions, limits: Limits) -> u64 {
        let rotary_dims: usize = config.ropes.iter().map(|rope| rope.rotary_dim).sum();
        4 * (limits.max_rows * rotary_dims) as u64
            + Attention::bytes(heads(config), Self::threads(options), limits.max_rows)
            + Quantized::bytes(limits.max_rows.max(limits.max_logit_rows), Self::max_cols(config))
            + Room::bytes(Self::threads(options), Self::max_cols(config))
    }

    fn kv_layer_bytes(config: &ModelConfig, options: &LoadOptions, n_blocks: usize) -> u64 {
        let bytes = match options.cache_dtype {
            CacheDtype::F32 => 4,
            CacheDtype::Auto | CacheDtype::Bf16 | CacheDtype::F16 => 2,
        };
        2 * bytes * (n_blocks * block_values(config)) as u64
    }

    fn load_norm(&mut self, source: NormSource) -> Result<Norm> {
        Ok(source)
    }

    fn load_linear(&mut self, source: LinearSource) -> Result<Linear> {
        let computed = source.computed(self.dtype, &Self::KERNELS)?;
        let (kind, cols) = (source.kind, source.cols);
        let (matrix, bias) = Matrix::load(source, computed, self.copy_weights, self.pool.threads())?;
        // The width tells which matrices follow an activation function. If two of them take different forms, the one
        // loaded last decides; `matmul` quantises again for the other.
        if kind != PartKind::Table && cols == self.config.hidden_dim {
            self.activated = matrix.grouping().map(|grouping| Form { wide: self.wide, grouping });
        }
        Ok(Linear { matrix, cols, bias })
    }

    fn kv_layer(&mut self, n_blocks: usize) -> Result<KvLayer> {
        let len = n_blocks * block_values(&self.config);
        Ok(match self.cache_dtype {
            CacheDtype::F32 => KvLayer::F32(Pages::new(len)?),
            CacheDtype::Bf16 => KvLayer::Bf16(Pages::new(len)?),
            CacheDtype::Auto | CacheDtype::F16 => KvLayer::F16(Pages::new(len)?),
        })
    }

    fn buffer(&mut self, max_rows: usize, cols: usize, _role: Role) -> Result<Buffer> {
        self.n_buffers += 1;
        Ok(Buffer {
            data: Memory::zeroed(max_rows * cols, "activations")?,
            rows: 0,
            cols,
            id: self.n_buffers,
        })
    }

    fn largest_cached(&self) -> Option<f32> {
        matches!(self.cache_dtype, CacheDtype::Auto | CacheDtype::F16).then_some(f16::MAX.to_f32())
    }

    fn describe(&self) -> String {
        format!("cpu, {} threads, {}", self.pool.threads(), self.isa.name())
    }

    fn begin(&mut self, batch: &Batch) -> Result<()> {
        self.angles.iter_mut().for_each(|angles| angles.fill(&batch.positions));
        Ok(())
    }

    fn embed(&mut self, x: &mut Buffer, table: &Linear, scale: f32, batch: &Batch) -> Result<()> {
        self.overwrites(x);
        x.rows = batch.len();
        let (n, cols) = (x.rows, x.cols);
        let rows = Disjoint::new(x.used_mut());
        self.pool.run_if_worth(n, n * cols, |r| {
            let id = batch.token_ids[r] as usize;
            // SAFETY: each task has its own row.
            let out = unsafe { rows.slice(r * cols, cols) };
            table.matrix.row_f32(id, out);
            if scale != 1.0 {
                out.iter_mut().for_each(|x| *x *= scale);
            }
        });
        Ok(())
    }

    fn norm(&mut self, out: &mut Buffer, x: &Buffer, norm: &Norm) -> Result<()> {
        self.overwrites(out);
        out.rows = x.rows;
        let (isa, cols, n) = (self.isa, x.cols, x.rows);
        let out = Disjoint::new(out.used_mut());
        self.pool.run_if_worth(n, n * cols, |r| {
            // SAFETY: each task has its own row.
            norm_row(isa, x.row(r), view(norm), unsafe { out.slice(r * cols, cols) });
        });
        Ok(())
    }

    fn norm_add(&mut self, x: &mut Buffer, y: &mut Buffer, norm: &Norm) -> Result<()> {
        self.overwrites(x);
        self.overwrites(y);
        let (isa, cols, n) = (self.isa, x.cols, x.rows);
        let (x, y) = (Disjoint::new(x.used_mut()), Disjoint::new(y.used_mut()));
        self.pool.run_if_worth(n, n * cols, |r| {
            // SAFETY: each task has its own row.
            unsafe {
                let (y, to) = (y.slice(r * cols, cols), x.slice(r * cols, cols));
                norm_add_row(isa, y, view(norm), to);
            }
        });
        Ok(())
    }

    fn norm_rows(&mut self, out: &mut Buffer, x: &Buffer, some: Range<usize>, norm: &Norm) -> Result<()> {
        self.overwrites(out);
        out.rows = some.len();
        let cols = x.cols;
        // Only the wanted rows are left of x, see `keep`.
        for (out, r) in out.used_mut().chunks_mut(cols).zip(some) {
            norm_row(self.isa, x.row(r), view(norm), out);
        }
        Ok(())
    }

    fn linear(&mut self, out: &mut Buffer, x: &Buffer, w: &Linear) -> Result<()> {
        let wide = self.wide;
        self.matmul(out, x, w, Epilogue::Store, wide);
        Ok(())
    }

    fn linear_add(&mut self, out: &mut Buffer, x: &Buffer, w: &Linear) -> Result<()> {
        let wide = self.wide;
        self.matmul(out, x, w, Epilogue::Add, wide);
        Ok(())
    }

    fn linear_activate(
        &mut self,
        out: &mut Buffer,
        gates: &mut Buffer,
        x: &Buffer,
        w: &Linear,
        f: Activation,
    ) -> Result<()> {
        self.linear(gates, x, w)?;
        out.rows = gates.rows;
        let (isa, cols, n) = (self.isa, out.cols, out.rows);
        self.overwrites(out);
        self.quantized_from = self.activated.map(|form| (out.id, form)).or(self.quantized_from);
        let quantized = self.activated.map(|form| self.quantized.rows(n, cols, form));
        activation::activate(&mut self.pool, isa, out.used_mut(), cols, gates.used(), f, quantized.as_ref());
        Ok(())
    }

    fn logits(&mut self, out: &mut Buffer, x: &Buffer, w: &Linear, soft_cap: Option<f32>) -> Result<()> {
        // Logits are computed for few rows, but rounding their input causes most of the divergence. Activations of
        // 16 bits cost little here and halve the error.
        self.matmul(out, x, w, Epilogue::Store, true);
        if let Some(cap) = soft_cap {
            soft_cap::cap_all(&mut self.pool, self.isa, out.used_mut(), cap);
        }
        Ok(())
    }

    fn rope_and_cache(
        &mut self,
        qkv: &mut Buffer,
        kv: &mut KvLayer,
        batch: &Batch,
        layer: &LayerConfig,
        norms: Option<&[Norm; 2]>,
    ) -> Result<()> {
        self.overwrites(qkv);
        match kv {
            KvLayer::F32(pages) => self.cache_rows(qkv, pages, batch, layer, norms),
            KvLayer::Bf16(pages) => self.cache_rows(qkv, pages, batch, layer, norms),
            KvLayer::F16(pages) => self.cache_rows(qkv, pages, batch, layer, norms),
        }
        Ok(())
    }

    fn attention(
        &mut self,
        out: &mut Buffer,
        qkv: &Buffer,
        kv: &KvLayer,
        batch: &Batch,
        layer: &LayerConfig,
    ) -> Result<()> {
        self.overwrites(out);
        match kv {
            KvLayer::F32(pages) => self.attend(out, qkv, pages, batch, layer),
            KvLayer::Bf16(pages) => self.attend(out, qkv, pages, batch, layer),
            KvLayer::F16(pages) => self.attend(out, qkv, pages, batch, layer),
        }
        Ok(())
    }

    fn keep(&mut self, buffer: &mut Buffer, rows: &[u32]) -> Result<()> {
        if rows.len() < buffer.rows {
            self.overwrites(buffer);
            let cols = buffer.cols;
            for (to, &from) in rows.iter().enumerate() {
                let from = from as usize * cols;
                buffer.data.copy_within(from..from + cols, to * cols);
            }
            buffer.rows = rows.len();
        }
        Ok(())
    }

    fn copy_block(&mut self, kv: &mut KvLayer, from: u32, to: u32) -> Result<()> {
        let len = block_values(&self.config);
        match kv {
            KvLayer::F32(pages) => pages.copy_block(from, to, len),
            KvLayer::Bf16(pages) => pages.copy_block(from, to, len),
            KvLayer::F16(pages) => pages.copy_block(from, to, len),
        }
        Ok(())
    }

    fn read<'a>(&mut self, buffer: &'a mut Buffer) -> Result<&'a mut [f32]> {
        self.overwrites(buffer);
        Ok(buffer.used_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_instruction_set_is_an_error_that_lists_the_known() {
        let message = isa(Some("neon512")).unwrap_err().to_string();
        assert!(message.contains("neon512") && message.contains("scalar"), "{message}");
        assert_eq!(isa(Some("scalar")).unwrap().name(), "scalar");
    }
}
