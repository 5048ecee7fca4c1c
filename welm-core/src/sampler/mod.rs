//! Logits to the next token.
//!
//! A row of logits `l` is turned into a token in this order, of llama.cpp before the temperature and of `transformers`
//! (processors, then warpers) from there on; the text is what was generated, without the prompt:
//!
//! ```text
//! logit bias           l = l + bias                              of the tokens that have one
//! repetition penalty   l = l > 0 ? l / penalty : l * penalty     once for each token of prompt and text
//! frequency penalty    l = l - penalty                           for each time that a token is in the text
//! presence penalty     l = l - penalty                           once for each token of the text
//! temperature          w = exp((l - max l) / temperature)        a weight: a probability without divisor
//! top_k                keeps the k largest logits
//! top_p                of those, the fewest largest whose weights reach top_p of their sum
//! min_p                of those, the ones with w >= min_p        (the largest weight is 1)
//! draw                 of those, in order of id, the first where the running sum exceeds u * their sum
//! ```
//!
//! Greedy decoding takes the first largest logit after the penalties. Equal logits are ordered by id, the lower
//! first, everywhere; top_k keeps k tokens even so, where `transformers` keeps all that equal the k-th. The
//! draw goes by id and not by probability so that a filter which removes nothing changes nothing, and so that
//! a rounding that swaps two logits does not swap their shares of `u`.
//!
//! A vocabulary of 150,000 is never sorted (which takes 10 ms). top_k collects the k largest by one scan with
//! a rising threshold. top_p without top_k sums the weights by buckets of an eighth in the exponent; only the
//! bucket in which the sum reaches top_p is sorted, to find the edge. Nothing is allocated per token.
//!
//! **Same bits everywhere.** Sums run in f64 in a fixed order, `exp` is our own, and random numbers come from a
//! counter ([`uniform`]).
//!
//! **Odd values.** A row with NaN or +inf, or with nothing but -inf, comes of a broken model: [`not_finite`] finds it,
//! and nothing is sampled. Where bias and penalties leave no token, none is chosen. The functions below take NaN for
//! -inf and +inf for the largest f32, so that no row makes them panic.

mod random;
mod weights;

use std::cmp::Ordering;

use crate::options::GenerateOptions;
pub(crate) use random::uniform;
use weights::{
    BLOCK, LANES, bucket_of, bucket_sums, finite, first_equal, lane_sum, maximum, weight, weight_sum,
};

/// How a token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SamplerParams {
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    /// 0 is off.
    pub(crate) top_k: usize,
    pub(crate) min_p: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Takes the likeliest token, whatever the others say.
    pub(crate) greedy: bool,
}

impl From<&GenerateOptions> for SamplerParams {
    fn from(options: &GenerateOptions) -> Self {
        SamplerParams {
            temperature: options.temperature,
            top_p: options.top_p,
            top_k: options.top_k,
            min_p: options.min_p,
            repetition_penalty: options.repetition_penalty,
            frequency_penalty: options.frequency_penalty,
            presence_penalty: options.presence_penalty,
            logit_bias: options.logit_bias.clone(),
            greedy: options.is_greedy(),
        }
    }
}

impl SamplerParams {
    /// Whether a small logit may become a large one before a token is chosen.
    pub(crate) fn changes_logits(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
            || !self.logit_bias.is_empty()
    }
}

/// A token with its logit or its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    value: f32,
    id: u32,
}

/// Chooses tokens; one serves all sequences, one after the other.
pub(crate) struct Sampler {
    /// Tokens that the filters left. // (up to vocab_size)
    kept: Vec<Candidate>,
    /// Sums of [`BLOCK`] weights each. // (ceil(vocab_size / BLOCK)) f64
    block_sums: Vec<f64>,
    /// Tokens whose logit was changed already, a bit each. // (ceil(vocab_size / 64)) u64
    changed: Vec<u64>,
}

impl Sampler {
    /// Room for rows of `vocab_size` logits.
    pub(crate) fn new(vocab_size: usize) -> Self {
        Sampler {
            kept: Vec::with_capacity(vocab_size),
            block_sums: Vec::with_capacity(vocab_size.div_ceil(BLOCK)),
            changed: vec![0; vocab_size.div_ceil(64)],
        }
    }

    /// The token that `u`, uniform in [0, 1), draws from `logits`, `(vocab_size)`, which are changed; none if bias and
    /// penalties leave none.
    ///
    /// `prompt` and `text` are the tokens so far: in any order, as often as they occur.
    pub(crate) fn sample(
        &mut self,
        logits: &mut [f32],
        params: &SamplerParams,
        prompt: &[u32],
        text: &[u32],
        u: f64,
    ) -> Option<u32> {
        if params.changes_logits() {
            self.change(logits, params, prompt, text);
        }
        let max = maximum(logits);
        if max == f32::NEG_INFINITY {
            return None;
        }
        Some(if params.greedy { first_equal(logits, max) } else { self.draw(logits, max, params, u) })
    }

    /// What `u` draws from the tokens that the filters leave, one at least: the one of `max`.
    fn draw(&mut self, logits: &mut [f32], max: f32, params: &SamplerParams, u: f64) -> u32 {
        if params.top_k == 0 || params.top_k >= logits.len() {
            let edge = if params.top_p < 1.0 { self.top_p_edge(logits, max, params) } else { None };
            return self.draw_from_all(logits, max, params, edge, u);
        }
        top(logits, params.top_k, &mut self.kept);
        for candidate in &mut self.kept {
            candidate.value = weight(candidate.value, max, params.temperature);
        }
        if params.top_p < 1.0 {
            let enough = f64::from(params.top_p) * self.kept.iter().map(|c| f64::from(c.value)).sum::<f64>();
            let mut sum = 0.0;
            let edge = self.kept.iter().position(|c| {
                sum += f64::from(c.value);
                sum >= enough
            });
            self.kept.truncate(edge.map_or(self.kept.len(), |edge| edge + 1));
        }
        self.kept.retain(|c| c.value >= params.min_p);
        self.kept.sort_unstable_by_key(|c| c.id);
        let total: f64 = self.kept.iter().map(|c| f64::from(c.value)).sum();
        draw(self.kept.iter().copied(), u * total)
    }

    /// Applies bias and penalties; ids without a logit are no tokens.
    fn change(&mut self, logits: &mut [f32], params: &SamplerParams, prompt: &[u32], text: &[u32]) {
        for &(id, bias) in &params.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit += bias;
            }
        }
        let penalty = params.repetition_penalty;
        if penalty != 1.0 {
            let divided = |logit: f32| if logit > 0.0 { logit / penalty } else { logit * penalty };
            self.once(logits, prompt.iter().chain(text), divided);
        }
        if params.frequency_penalty != 0.0 {
            for &id in text {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit -= params.frequency_penalty;
                }
            }
        }
        if params.presence_penalty != 0.0 {
            self.once(logits, text.iter(), |logit| logit - params.presence_penalty);
        }
    }

    /// Changes the logit of each of `ids` once.
    fn once<'a>(
        &mut self,
        logits: &mut [f32],
        ids: impl Iterator<Item = &'a u32> + Clone,
        f: impl Fn(f32) -> f32,
    ) {
        for &id in ids.clone() {
            let word = self.changed.get_mut(id as usize / 64);
            let (Some(word), Some(logit)) = (word, logits.get_mut(id as usize)) else { continue };
            let bit = 1 << (id % 64);
            if *word & bit == 0 {
                *word |= bit;
                *logit = f(*logit);
            }
        }
        for &id in ids {
            if let Some(word) = self.changed.get_mut(id as usize / 64) {
                *word = 0;
            }
        }
    }

    /// The last logit that top_p keeps of the whole row; `None` if it keeps all.
    fn top_p_edge(&mut self, logits: &[f32], max: f32, params: &SamplerParams) -> Option<Candidate> {
        let sums = bucket_sums(logits, max, params.temperature);
        let enough = f64::from(params.top_p) * sums.iter().sum::<f64>();
        let mut sum = 0.0;
        let bucket = sums.iter().position(|&bucket| {
            sum += bucket;
            sum >= enough
        })?;
        sum = sums[..bucket].iter().sum();
        self.kept.clear();
        for (id, &value) in (0..).zip(logits) {
            if bucket_of(value, max, params.temperature) == bucket {
                self.kept.push(Candidate { value, id });
            }
        }
        self.kept.sort_unstable_by(by_size);
        let edge = self.kept.iter().find(|c| {
            sum += f64::from(weight(c.value, max, params.temperature));
            sum >= enough
        });
        edge.or(self.kept.last()).copied()
    }

    /// Draws from all tokens up to `edge` that min_p leaves, without collecting them. The weights replace the
    /// logits.
    fn draw_from_all(
        &mut self,
        logits: &mut [f32],
        max: f32,
        params: &SamplerParams,
        edge: Option<Candidate>,
        u: f64,
    ) -> u32 {
        let edge = edge.unwrap_or(Candidate { value: f32::NEG_INFINITY, id: 0 });
        self.block_sums.clear();
        for (block, first) in logits.chunks_mut(BLOCK).zip((0..).step_by(BLOCK)) {
            for (logit, id) in block.iter_mut().zip(first..) {
                let kept = (*logit > edge.value) | ((*logit == edge.value) & (id <= edge.id));
                let w = weight(*logit, max, params.temperature);
                *logit = if kept & (w >= params.min_p) { w } else { 0.0 };
            }
            self.block_sums.push(lane_sum(block));
        }
        let target = u * self.block_sums.iter().sum::<f64>();
        // The first block that exceeds the target, or the last that has any weight.
        let (mut block, mut before, mut sum) = (0, 0.0, 0.0);
        for (at, &block_sum) in self.block_sums.iter().enumerate().filter(|(_, block_sum)| **block_sum > 0.0)
        {
            (block, before) = (at, sum);
            sum += block_sum;
            if sum > target {
                break;
            }
        }
        let start = block * BLOCK;
        let weights = logits[start..].iter().take(BLOCK).zip(start..);
        draw(weights.map(|(&value, id)| Candidate { value, id: id as u32 }), target - before)
    }
}

/// The first candidate with which the running sum of weights exceeds `target`; where rounding keeps the sum
/// below it, the last that has any weight.
fn draw(weights: impl Iterator<Item = Candidate>, target: f64) -> u32 {
    let (mut sum, mut last) = (0.0, 0);
    for Candidate { value, id } in weights {
        if value > 0.0 {
            last = id;
            sum += f64::from(value);
            if sum > target {
                break;
            }
        }
    }
    last
}

/// The larger first; of equal ones the lower id. NaN is never compared.
fn by_size(a: &Candidate, b: &Candidate) -> Ordering {
    b.value.partial_cmp(&a.value).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
}

/// Collects the `k` largest logits in `out`, largest first, equal ones by id; fewer, if fewer are not -inf.
///
/// `out` takes what exceeds a threshold, up to twice `k`; then the smaller half goes and the smallest that
/// stayed becomes the threshold. Ids ascend, so a later logit that equals it stands after it.
fn top(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    let cut = |out: &mut Vec<Candidate>| {
        if out.len() > k {
            out.select_nth_unstable_by(k - 1, by_size);
            out.truncate(k);
        }
    };
    out.clear();
    let mut threshold = f32::NEG_INFINITY;
    for (chunk, ids) in logits.chunks(LANES).zip((0..).step_by(LANES)) {
        // Nearly all chunks have nothing; this comparison of a whole chunk is vectorised.
        if !chunk.iter().fold(false, |any, &value| any | (value > threshold)) {
            continue;
        }
        for (&value, id) in chunk.iter().zip(ids..) {
            if value > threshold {
                out.push(Candidate { value, id });
                if out.len() == k.saturating_mul(2) {
                    cut(out);
                    threshold = out[k - 1].value;
                }
            }
        }
    }
    cut(out);
    out.sort_unstable_by(by_size);
}

/// What is wrong with a row of logits as a model gave it, `(vocab_size)`, or `(ids.len())` of these tokens: NaN, +inf,
/// or nothing but -inf. The largest f32 stands for the first two where the device has looked for the largest logits.
pub(crate) fn not_finite(logits: &[f32], ids: Option<&[u32]>) -> Option<String> {
    let finite = |logit: f32| logit < f32::MAX;
    let (mut all, mut any) = (true, false);
    for block in logits.chunks(BLOCK) {
        // No way out of the loop, which is vectorised.
        for &logit in block {
            all &= finite(logit);
            any |= logit > f32::NEG_INFINITY;
        }
        if !all {
            break;
        }
    }
    if all {
        return (!any).then(|| "-inf for every token".into());
    }
    let at = logits.iter().position(|&logit| !finite(logit))?;
    let token = ids.map_or(at, |ids| ids[at] as usize);
    let value = if ids.is_some() { "NaN or inf".into() } else { logits[at].to_string() };
    Some(format!("{value} for token {token}"))
}

/// The log-probability of `id` and of the `k` likeliest tokens, likeliest first, equal ones by id, under the
/// model itself: `logits`, `(vocab_size)`, must be as the model gave them, before [`Sampler::sample`].
///
/// `log softmax(l)_i = l_i - max l - ln(sum_j exp(l_j - max l))`. Tokens that are impossible (-inf, NaN, no
/// token at all) have -inf and are no alternatives.
pub(crate) fn logprobs(logits: &[f32], id: u32, k: usize) -> (f32, Vec<(u32, f32)>) {
    let max = maximum(logits);
    let log_sum = f64::from(max) + libm::log(weight_sum(logits, max, 1.0));
    let log_prob = |logit: f32| {
        if logit > f32::NEG_INFINITY {
            (f64::from(finite(logit)) - log_sum) as f32
        } else {
            f32::NEG_INFINITY
        }
    };
    let mut likeliest = Vec::new();
    if k > 0 {
        likeliest.reserve(logits.len().min(k.saturating_mul(2)));
        top(logits, k, &mut likeliest);
    }
    let alternatives = likeliest.iter().map(|c| (c.id, log_prob(c.value))).collect();
    (logits.get(id as usize).map_or(f32::NEG_INFINITY, |&logit| log_prob(logit)), alternatives)
}

#[cfg(test)]
mod tests {
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

    const PLAIN: SamplerParams = SamplerParams {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: Vec::new(),
        greedy: false,
    };

    /// The second half of `seen` is text.
    fn try_sample(logits: &[f32], params: &SamplerParams, seen: &[u32], u: f64) -> Option<u32> {
        let (prompt, text) = seen.split_at(seen.len() / 2);
        Sampler::new(logits.len()).sample(&mut logits.to_vec(), params, prompt, text, u)
    }

    fn sample(logits: &[f32], params: &SamplerParams, seen: &[u32], u: f64) -> u32 {
        try_sample(logits, params, seen, u).expect("a token is left")
    }

    /// The definition at the top of the module, with a full sort.
    fn reference(logits: &[f32], params: &SamplerParams, seen: &[u32], u: f64) -> Option<u32> {
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
        if row.is_empty() || params.greedy {
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
            let params = SamplerParams {
                temperature: [0.01, 0.85, 1.0, 3.0][random.below(4)],
                top_p: [1.0, 1.0, 0.95, 0.5, 1e-6][random.below(5)],
                top_k: [0, 0, 1, 2, 50, n, n + 1][random.below(7)],
                min_p: [0.0, 0.0, 0.05, 1.0][random.below(4)],
                repetition_penalty: [1.0, 1.3, 0.7][random.below(3)],
                frequency_penalty: [0.0, 0.0, 0.8, -0.3][random.below(4)],
                presence_penalty: [0.0, 0.0, 1.5, -0.2][random.below(4)],
                logit_bias: (0..random.below(4))
                    .map(|_| (random.below(n + 1) as u32, [5.0, -5.0, f32::NEG_INFINITY][random.below(3)]))
                    .collect(),
                greedy: random.below(20) == 0,
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
            assert!(
                (earliest..n as u32).contains(&last),
                "case {case}: n {n}, {last}, {earliest}, {params:?}"
            );
        }
        assert!(none > 10, "{none} rows have no token left");
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        // Chi-square with 9 degrees of freedom exceeds 27.9 once in a thousand.
        let logits: Vec<f32> = (0..10).map(|i| (i * 7 % 10) as f32 * 0.3).collect();
        for (params, kept) in [(PLAIN, 10), (SamplerParams { top_k: 5, temperature: 0.7, ..PLAIN }, 5)] {
            let mut sampler = Sampler::new(10);
            let mut counts = [0.0f64; 10];
            let draws = 100_000;
            for position in 0..draws {
                let mut row = logits.clone();
                let id = sampler.sample(&mut row, &params, &[], &[], uniform(11, 3, position)).unwrap();
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
            assert_eq!(sample(&logits, &SamplerParams::from(&options), &[], high), 1);
        }
        // A top_p that one token reaches keeps that token; 1 is off.
        assert_eq!(sample(&logits, &SamplerParams { top_p: 1e-9, ..PLAIN }, &[], high), 1);
        assert_eq!(sample(&logits, &PLAIN, &[], high), 4);
        assert_eq!(sample(&[0.0; 4], &SamplerParams { top_p: 0.5, ..PLAIN }, &[], high), 1);
        assert_eq!(sample(&[0.0; 4], &SamplerParams { top_p: 0.500_001, ..PLAIN }, &[], high), 2);
        // Ties at the edge of top_k go to the lower id, and exactly k stay.
        assert_eq!(sample(&[0.0, 1.0, 0.0, 0.0], &SamplerParams { top_k: 2, ..PLAIN }, &[], high), 1);
        assert_eq!(sample(&[0.0, 1.0, 0.0, 0.0], &SamplerParams { top_k: 2, ..PLAIN }, &[], 0.0), 0);
        assert_eq!(sample(&[0.0; 3], &SamplerParams { top_k: 100, ..PLAIN }, &[], high), 2);
        // min_p is a share of the largest: exp(-1) = 0.37 is in, exp(-2) = 0.14 is out.
        assert_eq!(sample(&[2.0, 1.0, 0.0], &SamplerParams { min_p: 0.3, ..PLAIN }, &[], high), 1);
        assert_eq!(sample(&[2.0, 1.0, 0.0], &SamplerParams { min_p: 0.1, ..PLAIN }, &[], high), 2);
        assert_eq!(sample(&[1.0, 2.0, 2.0], &SamplerParams { min_p: 1.0, ..PLAIN }, &[], high), 2);
    }

    #[test]
    fn penalties_and_bias_change_what_they_say() {
        let mut sampler = Sampler::new(130);
        let mut logits = vec![0.0; 130];
        (logits[0], logits[64], logits[129]) = (6.0, -6.0, 3.0);
        let (prompt, text) = (&[64, 0, 0, 129], &[64, 5_000, u32::MAX, 7, 7]);
        let mut changed = |params| {
            let mut row = logits.clone();
            sampler.change(&mut row, &params, prompt, text);
            [row[0], row[64], row[129], row[7]]
        };
        for _ in 0..2 {
            // Once, and down on both sides of zero.
            let repetition = changed(SamplerParams { repetition_penalty: 2.0, ..PLAIN });
            assert_eq!(repetition, [3.0, -12.0, 1.5, 0.0]);
            // Of the text alone, for each time or once.
            let frequency = changed(SamplerParams { frequency_penalty: 0.5, ..PLAIN });
            assert_eq!(frequency, [6.0, -6.5, 3.0, -1.0]);
            let presence = changed(SamplerParams { presence_penalty: 0.5, ..PLAIN });
            assert_eq!(presence, [6.0, -6.5, 3.0, -0.5]);
            let logit_bias = vec![(0, f32::NEG_INFINITY), (7, 1.0), (7, 0.5), (130, 9.0), (u32::MAX, 9.0)];
            let all = SamplerParams { repetition_penalty: 3.0, presence_penalty: 1.0, logit_bias, ..PLAIN };
            assert_eq!(changed(all), [f32::NEG_INFINITY, -19.0, 1.0, -0.5]);
        }
        let params = SamplerParams { repetition_penalty: 3.0, greedy: true, ..PLAIN };
        assert_eq!(sample(&logits, &params, &[0], 0.0), 129);
        let params = SamplerParams { logit_bias: vec![(0, f32::NEG_INFINITY)], greedy: true, ..PLAIN };
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
                    let params = SamplerParams { top_k, top_p, temperature, ..PLAIN };
                    let drawn = [0.0, 1.0 - f64::EPSILON].map(|u| sample(row, &params, &[0, 1], u));
                    assert!(drawn[0] >= first && drawn[1] <= last, "{row:?} {params:?} {drawn:?}");
                }
            }
            for id in 0..row.len() as u32 + 1 {
                let (logprob, alternatives) = logprobs(row, id, 9);
                assert!(logprob <= 0.0 && alternatives.iter().all(|a| a.1 <= 0.0), "{row:?} {logprob}");
            }
        }
        assert_eq!(try_sample(&nothing, &PLAIN, &[], 0.5), None);
        assert_eq!(logprobs(&nothing, 0, 3), (-INF, vec![]));
        assert_eq!(logprobs(&[0.0], 1, 0), (-INF, vec![]));
    }

    #[test]
    fn where_bias_leaves_no_token_none_is_chosen() {
        let ruled_out = |n| (0..n).map(|id| (id, f32::NEG_INFINITY)).collect::<Vec<_>>();
        for (top_k, top_p, min_p, greedy) in
            [(0, 1.0, 0.0, true), (0, 1.0, 0.0, false), (1, 1.0, 0.0, false), (2, 0.5, 1.0, false)]
        {
            let params = |n| SamplerParams { top_k, top_p, min_p, greedy, logit_bias: ruled_out(n), ..PLAIN };
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
            let row = vec![0.5; n];
            assert_eq!(not_finite(&row, None), None);
            for at in [0, n / 2, n - 1] {
                for (value, name) in [(f32::NAN, "NaN"), (INF, "inf")] {
                    let mut row = row.clone();
                    row[at] = value;
                    assert_eq!(not_finite(&row, None), Some(format!("{name} for token {at}")));
                }
                let mut row = vec![-INF; n];
                assert_eq!(not_finite(&row, None), Some("-inf for every token".into()));
                row[at] = -1e30;
                assert_eq!(not_finite(&row, None), None);
            }
        }
        assert_eq!(not_finite(&[], Some(&[])), Some("-inf for every token".into()));
        let found = not_finite(&[1.0, f32::MAX], Some(&[3, 70]));
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
}
