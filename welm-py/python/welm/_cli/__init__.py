"""The command line, ``python -m welm`` or ``welm``: a program of the package's public API, and its first user.

One module a command, each with ``SUMMARY``, ``EXAMPLES``, ``add_arguments(parser)`` and ``run(args)``. Only the
command that is asked for is imported, since a short answer takes less time than the imports of all.

Exit codes: 0; 1, an error, told in one line on stderr; 2, wrong usage; 130, Ctrl-C; 141, whoever read the output
has gone.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Protocol, cast

import welm

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

COMMANDS = ("generate", "chat", "score", "quantize", "info", "bench")

HELP = """\
usage: {prog} PROMPT [OPTION...]
       {prog} COMMAND [ARGUMENT...]

Runs language models. A first argument that is no command is a prompt for `generate`; write `{prog} generate chat`
for a prompt that is. Without --model it is the small model in this package, which writes Chinese verse.

commands:
  generate   continues a text
  chat       talks, with models that have a chat template
  score      tells how likely given continuations of a text are
  quantize   writes an int8 copy of a model
  info       tells a model's shape, and the memory that it takes
  bench      measures tokens a second

  {prog} COMMAND --help tells the options of one; {prog} --version the version.

examples:
  {prog} "床前明月光，"
  {prog} "The capital of France is" --model smollm2.gguf --max-tokens 64 --temperature 0
  {prog} chat --model smollm2.gguf
"""


class Command(Protocol):
    """What a command's module has."""

    SUMMARY: str
    """One sentence."""
    EXAMPLES: tuple[str, ...]
    """Command lines, without the program's name."""

    def add_arguments(self, parser: ArgumentParser, /) -> None:
        """Adds flags and positional arguments."""

    def run(self, args: Namespace, /) -> int:
        """Does it; gives the exit code."""
        ...


def program() -> str:
    """The program's name as it was called."""
    name = os.path.basename(sys.argv[0])
    return name if name == "welm" else "python -m welm"


def parser_of(name: str, command: Command) -> ArgumentParser:
    """The parser of one command."""
    import argparse

    prog = program()
    examples = "\n".join(f"  {prog} {line}" for line in command.EXAMPLES)
    parser = argparse.ArgumentParser(
        prog=f"{prog} {name}",
        description=command.SUMMARY,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        # What is not given is left to the engine, whose defaults are the ones that the help tells.
        argument_default=argparse.SUPPRESS,
    )
    command.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default the process's; gives the exit code."""
    line = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, TextIOWrapper
        ):  # a text that the terminal's encoding lacks is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return run(line)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What is still in the buffer would be written at exit, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (welm.Error, OSError, UnicodeError) as error:
        message = " ".join(str(error).splitlines())
        print(f"{program()}: {message}", file=sys.stderr)
        return 1


def run(line: list[str]) -> int:
    """As :func:`main`, but errors are raised."""
    if not line or line[0] in ("-h", "--help"):
        print(HELP.format(prog=program()), end="", file=sys.stdout if line else sys.stderr)
        return 0 if line else 2
    if line[0] == "--version":
        print(f"welm {welm.__version__}")
        return 0
    if line[0] not in COMMANDS:
        line.insert(0, "generate")
    from importlib import import_module

    name = line[0]
    command = cast("Command", import_module(f"welm._cli.{name}"))
    parser = parser_of(name, command)
    return command.run(parser.parse_args(line[1:]))
