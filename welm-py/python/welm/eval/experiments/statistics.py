"""Intervals and tests for right and wrong answers."""

from __future__ import annotations

from math import comb, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Z = 1.959963984540054
"""The normal distribution has 95 % within this many standard deviations."""


def wilson(right: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's score.

    With p = right / total and z = 1.96: (p + z² / 2n ± z √(p (1 - p) / n + z² / 4n²)) / (1 + z² / n). Source: E. B.
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if not total:
        return 0.0, 1.0
    share, more = right / total, Z * Z / total
    middle = share + more / 2
    reach = sqrt(more * (share * (1 - share) + more / 4))
    low, high = (middle - reach) / (1 + more), (middle + reach) / (1 + more)
    return (low if right else 0.0), (high if right < total else 1.0)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """How likely at least this difference is between two ways to answer the same questions, if they are equally good.

    McNemar's exact test. Of n questions that only one way answers rightly, k are those of the way that has fewer:
    p = min(1, 2 Σ_{i ≤ k} C(n, i) / 2ⁿ). Source: Q. McNemar, "Note on the sampling error of the difference between
    correlated proportions or percentages", Psychometrika 12 (1947); the exact form is the sign test.
    """
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    n = lost + won
    # Whole numbers: 2.0 ** n has no end for long lists.
    tail = sum(comb(n, i) for i in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / (1 << n))


def mean(values: Sequence[float]) -> float | None:
    """The mean; ``None`` of nothing."""
    return sum(values) / len(values) if values else None
