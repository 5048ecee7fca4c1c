//! Norms and the embedding against their formulas in f64, int8 against its definition to the bit.

use half::{bf16, f16};
use welm_kernels::error::Error;
use welm_kernels::norm::{GROUP, Norm, Quantized, Table, embed, norm, quantize};
use welm_kernels::{Buffer, Device};

use crate::random::Random;

/// Around the columns of a pair, a lane, a group, a warp, a block and two.
const DIMS: [usize; 16] = [1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 127, 640, 1023, 1024, 1025, 2050];
/// What no kernel has written.
const UNTOUCHED: u16 = 0x7fc1;

/// All checks.
pub fn check(device: &Device) {
    formulas(device);
    magnitudes(device);
    neighbours(device);
    int8(device);
    embedding(device);
    errors(device);
}

/// What [`run`] gets back.
#[derive(Debug, PartialEq)]
struct Rows {
    out: Vec<u16>,   // (m, stride)
    q: Vec<i8>,      // (m, stride)
    scale: Vec<u32>, // (m, stride / 32)
}

/// Scales `(stride / 32, scale_stride)` as `(m, stride / 32)`; what lies between must be untouched.
fn by_row(scale: &[f32], m: usize, scale_stride: usize) -> Vec<u32> {
    let rest = |group: &[f32]| group[m..].iter().all(|&s| s == -1.0);
    assert!(scale.chunks(scale_stride).all(rest), "past the rows of the scales");
    (0..m).flat_map(|row| scale.chunks(scale_stride).map(move |group| group[row].to_bits())).collect()
}

/// A norm with everything uploaded; a row more than `m` must stay as it is.
fn run(device: &Device, case: &Case, rows: Option<&[u32]>, m: usize, stride: usize, int8: bool) -> Rows {
    let weight = device.upload(&case.weight).unwrap();
    let bias = case.bias.as_ref().map(|bias| device.upload(bias).unwrap());
    let formula = Norm { weight: &weight, bias: bias.as_ref(), eps: case.eps, layernorm: case.layernorm };
    let x = device.upload(&case.x).unwrap();
    let rows = rows.map(|rows| device.upload(rows).unwrap());
    let mut out = device.upload(&vec![bf16::from_bits(UNTOUCHED); (m + 1) * stride]).unwrap();
    let mut q = device.upload(&vec![-128i8; (m + 1) * stride]).unwrap();
    let scale_stride = m + 3;
    let mut scale = device.upload(&vec![-1f32; scale_stride * stride / GROUP]).unwrap();
    let quantized = int8.then_some(Quantized { q: &mut q, scale: &mut scale, scale_stride });
    norm(device, &formula, &x, case.dim, rows.as_ref(), m, &mut out, stride, quantized).unwrap();
    let mut out: Vec<u16> = out.to_vec().unwrap().iter().map(|x| x.to_bits()).collect();
    let mut q = q.to_vec().unwrap();
    let written = if int8 { m } else { 0 };
    let scale = by_row(&scale.to_vec().unwrap(), written, scale_stride);
    assert!(out.drain(m * stride..).all(|x| x == UNTOUCHED), "dim {}: past the rows", case.dim);
    assert!(q.drain(written * stride..).all(|q| q == -128), "dim {}: past the rows of q", case.dim);
    for row in out.chunks_exact(stride) {
        assert!(row[case.dim..].iter().all(|&x| x == 0), "dim {}: padding", case.dim);
    }
    Rows { out, q, scale }
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
            // The mean itself is only known to f32.
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
pub fn formulas(device: &Device) {
    for dim in DIMS {
        for layernorm in [false, true] {
            let mut case = Case::new(dim, 3, layernorm, 3.0, 0.5);
            let stride = dim.next_multiple_of(64);
            let got = run(device, &case, None, 3, stride, false);
            for row in 0..3 {
                case.assert_close(row, &got.out[row * stride..], "as they are");
            }
            let wide = stride + 128;
            let got = run(device, &case, Some(&[2, 0, 0, 2, 1]), 5, wide, true);
            for (i, row) in [2, 0, 0, 2, 1].into_iter().enumerate() {
                case.assert_close(row, &got.out[i * wide..], "gathered");
            }
            assert_int8(&got.out, &got.q, &got.scale, "norm");
            // A bias does not make a layernorm, nor its absence an rmsnorm.
            case.bias = case.bias.is_none().then(|| vec![0.25; dim]);
            let got = run(device, &case, None, 1, stride, true);
            case.assert_close(0, &got.out, "the other bias");
        }
    }
    // Rows that are not there count as the last.
    let case = Case::new(70, 2, false, 1.0, 0.0);
    let got = run(device, &case, Some(&[u32::MAX, 2, 1]), 3, 128, false);
    assert!(got.out.chunks_exact(128).all(|row| row == &got.out[256..]));
}

/// Large and small values, a mean that dwarfs the variance, zeros, NaN.
pub fn magnitudes(device: &Device) {
    for dim in [5, 64, 1100] {
        for (size, mean) in [(1e16, 0.0), (1e-12, 0.0), (1.0, 3000.0), (1e-3, -200.0)] {
            for layernorm in [false, true] {
                let case = Case::new(dim, 2, layernorm, size, mean);
                let stride = dim.next_multiple_of(64);
                let got = run(device, &case, None, 2, stride, false);
                case.assert_close(1, &got.out[stride..], &format!("size {size}, mean {mean}"));
            }
        }
        let mut case = Case::new(dim, 2, true, 0.0, 0.0);
        let got = run(device, &case, None, 2, 1152, true);
        for (c, x) in case.bias.clone().unwrap().into_iter().enumerate() {
            assert_eq!(got.out[c], bf16::from_f32(x).to_bits(), "zeros leave the bias");
        }
        case.bias = None;
        let got = run(device, &case, None, 2, 1152, true);
        assert!(got.out.iter().all(|&x| x & 0x7fff == 0) && got.q.iter().all(|&q| q == 0));
        assert!(got.scale.iter().all(|&s| s == 0));
        case.eps = 0.0; // 0 / 0
        let got = run(device, &case, None, 2, 1152, true);
        assert!(got.out[..dim].iter().all(|&x| bf16::from_bits(x).is_nan()));
        let groups = dim.div_ceil(GROUP);
        assert!(got.scale[..groups].iter().all(|&s| f32::from_bits(s).is_nan()), "NaN is not lost");
        assert!(got.scale[groups..36].iter().all(|&s| s == 0));
    }
}

/// The bits of a row do not depend on the other rows.
pub fn neighbours(device: &Device) {
    for layernorm in [false, true] {
        let case = Case::new(333, 40, layernorm, 2.0, 1.0);
        let all = run(device, &case, None, 40, 384, true);
        for row in [0, 17, 39] {
            let alone = run(device, &case, Some(&[row as u32]), 1, 384, true);
            assert_eq!(alone.out, all.out[row * 384..][..384]);
            assert_eq!(alone.q, all.q[row * 384..][..384]);
            assert_eq!(alone.scale, all.scale[row * 12..][..12]);
        }
    }
}

/// The column at a position of 32.
fn column(position: usize) -> usize {
    let (h, t, i) = (position / 16, position % 16 / 4, position % 4);
    16 * h + [2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9][i]
}

/// The definition, in f32 as it is meant.
fn assert_int8(x: &[u16], q: &[i8], scale: &[u32], what: &str) {
    assert_eq!((q.len(), scale.len()), (x.len(), x.len() / GROUP), "{what}");
    for (i, (x, q)) in x.chunks_exact(GROUP).zip(q.chunks_exact(GROUP)).enumerate() {
        let x: Vec<f32> = x.iter().map(|&x| bf16::from_bits(x).to_f32()).collect();
        let amax = x.iter().fold(0f32, |a, x| a.max(x.abs()));
        let factor = 127.0 / amax;
        assert_eq!(f32::from_bits(scale[i]), amax / 127.0, "{what}, group {i}: scale");
        for (position, &q) in q.iter().enumerate() {
            let exact = (x[column(position)] * factor).round_ties_even();
            let want = if factor.is_finite() { exact as i8 } else { 0 };
            assert_eq!(q, want, "{what}, group {i}, position {position}");
        }
    }
}

/// [`quantize`]: random rows, ties, zeros, the largest and the smallest numbers.
pub fn int8(device: &Device) {
    let mut random = Random::new(1);
    for (n, stride) in [(1, 64), (3, 64), (2, 192), (5, 1024), (1, 4160), (33, 128)] {
        let mut x = random.bf16s(n * stride, 4.0);
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
        let mut q = device.upload(&vec![-128i8; n * stride + 7]).unwrap();
        let mut scale = device.upload(&vec![-1f32; (n + 1) * stride / GROUP]).unwrap();
        let buffer = device.upload(&x).unwrap();
        let quantized = Quantized { q: &mut q, scale: &mut scale, scale_stride: n + 1 };
        quantize(device, &buffer, n, stride, quantized).unwrap();
        let mut q = q.to_vec().unwrap();
        assert!(q.drain(n * stride..).all(|q| q == -128));
        let x: Vec<u16> = x.iter().map(|x| x.to_bits()).collect();
        let scale = by_row(&scale.to_vec().unwrap(), n, n + 1);
        assert_int8(&x, &q, &scale, &format!("{n} rows of {stride}"));
    }
    // What is not finite stays visible in the scale, and in no other group.
    let mut x = vec![bf16::ONE; 128];
    (x[5], x[64], x[65]) = (bf16::NAN, bf16::NEG_INFINITY, bf16::MAX);
    let mut q = device.zeros(128).unwrap();
    let mut scale = device.zeros(4).unwrap();
    let buffer = device.upload(&x).unwrap();
    quantize(device, &buffer, 1, 128, Quantized { q: &mut q, scale: &mut scale, scale_stride: 1 }).unwrap();
    let scale = scale.to_vec().unwrap();
    assert!(scale[0].is_nan() && scale[2] == f32::INFINITY, "{scale:?}");
    assert_eq!(scale[1], 1.0 / 127.0);
    assert_eq!(q.to_vec().unwrap()[32..64], [127; 32]);
}

/// [`embed`]: tables of both kinds, all rows, odd dims.
pub fn embedding(device: &Device) {
    let mut random = Random::new(2);
    for (vocab, dim) in [(1usize, 1usize), (130, 3), (17, 64), (40, 65), (9, 1030), (256, 96)] {
        let (rows, groups) = (vocab.next_multiple_of(128), dim.next_multiple_of(128) / GROUP);
        let size = rows * groups * GROUP;
        // Padding is never read into a result: it is as random as the rest.
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
        let read = |table| {
            let mut x = device.upload(&vec![-9f32; n * dim + 1]).unwrap();
            embed(device, &ids, n, table, vocab, dim, &mut x).unwrap();
            let mut x = x.to_vec().unwrap();
            assert_eq!(x.pop(), Some(-9.0));
            x
        };
        let int8 = read(Table::Int8 { q: &q_table, scale: &scale_table });
        let bf16s = read(Table::Bf16(&wide_table));
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
pub fn errors(device: &Device) {
    let f32s = |len| device.zeros::<f32>(len).unwrap();
    let u32s = |len| device.zeros::<u32>(len).unwrap();
    let bf16s = |len| device.zeros::<bf16>(len).unwrap();
    let i8s = |len| device.zeros::<i8>(len).unwrap();

    let (w40, w41, x) = (f32s(40), f32s(41), f32s(3 * 40));
    let (w0, w32000) = (f32s(0), f32s(2_000_000));
    let ids = u32s(3);
    let plain = |weight| Norm { weight, bias: None, eps: 1e-5, layernorm: false };
    let call = |formula: &Norm,
                x: &Buffer<f32>,
                dim,
                rows,
                m: usize,
                out: usize,
                stride,
                int8: Option<[usize; 2]>| {
        let (mut out, [q, scale]) = (bf16s(out), int8.unwrap_or_default());
        let (mut q, mut scale) = (i8s(q), f32s(scale));
        let quantized = int8.map(|_| Quantized { q: &mut q, scale: &mut scale, scale_stride: m.min(3) });
        norm(device, formula, x, dim, rows, m, &mut out, stride, quantized)
    };
    let good = plain(&w40);
    assert_eq!(operand(call(&plain(&w0), &x, 0, None, 3, 192, 64, None)), "dim");
    assert_eq!(operand(call(&good, &x, 40, None, 3, 192, 32, None)), "stride");
    assert_eq!(operand(call(&plain(&w41), &x, 41, None, 2, 192, 0, None)), "stride");
    assert_eq!(operand(call(&good, &x, 40, None, 3, 240, 80, None)), "stride");
    assert_eq!(operand(call(&plain(&w41), &x, 40, None, 3, 192, 64, None)), "weight");
    assert_eq!(operand(call(&Norm { bias: Some(&w41), ..good }, &x, 40, None, 3, 192, 64, None)), "bias");
    assert_eq!(operand(call(&good, &x, 40, None, 4, 256, 64, None)), "x");
    assert_eq!(operand(call(&good, &w0, 40, Some(&ids), 1, 64, 64, None)), "x");
    assert_eq!(operand(call(&good, &x, 40, Some(&ids), 4, 256, 64, None)), "rows");
    assert_eq!(operand(call(&good, &x, 40, None, 3, 191, 64, None)), "out");
    assert_eq!(operand(call(&good, &x, 40, None, 3, 192, 64, Some([191, 6]))), "q");
    assert_eq!(operand(call(&good, &x, 40, None, 3, 192, 64, Some([192, 5]))), "scale");
    assert_eq!(operand(call(&good, &x, 40, Some(&ids), usize::MAX, 192, 64, None)), "rows");
    let wide = call(&plain(&w32000), &w32000, 2_000_000, None, 1, 2_000_000, 2_000_000, None);
    assert!(matches!(wide, Err(Error::Unsupported { .. })), "{wide:?}");
    call(&good, &w0, 40, None, 0, 0, 64, Some([0, 0])).unwrap();
    call(&good, &x, 40, None, 3, 192, 64, Some([192, 6])).unwrap();

    let call = |x, n: usize, stride, q, scale| {
        let (mut q, mut scale) = (i8s(q), f32s(scale));
        let quantized = Quantized { q: &mut q, scale: &mut scale, scale_stride: n.min(3) };
        quantize(device, &bf16s(x), n, stride, quantized)
    };
    assert_eq!(operand(call(192, 2, 96, 192, 6)), "stride");
    assert_eq!(operand(call(191, 3, 64, 192, 6)), "x");
    assert_eq!(operand(call(192, 3, 64, 191, 6)), "q");
    assert_eq!(operand(call(192, 3, 64, 192, 5)), "scale");
    assert_eq!(operand(call(192, usize::MAX, 64, 192, 5)), "x");
    call(0, 0, 64, 0, 0).unwrap();
    call(192, 3, 64, 192, 6).unwrap();

    let (table, short, scale) = (i8s(128 * 128), i8s(128 * 128 - 1), device.zeros::<f16>(128 * 4).unwrap());
    let (wide, no_scale) = (bf16s(128 * 128), device.zeros::<f16>(0).unwrap());
    let call =
        |tokens, n, table, vocab, dim, x| embed(device, &u32s(tokens), n, table, vocab, dim, &mut f32s(x));
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
    call(0, 0, good, 7, 10, 0).unwrap();
    call(3, 3, Table::Bf16(&wide), 128, 64, 192).unwrap();
    device.synchronize().unwrap();
}
