//! Logits to tokens (`cuda/sample.cu`).
//!
//! Of equal logits the lower token comes first. [`top_k`] returns NaN and +inf as the largest f32, so that the reader of
//! the candidates can see them. [`argmax`] never takes NaN. A row of only -inf gives token 0.

use bytemuck::{Pod, Zeroable};

use crate::device::{Buffer, Device};
use crate::driver::{Grid, Kernel, Ptr};
use crate::error::{Result, expect};

/// Most candidates that [`top_k`] finds.
pub const MAX_TOP_K: usize = 64;
/// Largest vocabulary of [`top_k`].
pub const MAX_VOCAB: usize = 1 << 20;
/// The id where a row has fewer candidates than `k`.
pub const NO_TOKEN: u32 = u32::MAX;
/// Logits of a block of [`top_k`].
const CHUNK: usize = 8_192;
const THREADS: u32 = 512;
/// `struct Shared` of `sample.cu`.
const SHARED_BYTES: u32 = 64 * 8 + 4 * 16 * 4 + 2 * 16 * 4;

/// The largest logits of up to `max_rows` rows, and memory to find them.
#[derive(Debug)]
pub struct TopK {
    k: usize,
    max_rows: usize,
    max_vocab: usize,
    values: Buffer<f32>,   // (max_rows, k)
    ids: Buffer<u32>,      // (max_rows, k)
    log_sums: Buffer<f32>, // (max_rows)
    keys: Buffer<u32>,     // (max_rows, n_chunks, k, 2)
    maxima: Buffer<f32>,   // (max_rows, n_chunks)
    sums: Buffer<f32>,     // (max_rows, n_chunks)
}

impl TopK {
    /// Room for the `k` largest of rows of up to `max_vocab` logits.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) unless `k` is in `1..=64` and `max_vocab` in
    /// `1..=1048576`; [`Error::OutOfMemory`](crate::error::Error::OutOfMemory), and what the driver reports.
    pub fn new(device: &Device, max_rows: usize, max_vocab: usize, k: usize) -> Result<TopK> {
        const OPERATION: &str = "TopK::new";
        expect((1..=MAX_TOP_K).contains(&k), OPERATION, "k", "1 to 64", k)?;
        let fits = (1..=MAX_VOCAB).contains(&max_vocab);
        expect(fits, OPERATION, "max_vocab", format!("1 to {MAX_VOCAB}"), max_vocab)?;
        let fits = max_rows <= 1 << 20;
        expect(fits, OPERATION, "max_rows", "at most 1048576", max_rows)?;
        let n_chunks = max_vocab.div_ceil(CHUNK);
        Ok(TopK {
            k,
            max_rows,
            max_vocab,
            values: device.zeros(max_rows * k)?,
            ids: device.zeros(max_rows * k)?,
            log_sums: device.zeros(max_rows)?,
            keys: device.uninit(max_rows * n_chunks * k * 2)?,
            maxima: device.uninit(max_rows * n_chunks)?,
            sums: device.uninit(max_rows * n_chunks)?,
        })
    }

    /// Bytes on the device that [`TopK::new`] allocates.
    pub fn bytes(max_rows: usize, max_vocab: usize, k: usize) -> u64 {
        let n_chunks = max_vocab.div_ceil(CHUNK);
        (max_rows * (8 * k + 4 + n_chunks * (8 * k + 8))) as u64
    }

    /// Candidates of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// `(max_rows, k)`: the logits, descending; -inf where a row has fewer.
    pub fn values(&self) -> &Buffer<f32> {
        &self.values
    }

    /// `(max_rows, k)`: their tokens; [`NO_TOKEN`] where a row has fewer.
    pub fn ids(&self) -> &Buffer<u32> {
        &self.ids
    }

    /// `(max_rows)`: the logarithm of the sum of the exponentials of all logits of a row, so that
    /// `value - log_sum` is the logarithm of a probability.
    pub fn log_sums(&self) -> &Buffer<f32> {
        &self.log_sums
    }
}

/// How a token is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Sampling {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Keeps the fewest of the largest whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the `k` candidates; 0 keeps all.
    pub top_k: u32,
    /// A random number in `[0, 1)`.
    pub uniform: f32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct ArgmaxParams {
    logits: Ptr,
    tokens: Ptr,
    vocab: u32,
    reserved: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct TopKParams {
    logits: Ptr,
    keys: Ptr,
    maxima: Ptr,
    sums: Ptr,
    values: Ptr,
    ids: Ptr,
    log_sums: Ptr,
    vocab: u32,
    n_chunks: u32,
    k: u32,
    reserved: u32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SampleParams {
    values: Ptr,
    ids: Ptr,
    sampling: Ptr,
    tokens: Ptr,
    n_rows: u32,
    k: u32,
}

/// Checks `n` rows of `vocab` logits.
fn check_logits(operation: &'static str, logits: &Buffer<f32>, n: usize, vocab: usize) -> Result<()> {
    let fits = vocab > 0 && i32::try_from(vocab).is_ok() && i32::try_from(n).is_ok();
    expect(fits, operation, "sizes", "more than 0, within 31 bits", format!("{n}, {vocab}"))?;
    let enough = n.checked_mul(vocab).is_some_and(|need| need <= logits.len());
    expect(enough, operation, "logits", format!("{n} rows of {vocab}"), logits.len())
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SoftCapParams {
    logits: Ptr,
    len: u64,
    cap: f32,
    reserved: u32,
}

/// Replaces each logit `l` of `n` rows of `logits`, `(n, vocab)`, by `cap * tanh(l / cap)`.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for a buffer that is too short, no vocabulary, a cap that is not more
/// than 0, or more than 2^41 logits; [`Error::Driver`](crate::error::Error::Driver),
/// [`Error::ContextLost`](crate::error::Error::ContextLost).
pub fn soft_cap(device: &Device, logits: &mut Buffer<f32>, n: usize, vocab: usize, cap: f32) -> Result<()> {
    const OPERATION: &str = "soft_cap";
    check_logits(OPERATION, logits, n, vocab)?;
    expect(cap > 0.0 && cap.is_finite(), OPERATION, "cap", "more than 0", cap)?;
    let blocks = (n * vocab).div_ceil(1024);
    expect(i32::try_from(blocks).is_ok(), OPERATION, "logits", "at most 2^41", n * vocab)?;
    if n == 0 {
        return Ok(());
    }
    let params = SoftCapParams { logits: logits.ptr(), len: (n * vocab) as u64, cap, reserved: 0 };
    let grid = Grid { blocks: [blocks as u32, 1, 1], threads: 256, shared_bytes: 0 };
    // SAFETY: the length is checked above.
    unsafe { device.launch(Kernel { file: "sample", name: "soft_cap" }, grid, &params) }
}

/// The token of the largest logit of each of `n` rows of `logits`, `(n, vocab)`, to `tokens`, `(n)`.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for a buffer that is too short, or no vocabulary;
/// [`Error::Driver`](crate::error::Error::Driver),
/// [`Error::ContextLost`](crate::error::Error::ContextLost).
pub fn argmax(
    device: &Device,
    logits: &Buffer<f32>,
    n: usize,
    vocab: usize,
    tokens: &mut Buffer<u32>,
) -> Result<()> {
    const OPERATION: &str = "argmax";
    check_logits(OPERATION, logits, n, vocab)?;
    expect(tokens.len() >= n, OPERATION, "tokens", n, tokens.len())?;
    if n == 0 {
        return Ok(());
    }
    let params =
        ArgmaxParams { logits: logits.ptr(), tokens: tokens.ptr(), vocab: vocab as u32, reserved: 0 };
    let grid = Grid { blocks: [n as u32, 1, 1], threads: 1024, shared_bytes: 32 * 8 };
    // SAFETY: the lengths are checked above.
    unsafe { device.launch(Kernel { file: "sample", name: "argmax" }, grid, &params) }
}

/// Finds the largest logits of each of `n` rows of `logits`, `(n, vocab)`, and the logarithm of the sum of the
/// exponentials of all logits of the row.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for a buffer that is too short, or more rows or logits than
/// `top` has room for; [`Error::Driver`](crate::error::Error::Driver),
/// [`Error::ContextLost`](crate::error::Error::ContextLost).
pub fn top_k(device: &Device, logits: &Buffer<f32>, n: usize, vocab: usize, top: &mut TopK) -> Result<()> {
    const OPERATION: &str = "top_k";
    check_logits(OPERATION, logits, n, vocab)?;
    expect(n <= top.max_rows, OPERATION, "rows", format!("at most {}", top.max_rows), n)?;
    expect(vocab <= top.max_vocab, OPERATION, "vocab", format!("at most {}", top.max_vocab), vocab)?;
    if n == 0 {
        return Ok(());
    }
    let n_chunks = vocab.div_ceil(CHUNK) as u32;
    let params = TopKParams {
        logits: logits.ptr(),
        keys: top.keys.ptr(),
        maxima: top.maxima.ptr(),
        sums: top.sums.ptr(),
        values: top.values.ptr(),
        ids: top.ids.ptr(),
        log_sums: top.log_sums.ptr(),
        vocab: vocab as u32,
        n_chunks,
        k: top.k as u32,
        reserved: 0,
    };
    let grid = |chunks| Grid { blocks: [n as u32, chunks, 1], threads: THREADS, shared_bytes: SHARED_BYTES };
    let chunks = Kernel { file: "sample", name: "top_k_chunks" };
    // SAFETY: the length of logits is checked above, and the others are those of `TopK::new`.
    unsafe { device.launch(chunks, grid(n_chunks), &params)? };
    let merge = Kernel { file: "sample", name: "top_k_merge" };
    // SAFETY: as above.
    unsafe { device.launch(merge, grid(1), &params) }
}

/// Draws a token for each of `n` rows from the candidates that [`top_k`] found: row `i` as `sampling[i]`
/// says, to `tokens[i]`. Probabilities are relative to the candidates that `top_k` of [`Sampling`] keeps.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for a buffer that is too short;
/// [`Error::Driver`](crate::error::Error::Driver),
/// [`Error::ContextLost`](crate::error::Error::ContextLost).
pub fn sample_top(
    device: &Device,
    top: &TopK,
    n: usize,
    sampling: &Buffer<Sampling>,
    tokens: &mut Buffer<u32>,
) -> Result<()> {
    const OPERATION: &str = "sample_top";
    expect(n <= top.max_rows, OPERATION, "rows", format!("at most {}", top.max_rows), n)?;
    expect(sampling.len() >= n, OPERATION, "sampling", n, sampling.len())?;
    expect(tokens.len() >= n, OPERATION, "tokens", n, tokens.len())?;
    if n == 0 {
        return Ok(());
    }
    let params = SampleParams {
        values: top.values.ptr(),
        ids: top.ids.ptr(),
        sampling: sampling.ptr(),
        tokens: tokens.ptr(),
        n_rows: n as u32,
        k: top.k as u32,
    };
    let grid = Grid { blocks: [n.div_ceil(4) as u32, 1, 1], threads: 128, shared_bytes: 0 };
    // SAFETY: the lengths are checked above, and those of `top` by `TopK::new`.
    unsafe { device.launch(Kernel { file: "sample", name: "sample_top" }, grid, &params) }
}
