"""Step ``tokens``: documents to tokens, by datatrove: shuffled, joined, each followed by the end token.

The folder gets ``all``, with one file of 16 bits (or 32) a token: one pass over the corpus, in which a document of a
source with a weight is as often as that says.
"""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer, DocumentTokenizerMerger

from welm.train.documents import TRAIN, texts_of, times
from welm.train.pipelines import Stage, run_stages
from welm.train.steps import begin, fingerprint, is_done, mark_done, tokenizer_mark
from welm.train.tokenizer import END

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from datatrove.data import DocumentsPipeline

    from welm.train.recipe import Recipe

NAME = "corpus"


def run(recipe: Recipe, out: Path) -> None:
    """Makes the tokens in a folder, or goes on with it."""
    settings = recipe.pretrain.order
    mark = fingerprint(tokenizer_mark(recipe), settings)
    if is_done(out, mark):
        return
    begin(out, mark, settings)
    run_stages(_stages(recipe, out), recipe.executor, out / "logs")
    mark_done(out, mark)


def _stages(recipe: Recipe, out: Path) -> list[Stage]:
    weights = {source.name: source.weight for source in recipe.corpus.sources}
    seed = recipe.pretrain.seed
    parts = _PlainText(
        str(out / "parts"),
        str(recipe.out / "tokenizer" / "tokenizer.json"),
        eos_token=END,
        save_final_metadata=True,
        shuffle_documents=True,
        seed=seed,
    )
    merger = DocumentTokenizerMerger(
        str(out / "parts"), str(out / "all"), NAME, max_tokens_per_file=1 << 62, seed=seed, progress=False
    )
    return [
        Stage("tokenize", len(weights), [partial(_weighted, recipe.out / "corpus", weights), parts]),
        Stage("shuffle", 1, [merger]),
    ]


def _weighted(
    corpus: Path, weights: dict[str, float], data: DocumentsPipeline, rank: int = 0, world_size: int = 1
) -> Iterator[Document]:
    """The documents of sources, each as often as its weight says."""
    for source in [*weights][rank::world_size]:
        for number, text in enumerate(texts_of(corpus, TRAIN, source)):
            for _ in range(times(text, weights[source])):
                yield Document(text=text, id=f"{source}/{number}")


class _PlainText(DocumentTokenizer):
    """A tokenizer to which the name of a special token in a document is text like any other."""

    @cached_property
    def tokenizer(self) -> Any:
        words = super().tokenizer
        words.encode_special_tokens = True
        return words
