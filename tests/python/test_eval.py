"""``welm.eval`` as far as it needs no lm-eval: how requests are computed, and the file by which a run goes on.

`tests/evaluation` has the rest.
"""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import welm
from welm.eval import EvalError, Journal
from welm.eval.journal import NAME, model_identity
from welm.eval.requests import BLOCK, Answer, Request, beginnings, common_blocks, compute

from conftest import PROMPT, at_rest

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS = {"model": "abc", "tasks": ["c3"], "limit": 3}


def scoring(prompt: Sequence[int], continuation: Sequence[int]) -> Request:
    return Request(array("I", prompt), array("I", continuation), {})


def blocks(*parts: int) -> list[int]:
    return [part for part in parts for _ in range(BLOCK)]


def requests_of(model: welm.Model) -> list[Request]:
    """Four answers to each of some questions after the same lines, two texts to continue, and one drawn twice."""
    few = model.tokenize("白日依山尽，黄河入海流。欲穷千里目，更上一层楼。" * 3)
    questions = [few + model.tokenize(f"第{i}句：{PROMPT}") for i in range(20)]
    answers = [model.tokenize(answer) for answer in ("疑是地上霜。", "处处闻啼鸟。", "春", "黄河入海流")]
    todo = [scoring(question, answer) for question in questions for answer in answers]
    greedy = {"max_tokens": 12, "temperature": 0.0, "stop": ["。"]}
    todo += [Request(array("I", question), None, greedy) for question in questions[:2]]
    drawn = {"max_tokens": 12, "temperature": 1.0, "top_p": 0.9, "top_k": 0}
    return [*todo, *(Request(array("I", questions[2]), None, {**drawn, "seed": seed}) for seed in (1, 2))]


def test_requests_are_computed_as_one_by_one(model: welm.Model) -> None:
    todo = requests_of(model)
    random.Random(0).shuffle(todo)
    before = model.stats()
    answers: dict[int, Answer] = {}
    compute(model, todo, answers.__setitem__)
    after = at_rest(model)
    assert sorted(answers) == list(range(len(todo)))
    for at, request in enumerate(todo):
        if request.continuation is None:
            alone = model.generate(request.prompt, **request.options)
            want = Answer(alone.text, len(request.prompt) + alone.usage.completion_tokens)
        else:
            score = model.score(request.prompt, [request.continuation])[0]
            logits = model.logits([*request.prompt, *request.continuation], len(request.prompt) - 1)
            greedy = list(logits.argmax(1)[:-1]) == list(request.continuation)
            want = Answer([score.logprob, greedy], len(request.prompt) + len(request.continuation))
        assert answers[at] == want
    found = after.prefix_hit_tokens - before.prefix_hit_tokens
    assert found > 0.7 * (after.prompt_tokens - before.prompt_tokens)


def test_a_beginning_is_still_there_when_it_is_its_turn_however_many_wait() -> None:
    """60 questions of 320 tokens and a cache of 4,096: many that wait would take the place of what was computed."""
    small = welm.Model(threads=1, context_tokens=512, cache_tokens=4096)
    source = random.Random(2)
    questions = [[source.randrange(10, 7000) for _ in range(320)] for _ in range(60)]
    todo = [scoring(question, [20 + answer, 30]) for question in questions for answer in range(4)]
    answers: dict[int, Answer] = {}
    compute(small, todo, answers.__setitem__)
    assert len(answers) == len(todo)
    stats = at_rest(small)
    # Of a beginning of whole blocks the last token is computed again, and that with its block.
    assert stats.prompt_tokens - stats.prefix_hit_tokens < 60 * (320 + 3 * 2 * BLOCK)


def test_greedy_means_the_likeliest_token_each_time(model: welm.Model) -> None:
    prompt = model.tokenize(PROMPT)
    likeliest = [t.id for t in model.generate(prompt, max_tokens=4, temperature=0).choices[0].tokens]
    other = [*likeliest[:3], likeliest[3] + 1]
    answers: dict[int, Answer] = {}
    compute(model, [scoring(prompt, likeliest), scoring(prompt, other)], answers.__setitem__)
    assert (answers[0].result[1], answers[1].result[1]) == (True, False)


def test_each_waits_for_the_first_with_the_same_beginning() -> None:
    todo = [
        scoring(blocks(1, 2, 3), [9]),
        scoring(blocks(1, 2, 4), [9]),
        scoring(blocks(5), [9]),
        scoring(blocks(1, 6, 7), [9]),
        scoring(blocks(1, 6, 8), [9]),
        scoring(blocks(1, 2, 4), [10]),
    ]
    order, parents = beginnings(todo)
    assert order == [0, 1, 5, 3, 4, 2]
    assert parents == [None, 0, None, 0, 3, 1]
    assert beginnings([]) == ([], [])


def test_the_one_waited_for_shares_most() -> None:
    source = random.Random(1)
    todo = [
        scoring(blocks(*(source.randrange(3) for _ in range(source.randrange(5)))), [7]) for _ in range(60)
    ]
    order, parents = beginnings(todo)
    tokens = [request.prompt + array("I", [7]) for request in todo]
    for place, index in enumerate(order):
        common = [common_blocks(tokens[index], tokens[other]) for other in order[:place]]
        most = max(common, default=0)
        first = order[common.index(most)] if most else None
        assert parents[index] == first


def test_an_exception_ends_the_computing_and_keeps_what_is_there(model: welm.Model) -> None:
    todo = [scoring([i + 5] * 400, [i + 6]) for i in range(300)]
    kept: list[int] = []

    def finish(index: int, _answer: Answer) -> None:
        kept.append(index)
        if len(kept) == 20:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compute(model, todo, finish)
    assert 20 <= len(kept) < 300
    assert time.monotonic() - started < 20
    at_rest(model)
    with pytest.raises(welm.TooLong):
        compute(model, [scoring([5] * 600, [6])], finish)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("welm-eval")]


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    answers = {
        "a": Answer([-1.25e-7, True], 3),
        "b": Answer("明\u2028月\n", 4),
        "c": Answer([-math.inf, False], 5),
    }
    with Journal(tmp_path / "new" / "run", SETTINGS) as journal:
        for key, answer in answers.items():
            journal.add(key, answer)
    file = tmp_path / "new" / "run" / NAME
    whole = file.read_bytes()
    assert len(whole.splitlines()) == 4
    with Journal(file.parent, SETTINGS) as journal:
        assert journal.answers == answers
    # Killed while it wrote a line; while it wrote the first.
    for length, left in ((len(whole) - 5, 2), (len(whole) - 1, 2), (9, 0), (0, 0)):
        file.write_bytes(whole[:length])
        with Journal(file.parent, SETTINGS) as journal:
            assert journal.answers == dict(list(answers.items())[:left])
            for key, answer in answers.items():
                if key not in journal.answers:
                    journal.add(key, answer)
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "model": "abd"}, 'this run was begun with model "abc", got "abd"; give another folder'),
        ({**SETTINGS, "tasks": ["c3", "x"]}, r'begun with tasks \["c3"\], got \["c3", "x"\]'),
        ({**SETTINGS, "shots": 0}, "begun with shots none, got 0"),
        ({"model": "abc", "tasks": ["c3"]}, "begun with limit 3, got none"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add("a", Answer("x", 1))
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(EvalError, match=message):
        Journal(tmp_path, settings)
    assert (tmp_path / NAME).read_bytes() == before


def test_a_run_that_finished_nothing_may_begin_anew(tmp_path: Path) -> None:
    Journal(tmp_path, {"tasks": ["misspelt"]}).close()
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add("a", Answer("x", 1))
    with Journal(tmp_path, SETTINGS) as journal:
        assert journal.answers == {"a": Answer("x", 1)}


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / NAME
    for content, line in (
        ("[]\n", 1),
        ('{"settings": {}}\nx\n{}\n', 2),
        ('{"settings": {}}\n{"key": "a"}\n', 2),
    ):
        file.write_text(content)
        with pytest.raises(EvalError, match=rf"requests.jsonl, line {line}: expected a line that"):
            Journal(tmp_path, {})
        assert file.read_text() == content
    with pytest.raises(OSError, match="Not a directory"):
        Journal(file / "run", {})
    file.unlink()
    with Journal(tmp_path, {}), pytest.raises(EvalError, match="another run has it open"):
        Journal(tmp_path, {})


FULL = """
import resource, signal, sys
from welm.eval import Journal
from welm.eval.requests import Answer
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Journal(sys.argv[1], {"a": 1}) as journal:
    try:
        for number in range(100):
            journal.add(str(number), Answer("x" * 20, 1))
    except OSError as error:
        print(number, error.filename, error.strerror)
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    number, rest = out.split(" ", 1)
    assert rest == f"{tmp_path / NAME} File too large\n"
    with Journal(tmp_path, {"a": 1}) as journal:
        assert sorted(journal.answers) == sorted(map(str, range(int(number))))
    assert (tmp_path / NAME).read_bytes().endswith(b"\n")


KILLED = """
import sys
from welm.eval import Journal
from welm.eval.requests import Answer
with Journal(sys.argv[1], {}) as journal:
    for number in range(10**9):
        journal.add(str(number), Answer("x" * 1000, 1))
        print(number, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_said_was_written(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        last = [process.stdout.readline() for _ in range(50)][-1]
        process.send_signal(signal.SIGKILL)
    with Journal(tmp_path, {}) as journal:
        assert set(map(str, range(int(last) + 1))) <= set(journal.answers)


def test_another_model_is_noticed(tmp_path: Path) -> None:
    nano, copy = Path(welm.NANO), tmp_path / "copy"
    copy.mkdir()
    for file in nano.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert model_identity(nano) == model_identity(copy)
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    for at in range(1 << 12, len(changed), 1 << 12):  # as training would change them
        changed[at] ^= 1
    weights.write_bytes(changed)
    assert model_identity(nano) != model_identity(copy)
    # A GGUF model in two files.
    parts = [tmp_path / f"m [x]-0000{i}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF")
    one = model_identity(parts[0])
    parts[1].write_bytes(b"GGUG")
    assert model_identity(parts[0]) != one


def test_without_lm_eval_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "lm_eval.py").write_text(
        "raise ModuleNotFoundError('No module named lm_eval', name='lm_eval')"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    line = [sys.executable, "-m", "welm", "eval", "--tasks", "c3", "--out", str(tmp_path / "out")]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False, timeout=60)
    reason = 'welm.eval needs lm-eval (No module named lm_eval): pip install "welm[eval]"'
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"python -m welm: {reason}\n")
    assert not (tmp_path / "out").exists()
    with pytest.raises(AttributeError, match=r"module 'welm\.eval' has no attribute 'Evaluate'"):
        getattr(welm.eval, "Evaluate")  # noqa: B009
