"""What the steps have in common: when is one done, and how is a file written."""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BEGUN, _DONE = "begun", "done"


def fingerprint(*parts: str | bytes) -> str:
    """A hash of all that the result of a step depends on."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def begin(folder: Path, mark: str) -> None:
    """Goes on with a step if it was begun with the same fingerprint. If not, begins anew in an empty folder."""
    if _read(folder / _BEGUN) != mark:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder / _BEGUN, mark)


def is_done(folder: Path, mark: str) -> bool:
    """Whether a step has ended with the same fingerprint."""
    return _read(folder / _DONE) == mark


def mark_done(folder: Path, mark: str) -> None:
    """Says that a step has ended."""
    write(folder / _DONE, mark)


def mark_of(folder: Path) -> str:
    """The fingerprint of a step that has ended, for those that build on it; else empty."""
    return _read(folder / _DONE)


def write(path: Path, text: str) -> None:
    """Writes a file whole, or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""
