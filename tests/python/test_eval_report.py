"""Reports of runs, without lm-eval and matplotlib: tables, pages, errors. `tests/evaluation` has those with plots."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from welm.eval import EvalError, report_plots, write_report
from welm.eval.report_compare import difference
from welm.eval.report_page import Block, Sample, Table, Text, html, markdown
from welm.eval.report_runs import read_runs
from welm.eval.statistics import newcombe, wilson

if TYPE_CHECKING:
    from collections.abc import Sequence

CHOOSE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "candidates",
    "metadata": {"protocol": "options ranked by the perplexity of the whole text"},
}
WRITE = {
    "output_type": "generate_until",
    "metadata": {"protocol": "greedy, stopped at the end of the line"},
}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_plots, "available", lambda: False)


# Runs.


def write_run(folder: Path, tasks: dict[str, dict[str, Any]], **about: Any) -> Path:
    """A run. A task has `metrics`, the values of each question, and what else its configuration has."""
    folder.mkdir(parents=True)
    results: dict[str, Any] = {
        name: {} for name in ("results", "configs", "n-shot", "n-samples", "higher_is_better")
    }
    for name, task in tasks.items():
        metrics: dict[str, list[Any]] = task["metrics"]
        docs: list[dict[str, Any]] = task.get("docs") or [
            {"text": f"{name.partition('_')[0]} {number}", "candidates": list("abcd")}
            for number in range(len(next(iter(metrics.values()))))
        ]
        results["configs"][name] = task.get("config", CHOOSE)
        results["n-shot"][name] = task.get("shots", 0)
        results["n-samples"][name] = {"original": 999, "effective": len(docs)}
        results["higher_is_better"][name] = dict.fromkeys(metrics, True)
        values = {metric: task.get("value", float(np.mean(each))) for metric, each in metrics.items()}
        stderrs = {f"{metric}_stderr,none": 0.1 for metric in metrics}
        results["results"][name] = {"alias": name, **{f"{k},none": v for k, v in values.items()}, **stderrs}
        rows = [
            {
                "doc_id": number,
                "doc": doc,
                "arguments": {"gen_args_0": {}},
                "filter": "none",
                "doc_hash": hashlib.sha256(str(doc).encode()).hexdigest(),
                "prompt_hash": hashlib.sha256(f"{doc} {task.get('shots')}".encode()).hexdigest(),
                **{metric: each[number] for metric, each in metrics.items()},
            }
            for number, doc in enumerate(docs)
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"samples_{name}.jsonl").write_text(lines, "utf-8")
    results["results"]["all_of_them"] = {"alias": "all_of_them", "acc,none": 0.5}
    results["model_name"] = about.pop("model", "/models/small.gguf")
    settings = {"model": "abc", "tasks": list(tasks), "shots": 0, "limit": None, "chat": False}
    results["welm"] = {
        "backend": "cpu",
        "settings": {**settings, **about},
        "requests_computed": 1234,
        "requests_found": 0,
        "tokens": 5000,
        "seconds": 2.0,
        "tokens_per_second": 2500.0,
    }
    (folder / "results.json").write_text(json.dumps(results, ensure_ascii=False), "utf-8")
    return folder


def shares(right: int, total: int) -> list[float]:
    return [1.0] * right + [0.0] * (total - right)


def tables(text: str) -> dict[str, list[dict[str, str]]]:
    """The tables of a Markdown file, by caption."""
    found: dict[str, list[dict[str, str]]] = {}
    for caption, table in re.findall(r"\*\*(.+)\*\*\n\n((?:\|.*\n)+)", text):
        lines = [re.split(r" ?(?<!\\)\| ?", line[1:-1]) for line in table.splitlines()]
        head, _, *rows = [[cell.strip() for cell in line] for line in lines]
        found[caption] = [dict(zip(head, row, strict=True)) for row in rows]
    return found


def reported(out: Path, *runs: Path, **more: Any) -> dict[str, list[dict[str, str]]]:
    _, written = write_report(runs, out, **more)
    return tables(written.read_text("utf-8"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """C3 with three prompts, a task with other options for each question, and a generating one."""
    few = [{"text": str(number), "candidates": list("ab" if number % 2 else "abcd")} for number in range(80)]
    return write_run(
        tmp_path / "run",
        {
            "c3": {"metrics": {"acc": shares(70, 200), "acc_own": shares(90, 200)}},
            "c3_2": {"metrics": {"acc": shares(60, 200), "acc_own": shares(80, 200)}},
            "c3_3": {"metrics": {"acc": shares(40, 200), "acc_own": shares(80, 200)}},
            "chid": {"metrics": {"acc": shares(20, 80)}, "docs": few},
            "cmrc2018": {"metrics": {"em": shares(0, 50), "f1": [0.1, 0.2] * 25}, "config": WRITE},
        },
    )


def test_scores(run: Path, tmp_path: Path) -> None:
    found = reported(tmp_path / "out", run)
    (about,) = found["What was run"]
    assert (about["model"], about["requests"], about["tokens/s"]) == ("small.gguf", "1,234", "2,500")
    rows = found["Scores"]
    assert [(row["task"], row["prompt"], row["metric"]) for row in rows] == [
        ("c3", "1", "acc"),
        ("c3", "2", "acc"),
        ("c3", "3", "acc"),
        ("chid", "1", "acc"),
        ("cmrc2018", "1", "em"),
        ("cmrc2018", "1", "f1"),
    ]
    c3, _, _, chid, em, f1 = rows
    # scipy.stats.binomtest(70, 200).proportion_ci(method="wilson")
    assert (c3["score"], c3["95 % interval"], c3["by"]) == ("35.00", "28.73 to 41.84", "Wilson")
    assert (c3["questions"], c3["chance"], c3["over prompts"]) == ("200", "25.00", "20.00 to 35.00 (3)")
    assert [row["above chance"] for row in rows] == ["yes", "no", "no", "no, below", "", ""]
    assert chid["chance"] == "37.50", "the mean of 1/4 and 1/2"
    assert (em["95 % interval"], em["chance"]) == ("0.00 to 7.13", "")
    assert (f1["score"], f1["by"]) == ("15.00", "bootstrap")
    low, high = map(float, f1["95 % interval"].split(" to "))
    assert 13 < low < 14.2 < 15.8 < high < 17
    assert [row["metric"] for row in found["Scores by other rules"]] == ["acc_own"] * 3
    assert {row["run's tokens/s"] for row in rows} == {"2,500"}


def test_published_figures_say_what_differs(run: Path, tmp_path: Path) -> None:
    _, written = write_report([run], tmp_path / "out")
    text = written.read_text("utf-8")
    c3, chid, em, _ = tables(text)["Published figures beside ours"]
    few = "PanGu-alpha 13B, few, as printed in the paper"
    assert c3["ours (95 % interval)"] == "35.00 (28.73 to 41.84)"
    assert (c3["CPM 2.6B, 0 shots"], c3["PanGu-alpha 13B, 0 shots"]) == ("49.81", "54.47")
    assert c3[few] == r"54.58 \[a\]"
    assert "\n\\[a\\] examples in the prompt: few, as printed in the paper there, 0 here.\n" in text
    assert chid["CPM 2.6B, 0 shots"] == r"68.62 \[b\]"
    assert "\n\\[b\\] 10 options to choose from there, 3 on average here.\n" in text
    assert em["CPM 2.6B, 0 shots"] == r"0.59 \[c\]"
    assert em["protocol there"].startswith("sampled text")
    assert em["protocol here"] == "greedy, stopped at the end of the line"
    assert "\n\\[c\\] the text was sampled there" in text
    made_up = {**CHOOSE, "metadata": {**CHOOSE["metadata"], "data": "samples"}}  # type: ignore[dict-item]
    task = {"metrics": {"acc": shares(3, 10)}, "config": made_up}
    other = write_run(tmp_path / "other", {"c3": task}, chat=True, limit=10)
    _, written = write_report([other], tmp_path / "out")
    text = written.read_text("utf-8")
    for reason in (
        "made-up samples of the package",
        "chat template here",
        "all questions there, 10 at most here",
    ):
        assert reason in text
    (c3,) = tables(text)["Published figures beside ours"]
    assert c3["CPM 2.6B, 0 shots"] == r"49.81 \[a, b, c\]"


def test_several_runs(run: Path, tmp_path: Path) -> None:
    one = write_run(tmp_path / "a" / "x", {"c3": {"metrics": {"acc": shares(3, 10)}}})
    two = write_run(
        tmp_path / "b" / "x", {"c3": {"metrics": {"acc": shares(5, 10)}, "shots": 3}}, model="large"
    )
    found = reported(tmp_path / "out", one, two, run, one)
    assert [row["model"] for row in found["What was run"]] == ["small.gguf", "large", "small.gguf"]
    rows = [row for row in found["Scores"] if row["task"] == "c3"]
    assert [(row["run"], row["shots"]) for row in rows[:3]] == [
        (str(one), "0"),
        ("run", "0"),
        (str(two), "3"),
    ]


def test_metrics_that_the_samples_do_not_give(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"x": {"metrics": {"acc": shares(3, 10)}, "value": 0.4}})
    (row,) = reported(tmp_path / "out", folder)["Scores"]
    assert (row["score"], row["95 % interval"], row["above chance"]) == ("40.00", "", "")
    folder = write_run(tmp_path / "nan", {"x": {"metrics": {"ppl": [math.nan, 1.0]}, "value": math.nan}})
    (row,) = reported(tmp_path / "out", folder)["Scores"]
    assert (row["score"], row["95 % interval"]) == ("nan", "")


# Comparisons.


def test_comparisons(tmp_path: Path) -> None:
    right = ([1, 1, 1, 0, 0] * 20, [1, 1, 1, 1, 0] * 19 + [0, 1, 1, 0, 0])
    f1 = ([0.1 * (i % 7) for i in range(100)], [0.1 * (i % 7) + (0.2 if i % 3 else -0.1) for i in range(100)])
    runs = [
        write_run(
            tmp_path / name,
            {
                "c3": {"metrics": {"acc": right[at]}, "shots": at},
                "cmrc2018": {"metrics": {"f1": f1[at]}, "config": WRITE},
            }
            | ({"only": {"metrics": {"acc": [1, 0]}}} if at else {}),
        )
        for at, name in enumerate(("one", "two"))
    ]
    _, written = write_report([], tmp_path / "out", compare=(runs[0], runs[1]))
    text = written.read_text("utf-8")
    assert "## two compared with one\n" in text
    c3, cmrc = tables(text)["Differences"]
    assert (c3["first"], c3["second"], c3["difference"]) == ("60.00", "78.00", "+18.00")
    assert (c3["better"], c3["worse"], c3["test"], c3["p"]) == ("19", "1", "McNemar", "below 0.001")
    low, high = newcombe(59, 1, 19, 21)
    assert c3["95 % interval"] == f"{100 * low:.2f} to {100 * high:.2f}"
    assert (cmrc["better"], cmrc["worse"], cmrc["test"], cmrc["p"]) == (
        "66",
        "34",
        "permutation",
        "below 0.001",
    )
    assert cmrc["difference"] == "+9.80"
    assert "c3: the prompts of 100 of 100 questions differ, with 0 and 1 examples." in text
    assert "Only two has the tasks only; they are not compared." in text
    assert "2 of 2 differences have p below 0.05; of 2 tests of runs that do not differ, 0.1 would be" in text
    found = reported(tmp_path / "out", compare=(runs[1], runs[0]))["Differences"]
    assert (found[0]["difference"], found[0]["better"]) == ("-18.00", "1")


def test_lower_may_be_better(tmp_path: Path) -> None:
    each = ([3.0, 4.0, 5.0], [2.0, 5.0, 4.0])
    folders = [write_run(tmp_path / str(at), {"x": {"metrics": {"loss": each[at]}}}) for at in (0, 1)]
    for folder in folders:
        path = folder / "results.json"
        path.write_text(path.read_text().replace('{"loss": true}', '{"loss": false}'))
    first, second = (run.tasks["x"].scores["loss"] for run in read_runs(folders))
    found = difference(first, second)
    assert found is not None
    assert (found.better, found.worse) == (2, 1)
    assert found.value == pytest.approx(-1 / 3)


def test_questions_about_one_passage_are_drawn_together(tmp_path: Path) -> None:
    right = [1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    other = [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    docs = [{"context": f"text {number // 3}", "question": str(number)} for number in range(12)]
    alone = [{**doc, "context": f"text {number}"} for number, doc in enumerate(docs)]
    paths = [
        write_run(tmp_path / name, {"read": {"metrics": {"acc": values}, "docs": asked, "config": WRITE}})
        for name, values, asked in (
            ("first", right, docs),
            ("second", other, docs),
            ("apart", right, alone),
            ("later", other, alone),
        )
    ]
    first, second, apart, later = (run.tasks["read"] for run in read_runs(paths))
    assert first.scores["acc"].interval == wilson(2, 4)
    assert apart.scores["acc"].interval == wilson(6, 12)
    together = difference(first.scores["acc"], second.scores["acc"])
    independent = difference(apart.scores["acc"], later.scores["acc"])
    assert together
    assert independent
    assert (together.test, independent.test) == ("permutation", "McNemar")
    assert together.p == 1  # one passage of four changed
    assert together.interval == pytest.approx(newcombe(2, 0, 1, 1))
    assert independent.interval == newcombe(6, 0, 3, 3)
    assert (together.better, together.worse) == (3, 0)
    # Equal answers: nothing shows how passages differ.
    same = difference(first.scores["acc"], first.scores["acc"])
    assert same
    assert (same.value, same.interval, same.p) == (0, newcombe(6, 0, 0, 6), 1)
    # The other run does not say where the passages are.
    assert difference(first.scores["acc"], later.scores["acc"]) == together
    assert difference(apart.scores["acc"], second.scores["acc"]) == together
    # The first two passages alone, and one.
    assert first.only(range(6)).scores["acc"].interval == wilson(1, 2)
    before, after = (task.only(range(3, 5)).scores["acc"] for task in (first, second))
    assert before.interval == wilson(0, 1)
    assert difference(before, after)


def test_where_a_passage_stands(tmp_path: Path) -> None:
    """In the field that the metadata name, or in the usual ones; a question without it is about a text of its own."""
    docs: list[dict[str, Any]] = [
        {"article": "a", "choices": ["x", "y"], "context": ""},
        {"article": "a", "choices": ["x", "z"], "context": ""},
        {"article": "b", "choices": ["x", "y"], "context": ""},
        {"choices": []},
    ]
    for field, passages in (
        (None, (0, 0, 1, 2)),
        ("choices", (0, 1, 0, 2)),
        ("context", ()),
        ("nothing", ()),
    ):
        config = {**WRITE, "metadata": {"passage": field} if field else {}}
        task = {"metrics": {"f1": [0.2, 0.4, 0.9, 0.5]}, "docs": docs, "config": config}
        (run,) = read_runs([write_run(tmp_path / str(field), {"read": task})])
        sums = run.tasks["read"].scores["f1"].sums
        assert sums
        assert sums.passages == passages


def test_one_passage_gives_no_interval_of_a_graded_score(tmp_path: Path) -> None:
    docs = [{"context": "text", "question": str(number)} for number in range(3)]
    task = {"metrics": {"f1": [0.2, 0.5, 0.9]}, "docs": docs, "config": WRITE}
    (run,) = read_runs([write_run(tmp_path / "run", {"read": task})])
    score = run.tasks["read"].scores["f1"]
    assert score.interval is None
    assert difference(score, score) is None
    # Equal values, whose resampled means differ by rounding.
    for name, passages in (("equal", docs), ("apart", [{"context": str(number)} for number in range(3)])):
        same = {"metrics": {"f1": [0.1, 0.1, 0.1]}, "docs": passages, "config": WRITE}
        (run,) = read_runs([write_run(tmp_path / name, {"read": same})])
        assert run.tasks["read"].scores["f1"].interval is None


def test_a_run_that_has_more_questions(tmp_path: Path) -> None:
    """Those that both have are compared."""
    docs = [{"text": str(n), "candidates": list("ab" if n % 2 else "abcd")} for n in range(60)]
    right = [[1, 0, 0] * 20, [1, 1, 0] * 10]
    ones = [[0.5] * 60, [0.5, 1.0] * 15]
    folders = [
        write_run(
            tmp_path / name,
            {
                "c3": {"metrics": {"acc": right[at]}, "docs": docs[: len(right[at])]},
                "x": {"metrics": {"f1": ones[at]}, "docs": docs[: len(right[at])], "config": WRITE},
            },
        )
        for at, name in enumerate(("many", "few"))
    ]
    for order in (1, -1):
        found = reported(tmp_path / "out", compare=tuple(folders[::order]))["Differences"]
        c3, f1 = found
        assert (c3["questions"], f1["questions"]) == ("30", "30")
        values = (c3["first"], c3["second"])[::order]
        assert values == ("33.33", "66.67")
        assert {c3["better"], c3["worse"]} == {"10", "0"}
        assert (f1["first"], f1["second"])[::order] == ("50.00", "75.00")
    few = read_runs(folders)[0].tasks["c3"].only(range(0, 60, 2))
    assert (len(few.hashes), few.chance) == (30, 0.25)
    assert few.scores["acc"].value == pytest.approx(1 / 3)
    assert few.scores["acc"].interval == wilson(10, 30)


def test_other_questions_are_refused(tmp_path: Path) -> None:
    def folder(name: str, texts: Sequence[str], task: str = "c3") -> Path:
        docs = [{"text": text, "candidates": ["a", "b"]} for text in texts]
        return write_run(tmp_path / name, {task: {"metrics": {"acc": shares(1, len(docs))}, "docs": docs}})

    one = folder("one", "abcdef")
    changed, other = folder("changed", "abxdyf"), folder("other", "abcdef", "c4")
    for two, message in (
        (changed, "got 2 of 6 that differ, the first of them number 2; run both with the same --data"),
        (other, "expected tasks in common, got c3 and c4"),
    ):
        with pytest.raises(EvalError, match=re.escape(f"{one} and {two}: expected")) as error:
            write_report([], tmp_path / "out", compare=(one, two))
        assert message in str(error.value)
    assert not (tmp_path / "out").exists()


# Pages.

HOSTILE = '<script>alert(1)</script>|`x` & "y" \x07\ud800 [a](b) *c* $d$\n```\n# e'


class Reader(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_nothing_of_a_model_is_taken_for_a_tag() -> None:
    blocks: list[Block] = [Text(HOSTILE), Table(HOSTILE, [HOSTILE], [[HOSTILE]]), Sample(HOSTILE, HOSTILE)]
    page = html(HOSTILE, blocks)
    page.encode()
    reader = Reader(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert reader.text.count("<script>alert(1)</script>") == 8
    text = markdown(HOSTILE, blocks)
    text.encode()
    before, sample = text.split("````text\n")
    assert "<" not in before
    assert sample == HOSTILE.replace("\x07\ud800", "\ufffd\ufffd") + "\n````\n"
    rows = [line for line in before.splitlines() if line.startswith("| ") and "alert" in line]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [2, 2]


def test_markdown_that_looks_like_a_list_stays_a_paragraph() -> None:
    for text, expected in (
        ("1. x", r"1\. x"),
        ("- x", r"\- x"),
        ("# x", r"\# x"),
        ("a_b_c", "a_b_c"),
        ("_a_", r"\_a\_"),
    ):
        assert markdown("t", [Text(text)]) == f"# t\n\n{expected}\n"


def test_the_page_needs_nothing_else(run: Path, tmp_path: Path) -> None:
    written = write_report([run], tmp_path / "out")
    first = [path.read_bytes() for path in written]
    reader = Reader(first[0].decode())
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in reader.tags}
    assert all(not attributes.get("src") and not attributes.get("href") for _, attributes in reader.tags)
    assert 'There are no plots, because matplotlib is not installed: pip install "welm[eval]".' in reader.text
    assert [path.read_bytes() for path in write_report([run], tmp_path / "out")] == first
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html", "report.md"}
    assert str(tmp_path).encode() not in b"".join(first)


# Experiments.

EXPERIMENT: dict[str, Any] = {
    "name": "calibration",
    "title": "Does the <model> know?",
    "model": "/models/small.gguf",
    "arguments": {"limit": 20, "shots": None, "kind": "ask"},
    "text": ["First.", "Second & last."],
    "tables": [
        {
            "caption": "Error",
            "columns": ["by", "ece", "n"],
            "rows": [["asking", 0.123456, 20], ["no", None, 5]],
        }
    ],
    "plots": [
        {
            "caption": "P",
            "kind": "line",
            "x_label": "x",
            "y_label": "y",
            "diagonal": True,
            "series": [{"label": "a", "x": [0, 1], "y": [0, None]}],
        }
    ],
    "samples": [{"title": "One", "text": "问：<b>\n答：`x`"}],
}


def test_experiments(run: Path, tmp_path: Path) -> None:
    (run / "experiments").mkdir()
    for name in ("b", "a"):
        text = json.dumps({**EXPERIMENT, "title": f"{EXPERIMENT['title']} {name}"}, ensure_ascii=False)
        (run / "experiments" / f"{name}.json").write_text(text, "utf-8")
    page, written = write_report([run], tmp_path / "out")
    text = written.read_text("utf-8")
    assert text.index("know? a") < text.index("know? b")
    assert "Run run, model small.gguf; limit 20, shots , kind ask." in text
    first, second = tables(text)["Error"]
    assert first == {"by": "asking", "ece": "0.1235", "n": "20"}
    assert second == {"by": "no", "ece": "", "n": "5"}
    assert "```text\n问：<b>\n答：`x`\n```" in text
    assert "<h2>Does the &lt;model&gt; know? a</h2>" in page.read_text("utf-8")


def test_a_folder_of_experiments_only(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "only" / "experiments"
    (folder / "memory").mkdir(parents=True)
    (folder / "memory" / "requests.jsonl").write_text("")
    (folder / "x.json").write_text(json.dumps(EXPERIMENT))
    _, written = write_report([folder.parent], tmp_path / "out")
    text = written.read_text("utf-8")
    assert text.startswith("# Evaluation of small.gguf\n")
    assert "## Runs" not in text
    assert "The experiment memory of only is unfinished: the same command goes on with it." in text
    with pytest.raises(EvalError, match=r"expected tasks in common, got c3, .* and none"):
        write_report([], tmp_path / "out", compare=(run, folder.parent))
    assert reported(tmp_path / "out", folder.parent, run).keys() >= {"Error", "Scores"}
    (folder.parent / "requests.jsonl").write_text('{"settings": {}}\n')
    with pytest.raises(EvalError, match="is another's"):
        write_report([folder.parent], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": 5}, "title of the experiment: expected a text, got 5"),
        ({"text": "x"}, 'text of the experiment: expected a list, got "x"'),
        ({"tables": [{"columns": ["a"], "rows": [[1, 2]]}]}, "row 1 of table 1: expected 1 cells, got 2"),
        ({"tables": [5]}, "table 1: expected an object, got 5"),
        ({"plots": [{"kind": "pie"}]}, 'kind of plot 1: expected one of line, bar, scatter, got "pie"'),
        (
            {"plots": [{"kind": "line", "series": [{"x": [1], "y": []}]}]},
            "x and y of the same length, got 1 and 0",
        ),
        ({"plots": [{"kind": "line", "series": [{"x": ["a"], "y": [1]}]}]}, 'expected numbers, got "a"'),
        ({"samples": [{"title": "x"}]}, "sample 1: expected a field text, got none"),
    ],
)
def test_wrong_experiments(run: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = run / "experiments" / "x.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**EXPERIMENT, **change}))
    with pytest.raises(EvalError, match=re.escape(message)) as error:
        write_report([run], tmp_path / "out")
    assert str(error.value).startswith(f"{path}, ")


# Errors.


def test_folders_that_are_no_runs(run: Path, tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(EvalError, match=re.escape(message)):
            write_report([folder], tmp_path / "out")

    refused(tmp_path / "none", "none: expected the folder of a run, got no such folder")
    refused(run / "results.json", "results.json: expected the folder of a run, got a file")
    refused(
        tmp_path, f"{tmp_path}: expected the folder of a run of `welm eval`, got one without results.json"
    )
    samples = run / "samples_c3.jsonl"
    whole = samples.read_text("utf-8")
    samples.write_text("".join(whole.splitlines(True)[:-1]), "utf-8")
    refused(run, f"{samples}: expected 200 questions, as results.json says, got 199")
    samples.write_text(whole[: len(whole) // 2], "utf-8")
    refused(run, "expected a sample of lm-eval, got '{")
    for line in ("[]", "5", "{}", "x"):
        samples.write_text(f"{line}\n")
        refused(run, f"{samples}, line 1: expected a sample of lm-eval, got {line!r}")
    samples.write_bytes(b"\xff\n")
    refused(run, f"{samples}: expected UTF-8, got invalid start byte")
    samples.unlink()
    refused(run, f"{samples}: expected the samples of this run, got no such file")
    results = run / "results.json"
    for text, message in (
        ('{"results": \n', f"{results}: expected JSON, got Expecting value at line 2, column 1"),
        ("[]", f"{results}: expected a JSON object, got list"),
        ("{}", f"{results}: expected results of `welm eval`, with an object results, got none"),
        ('{"results": {}, "configs": {}, "n-shot": {}, "welm": 5}', "with an object welm, got int"),
        (
            '{"results": {}, "configs": {}, "n-shot": {}, "welm": {}}',
            "an object settings in welm, got NoneType",
        ),
        (
            '{"results": {}, "configs": {}, "n-shot": {}, "welm": {"settings": {}}}',
            "expected results of one task or more, got none",
        ),
    ):
        results.write_text(text)
        refused(run, message)
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    settings = {"tasks": ["c3", "a b"], "shots": 3, "limit": None, "chat": True, "data": "/some/data"}
    settings |= {"dtype": "int8", "context_tokens": 512, "device": "ray, auto", "max_length": 511}
    lines = [json.dumps({"settings": settings}), json.dumps({"key": "a"}), json.dumps({"key": "b"}), '{"key"']
    (tmp_path / "requests.jsonl").write_text("\n".join(lines))
    with pytest.raises(EvalError) as error:
        write_report([tmp_path], tmp_path / "out")
    assert str(error.value) == (
        f"{tmp_path}: this run is unfinished: 2 of its requests are there, and no results.json; "
        "`python -m welm eval MODEL --tasks 'c3,a b' --shots 3 --data /some/data --dtype int8 --context-tokens 512 "
        f"--chat --ray ADDRESS --out {tmp_path}` goes on with it, with the model that it was begun with"
    )
    (tmp_path / "requests.jsonl").write_text("{}\n")
    with pytest.raises(EvalError, match=r"got one whose requests\.jsonl is another's"):
        write_report([tmp_path], tmp_path / "out")


def command(*arguments: object, code: int = 0, **env: str) -> tuple[str, str]:
    line = [sys.executable, "-m", "welm", "report", *map(str, arguments)]
    done = subprocess.run(
        line, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_the_command(run: Path, tmp_path: Path) -> None:
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / "matplotlib.py").write_text(
        "raise ModuleNotFoundError('No module named matplotlib')"
    )
    python_path = f"{tmp_path / 'stubs'}:{os.environ.get('PYTHONPATH', '')}"
    out = tmp_path / "new" / "out"
    said, err = command(run, "--compare", run, run, "--out", out, PYTHONPATH=python_path)
    assert said == f"the report is in {out / 'report.html'}, its tables are in {out / 'report.md'}\n"
    assert err == 'there are no plots, because matplotlib is not installed: pip install "welm[eval]"\n'
    assert "## run compared with run" in (out / "report.md").read_text("utf-8")
    name = "python -m welm report"
    _, err = command("--out", out, code=2)
    assert (
        err == f"{name}: expected one run or more, or --compare RUN RUN ({name} --help tells the options)\n"
    )
    _, err = command(run, code=2)
    assert "the following arguments are required: --out" in err
    _, err = command(run, "--out", run / "results.json", code=1)
    assert err == f"python -m welm: {run / 'results.json'}: File exists\n"
    (tmp_path / "stubs" / "numpy.py").write_text("raise ModuleNotFoundError('No module named numpy')")
    _, err = command(run, "--out", out, code=1, PYTHONPATH=python_path)
    assert err == 'python -m welm: welm.eval needs numpy (No module named numpy): pip install "welm[eval]"\n'


def test_a_disk_that_is_full(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_report([run], tmp_path / "out")
    before = [path.read_bytes() for path in written]

    def full(path: Path, *_arguments: Any) -> None:
        path.write_bytes(b"<!DOC")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left") as error:
        write_report([run], tmp_path / "out")
    assert error.value.filename == str(written[0])
    assert [path.read_bytes() for path in written] == before
    assert len(list((tmp_path / "out").iterdir())) == 2
