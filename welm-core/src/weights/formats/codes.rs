//! What the formats of few bits have in common: a code for each value, and scales of groups.
//!
//! ```text
//! x[k] = scale[k / group] * value(code[k]) + min[k / group]
//! scale = d, or d * sc;   min = m, or -dmin * m, or 0
//! ```
//!
//! `d * sc` is exact in f32 in every format (11 and 8 bits), and so is its product with a value where there is a
//! minimum. So each element is rounded once, as in ggml and in gguf's Python, and the order of the factors does not matter.

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
    /// Takes a block apart.
    pub(crate) read: fn(block: &[u8], to: &mut Codes),
}

/// What a code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Values {
    /// The code less this.
    Less(u8),
    /// An entry of this table.
    Table(&'static [i8; 16]),
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// `d` of each group.
    F16,
    /// `d` and `m` of each group.
    F16Min,
    /// A power of two for each group.
    Exponent,
    /// `d` of the block, `sc` of each group.
    Super,
    /// `d` and `dmin` of the block, `sc` and `m` of each group.
    SuperMin,
}

/// A block taken apart. What a format does not have stays as it was.
pub(crate) struct Codes {
    pub(crate) code: [u8; SUPER_BLOCK],
    pub(crate) d: f16,
    /// `m` of [`Scales::F16Min`], `dmin` of [`Scales::SuperMin`].
    pub(crate) min: f16,
    /// `sc`, or the exponent.
    pub(crate) scale_of: [i8; GROUPS],
    /// `m` of [`Scales::SuperMin`].
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

/// Half of the power of two that an e8m0 means: the values of MXFP4 are doubled, to be integers.
pub(crate) fn power(e8m0: u8) -> f32 {
    match e8m0 {
        0 | 1 => f32::from_bits(0x0020_0000 << e8m0),
        _ => f32::from_bits(u32::from(e8m0 - 1) << 23),
    }
}

impl Coding {
    /// What a code of a group with this scale and minimum means.
    pub(crate) fn value(&self, code: u8, scale: f32, min: f32) -> f32 {
        let product = scale * f32::from(self.values.of(code));
        if self.scales.has_min() { product + min } else { product } // not -0 + 0
    }

    /// Converts whole blocks of `bytes` bytes and `values` values to f32.
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

/// Gives a format its table of [`Coding`]: `$values` values in `$bytes` bytes.
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

/// The values of codes of four bits in IQ4_NL and IQ4_XS.
pub(super) const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Sets bit `to` of 32 codes from the bits of four bytes.
pub(super) fn add_bits(bits: &[u8], to: u32, code: &mut [u8]) {
    for (k, code) in code.iter_mut().enumerate() {
        *code |= (bits[k / 8] >> (k % 8) & 1) << to;
    }
}

/// The eight scales and minima of Q4_K and Q5_K, six bits each, from 12 bytes.
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
