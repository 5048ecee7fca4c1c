"""The standard streams, which may be closed, full, or without a reader.

A failed write to stdout is an error. A failed write to stderr is ignored: messages there are only for a user who reads
them.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING

import welm

if TYPE_CHECKING:
    from collections.abc import Iterator

# Most characters of a value in a message.
_SHOWN = 60


class Failure(Exception):
    """An error of the command line itself: exit code 1."""


class Usage(Failure):
    """A command line that is not understood: exit code 2."""

    def __init__(self, prog: str, reason: str) -> None:
        """``prog`` is the program, or the program and a command."""
        super().__init__(reason)
        self.prog = prog


def prepare() -> None:
    """Makes all three streams usable."""
    # As GNU's programs do: if a stream is closed, its file descriptor would be given to the next file that is opened,
    # such as the model. Reading a closed stdin and writing to a closed stdout is still an error; writing to a closed
    # stderr is not.
    for name, mode, access in (
        ("stdin", "r", os.O_WRONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, access)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    # A character that the terminal cannot show is not an error. A byte that is not text is an error where it is used.
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


def settle() -> None:
    """Drops output that could not be written. Python would try again at its end, and change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
                stream.flush()


def say(text: str, end: str = "\n") -> None:
    """Writes on stderr, if that can be written to."""
    with suppress(OSError, ValueError):
        sys.stderr.write(text + end)
        sys.stderr.flush()


def read_stdin() -> str:
    """All of stdin except the end of the last line."""
    return _decoded(b"".join(_stdin_lines()), "stdin").removesuffix("\n").removesuffix("\r")


def stdin_lines() -> Iterator[str]:
    """The lines of stdin without their ends."""
    for number, line in enumerate(_stdin_lines(), 1):
        yield _decoded(line, f"line {number} of stdin").removesuffix("\n").removesuffix("\r")


def _stdin_lines() -> Iterator[bytes]:
    try:
        yield from sys.stdin.buffer
    except OSError as error:
        error.filename = error.filename or "stdin"
        raise


def ask(prompt: str) -> str:
    """A line from the terminal; raises :class:`EOFError` at its end. Bytes that are not text become surrogates."""
    try:
        if sys.stdout.isatty():
            return input(prompt)
        say(prompt, end="")
        line = sys.stdin.readline()
    except OSError as error:
        error.filename = error.filename or "stdin"
        raise
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def checked(line: str) -> str:
    """Returns a line that was typed if it is text; if not, raises."""
    try:
        line.encode()
    except UnicodeEncodeError:
        # In an ASCII locale, UTF-8 comes as surrogates, too.
        encoding = sys.stdin.encoding or "utf-8"
        return _decoded(line.encode(encoding, "surrogateescape"), "this line")
    return line


def _decoded(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        at = error.start
        raise Failure(f"{what}: expected UTF-8, got the byte 0x{data[at]:02x} at byte {at}") from None


def shown(value: str) -> str:
    """A value in a message: in quotes, as in messages of the engine."""
    return f'"{value if len(value) <= _SHOWN else value[:_SHOWN] + "…"}"'


def message_of(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, (welm.Error, Failure)):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        # Files are opened by name, so an error without a name is about stdout.
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "stdout"
        closed = error.errno == errno.EBADF and name in ("stdin", "stdout")
        text = f"{name}: {'is closed' if closed else error.strerror}"
    elif isinstance(error, MemoryError):
        text = "out of memory"
    else:
        text = f"{type(error).__name__}: {error}; with WELM_TRACEBACK=1 in the environment it tells where"
    return one_line(" ".join(text.split()))


def one_line(text: str) -> str:
    """The text as one line, with control characters escaped, so that it cannot change the terminal."""
    if text.isprintable():
        return text
    from unicodedata import category

    return "".join(
        c.encode("unicode_escape").decode() if category(c) in ("Cc", "Zl", "Zp") else c for c in text
    )


def show_traceback(error: BaseException) -> None:
    """With ``WELM_TRACEBACK=1``, shows where an error comes from."""
    if os.environ.get("WELM_TRACEBACK", "0") not in ("", "0"):
        import traceback

        say("".join(traceback.format_exception(error)), end="")
