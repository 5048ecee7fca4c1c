//! [`GenerateOptions`]: how a text is continued.

use std::collections::HashSet;
use std::time::Duration;

use super::CancelToken;
use super::table::options;
use crate::error::{Error, Result};

options! {
    /// How a text is continued. The defaults of the first six are those of WeLM's public API.
    ///
    /// Later versions may add fields: end a literal with `..GenerateOptions::default()`.
    ///
    /// ```
    /// use welm_core::GenerateOptions;
    /// let options = GenerateOptions { max_tokens: 64, temperature: 0.0, ..GenerateOptions::default() };
    /// assert_eq!(options.top_k, 50);
    /// ```
    #[derive(Debug, Clone)]
    pub struct GenerateOptions {
        /// Most tokens generated for each sequence.
        pub max_tokens: usize = 16, Whole(0, u64::MAX);
        /// Divides the logits; 0 is greedy: the likeliest token is always taken.
        pub temperature: f32 = 0.85, Real(0.0, 100.0);
        /// Keeps the likeliest tokens whose probabilities add up to this; 0 is greedy, 1 is off.
        pub top_p: f32 = 0.95, Real(0.0, 1.0);
        /// Keeps this many of the likeliest tokens; 0 is off.
        pub top_k: usize = 50, Whole(0, u64::MAX);
        /// Sequences returned; the prompt is computed once.
        pub n: usize = 1, Whole(1, Self::MAX_N as u64);
        /// Whether the prompt is part of the text, and of the log-probabilities if those are asked for.
        pub echo: bool = false, Switch;
        /// Drops tokens less likely than this share of the likeliest token's probability; 0 is off.
        pub min_p: f32 = 0.0, Real(0.0, 1.0);
        /// Divides positive and multiplies negative logits of tokens that prompt or text contain; 1 is off.
        pub repetition_penalty: f32 = 1.0, Real(0.01, 100.0);
        /// Subtracted from a token's logit for each time that the generated text has it; 0 is off.
        pub frequency_penalty: f32 = 0.0, Real(-100.0, 100.0);
        /// Subtracted once from the logits of tokens that the generated text has; 0 is off.
        pub presence_penalty: f32 = 0.0, Real(-100.0, 100.0);
        /// Added to the logits of these tokens; -infinity rules a token out.
        ///
        /// It is added before the penalties. The numbers of a token that is here several times add up.
        pub logit_bias: Vec<(u32, f32)> = Vec::new(), Biases(100.0), "none";
        /// Strings that end a sequence; they are never part of the text.
        ///
        /// A stop string may spell special tokens, which texts leave out: `<|im_end|>` ends a sequence at that token, and
        /// `\n<|im_end|>` only after the end of a line.
        pub stop: Vec<String> = Vec::new(), Texts(Self::MAX_STOP), "none";
        /// Tokens that end a sequence as the model's own end tokens do.
        ///
        /// The sequence then ends with [`FinishReason::Stop`], even if [`GenerateOptions::ignore_eos`] is set. (One that is
        /// an end token of the model, and not ignored, ends it as that.) Like the model's own end tokens they are in neither
        /// text nor tokens; [`Finish::end_token`] tells which one came.
        ///
        /// [`FinishReason::Stop`]: crate::FinishReason::Stop
        /// [`Finish::end_token`]: crate::Finish::end_token
        pub stop_token_ids: Vec<u32> = Vec::new(), Tokens(Self::MAX_STOP), "none";
        /// Whether the model's end tokens are ignored, so that the text goes on up to max_tokens.
        ///
        /// A stop string or one of [`GenerateOptions::stop_token_ids`] still ends it.
        pub ignore_eos: bool = false, Switch;
        /// How many of the likeliest tokens are reported at each place, with log-probabilities.
        ///
        /// `Some(0)` reports the log-probability of the chosen token alone.
        pub logprobs: Option<usize> = None, Whole(0, Self::MAX_LOGPROBS as u64), "none is reported";
        /// Seed of the random numbers; the same request with the same seed gives the same text.
        pub seed: Option<u64> = None, Whole(0, u64::MAX), "drawn, and reported with the result";
        /// Time after which the request ends with what it has, counted from the call.
        pub deadline: Option<Duration> = None, Duration, "never";
        /// Token that ends the request from another thread.
        pub cancel: Option<CancelToken> = None, Cancel, "none";
        /// Whether spellings of special tokens in the prompt become these tokens; otherwise they are ordinary text.
        ///
        /// `<|endoftext|>`, for instance.
        pub parse_special: bool = false, Switch;
        /// Prefix-cache entries are shared only between requests with the same salt.
        ///
        /// A secret for each tenant keeps tenants from finding out each other's prompts by time or by
        /// [`Usage::cached_tokens`](crate::Usage::cached_tokens). It changes no text.
        pub cache_salt: Option<String> = None, Text(Some(Self::MAX_CACHE_SALT)), "shared by all that have none";
    }
}

impl GenerateOptions {
    /// The most alternatives that `logprobs` may ask for.
    pub const MAX_LOGPROBS: usize = 100;
    /// The most sequences of one request.
    pub const MAX_N: usize = 128;
    /// The most stop strings, the most bytes of each, and the most stop tokens.
    pub const MAX_STOP: usize = 256;
    /// The most bytes of a `cache_salt`.
    pub const MAX_CACHE_SALT: usize = 256;

    /// Greedy decoding of `max_tokens` tokens, the rest at their defaults.
    pub fn greedy(max_tokens: usize) -> Self {
        GenerateOptions { max_tokens, temperature: 0.0, ..Self::default() }
    }

    /// Whether the likeliest token is always taken.
    pub(crate) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_p == 0.0 || self.top_k == 1
    }

    /// Checks what depends on the model: that tokens are its own, and that some are left to choose from.
    pub(crate) fn validate_tokens(&self, vocab_size: usize, has_tokenizer: bool) -> Result<()> {
        let biased = self.logit_bias.iter().map(|(id, _)| id);
        for (option, id) in biased
            .map(|id| ("logit_bias", id))
            .chain(self.stop_token_ids.iter().map(|id| ("stop_token_ids", id)))
        {
            if *id as usize >= vocab_size {
                return Err(Error::option(option, format!("expected tokens below {vocab_size}, got {id}")));
            }
        }
        let out = self.logit_bias.iter().filter(|(_, bias)| *bias == f32::NEG_INFINITY).map(|(id, _)| *id);
        // Fewer entries than tokens cannot rule out all.
        if self.logit_bias.len() >= vocab_size && out.collect::<HashSet<u32>>().len() == vocab_size {
            let reason = format!("expected to leave a token to choose, got -inf for all {vocab_size}");
            return Err(Error::option("logit_bias", reason));
        }
        if !self.stop.is_empty() && !has_tokenizer {
            let reason = format!(
                "expected none, got {}: the model has no tokenizer, and so no text that could match; use stop_token_ids",
                self.stop.len()
            );
            return Err(Error::option("stop", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::LoadOptions;

    #[test]
    fn options_outside_their_domain_are_named() {
        let bad = [
            GenerateOptions { temperature: -1.0, ..Default::default() },
            GenerateOptions { temperature: f32::NAN, ..Default::default() },
            GenerateOptions { top_p: 1.5, ..Default::default() },
            GenerateOptions { min_p: -0.1, ..Default::default() },
            GenerateOptions { repetition_penalty: 0.0, ..Default::default() },
            GenerateOptions { frequency_penalty: 100.1, ..Default::default() },
            GenerateOptions { presence_penalty: f32::NAN, ..Default::default() },
            GenerateOptions { logit_bias: vec![(1, -100.0), (2, f32::INFINITY)], ..Default::default() },
            GenerateOptions { n: 0, ..Default::default() },
            GenerateOptions { n: 1000, ..Default::default() },
            GenerateOptions { logprobs: Some(101), ..Default::default() },
            GenerateOptions { stop: vec![String::new()], ..Default::default() },
            GenerateOptions { stop_token_ids: vec![0; 257], ..Default::default() },
            GenerateOptions { cache_salt: Some(String::new()), ..Default::default() },
            GenerateOptions { cache_salt: Some("é".repeat(129)), ..Default::default() },
        ];
        let names = [
            "temperature",
            "temperature",
            "top_p",
            "min_p",
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "logit_bias",
            "n",
            "n",
            "logprobs",
            "stop",
            "stop_token_ids",
            "cache_salt",
            "cache_salt",
        ];
        for (options, name) in bad.iter().zip(names) {
            match options.validate() {
                Err(Error::InvalidOption { option, .. }) => assert_eq!(option, name),
                other => panic!("{name}: {other:?}"),
            }
        }
        let many = GenerateOptions { logprobs: Some(101), ..Default::default() }.validate().unwrap_err();
        assert_eq!(many.to_string(), "option `logprobs`: expected at most 100, got 101");
        assert!(GenerateOptions::default().validate().is_ok());
        assert!(LoadOptions::default().validate().is_ok());
        assert!(LoadOptions { chunk_tokens: Some(0), ..Default::default() }.validate().is_err());
        assert!(LoadOptions { threads: Some(0), ..Default::default() }.validate().is_err());
    }
}
