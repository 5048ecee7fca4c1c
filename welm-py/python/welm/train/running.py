"""What steps that train have in common: a bar, the end by a signal, the checkpoint to go on from."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from welm.train.recipe import RecipeError

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from typing_extensions import Self


_WHOLE = "whole"
"""A file that a checkpoint has when all others are on the disk."""


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole."""
    found = {}
    for one in folder.glob(f"checkpoint-*/{_WHOLE}"):
        step = one.parent.name.removeprefix("checkpoint-")
        if step.isdecimal():
            found[int(step)] = str(one.parent)
    return found[max(found)] if found else None


class Whole(TrainerCallback):
    """Notes in each checkpoint that it is whole, after the disk has it. It is so even if the machine stops later."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the trainer after a checkpoint is written."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # each process writes a part
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        for file in (*filter(Path.is_file, folder.iterdir()), folder):
            number = os.open(file, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
        (folder / _WHOLE).touch()


class Stop(TrainerCallback):
    """After SIGTERM or Ctrl-C, has a checkpoint written and ends the training; a second Ctrl-C ends it at once.

    The block in which it holds has the signals; after it they are as they were, and one that came is raised again.
    """

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Takes the signals, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._asked and kind is None:
            signal.raise_signal(self._asked)

    def _ask(self, number: int, _: object) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called by the trainer after a step. All processes end after the same step."""
        asked = self._asked is not None
        if torch.distributed.is_initialized():
            told = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            asked = bool(told)
        if state.global_step >= state.max_steps:
            control.should_save = False  # from such a checkpoint, the trainer would do one more step
        elif asked:
            control.should_save = control.should_training_stop = True


def accumulated(arguments: TrainingArguments, batch: int, name: str) -> int:
    """How many times a process computes gradients before a step.

    Raises :class:`RecipeError` if that is no whole number.
    """
    together: int = arguments.train_batch_size * arguments.world_size
    if batch % together:
        told = f"expected a multiple of micro_batch times devices, {together}, got {batch}"
        raise RecipeError(f"{name}.batch: {told}")
    return batch // together


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
