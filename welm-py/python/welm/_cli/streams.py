"""The standard streams, which may be closed, full, or without a reader.

What is meant for stdout comes out or is an error. What is said on stderr is for whoever sits there: where nobody can
read it, the work goes on.
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

# Of a message, the most characters of what came.
_SHOWN = 60


class Failure(Exception):
    """What the command line cannot do: exit code 1."""


class Usage(Failure):
    """A command line that is not understood: exit code 2."""

    def __init__(self, prog: str, reason: str) -> None:
        """Of the program, or of one of its commands."""
        super().__init__(reason)
        self.prog = prog


def prepare() -> None:
    """Makes all three streams usable."""
    # As GNU's programs do: a closed number would be taken by the next file that is opened, such as the model. Reading a
    # closed stdin and writing to a closed stdout is still an error; a closed stderr is silent.
    for name, mode, access in (
        ("stdin", "r", os.O_WRONLY),
        ("stdout", "w", os.O_RDONLY),
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, access)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    # A text that the terminal's encoding lacks is no reason to stop; a byte that is no text is told where it is used.
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "backslashreplace"),
        (sys.stderr, "backslashreplace"),
    ):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


def settle() -> None:
    """Drops what could not be written: Python would try again at its end, and change the exit code."""
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
    """All of stdin but for a last line's end."""
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
    """A line of the terminal; raises :class:`EOFError` at its end. Bytes that are no text are surrogates in it."""
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
    """A line that was typed, if it is text."""
    try:
        line.encode()
    except UnicodeEncodeError:
        # In a locale that knows ASCII only, UTF-8 comes in the same way.
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
    """What came, in a message: in quotes, as the engine does it."""
    return f'"{value if len(value) <= _SHOWN else value[:_SHOWN] + "…"}"'


def message_of(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, (welm.Error, Failure)):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        # Files are opened by name; what has none is stdout.
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "stdout"
        closed = error.errno == errno.EBADF and name in ("stdin", "stdout")
        text = f"{name}: {'is closed' if closed else error.strerror}"
    elif isinstance(error, MemoryError):
        text = "out of memory"
    else:
        text = f"{type(error).__name__}: {error}; with WELM_TRACEBACK=1 in the environment it tells where"
    return one_line(" ".join(text.split()))


def one_line(text: str) -> str:
    """A text that stays in its line, and changes nothing else on a terminal: control characters are escaped."""
    if text.isprintable():
        return text
    from unicodedata import category

    return "".join(
        c.encode("unicode_escape").decode() if category(c) in ("Cc", "Zl", "Zp") else c for c in text
    )


def show_traceback(error: BaseException) -> None:
    """For those who look for a fault in the program: where an error comes from, with ``WELM_TRACEBACK=1``."""
    if os.environ.get("WELM_TRACEBACK", "0") not in ("", "0"):
        import traceback

        say("".join(traceback.format_exception(error)), end="")
