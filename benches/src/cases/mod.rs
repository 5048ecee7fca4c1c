//! The cases that are timed: a kernel's launcher on random operands of one shape.
//!
//! Bytes and operations are the fewest that the formula needs: every operand is read once, every result is written
//! once, and keys that a row does not see are not counted. If a kernel moves or computes more, its figures are worse,
//! as they should be.

mod attention;
mod noise;
mod predict;
mod product;
mod rows;

use anyhow::{Context, ensure};
use half::bf16;
use serde_json::{Value, json};
use welm_kernels::{Buffer, Device, Element, Error, Result};

use crate::timing::{Effort, Times, time};

/// Elements of an output that are checked.
const LOOKED_AT: usize = 1 << 16;

/// The heads of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Heads of keys and of values.
    pub n_kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Columns of queries, of keys and of values.
    fn qkv_dim(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }
}

/// The types of a product's weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operands {
    /// int8 in groups of 32, bf16.
    W8A16,
    /// bf16, bf16.
    W16A16,
    /// int8 in groups of 32, int8 in groups of 32.
    W8A8,
    /// Rotated int8, rotated bf16.
    R8A16,
    /// Rotated int8, rotated int8.
    R8A8,
}

/// What a product does with its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// Rounds it to bf16.
    Bf16,
    /// The same after a GELU.
    Gelu,
    /// Adds it to the residual stream, f32.
    Add,
}

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// bf16.
    Bf16,
    /// int8, a scale for 32 columns.
    Int8,
    /// Rotated, bf16.
    Rotated,
    /// Rotated, int8, a scale for a row.
    RotatedInt8,
}

/// A kernel and its sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Attention of `batch` generated tokens, each at the end of its own `kv_len` keys.
    Decode {
        /// Heads of the attention.
        heads: Heads,
        /// Sequences.
        batch: usize,
        /// Keys of each.
        kv_len: usize,
    },
    /// Attention of a prompt.
    Prefill {
        /// Heads of the attention.
        heads: Heads,
        /// Tokens.
        n: usize,
    },
    /// `n` rows times a weight `(rows, cols)`.
    Product {
        /// What is multiplied.
        operands: Operands,
        /// What happens after it.
        epilogue: Epilogue,
        /// Rows of activations.
        n: usize,
        /// Columns of activations and weights.
        cols: usize,
        /// Rows of the weight.
        rows: usize,
    },
    /// A layernorm.
    Norm {
        /// Form of the result.
        form: Form,
        /// Rows.
        n: usize,
        /// Columns.
        dim: usize,
    },
    /// bf16 rows to another form.
    Convert {
        /// Form of the result.
        form: Form,
        /// Rows.
        n: usize,
        /// Columns.
        dim: usize,
    },
    /// Rotary embedding and the write to the cache.
    Rope {
        /// Heads of a row.
        heads: Heads,
        /// Rows.
        n: usize,
    },
    /// The largest logits.
    TopK {
        /// Rows.
        n: usize,
        /// Logits of a row.
        vocab: usize,
        /// How many are found.
        k: usize,
    },
}

/// The limit that a kernel is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The bandwidth of a copy.
    Copy,
    /// The largest rate of bf16 products.
    Bf16,
    /// The largest rate of int8 products.
    Int8,
}

impl Limit {
    /// The name in records.
    pub fn name(self) -> &'static str {
        match self {
            Limit::Copy => "copy",
            Limit::Bf16 => "bf16",
            Limit::Int8 => "int8",
        }
    }
}

/// Operands of a shape on the device.
trait Work {
    /// Starts the kernels once, with the buffers of a set.
    fn launch(&mut self, device: &Device, set: usize) -> Result<()>;
    /// The beginning of the result of set 0.
    fn output(&self) -> Result<Vec<f32>>;
}

struct Case {
    sets: usize,
    work: Box<dyn Work>,
}

impl Shape {
    /// The name of the kernel in records.
    pub fn group(&self) -> &'static str {
        match self {
            Shape::Decode { .. } => "attention_decode",
            Shape::Prefill { .. } => "attention_prefill",
            Shape::Product { .. } => "product",
            Shape::Norm { .. } => "norm",
            Shape::Convert { .. } => "convert",
            Shape::Rope { .. } => "rope",
            Shape::TopK { .. } => "top_k",
        }
    }

    /// Which of the kernels of a group, and what a product does with its result.
    pub fn variant(&self) -> String {
        let variant = match self {
            Shape::Product { operands, epilogue, .. } => {
                let operands = match operands {
                    Operands::W8A16 => "w8a16",
                    Operands::W16A16 => "w16a16",
                    Operands::W8A8 => "w8a8",
                    Operands::R8A16 => "r8a16",
                    Operands::R8A8 => "r8a8",
                };
                let epilogue = match epilogue {
                    Epilogue::Bf16 => "",
                    Epilogue::Gelu => " gelu",
                    Epilogue::Add => " add",
                };
                return format!("{operands}{epilogue}");
            }
            Shape::Norm { form, .. } | Shape::Convert { form, .. } => match form {
                Form::Bf16 => "bf16",
                Form::Int8 => "int8",
                Form::Rotated => "rotated",
                Form::RotatedInt8 => "rotated_int8",
            },
            Shape::Decode { .. } | Shape::Prefill { .. } | Shape::Rope { .. } => "bf16",
            Shape::TopK { .. } => "f32",
        };
        variant.to_owned()
    }

    /// The sizes.
    pub fn sizes(&self) -> Value {
        let heads = |Heads { n_heads, n_kv_heads, head_dim }: Heads| json!({ "n_heads": n_heads, "n_kv_heads": n_kv_heads, "head_dim": head_dim });
        let (mut sizes, more) = match *self {
            Shape::Decode { heads: h, batch, kv_len } => {
                (heads(h), json!({ "batch": batch, "kv_len": kv_len }))
            }
            Shape::Prefill { heads: h, n } | Shape::Rope { heads: h, n } => (heads(h), json!({ "n": n })),
            Shape::Product { n, cols, rows, .. } => {
                (json!({}), json!({ "n": n, "cols": cols, "rows": rows }))
            }
            Shape::Norm { n, dim, .. } | Shape::Convert { n, dim, .. } => {
                (json!({}), json!({ "n": n, "dim": dim }))
            }
            Shape::TopK { n, vocab, k } => (json!({}), json!({ "n": n, "vocab": vocab, "k": k })),
        };
        if let (Value::Object(sizes), Value::Object(more)) = (&mut sizes, more) {
            sizes.extend(more);
        }
        sizes
    }

    /// The limit of its speed.
    pub fn limit(&self) -> Limit {
        match self {
            Shape::Prefill { .. } => Limit::Bf16,
            // For this few rows, reading the weight takes longer than the products.
            Shape::Product { n, .. } if *n <= product::FEW => Limit::Copy,
            Shape::Product { operands: Operands::W8A8 | Operands::R8A8, .. } => Limit::Int8,
            Shape::Product { .. } => Limit::Bf16,
            _ => Limit::Copy,
        }
    }

    /// Operations, where a multiplication and an addition are two; 0 if they do not matter.
    pub fn ops(&self) -> u64 {
        let ops = match *self {
            Shape::Decode { heads, batch, kv_len } => 4 * batch * kv_len * heads.n_heads * heads.head_dim,
            Shape::Prefill { heads, n } => 2 * n * (n + 1) * heads.n_heads * heads.head_dim,
            Shape::Product { n, cols, rows, .. } => 2 * n * cols * rows,
            _ => 0,
        };
        ops as u64
    }

    /// The fewest bytes that have to be read and written.
    pub fn bytes(&self) -> u64 {
        /// Bytes of `n` rows of `cols` columns in a form.
        fn rows(form: Form, n: usize, cols: usize) -> usize {
            match form {
                Form::Bf16 | Form::Rotated => 2 * n * cols,
                Form::Int8 => n * (cols + cols / 32 * 4),
                Form::RotatedInt8 => n * (cols + 4),
            }
        }
        let bytes = match *self {
            Shape::Decode { heads: h, batch, kv_len } => {
                2 * batch * h.head_dim * (2 * kv_len * h.n_kv_heads + 2 * h.n_heads)
            }
            Shape::Prefill { heads: h, n } => 2 * n * h.head_dim * (2 * h.n_kv_heads + 2 * h.n_heads),
            Shape::Product { operands, epilogue, n, cols, rows: out } => {
                // int8 with an f16 scale for every 32; bf16; int8 with an f32 scale for a row.
                let (w8, w16, r8) = (out * cols * 17 / 16, 2 * out * cols, out * (cols + 4));
                let (weight, x) = match operands {
                    Operands::W8A16 => (w8, Form::Bf16),
                    Operands::W16A16 => (w16, Form::Bf16),
                    Operands::W8A8 => (w8, Form::Int8),
                    Operands::R8A16 => (r8, Form::Rotated),
                    Operands::R8A8 => (r8, Form::RotatedInt8),
                };
                let result = if epilogue == Epilogue::Add { 8 } else { 2 };
                weight + 4 * out + rows(x, n, cols) + result * n * out
            }
            Shape::Norm { form, n, dim } => 4 * n * dim + 8 * dim + rows(form, n, dim),
            Shape::Convert { form, n, dim } => 2 * n * dim + rows(form, n, dim),
            // q is read and written, k and v are read and written to the cache, cosines and sines are read.
            Shape::Rope { heads: h, n } => {
                n * (4 * h.n_heads * h.head_dim + 8 * h.n_kv_heads * h.head_dim + 4 * h.head_dim)
            }
            Shape::TopK { n, vocab, k } => 4 * n * vocab + 8 * n * k,
        };
        bytes as u64
    }

    fn build(&self, device: &Device, effort: &Effort) -> Result<Case> {
        let sets = match self.limit() {
            Limit::Copy => effort.sets(self.bytes()),
            Limit::Bf16 | Limit::Int8 => 1,
        };
        let work: Box<dyn Work> = match *self {
            Shape::Decode { heads, batch, kv_len } => {
                Box::new(attention::Decode::new(device, sets, heads, batch, kv_len)?)
            }
            Shape::Prefill { heads, n } => Box::new(attention::Prefill::new(device, heads, n)?),
            Shape::Product { operands, epilogue, n, cols, rows } => {
                Box::new(product::Product::new(device, sets, operands, epilogue, n, cols, rows)?)
            }
            Shape::Norm { form, n, dim } => Box::new(rows::Normed::new(device, sets, form, n, dim)?),
            Shape::Convert { form, n, dim } => Box::new(rows::Converted::new(device, sets, form, n, dim)?),
            Shape::Rope { heads, n } => Box::new(rows::Turned::new(device, sets, heads, n)?),
            Shape::TopK { n, vocab, k } => Box::new(rows::Largest::new(device, sets, n, vocab, k)?),
        };
        Ok(Case { sets, work })
    }

    /// Measures its time; none if the device has not enough memory.
    ///
    /// # Errors
    /// What the driver reports; a result that is not finite, or nothing but zeros.
    pub fn measure(&self, device: &Device, effort: &Effort) -> anyhow::Result<Option<Times>> {
        let mut case = match self.build(device, effort) {
            Err(Error::OutOfMemory { .. }) => return Ok(None),
            case => case.with_context(|| format!("{self:?}"))?,
        };
        let times = time(device, effort, case.sets, |set| case.work.launch(device, set));
        let times = times.with_context(|| format!("{self:?}"))?;
        let output = case.work.output()?;
        let sound = output.iter().all(|x| x.is_finite()) && output.iter().any(|x| *x != 0.0);
        ensure!(sound, "{self:?}: expected a finite result, got {:?} ...", &output[..output.len().min(8)]);
        Ok(Some(times))
    }

    /// All shapes that are measured: those of WeLM with 10 billion parameters, and grouped-query attention.
    pub fn all() -> Vec<Shape> {
        let (dim, hidden, vocab) = (5120, 20_480, 62_080);
        let welm = Heads { n_heads: 40, n_kv_heads: 40, head_dim: 128 };
        let grouped = Heads { n_heads: 32, n_kv_heads: 8, head_dim: 128 };
        let mut shapes = Vec::new();
        for heads in [welm, grouped] {
            for kv_len in [2048, 16_384] {
                shapes.extend([1, 8, 64].map(|batch| Shape::Decode { heads, batch, kv_len }));
            }
        }
        for heads in [welm, grouped] {
            shapes.extend([2048, 4096, 8192, 16_384].map(|n| Shape::Prefill { heads, n }));
        }
        // The four products of a layer.
        let layer = [
            (dim, 3 * dim, Epilogue::Bf16),
            (dim, dim, Epilogue::Add),
            (dim, hidden, Epilogue::Gelu),
            (hidden, dim, Epilogue::Add),
        ];
        for operands in [Operands::W8A16, Operands::R8A16] {
            for (cols, rows, epilogue) in layer {
                let few = |n| Shape::Product { operands, epilogue, n, cols, rows };
                shapes.extend([1, 4, 8, 16, 32, 64].map(few));
            }
        }
        // Chunks of a prompt, in the default form and the fast one of int8.
        for operands in [Operands::W8A16, Operands::R8A8] {
            for (cols, rows, epilogue) in layer {
                let many = |n| Shape::Product { operands, epilogue, n, cols, rows };
                shapes.extend([256, 512, 2048].map(many));
            }
        }
        // All forms, to compare them.
        for operands in [Operands::W8A16, Operands::W16A16, Operands::W8A8, Operands::R8A8] {
            for rows in [dim, hidden] {
                shapes.push(Shape::Product { operands, epilogue: Epilogue::Bf16, n: 2048, cols: dim, rows });
            }
        }
        for n in [1, 64, 2048] {
            let forms = [Form::Bf16, Form::Int8, Form::Rotated, Form::RotatedInt8];
            shapes.extend(forms.map(|form| Shape::Norm { form, n, dim }));
        }
        for dim in [dim, hidden] {
            let forms = [Form::Int8, Form::RotatedInt8];
            shapes.extend(forms.map(|form| Shape::Convert { form, n: 2048, dim }));
        }
        shapes.extend([1, 64, 2048].map(|n| Shape::Rope { heads: welm, n }));
        shapes.extend([1, 64].map(|n| Shape::TopK { n, vocab, k: 64 }));
        shapes
    }

    /// The most important of [`Shape::all`]: one shape of each kernel that takes much of the time of a token or a
    /// prompt. `gpu/run` profiles the first one of each name.
    pub fn quick() -> Vec<Shape> {
        let (dim, hidden, vocab) = (5120, 20_480, 62_080);
        let welm = Heads { n_heads: 40, n_kv_heads: 40, head_dim: 128 };
        let grouped = Heads { n_heads: 32, n_kv_heads: 8, head_dim: 128 };
        let product =
            |operands, epilogue, n, cols, rows| Shape::Product { operands, epilogue, n, cols, rows };
        let mut shapes = vec![
            product(Operands::W8A16, Epilogue::Gelu, 1, dim, hidden),
            product(Operands::W8A16, Epilogue::Add, 1, hidden, dim),
            product(Operands::W8A16, Epilogue::Gelu, 16, dim, hidden),
            product(Operands::R8A16, Epilogue::Gelu, 1, dim, hidden),
            Shape::Decode { heads: welm, batch: 8, kv_len: 2048 },
            Shape::Decode { heads: welm, batch: 1, kv_len: 16_384 },
            Shape::Decode { heads: grouped, batch: 8, kv_len: 16_384 },
            Shape::Prefill { heads: welm, n: 2048 },
            Shape::Prefill { heads: grouped, n: 8192 },
        ];
        let many = [Operands::R8A8, Operands::W8A16, Operands::W8A8, Operands::W16A16];
        shapes.extend(many.map(|operands| product(operands, Epilogue::Bf16, 2048, dim, hidden)));
        shapes.extend([
            Shape::Norm { form: Form::Bf16, n: 1, dim },
            Shape::Norm { form: Form::RotatedInt8, n: 2048, dim },
            Shape::Rope { heads: welm, n: 1 },
            Shape::TopK { n: 1, vocab, k: 64 },
        ]);
        shapes
    }
}

/// The beginning of a buffer as f32.
fn beginning<T: Element + Default>(buffer: &Buffer<T>, to_f32: impl Fn(T) -> f32) -> Result<Vec<f32>> {
    let mut values = vec![T::default(); buffer.len().min(LOOKED_AT)];
    buffer.read(0, &mut values)?;
    Ok(values.into_iter().map(to_f32).collect())
}

fn bf16_beginning(buffer: &Buffer<bf16>) -> Result<Vec<f32>> {
    beginning(buffer, bf16::to_f32)
}
