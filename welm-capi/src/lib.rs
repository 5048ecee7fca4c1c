//! The C interface of the welm engine: `libwelm`, declared in `include/welm.h`.
//!
//! Nothing is decided here. Each function turns C's pointers into what `welm-core` takes, calls it, and turns the
//! answer into something that C can hold:
//!
//! ```text
//! load, model     a model and what is known of it          request            prompt, options, cancelling
//! generate        an answer at once, or by a callback      stream             an answer, piece by piece
//! tokens, chat    text, tokens and conversations           score              likelihoods and logits
//! stats, log      what an operator looks at                version            which library this is
//! error, failure  statuses and messages                    guard              no panic gets out
//! estimate        the memory of a model                    text, sized, list  values that cross the border
//! ```
//!
//! Modules lie on floors, the lowest first; each imports only from lower ones (`tests/floors.rs` reads this list):
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
//! (`tests/header.rs`), so they speak of C: who owns what, which threads may call, what may be NULL.

// Names are those of the header.
#![allow(non_camel_case_types)]
// What makes a call safe is said in C's words, under `ownership`, `threads` and `NULL`.
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
