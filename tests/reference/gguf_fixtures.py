"""Writes tiny models as GGUF files in llama.cpp's conventions, with a byte-level BPE of 264 tokens."""

import math
from functools import partial

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from tokenizers import pre_tokenizers

from gguf_models import llama_to_gguf, neox_to_gguf, relative_to_gguf

# name -> (how matrices are stored, general.file_type). Norms and biases are always float32.
KINDS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "mxfp4": (GGMLQuantizationType.MXFP4, LlamaFileType.MOSTLY_MXFP4_MOE),
}

CONTROL_TOKENS = ["<|endoftext|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he", "i n", "e r", "a n"]
TOKENS = (CONTROL_TOKENS + sorted(pre_tokenizers.ByteLevel.alphabet())
          + [merge.replace(" ", "") for merge in MERGES])
TOKEN_TYPES = [TokenType.CONTROL] * len(CONTROL_TOKENS) + [TokenType.NORMAL] * (256 + len(MERGES))


def rounded(model, kind):
    """The model with every matrix as it will be read back from the file (blocks run along rows,
    so that the order of rows does not matter)."""
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                stored = gguf.quants.quantize(p.numpy(), KINDS[kind][0])
                p.copy_(torch.from_numpy(np.array(gguf.quants.dequantize(stored, KINDS[kind][0]))))
    return model


# model_type -> general.architecture
ARCHITECTURES = {
    "llama": "llama",
    "gpt_neox": "gptneox",
    "qwen2": "qwen2",
    "gemma3_text": "gemma3",
    "qwen3": "qwen3",
    "mistral": "mistral3",
    "ministral3": "mistral3",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "hunyuan_v1_dense": "hunyuan-dense",
    "phi3": "phi3",
    "glm4": "glm4",
    "granite": "granite",
}


def add_settings(writer, arch, config):
    """Writes the settings, beside the sizes, that llama.cpp's converter writes for a relative of Llama."""
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch in ("mistral3", "smollm3", "granite"):  # their converters derive from Llama's
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim or config.hidden_size // config.num_attention_heads)
    rope = config.rope_parameters
    if arch == "gemma3":
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        writer.add_sliding_window(config.sliding_window)
        rope = rope["full_attention"]
    base = rope["rope_theta"]
    if arch == "hunyuan-dense":
        base *= rope["alpha"] ** (head_dim / (head_dim - 2))
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(1)
    elif rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_freq_base(base)
    if arch in ("phi3", "glm4"):
        width = head_dim or config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(width * rope["partial_rotary_factor"]))
    if arch == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
    if arch in ("granite", "minicpm"):
        add_multipliers(writer, arch, config)


def add_multipliers(writer, arch, config):
    """Writes the multipliers of Granite or MiniCPM."""
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)
    if arch == "granite":
        writer.add_attention_scale(config.attention_multiplier)


def add_stretching(writer, arch, config):
    """Writes the settings of YaRN or LongRoPE, such as the original context. Lists of divisors become tensors."""
    rope = config.rope_parameters
    original = rope["original_max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(original)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        if config.model_type == "ministral3":
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
            writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
            writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
        return
    scale = config.max_position_embeddings / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original))
    writer.add_rope_scaling_attn_factors(rope.get("attention_factor", usual))
    for kind in ("long", "short"):
        factors = np.array(rope[f"{kind}_factor"], dtype=np.float32)
        writer.add_tensor(f"rope_factors_{kind}.weight", factors)


def write(path, model, kind, arch=None):
    """Writes a GGUF file of a model with 264 tokens. `arch`: another architecture that computes the same, if given."""
    config = model.config
    assert config.vocab_size == len(TOKENS)
    arch = arch or ARCHITECTURES[config.model_type]
    writer = GGUFWriter(path, arch)
    writer.add_name(f"tiny random {arch}")
    writer.add_file_type(KINDS[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    head_dim = config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    if arch in ("llama", "gptneox"):
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if arch not in ("llama", "gptneox"):
        add_settings(writer, arch, config)
        to_gguf = partial(relative_to_gguf, arch=arch)
    elif arch == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        to_gguf = llama_to_gguf
    else:
        # llama.cpp writes no rope.freq_base for this architecture: it is always 10000.
        assert rope["rope_theta"] == 10000.0
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_layer_norm_eps(config.layer_norm_eps)
        to_gguf = neox_to_gguf
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types(TOKEN_TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)

    if "original_max_position_embeddings" in rope:
        add_stretching(writer, arch, config)
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}  # a tied output once
    for name, value in to_gguf(state, config).items():
        dtype = KINDS[kind][0] if value.ndim == 2 else GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(value), dtype)
        writer.add_tensor(name, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
