"""Parses command lines. An error is one line, with what may have been meant."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, NoReturn

from welm._cli.streams import Usage, shown
from welm._cli.terminal import columns, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable

# That of argparse does not know exponents, and would take -1e-3 for an option.
_NEGATIVE_NUMBER = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The word that was probably meant, as the end of a message; nothing if no word is similar."""
    import difflib

    known = {name.casefold(): name for name in words}
    near = difflib.get_close_matches(word.casefold(), known, n=1)
    return f", did you mean {known[near[0]]}?" if near else ""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are :class:`Usage`."""

    def __init__(self, prog: str, summary: str, examples: Iterable[str]) -> None:
        """Makes the parser of a command; examples are whole lines."""
        super().__init__(
            prog=prog,
            description=summary,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
            # Flags that are not given are absent, so that the engine's defaults hold. The help shows these defaults.
            argument_default=argparse.SUPPRESS,
        )
        self.hint = ""
        """Added to the message about an unexpected argument: what the reason may be."""
        self._negative_number_matcher = _NEGATIVE_NUMBER
        self.add_argument("-h", "--help", action="store_true", help="show this and leave")

    def error(self, message: str) -> NoReturn:
        """Raises :class:`Usage`."""
        raise Usage(self.prog, f"{message} ({self.prog} --help tells the options)")

    def read(self, line: list[str]) -> argparse.Namespace | None:
        """The arguments; ``None`` if help was asked for, which is printed."""
        for argument in self._options(line):
            name = argument.partition("=")[0]
            if name in ("-h", "--help"):
                print(wrapped(self.format_help(), columns(sys.stdout)), end="")
                return None
            known = self._option_string_actions
            if name not in known and (name.startswith("--") or name[:2] not in known):
                meant = did_you_mean(name.replace("_", "-"), known)
                self.error(
                    f"unknown option {name}{meant or '; a text that begins with a dash comes after --'}"
                )
        args, rest = self.parse_known_args(line)
        if rest:
            hint = f"; a model is --model {rest[0]}" if os.path.exists(rest[0]) else self.hint
            self.error(f"unexpected argument {shown(rest[0])}{hint}")
        return args

    def _options(self, line: list[str]) -> Iterable[str]:
        """The arguments that argparse takes for options."""
        for argument in line:
            if argument == "--":
                return
            known = argument.partition("=")[0] in self._option_string_actions
            is_option = argument[:1] == "-" != argument and not _NEGATIVE_NUMBER.match(argument)
            if is_option and (known or " " not in argument):
                yield argument
