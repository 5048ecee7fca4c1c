"""``generate``: continues a text."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from welm._cli.answer import Answer, Printer, ctrl_c_cancels, json_of_tokens, print_json
from welm._cli.arguments import add_json, add_loading, add_request, ids, load, read_text, request, text
from welm._cli.terminal import remark

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Continues a text, and writes it to stdout as it is generated.

Several sequences (-n) are written one after another, with their numbers in front. Ctrl-C ends the text early. With
--json the output is one object: choices, seed, usage (tokens), timings (seconds). With --json --stream it is a line for
each piece, then a line with the other figures."""
EXAMPLES = (
    '"床前明月光，"',
    'generate "床前明月光，" --max-tokens 48 --temperature 0 --logprobs 0',
    "generate --model smollm2.gguf --stop $'\\n' \"The capital of France is\"",
    "generate - --json < prompt.txt",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    parser.add_argument(
        "prompt",
        type=text,
        nargs="?",
        default=None,
        metavar="PROMPT",
        help="text to continue; - reads it from stdin, and so does no PROMPT if stdin is not a terminal",
    )
    parser.add_argument(
        "--tokens",
        action="store_true",
        default=False,
        help="the prompt is token ids, with spaces or commas between",
    )
    add_json(parser, "print one JSON object instead of the text")
    parser.add_argument(
        "--stream", action="store_true", default=False, help="with --json, print a line for each piece"
    )
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        default=False,
        help="no line of figures after the text on a terminal",
    )
    add_request(parser)
    add_loading(parser)
    parser.set_defaults(fail=parser.error)


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    if args.prompt is None and sys.stdin.isatty():
        args.fail("the following arguments are required: PROMPT")
    prompt: str | list[int] = read_text("-" if args.prompt is None else args.prompt)
    if args.tokens:
        try:
            prompt = ids(str(prompt))
        except argparse.ArgumentTypeError as error:
            args.fail(f"argument --tokens: of token ids {error}")

    started = time.perf_counter()
    model = load(args)
    load_s = time.perf_counter() - started
    options = request(args)
    n, logprobs = options.get("n", 1), "logprobs" in options
    with model.stream(prompt, **options) as stream, ctrl_c_cancels(stream):
        answer = Answer(stream, n)
        printer = None if args.json else Printer(n, shaded=logprobs)
        for piece in stream:
            answer.add(piece)
            if printer:
                printer.add(piece)
            elif args.stream:
                finish = piece.finish and {
                    "reason": piece.finish.reason,
                    "completion_tokens": piece.finish.completion_tokens,
                    "cached_tokens": piece.finish.cached_tokens,
                    "end_token": piece.finish.end_token,
                }
                tokens = json_of_tokens(piece.tokens, logprobs=logprobs)
                print_json({"index": piece.index, "text": piece.text, **tokens, "finish": finish})
    if args.json:
        choices = {} if args.stream else {"choices": answer.choices(logprobs=logprobs)}
        print_json({**choices, **answer.summary(load_s), "backend": model.backend})
    elif not args.quiet:
        rate = answer.tokens_per_s
        speed = f", {rate:,.0f} tok/s" if rate else ""
        if any(sequence.finish_reason == "length" for sequence in answer.sequences):
            speed += ", --max-tokens reached"
        first = f"{answer.prompt_tokens} prompt tokens, first text after {answer.first_s * 1e3:,.0f} ms"
        remark(f"{first}; {answer.completion_tokens} tokens{speed}; seed {answer.seed}; {model.backend}")
    return 130 if answer.cancelled else 0
