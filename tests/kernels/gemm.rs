//! Tests products against the formula in f64. Also tests that a row has the same bits in every kernel.
//!
//! The file is long, because three formats of weights share the references and the rows of x.

use std::ops::Range;

use half::{bf16, f16};
use welm_kernels::error::Error;
use welm_kernels::gemm::{
    ALIGN, Arithmetic, Function, Input, Output, Packed, RowOrder, Weight, bf16_bytes, int8_bytes,
    rotated_bytes, scratch_len,
};
use welm_kernels::norm::{GROUP, Quantized, Rotated, quantize, rotate};
use welm_kernels::{Buffer, Device};

use crate::random::Random;
use crate::sums::within;

/// The value of elements that no kernel has written.
const UNTOUCHED: f32 = -77.0;
/// Numbers of rows at and around the limits between kernels.
const ROWS_OF_X: [usize; 10] = [1, 7, 8, 9, 16, 17, 33, 64, 65, 150];

/// [`welm_kernels::gemm::gemm`] with the scratch memory that it needs.
fn gemm(
    device: &Device,
    x: Input,
    rows: Range<usize>,
    w: &Weight,
    out: Output,
    out_stride: usize,
    arithmetic: Arithmetic,
) -> Result<(), Error> {
    let mut scratch = device.uninit(scratch_len(rows.len(), w.shape().0))?;
    welm_kernels::gemm::gemm(device, x, rows, w, out, out_stride, arithmetic, &mut scratch)
}

/// The format of a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Int8,
    Bf16,
    Rotated,
}

/// All formats.
pub(crate) const KINDS: [Kind; 3] = [Kind::Int8, Kind::Bf16, Kind::Rotated];

impl Kind {
    /// Columns that a product of `cols` runs over: a rotation fills the padding, too.
    fn width(self, cols: usize) -> usize {
        if self == Kind::Rotated { cols.next_multiple_of(ALIGN) } else { cols }
    }

    /// bf16 activations for such a weight.
    fn input(self, x: &Rows) -> Input<'_> {
        if self == Kind::Rotated { Input::Rotated(&x.buffer) } else { Input::Bf16(&x.buffer) }
    }
}

/// Where a row is packed.
fn packed_row(row: usize, rows: usize, order: RowOrder) -> usize {
    match order {
        RowOrder::Plain => row,
        RowOrder::Gated => {
            let (gate, up) = if row < rows / 2 { (row, 0) } else { (row - rows / 2, 8) };
            gate / 8 * 16 + gate % 8 + up
        }
    }
}

/// The value in a row and column of packed int8 tiles.
fn packed_value(q: &[i8], k: usize, row: usize, col: usize) -> i8 {
    let (tile, col) = (row / 16 * (k / GROUP) + col / GROUP, col % GROUP);
    // A lane has the columns 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of 16; `which` counts them.
    let (half, t, which) = (col / 16, col % 8 / 2, col % 16 / 8 * 2 + col % 2);
    q[(tile * 32 + row % 8 * 4 + t) * 16 + half * 8 + row % 16 / 8 * 4 + which]
}

/// A weight as the kernels see it.
struct Plain {
    rows: usize,
    width: usize,
    values: Vec<f64>, // (rows, width)
    scale: Vec<f32>,  // (rows), rotated only
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
            Kind::Rotated => {
                let all = random.f32s(rows * cols, size);
                let row = |row: usize, to: &mut [f32]| to.copy_from_slice(&all[row * cols..][..cols]);
                Packed::rotated(rows, cols, order, 3, row).unwrap()
            }
        };
        let width = kind.width(cols);
        let value = |i: usize| match &packed {
            Packed::Int8 { .. } => f64::from(q[i]) * scale[i / cols * groups + i % cols / GROUP].to_f64(),
            Packed::Bf16(_) => wide[i].to_f64(),
            Packed::Rotated { q, scale } => {
                let row = packed_row(i / width, rows, order);
                f64::from(packed_value(q, width, row, i % width)) * f64::from(scale[row])
            }
        };
        let values = (0..rows * width).map(value).collect();
        let row_scale = match &packed {
            Packed::Rotated { scale, .. } => (0..rows).map(|r| scale[packed_row(r, rows, order)]).collect(),
            _ => vec![],
        };
        let bias = bias.then(|| random.f32s(rows, size));
        let weight = Weight::upload(device, rows, cols, order, &packed, bias.as_deref()).unwrap();
        let bytes = match kind {
            Kind::Int8 => int8_bytes,
            Kind::Bf16 => bf16_bytes,
            Kind::Rotated => rotated_bytes,
        };
        assert_eq!(weight.bytes(), bytes(rows, cols, order));
        assert_eq!(weight.is_int8(), kind == Kind::Int8);
        assert_eq!(weight.is_rotated(), kind == Kind::Rotated);
        assert_eq!((weight.shape(), weight.k()), ((rows, cols), cols.next_multiple_of(ALIGN)));
        Plain { rows, width, values, scale: row_scale, bias, weight }
    }

    /// `x W^T + b` of a row of x, and the magnitude of the terms.
    fn product(&self, x: &[f64]) -> Vec<(f64, f64)> {
        let row = |r: usize| {
            let bias = self.bias.as_ref().map_or(0.0, |b| f64::from(b[r]));
            let terms = self.values[r * self.width..][..self.width].iter().zip(x).map(|(w, x)| w * x);
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
            let check = if relative < 1e-4 { "sums_exact" } else { "sums_fast" };
            let close = within(check, (f64::from(got) - want).abs(), relative * size + 1e-30);
            let (rows, width) = (w.rows, w.width);
            assert!(close, "{what}, ({rows}, {width}), x row {i} of {}, row {r}: {got} for {want}", x.n);
        }
    }
}

/// Up to 32 rows, which need no tiles: the formula, and the same bits whatever their number.
pub(crate) fn few(device: &Device, kind: Kind) {
    let w = Plain::new(device, kind, (200, 330), RowOrder::Plain, true, 0.2);
    let x = Rows::new(device, 32, kind.width(330), 2.0);
    let all = run_f32(device, kind.input(&x), 0..32, &w, Arithmetic::Exact);
    assert_close(&w, &x, 0, &all, 2e-6, "few");
    for n in [1, 7, 8, 9, 16, 17] {
        let first = (32 - n) / 2;
        let some = run_f32(device, kind.input(&x), first..first + n, &w, Arithmetic::Exact);
        assert_eq!(some, all[first * 200..][..n * 200], "{kind:?}: {n} rows and 32");
    }
}

/// Exact sums of one matrix and all sizes of x: the formula, and the same bits from every kernel.
pub(crate) fn few_and_tiles(device: &Device) {
    few_and_tiles_of(device, &KINDS);
}

/// The same, of some kinds.
pub(crate) fn few_and_tiles_of(device: &Device, kinds: &[Kind]) {
    for &kind in kinds {
        let w = Plain::new(device, kind, (200, 330), RowOrder::Plain, true, 0.2);
        let x = Rows::new(device, 150, kind.width(330), 2.0);
        let input = kind.input(&x);
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
    long_segments(device);
}

/// Products of 33 to 64 rows: of the largest weight that is split along K, of one that is too large for it, and with
/// segments of K that end with half a stage, are whole stages or are empty. The formula, and the same bits as in any
/// other number of rows.
pub(crate) fn split_along_k(device: &Device) {
    split_along_k_of(device, &KINDS);
}

/// The same, of some kinds.
pub(crate) fn split_along_k_of(device: &Device, kinds: &[Kind]) {
    let most = (device.info().multiprocessors as usize / 2).min(64);
    for &kind in kinds {
        for (tiles, cols) in [(most, 330), (most + 1, 330), (1, 100), (1, 1024)] {
            let rows = 128 * tiles - 25;
            let w = Plain::new(device, kind, (rows, cols), RowOrder::Plain, true, 0.2);
            let x = Rows::new(device, 130, kind.width(cols), 2.0);
            let all = run_f32(device, kind.input(&x), 0..130, &w, Arithmetic::Exact);
            assert_close(&w, &x, 0, &all[..2 * rows], 2e-6, "all");
            for part in [0..33, 5..48, 50..114, 97..130, 60..68] {
                let some = run_f32(device, kind.input(&x), part.clone(), &w, Arithmetic::Exact);
                let same = some == all[part.start * rows..part.end * rows];
                assert!(same, "{kind:?}, ({rows}, {cols}): rows {part:?} and 130");
            }
        }
    }
}

/// Enough columns to fill the ring of prefetched weights, in the kernels for few rows, more than twice.
pub(crate) fn long_segments(device: &Device) {
    for kind in KINDS {
        let w = Plain::new(device, kind, (20, 4500), RowOrder::Plain, false, 0.2);
        let x = Rows::new(device, 34, kind.width(4500), 2.0);
        let all = run_f32(device, kind.input(&x), 0..34, &w, Arithmetic::Exact);
        assert_close(&w, &x, 0, &all, 2e-6, "long");
        for rows in [33..34, 0..8, 5..18] {
            let some = run_f32(device, kind.input(&x), rows.clone(), &w, Arithmetic::Exact);
            assert_eq!(some, all[rows.start * 20..rows.end * 20], "{kind:?}: {rows:?} of 34 long rows");
        }
    }
}

/// Products for which the launcher takes tiles of 256 tokens, and the same weight with fewer rows of x, for which it
/// takes tiles of 128 tokens. Both have the same bits.
pub(crate) fn tiles_by_waves(device: &Device) {
    let rows = 128 * (device.info().multiprocessors as usize / 2 + 1);
    for kind in KINDS {
        let w = Plain::new(device, kind, (rows, 200), RowOrder::Plain, true, 0.2);
        let x = Rows::new(device, 150, 200, 2.0);
        let int8 = Int8Rows::new(device, &x);
        let input = if kind == Kind::Rotated { int8.input() } else { kind.input(&x) };
        let all = run_f32(device, input, 0..150, &w, Arithmetic::Fast);
        if kind != Kind::Rotated {
            assert_close(&w, &x, 0, &all[..2 * rows], 4e-3, "fast");
        }
        for part in [0..100, 100..150] {
            let some = run_f32(device, input, part.clone(), &w, Arithmetic::Fast);
            assert!(some == all[part.start * rows..part.end * rows], "{kind:?}: rows {part:?} and 150");
        }
    }
}

/// Checks every weight by itself, with rows of x that are 1 in one column. An error that is small compared with a sum
/// is large compared with a single weight.
pub(crate) fn weights_alone(device: &Device) {
    weights_alone_of(device, &KINDS);
}

/// The same, of some kinds.
pub(crate) fn weights_alone_of(device: &Device, kinds: &[Kind]) {
    for &kind in kinds {
        let w = Plain::new(device, kind, (140, 130), RowOrder::Plain, false, 0.2);
        let (n, k) = (w.width, w.weight.k());
        let one = |i: usize| if i / k == i % k { bf16::ONE } else { bf16::ZERO };
        let values: Vec<bf16> = (0..n * k).map(one).collect();
        let x = Rows { n, k, buffer: device.upload(&values).unwrap(), values };
        for (method, relative) in [(Arithmetic::Exact, 1e-7), (Arithmetic::Fast, 1.0 / 256.0)] {
            let sums = run_f32(device, kind.input(&x), 0..n, &w, method);
            for (i, &got) in sums.iter().enumerate() {
                let (row, col) = (i % w.rows, i / w.rows);
                let want = w.values[row * w.width + col];
                let close = within("weights_alone", (f64::from(got) - want).abs(), want.abs() * relative);
                assert!(close, "{kind:?} {method:?}, row {row}, column {col}: {got} for {want}");
            }
        }
    }
}

/// Odd and small matrices, large and small values; residuals.
pub(crate) fn shapes(device: &Device) {
    shapes_of(device, &KINDS);
}

/// The same, of some kinds.
pub(crate) fn shapes_of(device: &Device, kinds: &[Kind]) {
    for &kind in kinds {
        for (rows, cols) in [(1, 1), (16, 32), (97, 33), (129, 64), (40, 1030), (256, 128), (130, 577)] {
            for (n, size) in [(1, 1.0), (5, 1e-3), (12, 1e4), (40, 1.0), (130, 1.0)] {
                let w = Plain::new(device, kind, (rows, cols), RowOrder::Plain, n % 2 == 0, size);
                let x = Rows::new(device, n, kind.width(cols), size);
                for method in [Arithmetic::Exact, Arithmetic::Fast] {
                    let relative = if method == Arithmetic::Exact { 4e-6 } else { 4e-3 };
                    let sums = run_f32(device, kind.input(&x), 0..n, &w, method);
                    assert_close(&w, &x, 0, &sums, relative, &format!("{method:?} of {size}"));
                    let before: Vec<f32> = (0..n * rows).map(|i| i as f32 * size).collect();
                    let mut out = device.upload(&before).unwrap();
                    let to = Output::AddF32(&mut out);
                    gemm(device, kind.input(&x), 0..n, &w.weight, to, rows, method).unwrap();
                    let want: Vec<f32> = before.iter().zip(&sums).map(|(a, b)| a + b).collect();
                    assert_eq!(out.to_vec().unwrap(), want, "{kind:?} ({rows}, {cols}): residual");
                }
            }
        }
    }
}

/// Every function, rounded to bf16, with zeros after the result.
pub(crate) fn functions(device: &Device) {
    functions_of(device, &KINDS);
}

/// The same, of some kinds.
pub(crate) fn functions_of(device: &Device, kinds: &[Kind]) {
    let gelu = |x: f64| 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt()));
    let gelu_tanh = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + inner.tanh())
    };
    let silu = |x: f64| x / (1.0 + (-x).exp());
    for &kind in kinds {
        for (n, cols) in [(1, 50), (11, 200), (70, 64), (140, 40)] {
            let all =
                [Function::Identity, Function::Gelu, Function::GeluTanh, Function::SwiGlu, Function::GeGlu];
            for function in all {
                for method in [Arithmetic::Exact, Arithmetic::Fast] {
                    let gated = matches!(function, Function::SwiGlu | Function::GeGlu);
                    let hidden = 75;
                    let (rows, order) =
                        if gated { (2 * hidden, RowOrder::Gated) } else { (hidden, RowOrder::Plain) };
                    let w = Plain::new(device, kind, (rows, cols), order, true, 0.3);
                    let x = Rows::new(device, n, kind.width(cols), 1.0);
                    let stride = hidden.next_multiple_of(64);
                    let mut out = device.upload(&vec![bf16::from_f32(UNTOUCHED); (n + 1) * stride]).unwrap();
                    let to = Output::Bf16(&mut out, function);
                    gemm(device, kind.input(&x), 0..n, &w.weight, to, stride, method).unwrap();
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
                                Function::GeGlu => {
                                    let ((up, up_size), gate) = (sums[hidden + c], gelu_tanh(sum));
                                    (gate * up, size * up.abs() + up_size * gate.abs())
                                }
                            };
                            let blur = if method == Arithmetic::Exact { 1e-5 } else { 6e-3 };
                            let tolerance = want.abs() / 250.0 + blur * size;
                            let close = within("functions", (got.to_f64() - want).abs(), tolerance);
                            assert!(close, "{kind:?} {function:?} {method:?} {n}: {got} for {want}");
                        }
                    }
                }
            }
        }
    }
    edges(device);
}

/// Every kind of `out` has the same bits, whether it is stored four columns at a time or one (bf16: two) at a time.
/// Strides are odd or not multiples of 4, the last column is in the middle of four, the first row is odd, and tiles are
/// not full.
pub(crate) fn edges(device: &Device) {
    for kind in KINDS {
        let x = Rows::new(device, 150, kind.width(40), 1.0);
        let (plain, gated) = (RowOrder::Plain, RowOrder::Gated);
        // The smallest two are split along K on any device.
        for (rows, order) in [(102, plain), (130, plain), (135, plain), (100, gated), (268, gated)] {
            let w = Plain::new(device, kind, (rows, 40), order, true, 0.3);
            for range in [0..1, 3..12, 1..41, 1..148] {
                stored(device, kind.input(&x), range.clone(), &w, order, Arithmetic::Exact);
            }
            stored(device, kind.input(&x), 1..148, &w, order, Arithmetic::Fast);
            if kind == Kind::Rotated {
                let int8 = Int8Rows::new(device, &x);
                stored(device, int8.input(), 1..41, &w, order, Arithmetic::Exact);
                stored(device, int8.input(), 1..148, &w, order, Arithmetic::Exact);
            }
        }
    }
}

/// Some rows stored with several strides. Four values are stored at a time only if the stride is a multiple of 4.
fn stored(device: &Device, x: Input, rows: Range<usize>, w: &Plain, order: RowOrder, method: Arithmetic) {
    let run =
        |out: Output, stride: usize| gemm(device, x, rows.clone(), &w.weight, out, stride, method).unwrap();
    // Columns of the result, bit for bit; nothing but them and the zeros after them is written.
    let check = |got: &[u32], stride: usize, cols: usize, untouched: &dyn Fn(usize) -> u32, padded: bool| {
        let mut values = vec![];
        for (i, row) in got.chunks(stride).enumerate() {
            let inside = rows.contains(&i);
            for (c, &y) in row.iter().enumerate() {
                match (inside, c < cols) {
                    (true, true) => values.push(y),
                    (true, false) if padded => assert_eq!(y, 0, "padding, row {i}, column {c} of {stride}"),
                    _ => assert_eq!(y, untouched(i * stride + c), "row {i}, column {c} of {stride}"),
                }
            }
        }
        values
    };
    if order == RowOrder::Plain {
        let cols = w.rows;
        let even = cols.next_multiple_of(4);
        for add in [false, true] {
            let sums = |stride: usize| {
                // The same in a column whatever the stride.
                let before = |at: usize| ((at / stride * 7 + at % stride) as f32 * 0.37).sin();
                let all: Vec<f32> = (0..(rows.end + 1) * stride).map(before).collect();
                let mut out = device.upload(&all).unwrap();
                run(if add { Output::AddF32(&mut out) } else { Output::F32(&mut out) }, stride);
                let got: Vec<u32> = out.to_vec().unwrap().iter().map(|y| y.to_bits()).collect();
                check(&got, stride, cols, &|at| before(at).to_bits(), false)
            };
            let want = sums(even + 1);
            for stride in [even, even + 2, even + 4] {
                assert_eq!(sums(stride), want, "{rows:?}, f32, added: {add}, stride {stride}");
            }
        }
    }
    let functions: &[Function] = match order {
        RowOrder::Plain => &[Function::Identity, Function::Gelu, Function::GeluTanh],
        RowOrder::Gated => &[Function::SwiGlu],
    };
    for &function in functions {
        let cols = if order == RowOrder::Gated { w.rows / 2 } else { w.rows };
        let even = cols.next_multiple_of(4);
        let rounded = |stride: usize| {
            let mut out = device.upload(&vec![bf16::from_f32(UNTOUCHED); (rows.end + 1) * stride]).unwrap();
            run(Output::Bf16(&mut out, function), stride);
            let got: Vec<u32> = out.to_vec().unwrap().iter().map(|y| u32::from(y.to_bits())).collect();
            let untouched = u32::from(bf16::from_f32(UNTOUCHED).to_bits());
            check(&got, stride, cols, &|_| untouched, true)
        };
        let want = rounded(even + 2);
        for stride in [even, even + 4] {
            assert_eq!(rounded(stride), want, "{rows:?}, {function:?}, stride {stride}");
        }
    }
}

/// Where column `c` of a row of int8 activations lies.
fn position(c: usize) -> usize {
    let (half, c16) = (c % GROUP / 16, c % 16);
    c / GROUP * GROUP + half * 16 + c16 % 8 / 2 * 4 + c16 / 8 * 2 + c16 % 2
}

/// int8 activations: compares with the product of the values that they represent.
pub(crate) fn int8_activations(device: &Device) {
    for (rows, cols, n) in [(40, 32, 1), (130, 200, 17), (128, 128, 64), (300, 640, 70), (128, 1000, 140)] {
        let w = Plain::new(device, Kind::Int8, (rows, cols), RowOrder::Plain, true, 0.2);
        let x = Rows::new(device, n, cols, 3.0);
        let scale_stride = n.next_multiple_of(4);
        let mut q = device.zeros::<i8>(n * x.k).unwrap();
        let mut scale = device.upload(&vec![f32::NAN; scale_stride * x.k / GROUP]).unwrap();
        let quantized = Quantized { q: &mut q, scale: &mut scale, scale_stride };
        quantize(device, &x.buffer, 0..n, x.k, quantized).unwrap();
        let input = Input::Int8 { q: &q, scale: &scale, scale_stride };
        let all = run_f32(device, input, 0..n, &w, Arithmetic::Fast);

        let (q, scales) = (q.to_vec().unwrap(), scale.to_vec().unwrap());
        for (i, got) in all.chunks(rows).enumerate() {
            let value = |c: usize| {
                f64::from(q[i * x.k + position(c)]) * f64::from(scales[c / GROUP * scale_stride + i])
            };
            let row: Vec<f64> = (0..cols).map(value).collect();
            for (r, (&got, (want, size))) in got.iter().zip(w.product(&row)).enumerate() {
                let close = within("int8", (f64::from(got) - want).abs(), 2e-6 * size);
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

/// [`Packed::rotated`] against its definition: `H[i][j] = (-1)^(ones in i & j) / 8` for each 64 columns.
pub(crate) fn rotated_weights() {
    let mut random = Random::new(4);
    for (rows, cols, order) in [
        (1, 1, RowOrder::Plain),
        (3, 64, RowOrder::Plain),
        (130, 200, RowOrder::Plain),
        (20, 129, RowOrder::Gated),
    ] {
        let mut all = random.f32s(rows * cols, 0.1);
        all[random.below(rows * cols)] = 7.0; // one that is large
        all[..cols].fill(0.0);
        let fill = |row: usize, to: &mut [f32]| to.copy_from_slice(&all[row * cols..][..cols]);
        let packed = Packed::rotated(rows, cols, order, 1, fill).unwrap();
        assert_eq!(packed, Packed::rotated(rows, cols, order, 3, fill).unwrap(), "on 3 threads");
        let Packed::Rotated { q, scale } = packed else { panic!("another kind") };
        let k = cols.next_multiple_of(ALIGN);
        let mut used = vec![false; scale.len()];
        for row in 0..rows {
            let x = [&all[row * cols..][..cols], &vec![0.0; k - cols]].concat();
            let rotated = |c: usize| {
                let term = |j: usize| match ((c % 64) & j).count_ones() % 2 {
                    0 => f64::from(x[c / 64 * 64 + j]) / 8.0,
                    _ => -f64::from(x[c / 64 * 64 + j]) / 8.0,
                };
                (0..64).map(term).sum::<f64>()
            };
            let z: Vec<f64> = (0..k).map(rotated).collect();
            let largest = z.iter().fold(0f64, |a, z| a.max(z.abs()));
            let at = packed_row(row, rows, order);
            used[at] = true;
            let scale = f64::from(scale[at]);
            assert!((scale - largest / 127.0).abs() <= 1e-6 * scale, "row {row}: {scale} of {largest}");
            for (c, z) in z.iter().enumerate() {
                let got = f64::from(packed_value(&q, k, at, c)) * scale;
                assert!((got - z).abs() <= 0.50001 * scale, "row {row}, column {c}: {got} for {z}");
            }
        }
        for row in (0..scale.len()).filter(|&row| !used[row]) {
            assert!(scale[row] == 0.0 && (0..k).all(|c| packed_value(&q, k, row, c) == 0), "padding");
        }
    }
    // Ties are rounded to even, and nothing is clipped.
    let row = |_: usize, to: &mut [f32]| to[..2].copy_from_slice(&[127.0 * 4.0 + 2.0, 127.0 * 4.0 - 2.0]);
    let Packed::Rotated { q, scale } = Packed::rotated(1, 2, RowOrder::Plain, 1, row).unwrap() else {
        panic!("another kind")
    };
    let values: Vec<i8> = (0..4).map(|c| packed_value(&q, 128, 0, c)).collect();
    assert_eq!((scale[0], &values[..]), (1.0, &[127, 0, 127, 0][..]));
    // Values that are not finite, or are not after the rotation, are refused.
    for bad in [[f32::NAN; 64], [f32::NEG_INFINITY; 64], [f32::MAX; 64]] {
        let row = |row: usize, to: &mut [f32]| match row {
            7 | 12 => to.copy_from_slice(&bad),
            _ => to.fill(1.0),
        };
        let refused = Packed::rotated(20, 64, RowOrder::Plain, 2, row);
        assert!(
            matches!(&refused, Err(Error::Unsupported { reason, .. }) if reason.contains("row 7 ")),
            "{refused:?}"
        );
    }
}

/// int8 activations with a scale for the row.
struct Int8Rows {
    q: Buffer<i8>,      // (n, k)
    scale: Buffer<f32>, // (n)
}

impl Int8Rows {
    fn new(device: &Device, x: &Rows) -> Int8Rows {
        let mut rows = Int8Rows {
            q: device.zeros(x.n * x.k).unwrap(),
            scale: device.upload(&vec![f32::NAN; x.n]).unwrap(),
        };
        let to = Rotated::Int8 { q: &mut rows.q, scale: &mut rows.scale };
        rotate(device, &x.buffer, 0..x.n, x.k, to).unwrap();
        rows
    }

    fn input(&self) -> Input<'_> {
        Input::RotatedInt8 { q: &self.q, scale: &self.scale }
    }
}

/// Rotated int8 activations: the sum is exact, and every kernel gives the same bits.
pub(crate) fn rotated_int8(device: &Device) {
    for (rows, cols, n) in
        [(40, 32, 1), (130, 200, 17), (128, 128, 64), (300, 1150, 70), (128, 1000, 140), (100, 300, 261)]
    {
        let w = Plain::new(device, Kind::Rotated, (rows, cols), RowOrder::Plain, n % 2 == 0, 0.2);
        let mut x = Rows::new(device, n, cols, 3.0);
        let k = x.k;
        if n > 16 {
            // Rows of zeros, of large values, and with a NaN.
            x.values[k..2 * k].fill(bf16::ZERO);
            x.values[2 * k..2 * k + cols].fill(bf16::from_f32(1e30));
            x.values[3 * k + 1] = bf16::NAN;
            x.buffer.write(0, &x.values).unwrap();
        }
        let int8 = Int8Rows::new(device, &x);
        let all = run_f32(device, int8.input(), 0..n, &w, Arithmetic::Fast);

        let (q, scale) = (int8.q.to_vec().unwrap(), int8.scale.to_vec().unwrap());
        assert!(n <= 16 || scale[1] == 0.0 && scale[3].is_nan());
        for (i, got) in all.chunks(rows).enumerate() {
            for (r, &got) in got.iter().enumerate() {
                let values = &w.values[r * k..][..k];
                let w_scale = w.scale[r];
                // A value divided by its scale is an integer again.
                let whole = |c: usize| if w_scale == 0.0 { 0.0 } else { values[c] / f64::from(w_scale) };
                let sum: f64 = (0..k).map(|c| whole(c).round() * f64::from(q[i * k + position(c)])).sum();
                let bias = w.bias.as_ref().map_or(0.0, |b| b[r]);
                let want = (sum as f32 * w_scale).mul_add(scale[i], bias);
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "({rows}, {cols}), x row {i} of {n}, row {r}: {got} for {want}");
            }
        }
        let exact = run_f32(device, int8.input(), 0..n, &w, Arithmetic::Exact);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&exact), bits(&all), "({rows}, {cols}), {n}: one arithmetic");
        for range in [0..1, 3..5, 0..n / 2, n / 2..n, n - 1..n] {
            if range.end > n || range.is_empty() {
                continue;
            }
            let some = run_f32(device, int8.input(), range.clone(), &w, Arithmetic::Fast);
            let part = &all[range.start * rows..range.end * rows];
            assert_eq!(bits(&some), bits(part), "({rows}, {cols}), rows {range:?} of {n}");
        }
    }
}

/// The largest possible sum of rotated int8.
pub(crate) fn largest_sum(device: &Device) {
    let k = 131_072;
    let packed = Packed::Rotated { q: vec![127; 128 * k], scale: vec![1.0; 128] };
    let weight = Weight::upload(device, 1, k, RowOrder::Plain, &packed, None).unwrap();
    let (q, scale) = (device.upload(&vec![-127i8; k]).unwrap(), device.upload(&[1f32]).unwrap());
    let mut out = device.zeros(1).unwrap();
    let x = Input::RotatedInt8 { q: &q, scale: &scale };
    gemm(device, x, 0..1, &weight, Output::F32(&mut out), 1, Arithmetic::Fast).unwrap();
    assert_eq!(out.to_vec().unwrap(), [-127.0 * 127.0 * k as f32]);
}

/// A rotation changes only the rounding: compares with the product of the values before the rotation, where some
/// columns of x are large. With both epilogues, and with both forms of activations as rows of one buffer.
pub(crate) fn rotated_is_the_same(device: &Device) {
    for (rows, cols, order) in [(96, 300, RowOrder::Plain), (150, 512, RowOrder::Gated)] {
        let (n, first_generated) = (40, 33);
        let mut random = Random::new(cols as u64);
        let all = random.f32s(rows * cols, 0.05);
        let row = |row: usize, to: &mut [f32]| to.copy_from_slice(&all[row * cols..][..cols]);
        let packed = Packed::rotated(rows, cols, order, 2, row).unwrap();
        let weight = Weight::upload(device, rows, cols, order, &packed, None).unwrap();
        let mut x = Rows::new(device, n, cols, 1.0);
        for row in x.values.chunks_mut(x.k) {
            for c in [5, 77, 200] {
                row[c] = bf16::from_f32(row[c].to_f32() * 40.0);
            }
        }
        x.buffer.write(0, &x.values).unwrap();

        // Prompts as int8, generated rows as bf16.
        let (prompt, generated) = (0..first_generated, first_generated..n);
        let mut z = device.zeros(n * x.k).unwrap();
        let mut int8 = Int8Rows { q: device.zeros(n * x.k).unwrap(), scale: device.zeros(n).unwrap() };
        rotate(device, &x.buffer, generated.clone(), x.k, Rotated::Bf16(&mut z)).unwrap();
        let to = Rotated::Int8 { q: &mut int8.q, scale: &mut int8.scale };
        rotate(device, &x.buffer, prompt.clone(), x.k, to).unwrap();
        let parts = [(int8.input(), prompt, 0.015), (Input::Rotated(&z), generated, 0.01)];
        let gated = order == RowOrder::Gated;
        let width = if gated { rows / 2 } else { rows };
        let stride = if gated { width.next_multiple_of(64) } else { width };
        let silu = |x: f64| x / (1.0 + (-x).exp());
        for (input, part, blur) in parts {
            let mut sums = device.zeros(n * stride).unwrap();
            let mut hidden = device.zeros(n * stride).unwrap();
            let out =
                if gated { Output::Bf16(&mut hidden, Function::SwiGlu) } else { Output::F32(&mut sums) };
            gemm(device, input, part.clone(), &weight, out, stride, Arithmetic::Exact).unwrap();
            let hidden = hidden.to_vec().unwrap().into_iter().map(|y| y.to_f64());
            let sums = sums.to_vec().unwrap().into_iter().map(f64::from);
            let out: Vec<f64> = if gated { hidden.collect() } else { sums.collect() };
            for i in part {
                let x = x.row(i);
                let product = |r: usize| -> f64 {
                    all[r * cols..][..cols].iter().zip(&x).map(|(&w, x)| f64::from(w) * x).sum()
                };
                let want = |r: usize| if gated { silu(product(r)) * product(r + width) } else { product(r) };
                let want: Vec<f64> = (0..width).map(want).collect();
                let size = want.iter().map(|y| y * y).sum::<f64>().sqrt();
                let error = want.iter().zip(&out[i * stride..]).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                let (error, most) = (error.sqrt() / size, if gated { 2.5 * blur } else { blur });
                assert!(error < most, "{order:?}, row {i}: {error} of the length of the row is lost");
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

/// What the launcher refuses.
pub(crate) fn errors(device: &Device) {
    let w = Plain::new(device, Kind::Int8, (100, 60), RowOrder::Plain, false, 1.0).weight;
    let wide = Plain::new(device, Kind::Bf16, (100, 60), RowOrder::Plain, false, 1.0).weight;
    let gated = Plain::new(device, Kind::Int8, (100, 60), RowOrder::Gated, false, 1.0).weight;
    let rotated = Plain::new(device, Kind::Rotated, (100, 60), RowOrder::Plain, false, 1.0).weight;
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
    let (rotated_bf16, q_rows) = (Input::Rotated(&x), Input::RotatedInt8 { q: &q, scale: &scale });
    let wrong = [
        (int8(4), &wide),
        (int8(4), &rotated),
        (bf, &rotated),
        (rotated_bf16, &w),
        (rotated_bf16, &wide),
        (q_rows, &w),
        (q_rows, &wide),
    ];
    for (x, w) in wrong {
        let refused = to_f32(x, 0..4, w, 100);
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    }
    assert_eq!(operand(to_f32(rotated_bf16, 0..5, &rotated, 100)), "x");
    assert_eq!(operand(to_f32(q_rows, 4..5, &rotated, 100)), "x");
    let short = device.zeros::<f32>(3).unwrap();
    assert_eq!(operand(to_f32(Input::RotatedInt8 { q: &q, scale: &short }, 3..4, &rotated, 100)), "scale");
    to_f32(bf, 4..4, &w, 100).unwrap();
    to_f32(int8(4), 0..4, &w, 100).unwrap();
    to_f32(rotated_bf16, 0..4, &rotated, 100).unwrap();
    to_f32(q_rows, 1..4, &rotated, 100).unwrap();
    let packed = Packed::Rotated { q: vec![0; 128 * 131_200], scale: vec![0.0; 128] };
    let long = Weight::upload(device, 1, 131_200, RowOrder::Plain, &packed, None).unwrap();
    let q_long = device.zeros::<i8>(131_200).unwrap();
    let refused = to_f32(Input::RotatedInt8 { q: &q_long, scale: &scale }, 0..1, &long, 1);
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    assert!(matches!(long.table(), Err(Error::Unsupported { .. })));
    assert!(w.table().is_ok() && wide.table().is_ok());
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

    let n = 33;
    let x = device.zeros::<bf16>(n * 128).unwrap();
    let mut out = device.zeros::<f32>(n * 100).unwrap();
    let mut split = |scratch_len| {
        let mut scratch = device.uninit(scratch_len).unwrap();
        let (x, out) = (Input::Bf16(&x), Output::F32(&mut out));
        welm_kernels::gemm::gemm(device, x, 0..n, &w, out, 100, Arithmetic::Exact, &mut scratch)
    };
    assert_eq!(operand(split(scratch_len(n, 100) - 1)), "scratch");
    split(scratch_len(n, 100)).unwrap();

    let packed = Packed::int8(10, 10, RowOrder::Plain, 1, |_, _, _| {});
    let upload = |rows, cols, order, bias: Option<&[f32]>| {
        Weight::upload(device, rows, cols, order, &packed, bias).map(drop)
    };
    assert_eq!(operand(upload(0, 10, RowOrder::Plain, None)), "shape");
    assert_eq!(operand(upload(11, 10, RowOrder::Gated, None)), "rows");
    assert_eq!(operand(upload(200, 10, RowOrder::Plain, None)), "q");
    assert_eq!(operand(upload(10, 10, RowOrder::Plain, Some(&[0.0; 9]))), "bias");
    for (q_len, scale_len, wrong) in [(128 * 128, 127, "scale"), (128 * 129, 128, "q")] {
        let packed = Packed::Rotated { q: vec![0; q_len], scale: vec![0.0; scale_len] };
        let upload = Weight::upload(device, 10, 10, RowOrder::Plain, &packed, None).map(drop);
        assert_eq!(operand(upload), wrong);
    }
    upload(10, 10, RowOrder::Plain, Some(&[0.0; 10])).unwrap();
    device.synchronize().unwrap();
}
