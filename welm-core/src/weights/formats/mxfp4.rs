//! MXFP4: `e: e8m0, code: [e2m1; 32]`.
//!
//! An element is `2^(e - 128) * TABLE[code]`; the table has doubled values. The low four bits of the bytes are the
//! first 16 elements. See "OCP Microscaling Formats (MX) Specification", version 1.0.

use welm_cpu::codes::{Codes, Coding, Scales, Values, power};
use welm_cpu::isa::BIAS;

use super::codes::coded;
use super::{SMALL_BLOCK, halves};

/// Twice the values of the e2m1 codes, so that all are integers.
const TABLE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

coded!(
    MXFP4,
    SMALL_BLOCK,
    1 + SMALL_BLOCK / 2,
    // 255 means NaN. The largest exponents below it are refused, too: products with activations would overflow f32.
    |block| block[0] != 255 && (power(block[0]) * BIAS).is_finite(),
    Coding { bits: 4, group: 32, values: Values::Table(&TABLE), scales: Scales::Exponent, read }
);

fn read(block: &[u8], to: &mut Codes) {
    to.scale_of[0] = block[0].cast_signed();
    halves(&block[1..], &mut to.code[..SMALL_BLOCK]);
}
