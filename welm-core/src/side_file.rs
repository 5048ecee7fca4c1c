//! The files beside the weights: read whole, within bounds, and only if they are files.
//!
//! A folder of a model comes from somewhere else. What is called `config.json` there may be a named pipe, which blocks
//! whoever opens it, a device without end, a link to nothing or a folder. Each of these is an error. A file counts as
//! absent only if nothing of that name is there: a download that broke must not load with another tokenizer, or with
//! other tokens that end a text.
//!
//! JSON becomes a tree, which takes many times the memory of its text. So it has two limits: bytes, and values.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};

/// Most values of a JSON tree, which then takes at most some 30 MB.
const MAX_VALUES: usize = 1 << 18;

/// A file that a model's folder may have, and the most bytes it may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SideFile {
    pub(crate) name: &'static str,
    max_bytes: u64,
}

/// Shape and settings of the model.
pub(crate) const CONFIG: SideFile = SideFile::new("config.json", 1 << 20);
/// Tokens that end a text, if they are others than in [`CONFIG`].
pub(crate) const GENERATION_CONFIG: SideFile = SideFile::new("generation_config.json", 1 << 20);
/// The tokenizer; the largest public ones have 35 MB.
pub(crate) const TOKENIZER: SideFile = SideFile::new("tokenizer.json", 1 << 27);
/// SentencePiece's tokenizer, where there is no [`TOKENIZER`]; the largest public ones have 5 MB.
pub(crate) const TOKENIZER_MODEL: SideFile = SideFile::new("tokenizer.model", 1 << 25);
/// What T5, ALBERT and others call it.
const SPIECE_MODEL: SideFile = SideFile::new("spiece.model", 1 << 25);
/// What Mistral calls its third one.
const TOKENIZER_MODEL_V3: SideFile = SideFile::new("tokenizer.model.v3", 1 << 25);
/// All names of [`TOKENIZER_MODEL`]; the first that is there counts.
pub(crate) const TOKENIZER_MODELS: [SideFile; 3] = [TOKENIZER_MODEL, SPIECE_MODEL, TOKENIZER_MODEL_V3];
/// Special tokens, added tokens, chat template.
pub(crate) const TOKENIZER_CONFIG: SideFile = SideFile::new("tokenizer_config.json", 1 << 23);
/// Special tokens.
pub(crate) const SPECIAL_TOKENS_MAP: SideFile = SideFile::new("special_tokens_map.json", 1 << 20);
/// Ids of added tokens.
pub(crate) const ADDED_TOKENS: SideFile = SideFile::new("added_tokens.json", 1 << 23);
/// Chat template, before the one of [`TOKENIZER_CONFIG`].
pub(crate) const CHAT_TEMPLATE: SideFile = SideFile::new("chat_template.jinja", 1 << 20);
/// A folder of other chat templates, each in a file of its own.
pub(crate) const ADDITIONAL_TEMPLATES: TemplateFolder = TemplateFolder { name: "additional_chat_templates" };
/// Which file holds which tensor.
pub(crate) const INDEX: SideFile = SideFile::new("model.safetensors.index.json", 1 << 24);

/// Everything that describes a model and is no weights: what is copied beside weights that are written anew.
pub(crate) const DESCRIPTIONS: [SideFile; 10] = [
    CONFIG,
    GENERATION_CONFIG,
    TOKENIZER,
    TOKENIZER_MODEL,
    SPIECE_MODEL,
    TOKENIZER_MODEL_V3,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    ADDED_TOKENS,
    CHAT_TEMPLATE,
];

impl SideFile {
    const fn new(name: &'static str, max_bytes: u64) -> Self {
        SideFile { name, max_bytes }
    }

    /// Whether the folder has it.
    ///
    /// # Errors
    /// [`Error::Io`] if there is something of that name which is no file.
    pub(crate) fn is_in(self, folder: &Path) -> Result<bool> {
        Ok(open(&folder.join(self.name))?.is_some())
    }

    /// Bytes of a folder's file, as far as they would be read; 0 if it has none.
    pub(crate) fn len(self, folder: &Path) -> u64 {
        folder.join(self.name).metadata().map_or(0, |m| m.len()).min(self.max_bytes)
    }

    /// The bytes of a folder's file, if it has one.
    pub(crate) fn read(self, folder: &Path) -> Result<Option<Vec<u8>>> {
        self.read_path(&folder.join(self.name))
    }

    /// The bytes of the file at this path, which is of this kind; none if nothing is there.
    ///
    /// # Errors
    /// [`Error::Io`] for what is no regular file or cannot be read; [`Error::InvalidFile`] if it is too large, or stands
    /// for a file that Git LFS has not fetched.
    pub(crate) fn read_path(self, path: &Path) -> Result<Option<Vec<u8>>> {
        let Some(file) = open(path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        // One more, to see that there is more. The size that the system tells is not relied on.
        file.take(self.max_bytes + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        if bytes.len() as u64 > self.max_bytes {
            return Err(Error::file(path, format!("expected at most {} bytes, got more", self.max_bytes)));
        }
        if let Some(reason) = not_fetched(&bytes) {
            return Err(Error::file(path, reason));
        }
        Ok(Some(bytes))
    }

    /// As [`SideFile::read_path`], but absence is an error too.
    pub(crate) fn require_path(self, path: &Path) -> Result<Vec<u8>> {
        self.read_path(path)?.ok_or_else(|| Error::io(path, "no such file"))
    }

    /// A folder's file as text.
    pub(crate) fn text(self, folder: &Path) -> Result<Option<String>> {
        self.text_path(&folder.join(self.name))
    }

    /// The file at this path as text.
    pub(crate) fn text_path(self, path: &Path) -> Result<Option<String>> {
        let text = |bytes| String::from_utf8(bytes).map_err(|e| Error::file(path, format!("not UTF-8: {e}")));
        self.read_path(path)?.map(text).transpose()
    }

    /// A folder's file as JSON.
    ///
    /// # Errors
    /// As [`SideFile::read_path`]; [`Error::InvalidFile`] if it is not JSON, repeats a key or holds too many values.
    pub(crate) fn json(self, folder: &Path) -> Result<Option<Value>> {
        self.read(folder)?.map(|bytes| json(&folder.join(self.name), &bytes)).transpose()
    }
}

/// A folder of chat templates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TemplateFolder {
    pub(crate) name: &'static str,
}

impl TemplateFolder {
    /// The names and texts of its templates, in the order of the names; none if it is not there.
    pub(crate) fn in_folder(self, folder: &Path) -> Result<Vec<(String, String)>> {
        let folder = folder.join(self.name);
        let mut templates = Vec::new();
        if folder.symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            return Ok(templates);
        }
        for entry in std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))? {
            let path = entry.map_err(|e| Error::io(&folder, e))?.path();
            let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jinja"));
            let Some(name) = name.map(str::to_string) else { continue };
            templates.extend(CHAT_TEMPLATE.text_path(&path)?.map(|source| (name, source)));
        }
        templates.sort();
        Ok(templates)
    }
}

/// Opens a regular file; none if nothing is there.
pub(crate) fn open(path: &Path) -> Result<Option<File>> {
    let fault = |e: std::io::Error| Error::io(path, e);
    match path.symlink_metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fault(e)),
        Ok(_) => {}
    }
    // Before opening, because opening a named pipe waits for who writes to it.
    let info = std::fs::metadata(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => Error::io(path, "a link to nothing"),
        _ => fault(e),
    })?;
    let regular = |info: std::fs::Metadata| {
        if info.is_file() { Ok(()) } else { Err(Error::io(path, "expected a regular file")) }
    };
    regular(info)?;
    let file = File::open(path).map_err(fault)?;
    // And after it: the name may stand for something else by now.
    regular(file.metadata().map_err(fault)?)?;
    Ok(Some(file))
}

/// Why these bytes are not the file they stand for: Git LFS leaves a pointer where it has not fetched one.
pub(crate) fn not_fetched(bytes: &[u8]) -> Option<&'static str> {
    bytes
        .starts_with(b"version https://git-lfs.github.com/spec/")
        .then_some("this is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`")
}

/// Reads JSON in which no object repeats a key.
pub(crate) fn json(path: &Path, bytes: &[u8]) -> Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let left = Cell::new(MAX_VALUES);
    Tree { left: &left }
        .deserialize(&mut deserializer)
        .and_then(|tree| deserializer.end().map(|()| tree))
        .map_err(|e| Error::file(path, format!("not JSON that can be used: {e}")))
}

/// A value and everything below it. `serde_json`'s own takes the last of repeated keys, and any number of values.
#[derive(Clone, Copy)]
struct Tree<'a> {
    /// Values that may still come.
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => return Err(D::Error::custom(format!("more than {MAX_VALUES} values"))),
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_string()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(element) = elements.next_element_seed(self)? {
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("`{key}` appears twice")));
            }
            let value = entries.next_value_seed(self)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every file that is read beside the weights.
    fn all() -> impl Iterator<Item = SideFile> {
        DESCRIPTIONS.into_iter().chain([INDEX])
    }

    #[test]
    fn a_file_is_absent_only_if_nothing_is_there() {
        for side in all() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(side.name);
            assert_eq!((side.read(folder.path()), side.is_in(folder.path())), (Ok(None), Ok(false)));
            assert!(matches!(side.require_path(&path), Err(Error::Io { path: p, .. }) if p == path));

            std::fs::write(&path, "{}").unwrap();
            assert_eq!(side.read(folder.path()).unwrap().as_deref(), Some(&b"{}"[..]));
            assert_eq!(side.json(folder.path()).unwrap(), Some(serde_json::json!({})));
            assert_eq!(
                (side.text(folder.path()), side.is_in(folder.path())),
                (Ok(Some("{}".into())), Ok(true))
            );
        }
    }

    /// Things under the name of a file that are none, each with how it is made.
    #[cfg(unix)]
    type Thing = (&'static str, fn(&Path));

    #[cfg(unix)]
    fn things() -> [Thing; 6] {
        use std::os::unix::fs::symlink;
        fn pipe(path: &Path) {
            assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        }
        [
            ("a pipe", pipe),
            ("a link to a pipe", |path| {
                let target = path.with_extension("pipe");
                pipe(&target);
                symlink(target, path).unwrap();
            }),
            ("a device", |path| symlink("/dev/zero", path).unwrap()),
            ("a link to nothing", |path| symlink("nothing", path).unwrap()),
            ("a link to itself", |path| symlink(path, path).unwrap()),
            ("a folder", |path| std::fs::create_dir(path).unwrap()),
        ]
    }

    #[test]
    #[cfg(unix)]
    fn what_is_no_file_is_an_error_at_once() {
        for side in all() {
            for (what, make) in things() {
                let folder = tempfile::tempdir().unwrap();
                make(&folder.path().join(side.name));
                for outcome in [
                    side.read(folder.path()).map(|_| ()),
                    side.json(folder.path()).map(|_| ()),
                    side.text(folder.path()).map(|_| ()),
                    side.is_in(folder.path()).map(|_| ()),
                ] {
                    assert!(matches!(outcome, Err(Error::Io { .. })), "{} is {what}: {outcome:?}", side.name);
                }
            }
            // A socket, and a file where a folder should be.
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(side.name);
            let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
            assert!(matches!(side.read(folder.path()), Err(Error::Io { .. })));
            drop(socket);
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, "").unwrap();
            assert!(matches!(side.read(&path), Err(Error::Io { .. })));
        }
    }

    #[test]
    #[cfg(unix)]
    fn a_file_that_may_not_be_read_is_not_absent() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for side in all() {
            let path = folder.path().join(side.name);
            std::fs::write(&path, "{}").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
            // Whoever may read everything reads this too.
            let allowed = File::open(&path).is_ok();
            assert_eq!(side.read(folder.path()).is_ok(), allowed);
            assert_ne!(side.read(folder.path()), Ok(None));
        }
    }

    #[test]
    fn files_are_read_up_to_their_limit() {
        let folder = tempfile::tempdir().unwrap();
        for side in all() {
            let file = File::create(folder.path().join(side.name)).unwrap();
            file.set_len(side.max_bytes + 1).unwrap(); // a hole, which takes no room on the disk
            let error = side.read(folder.path()).unwrap_err();
            assert!(matches!(error, Error::InvalidFile { .. }));
            let limit = format!("expected at most {} bytes, got more", side.max_bytes);
            assert!(error.to_string().ends_with(&limit), "{error}");
            file.set_len(side.max_bytes.min(1 << 23)).unwrap();
            assert!(side.read(folder.path()).unwrap().is_some());
        }
    }

    #[test]
    fn a_pointer_of_git_lfs_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for side in all() {
            let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
            std::fs::write(folder.path().join(side.name), pointer).unwrap();
            assert!(side.read(folder.path()).unwrap_err().to_string().contains("Git LFS"));
        }
    }

    #[test]
    fn json_is_read_as_it_stands() {
        let text = r#"{"a": [1, -2, 0.5, true, null, "\u00e9", {"b": {}}], "c": 18446744073709551615}"#;
        let want: Value = serde_json::from_str(text).unwrap();
        assert_eq!(json(Path::new("x"), text.as_bytes()), Ok(want));
    }

    #[test]
    fn json_that_is_wrong_is_refused_with_the_reason() {
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
        for (text, reason) in [
            (r#"{"a": 1, "b": 2, "a": 1}"#, "`a` appears twice"),
            (r#"{"x": [{"deep": 1, "deep": 2}]}"#, "`deep` appears twice"),
            (r#"{"a": 1, "\u0061": 2}"#, "`a` appears twice"),
            ("{} {}", "trailing characters"),
            ("{", "EOF"),
            ("", "EOF"),
            ("[NaN]", "expected"),
            ("1e999", "out of range"),
            ("\u{feff}{}", "expected value"),
            (&"[".repeat(1000), "recursion limit"),
            (&many, "more than 262144 values"),
        ] {
            let error = json(Path::new("x.json"), text.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::InvalidFile { .. }));
            assert!(error.to_string().contains(reason), "{error}");
        }
        let invalid = json(Path::new("x.json"), b"[\"\xff\"]").unwrap_err().to_string();
        assert!(invalid.contains("x.json"), "{invalid}");
    }
}
