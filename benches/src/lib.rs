//! Measurements of the CUDA kernels, of whole models on them, for `gpu/run`, and of whole models on the CPU, for
//! `peers/run`.
//!
//! | module | what |
//! |---|---|
//! | [`timing`] | how long a launch takes |
//! | [`cases`] | every kernel, on the shapes of a model of 10 billion parameters, and what is predicted of each |
//! | [`whole`] | that model, of random weights, decoding and reading a prompt |
//! | [`record`] | these results as lines of JSON |
//! | [`random_model`] | models of random weights |
//! | [`work`] | the operations and bytes that a model needs |
//! | [`cpu`] | a model on the CPU: reading prompts, decoding several sequences at once |
//! | [`limits`] | what this CPU and its memory can do |
//!
//! The first four take any [`welm_kernels::Device`], so that tests can run them on the emulator, where their figures
//! have no meaning. Figures of a GPU are compared with that GPU's own limits, measured in the same run: the bandwidth
//! of a copy is measured here, the rates of large matrix products by `gpu/peer.py`, with PyTorch. Figures of a CPU are
//! compared with [`limits`], and with those of other engines.

pub mod cases;
pub mod cpu;
pub mod limits;
pub mod random_model;
pub mod record;
pub mod timing;
pub mod truth;
pub mod whole;
pub mod work;
