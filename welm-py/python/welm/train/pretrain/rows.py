"""The tokens of the corpus in rows. A row has as many as the context."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from welm.train.recipe import RecipeError
from welm.train.tokenizer import END_ID

if TYPE_CHECKING:
    from pathlib import Path


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The rows of a file of tokens, read from disk when they are needed.

    Their number is a multiple of the batch, so that a pass over them has the same steps however many processes share
    them, and however many each computes at once. What is left over at the end of the file is in no row.
    """

    def __init__(self, out: Path, context: int, pieces: int, batch: int) -> None:
        """``context`` is the number of tokens of a row. Raises :class:`RecipeError` if there is not one batch."""
        width = np.uint16 if pieces <= 1 << 16 else np.uint32
        files = sorted((out / "all").glob("*.ds"))
        if len(files) != 1:
            raise RecipeError(f"{out / 'all'}: expected one file of tokens, got {len(files)}")
        (file,) = files
        self._tokens = np.memmap(file, dtype=width, mode="r")
        self._context = context
        found = len(self._tokens) // context
        if found < batch:
            raise RecipeError(f"pretrain: the corpus has {found} rows, fewer than a batch, {batch}")
        self._count = found // batch * batch

    def __len__(self) -> int:
        """The number of rows."""
        return self._count

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        """The ids of a row."""
        tokens = self._tokens[row * self._context : (row + 1) * self._context]
        return {"input_ids": torch.from_numpy(tokens.astype(np.int64))}


def batch_of(ids: torch.Tensor, parts: int) -> dict[str, torch.Tensor]:
    """What the model learns from. Each row is cut into parts; the first token of a part is not predicted.

    Positions begin anew at each end token, which so begins the document after it. transformers lets tokens attend only
    to those since the last such beginning, and shifts the labels.
    """
    ids = ids.reshape(ids.shape[0] * parts, -1)
    labels = ids.clone()
    labels[:, 0] = -100
    columns = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    begins = torch.where(ids == END_ID, columns, 0).cummax(dim=1).values
    return {"input_ids": ids, "labels": labels, "position_ids": columns - begins}
