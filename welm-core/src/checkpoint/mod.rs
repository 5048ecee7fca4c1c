//! A model at rest: the files that [`crate::Model::load`] takes, opened, described and written.
//!
//! [`open`] finds the files of a path and reads all that a model consists of, [`load`] says which stored tensors make
//! which matrix of the engine, [`describe`] says what files hold that need not be readable, and [`quantize()`] writes an
//! int8 folder, by a [`draft`].
//!
//! [`quantize()`]: quantize::quantize

pub(crate) mod describe;
mod draft;
mod int8_folder;
pub(crate) mod load;
pub(crate) mod open;
pub(crate) mod quantize;
