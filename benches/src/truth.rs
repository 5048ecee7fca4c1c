//! How far the logits of a model are from those of the same weights computed in f32.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use welm_core::{LoadOptions, Model};

/// Tokens of a text that are scored together.
const WINDOW: usize = 512;

/// The logits of some windows, and of each row the likeliest token and the logarithm of its sum of exponentials.
struct Rows {
    logits: Vec<f32>, // (tokens, vocab)
    sums: Vec<(usize, f64)>,
}

impl Rows {
    fn of(model: &Path, windows: &[Vec<u32>], options: &LoadOptions) -> Result<Rows> {
        let options = LoadOptions { context_tokens: Some(WINDOW), ..options.clone() };
        let model = Model::load(model, &options)?;
        let mut logits = Vec::new();
        for window in windows {
            logits.extend(model.logits(window, 0)?);
        }
        let sums = logits.chunks(model.config().vocab_size).map(|row| {
            let max = (0..row.len()).fold(0, |max, i| if row[i] > row[max] { i } else { max });
            let over = row.iter().map(|&x| f64::from(x - row[max]).exp()).sum::<f64>();
            (max, f64::from(row[max]) + over.ln())
        });
        let sums = sums.collect();
        Ok(Rows { logits, sums })
    }

    /// Divergences of `other` from this, in nats, sorted; and the share of rows with the same likeliest token.
    fn against(&self, other: &Rows) -> (Vec<f64>, f64) {
        let vocab = self.logits.len() / self.sums.len();
        let rows = self.logits.chunks(vocab).zip(other.logits.chunks(vocab));
        let mut same = 0;
        let divergence = |((p, q), (p_sum, q_sum)): ((&[f32], &[f32]), (&(usize, f64), &(usize, f64)))| {
            same += usize::from(p_sum.0 == q_sum.0);
            let terms = p.iter().zip(q).map(|(&p, &q)| (f64::from(p) - p_sum.1).exp() * f64::from(p - q));
            terms.sum::<f64>() - (p_sum.1 - q_sum.1)
        };
        let mut all: Vec<f64> = rows.zip(self.sums.iter().zip(&other.sums)).map(divergence).collect();
        all.sort_by(f64::total_cmp);
        let share = same as f64 / all.len() as f64;
        (all, share)
    }
}

/// Scores the first tokens of a text in f32 and with each of `ways`, and tells how they differ.
///
/// # Errors
/// If the model cannot be loaded, or the text is too short.
pub fn measure(
    model: &Path,
    text: &str,
    tokens: usize,
    exact: &LoadOptions,
    ways: &[(&str, LoadOptions)],
) -> Result<Vec<Value>> {
    let tokenizer = Model::load(model, &LoadOptions { context_tokens: Some(WINDOW), ..exact.clone() })?;
    let ids = tokenizer.tokenize(text, false).context("the text")?;
    drop(tokenizer);
    ensure!(ids.len() >= tokens, "expected a text of {tokens} tokens, got {}", ids.len());
    let windows: Vec<Vec<u32>> = ids[..tokens].chunks(WINDOW).map(<[u32]>::to_vec).collect();
    let truth = Rows::of(model, &windows, exact)?;
    let way = |(name, options): &(&str, LoadOptions)| {
        let (all, same) = truth.against(&Rows::of(model, &windows, options)?);
        Ok(json!({
            "record": "truth", "way": name, "tokens": tokens, "mean_kl": all.iter().sum::<f64>() / all.len() as f64,
            "median_kl": all[all.len() / 2], "p99_kl": all[all.len() * 99 / 100], "same_top": same,
        }))
    };
    ways.iter().map(way).collect()
}
