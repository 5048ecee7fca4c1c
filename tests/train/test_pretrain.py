"""Pre-training: exact resume, the same bytes twice, two processes like one."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import Trainer

import welm.train
from welm.train import RecipeError
from welm.train.documents import share_of
from welm.train.pretrain import parts_at
from welm.train.pretrain.measure import nats_per_character, some_of
from welm.train.pretrain.optimizer import Both, optimizer_of
from welm.train.pretrain.rows import Rows, batch_of
from welm.train.pretrain.shapes import new_model
from welm.train.recipe import Pretrain, Shape
from welm.train.tokenizer import END_ID, load

from conftest import command, documents, made, run, save, values, write_lines

if TYPE_CHECKING:
    from pathlib import Path


def history(folder: Path) -> dict[tuple[int, str], float]:
    """Losses by step and name."""
    lines = (folder / "out" / "pretrain" / "history.jsonl").read_text("utf-8").splitlines()
    return {
        (one["step"], name): value
        for one in map(json.loads, lines)
        for name, value in one.items()
        if name == "loss" or name.startswith("heldout/")
    }


def trained(folder: Path, *steps: str, **more: Any) -> dict[tuple[int, str], float]:
    done = run(*steps, "--config", str(save(values(folder, **more), folder / "recipe.toml")))
    assert done.returncode == 0, done.stderr
    return history(folder)


def weights(folder: Path) -> bytes:
    return (folder / "out" / "pretrain" / "model" / "model.safetensors").read_bytes()


def forget(folder: Path) -> None:
    (folder / "out" / "pretrain").rename(folder / f"old{time.monotonic_ns()}")


@pytest.mark.parametrize(("optimizer", "short"), [("adamw", 0.0), ("muon", 0.3)])
def test_killed_and_resumed_it_is_the_same_run(folder: Path, optimizer: str, short: float) -> None:
    more = {"pretrain": {**values(folder)["pretrain"], "optimizer": optimizer, "short": short}}
    whole = trained(folder, "corpus", "tokenizer", "tokens", "pretrain", **more)
    assert len([one for one in whole if one[1] == "loss"]) == 50
    assert whole[50, "loss"] < whole[1, "loss"] - 0.5
    model = weights(folder)
    forget(folder)
    assert trained(folder, "pretrain", **more) == whole
    assert weights(folder) == model
    for number in (signal.SIGKILL, signal.SIGTERM):
        forget(folder)
        process = subprocess.Popen(
            command("pretrain", "--config", str(folder / "recipe.toml")), stderr=subprocess.PIPE, text=True
        )
        checkpoints = folder / "out" / "pretrain" / "checkpoints"
        until = time.monotonic() + 60
        while time.monotonic() < until and not (checkpoints / "checkpoint-8").exists():
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate()
        assert process.returncode == (-9 if number == signal.SIGKILL else 143)
        assert not (folder / "out" / "pretrain" / "model").exists()
        # A checkpoint that was being written when the machine stopped.
        shutil.copytree(next(checkpoints.iterdir()), checkpoints / "checkpoint-999")
        (checkpoints / "checkpoint-999" / "whole").unlink(missing_ok=True)
        (checkpoints / "checkpoint-999" / "optimizer.pt").write_bytes(b"")
        assert trained(folder, "pretrain", **more) == whole
        assert weights(folder) == model


def test_resumed_in_a_later_pass_over_the_corpus(folder: Path) -> None:
    """Rows come in another order in each pass, and samples on the way change nothing."""
    write_lines(folder / "poems.jsonl", documents("poems")[:40])
    write_lines(folder / "recipes.jsonl", documents("recipes")[:3])
    base = {**values(folder)["pretrain"], "tokens": 12_800}
    whole = trained(folder, "corpus", "tokenizer", "tokens", "pretrain", pretrain=base)
    rows = Rows(folder / "out" / "tokens", 64, 1500, 1)
    assert len(rows) < 100  # of 200 that are read
    model = weights(folder)
    forget(folder)
    more = {**base, "prompts": ["春"], "measure_every": 3}
    path = save(values(folder, pretrain=more), folder / "recipe.toml")
    process = subprocess.Popen(command("pretrain", "--config", str(path)), stderr=subprocess.DEVNULL)
    checkpoints = folder / "out" / "pretrain" / "checkpoints"
    until = time.monotonic() + 100
    while time.monotonic() < until and not (checkpoints / "checkpoint-36").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    again = trained(folder, "pretrain", pretrain=more)
    assert {key: again[key] for key in whole if key[1] == "loss"} == {
        key: value for key, value in whole.items() if key[1] == "loss"
    }
    assert weights(folder) == model


@pytest.mark.parametrize(("optimizer", "shard"), [("adamw", True), ("muon", True), ("muon", False)])
def test_two_processes_are_like_one(folder: Path, optimizer: str, *, shard: bool) -> None:
    """In three passes over a corpus whose rows are no multiple of a batch."""
    write_lines(folder / "poems.jsonl", documents("poems")[:40])
    write_lines(folder / "recipes.jsonl", documents("recipes")[:3])
    base = {**values(folder)["pretrain"], "optimizer": optimizer, "tokens": 12_800}
    one = trained(folder, "corpus", "tokenizer", "tokens", "pretrain", pretrain=base)
    (tokens,) = (folder / "out" / "tokens" / "all").glob("*.ds")
    assert tokens.stat().st_size // (2 * 64) % base["batch"] != 0
    forget(folder)
    more = {**base, "micro_batch": 2, "shard": shard}
    path = save(values(folder, pretrain=more), folder / "recipe.toml")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*line, "-m", "welm", "train", "pretrain", "--config", str(path)]
    for _ in range(2):
        done = subprocess.run(line, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        two = history(folder)
        assert one.keys() == two.keys()
        # accelerate may leave the sharding out without a word.
        written = {file.name for file in (folder / "out" / "pretrain" / "checkpoints").glob("*/*.bin")}
        assert ("pytorch_model_fsdp.bin" in written) == shard
        assert max(abs(one[key] - two[key]) for key in one) < 1e-3
        weights(folder)
        # As if it had been killed at the end: it goes on after the last checkpoint, and does no step more.
        (folder / "out" / "pretrain" / "done").unlink()
        shutil.rmtree(folder / "out" / "pretrain" / "model")
    if shard:
        path = save(values(folder, pretrain=base), folder / "recipe.toml")
        done = run("pretrain", "--config", str(path))
        assert done.returncode == 1
        assert "pretrain.shard: expected shard = true, with which " in done.stderr
        path = save(values(folder, pretrain=more), folder / "recipe.toml")
        done = run("pretrain", "--config", str(path))
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "pretrain.shard: expected several processes" in done.stderr


def test_a_signal_at_the_end_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = made(folder, pretrain={**values(folder)["pretrain"], "tokens": 1280})
    for step in ("corpus", "tokenizer", "tokens"):
        welm.train.run(step, recipe)
    save_model = Trainer.save_model

    def interrupted(trainer: Trainer, folder: str, **given: Any) -> None:
        if folder == str(recipe.out / "pretrain" / "model"):  # and not one of the checkpoints
            signal.raise_signal(signal.SIGINT)
        save_model(trainer, folder, **given)

    monkeypatch.setattr(Trainer, "save_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        welm.train.run("pretrain", recipe)
    assert (recipe.out / "pretrain" / "done").exists()
    assert weights(folder)


def test_held_out_texts_are_from_the_whole_source() -> None:
    texts = [f"{number:03} " * 25 for number in range(300)]
    some = some_of(texts, 950)
    assert len(some) == 10  # of 100 characters each
    assert some == some_of(reversed(texts), 950)
    assert max(texts.index(text) for text in some) > 100
    assert some_of(texts, 1 << 40) == sorted(texts, key=lambda text: share_of(text, "measure"))
    assert some_of(texts, 1) == some[:1]
    assert some_of([], 10) == []


def test_rows_have_all_documents(folder: Path) -> None:
    recipes = documents("recipes")[:60]
    special = [f"{text}\n做法的最后写着<|endoftext|>，它在这里只是文字。" for text in recipes[:9]]
    write_lines(folder / "recipes.jsonl", [*recipes[9:], *special])
    recipe = made(folder)
    trained(folder, "corpus", "tokenizer", "tokens", "pretrain")
    words = load(recipe.out / "tokenizer")
    rows = Rows(recipe.out / "tokens", 64, 1500, 1)
    ids = torch.cat([rows[number]["input_ids"] for number in range(len(rows))]).tolist()
    read = [words.decode(part) for part in _split(ids)]
    corpus = {
        text
        for source in ("poems", "recipes")
        for text in welm.train.documents.texts_of(recipe.out / "corpus", "train", source)
    }
    assert {*read[:-1]} <= corpus
    assert {*special} & {*read}
    assert len(read) in (len(corpus), len(corpus) + 1)  # the last one is cut
    assert [text for text in read if text in corpus] != [*corpus]  # shuffled
    kinds = ["《" in text[:1] for text in read[:200]]
    assert 10 < sum(kinds) < 190  # sources are mixed


def _split(ids: list[int]) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for one in ids:
        if one == END_ID:
            parts.append([])
        else:
            parts[-1].append(one)
    return parts


def test_short_sequences(folder: Path) -> None:
    ids = torch.arange(3, 19).reshape(2, 8)
    whole, short = batch_of(ids, 1), batch_of(ids, 4)
    assert whole["input_ids"].tolist() == ids.tolist()
    assert whole["labels"].tolist() == [[-100, *row[1:]] for row in ids.tolist()]
    assert short["input_ids"].tolist() == ids.reshape(8, 2).tolist()
    assert short["labels"].tolist() == [[-100, row[1]] for row in ids.reshape(8, 2).tolist()]
    assert short["position_ids"].tolist() == [[0, 1]] * 8
    how = Pretrain(short=0.75)
    assert [parts_at(step, 8, how) for step in range(8)] == [4] * 6 + [1] * 2
    assert parts_at(0, 8, Pretrain()) == 1
    shape = {**values(folder)["pretrain"]["shape"], "context": 66}
    recipe = made(folder, pretrain={**values(folder)["pretrain"], "shape": shape, "short": 0.5})
    welm.train.run("corpus", recipe)
    welm.train.run("tokenizer", recipe)
    welm.train.run("tokens", recipe)
    with pytest.raises(RecipeError, match=r"pretrain\.short: expected a context that 4 divides, got 66"):
        welm.train.run("pretrain", recipe)


def test_documents_do_not_see_each_other() -> None:
    """Each has the logits that it has alone, after its end token."""
    model = new_model(Shape(layers=2, dim=32, heads=2, hidden=64, context=16), 300, 1).eval()
    documents = [[7, 8, 9, 10], [END_ID, 20, 21, 22, 23, 24], [END_ID, 30], [END_ID], [END_ID, 40, 41]]
    batch = batch_of(torch.tensor([[one for ids in documents for one in ids]]), 1)
    assert batch["position_ids"].tolist() == [[*range(4), *range(6), *range(2), 0, *range(3)]]
    del batch["labels"]
    with torch.no_grad():
        for compiled in (model, torch.compile(model, backend="eager")):
            together = compiled(**batch, use_cache=False).logits[0]
            alone = [model(torch.tensor([ids]), use_cache=False).logits[0] for ids in documents]
            assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_loss_per_character() -> None:
    """Of a model that knows nothing, all tokens have the same probability."""
    pieces = 100

    def even(ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, pieces)

    texts = ["abc", "x" * 50]
    loss = nats_per_character(even, lambda text: [3] * len(text), texts, 16)
    tokens = 4 + 51  # with the ends
    assert loss == pytest.approx(math.log(pieces) * tokens / 53)


def test_the_optimizers_share_out_the_parameters() -> None:
    model = new_model(Shape(layers=2, dim=32, heads=2, hidden=64, context=16), 300, 1)
    both = optimizer_of(model, Pretrain(optimizer="muon"))
    assert isinstance(both, Both)
    seen = [id(one) for group in both.param_groups for one in group["params"]]
    assert len(seen) == len({*seen}) == len(list(model.parameters()))
    matrices = {id(p) for name, p in model.named_parameters() if p.dim() == 2 and ".layers." in name}
    assert {id(one) for one in both.param_groups[0]["params"]} == matrices
    assert both.param_groups[-1]["weight_decay"] == 0  # biases and norms


def test_a_batch_that_does_not_divide(folder: Path) -> None:
    recipe = made(folder, pretrain={**values(folder)["pretrain"], "batch": 6})
    welm.train.run("corpus", recipe)
    welm.train.run("tokenizer", recipe)
    welm.train.run("tokens", recipe)
    with pytest.raises(
        RecipeError, match=r"pretrain\.batch: expected a multiple of micro_batch times devices, 4, got 6"
    ):
        welm.train.run("pretrain", recipe)


def test_too_little_text(folder: Path) -> None:
    recipe = made(folder, pretrain={**values(folder)["pretrain"], "batch": 4096, "micro_batch": 4})
    welm.train.run("corpus", recipe)
    welm.train.run("tokenizer", recipe)
    welm.train.run("tokens", recipe)
    with pytest.raises(RecipeError, match=r"the corpus has \d+ rows, fewer than a batch, 4096"):
        welm.train.run("pretrain", recipe)
