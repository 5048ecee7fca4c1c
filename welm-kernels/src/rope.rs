//! Rotary position embedding and the write to the paged cache (`cuda/rope.cu`).

use half::bf16;

use crate::attention::BLOCK_KEYS;
use crate::device::{Buffer, Device};
use crate::driver::{Grid, Kernel, Ptr};
use crate::error::{Result, expect};

/// Heads that a block of threads computes.
const WARPS: u32 = 4;

/// Which two columns of a head are rotated as a pair, of `n` pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + n`.
    HalfSplit,
    /// `2 i` and `2 i + 1`.
    Interleaved,
}

/// The heads of a row, and what happens to them.
#[derive(Debug, Clone, Copy)]
pub struct Rope<'a> {
    /// Query heads.
    pub n_heads: usize,
    /// Heads of keys, and of values.
    pub n_kv_heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
    /// Columns of a head that are rotated, from the first on; even, and 0 for none.
    pub rotary_dim: usize,
    /// Which of them are rotated as pairs.
    pub pairing: Pairing,
    /// `(head_dim)`: weight of an rmsnorm of q before it is rotated.
    pub q_norm: Option<&'a Buffer<f32>>,
    /// `(head_dim)`: weight of an rmsnorm of k before it is rotated.
    pub k_norm: Option<&'a Buffer<f32>>,
    /// Added to the mean of the squares in these norms.
    pub eps: f32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct RopeParams {
    qkv: Ptr,
    k: Ptr,
    v: Ptr,
    cos: Ptr,
    sin: Ptr,
    slot_mapping: Ptr,
    q_norm: Ptr,
    k_norm: Ptr,
    stride: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    n_pairs: u32,
    n_slots: u32,
    interleaved: u32,
    eps: f32,
}

/// Rotates q of `n` rows of `qkv`, `(n, stride)`, in place, and writes rotated k, and v, to the cache.
///
/// A row is `n_heads` heads of q, `n_kv_heads` of k and `n_kv_heads` of v, `head_dim` columns each; its k and
/// v stay as they are, as do further columns. `cos` and `sin` are `(n, rotary_dim / 2)`. `k` and `v` are
/// `(n_blocks, n_kv_heads, 16, head_dim)`. Row `i` goes to slot `slot_mapping[i]`, that is `block * 16 + offset`. If
/// that slot is outside of the cache, k and v of the row are not written. No two rows may have the same slot.
///
/// # Errors
/// [`Error::Shape`](crate::error::Error::Shape) for a buffer that is too short, a row that does not hold the
/// heads, a `rotary_dim` that is odd or exceeds `head_dim`, a norm that is not `(head_dim)`, or caches that
/// are not whole blocks or differ in size; [`Error::Driver`](crate::error::Error::Driver),
/// [`Error::ContextLost`](crate::error::Error::ContextLost).
pub fn rope_and_cache(
    device: &Device,
    rope: &Rope,
    qkv: &mut Buffer<bf16>,
    stride: usize,
    n: usize,
    cos: &Buffer<f32>,
    sin: &Buffer<f32>,
    slot_mapping: &Buffer<u32>,
    k: &mut Buffer<bf16>,
    v: &mut Buffer<bf16>,
) -> Result<()> {
    const OPERATION: &str = "rope_and_cache";
    let Rope { n_heads, n_kv_heads, head_dim, rotary_dim, .. } = *rope;
    let heads = [n_heads, n_kv_heads, head_dim];
    let fit = heads.into_iter().all(|x| (1..=1 << 16).contains(&x));
    expect(fit, OPERATION, "heads", "n_heads, n_kv_heads, head_dim of 1 to 65536", format!("{heads:?}"))?;
    let turns = rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim;
    expect(turns, OPERATION, "rotary_dim", format!("even, up to {head_dim}"), rotary_dim)?;
    let n_all_heads = n_heads + 2 * n_kv_heads;
    let columns = n_all_heads * head_dim;
    expect(stride >= columns, OPERATION, "stride", format!("at least {columns}"), stride)?;
    let n_pairs = rotary_dim / 2;
    let lengths = [(qkv.len(), stride, "qkv"), (cos.len(), n_pairs, "cos"), (sin.len(), n_pairs, "sin")];
    for (len, cols, operand) in lengths.into_iter().chain([(slot_mapping.len(), 1, "slot_mapping")]) {
        let enough = n.checked_mul(cols).is_some_and(|need| need <= len);
        expect(enough, OPERATION, operand, format!("{n} rows of {cols}"), len)?;
    }
    for (norm, operand) in [(rope.q_norm, "q_norm"), (rope.k_norm, "k_norm")] {
        let len = norm.map_or(head_dim, Buffer::len);
        expect(len == head_dim, OPERATION, operand, head_dim, len)?;
    }
    let block = n_kv_heads * BLOCK_KEYS * head_dim;
    expect(k.len().is_multiple_of(block), OPERATION, "k", format!("blocks of {block}"), k.len())?;
    expect(v.len() == k.len(), OPERATION, "v", k.len(), v.len())?;
    let n_slots = k.len() / block * BLOCK_KEYS;
    let sizes = [n, stride, n_slots];
    let fit = sizes.into_iter().all(|x| i32::try_from(x).is_ok());
    expect(fit, OPERATION, "sizes", "within 31 bits", format!("{sizes:?}"))?;
    if n == 0 {
        return Ok(());
    }
    let params = RopeParams {
        qkv: qkv.ptr(),
        k: k.ptr(),
        v: v.ptr(),
        cos: cos.ptr(),
        sin: sin.ptr(),
        slot_mapping: slot_mapping.ptr(),
        q_norm: rope.q_norm.map_or(0, Buffer::ptr),
        k_norm: rope.k_norm.map_or(0, Buffer::ptr),
        stride: stride as u32,
        n_heads: n_heads as u32,
        n_kv_heads: n_kv_heads as u32,
        head_dim: head_dim as u32,
        n_pairs: n_pairs as u32,
        n_slots: n_slots as u32,
        interleaved: (rope.pairing == Pairing::Interleaved).into(),
        eps: rope.eps,
    };
    let blocks = [n as u32, (n_all_heads as u32).div_ceil(WARPS), 1];
    let kernel = Kernel { file: "rope", name: "rope_and_cache" };
    // SAFETY: the lengths are checked above; the kernel bounds the slots.
    unsafe { device.launch(kernel, Grid { blocks, threads: 32 * WARPS, shared_bytes: 0 }, &params) }
}
