"""Intervals and tests of a report, against published values, other programs and simpler computations."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from welm.eval.report_metrics import alike, is_right_or_wrong, mean, sums_of
from welm.eval.statistics import (
    Sums,
    bootstrap,
    bootstrap_difference,
    effective,
    mcnemar,
    newcombe,
    permutation,
    wilson,
)

from conftest import FIXTURES

if TYPE_CHECKING:
    from collections.abc import Sequence


def means(values: Sequence[float]) -> Sums:
    return Sums(np.array([(value, 1) for value in values], np.float64), mean)


def test_wilson() -> None:
    """Table I of Newcombe, Two-sided confidence intervals for the single proportion, Stat. Med. 17 (1998)."""
    for right, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)
    # scipy.stats.binomtest(29, 29).proportion_ci(method="wilson")
    assert wilson(29, 29) == pytest.approx((0.8830302015002592, 1.0), abs=1e-12)


def test_newcombe() -> None:
    # Fagerland, Lydersen, Laake, Recommended tests and confidence intervals for paired binomial proportions, Statistics
    # in Medicine 33 (2014): airway hyper-responsiveness, 1 1 7 12, first less second.
    assert newcombe(1, 1, 7, 12) == pytest.approx((0.026, 0.507), abs=5e-4)
    # Altman et al., Statistics with Confidence (2000), table 6.2: 14 5 0 22, first less second.
    assert newcombe(14, 0, 5, 22) == pytest.approx((0.011, 0.226), abs=5e-4)
    assert newcombe(5, 0, 0, 0) == pytest.approx((wilson(5, 5).low - 1, 1 - wilson(5, 5).low))
    low, high = newcombe(9, 3, 8, 4)
    assert newcombe(9, 8, 3, 4) == pytest.approx((-high, -low))


def test_mcnemar() -> None:
    """scipy.stats.binomtest(a, a + b).pvalue."""
    for lost, gained, p in (
        (5, 0, 0.0625),
        (7, 1, 0.0703125),
        (12, 9, 0.6636238098144531),
        (10, 30, 0.0022214337732293643),
    ):
        assert mcnemar(lost, gained) == pytest.approx(p, rel=1e-12)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1
    assert 0 < mcnemar(700, 500) < 1e-7


def test_questions_about_one_passage() -> None:
    """A question that is there three times says no more than once."""
    right, passages = [0, 1, 1, 0, 1, 1, 1, 0, 1, 0], tuple(range(10))
    once, thrice = means(right), replace(means(right * 3), passages=passages * 3)
    values = np.array(right, np.float64)
    assert effective(values, ()) == effective(values, passages) == 10
    assert effective(np.tile(values, 3), passages * 3) == pytest.approx(10)
    assert effective(np.tile(values, 3), ()) == 30
    assert bootstrap(thrice) == bootstrap(once)
    other = [1, 1, 1, 0, 1, 1, 0, 1, 1, 1]
    both = means(other), replace(means(other * 3), passages=passages * 3)
    assert bootstrap_difference(thrice, both[1]) == bootstrap_difference(once, both[0])
    assert permutation(thrice, both[1]) == permutation(once, both[0])
    # Each passage has as many right ones as any other: questions are then as good as independent.
    assert effective(np.tile([0.0, 1.0], 12), sorted([*range(12)] * 2)) == 24
    # Nothing is known of how passages differ.
    assert effective(np.ones(24), [*range(12)] * 2) == 24
    assert effective(np.array([1.0, 0.0, 1.0]), (0, 0, 0)) == 1
    # As few as if all of a passage are equal, at least.
    assert effective(np.array([1.0] * 3 + [0.0] * 3), [0] * 3 + [1] * 3) == 2


def test_intervals_of_passages_have_the_share_as_often_as_they_say() -> None:
    """40 passages of five questions each, whose shares are drawn from a beta distribution."""
    source = np.random.Generator(np.random.PCG64(7))
    passages = tuple(number // 5 for number in range(200))
    hits = {"drawn together": 0, "as if independent": 0}
    for _ in range(400):
        right = source.binomial(1, np.repeat(source.beta(1.2, 0.8, 40), 5)).astype(np.float64)
        for name, known in (("drawn together", passages), ("as if independent", ())):
            questions = effective(right, known)
            low, high = wilson(right.mean() * questions, questions)
            hits[name] += low <= 0.6 <= high
    assert hits["drawn together"] >= 0.92 * 400
    assert hits["as if independent"] <= 0.88 * 400


def test_bootstrap() -> None:
    """scipy.stats.bootstrap with 200,000 resamples and the method "percentile"."""
    x = [round((i * 37) % 101 / 100, 2) for i in range(60)]
    y = [round((i * 53 + 11) % 97 / 96, 3) for i in range(60)]
    assert bootstrap(means(x)) == pytest.approx((0.42167, 0.56917), abs=0.006)
    assert bootstrap_difference(means(x), means(y)) == pytest.approx((-0.08018, 0.0973), abs=0.008)
    assert bootstrap(means(x)) == bootstrap(means(x))
    # More questions than fit into memory at once.
    many = means(x * 100)
    low, high = bootstrap(many)
    half = 1.96 * float(np.std(x)) / math.sqrt(6000)
    assert (low, high) == pytest.approx((np.mean(x) - half, np.mean(x) + half), abs=half / 8)


def test_permutation() -> None:
    """All exchanges, one by one."""
    x = [0.1, 0.5, 0.9, 0.3, 0.2, 0.6, 0.4, 0.8, 0.15, 0.35]
    y = [0.3, 0.4, 0.95, 0.5, 0.45, 0.65, 0.3, 0.9, 0.4, 0.3]
    steps = [b - a for a, b in zip(x, y, strict=True)]
    sums = [abs(sum(map(math.prod, zip(signs, steps)))) for signs in itertools.product((1, -1), repeat=10)]  # noqa: B905
    exact = sum(found >= abs(sum(steps)) - 1e-12 for found in sums) / len(sums)
    assert 0.05 < exact < 0.2
    assert permutation(means(x), means(y)) == pytest.approx(exact, abs=0.02)
    assert permutation(means(y), means(x)) == pytest.approx(exact, abs=0.02)
    assert permutation(means(x), means(x)) == 1
    assert permutation(means([0.0] * 40), means([0.1, 0.2] * 20)) == pytest.approx(1 / 2001)


def test_metrics() -> None:
    for case in json.loads((FIXTURES / "eval_metrics.json").read_text("utf-8"))["macro_f1"]:
        sums = sums_of("f1", case["pairs"], case["f1"])  # scikit-learn's value
        assert sums is not None
        assert sums.score == pytest.approx(case["f1"], abs=1e-12)
    assert sums_of("f1", [[0, 1], [1, 1]], 0.9) is None
    pairs: list[Any] = [[-10.0, 5], [-20.0, 5]]
    for metric, value in (("word_perplexity", math.exp(3)), ("bits_per_byte", 3 / math.log(2))):
        sums = sums_of(metric, pairs, value)
        assert sums is not None
        assert sums.score == pytest.approx(value)
    right = sums_of("acc", [1.0, 0.0, True, False], 0.5)
    assert right is not None
    assert is_right_or_wrong(right)
    graded = sums_of("f1", [0.5, 1.0], 0.75)
    assert graded is not None
    assert not is_right_or_wrong(graded)
    assert sums_of("acc", [1.0, 0.0], 0.7) is None, "samples of another run"
    assert sums_of("other", ["a", "b"], 0.5) is None


def test_classes_that_one_run_never_chose() -> None:
    one, other = sums_of("f1", [[0, 0], [1, 0]], 1 / 3), sums_of("f1", [[0, 2], [1, 1]], 1 / 3)
    assert one is not None
    assert other is not None
    first, second = alike(one, other)
    assert first.rows.shape == second.rows.shape == (2, 9)
    assert (first.score, second.score) == pytest.approx((one.score, other.score))
