"""The corpus: each filter removes what it should and nothing else."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from typing import TYPE_CHECKING, Any

import pytest

import welm.train
from welm.train import RecipeError
from welm.train.corpus.rules import broken_rule
from welm.train.corpus.sources import files_of, texts_of
from welm.train.documents import texts_of as kept_of
from welm.train.documents import times
from welm.train.recipe import Rules
from welm.train.steps import alone
from welm.train.words import words

from conftest import bytes_of, documents, made, save, values, write_lines

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "今天的天气很好，我们去公园散步。路上看见许多人在放风筝，孩子们笑得很开心！"
MIXED = "微信AI推出のWeLM是一个language model thatいろいろなtaskをperformができる，大家都说好。"
LOOSE = Rules(min_characters=0, min_punctuation=0)


@pytest.mark.parametrize(
    ("text", "rules", "broken"),
    [
        (TEXT, Rules(min_characters=10), None),
        (TEXT, Rules(min_characters=len(TEXT)), None),
        (TEXT, Rules(min_characters=len(TEXT) + 1), "min_characters"),
        (TEXT, Rules(min_characters=1, max_characters=len(TEXT) - 1), "max_characters"),
        (MIXED + TEXT, LOOSE, None),  # other languages inside Chinese text are kept
        ("The quick brown fox jumps over the lazy dog, 你好。", LOOSE, "min_chinese"),
        ("これは日本語の文章です。漢字も少しあります。とても長いですね。", LOOSE, "min_chinese"),
        ("이것은 한국어 문장입니다, 漢字.", LOOSE, "min_chinese"),
        ("你好\ufffd，世界。", LOOSE, "max_broken"),
        ("你好\x00，世界。", LOOSE, "max_broken"),
        ("你好，世界。\t再见\n", LOOSE, None),
        ("★★★★你好，世界。再见", LOOSE, "max_symbols"),
        ("电话1380013800013800138000，你好。", LOOSE, "max_digits"),
        ("新闻 体育 财经 娱乐 科技 汽车 房产 教育", Rules(min_characters=5), "min_punctuation"),
        ("你，，，。。。！！！好？", LOOSE, "max_punctuation"),
        ("哈哈哈哈哈哈，好笑。", LOOSE, "max_common_character"),
        ("点击这里看更多精彩内容。\n" * 3, LOOSE, "max_repeated_lines"),
        (TEXT[:20] * 3, Rules(min_characters=1, max_repeated_lines=1), "max_repeated_ngrams"),
        (TEXT, Rules(min_characters=1, blocked=("风筝",)), "blocked"),
        ("", LOOSE, None),
    ],
)
def test_rules(text: str, rules: Rules, broken: str | None) -> None:
    assert broken_rule(text, rules) == broken


def test_words() -> None:
    assert words("WeLM是一个model2，いろ 한국!") == [*("WeLM", "是", "一", "个", "model2"), *"いろ한국"]


def test_files_of_all_kinds(tmp_path: Path) -> None:
    text = "一。\n二。\n\n\n三。\n"
    (tmp_path / "a.txt").write_text(text, "utf-8")
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(text.encode()))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.txt", "a.txt.xz", "a.txt.gz"):
        assert list(texts_of(tmp_path / name, "text")) == ["一。\n二。", "三。"]
    write_lines(tmp_path / "a.jsonl", ["一", "二"])
    assert list(texts_of(tmp_path / "a.jsonl", "text")) == ["一", "二"]
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"body": ["一", "二"]}), tmp_path / "a.parquet")
    assert list(texts_of(tmp_path / "a.parquet", "body")) == ["一", "二"]
    with pytest.raises(RecipeError, match="expected a column text, got body"):
        list(texts_of(tmp_path / "a.parquet", "text"))


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a.jsonl:2: expected JSON"),
        ("a.jsonl", b'{"txt": "x"}\n', r"a.jsonl:1: expected a text in the field text"),
        ("a.jsonl", b"[]\n", r"a.jsonl:1: expected a text in the field text"),
        ("a.txt", b"abc\xff\xfe", r"a.txt: expected UTF-8"),
        ("a.txt.xz", b"no xz", r"a.txt.xz: cannot be read"),
        ("a.txt.gz", gzip.compress(b"x" * 1000)[:-9], r"a.txt.gz: cannot be read"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RecipeError, match=told):
        list(texts_of(tmp_path / name, "text"))


def test_weights() -> None:
    texts = [f"文{i}" for i in range(2000)]
    counts = [times(text, 1.25) for text in texts]
    assert {*counts} == {1, 2}
    assert abs(sum(counts) / len(texts) - 1.25) < 0.03
    assert sum(times(text, 0.0) for text in texts) == 0


def test_duplicates_and_contamination(folder: Path) -> None:
    recipes = documents("recipes")[:40]
    twin = recipes[0].replace("咖喱", "加里")  # nearly the same
    leaked = f"{TEXT}\n" + "这是别的内容，与评测无关，只是为了让文章长一些而写的几句话。"
    write_lines(folder / "recipes.jsonl", [*recipes, recipes[5], twin, leaked])
    (folder / "eval" / "task").mkdir(parents=True)
    (folder / "eval" / "task" / "test.jsonl").write_text(
        json.dumps({"q": ["短", {"text": TEXT[3:33]}], "n": 3}, ensure_ascii=False) + "\n\n", "utf-8"
    )
    recipe = made(
        folder,
        corpus={**_corpus(folder), "contamination": {"files": [str(folder / "eval" / "**" / "*.jsonl")]}},
    )
    welm.train.run("corpus", recipe)
    out = recipe.out / "corpus"
    left = json.loads((out / "report.json").read_text("utf-8"))["sources"]["recipes"]
    assert [left[state][0] for state in ("read", "rules", "exact", "near", "contamination")] == [
        *(43, 43, 42, 41),
        40,
    ]
    kept = [text for part in ("train", "heldout") for text in kept_of(out, part, "recipes")]
    assert len({*kept} & {*recipes}) >= 39  # of two that are nearly the same either may stay
    assert leaked not in kept
    assert list(kept_of(out, "heldout", "poems"))
    page = (out / "report.md").read_text("utf-8")
    assert "| text of evaluation sets |" in page
    assert re.search(r"\*\*text of evaluation sets, contaminated\*\*: 1 documents", page)
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")


def _corpus(folder: Path) -> dict[str, Any]:
    return made(folder).corpus.model_dump(mode="json", exclude_none=True)


def test_the_classifier_learns(folder: Path) -> None:
    mixed = documents("recipes")[:100]
    write_lines(folder / "mixed.jsonl", [*mixed[60:], *documents("poems")[300:340]])
    corpus = _corpus(folder)
    for source in corpus["sources"]:
        source["quality"] = False
    corpus["sources"].append({"name": "mixed", "files": [str(folder / "mixed.jsonl")], "licence": "MIT"})
    recipe = made(folder, corpus={**corpus, "quality": {"good": ["recipes"], "bad": ["poems"], "epochs": 50}})
    welm.train.run("corpus", recipe)
    out = recipe.out / "corpus"
    report = json.loads((out / "report.json").read_text("utf-8"))
    for name, tested in report["quality"]["tested"].items():
        assert report["quality"]["right"][name] >= 0.9 * tested
    kept = {text for part in ("train", "heldout") for text in kept_of(out, part, "mixed")}
    assert len(kept & {*mixed}) >= 0.9 * len(mixed[60:])
    assert len(kept - {*mixed}) <= 4  # of forty poems
    assert report["reasons"]["quality"]["quality"] >= 36


def test_twice_gives_the_same_bytes_however_it_is_run(folder: Path) -> None:
    found = []
    for number, executor in enumerate(
        ({}, {"workers": 2}, {"kind": "ray", "address": "local", "workers": 2})
    ):
        recipe = made(folder, out=str(folder / f"out{number}"), executor={"tasks": 2, **executor})
        welm.train.run("corpus", recipe)
        out = recipe.out / "corpus"
        reports = {name: (out / name).read_bytes() for name in ("report.json", "report.md", "report.png")}
        found.append((bytes_of(out / "train"), bytes_of(out / "heldout"), reports))
    assert found[0] == found[1]
    assert found[0] == found[2]
    assert len(found[0][0]) == len(found[0][1]) == 2


def test_a_stage_that_fails_is_told_and_the_rest_goes_on(folder: Path) -> None:
    recipe = made(folder)
    with open(folder / "recipes.jsonl", "a") as file:
        file.write("{\n")
    with pytest.raises(RecipeError, match=r"recipes.jsonl:61: expected JSON"):
        welm.train.run("corpus", recipe)
    write_lines(folder / "recipes.jsonl", documents("recipes")[:60])
    welm.train.run("corpus", recipe)
    done = (recipe.out / "corpus" / "done").stat().st_mtime_ns
    welm.train.run("corpus", recipe)  # nothing to do
    assert (recipe.out / "corpus" / "done").stat().st_mtime_ns == done
    write_lines(folder / "recipes.jsonl", documents("recipes")[:59])
    welm.train.run("corpus", recipe)  # another file: done anew
    assert (recipe.out / "corpus" / "done").stat().st_mtime_ns > done


def test_a_missing_file(folder: Path) -> None:
    (folder / "poems.jsonl").unlink()
    with pytest.raises(RecipeError, match=r"poems.jsonl: no such file"):
        welm.train.run("corpus", made(folder))


def test_only_what_a_step_has_made_is_replaced(folder: Path) -> None:
    recipe = made(folder)
    (recipe.out / "corpus").mkdir(parents=True)
    (recipe.out / "corpus" / "mine.txt").write_text("x", "utf-8")
    with pytest.raises(RecipeError, match="expected an empty folder, or one that this step has made"):
        welm.train.run("corpus", recipe)
    (recipe.out / "corpus" / "mine.txt").unlink()
    welm.train.run("corpus", recipe)
    before = bytes_of(recipe.out / "corpus" / "train")
    welm.train.run("corpus", made(folder, corpus={**_corpus(folder), "heldout": 0.2}))
    assert bytes_of(recipe.out / "corpus.1" / "train") == before
    assert bytes_of(recipe.out / "corpus" / "train") != before


def test_a_step_that_could_not_begin_goes_on(folder: Path) -> None:
    """The disk was full when it had written one of its own files."""
    recipe = made(folder)
    (recipe.out / "corpus").mkdir(parents=True)
    (recipe.out / "corpus" / "settings.json.part").write_text("{", "utf-8")
    welm.train.run("corpus", recipe)
    assert (recipe.out / "corpus" / "done").exists()


def test_nothing_is_left(folder: Path) -> None:
    recipe = made(folder, corpus={**_corpus(folder), "rules": {"min_characters": 10_000}})
    with pytest.raises(RecipeError, match=r"no document is left after the stage rules; .*removed/rules has"):
        welm.train.run("corpus", recipe)


def test_a_file_that_moved_to_another_source(folder: Path) -> None:
    write_lines(folder / "more.jsonl", documents("recipes")[60:70])
    poems, recipes, more = (str(folder / f"{name}.jsonl") for name in ("poems", "recipes", "more"))
    for files, of_recipes in (([poems, more], 60), ([poems], 70)):
        sources = [
            {"name": "poems", "files": files, "licence": "MIT"},
            {"name": "recipes", "files": [recipes, more][: 1 + (of_recipes == 70)], "licence": "MIT"},
        ]
        recipe = made(folder, corpus={"sources": sources})
        welm.train.run("corpus", recipe)
        report = json.loads((recipe.out / "corpus" / "report.json").read_text("utf-8"))
        assert report["sources"]["recipes"]["read"][0] == of_recipes


def test_folders_that_datatrove_would_misread(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"expected a folder without \*, \? and \["):
        welm.train.run("corpus", made(folder, out=str(folder / "out [2]")))
    (folder / "a [b].jsonl").write_bytes((folder / "poems.jsonl").read_bytes())
    assert files_of([folder / "a [b].jsonl"]) == [folder / "a [b].jsonl"]


def test_half_surrogates(folder: Path) -> None:
    texts = [f"{TEXT}\ud83d 很好。", TEXT + "一个完整的句子。"]
    (folder / "recipes.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8"
    )
    recipe = made(folder)
    welm.train.run("corpus", recipe)
    out = recipe.out / "corpus"
    assert [text for part in ("train", "heldout") for text in kept_of(out, part, "recipes")] == [texts[1]]
    assert json.loads((out / "report.json").read_text("utf-8"))["reasons"]["rules"]["max_broken"] == 1


def test_two_at_once(folder: Path) -> None:
    recipe = made(folder)
    with alone(recipe.out / "corpus"), pytest.raises(RecipeError, match="another process works on it"):
        welm.train.run("corpus", recipe)


def test_a_recipe_is_the_same_from_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(values(folder), folder / "recipe.toml")
    monkeypatch.chdir(folder)
    assert welm.train.read("recipe.toml") == welm.train.read(path)
