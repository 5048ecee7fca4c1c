//! What a caller may ask for: [`LoadOptions`] once per model, [`GenerateOptions`] or [`ScoreOptions`] once per request.
//!
//! Each struct is written in the form that [`table`] explains: a field is followed by its default and its domain. From
//! that comes all that is said of an option elsewhere. Values are validated once, on entry; after that the engine trusts
//! them.
//!
//! To add an option: write its field in [`load`], [`generate`] or [`score`], read it where it has an effect, give it a
//! field in the C struct (`welm-capi/src`), in the C++ struct (`include/welm_types.hpp`), and an arm in
//! `welm-py/src/options.rs`. Then `WELM_UPDATE_OPTIONS=1 cargo test -p welm-core --test options` writes the README's
//! table, the Python signatures and stubs, and the comments of C and C++. The command line reads the table itself.

mod cancel;
mod generate;
mod load;
mod named;
mod score;
mod table;

pub use cancel::CancelToken;
pub use generate::GenerateOptions;
pub use load::{LoadOptions, LoadProgress, ProgressFn};
pub use named::{Activations, CacheDtype, Device, Dtype};
pub use score::ScoreOptions;
pub use table::{Domain, OptionInfo};
