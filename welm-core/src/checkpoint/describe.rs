//! [`Description`]: what is in a model's files.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value as Json;

use super::open::{Files, Opened, locate, open};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::families::{ARCHITECTURE, MODEL_TYPE};
use crate::side_file::CONFIG;
use crate::weights::gguf::Gguf;
use crate::weights::safetensors;
use crate::weights::tensor_map::TensorMap;

/// Longest text of a setting, in bytes; chat templates and licences are longer.
const LONGEST_SETTING: usize = 120;

/// What a model's files hold, whether they can be loaded or not; see [`crate::Model::describe`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Description {
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// The family as the file spells it: `general.architecture` or `model_type`, such as `llama`.
    pub family: Option<String>,
    /// Elements of all tensors.
    pub elements: u64,
    /// Types of the tensors, those with the most elements first.
    pub types: Vec<TypeCount>,
    /// Numbers, flags and short texts of the metadata or of `config.json`, by name; no arrays.
    pub settings: Vec<(String, String)>,
    /// The model's shape; none if the files cannot be loaded.
    pub config: Option<ModelConfig>,
    /// The kind of tokenizer, such as `byte-level BPE` or `SentencePiece unigram`, and how many tokens it has. None if
    /// the files have no tokenizer or cannot be loaded.
    pub tokenizer: Option<(&'static str, usize)>,
    /// Whether there is a template for chats; false if the files cannot be loaded.
    pub has_chat_template: bool,
    /// Why the files cannot be loaded, whatever the options; none if they can.
    pub unsupported: Option<String>,
}

/// How many tensors have a type.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeCount {
    /// As the file format names it, such as `Q4_K` or `BF16`.
    pub name: String,
    /// Tensors of this type.
    pub tensors: usize,
    /// Their elements.
    pub elements: u64,
    /// Their bytes in the files; none for a type that is not supported.
    pub bytes: Option<u64>,
}

impl Description {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let (format, family, settings, tensors) = match locate(path)? {
            Files::Folder => {
                let config = CONFIG.json(path)?.unwrap_or_default();
                let family = config.get(MODEL_TYPE).and_then(Json::as_str).map(str::to_string);
                let settings = config.as_object().into_iter().flatten();
                let settings =
                    settings.filter_map(|(key, value)| Some((key.clone(), shown(value)?))).collect();
                ("safetensors", family, settings, safetensors::open(path)?)
            }
            Files::Gguf(file) => {
                let gguf = Gguf::open(&file)?;
                let family = gguf.opt_str(ARCHITECTURE)?.map(str::to_string);
                let settings =
                    gguf.keys().filter_map(|(k, v)| Some((k.to_string(), shown(&gguf.to_json(v)?)?)));
                let settings = settings.collect();
                gguf.check()?;
                ("gguf", family, settings, gguf.tensors.clone())
            }
        };
        let mut settings: Vec<_> = settings;
        settings.sort_unstable();
        let types = count(&tensors);
        let elements = types.iter().map(|t| t.elements).sum();
        let nothing = Description {
            format,
            family,
            elements,
            types,
            settings,
            config: None,
            tokenizer: None,
            has_chat_template: false,
            unsupported: None,
        };
        Ok(match open(path, true, false) {
            Ok(Opened { source, tokenizer, chat }) => {
                source.files().check()?; // what was read of them
                Description {
                    config: Some(source.config),
                    tokenizer: tokenizer.map(|tokenizer| tokenizer.kind_and_tokens()),
                    has_chat_template: chat.is_some_and(|chat| chat.is_present()),
                    ..nothing
                }
            }
            Err(error) => Description { unsupported: Some(error.to_string()), ..nothing },
        })
    }
}

/// A setting in one line; none for what is long.
fn shown(value: &Json) -> Option<String> {
    match value {
        Json::Array(_) | Json::Object(_) | Json::Null => None,
        Json::String(text) => (text.len() <= LONGEST_SETTING).then(|| text.clone()),
        other => Some(other.to_string()),
    }
}

fn count(tensors: &TensorMap) -> Vec<TypeCount> {
    let mut types: HashMap<&str, (usize, u64, Option<u64>)> = HashMap::new();
    for (name, shape, in_file) in tensors.types_shapes_and_bytes() {
        let (tensors, elements, bytes) = types.entry(name).or_insert((0, 0, Some(0)));
        *tensors += 1;
        *bytes = bytes.zip(in_file).map(|(sum, more)| sum.saturating_add(more as u64));
        // A shape that is not read may be anything.
        *elements = elements.saturating_add(shape.iter().fold(1u64, |n, &dim| n.saturating_mul(dim as u64)));
    }
    let mut types: Vec<TypeCount> = types
        .into_iter()
        .map(|(name, (tensors, elements, bytes))| TypeCount { name: name.into(), tensors, elements, bytes })
        .collect();
    types.sort_by(|a, b| b.elements.cmp(&a.elements).then_with(|| a.name.cmp(&b.name)));
    types
}

#[cfg(test)]
mod tests {
    use crate::Model;
    use crate::weights::formats::StoredType;
    use crate::weights::gguf::tests::Writer;

    #[test]
    fn a_file_that_is_not_supported_is_described() {
        let folder = tempfile::tempdir().unwrap();
        let string = |text: &str| crate::weights::gguf::tests::string(text);
        let file = Writer::default()
            .key("general.architecture", 8, &string("falcon"))
            .key("falcon.block_count", 4, &24u32.to_le_bytes())
            .key("tokenizer.chat_template", 8, &string(&"x".repeat(500)))
            .info("a", &[256, 2], 16, 0)
            .info("b", &[256], 34, 512)
            .tensor("c", &[8], 0, &[0; 32])
            .finish();
        std::fs::write(folder.path().join("m.gguf"), file).unwrap();
        // By its folder, too.
        for path in [folder.path().join("m.gguf"), folder.path().to_path_buf()] {
            let got = Model::describe(&path).unwrap();
            assert_eq!((got.format, got.family.as_deref(), got.elements), ("gguf", Some("falcon"), 776));
            let types: Vec<_> =
                got.types.iter().map(|t| (t.name.as_str(), t.tensors, t.elements, t.bytes)).collect();
            let want = [("IQ2_XXS", 1, 512, None), ("TQ1_0", 1, 256, None), ("F32", 1, 8, Some(32))];
            assert_eq!(types, want);
            assert_eq!((&got.config, got.tokenizer, got.has_chat_template), (&None, None, false));
            let want = [("falcon.block_count", "24"), ("general.architecture", "falcon")];
            let settings: Vec<_> = got.settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(settings, want);
            let why = got.unsupported.unwrap();
            let begin = "config setting `general.architecture`: `falcon` is none of gemma3, glm4, gptneox, ";
            let end = format!(
                "; nor are the types IQ2_XXS, TQ1_0 of its tensors supported, only {}",
                StoredType::of_weights(true)
            );
            assert!(why.starts_with(begin) && why.ends_with(&end), "{why}");
        }
    }

    #[test]
    fn a_folder_is_described() {
        let got = Model::describe("../examples/welm-nano").unwrap();
        assert_eq!(
            (got.format, got.family.as_deref(), got.unsupported.as_ref()),
            ("safetensors", Some("welm"), None)
        );
        let counted: u64 = got.types.iter().map(|t| t.elements).sum();
        assert!(got.elements == counted && counted > 6_000_000, "{got:?}");
        assert!(got.settings.contains(&("model_type".into(), "welm".into())));
        let config = got.config.as_ref().unwrap();
        assert_eq!((config.family.as_str(), config.n_layers), ("welm", 6));
        let bytes: u64 = got.types.iter().map(|t| t.bytes.unwrap()).sum();
        // int8, with scales in f32.
        assert!((counted..counted + counted / 20).contains(&bytes), "{bytes}");
        assert_eq!(got.tokenizer, Some(("BPE", config.vocab_size)));
        assert!(!got.has_chat_template);

        // One message: the family, and the types.
        let folder = tempfile::tempdir().unwrap();
        let tensor = safetensors_file("F8_E4M3");
        std::fs::write(folder.path().join("model.safetensors"), tensor).unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "mixtral", "x": null}"#).unwrap();
        let got = Model::describe(folder.path()).unwrap();
        assert_eq!(got.settings, [("model_type".to_string(), "mixtral".to_string())]);
        let why = got.unsupported.unwrap();
        assert!(
            why.ends_with("nor is the type F8_E4M3 of its tensors supported, only F32, F16 and BF16"),
            "{why}"
        );
        let file = folder.path().join("config.json");
        let named =
            format!("`mixtral` of {} is a mixture of experts, which is not supported", file.display());
        assert!(why.contains(&named), "{why}");
        assert!(Model::describe(folder.path().join("nothing")).is_err());
    }

    fn safetensors_file(dtype: &str) -> Vec<u8> {
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,2]}}}}"#);
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0, 0]].concat()
    }
}
