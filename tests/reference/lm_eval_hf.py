"""Compares welm with lm-eval's own transformers model on the same GGUF file in f32: answers, metrics, seconds.

    python tests/reference/lm_eval_hf.py MODEL.gguf --tasks c3,tnews --data DIR [--limit 50] [--batch-size 8]
        [--llama-cpp http://127.0.0.1:8000]

Needs "welm[eval]", and `pip install torch transformers accelerate gguf`. Both run each task, one after the other, with
the same number of threads. For each task it prints: the number of questions; the largest difference of two
log-likelihoods; the number of questions with different choices or texts; how many of these are ties, where the two best
choices differ only by the rounding of f32; both metrics; the times. It fails if choices differ without a tie, or if
metrics differ by more than 1e-6 although no choice differs.

The times are those of welm in f32, of welm with the weights as they are in the file, of transformers in f32, and, with
--llama-cpp, of lm-eval's model "gguf" with the server of llama-cpp-python, which computes the file as it is:

    python -m llama_cpp.server --model MODEL.gguf --logits_all true --n_ctx 2048 --n_threads 2 --n_threads_batch 2
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
from lm_eval.models.gguf import GGUFLM
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
    parser.add_argument("--llama-cpp", metavar="URL")
    args = parser.parse_args()

    names = args.tasks.split(",")
    manager = task_manager(args.data, names)
    torch.set_num_threads(args.threads)
    given: dict[str, Any] = {"context_tokens": args.context, "threads": args.threads}
    ours = WelmLM(args.model, dtype="f32", cache_dtype="f32", **given)
    models = {
        "transformers": Theirs(
            str(args.model.parent),
            gguf_file=args.model.name,
            dtype="float32",
            device="cpu",
            batch_size=args.batch_size,
            max_length=ours.max_length,
            truncation=True,
            prefix_token_id=ours.prefix_token_id,
        ),
        "welm f32": ours,
        "welm": WelmLM(args.model, **given),
    }
    if args.llama_cpp:
        models["llama.cpp"] = Server(args.llama_cpp, args.context)
    wrong = 0
    print(f"{'task':16} {'n':>4} {'max diff':>9} {'differ':>6} {'ties':>4}  metrics: transformers, welm f32")
    for name in found(manager, names):
        results, seconds = {}, {}
        for kind, lm in models.items():
            watch = Watch(lm)
            results[kind] = simple_evaluate(
                lm,
                tasks=[name],
                num_fewshot=args.shots,
                limit=args.limit,
                task_manager=manager,
                bootstrap_iters=0,
            )
            watch.stop()
            seconds[kind] = watch.seconds
        wrong += compare(name, results["transformers"], results["welm f32"])
        print("    seconds: " + ", ".join(f"{kind} {value:.1f}" for kind, value in seconds.items()), flush=True)
    return int(wrong > 0)


class Theirs(HFLM):
    """lm-eval's model, which also returns the number of tokens of a continuation, because welm's tasks need it."""

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        results = super()._loglikelihood_tokens(requests, *args, **kwargs)
        pairs = zip(requests, results, strict=True)
        return [(LogLikelihood(value, len(request[2])), greedy) for request, (value, greedy) in pairs]


class Server(GGUFLM):
    """lm-eval's model for llama-cpp-python's server. Numbers of tokens, which welm's tasks need, are made up."""

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        results = super().loglikelihood(requests, disable_tqdm)
        pairs = zip(requests, results, strict=True)
        return [(LogLikelihood(value, len(request.args[1])), greedy) for request, (value, greedy) in pairs]


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


def compare(name: str, theirs: Any, ours: Any) -> bool:
    """Prints the line of a task. Returns whether something is wrong."""
    most, differ, ties = 0.0, 0, 0
    for a, b in zip(theirs["samples"][name], ours["samples"][name], strict=True):
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
    texts = ours["samples"][name] and isinstance(ours["samples"][name][0]["resps"][0][0], str)
    metrics = []
    wrong = differ > ties
    for metric, value in theirs["results"][name].items():
        other = ours["results"][name].get(metric)
        if isinstance(value, float) and "_stderr" not in metric:
            metrics.append(f"{metric} {value:.6f} {other:.6f}")
            wrong |= not differ and abs(value - other) > 1e-6 * max(1.0, abs(value))
    count = len(ours["samples"][name])
    figures = f"{most:9.2e} {differ:6} {ties if not texts else '':>4}"
    print(f"{name:16} {count:4} {figures}  {'; '.join(metrics)}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
