//! The tensors of a model by their names, with a note of which were asked for.

use std::cell::Cell;
use std::collections::HashMap;

use super::map::Files;
use super::tensor::{ShapeText, StoredTensor};
use super::unread;
use crate::error::{Error, Result};

/// Most tensors of a model; each takes memory of its own, however few bytes a file describes it with.
pub(super) const MAX_TENSORS: usize = 1 << 17;

/// Why a tensor cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// Its elements have a type that is not supported, of this name.
    Type(String),
    /// A dimension of its shape is zero.
    Empty,
}

/// The tensors of a model, by name, whichever files they lie in.
///
/// It remembers which of them were asked for, so that what nobody reads can be told: [`TensorMap::check_all_read`].
#[derive(Debug, Clone, Default)]
pub(crate) struct TensorMap {
    pub(super) tensors: HashMap<String, Entry>,
    /// The `__metadata__` of safetensors files; empty for GGUF, which has its own.
    pub(crate) metadata: HashMap<String, String>,
    /// The types that weights can have in files of this format, for errors about others.
    pub(super) supported_types: String,
}

#[derive(Debug, Clone)]
pub(super) struct Entry {
    stored: Result<StoredTensor, Unreadable>,
    shape: Vec<usize>,
    read: Cell<bool>,
}

impl TensorMap {
    /// The tensor `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if it is absent or cannot be read.
    pub(crate) fn get(&self, name: &str) -> Result<&StoredTensor> {
        let missing = || format!("missing; it is not among the model's {} tensors", self.tensors.len());
        self.find(name)?.ok_or_else(|| Error::tensor(name, missing()))
    }

    /// The tensor `name`, if the model has it.
    ///
    /// # Errors
    ///
    /// [`Error::Tensor`] if it has it, but it cannot be read.
    pub(crate) fn find(&self, name: &str) -> Result<Option<&StoredTensor>> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        entry.read.set(true);
        entry.stored.as_ref().map(Some).map_err(|unreadable| {
            let reason = match unreadable {
                Unreadable::Empty => format!("shape {} holds no element", ShapeText(&entry.shape)),
                Unreadable::Type(own) => {
                    let others: Vec<_> = self.unsupported_types().into_iter().filter(|t| t != own).collect();
                    let others = match others.len() {
                        0 => String::new(),
                        1 => format!(", nor is {} of other tensors", others[0]),
                        _ => format!(", nor are {} of other tensors", others.join(", ")),
                    };
                    format!("type {own} is not supported{others}; {} are", self.supported_types)
                }
            };
            Error::tensor(name, reason)
        })
    }

    /// The types of tensors that cannot be read for their types, each once, in the order of their names.
    fn unsupported_types(&self) -> Vec<&str> {
        let types = self.tensors.values().filter_map(|entry| match &entry.stored {
            Err(Unreadable::Type(name)) => Some(name.as_str()),
            _ => None,
        });
        let mut types: Vec<&str> = types.collect();
        types.sort_unstable();
        types.dedup();
        types
    }

    /// What an error about something else adds on types that are not supported; empty if all are.
    pub(crate) fn unsupported_types_too(&self) -> String {
        match &self.unsupported_types()[..] {
            [] => String::new(),
            [one] => {
                format!("; nor is the type {one} of its tensors supported, only {}", self.supported_types)
            }
            several => format!(
                "; nor are the types {} of its tensors supported, only {}",
                several.join(", "),
                self.supported_types
            ),
        }
    }

    /// The type's name, the shape and the bytes in the file of each tensor, whether it can be read or not, in no order.
    /// The bytes of an unknown type are not known.
    pub(crate) fn types_shapes_and_bytes(&self) -> impl Iterator<Item = (&str, &[usize], Option<usize>)> {
        self.tensors.values().map(|entry| {
            let (name, bytes) = match &entry.stored {
                Ok(tensor) => (tensor.dtype.format().name(), Some(tensor.bytes().len())),
                Err(Unreadable::Type(name)) => (name.as_str(), None),
                Err(Unreadable::Empty) => ("without elements", Some(0)),
            };
            (name, &entry.shape[..], bytes)
        })
    }

    /// How many tensors there are.
    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Adds the tensors of another file of the model.
    pub(super) fn take_from(&mut self, other: TensorMap) -> Result<()> {
        other.tensors.into_iter().try_for_each(|(name, entry)| self.insert_entry(name, entry))
    }

    /// Whether the model has a tensor of this name; it is not thereby read.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Refuses tensors that nobody asked for, but those whose values cannot matter; with `allow`, tells the log.
    pub(crate) fn check_all_read(&self, allow: bool) -> Result<()> {
        let mut unread: Vec<&str> = self
            .tensors
            .iter()
            .filter(|(name, entry)| !entry.read.get() && !unread::may_be(name, &entry.shape))
            .map(|(name, _)| name.as_str())
            .collect();
        unread.sort_unstable();
        let Some((first, others)) = unread.split_first() else { return Ok(()) };
        if allow {
            tracing::warn!(
                count = unread.len(),
                names = unread[..unread.len().min(8)].join(", "),
                "the model has tensors that nothing reads"
            );
            return Ok(());
        }
        let others = match others {
            [] => String::new(),
            [.., last] if others.len() > 4 => {
                format!(", like {} others up to `{last}`", others.len())
            }
            _ => format!(
                ", like {}",
                others.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            ),
        };
        let reason = format!(
            "nothing reads it{others}; if the model is good without, load it with allow_unread_tensors"
        );
        Err(Error::tensor(first, reason))
    }

    /// The files that they lie in.
    pub(crate) fn files(&self) -> Files {
        Files::of(
            self.tensors.values().filter_map(|entry| entry.stored.as_ref().ok()).map(|tensor| &tensor.map),
        )
    }

    /// Names of all tensors that can be read, in no order.
    #[cfg(test)]
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().filter(|(_, entry)| entry.stored.is_ok()).map(|(name, _)| name.as_str())
    }

    /// Bytes of all tensors as they are stored.
    #[cfg(test)]
    pub(crate) fn total_bytes(&self) -> u64 {
        self.tensors.values().filter_map(|e| e.stored.as_ref().ok()).map(|t| t.range.len() as u64).sum()
    }

    pub(super) fn insert(&mut self, tensor: StoredTensor) -> Result<()> {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        self.insert_entry(name, Entry { stored: Ok(tensor), shape, read: Cell::new(false) })
    }

    /// Notes a tensor that cannot be read, and why: an error for who asks for it.
    pub(super) fn refuse(&mut self, name: &str, shape: &[usize], why: Unreadable) -> Result<()> {
        let entry = Entry { stored: Err(why), shape: shape.to_vec(), read: Cell::new(false) };
        self.insert_entry(name.to_string(), entry)
    }

    pub(super) fn insert_entry(&mut self, name: String, entry: Entry) -> Result<()> {
        if self.tensors.contains_key(&name) {
            return Err(Error::tensor(name, "the model holds it twice"));
        }
        if self.tensors.len() == MAX_TENSORS {
            return Err(Error::tensor(name, format!("the model has more than {MAX_TENSORS} tensors")));
        }
        self.tensors.insert(name, entry);
        Ok(())
    }
}
