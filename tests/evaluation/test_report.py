"""Reports of runs that lm-eval made, with plots."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.tasks import TaskManager
from scipy import stats

from welm.eval import evaluate, report_plots, write_report
from welm.eval.report_metrics import sums_of
from welm.eval.report_plots import Chart, Dot, Series, chart, dot_plots, dots
from welm.eval.report_runs import read_runs
from welm.eval.statistics import Interval, Sums, bootstrap, mcnemar, wilson
from welm.eval.tasks import FOLDER, TASKS, published

ROOT = Path(__file__).parents[2]
CASES = json.loads((ROOT / "tests/fixtures/eval_metrics.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small model with no and with one example: ranked, with three prompts; generated; with corpus metrics."""
    folder = tmp_path_factory.mktemp("runs")
    for shots in (0, 1):
        evaluate(
            tasks=["c3_prompts", "cmrc2018", "smp-ecisa", "adgen"],
            out=folder / f"shots{shots}",
            shots=shots,
            data="samples",
            threads=1,
        )
    return folder / "shots0", folder / "shots1"


def plots_of(page: str) -> list[tuple[str, bytes]]:
    """The images of a page, with their captions."""
    found = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)">', page)
    return [(caption, base64.b64decode(data)) for caption, data in found]


def test_a_report(runs: tuple[Path, Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "welm", "report", *runs, "--compare", *runs, "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    page, text = ((tmp_path / name).read_text("utf-8") for name in ("report.html", "report.md"))
    results = [json.loads((run / "results.json").read_text("utf-8"))["results"] for run in runs]
    for shots, values in enumerate(results):
        for prompt, task in enumerate(("c3", "c3_2", "c3_3"), 1):
            value = values[task]["acc,none"]
            low, high = wilson(round(10 * value), 10)
            cells = (f"{100 * value:.2f}", f"{100 * low:.2f} to {100 * high:.2f}")
            assert f"| c3 | {prompt} | {shots} | shots{shots} | acc | {' | '.join(cells)} |" in text
        assert f"| adgen | 1 | {shots} | shots{shots} | bleu | {values['adgen']['bleu,none']:.2f} |" in text
    assert "## shots1 compared with shots0\n" in text
    assert "the questions here are the made-up samples of the package" in text
    assert [caption for caption, _ in plots_of(page)] == [
        "Scores with 95 % intervals; small dots are the other prompts of a task; dotted: chance.",
        "Differences with 95 % intervals.",
    ]
    assert "no plots" not in page
    # The same bytes again.
    first = (tmp_path / "report.html").read_bytes()
    write_report(runs, tmp_path / "again", compare=runs)
    assert (tmp_path / "again" / "report.html").read_bytes() == first


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    readme = (ROOT / "welm-py/README.md").read_text("utf-8")
    (block,) = (b for b in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "welm report" in b)
    lines = [line.partition("  #")[0].split() for line in block.splitlines()]
    assert [line[3] for line in lines] == ["eval", "report", "report"]
    evaluate(tasks=["c3"], out=tmp_path / "other", shots=1, data="samples", threads=1)
    for line in lines:
        assert line[:3] == ["python", "-m", "welm"]
        subprocess.run([sys.executable, *line[1:]], cwd=tmp_path, check=True, timeout=120)
    text = (tmp_path / "page" / "report.md").read_text("utf-8")
    for task in ("c3", "tnews_4way", "cmrc2018"):
        assert f"| {task} | 1 | 0 |" in text
    assert "## other compared with run" in (tmp_path / "difference" / "report.md").read_text("utf-8")


def test_every_metric_of_a_run_has_its_sums(runs: tuple[Path, Path]) -> None:
    for run in read_runs(runs):
        assert set(run.tasks) == {"c3", "c3_2", "c3_3", "cmrc2018", "smp-ecisa", "adgen"}
        for task in run.tasks.values():
            assert all(score.sums is not None for score in task.scores.values()), task.scores
            if "acc" in task.scores:
                assert task.chance is not None
                assert task.options == (3 if task.base == "smp-ecisa" else pytest.approx(3.9))


def test_tasks_of_other_kinds(tasks: list[str], tmp_path: Path) -> None:
    """lm-eval's own classes: choices, generation, filters, log-likelihoods of whole texts."""
    results = evaluate(tasks=tasks, out=tmp_path / "run", shots=1, threads=1)["results"]
    (run,) = read_runs([tmp_path / "run"])
    choose, read = run.tasks["choose"], run.tasks["read"].scores["bits_per_byte"]
    assert (choose.chance, choose.scores["acc"].method) == (0.25, "Wilson")
    assert run.tasks["go_on"].chance is None
    assert run.tasks["go_on"].scores["exact_match"].interval is not None
    assert run.tasks["draw"].scores["exact_match, first"].interval is not None
    assert read.value == results["read"]["bits_per_byte,none"]
    assert read.interval is not None
    assert read.interval.low < read.value < read.interval.high
    assert not read.higher_is_better
    write_report([tmp_path / "run"], tmp_path / "out")


def test_the_statistics_of_scipy() -> None:
    for right in (0, 3, 37, 40):
        want = stats.binomtest(right, 40).proportion_ci(method="wilson")
        assert wilson(right, 40) == pytest.approx((want.low, want.high), abs=1e-12)
    for lost, gained in ((3, 9), (0, 4), (25, 40)):
        assert mcnemar(lost, gained) == pytest.approx(stats.binomtest(lost, lost + gained).pvalue, rel=1e-12)
    pairs = [(number % 3, (number * 7 + number // 4) % 3) for number in range(90)]
    value = float(np.mean([_f1(pairs, label) for label in range(3)]))
    sums = sums_of("f1", [list(pair) for pair in pairs], value)
    assert sums is not None
    confusions = sums.rows

    def statistic(index: Any, axis: int = -1) -> Any:
        return sums.function(confusions[index].sum(axis - 1 if axis < 0 else axis))

    want = stats.bootstrap(
        (np.arange(90),), statistic, n_resamples=20000, method="percentile", rng=1, vectorized=True
    ).confidence_interval
    assert bootstrap(sums) == pytest.approx((want.low, want.high), abs=0.012)


def _f1(pairs: list[tuple[int, int]], label: int) -> float:
    both = sum(pair == (label, label) for pair in pairs)
    return 2 * both / sum((right == label) + (predicted == label) for right, predicted in pairs)


def test_bleu_comes_from_its_sums() -> None:
    for case in CASES["bleu"]:
        sums = sums_of("bleu", case["pairs"], case["bleu"])
        assert sums is not None
        assert sums.score == pytest.approx(case["bleu"], abs=1e-9)
        half = Sums(sums.rows[::2], sums.function)
        again = sums_of("bleu", case["pairs"][::2], half.score)
        assert again is not None
    low, high = bootstrap(sums)
    assert low < sums.score < high


def test_published_figures_name_protocols_that_the_tasks_have() -> None:
    """Which protocols are like ours is written down: our tasks still have them."""
    known = published()
    assert set(known["options"]) | set(known["unlike_ours"]) <= set(known["protocols"])
    own = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"data": "samples"})
    for figure in known["figures"]:
        if figure["protocol"] in known["unlike_ours"]:
            continue
        assert figure["task"] in TASKS
        task = own.load(figure["task"])["tasks"][figure["task"]]
        protocol = task.config.metadata["protocol"]
        ranked = protocol.startswith("options ranked by the perplexity of the whole text")
        assert ranked == figure["protocol"].startswith("ranked"), figure
        assert ranked or protocol.startswith("greedy"), figure


# Plots.

DOTS = [Dot(30, Interval(25, 36), [28, 33]), None]
CHARTS = [
    Chart("line", "x", "y", [Series("a", [0, 1], [0.5, 0.7]), Series("b", [0, 1], [0.4, 0.9])], True),
    Chart("bar", "x", "y", [Series("a", ["u", "v"], [1, 2]), Series("b", ["v", "w"], [3, 4])]),
    Chart("scatter", "x", "y", [Series("a", [1.0, 2.0], [3.0, 4.0])]),
]


def texts_of(svg: bytes) -> set[str]:
    """What matplotlib says that it drew as glyphs."""
    ElementTree.fromstring(svg)
    return {text.strip() for text in re.findall(r"<!-- (.*?) -->", svg.decode())}


@pytest.mark.parametrize("plot", CHARTS, ids=lambda plot: plot.kind)
def test_charts(plot: Chart) -> None:
    svg, notes = chart(plot)
    assert notes == []
    assert (svg, notes) == chart(plot)
    names = {series.label for series in plot.series} if len(plot.series) > 1 else set()
    assert {"x", "y", *names} <= texts_of(svg)
    assert b"<dc:date>" not in svg


def test_dots() -> None:
    svg, notes = dots(["c3, acc", "other"], [("run $1$", DOTS), ("two", DOTS)], "score", [25, None])
    assert {"c3, acc", "other", "run $1$", "two", "score", "chance"} <= texts_of(svg)
    assert notes == []


def test_many_rows_are_in_several_plots() -> None:
    names = [f"task {number}" for number in range(60)]
    each = [Dot(number, None) for number in range(60)]
    found = list(dot_plots(names, [("a", each), ("b", each)], "score", [25.0] * 60))
    assert len(found) == 4
    shown = [texts_of(svg) & set(names) for svg, _ in found]
    assert [len(part) for part in shown] == [15] * 4
    assert set().union(*shown) == set(names)
    for svg, _ in found:
        height = float(ElementTree.fromstring(svg).attrib["height"].removesuffix("pt")) / 72
        assert height < 6.5, "inches, as have room on a page"
    assert len(list(dot_plots(names[:19], [("a", each[:19])], "score"))) == 1
    assert list(dot_plots([], [], "score")) == []


def test_characters_that_the_font_lacks_are_in_the_caption() -> None:
    hostile = "</svg><script>--&"
    svg, notes = dots(["中文任务", hostile], [("模型", DOTS), ("中文任务", DOTS)], "分数")
    assert notes == ["[1] 模型", "[2] 中文任务", "[3] 分数"]
    assert {"[1]", "[2]", "[3]"} <= texts_of(svg)
    assert "script" not in {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    svg, notes = chart(Chart("bar", "重复", "y", [Series("甲", ["乙", "b"], [1, 2])]))
    assert notes == ["[1] 乙", "[2] 重复"]


def test_labels_that_matplotlib_would_hide_or_that_have_no_room(recwarn: pytest.WarningsRecorder) -> None:
    long = "a very long label " * 10
    svg, notes = dots(["a", "b"], [("_run", DOTS), (long, DOTS)], "x")
    assert {"_run", "[1]"} <= texts_of(svg)
    assert notes == [f"[1] {long}"]
    chart(Chart("line", "x", "y", [Series("", [0.0], [1.0]), Series("", [0.0], [2.0])]))
    chart(Chart("bar", "", "", []))
    assert not recwarn.list


def test_experiments_have_plots(runs: tuple[Path, Path], tmp_path: Path) -> None:
    plot = {"caption": "A <plot>", "kind": "line", "x_label": "长度", "y_label": "y"}
    series = {"label": "a", "x": [1, 2, None], "y": [0.1, None, 0.3]}
    entry = {"title": "Memory", "plots": [{**plot, "series": [series]}]}
    folder = tmp_path / "run"
    folder.mkdir()
    for file in runs[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "experiments").mkdir()
    (folder / "experiments" / "memory.json").write_text(json.dumps(entry), "utf-8")
    page, _ = write_report([folder], tmp_path / "out")
    assert plots_of(page.read_text("utf-8"))[-1][0] == "A &lt;plot&gt; [1] 长度"


def test_matplotlib_is_there() -> None:
    assert report_plots.available()
