"""Writes the tiny models of tests/fixtures, and the results of Hugging Face transformers for them.

    pip install torch transformers tokenizers safetensors gguf
    python tests/reference/make_fixtures.py [--out tests/fixtures] [NAME...]

With names, only these fixtures are made; the others stay as they are. Every fixture is a folder:

    config.json             as transformers 5 writes it (`welm`: only the keys such a file must have)
    config_v4.json          the same model in the key names of transformers 4 (rope_theta, rotary_pct,
                            rope_scaling, torch_dtype), which most published checkpoints have
    model.safetensors       random weights (`llama_sharded`: three shards and an index), or
    model.gguf              instead of both, in the `gguf_*` folders
    expected.safetensors    prompt    (n)          i64
                            logprobs  (n, vocab)   f32   log-softmax at every position of the prompt
                            greedy    (64)         i64   the tokens that follow, by argmax

The file `expected.json` beside the folders has for each fixture: what it tests, its seed, the smallest gap between
the best and the second logit over the greedy steps, and the difference between the float32 reference and the
same computation in float64, which is a lower bound for any sensible tolerance.

The GGUF files have a tokenizer of 264 tokens. Tokens 0 and 1 are control tokens (end tokens), and are in no prompt
and no continuation. `gguf_text` in `expected.json` is a text with the ids that this tokenizer gives it.

The reference runs in float32 with eager attention. It is computed *after* reading the folder back, so that it uses
the stored (rounded) weights. Weights are drawn large, and norms and biases are random, too. So logits are far from
uniform, and a wrong sign, scale, rotation or bias changes the results clearly. Seeds are tried until every greedy
step has a clear winner and the text is not a short loop.
"""

import argparse
import copy
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (Gemma3TextConfig, Glm4Config, GlmConfig, GPTNeoXConfig, GPTNeoXForCausalLM,
                          GraniteConfig, GraniteMoeHybridConfig, HunYuanDenseV1Config, LlamaConfig,
                          Ministral3Config, MinistralConfig, MistralConfig, Olmo2Config, Phi3Config, Qwen2Config,
                          Qwen3Config, SmolLM3Config)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import converted
import gguf_fixtures
from gguf_models import llama_from_file, read_gguf, smollm_tokenizer

N_GREEDY = 64
MIN_GAP = 0.02        # between the two best logits, at every greedy step
MIN_DISTINCT = 20     # different tokens among the 64
MAX_SEEDS = 20000

# Settings of all models. bos and eos are null, so that no token is special.
COMMON = dict(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
)


def neox(**changes):
    """GPT-NeoX with full rotary and sequential residuals, unless told otherwise."""
    base = dict(
        COMMON,
        intermediate_size=48,
        use_parallel_residual=False,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=1.0),
    )
    return GPTNeoXConfig(**{**base, **changes})


def neox_rope(rotary_pct, theta=10000.0):
    return dict(rope_type="default", rope_theta=theta, partial_rotary_factor=rotary_pct)


def llama(**changes):
    """Llama with grouped queries (4 heads, 2 of keys and values), unless told otherwise."""
    base = dict(
        COMMON,
        intermediate_size=40,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0),
    )
    return LlamaConfig(**{**base, **changes})


def like_llama(kind, **changes):
    """A relative of Llama with grouped queries, unless told otherwise. Windows are shorter than the prompts."""
    base = dict(
        COMMON,
        intermediate_size=40,
        num_key_value_heads=2,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0),
    )
    return kind(**{**base, **changes})


def gemma3(**changes):
    """Gemma 3 with the rotary embeddings of its larger sizes. The output matrix is not the embedding: with its scaled
    embedding, a random model would then always repeat its last token."""
    base = dict(
        tie_word_embeddings=False,
        head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=8,
        rope_parameters=dict(
            full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
            sliding_attention=dict(rope_type="default", rope_theta=10000.0)),
    )
    return like_llama(Gemma3TextConfig, **{**base, **changes})


HUNYUAN_ROPE = dict(rope_type="dynamic", rope_theta=10000.0, alpha=50.0, factor=1.0)

# The context that a dynamic rotary embedding is computed for. It is longer than prompt and continuation.
DYNAMIC_CONTEXT = 160
DYNAMIC_PROMPT = 80


def longrope(pairs, original):
    """LongRoPE with two very different lists. `original`: the context from which on the long one is used."""
    return dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=original,
                short_factor=[1.0 + i / 8 for i in range(pairs)], long_factor=[2.0 + i for i in range(pairs)])


def phi3(original=16, **changes):
    """Phi-3 with all its features: partial rotary embedding, LongRoPE, a window shorter than the prompt."""
    base = dict(
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=12,
        original_max_position_embeddings=original,
        # With the usual factor of 1.5, float32 itself would differ too much from float64.
        rope_parameters=dict(longrope(6, original), partial_rotary_factor=0.75, attention_factor=1.1),
        pad_token_id=None,
    )
    return like_llama(Phi3Config, **{**base, **changes})


def glm(kind, **changes):
    base = dict(
        head_dim=16,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
        pad_token_id=None,
    )
    return like_llama(kind, **{**base, **changes})


def granite(kind=GraniteConfig, **changes):
    """Granite with a large epsilon, because welm divides epsilon by the square of the residual multiplier."""
    base = dict(rms_norm_eps=1e-2, embedding_multiplier=0.7, residual_multiplier=1.5, attention_multiplier=0.5,
                logits_scaling=0.5)
    return like_llama(kind, **{**base, **changes})


YARN_ROPE = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
MINISTRAL3_ROPE = dict(YARN_ROPE, original_max_position_embeddings=16, beta_fast=32.0, beta_slow=1.0, mscale=1.0,
                       mscale_all_dim=1.0, llama_4_scaling_beta=0.4)
WIDE_HEADS = dict(num_attention_heads=2, num_key_value_heads=1)
MINICPM = dict(attention_multiplier=8 ** -0.5)

LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    # Small, so that wavelengths (6, 32, 167, ... positions) fall in each of the three bands:
    # kept below 64 / 4, interpolated, divided by 8 above 64 / 1.
    original_max_position_embeddings=64,
)

# name -> (what it exercises, config, dtype of the stored weights)
FOLDERS = {
    "neox_sequential": (
        "GPT-NeoX, sequential residual, full rotary, untied",
        neox(), torch.float32),
    "neox_partial_tied": (
        "GPT-NeoX, sequential residual, rotary on a quarter of head_dim, tied embeddings",
        neox(num_attention_heads=2, rope_parameters=neox_rope(0.25),
             tie_word_embeddings=True), torch.float16),
    "neox_parallel": (
        "GPT-NeoX, parallel residual, rotary on a quarter of head_dim, untied; the file also holds "
        "buffers to ignore, as Pythia's do",
        neox(num_attention_heads=2, rope_parameters=neox_rope(0.25),
             use_parallel_residual=True), torch.float16),
    "neox_odd": (
        "GPT-NeoX, parallel residual, gelu_new (tanh), theta 5000, three heads of 20, hidden_dim 88",
        neox(hidden_size=60, num_attention_heads=3, intermediate_size=88, hidden_act="gelu_new",
             rope_parameters=neox_rope(1.0, 5000.0), use_parallel_residual=True), torch.float16),
    "welm": (
        "model_type welm with the fewest keys: everything else is the default of WeLM",
        neox(vocab_size=128), torch.float32),
    "llama_mha": (
        "Llama, as many key heads as query heads, untied",
        llama(num_key_value_heads=4, tie_word_embeddings=False), torch.float32),
    "llama_gqa": (
        "Llama, 4 query heads over 2 key heads, tied embeddings",
        llama(), torch.float32),
    "llama_head_dim": (
        "Llama, head_dim 16 although dim / n_heads is 12, hidden_dim not a multiple of 32",
        llama(hidden_size=48, head_dim=16, intermediate_size=44), torch.float16),
    "llama_bias": (
        "Llama, attention_bias and mlp_bias, untied",
        llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=False), torch.float16),
    "llama_rope_llama3": (
        "Llama, rope scaling of Llama 3.1 acting within the tested positions",
        llama(num_attention_heads=2, num_key_value_heads=1, rope_parameters=LLAMA3_ROPE), torch.float16),
    "llama_rope_linear": (
        "Llama, linear rope scaling, factor 2",
        llama(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0)), torch.float16),
    "llama_theta": (
        "Llama, theta 500000",
        llama(rope_parameters=dict(rope_type="default", rope_theta=500000.0)), torch.float16),
    "llama_f16": ("llama_gqa stored as float16", llama(), torch.float16),
    "llama_bf16": ("llama_gqa stored as bfloat16", llama(), torch.bfloat16),
    "llama_sharded": ("llama_gqa stored as float32 in three shards", llama(), torch.float32),
    "qwen2": (
        "Qwen2, biases of q, k and v, a window of 8 in the second layer",
        like_llama(Qwen2Config, use_sliding_window=True, sliding_window=8, max_window_layers=1), torch.float16),
    "gemma3": (
        "Gemma 3, one layer with a window of 8 and one without, linear rope scaling in the latter, a scale of its "
        "own for q, soft cap of logits",
        gemma3(sliding_window_pattern=2, query_pre_attn_scalar=24, final_logit_softcapping=20.0), torch.float16),
    "qwen3": (
        "Qwen3, norms of heads, head_dim 16 although dim / n_heads is 8, biases of attention, tied embeddings",
        like_llama(Qwen3Config, head_dim=16, attention_bias=True, tie_word_embeddings=True), torch.float16),
    "mistral": (
        "Mistral, a window of 8 in all layers, head_dim 16 although dim / n_heads is 8",
        like_llama(MistralConfig, sliding_window=8, head_dim=16), torch.float16),
    "ministral": (
        "Ministral, a window of 8 in the first layer only, head_dim 16",
        like_llama(MinistralConfig, sliding_window=8, head_dim=16, layer_types=["sliding_attention", "full_attention"]),
        torch.float16),
    "ministral3": (
        "Ministral 3, q scaled more after each 16 positions, YaRN, head_dim 16",
        like_llama(Ministral3Config, head_dim=16, rope_parameters=MINISTRAL3_ROPE, pad_token_id=None), torch.float16),
    "smollm3": (
        "SmolLM3, the first of two layers without a rotary embedding",
        like_llama(SmolLM3Config, no_rope_layers=[0, 1], pad_token_id=None), torch.float16),
    "olmo2": (
        "OLMo 2, norms only after each half, norms of q and k over all heads",
        like_llama(Olmo2Config, pad_token_id=None), torch.float16),
    "hunyuan": (
        "Hunyuan, norms of turned heads, a base stretched by alpha",
        like_llama(HunYuanDenseV1Config, head_dim=16, rope_parameters=HUNYUAN_ROPE, pad_token_id=None,
                   eod_token_id=None), torch.float16),
    "llama_rope_dynamic": (
        "Llama, dynamic rope scaling, as of a context of 160 where 64 were trained on",
        llama(max_position_embeddings=64, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=4.0)),
        torch.float16),
    "llama_rope_yarn": (
        "Llama, YaRN with a ramp that is not rounded and an attention factor of two settings",
        llama(**WIDE_HEADS, rope_parameters=dict(YARN_ROPE, beta_fast=4.0, beta_slow=0.5, truncate=False, mscale=1.0,
                                                 mscale_all_dim=0.5)), torch.float16),
    "llama_rope_longrope": (
        "Llama, LongRoPE beyond the context trained on, with an attention factor",
        llama(**WIDE_HEADS, rope_parameters=longrope(8, 16)), torch.float16),
    "llama_rope_longrope_short": (
        "Llama, LongRoPE within the context trained on",
        llama(**WIDE_HEADS, rope_parameters=longrope(8, 96)), torch.float16),
    "phi3": (
        "Phi-3, LongRoPE beyond the context trained on, three quarters of each head turned, a window of 12",
        phi3(), torch.float16),
    "glm4": ("GLM-4 0414, half of each head turned, norms after each half", glm(Glm4Config), torch.float16),
    "glm": ("GLM-4 of 2024, half of each head turned", glm(GlmConfig), torch.float16),
    "granite": ("Granite, four multipliers, tied embeddings", granite(tie_word_embeddings=True), torch.float16),
    "granitemoehybrid": (
        "Granite 4, dense: only attention, and only the shared expert",
        granite(GraniteMoeHybridConfig, layer_types=["attention", "attention"], num_local_experts=0,
                num_experts_per_tok=0, shared_intermediate_size=24, position_embedding_type="rope",
                mamba_n_heads=8, mamba_d_head=8, time_step_limit=(0.0, 1.0)), torch.float16),
    "minicpm": (
        "MiniCPM, computed as Granite: three multipliers", granite(tie_word_embeddings=True, **MINICPM), torch.float16),
    "internlm2": (
        "InternLM2, computed as Llama: q, k and v group by group with biases, dynamic rope scaling that has no effect",
        llama(attention_bias=True, tie_word_embeddings=False), torch.float16),
}
# These are stored as a similar family, and then rewritten (see converted.py).
CONVERTED = {"minicpm": converted.granite_as_minicpm, "internlm2": converted.llama_as_internlm2}
# These store the weights of another fixture (before rounding).
SAME_WEIGHTS_AS = {"llama_f16": "llama_gqa", "llama_bf16": "llama_gqa", "llama_sharded": "llama_gqa"}

WELM_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
             "intermediate_size", "max_position_embeddings")


def model_class(config):
    return transformers.AutoModelForCausalLM._model_mapping[type(config)]


# name -> (what it exercises, config, kind of storage)
GGUF_LLAMA = llama(vocab_size=264, hidden_size=64, intermediate_size=32)
GGUF_FOLDERS = {
    f"gguf_llama_{kind}": (f"Llama, grouped queries, tied embeddings, GGUF with {kind} matrices",
                           GGUF_LLAMA, kind)
    for kind in gguf_fixtures.KINDS
}
GGUF_FOLDERS["gguf_neox_f32"] = (
    "GPT-NeoX, parallel residual, rotary on a quarter of head_dim, GGUF",
    neox(vocab_size=264, num_attention_heads=2, rope_parameters=neox_rope(0.25),
         use_parallel_residual=True), "f32")
SMALL = dict(vocab_size=264, intermediate_size=32)
GGUF_FOLDERS |= {
    "gguf_qwen2": ("Qwen2, biases of q, k and v, GGUF", like_llama(Qwen2Config, **SMALL), "f16"),
    "gguf_gemma3": (
        "Gemma 3, five layers with a window of 8 and one without, linear rope scaling in the latter, GGUF",
        gemma3(num_hidden_layers=6, query_pre_attn_scalar=16, **SMALL), "f16"),
    "gguf_qwen3": ("Qwen3, norms of heads, head_dim 16, GGUF", like_llama(Qwen3Config, head_dim=16, **SMALL), "f16"),
    "gguf_mistral3": (
        "Mistral, head_dim 16, GGUF", like_llama(MistralConfig, sliding_window=None, head_dim=16, **SMALL), "f16"),
    "gguf_ministral3": (
        "Ministral 3, q scaled more after each 16 positions, YaRN, head_dim 16, GGUF",
        like_llama(Ministral3Config, head_dim=16, rope_parameters=MINISTRAL3_ROPE, pad_token_id=None, **SMALL), "f16"),
    "gguf_smollm3": (
        "SmolLM3, the last of four layers without a rotary embedding, GGUF",
        like_llama(SmolLM3Config, num_hidden_layers=4, pad_token_id=None, **SMALL), "f16"),
    "gguf_olmo2": (
        "OLMo 2, norms only after each half, norms of q and k over all heads, GGUF",
        like_llama(Olmo2Config, pad_token_id=None, **SMALL), "f16"),
    "gguf_hunyuan": (
        "Hunyuan, norms of turned heads, a base stretched by alpha, GGUF",
        like_llama(HunYuanDenseV1Config, head_dim=16, rope_parameters=HUNYUAN_ROPE, pad_token_id=None,
                   eod_token_id=None, **SMALL), "f16"),
}
GGUF_FOLDERS |= {
    "gguf_llama_yarn": (
        "Llama, YaRN, GGUF", llama(**WIDE_HEADS, **SMALL, rope_parameters=YARN_ROPE), "f16"),
    "gguf_phi3": (
        "Phi-3, LongRoPE beyond the context trained on, a window of 12, GGUF", phi3(8, **SMALL), "f16"),
    "gguf_glm4": ("GLM-4 0414, GGUF", glm(Glm4Config, **SMALL), "f16"),
    "gguf_granite": ("Granite, four multipliers, GGUF", granite(**SMALL), "f16"),
    "gguf_minicpm": ("MiniCPM, computed as Granite, GGUF", granite(**SMALL, **MINICPM), "f16"),
    "gguf_internlm2": ("InternLM2, computed as Llama, GGUF", llama(tie_word_embeddings=False, **SMALL), "f16"),
}
GGUF_TEXT = "the thin hen  then\nran 120 m, 在 там."


def stretched(model):
    """Fixes a model's dynamic rotary embedding to that for DYNAMIC_CONTEXT. transformers itself would compute it again
    for each token, and not change the keys that are already in its cache."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic" and "alpha" not in rope:
        rotary = model.model.rotary_emb
        rotary.inv_freq, _ = ROPE_INIT_FUNCTIONS["dynamic"](model.config, seq_len=DYNAMIC_CONTEXT)
        rotary.rope_type = "default"
    return model


def random_model(config, seed):
    """A model with random parameters: weights N(0, 0.3), norm weights around 1 (Gemma stores them minus 1)."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    model = model_class(config)(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator) * 0.3
            is_norm_weight = "norm" in name and name.endswith("weight")
            if is_norm_weight and config.model_type != "gemma3_text":
                noise += 1.0
            if name.startswith(("embed_out", "lm_head")) and p is not model.get_input_embeddings().weight:
                noise *= 2.0  # untied output: spreads the logits about as far as tied ones are
            p.copy_(noise)
    return stretched(model)


def random_prompt(config, seed, length=24, lowest=0):
    if config.max_position_embeddings < DYNAMIC_PROMPT:
        length = DYNAMIC_PROMPT
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    return torch.randint(lowest, config.vocab_size, (length,), generator=generator)


def random_gguf_prompt(config, seed):
    """A prompt for the GGUF models: without control tokens, and shorter, because their vocabulary is larger."""
    return random_prompt(config, seed, 16, len(gguf_fixtures.CONTROL_TOKENS))


@torch.no_grad()
def greedy_with_cache(model, prompt):
    """The 64 argmax tokens and the smallest gap between the two best logits on the way."""
    tokens, gap, cache = [], float("inf"), None
    step_input = prompt[None]
    for _ in range(N_GREEDY):
        out = model(input_ids=step_input, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[0, -1].topk(2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        tokens.append(best.indices[0].item())
        step_input = best.indices[:1][None]
        if gap < MIN_GAP:
            break  # this seed is lost: no need to finish
    return tokens, gap


def is_lively(tokens):
    """Whether there are enough different tokens, and the second half is not a loop of up to 12 tokens."""
    tail = tokens[N_GREEDY // 2:]
    looping = any(tail[period:] == tail[:-period] for period in range(1, 13))
    return len(set(tokens)) >= MIN_DISTINCT and not looping


@torch.no_grad()
def rounded(model, dtype):
    """The model with its parameters rounded as they will be stored. Its rotary tables are not rounded."""
    for p in model.parameters():
        p.copy_(p.to(dtype).float())
    return model


def search_seed(config, roundings, prompt_of=random_prompt, forbidden=()):
    """The first seed (and its model, unrounded) whose greedy continuation is decided clearly, is not
    a short loop and has no forbidden token, after each of the roundings."""
    for seed in range(MAX_SEEDS):
        model, prompt = random_model(config, seed), prompt_of(config, seed)
        for rounding in roundings:
            tokens, gap = greedy_with_cache(rounding(copy.deepcopy(model)), prompt)
            if gap < MIN_GAP or not is_lively(tokens) or set(forbidden) & set(tokens):
                break
        else:
            return seed, model
    raise SystemExit(f"no seed below {MAX_SEEDS} satisfies the conditions")


@torch.no_grad()
def reference(model, prompt):
    """(tensors of expected.safetensors, facts for expected.json)."""
    greedy, gap = greedy_with_cache(model, prompt)
    assert gap >= MIN_GAP and len(greedy) == N_GREEDY, "rounding the weights closed the gap"
    assert is_lively(greedy), "rounding the weights made the text a loop"

    # Without a cache, over prompt and continuation at once, the result must be the same.
    whole = torch.cat([prompt, torch.tensor(greedy)])
    logits = model(input_ids=whole[None], use_cache=False).logits[0]
    assert logits[len(prompt) - 1:-1].argmax(-1).tolist() == greedy

    logprobs = model(input_ids=prompt[None], use_cache=False).logits[0].log_softmax(-1)
    # The error of float32 itself. transformers computes the rotary tables in float32 also for the float64 model.
    double = copy.deepcopy(model).double()
    double_logprobs = double(input_ids=prompt[None], use_cache=False).logits[0].log_softmax(-1)
    error = (logprobs.double() - double_logprobs).abs().max().item()
    tensors = {
        "prompt": prompt.to(torch.int64),
        "logprobs": logprobs.to(torch.float32).contiguous(),
        "greedy": torch.tensor(greedy, dtype=torch.int64),
    }
    facts = {
        "min_greedy_gap": round(gap, 4),
        "distinct_greedy_tokens": len(set(greedy)),
        "f32_vs_f64_max_abs_logprob": float(f"{error:.2e}"),
    }
    return tensors, facts


def config_v4(v5):
    """The same model in the key names of transformers 4."""
    v4 = {k: v for k, v in v5.items() if k not in ("rope_parameters", "dtype")}
    v4["torch_dtype"] = v5["dtype"]
    v4["transformers_version"] = "4.46.0"
    rope = dict(v5["rope_parameters"])
    if v5["model_type"] == "gemma3_text":
        v4["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        v4["sliding_window_pattern"] = v4.pop("_sliding_window_pattern")
        del v4["layer_types"]
        rope = dict(rope["full_attention"])
    kind = rope.pop("rope_type")
    theta = rope.pop("rope_theta")
    if v5["model_type"] == "gpt_neox":
        v4["rotary_emb_base"] = int(theta)
        v4["rotary_pct"] = rope.pop("partial_rotary_factor")
    else:
        v4["rope_theta"] = theta
        v4["rope_scaling"] = None
        if "partial_rotary_factor" in rope:
            v4["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if kind == "linear" and v5["model_type"] == "llama":
        v4["rope_scaling"] = {"type": kind, **rope}  # the key before it was called rope_type
    elif kind != "default":
        v4["rope_scaling"] = {"rope_type": kind, **rope}
    return dict(sorted(v4.items()))


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def load_folder(folder, name):
    """The stored model as float32."""
    options = dict(dtype=torch.float32, attn_implementation="eager")
    if name != "welm":
        config = transformers.AutoConfig.from_pretrained(folder)
        return stretched(model_class(config).from_pretrained(folder, **options).eval())
    stored = json.loads((folder / "config.json").read_text())
    config = neox(**{k: stored[k] for k in WELM_KEYS})
    return GPTNeoXForCausalLM.from_pretrained(folder, config=config, **options).eval()


def add_old_buffers(path, config):
    """Adds the buffers that older transformers saved beside the weights: causal mask, mask value, rotary table."""
    tensors = load_file(path)
    rotary_dim = config.hidden_size // config.num_attention_heads // 4
    for layer in range(config.num_hidden_layers):
        prefix = f"gpt_neox.layers.{layer}.attention."
        tensors[prefix + "bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()
        tensors[prefix + "masked_bias"] = torch.tensor(-1e9)  # a scalar: shape ()
        tensors[prefix + "rotary_emb.inv_freq"] = 10000.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    save_file(tensors, path, metadata={"format": "pt"})


def save_folder(folder, name, model, dtype):
    if folder.exists():
        shutil.rmtree(folder)
    stored = copy.deepcopy(model).to(dtype)
    shard_bytes = 10**9
    if name == "llama_sharded":  # three shards: a little more than a third of the bytes in each
        shard_bytes = sum(p.numel() * p.element_size() for p in stored.parameters()) * 10 // 24
    stored.save_pretrained(folder, max_shard_size=shard_bytes)
    if name == "neox_parallel":
        add_old_buffers(folder / "model.safetensors", stored.config)
    for extra in folder.glob("generation_config.json"):
        extra.unlink()
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text())
    if name == "welm":
        write_json(config_path, {"model_type": "welm", **{k: config[k] for k in WELM_KEYS}})
    elif config["model_type"] != "ministral3":  # which came with transformers 5
        write_json(folder / "config_v4.json", config_v4(config))


@torch.no_grad()
def check_v4(folder, model, prompt):
    """Checks that transformers reads config_v4.json as the same model."""
    config = transformers.AutoConfig.for_model(**json.loads((folder / "config_v4.json").read_text()))
    other = model_class(config).from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager").eval()
    stretched(other)
    assert torch.equal(other(input_ids=prompt[None]).logits, model(input_ids=prompt[None]).logits)


def make_folder(out, name, seeds):
    about, config, dtype = FOLDERS[name]
    if name in SAME_WEIGHTS_AS and SAME_WEIGHTS_AS[name] in seeds:
        seed = seeds[SAME_WEIGHTS_AS[name]]
        model = random_model(config, seed)
    else:
        # Every form in which these weights will be stored has to satisfy the conditions.
        dtypes = [dtype] + [FOLDERS[n][2] for n, of in SAME_WEIGHTS_AS.items() if of == name]
        seed, model = search_seed(config, [lambda m, d=d: rounded(m, d) for d in dtypes])
    seeds[name] = seed
    folder = out / name
    save_folder(folder, name, model, dtype)
    prompt = random_prompt(config, seed)
    stored = load_folder(folder, name)
    tensors, facts = reference(stored, prompt)
    if (folder / "config_v4.json").exists():
        check_v4(folder, stored, prompt)
    save_file(tensors, folder / "expected.safetensors")
    if name in CONVERTED:
        CONVERTED[name](folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return {"about": about, "seed": seed, "stored_as": str(dtype).removeprefix("torch."), **facts}


def make_gguf_folder(out, name):
    about, config, kind = GGUF_FOLDERS[name]
    end_tokens = range(len(gguf_fixtures.CONTROL_TOKENS))
    seed, model = search_seed(config, [lambda m: gguf_fixtures.rounded(m, kind)],
                              random_gguf_prompt, end_tokens)
    folder = out / name
    folder.mkdir(exist_ok=True)
    arch = {"gguf_minicpm": "minicpm", "gguf_internlm2": "internlm2"}.get(name)
    gguf_fixtures.write(folder / "model.gguf", model, kind, arch)
    if config is GGUF_LLAMA:
        stored, _ = llama_from_file(folder / "model.gguf")
    else:
        stored = gguf_fixtures.rounded(model, kind)
    tensors, facts = reference(stored, random_gguf_prompt(config, seed))
    save_file(tensors, folder / "expected.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)
    return {"about": about, "seed": seed, "stored_as": kind, **facts}


def gguf_text(out):
    if not (out / "gguf_llama_f32").is_dir():
        return None  # the file does not exist yet
    metadata, _ = read_gguf(out / "gguf_llama_f32" / "model.gguf")
    ids = smollm_tokenizer(metadata, special=False).encode(GGUF_TEXT).ids
    return {"text": GGUF_TEXT, "ids": ids}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--out", type=Path, default=here.parent / "fixtures")
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    known = [*FOLDERS, *GGUF_FOLDERS]
    assert set(args.names) <= set(known), f"none of {known}"
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # the order of sums does not depend on the machine's cores
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    seeds, models = {}, {}
    expected = args.out / "expected.json"
    if args.names:
        models = json.loads(expected.read_text())["models"]
    versions = {name: version(name) for name in ("torch", "transformers", "safetensors", "gguf")}
    for name in args.names or known:
        facts = make_folder(args.out, name, seeds) if name in FOLDERS else make_gguf_folder(args.out, name)
        models[name] = {**facts, "versions": versions}
        print(name, models[name], flush=True)
        listed = {name: models[name] for name in known if name in models}
        write_json(expected, {"gguf_text": gguf_text(args.out), "models": listed})


if __name__ == "__main__":
    main()
