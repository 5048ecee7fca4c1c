"""Whether examples with explanations help, and what the model's own explanations are worth.

The answer comes before its explanation, as in A. K. Lampinen et al., "Can language models learn from explanations in
context?", Findings of EMNLP 2022. So the same question is asked after the same examples, with and without.

Nobody reads the explanations here. What is measured are proxies, which a good explanation can fail and a bad one can
pass.
"""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, NamedTuple

from welm.eval.experiments import forms
from welm.eval.experiments.forms import ANSWER, END, REASON, Form, read
from welm.eval.experiments.record import Cell, Plot, Record, Sample, Series, Table, mean
from welm.eval.statistics import mcnemar_of, wilson
from welm.eval.tasks import metrics
from welm.eval.tasks.readers import SEED, Document

if TYPE_CHECKING:
    from collections.abc import Sequence

    from welm.eval.experiments.texts import Texts

__all__ = ["read", "run"]

MAX_TOKENS = 96
"""Most tokens of an explanation."""
SAMPLES = 3
"""Samples of each task."""

TEXT = [
    "The model answers questions of four tasks after the same few examples, once without and once with an "
    "explanation after each example's answer. Options are ranked by their log-probability after the question; "
    "reading generates an answer, which is right if it is a part of a reference answer, or has one as a part, and "
    f"their F1 on characters is at least {forms.RIGHT_F1}: one with a word more is not wrong. Intervals are "
    "Wilson's, 95 %; p is McNemar's exact test on the same questions: how likely at least this difference is if "
    "explanations change nothing. Both are as if questions were independent, also those about one passage.",
    "Then it explains its own answer, and the explanation is judged by proxies, which are no judgement of a "
    "reader. Evidence: the share of its character pairs that stand in the passage, but neither in the rest of the"
    " question nor in the answer; beside it the same with the passage of another question, which is what chance "
    "gives. Cites: the share of explanations with four characters in a row of that kind. Repetition: the share of"
    " its runs of four characters that it has said before. Copied: it is the explanation of an example. The first"
    " row of each task is our own explanations of the examples.",
    "At last it explains another answer as if that were its own. Both explanations are then put before the answer, "
    "and the model chooses between the two answers. Its own is the one that it gave before it had read an "
    "explanation. Keeps its own: after the explanation of its own answer it prefers that one. Agrees with the "
    "other: after the explanation of the other answer it prefers that one, so its explanations show what was asked "
    "for, and not why it answered; by chance: it prefers that one after an explanation of another question. An "
    "explanation often ends by naming the answer, so that a choice after it may only repeat it. Grounds: the same "
    "with explanations that are cut off before their conclusion (所以, 因此, 可见, 说明, 也就是). Alike: the share of "
    "character pairs that both explanations have in common; 1 means that the answer made no difference.",
]


class Explained(NamedTuple):
    """A document with what the model said."""

    doc: Document
    answer: str
    reason: str
    other: str
    """Another answer."""
    other_reason: str


def run(texts: Texts, tasks: Sequence[tuple[Form, list[Document]]]) -> Record:
    """Runs the experiment."""
    scores = Table(
        "Accuracy after examples without and with explanations",
        ["task", "questions", "chance", "without", "low", "high", "with", "low", "high", "difference", "p"],
    )
    quality = Table(
        "Explanations of the model's own answers, by proxies",
        [
            "task",
            "explanations",
            "empty",
            "characters",
            "evidence",
            "by chance",
            "cites",
            "repetition",
            "copied",
        ],
    )
    flipped = Table(
        "Explanations of another answer, by proxies",
        [
            "task",
            "questions",
            "keeps its own",
            "low",
            "high",
            "agrees with the other",
            "low",
            "high",
            "by chance",
            "keeps, grounds",
            "agrees, grounds",
            "alike",
        ],
    )
    samples: list[Sample] = []
    for form, docs in tasks:
        plain, explained = (forms.answers(texts, form, docs, shape) for shape in ("answer", "answer, reason"))
        right = [
            [form.is_right(doc, answer) for doc, (answer, _) in zip(docs, found, strict=True)]
            for found in (plain, explained)
        ]
        scores.rows.append(compared(form, docs, *right))
        cases = explain(texts, form, docs, [answer for answer, _ in explained])
        quality.rows += [judged(form, written(form), "examples, ours"), judged(form, cases, "the model's")]
        flipped.rows.append(swayed(texts, form, cases))
        samples += [
            Sample(f"{form.name}, {'right' if is_right else 'wrong'}", shown(form, case))
            for case, is_right in list(zip(cases, right[1], strict=True))[:SAMPLES]
        ]
    names = [form.name for form, _ in tasks]
    values = [[float(row[at] or 0) for row in scores.rows] for at in (3, 6)]
    plot = Plot(
        "Accuracy after examples without and with explanations",
        "bar",
        "task",
        "accuracy",
        [
            Series(f"{word} explanations", names, value)
            for word, value in zip(("without", "with"), values, strict=True)
        ],
    )
    title = "Do explanations help, and are the model's own worth something?"
    return Record(title, list(TEXT), [scores, quality, flipped], [plot], samples)


def compared(
    form: Form, docs: Sequence[Document], before: Sequence[bool], after: Sequence[bool]
) -> list[Cell]:
    """A row: the accuracy of two ways to answer."""
    n = len(docs)
    chance = None if form.options is None else mean([1 / len(form.options_of(doc)) for doc in docs])
    cells: list[Cell] = [form.name, n, chance]
    for right in (before, after):
        cells += [sum(right) / n, *wilson(sum(right), n)]
    return [*cells, (sum(after) - sum(before)) / n, mcnemar_of(before, after)]


def explain(texts: Texts, form: Form, docs: Sequence[Document], answers: Sequence[str]) -> list[Explained]:
    """Lets the model explain these answers, and others."""
    others = [other_answer(form, docs, at, answer) for at, answer in enumerate(answers)]
    begin = form.shown("answer, reason")
    asked = [
        begin + form.ask(doc) + ANSWER + answer + REASON
        for some in (answers, others)
        for doc, answer in zip(docs, some, strict=True)
    ]
    reasons = texts.continuations(f"{form.name}: explanations", asked, MAX_TOKENS)
    n = len(docs)
    return [Explained(*case) for case in zip(docs, answers, reasons[:n], others, reasons[n:], strict=True)]


def other_answer(form: Form, docs: Sequence[Document], at: int, answer: str) -> str:
    """Another option, drawn by a fixed seed. For a generated answer the right one to the next question that differs."""
    if options := form.options_of(docs[at]):
        return random.Random(f"{SEED} {at}").choice([option for option in options if option != answer])
    following = [*docs[at + 1 :], *docs[:at], *form.examples]
    right = (form.right_answer(doc) for doc in following)
    return next(text for text in right if metrics.bare(text) != metrics.bare(answer))


def written(form: Form) -> list[Explained]:
    """The examples with our explanations."""
    return [
        Explained(example, form.right_answer(example), example["explanation"], "", "")
        for example in form.examples
    ]


def judged(form: Form, cases: Sequence[Explained], whose: str) -> list[Cell]:
    """A row: the proxies of explanations."""
    ours = {example["explanation"] for example in form.examples} if whose == "the model's" else set[str]()
    there = [case for case in cases if case.reason]
    passages = [form.evidence_of(case.doc) for case in there]
    known = [form.ask({**case.doc, **dict.fromkeys(form.evidence, "")}) + case.answer for case in there]

    def shares(passages: Sequence[str], length: int = 2) -> list[float]:
        each = zip(there, passages, known, strict=True)
        return [evidence(case.reason, passage, rest, length) for case, passage, rest in each]

    return [
        f"{form.name}, {whose}",
        len(cases),
        1 - len(there) / len(cases),
        mean([len(case.reason) for case in there]),
        mean(shares(passages)),
        mean(shares(passages[1:] + passages[:1])) if len(there) > 1 else None,
        mean([share > 0 for share in shares(passages, 4)]),
        mean([repetition(case.reason) for case in there]),
        mean([case.reason in ours for case in there]),
    ]


def swayed(texts: Texts, form: Form, cases: Sequence[Explained]) -> list[Cell]:
    """A row: what the model prefers after each of its explanations."""
    begin = form.shown("reason, answer")
    asked = [
        (begin + form.ask(case.doc) + REASON + reason + ANSWER, [case.answer + END, case.other + END])
        for case, stranger in zip(cases, [*cases[1:], cases[0]], strict=True)
        for reason in (
            *(case.reason, case.other_reason, stranger.reason),
            *(grounds(case.reason), grounds(case.other_reason)),
        )
    ]
    prefers_own = [own > other for own, other in texts.logprobs(f"{form.name}: both answers", asked)]
    n = len(cases)
    kept, kept_grounds = (sum(prefers_own[at::5]) for at in (0, 3))
    agreed, chance, agreed_grounds = (n - sum(prefers_own[at::5]) for at in (1, 2, 4))
    both = mean([alike(case.reason, case.other_reason) for case in cases])
    cells: list[Cell] = [form.name, n, kept / n, *wilson(kept, n), agreed / n, *wilson(agreed, n), chance / n]
    return [*cells, kept_grounds / n, agreed_grounds / n, both]


def grounds(reason: str) -> str:
    """An explanation without its conclusion, which often names the answer."""
    return re.split("所以|因此|可见|说明|也就是", reason, maxsplit=1)[0].rstrip("，。； ")


def shown(form: Form, case: Explained) -> str:
    """A sample."""
    own = f"{ANSWER}{case.answer}{REASON}{case.reason}"
    return f"{form.ask(case.doc)}{own}\n\n{ANSWER}{case.other}{REASON}{case.other_reason}".replace(
        "\n\n\n", "\n\n"
    )


def runs(text: str, length: int = 2) -> list[str]:
    """The runs of so many characters in a text, without punctuation."""
    bare = "".join(metrics.bare(text).split())
    return [bare[at : at + length] for at in range(len(bare) - length + 1)]


def evidence(reason: str, passage: str, known: str, length: int = 2) -> float:
    """The share of an explanation's different runs that stand in the passage, but not in what is known without it."""
    said = set(runs(reason, length))
    return len(said & (set(runs(passage, length)) - set(runs(known, length)))) / max(1, len(said))


def repetition(text: str) -> float:
    """1 - different runs / all runs of four characters.

    It is seq-rep-4 of S. Welleck et al., "Neural text generation with unlikelihood training", ICLR 2020, on characters.
    """
    found = runs(text, 4)
    return 1 - len(set(found)) / len(found) if found else 0.0


def alike(left: str, right: str) -> float:
    """The pairs of characters in both texts / those in one of them: Jaccard's index. 1 for two empty texts."""
    a, b = set(runs(left)), set(runs(right))
    return len(a & b) / len(a | b) if a | b else 1.0
