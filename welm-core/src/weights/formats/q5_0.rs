//! Q5_0: `d: f16, high: [u1; 32], low: [u4; 32]`; an element is `d * (16 * high + low - 16)`. The low four bits of the
//! bytes of `low` are the first 16 elements.

use welm_cpu::codes::{Codes, Coding, Scales, Values};

use super::codes::add_bits;
use super::{BlockFormat, SMALL_BLOCK, UnpackInt8, f16_at, halves};

const BYTES: usize = 2 + SMALL_BLOCK / 8 + SMALL_BLOCK / 2;

pub(super) struct Q5_0;

static CODING: Coding = Coding { bits: 5, group: 32, values: Values::Less(16), scales: Scales::F16, read };

fn read(block: &[u8], to: &mut Codes) {
    to.d = f16_at(block);
    halves(&block[6..], &mut to.code[..SMALL_BLOCK]);
    add_bits(&block[2..6], 4, &mut to.code[..SMALL_BLOCK]);
}

impl BlockFormat for Q5_0 {
    fn name(&self) -> &'static str {
        "Q5_0"
    }

    fn values(&self) -> usize {
        SMALL_BLOCK
    }

    fn bytes(&self) -> usize {
        BYTES
    }

    fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
        CODING.dequantise(BYTES, SMALL_BLOCK, blocks, out);
    }

    fn finite_scales(&self) -> Option<fn(&[u8]) -> bool> {
        Some(|block| f16_at(block).is_finite())
    }

    fn int8(&self) -> Option<UnpackInt8> {
        Some(|block, q| {
            let mut codes = Codes::default();
            read(block, &mut codes);
            q.iter_mut().zip(codes.code).for_each(|(q, code)| *q = code.cast_signed() - 16);
            codes.d
        })
    }

    fn coding(&self) -> Option<&'static Coding> {
        Some(&CODING)
    }
}
