"""Wrong arguments: errors name them, and a claimed length alone allocates nothing."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import welm

from conftest import FIXTURES, HUGE, PROMPT, Endless, Liar, at_rest

if TYPE_CHECKING:
    from collections.abc import Callable


class LiarOfPairs(dict[int, float]):
    """The same of a mapping."""

    def __len__(self) -> int:
        return HUGE

    def items(self) -> Any:
        return Liar(*super().items())


@pytest.mark.parametrize("claims", [0, 1, HUGE, 2**62, 2**63 - 1, 2**64])
def test_lengths_that_are_only_claimed(model: welm.Model, claims: int) -> None:
    tokens = model.tokenize(PROMPT)
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    text = model.generate(PROMPT, **greedy).text
    liar = Liar(*tokens, claims=claims)
    assert model.generate(liar, **greedy).text == text
    assert "".join(piece.text for piece in model.stream(liar, **greedy)) == text
    assert model.detokenize(liar) == PROMPT
    assert model.logits(liar).shape == (len(tokens), 7040)
    batches: list[Any] = [Liar(PROMPT, PROMPT, claims=claims), Liar(tokens, liar, claims=claims)]
    for batch in batches:
        assert [g.text for g in model.generate(batch, **greedy)] == [text, text]
    assert (
        model.generate(PROMPT, stop=Liar(text[2], claims=claims), **greedy).text == text.partition(text[2])[0]
    )
    assert model.score(PROMPT, Liar("疑", "霜", claims=claims)) == model.score(PROMPT, ["疑", "霜"])
    counts = [0] * 23
    assert welm.Histogram(Liar(*counts, claims=claims), 0.5) == welm.Histogram(counts, 0.5)

    async def run() -> None:
        assert (await model.generate_async(liar, **greedy)).text == text
        assert [g.text for g in await model.generate_async([liar], **greedy)] == [text]
        assert "".join([piece.text async for piece in model.stream_async(liar, **greedy)]) == text

    asyncio.run(run())


def test_a_mapping_that_claims_much(model: welm.Model) -> None:
    ids = [t.id for t in model.generate(PROMPT, max_tokens=1, temperature=0).choices[0].tokens]
    bias = LiarOfPairs({ids[0]: -math.inf})
    assert (
        model.generate(PROMPT, max_tokens=1, temperature=0, logit_bias=bias).choices[0].tokens[0].id != ids[0]
    )


@pytest.mark.parametrize("count", [513, HUGE, 2**62, 2**64])
def test_more_tokens_than_fit(model: welm.Model, count: int) -> None:
    """The elements are not read: it takes no time, and the message has their number."""
    known = count if count < 2**63 else 513  # a length cannot be larger; then the elements were counted

    def check(error: welm.TooLong, max_tokens: int) -> None:
        assert (error.prompt_tokens, error.requested, error.limit) == (known, known + max_tokens, 512)
        assert error.what == "context"

    async def whole() -> None:
        await model.generate_async(range(count), max_tokens=3)

    async def pieces() -> None:
        async for _ in model.stream_async(range(count), max_tokens=3):
            pass

    calls: list[Callable[[], object]] = [
        lambda: model.generate(range(count), max_tokens=3),
        lambda: model.generate([[5], range(count)], max_tokens=3),
        lambda: model.stream(range(count), max_tokens=3),
        lambda: asyncio.run(whole()),
        lambda: asyncio.run(pieces()),
    ]
    for call in calls:
        with pytest.raises(welm.TooLong) as raised:
            call()
        check(raised.value, 3)
    with pytest.raises(welm.TooLong) as raised:
        model.logits(range(count))
    check(raised.value, 0)
    at_rest(model)
    assert model.generate(range(512), max_tokens=0).usage.prompt_tokens == 512
    with pytest.raises(welm.TooLong, match="KV cache holds 64"):
        welm.Model(cache_tokens=64).generate(range(count), max_tokens=1)


def test_what_never_ends(model: welm.Model) -> None:
    with pytest.raises(welm.TooLong):
        model.generate(Endless(5, claims=3))
    with pytest.raises(welm.InvalidOption, match="option `stop`: expected at most 256 strings, got 257"):
        model.generate(PROMPT, stop=Endless("a", claims=3))
    with pytest.raises(welm.InvalidOption, match="option `counts`: expected at most 23 counts, got 24"):
        welm.Histogram(Endless(1, claims=3), 0)


NEVER_ENDING = """
import collections.abc, resource, signal, sys, threading, time, os, welm
class Endless(collections.abc.Sequence):
    def __init__(self, item): self.item = item
    def __len__(self): return 1
    def __getitem__(self, at): return self.item
class Pairs(dict):
    def items(self): return Endless((1, 1.0))
model = welm.Model(threads=1)
calls = {
    "tokens": lambda: model.detokenize(range(2**62)),
    "prompts": lambda: model.generate(Endless("a")),
    "texts": lambda: model.score("a", Endless("b")),
    "bias": lambda: model.generate("a", logit_bias=Pairs({1: 1.0})),
}
call = calls[sys.argv[1]]
if sys.argv[2] == "interrupt":
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    expected = KeyboardInterrupt
else:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), -1))
    expected = MemoryError
try:
    call()
except expected as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("what", "how"),
    [
        *((what, "interrupt") for what in ("tokens", "prompts", "texts", "bias")),
        ("tokens", "memory"),
        ("bias", "memory"),
    ],
)
def test_what_never_ends_can_be_interrupted(what: str, how: str) -> None:
    command = [sys.executable, "-c", NEVER_ENDING, what, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("KeyboardInterrupt\n" if how == "interrupt" else "MemoryError\n")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.score("床", "abc"),
            "argument 'continuations': expected a sequence of str, or of sequences of token ids, got str",
        ),
        (
            lambda m: m.score("床", [b"a"]),
            "argument 'continuations': expected str or a sequence of token ids, got bytes",
        ),
        (
            lambda m: m.score(3, ["a"]),
            "argument 'prompt': expected str, a sequence of token ids or a list of messages, got int",
        ),
        (
            lambda m: m.score("床", [3]),
            "argument 'continuations': expected a sequence of str, or of sequences of token ids, got int in it",
        ),
        (
            lambda m: m.score(["床", "床"], [["a"]]),
            "option `continuations`: expected 2 lists, one for each prompt, got 1",
        ),
        (
            lambda m: m.score(["床"], [["a"], ["b"]]),
            "option `continuations`: expected 1 lists, one for each prompt, got 2",
        ),
        (
            lambda m: m.score("床", [[[1]]]),
            "argument 'continuations': expected str or a sequence of token ids, got list in it",
        ),
        (
            lambda m: m.generate("床", stop=b"x"),
            "argument 'stop': expected str or a sequence of str, got bytes",
        ),
        (lambda m: m.generate("床", temperature="x"), "argument 'temperature': expected float, got str"),
        (
            lambda m: m.generate(3),
            "argument 'prompt': expected str, a sequence of token ids or a list of messages, got int",
        ),
        (
            lambda m: m.generate({"role": "user"}),
            "argument 'prompt': expected str, a sequence of token ids or a list of messages, got dict",
        ),
        (
            lambda m: m.generate([5, "a"]),
            "argument 'prompt': expected str, a sequence of token ids or a list of messages, got str in it",
        ),
        (
            lambda m: m.generate(b"a"),
            "argument 'prompt': expected str, a sequence of token ids or a list of messages, got bytes",
        ),
        (lambda m: m.logits("床", -1), "option `from_`: expected 0 or more, got -1"),
        (lambda m: m.generate([-1]), "option `prompt`: expected tokens of 0 to 4294967295, got -1"),
        (lambda m: m.generate("床", seed=-1), "option `seed`: expected 0 or more, got -1"),
        (
            lambda m: m.generate("床", top_k=2**70),
            "option `top_k`: expected at most 18446744073709551615, got 1180591620717411303424",
        ),
        (
            lambda m: m.generate("床", temperature=1e300),
            "option `temperature`: expected -3.4e38 to 3.4e38, got 1e+300",
        ),
        (
            lambda m: m.generate("床", deadline=-(10**400)),
            "option `deadline`: expected 0 seconds or more, got a negative int of 1329 bits",
        ),
        (lambda m: m.generate("床", cancel=3), "argument 'cancel': expected a welm.CancelToken, got int"),
        (lambda m: welm.Model(progress=3), "argument 'progress': expected a callable, got int"),  # type: ignore[arg-type]
        (lambda m: welm.Model(device=3), "argument 'device': expected str, got int"),  # type: ignore[arg-type]
    ],
)
def test_messages(model: welm.Model, call: Callable[[Any], object], message: str) -> None:
    with pytest.raises((TypeError, welm.InvalidOption)) as raised:
        call(model)
    assert str(raised.value) == message


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "床\ud83d"])
def test_text_that_is_no_unicode(model: welm.Model, text: str) -> None:
    any_: Any = model
    calls: dict[str, Callable[[], object]] = {
        "prompt": lambda: any_.generate(text),
        "stop": lambda: any_.generate("a", stop=["b", text]),
        "continuations": lambda: any_.score("a", [text]),
        "text": lambda: any_.tokenize(text),
        "token": lambda: any_.token_id(text),
        "device": lambda: welm.Model.estimate(device=text),
    }
    for option, call in calls.items():
        with pytest.raises(
            welm.InvalidOption, match="expected text without halves of surrogate pairs, got '"
        ) as raised:
            call()
        assert raised.value.option == option


@pytest.mark.parametrize("deadline", [1e300, 1e19, math.inf, 10**400, timedelta.max])
def test_a_deadline_that_is_never(model: welm.Model, deadline: Any) -> None:
    assert (
        model.generate(PROMPT, max_tokens=2, ignore_eos=True, deadline=deadline).usage.completion_tokens == 2
    )


class Panicking(Liar):
    """Raises a panic in the middle of the conversion of an argument."""

    def __getitem__(self, at: Any) -> Any:
        raise welm.InternalError("a panic of the test")


class PanickingPairs(dict[Any, Any]):
    def items(self) -> Any:
        return Panicking()


def panicking(done: int, total: int) -> None:
    raise welm.InternalError("a panic of the test")


def test_a_panic_is_an_error_of_this_package(
    model: welm.Model, capfd: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """PyO3 resumes a panic that comes out of a callback, so it passes every function like a panic of the function
    itself."""
    any_: Any = model
    pairs: Any = PanickingPairs()
    calls: list[Callable[[], object]] = [
        lambda: any_.generate(Panicking(claims=3)),
        lambda: any_.generate([[5], Panicking()]),
        lambda: any_.generate("a", stop=Panicking()),
        lambda: any_.generate("a", logit_bias=pairs),
        lambda: any_.stream(Panicking()),
        lambda: any_.generate_async([[5], Panicking()]),
        lambda: any_.stream_async(Panicking()),
        lambda: any_.score("a", Panicking()),
        lambda: any_.logits(Panicking()),
        lambda: any_.detokenize(Panicking()),
        lambda: welm.Histogram(Panicking(), 0.0),
        lambda: welm.Model(progress=panicking),
        lambda: welm.quantize(FIXTURES / "welm", tmp_path / "int8", progress=panicking),
    ]
    for call in calls:
        with pytest.raises(welm.Error) as raised:
            call()
        assert type(raised.value) is welm.InternalError
        assert "a panic of the test" in str(raised.value)
    assert issubclass(welm.InternalError, Exception)
    assert "resuming a panic" in capfd.readouterr().err
    at_rest(model)
    assert model.generate(PROMPT, max_tokens=2, ignore_eos=True).usage.completion_tokens == 2


def test_counts_that_are_too_many() -> None:
    with pytest.raises(welm.InvalidOption, match="option `counts`: expected a sum"):
        welm.Histogram([2**64 - 1] * 23, 0.0)
