//! [`Logits`]: one row, of all tokens or of the largest logits only.

use super::weights::BLOCK;

/// One row of logits, which choosing a token changes in place.
#[derive(Debug)]
pub(crate) enum Logits<'a> {
    /// Of every token. // (vocab_size)
    All(&'a mut [f32]),
    /// The largest, by token: what a backend finds on its device, so that the others need not be copied. // (k), (k)
    Top { values: &'a mut [f32], ids: &'a [u32] },
}

impl Logits<'_> {
    /// Those that are there, in the order of their tokens.
    pub(crate) fn values(&self) -> &[f32] {
        match self {
            Logits::All(values) | Logits::Top { values, .. } => values,
        }
    }

    /// As [`Logits::values`].
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        match self {
            Logits::All(values) | Logits::Top { values, .. } => values,
        }
    }

    /// One for each token, `(vocab_size)`; who needs that has said so before they were read.
    pub(crate) fn all(&self) -> &[f32] {
        match self {
            Logits::All(values) => values,
            Logits::Top { .. } => unreachable!("all logits were asked for"),
        }
    }

    /// As [`Logits::all`].
    pub(crate) fn all_mut(&mut self) -> &mut [f32] {
        match self {
            Logits::All(values) => values,
            Logits::Top { .. } => unreachable!("all logits were asked for"),
        }
    }

    /// The token of the value at this place.
    pub(crate) fn token(&self, at: usize) -> u32 {
        match self {
            Logits::All(_) => at as u32,
            Logits::Top { ids, .. } => ids[at],
        }
    }

    /// What is wrong with a row as a model gave it: NaN, +inf, or nothing but -inf. The largest f32 stands for the first
    /// two where the device has looked for the largest logits.
    pub(crate) fn not_finite(&self) -> Option<String> {
        let logits = self.values();
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
        let value = match self {
            Logits::All(values) => values[at].to_string(),
            Logits::Top { .. } => "NaN or inf".into(),
        };
        Some(format!("{value} for token {}", self.token(at)))
    }
}
