"""Every argument of every function with all kinds of wrong values. An error names the argument, what was expected and
what was given, in this package's words. The table tests/fixtures/messages.md has all these errors, for people to read.
"""

from __future__ import annotations

import array
import asyncio
import inspect
import json
import math
import os
import re
import shutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

import welm

from conftest import FIXTURES, Endless, Liar, at_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TABLE = FIXTURES / "messages.md"
UPDATE = "WELM_UPDATE_MESSAGES"

# Phrases of PyO3, CPython and Rust, whose messages know neither the argument nor what is expected.
FOREIGN = re.compile(
    r"[Cc]an't|cannot|could not|failed to|while processing|must be|is not (an|a|iterable|subscriptable|callable)\b"
    r"|does not support|Some\(|None\)|codec|NoneType: None|too large to|PyErr|unhashable|\d{40}"
)


def generator() -> Iterator[int]:
    yield 1


class Stubborn:
    """An object whose repr raises."""

    def __index__(self) -> int:
        raise TypeError("my own words")

    __float__ = __index__

    def __repr__(self) -> str:
        raise TypeError("my own words")


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
    False,
    "cuda:" + "9" * 300,
    "x" * 10_000,
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
    generator(),
    Stubborn(),
    np.int64(-1),
    np.uint8(200),
    np.bool_(True),
    np.str_("x"),
    np.float64("nan"),
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


class Raised(NamedTuple):
    """An error of an argument."""

    kind: str
    argument: str
    expected: str
    got: str


def tried(argument: str, value: object, call: Callable[[Any], object]) -> Raised | None:
    """The error for an argument's value, if it is one. Checks that it is one that the package promises."""
    try:
        call(value)
    except TypeError as error:
        message, option = str(error), argument
    except welm.InvalidOption as error:
        message, option = str(error), error.option
    except OTHERS:
        return None
    else:
        return None
    shown = f"{argument}: {message}"
    assert option == argument, shown
    assert len(message) < 300, shown
    assert not FOREIGN.search(message), shown
    form = re.fullmatch(r"(?s)(argument '(\w+)'|option `(\w+)`): (.*?expected .+?), got (.+)", message)
    assert form is not None, shown
    assert argument in (form[2], form[3]), shown
    kind = "TypeError" if form[2] else "InvalidOption"
    return Raised(kind, argument, form[4], form[5])


OTHERS = (
    welm.TooLong,
    welm.IoError,
    welm.ConfigError,
    welm.InvalidFile,
    welm.TokenizerError,
    welm.ChatTemplateError,
    welm.Unavailable,
    welm.OutOfMemory,
    welm.Cancelled,
)
"""Errors of values that have the right type and range."""

CHAT = ["add_generation_prompt", "tools", "documents", "continue_final_message", "chat_template", "variables"]
MESSAGES = [{"role": "user", "content": "x"}]
TURNS = "{{ messages[0].content }}"


def options_of(call: Any) -> list[str]:
    signature = inspect.signature(call)
    return [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]


def waited(method: Callable[..., Any]) -> Callable[..., object]:
    """Calls the method, and reads its whole result."""

    async def whole(awaitable: Any) -> object:
        if isinstance(awaitable, welm.AsyncStream):
            return [piece async for piece in awaitable]
        return await awaitable

    def call(*args: Any, **options: Any) -> object:
        result = method(*args, **options)
        if isinstance(result, welm.Stream):
            return list(result)
        if inspect.iscoroutine(result) or isinstance(result, welm.AsyncStream):
            return asyncio.run(whole(result))
        return result

    return call


def giving(
    method: Callable[..., object], *args: Any, option: str | None = None, **others: Any
) -> Callable[[Any], object]:
    """A call with a value for an option, or for the first argument."""
    if option is None:
        return lambda value: method(value, **others)
    return lambda value: method(*args, **{**others, option: value})


def calls(model: Any, tmp_path: Path) -> dict[tuple[str, str], Callable[[Any], object]]:
    """How each argument of each function gets a value."""
    histogram: Any = welm.Histogram([0] * 23, 0.0)
    quantize: Any = welm.quantize
    estimate: Any = welm.Model.estimate
    describe: Any = welm.Model.describe
    load: Any = welm.Model
    given: dict[tuple[str, str], Callable[[Any], object]] = {
        ("Model", "progress"): lambda v: None if callable(v) else load(progress=v),
        ("Model", "path"): lambda v: None if v is None else load(v),
        ("estimate", "path"): lambda v: None if v is None else estimate(v),
        ("describe", "path"): lambda v: None if v is None else describe(v),
        ("score", "prompt"): lambda v: model.score(v, ["a"]),
        ("score", "continuations"): lambda v: model.score("a", v),
        ("score_async", "prompt"): lambda v: waited(model.score_async)(v, ["a"]),
        ("score_async", "continuations"): lambda v: waited(model.score_async)(["a"], v),
        ("logits", "prompt"): model.logits,
        ("logits", "from_"): lambda v: model.logits([5, 6], v),
        ("tokenize", "text"): model.tokenize,
        ("tokenize", "parse_special"): lambda v: model.tokenize("a", v),
        # These two never end, and are not an error.
        ("detokenize", "tokens"): lambda v: None if isinstance(v, range | Endless) else model.detokenize(v),
        ("token_bytes", "token"): model.token_bytes,
        ("token_id", "token"): model.token_id,
        ("is_special", "token"): model.is_special,
        ("quantile", "q"): histogram.quantile,
        ("Histogram", "counts"): lambda v: welm.Histogram(v, 0.0),
        ("Histogram", "sum"): lambda v: welm.Histogram([0] * 23, v),
        ("quantize", "src"): lambda v: quantize(v, tmp_path / "int8"),
        ("quantize", "dst"): lambda v: quantize(tmp_path / "nowhere", v),
        ("quantize", "progress"): lambda v: (
            None if callable(v) or v is None else quantize("nowhere", tmp_path / "a", progress=v)
        ),
    }
    for name in ("generate", "stream", "generate_async", "stream_async"):
        method = waited(getattr(model, name))
        given[name, "prompt"] = giving(method, max_tokens=1)
        for option in options_of(welm.Model.generate):
            given[name, option] = giving(method, [5], option=option, max_tokens=1)
    for name in ("chat", "chat_stream", "chat_async", "chat_stream_async"):
        method = waited(getattr(model, name))
        given[name, "messages"] = giving(method, chat_template=TURNS, max_tokens=1)
        for option in [*CHAT, *options_of(welm.Model.generate)]:
            given[name, option] = giving(method, MESSAGES, option=option, chat_template=TURNS, max_tokens=1)
    for name in ("chat_prompt", "chat_tokens"):
        method = getattr(model, name)
        given[name, "messages"] = giving(method, chat_template=TURNS)
        for option in CHAT:
            given[name, option] = giving(method, MESSAGES, option=option, chat_template=TURNS)
    for name in ("score", "score_async"):
        for option in options_of(welm.Model.score):
            given[name, option] = giving(waited(getattr(model, name)), "a", ["b"], option=option)
    for option in options_of(welm.Model.estimate):
        given["estimate", option] = giving(estimate, option=option, device="cpu")
        # Options are read before the path is used.
        given["Model", option] = giving(load, tmp_path / "nowhere", option=option, device="cpu")
    return given


def test_every_argument_is_tried(model: welm.Model, tmp_path: Path) -> None:
    """The arguments are those of the signatures, and every public function is here."""
    known = set(calls(model, tmp_path))
    functions: dict[str, Any] = {"Model": welm.Model, "Histogram": welm.Histogram, "quantize": welm.quantize}
    for owner in (welm.Model, welm.Histogram, welm.CancelToken, welm.Stream):
        functions |= {
            name: f for name, f in vars(owner).items() if name[0] != "_" and callable(getattr(owner, name))
        }
    there = set()
    for name, function in functions.items():
        call = function.__func__ if isinstance(function, staticmethod) else function
        parameters = inspect.signature(call).parameters
        there |= {(name, p) for p in parameters if p != "self"}
    assert there == known
    assert options_of(welm.Model.chat) == [*CHAT, *options_of(welm.Model.generate)]


LIKE_ANOTHER = {
    *("stream", "generate_async", "stream_async", "chat_stream", "chat_async", "chat_stream_async"),
    *("score_async", "chat_tokens", "Model"),
}
"""Functions that read their arguments as another function does. They only get a few values."""
FEW: list[Any] = [object(), -1, 2**70, "\ud800", b"x", [None]]


@pytest.fixture(scope="module")
def raised(model: welm.Model, tmp_path_factory: pytest.TempPathFactory) -> list[Raised]:
    """All errors of arguments: of each kind the first."""
    found: dict[tuple[str, str, str], Raised] = {}
    for (name, argument), call in calls(model, tmp_path_factory.mktemp("files")).items():
        for value in FEW if name in LIKE_ANOTHER else WRONG:
            error = tried(argument, value, call)
            if error:
                found.setdefault(error[:3], error)
    at_rest(model)
    return sorted(found.values(), key=lambda error: (error.argument, error.kind, error.expected))


def others(model: Any, bare: Any, tmp_path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Errors that are not of one argument's value."""
    yield "a prompt that is too long", lambda: model.generate("春" * 600, max_tokens=3)
    yield "no prompt", lambda: bare.generate(Liar())
    yield "a text for a model without a tokenizer", lambda: bare.generate("a")
    yield "a stop string for it", lambda: bare.generate([3], stop="a")
    yield "a conversation for a model without a template", lambda: model.chat(MESSAGES)
    yield "a template that fails", lambda: model.chat(MESSAGES, chat_template="{{ raise_exception('no') }}")
    yield "a template that is not supported", lambda: model.chat(MESSAGES, chat_template="{% include 'x' %}")
    yield (
        "a bias that leaves nothing",
        lambda: model.generate([5], logit_bias=dict.fromkeys(range(7040), -math.inf)),
    )
    yield "a token that the model has not", lambda: model.generate([7040])
    yield "lists of continuations", lambda: model.score(["a", "b"], [["c"]])
    yield "a conversation to be scored", lambda: model.score("a", [MESSAGES])
    yield "more logits than tokens", lambda: model.logits([5, 6], 2)
    yield (
        "continuing and beginning",
        lambda: model.chat(
            MESSAGES, chat_template=TURNS, add_generation_prompt=True, continue_final_message=True
        ),
    )
    yield (
        "continuing what is not there",
        lambda: model.chat(MESSAGES, chat_template=TURNS, continue_final_message="name"),
    )
    yield "a variable that is none", lambda: model.chat_prompt(MESSAGES, chat_template=TURNS, tokenize=False)
    yield "an unknown option", lambda: model.generate("a", max_token=3)
    yield "a scoring that is late", lambda: model.score("a", ["b"], deadline=0)
    yield "a loading that is stopped", lambda: welm.Model(progress=lambda *_: False)
    yield "a device that is not there", lambda: welm.Model(device="cuda:99")
    yield "an instruction set of that name", lambda: welm.Model(isa="mmx")
    yield "too little memory", lambda: welm.Model(memory_limit=20_000_000, device="cpu")
    yield "activations of another device", lambda: welm.Model(activations="int8_rotated", device="cpu")
    small = welm.Model(queue_limit=2, max_running=1, threads=1)
    yield "more sequences than the queue takes", lambda: small.generate("a", n=3)
    streams = [small.stream("a", max_tokens=400, ignore_eos=True)]
    next(streams[0])
    streams += [small.stream("a", max_tokens=400, ignore_eos=True) for _ in range(2)]
    yield "a full queue", lambda: small.generate("a")
    yield "no file", lambda: welm.Model(tmp_path / "nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(FIXTURES / "llama_gqa", broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    yield "a family that is not known", lambda: welm.Model(broken)
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": "x"}))
    yield "a setting of another type", lambda: welm.Model(broken)
    (broken / "config.json").write_text("{")
    yield "a configuration that is no JSON", lambda: welm.Model(broken)
    (broken / "config.json").write_text(json.dumps(config))
    (broken / "model.safetensors").write_bytes(b"\xff" * 64)
    yield "weights that are none", lambda: welm.Model(broken)


def table(raised: list[Raised], model: Any, bare: Any, tmp_path: Path) -> str:
    lines = [
        "# Error messages",
        "",
        f"Made from real errors by `tests/python/test_messages.py`; `{UPDATE}=1` writes it again.",
        "",
        "Of arguments: a `TypeError` says `argument 'NAME': EXPECTED, got GOT`, `welm.InvalidOption` says "
        "``option `NAME`: EXPECTED, got GOT``.",
        "",
        "| argument | raised | expected | got |",
        "|---|---|---|---|",
    ]
    escaped = [[cell.replace("|", "\\|") for cell in (e.argument, e.kind, e.expected, e.got)] for e in raised]
    lines += [f"| {' | '.join(cells)} |" for cells in escaped]
    lines += ["", "Others:", "", "| of | raised | message |", "|---|---|---|"]
    for what, call in others(model, bare, tmp_path):
        with pytest.raises(Exception) as error:  # noqa: PT011  # the message is what is looked at
            call()
        message = str(error.value).replace(str(tmp_path), "FOLDER").replace("|", "\\|")
        assert not FOREIGN.search(message), message
        # Numbers that depend on the machine.
        message = re.sub(r"\d{6,}|(?<=cache_tokens )\d+", "N", message)
        if isinstance(error.value, welm.Unavailable):
            message = re.sub(r"(not available: ).*", r"\1...", message)
        lines.append(f"| {what} | {type(error.value).__name__} | {message} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_messages(
    raised: list[Raised], model: welm.Model, bare: welm.Model, tmp_path: Path
) -> None:
    assert {error.argument for error in raised} >= {
        *options_of(welm.Model.generate),
        *CHAT,
        "path",
        "src",
        "q",
    }
    made = table(raised, model, bare, tmp_path)
    if UPDATE in os.environ:
        TABLE.write_text(made, "utf-8")
    committed = TABLE.read_text("utf-8").splitlines() if TABLE.exists() else []
    differs = [pair for pair in zip(committed, made.splitlines(), strict=False) if pair[0] != pair[1]]
    assert committed == made.splitlines(), (
        f"{TABLE} is not what is raised: {differs[:3]}; {UPDATE}=1 writes it again"
    )
