"""Reads the folders of runs, as ``welm eval`` writes them."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from welm.eval.journal import CHANGES_BITS, EvalError
from welm.eval.journal import NAME as JOURNAL
from welm.eval.report_metrics import is_right_or_wrong, sums_of
from welm.eval.statistics import Interval, bootstrap, effective, wilson

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from welm.eval.statistics import Sums

RESULTS = "results.json"
EXPERIMENTS = "experiments"
"""The folder of a run's experiments."""
OTHER_RULES = ("_mean", "_sum", "_own", "_words")
"""The ends of metrics that judge the same answers by another rule."""
# Metrics between 0 and 1, which papers give in percent.
_PERCENT = re.compile(r"(acc|em|f1|rouge|exact_match)")
WILSON = "Wilson"
PASSAGES = ("context", "passage", "article", "flores_passage")
"""Where tasks have the text that several questions are about, if their metadata name no field as ``passage``."""
# Metrics that are between right and wrong, even if no value of a run is.
_GRADED = ("f1", "rouge", "bleu")
# The second and further prompts of a task of this package.
_PROMPT = re.compile(r"(.+)_([2-9])")


@dataclass(frozen=True)
class Score:
    """A metric of a task."""

    metric: str
    """With lm-eval's filter, if it has one."""
    value: float
    sums: Sums | None
    """By which it comes from the questions; ``None`` if that is not known."""
    higher_is_better: bool
    interval: Interval | None = None
    method: str = ""
    """Of the interval."""

    @property
    def scale(self) -> int:
        """What the value is multiplied with to be shown."""
        return 100 if _PERCENT.match(self.metric) else 1

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def is_accuracy(self) -> bool:
        """Whether it is the share of right choices."""
        return self.metric.startswith("acc")


@dataclass(frozen=True)
class Task:
    """A task of a run."""

    name: str
    base: str
    """The name of the task's first prompt."""
    prompt: int
    shots: int
    protocol: str
    """Nothing if the task does not say."""
    is_made_up: bool
    """Whether the questions are the package's own samples."""
    read: str
    """Which files or which set of the hub the questions come from; nothing if the task does not say."""
    documents: int | None
    """How many questions are there."""
    hashes: dict[int, str]
    """lm-eval's hash of each question, by its number."""
    prompts: dict[int, str]
    """lm-eval's hash of each prompt."""
    options: float | None
    """The mean number of options to choose from, if there are any."""
    chance: float | None
    """The share of right choices if one chooses blindly."""
    chances: tuple[float, ...]
    """The same for each question, in order; none if it is not known."""
    scores: dict[str, Score]

    def only(self, numbers: Collection[int]) -> Task:
        """The task as if only these questions had been asked. Scores that cannot be computed from them are left out."""
        if self.hashes.keys() <= set(numbers):
            return self
        kept = [at for at, number in enumerate(self.hashes) if number in numbers]
        chances = tuple(self.chances[at] for at in kept) if self.chances else ()
        return replace(
            self,
            hashes={number: value for number, value in self.hashes.items() if number in numbers},
            prompts={number: value for number, value in self.prompts.items() if number in numbers},
            chance=sum(chances) / len(chances) if chances else None,
            chances=chances,
            scores={
                name: _score(name, _kept(score.sums, kept), score.higher_is_better)
                for name, score in self.scores.items()
                if score.sums
            },
        )


@dataclass(frozen=True)
class Run:
    """A run."""

    path: Path
    label: str
    """Distinguishes it from others in a report."""
    model: str
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    """The key ``welm`` of its results."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    tasks: dict[str, Task] = field(default_factory=dict[str, Task])


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs in these folders."""
    folders = list(dict.fromkeys(Path(path) for path in paths))
    names = [folder.resolve().name for folder in folders]
    return [
        _run(folder, name if names.count(name) == 1 else str(folder))
        for folder, name in zip(folders, names, strict=True)
    ]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    found: Any
    try:
        found = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise EvalError(f"{path}: expected JSON, got {error.msg} at {place}") from None
    except UnicodeDecodeError as error:
        raise EvalError(f"{path}: expected UTF-8, got {error.reason} at byte {error.start}") from None
    if type(found) is not dict:
        raise EvalError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return cast("dict[str, Any]", found)


def _run(folder: Path, label: str) -> Run:
    file = folder / RESULTS
    if not file.is_file():
        found = sorted((folder / EXPERIMENTS).glob("*.json"))
        if found and not (folder / JOURNAL).is_file():  # only experiments
            return Run(folder, label, Path(str(read_json(found[0]).get("model") or "")).name)
        raise EvalError(_no_run(folder))
    results = read_json(file)
    for key in ("results", "configs", "n-shot", "welm"):
        if not isinstance(results.get(key), dict):
            got = "none" if key not in results else type(results[key]).__name__
            raise EvalError(f"{file}: expected results of `welm eval`, with an object {key}, got {got}")
    about = results["welm"]
    settings = about.get("settings")
    if not isinstance(settings, dict):
        raise EvalError(f"{file}: expected an object settings in welm, got {type(settings).__name__}")
    name = str(results.get("model_name") or "")
    run = Run(folder, label, Path(name).name or name, about, cast("dict[str, Any]", settings))
    for task in results["results"]:
        if task in results["configs"]:  # the others are groups, whose tasks are here too
            try:
                run.tasks[task] = _task(folder, task, results)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                reason = f"expected what `welm eval` writes, got {type(error).__name__}: {error}"
                raise EvalError(f"{file}, task {task}: {reason}") from error
    if not run.tasks:
        raise EvalError(f"{file}: expected results of one task or more, got none")
    return run


def _no_run(folder: Path) -> str:
    """What is wrong with a folder without results."""
    if not folder.exists():
        return f"{folder}: expected the folder of a run, got no such folder"
    if not folder.is_dir():
        return f"{folder}: expected the folder of a run, got a file"
    if not (folder / JOURNAL).is_file():
        return f"{folder}: expected the folder of a run of `welm eval`, got one without {RESULTS}"
    with open(folder / JOURNAL, encoding="utf-8", errors="replace") as file:
        first = file.readline()
        finished = sum(line.endswith("\n") for line in file)
    try:
        settings = json.loads(first)["settings"]
        parts = ["--tasks", ",".join(settings["tasks"])]
        for name in ("shots", "limit", "data", *CHANGES_BITS):
            if settings.get(name) is not None:
                parts += [f"--{name.replace('_', '-')}", str(settings[name])]
        parts += ["--chat"] if settings["chat"] else []
        parts += ["--ray", "ADDRESS"] if settings["device"].startswith("ray") else []
    except (ValueError, KeyError, TypeError):
        return f"{folder}: expected the folder of a run of `welm eval`, got one whose {JOURNAL} is another's"
    command = shlex.join(["python", "-m", "welm", "eval", "MODEL", *parts, "--out", str(folder)])
    return (
        f"{folder}: this run is unfinished: {finished:,} of its requests are there, and no {RESULTS}; "
        f"`{command}` goes on with it, with the model that it was begun with"
    )


def _task(folder: Path, name: str, results: dict[str, Any]) -> Task:
    config, values = results["configs"][name], results["results"][name]
    about: dict[str, Any] = config.get("metadata") or {}
    samples = sorted(_samples(folder / f"samples_{name}.jsonl"), key=lambda row: int(row["doc_id"]))
    expected = results.get("n-samples", {}).get(name, {}).get("effective")
    hashes = {int(row["doc_id"]): str(row["doc_hash"]) for row in samples}
    if expected is not None and len(hashes) != expected:
        file = folder / f"samples_{name}.jsonl"
        raise EvalError(f"{file}: expected {expected} questions, as {RESULTS} says, got {len(hashes)}")
    further = _PROMPT.fullmatch(name)
    if further and further[1] not in results["results"] and not about.get("protocol"):
        further = None  # a task of lm-eval whose name ends in a number
    counts = [_options(config, row) for row in samples]
    known = [count for count in counts if count]
    is_choice = bool(counts) and len(known) == len(counts)
    better = results.get("higher_is_better", {}).get(name, {})
    return Task(
        name=name,
        base=further[1] if further else name,
        prompt=int(further[2]) if further else 1,
        shots=int(results["n-shot"].get(name, 0)),
        protocol=str(about.get("protocol") or ""),
        is_made_up=about.get("data") == "samples",
        read=str(about.get("read") or ""),
        documents=about.get("documents"),
        hashes=hashes,
        prompts={int(row["doc_id"]): str(row.get("prompt_hash")) for row in samples},
        options=sum(known) / len(known) if is_choice else None,
        chance=sum(1 / count for count in known) / len(known) if is_choice else None,
        chances=tuple(1 / count for count in known) if is_choice and len(known) == len(hashes) else (),
        scores=_scores(values, samples, better, about.get("passage")),
    )


def _samples(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                row: Any = None
                try:
                    row = json.loads(line)
                    missing = {"doc_id", "doc_hash", "filter"} - set(row)
                except (ValueError, TypeError):
                    missing = {line}
                if missing:
                    got = line[:60].rstrip()
                    raise EvalError(f"{path}, line {number}: expected a sample of lm-eval, got {got!r}")
                # Texts of requests are most of a sample, and are not needed.
                row["arguments"] = len(row.get("arguments") or ())
                yield {name: value for name, value in row.items() if name not in ("resps", "filtered_resps")}
    except FileNotFoundError:
        raise EvalError(f"{path}: expected the samples of this run, got no such file") from None
    except UnicodeDecodeError as error:
        raise EvalError(f"{path}: expected UTF-8, got {error.reason}") from None


def _options(config: dict[str, Any], row: dict[str, Any]) -> int | None:
    """How many options a question has."""
    if config.get("output_type") != "multiple_choice":
        return None
    choices: Any = config.get("doc_to_choice")
    if isinstance(choices, str):
        choices = row["doc"].get(choices)
    # In lm-eval's own tasks, a request for each option.
    return len(choices) if _is_list(choices) else int(row["arguments"])


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _scores(
    values: dict[str, Any], samples: list[dict[str, Any]], better: dict[str, Any], passage: str | None
) -> dict[str, Score]:
    found: dict[str, Score] = {}
    texts = [_passage(row, passage) for row in samples]
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        at = [i for i, row in enumerate(samples) if row["filter"] == kept and metric in row]
        sums = (
            sums_of(metric, [samples[i][metric] for i in at], value) if at and math.isfinite(value) else None
        )
        sums = replace(sums, passages=_numbered([texts[i] or i for i in at])) if sums else None
        name = metric if kept == "none" else f"{metric}, {kept}"
        higher = better.get(metric) is not False
        found[name] = _score(name, sums, higher) if sums else Score(name, float(value), None, higher)
    return found


def _passage(sample: dict[str, Any], field: str | None) -> str | None:
    """What a question is about: the text in ``field``, or in one of the usual fields."""
    doc: dict[str, Any] = sample["doc"] if isinstance(sample.get("doc"), dict) else {}
    return next((json.dumps(doc[name]) for name in ([field] if field else PASSAGES) if doc.get(name)), None)


def _numbered(passages: Sequence[object]) -> tuple[int, ...]:
    """Numbers in the order in which they come first; none if all differ."""
    numbers = {passage: number for number, passage in enumerate(dict.fromkeys(passages))}
    return () if len(numbers) == len(passages) else tuple(numbers[passage] for passage in passages)


def _kept(sums: Sums, kept: list[int]) -> Sums:
    """Of some questions."""
    passages = _numbered([sums.passages[at] for at in kept]) if sums.passages else ()
    return replace(sums, rows=sums.rows[kept], passages=passages)


def _score(name: str, sums: Sums, higher_is_better: bool) -> Score:
    """A score with its interval."""
    interval, method = None, ""
    if is_right_or_wrong(sums) and not name.startswith(_GRADED):
        questions = effective(sums.rows[:, 0], sums.passages)
        interval, method = wilson(sums.score * questions, questions), WILSON
    elif not math.isclose(*(drawn := bootstrap(sums)), rel_tol=1e-9):  # equal values give one without width
        interval, method = drawn, "bootstrap"
    return Score(name, sums.score, sums, higher_is_better, interval, method)


def is_by_other_rule(score: Score, task: Task) -> bool:
    """Whether the metric judges the same answers by another rule than that of the first."""
    return any(
        score.metric.endswith(end) and score.metric.removesuffix(end) in task.scores for end in OTHER_RULES
    )
