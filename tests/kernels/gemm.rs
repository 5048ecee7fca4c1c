//! Products against the formula in f64, and row by row: which kernel a row meets changes no bit of it.

use std::ops::Range;

use half::{bf16, f16};
use welm_kernels::error::Error;
use welm_kernels::gemm::{
    ALIGN, Arithmetic, Function, Input, Output, Packed, RowOrder, Weight, bf16_bytes, gemm, int8_bytes,
};
use welm_kernels::norm::{GROUP, Quantized, quantize};
use welm_kernels::{Buffer, Device};

use crate::random::Random;

/// What no kernel has written.
const UNTOUCHED: f32 = -77.0;
/// One of each kernel's sizes, and those around them.
const ROWS_OF_X: [usize; 10] = [1, 7, 8, 9, 16, 17, 33, 64, 65, 150];

/// All checks.
pub fn check(device: &Device) {
    few_and_tiles(device);
    shapes(device);
    functions(device);
    int8_activations(device);
    errors(device);
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Int8,
    Bf16,
}

/// A weight as it was before it was packed.
struct Plain {
    rows: usize,
    cols: usize,
    values: Vec<f64>, // (rows, cols)
    bias: Option<Vec<f32>>,
    weight: Weight,
}

impl Plain {
    fn new(
        device: &Device,
        kind: Kind,
        (rows, cols): (usize, usize),
        order: RowOrder,
        bias: bool,
        size: f32,
    ) -> Plain {
        let mut random = Random::new((rows * 7919 + cols) as u64);
        let groups = cols.div_ceil(GROUP);
        let q: Vec<i8> = (0..rows * cols).map(|_| (random.below(255) as i32 - 127) as i8).collect();
        let scale: Vec<f16> =
            (0..rows * groups).map(|_| f16::from_f32((random.uniform() + 0.5) * size / 127.0)).collect();
        let wide = random.bf16s(rows * cols, size);
        let packed = match kind {
            Kind::Int8 => Packed::int8(rows, cols, order, 3, |row, to, scales| {
                to.copy_from_slice(&q[row * cols..][..cols]);
                scales.copy_from_slice(&scale[row * groups..][..groups]);
            }),
            Kind::Bf16 => {
                Packed::bf16(rows, cols, order, 3, |row, to| to.copy_from_slice(&wide[row * cols..][..cols]))
            }
        };
        let value = |i: usize| match kind {
            Kind::Int8 => f64::from(q[i]) * scale[i / cols * groups + i % cols / GROUP].to_f64(),
            Kind::Bf16 => wide[i].to_f64(),
        };
        let bias = bias.then(|| random.f32s(rows, size));
        let weight = Weight::upload(device, rows, cols, order, &packed, bias.as_deref()).unwrap();
        let bytes = if kind == Kind::Int8 { int8_bytes } else { bf16_bytes };
        assert_eq!(weight.bytes(), bytes(rows, cols, order));
        assert_eq!((weight.shape(), weight.k()), ((rows, cols), cols.next_multiple_of(ALIGN)));
        Plain { rows, cols, values: (0..rows * cols).map(value).collect(), bias, weight }
    }

    /// `x W^T + b` of a row of x, and the magnitude of the terms.
    fn product(&self, x: &[f64]) -> Vec<(f64, f64)> {
        let row = |r: usize| {
            let bias = self.bias.as_ref().map_or(0.0, |b| f64::from(b[r]));
            let terms = self.values[r * self.cols..][..self.cols].iter().zip(x).map(|(w, x)| w * x);
            terms.fold((bias, bias.abs()), |(sum, size), term| (sum + term, size + term.abs()))
        };
        (0..self.rows).map(row).collect()
    }
}

/// Rows of x, `(n, K)` with zeros past `cols`; then rows of NaN.
struct Rows {
    n: usize,
    k: usize,
    values: Vec<bf16>,
    buffer: Buffer<bf16>,
}

impl Rows {
    fn new(device: &Device, n: usize, cols: usize, size: f32) -> Rows {
        let mut random = Random::new((n * 31 + cols) as u64);
        let k = cols.next_multiple_of(ALIGN);
        let mut values = vec![bf16::ZERO; n * k];
        values.chunks_mut(k).for_each(|row| row[..cols].copy_from_slice(&random.bf16s(cols, size)));
        let all = [&values[..], &vec![bf16::NAN; 3 * k]].concat();
        Rows { n, k, values, buffer: device.upload(&all).unwrap() }
    }

    fn row(&self, i: usize) -> Vec<f64> {
        self.values[i * self.k..][..self.k].iter().map(|x| x.to_f64()).collect()
    }
}

/// f32 sums of some rows, `(rows, w.rows)`; nothing else may be written.
fn run_f32(device: &Device, x: Input, rows: Range<usize>, w: &Plain, method: Arithmetic) -> Vec<f32> {
    let stride = w.rows + 3;
    let mut out = device.upload(&vec![UNTOUCHED; (rows.end + 1) * stride]).unwrap();
    gemm(device, x, rows.clone(), &w.weight, Output::F32(&mut out), stride, method).unwrap();
    let out = out.to_vec().unwrap();
    let mut sums = vec![];
    for (i, row) in out.chunks(stride).enumerate() {
        let (values, rest) = row.split_at(if rows.contains(&i) { w.rows } else { 0 });
        assert!(rest.iter().all(|&y| y == UNTOUCHED), "row {i} of {rows:?}: past the result");
        sums.extend_from_slice(values);
    }
    sums
}

fn assert_close(w: &Plain, x: &Rows, first: usize, sums: &[f32], relative: f64, what: &str) {
    for (i, got) in sums.chunks(w.rows).enumerate() {
        for (r, (&got, (want, size))) in got.iter().zip(w.product(&x.row(first + i))).enumerate() {
            let close = (f64::from(got) - want).abs() <= relative * size + 1e-30;
            let (rows, cols) = (w.rows, w.cols);
            assert!(close, "{what}, ({rows}, {cols}), x row {i} of {}, row {r}: {got} for {want}", x.n);
        }
    }
}

/// Exact sums of one matrix and all sizes of x: the formula, and the same bits from every kernel.
pub fn few_and_tiles(device: &Device) {
    for kind in [Kind::Int8, Kind::Bf16] {
        let w = Plain::new(device, kind, (200, 330), RowOrder::Plain, true, 0.2);
        let x = Rows::new(device, 150, 330, 2.0);
        let input = Input::Bf16(&x.buffer);
        let all = run_f32(device, input, 0..150, &w, Arithmetic::Exact);
        assert_close(&w, &x, 0, &all, 2e-6, "exact");
        for n in ROWS_OF_X {
            let first = (150 - n) / 2;
            let some = run_f32(device, input, first..first + n, &w, Arithmetic::Exact);
            assert_eq!(some, all[first * 200..][..n * 200], "{kind:?}: {n} rows and 150");
        }
        let fast = run_f32(device, input, 0..150, &w, Arithmetic::Fast);
        assert_close(&w, &x, 0, &fast, 4e-3, "fast");
        for rows in [0..1, 3..4, 149..150, 40..140] {
            let some = run_f32(device, input, rows.clone(), &w, Arithmetic::Fast);
            assert_eq!(some, fast[rows.start * 200..rows.end * 200], "{kind:?}: fast, {rows:?}");
        }
    }
}

/// Odd and small matrices, large and small values; residuals.
pub fn shapes(device: &Device) {
    for kind in [Kind::Int8, Kind::Bf16] {
        for (rows, cols) in [(1, 1), (16, 32), (97, 33), (129, 64), (40, 1030), (256, 128), (130, 577)] {
            for (n, size) in [(1, 1.0), (5, 1e-3), (12, 1e4), (40, 1.0), (130, 1.0)] {
                let w = Plain::new(device, kind, (rows, cols), RowOrder::Plain, n % 2 == 0, size);
                let x = Rows::new(device, n, cols, size);
                for method in [Arithmetic::Exact, Arithmetic::Fast] {
                    let relative = if method == Arithmetic::Exact { 4e-6 } else { 4e-3 };
                    let sums = run_f32(device, Input::Bf16(&x.buffer), 0..n, &w, method);
                    assert_close(&w, &x, 0, &sums, relative, &format!("{method:?} of {size}"));
                    let before: Vec<f32> = (0..n * rows).map(|i| i as f32 * size).collect();
                    let mut out = device.upload(&before).unwrap();
                    let to = Output::AddF32(&mut out);
                    gemm(device, Input::Bf16(&x.buffer), 0..n, &w.weight, to, rows, method).unwrap();
                    let want: Vec<f32> = before.iter().zip(&sums).map(|(a, b)| a + b).collect();
                    assert_eq!(out.to_vec().unwrap(), want, "{kind:?} ({rows}, {cols}): residual");
                }
            }
        }
    }
}

/// Every function, rounded to bf16, with zeros behind the result.
pub fn functions(device: &Device) {
    let gelu = |x: f64| 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt()));
    let gelu_tanh = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + inner.tanh())
    };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    for kind in [Kind::Int8, Kind::Bf16] {
        for (n, cols) in [(1, 50), (11, 200), (70, 64), (140, 40)] {
            for function in [Function::Identity, Function::Gelu, Function::GeluTanh, Function::SwiGlu] {
                for method in [Arithmetic::Exact, Arithmetic::Fast] {
                    let gated = function == Function::SwiGlu;
                    let hidden = 75;
                    let (rows, order) =
                        if gated { (2 * hidden, RowOrder::Gated) } else { (hidden, RowOrder::Plain) };
                    let w = Plain::new(device, kind, (rows, cols), order, true, 0.3);
                    let x = Rows::new(device, n, cols, 1.0);
                    let stride = hidden.next_multiple_of(64);
                    let mut out = device.upload(&vec![bf16::from_f32(UNTOUCHED); (n + 1) * stride]).unwrap();
                    let to = Output::Bf16(&mut out, function);
                    gemm(device, Input::Bf16(&x.buffer), 0..n, &w.weight, to, stride, method).unwrap();
                    let out = out.to_vec().unwrap();
                    assert!(out[n * stride..].iter().all(|y| y.to_f32() == UNTOUCHED), "past the rows");
                    for (i, got) in out.chunks(stride).take(n).enumerate() {
                        let sums = w.product(&x.row(i));
                        assert!(got[hidden..].iter().all(|y| y.to_f32() == 0.0), "padding");
                        for (c, got) in got[..hidden].iter().enumerate() {
                            let (sum, size) = sums[c];
                            let (want, size) = match function {
                                Function::Identity => (sum, size),
                                Function::Gelu => (gelu(sum), size),
                                Function::GeluTanh => (gelu_tanh(sum), size),
                                Function::SwiGlu => {
                                    let (up, up_size) = sums[hidden + c];
                                    (silu(sum) * up, size * up.abs() + up_size * silu(sum).abs())
                                }
                            };
                            let blur = if method == Arithmetic::Exact { 1e-5 } else { 6e-3 };
                            let close = (got.to_f64() - want).abs() <= want.abs() / 250.0 + blur * size;
                            assert!(close, "{kind:?} {function:?} {method:?} {n}: {got} for {want}");
                        }
                    }
                }
            }
        }
    }
}

/// int8 activations: the product of what they stand for.
pub fn int8_activations(device: &Device) {
    for (rows, cols, n) in [(40, 32, 1), (130, 200, 17), (128, 128, 64), (300, 640, 70), (128, 1000, 140)] {
        let w = Plain::new(device, Kind::Int8, (rows, cols), RowOrder::Plain, true, 0.2);
        let x = Rows::new(device, n, cols, 3.0);
        let scale_stride = n.next_multiple_of(4);
        let mut q = device.zeros::<i8>(n * x.k).unwrap();
        let mut scale = device.upload(&vec![f32::NAN; scale_stride * x.k / GROUP]).unwrap();
        let quantized = Quantized { q: &mut q, scale: &mut scale, scale_stride };
        quantize(device, &x.buffer, n, x.k, quantized).unwrap();
        let input = Input::Int8 { q: &q, scale: &scale, scale_stride };
        let all = run_f32(device, input, 0..n, &w, Arithmetic::Fast);

        let (q, scales) = (q.to_vec().unwrap(), scale.to_vec().unwrap());
        for (i, got) in all.chunks(rows).enumerate() {
            let value = |c: usize| {
                let (half, c16) = (c % GROUP / 16, c % 16);
                let position = c / GROUP * GROUP + half * 16 + c16 % 8 / 2 * 4 + c16 / 8 * 2 + c16 % 2;
                f64::from(q[i * x.k + position]) * f64::from(scales[c / GROUP * scale_stride + i])
            };
            let row: Vec<f64> = (0..cols).map(value).collect();
            for (r, (&got, (want, size))) in got.iter().zip(w.product(&row)).enumerate() {
                let close = (f64::from(got) - want).abs() <= 2e-6 * size;
                assert!(close, "int8 ({rows}, {cols}), {n}, x row {i}, row {r}: {got} for {want}");
            }
        }
        for range in [0..1, 4..5, 0..n / 2, n / 2 / 4 * 4..n] {
            if range.end > n || range.is_empty() {
                continue;
            }
            let some = run_f32(device, input, range.clone(), &w, Arithmetic::Fast);
            assert_eq!(some, all[range.start * rows..range.end * rows], "int8, rows {range:?} of {n}");
        }
    }
}

fn operand(result: Result<(), Error>) -> &'static str {
    match result {
        Err(Error::Shape { operand, .. }) => operand,
        other => panic!("a wrong shape went through: {other:?}"),
    }
}

/// What the launcher refuses.
pub fn errors(device: &Device) {
    let w = Plain::new(device, Kind::Int8, (100, 60), RowOrder::Plain, false, 1.0).weight;
    let wide = Plain::new(device, Kind::Bf16, (100, 60), RowOrder::Plain, false, 1.0).weight;
    let gated = Plain::new(device, Kind::Int8, (100, 60), RowOrder::Gated, false, 1.0).weight;
    let x = device.zeros::<bf16>(4 * 128).unwrap();
    let (q, scale) = (device.zeros::<i8>(4 * 128).unwrap(), device.zeros::<f32>(4 * 4).unwrap());
    let mut bf16s = device.zeros::<bf16>(4 * 130).unwrap();
    let mut f32s = device.zeros::<f32>(4 * 100).unwrap();
    let bf = Input::Bf16(&x);
    let int8 = |scale_stride| Input::Int8 { q: &q, scale: &scale, scale_stride };
    let mut to_f32 = |x, rows, w: &Weight, stride| {
        gemm(device, x, rows, w, Output::F32(&mut f32s), stride, Arithmetic::Exact)
    };
    assert_eq!(operand(to_f32(bf, 0..5, &w, 100)), "x");
    assert_eq!(operand(to_f32(bf, 0..4, &w, 99)), "out_stride");
    assert_eq!(operand(to_f32(bf, 0..4, &w, 101)), "out");
    assert_eq!(operand(to_f32(bf, 0..usize::MAX, &w, 100)), "sizes");
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is wrong")]
    let reversed = 3..2;
    assert_eq!(operand(to_f32(bf, reversed, &w, 100)), "sizes");
    assert_eq!(operand(to_f32(bf, 0..4, &gated, 100)), "function");
    assert_eq!(operand(to_f32(int8(4), 0..5, &w, 100)), "x");
    assert_eq!(operand(to_f32(int8(5), 0..4, &w, 100)), "scale_stride");
    assert_eq!(operand(to_f32(int8(0), 0..4, &w, 100)), "scale_stride");
    assert_eq!(operand(to_f32(int8(4), 1..4, &w, 100)), "scale_stride");
    assert_eq!(operand(to_f32(int8(8), 0..4, &w, 100)), "scale");
    let refused = to_f32(int8(4), 0..4, &wide, 100);
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    to_f32(bf, 4..4, &w, 100).unwrap();
    to_f32(int8(4), 0..4, &w, 100).unwrap();
    let mut to_bf16 = |function, w: &Weight, stride| {
        gemm(device, bf, 0..4, w, Output::Bf16(&mut bf16s, function), stride, Arithmetic::Exact)
    };
    assert_eq!(operand(to_bf16(Function::SwiGlu, &w, 128)), "function");
    assert_eq!(operand(to_bf16(Function::Gelu, &gated, 128)), "function");
    assert_eq!(operand(to_bf16(Function::Identity, &w, 101)), "out_stride");
    assert_eq!(operand(to_bf16(Function::Identity, &w, 130)), "out_stride");
    assert_eq!(operand(to_bf16(Function::SwiGlu, &gated, 66)), "out_stride");
    to_bf16(Function::SwiGlu, &gated, 64).unwrap();
    to_bf16(Function::Identity, &w, 128).unwrap();

    let packed = Packed::int8(10, 10, RowOrder::Plain, 1, |_, _, _| {});
    let upload = |rows, cols, order, bias: Option<&[f32]>| {
        Weight::upload(device, rows, cols, order, &packed, bias).map(drop)
    };
    assert_eq!(operand(upload(0, 10, RowOrder::Plain, None)), "shape");
    assert_eq!(operand(upload(11, 10, RowOrder::Gated, None)), "rows");
    assert_eq!(operand(upload(200, 10, RowOrder::Plain, None)), "q");
    assert_eq!(operand(upload(10, 10, RowOrder::Plain, Some(&[0.0; 9]))), "bias");
    upload(10, 10, RowOrder::Plain, Some(&[0.0; 10])).unwrap();
    device.synchronize().unwrap();
}
