//! The epilogue that all kernels of quantised products share: adds the bias, and stores the sums or adds them.

use super::Epilogue;
use super::pool::Disjoint;
use crate::isa::{LANES, Simd};

/// Where a kernel writes the outputs of some strips.
pub(super) struct Outputs<'a> {
    pub(super) bias: Option<&'a [f32]>,    // (n)
    pub(super) n: usize,                   // at most 16 a strip
    pub(super) out: &'a Disjoint<'a, f32>, // (rows of activations, stride)
    pub(super) stride: usize,
    pub(super) first: usize, // column of output 0
    pub(super) epilogue: Epilogue,
}

impl Outputs<'_> {
    /// The number of strips of 16 outputs; the last may have fewer outputs.
    pub(super) fn strips(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// Writes the sums of strip `t` for the first `rows` of the `R` rows from `r` on.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; the rows and the strip exist; no other task writes these outputs.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd, const R: usize>(
        &self,
        t: usize,
        r: usize,
        rows: usize,
        acc: [S::V; R],
    ) {
        debug_assert!(self.bias.is_none_or(|bias| bias.len() == self.n));
        let column = t * LANES;
        let outputs = LANES.min(self.n - column);
        // SAFETY: the caller's promise.
        unsafe {
            for i in 0..R.min(rows) {
                let out = self.out.slice((r + i) * self.stride + self.first + column, outputs);
                if outputs == LANES {
                    let mut y = acc[i];
                    if let Some(bias) = self.bias {
                        y = S::add(y, S::load(bias.as_ptr().add(column)));
                    }
                    if self.epilogue == Epilogue::Add {
                        y = S::add(S::load(out.as_ptr()), y);
                    }
                    S::store(out.as_mut_ptr(), y);
                    continue;
                }
                let mut y = [0.0; LANES];
                S::store(y.as_mut_ptr(), acc[i]);
                for (o, out) in out.iter_mut().enumerate() {
                    let sum = self.bias.map_or(y[o], |b| y[o] + b[column + o]);
                    *out = if self.epilogue == Epilogue::Add { *out + sum } else { sum };
                }
            }
        }
    }
}
