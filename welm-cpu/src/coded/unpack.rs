//! Unpacks coded weights: codes to bytes, scales to f32.

use crate::codes::{Coding, Scales, Values, power};
use crate::codes::{Places, UNIT};
use crate::i8dot::LINE;
use crate::isa::{BIAS, GROUP, Kernel, LANES, Simd};
use crate::tiles::INT8_TILE;

/// 16 rows and 256 columns of weights, unpacked.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Unit {
    pub weight: [[u8; INT8_TILE]; UNIT], // codes as they are, or values with an offset of 128: see `plain`
    pub scale: [[f32; LANES]; 2 * UNIT], // of each group: 8 or 16 groups of 16 rows
    pub bias: [[f32; LANES]; 2 * UNIT],  // -BIAS * scale
    pub min: [[f32; LANES]; 2 * UNIT],
}

impl Unit {
    /// One of zeros.
    pub const ZERO: Unit = Unit {
        weight: [[0; INT8_TILE]; UNIT],
        scale: [[0.0; LANES]; 2 * UNIT],
        bias: [[0.0; LANES]; 2 * UNIT],
        min: [[0.0; LANES]; 2 * UNIT],
    };
}

/// Whether codes are the values themselves and are multiplied without an offset of 128.
pub(super) fn plain(values: Values) -> bool {
    values == Values::Less(0)
}

/// The scales of a stored unit, which are read one group at a time, of its 16 rows.
#[derive(Clone, Copy)]
pub(super) struct GroupScales<S: Simd> {
    scales: Scales,
    scale: *const u8,
    min: *const u8,
    /// `d` and `-dmin` of [`Scales::Super`] and [`Scales::SuperMin`], otherwise 0.
    d: S::V,
    dmin: S::V,
}

impl<S: Simd> GroupScales<S> {
    /// # Safety
    /// The CPU has the instructions of `S`; a unit with its parts at `places` is at `from`.
    #[inline(always)]
    pub(super) unsafe fn of(scales: Scales, places: Places, from: *const u8) -> Self {
        // SAFETY: the caller's promise; `Coding::places` says what lies where.
        unsafe {
            let at = |place: usize| from.add(place);
            let (mut d, mut dmin) = (S::splat(0.0), S::splat(0.0));
            if matches!(scales, Scales::Super | Scales::SuperMin) {
                d = S::load_f16(at(places.block).cast());
            }
            if scales == Scales::SuperMin {
                dmin = S::load_f16(at(places.block + 2 * LANES).cast());
            }
            GroupScales { scales, scale: at(places.scale), min: at(places.min), d, dmin }
        }
    }

    /// The scale of group `g`.
    ///
    /// # Safety
    /// As [`GroupScales::of`]; the unit has that group.
    #[inline(always)]
    pub(super) unsafe fn scale(&self, g: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            match self.scales {
                Scales::F16 | Scales::F16Min => S::load_f16(self.scale.add(2 * LANES * g).cast()),
                Scales::Super | Scales::SuperMin => {
                    S::mul(self.d, S::load_i8(self.scale.add(LANES * g).cast()))
                }
                Scales::Exponent => {
                    let mut of_rows = [0.0; LANES];
                    for (o, scale) in of_rows.iter_mut().enumerate() {
                        *scale = power(*self.scale.add(LANES * g + o));
                    }
                    S::load(of_rows.as_ptr())
                }
            }
        }
    }

    /// The minimum of group `g`, if the format has minima.
    ///
    /// # Safety
    /// As [`GroupScales::scale`].
    #[inline(always)]
    pub(super) unsafe fn min(&self, g: usize) -> S::V {
        // SAFETY: the caller's promise.
        unsafe {
            match self.scales {
                Scales::SuperMin => S::mul(self.dmin, S::load_i8(self.min.add(LANES * g).cast())),
                _ => S::load_f16(self.min.add(2 * LANES * g).cast()),
            }
        }
    }
}

/// Unpacks consecutive units; implements [`Kernel`].
pub(super) struct Unpack {
    pub coding: &'static Coding,
    /// Tiles of all units together.
    pub tiles: usize,
    pub from: *const u8,
    pub to: *mut Unit,
}

/// One unit to unpack.
struct UnpackUnit {
    coding: &'static Coding,
    places: Places,
    tiles: usize,
    from: *const u8,
    to: *mut Unit,
}

/// Four columns of a tile for its 16 rows, from column `4 * kk` on: codes, or values with an offset of 128 (see
/// [`plain`]).
///
/// # Safety
/// The CPU has the instructions of `S`; a tile of `BITS` times 64 bytes is at `from`.
#[inline(always)]
pub(super) unsafe fn code<S: Simd, const BITS: usize, const TABLE: bool>(
    values: Values,
    from: *const u8,
    kk: usize,
) -> S::B {
    // SAFETY: the caller's promise.
    unsafe {
        let load = |plane: usize| S::load_bytes(from.add(plane * LINE));
        let down = kk as i32;
        let low = match BITS {
            4.. => S::bits(load(kk / 2), 4 * (down % 2), 15),
            _ => S::bits(load(kk / 4), 2 * (down % 4), 3),
        };
        let code = match BITS {
            3 => S::either(low, S::bits(load(2), down - 2, 4)),
            5 => S::either(low, S::bits(load(4), down - 4, 16)),
            6 => S::either(low, S::bits(load(4 + kk / 4), 2 * (down % 4) - 4, 48)),
            _ => low,
        };
        match (values, BITS) {
            (Values::Table(table), _) if TABLE => {
                S::look_up(&table.map(|x| x.cast_unsigned().wrapping_add(128)), code)
            }
            (Values::Less(offset), 3 | 5 | 6) if !plain(values) => S::add_byte(code, 128 - offset),
            _ => code,
        }
    }
}

impl UnpackUnit {
    /// # Safety
    /// The CPU has the instructions of `S`; the unit is at `from`, and only this thread uses `to`.
    #[inline(always)]
    unsafe fn codes<S: Simd, const BITS: usize, const TABLE: bool>(&self) {
        for tile in 0..self.tiles {
            // SAFETY: the caller's promise; a tile has `BITS` times 64 bytes.
            unsafe {
                let from = self.from.add(tile * BITS * LINE);
                let to = (*self.to).weight[tile].as_mut_ptr();
                for kk in 0..8 {
                    S::store_bytes(to.add(kk * LINE), code::<S, BITS, TABLE>(self.coding.values, from, kk));
                }
            }
        }
    }

    /// # Safety
    /// As [`UnpackUnit::codes`].
    #[inline(always)]
    unsafe fn scales<S: Simd>(&self) {
        let scales = self.coding.scales;
        // SAFETY: the caller's promise.
        unsafe {
            let from = GroupScales::<S>::of(scales, self.places, self.from);
            for g in 0..self.tiles * (GROUP / self.coding.group) {
                let scale = from.scale(g);
                S::store((&mut (*self.to).scale)[g].as_mut_ptr(), scale);
                S::store((&mut (*self.to).bias)[g].as_mut_ptr(), S::mul(scale, S::splat(-BIAS)));
                if scales.has_min() {
                    S::store((&mut (*self.to).min)[g].as_mut_ptr(), from.min(g));
                }
            }
        }
    }

    /// # Safety
    /// As [`UnpackUnit::codes`].
    #[inline(always)]
    unsafe fn weights<S: Simd>(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.coding.bits, self.coding.values) {
                (2, _) => self.codes::<S, 2, false>(),
                (3, _) => self.codes::<S, 3, false>(),
                (4, Values::Less(_)) => self.codes::<S, 4, false>(),
                (4, Values::Table(_)) => self.codes::<S, 4, true>(),
                (5, _) => self.codes::<S, 5, false>(),
                (6, _) => self.codes::<S, 6, false>(),
                _ => unreachable!("codes have 2 to 6 bits"),
            }
        }
    }
}

impl Kernel for Unpack {
    type Out = ();
    const DOTS: bool = false;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Unpack { coding, tiles, from, to } = self;
        let whole = coding.places(UNIT);
        for u in 0..tiles.div_ceil(UNIT) {
            let tiles = UNIT.min(tiles - u * UNIT);
            let places = if tiles == UNIT { whole } else { coding.places(tiles) };
            // SAFETY: the caller's promise.
            unsafe {
                let (from, to) = (from.add(u * whole.end), to.add(u));
                let unit = UnpackUnit { coding, places, tiles, from, to };
                unit.weights::<S>();
                unit.scales::<S>();
            }
        }
    }
}
