//! Weights at rest: named, shape-checked tensors inside memory-mapped model files.
//!
//! `safetensors` and `gguf` each turn a file into a [`tensor_map::TensorMap`]. Both are thin: everything that must
//! hold for a tensor to be read safely is checked once, in [`tensor::StoredTensor::new`], and every read afterwards is an
//! ordinary bounds-checked slice. Files are untrusted: no content of a file can cause a panic, an allocation
//! that its size does not justify, or a read outside of it.
//!
//! Files are mapped, not read: weights that are used as they are stored ([`slab::Slab`]) cost no memory of their
//! own, start-up does not copy them, and processes that run the same model share its pages. The price is
//! that **a model file must not be modified while a model uses it**: the operating system would show the
//! change. If it is truncated, the model's requests end with an error ([`map`], and
//! [`crate::LoadOptions::guard_mapped_files`]). Replacing a file by renaming a new one over it is safe.

pub(crate) mod computed;
pub(crate) mod formats;
pub(crate) mod gguf;
pub(crate) mod map;
pub(crate) mod safetensors;
pub(crate) mod slab;
pub(crate) mod tensor;
pub(crate) mod tensor_map;
pub(crate) mod tiles;
mod unread;

#[cfg(test)]
pub(crate) mod tests;
