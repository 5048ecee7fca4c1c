//! `forward()`: the decoder, written once for every family and backend.
//!
//! ```text
//! sequential:  x = x + att(norm(x));   x = x + ffn(norm(x))        Llama, WeLM
//! parallel:    x = x + att(norm1(x)) + ffn(norm2(x))               GPT-NeoX
//! ```
//!
//! `att` and `ffn` are the two halves of a layer. A half has a norm before it, after it, or both
//! (`x + norm(att(norm(x)))`).
//!
//! All other differences between models and layers are data: a [`LayerConfig`], which the operations get, and optional
//! norms.
//!
//! This code only computes and makes no decisions. All of its memory is [`Scratch`], which is allocated at load.

use std::collections::HashMap;
use std::ops::Range;

use crate::backend::{Backend, Limits, Role};
use crate::batch::Batch;
use crate::checkpoint::load::Source;
use crate::config::part::{LayerPart, ModelPart, PartKind};
use crate::config::{Activation, LayerConfig, ModelConfig};
use crate::error::Result;
use crate::kv_cache::KvCache;

/// The weights of one layer.
pub(crate) struct Layer<B: Backend> {
    config: LayerConfig,
    attn_norm: Option<B::Norm>,      // (dim)
    qkv: B::Linear,                  // (qkv_dim, dim): q heads, k heads, v heads
    qk_norm: Option<[B::Norm; 2]>,   // norms of q and of k: (head_dim), or all heads of q or k
    out: B::Linear,                  // (dim, n_heads * head_dim)
    attn_post_norm: Option<B::Norm>, // (dim)
    ffn_norm: Option<B::Norm>,       // (dim)
    up: B::Linear,                   // (hidden_dim, dim), or (2 * hidden_dim, dim): gate, then up
    down: B::Linear,                 // (dim, hidden_dim)
    ffn_post_norm: Option<B::Norm>,  // (dim)
}

/// The weights of a model.
pub(crate) struct Weights<B: Backend> {
    embed: B::Linear, // (vocab_size, dim)
    layers: Vec<Layer<B>>,
    final_norm: B::Norm,       // (dim)
    output: Option<B::Linear>, // (vocab_size, dim); none if the embedding is also the output matrix
    activation: Activation,
    parallel_residual: bool,
    embed_scale: f32,
    logit_soft_cap: Option<f32>,
}

impl<B: Backend> Weights<B> {
    /// Hands every tensor of the source to the backend. Calls `done` with the number of bytes read after each matrix.
    pub(crate) fn load(
        backend: &mut B,
        source: &Source,
        mut done: impl FnMut(u64) -> Result<()>,
    ) -> Result<Self> {
        let config = &source.config;
        let (mut matrices, mut norms) = (HashMap::new(), HashMap::new());
        for spec in config.parts() {
            if spec.kind == PartKind::Norm {
                // The scale of logits is multiplied into the last norm, so that no operation is needed after the
                // output.
                let times = if spec.part == ModelPart::FinalNorm { config.logit_scale } else { 1.0 };
                norms.insert(spec.part, backend.load_norm(source.norm(&spec)?.times(times))?);
                continue;
            }
            let matrix = source.linear(&spec)?;
            matrix.check_scales()?;
            let bytes = matrix.stored_bytes();
            matrices.insert(spec.part, backend.load_linear(matrix)?);
            done(bytes)?;
        }
        let embed = listed(&mut matrices, ModelPart::Embed);
        let layers = config.layers.iter().enumerate().map(|(l, &layer)| {
            let of = |part| ModelPart::Layer(l, part);
            let (q_norm, k_norm) = (norms.remove(&of(LayerPart::QNorm)), norms.remove(&of(LayerPart::KNorm)));
            Layer {
                config: layer,
                attn_norm: norms.remove(&of(LayerPart::AttnNorm)),
                qkv: listed(&mut matrices, of(LayerPart::Qkv)),
                qk_norm: q_norm.zip(k_norm).map(Into::into),
                out: listed(&mut matrices, of(LayerPart::Out)),
                attn_post_norm: norms.remove(&of(LayerPart::AttnPostNorm)),
                ffn_norm: norms.remove(&of(LayerPart::FfnNorm)),
                up: listed(&mut matrices, of(LayerPart::Up)),
                down: listed(&mut matrices, of(LayerPart::Down)),
                ffn_post_norm: norms.remove(&of(LayerPart::FfnPostNorm)),
            }
        });
        let layers = layers.collect();
        let final_norm = listed(&mut norms, ModelPart::FinalNorm);
        let output = matrices.remove(&ModelPart::Output);
        let left: Vec<_> = matrices.keys().chain(norms.keys()).map(ModelPart::to_string).collect();
        assert!(left.is_empty(), "listed, but not computed with: {left:?}");
        let &ModelConfig { activation, parallel_residual, embed_scale, logit_soft_cap, .. } = config;
        Ok(Weights {
            embed,
            layers,
            final_norm,
            output,
            activation,
            parallel_residual,
            embed_scale,
            logit_soft_cap,
        })
    }
}

/// Removes a part that every model has.
fn listed<T>(parts: &mut HashMap<ModelPart, T>, part: ModelPart) -> T {
    parts.remove(&part).unwrap_or_else(|| panic!("{part} is not listed"))
}

/// The buffers of all activations of a forward pass; `n` is at most `Limits::max_rows`.
pub(crate) struct Scratch<B: Backend> {
    x: B::Buffer,      // (n, dim), the residual stream
    h: B::Buffer,      // (n, dim), normalised
    qkv: B::Buffer,    // (n, (n_heads + 2 * n_kv_heads) * head_dim)
    att: B::Buffer,    // (n, n_heads * head_dim)
    gates: B::Buffer,  // (n, hidden_dim) or (n, 2 * hidden_dim), before the activation
    act: B::Buffer,    // (n, hidden_dim)
    half: B::Buffer,   // (n, dim), output of half a layer, before a norm after it; (n, 0) without such norms
    last: B::Buffer,   // (max_logit_rows, dim)
    logits: B::Buffer, // (max_logit_rows, vocab_size)
}

/// Columns and role of a buffer.
type Shape = (usize, Role);

/// Shapes of the buffers of [`Scratch`] with `max_rows` rows, and of the two with `max_logit_rows`.
fn shapes(c: &ModelConfig) -> ([Shape; 7], [Shape; 2]) {
    let attention = c.n_heads * c.head_dim;
    let half = if c.layers.iter().any(|layer| layer.post_norms) { c.dim } else { 0 };
    let rows = [
        (c.dim, Role::Residual),
        (c.dim, Role::Normed),
        (c.qkv_dim(), Role::Hidden),
        (attention, Role::Hidden),
        (c.up_dim(), Role::Gates),
        (c.hidden_dim, Role::Hidden),
        (half, Role::Residual),
    ];
    (rows, [(c.dim, Role::Hidden), (c.vocab_size, Role::Logits)])
}

impl<B: Backend> Scratch<B> {
    /// Allocates all buffers.
    pub(crate) fn new(backend: &mut B, config: &ModelConfig, limits: Limits) -> Result<Self> {
        let ([x, h, qkv, att, gates, act, half], [last, logits]) = shapes(config);
        let mut rows = |(cols, role)| backend.buffer(limits.max_rows, cols, role);
        let (x, h, qkv, att) = (rows(x)?, rows(h)?, rows(qkv)?, rows(att)?);
        let (gates, act, half) = (rows(gates)?, rows(act)?, rows(half)?);
        let mut logit_rows = |(cols, role)| backend.buffer(limits.max_logit_rows, cols, role);
        let (last, logits) = (logit_rows(last)?, logit_rows(logits)?);
        Ok(Scratch { x, h, qkv, att, gates, act, half, last, logits })
    }

    /// Bytes that `new` allocates.
    pub(crate) fn bytes(config: &ModelConfig, limits: Limits) -> u64 {
        let (rows, logit_rows) = shapes(config);
        let sum = |shapes: &[Shape], max_rows| {
            shapes.iter().map(|&(cols, role)| B::buffer_bytes(max_rows, cols, role)).sum::<u64>()
        };
        sum(&rows, limits.max_rows) + sum(&logit_rows, limits.max_logit_rows)
    }
}

/// Computes the batch's rows, up to the residual stream after the last layer, and writes their keys and values to the
/// cache.
///
/// In the last layer, rows whose logits are not wanted need only their keys and values. If the backend can drop rows,
/// they are dropped after that layer's attention. This saves a prompt most of one layer.
pub(crate) fn forward<B: Backend>(
    ops: &mut B,
    weights: &Weights<B>,
    kv: &mut KvCache<B::KvLayer>,
    s: &mut Scratch<B>,
    batch: &Batch,
) -> Result<()> {
    ops.begin(batch)?;
    ops.repeat(|ops| layers(ops, weights, kv, s, batch, |_, _| Ok(())))
}

/// Computes the embedding and all layers. Calls `after` with the residual stream after each of them.
fn layers<B: Backend>(
    ops: &mut B,
    weights: &Weights<B>,
    kv: &mut KvCache<B::KvLayer>,
    s: &mut Scratch<B>,
    batch: &Batch,
    mut after: impl FnMut(&mut B, &mut B::Buffer) -> Result<()>,
) -> Result<()> {
    ops.embed(&mut s.x, &weights.embed, weights.embed_scale, batch)?; // (n, dim)
    after(ops, &mut s.x)?;
    let last = weights.layers.len() - 1;
    for ((l, layer), kv) in weights.layers.iter().enumerate().zip(&mut kv.layers) {
        let input = normed(ops, &mut s.h, &s.x, &layer.attn_norm)?; // (n, dim)
        ops.linear(&mut s.qkv, input, &layer.qkv)?; // (n, (n_heads + 2 * n_kv_heads) * head_dim)
        ops.rope_and_cache(&mut s.qkv, kv, batch, &layer.config, layer.qk_norm.as_ref())?; // turns q, k; writes k, v
        ops.attention(&mut s.att, &s.qkv, kv, batch, &layer.config)?; // (n, n_heads * head_dim)
        if B::KEEPS && l == last {
            ops.keep(&mut s.x, &batch.wanted)?; // from here on n is the number of wanted rows
            ops.keep(&mut s.att, &batch.wanted)?;
            if batch.wanted.is_empty() {
                break;
            }
        }
        let input = if weights.parallel_residual {
            normed(ops, &mut s.h, &s.x, &layer.ffn_norm)?; // the norm of the same x that attention got
            add(ops, &mut s.x, &mut s.half, &s.att, &layer.out, &layer.attn_post_norm)?;
            &s.h
        } else {
            add(ops, &mut s.x, &mut s.half, &s.att, &layer.out, &layer.attn_post_norm)?; // (n, dim)
            normed(ops, &mut s.h, &s.x, &layer.ffn_norm)?
        };
        ops.linear_activate(&mut s.act, &mut s.gates, input, &layer.up, weights.activation)?; // (n, hidden_dim)
        add(ops, &mut s.x, &mut s.half, &s.act, &layer.down, &layer.ffn_post_norm)?; // (n, dim)
        after(ops, &mut s.x)?;
    }
    Ok(())
}

/// Computes `norm(x)` in `h` and returns `h`; without a norm, returns `x`.
fn normed<'a, B: Backend>(
    ops: &mut B,
    h: &'a mut B::Buffer, // (n, dim)
    x: &'a B::Buffer,     // (n, dim)
    norm: &Option<B::Norm>,
) -> Result<&'a B::Buffer> {
    let Some(norm) = norm else { return Ok(x) };
    ops.norm(h, x, norm)?;
    Ok(h)
}

/// `x += norm(y W^T + b)`; without a norm, `x += y W^T + b`.
fn add<B: Backend>(
    ops: &mut B,
    x: &mut B::Buffer,    // (n, dim)
    half: &mut B::Buffer, // (n, dim), if there is a norm
    y: &B::Buffer,
    w: &B::Linear,
    norm: &Option<B::Norm>,
) -> Result<()> {
    let Some(norm) = norm else { return ops.linear_add(x, y, w) };
    ops.linear(half, y, w)?;
    ops.norm_add(x, half, norm)
}

/// Finds where values stopped being finite in the batch that `forward` computed last. For each owner of such rows:
/// the stage (0 is the embedding, `l + 1` is layer `l`), and the first such row. The batch is computed once more, with
/// the same bits. An owner whose residual stream is finite after the last layer is not in the result.
pub(crate) fn origins<B: Backend>(
    ops: &mut B,
    weights: &Weights<B>,
    kv: &mut KvCache<B::KvLayer>,
    s: &mut Scratch<B>,
    batch: &Batch,
    owners: &[Option<usize>], // (n)
) -> Result<HashMap<usize, (usize, usize)>> {
    let (mut stage, mut found) = (0, HashMap::new());
    ops.begin(batch)?;
    layers(ops, weights, kv, s, batch, |ops, x| {
        let kept = B::KEEPS && stage == weights.layers.len(); // then x has only the wanted rows
        let n = if kept { batch.wanted.len() } else { batch.len() };
        let values = ops.read(x)?; // (n, dim)
        for (at, values) in values.chunks(values.len() / n).enumerate() {
            let row = if kept { batch.wanted[at] as usize } else { at };
            if let Some(owner) = owners[row].filter(|_| values.iter().any(|x| !x.is_finite())) {
                found.entry(owner).or_insert((stage, row));
            }
        }
        stage += 1;
        Ok(())
    })?;
    Ok(found)
}

/// Logits of the wanted rows `some` of the batch that `forward` computed last: `(some.len(), vocab_size)`. `some` has
/// at most `max_logit_rows` rows.
pub(crate) fn logits<'s, B: Backend>(
    ops: &mut B,
    weights: &Weights<B>,
    s: &'s mut Scratch<B>,
    some: Range<usize>,
) -> Result<&'s mut B::Buffer> {
    ops.norm_rows(&mut s.last, &s.x, some, &weights.final_norm)?; // (some.len(), dim)
    let output = weights.output.as_ref().unwrap_or(&weights.embed);
    ops.logits(&mut s.logits, &s.last, output, weights.logit_soft_cap)?;
    Ok(&mut s.logits)
}

#[cfg(test)]
mod formula;

#[cfg(test)]
pub(crate) mod tests {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;
    use std::path::Path;

    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::options::{Dtype, LoadOptions};

    thread_local! {
        static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
        /// Bytes that are allocated now, and the largest number so far.
        static BYTES: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
        static TAKEN: Cell<isize> = const { Cell::new(0) };
    }

    /// What the system's allocator takes for it: whole sixteens, of which eight bytes are its own.
    fn of_allocator(layout: Layout) -> isize {
        (layout.size() + 8).next_multiple_of(16).max(32) as isize
    }

    fn count(bytes: isize) {
        let _ = BYTES.try_with(|counts| {
            let (now, most) = counts.get();
            counts.set((now + bytes, most.max(now + bytes)));
        });
    }

    /// Bytes that the system's allocator has taken for this thread, and not got back.
    pub(crate) fn heap_bytes() -> isize {
        TAKEN.get()
    }

    /// Runs `work`. Also returns the largest number of bytes that this thread had allocated meanwhile, beyond those
    /// before.
    pub(crate) fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
        let before = BYTES.get().0;
        BYTES.set((before, before));
        let result = work();
        (result, (BYTES.get().1 - before) as usize)
    }

    struct Counting;

    // SAFETY: it passes all calls to the system's allocator.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
            count(layout.size() as isize);
            let _ = TAKEN.try_with(|taken| taken.set(taken.get() + of_allocator(layout)));
            // SAFETY: the caller's promise.
            unsafe { System.alloc(layout) }
        }
        unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
            count(-(layout.size() as isize));
            let _ = TAKEN.try_with(|taken| taken.set(taken.get() - of_allocator(layout)));
            // SAFETY: the caller's promise.
            unsafe { System.dealloc(p, layout) }
        }
    }

    #[global_allocator]
    static COUNTING: Counting = Counting;

    #[test]
    fn forward_allocates_nothing() {
        for (fixture, dtype) in
            [("llama_gqa", Dtype::F32), ("neox_parallel", Dtype::Bf16), ("neox_odd", Dtype::Int8)]
        {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(fixture);
            let source = Source::open(&folder, None, false).unwrap();
            // One thread, so that this thread's count has all allocations.
            let options = LoadOptions { threads: Some(1), dtype, ..LoadOptions::default() };
            let limits = Limits {
                chunk_tokens: 6,
                max_rows: 8,
                max_logit_rows: 2,
                max_context: 64,
                rope_context: 64,
                n_blocks: 4,
            };
            let mut cpu = Cpu::new(&source.config, &options, limits).unwrap();
            let weights = Weights::load(&mut cpu, &source, |_| Ok(())).unwrap();
            let mut kv = KvCache::new(source.config.n_layers, || cpu.kv_layer(limits.n_blocks)).unwrap();
            let mut scratch = Scratch::new(&mut cpu, &source.config, limits).unwrap();
            let mut batch = Batch::default();
            batch.push_prompt(&[1, 2, 3, 4, 5], 0, &[2]);
            batch.push_prompt(&[6], 0, &[0]);
            batch.want(4);
            batch.want(5);
            let before = ALLOCATIONS.get();
            assert!(before > 0, "the counter counts");
            forward(&mut cpu, &weights, &mut kv, &mut scratch, &batch).unwrap();
            let logits = logits(&mut cpu, &weights, &mut scratch, 0..2).unwrap();
            let logits = cpu.read(logits).unwrap();
            assert!(logits.iter().all(|x| x.is_finite()));
            assert_eq!(ALLOCATIONS.get(), before, "{fixture} as {dtype:?}");
        }
    }
}
