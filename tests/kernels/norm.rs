//! Tests norms and the embedding against their formulas in f64, and int8 and rotated rows against their definition, bit
//! by bit.

use std::ops::Range;

use half::{bf16, f16};
use welm_kernels::error::Error;
use welm_kernels::norm::{
    GROUP, Norm, Quantized, Rotated, Rows, Table, embed, norm, norm_add, quantize, rotate,
};
use welm_kernels::{Buffer, Device};

use crate::random::Random;

/// Dims at and around the columns of a pair, a lane, a group, a warp, a block and two blocks.
const DIMS: [usize; 17] = [1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 127, 640, 1023, 1024, 1025, 1100, 2050];
/// Dims at and around the widest rows that each kernel keeps in registers.
const WIDE: [usize; 9] = [640, 2048, 2050, 2052, 5120, 5124, 8192, 8196, 9001];
/// Columns that are rotated together.
const ROTATED: usize = 64;
/// The value of elements that no kernel has written.
const UNTOUCHED: u16 = 0x7fc1;
const UNTOUCHED_Q: i8 = -128;
const UNTOUCHED_SCALE: f32 = -1.0;

/// All checks.
pub(crate) fn check(device: &Device) {
    formulas(device);
    widths(device);
    summation(device);
    magnitudes(device);
    neighbours(device);
    ranges(device);
    added(device);
    conversions(device);
    rotation(device);
    embedding(device);
    errors(device);
}

/// Rows in every form, `(n, stride)`, with their scales.
#[derive(Debug, PartialEq)]
struct Forms {
    out: Vec<u16>,
    q: Vec<i8>,
    scale: Vec<u32>, // (n, stride / 32)
    rotated: Vec<u16>,
    rotated_q: Vec<i8>,
    rotated_scale: Vec<u32>, // (n)
}

/// Buffers for them on the device; nothing is written yet.
struct Targets {
    n: usize,
    stride: usize,
    out: Buffer<bf16>,
    q: Buffer<i8>,
    scale: Buffer<f32>,
    rotated: Buffer<bf16>,
    rotated_q: Buffer<i8>,
    rotated_scale: Buffer<f32>,
}

impl Targets {
    fn new(device: &Device, n: usize, stride: usize) -> Targets {
        let bf16s = || device.upload(&vec![bf16::from_bits(UNTOUCHED); n * stride]).unwrap();
        let i8s = || device.upload(&vec![UNTOUCHED_Q; n * stride]).unwrap();
        let f32s = |len: usize| device.upload(&vec![UNTOUCHED_SCALE; len]).unwrap();
        Targets {
            n,
            stride,
            out: bf16s(),
            q: i8s(),
            scale: f32s(n * stride / GROUP),
            rotated: bf16s(),
            rotated_q: i8s(),
            rotated_scale: f32s(n),
        }
    }

    fn int8(&mut self) -> Quantized<'_> {
        Quantized { q: &mut self.q, scale: &mut self.scale, scale_stride: self.n }
    }

    fn rotated(&mut self) -> [Rotated<'_>; 2] {
        let int8 = Rotated::Int8 { q: &mut self.rotated_q, scale: &mut self.rotated_scale };
        [Rotated::Bf16(&mut self.rotated), int8]
    }

    fn all(&mut self) -> [Rows<'_>; 4] {
        let int8 = Quantized { q: &mut self.q, scale: &mut self.scale, scale_stride: self.n };
        let rotated_int8 = Rotated::Int8 { q: &mut self.rotated_q, scale: &mut self.rotated_scale };
        [
            Rows::Bf16(&mut self.out),
            Rows::Int8(int8),
            Rows::Rotated(Rotated::Bf16(&mut self.rotated)),
            Rows::Rotated(rotated_int8),
        ]
    }

    /// Reads the rows that were written. They must be these rows and no others.
    fn read(&self, rows: Range<usize>) -> Forms {
        let Targets { n, stride, .. } = *self;
        let part = |len: usize| rows.start * len..rows.end * len;
        let bits = |x: &Buffer<bf16>| x.to_vec().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let scale_bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        // Scales of all rows are stored group by group.
        let scale = self.scale.to_vec().unwrap();
        let by_row: Vec<f32> = (0..n).flat_map(|row| scale.chunks(n).map(move |group| group[row])).collect();
        Forms {
            out: cut(&bits(&self.out), part(stride), UNTOUCHED),
            q: cut(&self.q.to_vec().unwrap(), part(stride), UNTOUCHED_Q),
            scale: cut(&scale_bits(&by_row), part(stride / GROUP), UNTOUCHED_SCALE.to_bits()),
            rotated: cut(&bits(&self.rotated), part(stride), UNTOUCHED),
            rotated_q: cut(&self.rotated_q.to_vec().unwrap(), part(stride), UNTOUCHED_Q),
            rotated_scale: cut(
                &scale_bits(&self.rotated_scale.to_vec().unwrap()),
                part(1),
                UNTOUCHED_SCALE.to_bits(),
            ),
        }
    }
}

fn cut<T: Copy + PartialEq>(all: &[T], part: Range<usize>, untouched: T) -> Vec<T> {
    let rest = all[..part.start].iter().chain(&all[part.end..]);
    assert!(rest.into_iter().all(|&x| x == untouched), "past {part:?} of {}", all.len());
    all[part].to_vec()
}

/// The column at a position of 32.
fn column(position: usize) -> usize {
    let (h, t, i) = (position / 16, position % 16 / 4, position % 4);
    16 * h + [2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9][i]
}

fn f32s_of(x: &[u16]) -> Vec<f32> {
    x.iter().map(|&x| bf16::from_bits(x).to_f32()).collect()
}

fn assert_bits(got: u32, want: f32, what: &str) {
    let got = f32::from_bits(got);
    assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{what}: {got} for {want}");
}

/// Compares values that share a scale with the definition, computed in f32.
fn assert_int8(x: &[f32], q: &[i8], scale: u32, what: &str) {
    let largest = f32::from_bits(x.iter().map(|x| x.abs().to_bits()).max().unwrap());
    assert_bits(scale, largest / 127.0, what);
    let factor = 127.0 / largest;
    for (position, &q) in q.iter().enumerate() {
        let x = x[position / GROUP * GROUP + column(position % GROUP)];
        let want = if factor.is_finite() { (x * factor).round_ties_even() as i8 } else { 0 };
        let want = if largest.is_finite() { want } else { 0 };
        assert_eq!(q, want, "{what}, position {position}: {x}");
    }
}

/// 64 columns times the Walsh-Hadamard matrix, divided by 8, in the order of the kernels.
fn rotated(x: &[f32]) -> Vec<f32> {
    let mut z: Vec<f32> = x.iter().map(|x| x * 0.125).collect();
    for bit in [1, 8, 2, 4, 16, 32] {
        for i in (0..ROTATED).filter(|i| i & bit == 0) {
            (z[i], z[i | bit]) = (z[i] + z[i | bit], z[i] - z[i | bit]);
        }
    }
    z
}

impl Forms {
    /// Checks that the other forms follow from the first.
    fn assert_definitions(&self, stride: usize, what: &str) {
        for (i, x) in self.out.chunks_exact(stride).enumerate() {
            let (x, row) = (f32s_of(x), i * stride..(i + 1) * stride);
            for (g, x) in x.chunks_exact(GROUP).enumerate() {
                let q = &self.q[row.start + g * GROUP..][..GROUP];
                assert_int8(
                    x,
                    q,
                    self.scale[(row.start / GROUP) + g],
                    &format!("{what}, row {i}, group {g}"),
                );
            }
            let z: Vec<f32> = x.chunks_exact(ROTATED).flat_map(rotated).collect();
            for (c, (&got, &want)) in self.rotated[row.clone()].iter().zip(&z).enumerate() {
                let (got, want) = (bf16::from_bits(got), bf16::from_f32(want));
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{what}, row {i}, column {c}: rotated {got} for {want}");
            }
            assert_int8(&z, &self.rotated_q[row], self.rotated_scale[i], &format!("{what}, rotated row {i}"));
        }
    }

    /// Rows `rows` alone.
    fn part(&self, rows: Range<usize>, stride: usize) -> Forms {
        let part = |len: usize| rows.start * len..rows.end * len;
        Forms {
            out: self.out[part(stride)].to_vec(),
            q: self.q[part(stride)].to_vec(),
            scale: self.scale[part(stride / GROUP)].to_vec(),
            rotated: self.rotated[part(stride)].to_vec(),
            rotated_q: self.rotated_q[part(stride)].to_vec(),
            rotated_scale: self.rotated_scale[part(1)].to_vec(),
        }
    }
}

/// Uploads and runs a norm, in every form. One further row must stay unchanged.
fn run(device: &Device, case: &Case, source: Option<&[u32]>, rows: Range<usize>, stride: usize) -> Forms {
    let weight = device.upload(&case.weight).unwrap();
    let bias = case.bias.as_ref().map(|bias| device.upload(bias).unwrap());
    let formula = Norm { weight: &weight, bias: bias.as_ref(), eps: case.eps, layernorm: case.layernorm };
    let x = device.upload(&case.x).unwrap();
    let source = source.map(|source| device.upload(source).unwrap());
    let mut targets = Targets::new(device, rows.end + 1, stride);
    for out in targets.all() {
        norm(device, &formula, &x, case.dim, source.as_ref(), rows.clone(), out, stride).unwrap();
    }
    let forms = targets.read(rows);
    for row in forms.out.chunks_exact(stride) {
        assert!(row[case.dim..].iter().all(|&x| x == 0), "dim {}: padding", case.dim);
    }
    forms.assert_definitions(stride, &format!("norm of {}", case.dim));
    forms
}

struct Case {
    dim: usize,
    x: Vec<f32>, // (n, dim)
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
    layernorm: bool,
}

impl Case {
    fn new(dim: usize, n: usize, layernorm: bool, size: f32, mean: f32) -> Case {
        let mut random = Random::new((dim * 4 + usize::from(layernorm)) as u64);
        let x = random.f32s(n * dim, size).iter().map(|x| x + mean).collect();
        let weight = random.f32s(dim, 2.0);
        let bias = layernorm.then(|| random.f32s(dim, 1.0));
        Case { dim, x, weight, bias, eps: 1e-5, layernorm }
    }

    /// Row `row` of the result, and the magnitude of the terms that make it.
    fn expected(&self, row: usize) -> Vec<(f64, f64)> {
        let x: Vec<f64> = self.x[row * self.dim..][..self.dim].iter().map(|&x| x.into()).collect();
        let dim = self.dim as f64;
        let mean = if self.layernorm { x.iter().sum::<f64>() / dim } else { 0.0 };
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / dim;
        let deviation = (variance + f64::from(self.eps)).sqrt();
        let value = |c: usize| {
            let y = (x[c] - mean) / deviation * f64::from(self.weight[c]);
            let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[c]));
            // The mean itself is only exact to f32.
            let blur = mean.abs() * 2e-7 / deviation * f64::from(self.weight[c].abs());
            (y + bias, y.abs() + bias.abs() + blur * 256.0)
        };
        (0..self.dim).map(value).collect()
    }

    fn assert_close(&self, row: usize, got: &[u16], what: &str) {
        for (c, (&got, (want, size))) in got.iter().zip(self.expected(row)).enumerate() {
            let got = bf16::from_bits(got).to_f64();
            // Half a unit of bf16, and a little for f32.
            let close = (got - want).abs() <= size * (1.0 / 256.0 + 1e-5);
            let Case { dim, layernorm, .. } = self;
            assert!(close, "{what}, dim {dim}, layernorm {layernorm}, column {c}: {got} for {want}");
        }
    }
}

/// Both norms at all dims, with and without a bias, gathered rows, wider strides.
pub(crate) fn formulas(device: &Device) {
    for dim in DIMS {
        for layernorm in [false, true] {
            let mut case = Case::new(dim, 3, layernorm, 3.0, 0.5);
            let stride = dim.next_multiple_of(64);
            let got = run(device, &case, None, 0..3, stride);
            for row in 0..3 {
                case.assert_close(row, &got.out[row * stride..], "as they are");
            }
            let wide = stride + 128;
            let got = run(device, &case, Some(&[2, 0, 0, 2, 1]), 0..5, wide);
            for (i, row) in [2, 0, 0, 2, 1].into_iter().enumerate() {
                case.assert_close(row, &got.out[i * wide..], "gathered");
            }
            // A bias does not make a layernorm, nor its absence an rmsnorm.
            case.bias = case.bias.is_none().then(|| vec![0.25; dim]);
            let got = run(device, &case, None, 0..1, stride);
            case.assert_close(0, &got.out, "the other bias");
        }
    }
    // A row number past the end means the last row.
    let case = Case::new(70, 2, false, 1.0, 0.0);
    let got = run(device, &case, Some(&[u32::MAX, 2, 1]), 0..3, 128);
    assert!(got.out.chunks_exact(128).all(|row| row == &got.out[256..]));
}

/// Rows that registers hold, and rows that they do not.
pub(crate) fn widths(device: &Device) {
    for dim in WIDE {
        for layernorm in [false, true] {
            let case = Case::new(dim, 2, layernorm, 3.0, 0.5);
            let stride = dim.next_multiple_of(64);
            let got = run(device, &case, None, 0..2, stride);
            for row in 0..2 {
                case.assert_close(row, &got.out[row * stride..], "wide");
            }
            // A larger stride, for which another kernel is used, changes no bit.
            let wider = run(device, &case, Some(&[1]), 0..1, stride + 1024);
            assert_eq!(wider.out[..dim], got.out[stride..][..dim], "dim {dim}: the stride shows");
        }
    }
}

/// The mean in its defined order of summation: 256 threads take four columns in turn, the sums of a warp's threads are
/// added by halves, and those of the warps one after another.
fn mean_in_order(x: &[f32]) -> f32 {
    let value = |c: usize| x.get(c).copied().unwrap_or(0.0);
    let mut sums = [0f32; 256];
    for position in (0..x.len().next_multiple_of(16)).step_by(4) {
        let c = position - position % 16 / 2;
        sums[position / 4 % 256] += (value(c) + value(c + 1)) + (value(c + 8) + value(c + 9));
    }
    for mask in [16, 8, 4, 2, 1] {
        sums = std::array::from_fn(|i| sums[i] + sums[i ^ mask]);
    }
    sums.iter().step_by(32).fold(0.0, |sum, warp| sum + warp) / x.len() as f32
}

/// The order of summation is the same for all widths and batches. Large values that cancel show it: with the right
/// order the mean is 0.
pub(crate) fn summation(device: &Device) {
    for dim in WIDE {
        let mut random = Random::new(dim as u64);
        let mut x: Vec<f32> = random.f32s(dim / 3, 1e7).into_iter().flat_map(|x| [x, -x]).collect();
        x.resize(dim, 0.0);
        random.shuffle(&mut x);
        let (mean, other) = (mean_in_order(&x), x.iter().sum::<f32>() / dim as f32);
        assert!((mean - other).abs() > 0.05 * mean.abs(), "dim {dim}: any order gives {mean}");
        let variance = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / dim as f64;

        let weight = vec![1e9; dim];
        let case = Case { dim, x: x.repeat(3), weight, bias: None, eps: 1e-5, layernorm: true };
        let stride = dim.next_multiple_of(64);
        let got = run(device, &case, None, 0..3, stride);
        assert_eq!(got.part(0..1, stride), got.part(2..3, stride));
        let want = f64::from(-mean) * 1e9 / variance.sqrt();
        for (c, _) in x.iter().enumerate().filter(|(_, x)| **x == 0.0) {
            let got = bf16::from_bits(got.out[c]).to_f64();
            assert!((got - want).abs() <= want.abs() / 200.0, "dim {dim}, column {c}: {got} for {want}");
        }
    }
}

/// Large and small values, a mean much larger than the variance, zeros, NaN.
pub(crate) fn magnitudes(device: &Device) {
    for dim in [5, 64, 1100] {
        for (size, mean) in [(1e16, 0.0), (1e-12, 0.0), (1.0, 3000.0), (1e-3, -200.0)] {
            for layernorm in [false, true] {
                let case = Case::new(dim, 2, layernorm, size, mean);
                let stride = dim.next_multiple_of(64);
                let got = run(device, &case, None, 0..2, stride);
                case.assert_close(1, &got.out[stride..], &format!("size {size}, mean {mean}"));
            }
        }
        let mut case = Case::new(dim, 2, true, 0.0, 0.0);
        let got = run(device, &case, None, 0..2, 1152);
        for (c, x) in case.bias.clone().unwrap().into_iter().enumerate() {
            assert_eq!(got.out[c], bf16::from_f32(x).to_bits(), "zeros leave the bias");
        }
        case.bias = None;
        let got = run(device, &case, None, 0..2, 1152);
        assert!(got.out.iter().all(|&x| x & 0x7fff == 0) && got.q.iter().all(|&q| q == 0));
        assert!(got.scale.iter().all(|&s| s == 0));
        assert!(got.rotated_scale.iter().all(|&s| s == 0) && got.rotated_q.iter().all(|&q| q == 0));
        case.eps = 0.0; // 0 / 0
        let got = run(device, &case, None, 0..2, 1152);
        assert!(got.out[..dim].iter().all(|&x| bf16::from_bits(x).is_nan()));
        let groups = dim.div_ceil(GROUP);
        assert!(got.scale[..groups].iter().all(|&s| f32::from_bits(s).is_nan()), "NaN is not lost");
        assert!(got.scale[groups..36].iter().all(|&s| s == 0));
        assert!(got.rotated_scale.iter().all(|&s| f32::from_bits(s).is_nan()), "NaN is not lost");
    }
}

/// The bits of a row do not depend on the other rows.
pub(crate) fn neighbours(device: &Device) {
    for layernorm in [false, true] {
        let case = Case::new(333, 40, layernorm, 2.0, 1.0);
        let all = run(device, &case, None, 0..40, 384);
        for row in [0, 17, 39] {
            let alone = run(device, &case, Some(&[row as u32]), 0..1, 384);
            assert_eq!(alone, all.part(row..row + 1, 384));
        }
    }
}

/// Some rows of many are written to the same places as in a call with all rows.
pub(crate) fn ranges(device: &Device) {
    let case = Case::new(100, 9, true, 2.0, 1.0);
    let source: Vec<u32> = vec![8, 0, 3, 3, 1, 7];
    let (all, gathered) = (run(device, &case, None, 0..9, 128), run(device, &case, Some(&source), 0..6, 128));
    for rows in [0..1, 3..5, 5..6, 2..6, 4..4] {
        assert_eq!(run(device, &case, None, rows.clone(), 128), all.part(rows.clone(), 128));
        assert_eq!(run(device, &case, Some(&source), rows.clone(), 128), gathered.part(rows.clone(), 128));
        let x: Vec<bf16> = all.out.iter().map(|&x| bf16::from_bits(x)).collect();
        assert_eq!(convert(device, &x, rows.clone(), 128), all.part(rows, 128));
    }
}

/// [`quantize`] and [`rotate`] of rows `rows` of `x`, which come back with the other forms.
/// [`norm_add`]: both norms, all widths, and the bits of a row alone.
pub(crate) fn added(device: &Device) {
    for dim in DIMS.into_iter().chain(WIDE) {
        for layernorm in [false, true] {
            let case = Case::new(dim, 5, layernorm, 3.0, 0.5);
            let before = Random::new(dim as u64).f32s(5 * dim, 2.0);
            let weight = device.upload(&case.weight).unwrap();
            let bias = case.bias.as_ref().map(|bias| device.upload(bias).unwrap());
            let formula = Norm { weight: &weight, bias: bias.as_ref(), eps: case.eps, layernorm };
            let x = device.upload(&case.x).unwrap();
            let add = |rows: Range<usize>| {
                let mut to = device.upload(&before).unwrap();
                norm_add(device, &formula, &x, dim, rows, &mut to).unwrap();
                to.to_vec().unwrap()
            };
            let got = add(1..4);
            assert_eq!(got[..dim], before[..dim], "dim {dim}: the row before");
            assert_eq!(got[4 * dim..], before[4 * dim..], "dim {dim}: the row after");
            for row in 1..4 {
                for (c, (want, size)) in case.expected(row).into_iter().enumerate() {
                    let at = row * dim + c;
                    let (got, before) = (f64::from(got[at]), f64::from(before[at]));
                    let close = (got - before - want).abs() <= (size + before.abs()) * 2e-6;
                    assert!(close, "dim {dim}, layernorm {layernorm}, column {c}: {got}, {before} + {want}");
                }
            }
            assert_eq!(add(2..3)[2 * dim..3 * dim], got[2 * dim..3 * dim], "dim {dim}: alone");
        }
    }
}

fn convert(device: &Device, x: &[bf16], rows: Range<usize>, stride: usize) -> Forms {
    let buffer = device.upload(x).unwrap();
    let mut targets = Targets::new(device, x.len() / stride + 1, stride);
    quantize(device, &buffer, rows.clone(), stride, targets.int8()).unwrap();
    for out in targets.rotated() {
        rotate(device, &buffer, rows.clone(), stride, out).unwrap();
    }
    let part = rows.start * stride..rows.end * stride;
    targets.out.write(part.start, &x[part]).unwrap();
    let forms = targets.read(rows);
    forms.assert_definitions(stride, &format!("rows of {stride}"));
    forms
}

/// [`quantize`] and [`rotate`]: random rows, ties, zeros, the largest and the smallest numbers.
pub(crate) fn conversions(device: &Device) {
    let mut random = Random::new(1);
    for (n, stride) in [(1, 64), (3, 64), (2, 192), (5, 1024), (1, 4160), (33, 128)] {
        let plain = random.bf16s(n * stride, 4.0);
        convert(device, &plain, 0..n, stride);
        let mut x = plain;
        for (i, group) in x.chunks_exact_mut(GROUP).enumerate() {
            match i % 8 {
                1 => group.fill(bf16::ZERO),
                2 => group.iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * 8e37)),
                3 => group.iter_mut().for_each(|x| *x = bf16::from_bits(x.to_bits() & 0x807f)),
                // 127 and halves: every product is a tie.
                4 => {
                    for (c, x) in group.iter_mut().enumerate() {
                        *x = bf16::from_f32(c as f32 - 15.5);
                    }
                    group[random.below(GROUP)] = bf16::from_f32(-127.0);
                }
                5 => {
                    group.fill(bf16::ZERO);
                    group[random.below(GROUP)] = bf16::from_f32(-1e-3);
                }
                6 => group.iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * 1e-36)),
                _ => {}
            }
        }
        convert(device, &x, 0..n, stride);
        // All values tiny, or subnormal.
        for size in [1e-36, 1e-39] {
            let small: Vec<bf16> =
                x.iter().map(|x| bf16::from_f32(x.to_f32().clamp(-4.0, 4.0) * size)).collect();
            convert(device, &small, 0..n, stride);
        }
    }
    // A value that is not finite stays visible in the scale: only in its own group, but in all of the row if rotated.
    let mut x = vec![bf16::ONE; 3 * 128];
    (x[5], x[64], x[65]) = (bf16::NAN, bf16::NEG_INFINITY, bf16::MAX);
    x[128 + 70] = bf16::INFINITY;
    let got = convert(device, &x, 0..3, 128);
    let scale: Vec<f32> = got.scale.iter().map(|&s| f32::from_bits(s)).collect();
    assert!(scale[0].is_nan() && scale[2] == f32::INFINITY, "{scale:?}");
    assert_eq!(scale[1], 1.0 / 127.0);
    assert_eq!(got.q[32..64], [127; 32]);
    let scale: Vec<f32> = got.rotated_scale.iter().map(|&s| f32::from_bits(s)).collect();
    assert!(scale[0].is_nan() && !scale[1].is_finite(), "{scale:?}");
    assert_eq!(scale[2], 8.0 / 127.0);
    assert_eq!(got.rotated_q[2 * 128..2 * 128 + 64], [[127].as_slice(), &[0; 63]].concat());
}

/// A rotation against the matrix in f64: `H[i][j] = (-1)^(ones in i & j) / 8`, its own inverse.
pub(crate) fn rotation(device: &Device) {
    let mut random = Random::new(3);
    for (n, stride) in [(1, 64), (3, 320), (1, 2176)] {
        let mut x = random.bf16s(n * stride, 2.0);
        for row in x.chunks_exact_mut(stride) {
            row[random.below(stride)] = bf16::from_f32(300.0); // one column that is large
        }
        let got = convert(device, &x, 0..n, stride);
        for (block, (x, z)) in x.chunks_exact(ROTATED).zip(got.rotated.chunks_exact(ROTATED)).enumerate() {
            let size: f64 = x.iter().map(|x| x.to_f64().abs()).sum::<f64>() / 8.0;
            for (i, &z) in z.iter().enumerate() {
                let term = |(j, x): (usize, &bf16)| match (i & j).count_ones() % 2 {
                    0 => x.to_f64() / 8.0,
                    _ => -x.to_f64() / 8.0,
                };
                let want: f64 = x.iter().enumerate().map(term).sum();
                let z = bf16::from_bits(z).to_f64();
                let close = (z - want).abs() <= want.abs() / 256.0 + 1e-6 * size;
                assert!(close, "stride {stride}, block {block}, column {i}: {z} for {want}");
            }
        }
        // Rotating twice gives the original, except for the rounding in between.
        let z: Vec<bf16> = got.rotated.iter().map(|&z| bf16::from_bits(z)).collect();
        let back = convert(device, &z, 0..n, stride);
        for (block, (x, y)) in x.chunks_exact(ROTATED).zip(back.rotated.chunks_exact(ROTATED)).enumerate() {
            let norm = x.iter().map(|x| x.to_f64().powi(2)).sum::<f64>().sqrt();
            for (x, &y) in x.iter().zip(y) {
                let (x, y) = (x.to_f64(), bf16::from_bits(y).to_f64());
                assert!((x - y).abs() <= norm / 128.0, "stride {stride}, block {block}: {y} for {x}");
            }
        }
    }
}

/// [`embed`]: tables of both kinds, all rows, odd dims, a factor.
pub(crate) fn embedding(device: &Device) {
    let mut random = Random::new(2);
    for (vocab, dim) in [(1usize, 1usize), (130, 3), (17, 64), (40, 65), (9, 1030), (256, 96)] {
        let (rows, groups) = (vocab.next_multiple_of(128), dim.next_multiple_of(128) / GROUP);
        let size = rows * groups * GROUP;
        // Padding has random values, too, because it must have no effect.
        let q: Vec<i8> = (0..size).map(|_| (random.bits() % 255) as i8).collect();
        let scale: Vec<f16> = random.f32s(size / GROUP, 0.1).into_iter().map(f16::from_f32).collect();
        let wide = random.bf16s(size, 3.0);
        let mut tokens: Vec<u32> = (0..vocab as u32).collect();
        random.shuffle(&mut tokens);
        tokens.extend([tokens[0], vocab as u32, u32::MAX]);
        let n = tokens.len();

        let q_table = device.upload(&q).unwrap();
        let scale_table = device.upload(&scale).unwrap();
        let wide_table = device.upload(&wide).unwrap();
        let ids = device.upload(&tokens).unwrap();
        let read = |table, factor| {
            let mut x = device.upload(&vec![-9f32; n * dim + 1]).unwrap();
            embed(device, &ids, n, table, vocab, dim, factor, &mut x).unwrap();
            let mut x = x.to_vec().unwrap();
            assert_eq!(x.pop(), Some(-9.0));
            x
        };
        let [int8, bf16s] =
            [Table::Int8 { q: &q_table, scale: &scale_table }, Table::Bf16(&wide_table)].map(|table| {
                let x = read(table, 1.0);
                let scaled: Vec<f32> = x.iter().map(|x| x * 5.3).collect();
                assert_eq!(read(table, 5.3), scaled, "a factor");
                x
            });
        for (i, &token) in tokens.iter().enumerate() {
            let row = (token as usize).min(vocab - 1);
            for c in 0..dim {
                let (tile, in_group) = (row / 16 * groups + c / GROUP, c % GROUP);
                // The four columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of 16, and which of them.
                let (half, c16) = (in_group / 16, in_group % 16);
                let (t, which) = (c16 % 8 / 2, c16 / 8 * 2 + c16 % 2);
                let (lane, below) = (row % 8 * 4 + t, row % 16 / 8);
                let value = q[(tile * 32 + lane) * 16 + half * 8 + below * 4 + which];
                let want = f64::from(value) * scale[tile * 16 + row % 8 * 2 + row % 16 / 8].to_f64();
                assert_eq!(f64::from(int8[i * dim + c]), want, "int8, token {token}, column {c}");
                let want = wide[((tile * 2 + half) * 32 + lane) * 8 + below * 4 + which].to_f32();
                assert_eq!(bf16s[i * dim + c], want, "bf16, token {token}, column {c}");
            }
        }
    }
}

fn operand(result: Result<(), Error>) -> &'static str {
    match result {
        Err(Error::Shape { operand, .. }) => operand,
        other => panic!("a wrong shape went through: {other:?}"),
    }
}

/// What the launchers refuse.
pub(crate) fn errors(device: &Device) {
    let f32s = |len| device.zeros::<f32>(len).unwrap();
    let u32s = |len| device.zeros::<u32>(len).unwrap();
    let bf16s = |len| device.zeros::<bf16>(len).unwrap();
    let i8s = |len| device.zeros::<i8>(len).unwrap();

    let (w40, w41, x) = (f32s(40), f32s(41), f32s(3 * 40));
    let (w0, w32000) = (f32s(0), f32s(2_000_000));
    let ids = u32s(3);
    let plain = |weight| Norm { weight, bias: None, eps: 1e-5, layernorm: false };
    let bf16_call = |formula: &Norm, x: &Buffer<f32>, dim, source, rows: Range<usize>, out: usize, stride| {
        norm(device, formula, x, dim, source, rows, Rows::Bf16(&mut bf16s(out)), stride)
    };
    let good = plain(&w40);
    assert_eq!(operand(bf16_call(&plain(&w0), &x, 0, None, 0..3, 192, 64)), "dim");
    assert_eq!(operand(bf16_call(&good, &x, 40, None, 0..3, 192, 32)), "stride");
    assert_eq!(operand(bf16_call(&plain(&w41), &x, 41, None, 0..2, 192, 0)), "stride");
    assert_eq!(operand(bf16_call(&good, &x, 40, None, 0..3, 240, 80)), "stride");
    assert_eq!(operand(bf16_call(&plain(&w41), &x, 40, None, 0..3, 192, 64)), "weight");
    assert_eq!(operand(bf16_call(&Norm { bias: Some(&w41), ..good }, &x, 40, None, 0..3, 192, 64)), "bias");
    assert_eq!(operand(bf16_call(&good, &x, 40, None, 0..4, 256, 64)), "x");
    assert_eq!(operand(bf16_call(&good, &x, 40, None, 3..4, 256, 64)), "x");
    assert_eq!(operand(bf16_call(&good, &w0, 40, Some(&ids), 0..1, 64, 64)), "x");
    assert_eq!(operand(bf16_call(&good, &x, 40, Some(&ids), 0..4, 256, 64)), "source");
    assert_eq!(operand(bf16_call(&good, &x, 40, Some(&ids), 3..4, 256, 64)), "source");
    assert_eq!(operand(bf16_call(&good, &x, 40, None, 0..3, 191, 64)), "out");
    assert_eq!(operand(bf16_call(&good, &x, 40, None, 2..3, 191, 64)), "out");
    assert_eq!(operand(bf16_call(&good, &x, 40, Some(&ids), 0..usize::MAX, 192, 64)), "sizes");
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is wrong")]
    let reversed = 3..2;
    assert_eq!(operand(bf16_call(&good, &x, 40, None, reversed.clone(), 192, 64)), "rows");
    let wide = bf16_call(&plain(&w32000), &w32000, 2_000_000, None, 0..1, 2_000_000, 2_000_000);
    assert!(matches!(wide, Err(Error::Unsupported { .. })), "{wide:?}");
    bf16_call(&good, &w0, 40, None, 0..0, 0, 64).unwrap();
    bf16_call(&good, &x, 40, None, 0..3, 192, 64).unwrap();

    let add = |formula: &Norm, rows, to| norm_add(device, formula, &x, 40, rows, &mut f32s(to));
    assert_eq!(operand(add(&plain(&w41), 0..3, 120)), "weight");
    assert_eq!(operand(add(&good, 0..4, 160)), "x");
    assert_eq!(operand(add(&good, 2..3, 119)), "to");
    add(&good, 2..3, 120).unwrap();

    // The other forms: by the norm, and of rows.
    let bf16_x = bf16s(192);
    for from_rows in [false, true] {
        let int8 = |rows: Range<usize>, q, scale, scale_stride| {
            let (mut q, mut scale) = (i8s(q), f32s(scale));
            let to = Quantized { q: &mut q, scale: &mut scale, scale_stride };
            if from_rows {
                quantize(device, &bf16_x, rows, 64, to)
            } else {
                norm(device, &good, &x, 40, None, rows, Rows::Int8(to), 64)
            }
        };
        assert_eq!(operand(int8(0..3, 191, 6, 3)), "q");
        assert_eq!(operand(int8(0..3, 192, 5, 3)), "scale");
        assert_eq!(operand(int8(2..3, 192, 5, 3)), "scale");
        assert_eq!(operand(int8(2..3, 192, 6, 2)), "scale_stride");
        assert_eq!(operand(int8(0..3, 192, 6, usize::MAX)), "scale");
        int8(0..3, 192, 6, 3).unwrap();
        int8(3..3, 192, 6, 3).unwrap();
        let rotated = |rows: Range<usize>, to: Rotated| {
            if from_rows {
                rotate(device, &bf16_x, rows, 64, to)
            } else {
                norm(device, &good, &x, 40, None, rows, Rows::Rotated(to), 64)
            }
        };
        assert_eq!(operand(rotated(2..3, Rotated::Bf16(&mut bf16s(191)))), "out");
        rotated(0..3, Rotated::Bf16(&mut bf16s(192))).unwrap();
        let rotated_int8 = |rows: Range<usize>, q, scale| {
            rotated(rows, Rotated::Int8 { q: &mut i8s(q), scale: &mut f32s(scale) })
        };
        assert_eq!(operand(rotated_int8(2..3, 191, 3)), "q");
        assert_eq!(operand(rotated_int8(2..3, 192, 2)), "scale");
        rotated_int8(0..3, 192, 3).unwrap();
        rotated_int8(1..1, 192, 3).unwrap();
    }
    let call = |x, rows: Range<usize>, stride| {
        let mut out = bf16s(rows.end.saturating_mul(stride).min(1000));
        rotate(device, &bf16s(x), rows, stride, Rotated::Bf16(&mut out))
    };
    assert_eq!(operand(call(192, 0..2, 96)), "stride");
    assert_eq!(operand(call(191, 0..3, 64)), "x");
    assert_eq!(operand(call(191, 2..3, 64)), "x");
    assert_eq!(operand(call(192, 0..usize::MAX, 64)), "sizes");
    assert_eq!(operand(call(192, reversed, 64)), "rows");
    call(0, 0..0, 64).unwrap();
    call(0, 0..3, 0).unwrap();
    call(192, 0..3, 64).unwrap();

    let (table, short, scale) = (i8s(128 * 128), i8s(128 * 128 - 1), device.zeros::<f16>(128 * 4).unwrap());
    let (wide, no_scale) = (bf16s(128 * 128), device.zeros::<f16>(0).unwrap());
    let call = |tokens, n, table, vocab, dim, x| {
        embed(device, &u32s(tokens), n, table, vocab, dim, 1.0, &mut f32s(x))
    };
    let good = Table::Int8 { q: &table, scale: &scale };
    assert_eq!(operand(call(3, 3, good, 0, 10, 30)), "table");
    assert_eq!(operand(call(3, 3, good, 7, 0, 30)), "table");
    assert_eq!(operand(call(2, 3, good, 7, 10, 30)), "tokens");
    assert_eq!(operand(call(3, 3, good, 7, 10, 29)), "x");
    assert_eq!(operand(call(3, 3, Table::Int8 { q: &short, scale: &scale }, 7, 10, 30)), "table");
    assert_eq!(operand(call(3, 3, Table::Int8 { q: &table, scale: &no_scale }, 7, 10, 30)), "scale");
    assert_eq!(operand(call(3, 3, Table::Bf16(&wide), 129, 10, 30)), "table");
    assert_eq!(operand(call(3, 3, Table::Bf16(&wide), 7, 129, 500)), "table");
    assert_eq!(operand(call(3, 3, good, usize::MAX, 10, 30)), "sizes");
    let infinite = embed(device, &ids, 3, good, 7, 10, f32::INFINITY, &mut f32s(30));
    assert_eq!(operand(infinite), "factor");
    call(0, 0, good, 7, 10, 0).unwrap();
    call(3, 3, Table::Bf16(&wide), 128, 64, 192).unwrap();
    device.synchronize().unwrap();
}
