//! From a folder or file to the engine's own parts: which stored tensors make `layers.3.qkv`.
//!
//! Four naming schemes (Hugging Face and GGUF, GPT-NeoX and Llama) meet one set of names here:
//! `embed`, `layers.N.{attn_norm, qkv, out, ffn_norm, up, down}`, `final_norm`, `output`. A fused matrix is
//! described as segments of rows of stored tensors, in the order the engine wants, so that float weights
//! are used where they lie in the mapped file and nothing is copied to fuse or to reorder.
//!
//! Opening a model asks for each of these once. So a tensor that is missing or of another shape is found before
//! anything is loaded, and so is one that nobody asked for.
//!
//! Of the values, norms, biases, rotary divisors and the scales of blocks are checked: one that is not finite is an
//! error with its place. Matrices of floats are checked where they are converted, not where they are used as they lie in the
//! file, because that would mean to read them all before the first token.

use std::path::Path;

use super::int8_folder::{self, FORMAT, FORMAT_PLAIN};
use crate::config::{Activation, FAMILY, ModelConfig, NormKind};
use crate::error::{Error, Result};
use crate::options::Dtype;
use crate::side_file;
use crate::weights::computed::{Computed, Kernels};
use crate::weights::gguf::Gguf;
use crate::weights::map::Files;
use crate::weights::safetensors;
use crate::weights::tensor::{Segment, StoredTensor};
use crate::weights::tensor_map::TensorMap;
use crate::weights::tiles::int8::Int8Tiles;

/// The values of a matrix.
pub(crate) enum MatrixSource {
    /// Row segments, in order.
    Stored(Vec<Segment>),
    /// Already in the engine's int8 layout.
    Packed(Int8Tiles),
}

/// What a matrix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Embedding or output, a row for each token.
    Table,
    /// A layer's.
    Layer,
    /// A layer's with a SwiGLU after it: the first half of the rows are gates, the second ups.
    Gated,
}

/// A matrix `(rows, cols)` and its bias `(rows)`.
pub(crate) struct LinearSource {
    pub(crate) name: String,
    pub(crate) part: Part,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) matrix: MatrixSource,
    pub(crate) bias: Option<Vec<f32>>,
}

impl LinearSource {
    /// What a backend with these kernels computes it with.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the type that was asked for is none of them, or none holds what is stored.
    pub(crate) fn computed(&self, asked: Dtype, kernels: &Kernels) -> Result<Computed> {
        let MatrixSource::Stored(segments) = &self.matrix else { return Ok(Computed::Int8) };
        let stored = segments.iter().map(|s| s.tensor.dtype);
        Computed::of(stored, asked, kernels).ok_or_else(|| {
            let (name, backend, types) = (&self.name, kernels.backend, kernels.listed());
            let stored = segments[0].tensor.dtype;
            let expected = format!("{backend} computes with {types} weights");
            Error::option("dtype", format!("{expected}, and `{name}` is stored as {stored:?}; got {asked}"))
        })
    }

    /// Bytes of the matrix in the file.
    pub(crate) fn stored_bytes(&self) -> u64 {
        match &self.matrix {
            MatrixSource::Packed(packed) => packed.bytes(),
            MatrixSource::Stored(segments) => segments.iter().map(|s| s.row_bytes() * s.n_rows as u64).sum(),
        }
    }

    /// Checks that scales are finite.
    pub(crate) fn check_scales(&self) -> Result<()> {
        match &self.matrix {
            MatrixSource::Packed(packed) => packed.check_scales(&self.name),
            MatrixSource::Stored(segments) => {
                let mut before = None;
                for tensor in segments.iter().map(|s| &s.tensor) {
                    if before.replace(&tensor.name) != Some(&tensor.name) {
                        tensor.check_scales()?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Weight `(dim)` and, for layernorm, bias `(dim)`.
pub(crate) struct NormSource {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) eps: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Naming {
    NeoxFolder,
    LlamaFolder,
    NeoxGguf,
    LlamaGguf,
    /// This crate's int8 folder, in this format: the engine's own names.
    Int8(&'static str),
}

/// Whether the parts of a matrix have biases.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bias {
    /// None has one. One that is stored is then not read, which is an error.
    Never,
    /// Each has one, or not, as the file says; where some have, the others have zeros.
    IfStored,
    /// All have one.
    Always,
}

/// An opened model: configuration and mapped tensors.
pub(crate) struct Source {
    pub(crate) config: ModelConfig,
    tensors: TensorMap,
    naming: Naming,
    /// Whether only the output is stored, and is the embedding too.
    output_is_embed: bool,
}

impl Source {
    /// Opens a Hugging Face folder, an int8 folder of [`crate::quantize`], or, with `gguf`, a GGUF file.
    ///
    /// Tensors that nobody reads are an error, or with `allow_unread` a warning.
    pub(crate) fn open(path: &Path, gguf: Option<&Gguf>, allow_unread: bool) -> Result<Self> {
        let (config, tensors, naming) = match gguf {
            Some(gguf) => {
                let config = ModelConfig::from_gguf(gguf)?;
                let naming = if config.family == "llama" { Naming::LlamaGguf } else { Naming::NeoxGguf };
                (config, gguf.tensors.clone(), naming)
            }
            None => {
                refuse_adapter(path, allow_unread)?;
                let config = ModelConfig::from_folder(path).map_err(|e| with_types(e, path))?;
                let tensors = safetensors::open(path)?;
                let naming = Self::naming_of_folder(path, &config, &tensors)?;
                (config, tensors, naming)
            }
        };
        let mut source = Source { config, tensors, naming, output_is_embed: false };
        source.settle_output()?;
        for name in source.linear_names() {
            let has_bias = source.linear(&name)?.bias.is_some();
            let of_attention = matches!(split(&name).1, "qkv" | "out");
            let flag =
                if of_attention { &mut source.config.attention_bias } else { &mut source.config.mlp_bias };
            *flag |= has_bias;
        }
        source.norm_names().iter().try_for_each(|name| source.norm(name).map(|_| ()))?;
        source.tensors.check_all_read(allow_unread)?;
        Ok(source)
    }

    fn naming_of_folder(path: &Path, config: &ModelConfig, tensors: &TensorMap) -> Result<Naming> {
        Ok(match tensors.metadata.get("format").map(String::as_str) {
            Some(FORMAT) => Naming::Int8(FORMAT),
            Some(FORMAT_PLAIN) => Naming::Int8(FORMAT_PLAIN),
            Some(other) if other.starts_with("welm") => {
                let reason = format!("expected format {FORMAT} or {FORMAT_PLAIN}, got {other}");
                return Err(Error::file(path, reason));
            }
            _ if config.norm == NormKind::RmsNorm => Naming::LlamaFolder,
            _ => Naming::NeoxFolder,
        })
    }

    /// Decides whether the output is the embedding, by what is stored. As in transformers, an output that differs from
    /// the embedding is used whatever the configuration says, and one of the two is enough if they are tied.
    fn settle_output(&mut self) -> Result<()> {
        let (embed, output) = (self.table("embed"), self.table("output"));
        if !self.config.tied_output {
            return match self.tensors.contains(&output) {
                true => Ok(()),
                false => Err(Error::tensor(
                    output,
                    "missing, and tie_word_embeddings does not say that the embedding takes its place",
                )),
            };
        }
        if !self.tensors.contains(&output) {
            return Ok(());
        }
        if self.is_packed() {
            // Written only where it differs.
            self.config.tied_output = false;
        } else if !self.tensors.contains(&embed) {
            self.output_is_embed = true;
        } else if !same_values(self.weights(&embed)?, self.weights(&output)?) {
            tracing::warn!(
                output,
                "tie_word_embeddings is true, but the output that is stored differs from the embedding, and is used"
            );
            self.config.tied_output = false;
        }
        Ok(())
    }

    /// The tensor of embedding or output.
    fn table(&self, part: &str) -> String {
        match self.naming {
            Naming::Int8(_) => format!("{part}.weight"),
            _ => self.stored_parts(0, part).iter().map(|(stem, _)| format!("{stem}.weight")).collect(),
        }
    }

    /// The files that the tensors lie in.
    pub(crate) fn files(&self) -> Files {
        self.tensors.files()
    }

    /// Whether the matrices are stored in this crate's int8 layout.
    pub(crate) fn is_packed(&self) -> bool {
        matches!(self.naming, Naming::Int8(_))
    }

    /// Whether they are, in groups that were rotated.
    #[cfg(feature = "kernels")]
    pub(crate) fn is_rotated(&self) -> bool {
        self.naming == Naming::Int8(FORMAT)
    }

    /// Every matrix with its shape, the largest part of what a model needs in memory.
    pub(crate) fn linear_names(&self) -> Vec<String> {
        let mut names = vec!["embed".to_string()];
        for l in 0..self.config.n_layers {
            names.extend(["qkv", "out", "up", "down"].map(|part| format!("layers.{l}.{part}")));
        }
        names.extend((!self.config.tied_output).then(|| "output".to_string()));
        names
    }

    /// Every normalisation.
    pub(crate) fn norm_names(&self) -> Vec<String> {
        let of_layer = |l| ["attn_norm", "ffn_norm"].map(|part| format!("layers.{l}.{part}"));
        (0..self.config.n_layers).flat_map(of_layer).chain(["final_norm".to_string()]).collect()
    }

    /// Rows and columns of a matrix.
    fn shape(&self, part: &str) -> (usize, usize) {
        let c = &self.config;
        match part {
            "qkv" => (c.qkv_dim(), c.dim),
            "out" => (c.dim, c.n_heads * c.head_dim),
            "up" => (c.up_dim(), c.dim),
            "down" => (c.dim, c.hidden_dim),
            _ => (c.vocab_size, c.dim),
        }
    }

    /// A matrix by the engine's name.
    pub(crate) fn linear(&self, name: &str) -> Result<LinearSource> {
        let (layer, part) = split(name);
        let (rows, cols) = self.shape(part);
        let role = match part {
            "embed" | "output" => Part::Table,
            "up" if self.config.activation == Activation::SwiGlu => Part::Gated,
            _ => Part::Layer,
        };
        if let Naming::Int8(format) = self.naming {
            let matrix =
                MatrixSource::Packed(int8_folder::open_matrix(&self.tensors, name, rows, cols, format)?);
            let bias = self.bias(name, self.biases(part), rows)?;
            return Ok(LinearSource { name: name.into(), part: role, rows, cols, matrix, bias });
        }
        let stored = if part == "embed" && self.output_is_embed { "output" } else { part };
        let mut segments = Vec::new();
        let mut bias = Vec::new();
        let mut has_bias = false;
        for (stem, pieces) in self.stored_parts(layer, stored) {
            let stored_rows = pieces.iter().map(|p| p.1).sum();
            let tensor = self.weights(&format!("{stem}.weight"))?;
            tensor.expect_shape(&[stored_rows, cols])?;
            let stored_bias = self.bias(&stem, self.biases(part), stored_rows)?;
            for (first_row, n_rows) in pieces {
                segments.push(Segment { tensor: tensor.clone(), first_row, n_rows });
                match &stored_bias {
                    Some(stored) => bias.extend_from_slice(&stored[first_row..first_row + n_rows]),
                    None => bias.resize(bias.len() + n_rows, 0.0),
                }
            }
            has_bias |= stored_bias.is_some();
        }
        let matrix = MatrixSource::Stored(segments);
        let bias = has_bias.then_some(bias);
        Ok(LinearSource { name: name.into(), part: role, rows, cols, matrix, bias })
    }

    /// Which biases a part has.
    fn biases(&self, part: &str) -> Bias {
        let all = match part {
            "qkv" | "out" => self.config.attention_bias,
            "up" | "down" => self.config.mlp_bias,
            _ => return Bias::Never,
        };
        match (self.naming, all) {
            (Naming::LlamaGguf, _) => Bias::IfStored,
            (_, true) => Bias::Always,
            (_, false) => Bias::Never,
        }
    }

    fn bias(&self, stem: &str, biases: Bias, rows: usize) -> Result<Option<Vec<f32>>> {
        let name = format!("{stem}.bias");
        let wanted = match biases {
            Bias::Never => false,
            Bias::IfStored => self.tensors.contains(&name),
            Bias::Always => true,
        };
        wanted.then(|| self.vector(&name, rows)).transpose()
    }

    /// The stored tensors of a part, each with the row pieces `(first, count)` in the engine's order.
    fn stored_parts(&self, l: usize, part: &str) -> Vec<(String, Vec<(usize, usize)>)> {
        let c = &self.config;
        let (q, kv) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let whole = |stem: String, rows| (stem, vec![(0, rows)]);
        match (self.naming, part) {
            (Naming::NeoxFolder, "qkv") => {
                // Stored head by head: q, k, v of head 0, then q, k, v of head 1, ...
                let of_kind =
                    |kind| (0..c.n_heads).map(move |head| ((3 * head + kind) * c.head_dim, c.head_dim));
                let pieces = of_kind(0).chain(of_kind(1)).chain(of_kind(2)).collect();
                vec![(format!("gpt_neox.layers.{l}.attention.query_key_value"), pieces)]
            }
            (Naming::NeoxFolder, _) => vec![match part {
                "embed" => whole("gpt_neox.embed_in".into(), c.vocab_size),
                "output" => whole("embed_out".into(), c.vocab_size),
                "out" => whole(format!("gpt_neox.layers.{l}.attention.dense"), c.dim),
                "up" => whole(format!("gpt_neox.layers.{l}.mlp.dense_h_to_4h"), c.hidden_dim),
                _ => whole(format!("gpt_neox.layers.{l}.mlp.dense_4h_to_h"), c.dim),
            }],
            (Naming::LlamaFolder, _) => {
                let of_layer = |stem: &str, rows| whole(format!("model.layers.{l}.{stem}"), rows);
                match part {
                    "embed" => vec![whole("model.embed_tokens".into(), c.vocab_size)],
                    "output" => vec![whole("lm_head".into(), c.vocab_size)],
                    "qkv" => vec![
                        of_layer("self_attn.q_proj", q),
                        of_layer("self_attn.k_proj", kv),
                        of_layer("self_attn.v_proj", kv),
                    ],
                    "out" => vec![of_layer("self_attn.o_proj", c.dim)],
                    "up" => {
                        vec![of_layer("mlp.gate_proj", c.hidden_dim), of_layer("mlp.up_proj", c.hidden_dim)]
                    }
                    _ => vec![of_layer("mlp.down_proj", c.dim)],
                }
            }
            _ => {
                let of_layer = |stem: &str, rows| whole(format!("blk.{l}.{stem}"), rows);
                match part {
                    "embed" => vec![whole("token_embd".into(), c.vocab_size)],
                    "output" => vec![whole("output".into(), c.vocab_size)],
                    "qkv" if self.naming == Naming::NeoxGguf => vec![of_layer("attn_qkv", q + 2 * kv)],
                    "qkv" => vec![of_layer("attn_q", q), of_layer("attn_k", kv), of_layer("attn_v", kv)],
                    "out" => vec![of_layer("attn_output", c.dim)],
                    "up" if c.activation == Activation::SwiGlu => {
                        vec![of_layer("ffn_gate", c.hidden_dim), of_layer("ffn_up", c.hidden_dim)]
                    }
                    "up" => vec![of_layer("ffn_up", c.hidden_dim)],
                    _ => vec![of_layer("ffn_down", c.dim)],
                }
            }
        }
    }

    /// A normalisation by the engine's name.
    pub(crate) fn norm(&self, name: &str) -> Result<NormSource> {
        let (l, part) = split(name);
        let stem = match (self.naming, part) {
            (Naming::Int8(_), _) => name.to_string(),
            (Naming::NeoxFolder, "attn_norm") => format!("gpt_neox.layers.{l}.input_layernorm"),
            (Naming::NeoxFolder, "ffn_norm") => format!("gpt_neox.layers.{l}.post_attention_layernorm"),
            (Naming::NeoxFolder, _) => "gpt_neox.final_layer_norm".into(),
            (Naming::LlamaFolder, "attn_norm") => format!("model.layers.{l}.input_layernorm"),
            (Naming::LlamaFolder, "ffn_norm") => format!("model.layers.{l}.post_attention_layernorm"),
            (Naming::LlamaFolder, _) => "model.norm".into(),
            (_, "final_norm") => "output_norm".into(),
            _ => format!("blk.{l}.{part}"),
        };
        let c = &self.config;
        let weight = self.vector(&format!("{stem}.weight"), c.dim)?;
        let bias = match c.norm {
            NormKind::LayerNorm => Some(self.vector(&format!("{stem}.bias"), c.dim)?),
            NormKind::RmsNorm => None,
        };
        Ok(NormSource { weight, bias, eps: c.norm_eps })
    }

    /// A one-dimensional tensor as f32, all of it finite.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.weights(name)?;
        tensor.expect_shape(&[len])?;
        tensor.finite()
    }

    /// A tensor whose elements are weights. Integers are not: whoever stores weights so has scales for them.
    fn weights(&self, name: &str) -> Result<&StoredTensor> {
        let tensor = self.tensors.get(name)?;
        if !tensor.is_float() {
            return Err(Error::tensor(
                name,
                format!("expected a type of weights, got {}", tensor.dtype.format().name()),
            ));
        }
        Ok(tensor)
    }
}

/// Refuses a folder with an adapter, which transformers would add to the model.
fn refuse_adapter(folder: &Path, allow_unread: bool) -> Result<()> {
    let file = folder.join("adapter_config.json");
    if side_file::open(&file)?.is_none() {
        return Ok(());
    }
    let reason = "an adapter lies beside the model, and is not applied";
    if allow_unread {
        tracing::warn!("{}: {reason}", file.display());
        return Ok(());
    }
    Err(Error::file(
        file,
        format!("{reason}; merge it, or load the model without it by allow_unread_tensors"),
    ))
}

/// Has the error about a folder's family tell the types that are not supported, too.
fn with_types(error: Error, folder: &Path) -> Error {
    match (error, safetensors::open(folder)) {
        (Error::Config { setting, reason }, Ok(tensors)) if setting == FAMILY => {
            Error::Config { setting, reason: reason + &tensors.unsupported_types_too() }
        }
        (error, _) => error,
    }
}

/// Whether two tensors hold the same values.
fn same_values(a: &StoredTensor, b: &StoredTensor) -> bool {
    if a.shape != b.shape {
        return false;
    }
    if a.dtype == b.dtype && a.bytes() == b.bytes() {
        return true;
    }
    let (mut x, mut y) = (vec![0.0; a.cols()], vec![0.0; a.cols()]);
    (0..a.rows()).all(|row| {
        a.row_f32(row, &mut x);
        b.row_f32(row, &mut y);
        x == y
    })
}

/// `layers.3.qkv` to `(3, "qkv")`; `embed` to `(0, "embed")`.
fn split(name: &str) -> (usize, &str) {
    let mut parts = name.rsplitn(3, '.');
    let part = parts.next().unwrap_or(name);
    (parts.next().and_then(|l| l.parse().ok()).unwrap_or(0), part)
}

#[cfg(test)]
mod tests;
