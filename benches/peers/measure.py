"""Code that the peers' measurements share: the command line, and the records, as those of `welm-bench-cpu run`.

An engine is a class with `load(args, need)`, which returns it ready to compute, where `need` is (sequences, tokens of
each); `prefill(n)`, the seconds of a prompt of n random tokens up to what the next token is chosen from; and
`decode(batch, context, tokens)`, the seconds of each step of `batch` sequences.
"""

import argparse
import json
import statistics
import time


VOCABULARY = 30_000  # ids that every real model here has


def memory(key):
    """A line of /proc/self/status in bytes; None where there is none."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) << 10
    except OSError:
        return None
    return None


def numbers(text):
    return [int(n) for n in text.split(",") if n]


def parser(description):
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prefill", type=numbers, default=[])
    parser.add_argument("--decode", type=numbers, default=[])
    parser.add_argument("--context", type=numbers, default=[128])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    return parser


def emit(record):
    print(json.dumps(record), flush=True)


def run(engine, args):
    # The memory of the interpreter does not count for the engine. So the memory before loading is reported, too.
    before = memory("VmRSS")
    lengths = [n + 8 for n in args.prefill] + [c + args.tokens + 8 for c in args.context if args.decode]
    start = time.perf_counter()
    loaded = engine.load(args, (max(args.decode, default=1), max(lengths, default=64)))
    seconds = time.perf_counter() - start
    loaded.prefill(8)
    ready = time.perf_counter() - start
    emit({"record": "load", "engine": engine.__name__, "settings": loaded.settings, "threads": args.threads,
          "seconds": seconds, "ready_seconds": ready, "rss_before_bytes": before,
          "peak_rss_bytes": memory("VmHWM")})
    for n in args.prefill:
        seconds = [loaded.prefill(n) for _ in range(args.repeats)]
        emit({"record": "prefill", "n": n, "seconds": seconds, "tok_per_s": n / statistics.median(seconds)})
    for context in args.context:
        for batch in args.decode:
            steps = [statistics.fmean(loaded.decode(batch, context, args.tokens)) for _ in range(args.repeats)]
            emit({"record": "decode", "batch": batch, "context": context, "step_seconds": steps,
                  "tok_per_s": batch / statistics.median(steps)})
    emit({"record": "end", "rss_before_bytes": before, "peak_rss_bytes": memory("VmHWM")})
