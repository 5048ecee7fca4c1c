//! What [`crate::Model::load`] takes: a path to files with everything that a model consists of.

use std::collections::HashSet;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::load::Source;
use crate::config::{MAX_VOCAB, ModelConfig};
use crate::error::{Error, Result};
use crate::families::ARCHITECTURE;
use crate::host::memory::{expect_available, expect_room};
use crate::side_file::{
    self, CONFIG, DESCRIPTIONS, INDEX, SPECIAL_TOKENS_MAP, TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_MODELS,
};
use crate::tokenizer::{ChatTemplate, GgufVocab, Tokenizer};
use crate::weights::gguf::Gguf;
use crate::weights::gguf::parts::is_later_part;

/// An opened file or folder: tensors, tokenizer and chat template.
pub(crate) struct Opened {
    pub(crate) source: Source,
    pub(crate) tokenizer: Option<Tokenizer>,
    /// None if no tokenizer was wanted.
    pub(crate) chat: Option<ChatTemplate>,
}

/// Opens what [`crate::Model::load`] takes.
pub(crate) fn open(path: &Path, with_tokenizer: bool, allow_unread: bool) -> Result<Opened> {
    const TRIES: usize = 16;
    // The files of a folder are opened one after the other. If another folder takes its place meanwhile, they are from two.
    for _ in 0..TRIES {
        let before = identity(path);
        let opened = match locate(path)? {
            Files::Folder => open_folder(path, with_tokenizer, allow_unread),
            Files::Gguf(file) => open_gguf(&file, with_tokenizer, allow_unread),
        };
        if identity(path) == before {
            return opened;
        }
    }
    Err(Error::io(path, "other files took its place each time while it was read"))
}

/// Which folder or file a path names now; none where that cannot be told.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().and_then(|info| identity_of(&info))
}

/// Which folder or file this is of; none where that cannot be told.
pub(crate) fn identity_of(info: &fs::Metadata) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        Some((info.dev(), info.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = info;
        None
    }
}

/// Where a model's files are.
pub(crate) enum Files {
    /// In the folder of this path, with a `config.json`.
    Folder,
    /// In this file, or in the parts of which it is one.
    Gguf(PathBuf),
}

/// Finds a model's files, or says what is missing.
pub(crate) fn locate(path: &Path) -> Result<Files> {
    let info = fs::metadata(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound if path.symlink_metadata().is_ok() => Error::io(path, "a link to nothing"),
        ErrorKind::NotFound => Error::io(path, absent(path)),
        _ => Error::io(path, e),
    })?;
    if !info.is_dir() {
        return Ok(Files::Gguf(path.to_path_buf()));
    }
    if path.join(CONFIG.name).symlink_metadata().is_ok() {
        return Ok(Files::Folder);
    }
    let fault = |e| Error::io(path, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(fault)? {
        let name = entry.map_err(fault)?.file_name().to_string_lossy().into_owned();
        // llama.cpp's name for the encoders of images beside a model. Of a model in parts, the first counts.
        let is_model = !name.starts_with("mmproj") && !is_later_part(&name);
        if name.to_ascii_lowercase().ends_with(".gguf") && is_model {
            names.push(name);
        }
    }
    names.sort_unstable();
    let expected = "expected config.json with safetensors, or one GGUF file, in this folder";
    match &names[..] {
        [name] => Ok(Files::Gguf(path.join(name))),
        [] => {
            let snapshots = path.join("snapshots");
            let hint = match snapshots.is_dir() {
                true => format!("; the model is in a folder of {}", snapshots.display()),
                false => String::new(),
            };
            Err(Error::io(path, format!("{expected}, got neither{hint}")))
        }
        _ => {
            let shown = names.iter().take(4).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if names.len() > 4 { ", ..." } else { "" };
            Err(Error::io(path, format!("{expected}, got {} of these; name one: {shown}{more}", names.len())))
        }
    }
}

/// What to say about a path where nothing is.
fn absent(path: &Path) -> String {
    let nothing = "no such file or folder";
    let Some(text) = path.to_str() else { return nothing.into() };
    if text.starts_with('~') {
        return format!("{nothing}; a shell replaces `~`, welm does not");
    }
    let is_name = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts: Vec<&str> = text.split('/').collect();
    // As Hugging Face names models.
    if parts.len() == 2 && parts.iter().all(|part| is_name(part)) && !text.ends_with(".gguf") {
        let folder = parts[1];
        return format!(
            "{nothing}; welm downloads nothing, so fetch the model first, as with `hf download {text} --local-dir {folder}`"
        );
    }
    nothing.into()
}

const DESCRIBED: &str = "the model's descriptions";

/// Checks that what parses so many bytes of descriptions has room: libraries, which would end the process if they got none.
fn expect_room_to_read(described: u64) -> Result<()> {
    const FACTOR: u64 = 24; // tokenizers takes ten to twenty bytes for each of a tokenizer.json
    let bytes = (8u64 << 20).saturating_add(described.saturating_mul(FACTOR));
    expect_room(DESCRIBED, usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn open_folder(path: &Path, with_tokenizer: bool, allow_unread: bool) -> Result<Opened> {
    if with_tokenizer {
        let described = DESCRIPTIONS.iter().chain([&INDEX]).map(|file| file.len(path)).sum();
        // A container may have less than the machine grants, and kills the process that takes it.
        const LEAST: u64 = 10; // bytes for each of a tokenizer.json
        let least = usize::try_from(LEAST.saturating_mul(described)).unwrap_or(usize::MAX);
        expect_available(DESCRIBED, least)?;
        expect_room_to_read(described)?;
    }
    let mut source = Source::open(path, None, allow_unread)?;
    if !with_tokenizer {
        return Ok(Opened { source, tokenizer: None, chat: None });
    }
    let tokenizer = if TOKENIZER.is_in(path)? {
        Some(Tokenizer::from_json_file(&path.join(TOKENIZER.name))?)
    } else {
        let mut there = TOKENIZER_MODELS.into_iter().filter_map(|file| match file.is_in(path) {
            Ok(is_there) => is_there.then_some(Ok(file)),
            Err(error) => Some(Err(error)),
        });
        let file = there.next().transpose()?;
        file.map(|file| Tokenizer::from_model_file(&path.join(file.name))).transpose()?
    };
    if let Some(tokenizer) = &tokenizer {
        name_begin_and_end(path, tokenizer, &mut source.config)?;
    }
    Ok(Opened { source, tokenizer, chat: Some(ChatTemplate::from_folder(path)) })
}

fn open_gguf(path: &Path, with_tokenizer: bool, allow_unread: bool) -> Result<Opened> {
    let mut head = Vec::new();
    let file = side_file::open(path)?.ok_or_else(|| Error::io(path, "no such file"))?;
    file.take(64).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    if let Some(reason) = side_file::not_fetched(&head) {
        return Err(Error::file(path, reason));
    }
    if !head.starts_with(b"GGUF") {
        let expected = "expected a GGUF file, or a folder with config.json and safetensors";
        let hint = match path.extension().and_then(|e| e.to_str()) {
            Some("safetensors" | "json") => "; give the folder in which this file lies",
            Some("bin" | "pt" | "pth" | "ckpt") => {
                "; pickled weights can run programs, so convert them to safetensors"
            }
            _ => "",
        };
        return Err(Error::file(path, format!("{expected}{hint}")));
    }
    if with_tokenizer {
        const LONGEST: u64 = 16 << 20; // of the vocabularies in GGUF files
        expect_room_to_read(path.metadata().map_or(0, |m| m.len()).min(LONGEST))?;
    }
    let gguf = Gguf::open(path)?;
    let mut source = Source::open(path, Some(&gguf), allow_unread)?;
    if !with_tokenizer {
        gguf.check()?;
        return Ok(Opened { source, tokenizer: None, chat: None });
    }
    let vocab = gguf_vocab(&gguf)?;
    begin_and_end(&vocab, &mut source.config);
    let token = |id: Option<u32>| id.and_then(|id| vocab.tokens.get(id as usize)).map(String::as_str);
    let chat = ChatTemplate::from_gguf(gguf_templates(&gguf), token(vocab.bos), token(vocab.eos));
    let tokenizer = Some(Tokenizer::from_gguf(vocab)?);
    gguf.check()?;
    Ok(Opened { source, tokenizer, chat: Some(chat) })
}

/// Takes over the tokens that begin and end a text from the tokenizer's files, where nothing else names any.
fn name_begin_and_end(folder: &Path, tokenizer: &Tokenizer, config: &mut ModelConfig) -> Result<()> {
    let files = [TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP];
    let files = files.map(|file| Ok::<_, Error>((folder.join(file.name), file.json(folder)?)));
    let id = |key: &str| -> Result<Option<u32>> {
        for file in &files {
            let (path, json) = file.as_ref().map_err(Clone::clone)?;
            let Some(json) = json else { continue };
            let wrong = |reason: &str| Error::file(path, format!("{key}: {reason}"));
            let object = json.as_object().ok_or_else(|| wrong("expected an object around it"))?;
            // A text, or an object around it; what Python takes for nothing is nothing.
            let token = match object.get(key) {
                None | Some(Json::Null | Json::Bool(false)) => continue,
                Some(value) => value.get("content").unwrap_or(value).as_str(),
            };
            let token = token.ok_or_else(|| wrong("expected a token"))?;
            let id = tokenizer.token_to_id(token).filter(|&id| (id as usize) < config.vocab_size);
            if id.is_none() {
                tracing::warn!(token, "{key} is a token that the model does not have");
            }
            return Ok(id);
        }
        Ok(None)
    };
    let (begin, end) = (id("bos_token")?, id("eos_token")?);
    config.bos_token_id = config.bos_token_id.or(tokenizer.bos()).or(begin);
    match end {
        Some(end) if config.eos_token_ids.is_empty() => config.eos_token_ids.push(end),
        Some(end) if !config.eos_token_ids.contains(&end) => {
            let ends = &config.eos_token_ids;
            tracing::warn!(
                end,
                ?ends,
                "the tokenizer's end of a text is not among those of the model, which are used"
            );
        }
        _ => {}
    }
    if config.eos_token_ids.is_empty() {
        config.eos_token_ids.extend(tokenizer.eos());
    }
    Ok(())
}

/// The same for a GGUF file: where it names no token, those that llama.cpp takes, and the ends by their names.
fn begin_and_end(vocab: &GgufVocab, config: &mut ModelConfig) {
    let rows = config.vocab_size;
    let known = |id: Option<u32>| id.filter(|&id| (id as usize) < rows);
    config.bos_token_id = config.bos_token_id.or(known(vocab.bos));
    if config.eos_token_ids.is_empty() {
        config.eos_token_ids.extend(known(vocab.eos));
    }
    vocab.add_ends(&mut config.eos_token_ids);
}

/// The chat template, and others with their names.
fn gguf_templates(g: &Gguf) -> Result<Vec<(String, String)>> {
    let mut templates = Vec::new();
    if let Some(source) = g.opt_str("tokenizer.chat_template")? {
        templates.push(("default".into(), source.into()));
    }
    let names = g.opt_strs("tokenizer.chat_templates")?.unwrap_or_default();
    let mut seen = HashSet::new();
    for name in names {
        // A name in the list is short, and what it names may be long: many would take more memory than the file has.
        if !seen.insert(name) {
            return Err(Error::config("tokenizer.chat_templates", format!("`{name}` is there twice")));
        }
        let source = g.str(&format!("tokenizer.chat_template.{name}"))?;
        templates.push((name.into(), source.into()));
    }
    Ok(templates)
}

fn gguf_vocab(g: &Gguf) -> Result<GgufVocab> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let id = |name: &str| Ok::<_, Error>(g.opt_u64(&key(name))?.and_then(|x| u32::try_from(x).ok()));
    let model = g.str("tokenizer.ggml.model")?.to_string();
    let pre = g.opt_str("tokenizer.ggml.pre")?;
    if pre.is_none() && model == "gpt2" {
        tracing::warn!(
            "the file has no tokenizer.ggml.pre: text is split in the way `default`, which is wrong for most models"
        );
    }
    let pre = pre.unwrap_or("default").to_string();
    // Before any of them is read: they may be many.
    for name in ["tokens", "merges"] {
        if let Some(n) = g.len_of(&key(name)).filter(|&n| n > MAX_VOCAB) {
            return Err(Error::Tokenizer(format!("{name}: expected at most {MAX_VOCAB}, got {n}")));
        }
    }
    for name in ["token_type", "scores"] {
        let (tokens, others) = (g.len_of(&key("tokens")).unwrap_or(0), g.len_of(&key(name)));
        if let Some(others) = others.filter(|&others| others != tokens) {
            let reason = format!("{name}: expected one for each of {tokens} tokens, got {others}");
            return Err(Error::Tokenizer(reason));
        }
    }
    // Converters write the family in either place, and the name with a space or without.
    let name = g.opt_str("general.name")?.unwrap_or_default().to_ascii_lowercase().replace(' ', "-");
    let is_phi3 = g.opt_str(ARCHITECTURE)? == Some("phi3") || name.contains("phi-3") || name.contains("phi3");
    let tokens = g.str_array("tokenizer.ggml.tokens")?;
    let [bos, eos] = GgufVocab::default_ids(&model).map(|id| id.filter(|&id| (id as usize) < tokens.len()));
    Ok(GgufVocab {
        tokens,
        scores: g.opt_f32_array("tokenizer.ggml.scores")?.unwrap_or_default(),
        merges: if model == "gpt2" { g.str_array("tokenizer.ggml.merges")? } else { Vec::new() },
        token_types: g.opt_i64_array("tokenizer.ggml.token_type")?.unwrap_or_default(),
        bos: id("bos_token_id")?.or(bos),
        eos: id("eos_token_id")?.or(eos),
        unknown: id("unknown_token_id")?,
        fim_ends: ["pad", "rep", "sep"]
            .into_iter()
            .map(|kind| id(&format!("fim_{kind}_token_id")))
            .collect::<Result<_>>()?,
        add_bos: g
            .opt_bool("tokenizer.ggml.add_bos_token")?
            .unwrap_or_else(|| GgufVocab::default_add_bos(&model, &pre)),
        add_space_prefix: g.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(model == "llama"),
        remove_extra_whitespaces: g.opt_bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false),
        charsmap: g.opt_bytes("tokenizer.ggml.precompiled_charsmap")?.unwrap_or_default().to_vec(),
        strips_after: model == "llama" && is_phi3,
        model,
        pre,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Activation, ModelSizes, NormKind, Rope};
    use crate::weights::gguf::tests::{Writer, array, string};

    fn list(texts: &[&str]) -> Vec<u8> {
        texts.iter().flat_map(|text| string(text)).collect()
    }

    #[test]
    fn templates_of_gguf_have_different_names() {
        let with = |names: &[&str]| {
            Writer::default()
                .key("tokenizer.chat_template", 8, &string("a"))
                .key("tokenizer.chat_template.rag", 8, &string("b"))
                .key("tokenizer.chat_templates", 9, &array(8, names.len() as u64, &list(names)))
                .open()
                .unwrap()
        };
        let got = gguf_templates(&with(&["rag"])).unwrap();
        assert_eq!(got, [("default".into(), "a".into()), ("rag".into(), "b".into())]);
        let error = gguf_templates(&with(&["rag", "rag"])).unwrap_err().to_string();
        assert!(error.contains("`tokenizer.chat_templates`: `rag` is there twice"), "{error}");
    }

    /// Today's converters write "Phi 3.5 Mini Instruct", those of 2024 "Phi-3", some "phi3", and some nothing.
    #[test]
    fn phi3_is_known_by_its_architecture_and_by_its_names() {
        let strips = |model: &str, architecture: &str, name: &str| {
            let gguf = Writer::default()
                .key("tokenizer.ggml.model", 8, &string(model))
                .key("tokenizer.ggml.tokens", 9, &array(8, 1, &list(&["a"])))
                .key("general.architecture", 8, &string(architecture))
                .key("general.name", 8, &string(name))
                .open()
                .unwrap();
            gguf_vocab(&gguf).unwrap().strips_after
        };
        for (architecture, name) in [
            ("phi3", ""),
            ("phi3", "Phi 3.5 Mini Instruct"),
            ("llama", "Phi 3 Mini"),
            ("llama", "phi3"),
            ("llama", "Phi-3"),
        ] {
            assert!(strips("llama", architecture, name), "{architecture} {name}");
        }
        assert!(!strips("llama", "llama", "Llama 3"));
        assert!(!strips("t5", "phi3", "Phi-3"));
    }

    #[test]
    fn a_gguf_file_without_an_end_token_has_that_of_llama_cpp_and_those_by_name() {
        let ends = |model: &str, vocab_size: usize, name: &str| {
            let tokens = ["<unk>", "<s>", "</end>", "a", name];
            let types: Vec<u8> = [2, 3, 3, 1, 3i32].into_iter().flat_map(i32::to_le_bytes).collect();
            let gguf = Writer::default()
                .key("tokenizer.ggml.model", 8, &string(model))
                .key("tokenizer.ggml.tokens", 9, &array(8, 5, &list(&tokens)))
                .key("tokenizer.ggml.token_type", 9, &array(5, 5, &types))
                .open()
                .unwrap();
            let sizes = ModelSizes {
                vocab_size,
                dim: 2,
                n_layers: 1,
                n_heads: 1,
                n_kv_heads: 1,
                head_dim: 2,
                hidden_dim: 2,
                max_context: 9,
            };
            let rope = Rope::new(2, 1e4);
            let mut config = ModelConfig::plain(sizes, NormKind::RmsNorm, 1e-5, Activation::SwiGlu, rope);
            begin_and_end(&gguf_vocab(&gguf).unwrap(), &mut config);
            (config.bos_token_id, config.eos_token_ids)
        };
        assert_eq!(ends("llama", 5, "<|im_end|>"), (Some(1), vec![2, 4]));
        assert_eq!(ends("llama", 5, "<|im_start|>"), (Some(1), vec![2]));
        assert_eq!(ends("llama", 2, "<|im_start|>"), (Some(1), vec![]), "the model has no row for it");
        assert_eq!(ends("t5", 5, "<|im_end|>"), (None, vec![1, 4]));
    }

    #[test]
    fn sentencepieces_file_is_found_by_all_its_names() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let text = "spaces and words";
        let mut ids = Vec::new();
        for file in TOKENIZER_MODELS {
            let folder = tempfile::tempdir().unwrap();
            for name in ["config.json", "model.safetensors"] {
                fs::copy(fixtures.join("llama_gqa").join(name), folder.path().join(name)).unwrap();
            }
            fs::copy(fixtures.join("sentencepiece/bpe.model"), folder.path().join(file.name)).unwrap();
            let tokenizer = open(folder.path(), true, false).unwrap().tokenizer.expect(file.name);
            ids.push(tokenizer.encode(text, false, false).unwrap());
        }
        assert!(ids.len() == 3 && !ids[0].is_empty() && ids.iter().all(|other| *other == ids[0]));
    }

    #[test]
    fn tokens_are_counted_before_they_take_memory() {
        for name in ["tokens", "merges"] {
            let n = MAX_VOCAB as u64 + 1;
            let many = vec![0; 8 * n as usize];
            let gguf = Writer::default()
                .key("tokenizer.ggml.model", 8, &string("llama"))
                .key(&format!("tokenizer.ggml.{name}"), 9, &array(8, n, &many))
                .open()
                .unwrap();
            let error = gguf_vocab(&gguf).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}: expected at most 4194304, got 4194305")), "{error}");
        }
    }
}
