"""The questions that experiments ask: four tasks, each with worked examples that we wrote.

A text is a number of examples, an empty line after each, and a question. After a question stand some of these lines::

    答：...              the answer
    理由：...            the explanation, before or after the answer
    这个答案对吗？...      the verdict, 对 or 错; after 错 a line 正确答案：...
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from welm.eval.journal import EvalError
from welm.eval.tasks import metrics, ranking
from welm.eval.tasks.data import DataError
from welm.eval.tasks.sources import documents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from welm.eval.experiments.texts import Texts
    from welm.eval.tasks.readers import Document

ANSWER, REASON, VERDICT, BETTER = "\n答：", "\n理由：", "\n这个答案对吗？", "\n正确答案："
END = "\n\n"
ANSWER_TOKENS = 48
"""Most tokens of an answer that is generated, as in the tasks of reading."""
RIGHT_F1 = 0.5
"""The least F1 on characters of a right answer that is generated, and is a part of a reference or has one as a part."""
RIGHT, WRONG = ("对", "是"), ("错", "否")
"""Words of a verdict. The examples use the first of each."""

Shape = Literal["answer", "answer, reason", "reason, answer", "answer, verdict"]


@dataclass(frozen=True)
class Form:
    """A task."""

    name: str
    about: str
    question: str
    """The question, with the fields of a document in braces; ``choices`` are the options with marks between."""
    evidence: list[str]
    """The fields that an explanation takes its evidence from."""
    options: list[str] | str | None
    """The answers to choose from, or the field that has them; ``None`` if the answer is generated."""
    examples: list[Document]

    def options_of(self, doc: Document) -> list[str]:
        """The answers to choose from; none if the answer is generated."""
        if isinstance(self.options, list):
            return self.options
        found: list[str] = doc[self.options] if self.options else []
        return found

    def ask(self, doc: Document) -> str:
        """The question about a document."""
        return self.question.format(**doc, choices="；".join(self.options_of(doc)))

    def evidence_of(self, doc: Document) -> str:
        """The text that an explanation takes its evidence from."""
        texts: list[str] = [doc[name] for name in self.evidence]
        return "\n".join(texts)

    def right_answer(self, doc: Document) -> str:
        """The right answer, or the first of them."""
        options = self.options_of(doc)
        answer: str = options[int(doc["gold"])] if options else doc["answers"][0]
        return answer

    def is_right(self, doc: Document, answer: str) -> bool:
        """Whether an answer is right; a generated one may have a few characters more than a reference, or fewer."""
        if options := self.options_of(doc):
            return answer == options[int(doc["gold"])]
        return any(_is_alike(right, answer) for right in doc["answers"])

    def wrong_answer(self, example: Document) -> str:
        """A wrong answer to an example."""
        options = self.options_of(example)
        wrong: str = options[(int(example["gold"]) + 1) % len(options)] if options else example["wrong"]
        return wrong

    def shown(self, shape: Shape) -> str:
        """All examples in a shape. Every second verdict is about a wrong answer."""
        return "".join(self._example(number, example, shape) for number, example in enumerate(self.examples))

    def _example(self, number: int, example: Document, shape: Shape) -> str:
        question, right = self.ask(example), self.right_answer(example)
        reason = f"{REASON}{example['explanation']}"
        if shape == "reason, answer":
            return question + reason + ANSWER + right + END
        if shape != "answer, verdict":
            return question + ANSWER + right + (reason if shape == "answer, reason" else "") + END
        if number % 2 == 0:
            return question + ANSWER + right + VERDICT + RIGHT[0] + END
        return question + ANSWER + self.wrong_answer(example) + VERDICT + WRONG[0] + BETTER + right + END


def _is_alike(right: str, answer: str) -> bool:
    """Whether one is a part of the other, and not much shorter. Punctuation does not count."""
    short, long = sorted((metrics.bare(right), metrics.bare(answer)), key=len)
    return short in long and 2 * len(short) >= RIGHT_F1 * (len(short) + len(long))


@cache
def forms() -> dict[str, Form]:
    """The tasks by their names."""
    found: list[dict[str, Any]] = json.loads(Path(__file__).with_name("forms.json").read_text("utf-8"))
    return {form["name"]: Form(**form) for form in found}


def read(
    tasks: Sequence[str], data: str | None, limit: int | None, corpus: Sequence[str], control: Sequence[str]
) -> list[tuple[Form, list[Document]]]:
    """The tasks of these names, or all, with their documents."""
    if corpus or control:
        raise EvalError("expected no corpus and no control, which are for memory")
    known = forms()
    for name in tasks:
        if name not in known:
            raise EvalError(f"expected tasks of {', '.join(known)}, got {name}")
    try:
        return [(known[name], documents(name, "test", data)[:limit]) for name in tasks or known]
    except DataError as error:
        raise EvalError(str(error)) from error


def answers(
    texts: Texts, form: Form, docs: Sequence[Document], shape: Shape
) -> list[tuple[str, list[float]]]:
    """The model's answers after examples of a shape, each with the log-probabilities of the options it chose from.

    A generated answer has no options.
    """
    what, begin = f"{form.name}: answers", form.shown(shape)
    asked = [begin + form.ask(doc) + ANSWER for doc in docs]
    if form.options is None:
        found = texts.continuations(what, asked, ANSWER_TOKENS)
        return [(metrics.first_line(text), []) for text in found]
    # What follows an answer in the examples counts, so that no option wins by being the beginning of another.
    end = END if shape == "answer" else "\n"
    options = [form.options_of(doc) for doc in docs]
    each = texts.logprobs(
        what, [(text, [o + end for o in some]) for text, some in zip(asked, options, strict=True)]
    )
    return [(some[ranking.best(values)], values) for some, values in zip(options, each, strict=True)]
