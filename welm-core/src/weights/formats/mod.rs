//! The formats in which files store elements, one file for each.
//!
//! A format is a [`BlockFormat`]: it stores a block of values of a row in a number of bytes. To add one, write its file
//! and its two lines below (`mod` and the table). Then tensors in it can be read, and are computed with as f32. If int8
//! or four bits hold its values without rounding, implement [`BlockFormat::int8`] or [`BlockFormat::int4`]. If its
//! values are codes with scales, implement [`BlockFormat::coding`]. Then it is computed with as such.
//!
//! [`int8`] is no stored format of this kind: matrices are quantised to it, and it is kept in tiles ([`super::tiles`]).

pub(crate) mod codes;
pub(crate) mod int8;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod plain;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;

use half::f16;

use self::codes::Coding;

/// Values of a block in formats with small blocks.
const SMALL_BLOCK: usize = 32;

/// Writes a block to `q`, `(32)`, and returns its `scale`: an element is `scale * q`.
pub(crate) type UnpackInt8 = fn(block: &[u8], q: &mut [i8]) -> f16;
/// Writes a block to `q`, `(32)`, each below 16, and returns `(scale, min)`: an element is `scale * q + min`.
pub(crate) type UnpackInt4 = fn(block: &[u8], q: &mut [u8]) -> (f16, f16);

/// A way to store values of a row.
pub(crate) trait BlockFormat: Sync {
    /// The name of the format in GGUF or safetensors.
    fn name(&self) -> &'static str;

    /// Values of a block, all of one row; 1 for formats without blocks.
    fn values(&self) -> usize {
        1
    }

    /// Bytes of a block.
    fn bytes(&self) -> usize;

    /// Converts whole blocks to f32: `blocks` hold exactly `out.len()` values.
    ///
    /// Only the multiplication by a block's scale, and the addition of its minimum, round, once each, as in ggml's own
    /// conversion. All other steps are exact.
    fn dequantise(&self, blocks: &[u8], out: &mut [f32]);

    /// Whether weights can have this format. Integers without scales cannot be weights.
    fn is_weight(&self) -> bool {
        true
    }

    /// Tells whether the scales of a block are finite; `None` if the format has no scales.
    fn finite_scales(&self) -> Option<fn(block: &[u8]) -> bool> {
        None
    }

    /// Converts a block to int8; `None` if that would round its values.
    fn int8(&self) -> Option<UnpackInt8> {
        None
    }

    /// Converts a block to four bits; `None` if that would round its values.
    fn int4(&self) -> Option<UnpackInt4> {
        None
    }

    /// Whether the values of a block share a scale.
    fn is_blocks(&self) -> bool {
        self.values() > 1
    }

    /// The coding of values of 2 to 6 bits; `None` for other formats.
    fn coding(&self) -> Option<&'static Coding> {
        None
    }
}

/// Defines the enum of all formats, and which [`BlockFormat`] each has.
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident in $file:ident,)*) => {
        /// How the elements of a tensor are stored.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)] // ggml's names
        pub(crate) enum StoredType {
            $($(#[$doc])* $name,)*
        }

        impl StoredType {
            pub(crate) const ALL: &[StoredType] = &[$(StoredType::$name),*];

            /// The format of this type.
            pub(crate) fn format(self) -> &'static dyn BlockFormat {
                match self {
                    $(StoredType::$name => &$file::$name,)*
                }
            }
        }
    };
}

formats! {
    /// IEEE 754 binary32.
    F32 in plain,
    /// IEEE 754 binary16.
    F16 in plain,
    /// The upper half of a binary32.
    Bf16 in plain,
    /// Unsigned bytes.
    U8 in plain,
    /// Signed bytes.
    I8 in plain,
    /// ggml's blocks of 32 signed bytes with a scale.
    Q8_0 in q8_0,
    /// ggml's blocks of 32 half bytes with a scale.
    Q4_0 in q4_0,
    /// ggml's blocks of 32 half bytes with a scale and a minimum.
    Q4_1 in q4_1,
    /// ggml's blocks of 32 values of five bits with a scale.
    Q5_0 in q5_0,
    /// ggml's blocks of 32 values of five bits with a scale and a minimum.
    Q5_1 in q5_1,
    /// ggml's blocks of 32 entries of a table with a scale.
    IQ4_NL in iq4_nl,
    /// Blocks of 32 floats of four bits with a power of two, as the Open Compute Project defines them.
    MXFP4 in mxfp4,
    /// ggml's blocks of 256 values of two bits, with scales and minima of four bits for 16.
    Q2_K in q2_k,
    /// ggml's blocks of 256 values of three bits, with scales of six bits for 16.
    Q3_K in q3_k,
    /// ggml's blocks of 256 half bytes, with scales and minima of six bits for 32.
    Q4_K in q4_k,
    /// ggml's blocks of 256 values of five bits, with scales and minima of six bits for 32.
    Q5_K in q5_k,
    /// ggml's blocks of 256 values of six bits, with scales of eight bits for 16.
    Q6_K in q6_k,
    /// ggml's blocks of 256 entries of a table, with scales of six bits for 32.
    IQ4_XS in iq4_xs,
}

impl StoredType {
    /// The type with this name in GGUF or safetensors.
    pub(crate) fn named(name: &str) -> Option<StoredType> {
        Self::ALL.iter().copied().find(|stored| stored.format().name() == name)
    }

    /// The names of all types that weights can have, for a message; without `with_blocks`, those without blocks only.
    pub(crate) fn of_weights(with_blocks: bool) -> String {
        let formats = Self::ALL.iter().map(|stored| stored.format());
        let names = formats.filter(|f| f.is_weight() && (with_blocks || f.values() == 1)).map(|f| f.name());
        let names: Vec<&str> = names.collect();
        let (last, others) = names.split_last().expect("there are formats of weights");
        format!("{} and {last}", others.join(", "))
    }
}

/// The f16 at the beginning of `bytes`.
fn f16_at(bytes: &[u8]) -> f16 {
    f16::from_le_bytes([bytes[0], bytes[1]])
}

/// Unpacks four-bit values: the low four bits of all bytes come first, then the high four bits.
fn halves(bytes: &[u8], q: &mut [u8]) {
    let (low, high) = q.split_at_mut(bytes.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// Unpacks two-bit values: of each 32 bytes, bits `2 i` and `2 i + 1` are values `32 i..32 i + 32` of 128.
fn two_bits(bytes: &[u8], q: &mut [u8]) {
    for (k, q) in q.iter_mut().enumerate() {
        *q = bytes[k / 128 * 32 + k % 32] >> (k / 32 % 4 * 2) & 3;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::safetensors;

    /// A block of arbitrary bytes in which each two bytes are a finite f16.
    fn block(bytes: usize, seed: u32) -> Vec<u8> {
        let byte = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 13) as u8;
        (0..bytes as u32).map(|i| if i % 2 == 1 { byte(i) & 0xBF } else { byte(i) }).collect()
    }

    #[test]
    fn what_holds_a_format_exactly_has_the_values_that_it_is_dequantised_to() {
        let mut held = 0;
        for format in StoredType::ALL.iter().map(|stored| stored.format()) {
            for seed in 0..50 {
                let mut block = block(format.bytes(), seed);
                if format.name() == "MXFP4" {
                    block[0] &= 127; // an exponent
                }
                let mut want = vec![0.0; format.values()];
                format.dequantise(&block, &mut want);
                assert!(format.finite_scales().is_none_or(|finite| finite(&block)), "{}", format.name());
                if let Some(unpack) = format.int8() {
                    let mut q = [0; SMALL_BLOCK];
                    let scale = unpack(&block, &mut q).to_f32();
                    assert_eq!(q.map(|q| scale * f32::from(q))[..], want, "{}", format.name());
                    held += 1;
                }
                if let Some(unpack) = format.int4() {
                    let mut q = [0; SMALL_BLOCK];
                    let (scale, min) = unpack(&block, &mut q);
                    let value = |q: u8| scale.to_f32() * f32::from(q) + min.to_f32();
                    assert!(q.iter().all(|q| *q < 16), "{}", format.name());
                    assert_eq!(q.map(value)[..], want, "{}", format.name());
                    held += 1;
                }
            }
        }
        assert!(held >= 250, "Q8_0, Q5_0 and Q4_0 in int8, Q4_0 and Q4_1 in four bits: {held}");
    }

    #[test]
    fn blocks_have_the_values_that_gguf_gives_them() {
        let path = std::path::Path::new("../tests/fixtures/block_formats.safetensors");
        let file = safetensors::open(path).unwrap();
        let mut formats = 0;
        for stored in StoredType::ALL {
            let format = stored.format();
            let Ok(blocks) = file.get(&format!("{}.blocks", format.name())) else { continue };
            let want = file.get(&format!("{}.values", format.name())).unwrap().to_f32();
            let mut got = vec![0.0; want.len()];
            format.dequantise(blocks.bytes(), &mut got);
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&want), "{}", format.name());
            formats += 1;
        }
        assert_eq!(formats, 10);
    }

    impl dyn BlockFormat {
        /// The offsets of the f16 scales in a block of a coded format.
        pub(crate) fn scale_places(&self) -> &'static [usize] {
            match self.name() {
                "MXFP4" => &[],
                "Q5_0" | "IQ4_NL" | "IQ4_XS" => &[0],
                "Q5_1" | "Q4_K" | "Q5_K" => &[0, 2],
                "Q2_K" => &[80, 82],
                "Q3_K" => &[108],
                "Q6_K" => &[208],
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn scales_that_are_not_finite_are_found() {
        for format in StoredType::ALL.iter().map(|stored| stored.format()).filter(|f| f.coding().is_some()) {
            let finite = format.finite_scales().unwrap();
            let block = vec![0; format.bytes()];
            assert!(finite(&block));
            for (&at, bad) in format
                .scale_places()
                .iter()
                .flat_map(|at| [f16::INFINITY, f16::NEG_INFINITY, f16::NAN].map(|bad| (at, bad)))
            {
                let mut block = block.clone();
                block[at..at + 2].copy_from_slice(&bad.to_le_bytes());
                assert!(!finite(&block), "{} at {at}", format.name());
            }
            if format.name() == "MXFP4" {
                let finite = |exponent: u8| finite(&[&[exponent], &block[1..]].concat());
                assert!(finite(232) && !finite(233) && !finite(254) && !finite(255));
            }
        }
    }

    #[test]
    fn names_lead_to_their_types_and_messages_list_them() {
        assert!(
            StoredType::ALL.iter().all(|&stored| StoredType::named(stored.format().name()) == Some(stored))
        );
        assert_eq!(StoredType::named("Q9_9"), None);
        assert_eq!(
            StoredType::of_weights(true),
            "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL, MXFP4, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and IQ4_XS"
        );
        assert_eq!(StoredType::of_weights(false), "F32, F16 and BF16");
    }
}
