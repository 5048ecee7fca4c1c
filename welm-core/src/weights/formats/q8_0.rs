//! Q8_0: `d: f16, q: [i8; 32]`; an element is `d * q`.

use super::{BlockFormat, SMALL_BLOCK, UnpackInt8, f16_at};

const BYTES: usize = 2 + SMALL_BLOCK;

pub(super) struct Q8_0;

impl BlockFormat for Q8_0 {
    fn name(&self) -> &'static str {
        "Q8_0"
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
            for (o, q) in out.iter_mut().zip(&b[2..]) {
                *o = d * f32::from(q.cast_signed());
            }
        }
    }

    fn finite_scales(&self) -> Option<fn(&[u8]) -> bool> {
        Some(|block| f16_at(block).is_finite())
    }

    fn int8(&self) -> Option<UnpackInt8> {
        Some(|block, q| {
            q.copy_from_slice(bytemuck::cast_slice(&block[2..]));
            f16_at(block)
        })
    }
}
