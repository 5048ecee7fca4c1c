"""Step ``prompts``: multi-prompted training, TRL's SFT trainer on many tasks with many templates each.

The folder gets ``model`` (with adapters merged), ``report.json`` (what was mixed, and losses) and ``checkpoints``.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from welm.train.export import export_mark
from welm.train.prompts.mixture import Deck, interleaved, shares
from welm.train.prompts.templates import Task, tasks
from welm.train.recipe import RecipeError
from welm.train.running import Progress, Stop, Whole, accumulated, last_checkpoint
from welm.train.steps import begin, fingerprint, is_done, mark_done, stamp, write

if TYPE_CHECKING:
    from pathlib import Path

    from welm.train.recipe import Prompts, Recipe

Row = dict[str, list[int]]


def run(recipe: Recipe, out: Path) -> None:
    """Trains on prompts, or goes on. After SIGTERM or Ctrl-C a checkpoint is written."""
    settings = recipe.prompts
    if settings is None:
        raise RecipeError("prompts: expected the table [prompts] in the recipe")
    base = settings.base or recipe.out / "export"
    if settings.base and not base.exists():
        raise RecipeError(f"{base}: no such file or folder")
    base_files = sorted(base.iterdir()) if base.is_dir() else [base]
    before = stamp(base_files) if settings.base else export_mark(recipe)
    given_files = [file for task in chosen(settings).values() for file in task.found(settings.data)]
    mark = fingerprint(before, stamp(given_files), settings.settings)
    if is_done(out, mark):
        return
    begin(out, mark, settings.settings)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = {"gguf_file": base.name} if base.suffix == ".gguf" else {}
    where = str(base.parent if given else base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, **given)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **given)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{base}: {error}") from None
    if given:  # the weights are plain f32, but the model is marked as one of a kind that cannot be trained
        model.hf_quantizer.remove_quantization_config(model)
    if tokenizer.eos_token_id is None:
        raise RecipeError(f"{base}: expected a tokenizer with a token that ends texts")
    rows, told = rows_of(settings, tokenizer)
    _report(out, told, [])
    trainer = _trainer(settings, model, tokenizer, rows, out)
    with Stop() as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=last_checkpoint(out / "checkpoints"))
        if trainer.state.global_step == trainer.state.max_steps:
            trained = trainer.model.merge_and_unload() if settings.lora else trainer.model
            trained.save_pretrained(out / "model")
            tokenizer.save_pretrained(out / "model")
            _report(out, told, trainer.state.log_history)
            mark_done(out, mark)
    if trainer.state.global_step < trainer.state.max_steps:
        raise KeyboardInterrupt


def _report(out: Path, told: dict[str, Any], history: list[dict[str, Any]]) -> None:
    losses = [[one["step"], one["loss"]] for one in history if "loss" in one]
    write(out / "report.json", json.dumps({**told, "losses": losses}, indent=1, ensure_ascii=False) + "\n")


def chosen(settings: Prompts) -> dict[str, Task]:
    """The tasks of a recipe, without those that are held out, by name or by type."""
    known = tasks()
    types = {task.type for task in known.values()}
    for name in (*settings.tasks, *settings.heldout):
        if name not in known and name not in types:
            raise RecipeError(f"prompts: there is no task and no type {name}")
    return {
        name: task
        for name, task in known.items()
        if (not settings.tasks or {name, task.type} & {*settings.tasks})
        and not {name, task.type} & {*settings.heldout}
    }


def rows_of(settings: Prompts, tokenizer: Any) -> tuple[list[Row], dict[str, Any]]:
    """The rows to train on, in order, and what they are. The loss is on the answer and the end token only.

    Examples that are longer than ``longest`` tokens are left out.
    """
    known = chosen(settings)
    found = {name: list(task.examples(settings.data)) for name, task in known.items()}
    missing = [file for task in known.values() for file in task.missing(settings.data)]
    found = {name: examples for name, examples in found.items() if examples}
    if not found:
        raise RecipeError(f"{settings.data}: there are no examples of any task")
    parts = shares(
        {name: len(examples) for name, examples in found.items()}, settings.cap, settings.smoothing
    )
    decks = {name: Deck(range(len(examples)), f"{settings.seed} {name}") for name, examples in found.items()}
    forms = {
        name: Deck(range(len(known[name].templates)), f"{settings.seed} {name} templates") for name in found
    }
    rows: list[Row] = []
    counts: dict[str, Any] = {
        name: {"licence": known[name].licence, "examples": len(examples), "rows": 0, "too_long": 0}
        for name, examples in found.items()
    }
    first = before_text(tokenizer)
    for name in interleaved(parts, settings.rows):
        for _ in range(2 * len(found[name])):  # a deck that was begun, and then a whole one
            example = found[name][decks[name].draw()]
            row = _row(known[name].filled(example, forms[name].draw()), tokenizer, first)
            if len(row["input_ids"]) <= settings.longest:
                rows.append(row)
                counts[name]["rows"] += 1
                break
            counts[name]["too_long"] += 1
        else:
            raise RecipeError(
                f"prompts.longest: all examples of {name} have more than {settings.longest} tokens"
            )
    return rows, {"tasks": counts, "missing_files": missing, "heldout": list(settings.heldout)}


def before_text(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before each text, such as the one that begins it."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    ids: list[int] = tokenizer("a").input_ids
    return ids[: ids.index(plain[0])]


def _row(filled: tuple[str, str], tokenizer: Any, first: list[int]) -> Row:
    """Prompt and answer are tokenized apart, as they are when a model is asked.

    The name of a special token in them is text like any other.
    """
    prompt, answer = (
        tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids for text in filled
    )
    prompt = [*first, *prompt]
    ids = [*prompt, *answer, tokenizer.eos_token_id]
    return {"input_ids": ids, "completion_mask": [0] * len(prompt) + [1] * (len(answer) + 1)}


def _trainer(settings: Prompts, model: Any, tokenizer: Any, rows: list[Row], out: Path) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, ProgressCallback
    from trl import SFTConfig, SFTTrainer

    steps = max(settings.rows // settings.batch, 1)
    arguments = SFTConfig(
        str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=settings.micro_batch,
        train_sampling_strategy="sequential",  # the rows are mixed already
        learning_rate=settings.rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        weight_decay=0.0,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=settings.seed,
        activation_checkpointing=False,
        save_steps=settings.save_every,
        save_total_limit=3,  # one may be torn
        logging_steps=1,
        report_to=[],
        max_length=None,
        completion_only_loss=True,
    )
    arguments.gradient_accumulation_steps = accumulated(arguments, settings.batch, "prompts")
    adapters = None
    if settings.lora:
        adapters = LoraConfig(r=settings.lora, lora_alpha=2 * settings.lora, target_modules="all-linear")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapters,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(Whole())
    trainer.add_callback(Progress("prompts", settings.batch, "row"))
    return trainer
