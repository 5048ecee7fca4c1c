//! Tensors that may stay unread: their values cannot matter, or follow from the configuration.
//!
//! Whatever else a checkpoint holds and nobody reads (adapters, norms of queries and keys, biases, other heads)
//! was part of the arithmetic that it was trained with, so leaving it out would be another model.

/// The end of a name, from a dot or the beginning on; what the shape must be like; why it may stay unread.
type Rule = (&'static str, fn(&[usize]) -> bool, &'static str);

const RULES: &[Rule] = &[
    ("rotary_emb.inv_freq", any, "rotary table: the configuration gives it"),
    ("rotary_emb.cos_cached", any, "rotary table"),
    ("rotary_emb.sin_cached", any, "rotary table"),
    ("attn_rot_embd", any, "rotary table"),
    ("attn_rot_embd.weight", any, "rotary table"),
    ("attention.bias", is_matrix, "causal mask, which is not a bias"),
    ("attention.masked_bias", is_number, "what the causal mask writes"),
    ("position_ids", any, "0, 1, 2, ..."),
];

fn any(_: &[usize]) -> bool {
    true
}

fn is_matrix(shape: &[usize]) -> bool {
    shape.len() >= 2
}

fn is_number(shape: &[usize]) -> bool {
    shape.iter().all(|&n| n == 1)
}

/// Whether a tensor of this name and shape may stay unread.
pub(super) fn may_be(name: &str, shape: &[usize]) -> bool {
    // One without elements holds nothing.
    shape.contains(&0)
        || RULES.iter().any(|(end, fits, _)| {
            let before = name.strip_suffix(end);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.')) && fits(shape)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_masks_may_stay_unread_and_nothing_else() {
        for (name, shape, may) in [
            ("model.layers.3.self_attn.rotary_emb.inv_freq", &[64][..], true),
            ("model.rotary_emb.inv_freq", &[64], true),
            ("gpt_neox.layers.0.attention.rotary_emb.cos_cached", &[1, 1, 8, 4], true),
            ("blk.0.attn_rot_embd", &[64], true),
            ("gpt_neox.layers.0.attention.bias", &[1, 1, 128, 128], true),
            ("gpt_neox.layers.0.attention.masked_bias", &[], true),
            ("model.position_ids", &[1, 128], true),
            ("extra.counter", &[0, 4], true),
            // A bias of this name would be a vector.
            ("model.layers.0.attention.bias", &[128], false),
            ("gpt_neox.layers.0.attention.masked_bias", &[128], false),
            ("model.layers.0.self_attn.bias", &[4, 4], false),
            ("model.layers.0.my_attention.bias", &[4, 4], false),
            ("rotary_emb.inv_freq.weight", &[4], false),
            ("model.layers.0.self_attn.q_norm.weight", &[4], false),
            ("lm_head.bias", &[4], false),
            ("score.weight", &[2, 4], false),
        ] {
            assert_eq!(may_be(name, shape), may, "{name}");
        }
        assert!(RULES.iter().all(|(_, _, why)| !why.is_empty()));
    }
}
