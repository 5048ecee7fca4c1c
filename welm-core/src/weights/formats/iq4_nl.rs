//! IQ4_NL: `d: f16, code: [u4; 32]`; an element is `d * IQ4[code]`. The low four bits of the bytes are the first 16
//! elements.

use super::codes::{Codes, Coding, IQ4, Scales, Values, coded};
use super::{SMALL_BLOCK, f16_at, halves};

coded!(
    IQ4_NL,
    SMALL_BLOCK,
    2 + SMALL_BLOCK / 2,
    |block| f16_at(block).is_finite(),
    Coding { bits: 4, group: 32, values: Values::Table(&IQ4), scales: Scales::F16, read }
);

fn read(block: &[u8], to: &mut Codes) {
    to.d = f16_at(block);
    halves(&block[2..], &mut to.code[..SMALL_BLOCK]);
}
