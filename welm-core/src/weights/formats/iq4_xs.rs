//! IQ4_XS: `d: f16, high: [u2; 8], low: [u4; 8], code: [u4; 256]`.
//!
//! An element is `d * (16 * high + low - 32) * IQ4[code]`; 32 elements share `high` and `low`. The low four bits of
//! each 16 bytes of `code` are the first 16 of 32 elements.

use super::codes::{Codes, Coding, IQ4, SUPER_BLOCK, Scales, Values, coded};
use super::{f16_at, halves};

coded!(
    IQ4_XS,
    SUPER_BLOCK,
    2 + 2 + 4 + SUPER_BLOCK / 2,
    |block| f16_at(block).is_finite(),
    Coding { bits: 4, group: 32, values: Values::Table(&IQ4), scales: Scales::Super, read }
);

fn read(block: &[u8], to: &mut Codes) {
    to.d = f16_at(block);
    for g in 0..8 {
        let (high, low) = (block[2 + g / 4] >> (g % 4 * 2) & 3, block[4 + g / 2] >> (g % 2 * 4) & 15);
        to.scale_of[g] = (high << 4 | low).cast_signed() - 32;
    }
    for (code, bytes) in to.code.chunks_exact_mut(32).zip(block[8..].chunks_exact(16)) {
        halves(bytes, code);
    }
}
