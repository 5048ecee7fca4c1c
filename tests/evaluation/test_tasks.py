"""The tasks of ``welm.eval.tasks`` in lm-eval: documents, requests, scores of right and wrong answers, metrics."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM

from welm.eval import tasks
from welm.eval.report_runs import _options
from welm.eval.tasks import metrics, mix
from welm.eval.tasks.data import DataError
from welm.eval.tasks.ranking import RULES, LogLikelihood

CASES = json.loads((Path(__file__).parents[1] / "fixtures/eval_metrics.json").read_text("utf-8"))
PROMPTS = sorted(path.stem for path in tasks.FOLDER.glob("*/*.yaml") if path.parent.name != "groups")
NAMES = [name for name in PROMPTS if not name.endswith("_prompts")]
DEFAULT = {**tasks.TASKS, **tasks.LANGUAGES}


@pytest.fixture(scope="module")
def manager() -> Any:
    return tasks.manager("samples")


@pytest.fixture(scope="module")
def task_of(manager: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = {}
    for group in ("welm_prompts", "welm_languages"):
        loaded |= manager.load(group)["tasks"]
    for name in NAMES:
        if name not in loaded:
            loaded |= manager.load(name)["tasks"]
    return loaded


def test_names(manager: Any) -> None:
    """Each task is listed, has three prompts, and a group of them; groups have all tasks; names of lm-eval exist."""
    assert {n for n in NAMES if n.rstrip("0123456789").rstrip("_") == n or n in DEFAULT} == set(DEFAULT)
    for name in DEFAULT:
        group = manager.load(f"{name}_prompts")["tasks"]
        assert set(group) == {name, f"{name}_2", f"{name}_3"}
        texts = {str(task.config.doc_to_text) for task in group.values()}
        assert len(texts) == 3
    assert set(manager.load("welm")["tasks"]) == set(tasks.TASKS)
    assert set(manager.load("welm_languages")["tasks"]) == set(tasks.LANGUAGES)
    assert len(manager.load("welm_prompts")["tasks"]) == 3 * len(tasks.TASKS)
    assert set(tasks.FROM_LM_EVAL) <= set(manager.all_tasks)


def is_ranking(task: Any) -> bool:
    return type(task).__name__ == "Ranking"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shots", [0, 1, 3])
def test_requests(name: str, shots: int, task_of: dict[str, Any]) -> None:
    task = task_of[name]
    task.set_config("num_fewshot", shots)

    def build() -> list[Any]:
        task.set_fewshot_seed(1234)
        task.build_all_requests()
        return [(i.doc_id, i.request_type, i.args) for i in task.instances]

    asked = build()
    assert asked == build(), "examples are drawn by a fixed seed"
    docs = list(task.eval_docs)
    assert {number for number, _, _ in asked} == set(range(len(docs)))
    delimiter = task.config.fewshot_delimiter
    for number, doc in enumerate(docs):
        mine = [(kind, args) for i, kind, args in asked if i == number]
        if is_ranking(task):
            assert {kind for kind, _ in mine} == {"loglikelihood"}
            parts = task.pieces(doc)
            options = task.doc_to_choice(doc)
            head, stem = parts.scored(whole=True)
            assert len(mine) == 2 * len(options) + bool(head) + bool(stem.strip())
            rests = [args for _, args in mine[-2 * len(options) : -len(options)]]
            begin = rests[0][0] + rests[0][1]
            begin = begin[: begin.rindex(parts.filled(0))]
            for i, (context, rest) in enumerate(rests):
                assert context + rest == begin + parts.filled(i), "the whole filled template"
                assert options[i] in rest
            assert len(begin.split(delimiter)) == shots + 1
            assert begin or not shots
        else:
            ((kind, (prompt, settings)),) = mine
            assert kind == "generate_until"
            assert settings["until"][0] == "\n"
            assert (settings["do_sample"], settings["temperature"]) == (False, 0.0)
            text = task.doc_to_text(doc)
            assert prompt.endswith(text)
            assert len(prompt[: -len(text)].split(delimiter)) == shots + 1
            begin = prompt[: -len(text)]
        whole = parts.filled(task.gold(doc)) if is_ranking(task) else task.doc_to_text(doc)
        assert whole not in begin, "the example that is asked is not shown"


@pytest.mark.parametrize("name", NAMES)
def test_right_and_wrong_answers(name: str, task_of: dict[str, Any]) -> None:
    task = task_of[name]
    task.set_config("num_fewshot", 0)
    for doc in task.eval_docs:
        if is_ranking(task):
            parts, gold = task.pieces(doc), task.gold(doc)
            first = len(task.requests(doc, "")) - 2 * len(parts.options)
            for chosen in {gold, (gold + 1) % len(parts.options), 0}:
                likely = {first + chosen: -1.0}
                results = [
                    (LogLikelihood(likely.get(i, -50.0), 10), False)
                    for i in range(len(task.requests(doc, "")))
                ]
                found = task.process_results(doc, results)
                accuracies = {k: v for k, v in found.items() if k.startswith("acc")}
                assert len(accuracies) == len(RULES)
                assert set(accuracies.values()) == {float(chosen == gold)}
                assert {v for k, v in found.items() if k.startswith("f1")} <= {(gold, chosen)}
        else:
            for answer in doc["answers"]:
                found = task.process_results(doc, [f" {answer}\n\n别的"])
                assert min(v for k, v in found.items() if k != "bleu") == pytest.approx(1), found
            for wrong in ("", "\n", "zzz"):
                found = task.process_results(doc, [wrong])
                assert max(v for k, v in found.items() if k != "bleu") < 0.15, (wrong, found)


@pytest.mark.parametrize("name", NAMES)
def test_the_report_knows_the_number_of_options(name: str, task_of: dict[str, Any]) -> None:
    task = task_of[name]
    for doc in task.eval_docs:
        requests = {"doc": doc, "arguments": len(task.requests(doc, "")) if is_ranking(task) else 1}
        expected = len(task.doc_to_choice(doc)) if is_ranking(task) else None
        assert _options(task.config.to_dict(), requests) == expected


def test_examples_are_never_questions(tmp_path: Path) -> None:
    """Where the same file has both, and where some of the examples are asked, too."""
    rows = (tasks.FOLDER / "samples/pd.jsonl").read_text("utf-8").splitlines(keepends=True)
    for test, shots, split, most in (
        ({"pd/dev": rows}, {}, "test", 9),
        ({"pd/test": rows[:6]}, {"pd/dev": rows}, "shots", 4),
    ):
        folder = tmp_path / split
        for name, some in {**test, **shots}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.jsonl").write_text("".join(some), "utf-8")
        task = tasks.manager(str(folder)).load("pd")["tasks"]["pd"]
        assert task.config.metadata["read"] == next(iter(test))
        assert task.config.metadata["documents"] == len(next(iter(test.values())))
        assert task.fewshot_cfg.split == split
        task.set_config("num_fewshot", most)
        task.set_fewshot_seed(1234)
        task.build_all_requests()
        for instance in task.instances:
            prompt, _ = instance.args
            assert prompt.count(task.doc_to_text(instance.doc)) == 1
        task.set_config("num_fewshot", most + 1)
        with pytest.raises(
            DataError, match=f"pd: expected at most {most} examples in a prompt, got {most + 1}"
        ):
            task.build_all_requests()


class Knowing(LM):
    """A model that knows the right texts of the samples, or gives each another answer."""

    def __init__(self, right: bool, loaded: dict[str, Any]) -> None:
        super().__init__()
        self.right = right
        self.texts: dict[str, dict[str, bool]] = {}
        self.answers: dict[str, str] = {}
        for task in loaded.values():
            for doc in task.eval_docs:
                if is_ranking(task):
                    parts = task.pieces(doc)
                    for i in range(len(parts.options)):
                        self.texts.setdefault(str(doc), {})[parts.filled(i)] = i == task.gold(doc)
                else:
                    self.answers[task.doc_to_text(doc)] = doc["answers"][0]

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        results = []
        for request in requests:
            context, text = request.args
            ends = [
                gold
                for whole, gold in self.texts[str(request.doc)].items()
                if (context + text).endswith(whole)
            ]
            likely = any(ends) == self.right
            results.append((LogLikelihood(-1.0 if likely else -90.0, len(text)), False))
        return results

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        found = []
        for request in requests:
            (answer,) = {a for text, a in self.answers.items() if request.args[0].endswith(text)}
            found.append(answer if self.right else "zzz")
        return found

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        raise NotImplementedError


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("shots", [0, 1])
def test_runs(right: bool, shots: int, manager: Any) -> None:
    loaded = manager.load(["welm", "welm_languages"])["tasks"]
    lm = Knowing(right, loaded)
    found = simple_evaluate(
        lm, tasks=["welm", "welm_languages"], num_fewshot=shots, task_manager=manager, bootstrap_iters=0
    )
    assert set(DEFAULT) <= set(found["results"])
    for name in DEFAULT:
        scores = {
            k.removesuffix(",none"): v
            for k, v in found["results"][name].items()
            if k.endswith(",none") and "stderr" not in k
        }
        most = {"bleu": 100}
        for metric, value in scores.items():
            assert value == pytest.approx(
                most.get(metric, 1) if right else 0, abs=0 if not right else 1e-9
            ), (
                name,
                metric,
            )
        assert found["n-shot"][name] == shots
    json.dumps(found["configs"], default=str)


def test_the_group_of_prompts_has_their_mean(manager: Any) -> None:
    lm = Knowing(True, manager.load("c3_prompts")["tasks"])
    found = simple_evaluate(lm, tasks=["c3_prompts"], task_manager=manager, bootstrap_iters=0)
    assert found["groups"]["c3_prompts"]["acc,none"] == 1
    assert [found["results"][n]["acc,none"] for n in ("c3", "c3_2", "c3_3")] == [1, 1, 1]


def test_a_model_that_does_not_count_tokens(manager: Any) -> None:
    class Plain(Knowing):
        def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            return [(float(score), greedy) for score, greedy in super().loglikelihood(requests)]

    with pytest.raises(ValueError, match='"unit": "byte" to divide by bytes'):
        simple_evaluate(Plain(True, manager.load("c3")["tasks"]), tasks=["c3"], task_manager=manager)
    by_bytes = tasks.manager("samples", unit="byte")
    found = simple_evaluate(
        Plain(True, manager.load("c3")["tasks"]), tasks=["c3"], task_manager=by_bytes, bootstrap_iters=0
    )
    assert found["results"]["c3"]["acc,none"] == 1


def test_tokens_are_counted_by_the_tokenizer_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for lm-eval's model `hf`, which hands on `pretrained` and tells no number of tokens."""

    class Tokenizer:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            assert not add_special_tokens
            return [0] * (2 * len(text))

        @staticmethod
        def from_pretrained(name: str) -> Tokenizer:
            assert name == "some/model"
            return Tokenizer()

    transformers: Any = types.ModuleType("transformers")
    transformers.AutoTokenizer = Tokenizer
    task = tasks.manager("samples", pretrained="some/model").load("c3_2")["tasks"]["c3_2"]
    # Only now: loading data looks into transformers, if it is there.
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    assert task.counter()("四个字。") == 8
    # By perplexity a long option wins, by the sum a short one: the number of tokens matters.
    doc = {"context": "甲。", "question": "问", "candidates": ["一", "二三四五六七"], "gold": 1}
    results = [(-10.0, False)] * 2 + [(-20.0, False), (-21.0, False)] + [(-5.0, False)] * 2
    assert task.process_results(doc, results) == {"acc": 1, "acc_mean": 1, "acc_sum": 0, "acc_own": 0}


def test_chats(task_of: dict[str, Any]) -> None:
    task = task_of["c3_2"]
    task.set_config("num_fewshot", 1)
    task.set_fewshot_seed(1234)

    def chat(history: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in history) + "<assistant>"

    task.build_all_requests(apply_chat_template=True, chat_template=chat, limit=1)
    doc = task.eval_docs[0]
    stem, first, *_ = (i.args for i in task.instances)
    assert first[0].startswith("<user>")
    assert first[0].endswith(f"\n问：{doc['question']}<assistant>")
    assert stem[1] == "答："
    assert first[1] == (f"答：{doc['candidates'][0]}")
    results = [(LogLikelihood(-1.0, 3), False)] * len(task.instances)
    assert set(task.process_results(doc, results)) == {"acc", "acc_mean", "acc_sum", "acc_own"}
    task.chat = False
    task = task_of["tnews"]
    with pytest.raises(ValueError, match="cannot be asked in a chat"):
        task.build_all_requests(apply_chat_template=True, chat_template=chat, limit=1)
    task.chat = False


def test_passage_and_question_in_two_languages(task_of: dict[str, Any]) -> None:
    docs = {n: list(task_of[n].eval_docs) for n in tasks.LANGUAGES if n.startswith("xquad")}
    assert {len(found) for found in docs.values()} == {10}
    for zh, en, zh_en, en_zh in zip(
        *(docs[f"xquad_p_{p}_q_{q}"] for p, q in (("zh", "zh"), ("en", "en"), ("zh", "en"), ("en", "zh"))),
        strict=True,
    ):
        assert zh_en == {**zh, "question": en["question"]}
        assert en_zh == {**en, "question": zh["question"]}
        assert zh["question"] != en["question"]


def test_words_are_switched() -> None:
    english, japanese = mix.dictionary("en"), mix.dictionary("ja")
    assert len(english) > 600
    assert len(japanese) > 500
    assert all(zh and other and zh != other for d in (english, japanese) for zh, other in d.items())
    with pytest.raises(ValueError, match="en or ja, got 'fr'"):
        mix.dictionary("fr")
    text = "我的朋友今天在学校学习历史，老师给我们介绍了一部著名的电影。"
    mixed = mix.switched(text, "en")
    assert mixed == mix.switched(text, "en")
    assert mixed != mix.switched(text, "ja")
    words = [word for word in english.values() if word in mixed]
    assert words
    # Read back, word for word, it is the text.
    back = mixed
    for chinese, other in english.items():
        if chinese in text and chinese not in back:
            back = back.replace(other, chinese)
    assert back.replace(" ", "") == text
    document = {"context": text, "question": text, "candidates": [text], "gold": 0}
    switched = mix.document(document, "ja")
    assert switched["candidates"] == [text]
    assert switched["context"] == switched["question"] != text


def test_a_third_of_the_known_content_words_is_switched() -> None:
    text = "。".join(["朋友", "学校", "老师", "电影", "历史", "城市", "医院", "音乐", "飞机", "动物"]) + "。"
    changed = sum(word not in mix.switched(text, "en") for word in text.split("。") if word)
    assert changed == 3


@pytest.mark.parametrize("number", range(len(CASES["chinese"])))
def test_metrics_of_chinese_answers(number: int) -> None:
    case = CASES["chinese"][number]
    answers, text = case.pop("answers"), case.pop("text")
    found = {
        "em": metrics.exact(answers, text),
        "f1": metrics.f1(answers, text),
        **metrics.rouge(answers, text),
    }
    assert found == pytest.approx(case, abs=1e-12)
    case |= {"answers": answers, "text": text}


def test_metrics_of_english_answers() -> None:
    for case in CASES["english"]:
        answers, text = case["answers"], case["text"]
        assert metrics.squad_exact(answers, text) == case["em"]
        assert metrics.squad_f1(answers, text) == pytest.approx(case["f1"], abs=1e-12)


def test_metrics_of_many_answers() -> None:
    for case in CASES["bleu"]:
        assert metrics.bleu(case["pairs"]) == pytest.approx(case["bleu"], abs=1e-9)
    for case in CASES["macro_f1"]:
        assert metrics.macro_f1(case["pairs"]) == pytest.approx(case["f1"], abs=1e-12)


def test_cloze() -> None:
    assert metrics.cloze("工厂", "“工厂”。") == {"acc": 1.0, "em": 1.0}
    assert metrics.cloze("工厂", "工厂，居民") == {"acc": 1.0, "em": 0.0}
    assert metrics.cloze("工厂", "新的工厂") == {"acc": 0.0, "em": 0.0}
    assert metrics.cloze("工厂", "") == {"acc": 0.0, "em": 0.0}


def test_the_folder_alone_is_enough(tmp_path: Path) -> None:
    """A copy of the folder, and a Python without welm: as for users of lm-eval by --include_path."""
    folder = tmp_path / "copy"
    shutil.copytree(tasks.FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [
        sys.executable,
        "-c",
        ALONE,
        "run",
        "--model",
        "dummy",
        "--include_path",
        str(folder),
        "--limit",
        "2",
    ]
    command += [
        "--metadata",
        '{"data": "samples", "unit": "byte"}',
        "--tasks",
        "c3,cmrc2018,smp-ecisa,adgen,c3_mix_ja",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("c3", "cmrc2018", "smp-ecisa", "adgen", "c3_mix_ja", "acc_own", "rouge1_words", "f1_sum"):
        assert name in done.stdout


ALONE = """
import sys
import types
sys.modules["welm"] = None  # not installed
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
assert "welm_eval_tasks" in sys.modules
"""


def test_random_texts_never_break_a_metric() -> None:
    source = random.Random(0)
    alphabet = "中文。，a B1９%’'\"\n\t 😀…"
    for _ in range(500):
        left, right = ("".join(source.choices(alphabet, k=source.randrange(12))) for _ in range(2))
        for value in (
            metrics.exact([left], right),
            metrics.f1([left], right),
            *metrics.rouge([left], right).values(),
        ):
            assert 0 <= value <= 1
        assert metrics.exact([left], left) == 1
