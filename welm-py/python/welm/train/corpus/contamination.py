"""Text of evaluation sets: an index of its n-grams, in the form of datatrove's filter."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import TextNormConfig, ngrams, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer

from welm.train.corpus.sources import files_of
from welm.train.recipe import RecipeError
from welm.train.words import WORD, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datatrove.data import DocumentsPipeline
    from datatrove.pipeline.writers.disk_base import DiskWriter

    from welm.train.recipe import Contamination


def _config(settings: Contamination) -> NGramsDecontConfig:
    # Numbers stay as they are: dates, and lists of numbers, would all be alike.
    return NGramsDecontConfig(n_grams=settings.ngram, norm_config=TextNormConfig(norm_numbers=False))


class Words(WordTokenizer):
    """The words of `welm.train.words`, for datatrove."""

    def word_tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        return words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """The lines of a text."""
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Where the words are."""
        return [match.span() for match in WORD.finditer(text)]


class Index:
    """Writes a file of hashes for each folder of evaluation sets. One task.

    datatrove's own indexer is not used: it loads its tasks with lighteval.
    """

    def __init__(self, folder: Path, settings: Contamination) -> None:
        """Writes into a folder."""
        self._folder, self._settings = folder, settings

    def __call__(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
        """Reads the sets."""
        config = _config(self._settings)
        hashed = create_hash_func(config.hash_config)
        found: dict[str, set[int]] = defaultdict(set)
        for file in files_of(self._settings.files):
            for text in _strings_of(file):
                runs = ngrams(words(simplify_text(text, config.norm_config)), self._settings.ngram)
                found[file.parent.name].update(hashed(" ".join(run)) for run in runs)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, hashes in sorted(found.items()):
            np.array(sorted(hashes), dtype=config.hash_config.np_descr).tofile(
                self._folder / f"{name}.index.hashes"
            )


def contamination_filter(
    folder: Path, settings: Contamination, exclusion_writer: DiskWriter
) -> NGramsDecontFilter:
    """Removes documents with an n-gram of the index."""
    return NGramsDecontFilter(
        str(folder), config=_config(settings), exclusion_writer=exclusion_writer, language=Words()
    )


def _strings_of(file: Path) -> Iterator[str]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield from _strings(json.loads(line))
            except json.JSONDecodeError as error:
                raise RecipeError(f"{file}:{number}: expected JSON: {error.msg}") from None


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list():
            for one in value:
                yield from _strings(one)
        case dict():
            for one in value.values():
                yield from _strings(one)
