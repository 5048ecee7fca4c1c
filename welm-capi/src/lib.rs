//! The C interface of the welm engine: `libwelm`, declared in `include/welm.h`.
//!
//! Nothing is decided here. Each function converts C's pointers to the types of `welm-core`, calls it, and converts the
//! result to types that C can use:
//!
//! ```text
//! load, model     a model and what is known of it          request            prompt, options, cancelling
//! generate        an answer at once, or by a callback      stream             an answer, piece by piece
//! tokens, chat    text, tokens and conversations           score              likelihoods and logits
//! stats, log      counters and log messages                version            which library this is
//! error, failure  statuses and messages                    guard              catches panics
//! estimate        the memory of a model                    text, sized, list  values between C and Rust
//! ```
//!
//! Modules are layers, which we call floors. This list has the lowest first.
//! Each module imports only from lower ones (`tests/floors.rs` reads the list):
//!
//! ```text
//! failure, list, version
//! guard
//! error
//! sized, text, log
//! estimate
//! model, request
//! load, stats, score, stream, tokens
//! generate
//! chat
//! ```
//!
//! The comments of public items are the documentation of `welm.h`, which cbindgen makes from them
//! (`tests/header.rs`). So they are written for C: who owns what, which threads may call, what may be NULL.

// Names are those of the header.
#![allow(non_camel_case_types)]
// What makes a call safe is in the lists of the comments, under `ownership`, `threads` and `NULL`.
#![allow(clippy::missing_safety_doc)]

#[cfg(panic = "abort")]
compile_error!("welm-capi turns panics into WELM_PANIC, for which they have to unwind");

pub mod chat;
pub mod error;
pub mod estimate;
pub mod failure;
pub mod generate;
mod guard;
pub mod list;
pub mod load;
pub mod log;
pub mod model;
pub mod request;
pub mod score;
pub mod sized;
pub mod stats;
pub mod stream;
pub mod text;
pub mod tokens;
pub mod version;

#[cfg(test)]
mod tests;
