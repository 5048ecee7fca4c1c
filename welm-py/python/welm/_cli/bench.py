"""``bench``: measures tokens a second."""

from __future__ import annotations

import dataclasses
import random
import statistics
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from welm._cli.answer import print_json
from welm._cli.arguments import Counts, Whole, add_json, add_loading, load, most
from welm._cli.streams import Failure
from welm._cli.terminal import megabytes, put

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from welm import Model

SUMMARY = """Measures tokens a second.

Prefill is the time from a prompt of random tokens to the first token after it. Decode is the time of the steps of
several sequences together, each after a prompt of 16 tokens, by the engine's own clock. Each is run once without
measuring, then --rounds times. The table has the median, the least and the most."""
EXAMPLES = (
    "bench",
    "bench --model smollm2.gguf --prompt-tokens 128,1024 --sequences 1,4,16 --rounds 5 --json",
)

DECODE_PROMPT = 16


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    many = "with commas between"
    parser.add_argument(
        "--prompt-tokens",
        type=Counts(),
        metavar="N",
        default=None,
        help=f"lengths of prompts, {many} (default: 128,512, or what the context has room for)",
    )
    parser.add_argument(
        "--sequences",
        type=Counts(most("max_running")),
        metavar="N",
        default=[1, 8],
        help=f"how many at once, {many} (default: 1,8)",
    )
    parser.add_argument(
        "--new-tokens", type=Whole(2), metavar="N", default=64, help="of each sequence (default: 64)"
    )
    parser.add_argument(
        "--rounds", type=Whole(1), metavar="N", default=3, help="measurements of each (default: 3)"
    )
    add_json(parser, "print a JSON object")
    add_loading(parser)


def random_prompt(model: Model, length: int, source: random.Random) -> list[int]:
    """Random tokens, so that no earlier prompt began with the same ones."""
    return [source.randrange(model.config.vocab_size) for _ in range(length)]


def prefill(model: Model, length: int, source: random.Random) -> float:
    """Tokens a second of the prefill of a prompt."""
    prompt = random_prompt(model, length, source)
    started = time.perf_counter()
    model.generate(prompt, max_tokens=1, temperature=0, ignore_eos=True)
    return length / (time.perf_counter() - started)


def decode(model: Model, sequences: int, new_tokens: int, source: random.Random, running: int) -> float:
    """Tokens a second of the decode of all sequences together, of which at most ``running`` run at once."""
    prompts = [random_prompt(model, DECODE_PROMPT, source) for _ in range(sequences)]
    before = model.stats().time_between_tokens
    model.generate(prompts, max_tokens=new_tokens, temperature=0, ignore_eos=True)
    after = model.stats().time_between_tokens
    return min(sequences, running) * (after.count - before.count) / (after.sum - before.sum)


def peak_resident_bytes() -> int | None:
    """The peak resident memory of this process, mapped files included."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    more: dict[str, Any] = {"prefix_cache": False}
    for option, least in (("max_running", 64), ("queue_limit", 1024)):
        if not hasattr(args, option):
            more[option] = max(least, *args.sequences)
    started = time.perf_counter()
    model = load(args, **more)
    load_s = time.perf_counter() - started
    room = min(model.memory.context_tokens, model.memory.cache_tokens)
    lengths = args.prompt_tokens or sorted({min(length, max(room - 1, 1)) for length in (128, 512)})
    longest = max(max(lengths) + 1, DECODE_PROMPT + args.new_tokens)
    if longest > room:
        reason = (
            f"expected a context and a cache of {longest} tokens or more for these measurements, got {room}"
        )
        raise Failure(f"{reason}: fewer --prompt-tokens and --new-tokens would do")
    source = random.Random(0)

    if not args.json:
        put(f"{args.model or 'the small model'}: {model.config.n_params:,} parameters, {model.backend}")
        put(f"{'':22} {'tok/s':>10}  {'least':>10}  {'most':>10}", bold=True)
    rows: list[dict[str, Any]] = []

    def measure(label: str, row: dict[str, Any], rate: Callable[[], float]) -> None:
        rate()
        rates = [rate() for _ in range(args.rounds)]
        rows.append({**row, "tokens_per_s": statistics.median(rates), "rounds": rates})
        if not args.json:
            figures = (statistics.median(rates), min(rates), max(rates))
            put(f"{label:22} {'  '.join(f'{figure:10,.1f}' for figure in figures)}")

    row: dict[str, Any]
    for length in lengths:
        row = {"what": "prefill", "prompt_tokens": length}
        measure(f"prefill {length}", row, partial(prefill, model, length, source))
    for sequences in args.sequences:
        row = {"what": "decode", "sequences": sequences, "new_tokens": args.new_tokens}
        running = getattr(args, "max_running", sequences)
        rate = partial(decode, model, sequences, args.new_tokens, source, running)
        measure(f"decode {args.new_tokens} × {sequences}", row, rate)
    peak, memory = peak_resident_bytes(), model.memory
    if args.json:
        about = {"backend": model.backend, "n_params": model.config.n_params, "load_s": load_s}
        sizes = {"memory": dataclasses.asdict(memory), "peak_resident_bytes": peak}
        print_json({**about, "measurements": rows, **sizes, "preemptions": model.stats().preemptions})
        return 0
    weights = memory.mapped_bytes + memory.converted_bytes
    put(
        f"loaded in {load_s:.2f} s; weights {megabytes(weights)}, cache {megabytes(memory.cache_bytes)}, "
        f"scratch {megabytes(memory.scratch_bytes)}" + (f"; peak resident {megabytes(peak)}" if peak else "")
    )
    if model.stats().preemptions:
        put(
            "sequences were preempted because the cache was full, so decode could be faster: see --cache-tokens"
        )
    return 0
