//! Q2_K: `scales: [(sc: u4, m: u4); 16], q: [u2; 256], d: f16, dmin: f16`.
//!
//! An element is `d * sc * q - dmin * m`; 16 elements share `sc` and `m`. Of each 32 bytes of `q`, bits `2 i` and
//! `2 i + 1` are elements `32 i..32 i + 32` of 128.

use super::codes::{Codes, Coding, SUPER_BLOCK, Scales, Values, coded};
use super::{f16_at, two_bits};

coded!(
    Q2_K,
    SUPER_BLOCK,
    16 + SUPER_BLOCK / 4 + 2 + 2,
    |block| f16_at(&block[80..]).is_finite() && f16_at(&block[82..]).is_finite(),
    Coding { bits: 2, group: 16, values: Values::Less(0), scales: Scales::SuperMin, read }
);

fn read(block: &[u8], to: &mut Codes) {
    for (g, byte) in block[..16].iter().enumerate() {
        to.scale_of[g] = (byte & 15).cast_signed();
        to.min_of[g] = byte >> 4;
    }
    two_bits(&block[16..80], &mut to.code);
    (to.d, to.min) = (f16_at(&block[80..]), f16_at(&block[82..]));
}
