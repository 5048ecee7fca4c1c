"""``batch``: answers the requests of a file, in the format of OpenAI's batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from welm._cli.arguments import add_json, add_loading, loading, text
from welm._cli.terminal import Progress, put

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Answers the requests of a file, and writes the answers to another, in the format of OpenAI's batches.

Each line of IN is an object with custom_id, url (such as /v1/chat/completions) and body; a line of OUT has the same
custom_id. After Ctrl-C, or if the process is killed, the same command goes on where it was. Needs pip install
"welm[serve]", for --ray "welm[cluster]"."""
EXAMPLES = (
    "batch questions.jsonl answers.jsonl --model smollm2.gguf",
    "batch questions.jsonl answers.jsonl --model /models/smollm2.gguf --ray 10.0.0.1:6379",
)


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    parser.add_argument("src", type=text, metavar="IN", help="file of requests")
    parser.add_argument(
        "dst", type=text, metavar="OUT", help="file of answers; those that are there are kept"
    )
    parser.add_argument(
        "--model-name",
        type=text,
        default=None,
        metavar="NAME",
        help="the name that requests must have (default: any)",
    )
    parser.add_argument("--ray", default=None, metavar="ADDRESS", help="compute on a Ray cluster")
    add_json(parser, "print how many answers have each status as JSON")
    add_loading(parser)


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    import json

    from welm import batch

    with Progress("answering", quiet=args.json, unit="requests") as progress:
        statuses = batch.run(
            args.model, args.src, args.dst, model_name=args.model_name, ray=args.ray, progress=progress,
            **loading(args),
        )  # fmt: skip
    if args.json:
        print(json.dumps(statuses))
    else:
        for status, count in sorted(statuses.items()):
            put(f"status {status}: {count:,}")
    return 0
