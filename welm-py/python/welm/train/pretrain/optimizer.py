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
    """Optimizers that step together. A schedule sees the groups of all of them."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        """Takes optimizers of different parameters."""
        self.optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__([{"params": group["params"]} for group in groups], {})
        self.param_groups = groups  # the same objects, so that a new rate reaches the optimizers

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One step of each."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The states of all."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the states of all."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
