//! `high: [u1; 256], low: [u2; 256], sc: [u6; 16], d: f16`; an element is `d * (sc - 32) * (4 * high + low - 4)`, with
//! `sc` of its 16 elements. Bits `2 i` of 32 bytes of `low` are elements `32 i` on of 128, bit `i` of the 32 bytes of `high`
//! elements `32 i` on.

use welm_cpu::codes::{Codes, Coding, SUPER_BLOCK, Scales, Values};

use super::codes::coded;
use super::{f16_at, two_bits};

coded!(
    Q3_K,
    SUPER_BLOCK,
    SUPER_BLOCK / 8 + SUPER_BLOCK / 4 + 12 + 2,
    |block| f16_at(&block[108..]).is_finite(),
    Coding { bits: 3, group: 16, values: Values::Less(4), scales: Scales::Super, read }
);

fn read(block: &[u8], to: &mut Codes) {
    two_bits(&block[32..96], &mut to.code);
    for (k, code) in to.code.iter_mut().enumerate() {
        *code |= (block[k % 32] >> (k / 32) & 1) << 2;
    }
    // Four bits of a scale, the first eight in the low halves; two bits of four scales in a byte.
    let (low, high) = block[96..108].split_at(8);
    for g in 0..16 {
        let sc = low[g % 8] >> (g / 8 * 4) & 15 | (high[g % 4] >> (g / 4 * 2) & 3) << 4;
        to.scale_of[g] = sc.cast_signed() - 32;
    }
    to.d = f16_at(&block[108..]);
}
