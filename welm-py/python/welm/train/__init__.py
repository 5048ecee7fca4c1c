"""WeLM's recipe on the libraries that people run: corpus, tokenizer, pre-training, prompts, export.

``python -m welm train STEP --config recipe.toml``, or::

    import welm.train

    recipe = welm.train.read("recipe.toml")
    welm.train.run("corpus", recipe)

Every step reads what the steps before it wrote, and can be stopped and started again. It needs
``pip install "welm[train]"``.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib import import_module

from welm.train.recipe import Recipe, RecipeError, read
from welm.train.steps import alone

__all__ = ["STEPS", "Recipe", "RecipeError", "read", "run"]

STEPS = ("corpus", "tokenizer", "tokens", "pretrain", "export", "prompts")
"""The steps, in order. `prompts` is done if the recipe has it."""


def run(step: str, recipe: Recipe) -> None:
    """Does a step, if it is not done with the same settings. Raises :class:`RecipeError`."""
    if any(character in str(recipe.out) for character in "*?["):  # datatrove would take them for a pattern
        raise RecipeError(f"{recipe.out}: expected a folder without *, ? and [")
    module = import_module(f"welm.train.{step}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and step != "pretrain":
        raise RecipeError(f"{step}: only pretrain runs in several processes")
    with alone(recipe.out / step) if os.environ.get("RANK", "0") == "0" else nullcontext():
        module.run(recipe, recipe.out / step)
