//! Q4_0: `d: f16, q: [u4; 32]`; an element is `d * (q - 8)`. The low four bits of the bytes are the first 16 elements.

use half::f16;

use super::{BlockFormat, SMALL_BLOCK, UnpackInt4, UnpackInt8, f16_at, halves};

const BYTES: usize = 2 + SMALL_BLOCK / 2;

pub(super) struct Q4_0;

impl BlockFormat for Q4_0 {
    fn name(&self) -> &'static str {
        "Q4_0"
    }

    fn values(&self) -> usize {
        SMALL_BLOCK
    }

    fn bytes(&self) -> usize {
        BYTES
    }

    fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
        for (out, b) in out.as_chunks_mut::<SMALL_BLOCK>().0.iter_mut().zip(blocks.as_chunks::<BYTES>().0) {
            let d = f16_at(b).to_f32();
            for (i, q) in b[2..].iter().enumerate() {
                out[i] = d * (f32::from(q & 15) - 8.0);
                out[i + 16] = d * (f32::from(q >> 4) - 8.0);
            }
        }
    }

    fn finite_scales(&self) -> Option<fn(&[u8]) -> bool> {
        Some(|block| f16_at(block).is_finite())
    }

    fn int8(&self) -> Option<UnpackInt8> {
        Some(|block, q| {
            let mut unsigned = [0; SMALL_BLOCK];
            halves(&block[2..], &mut unsigned);
            q.iter_mut().zip(unsigned).for_each(|(q, u)| *q = u.cast_signed() - 8);
            f16_at(block)
        })
    }

    fn int4(&self) -> Option<UnpackInt4> {
        Some(|block, q| {
            halves(&block[2..], q);
            let d = f16_at(block);
            // -8 times an f16 is an f16, unless it is too large.
            (d, f16::from_f32(-8.0 * d.to_f32()))
        })
    }
}
