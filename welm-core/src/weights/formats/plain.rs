//! Formats without blocks: floats, and integers of one byte, which need scales to be weights.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::BlockFormat;

/// IEEE 754 binary32.
pub(super) struct F32;

impl BlockFormat for F32 {
    fn name(&self) -> &'static str {
        "F32"
    }

    fn bytes(&self) -> usize {
        4
    }

    fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
        for (o, b) in out.iter_mut().zip(blocks.as_chunks::<4>().0) {
            *o = f32::from_le_bytes(*b);
        }
    }
}

/// IEEE 754 binary16.
pub(super) struct F16;

impl BlockFormat for F16 {
    fn name(&self) -> &'static str {
        "F16"
    }

    fn bytes(&self) -> usize {
        2
    }

    fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
        // 64 at a time, because `half` checks once per slice whether the CPU can convert.
        for (out, bytes) in out.chunks_mut(64).zip(blocks.chunks(128)) {
            let mut halves = [f16::ZERO; 64];
            for (h, b) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *h = f16::from_le_bytes(*b);
            }
            halves[..out.len()].convert_to_f32_slice(out);
        }
    }
}

/// The upper half of a binary32.
pub(super) struct Bf16;

impl BlockFormat for Bf16 {
    fn name(&self) -> &'static str {
        "BF16"
    }

    fn bytes(&self) -> usize {
        2
    }

    fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
        for (o, b) in out.iter_mut().zip(blocks.as_chunks::<2>().0) {
            *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
        }
    }
}

/// Unsigned bytes.
pub(super) struct U8;

impl BlockFormat for U8 {
    fn name(&self) -> &'static str {
        "U8"
    }

    fn bytes(&self) -> usize {
        1
    }

    fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
        for (o, b) in out.iter_mut().zip(blocks) {
            *o = f32::from(*b);
        }
    }

    fn is_weight(&self) -> bool {
        false
    }
}

/// Signed bytes.
pub(super) struct I8;

impl BlockFormat for I8 {
    fn name(&self) -> &'static str {
        "I8"
    }

    fn bytes(&self) -> usize {
        1
    }

    fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
        for (o, b) in out.iter_mut().zip(blocks) {
            *o = f32::from(b.cast_signed());
        }
    }

    fn is_weight(&self) -> bool {
        false
    }
}
