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

    from welm.train.recipe import Recipe

_BEGUN, _DONE, _SETTINGS = "begun", "done", "settings.json"
_PART = ".part"
"""The end of the name of a file that is being written."""


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
    own = {f"{name}{end}" for name in (_BEGUN, _SETTINGS) for end in ("", _PART)}
    if folder.exists() and {file.name for file in folder.iterdir()} - own:
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


def required(folder: Path, settings: str, *before: str) -> str:
    """The fingerprint of a step that others build on; ``before`` are those of the steps that it builds on itself.

    Raises :class:`RecipeError` if it is not done, or was done with other settings than the recipe has now, or after
    other results of a step before it.
    """
    mark = _read(folder / _DONE)
    if not mark:
        raise RecipeError(f"{folder}: the step {folder.name} comes first")
    if _read(folder / _SETTINGS) != settings or (before and mark != fingerprint(*before, settings)):
        told = "the recipe, or a step before this one, has changed"
        raise RecipeError(f"{folder}: {told}: do the step {folder.name} again")
    return mark


def corpus_mark(recipe: Recipe) -> str:
    """The fingerprint of the step ``corpus``, which must be done."""
    return required(recipe.out / "corpus", recipe.corpus.settings)


def tokenizer_mark(recipe: Recipe) -> str:
    """The fingerprint of the step ``tokenizer``, which must be done."""
    return required(recipe.out / "tokenizer", recipe.tokenizer.settings, corpus_mark(recipe))


def tokens_mark(recipe: Recipe) -> str:
    """The fingerprint of the step ``tokens``, which must be done."""
    return required(recipe.out / "tokens", recipe.pretrain.order, tokenizer_mark(recipe))


def pretrain_mark(recipe: Recipe) -> str:
    """The fingerprint of the step ``pretrain``, which must be done."""
    return required(recipe.out / "pretrain", recipe.pretrain.settings, tokens_mark(recipe))


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
    partial = path.with_name(f"{path.name}{_PART}")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""
