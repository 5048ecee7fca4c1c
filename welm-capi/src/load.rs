//! Loading a model, estimating its memory, and writing an int8 model.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use welm_core::{LoadOptions, LoadProgress, Model};

use crate::error::welm_status::WELM_INVALID_ARGUMENT;
use crate::error::{Failure, welm_error, welm_status};
use crate::estimate::welm_estimate;
use crate::guard::status;
use crate::model::welm_model;
use crate::sized::{self, Growing, flag};
use crate::text::{optional, path};

/// Called while weights are read, on the thread that loads, with the bytes that are ready and the bytes in all.
/// Returning `false` ends the loading with `WELM_LOAD_CANCELLED`. It must not throw, and must not `longjmp` out.
pub type welm_progress_callback =
    Option<unsafe extern "C" fn(data: *mut c_void, done_bytes: u64, total_bytes: u64) -> bool>;

/// How a model is loaded. `welm_load_options_init` sets the defaults, which are right for most programs.
///
/// Texts are UTF-8, NUL-terminated, and need to live only until the function that takes them returns. A text that is
/// NULL, or a number that is 0, means the default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct welm_load_options {
    /// `sizeof(welm_load_options)`.
    pub struct_size: usize,
    /// Where the model runs; auto is the first CUDA device that can run it, else the CPU (auto, cpu, cuda or cuda:N;
    /// default: auto).
    ///
    /// The log says which device was chosen.
    pub device: *const c_char,
    /// Element type of the weights in memory; auto is never less exact than the file (auto, f32, bf16 or int8;
    /// default: auto).
    pub dtype: *const c_char,
    /// Element type of the cached keys and values; auto is f16 on the CPU and bf16 on CUDA, which has no other (auto,
    /// f32, bf16 or f16; default: auto).
    pub cache_dtype: *const c_char,
    /// Precision of activations where they are multiplied by int8 or four-bit weights (auto, int8, int8_rotated or
    /// int16; default: auto).
    pub activations: *const c_char,
    /// Instruction set to use at most, such as avx2 or neon (default: what WELM_ISA says, or else the best that the
    /// machine has).
    ///
    /// "scalar"; on x86-64 "avx2", "avxvnni" or "avx512vnni"; on AArch64 "neon" or "neondot".
    pub isa: *const c_char,
    /// Compute threads (1 to 1024; default: as many as CPU affinity and cgroup quota allow).
    pub threads: usize,
    /// Most tokens of one sequence (1 to 16777216; default: the limit of the model).
    pub context_tokens: usize,
    /// Tokens that the KV cache holds, over all sequences (1 to 4294967296; default: eight full contexts, but no more
    /// than 32768).
    pub cache_tokens: usize,
    /// Most prompt tokens computed in one step, so that other requests wait at most one step for a long prompt (1 to
    /// 65536; default: 256 on the CPU, up to 2048 on CUDA).
    pub chunk_tokens: usize,
    /// Most sequences that run at once (1 to 4096; default: 64).
    pub max_running: usize,
    /// Most sequences that wait; a request beyond them is refused (1 to 1048576; default: 1024).
    ///
    /// The refusal is `WELM_QUEUE_FULL`.
    pub queue_limit: usize,
    /// Most bytes that weights, KV cache and scratch may take together (default: what the machine has available).
    pub memory_limit: u64,
    /// Whether beginnings that prompts have in common are computed once and shared (default: true).
    pub prefix_cache: flag,
    /// Whether weights are copied out of the mapped file into memory of the process (default: false).
    ///
    /// The file may then be changed, and several sequences at once are faster. Loading takes as long as reading the file.
    pub copy_weights: flag,
    /// Called while weights are read or quantised, with the bytes that are ready and the bytes in all (default:
    /// none).
    pub progress: welm_progress_callback,
    /// Given to `progress`.
    pub progress_data: *mut c_void,
    /// Whether a mapped file that is truncated while in use is an error instead of the end of the process (default:
    /// true).
    ///
    /// The error is `WELM_INVALID_FILE`, for all requests of the model. A handler of SIGBUS is installed for this, once
    /// in a process. Faults outside of welm's maps go to the handler that was there before. It costs nothing until
    /// there is a fault. Linux only.
    pub guard_mapped_files: flag,
    /// Whether a model may have tensors that nothing reads, such as heads for other tasks (default: false).
    pub allow_unread_tensors: flag,
    /// Must be zeros.
    pub reserved: [u8; 6],
}

// SAFETY: `repr(C)`, size first; pointers, integers, flags and bytes; ends with a byte.
unsafe impl Growing for welm_load_options {}

impl Default for welm_load_options {
    fn default() -> Self {
        let d = LoadOptions::default();
        welm_load_options {
            struct_size: size_of::<Self>(),
            device: std::ptr::null(),
            dtype: std::ptr::null(),
            cache_dtype: std::ptr::null(),
            activations: std::ptr::null(),
            isa: std::ptr::null(),
            threads: d.threads.unwrap_or(0),
            context_tokens: d.context_tokens.unwrap_or(0),
            cache_tokens: d.cache_tokens.unwrap_or(0),
            chunk_tokens: d.chunk_tokens.unwrap_or(0),
            max_running: d.max_running,
            queue_limit: d.queue_limit,
            memory_limit: d.memory_limit.unwrap_or(0),
            prefix_cache: d.prefix_cache.into(),
            copy_weights: d.copy_weights.into(),
            progress: None,
            progress_data: std::ptr::null_mut(),
            guard_mapped_files: d.guard_mapped_files.into(),
            allow_unread_tensors: d.allow_unread_tensors.into(),
            reserved: [0; 6],
        }
    }
}

/// A callback with its data, so that a closure can hold both.
#[derive(Clone, Copy)]
struct Progress {
    callback: unsafe extern "C" fn(*mut c_void, u64, u64) -> bool,
    data: *mut c_void,
}

// SAFETY: the engine calls it on the thread that loads, which is the caller's own.
unsafe impl Send for Progress {}
// SAFETY: as above.
unsafe impl Sync for Progress {}

impl Progress {
    fn call(&self, p: LoadProgress) -> bool {
        // SAFETY: the caller gave the function for this use; it does not unwind, as its type's comment asks.
        unsafe { (self.callback)(self.data, p.done_bytes, p.total_bytes) }
    }
}

impl welm_load_options {
    /// # Safety
    /// Each text is NULL or NUL-terminated.
    unsafe fn to_core(self) -> Result<LoadOptions, Failure> {
        let set = |number: usize| Some(number).filter(|&n| n != 0);
        let mut o = LoadOptions::default();
        // SAFETY: by this function's contract.
        unsafe {
            if let Some(device) = optional("device", self.device)? {
                o.device = device.parse()?;
            }
            if let Some(dtype) = optional("dtype", self.dtype)? {
                o.dtype = dtype.parse()?;
            }
            if let Some(dtype) = optional("cache_dtype", self.cache_dtype)? {
                o.cache_dtype = dtype.parse()?;
            }
            if let Some(activations) = optional("activations", self.activations)? {
                o.activations = activations.parse()?;
            }
            o.isa = optional("isa", self.isa)?.map(str::to_string);
        }
        o.threads = set(self.threads);
        o.context_tokens = set(self.context_tokens);
        o.cache_tokens = set(self.cache_tokens);
        o.chunk_tokens = set(self.chunk_tokens);
        o.max_running = set(self.max_running).unwrap_or(o.max_running);
        o.queue_limit = set(self.queue_limit).unwrap_or(o.queue_limit);
        o.memory_limit = Some(self.memory_limit).filter(|&n| n != 0);
        o.prefix_cache = self.prefix_cache.get();
        o.copy_weights = self.copy_weights.get();
        o.guard_mapped_files = self.guard_mapped_files.get();
        o.allow_unread_tensors = self.allow_unread_tensors.get();
        if self.reserved != [0; 6] {
            let reason = "`options->reserved` is not zero: it sets an option that this library does not know";
            return Err(Failure::new(WELM_INVALID_ARGUMENT, reason));
        }
        if let Some(callback) = self.progress {
            let progress = Progress { callback, data: self.progress_data };
            o.progress = Some(Arc::new(move |p| progress.call(p)));
        }
        Ok(o)
    }
}

/// Sets every option to its default, and `struct_size` to the argument, which is `sizeof(welm_load_options)`.
///
/// - ownership: nothing to free.
/// - threads: any, each with a struct of its own.
/// - NULL: not allowed for `options`.
/// - errors: `WELM_NULL_POINTER`; `WELM_INVALID_ARGUMENT` for an impossible size, then nothing is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_load_options_init(
    options: *mut welm_load_options,
    struct_size: usize,
) -> welm_status {
    // SAFETY: the caller's struct has the size that it says.
    let body = || unsafe { sized::init("options", options, struct_size, &welm_load_options::default()) };
    // SAFETY: NULL is allowed.
    unsafe { status(std::ptr::null_mut(), body) }
}

/// Loads a Hugging Face folder, an int8 folder of `welm_quantize`, or a GGUF file, and starts its engine.
///
/// Files are mapped: they must not be changed until the model is freed (see `guard_mapped_files`). A folder without a
/// tokenizer gives a model that takes and returns tokens only.
///
/// - ownership: `*model` is the caller's, to be freed with `welm_model_free`. Nothing of `options` is kept.
/// - threads: any, also several at once.
/// - NULL: not allowed for `path` and `model`; allowed for `options`, for the defaults; allowed for `error`.
/// - encoding: `path` is NUL-terminated. On Unix it may be any bytes that name a file, on other systems it is UTF-8.
/// - errors: `WELM_IO`, `WELM_INVALID_FILE`, `WELM_CONFIG`, `WELM_TENSOR`, `WELM_TOKENIZER` for files that are
///   missing, damaged or not supported; `WELM_OUT_OF_MEMORY` if the model does not fit, before weights are read;
///   `WELM_INVALID_OPTION`, `WELM_UNAVAILABLE`, `WELM_LOAD_CANCELLED`; the general errors.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_load(
    path: *const c_char,
    options: *const welm_load_options,
    model: *mut *mut welm_model,
    error: *mut *mut welm_error,
) -> welm_status {
    let body = || {
        // SAFETY: texts, struct and output are the caller's, as the comment asks.
        unsafe {
            let path = self::path("path", path)?;
            let options = sized::read("options", options, Default::default())?.to_core()?;
            Failure::unless_null("model", model)?;
            let loaded = Model::load(path, &options)?;
            model.write(welm_model::new(loaded));
        }
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// Memory that `welm_model_load` with these options would take, computed from the headers of the files and, on the CPU,
/// from the tokenizer. With the device "cuda" it is memory of the device, which need not be there; otherwise it is memory
/// of the CPU.
///
/// - ownership: nothing to free.
/// - threads: any, also several at once.
/// - NULL: not allowed for `path` and `estimate`; allowed for `options`, for the defaults; allowed for `error`.
/// - encoding: `path` as for `welm_model_load`.
/// - errors: as `welm_model_load`, without those about memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_model_estimate(
    path: *const c_char,
    options: *const welm_load_options,
    estimate: *mut welm_estimate,
    error: *mut *mut welm_error,
) -> welm_status {
    let body = || {
        // SAFETY: texts and structs are the caller's, as the comment asks.
        unsafe {
            let path = self::path("path", path)?;
            let options = sized::read("options", options, Default::default())?.to_core()?;
            sized::write("estimate", estimate, &Model::estimate(path, &options)?.into())
        }
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}

/// Writes an int8 folder from the Hugging Face folder `from`. `to` is a new folder, an empty one, or one that this
/// function wrote before. Such a folder is replaced in one step (Linux): a program that loads it meanwhile gets either
/// the old model or the new one. `progress` is called after each matrix and may stop the work; then no unfinished files
/// are left.
///
/// - ownership: nothing to free.
/// - threads: any, also several at once.
/// - NULL: not allowed for `from` and `to`; allowed for `progress`, its `data` and `error`.
/// - encoding: paths as for `welm_model_load`.
/// - errors: those of `welm_model_load` about files; `WELM_IO` if `to` cannot be written; `WELM_INVALID_OPTION` if `to`
///   is an empty text, or has files that this function did not write; `WELM_LOAD_CANCELLED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn welm_quantize(
    from: *const c_char,
    to: *const c_char,
    progress: welm_progress_callback,
    data: *mut c_void,
    error: *mut *mut welm_error,
) -> welm_status {
    let body = || {
        // SAFETY: texts are the caller's, as the comment asks.
        let (from, to) = unsafe { (path("from", from)?, path("to", to)?) };
        let progress = progress.map(|callback| Progress { callback, data });
        welm_core::quantize(&from, &to, |p| progress.is_none_or(|f| f.call(p)))?;
        Ok(())
    };
    // SAFETY: `error` is the caller's.
    unsafe { status(error, body) }
}
