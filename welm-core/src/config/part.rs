//! The parts of a model: which matrices and norms a configuration has, and of what shape.
//!
//! [`ModelConfig::parts`] is the only list of them. From it follow what is read from a file and so what is left over in
//! it, what an int8 folder holds, how much memory the weights take, and how many parameters there are.
//!
//! To add a part: a line in `layer_parts!`, and an arm in [`ModelConfig::part`] that says when it is there. Every family
//! then fails to compile until it names the part or says that it has none, and a model that has it fails to load until
//! `Weights::load` of `transformer.rs` takes it.

use std::fmt;

use super::{ModelConfig, NormKind, QkNorm};

/// A matrix or a norm, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ModelPart {
    /// The embedding, a row for each token.
    Embed,
    /// A part of the layer of this index.
    Layer(usize, LayerPart),
    /// Before the output.
    FinalNorm,
    /// The output projection, a row for each token.
    Output,
}

macro_rules! layer_parts {
    ($($(#[$doc:meta])* $part:ident = $name:literal,)*) => {
        /// A part of a layer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum LayerPart {
            $($(#[$doc])* $part,)*
        }

        impl LayerPart {
            /// All of them, in the order in which a layer computes.
            pub(crate) const ALL: &[LayerPart] = &[$(LayerPart::$part),*];

            /// As the engine spells it, in errors and in int8 folders.
            fn name(self) -> &'static str {
                match self {
                    $(LayerPart::$part => $name,)*
                }
            }
        }
    };
}

layer_parts! {
    /// Before attention.
    AttnNorm = "attn_norm",
    /// Heads of q, then of k, then of v.
    Qkv = "qkv",
    /// Of q.
    QNorm = "q_norm",
    /// Of k.
    KNorm = "k_norm",
    /// The attention's output projection.
    Out = "out",
    /// Of what attention adds to the residual stream.
    AttnPostNorm = "attn_post_norm",
    /// Before the feed-forward half.
    FfnNorm = "ffn_norm",
    /// The first feed-forward projection: gates, then ups, where there are gates.
    Up = "up",
    /// The second feed-forward projection.
    Down = "down",
    /// Of what the feed-forward half adds to the residual stream.
    FfnPostNorm = "ffn_post_norm",
}

/// `embed`, `layers.3.qkv`: the engine's own name, which int8 folders use, too.
impl fmt::Display for ModelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelPart::Embed => f.write_str("embed"),
            ModelPart::Layer(l, part) => write!(f, "layers.{l}.{}", part.name()),
            ModelPart::FinalNorm => f.write_str("final_norm"),
            ModelPart::Output => f.write_str("output"),
        }
    }
}

/// How a part is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartKind {
    /// A matrix with a row for each token.
    Table,
    /// A matrix of a layer.
    Matrix,
    /// A matrix of a layer whose first half of rows are gates, and whose second half are ups.
    Gated,
    /// The weight of a normalisation, a vector.
    Norm,
}

/// A part of a certain model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartSpec {
    pub(crate) part: ModelPart,
    pub(crate) kind: PartKind,
    /// Rows of each of the matrices that it joins: q, k and v; gate and up. A vector is rows of one column.
    pub(crate) blocks: Vec<usize>,
    pub(crate) cols: usize,
    /// Whether it has a bias, `(rows)`.
    pub(crate) bias: bool,
}

impl PartSpec {
    /// Rows in all.
    pub(crate) fn rows(&self) -> usize {
        self.blocks.iter().sum()
    }

    /// Weights and biases.
    fn n_params(&self) -> u64 {
        self.rows() as u64 * (self.cols as u64 + u64::from(self.bias))
    }
}

impl ModelConfig {
    /// Every part that the model has, in the order in which they are loaded.
    pub(crate) fn parts(&self) -> impl Iterator<Item = PartSpec> {
        let of_layer = |l| LayerPart::ALL.iter().map(move |&part| ModelPart::Layer(l, part));
        let layers = (0..self.layers.len()).flat_map(of_layer);
        let all =
            [ModelPart::Embed].into_iter().chain(layers).chain([ModelPart::FinalNorm, ModelPart::Output]);
        all.filter_map(|part| self.part(part))
    }

    /// A part as this model has it; none if it does not.
    fn part(&self, part: ModelPart) -> Option<PartSpec> {
        let spec = |kind, blocks: &[usize], cols, bias| {
            Some(PartSpec { part, kind, blocks: blocks.to_vec(), cols, bias })
        };
        let table = || spec(PartKind::Table, &[self.vocab_size], self.dim, false);
        let norm = || spec(PartKind::Norm, &[self.dim], 1, self.norm == NormKind::LayerNorm);
        let (q, kv) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        let (l, part) = match part {
            ModelPart::Embed => return table(),
            ModelPart::FinalNorm => return norm(),
            ModelPart::Output if self.tied_output => return None,
            ModelPart::Output => return table(),
            ModelPart::Layer(l, part) => (l, part),
        };
        match part {
            LayerPart::AttnNorm | LayerPart::FfnNorm if !self.layers[l].pre_norms => None,
            LayerPart::AttnNorm | LayerPart::FfnNorm => norm(),
            LayerPart::QNorm | LayerPart::KNorm => {
                let rows = match self.layers[l].qk_norm? {
                    QkNorm::Head | QkNorm::TurnedHead => self.head_dim,
                    QkNorm::AllHeads if part == LayerPart::QNorm => q,
                    QkNorm::AllHeads => kv,
                };
                spec(PartKind::Norm, &[rows], 1, false)
            }
            LayerPart::AttnPostNorm | LayerPart::FfnPostNorm if !self.layers[l].post_norms => None,
            LayerPart::AttnPostNorm | LayerPart::FfnPostNorm => norm(),
            LayerPart::Qkv => spec(PartKind::Matrix, &[q, kv, kv], self.dim, self.attention_bias),
            LayerPart::Out => spec(PartKind::Matrix, &[self.dim], q, self.attention_out_bias),
            LayerPart::Up if self.activation.is_gated() => {
                spec(PartKind::Gated, &[self.hidden_dim; 2], self.dim, self.mlp_bias)
            }
            LayerPart::Up => spec(PartKind::Matrix, &[self.hidden_dim], self.dim, self.mlp_bias),
            LayerPart::Down => spec(PartKind::Matrix, &[self.dim], self.hidden_dim, self.mlp_bias),
        }
    }

    /// Takes note of a bias that a file has, where only the file tells.
    pub(crate) fn note_bias(&mut self, part: ModelPart) {
        let ModelPart::Layer(_, part) = part else { return };
        match part {
            LayerPart::Qkv => self.attention_bias = true,
            LayerPart::Out => (self.attention_bias, self.attention_out_bias) = (true, true),
            LayerPart::Up | LayerPart::Down => self.mlp_bias = true,
            LayerPart::AttnNorm
            | LayerPart::QNorm
            | LayerPart::KNorm
            | LayerPart::AttnPostNorm
            | LayerPart::FfnNorm
            | LayerPart::FfnPostNorm => {}
        }
    }

    /// Weights and biases in all; a tied output counts once.
    pub fn n_params(&self) -> u64 {
        self.parts().map(|part| part.n_params()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(config: &ModelConfig) -> Vec<String> {
        config.parts().map(|part| part.part.to_string()).collect()
    }

    #[test]
    fn parts_are_listed_in_the_order_of_loading() {
        let mut config = ModelConfig::welm_medium();
        config.n_layers = 2;
        config.layers.truncate(2);
        let layer = |l: usize| {
            ["attn_norm", "qkv", "out", "ffn_norm", "up", "down"].map(|part| format!("layers.{l}.{part}"))
        };
        let with_ends = |layers: Vec<String>| {
            let ends = ["final_norm", "output"].map(String::from);
            [vec!["embed".to_string()], layers, ends.to_vec()].concat()
        };
        assert_eq!(names(&config), with_ends([layer(0), layer(1)].concat()));

        // Optional ones, in one layer.
        let before = config.n_params();
        config.layers[1].qk_norm = Some(QkNorm::Head);
        config.layers[1].post_norms = true;
        let second = [
            "attn_norm",
            "qkv",
            "q_norm",
            "k_norm",
            "out",
            "attn_post_norm",
            "ffn_norm",
            "up",
            "down",
            "ffn_post_norm",
        ];
        let second = second.map(|part| format!("layers.1.{part}"));
        assert_eq!(names(&config), with_ends([&layer(0)[..], &second].concat()));
        // A weight for each value of a head, twice; two layernorms.
        assert_eq!(config.n_params() - before, (2 * config.head_dim + 2 * 2 * config.dim) as u64);

        config.tied_output = true;
        assert_eq!(names(&config).last().unwrap(), "final_norm");
    }

    #[test]
    fn parameters_are_counted_with_their_biases() {
        let mut config = ModelConfig::welm_medium();
        let (dim, layers) = (config.dim as u64, config.n_layers as u64);
        let all = 2 * 62_080 * dim + 2 * dim + layers * (12 * dim * dim + 9 * dim + 4 * dim);
        assert_eq!(config.n_params(), all);
        // As in Qwen2: q, k and v only.
        config.attention_out_bias = false;
        config.mlp_bias = false;
        assert_eq!(config.n_params(), all - layers * 6 * dim);
        // Gates, fewer heads of keys than of queries, and norms without a bias.
        config.norm = NormKind::RmsNorm;
        config.activation = crate::config::Activation::SwiGlu;
        config.n_kv_heads = 2;
        let kv = 2 * config.head_dim as u64;
        let layer = dim * (dim + 2 * kv) + (dim + 2 * kv) + dim * dim + 3 * 4 * dim * dim + 2 * dim;
        assert_eq!(config.n_params(), 2 * 62_080 * dim + dim + layers * layer);
    }
}
