//! Weights of 2 to 6 bits as GGUF files code them, repacked for vectors of sixteen rows. [`welm_cpu::codes`] has what a
//! code means, and the layout.

use half::f16;
use welm_cpu::codes::{Codes, Coding, Places, SUPER_BLOCK, Scales, UNIT};
use welm_cpu::isa::{GROUP, LANES};
use welm_cpu::tiles::tile_counts;

use crate::error::Result;
use crate::host::threads;
use crate::memory::Memory;
use crate::weights::slab::Slab;
use crate::weights::tensor::{Segment, rows_of};

/// A matrix `(rows, cols)` of coded weights.
pub(crate) struct CodedTiles {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) coding: &'static Coding,
    pub(crate) data: Slab<u8>, // (rows / 16) strips
}

/// Where value `k` of row `o` is in a plane of `bits` bits: the index of the byte, and of its lowest bit there.
fn place(bits: usize, o: usize, k: usize) -> (usize, usize) {
    let per_byte = 8 / bits;
    let j = k / 4;
    ((j / per_byte * LANES + o) * 4 + k % 4, j % per_byte * bits)
}

/// The planes in which codes of `bits` bits are stored: for each plane its number of bits, and the index of its lowest
/// bit in the code.
fn planes(bits: u32) -> &'static [(usize, usize)] {
    match bits {
        2 => &[(2, 0)],
        3 => &[(2, 0), (1, 2)],
        4 => &[(4, 0)],
        5 => &[(4, 0), (1, 4)],
        6 => &[(4, 0), (2, 4)],
        _ => unreachable!("codes have 2 to 6 bits"),
    }
}

impl CodedTiles {
    /// Bytes of such a matrix.
    pub(crate) fn bytes_of(rows: usize, cols: usize, coding: &Coding) -> u64 {
        let (down, across) = tile_counts(rows, cols);
        down as u64 * coding.strip_bytes(across) as u64
    }

    /// Repacks segments that all have this coding. Uses `threads` threads.
    pub(crate) fn pack(
        cols: usize,
        segments: &[Segment],
        coding: &'static Coding,
        threads: usize,
    ) -> Result<Self> {
        let stored = rows_of(segments);
        let (down, across) = tile_counts(stored.len(), cols);
        let strip = coding.strip_bytes(across);
        let mut data = Memory::zeroed(down * strip, "coded weights")?;
        let per_thread = down.div_ceil(threads.max(1));
        let parts = data.chunks_mut(per_thread * strip).zip(stored.chunks(per_thread * LANES));
        threads::least(parts, |(data, stored)| {
            for (strip, stored) in data.chunks_mut(strip).zip(stored.chunks(LANES)) {
                for (o, (segment, row)) in stored.iter().enumerate() {
                    let format = segment.tensor.dtype.format();
                    let mut codes = Codes::default();
                    let blocks = segment.tensor.row_bytes(*row).chunks_exact(format.bytes());
                    for (block, first) in blocks.zip((0..cols).step_by(format.values())) {
                        (coding.read)(block, &mut codes);
                        let unit = first / SUPER_BLOCK;
                        let places = coding.places(UNIT.min(across - unit * UNIT));
                        let strip = &mut strip[unit * coding.places(UNIT).end..];
                        write(strip, places, coding, o, first % SUPER_BLOCK, &codes, format.values());
                    }
                }
            }
            None
        });
        Ok(CodedTiles { rows: stored.len(), cols, coding, data: data.into() })
    }

    /// Writes row `row` as f32 into `out`, `(cols)`: an embedding look-up.
    pub(crate) fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (across, coding) = (tile_counts(self.rows, self.cols).1, self.coding);
        let strip_bytes = coding.strip_bytes(across);
        let strip = &self.data[row / LANES * strip_bytes..][..strip_bytes];
        let o = row % LANES;
        let mut codes = Codes::default();
        for (unit, out) in out.chunks_mut(SUPER_BLOCK).enumerate() {
            let places = coding.places(out.len() / GROUP);
            let unit = &strip[unit * coding.places(UNIT).end..][..places.end];
            for (g, out) in out.chunks_mut(coding.group).enumerate() {
                read_scales(unit, places, coding, o, g, &mut codes);
                let (scale, min) = codes.scale(coding.scales, g);
                for (k, x) in out.iter_mut().enumerate() {
                    let code = read_code(unit, coding, o, g * coding.group + k);
                    *x = coding.value(code, scale, min);
                }
            }
        }
    }
}

/// Writes `BITS` bits of each code of row `o`, from bit `lowest` on. Shifts four codes at a time, as one u32.
fn write_plane<const BITS: usize>(plane: &mut [u8], codes: &[u8; GROUP], o: usize, lowest: usize) {
    let mask = u32::from_ne_bytes([(1 << BITS) - 1; 4]);
    let fours = codes.as_chunks::<4>().0;
    for (p, fours) in fours.chunks_exact(8 / BITS).enumerate() {
        let mut bytes = 0;
        for (b, four) in fours.iter().enumerate() {
            bytes |= (u32::from_ne_bytes(*four) >> lowest & mask) << (b * BITS);
        }
        plane[(p * LANES + o) * 4..][..4].copy_from_slice(&bytes.to_ne_bytes());
    }
}

/// Writes a block of row `o` that begins at column `first` of a unit.
fn write(
    unit: &mut [u8],
    places: Places,
    coding: &Coding,
    o: usize,
    first: usize,
    codes: &Codes,
    values: usize,
) {
    for (tile, codes) in codes.code[..values].as_chunks::<GROUP>().0.iter().enumerate() {
        let tile = &mut unit[(first / GROUP + tile) * coding.tile_bytes()..][..coding.tile_bytes()];
        match coding.bits {
            2 => write_plane::<2>(tile, codes, o, 0),
            4 => write_plane::<4>(tile, codes, o, 0),
            3 | 5 | 6 => {
                let (low, high) = tile.split_at_mut(planes(coding.bits)[0].0 * GROUP * LANES / 8);
                match coding.bits {
                    3 => (write_plane::<2>(low, codes, o, 0), write_plane::<1>(high, codes, o, 2)),
                    5 => (write_plane::<4>(low, codes, o, 0), write_plane::<1>(high, codes, o, 4)),
                    _ => (write_plane::<4>(low, codes, o, 0), write_plane::<2>(high, codes, o, 4)),
                };
            }
            _ => unreachable!("codes have 2 to 6 bits"),
        }
    }
    for g in 0..values / coding.group {
        let at = (first / coding.group + g) * LANES + o;
        let mut half = |at: usize, x: f16| unit[at..at + 2].copy_from_slice(&x.to_le_bytes());
        match coding.scales {
            Scales::F16 => half(places.scale + 2 * at, codes.d),
            Scales::F16Min => {
                half(places.scale + 2 * at, codes.d);
                half(places.min + 2 * at, codes.min);
            }
            Scales::Exponent => unit[places.scale + at] = codes.scale_of[g].cast_unsigned(),
            Scales::Super => {
                half(places.block + 2 * o, codes.d);
                unit[places.scale + at] = codes.scale_of[g].cast_unsigned();
            }
            Scales::SuperMin => {
                half(places.block + 2 * o, codes.d);
                half(places.block + 2 * (LANES + o), -codes.min);
                unit[places.scale + at] = codes.scale_of[g].cast_unsigned();
                unit[places.min + at] = codes.min_of[g];
            }
        }
    }
}

/// The code of row `o` and column `k` of a unit.
fn read_code(unit: &[u8], coding: &Coding, o: usize, k: usize) -> u8 {
    let (mut tile, mut code) = (k / GROUP * coding.tile_bytes(), 0);
    for &(bits, lowest) in planes(coding.bits) {
        let (at, down) = place(bits, o, k % GROUP);
        code |= (unit[tile + at] >> down & ((1 << bits) - 1)) << lowest;
        tile += bits * GROUP * LANES / 8;
    }
    code
}

/// Reads scale and minimum of group `g` of row `o` into `to`.
fn read_scales(unit: &[u8], places: Places, coding: &Coding, o: usize, g: usize, to: &mut Codes) {
    let at = g * LANES + o;
    let half = |at: usize| f16::from_le_bytes([unit[at], unit[at + 1]]);
    match coding.scales {
        Scales::F16 => to.d = half(places.scale + 2 * at),
        Scales::F16Min => {
            (to.d, to.min) = (half(places.scale + 2 * at), half(places.min + 2 * at));
        }
        Scales::Exponent => to.scale_of[g] = unit[places.scale + at].cast_signed(),
        Scales::Super | Scales::SuperMin => {
            to.d = half(places.block + 2 * o);
            to.scale_of[g] = unit[places.scale + at].cast_signed();
            if coding.scales == Scales::SuperMin {
                to.min = -half(places.block + 2 * (LANES + o));
                to.min_of[g] = unit[places.min + at];
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::weights::formats::StoredType;
    use crate::weights::tensor::StoredTensor;
    use crate::weights::tests::mapped;

    /// The stored types with a [`Coding`].
    pub(crate) fn coded() -> impl Iterator<Item = StoredType> {
        StoredType::ALL.iter().copied().filter(|stored| stored.format().coding().is_some())
    }

    /// A tensor of arbitrary codes, with scales of a usual size.
    pub(crate) fn tensor(stored: StoredType, rows: usize, cols: usize) -> StoredTensor {
        let format = stored.format();
        let mut state = 7u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 13
        };
        let mut bytes = Vec::new();
        for _ in 0..rows * cols / format.values() {
            let mut block: Vec<u8> = (0..format.bytes()).map(|_| noise() as u8).collect();
            for at in format.scale_places() {
                let scale = f16::from_f32((noise() % 1_000) as f32 / 40_000.0 + 0.001);
                block[*at..*at + 2].copy_from_slice(&scale.to_le_bytes());
            }
            if stored == StoredType::MXFP4 {
                block[0] = 118 + (block[0] & 7);
            }
            bytes.extend(block);
        }
        StoredTensor::new(&mapped(&bytes), "t", stored, &[rows, cols], 0).unwrap()
    }

    #[test]
    fn packed_rows_are_the_stored_ones_bit_for_bit() {
        for stored in coded() {
            let (values, coding) = (stored.format().values(), stored.format().coding().unwrap());
            for cols in [values, 256, 768, 7 * values] {
                let segment = |rows, first_row, n_rows| Segment {
                    tensor: tensor(stored, rows, cols),
                    first_row,
                    n_rows,
                };
                let segments = [segment(9, 3, 5), segment(40, 1, 30)];
                for threads in [1, 3] {
                    let packed = CodedTiles::pack(cols, &segments, coding, threads).unwrap();
                    assert_eq!(packed.data.len() as u64, CodedTiles::bytes_of(35, cols, coding));
                    for (row, (segment, stored_row)) in rows_of(&segments).into_iter().enumerate() {
                        let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
                        packed.row_f32(row, &mut got);
                        segment.tensor.row_f32(stored_row, &mut want);
                        assert!(got == want, "{stored:?} row {row} of {cols}");
                    }
                }
            }
        }
    }

    #[test]
    fn memory_is_near_the_files_size() {
        for stored in coded() {
            let (format, coding) = (stored.format(), stored.format().coding().unwrap());
            let file = (256 * 1_024 / format.values() * format.bytes()) as f64;
            let ratio = CodedTiles::bytes_of(256, 1_024, coding) as f64 / file;
            let most = if stored == StoredType::Q2_K { 1.2 } else { 1.06 };
            assert!((0.99..most).contains(&ratio), "{stored:?}: {ratio}");
        }
    }
}
