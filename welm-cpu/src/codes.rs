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
//!
//! A strip is 16 rows. It consists of units of 256 columns; the last unit may be shorter. A unit has first its codes,
//! then its scales:
//!
//! ```text
//! codes of each 32 columns, in planes of (.., 16, 4) bytes: byte (p, o, i) has codes of row o, columns 4 j + i
//!   four bits: 4 x (16, 4) u8, j = 2 p in the low bits, j = 2 p + 1 in the high     formats of 4, 5 and 6 bits
//!   two bits:  2 x (16, 4) u8, j = 4 p + b in bits 2 b and 2 b + 1                  2 and 3 bits; high bits of 6
//!   one bit:       (16, 4) u8, j in bit j                                           high bit of 3 and 5 bits
//! scales of each group: (groups, 16) f16 d, then as many f16 m                  F16, F16Min
//!                       (groups, 16) u8                                         Exponent
//!                       (groups, 16) i8 sc, then as many u8 m,
//!                       then (16) f16 d, (16) f16 -dmin                         Super, SuperMin
//! ```
//!
//! Nothing is rounded, and a weight takes about as many bits as in the file: 4.63 for Q4_K instead of 4.5, 6.63 for
//! Q6_K instead of 6.56. Units begin at multiples of 64 bytes. A strip is one run of memory, which is read from start
//! to end.

use half::f16;

use crate::isa::{GROUP, LANES};

/// Values of the largest block.
pub const SUPER_BLOCK: usize = 256;
/// Most groups of a block.
pub const GROUPS: usize = 16;

/// How a format codes values.
pub struct Coding {
    /// Bits of a code: 2 to 6.
    pub bits: u32,
    /// Values that share a scale: 16 or 32.
    pub group: usize,
    pub values: Values,
    pub scales: Scales,
    /// Reads codes and scales of a block.
    pub read: fn(block: &[u8], to: &mut Codes),
}

/// What a code stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Values {
    /// The code minus this offset.
    Less(u8),
    /// The entry of this table at the code.
    Table(&'static [i8; 16]),
}

/// How scales are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scales {
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
pub struct Codes {
    pub code: [u8; SUPER_BLOCK],
    pub d: f16,
    /// `m` of [`Scales::F16Min`], `dmin` of [`Scales::SuperMin`].
    pub min: f16,
    /// `sc` of each group, or its exponent.
    pub scale_of: [i8; GROUPS],
    /// `m` of each group, of [`Scales::SuperMin`].
    pub min_of: [u8; GROUPS],
}

impl Default for Codes {
    fn default() -> Codes {
        Codes {
            code: [0; SUPER_BLOCK],
            d: f16::ZERO,
            min: f16::ZERO,
            scale_of: [0; GROUPS],
            min_of: [0; GROUPS],
        }
    }
}

impl Codes {
    /// Scale and minimum of group `g`.
    pub fn scale(&self, scales: Scales, g: usize) -> (f32, f32) {
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
    pub fn has_min(self) -> bool {
        matches!(self, Scales::F16Min | Scales::SuperMin)
    }
}

impl Values {
    pub fn of(self, code: u8) -> i8 {
        match self {
            Values::Less(offset) => code.wrapping_sub(offset).cast_signed(),
            Values::Table(table) => table[usize::from(code)],
        }
    }
}

/// Half of the power of two that an e8m0 exponent means. Half, because the table of MXFP4 has doubled values, which are
/// integers.
pub fn power(e8m0: u8) -> f32 {
    match e8m0 {
        0 | 1 => f32::from_bits(0x0020_0000 << e8m0),
        _ => f32::from_bits(u32::from(e8m0 - 1) << 23),
    }
}

impl Coding {
    /// The value of a code in a group with this scale and minimum.
    pub fn value(&self, code: u8, scale: f32, min: f32) -> f32 {
        let product = scale * f32::from(self.values.of(code));
        if self.scales.has_min() { product + min } else { product } // not -0 + 0
    }

    /// Converts whole blocks, of `bytes` bytes and `values` values each, to f32.
    pub fn dequantise(&self, bytes: usize, values: usize, blocks: &[u8], out: &mut [f32]) {
        let mut codes = Codes::default();
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

/// Tiles of 32 columns in a whole unit.
pub const UNIT: usize = SUPER_BLOCK / GROUP;

/// Where the parts of a unit begin, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    /// The scale of each group: `d`, `sc` or the exponent.
    pub scale: usize,
    /// `m` of each group.
    pub min: usize,
    /// `d` and `-dmin` of each row, which all groups of the row share.
    pub block: usize,
    /// Where the unit ends and the next begins.
    pub end: usize,
}

impl Coding {
    /// Bytes of the codes of 16 rows and 32 columns.
    pub fn tile_bytes(&self) -> usize {
        self.bits as usize * GROUP * LANES / 8
    }

    /// Where the parts of a unit of `tiles` tiles begin.
    pub fn places(&self, tiles: usize) -> Places {
        let groups = tiles * (GROUP / self.group);
        let (of_scale, of_min, of_block) = match self.scales {
            Scales::F16 => (2, 0, 0),
            Scales::F16Min => (2, 2, 0),
            Scales::Exponent => (1, 0, 0),
            Scales::Super => (1, 0, 2),
            Scales::SuperMin => (1, 1, 4),
        };
        let scale = tiles * self.tile_bytes();
        let min = scale + groups * LANES * of_scale;
        let block = min + groups * LANES * of_min;
        Places { scale, min, block, end: (block + LANES * of_block).next_multiple_of(64) }
    }

    /// Bytes of a strip of `tiles` tiles.
    pub fn strip_bytes(&self, tiles: usize) -> usize {
        let rest = tiles % UNIT;
        tiles / UNIT * self.places(UNIT).end + if rest == 0 { 0 } else { self.places(rest).end }
    }
}
