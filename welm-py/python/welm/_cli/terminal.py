"""Output that only a terminal gets, not a file or pipe: colours, wrapped lines, a progress bar, a spinner, remarks."""

from __future__ import annotations

import codecs
import math
import os
import sys
import threading
import time
from collections import deque
from itertools import cycle
from typing import TYPE_CHECKING, TextIO

from welm._cli.streams import say

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from welm import Token

BOLD, DIM, OFF = "\x1b[1m", "\x1b[2m", "\x1b[0m"
# From improbable to probable: red, orange, ochre, olive, green; readable on dark and on light backgrounds.
SHADES = (160, 166, 172, 142, 106, 34)
CLEAR_LINE = "\r\x1b[K"


def has_colours(stream: TextIO) -> bool:
    """Whether colours may be written: the stream is a terminal that has them, and ``NO_COLOR`` is not set."""
    return obeys(stream) and not os.environ.get("NO_COLOR")


def obeys(stream: TextIO) -> bool:
    """Whether it is a terminal that can go back in a line and clear it."""
    return stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def columns(stream: TextIO) -> int | None:
    """The width of a terminal; ``None`` if the stream is not a terminal, or does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def width(text: str) -> int:
    """How many columns a text takes: Chinese characters take two."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 1 + (east_asian_width(c) in "WF") for c in text)


def wrapped(text: str, most: int | None) -> str:
    """The text with long lines broken between words; continued lines are indented a little."""
    return text if most is None else "\n".join(_broken(line, most) for line in text.split("\n"))


def _broken(line: str, most: int) -> str:
    if width(line) <= most:
        return line
    indent = " " * min(len(line) - len(line.lstrip()), most // 4)
    lines, begin = [""], indent
    for word in line.split():
        longer = f"{lines[-1]} {word}" if lines[-1] else begin + word
        if lines[-1] and width(longer) > most:
            begin = indent + "  "
            lines.append(begin + word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def put(text: str, *, bold: bool = False) -> None:
    """Lines of a table or report on stdout, as wide as the terminal is."""
    text = wrapped(text, columns(sys.stdout))
    print(f"{BOLD}{text}{OFF}" if bold and has_colours(sys.stdout) else text, flush=True)


def remark(line: str) -> None:
    """Writes a line of information for the user; nothing if stderr is not a terminal."""
    if sys.stderr.isatty():
        line = wrapped(line, columns(sys.stderr))
        say(f"{DIM}{line}{OFF}" if has_colours(sys.stderr) else line)


def megabytes(count: int) -> str:
    """Bytes for people: `12.3 MB`."""
    return f"{count / 1e6:,.1f} MB"


class Progress:
    """A progress callback: a bar on a terminal; elsewhere a line for every tenth, or nothing if ``quiet``.

    The bar appears when the work has taken 0.3 seconds, and is cleared at its end.
    """

    def __init__(self, label: str, *, quiet: bool = False, unit: str | None = None) -> None:
        """Its reports are in bytes, or in a ``unit``."""
        self._label = label
        self._unit = unit
        self._bar = obeys(sys.stderr)
        self._quiet = quiet
        self._next_draw = time.monotonic() + 0.3
        self._tenth = 0
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        """Takes a report."""
        share = done / max(total, 1)
        if self._bar:
            if time.monotonic() >= self._next_draw:
                self._next_draw = time.monotonic() + 0.05
                self._drawn = True
                say(f"\r{self._line(share, total)}\x1b[K", end="")
        elif not self._quiet and int(10 * share) > self._tenth:
            self._tenth = int(10 * share)
            say(f"{self._label}: {self._tenth * 10} % of {self._amount(total)}")

    def _amount(self, total: int) -> str:
        return megabytes(total) if self._unit is None else f"{total:,} {self._unit}"

    def _line(self, share: float, total: int) -> str:
        """The bar, or as much as one line has room for: a second line could not be cleared."""
        room = (columns(sys.stderr) or 80) - 1
        full, rest = (
            ("█", "░") if (sys.stderr.encoding or "").lower().replace("-", "") == "utf8" else ("#", ".")
        )
        size = min(room - len(f"{self._label}   100% of {self._amount(total)}"), 30)
        if size >= 5:
            bar = f"{full * int(size * share)}{rest * (size - int(size * share))}"
            return f"{self._label} {bar} {share:4.0%} of {self._amount(total)}"
        return f"{self._label} {share:.0%}" if room >= len(self._label) + 5 else f"{share:.0%}"[:room]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            say(CLEAR_LINE, end="")


class Spinner:
    """A spinner in the terminal's line, until :meth:`stop` clears it.

    It appears after 0.3 seconds, so that a quick answer has none.
    """

    def __init__(self, *, on: bool = True) -> None:
        """Begins, if stderr is a terminal."""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if on and obeys(sys.stderr):
            self._thread = threading.Thread(target=self._turn, daemon=True)
            self._thread.start()

    def _turn(self) -> None:
        pause, drawn = 0.3, False
        for frame in cycle("|/-\\"):
            if self._stopped.wait(pause):
                break
            say(f"\r{frame}", end="")
            pause, drawn = 0.1, True
        if drawn:
            say(CLEAR_LINE, end="")

    def stop(self) -> None:
        """Clears the line; the next output is at its beginning."""
        self._stopped.set()
        if self._thread:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Shading:
    """Colours the text of a stream by the probability of its tokens.

    A token's bytes may be part of a character. And text may come later than its tokens, while it could be the beginning
    of a stop string. So tokens are queued as characters until their text has come. Text that differs from that of the
    tokens, such as that of special tokens, gets no colour.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._logprob: float | None = 0.0
        self._queue: deque[tuple[str, float | None]] = deque()

    def add(self, tokens: tuple[Token, ...]) -> None:
        """Takes the tokens of a piece."""
        for token in tokens:
            unknown = None in (self._logprob, token.logprob)
            self._logprob = None if unknown else (self._logprob or 0.0) + (token.logprob or 0.0)
            characters = self._decoder.decode(token.bytes)
            if not self._decoder.getstate()[0]:
                self._queue.extend((character, self._logprob) for character in characters)
                self._logprob = 0.0

    def shade(self, text: str) -> str:
        """The text of a piece, coloured."""
        # Some tokenizers add a space in front of a text. It is in the first token, but not in the text.
        if text and self._queue and self._queue[0][0] == " " != text[0]:
            self._queue.popleft()
        out: list[str] = []
        colour = ""
        for character in text:
            logprob = None
            if self._queue and self._queue[0][0] == character:
                logprob = self._queue.popleft()[1]
            new = "" if logprob is None else shade_of(logprob)
            if new != colour:
                out.append(new or OFF)
                colour = new
            out.append(character)
        return "".join(out) + (OFF if colour else "")


def shade_of(logprob: float) -> str:
    """The colour of a probability."""
    return f"\x1b[38;5;{SHADES[min(int(math.exp(logprob) * len(SHADES)), len(SHADES) - 1)]}m"
