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
//! constraint           l = -inf                                  of tokens that may not follow, if the sequence has one
//! temperature          w = exp((l - max l) / temperature)        a weight: a probability without divisor
//! top_k                keeps the k largest logits
//! top_p                of those, the fewest largest whose weights reach top_p of their sum
//! min_p                of those, the ones with w >= min_p        (the largest weight is 1)
//! draw                 of those, in order of id, the first where the running sum exceeds u * their sum
//! ```
//!
//! The first four are [`LogitsProcessor`]s: a request has those that it asks for, and most have none.
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
//! **Odd values.** A row with NaN or +inf, or with nothing but -inf, comes of a broken model: [`Logits::not_finite`] finds it,
//! and nothing is sampled. Where bias, penalties and constraint leave no token, none is chosen. The functions below take NaN for
//! -inf and +inf for the largest f32, so that no row makes them panic.

mod logits;
mod processors;
mod random;
#[cfg(test)]
mod tests;
mod weights;

use std::cmp::Ordering;

use self::processors::{Context, Marks};
use self::weights::{
    BLOCK, LANES, bucket_of, bucket_sums, finite, first_equal, lane_sum, maximum, weight, weight_sum,
};
use crate::options::GenerateOptions;

pub(crate) use self::logits::Logits;
pub(crate) use self::processors::{LogitsProcessor, processors};
pub(crate) use self::random::uniform;

/// How a token is drawn from the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SamplerParams {
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    /// 0 is off.
    pub(crate) top_k: usize,
    pub(crate) min_p: f32,
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
            greedy: options.is_greedy(),
        }
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
    marks: Marks,
}

impl Sampler {
    /// Room for rows of `vocab_size` logits.
    pub(crate) fn new(vocab_size: usize) -> Self {
        Sampler {
            kept: Vec::with_capacity(vocab_size),
            block_sums: Vec::with_capacity(vocab_size.div_ceil(BLOCK)),
            marks: Marks::new(vocab_size),
        }
    }

    /// Has a request's processors change the logits. `prompt` and `text` are the tokens so far.
    pub(crate) fn process(
        &mut self,
        logits: &mut Logits<'_>,
        processors: &[Box<dyn LogitsProcessor>],
        prompt: &[u32],
        text: &[u32],
    ) {
        for processor in processors {
            processor.process(logits.all_mut(), &mut Context { prompt, text, marks: &mut self.marks });
        }
    }

    /// The token that `u`, uniform in [0, 1), draws from logits, which are changed; none if none is left.
    pub(crate) fn sample(&mut self, logits: &mut Logits<'_>, params: &SamplerParams, u: f64) -> Option<u32> {
        let values = logits.values_mut();
        let max = maximum(values);
        if max == f32::NEG_INFINITY {
            return None;
        }
        let at = if params.greedy { first_equal(values, max) } else { self.draw(values, max, params, u) };
        Some(logits.token(at as usize))
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
