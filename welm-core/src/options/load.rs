//! [`LoadOptions`]: how a model is loaded.

use std::fmt;
use std::sync::Arc;

use super::table::{Value, options};
use super::{Activations, CacheDtype, Device, Dtype};

/// One report while a model loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadProgress {
    /// Bytes of weights that are ready.
    pub done_bytes: u64,
    /// Bytes of weights in all.
    pub total_bytes: u64,
}

/// A callback for [`LoadProgress`]. If it returns `false`, loading ends with
/// [`Error::LoadCancelled`](crate::Error::LoadCancelled).
pub type ProgressFn = Arc<dyn Fn(LoadProgress) -> bool + Send + Sync>;

impl Value for ProgressFn {}

options! {
    /// How a model is loaded. `LoadOptions::default()` is right for most programs.
    ///
    /// Later versions may add fields: end a literal with `..LoadOptions::default()`.
    ///
    /// ```
    /// use welm_core::{Dtype, LoadOptions};
    /// let options = LoadOptions { dtype: Dtype::Int8, threads: Some(2), ..LoadOptions::default() };
    /// assert_eq!(options.max_running, 64);
    /// ```
    #[derive(Clone)]
    pub struct LoadOptions {
        /// Where the model runs; auto is the first CUDA device that can run it, else the CPU.
        pub device: Device = Device::Auto, Device;
        /// Element type of the weights in memory; auto is never less exact than the file.
        ///
        /// CUDA holds weights as bf16 or int8. A model that would need f32 there is refused, with an error that says so.
        ///
        /// A folder written by [`quantize`](crate::quantize()) stays int8 whatever is asked for, because the floats that it
        /// was made from are not in it. The log warns then.
        pub dtype: Dtype = Dtype::Auto, Dtype::domain();
        /// Element type of the cached keys and values; auto is f16 on the CPU and bf16 on CUDA, which has no other.
        pub cache_dtype: CacheDtype = CacheDtype::Auto, CacheDtype::domain();
        /// Precision of activations where they are multiplied by int8 or four-bit weights.
        ///
        /// It has no effect on float weights.
        pub activations: Activations = Activations::Auto, Activations::domain();
        /// Compute threads.
        pub threads: Option<usize> = None, Whole(1, 1_024), "as many as CPU affinity and cgroup quota allow";
        /// Instruction set to use at most, such as avx2 or neon.
        ///
        /// `scalar` works on every machine. x86-64 may have `avx2`, `avxvnni` or `avx512vnni`; AArch64 `neon` or `neondot`.
        /// An instruction set that the machine lacks is an error.
        pub isa: Option<String> = None, Text(None), "what WELM_ISA says, or else the best that the machine has";
        /// Most tokens of one sequence.
        ///
        /// More than the model's own limit is an error. Where the frequencies of the rotary embedding depend on the length of
        /// a text (dynamic, LongRoPE), they are those for this length. Dynamic scaling and YaRN allow more than the model's limit.
        pub context_tokens: Option<usize> = None, Whole(1, 1 << 24), "the limit of the model";
        /// Tokens that the KV cache holds, over all sequences.
        ///
        /// It has blocks of 16 tokens, so this is rounded up to a multiple of 16.
        ///
        /// One sequence cannot be longer than that: a longer request is
        /// [`Error::TooLong`](crate::Error::TooLong), which names the KV cache.
        pub cache_tokens: Option<usize> = None, Whole(1, 1 << 32), "eight full contexts, but no more than 32768";
        /// Most prompt tokens computed in one step, so that other requests wait at most one step for a long prompt.
        ///
        /// No result depends on it. A CUDA device would be mostly idle with few tokens, so the default there is 2,048, or
        /// the most tokens of a sequence if that is less. If memory has no room for so many, it is halved until it fits,
        /// down to 256, and the log warns.
        pub chunk_tokens: Option<usize> = None, Whole(1, 65_536), "256 on the CPU, up to 2048 on CUDA";
        /// Most sequences that run at once.
        pub max_running: usize = 64, Whole(1, 4_096);
        /// Most sequences that wait; a request beyond them is refused.
        ///
        /// The refusal is [`Error::QueueFull`](crate::Error::QueueFull). A request that has more sequences than this by
        /// itself is [`Error::InvalidOption`](crate::Error::InvalidOption).
        pub queue_limit: usize = 1024, Whole(1, 1 << 20);
        /// Whether beginnings that prompts have in common are computed once and shared.
        ///
        /// They are shared by all requests to this model. So whoever may send requests can find out whether another
        /// request began the same: by the time that it takes, and by [`Usage::cached_tokens`]. Where that must not be, give
        /// each tenant its own [`GenerateOptions::cache_salt`], or switch this off.
        ///
        /// [`Usage::cached_tokens`]: crate::Usage::cached_tokens
        /// [`GenerateOptions::cache_salt`]: crate::GenerateOptions::cache_salt
        pub prefix_cache: bool = true, Switch;
        /// Whether weights are copied out of the mapped file into memory of the process.
        ///
        /// Otherwise weights that need no conversion are used where they lie in the mapped file. A copy takes as long to
        /// load as reading the file, and processes do not share it. In return the file may be changed or deleted while the
        /// model lives, the system cannot drop the weights from memory, and they lie in huge pages where there are any,
        /// which is faster for several sequences at once. A CUDA device always has its own copy.
        pub copy_weights: bool = false, Switch;
        /// Most bytes that weights, KV cache and scratch may take together.
        ///
        /// If the machine has less available, that counts.
        pub memory_limit: Option<u64> = None, Bytes, "what the machine has available";
        /// Whether a model may have tensors that nothing reads, such as heads for other tasks.
        ///
        /// The log names them then. Otherwise they are an error, because a model computed without one of its norms, biases
        /// or adapters is another model.
        pub allow_unread_tensors: bool = false, Switch;
        /// Whether a mapped file that is truncated while in use is an error instead of the end of the process.
        ///
        /// Without it, reading past the new end of the file is a SIGBUS, which ends the process. With it, the requests of
        /// the model end with [`Error::InvalidFile`](crate::Error::InvalidFile). For that a handler of SIGBUS is installed
        /// once in a process, by the first load that asks for it. Faults outside of welm's maps go to the handler that was
        /// there before. It costs nothing until there is a fault. [`LoadOptions::copy_weights`] is the other way to make a
        /// loaded model independent of its file. Linux only; elsewhere this changes nothing.
        ///
        /// It cannot see that a file is changed without being truncated, or that it now ends within the same page.
        pub guard_mapped_files: bool = true, Switch;
        /// Called while weights are read or quantised, with the bytes that are ready and the bytes in all.
        pub progress: Option<ProgressFn> = None, Callback, "none";
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("LoadOptions");
        for (name, value) in self.texts() {
            shown.field(name, &format_args!("{}", value.as_deref().unwrap_or("None")));
        }
        shown.finish_non_exhaustive()
    }
}
