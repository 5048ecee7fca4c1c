"""What a terminal gets and a file or pipe does not: colours, a progress bar, remarks."""

from __future__ import annotations

import codecs
import math
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from welm import Token

BOLD, DIM, OFF = "\x1b[1m", "\x1b[2m", "\x1b[0m"
# From improbable to probable: red, orange, ochre, olive, green, readable on dark and on light ground.
SHADES = (160, 166, 172, 142, 106, 34)
CLEAR_LINE = "\r\x1b[K"


def has_colours(stream: TextIO) -> bool:
    """Whether colours may be written: to a terminal that knows them, unless ``NO_COLOR`` is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def remark(line: str) -> None:
    """A line about what is going on, for who sits there; nothing if stderr is no terminal."""
    if sys.stderr.isatty():
        print(f"{DIM}{line}{OFF}" if has_colours(sys.stderr) else line, file=sys.stderr, flush=True)


def megabytes(count: int) -> str:
    """Bytes for people: `12.3 MB`."""
    return f"{count / 1e6:,.1f} MB"


class Progress:
    """A progress callback: a bar on a terminal; elsewhere a line every tenth, or nothing if ``quiet``.

    The bar comes up when the work has taken 0.3 seconds, and goes away with it.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label = label
        self._bar = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._quiet = quiet
        self._next_draw = time.monotonic() + 0.3
        self._tenth = 0
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        """Takes a report, in bytes."""
        share = done / max(total, 1)
        if self._bar:
            if time.monotonic() >= self._next_draw:
                self._next_draw = time.monotonic() + 0.05
                self._drawn = True
                bar = f"{'█' * int(30 * share):░<30}"
                print(
                    f"\r{self._label} {bar} {share:4.0%} of {megabytes(total)}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
        elif not self._quiet and int(10 * share) > self._tenth:
            self._tenth = int(10 * share)
            print(f"{self._label}: {self._tenth * 10} % of {megabytes(total)}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)


class Shading:
    """Colours the text of a stream by the probability of its tokens.

    A token's bytes may be part of a character, and text may come later than its tokens, while a stop string is
    undecided: so tokens are queued as characters until the text has come. Text that is not what the tokens say, as
    that of special tokens, is left without colour.
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
        # A tokenizer's space in front of a text is in its first token and not in the text.
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
