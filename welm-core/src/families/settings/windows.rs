//! Sliding windows of attention: which layers have one, in folders and in GGUF files.

use super::{Fields, Metadata};
use crate::config::{LayerConfig, ModelConfig, Rope};
use crate::error::{Error, Result};

/// Layers that slide, with their window.
pub(crate) struct Sliding {
    window: usize,
    layers: Vec<bool>, // (n_layers)
}

impl Fields {
    /// The layers that `layer_types` says, or where it is absent those of the family's rule.
    ///
    /// # Errors
    /// If `layer_types` says something else of a layer than that it slides or not, or if a layer slides without a window.
    pub(crate) fn sliding(
        &self,
        n_layers: usize,
        window: Option<usize>,
        rule: impl Fn(usize) -> bool,
    ) -> Result<Option<Sliding>> {
        const KEY: &str = "layer_types";
        let layers: Vec<bool> = match self.find(KEY) {
            None => (0..n_layers).map(rule).collect(),
            Some(value) => {
                let expected = format!("full_attention or sliding_attention for each of {n_layers} layers");
                let wrong = || self.wrong(KEY, &expected, value);
                let list = value.as_array().filter(|list| list.len() == n_layers).ok_or_else(wrong)?;
                let slides = |kind: &str| match kind {
                    "sliding_attention" => Some(true),
                    "full_attention" => Some(false),
                    _ => None,
                };
                let layers = list.iter().map(|kind| kind.as_str().and_then(slides));
                layers.collect::<Option<_>>().ok_or_else(wrong)?
            }
        };
        match window {
            _ if !layers.contains(&true) => Ok(None),
            Some(window) => Ok(Some(Sliding { window, layers })),
            None => {
                Err(Error::config(self.path("sliding_window"), "layers slide, and this does not say how far"))
            }
        }
    }
}

impl Metadata<'_> {
    /// The layers that slide, if the file has a window. It marks each of them, or has a period: every so many layers the
    /// last does not slide. Without either the family's period counts, and without that one all layers slide.
    pub(crate) fn sliding(&self, n_layers: usize, period: Option<usize>) -> Result<Option<Sliding>> {
        const PATTERN: &str = "attention.sliding_window_pattern";
        let Some(window) = self.opt_size("attention.sliding_window")?.filter(|&window| window != 0) else {
            self.mark_read(PATTERN);
            return Ok(None);
        };
        let layers = match self.opt_flags(PATTERN, n_layers)? {
            Some(flags) => flags,
            None => {
                let period = self.opt_size(PATTERN)?.or(period).unwrap_or(0);
                (0..n_layers).map(|l| period == 0 || l % period + 1 < period).collect()
            }
        };
        Ok(Some(Sliding { window, layers }))
    }
}

impl ModelConfig {
    /// Gives layers that slide their window.
    pub(crate) fn slide(&mut self, sliding: Option<&Sliding>) {
        let Some(sliding) = sliding else { return };
        // One that reaches over the whole context is none.
        let window = Some(sliding.window).filter(|&window| window < self.longest_context());
        for layer in sliding.of(&mut self.layers) {
            layer.window = window;
        }
    }

    /// Gives layers that slide a rotary embedding of their own.
    pub(crate) fn slide_with(&mut self, sliding: Option<&Sliding>, rope: Rope) {
        let Some(sliding) = sliding else { return };
        self.ropes.push(rope);
        let own = self.ropes.len() - 1;
        for layer in sliding.of(&mut self.layers) {
            layer.rope = Some(own);
        }
    }
}

impl Sliding {
    /// All of so many layers.
    pub(crate) fn all(window: usize, n_layers: usize) -> Self {
        Sliding { window, layers: vec![true; n_layers] }
    }

    fn of<'a>(&'a self, layers: &'a mut [LayerConfig]) -> impl Iterator<Item = &'a mut LayerConfig> {
        layers.iter_mut().zip(&self.layers).filter_map(|(layer, &slides)| slides.then_some(layer))
    }
}
