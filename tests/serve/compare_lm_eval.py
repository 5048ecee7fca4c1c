"""Runs tasks by lm-eval's `local-completions` and by `welm.eval` in this process, and compares all figures.

Prints JSON: how many log-likelihoods were compared, the largest difference, and how many choices are the same.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import os
import sys

import lm_eval
from lm_eval.tasks import TaskManager

import welm
import welm.eval
from welm.eval.tasks import FOLDER


def main() -> None:
    """Runs both."""
    url, name, key, tasks, limit = sys.argv[1:]
    os.environ["OPENAI_API_KEY"] = key
    names = tasks.split(",")
    welm.eval.evaluate(welm.NANO, names, out="own", limit=int(limit), data="samples", threads=1)
    arguments = {
        "model": name,
        "base_url": f"{url}/v1/completions",
        "tokenizer": str(welm.NANO),
        "tokenizer_backend": "huggingface",
        "num_concurrent": 4,
        "max_length": 512,
    }
    metadata = {"data": "samples", "tokenizer": str(welm.NANO)}
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
    theirs = lm_eval.simple_evaluate(
        "local-completions", arguments, tasks=names, limit=int(limit), bootstrap_iters=0,
        task_manager=manager, log_samples=True,
    )  # fmt: skip
    values = choices = same = 0
    largest = 0.0
    for task in names:
        with open(f"own/samples_{task}.jsonl", encoding="utf-8") as file:
            own = [json.loads(line) for line in file]
        for ours, their in zip(own, theirs["samples"][task], strict=True):
            mine = [[float(x) for x in response] for response in flat(ours["resps"])]
            others = [[float(x) for x in response] for response in flat(their["resps"])]
            assert len(mine) == len(others)
            for a, b in zip(mine, others, strict=True):
                values += 1
                largest = max(largest, abs(a[0] - b[0]))
            choices += 1
            same += ours["acc"] == their["acc"]
    print(json.dumps({"values": values, "largest": largest, "choices": choices, "same": same}))


def flat(responses: list) -> list:
    """Of each request the log-likelihood, and whether it is greedy, as a file of samples or as values."""
    return [[one[0], one[1] in (True, "True")] for (one,) in responses]


if __name__ == "__main__":
    main()
