//! A step's keys and values on their way into the paged cache.
//!
//! A block's keys lie transposed, sixteen tokens side by side for each dimension; its values lie as rows.

use std::ops::Range;

use half::{bf16, f16};

use crate::batch::{BLOCK_TOKENS, BatchRows};
use crate::disjoint::Disjoint;
use crate::isa::{Isa, Kernel, LANES, Simd};
use crate::linear::{Element, load_at};
use crate::norm::{Norm, norm_in_place};
use crate::rope::Angles;

/// A float type that the cache stores.
pub trait CacheElement: Element {
    /// Writes 16 values, rounded to nearest even. What is too large for f16 becomes NaN, because an infinite key may give a
    /// score of minus infinity: its token would be ignored in silence. (No finite value of a model is too large for bf16.)
    ///
    /// # Safety
    /// As [`Simd::store`].
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V);
    /// Writes rows to the cache.
    ///
    /// # Safety
    /// The rows and their slots are this task's alone.
    unsafe fn cache(rows: CacheRows<Self>, isa: Isa);
}

impl CacheElement for f32 {
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f32, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store(p, v) }
    }
    unsafe fn cache(rows: CacheRows<f32>, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(rows) }
    }
}

impl CacheElement for bf16 {
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut bf16, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store_bf16(p, v) }
    }
    unsafe fn cache(rows: CacheRows<bf16>, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(rows) }
    }
}

impl CacheElement for f16 {
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f16, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe {
            // Infinite for values above 65,512, half way between the largest f16 and the first value that is rounded to
            // infinity. So the difference is NaN for them, and 0 for all others.
            let scaled = S::mul(v, S::splat(f32::MAX / 65_512.0));
            S::store_f16(p, S::add(v, S::sub(scaled, scaled)))
        }
    }
    unsafe fn cache(rows: CacheRows<f16>, isa: Isa) {
        // SAFETY: the caller's promise.
        unsafe { isa.dispatch(rows) }
    }
}

/// The heads of a model.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Query heads that share a key/value head.
    pub fn group(self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The index at which a key/value head's part of a block starts; the same for keys and values.
    #[inline(always)]
    pub fn start(self, block: usize, kv_head: usize) -> usize {
        (block * self.n_kv_heads + kv_head) * BLOCK_TOKENS * self.head_dim
    }

    /// Columns of a row that has q, k and v side by side.
    pub fn cols(self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }
}

/// What is normalised of q and of k.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOf {
    /// Each head, before it is turned.
    Head,
    /// Each head, after it is turned.
    TurnedHead,
    /// All heads of a token together, before they are turned.
    AllHeads,
}

/// For some rows: normalises q and k if the layer has norms, turns them by the rotary embedding if it has one, both in
/// place, and writes k and v to their slots. Implements [`Kernel`].
///
/// The rows of one task should be neighbours, because their keys lie in the same cache lines.
pub struct CacheRows<'a, T> {
    pub rows: Range<usize>,
    pub qkv: &'a Disjoint<'a, f32>, // (n, Heads::cols); only this task uses `rows`
    pub k: &'a Disjoint<'a, T>,     // as in `Pages`; only this task uses the slots of `rows`
    pub v: &'a Disjoint<'a, T>,     // the same
    pub heads: Heads,
    pub rope: Option<Angles<'a>>,
    pub norms: Option<(NormOf, [Norm<'a>; 2])>, // of q and of k
    pub batch: BatchRows<'a>,
}

impl<T: CacheElement> Kernel for CacheRows<'_, T> {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Heads { n_heads, n_kv_heads, head_dim: d } = self.heads;
        let cols = self.heads.cols();
        for r in self.rows.clone() {
            // SAFETY: the row is this task's.
            let turned = unsafe { self.qkv.slice(r * cols, (n_heads + n_kv_heads) * d) };
            let (q, k) = turned.split_at_mut(n_heads * d);
            for (heads, is_k) in [(q, false), (k, true)] {
                let norm_if = |kind: NormOf, values: &mut [f32]| {
                    if let Some((_, norms)) = self.norms.filter(|&(of, _)| of == kind) {
                        // SAFETY: the instructions are there.
                        unsafe { norm_in_place::<S>(values, norms[usize::from(is_k)]) };
                    }
                };
                norm_if(NormOf::AllHeads, heads);
                for head in heads.chunks_exact_mut(d) {
                    norm_if(NormOf::Head, head);
                    if let Some(angles) = self.rope {
                        angles.turn(r, head);
                    }
                    norm_if(NormOf::TurnedHead, head);
                }
            }
        }
        for kv_head in 0..n_kv_heads {
            for r in self.rows.clone() {
                let slot = self.batch.slot_mapping[r] as usize;
                let start = self.heads.start(slot / BLOCK_TOKENS, kv_head);
                let offset = slot % BLOCK_TOKENS;
                // SAFETY: the row and its slot are this task's; vectors are stored to arrays of 16 values.
                unsafe {
                    let k = &*self.qkv.slice(r * cols + (n_heads + kv_head) * d, d);
                    let v = &*self.qkv.slice(r * cols + (n_heads + n_kv_heads + kv_head) * d, d);
                    let v_slot = self.v.slice(start + offset * d, d);
                    let mut lanes = [T::ZERO; LANES];
                    for i in (0..d).step_by(LANES) {
                        let n = LANES.min(d - i);
                        T::store::<S>(lanes.as_mut_ptr(), load_at::<S, f32>(k, i));
                        for (j, &x) in lanes[..n].iter().enumerate() {
                            self.k.slice(start + (i + j) * BLOCK_TOKENS + offset, 1)[0] = x;
                        }
                        T::store::<S>(lanes.as_mut_ptr(), load_at::<S, f32>(v, i));
                        v_slot[i..i + n].copy_from_slice(&lanes[..n]);
                    }
                }
            }
        }
    }
}
