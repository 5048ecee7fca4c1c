//! The CPU kernels of the welm engine: matrix products, attention and the rest, on slices.
//!
//! Each is written once, against the sixteen lanes of [`isa::Simd`], and compiled for AVX-512, AVX2, NEON and plain Rust,
//! which give the same bits. Kernels know no model, no file and no thread: `welm-core` cuts a step into tasks, and calls
//! them. They are a crate of their own so that they are compiled once, optimised, whatever of the engine changes.
//!
//! The interface is `welm-core`'s: it may change with every version.
//!
//! Modules lie on floors, the lowest first; each imports only from lower ones (`tests/floors.rs` reads this list):
//!
//! ```text
//! isa, disjoint                   vector arithmetic; slices that several threads write
//! batch, int8, tiles              rows of a step; what int8 weights mean; sizes of tiles
//! codes, outputs                  what codes of few bits mean, and how they lie; where sums of products go
//! linear, exp, rope               float weights; the exponential function; rotary embedding
//! norm, soft_cap, activation      formulas of a row
//! quantize, cache                 rows as int8; keys and values on their way into the cache
//! i8dot, attention                products of int8 and four bits; attention over the cache
//! coded                           products of codes
//! ```

#![allow(missing_docs)] // of fields, which say their shapes beside them

#[cfg(target_endian = "big")]
compile_error!("scales of codes are read as little-endian numbers");

pub mod activation;
pub mod attention;
pub mod batch;
pub mod cache;
pub mod coded;
pub mod codes;
pub mod disjoint;
pub mod exp;
pub mod i8dot;
pub mod int8;
pub mod isa;
pub mod linear;
pub mod norm;
pub mod outputs;
pub mod quantize;
pub mod rope;
pub mod soft_cap;
pub mod tiles;
