"""The file of finished requests, by which a run that was ended goes on.

``requests.jsonl`` has a line for each finished request, after one line with the settings of the run. A line is written
whole or, if the process is killed or the disk is full meanwhile, is an incomplete last line, which is dropped when the
run goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import welm
from welm.eval.requests import Answer

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

NAME = "requests.jsonl"
"""The file's name in the folder of a run."""

# Of larger files, so many pieces of this size are read: a whole file of many gigabytes would take minutes.
_PIECES, _PIECE = 64, 1 << 16

CHANGES_BITS = ("dtype", "cache_dtype", "activations", "context_tokens")
"""Options of loading that answers depend on, beside the device: the others change no bit."""


class EvalError(welm.Error):
    """An evaluation cannot begin or go on; the message says why."""


class Journal:
    """The finished requests of a run. It is for one thread, and keeps other processes out of the file."""

    def __init__(self, folder: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        """Opens that of a folder, which is made if it is not there.

        ``settings`` are what the answers depend on, as JSON has them. If the file was begun with others, it stays as it
        is, and :class:`EvalError` names one that differs.
        """
        self.path = Path(folder) / NAME
        self.answers: dict[str, Answer] = {}
        """Those of finished requests, by their keys."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            self._begin(settings)
        except BaseException:
            self.close()
            raise

    def _begin(self, settings: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvalError(
                f"{self.path}: another run has it open; give that one time, or another folder"
            ) from None
        begun, whole = None, 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    entry = json.loads(line)
                    if number == 1:
                        begun = dict(entry["settings"])
                    else:
                        self.answers[entry["key"]] = Answer(entry["result"], entry["tokens"])
                except (ValueError, KeyError, TypeError):
                    reason = f"expected a line that `welm eval` wrote, got {line[:60]!r}"
                    raise EvalError(
                        f"{self.path}, line {number}: {reason}; move the file away to begin anew"
                    ) from None
        if self.answers:
            self._compare(begun or {}, settings)
        elif begun != settings:
            whole = 0
        if os.fstat(self._file).st_size > whole:
            os.ftruncate(self._file, whole)
        if not whole:
            self._write({"settings": settings})

    def _compare(self, begun: dict[str, Any], settings: dict[str, Any]) -> None:
        for name in {**begun, **settings}:
            if begun.get(name) != settings.get(name):
                reason = f"this run was begun with {name} {_shown(begun.get(name))}, got {_shown(settings.get(name))}"
                raise EvalError(f"{self.path}: {reason}; give another folder for that")

    def add(self, key: str, answer: Answer) -> None:
        """Writes down a finished request."""
        self.answers[key] = answer
        self._write({"key": key, "result": answer.result, "tokens": answer.tokens})

    def _write(self, entry: dict[str, Any]) -> None:
        data = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        whole = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, whole)
            error.filename = os.fspath(self.path)
            raise

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        """For ``with``, which closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file."""
        self.close()


def _shown(value: object) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole, or leaves it as it is."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, "utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        error.filename = os.fspath(path)
        raise


def settings_of(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """What answers depend on by the model: its files, and how it is loaded."""
    changing = {name: options[name] for name in CHANGES_BITS if options.get(name) is not None}
    return {"welm": welm.__version__, "model": model_identity(path), **changing}


def model_identity(path: str | os.PathLike[str]) -> str:
    """A hash of a model's files, to see that a run goes on with the model that it was begun with.

    Of large files it reads their sizes and pieces at equal distances.
    """
    path = Path(path)
    digest = hashlib.blake2b(digest_size=16)
    for file in _files(path):
        size = file.stat().st_size
        digest.update(f"{size}\n".encode())
        with open(file, "rb") as opened:
            if size <= _PIECES * _PIECE:
                digest.update(opened.read())
                continue
            for piece in range(_PIECES):
                opened.seek(piece * (size - _PIECE) // (_PIECES - 1))
                digest.update(opened.read(_PIECE))
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    # A GGUF model may be in several files.
    part = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", path.name)
    return sorted(path.parent.glob(f"{escape(part[1])}?????{part[2]}")) if part else [path]
