"""Compares welm with lm-eval's own transformers model on the same GGUF file in f32: answers, metrics, seconds.

    python tests/reference/lm_eval_hf.py MODEL.gguf --tasks c3,tnews --data DIR [--limit 50] [--batch-size 8] [--dtype auto]

Needs "welm[eval]", and `pip install torch transformers accelerate gguf`. Both run each task, one after the other, with
the same number of threads. For each task it prints: the number of questions; the largest difference of two
log-likelihoods; the number of questions with different choices or texts; how many of these are ties, where the two best
choices differ only by the rounding of f32; both metrics; both times. It fails if choices differ without a tie, or if
metrics differ by more than 1e-6 although no choice differs. With --dtype, welm computes in another type, for instance
with the weights as they are in the file. Then only the times are compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from welm.eval import WelmLM
from welm.eval.run import found, task_manager
from welm.eval.tasks.ranking import LogLikelihood

TIE = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", default="f32")
    args = parser.parse_args()

    names = args.tasks.split(",")
    manager = task_manager(args.data, names)
    torch.set_num_threads(args.threads)
    exact = {"cache_dtype": "f32"} if args.dtype == "f32" else {}
    ours = WelmLM(args.model, dtype=args.dtype, context_tokens=args.context, threads=args.threads, **exact)
    theirs = Theirs(
        str(args.model.parent),
        gguf_file=args.model.name,
        dtype="float32",
        device="cpu",
        batch_size=args.batch_size,
        max_length=ours.max_length,
        truncation=True,
        prefix_token_id=ours.prefix_token_id,
    )
    wrong = 0
    print(f"{'task':16} {'n':>4} {'max diff':>9} {'differ':>6} {'ties':>4}  metric: hf, welm; seconds: hf, welm")
    for name in found(manager, names):
        runs = []
        for lm in (theirs, ours):
            watch = Watch(lm)
            results = simple_evaluate(
                lm,
                tasks=[name],
                num_fewshot=args.shots,
                limit=args.limit,
                task_manager=manager,
                bootstrap_iters=0,
            )
            assert results is not None
            watch.stop()
            runs.append((results, watch.seconds))
        wrong += compare(name, *runs, exact=args.dtype == "f32")
    return int(wrong > 0)


class Theirs(HFLM):
    """lm-eval's model, which also returns the number of tokens of a continuation, because welm's tasks need it."""

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        results = super()._loglikelihood_tokens(requests, *args, **kwargs)
        pairs = zip(requests, results, strict=True)
        return [(LogLikelihood(value, len(request[2])), greedy) for request, (value, greedy) in pairs]


class Watch:
    """Measures the time of a model's methods, without that for loading data and making prompts."""

    def __init__(self, lm: Any) -> None:
        self.lm, self.seconds = lm, 0.0
        for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(lm, method, self.timed(getattr(lm, method)))

    def timed(self, method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return call

    def stop(self) -> None:
        for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            delattr(self.lm, method)


def compare(name: str, theirs: tuple[Any, float], ours: tuple[Any, float], *, exact: bool) -> bool:
    """Prints the line of a task. Returns whether something is wrong."""
    most, differ, ties = 0.0, 0, 0
    for a, b in zip(theirs[0]["samples"][name], ours[0]["samples"][name], strict=True):
        assert a["arguments"] == b["arguments"]
        a, b = ([each[0] for each in run["resps"]] for run in (a, b))
        if isinstance(a[0], str):
            differ += a != b
            continue
        a, b = ([each if isinstance(each, float) else each[0] for each in run] for run in (a, b))
        most = max([most, *(abs(x - y) for x, y in zip(a, b, strict=True))])
        if len(a) > 1 and a.index(max(a)) != b.index(max(b)):
            differ += 1
            first, second = sorted(a, reverse=True)[:2]
            ties += first - second < TIE
    texts = ours[0]["samples"][name] and isinstance(ours[0]["samples"][name][0]["resps"][0][0], str)
    metrics = []
    wrong = differ > ties
    for metric, value in theirs[0]["results"][name].items():
        other = ours[0]["results"][name].get(metric)
        if isinstance(value, float) and "_stderr" not in metric:
            metrics.append(f"{metric} {value:.6f} {other:.6f}")
            wrong |= not differ and abs(value - other) > 1e-6 * max(1.0, abs(value))
    count = len(ours[0]["samples"][name])
    speed = f"{theirs[1]:.1f} s, {ours[1]:.1f} s, {theirs[1] / ours[1]:.2f} times the speed"
    figures = f"{most:9.2e} {differ:6} {ties if not texts else '':>4}"
    print(f"{name:16} {count:4} {figures}  {'; '.join(metrics)}; {speed}", flush=True)
    return exact and wrong


if __name__ == "__main__":
    sys.exit(main())
