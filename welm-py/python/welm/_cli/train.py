"""``train``: WeLM's recipe, step by step."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from welm._cli.arguments import text
from welm._cli.streams import Failure, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Trains a model: corpus, tokenizer, tokens, pretrain, export and prompts, each by itself, or all of them.

A recipe in TOML says how; welm.train.recipe documents its fields. A step that is done with the same settings is left
out. After Ctrl-C, or if the process is killed, the same command goes on where it was. Several processes:
torchrun --nproc-per-node 8 -m welm train pretrain --config recipe.toml. Needs pip install "welm[train]"."""
EXAMPLES = (
    "train all --config recipe.toml",
    "train corpus tokenizer tokens --config recipe.toml",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    add = parser.add_argument
    add(
        "steps",
        nargs="+",
        type=text,
        metavar="STEP",
        help="corpus, tokenizer, tokens, pretrain, export, prompts, or all",
    )
    add("--config", required=True, metavar="FILE", help="the recipe")
    parser.set_defaults(parser=parser)


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    try:
        return _run(args)
    except ImportError as error:
        raise Failure(f'{error.name} is missing: pip install "welm[train]"') from None


def _run(args: Namespace) -> int:
    import welm.train

    known = welm.train.STEPS
    for step in args.steps:
        if step not in (*known, "all"):
            args.parser.error(f"argument STEP: expected {', '.join(known)} or all, got {step}")
    recipe = welm.train.read(args.config)
    every = [step for step in known if step != "prompts" or recipe.prompts]
    for step in every if "all" in args.steps else args.steps:
        welm.train.run(step, recipe)
        if os.environ.get("RANK", "0") == "0":
            say(f"{step}: {recipe.out / step}")
    return 0
