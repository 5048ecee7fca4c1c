"""Recipes that are wrong are refused, with the field that is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import welm.train
from welm.train import STEPS, RecipeError
from welm.train.pretrain.shapes import SHAPES, new_model, parameters_of
from welm.train.recipe import Shape, parse

from conftest import EXAMPLE, made, run, save, values

if TYPE_CHECKING:
    from pathlib import Path


def test_the_example_is_read() -> None:
    recipe = welm.train.read(EXAMPLE / "recipe.toml")
    assert [source.name for source in recipe.corpus.sources] == ["poems", "recipes"]
    assert recipe.corpus.sources[0].files[0].is_file()  # relative to the recipe


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pretrain": {"tokns": 1}}, "pretrain.tokns; Extra inputs are not permitted"),
        ({"pretrain": {"batch": 0}}, "pretrain.batch; Input should be greater than or equal to 1"),
        ({"pretrain": {"optimizer": "sgd"}}, "pretrain.optimizer; Input should be 'adamw' or 'muon'"),
        ({"tokenizer": {"pieces": 10}}, "tokenizer.pieces; Input should be greater than or equal to 300"),
        ({"corpus": {"quality": {"good": ["poems"], "bad": ["novels"]}}}, "there is no source novels"),
        ({"executor": {"kind": "spark"}}, "executor.kind; Input should be 'local', 'ray' or 'slurm'"),
    ],
)
def test_wrong_fields(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.toml: ") as caught:
        made(tmp_path, **change)
    assert told in str(caught.value)


def test_two_sources_of_one_name(tmp_path: Path) -> None:
    source = {"name": "a", "files": ["x"], "licence": "MIT"}
    with pytest.raises(RecipeError, match="sources: a is there twice"):
        made(tmp_path, corpus={"sources": [source, source]})


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["corpus", "--config", "/nowhere.toml"], 1, "/nowhere.toml: No such file or directory"),
        (
            ["corpse", "--config", "x"],
            2,
            "argument STEP: expected corpus, tokenizer, tokens, pretrain, export, prompts or all",
        ),
        (["corpus"], 2, "--config"),
    ],
)
def test_wrong_commands(args: list[str], code: int, told: str) -> None:
    done = run(*args)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert told in done.stderr


def test_a_corpus_without_sources(tmp_path: Path) -> None:
    recipe = parse({"out": str(tmp_path / "out")}, tmp_path / "recipe.toml")
    with pytest.raises(RecipeError, match=r"corpus\.sources: expected at least one source"):
        welm.train.run("corpus", recipe)


def test_steps_have_an_order(folder: Path) -> None:
    few = {**values(folder)["pretrain"], "tokens": 256}
    path = save(values(folder, pretrain=few), folder / "recipe.toml")
    done = run("export", "--config", str(path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the step corpus comes first" in done.stderr
    steps = STEPS[: STEPS.index("export") + 1]
    recipe = welm.train.read(path)
    for at, step in enumerate(steps):
        for later in steps[at + 1 :]:
            with pytest.raises(RecipeError, match=f"the step {step} comes first"):
                welm.train.run(later, recipe)
        welm.train.run(step, recipe)

    # After a step in the middle was done anew, nothing is made of what comes after it.
    again = made(folder, pretrain=few, tokenizer={"pieces": 1400})
    for later in ("tokens", "pretrain", "export"):
        with pytest.raises(RecipeError, match="has changed: do the step tokenizer again"):
            welm.train.run(later, again)
    welm.train.run("tokenizer", again)
    for later in ("pretrain", "export"):
        with pytest.raises(RecipeError, match="has changed: do the step tokens again"):
            welm.train.run(later, again)
    welm.train.run("tokens", again)
    with pytest.raises(RecipeError, match="has changed: do the step pretrain again"):
        welm.train.run("export", again)


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted(tied: bool) -> None:
    shape = Shape(layers=3, dim=48, heads=3, hidden=100, context=32, tied=tied)
    model = new_model(shape, 321, 1)
    assert parameters_of(shape, 321) == sum(one.numel() for one in model.parameters())


def test_welm_s_sizes() -> None:
    sizes = {name: parameters_of(SHAPES[name], 62_000) / 1e9 for name in ("medium", "large", "xl")}
    # With the output layer apart, which doubles the vocabulary's part of the published sizes.
    assert json.loads(json.dumps({name: round(size, 1) for name, size in sizes.items()})) == {
        "medium": 1.5,
        "large": 2.8,
        "xl": 10.7,
    }
