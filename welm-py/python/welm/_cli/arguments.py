"""Flags that several commands have, and their conversion to arguments of the package's functions.

Flags of options are made from the engine's own tables: names, allowed values, defaults, help. A flag that is not given
is not passed on, so that the engine's defaults are used.
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
from welm._welm import option_tables

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Collection, Iterable


class Flag(NamedTuple):
    """A flag of an option."""

    option: str
    """The keyword argument's name; the flag has dashes."""
    type: Callable[[str], Any] | None
    """Reads the value; ``None`` for a switch."""
    metavar: str
    """The name of the value in the help."""
    help: str
    """What the option does, with its default."""
    action: str
    """The action of argparse."""

    @property
    def names(self) -> list[str]:
        """The flag as one types it."""
        # A flag that may be given several times has one value each time, so its name is in the singular.
        name = self.option.removesuffix("s") if self.option == "stop_token_ids" else self.option
        no = "no-" if self.action == "store_false" else ""
        short = ["-n"] if self.option == "n" else []
        return [*short, f"--{no}{name.replace('_', '-')}"]


def wrong(expected: str, value: str, more: str = "", *, quoted: bool = True) -> argparse.ArgumentTypeError:
    """The error for a value that is not allowed; a number needs no quotes."""
    got = shown(value) if quoted else shown(value)[1:-1]
    return argparse.ArgumentTypeError(f"expected {expected}, got {got}{more}")


@dataclass(frozen=True)
class Whole:
    """Whole numbers in a range, which is that of the engine.

    It is checked here, too, so that errors come before a model is loaded, and also for numbers that the engine's types
    cannot hold, such as -1.
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
    """Numbers in a range, which is that of the engine."""

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
        if not self.least <= number <= self.most:  # also refuses nan
            raise wrong(self.domain, value, quoted=False)
        return number


@dataclass(frozen=True)
class Named:
    """Values that have names."""

    names: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    """Names that are accepted, but not shown in the help."""

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
    """A device, such as `cuda:3`."""
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
    """A token's id and the number that is added to its logit, as `40=-2.5`."""
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


def _real(least: float, most: float) -> Real:
    return Real(float(least), float(most))


_READERS: dict[str, tuple[Callable[..., Callable[[str], Any]], str, str]] = {
    "whole": (Whole, "N", "store"),
    "real": (_real, "X", "store"),
    "named": (Named, "NAME", "store"),
    "device": (lambda: device, "DEVICE", "store"),
    "text": (lambda: text, "TEXT", "store"),
    "texts": (lambda: text, "TEXT", "append"),
    "tokens": (lambda: Whole(0), "TOKEN", "append"),
    "biases": (lambda: bias, "TOKEN=X", "append"),
    "bytes": (lambda: size, "BYTES", "store"),
    "duration": (lambda: Real(0), "SECONDS", "store"),
}
"""For each type: what makes the reader of its values, the name of a value in the help, the action of argparse."""

_MORE = {
    "device": ": auto, cpu, cuda or cuda:N",
    "memory_limit": ", such as 8G",
    "logprobs": "; colours the text on a terminal, and is printed with --json",
}
"""Additions of the help to the engine's sentences."""


def _flag(
    name: str, doc: str, default: str | None, unset: str, kind: str, values: tuple[Any, ...]
) -> Flag | None:
    """The flag of a row of the engine's table; ``None`` if only a program can give the option.

    ``doc`` is a sentence, ``unset`` says what holds if there is no default, ``kind`` is the type, ``values`` are the
    allowed values.
    """
    about = doc.rstrip(".") if doc[:2].isupper() else doc[0].lower() + doc[1:].rstrip(".")
    if kind == "switch":
        off = default == "true"
        about = about.removeprefix("whether ")
        about = f"switches this off: {about}" if off else about
        return Flag(name, None, "", about, "store_false" if off else "store_true")
    if kind not in _READERS:
        return None
    make, metavar, action = _READERS[kind]
    reader = make(*values)
    about += f": {reader.domain}" if isinstance(reader, Named) else _MORE.get(name, "")
    limits = f"{reader.domain}; " if isinstance(reader, Whole | Real) and " to " in reader.domain else ""
    about += (
        "; may be given several times" if action == "append" else f" ({limits}default: {default or unset})"
    )
    return Flag(name, reader, metavar, about, action)


LOADING, REQUEST = (
    tuple(flag for row in table if (flag := _flag(*row)) is not None) for table in option_tables()
)


def most(option: str) -> int | None:
    """The largest value of an option that is a whole number."""
    domains = [flag.type for flag in (*LOADING, *REQUEST) if flag.option == option]
    return next(domain.most for domain in domains if isinstance(domain, Whole))


def add_flags(add: Callable[..., object], flags: Iterable[Flag], without: Collection[str] = ()) -> None:
    """Adds flags, except those ``without``."""
    for flag in flags:
        if flag.option in without:
            continue
        value = {} if flag.type is None else {"type": flag.type, "metavar": flag.metavar}
        add(*flag.names, dest=flag.option, help=flag.help, action=flag.action, **value)


def add_loading(parser: ArgumentParser, *, path: bool = True, without: Collection[str] = ()) -> None:
    """Adds the flags of loading a model. Without ``path`` its path is also an argument; :func:`only_path` gives it."""
    group = parser.add_argument_group("model")
    about = "Hugging Face folder, int8 folder or GGUF file (default: the small model in this package)"
    if not path:
        parser.add_argument("path", nargs="?", default=None, metavar="PATH", help=about)
        parser.set_defaults(fail=parser.error)
    group.add_argument("--model", metavar="PATH", default=None, help=about if path else "the same as PATH")
    add_flags(group.add_argument, LOADING, without)


def only_path(args: Namespace) -> str | None:
    """The path of the model, which may be given as an argument or as a flag, but not as both."""
    if None not in (args.path, args.model):
        args.fail(f"expected one model, got {args.path} and {args.model}")
    path: str | None = args.path or args.model
    return path


def add_request(parser: ArgumentParser, *, without: Collection[str] = ()) -> None:
    """Adds the flags of a request."""
    group = parser.add_argument_group("request")
    add_flags(group.add_argument, REQUEST, without)


def add_json(parser: ArgumentParser, about: str) -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", action="store_true", default=False, help=about)


def loading(args: Namespace) -> dict[str, Any]:
    """Keyword arguments of :class:`welm.Model`, without the path."""
    return {flag.option: getattr(args, flag.option) for flag in LOADING if hasattr(args, flag.option)}


def request(args: Namespace) -> dict[str, Any]:
    """Keyword arguments of :meth:`welm.Model.generate`."""
    options = {flag.option: getattr(args, flag.option) for flag in REQUEST if hasattr(args, flag.option)}
    if "logit_bias" in options:
        given: list[tuple[int, float]] = options["logit_bias"]
        options["logit_bias"] = {token: sum(x for t, x in given if t == token) for token, _ in given}
    return options


def load(args: Namespace, **more: Any) -> welm.Model:
    """Loads the model, with a progress bar on a terminal if it takes long."""
    with Progress("loading", quiet=True) as progress:
        return welm.Model(args.model, progress=progress, **{**loading(args), **more})


def read_text(value: str) -> str:
    """The text of an argument, or of stdin for ``-``: all of it except the end of the last line."""
    if value != "-":
        return value
    return read_stdin()
