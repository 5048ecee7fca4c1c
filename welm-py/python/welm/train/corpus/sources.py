"""The files of sources: how their documents are read, and counted."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from welm.train.documents import share_of
from welm.train.recipe import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from datatrove.data import DocumentsPipeline

    from welm.train.recipe import Source

LINES, PARQUET = (".jsonl", ".json"), ".parquet"
_COMPRESSED = {".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".bz2": "bz2"}


def files_of(paths: Iterable[Path]) -> list[Path]:
    """The files that a recipe means, sorted. Raises :class:`RecipeError` if there are none for a name."""
    found: list[Path] = []
    for path in paths:
        matches = [path] if path.exists() else map(Path, sorted(glob.glob(str(path), recursive=True)))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise RecipeError(f"{path}: no such file")
        found += files
    return found


def texts_of(path: Path, field: str) -> Iterator[str]:
    """The texts of a file, one a document. Raises :class:`RecipeError` with the line that is wrong."""
    inner = path.with_suffix("") if path.suffix in _COMPRESSED else path
    try:
        if inner.suffix == PARQUET:
            yield from _parquet(path, field)
            return
        compression = _COMPRESSED.get(path.suffix)
        with fsspec.open(str(path), "rt", encoding="utf-8", compression=compression) as lines:
            yield from _json_lines(lines, path, field) if inner.suffix in LINES else _text(lines)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: expected UTF-8: {error.reason} at byte {error.start}") from None
    except RecipeError:
        raise
    except Exception as error:  # each kind of compression has its own
        raise RecipeError(f"{path}: cannot be read: {error}") from None


def _text(lines: Iterable[str]) -> Iterator[str]:
    document: list[str] = []
    for line in lines:
        if line.strip():
            document.append(line)
        elif document:
            yield "".join(document).strip("\n")
            document = []
    if document:
        yield "".join(document).strip("\n")


def _json_lines(lines: Iterable[str], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise RecipeError(f"{path}:{number}: expected JSON: {error.msg}") from None
        text = value.get(field) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise RecipeError(f"{path}:{number}: expected a text in the field {field}")
        yield text


def _parquet(path: Path, field: str) -> Iterator[str]:
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    if field not in file.schema_arrow.names:
        raise RecipeError(f"{path}: expected a column {field}, got {', '.join(file.schema_arrow.names)}")
    for batch in file.iter_batches(columns=[field]):
        for text in batch.column(0).to_pylist():
            if not isinstance(text, str):
                raise RecipeError(f"{path}: expected texts in the column {field}")
            yield text


def _encodable(text: str) -> str:
    """The text with U+FFFD for half surrogates, which JSON can have and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class ReadSources(PipelineStep):
    """Reads the files of all sources. A file belongs to one task."""

    type = "read"
    name = "sources"

    def __init__(self, sources: Iterable[Source]) -> None:
        """Takes sources, whose files must exist."""
        super().__init__()
        self._files = [(source, file) for source in sources for file in files_of(source.files)]

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Gives the documents of the files of a task."""
        for source, file in self._files[rank::world_size]:
            for number, text in enumerate(texts_of(file, source.field)):
                if share_of(text, "untitled") < source.untitled:
                    text = text.partition("\n")[2] or text
                text = _encodable(text)
                if text.strip():
                    metadata: dict[str, Any] = {"source": source.name}
                    yield Document(text=text, id=f"{source.name}/{file.name}/{number}", metadata=metadata)


class Tally(PipelineStep):
    """Counts the documents and characters that pass, for each source."""

    type = "count"

    def __init__(self, name: str) -> None:
        """``name`` is that of the state of the corpus."""
        self.name = name
        super().__init__()

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Passes all documents on."""
        for document in data:
            self.stat_update(f"documents {document.metadata['source']}")
            self.stat_update(f"characters {document.metadata['source']}", value=len(document.text))
            yield document
