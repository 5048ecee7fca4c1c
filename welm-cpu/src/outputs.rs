//! The epilogue that all kernels of quantised products share: adds the bias, and stores the sums or adds them.

use crate::disjoint::Disjoint;
use crate::isa::{LANES, Simd};

/// Whether a matrix product overwrites its output or adds to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = y`.
    Store,
    /// `out += y`: the residual.
    Add,
}

/// Where a kernel writes the outputs of some strips.
pub struct Outputs<'a> {
    pub bias: Option<&'a [f32]>,    // (n)
    pub n: usize,                   // at most 16 a strip
    pub out: &'a Disjoint<'a, f32>, // (rows of activations, stride)
    pub stride: usize,
    pub first: usize, // column of output 0
    pub epilogue: Epilogue,
}

impl Outputs<'_> {
    /// The number of strips of 16 outputs; the last may have fewer outputs.
    pub fn strips(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// Writes the sums of strip `t` for the first `rows` of the `R` rows from `r` on.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`; the rows and the strip exist; no other task writes these outputs.
    #[inline(always)]
    pub unsafe fn write<S: Simd, const R: usize>(&self, t: usize, r: usize, rows: usize, acc: [S::V; R]) {
        let column = t * LANES;
        let outputs = LANES.min(self.n - column);
        let bias = self.bias.map(|bias| &bias[column..column + outputs]);
        // SAFETY: the caller's promise.
        unsafe {
            for i in 0..R.min(rows) {
                let out = self.out.slice((r + i) * self.stride + self.first + column, outputs);
                if outputs == LANES {
                    let mut y = acc[i];
                    if let Some(bias) = bias {
                        y = S::add(y, S::load(bias.as_ptr()));
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
                    let sum = bias.map_or(y[o], |bias| y[o] + bias[o]);
                    *out = if self.epilogue == Epilogue::Add { *out + sum } else { sum };
                }
            }
        }
    }
}
