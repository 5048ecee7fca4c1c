"""Step ``corpus``: datatrove's pipelines, from the files of sources to clean documents.

The folder gets ``train/SOURCE`` and ``heldout/SOURCE`` (JSON Lines, zstd), ``report.md`` with a plot, and ``removed``
with all documents that a stage took out. Documents keep their text as it is.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from welm.train.corpus.sources import files_of
from welm.train.corpus.stages import stages_of
from welm.train.pipelines import run_stages
from welm.train.steps import begin, fingerprint, is_done, mark_done

if TYPE_CHECKING:
    from pathlib import Path

    from welm.train.recipe import Corpus, Recipe


def run(recipe: Recipe, out: Path) -> None:
    """Makes the corpus in a folder, or goes on with it."""
    mark = _fingerprint(recipe.corpus, recipe.executor.tasks)
    if is_done(out, mark):
        return
    begin(out, mark)
    run_stages(stages_of(recipe.corpus, out, recipe.executor.tasks), recipe.executor, out / "logs")
    mark_done(out, mark)


def _fingerprint(corpus: Corpus, tasks: int) -> str:
    paths = [path for source in corpus.sources for path in source.files]
    if corpus.contamination:
        paths += corpus.contamination.files
    sizes = [(file.name, file.stat().st_size) for file in files_of(paths)]
    return fingerprint(corpus.model_dump_json(), json.dumps([tasks, sizes]))
