"""The tokens of the corpus in rows. A row has as many as the context."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from welm.train.recipe import RecipeError

if TYPE_CHECKING:
    from pathlib import Path


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The rows of a file of tokens, read from disk when they are needed."""

    def __init__(self, out: Path, context: int, pieces: int) -> None:
        """``context`` is the number of tokens of a row."""
        width = np.uint16 if pieces <= 1 << 16 else np.uint32
        files = sorted((out / "all").glob("*.ds"))
        if len(files) != 1:
            raise RecipeError(f"{out / 'all'}: expected one file of tokens, got {len(files)}")
        (file,) = files
        self._tokens = np.memmap(file, dtype=width, mode="r")
        self._context = context

    def __len__(self) -> int:
        """The number of rows; what is left over at the end is in none."""
        return len(self._tokens) // self._context

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        """The ids of a row."""
        tokens = self._tokens[row * self._context : (row + 1) * self._context]
        return {"input_ids": torch.from_numpy(tokens.astype(np.int64))}


def batch_of(ids: torch.Tensor, parts: int) -> dict[str, torch.Tensor]:
    """What the model learns from. Each row is cut into parts; the first token of a part is not predicted.

    transformers shifts the labels.
    """
    ids = ids.reshape(ids.shape[0] * parts, -1)
    labels = ids.clone()
    labels[:, 0] = -100
    return {"input_ids": ids, "labels": labels}
