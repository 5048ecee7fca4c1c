"""Shapes of models: WeLM's three sizes, and one for this machine."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from welm.train.recipe import Shape
from welm.train.tokenizer import END_ID, PAD_ID

if TYPE_CHECKING:
    from welm.train.recipe import Pretrain

SHAPES = {
    "nano": Shape(),
    "medium": Shape(layers=24, dim=2048, heads=16, hidden=8192, context=2048, tied=False),
    "large": Shape(layers=32, dim=2560, heads=32, hidden=10240, context=2048, tied=False),
    "xl": Shape(layers=32, dim=5120, heads=40, hidden=20480, context=2048, tied=False),
}

PIECES = 62_000
"""WeLM's vocabulary."""


def shape_of(settings: Pretrain) -> Shape:
    """The shape that a recipe names or gives."""
    return SHAPES[settings.shape] if isinstance(settings.shape, str) else settings.shape


def config_of(shape: Shape, pieces: int) -> GPTNeoXConfig:
    """The configuration in transformers: GPT-NeoX with full rotary embedding and sequential residuals."""
    return GPTNeoXConfig(
        vocab_size=pieces,
        hidden_size=shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.hidden,
        max_position_embeddings=shape.context,
        hidden_act="gelu",
        rotary_pct=1.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        use_parallel_residual=False,
        attention_bias=True,
        tie_word_embeddings=shape.tied,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        layer_norm_eps=1e-5,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        use_cache=True,
    )


def new_model(shape: Shape, pieces: int, seed: int) -> GPTNeoXForCausalLM:
    """A model with random weights.

    Matrices are normal with deviation 0.02. Those whose output is added to the residual stream are divided by the root
    of twice the number of layers, as in GPT-2.
    """
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(config_of(shape, pieces))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 2:
                last = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
                parameter.normal_(0.0, 0.02 / math.sqrt(2 * shape.layers) if last else 0.02)
    return model


def parameters_of(shape: Shape, pieces: int) -> int:
    """The number of parameters."""
    layer = 4 * shape.dim * shape.dim + 2 * shape.dim * shape.hidden  # matrices
    layer += 5 * shape.dim + shape.hidden + 4 * shape.dim  # biases, norms
    return shape.layers * layer + 2 * shape.dim + pieces * shape.dim * (1 if shape.tied else 2)


def operations_of(shape: Shape, pieces: int) -> float:
    """Floating-point operations to train on one token: 6 for each weight of a matrix, and attention."""
    matrices = shape.layers * (4 * shape.dim * shape.dim + 2 * shape.dim * shape.hidden) + pieces * shape.dim
    return 6 * matrices + 6 * shape.layers * shape.dim * shape.context
