"""The stages of the corpus: each reads what the one before it wrote."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from welm.train.corpus.contamination import Index, Words, contamination_filter
from welm.train.corpus.quality import QualityFilter, TrainQuality
from welm.train.corpus.report import report
from welm.train.corpus.rules import RuleFilter
from welm.train.corpus.sources import ReadSources, Tally
from welm.train.documents import HELDOUT, TRAIN, share_of
from welm.train.pipelines import Stage
from welm.train.recipe import RecipeError

if TYPE_CHECKING:
    from datatrove.data import Document, DocumentsPipeline

    from welm.train.recipe import Corpus


def _text(document: Document) -> bytes:
    text: str = document.text
    return text.encode()


class _Kept(JsonlReader):
    """Reads what a stage has kept."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        if not self.data_folder.list_files():
            state = Path(self.data_folder.path)
            removed = state.parent.with_name("removed") / state.name
            raise RecipeError(
                f"no document is left after the stage {state.name}; {removed} has what it removed"
            )
        yield from super().run(data, rank, world_size)


class _Chain:
    """Makes stages. Documents lie in ``states/NAME``, what a stage removed in ``removed/NAME``."""

    def __init__(self, out: Path, tasks: int) -> None:
        self.out, self.tasks = out, tasks
        self.stages: list[Stage] = []
        self.state = ""

    def folder(self, name: str) -> Path:
        return self.out / "work" / name

    def read(self) -> JsonlReader:
        return _Kept(str(self.out / "states" / self.state), add_file_path=False)

    def removed(self, name: str) -> JsonlWriter:
        return JsonlWriter(str(self.out / "removed" / name), compression="zstd")

    def add(self, name: str, tasks: int, *steps: Any) -> None:
        self.stages.append(Stage(name, tasks, list(steps)))

    def keep(self, name: str, *steps: Any) -> None:
        """A stage that removes documents, and writes the others."""
        writer = JsonlWriter(str(self.out / "states" / name), compression="zstd")
        self.add(name, self.tasks, *steps, Tally(name), writer)
        self.state = name


def stages_of(corpus: Corpus, out: Path, tasks: int) -> list[Stage]:
    """The stages, in order."""
    sources = ReadSources(corpus.sources)
    chain = _Chain(out, tasks)
    rules = {source.name: source.rules or corpus.rules for source in corpus.sources}
    chain.keep("rules", sources, Tally("read"), RuleFilter(rules, chain.removed("rules")))
    if corpus.quality:
        folder = chain.folder("quality")
        chain.add("quality-train", 1, chain.read(), TrainQuality(folder, corpus.quality))
        judged = {source.name for source in corpus.sources if source.quality}
        step = QualityFilter(folder, corpus.quality, judged, chain.removed("quality"))
        chain.keep("quality", chain.read(), step)
    _exact(chain)
    if corpus.duplicates:
        settings = corpus.duplicates
        _near(chain, MinhashConfig(settings.ngram, settings.buckets, settings.hashes))
    if corpus.contamination:
        folder = chain.folder("contamination")
        chain.add("contamination-index", 1, Index(folder, corpus.contamination))
        step = contamination_filter(folder, corpus.contamination, chain.removed("contamination"))
        chain.keep("contamination", chain.read(), step)
    by_source = "${source}/${rank}.jsonl"
    writers = (
        JsonlWriter(str(out / part), by_source, compression="zstd", adapter=_bare)
        for part in (TRAIN, HELDOUT)
    )
    chain.add("split", chain.tasks, chain.read(), partial(_split, corpus.heldout, *writers))
    chain.add("report", 1, partial(report, corpus, out))
    return chain.stages


def _exact(chain: _Chain) -> None:
    signatures, found = chain.folder("exact/signatures"), chain.folder("exact/found")
    config = ExactDedupConfig(content_getter=_text)
    chain.add("exact-signatures", chain.tasks, chain.read(), ExactDedupSignature(str(signatures), config))
    chain.add("exact-find", 1, ExactFindDedups(str(signatures), str(found), config))
    chain.keep("exact", chain.read(), ExactDedupFilter(str(found), config, chain.removed("exact")))


def _near(chain: _Chain, config: MinhashConfig) -> None:
    signatures, found, clusters = (
        chain.folder(f"near/{name}") for name in ("signatures", "found", "clusters")
    )
    step = MinhashDedupSignature(str(signatures), config=config, language=Words())
    chain.add("near-signatures", chain.tasks, chain.read(), step)
    chain.add(
        "near-find", config.num_buckets, MinhashDedupBuckets(str(signatures), str(found), config=config)
    )
    chain.add("near-clusters", 1, MinhashDedupCluster(str(found), str(clusters), config=config))
    chain.keep("near", chain.read(), MinhashDedupFilter(str(clusters), chain.removed("near")))


def _split(
    heldout: float,
    train: JsonlWriter,
    held: JsonlWriter,
    data: DocumentsPipeline,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Writes each document to its source, and to one of the two parts."""
    with train, held:
        for document in data:
            writer = held if share_of(document.text, HELDOUT) < heldout else train
            writer.write(document, rank)


def _bare(_: JsonlWriter, document: Document) -> dict[str, Any]:
    return {"text": document.text, "id": document.id}
