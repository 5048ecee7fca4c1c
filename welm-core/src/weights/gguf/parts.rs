//! A model in several GGUF files, as `llama-gguf-split` writes it.
//!
//! The parts are `NAME-00001-of-00003.gguf` to `NAME-00003-of-00003.gguf` in one folder, and each has
//!
//! ```text
//! split.no             0, 1, 2
//! split.count          3
//! split.tensors.count  tensors of all parts together
//! ```
//!
//! All other metadata is in the first part, which may have no tensors.

use std::path::{Path, PathBuf};

use super::Gguf;
use crate::error::{Error, Result};

/// The number of a part, from 0, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    index: u64,
    count: u64,
}

impl Part {
    /// What a file says of itself; none if it is the whole model.
    fn of(gguf: &Gguf) -> Result<Option<Part>> {
        let count = gguf.opt_u64("split.count")?.unwrap_or(1);
        if count < 2 {
            return Ok(None);
        }
        let index = gguf.u64("split.no")?;
        if index >= count {
            let reason = format!("expected a number below split.count, {count}, got {index}");
            return Err(Error::config("split.no", reason));
        }
        Ok(Some(Part { index, count }))
    }

    /// The end of this part's file name.
    fn suffix(self) -> String {
        format!("-{:05}-of-{:05}.gguf", self.index + 1, self.count)
    }
}

/// Whether a file of this name is a part of a model, but not its first.
pub(crate) fn is_later_part(name: &str) -> bool {
    let numbers = || {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (_, number) = rest.rsplit_once('-')?;
        [number, count].iter().all(|digits| digits.len() == 5).then_some(())?;
        Some((number.parse::<u32>().ok()?, count.parse::<u32>().ok()?))
    };
    numbers().is_some_and(|(number, count)| 1 < number && number <= count)
}

/// The whole model of which `opened`, the file at `path`, is a part, whichever; `opened` itself if it is whole.
///
/// # Errors
/// Those of [`Gguf::open`] for each part; [`Error::InvalidFile`] for a part that does not belong to the others.
pub(super) fn join(path: &Path, opened: Gguf) -> Result<Gguf> {
    let Some(part) = Part::of(&opened)? else { return Ok(opened) };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(stem) = name.strip_suffix(&part.suffix()) else {
        let reason = format!(
            "split.no and split.count say that it is part {} of {}: expected a name that ends with {}, by which the other \
             parts are found",
            part.index + 1,
            part.count,
            part.suffix()
        );
        return Err(Error::file(path, reason));
    };
    let place =
        |index| -> PathBuf { path.with_file_name(stem.to_string() + &Part { index, ..part }.suffix()) };
    let mut whole = if part.index == 0 { opened } else { open_part(&place(0), Part { index: 0, ..part })? };
    for index in 1..part.count {
        let path = place(index);
        let next = open_part(&path, Part { index, ..part })?;
        if let Some((key, _)) =
            next.keys().find(|(key, _)| !key.starts_with("split.") && !is_of_any_file(key))
        {
            let reason =
                format!("expected the metadata of the model in its first part only, got `{key}` in this one");
            return Err(Error::file(path, reason));
        }
        whole.tensors.take_from(next.tensors).map_err(|error| of_part(&path, error))?;
    }
    let n_tensors = whole.tensors.len() as u64;
    match whole.opt_u64("split.tensors.count")? {
        Some(expected) if expected != n_tensors => {
            let reason = format!("its parts have {n_tensors} tensors together");
            Err(Error::config("split.tensors.count", format!("expected {expected} tensors, but {reason}")))
        }
        _ => Ok(whole),
    }
}

/// Whether a key says how a file is laid out, and nothing of the model.
fn is_of_any_file(key: &str) -> bool {
    key == "general.alignment"
}

/// An error of a part that the caller has not named, with the part's file.
fn of_part(path: &Path, error: Error) -> Error {
    let in_file = |reason: String| format!("{reason}; in {}", path.display());
    match error {
        Error::Config { setting, reason } => Error::Config { setting, reason: in_file(reason) },
        Error::Tensor { name, reason } => Error::Tensor { name, reason: in_file(reason) },
        other => other, // names its file
    }
}

fn open_part(path: &Path, expected: Part) -> Result<Gguf> {
    let gguf = Gguf::open_one(path).map_err(|error| of_part(path, error))?;
    let said = |part: Part| format!("part {} of {}", part.index + 1, part.count);
    match Part::of(&gguf).map_err(|error| of_part(path, error))? {
        Some(part) if part == expected => Ok(gguf),
        other => {
            let got = other.map_or("a whole model".into(), said);
            Err(Error::file(path, format!("expected {}, got {got}", said(expected))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Writer, string};
    use super::*;

    fn part(index: u16, count: u16, n_tensors: i32) -> Writer {
        Writer::default()
            .key("split.no", 2, &index.to_le_bytes())
            .key("split.count", 2, &count.to_le_bytes())
            .key("split.tensors.count", 5, &n_tensors.to_le_bytes())
    }

    fn value(x: f32) -> [u8; 4] {
        x.to_le_bytes()
    }

    /// Three parts; the first has metadata and no tensors.
    fn parts() -> [Writer; 3] {
        [
            part(0, 3, 3).key("general.architecture", 8, &string("llama")),
            part(1, 3, 3).tensor("a", &[1], 0, &value(1.0)).tensor("b", &[1], 0, &value(2.0)),
            part(2, 3, 3).key("general.alignment", 4, &32u32.to_le_bytes()).tensor("c", &[1], 0, &value(3.0)),
        ]
    }

    /// Writes parts of `m`, and opens the one of this index.
    fn open(parts: &[Writer], index: usize) -> Result<Gguf> {
        let folder = tempfile::tempdir().unwrap();
        let place = |i: usize| folder.path().join(format!("m-{:05}-of-{:05}.gguf", i + 1, parts.len()));
        for (i, part) in parts.iter().enumerate() {
            std::fs::write(place(i), part.finish()).unwrap();
        }
        Gguf::open(&place(index))
    }

    #[test]
    fn any_part_leads_to_the_whole_model() {
        for index in 0..3 {
            let gguf = open(&parts(), index).unwrap();
            assert_eq!(gguf.str("general.architecture").unwrap(), "llama");
            let values = ["a", "b", "c"].map(|name| gguf.tensors.get(name).unwrap().to_f32());
            assert_eq!(values, [[1.0], [2.0], [3.0]]);
        }
        // One part is the whole, under any name.
        part(0, 1, 1).tensor("a", &[1], 0, &value(1.0)).open().unwrap();
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let error = |parts: &[Writer], index| open(parts, index).unwrap_err().to_string();
        let with = |index: usize, writer: Writer| {
            let mut parts = parts();
            parts[index] = writer;
            parts
        };
        for (parts, want) in [
            (with(1, part(2, 3, 3)), "expected part 2 of 3, got part 3 of 3"),
            (with(1, part(1, 4, 3)), "expected part 2 of 3, got part 2 of 4"),
            (with(2, Writer::default()), "expected part 3 of 3, got a whole model"),
            (with(2, part(3, 3, 3)), "`split.no`: expected a number below split.count, 3, got 3"),
            (
                with(2, part(2, 3, 3)),
                "`split.tensors.count`: expected 3 tensors, but its parts have 2 tensors together",
            ),
            (
                with(2, part(2, 3, 3).tensor("a", &[1], 0, &value(1.0))),
                "tensor `a`: the model holds it twice",
            ),
            (
                with(2, part(2, 3, 3).key("llama.block_count", 4, &[2, 0, 0, 0])),
                "got `llama.block_count` in this one",
            ),
            (with(2, Writer::default().key("split.count", 2, &[3, 0])), "`split.no`: missing from the file"),
        ] {
            let error = error(&parts, 0);
            assert!(error.contains(want), "{error}");
            assert!(error.contains("-of-00003.gguf") || error.contains("split.tensors.count"), "{error}");
        }
        // A fault of a tensor's, whichever part was named.
        let outside = part(2, 3, 3).info("c", &[1], 0, 64);
        for index in [0, 1] {
            let error = error(&with(2, outside.clone()), index);
            assert!(error.starts_with("tensor `c`: F32 of shape (1)"), "{error}");
            assert!(error.ends_with("m-00003-of-00003.gguf"), "{error}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m-00001-of-00003.gguf");
        std::fs::write(&path, parts()[0].finish()).unwrap();
        let missing = Gguf::open(&path).unwrap_err().to_string();
        assert!(missing.contains("m-00002-of-00003.gguf: no such file"), "{missing}");
        let renamed = folder.path().join("m.gguf");
        std::fs::rename(path, &renamed).unwrap();
        let error = Gguf::open(&renamed).unwrap_err().to_string();
        assert!(
            error.contains("part 1 of 3: expected a name that ends with -00001-of-00003.gguf"),
            "{error}"
        );
    }

    #[test]
    fn names_tell_later_parts() {
        for (name, later) in [
            ("m-00001-of-00003.gguf", false),
            ("m-00002-of-00003.gguf", true),
            ("m-00003-of-00003.gguf", true),
            ("m-00004-of-00003.gguf", false),
            ("m-2-of-3.gguf", false),
            ("m-q4-00002-of-00002.gguf", true),
            ("m.gguf", false),
        ] {
            assert_eq!(is_later_part(name), later, "{name}");
        }
    }
}
