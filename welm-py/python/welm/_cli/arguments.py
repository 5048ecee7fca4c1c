"""Flags that several commands have, and what the package's functions want of them.

A flag that is not given is not passed on, so that the defaults are the engine's.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import welm
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


def text(value: str) -> str:
    """An argument that must be text; the shell may have passed other bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("expected UTF-8") from None
    return value


def bias(value: str) -> tuple[int, float]:
    """A token's id and what is added to its logit, as `40=-2.5`."""
    token, _, number = value.partition("=")
    try:
        return int(token), float(number)
    except ValueError:
        reason = f"expected a token's id and a number, such as 40=-2.5, got {value!r}"
        raise argparse.ArgumentTypeError(reason) from None


def size(value: str) -> int:
    """Bytes, as `1500000000`, `512M` or `8G`."""
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(value[-1:].upper())
    try:
        return int(float(value[:-1]) * factor) if factor else int(value)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected bytes, such as 8G, got {value!r}") from None


def counts(value: str) -> list[int]:
    """Positive integers with commas between."""
    try:
        numbers = [int(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"expected positive integers, such as 1,8, got {value!r}")
    return numbers


LOADING = (
    Flag("device", str, "DEVICE", "auto, cpu, cuda or cuda:N (default: auto)"),
    Flag(
        "dtype", str, "TYPE", "of the weights: auto (as exact as the file), f32, bf16 or int8 (default: auto)"
    ),
    Flag("threads", int, "N", "compute threads (default: all that affinity and cgroup allow)"),
    Flag("cache_dtype", str, "TYPE", "of cached keys and values: bf16 or f32 (default: bf16)"),
    Flag(
        "activations",
        str,
        "BITS",
        "before int8 and four-bit weights: auto, int8, int16 or int8_rotated (CUDA) (default: auto)",
    ),
    Flag(
        "isa", str, "ISA", "instruction set to use at most: scalar; avx2, avxvnni, avx512vnni; neon, neondot"
    ),
    Flag("context_tokens", int, "N", "most tokens of a sequence (default: the model's limit)"),
    Flag("cache_tokens", int, "N", "tokens that the KV cache holds (default: eight contexts, at most 32768)"),
    Flag("chunk_tokens", int, "N", "prompt tokens computed in a step (default: 256)"),
    Flag("max_running", int, "N", "most sequences that run at once (default: 64)"),
    Flag("queue_limit", int, "N", "most sequences that wait (default: 1024)"),
    Flag(
        "memory_limit",
        size,
        "BYTES",
        "for weights, cache and scratch, such as 8G (default: what is available)",
    ),
)

REQUEST = (
    Flag("max_tokens", int, "N", "most tokens generated (default: 16)"),
    Flag("temperature", float, "T", "divides the logits; 0 is greedy (default: 0.85)"),
    Flag("top_p", float, "P", "keeps the likeliest tokens up to this probability; 1 is off (default: 0.95)"),
    Flag("top_k", int, "K", "keeps this many of the likeliest tokens; 0 is off (default: 50)"),
    Flag("n", int, "N", "sequences; the prompt is computed once (default: 1)"),
    Flag("min_p", float, "P", "drops tokens below this share of the likeliest's probability (default: 0.0)"),
    Flag("repetition_penalty", float, "X", "above 1, makes repetition less likely (default: 1.0)"),
    Flag(
        "frequency_penalty", float, "X", "subtracted for each time that a token was generated (default: 0.0)"
    ),
    Flag("presence_penalty", float, "X", "subtracted once if a token was generated before (default: 0.0)"),
    Flag(
        "logit_bias",
        bias,
        "TOKEN=X",
        "added to the logit of a token's id; -inf rules it out; may be given several times",
    ),
    Flag("stop", text, "TEXT", "ends the text, and is no part of it; may be given several times"),
    Flag(
        "stop_token_ids",
        int,
        "TOKEN",
        "id of a token that ends the text, with --ignore-eos, too; may be given several times",
    ),
    Flag("cache_salt", text, "TEXT", "shares prompts' beginnings with requests of the same salt only"),
    Flag(
        "logprobs",
        int,
        "K",
        "colours tokens by probability on a terminal; with --json, gives it for each and for K alternatives",
    ),
    Flag("seed", int, "SEED", "the same seed gives the same text (default: drawn, and told)"),
    Flag("deadline", float, "SECONDS", "ends with what there is after this time"),
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
    """Adds the flags of loading a model; without ``path`` the model itself is no flag."""
    group = parser.add_argument_group("model")
    if path:
        group.add_argument(
            "--model",
            metavar="PATH",
            default=None,
            help="Hugging Face folder, int8 folder or GGUF file (default: the small model in this package)",
        )
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
    return sys.stdin.buffer.read().decode().removesuffix("\n").removesuffix("\r")
