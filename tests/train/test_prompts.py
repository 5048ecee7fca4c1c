"""Multi-prompted training: the templates, the mixture, the mask of the loss, resume."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import welm
import welm.eval.tasks
import welm.train
from welm.train import RecipeError
from welm.train.prompts import _row, before_text, chosen, rows_of
from welm.train.prompts.mixture import Deck, interleaved, shares
from welm.train.prompts.templates import tasks
from welm.train.recipe import Prompts, parse

from conftest import command, made, run, save, values

if TYPE_CHECKING:
    from welm.train.recipe import Recipe

SAMPLES = Path(welm.eval.tasks.__file__).parent / "samples"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of data sets: the made-up examples of the package."""
    for task, name in (
        ("chnsenticorp", "chnsenticorp"),
        ("ocnli", "ocnli"),
        ("c3", "c3"),
        ("tnews", "tnews"),
        ("iflytek", "iflytek"),
        ("cluewsc", "cluewsc2020"),
        ("cmrc2018", "cmrc2018"),
        ("adgen", "adgen"),
    ):
        file = tmp_path / "data" / tasks()[task].files[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SAMPLES / f"{name}.jsonl", file)
    return tmp_path / "data"


def test_there_are_enough() -> None:
    known = tasks()
    assert len(known) >= 12
    assert len({task.type for task in known.values()}) >= 7
    assert not {*known} & {task.type for task in known.values()}  # either is meant by a name in a recipe
    for task in known.values():
        assert len(task.templates) >= 10, task.name


def test_templates_fill(data: Path) -> None:
    seen: Counter[str] = Counter()
    for task in tasks().values():
        for example in task.examples(data):
            filled = [task.filled(example, number) for number in range(len(task.templates))]
            assert len({*filled}) == len(filled)  # all differ
            for prompt, answer in filled:
                assert prompt.strip()
                assert answer.strip()
                assert "{{" not in prompt + answer
                assert "None" not in prompt + answer
            seen[task.name] += 1
    assert len(seen) == 8
    assert seen["c3"] == 10
    line = (data / "ocnli" / "train.3k.jsonl").read_text("utf-8").splitlines()[0]
    (data / "ocnli" / "train.3k.jsonl").write_text(
        line.replace(json.loads(line)["label"], "-") + "\n", "utf-8"
    )
    assert list(tasks()["ocnli"].examples(data)) == []  # nobody agreed on a label


def test_a_verbaliser() -> None:
    task = tasks()["chnsenticorp"]
    prompt, answer = task.filled({"text": "很好", "label": "positive"}, 0)
    assert prompt == "评论：很好\n这条评论的情感倾向是正面、负面中的哪一个？\n答："
    assert answer == "正面"
    assert task.filled({"text": "很差", "label": "negative"}, 3)[1] == "否"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", r"train.jsonl:1: Expecting"),
        ('{"text": "x", "label": "mixed"}', r"train.jsonl:1: mixed is no label of chnsenticorp"),
    ],
)
def test_broken_data(data: Path, line: str, told: str) -> None:
    (data / "chnsenticorp" / "train.jsonl").write_text(line + "\n", "utf-8")
    with pytest.raises(RecipeError, match=told):
        list(tasks()["chnsenticorp"].examples(data))


def test_the_mixture() -> None:
    parts = shares({"a": 100, "b": 400, "c": 10_000}, cap=900, smoothing=0.5)
    assert parts == pytest.approx({"a": 10 / 60, "b": 20 / 60, "c": 30 / 60})
    assert shares({"a": 1, "b": 9}, 100, 0)["a"] == 0.5
    names = list(interleaved(parts, 600))
    assert Counter(names) == {"a": 100, "b": 200, "c": 300}
    for at in range(0, 600, 12):  # each batch of twelve has all
        assert Counter(names[at : at + 12]) == {"a": 2, "b": 4, "c": 6}
    deck = Deck("abcd", "1")
    drawn = [deck.draw() for _ in range(12)]
    assert all(sorted(drawn[at : at + 4]) == list("abcd") for at in (0, 4, 8))
    again = Deck("abcd", "1")
    assert [again.draw() for _ in range(12)] == drawn


@pytest.mark.parametrize("lora", [4, 0])
def test_a_gguf_file_is_trained(tmp_path: Path, data: Path, lora: int) -> None:
    """transformers dequantises it, and would not train it afterwards; what is written is a plain folder."""
    base = Path(__file__).parents[1] / "fixtures" / "gguf_llama_q8_0" / "model.gguf"
    settings = _prompts(data, base=str(base), tasks=["tnews"], longest=120, lora=lora)
    recipe = parse({"out": str(tmp_path / "out"), "prompts": settings}, tmp_path / "recipe.toml")
    welm.train.run("prompts", recipe)
    assert "quantization_config" not in json.loads((recipe.out / "prompts/model/config.json").read_text())
    trained = AutoModelForCausalLM.from_pretrained(recipe.out / "prompts" / "model")
    before = AutoModelForCausalLM.from_pretrained(base.parent, gguf_file=base.name)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(trained.state_dict()[name], before.state_dict()[name])
    losses = dict(json.loads((recipe.out / "prompts" / "report.json").read_text("utf-8"))["losses"])
    assert losses[6] < losses[1]


def test_one_example_that_is_short_enough(data: Path) -> None:
    """However the examples are shuffled, the one that fits is found in time."""
    lines = [json.dumps({"text": "好" * length, "label": "positive"}) for length in (400, 400, 3, 400)]
    (data / "chnsenticorp" / "train.jsonl").write_text("\n".join(lines), "utf-8")
    rows, told = rows_of(Prompts(data=data, tasks=("chnsenticorp",), rows=200, longest=300), _tokenizer(None))
    assert len(rows) == 200
    assert told["tasks"]["chnsenticorp"]["too_long"] > 200
    with pytest.raises(RecipeError, match="all examples of chnsenticorp have more than 4 tokens"):
        rows_of(Prompts(data=data, tasks=("chnsenticorp",), rows=2, longest=4), _tokenizer(None))


def test_what_a_tokenizer_puts_first(data: Path) -> None:
    """Prompts begin with it, as they do when a model is asked."""
    settings = Prompts(data=data, tasks=("chnsenticorp",), rows=4)
    for template, first in ((None, []), ("<s> $A", [1]), ("<s> $A </s>", [1])):
        tokenizer = _tokenizer(template)
        assert before_text(tokenizer) == first
        rows, _ = rows_of(settings, tokenizer)
        for row in rows:
            assert row["input_ids"][: len(first)] == first
            assert row["input_ids"].count(1) == len(first)
            assert row["input_ids"][-1] == 2
            assert row["input_ids"].count(2) == 1
            assert row["completion_mask"][0] == 0


def _tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One that has a token for each byte, and puts special tokens around a text."""
    letters = ByteLevel.alphabet()
    words = Tokenizer(
        BPE({"<unk>": 0, "<s>": 1, "</s>": 2, **{one: 3 + n for n, one in enumerate(letters)}}, [])
    )
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words.add_special_tokens(["<unk>", "<s>", "</s>"])
    if template:
        words.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")


def test_what_is_held_out(data: Path) -> None:
    settings = Prompts(data=data, heldout=("sentiment", "tnews"))
    names = chosen(settings)
    assert "chnsenticorp" not in names
    assert "eprstmt" not in names
    assert "tnews" not in names
    assert "iflytek" in names
    assert {*chosen(Prompts(data=data, tasks=("topic",), heldout=("tnews",)))} == {"csldcp", "iflytek"}
    with pytest.raises(RecipeError, match="there is no task and no type poetry"):
        chosen(Prompts(data=data, heldout=("poetry",)))


@pytest.fixture
def recipe(folder: Path, data: Path) -> Recipe:
    """A small model that is trained and exported."""
    more = {"pretrain": {**values(folder)["pretrain"], "tokens": 2560}}
    done = run(
        "all", "--config", str(save(values(folder, **more, prompts=_prompts(data)), folder / "recipe.toml"))
    )
    assert done.returncode == 0, done.stderr
    return made(folder, **more, prompts=_prompts(data))


def _prompts(data: Path, **more: Any) -> dict[str, Any]:
    small = {
        "rows": 48,
        "batch": 8,
        "micro_batch": 4,
        "rate": 1e-2,
        "lora": 0,
        "precision": "f32",
        "longest": 400,
    }
    return {"data": str(data), **small, "save_every": 2, **more}


def test_trained_on_prompts(recipe: Recipe, folder: Path, data: Path) -> None:
    out = recipe.out / "prompts"
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert sum(one["rows"] for one in report["tasks"].values()) == 48
    assert len(report["tasks"]) == 8
    assert "kgclue/dev.jsonl" in report["missing_files"]
    assert report["tasks"]["ocnli"]["licence"] == "CC BY-NC 2.0"
    losses = dict(report["losses"])
    assert losses[6] < losses[1] - 0.5
    assert welm.Model(out / "model").generate("问：", max_tokens=2).usage.completion_tokens > 0

    # The loss is on the answers only.
    tokenizer = AutoTokenizer.from_pretrained(recipe.out / "export")
    assert recipe.prompts
    rows, _ = rows_of(recipe.prompts, tokenizer)
    for row in rows:
        first = row["completion_mask"].index(1)
        assert {*row["completion_mask"][:first]} == {0}
        assert {*row["completion_mask"][first:]} == {1}
        assert row["input_ids"][-1] == tokenizer.eos_token_id
    answers = {
        tokenizer.decode([i for i, m in zip(r["input_ids"], r["completion_mask"], strict=True) if m][:-1])
        for r in rows
    }
    assert answers & {"正面", "负面", "好评", "差评", "是", "否", "推荐", "不推荐", "满意", "不满意"}

    # The name of a special token in a prompt is text.
    ids = _row(("a<|endoftext|>b", "c"), tokenizer, [])["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1

    # Killed and resumed, with adapters, it is the same run.
    runs = []
    for number in (None, signal.SIGKILL, signal.SIGTERM):
        shutil.rmtree(out)
        more = {"pretrain": {**values(folder)["pretrain"], "tokens": 2560}}
        path = save(values(folder, **more, prompts=_prompts(data, lora=4)), folder / "recipe.toml")
        if number:
            process = subprocess.Popen(command("prompts", "--config", str(path)), stderr=subprocess.DEVNULL)
            until = time.monotonic() + 60
            while time.monotonic() < until and not (out / "checkpoints" / "checkpoint-2" / "whole").exists():
                time.sleep(0.01)
            process.send_signal(number)
            process.wait()
            assert process.returncode in (-9, 143)
        done = run("prompts", "--config", str(path))
        assert done.returncode == 0, done.stderr
        losses = json.loads((out / "report.json").read_text("utf-8"))["losses"]
        runs.append((losses, (out / "model" / "model.safetensors").read_bytes()))
    assert runs[0] == runs[1]
    assert runs[0] == runs[2]


def test_too_long_examples(recipe: Recipe) -> None:
    tokenizer = AutoTokenizer.from_pretrained(recipe.out / "export")
    assert recipe.prompts
    with pytest.raises(RecipeError, match=r"prompts.longest: all examples of \w+ have more than 3 tokens"):
        rows_of(recipe.prompts.model_copy(update={"longest": 3}), tokenizer)
    with pytest.raises(RecipeError, match="there are no examples of any task"):
        rows_of(recipe.prompts.model_copy(update={"data": Path("/nowhere")}), tokenizer)
