"""``score``: shows how likely given continuations of a text are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from welm._cli.answer import json_of_tokens, print_json
from welm._cli.arguments import add_json, add_loading, load, read_text, text
from welm._cli.streams import one_line
from welm._cli.terminal import put

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Shows how likely given continuations of a text are.

Prints a table, the likeliest first: the sum of the tokens' log-probabilities (natural logarithm), the mean for a token,
the number of tokens, the text. With --json it prints an object, with the continuations in the order in which they were
given."""
EXAMPLES = (
    'score "床前明月光，" "疑是地上霜。" "地上霜疑是。" "今天买电脑。"',
    'score --model smollm2.gguf --json "The sky is" " blue" " green"',
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    parser.add_argument("prompt", type=text, metavar="PROMPT", help="the text before; - reads it from stdin")
    parser.add_argument(
        "continuations", type=text, nargs="+", metavar="CONTINUATION", help="a text that may follow"
    )
    add_json(parser, "print a JSON object, with every token's log-probability")
    add_loading(parser)


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    prompt = read_text(args.prompt)
    continuations: list[str] = args.continuations
    scores = load(args).score(prompt, continuations)
    pairs = list(zip(continuations, scores, strict=True))
    if args.json:
        rows = [
            {
                "continuation": continuation,
                "logprob": score.logprob,
                **json_of_tokens(score.tokens, logprobs=True),
            }
            for continuation, score in pairs
        ]
        print_json({"prompt": prompt, "scores": rows})
        return 0
    put(f"{'logprob':>9}  {'a token':>8}  {'tokens':>6}  continuation", bold=True)
    for continuation, score in sorted(pairs, key=lambda pair: -pair[1].logprob):
        count = len(score.tokens)
        logprob = score.logprob + 0.0  # without tokens it is -0.0
        each = logprob / max(count, 1)
        put(f"{logprob:9.3f}  {each:8.3f}  {count:6}  {one_line(continuation)}")
    return 0
