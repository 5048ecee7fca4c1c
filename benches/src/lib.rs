//! Measurements of the CUDA kernels, and of a whole model on them, for `gpu/run`.
//!
//! | module | what |
//! |---|---|
//! | [`timing`] | how long a launch takes |
//! | [`cases`] | every kernel, on the shapes of a model of 10 billion parameters |
//! | [`whole`] | that model, of random weights, decoding and reading a prompt |
//! | [`record`] | results as lines of JSON |
//!
//! All of it takes any [`welm_kernels::Device`], so that tests can run it on the emulator, where its figures mean
//! nothing. A figure of a GPU stands beside that GPU's own limits: the bandwidth of a copy is measured here, the
//! rates of large matrix products by `gpu/peer.py`, through PyTorch, in the same run.

pub mod cases;
pub mod record;
pub mod timing;
pub mod whole;
