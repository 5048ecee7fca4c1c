//! Q4_1: `d: f16, m: f16, q: [u4; 32]`; an element is `d * q + m`. The low four bits of the bytes are the first 16
//! elements.

use super::{BlockFormat, SMALL_BLOCK, UnpackInt4, f16_at, halves};

const BYTES: usize = 2 + 2 + SMALL_BLOCK / 2;

pub(super) struct Q4_1;

impl BlockFormat for Q4_1 {
    fn name(&self) -> &'static str {
        "Q4_1"
    }

    fn values(&self) -> usize {
        SMALL_BLOCK
    }

    fn bytes(&self) -> usize {
        BYTES
    }

    fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
        for (out, b) in out.as_chunks_mut::<SMALL_BLOCK>().0.iter_mut().zip(blocks.as_chunks::<BYTES>().0) {
            let (d, m) = (f16_at(b).to_f32(), f16_at(&b[2..]).to_f32());
            for (i, q) in b[4..].iter().enumerate() {
                out[i] = d * f32::from(q & 15) + m;
                out[i + 16] = d * f32::from(q >> 4) + m;
            }
        }
    }

    fn finite_scales(&self) -> Option<fn(&[u8]) -> bool> {
        Some(|block| f16_at(block).is_finite() && f16_at(&block[2..]).is_finite())
    }

    fn int4(&self) -> Option<UnpackInt4> {
        Some(|block, q| {
            halves(&block[4..], q);
            (f16_at(block), f16_at(&block[2..]))
        })
    }
}
