"""What steps that train have in common: a bar, the end by a signal, the checkpoint to go on from."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import TrainerCallback

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import TrainerControl, TrainerState, TrainingArguments


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole: what is written last is there."""
    found = []
    for one in folder.glob("checkpoint-*"):
        try:
            json.loads((one / "trainer_state.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        found.append((int(one.name.rpartition("-")[2]), str(one)))
    return max(found)[1] if found else None


class Stop(TrainerCallback):
    """After a signal, writes a checkpoint and ends."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._asked = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Called by the trainer at the beginning."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the trainer after a step."""
        if self._asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class Progress(TrainerCallback):
    """A bar with the loss."""

    def __init__(self, name: str, size: int, unit: str) -> None:
        """``size`` is that of a step, in ``unit``."""
        self._name, self._size, self._unit = name, size, unit

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the trainer at the beginning."""
        self._bar = tqdm(
            desc=self._name,
            total=state.max_steps * self._size,
            initial=state.global_step * self._size,
            unit=self._unit,
            unit_scale=True,
            disable=not state.is_world_process_zero,
        )

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer after a step."""
        self._bar.update(self._size)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called by the trainer after a line of its history."""
        if "loss" in state.log_history[-1]:
            self._bar.set_postfix(loss=f"{state.log_history[-1]['loss']:.3f}")

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer at the end."""
        self._bar.close()
