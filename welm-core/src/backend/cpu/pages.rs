//! The paged KV cache of one layer, and the kernel that writes a step's keys and values into it.
//!
//! The keys of a block are transposed: for each dimension, those of sixteen tokens lie side by side. A vector then has
//! the scores of sixteen keys, summed over the dimensions without a sum across lanes. The values of a block are rows,
//! because an attention output is a weighted sum of such rows. So a token's key is written one element at a time (two
//! or four bytes), but only once; all later tokens read it as whole vectors.

use bytemuck::Pod;
use welm_cpu::cache::Heads;

use crate::config::ModelConfig;
use crate::error::Result;
use crate::memory::Memory;

/// The attention heads of a model.
pub(crate) fn heads(config: &ModelConfig) -> Heads {
    Heads { n_heads: config.n_heads, n_kv_heads: config.n_kv_heads, head_dim: config.head_dim }
}

/// Keys and values of one layer.
pub(crate) struct Pages<T> {
    k: Memory<T>, // (n_blocks, n_kv_heads, head_dim, BLOCK_TOKENS)
    v: Memory<T>, // (n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim)
}

impl<T: Pod> Pages<T> {
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

#[cfg(test)]
mod tests {
    use half::bf16;
    use welm_cpu::cache::{CacheElement, CacheRows, NormOf};
    use welm_cpu::disjoint::Disjoint;
    use welm_cpu::isa::Isa;
    use welm_cpu::norm::{Norm, norm_row};

    use super::super::rope::Angles;
    use super::*;
    use crate::batch::Batch;
    use crate::config::RopePairing;

    fn check<T: CacheElement + Pod + PartialEq + std::fmt::Debug>(d: usize, round: impl Fn(f32) -> T) {
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
        let weights = |seed: usize, len: usize| -> Vec<f32> {
            (0..len).map(|i| hash(seed + i) as f32 / 500.0).collect()
        };
        let both = [weights(7, d), weights(100, d)];
        let wide = [4, 2].map(|heads| weights(7 + heads, heads * d));
        let [both, wide] =
            [&both, &wide].map(|pair| pair.each_ref().map(|weight| Norm { weight, bias: None, eps: 1e-5 }));
        let pairings = [RopePairing::HalfSplit, RopePairing::Interleaved];
        for isa in Isa::all() {
            let kinds = [None, Some(NormOf::Head), Some(NormOf::TurnedHead), Some(NormOf::AllHeads)];
            let cases = pairings.into_iter().map(Some).chain([None]);
            for (pairing, kind) in cases.flat_map(|p| kinds.map(|kind| (p, kind))) {
                let rope = pairing.map(|pairing| angles.of_step(pairing));
                let norms = kind.map(|kind| (kind, if kind == NormOf::AllHeads { wide } else { both }));
                let mut qkv = rows.clone();
                let mut pages: Pages<T> = Pages::new(n_blocks * heads.start(1, 0)).unwrap();
                {
                    let (k, v) = pages.both_mut();
                    let (qkv, k, v) = (Disjoint::new(&mut qkv), Disjoint::new(k), Disjoint::new(v));
                    for rows in [0..3, 3..n] {
                        let (qkv, k, v, batch) = (&qkv, &k, &v, batch.rows());
                        // SAFETY: one after the other.
                        unsafe { T::cache(CacheRows { rows, qkv, k, v, heads, rope, norms, batch }, isa) };
                    }
                }
                let (k, v) = pages.both();
                let mut written = 0;
                for r in 0..n {
                    let mut row = rows[r * cols..(r + 1) * cols].to_vec();
                    let normed = |values: &mut [f32], norm: Norm| {
                        let before = values.to_vec();
                        norm_row(isa, &before, norm, values);
                    };
                    let heads_normed = |row: &mut [f32], if_kind: NormOf| {
                        for (h, head) in
                            row[..6 * d].chunks_mut(d).enumerate().filter(|_| kind == Some(if_kind))
                        {
                            normed(head, both[usize::from(h >= 4)]);
                        }
                    };
                    if kind == Some(NormOf::AllHeads) {
                        normed(&mut row[..4 * d], wide[0]);
                        normed(&mut row[4 * d..6 * d], wide[1]);
                    }
                    heads_normed(&mut row, NormOf::Head);
                    if let Some(angles) = rope {
                        row[..6 * d].chunks_mut(d).for_each(|head| angles.turn(r, head));
                    }
                    heads_normed(&mut row, NormOf::TurnedHead);
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
