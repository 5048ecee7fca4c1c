"""``quantize``: writes an int8 copy of a model."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import welm
from welm._cli.answer import print_json
from welm._cli.arguments import add_json
from welm._cli.terminal import Progress, megabytes, put

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SUMMARY = """Writes an int8 copy of a model. The copy loads fast, because its file only has to be mapped.

Weights become int8, in the layout that the CPU computes with. Configuration and tokenizer files are copied, too. Ctrl-C
leaves no unfinished file."""
EXAMPLES = ("quantize my-model my-model-int8", "generate --model my-model-int8 PROMPT")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    parser.add_argument("source", metavar="FROM", help="Hugging Face folder: config.json and safetensors")
    parser.add_argument(
        "target", metavar="TO", help="folder to write: new, empty, or written by this command before"
    )
    add_json(parser, "print a JSON object: bytes of the weights, seconds")


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    started = time.perf_counter()
    with Progress("quantizing", quiet=args.json) as progress:
        welm.quantize(args.source, args.target, progress=progress)
    seconds = time.perf_counter() - started
    size = os.path.getsize(os.path.join(args.target, "model.safetensors"))
    if args.json:
        print_json({"from": args.source, "to": args.target, "bytes": size, "seconds": seconds})
    else:
        put(f"{megabytes(size)} in {args.target}, {seconds:.1f} s")
    return 0
