"""The tables of a report: runs, scores, and published figures beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from welm.eval import report_plots as plots
from welm.eval.report_page import Block, Figure, Heading, Table, Text
from welm.eval.report_runs import Run, Score, Task, is_by_other_rule
from welm.eval.tasks import published

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from welm.eval.statistics import Interval

_SCORES = (
    "acc, em, f1, rouge and exact_match are in percent, bleu is between 0 and 100, other metrics are as lm-eval gives "
    "them. Intervals are of 95 %: Wilson's where each question is right or wrong, else the percentile bootstrap, "
    "2,000 resamples with a fixed seed. Questions about one passage are drawn together, and count less than "
    "independent ones; with fewer than about ten passages intervals are still too narrow. Intervals tell how much the "
    "score depends on which questions were drawn, not on the prompt: for that see the column over prompts, which has "
    "the lowest and the highest score of a task's prompts. A score has no interval if the samples alone do not give "
    "it, or if it is a graded one, such as f1, that is the same for all questions."
)
_CHANCE = (
    "Chance is the share of right choices if one chooses blindly: 1 / number of options, averaged over the "
    "questions. A score is above chance if the lower end of its interval is. Where answers are generated there is "
    "no such level."
)
_RULES = (
    "The same answers, judged otherwise: acc_mean ranks by the mean log-probability of the option's tokens, "
    "acc_sum by their sum, acc_own by the sum less that of the option after nothing; f1 alike. Metrics ending in "
    "_words are on words instead of characters."
)


def shown(score: Score, value: float) -> str:
    """A value of a metric."""
    in_hundred = score.scale == 100 or score.metric.startswith("bleu")
    return f"{score.scale * value:.2f}" if in_hundred else f"{value:.4f}"


def span(score: Score, interval: Interval | None) -> str:
    """An interval of a metric."""
    return "" if interval is None else f"{shown(score, interval.low)} to {shown(score, interval.high)}"


def speed(run: Run) -> str:
    """Tokens a second of a run."""
    value = run.about.get("tokens_per_second")
    return f"{value:,.0f}" if plots.finite(value) and value is not None else ""


def of_runs(runs: Sequence[Run]) -> Iterator[Block]:
    """What was run."""
    columns = ["run", "model", "backend", "settings", "requests", "found", "shortened", "joined"]
    columns += ["tokens", "seconds", "tokens/s"]
    rows: list[list[str]] = []
    for run in runs:
        skipped = ("model", "tasks", "device", "welm", "lm_eval")
        settings = [
            f"{k} {v}"
            for k, v in run.settings.items()
            if k not in skipped and v is not None and v is not False
        ]
        counts = [run.about.get(f"requests_{name}") for name in ("computed", "found", "shortened", "joined")]
        amounts = [*counts, run.about.get("tokens"), run.about.get("seconds")]
        each = [f"{value:,.0f}" if isinstance(value, (int, float)) else "" for value in amounts]
        backend = str(run.about.get("backend") or "")
        rows.append([run.label, run.model, backend, ", ".join(settings), *each, speed(run)])
    yield Heading("Runs")
    yield Table("What was run", columns, rows)
    yield Text(
        "Tokens are those of the requests and of the answers. A beginning that several requests share is computed "
        "once, but counts for each of them."
    )
    read = [
        [task.base, task.read, f"{task.documents:,}" if task.documents is not None else "", run.label]
        for run in runs
        for task in run.tasks.values()
        if task.read and task.prompt == 1
    ]
    if read:
        yield Table("What was read", ["task", "file, or set of the hub", "questions there", "run"], read)
    if any(run.about.get("requests_found") for run in runs):
        yield Text(
            "Requests that were found had been computed before, when the run was begun. Tokens, seconds and tokens a "
            "second are of those computed since."
        )
    if any(run.about.get("requests_shortened") for run in runs):
        yield Text(
            "Prompts of the requests that were shortened were longer than the context; they lost their beginning."
        )
    if any(run.about.get("requests_joined") for run in runs):
        yield Text(
            "In requests that were joined, the tokenizer has one token for the end of the prompt and the beginning of "
            "what is scored. As lm-eval cuts them, some text there is in neither."
        )


def of_scores(runs: Sequence[Run]) -> Iterator[Block]:
    """The scores of all runs."""
    yield Heading("Scores")
    yield Text(_SCORES)
    yield Text(_CHANCE)
    columns = ["task", "prompt", "shots", "run", "metric", "score", "95 % interval", "by", "questions"]
    columns += ["chance", "above chance", "over prompts", "run's tokens/s"]
    main: list[list[str]] = []
    other: list[list[str]] = []
    for run, task, score in in_order(runs):
        rows = other if is_by_other_rule(score, task) else main
        rows.append(_row(run, task, score))
    yield Table("Scores", columns, main)
    yield from _plot(runs)
    if other:
        yield Heading("By other rules", 3)
        yield Text(_RULES)
        yield Table("Scores by other rules", columns, other)


def in_order(runs: Sequence[Run]) -> Iterator[tuple[Run, Task, Score]]:
    """All scores, by task, metric, prompt, run, as they first appear."""
    bases = dict.fromkeys(task.base for run in runs for task in run.tasks.values())
    for base in bases:
        tasks = [(run, task) for run in runs for task in run.tasks.values() if task.base == base]
        tasks.sort(key=lambda pair: (pair[1].prompt, pair[1].shots))
        for metric in dict.fromkeys(metric for _, task in tasks for metric in task.scores):
            for run, task in tasks:
                if metric in task.scores:
                    yield run, task, task.scores[metric]


def prompts_of(run: Run, task: Task, score: Score) -> list[float]:
    """The score with each of the task's prompts."""
    alike = [other for other in run.tasks.values() if other.base == task.base]
    return [other.scores[score.metric].value for other in alike if score.metric in other.scores]


def _row(run: Run, task: Task, score: Score) -> list[str]:
    chance = task.chance if score.is_accuracy else None
    above = ""
    if chance is not None and score.interval:
        above = "yes" if score.interval.low > chance else "no"
        above = "no, below" if score.interval.high < chance else above
    each = prompts_of(run, task, score)
    spread = f"{shown(score, min(each))} to {shown(score, max(each))} ({len(each)})" if len(each) > 1 else ""
    value, interval = shown(score, score.value), span(score, score.interval)
    blind = "" if chance is None else shown(score, chance)
    labels = [task.base, str(task.prompt), str(task.shots), run.label, score.metric]
    return [*labels, value, interval, score.method, str(len(task.hashes)), blind, above, spread, speed(run)]


def _plot(runs: Sequence[Run]) -> Iterator[Block]:
    """The scores in percent of each task's first prompt, with the other prompts as small dots."""
    if not plots.available():
        return
    kept = [(run, task, score) for run, task, score in in_order(runs) if score.scale == 100]
    kept = [entry for entry in kept if entry[1].prompt == 1 and not is_by_other_rule(entry[2], entry[1])]
    names = list(dict.fromkeys((task.base, score.metric) for _, task, score in kept))
    if not names:
        return
    chance: dict[tuple[str, str], float | None] = {}
    dots: dict[str, dict[tuple[str, str], plots.Dot]] = {run.label: {} for run in runs}
    for run, task, score in kept:
        name = (task.base, score.metric)
        chance.setdefault(name, 100 * task.chance if task.chance is not None and score.is_accuracy else None)
        interval = score.interval and type(score.interval)(*(100 * end for end in score.interval))
        others = [100 * value for value in prompts_of(run, task, score)]
        dots[run.label][name] = plots.Dot(100 * score.value, interval, others if len(others) > 1 else ())
    series = [(label, [found.get(name) for name in names]) for label, found in dots.items()]
    rows = [", ".join(name) for name in names]
    caption = "Scores with 95 % intervals; small dots are the other prompts of a task; dotted: chance."
    for svg, notes in plots.dot_plots(rows, series, "score, percent", [chance[name] for name in names]):
        yield Figure(" ".join([caption, *notes]), svg)


def of_published(runs: Sequence[Run]) -> Iterator[Block]:
    """Published figures beside ours, where there are any."""
    known = published()
    figures: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for figure in known["figures"]:
        figures.setdefault((figure["task"], figure["metric"]), []).append(figure)
    found = [
        (run, task, score) for run, task, score in in_order(runs) if (task.base, score.metric) in figures
    ]
    found = [entry for entry in found if entry[1].prompt == 1]
    if not found:
        return
    beside = [figure for _, task, score in found for figure in figures[task.base, score.metric]]
    models = list(dict.fromkeys(_model(figure) for figure in beside))
    marks: dict[str, str] = {}
    rows: list[list[str]] = []
    for run, task, score in found:
        cells = dict.fromkeys(models, "")
        mine = figures[task.base, score.metric]
        for figure in mine:
            reasons = differences(figure, run, task, known)
            letters = sorted(marks.setdefault(reason, _mark(len(marks))) for reason in reasons)
            cells[_model(figure)] = f"{figure['value']:.2f}" + (f" [{', '.join(letters)}]" if letters else "")
        ours = shown(score, score.value) + (f" ({span(score, score.interval)})" if score.interval else "")
        theirs = "; ".join(dict.fromkeys(known["protocols"][figure["protocol"]] for figure in mine))
        labels = [task.base, score.metric, run.label, str(task.shots), ours]
        rows.append([*labels, *cells.values(), theirs, task.protocol])
    yield Heading("Published figures beside ours")
    yield Text(
        "In percent. Letters in brackets say how the measurement differs from ours; figures with letters cannot be "
        "compared digit by digit. Figures without letters were measured by the same rule with the same number of "
        "examples, but still with other prompts, and with all questions of the published set, of which there may be a "
        "part here. What was read here stands above."
    )
    columns = [
        "task",
        "metric",
        "run",
        "shots",
        "ours (95 % interval)",
        *models,
        "protocol there",
        "protocol here",
    ]
    yield Table("Published figures beside ours", columns, rows)
    for reason, mark in marks.items():
        yield Text(f"[{mark}] {reason}.")
    sources = dict.fromkeys(figure["source"] for figure in beside)
    for source in (known["sources"][name] for name in sources):
        yield Text(f"Source: {source['title']}, {source['url']}; tables: {source['tables']}.")


def _model(figure: dict[str, Any]) -> str:
    shots = figure["shots"]
    return f"{figure['model']}, {shots}{' shots' if isinstance(shots, int) else ''}"


def _mark(number: int) -> str:
    return chr(ord("a") + number % 26) * (number // 26 + 1)


def differences(figure: dict[str, Any], run: Run, task: Task, known: dict[str, Any]) -> Iterator[str]:
    """How a published figure was measured otherwise than the task here."""
    protocol = figure["protocol"]
    if protocol in known["unlike_ours"]:
        yield known["unlike_ours"][protocol]
    options = known["options"].get(protocol)
    if options and task.options is not None and task.options != options:
        yield f"{options} options to choose from there, {task.options:g} on average here"
    if figure["shots"] != task.shots:
        yield f"examples in the prompt: {figure['shots']} there, {task.shots} here"
    if task.is_made_up:
        yield "the questions here are the made-up samples of the package, which say nothing about quality"
    if run.settings.get("chat"):
        yield "prompts are in the model's chat template here"
    if run.settings.get("limit"):
        yield f"all questions there, {run.settings['limit']:,} at most here"
