//! CUDA kernels of the welm engine: none yet.
//!
//! This crate is where `build.rs` will compile `cuda/*.cu` and where their safe launchers will live. It
//! exports nothing until then.
