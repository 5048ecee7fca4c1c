"""What each question adds to a metric, by the values that lm-eval's samples have.

A metric's aggregation is found by trying: that which gives the value of ``results.json`` is the right one. If none
does, the metric has no interval.
"""

# sacrebleu need not be there.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from welm.eval.statistics import Sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from welm.eval.statistics import Floats


def sums_of(metric: str, each: Sequence[Any], value: float) -> Sums | None:
    """The sums by which the metric's value comes from that of each question; ``None`` if none is known."""
    for sums in _candidates(metric, each):
        if math.isclose(sums.score, value, rel_tol=1e-6, abs_tol=1e-9):
            return sums
    return None


def is_right_or_wrong(sums: Sums) -> bool:
    """Whether it is the mean of zeros and ones."""
    return sums.function is mean and bool(np.isin(sums.rows[:, 0], (0.0, 1.0)).all())


def mean(sums: Floats) -> Floats:
    """Of (value, 1)."""
    return sums[:, 0] / sums[:, 1]


def perplexity(sums: Floats) -> Floats:
    """Of (log-likelihood, number of words or bytes)."""
    return np.exp(-mean(sums))


def bits(sums: Floats) -> Floats:
    """Of (log-likelihood, number of bytes)."""
    return -mean(sums) / math.log(2)


def macro_f1(sums: Floats) -> Floats:
    """The mean of the classes' F1, of flat confusion matrices. A class that nothing has does not count."""
    size = math.isqrt(sums.shape[1])
    matrix = sums.reshape(-1, size, size)
    found = 2 * np.diagonal(matrix, axis1=1, axis2=2)
    there = matrix.sum(1) + matrix.sum(2)
    each = np.divide(found, there, out=np.zeros_like(there), where=there > 0)
    total: Floats = each.sum(1) / (there > 0).sum(1)
    return total


def _candidates(metric: str, each: Sequence[Any]) -> Iterator[Sums]:
    if all(_is_number(value) for value in each):
        rows = np.array([(value, 1) for value in each], np.float64)
        yield from (Sums(rows, function) for function in (mean, perplexity))
    elif all(_is_pair(value) and _is_number(value[0]) and _is_number(value[1]) for value in each):
        if metric.startswith("f1") and all(_is_class(label) for pair in each for label in pair):
            yield _confusions(each)
        rows = np.array(each, np.float64)
        yield from (Sums(rows, function) for function in (perplexity, bits))
    elif metric == "bleu" and all(_is_pair(value) and isinstance(value[0], list) for value in each):
        yield from _bleu(each)


def _confusions(pairs: Sequence[Any]) -> Sums:
    """A confusion matrix for each (right, predicted)."""
    classes = 1 + max(label for pair in pairs for label in pair)
    rows = np.zeros((len(pairs), classes, classes))
    for row, (right, predicted) in zip(rows, pairs, strict=True):
        row[right, predicted] = 1
    return Sums(rows.reshape(len(pairs), -1), macro_f1)


def _bleu(pairs: Sequence[Any]) -> Iterator[Sums]:
    """The matches, n-grams and lengths of each (answers, text); nothing without sacrebleu."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ModuleNotFoundError:
        return
    measure: Any = BLEU(tokenize="zh")
    rows: list[list[int]] = []
    for answers, text in pairs:
        found = measure.corpus_score([text], [[answer] for answer in answers])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])

    def score(sums: Floats) -> Floats:
        compute: Callable[..., Any] = BLEU.compute_bleu
        whole = np.rint(sums).astype(int).tolist()
        each = [
            compute(row[:4], row[4:8], row[8], row[9], smooth_method=measure.smooth_method) for row in whole
        ]
        return np.array([one.score for one in each])

    yield Sums(np.array(rows, np.float64), score)


def alike(first: Sums, second: Sums) -> tuple[Sums, Sums]:
    """Both with as many classes, if one of them has none of the last classes."""
    if first.function is not macro_f1 or second.function is not macro_f1:
        return first, second
    sizes = [math.isqrt(sums.rows.shape[1]) for sums in (first, second)]

    def widened(sums: Sums, size: int) -> Sums:
        more = max(sizes) - size
        matrices = np.pad(sums.rows.reshape(-1, size, size), ((0, 0), (0, more), (0, more)))
        return replace(sums, rows=matrices.reshape(len(matrices), -1))

    return widened(first, sizes[0]), widened(second, sizes[1])


def _is_class(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 1000


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))
