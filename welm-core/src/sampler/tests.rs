use super::weights::exp;
use super::*;

/// Draws from the generator under test; `below` is good enough for choosing cases.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 += 1;
        uniform(7, 0, self.0)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    /// Logits of one of several shapes: wide, flat, with many ties, with odd values.
    fn logits(&mut self, n: usize) -> Vec<f32> {
        let shape = self.below(4);
        let one = |random: &mut Random| match (shape, random.below(40)) {
            (3, 0) => f32::NEG_INFINITY,
            (3, 1) => f32::NAN,
            (2 | 3, _) => random.below(7) as f32 - 3.0,
            (1, _) => random.uniform() as f32 * 0.1,
            _ => (random.uniform() as f32 - 0.5) * 30.0,
        };
        (0..n).map(|_| one(self)).collect()
    }
}

/// Nothing but a draw from all tokens.
fn plain() -> GenerateOptions {
    GenerateOptions { temperature: 1.0, top_p: 1.0, top_k: 0, ..GenerateOptions::default() }
}

/// The second half of `seen` is text.
fn try_sample(logits: &[f32], options: &GenerateOptions, seen: &[u32], u: f64) -> Option<u32> {
    let (prompt, text) = seen.split_at(seen.len() / 2);
    let (mut sampler, mut logits) = (Sampler::new(logits.len()), logits.to_vec());
    let mut logits = Logits::All(&mut logits);
    sampler.process(&mut logits, &processors(options), prompt, text);
    sampler.sample(&mut logits, &SamplerParams::from(options), u)
}

fn sample(logits: &[f32], params: &GenerateOptions, seen: &[u32], u: f64) -> u32 {
    try_sample(logits, params, seen, u).expect("a token is left")
}

/// The definition at the top of the module, with a full sort.
fn reference(logits: &[f32], params: &GenerateOptions, seen: &[u32], u: f64) -> Option<u32> {
    let mut row: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    let text = &seen[seen.len() / 2..];
    for (id, logit) in &mut row {
        for (_, bias) in params.logit_bias.iter().filter(|b| b.0 as usize == *id) {
            *logit += bias;
        }
        if seen.contains(&(*id as u32)) {
            *logit = if *logit > 0.0 {
                *logit / params.repetition_penalty
            } else {
                *logit * params.repetition_penalty
            };
        }
        let times = text.iter().filter(|&&seen| seen as usize == *id).count();
        (0..times).for_each(|_| *logit -= params.frequency_penalty);
        if times > 0 {
            *logit -= params.presence_penalty;
        }
    }
    row.retain(|(_, logit)| *logit > f32::NEG_INFINITY);
    row.sort_by(|a, b| (b.1 + 0.0).total_cmp(&(a.1 + 0.0)).then(a.0.cmp(&b.0))); // -0 is 0
    if row.is_empty() || params.is_greedy() {
        return row.first().map(|r| r.0 as u32);
    }
    row.truncate(if params.top_k == 0 { row.len() } else { params.top_k });
    let max = row[0].1;
    let mut row: Vec<(usize, f64)> =
        row.into_iter().map(|(id, l)| (id, f64::from(exp((l - max) / params.temperature)))).collect();
    let total: f64 = row.iter().map(|r| r.1).sum();
    let mut sum = 0.0;
    let enough = row.iter().position(|r| {
        sum += r.1;
        params.top_p < 1.0 && sum >= f64::from(params.top_p) * total
    });
    row.truncate(enough.map_or(row.len(), |at| at + 1));
    row.retain(|r| r.1 >= f64::from(params.min_p));
    row.sort_by_key(|r| r.0);
    let target = u * row.iter().map(|r| r.1).sum::<f64>();
    let mut sum = 0.0;
    let drawn = row.iter().find(|r| {
        sum += r.1;
        sum > target
    });
    Some(drawn.unwrap_or(&row[row.len() - 1]).0 as u32)
}

#[test]
fn every_combination_draws_what_a_full_sort_draws() {
    let mut random = Random(0);
    let mut none = 0;
    for case in 0..6_000 {
        let n = [1, 2, 15, 16, 17, 100, 511, 513, 1_500, 5_000][random.below(10)];
        let logits = random.logits(n);
        let params = GenerateOptions {
            temperature: [0.0, 0.01, 0.85, 1.0, 3.0, 0.85, 1.0, 3.0][random.below(8)],
            top_p: [1.0, 1.0, 0.95, 0.5, 1e-6][random.below(5)],
            top_k: [0, 0, 1, 2, 50, n, n + 1][random.below(7)],
            min_p: [0.0, 0.0, 0.05, 1.0][random.below(4)],
            repetition_penalty: [1.0, 1.3, 0.7][random.below(3)],
            frequency_penalty: [0.0, 0.0, 0.8, -0.3][random.below(4)],
            presence_penalty: [0.0, 0.0, 1.5, -0.2][random.below(4)],
            logit_bias: (0..random.below(4))
                .map(|_| (random.below(n + 1) as u32, [5.0, -5.0, f32::NEG_INFINITY][random.below(3)]))
                .collect(),
            ..GenerateOptions::default()
        };
        let seen: Vec<u32> = (0..random.below(30)).map(|_| random.below(n + 2) as u32).collect();
        // Nearer to 1 the reference's own rounding decides.
        let u = [0.0, 1.0 - 1e-12, random.uniform()][random.below(6).min(2)];
        let (got, want) = (try_sample(&logits, &params, &seen, u), reference(&logits, &params, &seen, u));
        assert_eq!(got, want, "case {case}: n {n}, u {u}, {params:?}");
        if want.is_none() {
            none += 1;
            continue;
        }
        // As near to 1 as it gets: by id no earlier than that.
        let last = sample(&logits, &params, &seen, 1.0 - f64::EPSILON / 2.0);
        let earliest = reference(&logits, &params, &seen, 1.0 - 1e-12).unwrap();
        assert!((earliest..n as u32).contains(&last), "case {case}: n {n}, {last}, {earliest}, {params:?}");
    }
    assert!(none > 10, "{none} rows have no token left");
}

#[test]
fn frequencies_are_the_probabilities() {
    // Chi-square with 9 degrees of freedom exceeds 27.9 once in a thousand.
    let logits: Vec<f32> = (0..10).map(|i| (i * 7 % 10) as f32 * 0.3).collect();
    for (params, kept) in [(plain(), 10), (GenerateOptions { top_k: 5, temperature: 0.7, ..plain() }, 5)] {
        let mut sampler = Sampler::new(10);
        let mut counts = [0.0f64; 10];
        let draws = 100_000;
        for position in 0..draws {
            let mut row = logits.clone();
            let (mut row, u) = (Logits::All(&mut row), uniform(11, 3, position));
            let id = sampler.sample(&mut row, &SamplerParams::from(&params), u).unwrap();
            counts[id as usize] += 1.0;
        }
        let smallest = (9.5 - kept as f32) * 0.3;
        let weight = |&l: &f32| if l > smallest { f64::from(l / params.temperature).exp() } else { 0.0 };
        let weights: Vec<f64> = logits.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let expected = |w: &f64| w / total * draws as f64;
        let chi: f64 = counts
            .iter()
            .zip(&weights)
            .filter(|(_, w)| **w > 0.0)
            .map(|(c, w)| (c - expected(w)).powi(2) / expected(w))
            .sum();
        assert_eq!(counts.iter().filter(|c| **c > 0.0).count(), kept);
        assert!(chi < 27.9, "{chi} {counts:?}");
    }
}

#[test]
fn the_edges_of_the_options() {
    let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
    let high = 1.0 - f64::EPSILON;
    // Zero temperature, zero top_p and top_k of one are greedy; the first of equal logits is taken.
    for options in [
        GenerateOptions { temperature: 0.0, ..Default::default() },
        GenerateOptions { top_p: 0.0, ..Default::default() },
        GenerateOptions { top_k: 1, ..Default::default() },
    ] {
        assert_eq!(sample(&logits, &options, &[], high), 1);
    }
    // A top_p that one token reaches keeps that token; 1 is off.
    assert_eq!(sample(&logits, &GenerateOptions { top_p: 1e-9, ..plain() }, &[], high), 1);
    assert_eq!(sample(&logits, &plain(), &[], high), 4);
    assert_eq!(sample(&[0.0; 4], &GenerateOptions { top_p: 0.5, ..plain() }, &[], high), 1);
    assert_eq!(sample(&[0.0; 4], &GenerateOptions { top_p: 0.500_001, ..plain() }, &[], high), 2);
    // Ties at the edge of top_k go to the lower id, and exactly k stay.
    assert_eq!(sample(&[0.0, 1.0, 0.0, 0.0], &GenerateOptions { top_k: 2, ..plain() }, &[], high), 1);
    assert_eq!(sample(&[0.0, 1.0, 0.0, 0.0], &GenerateOptions { top_k: 2, ..plain() }, &[], 0.0), 0);
    assert_eq!(sample(&[0.0; 3], &GenerateOptions { top_k: 100, ..plain() }, &[], high), 2);
    // min_p is a share of the largest: exp(-1) = 0.37 is in, exp(-2) = 0.14 is out.
    assert_eq!(sample(&[2.0, 1.0, 0.0], &GenerateOptions { min_p: 0.3, ..plain() }, &[], high), 1);
    assert_eq!(sample(&[2.0, 1.0, 0.0], &GenerateOptions { min_p: 0.1, ..plain() }, &[], high), 2);
    assert_eq!(sample(&[1.0, 2.0, 2.0], &GenerateOptions { min_p: 1.0, ..plain() }, &[], high), 2);
}

#[test]
fn penalties_and_bias_change_what_they_say() {
    let mut sampler = Sampler::new(130);
    let mut logits = vec![0.0; 130];
    (logits[0], logits[64], logits[129]) = (6.0, -6.0, 3.0);
    let (prompt, text) = (&[64, 0, 0, 129], &[64, 5_000, u32::MAX, 7, 7]);
    let mut changed = |options| {
        let mut row = logits.clone();
        sampler.process(&mut Logits::All(&mut row), &processors(&options), prompt, text);
        [row[0], row[64], row[129], row[7]]
    };
    for _ in 0..2 {
        // Once, and down on both sides of zero.
        let repetition = changed(GenerateOptions { repetition_penalty: 2.0, ..plain() });
        assert_eq!(repetition, [3.0, -12.0, 1.5, 0.0]);
        // Of the text alone, for each time or once.
        let frequency = changed(GenerateOptions { frequency_penalty: 0.5, ..plain() });
        assert_eq!(frequency, [6.0, -6.5, 3.0, -1.0]);
        let presence = changed(GenerateOptions { presence_penalty: 0.5, ..plain() });
        assert_eq!(presence, [6.0, -6.5, 3.0, -0.5]);
        let logit_bias = vec![(0, f32::NEG_INFINITY), (7, 1.0), (7, 0.5), (130, 9.0), (u32::MAX, 9.0)];
        let all = GenerateOptions { repetition_penalty: 3.0, presence_penalty: 1.0, logit_bias, ..plain() };
        assert_eq!(changed(all), [f32::NEG_INFINITY, -19.0, 1.0, -0.5]);
    }
    let params = GenerateOptions { repetition_penalty: 3.0, temperature: 0.0, ..plain() };
    assert_eq!(sample(&logits, &params, &[0], 0.0), 129);
    let params = GenerateOptions { logit_bias: vec![(0, f32::NEG_INFINITY)], temperature: 0.0, ..plain() };
    assert_eq!(sample(&logits, &params, &[], 0.0), 129);
}

#[test]
fn odd_values_do_no_harm() {
    const INF: f32 = f32::INFINITY;
    let nothing = [f32::NAN, -INF, f32::NAN];
    let rows: [(&[f32], u32, u32); 5] = [
        (&[-INF, f32::NAN, -5.0, -INF], 2, 2),
        (&[1e30, -1e30, 1e30, 0.0], 0, 2),
        (&[0.0, INF, f32::MAX, INF], 1, 3),
        (&[-f32::MAX, -f32::MAX], 0, 1),
        (&[0.0, 1e-45, f32::NAN], 0, 1),
    ];
    for (row, first, last) in rows {
        for (top_k, top_p) in [(0, 1.0), (2, 1.0), (0, 0.999), (3, 0.999)] {
            for temperature in [1e-30, 1.0, 100.0] {
                let params = GenerateOptions { top_k, top_p, temperature, ..plain() };
                let drawn = [0.0, 1.0 - f64::EPSILON].map(|u| sample(row, &params, &[0, 1], u));
                assert!(drawn[0] >= first && drawn[1] <= last, "{row:?} {params:?} {drawn:?}");
            }
        }
        for id in 0..row.len() as u32 + 1 {
            let (logprob, alternatives) = logprobs(row, id, 9);
            assert!(logprob <= 0.0 && alternatives.iter().all(|a| a.1 <= 0.0), "{row:?} {logprob}");
        }
    }
    assert_eq!(try_sample(&nothing, &plain(), &[], 0.5), None);
    assert_eq!(logprobs(&nothing, 0, 3), (-INF, vec![]));
    assert_eq!(logprobs(&[0.0], 1, 0), (-INF, vec![]));
}

#[test]
fn where_bias_leaves_no_token_none_is_chosen() {
    let ruled_out = |n| (0..n).map(|id| (id, f32::NEG_INFINITY)).collect::<Vec<_>>();
    for (top_k, top_p, min_p, greedy) in
        [(0, 1.0, 0.0, true), (0, 1.0, 0.0, false), (1, 1.0, 0.0, false), (2, 0.5, 1.0, false)]
    {
        let temperature = if greedy { 0.0 } else { 1.0 };
        let params =
            |n| GenerateOptions { top_k, top_p, min_p, temperature, logit_bias: ruled_out(n), ..plain() };
        assert_eq!(try_sample(&[1.0, 2.0, 3.0], &params(3), &[0, 1], 0.3), None);
        assert_eq!(try_sample(&[1.0, 2.0, 3.0], &params(2), &[0, 1], 0.3), Some(2));
        // What the model itself rules out does not come back.
        assert_eq!(try_sample(&[1.0, f32::NEG_INFINITY], &params(1), &[], 0.3), None);
    }
}

#[test]
fn rows_that_are_not_finite_are_told() {
    const INF: f32 = f32::INFINITY;
    for n in [1, 15, 511, 512, 513, 5_000] {
        let mut row = vec![0.5; n];
        assert_eq!(Logits::All(&mut row).not_finite(), None);
        for at in [0, n / 2, n - 1] {
            for (value, name) in [(f32::NAN, "NaN"), (INF, "inf")] {
                let mut row = row.clone();
                row[at] = value;
                assert_eq!(Logits::All(&mut row).not_finite(), Some(format!("{name} for token {at}")));
            }
            let mut row = vec![-INF; n];
            assert_eq!(Logits::All(&mut row).not_finite(), Some("-inf for every token".into()));
            row[at] = -1e30;
            assert_eq!(Logits::All(&mut row).not_finite(), None);
        }
    }
    assert_eq!(Logits::Top { values: &mut [], ids: &[] }.not_finite(), Some("-inf for every token".into()));
    let found = Logits::Top { values: &mut [1.0, f32::MAX], ids: &[3, 70] }.not_finite();
    assert_eq!(found, Some("NaN or inf for token 70".into()));
}

#[test]
fn logprobs_are_those_of_a_softmax_in_f64() {
    let mut random = Random(1 << 40);
    for n in [1, 2, 16, 33, 1_000, 20_000] {
        let logits: Vec<f32> = (0..n).map(|_| (random.uniform() as f32 - 0.5) * 40.0).collect();
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let log_prob = |id: usize| f64::from(logits[id]) - total.ln();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let (logprob, alternatives) = logprobs(&logits, n as u32 / 2, 20);
        assert!((f64::from(logprob) - log_prob(n / 2)).abs() < 2e-6);
        assert_eq!(alternatives.len(), n.min(20));
        for (rank, &(id, logprob)) in alternatives.iter().enumerate() {
            assert_eq!(id as usize, order[rank]);
            assert!((f64::from(logprob) - log_prob(order[rank])).abs() < 2e-6);
        }
    }
    let (_, ties) = logprobs(&[1.0, 2.0, 1.0, 2.0, 1.0], 0, 4);
    assert_eq!(ties.iter().map(|a| a.0).collect::<Vec<_>>(), [1, 3, 0, 2]);
}

#[test]
fn the_largest_logits_give_the_token_that_all_give() {
    let mut random = Random(1 << 41);
    for case in 0..2_000 {
        let n = [1, 16, 100, 1_500][random.below(4)];
        let mut all = random.logits(n);
        let options = GenerateOptions {
            temperature: [0.0, 0.85, 3.0][random.below(3)],
            top_k: 1 + random.below(20),
            top_p: [1.0, 0.9][random.below(2)],
            min_p: [0.0, 0.05][random.below(2)],
            ..plain()
        };
        let (params, u) = (SamplerParams::from(&options), random.uniform());
        let mut largest = Vec::new();
        top(&all, 30, &mut largest);
        largest.sort_unstable_by_key(|c| c.id);
        let (mut values, ids): (Vec<f32>, Vec<u32>) = largest.iter().map(|c| (c.value, c.id)).unzip();
        let mut sampler = Sampler::new(n);
        let from_top = sampler.sample(&mut Logits::Top { values: &mut values, ids: &ids }, &params, u);
        assert_eq!(
            from_top,
            sampler.sample(&mut Logits::All(&mut all), &params, u),
            "case {case}: {options:?}"
        );
    }
}
