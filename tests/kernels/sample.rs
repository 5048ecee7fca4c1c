//! Tests top-k and argmax against a full sort, and sums and draws against f64.

use std::cmp::Ordering;

use welm_kernels::error::Error;
use welm_kernels::sample::{
    MAX_TOP_K, MAX_VOCAB, NO_TOKEN, Sampling, TopK, argmax, sample_top, soft_cap, top_k,
};
use welm_kernels::{Buffer, Device};

use crate::random::Random;

const INF: f32 = f32::INFINITY;
/// Sizes around those of a warp, of a block of either kernel, and of a chunk (8,192 logits).
const VOCABS: [usize; 15] = [1, 2, 31, 33, 63, 64, 65, 511, 513, 1024, 1025, 8191, 8192, 8193, 20_001];

/// All checks.
pub(crate) fn check(device: &Device) {
    sizes(device);
    neighbours(device);
    odd_values(device);
    soft_caps(device);
    draws(device);
    edges(device);
    errors(device);
}

/// [`argmax`] and [`top_k`] of all kinds of logits.
pub(crate) fn sizes(device: &Device) {
    let mut random = Random::new(5);
    for (i, vocab) in VOCABS.into_iter().enumerate() {
        for kind in 0..KINDS {
            let rows: Vec<Vec<f32>> = (0..2).map(|_| logits(&mut random, vocab, kind)).collect();
            let ks = if vocab == 513 { &KS[..] } else { &KS[(i + kind) % KS.len()..][..1] };
            rows_of(device, &rows, ks, &format!("vocab {vocab}, kind {kind}"));
        }
    }
    let wide: Vec<Vec<f32>> = [0, 3].map(|kind| logits(&mut random, 140_000, kind)).to_vec();
    rows_of(device, &wide, &[50], "a vocabulary of 140,000");
}

const KS: [usize; 4] = [1, 37, 2, MAX_TOP_K];
const KINDS: usize = 7;

/// Logits of some kind: wide, ties, all equal, rising, falling, odd values, huge.
fn logits(random: &mut Random, vocab: usize, kind: usize) -> Vec<f32> {
    let mut one = |i: usize| match kind {
        0 => (random.uniform() - 0.5) * 30.0,
        1 => random.below(5) as f32 - 2.0,
        2 => -7.5,
        3 => i as f32 * 1e-3 - 9.0,
        4 => i as f32 * -1e-3,
        5 => match random.below(6) {
            0 => f32::NAN,
            1 => -INF,
            2 => -0.0,
            3 => 0.0,
            4 => 1e-45,
            _ => random.uniform() * -1e-3,
        },
        _ => (random.uniform() - 0.5) * 2.0 * f32::MAX,
    };
    (0..vocab).map(&mut one).collect()
}

/// Tokens of a row in order; those that are impossible are left out.
fn sorted(row: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..row.len() as u32).filter(|&i| row[i as usize] > -INF).collect();
    let at = |i: &u32| row[*i as usize].min(f32::MAX);
    order.sort_by(|a, b| at(b).partial_cmp(&at(a)).unwrap_or(Ordering::Equal).then(a.cmp(b)));
    order
}

/// A row as [`top_k`] sees it: NaN counts as the largest f32.
fn seen(row: &[f32]) -> Vec<f32> {
    row.iter().map(|&x| if x.is_nan() { f32::MAX } else { x.min(f32::MAX) }).collect()
}

/// [`argmax`] and [`top_k`] of several rows, for each of `ks`.
fn rows_of(device: &Device, rows: &[Vec<f32>], ks: &[usize], what: &str) {
    let (n, vocab) = (rows.len(), rows[0].len());
    let logits = device.upload(&rows.concat()).unwrap();
    let mut tokens = device.upload(&vec![77u32; n + 1]).unwrap();
    argmax(device, &logits, n, vocab, &mut tokens).unwrap();
    let tokens = tokens.to_vec().unwrap();
    assert_eq!(tokens[n], 77);
    let orders: Vec<Vec<u32>> = rows.iter().map(|row| sorted(row)).collect();
    for (order, &token) in orders.iter().zip(&tokens) {
        assert_eq!(token, order.first().copied().unwrap_or(0), "{what}: argmax");
    }
    let rows: Vec<Vec<f32>> = rows.iter().map(|row| seen(row)).collect();
    let orders: Vec<Vec<u32>> = rows.iter().map(|row| sorted(row)).collect();
    for &k in ks {
        let mut top = TopK::new(device, n + 1, vocab + 9000, k).unwrap();
        top_k(device, &logits, n, vocab, &mut top).unwrap();
        let (values, ids) = (top.values().to_vec().unwrap(), top.ids().to_vec().unwrap());
        let log_sums = top.log_sums().to_vec().unwrap();
        for (i, (row, order)) in rows.iter().zip(&orders).enumerate() {
            for rank in 0..k {
                let (value, id) = (values[i * k + rank], ids[i * k + rank]);
                let want = order.get(rank).copied();
                assert_eq!(id, want.unwrap_or(NO_TOKEN), "{what}, k {k}, row {i}, rank {rank}");
                assert_eq!(value, want.map_or(-INF, |id| row[id as usize]), "{what}");
            }
            assert_log_sum(row, log_sums[i], what);
        }
        assert_eq!(values[n * k..], vec![0.0; k], "past the rows");
        assert_eq!((&ids[n * k..], log_sums[n]), (&vec![0; k][..], 0.0), "past the rows");
    }
}

fn assert_log_sum(row: &[f32], got: f32, what: &str) {
    let logits: Vec<f64> = row.iter().map(|&x| x.into()).collect();
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(x));
    if max == f64::NEG_INFINITY {
        assert_eq!(got, -INF, "{what}");
        return;
    }
    let want = max + logits.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    let close = (f64::from(got) - want).abs() <= 3e-6 + want.abs() * 1e-7;
    assert!(close, "{what}: {got} for {want}");
}

/// The bits of a row do not depend on the other rows.
pub(crate) fn neighbours(device: &Device) {
    let (n, vocab, k) = (9, 8300, 20);
    let logits = Random::new(6).f32s(n * vocab, 9.0);
    let run = |logits: &[f32], n| {
        let logits = device.upload(logits).unwrap();
        let mut top = TopK::new(device, n, vocab, k).unwrap();
        top_k(device, &logits, n, vocab, &mut top).unwrap();
        (top.values().to_vec().unwrap(), top.ids().to_vec().unwrap(), top.log_sums().to_vec().unwrap())
    };
    let all = run(&logits, n);
    let alone = run(&logits[4 * vocab..5 * vocab], 1);
    assert_eq!(alone.0, all.0[4 * k..5 * k]);
    assert_eq!(alone.1, all.1[4 * k..5 * k]);
    assert_eq!(alone.2[0].to_bits(), all.2[4].to_bits());
}

/// Rows of -inf, of infinities and of the smallest numbers. The drawn token is always a possible one.
pub(crate) fn odd_values(device: &Device) {
    let nothing = vec![-INF; 4];
    let rows = [
        nothing,
        vec![f32::NAN, -INF, f32::NAN, -INF],
        vec![-INF, f32::NAN, -5.0, -INF],
        vec![0.0, INF, f32::MAX, INF],
        vec![-f32::MAX, f32::NAN, -f32::MAX, -INF],
        vec![-0.0, 0.0, -1e-45, 1e-45],
        vec![f32::NAN, -f32::NAN, INF, -INF],
        vec![f32::MAX, -f32::MAX, 0.0, f32::MIN_POSITIVE],
    ];
    rows_of(device, &rows, &[1, 3, 9], "odd values");
    // +inf and the largest f32 are equal, also where one thread sees both.
    let mut mixed = vec![vec![0.0; 4000]; 2];
    for (i, row) in mixed.iter_mut().enumerate() {
        (row[5], row[1029], row[2053]) = ([f32::MAX, INF][i], [INF, f32::MAX][i], INF);
    }
    rows_of(device, &mixed, &[2], "infinities");
    // Chunks of -inf only, with one that has a number; one NaN among many numbers.
    let mut sparse = [vec![-INF; 3 * 8192], vec![f32::NAN; 3 * 8192], vec![0.5; 3 * 8192]];
    (sparse[0][8192], sparse[0][9000], sparse[1][0]) = (-3.0, 2.0, 1.0);
    sparse[2][20_001] = f32::NAN;
    rows_of(device, &sparse, &[3], "empty chunks");
    let n = rows.len();
    let logits = device.upload(&rows.concat()).unwrap();
    let mut top = TopK::new(device, n, 4, 4).unwrap();
    top_k(device, &logits, n, 4, &mut top).unwrap();
    let mut tokens = device.zeros(n).unwrap();
    let odd = [-1.0, 0.0, 1e-45, 1e-30, 1.0, 1e30, INF, f32::NAN];
    for temperature in odd {
        for top_p in [0.0, 1e-9, 0.5, 1.0, -1.0, f32::NAN] {
            for uniform in [0.0, 0.5, 1.0 - f32::EPSILON / 2.0, 1.0, f32::NAN] {
                let sampling = Sampling { temperature, top_p, top_k: 0, uniform };
                let buffer = device.upload(&vec![sampling; n]).unwrap();
                sample_top(device, &top, n, &buffer, &mut tokens).unwrap();
                for (row, token) in rows.iter().map(|row| seen(row)).zip(tokens.to_vec().unwrap()) {
                    let possible = row[token as usize] > -INF || (sorted(&row).is_empty() && token == 0);
                    assert!(possible, "{row:?}, {sampling:?}: {token}");
                    if temperature.is_nan() || temperature <= 0.0 {
                        assert_eq!(token, sorted(&row).first().copied().unwrap_or(0), "{row:?}");
                    }
                }
            }
        }
    }
}

/// The tokens that a draw may give if top_p and uniform are only known up to `blur`.
fn drawn(row: &[f32], k: usize, s: &Sampling, blur: f64) -> Vec<u32> {
    let mut order = sorted(row);
    order.truncate(if s.top_k == 0 { k } else { k.min(s.top_k as usize) });
    if s.temperature == 0.0 {
        return order[..1].to_vec();
    }
    let at = |i: u32| f64::from(row[i as usize]);
    let weights: Vec<f64> =
        order.iter().map(|&i| ((at(i) - at(order[0])) / f64::from(s.temperature)).exp()).collect();
    let first_where = |weights: &[f64], condition: &dyn Fn(f64) -> bool| {
        let mut sum = 0.0;
        let found = weights.iter().position(|w| {
            sum += w;
            condition(sum)
        });
        found.unwrap_or(weights.len() - 1)
    };
    let mut tokens = vec![];
    for shift in [-blur, 0.0, blur] {
        let enough = (f64::from(s.top_p) + shift) * weights.iter().sum::<f64>();
        let last =
            if s.top_p < 1.0 { first_where(&weights, &|sum| sum >= enough) } else { weights.len() - 1 };
        let kept = &weights[..=last];
        for shift in [-blur, 0.0, blur] {
            let target = (f64::from(s.uniform) + shift) * kept.iter().sum::<f64>();
            tokens.push(order[first_where(kept, &|sum| sum > target)]);
        }
    }
    tokens
}

/// [`sample_top`]: every combination of options, many rows at once, and the frequencies.
pub(crate) fn draws(device: &Device) {
    let mut random = Random::new(7);
    for (vocab, k) in [(3, 5), (40, 1), (100, 33), (300, 64), (64, 64)] {
        let n = 101;
        let rows: Vec<Vec<f32>> = (0..n).map(|i| logits(&mut random, vocab, [0, 1, 2, 4][i % 4])).collect();
        let mut one = |i: usize| Sampling {
            temperature: [0.0, 0.3, 1.0, 2.5, 20.0][random.below(5)],
            top_p: [1.0, 1.0, 0.9, 0.3, 1e-6][random.below(5)],
            top_k: [0, 1, 2, 32, 33, 40, 1000][random.below(7)],
            uniform: if i.is_multiple_of(9) { 0.0 } else { random.uniform() },
        };
        let sampling: Vec<Sampling> = (0..n).map(&mut one).collect();
        let tokens = draw(device, &rows, k, &sampling);
        let mut exact = 0;
        for ((row, s), &token) in rows.iter().zip(&sampling).zip(&tokens) {
            assert!(drawn(row, k, s, 4e-6).contains(&token), "vocab {vocab}, k {k}, {s:?}: {token}");
            exact += usize::from(drawn(row, k, s, 0.0)[0] == token);
            // Alone.
            if exact % 16 == 0 {
                assert_eq!(draw(device, std::slice::from_ref(row), k, &[*s]), [token]);
            }
        }
        assert!(exact * 100 >= n * 95, "{exact} of {n}");
    }
    // Frequencies.
    let row: Vec<f32> = (0..10).map(|i| (i * 7 % 10) as f32 * 0.3).collect();
    let n = 400;
    let s = |i| Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, uniform: (i as f32 + 0.5) / n as f32 };
    let tokens = draw(device, &vec![row.clone(); n], 16, &(0..n).map(s).collect::<Vec<_>>());
    let weights: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
    for (token, weight) in weights.iter().enumerate() {
        // The random numbers are evenly spread, so each share is exact up to one draw at both ends.
        let count = tokens.iter().filter(|&&t| t == token as u32).count() as f64;
        let want = weight / weights.iter().sum::<f64>() * n as f64;
        assert!((count - want).abs() <= 1.01, "{token}: {count} for {want}");
    }
}

/// [`sample_top`] where a sum is exactly equal to its bound.
pub(crate) fn edges(device: &Device) {
    // Weights 1, 1, 1, 1.
    let flat = vec![0.0; 4];
    for (top_p, uniform, want) in
        [(1.0, 0.0, 0), (1.0, 0.24, 0), (1.0, 0.25, 1), (1.0, 0.99, 3), (0.5, 0.99, 1), (0.51, 0.99, 2)]
    {
        let s = Sampling { temperature: 1.0, top_p, top_k: 0, uniform };
        assert_eq!(draw(device, std::slice::from_ref(&flat), 64, &[s]), [want], "{s:?}");
    }
    // 64 equal weights, of which the first half stays: the last of a lane's first candidates.
    let flat = vec![0.0; 64];
    for (uniform, want) in [(0.99, 31), (0.5, 16)] {
        let s = Sampling { temperature: 1.0, top_p: 0.5, top_k: 0, uniform };
        assert_eq!(draw(device, std::slice::from_ref(&flat), 64, &[s]), [want], "{s:?}");
    }
}

fn draw(device: &Device, rows: &[Vec<f32>], k: usize, sampling: &[Sampling]) -> Vec<u32> {
    let (n, vocab) = (rows.len(), rows[0].len());
    let logits = device.upload(&rows.concat()).unwrap();
    let mut top = TopK::new(device, n, vocab, k).unwrap();
    top_k(device, &logits, n, vocab, &mut top).unwrap();
    let mut tokens = device.upload(&vec![77u32; n + 1]).unwrap();
    sample_top(device, &top, n, &device.upload(sampling).unwrap(), &mut tokens).unwrap();
    let mut tokens = tokens.to_vec().unwrap();
    assert_eq!(tokens.pop(), Some(77));
    tokens
}

/// [`soft_cap`]: the formula, and nothing but the rows.
pub(crate) fn soft_caps(device: &Device) {
    let mut random = Random::new(6);
    for vocab in [1, 255, 1024, 8193] {
        for cap in [1.0, 30.0] {
            let before = [random.f32s(3 * vocab, 4.0 * cap), vec![INF, -INF, f32::NAN, 1e-20, 7.0]].concat();
            for n in [2, 3] {
                let mut logits = device.upload(&before).unwrap();
                soft_cap(device, &mut logits, n, vocab, cap).unwrap();
                let got = logits.to_vec().unwrap();
                let bits = |x: &[f32]| x[n * vocab..].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&got), bits(&before), "{n} of {vocab}: further ones");
                for (&x, &y) in before.iter().zip(&got).take(n * vocab) {
                    let want = f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
                    assert!((f64::from(y) - want).abs() <= want.abs() * 1e-6, "{cap}, {x}: {y} for {want}");
                }
            }
        }
    }
    let mut odd = device.upload(&[INF, -INF, f32::NAN, 1e-20]).unwrap();
    soft_cap(device, &mut odd, 1, 4, 30.0).unwrap();
    let odd = odd.to_vec().unwrap();
    assert!(odd[..2] == [30.0, -30.0] && odd[2].is_nan() && (odd[3] / 1e-20 - 1.0).abs() < 1e-5, "{odd:?}");
}

/// What the launchers refuse.
pub(crate) fn errors(device: &Device) {
    fn operand<T: std::fmt::Debug>(result: Result<T, Error>) -> &'static str {
        match result {
            Err(Error::Shape { operand, .. }) => operand,
            other => panic!("a wrong shape went through: {other:?}"),
        }
    }
    assert_eq!(operand(TopK::new(device, 1, 10, 0)), "k");
    assert_eq!(operand(TopK::new(device, 1, 10, MAX_TOP_K + 1)), "k");
    assert_eq!(operand(TopK::new(device, 1, 0, 1)), "max_vocab");
    assert_eq!(operand(TopK::new(device, 1, MAX_VOCAB + 1, 1)), "max_vocab");
    assert_eq!(operand(TopK::new(device, usize::MAX, 10, 1)), "max_rows");

    let mut logits: Buffer<f32> = device.zeros(29).unwrap();
    assert_eq!(operand(soft_cap(device, &mut logits, 3, 10, 30.0)), "logits");
    assert_eq!(operand(soft_cap(device, &mut logits, 2, 10, 0.0)), "cap");
    soft_cap(device, &mut logits, 0, 10, 30.0).unwrap();
    let mut tokens = device.zeros(3).unwrap();
    assert_eq!(operand(argmax(device, &logits, 3, 10, &mut tokens)), "logits");
    assert_eq!(operand(argmax(device, &logits, 3, 0, &mut tokens)), "sizes");
    assert_eq!(operand(argmax(device, &logits, 3, 1 << 40, &mut tokens)), "sizes");
    assert_eq!(operand(argmax(device, &logits, 4, 7, &mut tokens)), "tokens");
    argmax(device, &logits, 0, 10, &mut tokens).unwrap();

    let mut top = TopK::new(device, 3, 10, 5).unwrap();
    assert_eq!(top.k(), 5);
    assert_eq!(operand(top_k(device, &logits, 3, 10, &mut top)), "logits");
    assert_eq!(operand(top_k(device, &logits, 3, 0, &mut top)), "sizes");
    assert_eq!(operand(top_k(device, &logits, 4, 7, &mut top)), "rows");
    assert_eq!(operand(top_k(device, &logits, 1, 11, &mut top)), "vocab");
    top_k(device, &logits, 0, 10, &mut top).unwrap();

    let two = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, uniform: 0.0 };
    let sampling = device.upload(&[two; 2]).unwrap();
    let mut one = device.zeros(1).unwrap();
    assert_eq!(operand(sample_top(device, &top, 4, &sampling, &mut tokens)), "rows");
    assert_eq!(operand(sample_top(device, &top, 3, &sampling, &mut tokens)), "sampling");
    assert_eq!(operand(sample_top(device, &top, 2, &sampling, &mut one)), "tokens");
    sample_top(device, &top, 0, &sampling, &mut tokens).unwrap();
    device.synchronize().unwrap();
}
