//! Q5_1: `d: f16, m: f16, high: [u1; 32], low: [u4; 32]`; an element is `d * (16 * high + low) + m`. The low four bits
//! of the bytes of `low` are the first 16 elements.

use super::codes::{Codes, Coding, Scales, Values, add_bits, coded};
use super::{SMALL_BLOCK, f16_at, halves};

coded!(
    Q5_1,
    SMALL_BLOCK,
    2 + 2 + SMALL_BLOCK / 8 + SMALL_BLOCK / 2,
    |block| f16_at(block).is_finite() && f16_at(&block[2..]).is_finite(),
    Coding { bits: 5, group: 32, values: Values::Less(0), scales: Scales::F16Min, read }
);

fn read(block: &[u8], to: &mut Codes) {
    (to.d, to.min) = (f16_at(block), f16_at(&block[2..]));
    halves(&block[8..], &mut to.code[..SMALL_BLOCK]);
    add_bits(&block[4..8], 4, &mut to.code[..SMALL_BLOCK]);
}
