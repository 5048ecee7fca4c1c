"""``chat``: holds a conversation, with models that have a chat template."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any

import welm
from welm._cli.answer import Answer, Printer, ctrl_c_cancels, print_json
from welm._cli.arguments import Whole, add_json, add_loading, add_request, load, request, text
from welm._cli.streams import ask, checked, message_of, say, show_traceback, stdin_lines
from welm._cli.terminal import BOLD, OFF, Spinner, columns, has_colours, remark, wrapped

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Holds a conversation, with models that have a chat template.

Each line is a message. Ctrl-C stops an answer and keeps its text so far; Ctrl-D leaves. If stdin is not a terminal, its
lines are the messages, and only the answers are printed; Ctrl-C then ends the command."""
EXAMPLES = (
    "chat --model smollm2.gguf",
    'chat --model smollm2.gguf --system "You are a pirate." --temperature 0.7',
    "chat --model smollm2.gguf --json < questions.txt",
)

HELP = """\
/system TEXT  sets the system prompt and starts a new conversation; without TEXT there is no system prompt
/reset        starts a new conversation with the same system prompt
/save FILE    writes the conversation as JSON
/help         shows this; Ctrl-C stops an answer, Ctrl-D leaves"""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    parser.add_argument("--system", type=text, metavar="TEXT", default="", help="system prompt")
    add_json(parser, "print each answer as a line of JSON, when it is complete")
    without = ("n", "echo", "parse_special", "ignore_eos", "max_tokens")
    parser.add_argument(
        "--max-tokens",
        type=Whole(0),
        metavar="N",
        help="most tokens of an answer (default: what the context has room for)",
    )
    add_request(parser, without=without)
    add_loading(parser)


class Chat:
    """A conversation."""

    def __init__(self, args: Namespace) -> None:
        """Loads the model."""
        started = time.perf_counter()
        self._model = load(args)
        self._load_s = time.perf_counter() - started
        self._options = request(args)
        self._json: bool = args.json
        self._messages: list[dict[str, str]] = []
        self.system(args.system)

    def check(self) -> None:
        """Raises :class:`welm.ChatTemplateError` if the model cannot chat."""
        if not self._model.has_chat_template:
            try:
                self._model.chat_prompt([{"role": "user", "content": ""}])
            except welm.ChatTemplateError as error:
                hint = "`generate` continues a text with it, --model names another"
                raise welm.ChatTemplateError(f"{error}; {hint}") from None

    def system(self, prompt: str) -> None:
        """Starts a new conversation with this system prompt."""
        self._messages = [{"role": "system", "content": prompt}] if prompt else []

    def reset(self) -> None:
        """Starts a new conversation with the same system prompt."""
        self._messages = [message for message in self._messages[:1] if message["role"] == "system"]

    def save(self, path: str) -> None:
        """Writes the messages."""
        import json

        try:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(self._messages, file, ensure_ascii=False, indent=1)
                file.write("\n")
        except OSError as error:
            error.filename = path
            raise

    def say(self, message: str, *, waiting: bool = False) -> bool:
        """Answers a message, with a spinner if ``waiting``; gives whether Ctrl-C stopped the answer.

        A message that fails is removed from the conversation.
        """
        messages = [*self._messages, {"role": "user", "content": message}]
        tokens = self._model.chat_tokens(messages)
        context = self._model.memory.context_tokens
        room = context - len(tokens)
        options: dict[str, Any] = {"max_tokens": max(room, 1), **self._options}
        try:
            stream = self._model.stream(tokens, **options)
        except welm.TooLong as error:
            more = "a smaller --max-tokens or " if room > 0 else ""
            raise welm.TooLong(f"{error}; {more}/reset makes room") from None
        with stream, ctrl_c_cancels(stream), Spinner(on=waiting) as spinner:
            answer = Answer(stream)
            printer = None if self._json else Printer(shaded="logprobs" in self._options)
            for piece in stream:
                answer.add(piece)
                if piece.text or piece.finish:
                    spinner.stop()
                if printer:
                    printer.add(piece)
        (sequence,) = answer.sequences
        if sequence.text or sequence.finish_reason != "cancelled":
            self._messages = [*messages, {"role": "assistant", "content": sequence.text}]
        if self._json:
            (choice,) = answer.choices(logprobs="logprobs" in self._options)
            print_json(
                {"role": "assistant", "content": choice.pop("text"), **choice, **answer.summary(self._load_s)}
            )
        elif sequence.finish_reason == "length":
            reason = (
                "--max-tokens is reached" if options["max_tokens"] < room else "the context is full: /reset"
            )
            remark(f"[{reason}]")
        elif sequence.finish_reason in ("cancelled", "deadline"):
            remark(f"[{'stopped' if sequence.finish_reason == 'cancelled' else 'the deadline has passed'}]")
        return sequence.finish_reason == "cancelled"


def obey(chat: Chat, line: str) -> None:
    """Runs a line that begins with a slash."""
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    if command == "/reset" and not rest:
        chat.reset()
    elif command == "/system":
        chat.system(rest)
    elif command == "/save" and rest:
        chat.save(rest)
    else:
        say(wrapped(HELP, columns(sys.stderr)))


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    chat = Chat(args)
    chat.check()
    if not sys.stdin.isatty():
        for line in stdin_lines():
            if line.strip() and chat.say(line):
                return 130
        return 0

    prompt = "> "
    with contextlib.suppress(ImportError):
        import readline  # input() then edits lines

        # In an ASCII locale it would take bytes of UTF-8 for keys.
        for setting in ("input-meta on", "output-meta on", "convert-meta off"):
            readline.parse_and_bind(f"set {setting}")
        if has_colours(sys.stdout):
            # \x01 and \x02 tell readline that the text between them has no width.
            prompt = f"\x01{BOLD}\x02> \x01{OFF}\x02"
    remark("/help shows the commands; Ctrl-C stops an answer, Ctrl-D leaves")
    while True:
        try:
            while turn(chat, prompt):
                pass
            print()
            return 0
        except KeyboardInterrupt:
            print()


def turn(chat: Chat, prompt: str) -> bool:
    """Reads a line and answers it; ``False`` at the end of the input. An error does not end the conversation."""
    try:
        line = ask(prompt)
    except EOFError:
        return False
    try:
        line = checked(line)
        if line.startswith("/"):
            obey(chat, line)
        elif line.strip():
            chat.say(line, waiting=True)
    except BrokenPipeError:
        raise
    except Exception as error:
        show_traceback(error)
        say(message_of(error))
    return True
