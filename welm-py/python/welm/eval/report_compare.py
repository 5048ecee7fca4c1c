"""Compares two runs of the same questions: two models, two precisions, two numbers of examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from welm.eval import report_plots as plots
from welm.eval.journal import EvalError
from welm.eval.report_metrics import alike
from welm.eval.report_page import Block, Figure, Heading, Table, Text
from welm.eval.report_runs import WILSON, Run, Score, Task, is_by_other_rule
from welm.eval.report_tables import shown, span
from welm.eval.statistics import (
    Interval,
    bootstrap_difference,
    effective,
    mcnemar,
    newcombe,
    permutation,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_ABOUT = (
    "Both runs answered the same questions, by lm-eval's hash of each; where one has more of them, only those of "
    "both count here. The difference is the second less the first. Where each question is right or wrong: "
    "Newcombe's interval for paired shares, and McNemar's exact test. Else: the paired bootstrap and a paired "
    "permutation test, 2,000 resamples each with a fixed seed, so that p is never below 1/2,001. Questions about one "
    "passage are drawn and exchanged together; where there are any, Newcombe's interval is for fewer questions, with "
    "the same variance, and the test is by permutation. Better and worse: the number of questions whose own value of "
    "the metric changed each way."
)


@dataclass(frozen=True)
class Difference:
    """A metric in two runs."""

    value: float
    interval: Interval
    p: float
    test: str
    better: int | None
    """Questions that the second run answered better; ``None`` if a question alone has no value."""
    worse: int | None


def difference(first: Score, second: Score) -> Difference | None:
    """The difference of the second, for the same questions; ``None`` if it cannot be computed from them."""
    if first.sums is None or second.sums is None:
        return None
    one, other = alike(first.sums, second.sums)
    if one.rows.shape != other.rows.shape:
        return None
    # The questions are the same, but an older run may not name the field that has the passage.
    passages = one.passages or other.passages
    one, other = replace(one, passages=passages), replace(other, passages=passages)
    value = second.value - first.value
    if first.method == second.method == WILSON:
        before, after = one.rows[:, 0], other.rows[:, 0]
        counts = [int(np.count_nonzero((before == a) & (after == b))) for a in (1, 0) for b in (1, 0)]
        share = effective(after - before, one.passages) / len(before)
        interval = newcombe(*(share * count for count in counts))
        _, lost, gained, _ = counts
        if one.passages:
            return Difference(value, interval, permutation(one, other), "permutation", gained, lost)
        return Difference(value, interval, mcnemar(lost, gained), "McNemar", gained, lost)
    if len(one.drawn) < 2:
        return None
    better = worse = None
    if one.rows.shape[1] == 2:
        # The score of each question alone.
        each = second.sign * (other.function(other.rows) - one.function(one.rows))
        better, worse = int(np.count_nonzero(each > 0)), int(np.count_nonzero(each < 0))
    return Difference(
        value, bootstrap_difference(one, other), permutation(one, other), "permutation", better, worse
    )


def compared(first: Run, second: Run) -> Iterator[Block]:
    """The comparison; raises :class:`EvalError` if the questions are not the same."""
    tasks = [name for name in first.tasks if name in second.tasks]
    if not tasks:
        raise EvalError(
            f"{first.path} and {second.path}: expected tasks in common, got {_names(first)} and {_names(second)}"
        )
    pairs = [in_common(first, second, name) for name in tasks]
    yield Heading(f"{second.label} compared with {first.label}")
    yield Text(f"First: {first.label}, model {first.model}. Second: {second.label}, model {second.model}.")
    yield Text(_ABOUT)
    yield from _tables(pairs)
    yield from _notes(first, second, pairs)


def _names(run: Run) -> str:
    return ", ".join(run.tasks) or "none"


def in_common(first: Run, second: Run, name: str) -> tuple[Task, Task]:
    """A task of two runs, with the questions that both have; one of them may have gone on further.

    Raises :class:`EvalError` if questions of the same number differ.
    """
    one, other = first.tasks[name], second.tasks[name]
    numbers = one.hashes.keys() & other.hashes.keys()
    differing = [number for number in sorted(numbers) if one.hashes[number] != other.hashes[number]]
    if differing or not numbers:
        got = f"{len(differing)} of {len(numbers)} that differ" + (
            f", the first of them number {differing[0]}" if differing else ""
        )
        raise EvalError(
            f"{first.path} and {second.path}: expected the same questions of {name}, got {got}; run both with the same "
            "--data"
        )
    return one.only(numbers), other.only(numbers)


def _tables(pairs: list[tuple[Task, Task]]) -> Iterator[Block]:
    columns = ["task", "prompt", "metric", "questions", "first", "second", "difference"]
    columns += ["95 % interval", "p", "test", "better", "worse"]
    main: list[list[str]] = []
    other: list[list[str]] = []
    dots: dict[str, plots.Dot] = {}
    tests = small = 0
    for one, two in pairs:
        for metric in (name for name in one.scores if name in two.scores):
            score, second = one.scores[metric], two.scores[metric]
            found = difference(score, second)
            rows = other if is_by_other_rule(score, one) else main
            rows.append(_row(one, score, second, found))
            if found and rows is main:
                tests, small = tests + 1, small + (found.p < 0.05)
                if score.scale == 100:
                    interval = Interval(*(100 * end for end in found.interval))
                    dots[f"{one.name}, {metric}"] = plots.Dot(100 * found.value, interval)
    yield Table("Differences", columns, main)
    chance = f"of {tests} tests of runs that do not differ, {tests / 20:.1f} would be on average"
    yield Text(f"{small} of {tests} differences have p below 0.05; {chance}.")
    if dots and plots.available():
        labels = "second less first, percentage points"
        series = [("difference", list(dots.values()))]
        for svg, notes in plots.dot_plots(list(dots), series, labels, zero=True):
            yield Figure(" ".join(["Differences with 95 % intervals.", *notes]), svg)
    if other:
        yield Table("Differences by other rules", columns, other)


def _row(task: Task, first: Score, second: Score, found: Difference | None) -> list[str]:
    labels = [task.base, str(task.prompt), first.metric, str(len(task.hashes))]
    values = [shown(first, first.value), shown(second, second.value)]
    signed = shown(first, second.value - first.value)
    values.append(signed if signed.startswith("-") else f"+{signed}")
    if found is None:
        return [*labels, *values, "", "", "", "", ""]
    p = "below 0.001" if found.p < 0.001 else f"{found.p:.3f}"
    changed = ["" if count is None else str(count) for count in (found.better, found.worse)]
    return [*labels, *values, span(first, found.interval), p, found.test, *changed]


def _notes(first: Run, second: Run, pairs: list[tuple[Task, Task]]) -> Iterator[Block]:
    """What else differs."""
    for run, there in ((first, second), (second, first)):
        alone = [name for name in run.tasks if name not in there.tasks]
        if alone:
            yield Text(f"Only {run.label} has the tasks {', '.join(alone)}; they are not compared.")
    changed: dict[str, list[str]] = {}
    for one, other in pairs:
        count = sum(one.prompts[number] != other.prompts[number] for number in one.prompts)
        if count:
            shots = f", with {one.shots} and {other.shots} examples" if one.shots != other.shots else ""
            how = f"the prompts of {count} of {len(one.prompts)} questions differ{shots}"
            changed.setdefault(how, []).append(one.name)
    for how, names in changed.items():
        yield Text(f"{', '.join(names)}: {how}.")
