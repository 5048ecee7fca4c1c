"""A small corpus, and a recipe for it that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Before anything of Hugging Face is imported: nothing here is downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

from welm.train.recipe import Recipe, parse

EXAMPLE = Path(__file__).parents[2] / "examples" / "train"


def documents(name: str) -> list[str]:
    """The documents of a source of the example."""
    return (EXAMPLE / "corpus" / f"{name}.txt").read_text("utf-8").strip().split("\n\n")


def write_lines(path: Path, texts: list[str]) -> Path:
    """Writes JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return path


def values(folder: Path, **more: Any) -> dict[str, Any]:
    """A recipe, which tests change."""
    recipe: dict[str, Any] = {
        "out": str(folder / "out"),
        "executor": {"tasks": 2},
        "corpus": {
            "heldout": 0.05,
            "rules": {"min_characters": 20, "max_repeated_ngrams": 0.5},
            "sources": [
                {"name": "poems", "files": [str(folder / "poems.jsonl")], "licence": "MIT"},
                {"name": "recipes", "files": [str(folder / "recipes.jsonl")], "licence": "Unlicense"},
            ],
        },
        "tokenizer": {"pieces": 1500, "characters": 1000},
        "pretrain": {
            "tokens": 12_800,
            "batch": 4,
            "micro_batch": 4,
            "rate": 3e-3,
            "precision": "f32",
            "save_every": 4,
            "measure_every": 20,
            "measure_characters": 300,
            "shape": {"layers": 2, "dim": 32, "heads": 2, "hidden": 64, "context": 64},
        },
    }
    for step, fields in more.items():
        recipe[step] = {**recipe.get(step, {}), **fields} if isinstance(fields, dict) else fields
    return recipe


def made(folder: Path, **more: Any) -> Recipe:
    """The same, read."""
    return parse(values(folder, **more), folder / "recipe.toml")


def toml(value: Any) -> str:
    """A value as TOML has it."""
    match value:
        case dict():
            return "{" + ", ".join(f"{name} = {toml(one)}" for name, one in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case _:
            return json.dumps(value, ensure_ascii=False)


def save(recipe: dict[str, Any], path: Path) -> Path:
    """Writes a recipe."""
    path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in recipe.items()), "utf-8")
    return path


def command(*args: str) -> list[str]:
    """The command line of `welm train`."""
    return [sys.executable, "-m", "welm", "train", *args]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, timeout=500)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two sources."""
    write_lines(tmp_path / "poems.jsonl", documents("poems")[:300])
    write_lines(tmp_path / "recipes.jsonl", documents("recipes")[:60])
    return tmp_path
