"""Documents of the corpus that the first step has made."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import fsspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRAIN, HELDOUT = "train", "heldout"


def share_of(text: str, name: str) -> float:
    """A number from 0 to 1, by a hash of a text. Another name gives another number."""
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8, person=name.encode()[:16])
    return int.from_bytes(digest.digest(), "big") / 2**64


def times(text: str, weight: float) -> int:
    """How often a document is read in one pass, if its source has a weight."""
    whole = int(weight)
    return whole + (share_of(text, "weight") < weight - whole)


def texts_of(corpus: Path, part: str, source: str) -> Iterator[str]:
    """The documents of a source in a part of the corpus, in order."""
    for file in sorted((corpus / part / source).glob("*.jsonl.zst")):
        with fsspec.open(str(file), "rt", encoding="utf-8", compression="zstd") as lines:
            for line in lines:
                yield json.loads(line)["text"]
