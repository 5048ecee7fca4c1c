//! Formats of elements and of blocks of them: how many values and bytes, and which values they are.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// How the elements of a tensor are stored. The last three are ggml's blocks of 32 elements of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StoredType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Unsigned bytes.
    U8,
    /// Signed bytes.
    I8,
    /// `d: f16, q: [i8; 32]`; an element is `d * q`.
    Q8_0,
    /// `d: f16, q: [u4; 32]`; an element is `d * (q - 8)`. Low nibbles are the first 16 elements.
    Q4_0,
    /// `d: f16, m: f16, q: [u4; 32]`; an element is `d * q + m`. Nibbles as in `Q4_0`.
    Q4_1,
}

impl StoredType {
    /// As GGUF and safetensors name it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            StoredType::F32 => "F32",
            StoredType::F16 => "F16",
            StoredType::Bf16 => "BF16",
            StoredType::U8 => "U8",
            StoredType::I8 => "I8",
            StoredType::Q8_0 => "Q8_0",
            StoredType::Q4_0 => "Q4_0",
            StoredType::Q4_1 => "Q4_1",
        }
    }

    /// Elements of one block; 1 for types without blocks.
    pub(crate) const fn block_len(self) -> usize {
        match self {
            StoredType::Q8_0 | StoredType::Q4_0 | StoredType::Q4_1 => 32,
            _ => 1,
        }
    }

    /// Bytes of one block.
    pub(crate) const fn block_bytes(self) -> usize {
        match self {
            StoredType::F32 => 4,
            StoredType::F16 | StoredType::Bf16 => 2,
            StoredType::U8 | StoredType::I8 => 1,
            StoredType::Q8_0 => 2 + 32,
            StoredType::Q4_0 => 2 + 16,
            StoredType::Q4_1 => 2 + 2 + 16,
        }
    }

    /// Converts whole blocks to f32: `bytes` holds exactly `out.len()` elements.
    ///
    /// Every step is exact but the one multiplication (and addition) of a block format, which rounds once
    /// per operation, as ggml's own conversion does.
    pub(super) fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        debug_assert_eq!(bytes.len(), out.len() / self.block_len() * self.block_bytes());
        match self {
            StoredType::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            // By 64, because `half` looks for the hardware's conversion once per slice.
            StoredType::F16 => {
                for (out, bytes) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                    let mut halves = [f16::ZERO; 64];
                    for (h, b) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *h = f16::from_le_bytes(*b);
                    }
                    halves[..out.len()].convert_to_f32_slice(out);
                }
            }
            StoredType::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }
            StoredType::U8 => {
                for (o, b) in out.iter_mut().zip(bytes) {
                    *o = f32::from(*b);
                }
            }
            StoredType::I8 => {
                for (o, b) in out.iter_mut().zip(bytes) {
                    *o = f32::from(b.cast_signed());
                }
            }
            StoredType::Q8_0 => {
                for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<34>().0) {
                    let d = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    for (o, q) in out.iter_mut().zip(&b[2..]) {
                        *o = d * f32::from(q.cast_signed());
                    }
                }
            }
            StoredType::Q4_0 => {
                for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<18>().0) {
                    let d = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    for (i, q) in b[2..].iter().enumerate() {
                        out[i] = d * (f32::from(q & 15) - 8.0);
                        out[i + 16] = d * (f32::from(q >> 4) - 8.0);
                    }
                }
            }
            StoredType::Q4_1 => {
                for (out, b) in out.as_chunks_mut::<32>().0.iter_mut().zip(bytes.as_chunks::<20>().0) {
                    let d = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    let m = f16::from_le_bytes([b[2], b[3]]).to_f32();
                    for (i, q) in b[4..].iter().enumerate() {
                        out[i] = d * f32::from(q & 15) + m;
                        out[i + 16] = d * f32::from(q >> 4) + m;
                    }
                }
            }
        }
    }
}
