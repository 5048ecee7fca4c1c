//! Fuzzes `config.json` and the files beside it.

use serde_json::json;

use super::files::{BYTE_LEVEL_ROWS, Folder, byte_level, config, join, parts, try_model, weights};

/// Four files, in this order, with 0xFF between them; an empty one is not there.
const FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];

/// Loads a model with these files.
pub fn run(input: &[u8]) {
    let (weights, tokenizer) = (weights(BYTE_LEVEL_ROWS), byte_level().to_string());
    let mut files = vec![("model.safetensors", &weights[..]), ("tokenizer.json", tokenizer.as_bytes())];
    let parts = parts::<{ FILES.len() }>(input);
    files.extend(FILES.into_iter().zip(parts).filter(|(_, part)| !part.is_empty()));
    let folder = Folder::with(&files);
    try_model(folder.path(), "ab <s> 1");
}

/// Settings of real models.
pub fn seeds() -> Vec<Vec<u8>> {
    let rows = BYTE_LEVEL_ROWS;
    let configs = [
        json!({"vocab_size": rows}),
        json!({"vocab_size": rows, "rope_scaling": {"type": "linear", "factor": 2.0}, "head_dim": 8}),
        json!({"vocab_size": rows, "eos_token_id": [2, 1], "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5,
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}),
        json!({"vocab_size": rows, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "truncate": false,
            "original_max_position_embeddings": 32}}),
        json!({"vocab_size": rows, "original_max_position_embeddings": 16, "rope_scaling": {"type": "longrope",
            "short_factor": [1.0, 1.0, 1.5, 2.0], "long_factor": [1.0, 2.0, 4.0, 8.0], "attention_factor": 1.2}}),
        json!({"vocab_size": rows, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        json!({"vocab_size": rows, "model_type": "minicpm", "architectures": ["MiniCPMForCausalLM"], "scale_emb": 12,
            "scale_depth": 1.4, "dim_model_base": 8}),
        json!({"vocab_size": rows, "attention_bias": true, "mlp_bias": false, "tie_word_embeddings": false}),
        json!({"vocab_size": rows, "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"],
            "rotary_pct": 0.25, "use_parallel_residual": true, "layer_norm_eps": 1e-5, "rotary_emb_base": 1e4}),
    ];
    let generation = json!({"eos_token_id": [2], "bos_token_id": 1, "temperature": 0.5}).to_string();
    let tokenizer = json!({"eos_token": "</s>", "bos_token": {"content": "<s>", "special": true},
        "chat_template": "{{ bos_token }}{{ messages[0].content }}", "added_tokens_decoder": {"2": {"content": "</s>",
        "special": true, "lstrip": false, "rstrip": false, "normalized": false, "single_word": false}}});
    let map = json!({"eos_token": "</s>", "pad_token": {"content": "<unk>"}}).to_string();
    let added = json!({"</s>": 2}).to_string();
    let mut seeds: Vec<Vec<u8>> = configs.iter().map(|more| config(more).to_string().into_bytes()).collect();
    let tokenizer = tokenizer.to_string();
    let rest = [&generation, &tokenizer, &map, &added].map(|s| s.as_bytes());
    seeds.push(join(&[&[&seeds[0][..]], &rest[..]].concat()));
    seeds
}
