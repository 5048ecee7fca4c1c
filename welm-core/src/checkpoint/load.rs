//! From a folder or file to the engine's own parts: which rows of which stored tensors make `layers.3.qkv`.
//!
//! The configuration lists the parts that there must be (`config/part.rs`), the family says how they are stored
//! ([`families`]). A matrix is described as segments of rows of stored tensors, in the order the engine wants, so that
//! float weights are used where they lie in the mapped file and nothing is copied to fuse or to reorder.
//!
//! Opening a model asks for each part once. So a tensor that is missing or of another shape is found before
//! anything is loaded, and so is one that nobody asked for.
//!
//! Of the values, norms, biases, rotary divisors and the scales of blocks are checked: one that is not finite is an
//! error with its place. Matrices of floats are checked where they are converted, not where they are used as they lie in the
//! file, because that would mean to read them all before the first token.

use std::path::Path;

use super::int8_folder::{self, FORMAT, FORMAT_PLAIN};
use crate::config::ModelConfig;
use crate::config::part::{LayerPart, ModelPart, PartKind, PartSpec};
use crate::error::{Error, Result};
use crate::families::{self, MODEL_TYPE, Names, StoredAs};
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

/// A matrix `(rows, cols)` and its bias `(rows)`.
///
/// Nothing of it is read yet: the backend reads row by row. So a device that is to hold only some rows (a column-parallel
/// product) cuts the segments, and one that is to hold only some columns (a row-parallel product) keeps those of each row.
pub(crate) struct LinearSource {
    pub(crate) name: String,
    pub(crate) kind: PartKind,
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

impl NormSource {
    /// One whose results are so many times as large.
    pub(crate) fn times(mut self, factor: f32) -> Self {
        self.weight.iter_mut().chain(self.bias.iter_mut().flatten()).for_each(|x| *x *= factor);
        self
    }
}

/// An opened model: configuration and mapped tensors.
pub(crate) struct Source {
    pub(crate) config: ModelConfig,
    tensors: TensorMap,
    names: Names,
    /// The format of an int8 folder of this crate, which has the engine's own names.
    int8: Option<&'static str>,
    /// Whether only the output is stored, and is the embedding too.
    output_is_embed: bool,
}

impl Source {
    /// Opens a Hugging Face folder, an int8 folder of [`crate::quantize`], or, with `gguf`, a GGUF file.
    ///
    /// Tensors that nobody reads are an error, or with `allow_unread` a warning.
    pub(crate) fn open(path: &Path, gguf: Option<&Gguf>, allow_unread: bool) -> Result<Self> {
        let ((config, mut names), tensors) = match gguf {
            Some(gguf) => (families::of_gguf(gguf, path)?, gguf.tensors.clone()),
            None => {
                refuse_adapter(path, allow_unread)?;
                let read = families::of_folder(path).map_err(|e| with_types(e, path))?;
                (read, safetensors::open(path)?)
            }
        };
        let int8 = int8_format(path, &tensors)?;
        if int8.is_some() {
            names.of = |part| StoredAs::One(part.to_string());
        }
        Self::of(config, names, tensors, int8, allow_unread)
    }

    /// Asks for every part of the configuration, and then for whatever is left over.
    fn of(
        config: ModelConfig,
        names: Names,
        tensors: TensorMap,
        int8: Option<&'static str>,
        allow_unread: bool,
    ) -> Result<Self> {
        let mut source = Source { config, tensors, names, int8, output_is_embed: false };
        source.settle_output()?;
        for spec in source.config.parts().collect::<Vec<_>>() {
            if spec.kind == PartKind::Norm {
                source.norm(&spec)?;
            } else if source.linear(&spec)?.bias.is_some() {
                source.config.note_bias(spec.part);
            }
        }
        source.tensors.check_all_read(allow_unread)?;
        Ok(source)
    }

    /// Decides whether the output is the embedding, by what is stored. As in transformers, an output that differs from
    /// the embedding is used whatever the configuration says, and one of the two is enough if they are tied.
    fn settle_output(&mut self) -> Result<()> {
        let (embed, output) = (self.table(ModelPart::Embed)?, self.table(ModelPart::Output)?);
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
    fn table(&self, part: ModelPart) -> Result<String> {
        Ok(self.whole(part)? + ".weight")
    }

    /// The name of a part that is stored as the engine wants it.
    fn whole(&self, part: ModelPart) -> Result<String> {
        match (self.names.of)(part) {
            StoredAs::One(stem) => Ok(stem),
            other => Err(unnamed(part, &other)),
        }
    }

    /// The files that the tensors lie in.
    pub(crate) fn files(&self) -> Files {
        self.tensors.files()
    }

    /// Whether the matrices are stored in this crate's int8 layout.
    pub(crate) fn is_packed(&self) -> bool {
        self.int8.is_some()
    }

    /// Whether they are, in groups that were rotated.
    #[cfg(feature = "kernels")]
    pub(crate) fn is_rotated(&self) -> bool {
        self.int8 == Some(FORMAT)
    }

    /// Every matrix, the largest part of what a model needs in memory.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = PartSpec> {
        self.config.parts().filter(|spec| spec.kind != PartKind::Norm)
    }

    /// Bytes of all matrices in the file.
    pub(crate) fn stored_bytes(&self) -> Result<u64> {
        self.matrices().map(|spec| Ok(self.linear(&spec)?.stored_bytes())).sum()
    }

    /// A matrix of the configuration.
    pub(crate) fn linear(&self, spec: &PartSpec) -> Result<LinearSource> {
        let (name, kind, rows, cols) = (spec.part.to_string(), spec.kind, spec.rows(), spec.cols);
        if let Some(format) = self.int8 {
            let tiles = int8_folder::open_matrix(&self.tensors, &name, rows, cols, format)?;
            let bias = self.bias(&name, spec, rows)?;
            return Ok(LinearSource { name, kind, rows, cols, matrix: MatrixSource::Packed(tiles), bias });
        }
        let mut segments = Vec::new();
        let mut bias = Vec::new();
        let mut has_bias = false;
        for (stem, pieces) in self.pieces(spec)? {
            let stored_rows = pieces.iter().map(|p| p.1).sum();
            let tensor = self.weights(&format!("{stem}.weight"))?;
            tensor.expect_shape(&[stored_rows, cols])?;
            let stored_bias = self.bias(&stem, spec, stored_rows)?;
            for (first_row, n_rows) in pieces {
                segments.push(Segment { tensor: tensor.clone(), first_row, n_rows });
                match &stored_bias {
                    Some(stored) => bias.extend_from_slice(&stored[first_row..first_row + n_rows]),
                    None => bias.resize(bias.len() + n_rows, 0.0),
                }
            }
            has_bias |= stored_bias.is_some();
        }
        let (matrix, bias) = (MatrixSource::Stored(segments), has_bias.then_some(bias));
        Ok(LinearSource { name, kind, rows, cols, matrix, bias })
    }

    /// The bias of a stored tensor of a matrix. Where the file decides, each tensor has its own or not, and zeros stand for
    /// those of its neighbours; elsewhere all have one or none.
    fn bias(&self, stem: &str, spec: &PartSpec, rows: usize) -> Result<Option<Vec<f32>>> {
        let name = format!("{stem}.bias");
        let wanted = match spec.kind {
            PartKind::Matrix | PartKind::Gated if self.names.biases_as_stored => self.tensors.contains(&name),
            PartKind::Matrix | PartKind::Gated | PartKind::Table | PartKind::Norm => spec.bias,
        };
        wanted.then(|| self.vector(&name, rows)).transpose()
    }

    /// The stored tensors of a part, each with the pieces of its rows, `(first, count)`, in the engine's order.
    fn pieces(&self, spec: &PartSpec) -> Result<Vec<(String, Vec<(usize, usize)>)>> {
        let (part, blocks) = (spec.part, &spec.blocks);
        let is_output = part == ModelPart::Embed && self.output_is_embed;
        Ok(match (self.names.of)(if is_output { ModelPart::Output } else { part }) {
            StoredAs::One(stem) => vec![(stem, vec![(0, spec.rows())])],
            StoredAs::Each(stems) if stems.len() == blocks.len() => {
                stems.into_iter().zip(blocks).map(|(stem, &rows)| (stem, vec![(0, rows)])).collect()
            }
            StoredAs::GroupByGroup(stem) if matches!(part, ModelPart::Layer(_, LayerPart::Qkv)) => {
                let groups = self.config.n_kv_heads;
                let in_group = spec.rows() / groups;
                let starts = blocks.iter().scan(0, |next, &rows| {
                    let start = *next;
                    *next += rows / groups;
                    Some((start, rows / groups))
                });
                let of_block = |(start, rows)| (0..groups).map(move |group| (group * in_group + start, rows));
                vec![(stem, starts.flat_map(of_block).collect())]
            }
            other => return Err(unnamed(part, &other)),
        })
    }

    /// A normalisation of the configuration.
    pub(crate) fn norm(&self, spec: &PartSpec) -> Result<NormSource> {
        let (stem, rows) = (self.whole(spec.part)?, spec.rows());
        let mut weight = self.vector(&format!("{stem}.weight"), rows)?;
        // An int8 folder has it in its weights.
        let offset = if self.is_packed() { 0.0 } else { self.config.norm_offset };
        if offset != 0.0 {
            weight.iter_mut().for_each(|x| *x += offset);
        }
        Ok(NormSource { weight, bias: self.bias(&stem, spec, rows)?, eps: self.config.norm_eps })
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

/// The error of a part that the configuration has and its family does not store in such a way.
fn unnamed(part: ModelPart, stored: &StoredAs) -> Error {
    Error::tensor(part, format!("the configuration asks for it, but the family stores it as {stored:?}"))
}

/// The format of an int8 folder; none of any other model.
fn int8_format(path: &Path, tensors: &TensorMap) -> Result<Option<&'static str>> {
    match tensors.metadata.get("format").map(String::as_str) {
        Some(FORMAT) => Ok(Some(FORMAT)),
        Some(FORMAT_PLAIN) => Ok(Some(FORMAT_PLAIN)),
        Some(other) if other.starts_with("welm") => {
            Err(Error::file(path, format!("expected format {FORMAT} or {FORMAT_PLAIN}, got {other}")))
        }
        _ => Ok(None),
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
        (Error::Config { setting, reason }, Ok(tensors)) if setting == MODEL_TYPE => {
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

#[cfg(test)]
mod tests;
