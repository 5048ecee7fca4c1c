"""What the steps have in common: when is one done, what does it build on, and how is a file written."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from itertools import count
from typing import TYPE_CHECKING

from welm.train.recipe import RecipeError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

_BEGUN, _DONE, _SETTINGS = "begun", "done", "settings.json"


def fingerprint(*parts: str) -> str:
    """A hash of all that the result of a step depends on."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def stamp(files: Iterable[Path]) -> str:
    """Names, sizes and times of files. Where they lie does not count."""
    return "".join(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}\n" for file in files)


def begin(folder: Path, mark: str, settings: str) -> None:
    """Goes on with a step if it was begun with the same fingerprint.

    If not, begins anew in an empty folder; what an earlier recipe made is kept under another name. Raises
    :class:`RecipeError` if the folder has other things than a step.
    """
    if _read(folder / _BEGUN) == mark:
        return
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _BEGUN).exists():
            raise RecipeError(f"{folder}: expected an empty folder, or one that this step has made")
        folder.rename(
            next(free for n in count(1) if not (free := folder.with_name(f"{folder.name}.{n}")).exists())
        )
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / _SETTINGS, settings)
    write(folder / _BEGUN, mark)


def is_done(folder: Path, mark: str) -> bool:
    """Whether a step has ended with the same fingerprint."""
    return _read(folder / _DONE) == mark


def mark_done(folder: Path, mark: str) -> None:
    """Says that a step has ended."""
    write(folder / _DONE, mark)


def required(folder: Path, settings: str) -> str:
    """The fingerprint of a step that others build on.

    Raises :class:`RecipeError` if it is not done, or was done with other settings than the recipe has now.
    """
    mark = _read(folder / _DONE)
    if not mark:
        raise RecipeError(f"{folder}: the step {folder.name} comes first")
    if _read(folder / _SETTINGS) != settings:
        raise RecipeError(f"{folder}: the recipe has changed: do the step {folder.name} again")
    return mark


@contextlib.contextmanager
def alone(folder: Path) -> Generator[None, None, None]:
    """Holds the folder of a step. Raises :class:`RecipeError` if another process does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(f"{folder}: another process works on it") from None
        yield


def write(path: Path, text: str) -> None:
    """Writes a file whole, or not at all."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""
