"""WeLM's recipe on the libraries that people run: corpus, tokenizer, pre-training, prompts, export.

``python -m welm train STEP --config recipe.toml``, or::

    import welm.train

    recipe = welm.train.read("recipe.toml")
    welm.train.run("corpus", recipe)

Every step reads what the steps before it wrote, and can be stopped and started again. It needs
``pip install "welm[train]"``.
"""

from __future__ import annotations

from importlib import import_module

from welm.train.recipe import Recipe, RecipeError, read

__all__ = ["STEPS", "Recipe", "RecipeError", "read", "run"]

STEPS = ("corpus", "tokenizer", "pretrain", "export", "prompts")
"""The steps, in order. `prompts` is done if the recipe has it."""


def run(step: str, recipe: Recipe) -> None:
    """Does a step, if it is not done with the same settings. Raises :class:`RecipeError`."""
    import_module(f"welm.train.{step}").run(recipe, recipe.out / step)
