"""Muon for the matrices inside the layers, and AdamW for the rest, as one optimizer."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from welm.train.recipe import Pretrain


def optimizer_of(model: torch.nn.Module, settings: Pretrain) -> torch.optim.Optimizer:
    """The optimizer of a recipe. Biases and norms have no weight decay."""
    matrices, embeddings, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            vectors.append(parameter)
        elif ".layers." in name and settings.optimizer == "muon":
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    adam = torch.optim.AdamW(
        [
            {"params": embeddings, "weight_decay": settings.decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    if not matrices:
        return adam
    muon = torch.optim.Muon(matrices, lr=settings.muon_rate, weight_decay=settings.decay, momentum=0.95)
    return Both(muon, adam)


class Both(torch.optim.Optimizer):
    """Optimizers that step together, as if they were one: they share its groups and its state."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        """Takes optimizers of different parameters."""
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.optimizers = optimizers
        self._sizes = [len(optimizer.param_groups) for optimizer in optimizers]
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for optimizer, size in zip(self.optimizers, self._sizes, strict=True):
            optimizer.param_groups = [next(groups) for _ in range(size)]
            optimizer.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a state, as an optimizer does."""
        super().load_state_dict(state_dict)
        self._share()
