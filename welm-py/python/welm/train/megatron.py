"""Checkpoints of Megatron-LM's GPT, which is what WeLM was trained with, to weights of transformers' GPT-NeoX."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import argparse
import pickle
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from welm.train.recipe import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from welm.train.recipe import Shape

_NAMES = (
    (r"embedding\.word_embeddings\.weight", "gpt_neox.embed_in.weight"),
    (r"(?:encoder|decoder|transformer)\.final_layernorm\.(\w+)", r"gpt_neox.final_layer_norm.\1"),
    (r"output_layer\.weight", "embed_out.weight"),
    (r"LAYER\.input_layernorm\.(\w+)", r"input_layernorm.\2"),
    (r"LAYER\.self_attention\.linear_qkv\.layer_norm_(\w+)", r"input_layernorm.\2"),
    (
        r"LAYER\.(?:self_)?attention\.(?:query_key_value|linear_qkv)\.(weight|bias)",
        r"attention.query_key_value.\2",
    ),
    (r"LAYER\.(?:self_)?attention\.(?:dense|linear_proj)\.(weight|bias)", r"attention.dense.\2"),
    (r"LAYER\.(?:post_attention_layernorm|pre_mlp_layernorm)\.(\w+)", r"post_attention_layernorm.\2"),
    (r"LAYER\.mlp\.linear_fc1\.layer_norm_(\w+)", r"post_attention_layernorm.\2"),
    (r"LAYER\.mlp\.(?:dense_h_to_4h|linear_fc1)\.(weight|bias)", r"mlp.dense_h_to_4h.\2"),
    (r"LAYER\.mlp\.(?:dense_4h_to_h|linear_fc2)\.(weight|bias)", r"mlp.dense_4h_to_h.\2"),
)
"""Names of the legacy GPT, of Megatron-Core, and of Transformer Engine's fused layers."""

_LAYER = r"(?:encoder|decoder|transformer)\.layers\.(\d+)"

_BESIDE = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
]
"""What stands beside the weights in a checkpoint: Megatron's arguments, and the state of NumPy's random numbers."""

_ROWS = ("query_key_value", "dense_h_to_4h", "embed_in", "embed_out")
_COLUMNS = ("attention.dense.weight", "dense_4h_to_h.weight")


def from_megatron(checkpoint: Path, shape: Shape, pieces: int) -> dict[str, torch.Tensor]:
    """Reads a checkpoint: a folder with ``mp_rank_00``, ``mp_rank_01``, ..., one for each part (tensor parallelism).

    Rows of the vocabulary that Megatron added as padding are left out. Raises :class:`RecipeError` if a weight is
    missing, unknown, or has another shape.
    """
    ranks = sorted(checkpoint.glob("mp_rank_*"))
    if not ranks:
        raise RecipeError(f"{checkpoint}: expected folders mp_rank_00, mp_rank_01, ...")
    if any(rank.name.count("_") > 2 for rank in ranks):
        raise RecipeError(
            f"{checkpoint}: pipeline parallelism: merge the stages with Megatron's own tools first"
        )
    parts = [dict(_renamed(_weights(rank), rank)) for rank in ranks]
    for rank, part in zip(ranks, parts, strict=True):
        if part.keys() != parts[0].keys():
            odd = min(part.keys() ^ parts[0].keys())
            raise RecipeError(f"{rank}: {odd} is in one part of the checkpoint and not in another")
    weights = {name: _joined(name, [part[name] for part in parts]) for name in parts[0]}
    for name in ("gpt_neox.embed_in.weight", "embed_out.weight"):
        if name in weights:
            weights[name] = weights[name][:pieces]
    _check(weights, shape, pieces, checkpoint)
    return weights


def _weights(rank: Path) -> dict[str, torch.Tensor]:
    files = [rank / name for name in ("model_optim_rng.pt", "model_rng.pt") if (rank / name).exists()]
    if not files:
        raise RecipeError(f"{rank}: expected model_optim_rng.pt")
    try:
        with torch.serialization.safe_globals(_BESIDE):
            saved = torch.load(files[0], map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        told = str(error).splitlines()[0]
        raise RecipeError(
            f"{files[0]}: only weights are read; save a file with `model` alone: {told}"
        ) from None
    if saved.get("checkpoint_version", 3.0) < 2.0:
        raise RecipeError(
            f"{files[0]}: expected version 2 or newer of the checkpoint, got {saved['checkpoint_version']}"
        )
    return {name: value for name, value in _flat(saved["model"], "") if isinstance(value, torch.Tensor)}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _flat(one, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _renamed(weights: dict[str, torch.Tensor], rank: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in weights.items():
        short = name.removeprefix("language_model.")
        if short.endswith(("_extra_state", "rotary_pos_emb.inv_freq", "rotary_emb.inv_freq")):
            continue
        for pattern, there in _NAMES:
            match = re.fullmatch(pattern.replace("LAYER", _LAYER), short)
            if match:
                inside = match.expand(there)
                layer = f"gpt_neox.layers.{match[1]}." if "LAYER" in pattern else ""
                yield layer + inside, value
                break
        else:
            raise RecipeError(f"{rank}: {name} is no weight of this kind of model")


def _joined(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """The whole of a weight that was shared out to several processes."""
    if len(parts) > 1 and any(one in name for one in _ROWS):
        return torch.cat(parts, 0)
    if len(parts) > 1 and any(one in name for one in _COLUMNS):
        return torch.cat(parts, 1)
    return parts[0]


def _check(weights: dict[str, torch.Tensor], shape: Shape, pieces: int, checkpoint: Path) -> None:
    from transformers import GPTNeoXForCausalLM

    from welm.train.pretrain.shapes import config_of

    with torch.device("meta"):
        model = GPTNeoXForCausalLM(config_of(shape, pieces))
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    output = next((name for name in expected if name in ("lm_head.weight", "embed_out.weight")), None)
    if output:
        expected["embed_out.weight"] = expected.pop(output)
    if shape.tied:
        weights.pop("embed_out.weight", None)
    got = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted({*expected, *got}):
        if expected.get(name) != got.get(name):
            raise RecipeError(f"{checkpoint}: {name}: expected {expected.get(name)}, got {got.get(name)}")
