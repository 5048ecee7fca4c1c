"""Step ``pretrain``: transformers' Trainer on accelerate, from packed tokens to a model.

The folder gets ``model`` (transformers' GPT-NeoX), ``history.jsonl`` (losses and samples), ``loss.png``, and
``checkpoints``, from which a run goes on. For several processes it is started by torchrun.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from welm.train import tokenizer
from welm.train.pretrain import sharding
from welm.train.pretrain.measure import continued, heldout, nats_per_character, plot
from welm.train.pretrain.optimizer import optimizer_of
from welm.train.pretrain.rows import Rows, batch_of
from welm.train.pretrain.shapes import new_model, shape_of
from welm.train.recipe import RecipeError
from welm.train.running import Progress, Stop, Whole, accumulated, last_checkpoint
from welm.train.steps import begin, fingerprint, is_done, mark_done, tokens_mark, write

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState

    from welm.train.recipe import Pretrain, Recipe, Shape

PARTS = 4
"""Into how many parts a sequence is cut in the short steps."""

SAMPLE = 64
"""Tokens of a sample."""

MOST_LOSSES = 10_000
"""Most training losses in the history."""


def run(recipe: Recipe, out: Path) -> None:
    """Trains a model, or goes on. After SIGTERM or Ctrl-C a checkpoint is written."""
    settings = recipe.pretrain
    mark = mark_of(recipe)
    if is_done(out, mark):
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shape = shape_of(settings)
    if settings.short and shape.context % PARTS:
        raise RecipeError(f"pretrain.short: expected a context that {PARTS} divides, got {shape.context}")
    arguments = _arguments(settings, shape, out)
    with arguments.main_process_first():
        if arguments.process_index == 0:
            begin(out, mark, settings.settings)
    trainer = _trainer(recipe, arguments, shape, out)
    # Short and long sequences are compiled each for itself.
    torch._dynamo.config.automatic_dynamic_shapes = False
    with Stop() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=_to_resume(out, settings))
        if trainer.state.global_step == trainer.state.max_steps:
            trainer.save_model(str(out / "model"))
            if trainer.is_world_process_zero():
                mark_done(out, mark)
    if trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt


def mark_of(recipe: Recipe) -> str:
    """The fingerprint of this step. Raises :class:`RecipeError` if a step before it is not done."""
    return fingerprint(tokens_mark(recipe), recipe.pretrain.settings)


def parts_at(step: int, steps: int, settings: Pretrain) -> int:
    """Into how many parts the sequences of a step are cut, of so many steps."""
    return PARTS if step < settings.short * steps else 1


def _to_resume(out: Path, settings: Pretrain) -> str | None:
    """The newest checkpoint. One with shards cannot be read without them, nor the other way round."""
    found = last_checkpoint(out / "checkpoints")
    if found:
        shards = any("fsdp" in file.name for file in Path(found).iterdir())
        if shards != settings.shard:
            told = f"expected shard = {str(shards).lower()}, with which {found} was written"
            raise RecipeError(f"pretrain.shard: {told}; or remove the checkpoints to begin anew")
    return found


def _arguments(settings: Pretrain, shape: Shape, out: Path) -> TrainingArguments:
    given: dict[str, Any] = {}
    if settings.shard:
        config = {"version": 2, "state_dict_type": "FULL_STATE_DICT"}
        given = {"fsdp": True, "fsdp_config": {**config, "activation_checkpointing": settings.checkpointing}}
    steps = max(settings.tokens // (settings.batch * shape.context), 1)
    arguments = TrainingArguments(
        str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=settings.micro_batch,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.final},
        warmup_steps=settings.warmup,
        max_grad_norm=settings.clip,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=settings.seed,
        torch_compile=settings.compile,
        activation_checkpointing=settings.checkpointing and not settings.shard,
        save_steps=settings.save_every,
        save_total_limit=3,  # one may be torn
        logging_steps=max(steps // MOST_LOSSES, 1),
        logging_nan_inf_filter=False,
        report_to=[],
        dataloader_drop_last=True,
        **given,
    )
    if settings.shard and arguments.world_size == 1:
        raise RecipeError("pretrain.shard: expected several processes, as torchrun starts them, got one")
    arguments.gradient_accumulation_steps = accumulated(arguments, settings.batch, "pretrain")
    return arguments


class _Trainer(Trainer):
    """A trainer with the optimizer of a recipe, and its short steps."""

    settings: Pretrain
    optimizer: torch.optim.Optimizer | None
    is_fsdp_enabled: bool

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            sharding.switch_on(self.accelerator, self.args)
            self.is_fsdp_enabled = True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = optimizer_of(self.model if model is None else model, self.settings)
        return self.optimizer

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        parts = parts_at(self.state.global_step, self.state.max_steps, self.settings)
        batches = (batch_of(batch["input_ids"], parts) for batch in epoch_iterator)
        return super().get_batch_samples(batches, num_batches, device)


def _trainer(recipe: Recipe, arguments: TrainingArguments, shape: Shape, out: Path) -> _Trainer:
    settings = recipe.pretrain
    set_seed(settings.seed)
    words = tokenizer.load(recipe.out / "tokenizer")
    pieces = words.get_piece_size()
    rows = Rows(recipe.out / "tokens", shape.context, pieces, settings.batch)
    trainer = _Trainer(new_model(shape, pieces, settings.seed), arguments, train_dataset=rows)
    trainer.settings = settings
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(_Measure(recipe, words, shape, trainer, out))
    trainer.add_callback(Whole())
    trainer.add_callback(Progress("pretrain", settings.batch * shape.context, "tok"))
    return trainer


class _Measure(TrainerCallback):
    """Measures held-out losses, and writes samples, the history and the plot."""

    def __init__(self, recipe: Recipe, words: Any, shape: Shape, trainer: Trainer, out: Path) -> None:
        self._settings, self._shape, self._out = recipe.pretrain, shape, out
        self._words, self._trainer = words, trainer
        self._texts = heldout(recipe)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        if state.global_step % self._settings.measure_every and state.global_step < state.max_steps:
            return
        model = given["model"]
        model = getattr(model, "_orig_mod", model)  # not the compiled one: windows have many lengths
        model.eval()
        # No longer than what the model has learned from so far.
        parts = parts_at(state.global_step - 1, state.max_steps, self._settings)
        window = self._shape.context // parts
        try:
            told: dict[str, Any] = {}
            for name, texts in self._texts.items():
                told[f"heldout/{name}"] = nats_per_character(
                    lambda ids: self._logits(model, ids), self._words.encode, texts, window
                )
            for prompt in self._settings.prompts if not self._settings.shard else ():
                ids = continued(model, self._words.encode(prompt), SAMPLE, self._settings.seed)
                told[f"sample/{prompt}"] = self._words.decode(ids)
        finally:
            model.train()
        state.log_history.append({**told, "step": state.global_step})
        self._write(state)
        if state.is_world_process_zero:
            plot(state.log_history, self._settings.batch * self._shape.context, self._out / "loss.png")

    def _logits(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        with self._trainer.compute_loss_context_manager():
            return model(ids.to(self._trainer.args.device)).logits

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._write(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        lines = (json.dumps(one, ensure_ascii=False) for one in state.log_history)
        write(self._out / "history.jsonl", "\n".join(lines) + "\n")
