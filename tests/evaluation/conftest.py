"""Small tasks of the three kinds that lm-eval has, and a Ray cluster."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

# Before anything of Hugging Face is imported: nothing here is downloaded.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import welm

LINES = (
    "床前明月光，疑是地上霜。",
    "举头望明月，低头思故乡。",
    "白日依山尽，黄河入海流。",
    "欲穷千里目，更上一层楼。",
    "春眠不觉晓，处处闻啼鸟。",
    "夜来风雨声，花落知多少。",
)
TASKS = {
    "choose": """
output_type: multiple_choice
fewshot_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{gold}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "go_on": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n", "。"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
""",
    "draw": """
output_type: generate_until
repeats: 3
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: true, temperature: 0.9, top_p: 0.9}
filter_list: [{name: first, filter: [{function: take_first}]}]
metric_list: [{metric: exact_match}]
""",
    "read": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="session")
def model() -> welm.Model:
    return welm.Model()


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The YAML files of the tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    source = random.Random(0)
    with open(folder / "test.jsonl", "w", encoding="utf-8") as file:
        for number in range(12):
            before, after = LINES[number % 6].split("，")
            choices = source.sample([line.split("，")[1] for line in LINES if after not in line], 3)
            gold = source.randrange(4)
            choices.insert(gold, after)
            doc = {
                "question": f"第{number}句：{before}，",
                "choices": choices,
                "gold": gold,
                "text": "".join(LINES) * (30 if number > 9 else 1),
            }
            file.write(json.dumps(doc, ensure_ascii=False) + "\n")
    for name, task in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / 'test.jsonl'}}}}}\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}test_split: test\n{task}", "utf-8")
    return [str(folder / f"{name}.yaml") for name in TASKS]


def outcome(folder: Path) -> dict[str, object]:
    """All of a run's files that do not tell of times: samples as they are, and of the results those of the tasks."""
    files: dict[str, object] = {
        path.name: path.read_bytes() for path in sorted(folder.glob("samples_*.jsonl"))
    }
    results = json.loads((folder / "results.json").read_text("utf-8"))
    names = ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "task_hashes")
    return {**files, **{name: results[name] for name in names}}
