"""What became of the documents: tables, samples of what was removed, a plot."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import fsspec

from welm.train import plots
from welm.train.steps import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from datatrove.data import DocumentsPipeline

    from welm.train.recipe import Corpus

SAMPLES, SHOWN = 3, 60
"""Samples of each reason, and how many of their characters are shown."""

STATES = {
    "read": "read from the files",
    "rules": "rules",
    "quality": "quality classifier",
    "exact": "exact duplicates",
    "near": "near-duplicates",
    "contamination": "text of evaluation sets",
}
WELM = {
    "quality": "rules and classifier together: more than 87 %",
    "near": "40 % of what is left",
    "contamination": "0.15 %",
}
"""What WeLM's authors report of 10 TB of web pages, in bytes."""

Counts = dict[str, dict[str, tuple[int, int]]]
"""State, source: documents, characters."""


def report(corpus: Corpus, out: Path, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> None:
    """Writes ``report.json``, ``report.md`` and ``report.png``."""
    counts, reasons = _counted(out)
    order = [source.name for source in corpus.sources]
    states = [state for state in STATES if state in counts]
    quality = out / "work" / "quality" / "quality.json"
    result: dict[str, Any] = {
        "sources": {
            source.name: {
                "licence": source.licence,
                "origin": source.origin,
                "weight": source.weight,
                **{state: counts[state].get(source.name, (0, 0)) for state in states},
            }
            for source in corpus.sources
        },
        "reasons": reasons,
        "quality": json.loads(quality.read_text("utf-8")) if quality.exists() else None,
    }
    write(out / "report.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write(out / "report.md", "\n".join(_page(corpus, counts, states, result, out)) + "\n")
    _plot(counts, states, order, out / "report.png")


def _counted(out: Path) -> tuple[Counts, dict[str, dict[str, int]]]:
    """What passed each stage, and how many documents each reason removed."""
    counts: Counts = {}
    reasons: dict[str, dict[str, int]] = {}
    for folder in sorted((out / "logs").iterdir()):
        for step, totals in _totals(sorted((folder / "stats").glob("*.json"))).items():
            kind, _, name = step.partition(": ")
            if kind == "count":
                counts[name] = {
                    label.removeprefix("documents "): (n, totals[label.replace("documents", "characters", 1)])
                    for label, n in totals.items()
                    if label.startswith("documents ")
                }
            dropped = {
                label.removeprefix("dropped_"): n
                for label, n in totals.items()
                if label.startswith("dropped_")
            }
            if dropped:
                reasons[folder.name] = dict(sorted(dropped.items(), key=lambda one: -one[1]))
    return counts, reasons


def _totals(files: list[Path]) -> dict[str, Counter[str]]:
    """The sums of the statistics that the tasks of a stage have written, for each step."""
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    for file in files:
        for step in json.loads(file.read_text("utf-8")):
            for label, value in step["stats"].items():
                totals[step["name"]][label] += value if isinstance(value, int) else value["total"]
    return totals


def _total(state: dict[str, tuple[int, int]]) -> tuple[int, int]:
    return sum(one[0] for one in state.values()), sum(one[1] for one in state.values())


def _page(
    corpus: Corpus, counts: Counts, states: list[str], result: dict[str, Any], out: Path
) -> Iterator[str]:
    yield "# The corpus\n"
    yield "![Characters that are left of each source, and what removed the others](report.png)\n"
    yield "| after | documents | characters | removed of the characters before | WeLM |\n|---|--:|--:|--:|---|"
    before = _total(counts[states[0]])
    yield f"| {STATES[states[0]]} | {before[0]:,} | {before[1]:,} | | |"
    for state in states[1:]:
        now = _total(counts[state])
        removed = 1 - now[1] / before[1] if before[1] else 0.0
        yield f"| {STATES[state]} | {now[0]:,} | {now[1]:,} | {removed:.2%} | {WELM.get(state, '')} |"
        before = now
    yield "\nWeLM's rates are those that its authors report of web pages. These are other sources.\n"
    if result["quality"]:
        told, right = result["quality"]["tested"], result["quality"]["right"]
        shares = ", ".join(f"{name} {right[name]:,} of {told[name]:,}" for name in told)
        yield f"The classifier is right, on examples that it did not learn from: {shares}.\n"
    yield "## Sources\n"
    yield "| source | licence | weight | " + " | ".join(STATES[state] for state in states) + " |"
    yield "|---|---|--:|" + "--:|" * len(states)
    for source in corpus.sources:
        cells = " | ".join(f"{counts[state].get(source.name, (0, 0))[1]:,}" for state in states)
        yield f"| {source.name} | {source.licence} | {source.weight:g} | {cells} |"
    yield "\nCharacters after each stage.\n\n## What was removed\n"
    for stage, samples in _samples(out).items():
        for reason, (texts, number) in samples.items():
            yield f"- **{STATES.get(stage, stage)}{f', {reason}' if reason != stage else ''}**: {number:,} documents"
            yield from (f"  - {text}" for text in texts)


def _samples(out: Path) -> dict[str, dict[str, tuple[list[str], int]]]:
    """For each stage and reason: the first texts, and how many documents there are."""
    found: dict[str, dict[str, tuple[list[str], int]]] = defaultdict(dict)
    for stage in STATES:
        numbers: Counter[str] = Counter()
        texts: dict[str, list[str]] = defaultdict(list)
        for file in sorted((out / "removed" / stage).glob("*.jsonl.zst")):
            with fsspec.open(str(file), "rt", encoding="utf-8", compression="zstd") as lines:
                for line in lines:
                    document = json.loads(line)
                    reason = document["metadata"].get("filter_reason", stage)
                    numbers[reason] += 1
                    if len(texts[reason]) < SAMPLES:
                        texts[reason].append(f"`{_shown(document)}` ({document['metadata']['source']})")
        for reason, number in numbers.most_common():
            found[stage][reason] = texts[reason], number
    return found


def _shown(document: dict[str, Any]) -> str:
    text = document["metadata"].get("contaminated_ngram") or document["text"]
    text = " ".join(text.split()).replace("`", "'")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _plot(counts: Counts, states: list[str], order: list[str], path: Path) -> None:
    order = sorted(order, key=lambda name: counts[states[0]].get(name, (0, 0))[1])
    figure = plots.figure(8, 1.2 + 0.28 * len(order))
    axes = figure.add_subplot()
    kept = [counts[states[-1]].get(name, (0, 0))[1] / 1e6 for name in order]
    axes.barh(order, kept, color=plots.BLUE, label="kept")
    left = kept
    colours = ("#f6ad55", "#e53e3e", "#805ad5", "#38a169", "#718096")
    for (before, after), colour in reversed([*zip(pairwise(states), colours, strict=False)]):
        gone = [
            (counts[before].get(name, (0, 0))[1] - counts[after].get(name, (0, 0))[1]) / 1e6 for name in order
        ]
        axes.barh(order, gone, left=left, color=colour, label=f"removed: {STATES[after]}")
        left = [a + b for a, b in zip(left, gone, strict=True)]
    axes.set_xlabel("million characters")
    axes.legend(loc="lower right", frameon=False)
    plots.save(figure, path)
