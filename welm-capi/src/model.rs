//! The handle of a model, its configuration and its memory.

use std::ffi::c_char;
use std::sync::Arc;

use welm_core::Model;

use crate::error::{Failure, welm_error, welm_status};
use crate::estimate::welm_estimate;
use crate::guard::{free, status, value};
use crate::sized;
use crate::text::Text;

/// A loaded model. Any number of threads may use one handle at once: their requests are computed together.
///
/// The engine ends when the last handle and the last stream are freed. Freeing a handle while streams of it are open is
/// safe, but no other call may use the handle then or later.
pub struct welm_model(Arc<Shared>);

struct Shared {
    model: Model,
    config: welm_config,
    /// What `config` points to.
    _texts: [Text; 2],
}

// SAFETY: the pointers of `config` are to `_texts` and into `model`, which live as long and never change.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// Settings of a model. It belongs to the handle that it came from.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_config {
    /// Family as the file spells it: "welm", "gpt_neox", "llama"; NUL-terminated.
    pub family: *const c_char,
    /// Where the model runs: device, threads, instruction set; NUL-terminated.
    pub backend: *const c_char,
    /// Number of weights.
    pub n_params: u64,
    /// Rows of the embedding, and length of the logits.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub dim: usize,
    /// Layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the hidden layer of the feed-forward network.
    pub hidden_dim: usize,
    /// Most tokens of a sequence that the model was made for; `welm_model_memory` says how many this handle allows.
    pub max_context: usize,
    /// Tokens that end a text.
    pub eos_token_ids: *const u32,
    /// Number of `eos_token_ids`.
    pub n_eos: usize,
    /// The token that starts a text, if `has_bos`.
    pub bos_token_id: u32,
    /// Whether a token starts a text.
    pub has_bos: bool,
    /// Whether the model has a tokenizer; without one it takes and returns tokens only.
    pub has_tokenizer: bool,
}

impl welm_model {
    pub(crate) fn new(model: Model) -> *mut Self {
        let c = model.config();
        let (family, backend) = (Text::new(c.family.clone()), Text::new(model.backend().to_string()));
        let config = welm_config {
            family: family.as_ptr(),
            backend: backend.as_ptr(),
            n_params: c.n_params(),
            vocab_size: c.vocab_size,
            dim: c.dim,
            n_layers: c.n_layers,
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            hidden_dim: c.hidden_dim,
            max_context: c.max_context,
            eos_token_ids: c.eos_token_ids.as_ptr(),
            n_eos: c.eos_token_ids.len(),
            bos_token_id: c.bos_token_id.unwrap_or(0),
            has_bos: c.bos_token_id.is_some(),
            has_tokenizer: model.tokenize("", false).is_ok(),
        };
        let shared = Shared { config, _texts: [family, backend], model };
        Box::into_raw(Box::new(welm_model(Arc::new(shared))))
    }

    /// # Safety
    /// `model` is NULL, or a handle that is not freed during `'a`.
    pub(crate) unsafe fn get<'a>(model: *const welm_model) -> Result<&'a Model, Failure> {
        // SAFETY: by this function's contract.
        unsafe { model.as_ref() }.map(|m| &m.0.model).ok_or_else(|| Failure::null("model"))
    }
}

/// Another handle of the same engine, for a part of a program that frees its own handle. The model is not copied.
///
/// - ownership: the result is the caller's, to be freed with `welm_model_free`.
/// - threads: any number at once on one model.
/// - NULL: returned for a NULL `model`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_clone(model: *const welm_model) -> *mut welm_model {
    value(std::ptr::null_mut(), || {
        // SAFETY: NULL, or a handle that was not freed, by the function's contract.
        let model = unsafe { model.as_ref() };
        model.map_or(std::ptr::null_mut(), |m| Box::into_raw(Box::new(welm_model(Arc::clone(&m.0)))))
    })
}

/// Frees a handle. When the last handle and all streams are freed, the engine ends and its memory is freed.
///
/// - ownership: takes `model`; streams, answers and other handles stay valid.
/// - threads: once, when no other call with this handle is running.
/// - NULL: does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_free(model: *mut welm_model) {
    // SAFETY: NULL, or a box of this library that the caller gives back.
    unsafe { free(model) }
}

/// Shapes and settings of a model, and where it runs.
///
/// - ownership: belongs to `model`; valid until `model` is freed.
/// - threads: any number at once on one model.
/// - NULL: returned for a NULL `model`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_config(model: *const welm_model) -> *const welm_config {
    value(std::ptr::null(), || {
        // SAFETY: NULL, or a handle that was not freed, by the function's contract.
        unsafe { model.as_ref() }.map_or(std::ptr::null(), |m| &m.0.config)
    })
}

/// The memory that a model takes. Set `memory->struct_size` before.
///
/// - ownership: nothing to free.
/// - threads: any number at once on one model.
/// - NULL: not allowed for `model` and `memory`; allowed for `error`.
/// - errors: only the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_memory(
    model: *const welm_model,
    memory: *mut welm_estimate,
    error: *mut *mut welm_error,
) -> welm_status {
    // SAFETY: handle and struct are the caller's, as the comment asks.
    let body = || unsafe {
        let memory_now = welm_model::get(model)?.memory();
        sized::write("memory", memory, &memory_now.into())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}
