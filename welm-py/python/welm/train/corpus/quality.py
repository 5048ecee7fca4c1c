"""The quality classifier: fastText, trained on documents that are known to be good or bad."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import heapq
import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.filters.base_filter import BaseFilter

from welm.train.documents import share_of
from welm.train.recipe import RecipeError
from welm.train.words import words

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from datatrove.data import Document, DocumentsPipeline
    from datatrove.pipeline.writers.disk_base import DiskWriter

    from welm.train.recipe import Quality

MODEL, RESULT = "quality.bin", "quality.json"
DIM, LEAST_COUNT = 16, 3
"""Components of a word's vector, and how often a word must come to have one."""
_TESTED = 0.1
"""Share of the examples that are kept to measure it."""


def _line(text: str, settings: Quality) -> str:
    """A document as fastText sees it: the words of its beginning, and all pairs of neighbours."""
    alone = words(text[: settings.characters].lower())
    return " ".join([*alone, *map("_".join, pairwise(alone))])


class TrainQuality(PipelineStep):
    """Trains the classifier, and measures it on a tenth of the examples. One task."""

    type = "train"
    name = "quality"

    def __init__(self, folder: Path, settings: Quality) -> None:
        """Writes into a folder."""
        super().__init__()
        self._folder, self._settings = folder, settings

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        """Reads all documents; of each class those with the least hashes are the examples."""
        settings = self._settings
        classes = {"good": {*settings.good}, "bad": {*settings.bad}}
        # The examples with the greatest hash leave first, so that memory is bounded.
        chosen: dict[str, list[tuple[float, str]]] = {name: [] for name in classes}
        for document in data:
            for name, sources in classes.items():
                if document.metadata["source"] in sources:
                    one = (-share_of(document.text, "quality"), _line(document.text, settings))
                    if len(chosen[name]) < settings.documents:
                        heapq.heappush(chosen[name], one)
                    else:
                        heapq.heappushpop(chosen[name], one)
        for name, examples in chosen.items():
            if len(examples) < 10:
                raise RecipeError(f"quality.{name}: expected at least 10 documents, got {len(examples)}")
        mixed = sorted((-one[0], name, one[1]) for name, examples in chosen.items() for one in examples)
        cut = round(len(mixed) * _TESTED)
        tested, learned = mixed[:cut], mixed[cut:]
        self._folder.mkdir(parents=True, exist_ok=True)
        lines = self._folder / "quality.txt"
        lines.write_text("".join(f"__label__{name} {text}\n" for _, name, text in learned), "utf-8")
        model = _trained(lines, settings)
        lines.unlink()
        right = dict.fromkeys(classes, 0)
        total = dict.fromkeys(classes, 0)
        for _, name, text in tested:
            total[name] += 1
            right[name] += (_goodness(model, text) >= settings.least) == (name == "good")
        result = {"examples": len(learned), "tested": total, "right": right}
        (self._folder / RESULT).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        partial = self._folder / f"{MODEL}.part"
        model.save_model(str(partial))
        os.replace(partial, self._folder / MODEL)


def _trained(lines: Path, settings: Quality) -> Any:
    """A classifier that is the same each time.

    More than one thread would give another result each time. With one thread, fastText leaves nine tenths of its
    vectors as they are found in memory, so it is given vectors to begin with, for all words.
    """
    import fasttext

    counts: Counter[str] = Counter()
    with open(lines, encoding="utf-8") as file:
        for line in file:
            counts.update(line.split()[1:])
    known = sorted(word for word, count in counts.items() if count >= LEAST_COUNT)
    vectors = lines.with_suffix(".vec")
    rows = np.random.default_rng(settings.seed).uniform(-1 / DIM, 1 / DIM, (len(known), DIM))
    with open(vectors, "w", encoding="utf-8") as file:
        file.write(f"{len(known)} {DIM}\n")
        for word, row in zip(known, rows, strict=True):
            file.write(f"{word} {' '.join(f'{value:.5f}' for value in row)}\n")
    try:
        return fasttext.train_supervised(
            str(lines),
            lr=0.3,
            epoch=settings.epochs,
            dim=DIM,
            minCount=LEAST_COUNT,
            bucket=0,
            thread=1,
            pretrainedVectors=str(vectors),
            verbose=0,
        )
    except RuntimeError as error:
        raise RecipeError(f"quality: fastText: {error}") from None
    finally:
        vectors.unlink()


class QualityFilter(BaseFilter):
    """Removes documents that are probably not good, of the sources that it may judge."""

    name = "quality"

    def __init__(
        self, folder: Path, settings: Quality, judged: AbstractSet[str], exclusion_writer: DiskWriter
    ) -> None:
        """Takes the classifier of a folder; ``judged`` are names of sources."""
        super().__init__(exclusion_writer)
        self._folder, self._settings, self._judged = folder, settings, set(judged)
        self._model = None

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document is kept."""
        if doc.metadata["source"] not in self._judged:
            return True
        if self._model is None:
            import fasttext

            self._model = fasttext.load_model(str(self._folder / MODEL))
        good = _goodness(self._model, _line(doc.text, self._settings))
        doc.metadata["quality"] = round(good, 4)
        return (False, "quality") if good < self._settings.least else True


def _goodness(model: Any, line: str) -> float:
    """The probability of being good. The method of the C++ class, without arrays around it."""
    return next(
        (p for p, label in model.f.predict(line + "\n", 2, 0.0, "strict") if label == "__label__good"), 0.0
    )
