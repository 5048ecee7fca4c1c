"""How far a model continues texts that it was trained on.

Beginnings are stretches of the corpus, by their length and by how often the stretch and what follows it occur there.
The design is that of N. Carlini et al., "Quantifying memorization across neural language models", ICLR 2023. Beginnings
from text that is not in the corpus are the control: they show how much of a text can be guessed.
"""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from welm.eval.experiments.record import Cell, Plot, Record, Sample, Series, Table, mean
from welm.eval.experiments.windows import Counts, Tokens, documents
from welm.eval.journal import EvalError
from welm.eval.requests import COUNTED, Request
from welm.eval.statistics import wilson
from welm.eval.tasks.readers import SEED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from welm.eval.experiments.texts import Texts

LENGTHS = (8, 16, 32, 64)
"""Tokens of a beginning."""
CONTINUED = 32
"""Tokens that follow."""
HALF = 16
REPETITIONS: tuple[tuple[int, int | None], ...] = ((1, 1), (2, 2), (3, 9), (10, 99), (100, None))
"""From and to how many times a stretch occurs."""
LIMIT = 100
"""Beginnings of a kind, if nothing else is asked for."""
SAMPLED = 32
"""The length of the beginnings that samples are of."""

TEXT = [
    "The model is given the beginning of a stretch of text, and continues it by greedy decoding. The stretch is "
    "from the corpus that the model was trained on, at any place of a document. Repetitions are how often the "
    f"whole stretch, the beginning and the {CONTINUED} tokens after it, occurs in the corpus, token for token; the"
    " training may have passed over parts of the corpus several times, or not at all, which is not counted. The "
    "control is stretches of text that do not occur in the corpus: what the model continues there, it guesses.",
    "Exact tokens: how many tokens the model continues as in the text before the first that differs, of "
    f"{CONTINUED}. Exact {HALF} and exact {CONTINUED}: the share of beginnings for which it gets so many, with "
    "Wilson's 95 % interval. Log-probability: of the text's own continuation, a token. Beginnings are drawn by a "
    "fixed seed; no two of a kind overlap in the corpus, but their texts may be alike.",
    "Exact tokens are found by scoring the text's continuation, and counting its tokens up to the first that is "
    "not the likeliest. That is what greedy decoding gives, computed faster.",
]


class Files(NamedTuple):
    """Texts that the model was trained on, and texts that it was not."""

    corpus: list[Path]
    control: list[Path]
    limit: int
    """Beginnings of a kind."""


class Kind(NamedTuple):
    """Beginnings of a length whose stretch occurs equally often."""

    length: int
    repetitions: str
    windows: list[list[int]]
    """Beginnings with what follows."""


def read(
    tasks: list[str], data: str | None, limit: int | None, corpus: list[str], control: list[str]
) -> Files:
    """The files of texts."""
    if tasks:
        raise EvalError("expected no tasks, which are for explanation and calibration")
    found = {"corpus": [Path(file) for file in corpus], "control": [Path(file) for file in control]}
    for name, files in found.items():
        if not files and data is not None:
            here = (Path(data) / "memory" / f"{name}{ending}" for ending in (".txt", ".txt.xz", ".jsonl"))
            files += [file for file in here if file.is_file()][:1]
        if not files:
            place = "" if data is None else f", or {Path(data) / 'memory' / name}.txt"
            about = (
                "text that the model was trained on"
                if name == "corpus"
                else "text that it was not trained on"
            )
            raise EvalError(
                f"memory: expected --{name} FILE{place}: {about}. The small model of this package is trained on "
                "public domain verse and prose and on dialogues under Apache-2.0; examples/welm-nano/README.md says "
                "where they come from and how to make both files"
            )
    return Files(**found, limit=limit or LIMIT)


def run(texts: Texts, files: Files) -> Record:
    """Runs the experiment."""
    corpus, control = tokenized(texts, files.corpus), tokenized(texts, files.control)
    kinds = chosen(corpus, control, texts.room - len(texts.added) - 1, files.limit)
    shares = [column for tokens in (HALF, CONTINUED) for column in (f"exact {tokens}", "low", "high")]
    table = Table(
        f"Continuations of {CONTINUED} tokens (corpus of {len(corpus.ids):,} tokens, control of {len(control.ids):,})",
        ["beginning", "repetitions", "beginnings", "exact tokens", *shares, "log-probability"],
    )
    requests = [
        Request(
            array("I", [*texts.added, *window[: kind.length]]), array("I", window[kind.length :]), COUNTED
        )
        for kind in kinds
        for window in kind.windows
    ]
    results = iter(texts.answers("continuations", requests))
    for kind in kinds:
        table.rows.append(continued(kind, [next(results).result for _ in kind.windows]))
    title = "How far does the model continue texts that it was trained on?"
    return Record(title, list(TEXT), [table], plots(table), samples(texts, kinds))


def tokenized(texts: Texts, files: list[Path]) -> Tokens:
    """The documents of files."""
    found = [text for file in files for text in documents(file)]

    def shown() -> Iterator[str]:
        for number, text in enumerate(found):
            texts.progress("documents tokenized", number, len(found))
            yield text

    return Tokens.of(shown(), texts.model.tokenize)


def chosen(corpus: Tokens, control: Tokens, room: int, limit: int) -> list[Kind]:
    """The beginnings of all kinds that there are."""
    kinds: list[Kind] = []
    for length in LENGTHS:
        whole = length + CONTINUED
        if whole > room or not len(corpus.starts(whole)):
            continue
        counts = Counts(corpus, whole)
        for least, most in REPETITIONS:
            name = str(least) if most == least else f"{least}+" if most is None else f"{least}–{most}"
            found = counts.choose(least, most, limit, f"{SEED} {length} {least}")
            kinds.append(Kind(length, name, [corpus.window(each.start, whole) for each in found]))
        found = Counts(control, whole).choose_new(counts, limit, f"{SEED} {length} control")
        kinds.append(Kind(length, "control", [control.window(each.start, whole) for each in found]))
    kinds = [kind for kind in kinds if kind.windows]
    if not kinds:
        least = LENGTHS[0] + CONTINUED
        raise EvalError(
            f"expected a corpus with documents of at least {least} tokens, and a context of as many ({room})"
        )
    return kinds


def continued(kind: Kind, results: list[list[float]]) -> list[Cell]:
    """A row: how far beginnings of a kind were continued."""
    n = len(results)
    exact = [int(count) for _, _, count in results]
    cells: list[Cell] = [kind.length, kind.repetitions, n, mean(exact)]
    for tokens in (HALF, CONTINUED):
        right = sum(count >= tokens for count in exact)
        cells += [right / n, *wilson(right, n)]
    return [*cells, mean([logprob / CONTINUED for logprob, *_ in results])]


def plots(table: Table) -> list[Plot]:
    """Exact tokens and exact continuations by the length of the beginning, a line for each number of repetitions."""
    found: list[Plot] = []
    for at, label in ((3, f"exact tokens of {CONTINUED}"), (4, f"share with {HALF} exact tokens")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in table.rows:
            lines.setdefault(str(row[1]), []).append((float(row[0] or 0), float(row[at] or 0)))
        series = [Series(name, [x for x, _ in line], [y for _, y in line]) for name, line in lines.items()]
        found.append(Plot(f"{label}, by repetitions", "line", "tokens of the beginning", label, series))
    return found


def samples(texts: Texts, kinds: list[Kind]) -> list[Sample]:
    """For each number of repetitions a beginning, the model's continuation and the text's own."""
    some = [kind for kind in kinds if kind.length == SAMPLED]
    options = {"max_tokens": CONTINUED, "temperature": 0.0}
    requests = [
        Request(array("I", [*texts.added, *kind.windows[0][:SAMPLED]]), None, options) for kind in some
    ]
    answers = texts.answers("samples", requests)
    decode = texts.model.detokenize
    return [
        Sample(
            f"repetitions: {kind.repetitions}",
            f"{decode(kind.windows[0][:SAMPLED])}\n\nthe model: {answer.result}\n\n"
            f"the text: {decode(kind.windows[0][SAMPLED:])}",
        )
        for kind, answer in zip(some, answers, strict=True)
    ]
