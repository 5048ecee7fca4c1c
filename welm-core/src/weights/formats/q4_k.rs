//! Q4_K: `d: f16, dmin: f16, scales: [(sc: u6, m: u6); 8], q: [u4; 256]`.
//!
//! An element is `d * sc * q - dmin * m`; 32 elements share `sc` and `m`. The low four bits of each 32 bytes of `q` are
//! the first 32 of 64 elements.

use super::codes::{Codes, Coding, SUPER_BLOCK, Scales, Values, coded, six_bits};
use super::{f16_at, halves};

coded!(
    Q4_K,
    SUPER_BLOCK,
    2 + 2 + 12 + SUPER_BLOCK / 2,
    |block| f16_at(block).is_finite() && f16_at(&block[2..]).is_finite(),
    Coding { bits: 4, group: 32, values: Values::Less(0), scales: Scales::SuperMin, read }
);

fn read(block: &[u8], to: &mut Codes) {
    (to.d, to.min) = (f16_at(block), f16_at(&block[2..]));
    six_bits(&block[4..16], to);
    for (code, bytes) in to.code.chunks_exact_mut(64).zip(block[16..].chunks_exact(32)) {
        halves(bytes, code);
    }
}
