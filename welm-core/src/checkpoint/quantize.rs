//! [`quantize`]: an int8 folder ([`super::int8_folder`]) from a folder of floats.

use std::collections::HashMap;
use std::path::Path;

use welm_cpu::int8::Grouping;

use super::draft::Draft;
use super::int8_folder::{self, FORMAT, View};
use super::load::{LinearSource, MatrixSource, Source};
use super::open::{Files, locate};
use crate::config::part::PartKind;
use crate::error::{Error, Result};
use crate::host::{bus, threads};
use crate::options::LoadProgress;
use crate::side_file::{ADDITIONAL_TEMPLATES, DESCRIPTIONS};
use crate::weights::safetensors::SINGLE;
use crate::weights::tensor::release;
use crate::weights::tiles::int8::Int8Tiles;

/// Writes an int8 folder from any model that [`crate::Model::load`] takes (GGUF files excepted, whose
/// tokenizer has no file form here).
///
/// The folder is what the CPU computes with, as it is. On CUDA its weights are rounded once more when they are loaded, and
/// the log says so: there, quantise from floats at load, with [`crate::Dtype::Int8`].
///
/// `to` is made, or it is an empty folder, or a folder that this function wrote before. In that case the new model takes
/// its place in one step (Linux; elsewhere it is an error). Whoever loads `to` finds the old model or the new one, whole,
/// also if the process is killed or the disk is full. A folder that holds anything else is refused. Where `to` is a link,
/// the folder that it leads to is written. The new model lies beside `to` until it is whole, in a folder whose name
/// begins with a dot; if the process is killed, that folder stays until the next call with this `to` removes it.
///
/// Configuration and tokenizer files are copied. Weights are held in memory until they are written: about 1.1 bytes for
/// each. `progress` is called after each matrix and may return `false` to stop; nothing unfinished is left then.
///
/// ```no_run
/// # fn main() -> welm_core::Result<()> {
/// welm_core::quantize("my-model".as_ref(), "my-model-int8".as_ref(), |p| {
///     eprint!("\r{} of {} MB", p.done_bytes >> 20, p.total_bytes >> 20);
///     true
/// })
/// # }
/// ```
///
/// A source that is truncated meanwhile is an error: for that a handler of SIGBUS is installed, as
/// [`LoadOptions::guard_mapped_files`](crate::LoadOptions::guard_mapped_files) says.
///
/// # Errors
/// Whatever opening the source meets; [`Error::Io`] if `to` cannot be written; [`Error::InvalidOption`] if it is empty or
/// holds what is not to be replaced; [`Error::LoadCancelled`].
pub fn quantize(from: &Path, to: &Path, mut progress: impl FnMut(LoadProgress) -> bool) -> Result<()> {
    bus::install();
    let _prepared = threads::prepared();
    if let Files::Gguf(file) = locate(from)? {
        let reason = "expected a Hugging Face folder with weights of floats, got a GGUF file, which is loaded as it is";
        return Err(Error::file(file, reason));
    }
    let source = Source::open(from, None, false)?;
    if source.is_packed() {
        return Err(Error::file(from, "is int8 already"));
    }
    let mut files = source.files();
    let draft = Draft::new(to)?;
    let mut tensors: Vec<(String, View)> = Vec::new();
    let total_bytes = source.stored_bytes()?;
    let mut done_bytes = 0;
    let threads = threads::available();
    for spec in source.config.parts() {
        if spec.kind == PartKind::Norm {
            let (name, norm) = (spec.part, source.norm(&spec)?);
            tensors.push((format!("{name}.weight"), View::f32(&norm.weight)));
            tensors.extend(norm.bias.map(|b| (format!("{name}.bias"), View::f32(&b))));
            continue;
        }
        let LinearSource { rows, cols, matrix, bias, name, .. } = source.linear(&spec)?;
        let MatrixSource::Stored(segments) = matrix else {
            unreachable!("a packed source was refused above")
        };
        let grouping = Grouping::of_cols(cols);
        let tiles = Int8Tiles::pack(&name, rows, cols, &segments, grouping, threads)?;
        release(&segments);
        done_bytes += segments.iter().map(|s| (s.tensor.row_bytes(0).len() * s.n_rows) as u64).sum::<u64>();
        tensors.extend(int8_folder::matrix(&name, &tiles));
        tensors.extend(bias.map(|b| (format!("{name}.bias"), View::f32(&b))));
        if !progress(LoadProgress { done_bytes, total_bytes }) {
            return Err(Error::LoadCancelled);
        }
    }
    let metadata = HashMap::from([("format".to_string(), FORMAT.to_string())]);
    files.check()?;
    for side in DESCRIPTIONS {
        if let Some(bytes) = side.read(from)? {
            draft.write(side.name, &bytes)?;
        }
    }
    for (name, template) in ADDITIONAL_TEMPLATES.in_folder(from)? {
        let name = Path::new(ADDITIONAL_TEMPLATES.name).join(name + ".jinja");
        draft.write(name, template.as_bytes())?;
    }
    let weights = draft.path(SINGLE);
    safetensors::serialize_to_file(tensors, Some(metadata), &weights).map_err(|e| Error::io(&weights, e))?;
    draft.publish()
}
