//! Hugging Face safetensors: one file, or an index with its shards.
//!
//! A file is `header_len: u64, header: JSON, data`; the header gives each tensor's dtype, shape and byte
//! range of the data. The `safetensors` crate reads the entries and proves that the ranges follow each
//! other without gap or overlap. Its own `read_metadata` is not used, for three reasons: it adds up lengths
//! of the file unchecked, which panics where overflow is checked; of entries with one name it keeps the
//! last; and on its way it keeps every number of the header as a tree of 32-byte nodes.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Component, Path};
use std::sync::Arc;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use super::formats::StoredType;
use super::map::FileMap;
use super::tensor::StoredTensor;
use super::tensor_map::{MAX_TENSORS, TensorMap, Unreadable};
use crate::error::{Error, Result};
use crate::side_file::{self, INDEX};

pub(crate) const SINGLE: &str = "model.safetensors";
/// Most bytes of a header, which has room for the most tensors; the format itself allows three times as many.
const MAX_HEADER_BYTES: u64 = 1 << 25;

/// Opens the tensors of a folder with `model.safetensors`, or else with `model.safetensors.index.json` and
/// its shards; or those of a single file. Nothing is read but the headers.
///
/// A tensor without elements, or of a type that no weight has, is an error of who asks for it: checkpoints carry causal
/// masks and position ids along.
///
/// # Errors
///
/// [`Error::Io`] or [`Error::InvalidFile`] for a file that is absent or damaged; [`Error::Tensor`] for a
/// tensor of impossible shape, one that is there twice, or one that is not in the shard that the index names.
pub(crate) fn open(path: &Path) -> Result<TensorMap> {
    let mut model = TensorMap::default();
    if !path.is_dir() {
        read(path, &FileMap::open(path)?, &mut model)?;
        return Ok(model);
    }
    // A broken link counts as there, so that the error is about it, and not about the other file.
    let has = |name: &str| path.join(name).symlink_metadata().is_ok();
    if has(SINGLE) {
        let file = path.join(SINGLE);
        read(&file, &FileMap::open(&file)?, &mut model)?;
    } else if let Some(index) = INDEX.read(path)? {
        open_shards(path, &index, &mut model)?;
    } else {
        return Err(Error::io(path, format!("expected {SINGLE} or {} in this folder", INDEX.name)));
    }
    Ok(model)
}

/// The part of an index that matters; `metadata.total_size` is often wrong.
#[derive(serde::Deserialize)]
struct Index {
    weight_map: Entries<String>,
}

/// Reads every shard that the index of `folder` names, each once.
fn open_shards(folder: &Path, index: &[u8], model: &mut TensorMap) -> Result<()> {
    let index_path = folder.join(INDEX.name);
    let index: Index =
        serde_json::from_slice(index).map_err(|e| Error::file(&index_path, format!("bad index: {e}")))?;

    let mut listed: HashMap<&str, Vec<&str>> = HashMap::new(); // shard -> its tensors
    for (tensor, shard) in &index.weight_map.entries {
        listed.entry(shard).or_default().push(tensor);
    }
    let mut shards: Vec<&str> = listed.keys().copied().collect();
    // In the order of their names, so that of several faults it is always the same one that is told.
    shards.sort_unstable();
    for shard in shards {
        let inside = Path::new(shard).components().all(|part| matches!(part, Component::Normal(_)));
        if shard.is_empty() || !inside {
            let reason = format!("expected the names of files in this folder, got shard `{shard}`");
            return Err(Error::file(&index_path, reason));
        }
        let path = folder.join(shard);
        let mut held = TensorMap::default();
        read(&path, &FileMap::open(&path)?, &mut held)?;
        let mut names = listed.remove(shard).unwrap_or_default();
        names.sort_unstable();
        for name in names {
            if !held.contains(name) {
                let reason = format!("{} lists it in {shard}, where it is missing", INDEX.name);
                return Err(Error::tensor(name, reason));
            }
        }
        held.tensors.into_iter().try_for_each(|(name, entry)| model.insert_entry(name, entry))?;
        for (key, value) in held.metadata {
            model.metadata.entry(key).or_insert(value);
        }
        model.supported_types = held.supported_types;
    }
    Ok(())
}

/// Adds the tensors and the metadata of one file to `model`.
fn read(path: &Path, map: &Arc<FileMap>, model: &mut TensorMap) -> Result<()> {
    if let Some(reason) = side_file::not_fetched(map) {
        return Err(Error::file(path, reason));
    }
    let Some((len, rest)) = map.split_first_chunk::<8>() else {
        return Err(Error::file(path, format!("expected 8 bytes of header length, got {}", map.len())));
    };
    let len = u64::from_le_bytes(*len);
    let header = match usize::try_from(len).ok().and_then(|len| rest.get(..len)) {
        Some(header) if len <= MAX_HEADER_BYTES => header,
        _ => {
            let most = MAX_HEADER_BYTES.min(rest.len() as u64);
            return Err(Error::file(path, format!("expected a header of at most {most} bytes, got {len}")));
        }
    };
    let data = 8 + header.len();
    let header: Entries<TensorInfo> =
        serde_json::from_slice(header).map_err(|e| Error::file(path, format!("bad header: {e}")))?;
    let mut tensors: Vec<_> = header.entries.into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let metadata = Metadata::new(None, tensors).map_err(|e| Error::file(path, format!("bad header: {e}")))?;

    if metadata.data_len() != map.len() - data {
        let reason = format!(
            "truncated or damaged: the header describes {} bytes of tensors, the file holds {}",
            metadata.data_len(),
            map.len() - data
        );
        return Err(Error::file(path, reason));
    }
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let named = info.dtype.to_string();
        let Some(dtype) = StoredType::named(&named) else {
            model.refuse(&name, &info.shape, Unreadable::Type(named))?;
            continue;
        };
        if info.shape.contains(&0) {
            model.refuse(&name, &info.shape, Unreadable::Empty)?;
            continue;
        }
        // No overflow: the range lies in the data, whose length was just compared with the file's.
        let tensor = StoredTensor::new(map, &name, dtype, &info.shape, data + info.data_offsets.0)?;
        model.insert(tensor)?;
    }
    model.metadata.extend(header.metadata);
    model.supported_types = StoredType::of_weights(false);
    Ok(())
}

/// A JSON object with tensors' names as keys, in which none appears twice.
struct Entries<V> {
    entries: HashMap<String, V>,
    /// The one entry that is not a tensor.
    metadata: HashMap<String, String>,
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for Reader<V> {
            type Value = Entries<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<V>, A::Error> {
                let (mut entries, mut metadata) = (HashMap::new(), None);
                while let Some(key) = map.next_key::<String>()? {
                    let twice = if key == "__metadata__" {
                        metadata.replace(map.next_value::<Entries<String>>()?.entries).is_some()
                    } else {
                        entries.insert(key.clone(), map.next_value()?).is_some()
                    };
                    if entries.len() > MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} entries")));
                    }
                    if twice {
                        return Err(A::Error::custom(format!("`{key}` appears twice")));
                    }
                }
                Ok(Entries { entries, metadata: metadata.unwrap_or_default() })
            }
        }

        deserializer.deserialize_map(Reader(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::super::slab::Slab;
    use super::super::tests::{damage, mapped};
    use super::*;

    /// A file of this header and data.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    /// A header entry.
    fn entry(name: &str, dtype: &str, shape: &str, start: usize, end: usize) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    }

    fn parse(bytes: &[u8]) -> Result<TensorMap> {
        let mut model = TensorMap::default();
        read(Path::new("test.safetensors"), &mapped(bytes), &mut model).map(|()| model)
    }

    /// The error of a file with this header and `n` bytes of data.
    fn error(header: &str, n: usize) -> String {
        parse(&file(header, &vec![0; n])).unwrap_err().to_string()
    }

    fn small() -> Vec<u8> {
        let entries = [
            r#""__metadata__":{"format":"pt"}"#.to_string(),
            entry("a", "F32", "[2,1]", 0, 8),
            entry("b", "BF16", "[2]", 8, 12),
            entry("m", "BOOL", "[1,3]", 12, 15),
            entry("c", "I8", "[1]", 15, 16),
        ];
        let data = [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0, 0x80, 0x3f, 0x00, 0x40, 1, 0, 1, 0xff];
        file(&format!("{{{}}}", entries.join(",")), &data)
    }

    #[test]
    fn reads_tensors_and_metadata() {
        let model = parse(&small()).unwrap();
        assert_eq!(model.get("a").unwrap().shape, [2, 1]);
        assert_eq!(model.get("a").unwrap().to_f32(), [1.0, -2.0]);
        assert_eq!(model.get("b").unwrap().dtype, StoredType::Bf16);
        assert_eq!(model.get("b").unwrap().to_f32(), [1.0, 2.0]);
        assert_eq!(model.get("c").unwrap().to_f32(), [-1.0]);
        assert!(model.find("m").is_err());
        assert!(
            model
                .get("m")
                .unwrap_err()
                .to_string()
                .ends_with("type BOOL is not supported; F32, F16 and BF16 are")
        );
        assert_eq!(model.metadata["format"], "pt");
        assert_eq!(model.total_bytes(), 13);
    }

    #[test]
    fn alignment_does_not_matter() {
        for spaces in 0..8 {
            let header = format!("{{{}}}{}", entry("a", "F32", "[2]", 0, 8), " ".repeat(spaces));
            let model = parse(&file(&header, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0])).unwrap();
            let slab = Slab::<f32>::from_tensor(model.get("a").unwrap()).unwrap();
            assert_eq!(slab[..], [1.0, -2.0]);
            let aligned = header.len().is_multiple_of(4) && cfg!(target_endian = "little");
            assert_eq!(slab.is_mapped(), aligned);
        }
    }

    #[test]
    fn survives_any_damage() {
        damage(&small(), |map| {
            let mut model = TensorMap::default();
            read(Path::new("test.safetensors"), &map, &mut model).map(|()| model)
        });
    }

    #[test]
    fn lengths_are_checked() {
        for len in [17, 99_999_999, 1 << 32, u64::MAX - 7, u64::MAX] {
            let bytes = [&len.to_le_bytes()[..], &[b' '; 16]].concat();
            let error = parse(&bytes).unwrap_err().to_string();
            assert!(error.ends_with(&format!("expected a header of at most 16 bytes, got {len}")), "{error}");
        }
        let header = format!("{{{}}}", entry("a", "U8", "[4]", 0, 4));
        for n in [3, 5] {
            let error = error(&header, n);
            assert!(error.ends_with(&format!("describes 4 bytes of tensors, the file holds {n}")), "{error}");
        }
        assert!(error("{", 0).contains("bad header"));
        assert!(error(r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,1]}}"#, 1).contains("F99"));
        assert!(error(&"[".repeat(100_000), 0).contains("bad header"));
    }

    #[test]
    fn shapes_and_ranges_are_checked() {
        for (dtype, shape, start, end, reason) in [
            ("F32", "[1]", 0, 8, "bad header: invalid shape"),
            ("F32", "[2]", 4, 12, "invalid offset for tensor `a`"),
            ("F32", "[2]", 8, 0, "invalid offset for tensor `a`"),
            ("F32", "[2]", 0, usize::MAX, "invalid shape"),
            ("F32", "[4611686018427387905,4]", 0, 16, "overflow"),
            ("F32", "[-1]", 0, 8, "bad header"),
            ("U8", "[1,1,1,1,1,1,1,1,1]", 0, 1, "expected at most 8 dimensions, got 9"),
        ] {
            let error = error(&format!("{{{}}}", entry("a", dtype, shape, start, end)), end.min(16));
            assert!(error.contains(reason), "{error}");
        }
        let overlap = format!("{{{},{}}}", entry("a", "U8", "[4]", 0, 4), entry("b", "U8", "[4]", 2, 6));
        assert!(error(&overlap, 6).contains("bad header"));
    }

    /// Ranges that are consistent, but end so near to 2^64 that adding the header's length overflows.
    #[test]
    fn ranges_that_overflow_are_refused() {
        let step = (1usize << 61) - 1;
        let mut entries: Vec<String> = (0..8)
            .map(|i| entry(&i.to_string(), "U8", &format!("[{step}]"), i * step, (i + 1) * step))
            .collect();
        entries.push(entry("last", "U8", "[7]", 8 * step, 8 * step + 7));
        let header = format!("{{{}}}", entries.join(","));
        assert!(error(&header, 0).contains("truncated or damaged"));
    }

    #[test]
    fn other_types_are_named() {
        for dtype in ["F64", "F8_E4M3", "F8_E5M2"] {
            let n = if dtype == "F64" { 8 } else { 1 };
            let model =
                parse(&file(&format!("{{{}}}", entry("a", dtype, "[1]", 0, n)), &vec![0; n])).unwrap();
            let error = model.get("a").unwrap_err().to_string();
            assert_eq!(error, format!("tensor `a`: type {dtype} is not supported; F32, F16 and BF16 are"));
        }
    }

    #[test]
    fn a_tensor_without_elements_is_an_error_of_who_reads_it() {
        let header = format!("{{{},{}}}", entry("a", "F32", "[0,4]", 0, 0), entry("b", "U8", "[1]", 0, 1));
        let model = parse(&file(&header, &[7])).unwrap();
        assert_eq!(model.get("b").unwrap().to_f32(), [7.0]);
        assert_eq!(model.get("a").unwrap_err().to_string(), "tensor `a`: shape (0, 4) holds no element");
    }

    #[test]
    fn a_pointer_of_git_lfs_is_named() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n";
        let error = parse(pointer).unwrap_err().to_string();
        assert!(error.starts_with("test.safetensors: this is a pointer of Git LFS"), "{error}");
    }

    #[test]
    fn tensors_are_counted_before_they_take_memory() {
        let entries: Vec<String> =
            (0..=MAX_TENSORS).map(|i| entry(&i.to_string(), "U8", "[0]", 0, 0)).collect();
        assert!(error(&format!("{{{}}}", entries.join(",")), 0).contains("more than 131072 entries"));
        let metadata: Vec<String> = (0..=MAX_TENSORS).map(|i| format!(r#""{i}":"""#)).collect();
        let many = error(&format!(r#"{{"__metadata__":{{{}}}}}"#, metadata.join(",")), 0);
        assert!(many.contains("more than 131072 entries"), "{many}");
    }

    #[test]
    fn repeated_names_are_refused() {
        let (a, b) = (entry("a", "U8", "[4]", 0, 4), entry("a", "I8", "[4]", 0, 4));
        assert!(error(&format!("{{{a},{b}}}"), 4).contains("`a` appears twice"));
        assert!(error(r#"{"__metadata__":{},"__metadata__":{}}"#, 0).contains("twice"));
        assert!(error(r#"{"__metadata__":{"a":"1","a":"2"}}"#, 0).contains("`a` appears twice"));
    }

    /// A folder with the shards `x` and `y`, each with one tensor of its own name, and this index.
    fn folder(weight_map: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in [("x", 1), ("y", 2)] {
            let shard = file(&format!("{{{}}}", entry(name, "U8", "[1]", 0, 1)), &[value]);
            std::fs::write(folder.path().join(format!("{name}.safetensors")), shard).unwrap();
        }
        let index = format!(r#"{{"metadata":{{"total_size":2}},"weight_map":{weight_map}}}"#);
        std::fs::write(folder.path().join(INDEX.name), index).unwrap();
        folder
    }

    #[test]
    fn opens_folders_and_files() {
        let folder = folder(r#"{"x":"x.safetensors","y":"y.safetensors"}"#);
        let model = open(folder.path()).unwrap();
        assert_eq!(model.get("x").unwrap().to_f32(), [1.0]);
        assert_eq!(model.get("y").unwrap().to_f32(), [2.0]);
        let one = open(&folder.path().join("y.safetensors")).unwrap();
        assert_eq!(one.names().collect::<Vec<_>>(), ["y"]);
        // A single file goes before an index.
        std::fs::write(folder.path().join(SINGLE), small()).unwrap();
        assert!(open(folder.path()).unwrap().contains("a"));
        let empty = tempfile::tempdir().unwrap();
        assert!(open(empty.path()).unwrap_err().to_string().contains("expected model.safetensors or"));
        assert!(matches!(open(&empty.path().join("absent")), Err(Error::Io { .. })));
    }

    #[test]
    fn bad_indexes_are_refused() {
        for (weight_map, reason) in [
            (r#"{"x":"../x.safetensors"}"#, "got shard `../x.safetensors`"),
            (r#"{"x":"/x.safetensors"}"#, "got shard `/x.safetensors`"),
            (r#"{"x":"a/../../x.safetensors"}"#, "got shard `a/../../x.safetensors`"),
            (r#"{"x":"."}"#, "got shard `.`"),
            (r#"{"x":""}"#, "got shard ``"),
            (r#"{"x":"z.safetensors"}"#, "z.safetensors"),
            (r#"{"x":"\u0000"}"#, ""),
            (r#"{"x":"y.safetensors"}"#, "lists it in y.safetensors, where it is missing"),
            (r#"{"x":"x.safetensors","x":"y.safetensors"}"#, "`x` appears twice"),
            (r#"{"x":3}"#, "bad index"),
            ("[]", "bad index"),
        ] {
            let error = open(folder(weight_map).path()).err().unwrap_or_else(|| panic!("{weight_map}"));
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn a_tensor_in_two_shards_is_refused() {
        let folder = folder(r#"{"x":"x.safetensors","y":"y.safetensors"}"#);
        let both = format!("{{{},{}}}", entry("x", "U8", "[1]", 0, 1), entry("y", "U8", "[1]", 1, 2));
        std::fs::write(folder.path().join("y.safetensors"), file(&both, &[1, 2])).unwrap();
        assert_eq!(open(folder.path()).unwrap_err().to_string(), "tensor `x`: the model holds it twice");
    }
}
