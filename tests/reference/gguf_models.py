"""Converts Llama, GPT-NeoX and others between GGUF files, in llama.cpp's layout, and transformers.

Some layouts differ from Hugging Face's:

- Llama's q and k rows: transformers rotates the pair (i, i + head_dim / 2), llama.cpp the pair
  (2 i, 2 i + 1), so within each head the rows are interleaved on the way to GGUF.
- GPT-NeoX's fused qkv rows: transformers has q, k, v of head 0, then of head 1, and so on;
  llama.cpp has all of q, then all of k, then all of v. Its rotation is the same as transformers'.
- Some of Llama's relatives have Llama's order of rows (`PERMUTED`), the others that of transformers.
- Gemma's norms multiply by 1 + weight in transformers; llama.cpp stores the sum.
"""

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

# HF name inside a layer -> GGUF name inside a block
LLAMA_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LLAMA_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
NEOX_LAYER = {
    "input_layernorm": "attn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
NEOX_OUTSIDE = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "lm_head": "output",  # so named in transformers 5; in files it is embed_out
}


def gguf_name(hf_name, layer_names, outside_names):
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    stem, kind = hf_name.rsplit(".", 1)
    if ".layers." not in stem:
        return f"{outside_names[stem]}.{kind}"
    index, inside = stem.split(".layers.")[1].split(".", 1)
    return f"blk.{index}.{layer_names[inside]}.{kind}"


def interleave(rows, n_heads):
    """Reorders rows of q or k, (n_heads * head_dim, ...), from transformers' order to llama.cpp's."""
    half = rows.shape[0] // n_heads // 2
    return rows.reshape(n_heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def deinterleave(rows, n_heads):
    """The inverse of `interleave`."""
    half = rows.shape[0] // n_heads // 2
    return rows.reshape(n_heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def llama_to_gguf(state, config):
    """{HF name: f32 array} -> {GGUF name: f32 array}"""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for hf_name, value in state.items():
        name = gguf_name(hf_name, LLAMA_LAYER, LLAMA_OUTSIDE)
        what = name.split(".")[-2]
        tensors[name] = interleave(value, heads[what]) if what in heads else value
    return tensors


# Relatives of Llama that have its order of the rows of q and k.
PERMUTED = [gguf.MODEL_ARCH.MISTRAL3, gguf.MODEL_ARCH.SMOLLM3, gguf.MODEL_ARCH.GRANITE, gguf.MODEL_ARCH.MINICPM,
            gguf.MODEL_ARCH.INTERNLM2]


def relative_to_gguf(state, config, arch):
    """{HF name: f32 array} -> {GGUF name: f32 array}, with the names of the package gguf"""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = {}
    for hf_name, value in state.items():
        if arch in PERMUTED:
            for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
                if f".{part}." in hf_name:
                    value = interleave(value, heads)
        if arch == gguf.MODEL_ARCH.GEMMA3 and hf_name.endswith("norm.weight"):
            value = value + 1
        tensors[names.get_name(hf_name, (".weight", ".bias"))] = value
    return tensors


def llama_from_gguf(tensors, config):
    """{GGUF name: f32 array} -> {HF name: torch tensor}"""
    inside = {v: k for k, v in LLAMA_LAYER.items()}
    outside = {v: k for k, v in LLAMA_OUTSIDE.items()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if parts[0] != "blk":
            hf_name = f"{outside[parts[0]]}.{parts[1]}"
        else:
            hf_name = f"model.layers.{parts[1]}.{inside[parts[2]]}.{parts[3]}"
            if parts[2] in heads:
                value = deinterleave(value, heads[parts[2]])
        state[hf_name] = torch.from_numpy(np.array(value, order="C"))
    return state


def neox_to_gguf(state, config):
    """{HF name: f32 array} -> {GGUF name: f32 array}"""
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    tensors = {}
    for hf_name, value in state.items():
        name = gguf_name(hf_name, NEOX_LAYER, NEOX_OUTSIDE)
        if ".attn_qkv." in name:
            by_head = value.reshape(heads, 3, head_dim, *value.shape[1:])
            value = by_head.swapaxes(0, 1).reshape(value.shape)
        tensors[name] = value
    return tensors


def read_gguf(path):
    """(metadata {key: value}, {GGUF name: f32 array (rows, cols)}), with all tensors dequantised."""
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = np.asarray(values, dtype=np.float32).reshape(shape)
    return metadata, tensors


def llama_config(metadata, tensors):
    """LlamaConfig from the metadata of a GGUF file of architecture `llama`."""
    assert metadata["general.architecture"] == "llama"
    assert "rope_freqs.weight" not in tensors and "llama.rope.scaling.type" not in metadata
    dim = metadata["llama.embedding_length"]
    heads = metadata["llama.attention.head_count"]
    return LlamaConfig(
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=dim,
        intermediate_size=metadata["llama.feed_forward_length"],
        num_hidden_layers=metadata["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=metadata["llama.attention.head_count_kv"],
        head_dim=metadata.get("llama.attention.key_length", dim // heads),
        max_position_embeddings=metadata["llama.context_length"],
        rms_norm_eps=metadata["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters=dict(rope_type="default", rope_theta=metadata["llama.rope.freq_base"]),
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        attn_implementation="eager",
    )


def llama_from_file(path):
    """(LlamaForCausalLM in float32, metadata) from a GGUF file."""
    metadata, tensors = read_gguf(path)
    config = llama_config(metadata, tensors)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    rotary = type(model.model.rotary_emb)(config)  # its table is not a weight, so it is made on the real device
    missing, unexpected = model.load_state_dict(
        llama_from_gguf(tensors, config), strict=False, assign=True)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.model.rotary_emb = rotary
    model.tie_weights()
    assert all(p.dtype == torch.float32 and not p.is_meta for p in model.parameters())
    return model.eval(), metadata


def smollm_tokenizer(metadata, special):
    """The byte-level BPE of a GGUF file with `tokenizer.ggml.pre` = smollm.

    Each digit is a word of its own; GPT-2's expression splits the rest. `special`: whether control tokens such as
    `<|im_start|>` are recognised in text (llama.cpp's parse_special)."""
    assert metadata["tokenizer.ggml.model"] == "gpt2" and metadata["tokenizer.ggml.pre"] == "smollm"
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    if special:
        types = metadata["tokenizer.ggml.token_type"]
        control = [t for t, kind in zip(vocab, types) if kind == gguf.TokenType.CONTROL]
        tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    return tokenizer
