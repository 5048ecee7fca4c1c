//! Q3_K: `high: [u1; 256], low: [u2; 256], sc: [u6; 16], d: f16`.
//!
//! An element is `d * (sc - 32) * (4 * high + low - 4)`; 16 elements share `sc`. Of each 32 bytes of `low`, bits `2 i`
//! and `2 i + 1` are of elements `32 i..32 i + 32` of 128. Bit `i` of the 32 bytes of `high` is of elements
//! `32 i..32 i + 32`.

use super::codes::{Codes, Coding, SUPER_BLOCK, Scales, Values, coded};
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
    // `low` has four bits of each scale: the low halves of its bytes are scales 0 to 7, the high halves 8 to 15. A byte
    // of `high` has the two other bits of four scales.
    let (low, high) = block[96..108].split_at(8);
    for g in 0..16 {
        let sc = low[g % 8] >> (g / 8 * 4) & 15 | (high[g % 4] >> (g / 4 * 2) & 3) << 4;
        to.scale_of[g] = sc.cast_signed() - 32;
    }
    to.d = f16_at(&block[108..]);
}
