//! Loading: from files to a running engine, and what can be said of files without that.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::{Inner, Model};
use crate::backend::cpu::Cpu;
#[cfg(feature = "kernels")]
use crate::backend::cuda::Cuda;
use crate::backend::{Backend, Limits};
use crate::checkpoint::describe::Description;
use crate::checkpoint::load::Source;
use crate::checkpoint::open::{Opened, open};
use crate::config::ModelConfig;
use crate::engine::{BLOCK_BYTES, Engine, Handle, queue_bytes};
use crate::error::{Error, Result};
use crate::estimate::Estimate;
use crate::host;
use crate::host::bus::{self, Unblocked};
use crate::host::float::Usual;
use crate::host::memory::Available;
use crate::options::{Activations, Device, Dtype, LoadOptions};
use crate::tokenizer::Tokenizer;

/// The first device, if it can run this model as asked.
#[cfg(feature = "kernels")]
fn cuda_for(source: &Source, options: &LoadOptions) -> Result<welm_kernels::Device> {
    let device = welm_kernels::Device::open(0)?;
    plan(source, options, &device)?;
    Ok(device)
}

/// Memory of a device, if the model can run there as asked and fits; with the options, in which the tokens of a step are no
/// longer left open.
#[cfg(feature = "kernels")]
fn plan(
    source: &Source,
    options: &LoadOptions,
    device: &welm_kernels::Device,
) -> Result<(Estimate, LoadOptions)> {
    Cuda::check(&source.config, options)?;
    Estimate::on_device::<Cuda>(source, options, device.free_bytes()?)
}

#[cfg(not(feature = "kernels"))]
fn cuda_for(_source: &Source, _options: &LoadOptions) -> Result<std::convert::Infallible> {
    Err(no_cuda())
}

#[cfg(not(feature = "kernels"))]
fn no_cuda() -> Error {
    let reason = "this build has no CUDA backend; enable the feature `cuda`".into();
    Error::Unavailable { what: "cuda device".into(), reason }
}

/// The memory that a model takes on the CPU, where all of it is the process's own.
fn on_cpu(opened: &Opened, options: &LoadOptions) -> Result<Estimate> {
    let config = &opened.source.config;
    let mut estimate = Estimate::of_source::<Cpu>(&opened.source, options)?;
    let queues = queue_bytes(Limits::of::<Cpu>(config, options)?, config.vocab_size);
    estimate.scratch_bytes += queues as u64 + opened.tokenizer.as_ref().map_or(0, Tokenizer::bytes);
    Ok(estimate)
}

/// Has a mapped file that is truncated be an error, if that is wanted, and this thread compute as usual; while the result
/// lives.
fn guard(options: &LoadOptions) -> (Option<Unblocked>, Usual) {
    let unblocked = options.guard_mapped_files.then(|| {
        bus::install();
        Unblocked::here()
    });
    (unblocked, Usual::here())
}

impl Model {
    /// Loads a Hugging Face folder, an int8 folder of [`crate::quantize`], a GGUF file, or the one GGUF file of a folder.
    /// Nothing is downloaded.
    ///
    /// Files are mapped: they must not be changed while the model lives (see [`LoadOptions::guard_mapped_files`]). A folder
    /// without `tokenizer.json` and SentencePiece's `tokenizer.model` (or `spiece.model`, `tokenizer.model.v3`) gives a model
    /// that takes and returns tokens only.
    ///
    /// Everything in the files is used, or is known to have no effect, or is an error. Errors are settings that change
    /// the arithmetic in a way that is not implemented, and tensors that nothing reads
    /// ([`LoadOptions::allow_unread_tensors`]). Only a setting whose name nobody knows is a warning in the log. An
    /// output projection that is stored is used, whatever `tie_word_embeddings` says, as in transformers. If it is
    /// neither stored nor tied, that is an error. Norms, biases, rotary values and the scales of quantised weights must
    /// be finite. So must matrices of floats that are converted; those that are used where they lie in the file are not
    /// looked at before they are computed with.
    ///
    /// A text ends at the end tokens that `generation_config.json` names. If it names none, `config.json` counts, and then
    /// the tokenizer's files. For a GGUF file they are those of its metadata, and tokens with a name such as `<|eot_id|>`,
    /// at which llama.cpp ends, too.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InvalidFile`], [`Error::Config`] or [`Error::Tensor`] for files that are
    /// absent, damaged or not supported; [`Error::Tokenizer`]; [`Error::OutOfMemory`] before weights are read if they cannot
    /// fit, [`Error::Allocation`] if the system refuses memory; [`Error::InvalidOption`], [`Error::Unavailable`],
    /// [`Error::LoadCancelled`].
    pub fn load(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Model> {
        options.validate()?;
        let _guarded = guard(options);
        let (path, opened) = (path.as_ref(), open(path.as_ref(), true, options.allow_unread_tensors)?);
        match options.device {
            Device::Cpu => Self::load_on_cpu(path, opened, options),
            #[cfg(feature = "kernels")]
            Device::Cuda(ordinal) => {
                Self::load_on_cuda(path, opened, options, welm_kernels::Device::open(ordinal)?)
            }
            #[cfg(not(feature = "kernels"))]
            Device::Cuda(_) => Err(no_cuda()),
            Device::Auto => {
                match cuda_for(&opened.source, options) {
                    #[cfg(feature = "kernels")]
                    Ok(device) => {
                        tracing::info!(?device, "device: cuda");
                        return Self::load_on_cuda(path, opened, options, device);
                    }
                    #[cfg(not(feature = "kernels"))]
                    Ok(never) => match never {},
                    #[cfg(feature = "kernels")]
                    Err(error @ Error::InvalidOption { option: welm_kernels::device::NO_HOPPER, .. }) => {
                        return Err(error);
                    }
                    Err(reason) => tracing::info!(%reason, "device: cpu"),
                }
                Self::load_on_cpu(path, opened, options)
            }
        }
    }

    /// As [`Model::load`], on a device that the caller has opened; [`LoadOptions::device`] is not looked at.
    ///
    /// Clones of a device share one stream. So of the models that were loaded on clones of one device only one may compute at
    /// a time: what another one launches while a step is recorded would become a part of that step.
    ///
    /// # Errors
    /// As [`Model::load`].
    #[cfg(feature = "kernels")]
    pub fn load_on_device(
        path: impl AsRef<Path>,
        options: &LoadOptions,
        device: welm_kernels::Device,
    ) -> Result<Model> {
        Self::load_as(path, options, Some(device), |_| {})
    }

    /// As [`Model::load_on_device`], or without a device on the CPU, with what `change` makes of the configuration: for
    /// tests of what no family has yet.
    #[cfg(feature = "kernels")]
    #[doc(hidden)]
    pub fn load_as(
        path: impl AsRef<Path>,
        options: &LoadOptions,
        device: Option<welm_kernels::Device>,
        change: impl FnOnce(&mut ModelConfig),
    ) -> Result<Model> {
        options.validate()?;
        let _guarded = guard(options);
        let mut opened = open(path.as_ref(), true, options.allow_unread_tensors)?;
        change(&mut opened.source.config);
        opened.source.config.validate()?;
        match device {
            Some(device) => Self::load_on_cuda(path.as_ref(), opened, options, device),
            None => Self::load_on_cpu(path.as_ref(), opened, options),
        }
    }

    fn load_on_cpu(path: &Path, opened: Opened, options: &LoadOptions) -> Result<Model> {
        if options.activations == Activations::Int8Rotated {
            let reason = "expected auto, int8 or int16 on the cpu, got int8_rotated, which is for cuda";
            return Err(Error::option("activations", reason));
        }
        let estimate = on_cpu(&opened, options)?;
        host::memory::give_back(); // what reading the files took for a while
        let available = Available::now();
        // The tokenizer is there already.
        let taken = opened.tokenizer.as_ref().map_or(0, Tokenizer::bytes);
        let left = available.memory.map(|left| left.saturating_add(taken));
        let memory = [options.memory_limit, left].into_iter().flatten().min();
        estimate.check(Available { memory, ..available }, BLOCK_BYTES as u64)?;
        Self::start(path, opened, options, estimate, |config, limits| Cpu::new(config, options, limits))
    }

    #[cfg(feature = "kernels")]
    fn load_on_cuda(
        path: &Path,
        opened: Opened,
        options: &LoadOptions,
        device: welm_kernels::Device,
    ) -> Result<Model> {
        let (estimate, options) = &plan(&opened.source, options, &device)?;
        if opened.source.is_rotated() {
            tracing::warn!(
                "int8 weights in rotated groups of 128 are rounded once more, to what cuda computes with"
            );
        }
        Self::start(path, opened, options, *estimate, |config, limits| {
            Cuda::new(device, config, options, limits)
        })
    }

    /// Loads everything onto a backend and starts its engine.
    fn start<B: Backend>(
        path: &Path,
        Opened { source, tokenizer, chat }: Opened,
        options: &LoadOptions,
        estimate: Estimate,
        backend: impl FnOnce(&ModelConfig, Limits) -> Result<B>,
    ) -> Result<Model> {
        let config = source.config.clone();
        if source.is_packed() && matches!(options.dtype, Dtype::F32 | Dtype::Bf16) {
            tracing::warn!(asked = %options.dtype, "the weights of an int8 folder stay int8");
        }
        let (tokens, rows) = (tokenizer.as_ref().map_or(0, Tokenizer::vocab_size), config.vocab_size);
        if tokens > rows {
            // A prompt that holds such a token is refused; the others are not the poorer for it.
            tracing::warn!(tokens, rows, "the tokenizer knows tokens that the model has no row for");
        }
        let limits = Limits::of::<B>(&config, options)?;
        let short =
            config.ropes.iter().find_map(|rope| rope.unstretched_in_transformers(limits.rope_context));
        if let Some(short) = short {
            tracing::warn!(
                context_tokens = limits.rope_context,
                short,
                "the rotary embedding is stretched for all texts; transformers does not stretch it for a text of at most \
                 `short` tokens, and with context_tokens of so many, neither does this"
            );
        }
        let started = Instant::now();
        let tokenizer = tokenizer.map(Arc::new);
        let backend = backend(&config, limits)?;
        let engine = Engine::load(backend, &source, &config, tokenizer.clone(), limits, options)?;
        let description = engine.backend.describe();
        tracing::info!(
            path = %path.display(), family = config.family, parameters = config.n_params(),
            weights_bytes = estimate.mapped_bytes + estimate.converted_bytes,
            cache_bytes = estimate.cache_bytes, scratch_bytes = estimate.scratch_bytes,
            chunk_tokens = limits.chunk_tokens,
            backend = description, seconds = started.elapsed().as_secs_f64(), "model loaded"
        );
        // What reading the files took for a while.
        host::memory::give_back();
        let engine = Handle::start(engine, options)?;
        let prefix_cache = options.prefix_cache;
        Ok(Model {
            inner: Arc::new(Inner { engine, tokenizer, chat, config, estimate, description, prefix_cache }),
        })
    }

    /// What the files of a model hold, and if [`Model::load`] would refuse them, why. Of the weights it reads norms and biases,
    /// and an output projection that is stored although the settings tie it to the embedding.
    ///
    /// ```
    /// # fn main() -> welm_core::Result<()> {
    /// let files = welm_core::Model::describe("../examples/welm-nano")?;
    /// assert_eq!(files.family.as_deref(), Some("welm"));
    /// assert_eq!(files.unsupported, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::InvalidFile`] for files that are absent, damaged or no model's.
    pub fn describe(path: impl AsRef<Path>) -> Result<Description> {
        let _guarded = guard(&LoadOptions::default());
        Description::of(path.as_ref())
    }

    /// The memory that [`Model::load`] with these options would take, computed from the headers of the files and from the
    /// tokenizer.
    ///
    /// With [`Device::Cuda`] it is memory of a GPU, which need not be present. Otherwise it is memory of the CPU. It assumes
    /// that there is room for prompt steps of the size asked for, or of the default size ([`LoadOptions::chunk_tokens`]).
    ///
    /// One tensor may be read: an output projection that is stored although the settings tie it to the embedding. It
    /// is compared with the embedding, and counted if it differs.
    ///
    /// # Errors
    /// As [`Model::load`], without the ones about memory and about what the machine can compute.
    pub fn estimate(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Estimate> {
        options.validate()?;
        let _guarded = guard(options);
        let on_host = !matches!(options.device, Device::Cuda(_));
        let opened = open(path.as_ref(), on_host, options.allow_unread_tensors)?;
        opened.source.files().check()?; // what was read of them
        match options.device {
            #[cfg(feature = "kernels")]
            Device::Cuda(_) => {
                Cuda::check(&opened.source.config, options)?;
                Estimate::of_source::<Cuda>(&opened.source, options)
            }
            #[cfg(not(feature = "kernels"))]
            Device::Cuda(_) => Err(no_cuda()),
            Device::Auto | Device::Cpu => on_cpu(&opened, options),
        }
    }
}
