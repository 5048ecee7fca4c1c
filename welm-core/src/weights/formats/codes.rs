//! What the files of formats of few bits have in common; what a code means is said in [`welm_cpu::codes`].

use welm_cpu::codes::Codes;

/// Defines a format with a [`Coding`], whose blocks have `$values` values in `$bytes` bytes. `$finite` tells whether
/// the scales of a block are finite.
macro_rules! coded {
    ($format:ident, $values:expr, $bytes:expr, $finite:expr, $coding:expr) => {
        #[allow(non_camel_case_types)] // ggml's name
        pub(super) struct $format;

        static CODING: Coding = $coding;

        impl super::BlockFormat for $format {
            fn name(&self) -> &'static str {
                stringify!($format)
            }

            fn values(&self) -> usize {
                $values
            }

            fn bytes(&self) -> usize {
                $bytes
            }

            fn dequantise(&self, blocks: &[u8], out: &mut [f32]) {
                CODING.dequantise($bytes, $values, blocks, out);
            }

            fn finite_scales(&self) -> Option<fn(&[u8]) -> bool> {
                Some($finite)
            }

            fn coding(&self) -> Option<&'static Coding> {
                Some(&CODING)
            }
        }
    };
}
pub(super) use coded;

/// The values of the four-bit codes of IQ4_NL and IQ4_XS.
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Sets bit `to` of each code from one bit of `bits`: 32 codes from four bytes.
pub(super) fn add_bits(bits: &[u8], to: u32, code: &mut [u8]) {
    for (k, code) in code.iter_mut().enumerate() {
        *code |= (bits[k / 8] >> (k % 8) & 1) << to;
    }
}

/// Reads the eight scales and minima of Q4_K and Q5_K, six bits each, from 12 bytes.
pub(super) fn six_bits(packed: &[u8], codes: &mut Codes) {
    let (low, rest) = packed.split_at(4);
    let (min, high) = rest.split_at(4);
    for i in 0..4 {
        codes.scale_of[i] = (low[i] & 63).cast_signed();
        codes.min_of[i] = min[i] & 63;
        codes.scale_of[4 + i] = (high[i] & 15 | low[i] >> 2 & 48).cast_signed();
        codes.min_of[4 + i] = high[i] >> 4 | min[i] >> 2 & 48;
    }
}
