"""Step ``corpus``: datatrove's pipelines, from the files of sources to clean documents.

The folder gets ``train/SOURCE`` and ``heldout/SOURCE`` (JSON Lines, zstd), ``report.md`` with a plot, and ``removed``
with all documents that a stage took out. Documents keep their text as it is.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import TYPE_CHECKING

from welm.train.corpus.sources import files_of
from welm.train.corpus.stages import stages_of
from welm.train.pipelines import run_stages
from welm.train.recipe import RecipeError
from welm.train.steps import begin, fingerprint, is_done, mark_done, stamp

if TYPE_CHECKING:
    from pathlib import Path

    from welm.train.recipe import Recipe


def run(recipe: Recipe, out: Path) -> None:
    """Makes the corpus in a folder, or goes on with it."""
    corpus, executor = recipe.corpus, recipe.executor
    if not corpus.sources:
        raise RecipeError("corpus.sources: expected at least one source")
    files = {source.name: files_of(source.files) for source in corpus.sources}
    sets = files_of(corpus.contamination.files) if corpus.contamination else []
    tasks = min(executor.tasks, sum(map(len, files.values())))
    stamps = [part for name, some in files.items() for part in (name, stamp(some))]
    mark = fingerprint(corpus.settings, str(tasks), *stamps, stamp(sets))
    if is_done(out, mark):
        return
    begin(out, mark, corpus.settings)
    run_stages(stages_of(corpus, out, tasks), executor, out / "logs")
    mark_done(out, mark)
