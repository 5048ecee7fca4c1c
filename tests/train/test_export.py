"""Exports: transformers, welm and llama.cpp's format agree; Megatron's checkpoints come back."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import welm
import welm.train
from welm.train import RecipeError
from welm.train.recipe import Shape
from welm.train.tokenizer import END_ID

from conftest import EXAMPLE, made, run, save, values

if TYPE_CHECKING:
    from welm.train.recipe import Recipe

TEXT = "《静夜思》\n床前明月光，疑是地上霜。WeLM 3.14 のmodel 🙂"


@pytest.fixture(params=["bpe", "unigram"])
def recipe(folder: Path, request: pytest.FixtureRequest) -> Recipe:
    """A model that is trained."""
    more = {
        "export": {"int8": True},
        "pretrain": {**values(folder)["pretrain"], "tokens": 2560},
        "tokenizer": {"pieces": 1500, "characters": 600, "kind": request.param},
    }
    done = run("all", "--config", str(save(values(folder, **more), folder / "recipe.toml")))
    assert done.returncode == 0, done.stderr
    return made(folder, **more)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def test_all_readers_agree(recipe: Recipe) -> None:
    out = recipe.out / "export"
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    assert tokenizer(TEXT).input_ids == [END_ID, *ids]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(out).eval()(torch.tensor([ids])).logits[0].numpy()
    for path, most in ((out, 1e-5), (out / "model.gguf", 2e-3), (recipe.out / "export-int8", 5e-2)):
        model = welm.Model(path, cache_dtype="f32", **({"dtype": "f32"} if path == out else {}))
        assert model.tokenize(TEXT) == ids
        assert model.detokenize(ids) == TEXT
        got = model.logits(ids)
        assert np.abs(log_probabilities(got) - log_probabilities(expected)).max() < most
        usage = model.generate(TEXT, max_tokens=4).usage
        assert usage.completion_tokens > 0
        assert usage.prompt_tokens == 1 + len(ids)  # with the end token, as documents begin in training


def test_a_megatron_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    """The weights of an export, as two tensor-parallel processes of Megatron have them, come back as they were."""
    weights = load_file(recipe.out / "export" / "model.safetensors")
    names = {
        "gpt_neox.embed_in": "embedding.word_embeddings",
        "gpt_neox.final_layer_norm": "decoder.final_layernorm",
        "input_layernorm": "self_attention.linear_qkv.layer_norm_",
        "attention.query_key_value": "self_attention.linear_qkv",
        "attention.dense": "self_attention.linear_proj",
        "post_attention_layernorm": "pre_mlp_layernorm",
        "mlp.dense_h_to_4h": "mlp.linear_fc1",
        "mlp.dense_4h_to_h": "mlp.linear_fc2",
    }
    for rank in range(2):
        saved = {}
        for name, value in weights.items():
            stem, kind = name.rsplit(".", 1)
            prefix = ""
            if ".layers." in stem:
                number, stem = stem.split(".layers.")[1].split(".", 1)
                prefix = f"decoder.layers.{number}."
            there = names[stem]
            there = f"{prefix}{there}{kind}" if there.endswith("_") else f"{prefix}{there}.{kind}"
            if stem == "gpt_neox.embed_in":
                value = torch.cat([value, torch.zeros(100, value.shape[1])])  # padding
            rows = ("query_key_value", "dense_h_to_4h", "embed_in")
            if any(stem.endswith(one) for one in rows):
                value = value.chunk(2, 0)[rank]
            elif kind == "weight" and stem in ("attention.dense", "mlp.dense_4h_to_h"):
                value = value.chunk(2, 1)[rank]
            saved[there] = value.clone()
        folder = tmp_path / "megatron" / f"mp_rank_{rank:02d}"
        folder.mkdir(parents=True)
        beside = {
            "args": argparse.Namespace(lr=1.0),
            "rng_state": [{"np": np.random.get_state()}],
            "iteration": 7,
        }
        torch.save({"model": saved, "checkpoint_version": 3.0, **beside}, folder / "model_optim_rng.pt")
    again = recipe.model_copy(
        update={"export": recipe.export.model_copy(update={"megatron": tmp_path / "megatron", "int8": False})}
    )
    welm.train.run("export", again)
    back = load_file(recipe.out / "export" / "model.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)

    del saved["decoder.layers.0.mlp.linear_fc1.bias"]
    torch.save({"model": saved}, folder / "model_optim_rng.pt")
    shutil.rmtree(folder.parent / "mp_rank_00")
    with pytest.raises(RecipeError, match=r"gpt_neox\.embed_in\.weight: expected \(1500, 32\), got"):
        welm.train.run("export", again)


def test_settings_that_have_changed(recipe: Recipe) -> None:
    """An export of weights that were trained in another shape would be wrong, and say nothing."""
    shape = {**values(Path())["pretrain"]["shape"], "heads": 4}
    other = recipe.model_copy(
        update={"pretrain": recipe.pretrain.model_copy(update={"shape": Shape(**shape)})}
    )
    with pytest.raises(
        RecipeError,
        match=r"pretrain: the recipe, or a step before this one, has changed: do the step pretrain again",
    ):
        welm.train.run("export", other)


def test_the_toy_recipe_from_text_to_an_answer(tmp_path: Path) -> None:
    """One command, under ten minutes; here it takes one."""
    shutil.copytree(EXAMPLE / "corpus", tmp_path / "corpus")
    text = (EXAMPLE / "recipe.toml").read_text("utf-8")
    text = text.replace("../../target/train-toy", "out").replace('"../../', f'"{EXAMPLE.parents[1]}/')
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    done = run("all", "--config", str(tmp_path / "recipe.toml"))
    assert done.returncode == 0, done.stderr
    model = welm.Model(tmp_path / "out" / "export-int8")
    answer = model.generate("西红柿炒鸡蛋的做法\n", max_tokens=32, seed=1)
    assert len(answer.text) > 10
    # It has learned: a line of a poem is more likely than its characters in another order.
    right, wrong = "床前明月光，疑是地上霜。", "光床月，前明霜疑上地是。"
    assert _loss(model, right) < _loss(model, wrong)


def _loss(model: welm.Model, text: str) -> float:
    ids = model.tokenize(text)
    values = log_probabilities(model.logits(ids))
    return -sum(values[at, one] for at, one in enumerate(ids[1:]))
