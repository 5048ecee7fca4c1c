//! Models that no family here computes, by what they are, so that a refusal says more than an unknown name.

/// What a family is that is not a dense decoder of texts, by its name in `config.json` or in GGUF files.
pub(super) fn what(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let is = |kind: &&Kind| {
        kind.names.contains(&name.as_str()) || kind.parts.iter().any(|part| name.contains(part))
    };
    KINDS.iter().find(is).map(|kind| kind.what)
}

/// A kind of model.
struct Kind {
    what: &'static str,
    /// Names, with `_` for `-`.
    names: &'static [&'static str],
    /// What is in no other names.
    parts: &'static [&'static str],
}

/// In the order in which they are looked through: a mixture of experts that reads images is refused for the latter.
#[rustfmt::skip]
static KINDS: &[Kind] = &[
    Kind {
        what: "a model with a vision or audio tower",
        names: &[
            "clip", "siglip", "mllama", "paligemma", "fuyu", "kosmos2", "chameleon", "emu3", "llama4", "gemma3", "gemma3n",
            "gemma4", "mistral3", "pixtral", "qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen2_5_omni", "qwen2_audio",
            "qwen3_asr", "phi3_v", "phi4_multimodal", "phi4mm", "minicpmv", "minicpmo", "got_ocr2", "ovis2",
            "paddleocr", "cogvlm", "chatglm4v", "glm4v", "glm4v_moe", "whisper", "voxtral", "ultravox", "aria", "git",
            "blip", "molmo", "florence2", "kimi_k25", "wavtokenizer_dec",
        ],
        parts: &["llava", "vision", "_vl", "idefics", "internvl", "smolvlm", "instructblip", "minicpmv", "_ocr"],
    },
    Kind {
        what: "a model with state-space or recurrent layers, in whole or in part",
        names: &[
            "jamba", "bamba", "zamba", "zamba2", "falcon_h1", "granitehybrid", "qwen3_next", "qwen3next", "qwen3_5",
            "qwen3_5_moe", "qwen35", "qwen35moe", "lfm2", "lfm2_moe", "lfm2moe", "recurrent_gemma", "nemotron_h",
            "nemotron_h_moe", "plamo2", "plamo3", "xlstm", "kimi_linear", "minimax", "minicpm_sala", "phi4flash",
        ],
        parts: &["mamba", "rwkv", "hybrid"],
    },
    Kind {
        what: "a mixture of experts",
        names: &[
            "mixtral", "dbrx", "grok", "arctic", "deepseek", "deepseek2", "deepseek_v2", "deepseek_v3", "deepseek_v32",
            "deepseek_v4", "kimi_k2", "gpt_oss", "dots1", "minimax_m2", "smallthinker", "flex_olmo", "longcat_flash",
            "glm_dsa", "mimo2", "mistral4", "step35", "hy_v3", "rnd1", "switch_transformers",
        ],
        parts: &["moe"],
    },
    Kind {
        what: "an encoder, alone or with a decoder, and no decoder of texts",
        names: &[
            "t5", "mt5", "umt5", "longt5", "t5encoder", "t5gemma", "bart", "mbart", "pegasus", "marian", "m2m_100",
            "electra", "xlnet", "gemma_embedding", "llama_embed",
        ],
        parts: &["bert"],
    },
    Kind {
        what: "a model with latent attention, whose keys and values are stored compressed",
        names: &["minicpm3", "plm", "youtu"],
        parts: &[],
    },
    Kind { what: "a diffusion model, which does not write token after token", names: &["dream", "llada"], parts: &[] },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_told_apart() {
        for (names, word) in [
            (
                &["mixtral", "qwen2_moe", "qwen3moe", "deepseek_v3", "granitemoe", "olmoe", "gpt-oss"][..],
                "experts",
            ),
            (
                &["mamba", "jamba", "granitehybrid", "qwen3_next", "lfm2", "falcon-h1", "bamba", "rwkv7"],
                "state-space",
            ),
            (&["llava", "qwen2_vl", "gemma3", "mllama", "qwen3_vl_moe", "idefics3", "clip"], "vision"),
            (&["bert", "nomic-bert", "xlm-roberta", "T5"], "encoder"),
            (&["minicpm3"], "latent"),
            (&["llada"], "diffusion"),
        ] {
            for name in names {
                assert!(what(name).unwrap_or("nothing").contains(word), "{name}: {:?}", what(name));
            }
        }
        // Granite 4 has dense models under the name of its hybrid ones.
        for name in super::super::FAMILIES.iter().map(|family| family.folder.model_type) {
            assert!(what(name).is_none() || name == "granitemoehybrid", "{name}");
        }
        for name in ["gemma2", "falcon", "opt", "gpt2", "cohere", "favourite", ""] {
            assert_eq!(what(name), None, "{name}");
        }
    }
}
