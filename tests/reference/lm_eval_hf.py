"""Compares welm with lm-eval's own transformers model on the same GGUF file in f32: answers, metrics, seconds.

    python tests/reference/lm_eval_hf.py MODEL.gguf --tasks c3,tnews --data DIR [--limit 50] [--batch-size 8]
        [--llama-cpp]

Needs "welm[eval]", and `pip install torch transformers accelerate gguf`, for --llama-cpp also llama-cpp-python. All run
each task, one after the other, with the same number of threads. For each task it prints: the number of questions; the
largest difference of two log-likelihoods; how often a rule chose different options, or how many texts differ; how many
of these are ties, where the two options differ by no more than rounding moves; both metrics; the times. It fails if
choices differ without a tie, or if metrics differ by more than 1e-6 although no choice differs.

The times are those of transformers in f32, of welm in f32, of welm with the weights as they are in the file, and, with
--llama-cpp, of llama-cpp-python, which computes the file as it is, too. lm-eval's model "gguf" for the server of
llama-cpp-python takes no empty context, and sorts the whole vocabulary in Python for each token. So the model here
calls the library in this process, and keeps what a request shares with the one before it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from welm.eval import WelmLM
from welm.eval.run import found, task_manager
from welm.eval.tasks.ranking import RULES, LogLikelihood, best, rank
from welm.eval.tasks.task import Ranking

try:
    import llama_cpp
except ImportError:
    llama_cpp = None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--llama-cpp", action="store_true", help="llama-cpp-python as well")
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
        models["llama.cpp"] = LlamaCpp(args.model, args.context, args.threads, ours.prefix_token_id)
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
        task = manager.load([name])["tasks"][name]
        wrong += compare(task, results["transformers"], results["welm f32"])
        print(
            "    seconds: " + ", ".join(f"{kind} {value:.1f}" for kind, value in seconds.items()), flush=True
        )
    return int(wrong > 0)


class Theirs(HFLM):
    """lm-eval's model, which also returns the number of tokens of a continuation, because welm's tasks need it."""

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        results = super()._loglikelihood_tokens(requests, *args, **kwargs)
        pairs = zip(requests, results, strict=True)
        return [(LogLikelihood(value, len(request[2])), greedy) for request, (value, greedy) in pairs]


class LlamaCpp(TemplateLM):
    """llama-cpp-python. Requests run in the order of their tokens, so that beginnings stay in the cache."""

    def __init__(self, path: Path, context: int, threads: int, prefix: int) -> None:
        super().__init__()
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            verbose=False,
        )
        self.context, self.prefix = context, prefix

    @property
    def eot_token_id(self) -> int:
        return self.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        return self.model.tokenize(string.encode(), add_bos=False, special=False)

    def _loglikelihood_tokens(self, requests: Any, **_kwargs: Any) -> Any:
        results: list[Any] = [None] * len(requests)
        for place in sorted(range(len(requests)), key=lambda place: requests[place][1] + requests[place][2]):
            _, before, after = requests[place]
            tokens = (before + after)[-self.context - 1 :][:-1]
            shared = llama_cpp.Llama.longest_token_prefix(self.model.input_ids[: self.model.n_tokens], tokens)
            self.model.n_tokens = min(shared, len(tokens) - 1)
            self.model.eval(tokens[self.model.n_tokens :])
            scores = self.model.scores[len(tokens) - len(after) : len(tokens)]
            most = scores.max(axis=-1)
            sums = np.log(np.exp(scores - most[:, None]).sum(axis=-1)) + most
            chosen = scores[np.arange(len(after)), after]
            results[place] = (LogLikelihood((chosen - sums).sum(), len(after)), bool((chosen == most).all()))
        return results

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        texts = []
        for prompt, options in (request.args for request in requests):
            limit = options.get("max_gen_toks", 256)
            tokens = self.tok_encode(prompt)[limit - self.context :]
            answer: Any = self.model.create_completion(
                tokens, max_tokens=limit, temperature=0, stop=options.get("until", [])
            )
            texts.append(answer["choices"][0]["text"])
        return texts


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


def compare(task: Any, theirs: Any, ours: Any) -> bool:
    """Prints the line of a task. Returns whether something is wrong."""
    name = task.config.task
    pairs = list(zip(theirs["samples"][name], ours["samples"][name], strict=True))
    assert all(a["arguments"] == b["arguments"] for a, b in pairs)
    if isinstance(task, Ranking):
        ranked = [(ranks_of(task, a), ranks_of(task, b)) for a, b in pairs]
        most = max(abs(x - y) for a, b in pairs for x, y in zip(scores_of(a), scores_of(b), strict=True))
        differ, ties = 0, 0
        for rule in RULES:
            # How far the rounding of f32 moves what this rule compares.
            moved = max(abs(x - y) for a, b in ranked for x, y in zip(a[rule], b[rule], strict=True))
            for a, b in ranked:
                first, second = best(a[rule]), best(b[rule])
                differ += first != second
                ties += first != second and a[rule][first] - a[rule][second] <= 2 * moved
        figures = f"{most:9.2e} {differ:6} {ties:4}"
    else:
        differ, ties = sum(a["resps"] != b["resps"] for a, b in pairs), 0
        figures = f"{'':9} {differ:6} {'':4}"
    metrics = []
    wrong = differ > ties
    for metric, value in theirs["results"][name].items():
        if isinstance(value, float) and "_stderr" not in metric:
            other = ours["results"][name][metric]
            metrics.append(f"{metric} {value:.6f} {other:.6f}")
            wrong |= not differ and abs(value - other) > 1e-6 * max(1.0, abs(value))
    print(f"{name:16} {len(pairs):4} {figures}  {'; '.join(metrics)}", flush=True)
    return wrong


def scores_of(sample: Any) -> list[LogLikelihood]:
    """The log-likelihoods of a question's requests."""
    return [each[0][0] for each in sample["resps"]]


def ranks_of(task: Ranking, sample: Any) -> dict[str, list[float]]:
    """What each rule gives to each option."""
    scores = scores_of(sample)
    return rank(task.pieces(sample["doc"]), scores, [score.tokens for score in scores])


if __name__ == "__main__":
    sys.exit(main())
