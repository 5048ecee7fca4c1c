//! Attention of one row's heads over its sequence's cache.
//!
//! ```text
//! p[j] = exp(q . k[j] / sqrt(head_dim) - max),   out = sum_j p[j] v[j] / sum_j p[j],   j = 0..=position
//! ```
//!
//! One task is one row and one key/value head with all the query heads that share it, so that a key is
//! loaded once for its group. Scores of a row stay in scratch of the task's thread: two passes, no running
//! rescale, and sums in ascending j, whatever chunk the row was computed in.
//!
//! Keys and values are read from the cache only, in the cache's element type, a row's own included: a row
//! sees the same bits whether its neighbours were computed with it, before it, or by another request.

use half::bf16;

use super::isa::{Kernel, LANES, Simd};
use super::linear::{Element, load_at};
use crate::engine::batch::BLOCK_TOKENS;

/// Keys and values of one layer, `(n_blocks, n_kv_heads, BLOCK_TOKENS, head_dim)` each.
pub(crate) struct Pages<T> {
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
}

impl<T: Element> Pages<T> {
    /// Zeroed memory, which the system provides when it is first written.
    pub(crate) fn new(len: usize) -> Self {
        Pages { k: vec![T::ZERO; len], v: vec![T::ZERO; len] }
    }

    /// Copies block `from` over block `to`; `len` values a block.
    pub(crate) fn copy_block(&mut self, from: u32, to: u32, len: usize) {
        let from = from as usize * len;
        self.k.copy_within(from..from + len, to as usize * len);
        self.v.copy_within(from..from + len, to as usize * len);
    }
}

/// A float that the cache stores.
pub(crate) trait CacheElement: Element {
    /// Rounds to nearest even.
    fn from_f32(x: f32) -> Self;
}

impl CacheElement for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl CacheElement for bf16 {
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
}

/// One row, one key/value head; implements [`Kernel`].
pub(crate) struct AttendRow<'a, T> {
    pub(crate) q: &'a [f32], // (group, head_dim), the query heads of this key/value head
    pub(crate) pages: &'a Pages<T>,
    pub(crate) table: &'a [u32], // block of each BLOCK_TOKENS positions
    pub(crate) kv_len: usize,    // position + 1
    pub(crate) kv_head: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scores: &'a mut [f32], // (group, at least kv_len)
    pub(crate) out: &'a mut [f32],    // (group, head_dim)
}

impl<T: CacheElement> AttendRow<'_, T> {
    /// Calls `f(j, at)` for each position, `at` being where its head starts in the pages.
    #[inline(always)]
    fn positions(&self, mut f: impl FnMut(usize, usize)) {
        for (b, &block) in self.table.iter().enumerate() {
            let first = b * BLOCK_TOKENS;
            let head = (block as usize * self.n_kv_heads + self.kv_head) * BLOCK_TOKENS;
            for i in 0..BLOCK_TOKENS.min(self.kv_len.saturating_sub(first)) {
                f(first + i, (head + i) * self.head_dim);
            }
        }
    }
}

impl<T: CacheElement> Kernel for AttendRow<'_, T> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let (d, n) = (self.head_dim, self.kv_len);
        let group = self.q.len() / d;
        let stride = self.scores.len() / group;
        let root = 1.0 / (d as f32).sqrt();
        let scores = std::mem::take(&mut self.scores);
        let out = std::mem::take(&mut self.out);
        self.positions(|j, at| {
            let k = &self.pages.k[at..at + d];
            for h in 0..group {
                let q = &self.q[h * d..(h + 1) * d];
                // SAFETY: the instructions are there; `load_at` stays inside the slices.
                scores[h * stride + j] = root
                    * unsafe {
                        let mut acc = S::splat(0.0);
                        for i in (0..d).step_by(LANES) {
                            acc = S::fma(load_at::<S, f32>(q, i), load_at::<S, T>(k, i), acc);
                        }
                        S::sum(acc)
                    };
            }
        });
        for h in 0..group {
            let p = &mut scores[h * stride..h * stride + n];
            let max = p.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
            p.iter_mut().for_each(|s| *s = (*s - max).exp());
            // SAFETY: as above.
            let sum = unsafe {
                let mut acc = S::splat(0.0);
                for j in (0..n).step_by(LANES) {
                    acc = S::add(acc, load_at::<S, f32>(p, j));
                }
                S::sum(acc)
            };
            p.iter_mut().for_each(|s| *s /= sum);
        }
        out.fill(0.0);
        self.positions(|j, at| {
            let v = &self.pages.v[at..at + d];
            for h in 0..group {
                let p = scores[h * stride + j];
                let out = &mut out[h * d..(h + 1) * d];
                let whole = d - d % LANES;
                // SAFETY: as above; stores stay below `whole`.
                unsafe {
                    for i in (0..whole).step_by(LANES) {
                        let o = S::load(out.as_ptr().add(i));
                        S::store(out.as_mut_ptr().add(i), S::fma(S::splat(p), load_at::<S, T>(v, i), o));
                    }
                    if whole < d {
                        let mut lanes = [0.0; LANES];
                        let o = load_at::<S, f32>(out, whole);
                        S::store(lanes.as_mut_ptr(), S::fma(S::splat(p), load_at::<S, T>(v, whole), o));
                        out[whole..].copy_from_slice(&lanes[..d - whole]);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::isa::Isa;

    #[test]
    fn softmax_attention_over_scattered_blocks_and_equal_bits_everywhere() {
        let hash = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 9) % 1_000;
        let (n_kv_heads, n_blocks) = (2, 5);
        for (d, group, kv_len, table) in [
            (20, 3, 37, vec![4u32, 0, 2]),
            (64, 1, 16, vec![3]),
            (16, 2, 1, vec![1]),
            (80, 2, 33, vec![2, 1, 0]),
        ] {
            let len = n_blocks * n_kv_heads * BLOCK_TOKENS * d;
            let mut pages: Pages<f32> = Pages::new(len);
            (0..len).for_each(|i| pages.k[i] = hash(i) as f32 / 300.0 - 1.5);
            (0..len).for_each(|i| pages.v[i] = hash(i + 77) as f32 / 500.0 - 1.0);
            let q: Vec<f32> = (0..group * d).map(|i| hash(i + 5) as f32 / 400.0 - 1.0).collect();
            for kv_head in 0..n_kv_heads {
                let run = |isa: Isa| {
                    let (mut scores, mut out) = (vec![0.0; group * (kv_len + 3)], vec![9.0; group * d]);
                    let row = AttendRow {
                        q: &q,
                        pages: &pages,
                        table: &table,
                        kv_len,
                        kv_head,
                        n_kv_heads,
                        head_dim: d,
                        scores: &mut scores,
                        out: &mut out,
                    };
                    // SAFETY: plain slices of the lengths stated.
                    unsafe { isa.dispatch(row) };
                    out
                };
                let at = |j: usize| {
                    let block = table[j / BLOCK_TOKENS] as usize;
                    ((block * n_kv_heads + kv_head) * BLOCK_TOKENS + j % BLOCK_TOKENS) * d
                };
                let want = run(Isa::all()[0]);
                for h in 0..group {
                    let score = |j: usize| {
                        let dot = (0..d).map(|i| f64::from(q[h * d + i]) * f64::from(pages.k[at(j) + i]));
                        (dot.sum::<f64>() / (d as f64).sqrt()).exp()
                    };
                    let total: f64 = (0..kv_len).map(score).sum();
                    for i in 0..d {
                        let y: f64 = (0..kv_len).map(|j| score(j) * f64::from(pages.v[at(j) + i])).sum();
                        assert!((f64::from(want[h * d + i]) - y / total).abs() < 1e-5);
                    }
                }
                for isa in Isa::all() {
                    assert_eq!(run(isa), want, "{}", isa.name());
                }
            }
        }
    }
}
