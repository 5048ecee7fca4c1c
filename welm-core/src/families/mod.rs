//! One file a family: how it spells its settings and its tensors, in folders and in GGUF files. Foreign names stop here.
//!
//! A family turns its settings into a [`ModelConfig`], and says under which name each [`ModelPart`] is stored. It computes
//! nothing: `forward` is written once, for whatever a configuration can say.
//!
//! # To add a family
//!
//! 1. Write `families/<name>.rs`, like `llama.rs`: a [`Family`] with a reader of `config.json` and, if there are such
//!    files, one of GGUF metadata. Start from [`ModelConfig::plain`] and set what differs, for all layers or for some
//!    ([`LayerConfig`](crate::config::LayerConfig)). A setting that a reader asks for is its own; all others are looked up
//!    in `settings/keys.rs`, which refuses those that change the arithmetic. A relative of Llama starts from its readers.
//! 2. Name every part, or say [`StoredAs::Nowhere`]; the compiler asks for each. Embedding and output always have a name.
//!    What the configuration lists and the file lacks is an error, and so is what is in the file and not listed.
//! 3. Add `mod <name>;` and a line to [`FAMILIES`] below. If `refused.rs` has the name, take it out there.
//! 4. Add a tiny model to `tests/reference/make_fixtures.py`, which records what transformers makes of it.
//!
//! A family that computes something new needs more: a field of [`ModelConfig`] or `LayerConfig` and its operation in
//! `backend/`, or a part in `config/part.rs`. Neither belongs here.

mod gemma3;
mod glm;
mod glm4;
mod gpt_neox;
mod granite;
mod granitemoehybrid;
mod hunyuan;
mod internlm2;
mod llama;
mod minicpm;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod refused;
mod settings;
mod smollm3;
#[cfg(test)]
mod tests;
mod welm;

use std::path::Path;

use crate::config::ModelConfig;
use crate::config::part::ModelPart;
use crate::error::{Error, Result};
use crate::side_file::{CONFIG, GENERATION_CONFIG};
use crate::weights::gguf::Gguf;
use settings::{Fields, Metadata};

/// All families, by name.
static FAMILIES: &[Family] = &[
    gemma3::FAMILY,
    glm::FAMILY,
    glm4::FAMILY,
    gpt_neox::FAMILY,
    granite::FAMILY,
    granitemoehybrid::FAMILY,
    hunyuan::FAMILY,
    internlm2::FAMILY,
    llama::FAMILY,
    minicpm::FAMILY,
    mistral::MINISTRAL,
    mistral::MINISTRAL3,
    mistral::FAMILY,
    olmo2::FAMILY,
    phi3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    smollm3::FAMILY,
    welm::FAMILY,
];

/// The setting of `config.json` that names the family.
pub(crate) const MODEL_TYPE: &str = "model_type";
/// The setting of GGUF files that does.
pub(crate) const ARCHITECTURE: &str = "general.architecture";

/// How a family is stored.
struct Family {
    folder: InFolder,
    /// None if there are no such files.
    gguf: Option<InGguf>,
}

/// How it is stored in Hugging Face folders.
struct InFolder {
    /// The value of [`MODEL_TYPE`].
    model_type: &'static str,
    /// What the names of its classes in transformers begin with, in small letters.
    classes: &'static [&'static str],
    read: fn(&Fields) -> Result<ModelConfig>,
    names: fn(ModelPart) -> StoredAs,
}

/// How it is stored in GGUF files.
struct InGguf {
    /// The value of [`ARCHITECTURE`].
    architecture: &'static str,
    read: fn(&Metadata) -> Result<ModelConfig>,
    names: fn(ModelPart) -> StoredAs,
    /// Whether each matrix has a bias or not as the file says, because no setting tells.
    biases_as_stored: bool,
}

/// Where a part is stored: names of tensors, without the `.weight` or `.bias` at their end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoredAs {
    /// The family has no such part.
    Nowhere,
    /// As the engine wants it.
    One(String),
    /// Each of the matrices that it joins by itself: q, k and v; gate and up.
    Each(Vec<String>),
    /// q, k and v together, but group by group: the heads of q that share head 0 of k, that head, head 0 of v, then those
    /// of head 1, ...
    GroupByGroup(String),
}

/// How the tensors of a file are called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    pub(crate) of: fn(ModelPart) -> StoredAs,
    /// See [`InGguf::biases_as_stored`].
    pub(crate) biases_as_stored: bool,
}

/// The error of a name that none of these is, and what else is not supported.
fn unknown(
    setting: &str,
    name: &str,
    file: &Path,
    known: impl Iterator<Item = &'static str>,
    too: &str,
) -> Error {
    let known = known.collect::<Vec<_>>().join(", ");
    let reason = match refused::what(name) {
        Some(what) => {
            let file = file.display();
            format!(
                "`{name}` of {file} is {what}, which is not supported; supported are dense decoders: {known}{too}"
            )
        }
        None => format!("`{name}` is none of {known}{too}"),
    };
    Error::config(setting, reason)
}

/// Reads the settings of a Hugging Face folder.
pub(crate) fn of_folder(folder: &Path) -> Result<(ModelConfig, Names)> {
    let missing = || Error::io(folder.join(CONFIG.name), "no such file");
    let fields = Fields::new(&folder.join(CONFIG.name), CONFIG.json(folder)?.ok_or_else(missing)?)?;
    let known = || FAMILIES.iter().map(|family| &family.folder);
    let name = fields.text(MODEL_TYPE)?;
    let family = known().find(|family| family.model_type == name).ok_or_else(|| {
        unknown(MODEL_TYPE, name, &folder.join(CONFIG.name), known().map(|family| family.model_type), "")
    })?;
    fields.refuse_foreign(family.classes)?;
    let mut config = (family.read)(&fields)?;
    config.family = name.into();
    config.tied_output = fields.flag("tie_word_embeddings")?.unwrap_or(config.tied_output);
    config.bos_token_id = fields.token_id("bos_token_id")?;
    config.eos_token_ids = fields.token_ids("eos_token_id")?;
    fields.account_for_rest()?;
    if let Some(json) = GENERATION_CONFIG.json(folder)? {
        let fields = Fields::new(&folder.join(GENERATION_CONFIG.name), json)?;
        let eos = fields.token_ids("eos_token_id")?;
        if !eos.is_empty() {
            config.eos_token_ids = eos;
        }
        config.bos_token_id = fields.token_id("bos_token_id")?.or(config.bos_token_id);
    }
    config.forget_ends_outside();
    config.validate()?;
    Ok((config, Names { of: family.names, biases_as_stored: false }))
}

/// Reads the settings of the GGUF file at `path`.
pub(crate) fn of_gguf(file: &Gguf, path: &Path) -> Result<(ModelConfig, Names)> {
    let known = || FAMILIES.iter().filter_map(|family| family.gguf.as_ref());
    let name = file.str(ARCHITECTURE)?;
    let family = known().find(|family| family.architecture == name).ok_or_else(|| {
        let types = file.tensors.unsupported_types_too();
        unknown(ARCHITECTURE, name, path, known().map(|family| family.architecture), &types)
    })?;
    if let Some(kind) = file.opt_str("general.type")?.filter(|&kind| kind != "model") {
        return Err(Error::config("general.type", format!("expected model, got `{kind}`")));
    }
    let metadata = Metadata::new(file, name);
    let mut config = (family.read)(&metadata)?;
    config.family = name.into();
    config.tied_output = !file.tensors.contains("output.weight");
    // An id that does not fit becomes one that no vocabulary has.
    let token = |name: &str| -> Result<Option<u32>> {
        let id = file.opt_u64(&format!("tokenizer.ggml.{name}_token_id"))?;
        Ok(id.map(|id| u32::try_from(id).unwrap_or(u32::MAX)))
    };
    config.bos_token_id = token("bos")?;
    config.eos_token_ids =
        ["eos", "eot", "eom"].iter().filter_map(|name| token(name).transpose()).collect::<Result<_>>()?;
    metadata.account_for_rest()?;
    config.forget_ends_outside();
    config.validate()?;
    Ok((config, Names { of: family.names, biases_as_stored: family.biases_as_stored }))
}

/// The names of all families in folders.
#[cfg(test)]
pub(crate) fn model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.folder.model_type)
}

/// The names of all that have GGUF files, there.
#[cfg(test)]
pub(crate) fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().filter_map(|family| Some(family.gguf.as_ref()?.architecture))
}

impl ModelConfig {
    /// Reads `config.json`, and `generation_config.json` where there is one, of a Hugging Face folder.
    ///
    /// Every setting of `config.json` is read, or is known to have no effect, or is off; one that nobody knows is told
    /// to the log. The tokens that end a text are those of `generation_config.json` if it names some, as in
    /// transformers.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io), [`Error::InvalidFile`](crate::Error::InvalidFile) or
    /// [`Error::Config`](crate::Error::Config) for files that are absent, damaged or not supported.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        Ok(of_folder(folder)?.0)
    }
}
