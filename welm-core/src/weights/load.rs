//! From a folder or file to the engine's own parts: which stored tensors make `layers.3.qkv`.
//!
//! Four naming schemes (Hugging Face and GGUF, GPT-NeoX and Llama) meet one set of names here:
//! `embed`, `layers.N.{attn_norm, qkv, out, ffn_norm, up, down}`, `final_norm`, `output`. A fused matrix is
//! described as segments of rows of stored tensors, in the order the engine wants, so that float weights
//! are used where they lie in the mapped file and nothing is copied to fuse or to reorder.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use crate::config::{Activation, ModelConfig, NormKind};
use crate::error::{Error, Result};
use crate::tokenizer::{ChatTemplate, GgufVocab, Tokenizer};
use crate::weights::gguf::Gguf;
use crate::weights::int8::{FORMAT, FORMAT_PLAIN, Packed};
use crate::weights::map::Files;
use crate::weights::{StoredTensor, TensorMap, safetensors};

/// Some rows of a stored tensor.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) tensor: StoredTensor, // (more rows, cols)
    pub(crate) first_row: usize,
    pub(crate) n_rows: usize,
}

/// Where each row of a matrix is: row `o` is row `rows[o].1` of the tensor of `rows[o].0`.
pub(crate) fn rows_of(segments: &[Segment]) -> Vec<(&Segment, usize)> {
    segments.iter().flat_map(|s| (s.first_row..s.first_row + s.n_rows).map(move |r| (s, r))).collect()
}

/// The values of a matrix.
pub(crate) enum MatrixSource {
    /// Row segments, in order.
    Stored(Vec<Segment>),
    /// Already in the engine's int8 layout.
    Packed(Packed),
}

/// What a matrix is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Embedding or output, a row for each token.
    Table,
    /// A layer's.
    Layer,
    /// A layer's with a SwiGLU behind it: the first half of the rows are gates, the second ups.
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
    /// Bytes of the matrix in the file.
    pub(crate) fn stored_bytes(&self) -> u64 {
        match &self.matrix {
            MatrixSource::Packed(packed) => packed.bytes(),
            MatrixSource::Stored(segments) => segments.iter().map(|s| s.row_bytes() * s.n_rows as u64).sum(),
        }
    }
}

impl Segment {
    fn row_bytes(&self) -> u64 {
        (self.tensor.bytes().len() / self.tensor.rows()) as u64
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

/// An opened model: configuration and mapped tensors.
pub(crate) struct Source {
    pub(crate) config: ModelConfig,
    tensors: TensorMap,
    naming: Naming,
}

impl Source {
    /// Opens a Hugging Face folder, an int8 folder of [`crate::quantize`], or, with `gguf`, a GGUF file.
    pub(crate) fn open(path: &Path, gguf: Option<&Gguf>) -> Result<Self> {
        if let Some(gguf) = gguf {
            let config = ModelConfig::from_gguf(gguf)?;
            let naming = if config.family == "llama" { Naming::LlamaGguf } else { Naming::NeoxGguf };
            return Ok(Source { config, tensors: gguf.tensors.clone(), naming });
        }
        let config = ModelConfig::from_folder(path)?;
        let tensors = safetensors::open(path)?;
        let naming = match tensors.metadata.get("format").map(String::as_str) {
            Some(FORMAT) => Naming::Int8(FORMAT),
            Some(FORMAT_PLAIN) => Naming::Int8(FORMAT_PLAIN),
            Some(other) if other.starts_with("welm") => {
                let reason = format!("expected format {FORMAT} or {FORMAT_PLAIN}, got {other}");
                return Err(Error::file(path, reason));
            }
            _ if config.norm == NormKind::RmsNorm => Naming::LlamaFolder,
            _ => Naming::NeoxFolder,
        };
        Ok(Source { config, tensors, naming })
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
        let has_bias = match part {
            "qkv" | "out" => self.config.attention_bias,
            "up" | "down" => self.config.mlp_bias,
            _ => false,
        };
        if let Naming::Int8(format) = self.naming {
            let matrix = MatrixSource::Packed(Packed::open(&self.tensors, name, rows, cols, format)?);
            let bias = has_bias.then(|| self.vector(&format!("{name}.bias"), rows)).transpose()?;
            return Ok(LinearSource { name: name.into(), part: role, rows, cols, matrix, bias });
        }
        let mut segments = Vec::new();
        let mut bias = Vec::new();
        for (stem, pieces) in self.stored_parts(layer, part) {
            let stored_rows = pieces.iter().map(|p| p.1).sum();
            let tensor = self.tensors.get(&format!("{stem}.weight"))?;
            tensor.expect_shape(&[stored_rows, cols])?;
            let stored_bias =
                if has_bias { self.vector(&format!("{stem}.bias"), stored_rows)? } else { Vec::new() };
            for (first_row, n_rows) in pieces {
                segments.push(Segment { tensor: tensor.clone(), first_row, n_rows });
                if has_bias {
                    bias.extend_from_slice(&stored_bias[first_row..first_row + n_rows]);
                }
            }
        }
        let matrix = MatrixSource::Stored(segments);
        let bias = has_bias.then_some(bias);
        Ok(LinearSource { name: name.into(), part: role, rows, cols, matrix, bias })
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

    /// A one-dimensional tensor as f32.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.tensors.get(name)?;
        tensor.expect_shape(&[len])?;
        Ok(tensor.to_f32())
    }
}

/// An opened file or folder: tensors, tokenizer and chat template.
pub(crate) struct Opened {
    pub(crate) source: Source,
    pub(crate) tokenizer: Option<Tokenizer>,
    /// None if no tokenizer was wanted.
    pub(crate) chat: Option<ChatTemplate>,
}

/// Opens what [`crate::Model::load`] takes.
pub(crate) fn open(path: &Path, with_tokenizer: bool) -> Result<Opened> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if metadata.is_dir() {
        let source = Source::open(path, None)?;
        let file = path.join("tokenizer.json");
        let wanted = with_tokenizer && file.is_file();
        let tokenizer = wanted.then(|| Tokenizer::from_json_file(&file)).transpose()?;
        let chat = with_tokenizer.then(|| ChatTemplate::from_folder(path));
        return Ok(Opened { source, tokenizer, chat });
    }
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut f| f.read_exact(&mut magic));
    if let Some(e) = read.as_ref().err().filter(|e| e.kind() != ErrorKind::UnexpectedEof) {
        return Err(Error::io(path, e));
    }
    if &magic != b"GGUF" {
        return Err(Error::file(path, "expected a folder with config.json and safetensors, or a GGUF file"));
    }
    let gguf = Gguf::open(path)?;
    let source = Source::open(path, Some(&gguf))?;
    if !with_tokenizer {
        return Ok(Opened { source, tokenizer: None, chat: None });
    }
    let vocab = gguf_vocab(&gguf)?;
    let token = |id: Option<u32>| id.and_then(|id| vocab.tokens.get(id as usize)).map(String::as_str);
    let template = gguf.opt_str("tokenizer.chat_template");
    let chat = ChatTemplate::from_gguf(template, token(vocab.bos), token(vocab.eos));
    Ok(Opened { source, tokenizer: Some(Tokenizer::from_gguf(vocab)?), chat: Some(chat) })
}

fn gguf_vocab(g: &Gguf) -> Result<GgufVocab> {
    let id = |key: &str| Ok::<_, Error>(g.opt_u64(key)?.and_then(|x| u32::try_from(x).ok()));
    let pre = g.opt_str("tokenizer.ggml.pre")?.unwrap_or("default").to_string();
    Ok(GgufVocab {
        model: g.str("tokenizer.ggml.model")?.to_string(),
        tokens: g.str_array("tokenizer.ggml.tokens")?,
        merges: g.str_array("tokenizer.ggml.merges")?,
        token_types: g.opt_i64_array("tokenizer.ggml.token_type")?.unwrap_or_default(),
        bos: id("tokenizer.ggml.bos_token_id")?,
        eos: id("tokenizer.ggml.eos_token_id")?,
        add_bos: g
            .opt_bool("tokenizer.ggml.add_bos_token")?
            .unwrap_or_else(|| GgufVocab::default_add_bos(&pre)),
        pre,
    })
}

/// `layers.3.qkv` to `(3, "qkv")`; `embed` to `(0, "embed")`.
fn split(name: &str) -> (usize, &str) {
    let mut parts = name.rsplitn(3, '.');
    let part = parts.next().unwrap_or(name);
    (parts.next().and_then(|l| l.parse().ok()).unwrap_or(0), part)
}
