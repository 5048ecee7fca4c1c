"""Whether the model knows when it is right.

Two probabilities of being right are compared: the one that it gave to its answer, and the one with which it says 对
when it is asked whether that answer is right. The second is "P(True)" of S. Kadavath et al., "Language models (mostly)
know what they know", 2022, with examples of right and wrong answers.
"""

from __future__ import annotations

from math import exp, expm1, log
from typing import TYPE_CHECKING, NamedTuple

from welm.eval.experiments import forms
from welm.eval.experiments.confidence import (
    BINS,
    Choice,
    auroc,
    brier,
    ece,
    fitted_temperature,
    halves,
    reliability,
    selective,
)
from welm.eval.experiments.forms import ANSWER, ANSWER_TOKENS, BETTER, END, RIGHT, VERDICT, WRONG, Form, read
from welm.eval.experiments.record import Cell, Plot, Record, Sample, Series, Table, mean
from welm.eval.statistics import mcnemar_of, wilson
from welm.eval.tasks import metrics, ranking
from welm.eval.tasks.readers import SEED, Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from welm.eval.experiments.texts import Texts

__all__ = ["read", "run"]

SIGNALS = ("answer", "verdict")
SAMPLES = 3
"""Samples of each task."""

TEXT = [
    "The model answers after a few examples, and is then asked whether its answer is right (这个答案对吗？), after "
    "examples of right and of wrong answers. There are two probabilities of being right. Answer: that of its "
    "answer: the softmax of the options' log-probabilities, or of a generated answer the product of its tokens' "
    "probabilities, without the end. Verdict: p(对) + p(是) as a share of p(对) + p(是) + p(错) + p(否).",
    f"ECE is the mean distance between confidence and accuracy over {BINS} bins of equal width; Brier is the mean "
    "of (confidence - right)². Both are 0 at best. AUROC is the probability that a right answer has a larger "
    "confidence than a wrong one: 0.5 is chance, and no temperature changes it. Selective accuracy is the "
    "accuracy on the answers with at least some confidence; coverage is their share. Intervals are Wilson's, 95 "
    "%, as if questions were independent, also those about one passage.",
    "A temperature is fitted on one half of the questions, drawn by a fixed seed, by least negative log-"
    "likelihood; ECE is then compared on the other half. With few questions ECE is biased upwards and both "
    "figures are rough. The temperature is at most 100: one that large means that the confidence tells nothing.",
    "Does asking help? Where the verdict is below one half, the model is told that the answer is wrong and gives "
    "another: the likeliest of the other options, or a generated one. p is McNemar's exact test.",
]


class Judged(NamedTuple):
    """An answer with the model's two probabilities that it is right."""

    doc: Document
    text: str
    right: bool
    by_answer: Choice
    by_verdict: Choice

    def confidence(self, signal: str, temperature: float = 1.0) -> float:
        """The probability of being right."""
        return self.choice(signal).confidence(temperature)

    def choice(self, signal: str) -> Choice:
        """The logits of a signal."""
        return self.by_answer if signal == "answer" else self.by_verdict


def run(texts: Texts, tasks: Sequence[tuple[Form, list[Document]]]) -> Record:
    """Runs the experiment."""
    judged = {form.name: judge(texts, form, docs) for form, docs in tasks}
    changes = Table(
        "Does asking improve the answers?",
        [
            "task",
            "questions",
            "called wrong",
            "of these wrong",
            "accuracy before",
            "after",
            "difference",
            "p",
        ],
    )
    samples: list[Sample] = []
    for form, _ in tasks:
        answers = judged[form.name]
        second = reconsider(texts, form, answers)
        changes.rows.append(changed(form.name, answers, second))
        samples += [
            shown(form, answer, again) for answer, again in list(zip(answers, second, strict=True))[:SAMPLES]
        ]
    if len(judged) > 1:
        judged["all"] = [answer for answers in judged.values() for answer in answers]
    title = "Does the model know when it is right?"
    tables = [measured(judged), fitted(judged), changes]
    return Record(title, list(TEXT), tables, plots(judged), samples)


def judge(texts: Texts, form: Form, docs: Sequence[Document]) -> list[Judged]:
    """The model's answers, and what it thinks of them."""
    given = forms.answers(texts, form, docs, "answer")
    verdicts = texts.logprobs(
        f"{form.name}: verdicts",
        [
            (asked_about(form, doc, text), [*RIGHT, *WRONG])
            for doc, (text, _) in zip(docs, given, strict=True)
        ],
    )
    if form.options is None:
        begin = form.shown("answer")
        alone = texts.logprobs(
            f"{form.name}: probabilities",
            [
                (begin + form.ask(doc) + ANSWER, [text or END])
                for doc, (text, _) in zip(docs, given, strict=True)
            ],
        )
        logits = [sure(value) for (value,) in alone]
    else:
        logits = [values for _, values in given]
    found: list[Judged] = []
    for doc, (text, _), answer, words in zip(docs, given, logits, verdicts, strict=True):
        right = form.is_right(doc, text)
        if form.options is None:
            by_answer = Choice(answer, 0, 0 if right else 1)
        else:
            by_answer = Choice(answer, ranking.best(answer), doc["gold"])
        verdict = [together(words[: len(RIGHT)]), together(words[len(RIGHT) :])]
        found.append(Judged(doc, text, right, by_answer, Choice(verdict, 0, 0 if right else 1)))
    return found


def asked_about(form: Form, doc: Document, answer: str) -> str:
    """The question whether an answer is right."""
    return form.shown("answer, verdict") + form.ask(doc) + ANSWER + answer + VERDICT


def sure(logprob: float) -> list[float]:
    """The logits of an event with this log-probability, and of its opposite: log p and log (1 - p)."""
    logprob = min(logprob, -1e-9)
    return [logprob, log(-expm1(logprob))]


def together(logprobs: Sequence[float]) -> float:
    """The log-probability that one of some events happens: log Σ exp."""
    most = max(logprobs)
    return most + log(sum(exp(value - most) for value in logprobs))


def reconsider(texts: Texts, form: Form, answers: Sequence[Judged]) -> list[str]:
    """The answers after the model was asked: others, where it called them wrong."""
    doubted = [at for at, answer in enumerate(answers) if answer.confidence("verdict") < 0.5]
    asked = [asked_about(form, answers[at].doc, answers[at].text) + WRONG[0] + BETTER for at in doubted]
    second = [answer.text for answer in answers]
    what = f"{form.name}: other answers"
    if form.options is None:
        for at, text in zip(doubted, texts.continuations(what, asked, ANSWER_TOKENS), strict=True):
            second[at] = metrics.first_line(text)
        return second
    options = [[o for o in form.options_of(answers[at].doc) if o != answers[at].text] for at in doubted]
    each = texts.logprobs(
        what, [(text, [o + END for o in some]) for text, some in zip(asked, options, strict=True)]
    )
    for at, some, values in zip(doubted, options, each, strict=True):
        second[at] = some[ranking.best(values)]
    return second


def changed(name: str, answers: Sequence[Judged], second: Sequence[str]) -> list[Cell]:
    """A row: accuracy before and after the model was asked."""
    form, n = forms.forms()[name], len(answers)
    doubted = [answer for answer in answers if answer.confidence("verdict") < 0.5]
    before = [answer.right for answer in answers]
    after = [form.is_right(answer.doc, text) for answer, text in zip(answers, second, strict=True)]
    wrong = mean([not answer.right for answer in doubted])
    gained = (sum(after) - sum(before)) / n
    return [name, n, len(doubted), wrong, sum(before) / n, sum(after) / n, gained, mcnemar_of(before, after)]


def measured(judged: dict[str, list[Judged]]) -> Table:
    """The measures of both signals for each task."""
    columns = [
        "task",
        "signal",
        "questions",
        "accuracy",
        "low",
        "high",
        "mean confidence",
        "ECE",
        "Brier",
        "AUROC",
    ]
    table = Table(f"Confidence and accuracy (ECE: {BINS} bins)", columns)
    for name, answers in judged.items():
        right = [answer.right for answer in answers]
        for signal in SIGNALS:
            values = [answer.confidence(signal) for answer in answers]
            cells: list[Cell] = [name, signal, len(right), mean(right), *wilson(sum(right), len(right))]
            figures = [mean(values), ece(values, right), brier(values, right), auroc(values, right)]
            table.rows.append([*cells, *figures])
    return table


def fitted(judged: dict[str, list[Judged]]) -> Table:
    """ECE before and after a temperature that was fitted on the other half."""
    columns = ["task", "signal", "fitted on", "tested on", "temperature", "ECE before", "ECE after"]
    table = Table(f"Temperature, fitted on one half and tested on the other (ECE: {BINS} bins)", columns)
    for name, answers in judged.items():
        dev, test = halves(len(answers), SEED)
        if not dev:
            continue
        right = [answers[at].right for at in test]
        for signal in SIGNALS:
            temperature = fitted_temperature([answers[at].choice(signal) for at in dev])
            errors = [
                ece([answers[at].confidence(signal, each) for at in test], right)
                for each in (1.0, temperature)
            ]
            table.rows.append([name, signal, len(dev), len(test), temperature, *errors])
    return table


def plots(judged: dict[str, list[Judged]]) -> list[Plot]:
    """A reliability diagram and a selective accuracy curve for each signal."""
    found: list[Plot] = []
    for signal in SIGNALS:
        lines: list[Series] = []
        curves: list[Series] = []
        for name, answers in judged.items():
            values = [answer.confidence(signal) for answer in answers]
            right = [answer.right for answer in answers]
            bins = reliability(values, right)
            lines.append(Series(name, [b.confidence for b in bins], [b.accuracy for b in bins]))
            points = selective(values, right)
            curves.append(Series(name, [x for x, _ in points], [y for _, y in points]))
        found += [
            Plot(f"Reliability of the {signal}", "line", "confidence", "accuracy", lines, diagonal=True),
            Plot(f"Selective accuracy by the {signal}", "line", "coverage", "accuracy", curves),
        ]
    return found


def shown(form: Form, answer: Judged, second: str) -> Sample:
    """A sample."""
    probabilities = ", ".join(f"{signal} {answer.confidence(signal):.3f}" for signal in SIGNALS)
    text = f"{form.ask(answer.doc)}{ANSWER}{answer.text}"
    if second != answer.text:
        text += f"{VERDICT}{WRONG[0]}{BETTER}{second}"
    return Sample(f"{form.name}, {'right' if answer.right else 'wrong'}, {probabilities}", text)
