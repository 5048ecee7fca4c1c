//! What formats of 2 to 6 bits have in common: a code for each value, and a scale for each group of values.
//!
//! ```text
//! x[k] = scale[k / group] * value(code[k]) + min[k / group]
//! scale = d, or d * sc;   min = m, or -dmin * m, or 0
//! ```
//!
//! `d * sc` is exact in f32 in every format, because its factors have at most 11 and 8 bits. In formats with a minimum,
//! its product with a value is exact, too. So each element is rounded once, as in ggml and in gguf's Python package,
//! and the order of the factors does not matter.

use half::f16;

/// Values of the largest block.
pub(crate) const SUPER_BLOCK: usize = 256;
/// Most groups of a block.
pub(crate) const GROUPS: usize = 16;

/// How a format codes values.
pub(crate) struct Coding {
    /// Bits of a code: 2 to 6.
    pub(crate) bits: u32,
    /// Values that share a scale: 16 or 32.
    pub(crate) group: usize,
    pub(crate) values: Values,
    pub(crate) scales: Scales,
    /// Reads codes and scales of a block.
    pub(crate) read: fn(block: &[u8], to: &mut Codes),
}

/// What a code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// The code minus this offset.
    Less(u8),
    /// The entry of this table at the code.
    Table(&'static [i8; 16]),
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// An f16 `d` for each group.
    F16,
    /// An f16 `d` and an f16 `m` for each group.
    F16Min,
    /// A power of two for each group.
    Exponent,
    /// An f16 `d` for the block, and an integer `sc` for each group.
    Super,
    /// f16 `d` and `dmin` for the block, and integers `sc` and `m` for each group.
    SuperMin,
}

/// Codes and scales of one block. Reading a block does not change the fields that its format does not have.
pub(crate) struct Codes {
    pub(crate) code: [u8; SUPER_BLOCK],
    pub(crate) d: f16,
    /// `m` of [`Scales::F16Min`], `dmin` of [`Scales::SuperMin`].
    pub(crate) min: f16,
    /// `sc` of each group, or its exponent.
    pub(crate) scale_of: [i8; GROUPS],
    /// `m` of each group, of [`Scales::SuperMin`].
    pub(crate) min_of: [u8; GROUPS],
}

impl Codes {
    pub(crate) fn new() -> Codes {
        Codes {
            code: [0; SUPER_BLOCK],
            d: f16::ZERO,
            min: f16::ZERO,
            scale_of: [0; GROUPS],
            min_of: [0; GROUPS],
        }
    }

    /// Scale and minimum of group `g`.
    pub(crate) fn scale(&self, scales: Scales, g: usize) -> (f32, f32) {
        let d = self.d.to_f32();
        let scaled = || d * f32::from(self.scale_of[g]);
        match scales {
            Scales::F16 => (d, 0.0),
            Scales::F16Min => (d, self.min.to_f32()),
            Scales::Exponent => (power(self.scale_of[g].cast_unsigned()), 0.0),
            Scales::Super => (scaled(), 0.0),
            Scales::SuperMin => (scaled(), -(self.min.to_f32() * f32::from(self.min_of[g]))),
        }
    }
}

impl Scales {
    pub(crate) fn has_min(self) -> bool {
        matches!(self, Scales::F16Min | Scales::SuperMin)
    }
}

impl Values {
    pub(crate) fn of(self, code: u8) -> i8 {
        match self {
            Values::Less(offset) => code.wrapping_sub(offset).cast_signed(),
            Values::Table(table) => table[usize::from(code)],
        }
    }
}

/// Half of the power of two that an e8m0 exponent means. Half, because the table of MXFP4 has doubled values, which are
/// integers.
pub(crate) fn power(e8m0: u8) -> f32 {
    match e8m0 {
        0 | 1 => f32::from_bits(0x0020_0000 << e8m0),
        _ => f32::from_bits(u32::from(e8m0 - 1) << 23),
    }
}

impl Coding {
    /// The value of a code in a group with this scale and minimum.
    pub(crate) fn value(&self, code: u8, scale: f32, min: f32) -> f32 {
        let product = scale * f32::from(self.values.of(code));
        if self.scales.has_min() { product + min } else { product } // not -0 + 0
    }

    /// Converts whole blocks, of `bytes` bytes and `values` values each, to f32.
    pub(super) fn dequantise(&self, bytes: usize, values: usize, blocks: &[u8], out: &mut [f32]) {
        let mut codes = Codes::new();
        for (block, out) in blocks.chunks_exact(bytes).zip(out.chunks_exact_mut(values)) {
            (self.read)(block, &mut codes);
            for (g, out) in out.chunks_exact_mut(self.group).enumerate() {
                let (scale, min) = codes.scale(self.scales, g);
                for (x, &code) in out.iter_mut().zip(&codes.code[g * self.group..]) {
                    *x = self.value(code, scale, min);
                }
            }
        }
    }
}

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
