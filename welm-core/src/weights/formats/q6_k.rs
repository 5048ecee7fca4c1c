//! Q6_K: `low: [u4; 256], high: [u2; 256], sc: [i8; 16], d: f16`.
//!
//! An element is `d * sc * (16 * high + low - 32)`; 16 elements share `sc`. The low four bits of each 64 bytes of `low`
//! are the first 64 of 128 elements. Of each 32 bytes of `high`, bits `2 i` and `2 i + 1` are of elements
//! `32 i..32 i + 32` of 128.

use super::codes::{Codes, Coding, SUPER_BLOCK, Scales, Values, coded};
use super::{f16_at, halves, two_bits};

coded!(
    Q6_K,
    SUPER_BLOCK,
    SUPER_BLOCK / 2 + SUPER_BLOCK / 4 + 16 + 2,
    |block| f16_at(&block[208..]).is_finite(),
    Coding { bits: 6, group: 16, values: Values::Less(32), scales: Scales::Super, read }
);

fn read(block: &[u8], to: &mut Codes) {
    two_bits(&block[128..192], &mut to.code);
    let mut low = [0; 128];
    for (code, bytes) in to.code.chunks_exact_mut(128).zip(block.chunks_exact(64)) {
        halves(bytes, &mut low);
        code.iter_mut().zip(low).for_each(|(code, low)| *code = *code << 4 | low);
    }
    to.scale_of.copy_from_slice(bytemuck::cast_slice(&block[192..208]));
    to.d = f16_at(&block[208..]);
}
