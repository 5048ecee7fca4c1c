"""Writes the stream of a request for the user: as text, as one JSON object, or as a JSON line for each piece."""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from welm._cli.terminal import Shading, has_colours

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from welm import FinishReason, Piece, Stream, Token


@contextmanager
def ctrl_c_cancels(stream: Stream) -> Generator[None]:
    """Ctrl-C ends the request instead of raising: its last pieces still come, as ``"cancelled"``. A second one raises.

    In other threads than the main one, and if the caller has changed the handler of Ctrl-C, this does nothing.
    """
    previous = signal.getsignal(signal.SIGINT)
    if (
        threading.current_thread() is not threading.main_thread()
        or previous is not signal.default_int_handler
    ):
        yield
        return

    def first(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        stream.cancel()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def print_json(value: object) -> None:
    """Prints a value as one line of JSON."""
    import json

    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(value, ensure_ascii=ascii_only), flush=True)


def json_of_tokens(tokens: tuple[Token, ...], *, logprobs: bool) -> dict[str, Any]:
    """Ids, and with ``logprobs`` all that is known."""
    ids: dict[str, Any] = {"token_ids": [token.id for token in tokens]}
    return {**ids, "tokens": [json_of_token(token) for token in tokens]} if logprobs else ids


def json_of_token(token: Token) -> dict[str, Any]:
    """A token. Its bytes are included, because it may be part of a character."""
    value: dict[str, Any] = {
        "id": token.id,
        "text": token.text,
        "bytes": list(token.bytes),
        "logprob": token.logprob,
    }
    if token.alternatives:
        value["alternatives"] = [json_of_token(other) for other in token.alternatives]
    return value


class Sequence:
    """The part of one sequence that has come."""

    def __init__(self) -> None:
        """Makes an empty sequence."""
        self.texts: list[str] = []
        self.tokens: list[Token] = []
        self.finish_reason: FinishReason | None = None
        self.end_token: int | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.texts)


class Answer:
    """The part of an answer that has come, with times."""

    def __init__(self, stream: Stream, n: int = 1) -> None:
        """Starts the clock of a request that was just sent."""
        self.sequences = [Sequence() for _ in range(n)]
        self.seed, self.prompt_tokens = stream.seed, stream.prompt_tokens
        self.completion_tokens = self.cached_tokens = 0
        self._sent = self._last = time.perf_counter()
        self._first: float | None = None

    def add(self, piece: Piece) -> None:
        """Adds a piece."""
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        sequence = self.sequences[piece.index]
        sequence.texts.append(piece.text)
        sequence.tokens.extend(piece.tokens)
        if piece.finish:
            sequence.finish_reason = piece.finish.reason
            sequence.end_token = piece.finish.end_token
            self.completion_tokens += piece.finish.completion_tokens
            self.cached_tokens = max(self.cached_tokens, piece.finish.cached_tokens)

    @property
    def first_s(self) -> float:
        """Seconds to the first piece."""
        return (self._first or self._last) - self._sent

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first ones."""
        seconds = self._last - (self._first or self._last)
        tokens = self.completion_tokens - len(self.sequences)
        return tokens / seconds if tokens > 0 and seconds > 0 else None

    @property
    def cancelled(self) -> bool:
        """Whether Ctrl-C ended it; nothing else here cancels a request."""
        return any(sequence.finish_reason == "cancelled" for sequence in self.sequences)

    def summary(self, load_s: float) -> dict[str, Any]:
        """Figures of the request as a whole."""
        return {
            "seed": self.seed,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "cached_tokens": self.cached_tokens,
            },
            "timings": {
                "load_s": load_s,
                "first_token_s": self.first_s,
                "total_s": self._last - self._sent,
                "tokens_per_s": self.tokens_per_s,
            },
        }

    def choices(self, *, logprobs: bool) -> list[dict[str, Any]]:
        """The sequences."""
        return [
            {
                "text": sequence.text,
                "finish_reason": sequence.finish_reason,
                "end_token": sequence.end_token,
                **json_of_tokens(tuple(sequence.tokens), logprobs=logprobs),
            }
            for sequence in self.sequences
        ]


class Printer:
    """Writes texts as they come. Sequences are written one after another: the text of later ones has to wait."""

    def __init__(self, n: int = 1, *, shaded: bool = False) -> None:
        """For ``n`` sequences; ``shaded`` colours them if stdout has colours."""
        shaded = shaded and has_colours(sys.stdout)
        self._shadings = [Shading() if shaded else None for _ in range(n)]
        self._waiting = [""] * n
        self._ended = [False] * n
        self._turn = 0
        self._wrote = False

    def add(self, piece: Piece) -> None:
        """Writes a piece, or keeps it."""
        text, shading = piece.text, self._shadings[piece.index]
        if shading:
            shading.add(piece.tokens)
            text = shading.shade(text)
        self._waiting[piece.index] += text
        self._ended[piece.index] = piece.finish is not None
        while self._turn < len(self._waiting):
            self._write(self._waiting[self._turn])
            self._waiting[self._turn] = ""
            if not self._ended[self._turn]:
                break
            self._write("\n")
            self._turn, self._wrote = self._turn + 1, False

    def _write(self, text: str) -> None:
        if not text:
            return
        if not self._wrote and len(self._waiting) > 1:
            text = f"[{self._turn}] {text}"
        self._wrote = True
        sys.stdout.write(text)
        sys.stdout.flush()
