"""Makes folders of families that transformers does not have, by rewriting a folder of a similar family.

transformers computes the results of the similar family. The same weights, under the names and in the layout of the
other family, must give the same results.
"""

import json
import math

import torch
from safetensors.torch import load_file, save_file


def rewrite(folder, settings, dropped, rename):
    """Rewrites the settings and tensors of a folder, and deletes its config_v4.json.

    settings(config) gives the new settings, `dropped` are the keys to remove, and rename(tensors, config) gives the new
    tensors.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text())
    kept = {key: value for key, value in config.items() if key not in dropped}
    path.write_text(json.dumps(dict(sorted({**kept, **settings(config)}.items())), indent=2) + "\n")
    weights = folder / "model.safetensors"
    save_file(rename(load_file(weights), config), weights, metadata={"format": "pt"})
    (folder / "config_v4.json").unlink()


def granite_as_minicpm(folder):
    """Rewrites Granite as MiniCPM. They compute the same if attention has the usual scale."""
    def settings(config):
        depth = math.sqrt(config["num_hidden_layers"])
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        assert config["attention_multiplier"] == head_dim ** -0.5
        return {
            "model_type": "minicpm",
            "architectures": ["MiniCPMForCausalLM"],
            "rope_theta": config["rope_parameters"]["rope_theta"],
            "rope_scaling": None,
            "scale_emb": config["embedding_multiplier"],
            "scale_depth": config["residual_multiplier"] * depth,
            "dim_model_base": config["hidden_size"] / config["logits_scaling"],
        }

    dropped = ["embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier",
               "rope_parameters", "mlp_bias"]
    rewrite(folder, settings, dropped, lambda tensors, _: tensors)


INTERNLM2 = {
    "embed_tokens": "tok_embeddings",
    "input_layernorm": "attention_norm",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "lm_head": "output",
}


def grouped(q, k, v, config):
    """The rows of wqkv. For each key head: the q heads that share it, then the key head, then its value head."""
    n = config["num_key_value_heads"]
    by_group = [rows.reshape(n, -1, *rows.shape[1:]) for rows in (q, k, v)]
    return torch.cat(by_group, dim=1).reshape(-1, *q.shape[1:]).contiguous()


def llama_as_internlm2(folder):
    """Rewrites Llama with biases in attention as InternLM2, which computes the same."""
    def settings(config):
        return {
            "model_type": "internlm2",
            "architectures": ["InternLM2ForCausalLM"],
            "bias": config["attention_bias"],
            "rope_theta": config["rope_parameters"]["rope_theta"],
            "rope_scaling": {"type": "dynamic", "factor": 2.0},  # no effect within the context of training
        }

    def rename(tensors, config):
        renamed = {}
        for name, value in tensors.items():
            if ".self_attn.q_proj." in name:
                k, v = (tensors[name.replace("q_proj", part)] for part in ("k_proj", "v_proj"))
                renamed[name.replace("self_attn.q_proj", "attention.wqkv")] = grouped(value, k, v, config)
            elif ".k_proj." not in name and ".v_proj." not in name:
                for ours, theirs in INTERNLM2.items():
                    name = name.replace(ours, theirs)
                renamed[name] = value
        return renamed

    rewrite(folder, settings, ["head_dim", "rope_parameters", "attention_bias", "mlp_bias"], rename)
