//! The paged KV cache of one layer, and the kernel that writes a step's keys and values into it.
//!
//! The keys of a block are transposed: for each dimension, those of sixteen tokens lie side by side. A vector then has
//! the scores of sixteen keys, summed over the dimensions without a sum across lanes. The values of a block are rows,
//! because an attention output is a weighted sum of such rows. So a token's key is written one element at a time (two
//! or four bytes), but only once; all later tokens read it as whole vectors.

use std::ops::Range;

use half::bf16;

use super::Norm;
use super::linear::{Element, load_at};
use super::norm::norm_in_place;
use super::pool::Disjoint;
use super::rope::Angles;
use crate::batch::{BLOCK_TOKENS, Batch};
use crate::config::{ModelConfig, QkNorm, RopePairing};
use crate::error::Result;
use crate::isa::{Kernel, LANES, Simd};
use crate::memory::Memory;

const _: () = assert!(BLOCK_TOKENS == LANES, "a vector of scores is a block's keys");

/// A float type that the cache stores.
pub(crate) trait CacheElement: Element {
    /// Writes 16 values, rounded to nearest even.
    ///
    /// # Safety
    /// As [`Simd::store`].
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V);
}

impl CacheElement for f32 {
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f32, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store(p, v) }
    }
}

impl CacheElement for bf16 {
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut bf16, v: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store_bf16(p, v) }
    }
}

/// Keys and values of one layer.
pub(crate) struct Pages<T> {
    k: Memory<T>, // (n_blocks, n_kv_heads, head_dim, BLOCK_TOKENS)
    v: Memory<T>, // (n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim)
}

impl<T: Element> Pages<T> {
    /// A cache of zeros with `len` key elements and `len` value elements.
    ///
    /// # Errors
    /// If the system does not have that much memory.
    pub(crate) fn new(len: usize) -> Result<Self> {
        Ok(Pages { k: Memory::zeroed(len, "keys and values")?, v: Memory::zeroed(len, "keys and values")? })
    }

    /// The keys, `(n_blocks, n_kv_heads, head_dim, BLOCK_TOKENS)`, and the values,
    /// `(n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim)`.
    pub(crate) fn both(&self) -> (&[T], &[T]) {
        (&self.k, &self.v)
    }

    /// The same as [`Pages::both`], mutable.
    pub(crate) fn both_mut(&mut self) -> (&mut [T], &mut [T]) {
        (&mut self.k, &mut self.v)
    }

    /// Copies block `from` over block `to`. A block has `len` key elements and `len` value elements.
    pub(crate) fn copy_block(&mut self, from: u32, to: u32, len: usize) {
        let from = from as usize * len;
        self.k.copy_within(from..from + len, to as usize * len);
        self.v.copy_within(from..from + len, to as usize * len);
    }
}

/// The attention heads of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
}

impl Heads {
    /// The heads of the model with this configuration.
    pub(crate) fn of(config: &ModelConfig) -> Heads {
        Heads { n_heads: config.n_heads, n_kv_heads: config.n_kv_heads, head_dim: config.head_dim }
    }

    /// Query heads that share a key/value head.
    pub(crate) fn group(self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The index at which a key/value head's part of a block starts; the same for keys and values.
    #[inline(always)]
    pub(crate) fn start(self, block: usize, kv_head: usize) -> usize {
        (block * self.n_kv_heads + kv_head) * BLOCK_TOKENS * self.head_dim
    }

    /// Columns of a row that has q, k and v side by side.
    pub(crate) fn cols(self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }
}

/// For some rows: normalises q and k if the layer has norms, turns them by the rotary embedding if it has one, both in
/// place, and writes k and v to their slots. Implements [`Kernel`].
///
/// The rows of one task should be neighbours, because their keys lie in the same cache lines.
pub(crate) struct CacheRows<'a, T> {
    pub(crate) rows: Range<usize>,
    pub(crate) qkv: &'a Disjoint<'a, f32>, // (n, Heads::cols); only this task uses `rows`
    pub(crate) k: &'a Disjoint<'a, T>,     // as in `Pages`; only this task uses the slots of `rows`
    pub(crate) v: &'a Disjoint<'a, T>,     // the same
    pub(crate) heads: Heads,
    pub(crate) rope: Option<(&'a Angles, RopePairing)>,
    pub(crate) norms: Option<(QkNorm, &'a [Norm; 2])>, // of q and of k
    pub(crate) batch: &'a Batch,
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
                let norm_if = |kind: QkNorm, values: &mut [f32]| {
                    if let Some((_, norms)) = self.norms.filter(|&(of, _)| of == kind) {
                        // SAFETY: the instructions are there.
                        unsafe { norm_in_place::<S>(values, &norms[usize::from(is_k)]) };
                    }
                };
                norm_if(QkNorm::AllHeads, heads);
                for head in heads.chunks_exact_mut(d) {
                    norm_if(QkNorm::Head, head);
                    if let Some((angles, pairing)) = self.rope {
                        angles.turn(r, head, pairing);
                    }
                    norm_if(QkNorm::TurnedHead, head);
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

#[cfg(test)]
mod tests {
    use super::super::norm::NormRow;
    use super::*;
    use crate::isa::Isa;

    fn check<T: CacheElement + PartialEq + std::fmt::Debug>(d: usize, round: impl Fn(f32) -> T) {
        let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: d };
        let (cols, n_blocks) = (heads.cols(), 4);
        let mut batch = Batch::default();
        batch.push_prompt(&[1; 20], 14, &[3, 0, 2]);
        batch.push_generated(&[1], 5, &[1]);
        let n = batch.len();
        let hash = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 9) % 1_000;
        let rows: Vec<f32> = (0..n * cols).map(|i| hash(i) as f32 / 300.0 - 1.5).collect();
        let mut angles = Angles::new(vec![1.0, 0.3, 0.01], 1.0, n);
        angles.fill(&batch.positions);
        let norm_of = |seed: usize, len: usize| {
            let weight = (0..len).map(|i| hash(seed + i) as f32 / 500.0).collect();
            Norm { weight, bias: None, eps: 1e-5 }
        };
        let both = [norm_of(7, d), norm_of(100, d)];
        let pairings = [RopePairing::HalfSplit, RopePairing::Interleaved];
        for isa in Isa::all() {
            let kinds = [None, Some(QkNorm::Head), Some(QkNorm::TurnedHead), Some(QkNorm::AllHeads)];
            let cases = pairings.into_iter().map(Some).chain([None]);
            for (pairing, kind) in cases.flat_map(|p| kinds.map(|kind| (p, kind))) {
                let rope = pairing.map(|pairing| (&angles, pairing));
                let wide = [4, 2].map(|heads| norm_of(7 + heads, heads * d));
                let norms = kind.map(|kind| (kind, if kind == QkNorm::AllHeads { &wide } else { &both }));
                let mut qkv = rows.clone();
                let mut pages: Pages<T> = Pages::new(n_blocks * heads.start(1, 0)).unwrap();
                {
                    let (k, v) = pages.both_mut();
                    let (qkv, k, v) = (Disjoint::new(&mut qkv), Disjoint::new(k), Disjoint::new(v));
                    for rows in [0..3, 3..n] {
                        let (qkv, k, v, batch) = (&qkv, &k, &v, &batch);
                        // SAFETY: one after the other.
                        unsafe { isa.dispatch(CacheRows { rows, qkv, k, v, heads, rope, norms, batch }) };
                    }
                }
                let (k, v) = pages.both();
                let mut written = 0;
                for r in 0..n {
                    let mut row = rows[r * cols..(r + 1) * cols].to_vec();
                    let normed = |values: &mut [f32], norm: &Norm| {
                        let before = values.to_vec();
                        // SAFETY: slices of one length.
                        unsafe { isa.dispatch(NormRow { x: &before, norm, out: values }) };
                    };
                    let heads_normed = |row: &mut [f32], if_kind: QkNorm| {
                        for (h, head) in
                            row[..6 * d].chunks_mut(d).enumerate().filter(|_| kind == Some(if_kind))
                        {
                            normed(head, &both[usize::from(h >= 4)]);
                        }
                    };
                    if kind == Some(QkNorm::AllHeads) {
                        normed(&mut row[..4 * d], &wide[0]);
                        normed(&mut row[4 * d..6 * d], &wide[1]);
                    }
                    heads_normed(&mut row, QkNorm::Head);
                    if let Some((angles, pairing)) = rope {
                        row[..6 * d].chunks_mut(d).for_each(|head| angles.turn(r, head, pairing));
                    }
                    heads_normed(&mut row, QkNorm::TurnedHead);
                    assert_eq!(qkv[r * cols..(r + 1) * cols], row, "{} row {r}", isa.name());
                    let slot = batch.slot_mapping[r] as usize;
                    for (kv_head, i) in (0..2).flat_map(|h| (0..d).map(move |i| (h, i))) {
                        let start = heads.start(slot / 16, kv_head);
                        let at = |heads: usize| round(row[(heads + kv_head) * d + i]);
                        assert_eq!(k[start + i * 16 + slot % 16], at(4), "{} {r} {i}", isa.name());
                        assert_eq!(v[start + slot % 16 * d + i], at(6), "{} {r} {i}", isa.name());
                        written += 1;
                    }
                }
                let zeros = k.iter().filter(|&&k| k == T::ZERO).count();
                assert!(zeros >= k.len() - written, "only the rows' slots are written");
            }
        }
    }

    #[test]
    fn keys_are_transposed_values_are_not_and_both_are_rounded() {
        for d in [16, 20, 33, 64] {
            check(d, |x| x);
            check(d, bf16::from_f32);
        }
    }
}
