"""The command line, ``python -m welm`` or ``welm``. It uses the package's public API.

Each command is a module with ``SUMMARY``, ``EXAMPLES``, ``add_arguments(parser)`` and ``run(args)``. Only the module of
the command that is used is imported, because importing all takes longer than a short answer.

Exit codes: 0, success; 1, an error; 2, wrong usage; 130, Ctrl-C; 141, the reader of the output has gone; 143, SIGTERM.
Errors and wrong usage are one line on stderr. With ``WELM_TRACEBACK=1`` in the environment an error shows its
traceback, too.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, cast

import welm
from welm._cli.streams import Usage, message_of, prepare, say, settle, show_traceback
from welm._cli.terminal import columns, wrapped

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence
    from types import FrameType

COMMANDS = (
    "generate",
    "chat",
    "score",
    "quantize",
    "info",
    "bench",
    "serve",
    "batch",
    "eval",
    "experiment",
    "report",
    "train",
)

HELP = """\
usage: {prog} PROMPT [OPTION...]
       {prog} COMMAND [ARGUMENT...]

Runs language models. If the first argument is not a command, it is a prompt for `generate`. For a prompt that is the
name of a command, or similar to one, write `{prog} generate chat`. Without --model the small model in this package is
used, which writes Chinese verse.

commands:
  generate   continues a text
  chat       holds a conversation, with models that have a chat template
  score      shows how likely given continuations of a text are
  quantize   writes an int8 copy of a model
  info       shows a model's shape, the memory that it takes, and what is in its files
  bench      measures tokens a second
  serve      serves a model over HTTP
  batch      answers the requests of a file
  eval       runs evaluation tasks
  experiment runs an experiment: explanation, calibration or memory
  report     makes a page of the results of eval
  train      trains a model by a recipe

  {prog} COMMAND --help shows the options of a command; {prog} --version shows the version.

examples:
  {prog} "床前明月光，"
  {prog} "The capital of France is" --model smollm2.gguf --max-tokens 64 --temperature 0
  {prog} chat --model smollm2.gguf
"""


class Command(Protocol):
    """The attributes of a command's module."""

    SUMMARY: str
    """One sentence."""
    EXAMPLES: tuple[str, ...]
    """Command lines, without the program's name."""

    def add_arguments(self, parser: ArgumentParser, /) -> None:
        """Adds flags and positional arguments."""

    def run(self, args: Namespace, /) -> int:
        """Runs the command; gives the exit code."""
        ...


def program() -> str:
    """The name with which the program was started."""
    name = os.path.basename(sys.argv[0])
    return name if name == "welm" else "python -m welm"


class Terminated(BaseException):
    """Raised by SIGTERM, so that the program cleans up before it ends."""


def terminate(_number: int, _frame: FrameType | None) -> None:
    """The handler of SIGTERM."""
    raise Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line, by default that of the process; gives the exit code."""
    line = list(sys.argv[1:] if argv is None else argv)
    prepare()
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        if on_term is signal.SIG_DFL:
            with suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGTERM, terminate)
        code = run(line)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except Terminated:
        return 143
    except BrokenPipeError:
        return 141
    except Exception as error:
        show_traceback(error)
        say(f"{error.prog if isinstance(error, Usage) else program()}: {message_of(error)}")
        return 2 if isinstance(error, Usage) else 1
    finally:
        settle()
        if on_term is signal.SIG_DFL:
            with suppress(ValueError):
                signal.signal(signal.SIGTERM, on_term)


def run(line: list[str]) -> int:
    """As :func:`main`, but errors are raised."""
    if not line or line[0] in ("-h", "--help", "help"):
        if line[1:2] and line[1] in COMMANDS:
            return run([line[1], "--help"])
        text = HELP.format(prog=program())
        if not line:
            say(wrapped(text, columns(sys.stderr)), end="")
            return 2
        print(wrapped(text, columns(sys.stdout)), end="")
        return 0
    if line[0] == "--version":
        print(f"welm {welm.__version__}")
        return 0
    from importlib import import_module

    from welm._cli.parser import Parser

    name = line[0] if line[0] in COMMANDS else None
    if name is None:
        refuse_misspelt(line[0])
    command = cast("Command", import_module(f"welm._cli.{name or 'generate'}"))
    prog = program()
    parser = Parser(
        f"{prog} {name or 'generate'}", command.SUMMARY, [f"{prog} {e}" for e in command.EXAMPLES]
    )
    if name is None:
        parser.hint = f"; a prompt with spaces stands in quotes; commands are {', '.join(COMMANDS)}"
    command.add_arguments(parser)
    args = parser.read(line[1:] if name else line)
    if args is None:
        return 0
    if name is None and "--" not in line:
        refuse_misspelt(args.prompt or "", first=False)
    return command.run(args)


def refuse_misspelt(prompt: str, *, first: bool = True) -> None:
    """Refuses a prompt that was probably meant as a command: its name, or a similar word.

    A word with another first letter does not count, unless it has the same letters as the command: `that` is a prompt,
    and not a misspelt `chat`.
    """
    import difflib

    word = prompt.casefold()
    for near in difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.75):
        if word[0] == near[0] or sorted(word) == sorted(near):
            if prompt == near and not first:
                reason = f"the command {near} comes first: {program()} {near} [ARGUMENT...]"
            else:
                reason = f"unknown command {prompt}, did you mean {near}?"
            raise Usage(program(), f"{reason} (as a prompt: {program()} generate {prompt})")
