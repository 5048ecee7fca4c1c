"""Arguments that are wrong: every one is named, nothing is allocated by a length that is only claimed."""

from __future__ import annotations

import array
import asyncio
import collections.abc
import inspect
import math
import re
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import welm

from conftest import FIXTURES, PROMPT, at_rest

if TYPE_CHECKING:
    from collections.abc import Callable

HUGE = 2**36


class Liar(collections.abc.Sequence[Any]):
    """Says that it has more than it has."""

    def __init__(self, *items: Any, claims: int = HUGE) -> None:
        self.items = items
        self.claims = claims

    def __len__(self) -> int:
        return self.claims

    def __getitem__(self, at: Any) -> Any:
        return self.items[at]


class Endless(Liar):
    """Never ends, whatever it says."""

    def __getitem__(self, at: Any) -> Any:
        return self.items[0]


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
    """They are not looked at: it takes no time, and the message has their number."""
    known = count if count < 2**63 else 513  # more than a length can be; so many were counted

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


WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    1 << 20,
    2**32,
    2**63,
    2**64,
    2**70,
    10**400,
    -(10**400),
    10**5000,
    1.5,
    -0.5,
    1e300,
    math.nan,
    math.inf,
    -math.inf,
    1j,
    "",
    "x",
    "\ud800",
    "a\0b",
    "长" * 300,
    b"x",
    bytearray(b"x"),
    memoryview(b"x"),
    [],
    [1],
    ["x"],
    ["\ud800"],
    [b"x"],
    [None],
    [-1],
    [2**70],
    [[1]],
    (1, "x"),
    {1},
    {},
    {"a": 1},
    {1: "a"},
    {1: None},
    {-1: 1.0},
    {2**70: 1.0},
    {1: math.nan},
    {1: 10**400},
    {1.5: 1},
    object(),
    print,
    int,
    range(2**62),
    range(2**70),
    Liar(1),
    Liar("x"),
    Endless(1),
    timedelta.max,
    timedelta.min,
    np.array(3),
    np.array([1.5]),
    np.float32(2),
    np.zeros((2, 2)),
    array.array("d", [1.0]),
    iter([1]),
]


def names(value: object) -> str:
    return repr(value)[:40] if not isinstance(value, int) or value.bit_length() < 99 else "a huge number"


def check(argument: str, value: object, call: Callable[[Any], object], *others: type[Exception]) -> None:
    """Only what the package promises."""
    message, option = "", argument
    try:
        call(value)
    except TypeError as error:
        message = str(error)
    except welm.InvalidOption as error:
        message, option = str(error), error.option
    except others:
        pass
    known = f"argument '{re.escape(argument)}'|option `{re.escape(argument)}`: expected "
    assert not message or re.search(known, message), (names(value), message)
    assert option == argument, (names(value), message)
    assert len(message) < 400


def options_of(call: Any) -> list[str]:
    signature = inspect.signature(call)
    return [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]


@pytest.mark.parametrize("option", options_of(welm.Model.generate))
def test_every_option_with_everything(model: welm.Model, option: str) -> None:
    any_: Any = model

    def options(value: object) -> dict[str, Any]:
        return {"max_tokens": 1, option: value}

    async def pieces(value: object) -> None:
        async for _ in any_.stream_async([5], **options(value)):
            pass

    async def whole(value: object) -> None:
        await any_.generate_async([5], **options(value))

    calls: list[Callable[[Any], object]] = [
        lambda value: any_.generate([5], **options(value)),
        lambda value: list(any_.stream([5], **options(value))),
        lambda value: asyncio.run(whole(value)),
        lambda value: asyncio.run(pieces(value)),
    ]
    for value in WRONG:
        for call in calls:
            check(option, value, call, *([welm.TooLong] if option == "max_tokens" else []))
    at_rest(model)


@pytest.mark.parametrize("option", options_of(welm.Model.estimate))
def test_every_option_of_loading_with_everything(option: str) -> None:
    others = [welm.Unavailable, welm.OutOfMemory] if option in ("device", "isa") else [welm.OutOfMemory]
    estimate: Any = welm.Model.estimate
    for value in WRONG:
        check(option, value, lambda value: estimate(**{"device": "cpu", option: value}), *others)


def test_every_argument_with_everything(model: welm.Model, bare: welm.Model) -> None:
    histogram: Any = welm.Histogram([0] * 23, 0.0)
    any_: Any = model

    async def whole(value: object) -> None:
        await any_.generate_async(value, max_tokens=1)

    calls: list[tuple[str, Callable[[Any], object]]] = [
        ("prompt", lambda v: any_.generate(v, max_tokens=1)),
        ("prompt", lambda v: any_.stream(v, max_tokens=1)),
        ("prompt", lambda v: asyncio.run(whole(v))),
        ("prompt", any_.logits),
        ("from_", lambda v: any_.logits([5, 6], v)),
        ("prompt", lambda v: any_.score(v, ["a"])),
        ("continuations", lambda v: any_.score("a", v)),
        ("text", any_.tokenize),
        ("parse_special", lambda v: any_.tokenize("a", v)),
        ("token", any_.token_bytes),
        ("token", any_.token_id),
        ("token", any_.is_special),
        ("q", histogram.quantile),
        ("counts", lambda v: welm.Histogram(v, 0.0)),
        ("sum", lambda v: welm.Histogram([0] * 23, v)),
        ("progress", lambda v: welm.Model(progress=v)),
        ("src", lambda v: welm.quantize(v, "/nowhere")),
        ("path", welm.Model.estimate),
    ]
    own = (welm.TooLong, welm.IoError, welm.ConfigError, welm.InvalidFile, welm.TokenizerError)
    for argument, call in calls:
        for value in WRONG:
            if not (argument == "progress" and callable(value)):
                check(argument, value, call, *own)
    with pytest.raises(welm.TokenizerError):
        bare.tokenize("a")
    at_rest(model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.score("床", "abc"), "argument 'continuations': expected a sequence of str, got str"),
        (
            lambda m: m.score("床", [b"a"]),
            "argument 'continuations': expected a sequence of str, got bytes in it",
        ),
        (lambda m: m.score(3, ["a"]), "argument 'prompt': expected str, got int"),
        (
            lambda m: m.generate("床", stop=b"x"),
            "argument 'stop': expected str or a sequence of str, got bytes",
        ),
        (lambda m: m.generate("床", temperature="x"), "argument 'temperature': must be real number, not str"),
        (lambda m: m.generate(3), "argument 'prompt': expected str or a sequence of token ids, got int"),
        (
            lambda m: m.generate([5, "a"]),
            "argument 'prompt': expected str or a sequence of token ids, got str in it",
        ),
        (lambda m: m.generate(b"a"), "argument 'prompt': expected str or a sequence of token ids, got bytes"),
        (lambda m: m.logits("床", -1), "option `from_`: expected 0 to 18446744073709551615, got -1"),
        (lambda m: m.generate([-1]), "option `prompt`: expected tokens of 0 to 4294967295, got -1"),
        (lambda m: m.generate("床", seed=-1), "option `seed`: expected 0 to 18446744073709551615, got -1"),
        (
            lambda m: m.generate("床", top_k=2**70),
            "option `top_k`: expected 0 to 18446744073709551615, got 1180591620717411303424",
        ),
        (
            lambda m: m.generate("床", temperature=1e300),
            "option `temperature`: expected a number that fits, got 1e+300",
        ),
        (
            lambda m: m.generate("床", deadline=-(10**400)),
            "option `deadline`: expected 0 seconds or more, got -inf",
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
        with pytest.raises(welm.InvalidOption, match="surrogates not allowed") as raised:
            call()
        assert raised.value.option == option


@pytest.mark.parametrize("deadline", [1e300, 1e19, math.inf, 10**400, timedelta.max])
def test_a_deadline_that_is_never(model: welm.Model, deadline: Any) -> None:
    assert (
        model.generate(PROMPT, max_tokens=2, ignore_eos=True, deadline=deadline).usage.completion_tokens == 2
    )


class Panicking(Liar):
    """Hands on a panic, in the middle of the conversion of an argument."""

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
    """PyO3 resumes one that comes out of a callback, so that it goes through every function like one of its own."""
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
