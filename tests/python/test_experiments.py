"""``welm.eval.experiments``: the measures, and the experiments with the small model and the package's samples."""

from __future__ import annotations

import itertools
import json
import lzma
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import welm
from welm.eval.asking import Asker
from welm.eval.experiments import (
    NAMES,
    calibration,
    confidence,
    experiment,
    explanation,
    forms,
    memory,
    windows,
)
from welm.eval.experiments.confidence import Choice
from welm.eval.experiments.forms import END, VERDICT
from welm.eval.experiments.record import Table
from welm.eval.experiments.texts import Texts, common
from welm.eval.experiments.windows import Counts, Tokens
from welm.eval.journal import NAME, EvalError
from welm.eval.requests import COUNTED, Answer, Request, compute
from welm.eval.statistics import mcnemar_of, wilson
from welm.eval.tasks.sources import SOURCES

from conftest import PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence

TASKS = list(forms.forms())


# Measures.


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # R. G. Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)
    assert wilson(total - right, total) == pytest.approx((1 - high, 1 - low), abs=5e-5)
    assert wilson(0, 0) == (0, 1)


def test_mcnemar_is_the_share_of_all_ways_to_swap_the_answers() -> None:
    source = random.Random(0)
    for _ in range(20):
        pairs = [(source.random() < 0.5, source.random() < 0.7) for _ in range(9)]
        differences = [after - before for before, after in pairs]
        swaps = itertools.product((1, -1), repeat=9)
        at_least = [abs(sum(s * d for s, d in zip(swap, differences, strict=True))) for swap in swaps]
        expected = sum(value >= abs(sum(differences)) for value in at_least) / 2**9
        assert mcnemar_of(*zip(*pairs, strict=True)) == pytest.approx(expected)
    assert mcnemar_of([True] * 9 + [False], [False] * 9 + [True]) == pytest.approx(22 / 1024)
    assert mcnemar_of([False] * 3000, [True] * 3000) < 1e-300


def test_calibration_errors() -> None:
    # The documented example of torchmetrics' BinaryCalibrationError.
    values, right = [0.25, 0.25, 0.55, 0.75, 0.75], [False, False, True, True, True]
    assert confidence.ece(values, right, 2) == pytest.approx(0.29)
    found = confidence.reliability(values, right, 2)
    assert [b.size for b in found] == [2, 3]
    assert max(abs(b.accuracy - b.confidence) for b in found) == pytest.approx(0.3167, abs=5e-5)
    # Those of scikit-learn's brier_score_loss and roc_auc_score.
    assert confidence.brier([0.1, 0.9, 0.8, 0.3], [False, True, True, False]) == pytest.approx(0.0375)
    assert confidence.auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == pytest.approx(0.75)
    # The ends belong to the first and the last bin, and a border to the upper one.
    assert [b.size for b in confidence.reliability([0.0, 0.1, 1.0, 0.95], [True] * 4)] == [1, 1, 2]
    assert confidence.auroc([0.5, 0.5], [True, True]) is None


def test_measures_agree_with_their_definitions() -> None:
    source = random.Random(1)
    values = [source.randrange(101) / 100 for _ in range(300)]
    right = [source.random() < value**2 for value in values]
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, r in zip(values, right, strict=True)
        for b, s in zip(values, right, strict=True)
        if r and not s
    ]
    assert confidence.auroc(values, right) == pytest.approx(sum(pairs) / len(pairs))
    edges = np.arange(1, 10) / 10
    bins = np.digitize(np.array(values) + 1e-12, edges)
    gaps = [
        abs(np.mean(np.array(right)[bins == b]) - np.mean(np.array(values)[bins == b])) * np.sum(bins == b)
        for b in set(bins.tolist())
    ]
    assert confidence.ece(values, right) == pytest.approx(sum(gaps) / len(values))
    points = confidence.selective(values, right)
    assert len(points) == len(set(values))
    for coverage, accuracy in points:
        least = sorted(values, reverse=True)[round(coverage * len(values)) - 1]
        kept = [r for value, r in zip(values, right, strict=True) if value >= least]
        assert (coverage, accuracy) == (len(kept) / len(values), sum(kept) / len(kept))
    assert points[-1] == (1.0, sum(right) / len(right))


def test_the_temperature_has_the_least_loss() -> None:
    # Of two options whose logits differ by 3 the first is right in 3 of 4 cases: 3 / T = log 3.
    known = [Choice([3.0, 0.0], 0, gold) for gold in (0, 0, 0, 1)]
    assert confidence.fitted_temperature(known) == pytest.approx(3 / math.log(3))
    assert known[0].confidence(3 / math.log(3)) == pytest.approx(0.75)
    source = np.random.default_rng(0)
    logits = source.normal(0, 4, (200, 5))
    gold = [int(source.choice(5, p=confidence.softmax(row.tolist(), 2.5))) for row in logits]
    choices = [
        Choice(row.tolist(), int(row.argmax()), right) for row, right in zip(logits, gold, strict=True)
    ]

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        logs = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
        return -float(logs[np.arange(200), gold].sum())

    fitted = confidence.fitted_temperature(choices)
    assert min(np.arange(0.5, 6, 0.001), key=loss) == pytest.approx(fitted, abs=1e-3)
    assert fitted == pytest.approx(2.5, rel=0.3)
    # There is no least value: it becomes as small as makes a difference, or as large as is allowed.
    assert 0.01 <= confidence.fitted_temperature([Choice([3.0, 0.0], 0, 0)]) < 0.1
    assert confidence.fitted_temperature([Choice([3.0, 0.0], 0, 1)]) == pytest.approx(100)


def test_halves() -> None:
    dev, test = confidence.halves(11, 5)
    assert (len(dev), len(test)) == (5, 6)
    assert sorted(dev + test) == list(range(11))
    assert (dev, test) == confidence.halves(11, 5) != confidence.halves(11, 6)


def test_a_probability_and_its_opposite() -> None:
    for p in (1e-12, 0.1, 0.5, 0.999):
        assert confidence.softmax(calibration.sure(math.log(p))) == pytest.approx([p, 1 - p])
    assert all(map(math.isfinite, calibration.sure(0.0)))
    assert calibration.together([math.log(0.25), math.log(0.5)]) == pytest.approx(math.log(0.75))


def test_an_answer_with_a_word_more_is_right() -> None:
    form = forms.forms()["cmrc2018"]
    doc = {"answers": ["伊藤助太夫", "助太夫"]}
    answers = [
        "伊藤助太夫",
        "伊藤助太夫的帮助",
        "太夫",
        "“助太夫”。",
        "伊藤",
        "",
        "在伊藤助太夫的帮助下才完成",
    ]
    assert [form.is_right(doc, answer) for answer in answers] == [True, True, True, True, True, False, True]
    for year in ("1998年", "199"):
        assert form.is_right({"answers": ["1997年"]}, year) == (year == "199")


def test_grounds_are_an_explanation_without_its_conclusion() -> None:
    assert explanation.grounds("前提说车锁在楼下，所以假设是真的。") == "前提说车锁在楼下"
    assert explanation.grounds("可见他没有带伞，所以等雨停。") == ""
    assert explanation.grounds("文章说影片在云南拍摄。") == "文章说影片在云南拍摄"


def test_proxies_of_explanations() -> None:
    # 前提说车锁在楼下 has the pairs 前提 提说 说车 车锁 锁在 在楼 楼下; of these 锁在, 在楼, 楼下 are evidence.
    reason, passage, rest = "前提说车，锁在楼下。", "他把自行车停好锁在楼下", "车锁了吗"
    assert explanation.runs(reason) == ["前提", "提说", "说车", "车锁", "锁在", "在楼", "楼下"]
    assert explanation.evidence(reason, passage, rest) == pytest.approx(3 / 7)
    assert explanation.evidence(reason, passage, rest + "锁在") == pytest.approx(2 / 7)
    assert explanation.evidence(reason, passage, rest, 4) == pytest.approx(1 / 5)
    assert explanation.evidence("", passage, rest) == 0
    # 好好好好好好: three runs of four, all the same.
    assert explanation.repetition("好好，好好好好。") == pytest.approx(2 / 3)
    assert explanation.repetition("甲乙丙丁戊") == explanation.repetition("甲") == 0
    assert explanation.alike("甲乙丙", "乙丙丁") == pytest.approx(1 / 3)
    assert explanation.alike("", "") == 1


# Questions.


@pytest.mark.parametrize("name", TASKS)
def test_examples(name: str) -> None:
    form = forms.forms()[name]
    assert name in SOURCES
    assert 3 <= len(form.examples) <= 6
    for example in form.examples:
        right, wrong = form.right_answer(example), form.wrong_answer(example)
        assert form.is_right(example, right)
        assert not form.is_right(example, wrong)
        assert "{" not in form.ask(example)
        assert form.evidence_of(example) in form.ask(example)
        assert explanation.evidence(example["explanation"], form.evidence_of(example), "") > 0.1
    if options := form.options_of(form.examples[0]):
        assert len({example["gold"] for example in form.examples}) == len(options)
    for document in forms.read([name], "samples", 3, [], [])[0][1]:
        assert form.ask(document) not in form.shown("answer")


def test_the_shapes_of_examples() -> None:
    form = forms.Form("x", "", "问{q}", ["q"], ["子", "丑"], [
        {"q": "一", "gold": 0, "explanation": "甲"},
        {"q": "二", "gold": 1, "explanation": "乙"},
    ])  # fmt: skip
    assert form.shown("answer") == "问一\n答：子\n\n问二\n答：丑\n\n"
    assert form.shown("answer, reason") == "问一\n答：子\n理由：甲\n\n问二\n答：丑\n理由：乙\n\n"
    assert form.shown("reason, answer") == "问一\n理由：甲\n答：子\n\n问二\n理由：乙\n答：丑\n\n"
    expected = "问一\n答：子\n这个答案对吗？对\n\n问二\n答：子\n这个答案对吗？错\n正确答案：丑\n\n"
    assert form.shown("answer, verdict") == expected


def texts_of(model: welm.Model) -> Texts:
    return Texts(model, Asker(model))


def test_log_probabilities_of_answers(model: welm.Model) -> None:
    texts = texts_of(model)
    asked = [(PROMPT, ["疑是地上霜。", "疑", "春"]), ("白日依山尽，", ["黄河入海流"])]
    found = texts.logprobs("", asked)
    for (text, answers), values in zip(asked, found, strict=True):
        for answer, value in zip(answers, values, strict=True):
            assert value == pytest.approx(model.score(text, [answer])[0].logprob, abs=1e-3)
    assert texts.remarks() == []
    # Too long: the beginning is lost, the same for all answers.
    long = model.tokenize(PROMPT * 300)
    (values,) = texts.logprobs("", [(PROMPT * 300, ["疑是地上霜。", "春"])])
    room = texts.room - len(model.tokenize("疑是地上霜。"))
    assert values[1] == model.score(array("I", long[-room:]), [array("I", model.tokenize("春"))])[0].logprob
    assert texts.shortened == 1
    assert "1 of the prompts were longer" in texts.remarks()[0]


def test_a_token_over_the_border_counts_to_the_answer() -> None:
    """A tokenizer that joins the end of a text and the beginning of an answer."""

    class Joining:
        memory = type("Memory", (), {"context_tokens": 50, "cache_tokens": 50})

        def tokenize(self, text: str) -> list[int]:
            return [ord(c) for c in text.replace("：对", "@")]

        def generate(self, text: str, **_: Any) -> Any:
            token = type("Token", (), {"id": ord("a")})
            return type("G", (), {"choices": [type("C", (), {"tokens": [token]})]})

    asked: list[Request] = []

    def runner(requests: Sequence[Request], finish: Any) -> None:
        asked.extend(requests)
        for index in range(len(requests)):
            finish(index, Answer([-float(index), True], 1))

    joining: Any = Joining()
    values = Texts(joining, Asker(joining, runner=runner)).logprobs("", [("答：", ["对", "错"])])
    assert values == [[0.0, -1.0]]
    assert [(list(r.prompt), list(r.continuation or ())) for r in asked] == [
        ([ord("答")], [ord("@")]),
        ([ord("答")], [ord("："), ord("错")]),
    ]


class Knowing(Texts):
    """A model that gives the right answer to every second question, and always knows whether it did."""

    def __init__(self, form: forms.Form, docs: list[dict[str, Any]]) -> None:
        self.form = form
        self.shortened = 0
        self.right = {form.ask(doc): form.right_answer(doc) for doc in docs}
        self.known = {form.ask(doc) for doc in docs[::2]}

    def asked(self, text: str) -> tuple[str, str]:
        """The question, and what stands after it."""
        (question,) = [each for each in self.right if each in text.rpartition(END)[2]]
        return question, text.rpartition(question)[2]

    def answer(self, text: str) -> str:
        question, after = self.asked(text)
        right = self.right[question]
        if question in self.known or VERDICT in after:
            return right
        options = self.form.options_of(
            {**self.form.examples[0], "candidates": question.split("选项：")[-1].split("；")}
        )
        return next((o for o in options if o != right), "别的")

    def logprobs(self, what: str, asked: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        found: list[list[float]] = []
        for text, answers in asked:
            question, after = self.asked(text)
            if answers[0] == "对":
                is_right = f"答：{self.right[question]}\n" in after
                found.append([-0.5 if is_right == (word in "对是") else -3.0 for word in answers])
            elif "理由：" in after:  # it agrees with what the explanation says
                found.append([-1.0 if f"因为{answer.strip()}\n" in after else -2.0 for answer in answers])
            else:
                found.append([-1.0 if answer.strip() == self.answer(text) else -2.0 for answer in answers])
        return found

    def continuations(
        self, what: str, asked: Sequence[str], max_tokens: int, stop: Sequence[str] = ("\n",)
    ) -> list[str]:
        return [
            f"因为{text.rpartition('答：')[2].split(chr(10))[0]}"
            if text.endswith("理由：")
            else self.answer(text)
            for text in asked
        ]


def rows(table: Table) -> list[dict[str, Any]]:
    return rows_of({"columns": table.columns, "rows": table.rows})


def rows_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_knows_when_it_is_right(name: str) -> None:
    ((form, docs),) = forms.read([name], "samples", None, [], [])
    record = calibration.run(Knowing(form, docs), [(form, docs)])
    measured, _, changes = map(rows, record.tables)
    by = {row["signal"]: row for row in measured}
    assert by["verdict"]["accuracy"] == 0.5
    assert by["verdict"]["AUROC"] == 1
    sure = math.exp(-0.5) / (math.exp(-0.5) + math.exp(-3))
    assert by["verdict"]["ECE"] == pytest.approx(1 - sure)
    assert by["verdict"]["Brier"] == pytest.approx((1 - sure) ** 2)
    (change,) = changes
    assert (change["called wrong"], change["of these wrong"]) == (len(docs) // 2, 1)
    assert (change["accuracy before"], change["after"]) == (0.5, 1)
    assert change["p"] == pytest.approx(2 / 2 ** (len(docs) // 2))
    if form.options is None:
        assert by["answer"]["mean confidence"] == pytest.approx(math.exp(-1))


@pytest.mark.parametrize("name", TASKS)
def test_a_model_that_agrees_with_whatever_it_says(name: str) -> None:
    ((form, docs),) = forms.read([name], "samples", None, [], [])
    record = explanation.run(Knowing(form, docs), [(form, docs)])
    (scores,), quality, (flipped,) = map(rows, record.tables)
    assert (scores["without"], scores["with"], scores["difference"], scores["p"]) == (0.5, 0.5, 0, 1)
    assert quality[0]["explanations"] == len(form.examples)
    assert quality[1]["explanations"] == len(docs)
    assert (quality[1]["empty"], quality[1]["copied"]) == (0, 0)
    assert (flipped["keeps its own"], flipped["agrees with the other"]) == (1, 1)
    assert flipped["keeps, grounds"] + flipped["agrees, grounds"] > 0
    assert flipped["by chance"] > 0


# Memory.


def test_windows_are_counted_exactly() -> None:
    source = random.Random(0)
    documents = [[source.randrange(3) for _ in range(source.randrange(40))] for _ in range(60)]
    tokens = Tokens.of(map(str, range(60)), lambda number: documents[int(number)])
    for length in (1, 2, 3, 4, 5, 7, 8, 11, 13):
        counted = Counter(
            tuple(ids[at : at + length]) for ids in documents for at in range(len(ids) - length + 1)
        )
        counts = Counts(tokens, length)
        for least, most in ((1, 1), (2, 3), (4, None)):
            found = counts.choose(least, most, 1000, "x")
            assert found == counts.choose(least, most, 1000, "x")
            for each in found:
                assert counted[tuple(tokens.window(each.start, length))] == each.times
                assert least <= each.times <= (most or 10**9)
            wanted = [window for window, times in counted.items() if least <= times <= (most or 10**9)]
            assert bool(found) == bool(wanted)
            starts = sorted(each.start for each in found)
            assert all(after - before >= length for before, after in itertools.pairwise(starts))
    other = Tokens.of("ab", lambda name: [0, 1, 2, 0, 1] * 4 if name == "a" else [2] * 5)
    new = Counts(other, 8).choose_new(Counts(tokens, 8), 100, "x")
    eight = {tuple(ids[at : at + 8]) for ids in documents for at in range(len(ids) - 7)}
    assert new
    assert not {tuple(other.window(each.start, 8)) for each in new} & eight
    assert len(windows.hashes(other.ids[:3], 4)) == 0


def test_tokens_that_are_counted_are_those_of_greedy_decoding(model: welm.Model) -> None:
    source = random.Random(0)
    starts = [model.tokenize(line) for line in ("白日依山尽，", "《春晓》\n", PROMPT)]
    todo, expected = [], []
    for start in starts:
        greedy = [t.id for t in model.generate(start, max_tokens=32, temperature=0).choices[0].tokens][:20]
        for same in (0, 1, 7, len(greedy)):
            text = greedy[:same] + [(token + 1) % 7000 for token in greedy[same:]]
            todo.append(Request(array("I", start), array("I", text), COUNTED))
            expected.append(same)
    order = source.sample(range(len(todo)), len(todo))
    answers: dict[int, Answer] = {}
    compute(model, [todo[at] for at in order], answers.__setitem__)
    assert [answers[order.index(at)].result[2] for at in range(len(todo))] == expected
    assert all(
        answers[at].result[1] == (expected[order[at]] == len(todo[order[at]].continuation or ()))
        for at in answers
    )


# Whole experiments.


def poems(model: welm.Model) -> tuple[str, str]:
    """A corpus with a text that occurs four times, which the model continues exactly; and other texts."""
    start = model.tokenize(PROMPT)
    greedy = (
        model.generate(start, max_tokens=40 - len(start), temperature=0, ignore_eos=True).choices[0].tokens
    )
    ids = [*start, *(token.id for token in greedy)]
    known = model.detokenize(ids)
    assert (model.tokenize(known), "\n\n" in known) == (ids, False)
    source = random.Random(0)
    letters = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏"
    one, two = ("\n\n".join("".join(source.choices(letters, k=90)) for _ in range(6)) for _ in range(2))
    return f"{one}\n\n" + f"{known}\n\n" * 4, two


@pytest.fixture(scope="module")
def arguments(model: welm.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Arguments of each experiment."""
    folder = tmp_path_factory.mktemp("texts")
    corpus, control = poems(model)
    (folder / "corpus.txt").write_text(corpus, "utf-8")
    (folder / "control.txt.xz").write_bytes(lzma.compress(control.encode()))
    texts = {"corpus": [folder / "corpus.txt"], "control": [folder / "control.txt.xz"], "limit": 3}
    asked = {"data": "samples", "limit": 2, "tasks": ["ocnli", "cmrc2018"]}
    return {"memory": texts, "explanation": asked, "calibration": asked}


@pytest.fixture(scope="module", params=NAMES)
def whole(
    request: pytest.FixtureRequest, arguments: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any], Path]:
    """An experiment that nothing disturbed: its name, what was found, its folder."""
    name, out = request.param, tmp_path_factory.mktemp("whole")
    return name, experiment(name, out=out, threads=1, **arguments[name]), out


def outcome(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("welm", "arguments")}


def test_records_have_the_form_that_reports_show(whole: tuple[str, dict[str, Any], Path]) -> None:
    name, found, out = whole
    assert json.loads((out / f"experiments/{name}.json").read_text("utf-8")) == json.loads(json.dumps(found))
    assert sorted(path.name for path in (out / "experiments").iterdir()) == sorted([name, f"{name}.json"])
    assert (found["name"], found["model"]) == (name, welm.NANO)
    assert found["title"].endswith("?")
    assert all(isinstance(text, str) for text in found["text"])
    assert found["tables"] and found["plots"] and found["samples"]  # noqa: PT018
    for table in found["tables"]:
        assert set(table) == {"caption", "columns", "rows"}
        assert table["rows"]
        for row in table["rows"]:
            assert len(row) == len(table["columns"])
            assert all(cell is None or isinstance(cell, str | int | float) for cell in row)
    for plot in found["plots"]:
        assert set(plot) == {"caption", "kind", "x_label", "y_label", "series", "diagonal"}
        assert all(len(series["x"]) == len(series["y"]) > 0 for series in plot["series"])
    assert all(set(sample) == {"title", "text"} for sample in found["samples"])
    assert not any(
        math.isnan(cell)
        for t in found["tables"]
        for row in t["rows"]
        for cell in row
        if isinstance(cell, float)
    )


def test_an_experiment_goes_on_where_it_was(
    whole: tuple[str, dict[str, Any], Path], arguments: dict[str, Any], tmp_path: Path
) -> None:
    name, found, out = whole
    again = experiment(name, out=out, threads=1, **arguments[name])
    assert again["welm"]["requests_computed"] == 0
    assert outcome(again) == outcome(found)
    file = out / "experiments" / name / NAME
    (tmp_path / "experiments" / name).mkdir(parents=True)
    kept = file.read_bytes().splitlines(True)[:8]
    (tmp_path / "experiments" / name / NAME).write_bytes(b"".join(kept) + b'{"key"')
    more = experiment(name, out=tmp_path, threads=1, max_running=2, **arguments[name])
    assert outcome(more) == outcome(found)
    assert more["welm"]["requests_found"] >= 7
    with pytest.raises(EvalError, match='begun with dtype none, got "f32"; give another folder'):
        experiment(name, out=out, dtype="f32", **arguments[name])


def test_memory_finds_what_the_model_knows(
    model: welm.Model, arguments: dict[str, Any], tmp_path: Path
) -> None:
    given = arguments["memory"]
    found = experiment("memory", out=tmp_path, threads=1, **given)
    (table,) = map(rows_of, found["tables"])
    by = {(row["beginning"], row["repetitions"]): row for row in table}
    assert set(by) == {(8, "3–9"), *((length, r) for length in (8, 16, 32) for r in ("1", "control"))}
    assert (by[8, "3–9"]["exact tokens"], by[8, "3–9"]["exact 32"]) == (32, 1)
    # The same by generating.
    corpus, control = (
        Tokens.of(windows.documents(given[name][0]), model.tokenize) for name in ("corpus", "control")
    )
    for kind in memory.chosen(corpus, control, 511, 3):
        exact: list[int] = []
        for window in kind.windows:
            begin, text = window[: kind.length], window[kind.length :]
            greedy = [t.id for t in model.generate(begin, max_tokens=32, temperature=0).choices[0].tokens]
            exact.append(common([greedy, text]))
        row = by[kind.length, kind.repetitions]
        assert (row["beginnings"], row["exact tokens"]) == (len(exact), sum(exact) / len(exact))


def test_accuracy_is_that_of_the_likeliest_options(model: welm.Model, tmp_path: Path) -> None:
    """The model's answers, by another way through its API."""
    found = experiment("calibration", out=tmp_path, data="samples", tasks=["chnsenticorp"], threads=1)
    ((form, docs),) = forms.read(["chnsenticorp"], "samples", None, [], [])
    right, sure = [], []
    for doc in docs:
        context = model.tokenize(form.shown("answer") + form.ask(doc) + "\n答：")
        options = [model.tokenize(f"{option}\n\n") for option in ("满意", "不满意")]
        prompt = array("I", context[-(512 - max(map(len, options))) :])
        scores = [s.logprob for s in model.score(prompt, [array("I", o) for o in options])]
        right.append(scores.index(max(scores)) == doc["gold"])
        sure.append(1 / (1 + math.exp(min(scores) - max(scores))))
    row = rows_of(found["tables"][0])[0]
    assert (row["task"], row["signal"], row["questions"]) == ("chnsenticorp", "answer", 10)
    assert row["accuracy"] == sum(right) / 10
    assert row["mean confidence"] == pytest.approx(sum(sure) / 10, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("recall", {}, "expected an experiment of explanation, calibration, memory, got recall"),
        ("calibration", {"data": "samples", "tasks": ["c4"]}, "expected tasks of ocnli, .*, got c4"),
        ("calibration", {"data": "samples", "corpus": ["x"]}, "expected no corpus and no control"),
        ("memory", {"tasks": ["c3"]}, "expected no tasks"),
        ("memory", {}, r"expected --corpus FILE: text that the model was trained on\. .*Apache-2\.0"),
        ("memory", {"corpus": ["x"], "data": "D"}, "expected --control FILE, or D/memory/control.txt: "),
    ],
)
def test_wrong_arguments(name: str, given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=message):
        experiment(name, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_without_numpy_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("memory", "windows"):
        monkeypatch.delitem(sys.modules, f"welm.eval.experiments.{module}")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(EvalError, match=r'memory needs more \(.*numpy.*\): pip install "welm\[eval\]"'):
        experiment("memory", out=tmp_path)


@pytest.mark.parametrize("name", ["explanation", "calibration"])
def test_wrong_data(name: str, tmp_path: Path) -> None:
    with pytest.raises(EvalError) as error:
        experiment(name, out=tmp_path / "out", data=tmp_path, tasks=["c3"])
    for part in (f"{tmp_path}: expected c3/dev.jsonl", SOURCES["c3"].origin, SOURCES["c3"].licence):
        assert part in str(error.value)
    file = tmp_path / "c3/dev.jsonl"
    file.parent.mkdir()
    for content, message in (
        ("", "got an empty file"),
        (
            '{"context": ["a"], "choice": ["b", "c"], "answer": "b"}\n',
            ":1: field 'question': expected a text",
        ),
    ):
        file.write_text(content)
        with pytest.raises(EvalError, match=message):
            experiment(name, out=tmp_path / "out", data=tmp_path, tasks=["c3"])


def test_wrong_texts(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.txt", b"\n\n \n\n", "expected documents with empty lines between, got an empty file"),
        ("b.txt", b"\xff", "expected a text in UTF-8, got"),
        ("c.txt.xz", b"text", "expected a text in UTF-8, compressed by xz, got"),
        ("d.jsonl", b'{"body": "x"}', "d.jsonl:1: field 'text': expected a text that is not empty"),
        ("e.txt", "春眠不觉晓".encode(), "expected a corpus with documents of at least 40 tokens"),
    ):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(EvalError, match=message):
            experiment("memory", out=tmp_path / "out", corpus=[file], control=[file])
    with pytest.raises(FileNotFoundError):
        experiment("memory", out=tmp_path / "out", corpus=[tmp_path / "none"], control=[file])


# The command.


def command(*line: object) -> list[str]:
    return [sys.executable, "-m", "welm", "experiment", *map(str, line), "--threads", "1"]


def test_the_command(arguments: dict[str, Any], tmp_path: Path) -> None:
    files = arguments["memory"]
    line = command(
        "memory",
        "--out",
        tmp_path,
        "--limit",
        3,
        "--corpus",
        *files["corpus"],
        "--control",
        *files["control"],
    )
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "experiments/memory.json").read_text("utf-8"))
    lines = done.stdout.splitlines()
    assert lines[0] == found["tables"][0]["caption"]
    assert lines[1].split("  ")[0] == "beginning"
    assert len(lines) == len(found["tables"][0]["rows"]) + 4
    assert lines[-1].endswith(f"requests computed; results are in {tmp_path}/experiments/memory.json")
    for wrong, message in (
        (("recall", "--out", tmp_path), "expected explanation, calibration or memory"),
        (("memory",), "required: --out"),
        (("memory", "--out", tmp_path, "--limit", "0"), "--limit: expected 1 or more, got 0"),
    ):
        done = subprocess.run(command(*wrong), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2
        assert message in done.stderr
    done = subprocess.run(
        command("memory", "--out", tmp_path), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("python -m welm: memory: expected --corpus FILE")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_experiment_that_was_ended_goes_on(tmp_path: Path, number: int) -> None:
    line = command("calibration", "--data", "samples", "--tasks", "chnsenticorp,c3", "--out", tmp_path)
    file = tmp_path / "experiments/calibration" / NAME
    with subprocess.Popen([*line, "--max-running", "1"], stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not file.exists() or file.read_bytes().count(b"\n") < 5:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert err == f"what was finished is in {tmp_path}; the same command goes on with it\n"
    assert not (tmp_path / "experiments/calibration.json").exists()
    kept = file.read_bytes().count(b"\n") - 1
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f" requests computed, {kept} found" in done.stdout
    fresh = experiment(
        "calibration", out=tmp_path / "fresh", data="samples", tasks=["chnsenticorp", "c3"], threads=1
    )
    assert outcome(json.loads((tmp_path / "experiments/calibration.json").read_text("utf-8"))) == outcome(
        json.loads(json.dumps(fresh))
    )


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    def little() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    line = command("calibration", "--data", "samples", "--tasks", "chnsenticorp", "--out", tmp_path)
    file = tmp_path / "experiments/calibration" / NAME
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, preexec_fn=little)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"what was finished is in {tmp_path}; the same command goes on with it",
        f"python -m welm: {file}: File too large",
    ]
    kept = file.read_bytes().count(b"\n") - 1
    assert kept > 5
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert f" requests computed, {kept} found" in done.stdout
    assert sorted(os.listdir(tmp_path / "experiments")) == ["calibration", "calibration.json"]


def test_a_row_of_memory() -> None:
    row = memory.continued(memory.Kind(8, "1", []), [[-64.0, False, 16], [-32.0, True, 32]])
    assert row[:5] == [8, "1", 2, 24, 1.0]
    assert row[7] == 0.5
    assert row[10] == pytest.approx(-1.5)
