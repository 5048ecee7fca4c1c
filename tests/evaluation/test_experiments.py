"""Experiments against what comes with lm-eval: its own requests, scikit-learn and SciPy."""

from __future__ import annotations

import random

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from scipy import optimize, stats
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

import welm
from welm.eval import WelmLM
from welm.eval.asking import Asker
from welm.eval.experiments import confidence, forms
from welm.eval.experiments.confidence import Choice
from welm.eval.experiments.texts import Texts
from welm.eval.statistics import mcnemar_of, wilson


def test_answers_are_as_likely_as_lm_eval_finds_them(model: welm.Model) -> None:
    ((form, docs),) = forms.read(["chnsenticorp"], "samples", 4, [], [])
    # Without most of the examples, so that nothing is longer than the context.
    begin = form.shown("answer").split(forms.END)[0] + forms.END
    asked = [
        (begin + form.ask(doc) + forms.ANSWER, [o + forms.END for o in form.options_of(doc)]) for doc in docs
    ]
    pairs = [(text, answer) for text, answers in asked for answer in answers]
    instances = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    expected = [total for total, _ in WelmLM(model).loglikelihood(instances)]
    found = Texts(model, Asker(model)).logprobs("", asked)
    assert [value for values in found for value in values] == pytest.approx(expected, abs=1e-3)


def test_measures() -> None:
    source = random.Random(2)
    values = [source.randrange(1, 100) / 100 for _ in range(200)]
    right = [source.random() < value for value in values]
    assert confidence.brier(values, right) == pytest.approx(brier_score_loss(right, values))
    assert confidence.auroc(values, right) == pytest.approx(roc_auc_score(right, values))


def test_intervals_and_tests() -> None:
    for right, total in ((0, 7), (3, 7), (50, 50), (120, 1000)):
        expected = stats.binomtest(right, total).proportion_ci(method="wilson")
        assert wilson(right, total) == pytest.approx((expected.low, expected.high))
    for lost, won in ((0, 0), (1, 9), (4, 4), (30, 12)):
        before, after = [True] * lost + [False] * won, [False] * lost + [True] * won
        expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
        assert mcnemar_of(before, after) == pytest.approx(expected)


def test_the_temperature_is_that_of_a_general_minimiser() -> None:
    logits = np.random.default_rng(3).normal(0, 5, (150, 4))
    gold = [int(row.argmax()) if number % 3 else number % 4 for number, row in enumerate(logits)]

    def loss(logarithm: float) -> float:
        each = [confidence.softmax(row.tolist(), float(np.exp(logarithm))) for row in logits]
        return float(log_loss(gold, each, labels=range(4)))

    best = optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-7})
    choices = [Choice(row.tolist(), 0, right) for row, right in zip(logits, gold, strict=True)]
    assert confidence.fitted_temperature(choices) == pytest.approx(float(np.exp(best.x)), rel=1e-4)
