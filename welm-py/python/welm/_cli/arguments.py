"""Flags that several commands have, and what the package's functions want of them.

A flag that is not given is not passed on, so that the defaults are the engine's.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import welm
from welm._cli.parser import did_you_mean
from welm._cli.streams import read_stdin, shown
from welm._cli.terminal import Progress

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Collection, Iterable


class Flag(NamedTuple):
    """A flag with a value."""

    option: str
    """The keyword argument's name; the flag has dashes."""
    type: Callable[[str], Any]
    """Reads the value."""
    metavar: str
    """What the help calls the value."""
    help: str
    """What it is, with its default."""


def wrong(expected: str, value: str, more: str = "", *, quoted: bool = True) -> argparse.ArgumentTypeError:
    """A value outside its domain; a number needs no quotes."""
    got = shown(value) if quoted else shown(value)[1:-1]
    return argparse.ArgumentTypeError(f"expected {expected}, got {got}{more}")


@dataclass(frozen=True)
class Whole:
    """Whole numbers of a domain, which is the engine's.

    It is told before a model is loaded, and of numbers that the engine's types cannot hold, such as -1.
    """

    least: int
    most: int | None = None

    @property
    def domain(self) -> str:
        """In words."""
        return f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"

    def __call__(self, value: str) -> int:
        """Reads one."""
        try:
            number = int(value)
        except ValueError:
            raise wrong(f"a whole number, {self.domain}", value) from None
        if number < self.least or (self.most is not None and number > self.most):
            raise wrong(self.domain, value, quoted=False)
        return number


@dataclass(frozen=True)
class Real:
    """Numbers of a domain, which is the engine's."""

    least: float
    most: float = math.inf

    @property
    def domain(self) -> str:
        """In words."""
        return f"{self.least:g} or more" if self.most == math.inf else f"{self.least:g} to {self.most:g}"

    def __call__(self, value: str) -> float:
        """Reads one."""
        try:
            number = float(value)
        except ValueError:
            raise wrong(f"a number, {self.domain}", value) from None
        if not self.least <= number <= self.most:  # nan is in no domain
            raise wrong(self.domain, value, quoted=False)
        return number


@dataclass(frozen=True)
class Named:
    """Values that have names."""

    names: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    """Taken, but not told."""

    @property
    def domain(self) -> str:
        """In words."""
        *others, last = self.names
        return f"{', '.join(others)} or {last}"

    def __call__(self, value: str) -> str:
        """Reads one."""
        if value in self.names or value in self.aliases:
            return value
        raise wrong(self.domain, value, did_you_mean(value, (*self.names, *self.aliases)))


def device(value: str) -> str:
    """`cuda:3` and the like."""
    kind, _, number = value.partition(":")
    if kind == "cuda" and number.isascii() and number.isdigit():
        return value
    names = Named(("auto", "cpu", "cuda"))
    try:
        return names(value)
    except argparse.ArgumentTypeError:
        raise wrong("auto, cpu, cuda or cuda:N", value, did_you_mean(value, names.names)) from None


def text(value: str) -> str:
    """An argument that must be text; the shell may have passed other bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise wrong("UTF-8", value) from None
    return value


def bias(value: str) -> tuple[int, float]:
    """A token's id and what is added to its logit, as `40=-2.5`."""
    token, _, number = value.partition("=")
    try:
        pair = int(token), float(number)
    except ValueError:
        pair = -1, math.nan
    if pair[0] < 0 or math.isnan(pair[1]):
        raise wrong("a token's id and a number, such as 40=-2.5", value)
    return pair


def size(value: str) -> int:
    """Bytes, as `1500000000`, `512M` or `8G`."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(value[-1:].upper())
    try:
        number = int(float(value[:-1]) * factor) if factor else int(value)
    except (ValueError, OverflowError):
        number = -1
    if number < 0:
        raise wrong("bytes, such as 8G", value)
    return number


@dataclass(frozen=True)
class Counts:
    """Whole numbers with commas between."""

    most: int | None = None

    def __call__(self, value: str) -> list[int]:
        """Reads them."""
        each = Whole(1, self.most)
        try:
            return [each(number) for number in value.split(",")]
        except argparse.ArgumentTypeError:
            raise wrong(f"whole numbers, {each.domain}, such as 1,8", value) from None


def ids(value: str) -> list[int]:
    """Token ids, with spaces or commas between."""
    each = Whole(0)
    return [each(token) for token in value.replace(",", " ").split()]


_LONG_NAMES = ("float32", "bfloat16")
MAX_RUNNING = Whole(1, 4096)

LOADING = (
    Flag("device", device, "DEVICE", "auto, cpu, cuda or cuda:N (default: auto)"),
    Flag(
        "dtype",
        Named(("auto", "f32", "bf16", "int8"), _LONG_NAMES),
        "TYPE",
        "of the weights: auto (as exact as the file), f32, bf16 or int8 (default: auto)",
    ),
    Flag("threads", Whole(1, 1024), "N", "compute threads (default: all that affinity and cgroup allow)"),
    Flag(
        "cache_dtype",
        Named(("f32", "bf16"), _LONG_NAMES),
        "TYPE",
        "of cached keys and values: bf16 or f32 (default: bf16)",
    ),
    Flag(
        "activations",
        Named(("auto", "int8", "int8_rotated", "int16")),
        "BITS",
        "before int8 and four-bit weights: auto, int8, int16 or int8_rotated (CUDA) (default: auto)",
    ),
    Flag(
        "isa", str, "ISA", "instruction set to use at most: scalar; avx2, avxvnni, avx512vnni; neon, neondot"
    ),
    Flag("context_tokens", Whole(1, 1 << 24), "N", "most tokens of a sequence (default: the model's limit)"),
    Flag(
        "cache_tokens",
        Whole(1, 1 << 32),
        "N",
        "tokens that the KV cache holds (default: eight contexts, at most 32768)",
    ),
    Flag(
        "chunk_tokens",
        Whole(1, 65536),
        "N",
        "prompt tokens computed in a step (default: 256; on CUDA 2048, or what memory has room for)",
    ),
    Flag("max_running", MAX_RUNNING, "N", "most sequences that run at once (default: 64)"),
    Flag("queue_limit", Whole(1, 1 << 20), "N", "most sequences that wait (default: 1024)"),
    Flag(
        "memory_limit",
        size,
        "BYTES",
        "for weights, cache and scratch, such as 8G (default: what is available)",
    ),
)

REQUEST = (
    Flag("max_tokens", Whole(0), "N", "most tokens generated (default: 16)"),
    Flag("temperature", Real(0, 100), "T", "divides the logits; 0 is greedy (default: 0.85)"),
    Flag(
        "top_p",
        Real(0, 1),
        "P",
        "keeps the likeliest tokens up to this probability; 1 is off (default: 0.95)",
    ),
    Flag("top_k", Whole(0), "K", "keeps this many of the likeliest tokens; 0 is off (default: 50)"),
    Flag("n", Whole(1, 128), "N", "sequences; the prompt is computed once (default: 1)"),
    Flag(
        "min_p",
        Real(0, 1),
        "P",
        "drops tokens below this share of the likeliest's probability (default: 0.0)",
    ),
    Flag("repetition_penalty", Real(0.01, 100), "X", "above 1, makes repetition less likely (default: 1.0)"),
    Flag(
        "frequency_penalty",
        Real(-100, 100),
        "X",
        "subtracted for each time that a token was generated (default: 0.0)",
    ),
    Flag(
        "presence_penalty",
        Real(-100, 100),
        "X",
        "subtracted once if a token was generated before (default: 0.0)",
    ),
    Flag(
        "logit_bias",
        bias,
        "TOKEN=X",
        "added to the logit of a token's id; -inf rules it out; may be given several times",
    ),
    Flag("stop", text, "TEXT", "ends the text, and is no part of it; may be given several times"),
    Flag(
        "stop_token_ids",
        Whole(0),
        "TOKEN",
        "id of a token that ends the text, with --ignore-eos, too; may be given several times",
    ),
    Flag("cache_salt", text, "TEXT", "shares prompts' beginnings with requests of the same salt only"),
    Flag(
        "logprobs",
        Whole(0, 100),
        "K",
        "colours tokens by probability on a terminal; with --json, gives it for each and for K alternatives",
    ),
    Flag(
        "seed",
        Whole(0, (1 << 64) - 1),
        "SEED",
        "the same seed gives the same text (default: drawn, and told)",
    ),
    Flag("deadline", Real(0), "SECONDS", "ends with what there is after this time"),
)


def add_flags(add: Callable[..., object], flags: Iterable[Flag], without: Collection[str] = ()) -> None:
    """Adds flags, but for some."""
    for flag in flags:
        if flag.option not in without:
            # One that is given several times is named for one value.
            name = "stop_token_id" if flag.option == "stop_token_ids" else flag.option
            names = (["-n"] if flag.option == "n" else []) + [f"--{name.replace('_', '-')}"]
            action = "append" if flag.option in ("stop", "stop_token_ids", "logit_bias") else "store"
            add(*names, dest=flag.option, type=flag.type, metavar=flag.metavar, help=flag.help, action=action)


def add_loading(parser: ArgumentParser, *, path: bool = True) -> None:
    """Adds the flags of loading a model; without ``path`` another argument is the model, too."""
    group = parser.add_argument_group("model")
    about = "Hugging Face folder, int8 folder or GGUF file (default: the small model in this package)"
    group.add_argument("--model", metavar="PATH", default=None, help=about if path else "the same as PATH")
    add_flags(group.add_argument, LOADING)
    group.add_argument(
        "--no-prefix-cache",
        dest="prefix_cache",
        action="store_false",
        help="do not share prompts' beginnings",
    )
    group.add_argument(
        "--no-guard-mapped-files",
        dest="guard_mapped_files",
        action="store_false",
        help="let a model file that is truncated meanwhile end the process",
    )
    group.add_argument(
        "--copy-weights",
        action="store_true",
        help="weights in memory of the process, in huge pages, instead of the mapped file",
    )
    group.add_argument(
        "--allow-unread-tensors",
        action="store_true",
        help="load a model though it has tensors that nothing reads, such as heads for other tasks",
    )


def add_request(parser: ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Adds the flags of a request."""
    group = parser.add_argument_group("request")
    add_flags(group.add_argument, REQUEST, without)
    for option, about in (
        ("echo", "the prompt is part of the text"),
        ("parse_special", "special tokens written in the prompt are special"),
        ("ignore_eos", "the model may not end the text"),
    ):
        if option not in without:
            group.add_argument(f"--{option.replace('_', '-')}", dest=option, action="store_true", help=about)


def add_json(parser: ArgumentParser, about: str) -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", action="store_true", default=False, help=about)


def loading(args: Namespace) -> dict[str, Any]:
    """Keyword arguments of :class:`welm.Model`, but for the path."""
    switches = ["prefix_cache", "copy_weights", "guard_mapped_files", "allow_unread_tensors"]
    names = [flag.option for flag in LOADING] + switches
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def request(args: Namespace) -> dict[str, Any]:
    """Keyword arguments of :meth:`welm.Model.generate`."""
    names = [flag.option for flag in REQUEST] + ["echo", "parse_special", "ignore_eos"]
    options = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if "logit_bias" in options:
        given: list[tuple[int, float]] = options["logit_bias"]
        options["logit_bias"] = {token: sum(x for t, x in given if t == token) for token, _ in given}
    return options


def load(args: Namespace, **more: Any) -> welm.Model:
    """Loads the model, with a progress bar on a terminal if it takes long."""
    with Progress("loading", quiet=True) as progress:
        return welm.Model(args.model, progress=progress, **{**loading(args), **more})


def read_text(value: str) -> str:
    """The text of an argument, or of stdin for ``-``: all of it but for a last line's end."""
    if value != "-":
        return value
    return read_stdin()
