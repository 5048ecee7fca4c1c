"""What a shape takes to train: memory of a GPU, and time. Computed, not measured.

``python -m welm.train.pretrain.budget`` prints the table of ``docs/train.md``.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import TYPE_CHECKING

from welm.train.pretrain.shapes import PIECES, SHAPES, operations_of, parameters_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from welm.train.recipe import Shape

TOKENS = 300e9
"""Tokens of WeLM's training."""

PEAK, USED = 312e12, 0.4
"""Floating-point operations a second of an A100 in bf16, and which share of them training usually reaches."""


def memory_of(shape: Shape, pieces: int, gpus: int, micro_batch: int = 1) -> float:
    """Bytes of a GPU, with everything shared out (FSDP2) and activations computed again.

    A parameter takes 16 bytes: the weight, its gradient, and AdamW's two moments, in f32. The parameters of two layers
    are whole at a time, in bf16. Of each layer the input is kept, in bf16; of one layer all activations, about 34 bytes
    a component of a token (Korthikanti et al., 2022, without attention's matrix). The logits are there twice, in f32.
    """
    tokens = shape.context * micro_batch
    parameters = parameters_of(shape, pieces)
    layer = (parameters_of(shape, 0) - 2 * shape.dim) / shape.layers
    whole = 2 * max(2 * layer, pieces * shape.dim)
    activations = tokens * shape.dim * (2 * shape.layers + 34) + 2 * 4 * tokens * pieces
    return 16 * parameters / gpus + whole + activations


def days_of(shape: Shape, pieces: int, gpus: int, tokens: float = TOKENS) -> float:
    """Days to train on so many tokens."""
    return operations_of(shape, pieces) * tokens / (gpus * PEAK * USED) / 86_400


def table() -> Iterator[str]:
    """Lines of Markdown."""
    yield "| shape | parameters | GPUs | memory of a GPU | days for 300 billion tokens |"
    yield "|---|--:|--:|--:|--:|"
    for name in ("medium", "large", "xl"):
        for gpus in (8, 32, 128):
            shape = SHAPES[name]
            size = f"{parameters_of(shape, PIECES) / 1e9:.1f} B" if gpus == 8 else ""
            memory, days = memory_of(shape, PIECES, gpus) / 1e9, days_of(shape, PIECES, gpus)
            yield f"| {name if gpus == 8 else ''} | {size} | {gpus} | {memory:.0f} GB | {days:.0f} |"


if __name__ == "__main__":
    print("\n".join(table()))
