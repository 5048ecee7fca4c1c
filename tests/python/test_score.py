"""Scores of many prompts: they are computed together, are the same as one by one, and can be cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import welm

from conftest import PROMPT, at_rest

PROMPTS = [PROMPT, "春眠不觉晓，", ""]
ANSWERS = ["疑是地上霜。", "处处闻啼鸟。", "", "春"]


@pytest.mark.parametrize(
    "options", [{}, {"prefix_cache": False}, {"queue_limit": 2, "max_running": 1}], ids=str
)
def test_many_prompts_score_as_one_by_one(options: dict[str, Any]) -> None:
    model = welm.Model(**options)
    want = [[model.score(prompt, [answer])[0] for answer in ANSWERS] for prompt in PROMPTS]
    assert model.score(PROMPTS, ANSWERS) == want
    assert model.score(tuple(PROMPTS), tuple(ANSWERS)) == want
    own = [["疑是地上霜。"], [], ["春", "处处闻啼鸟。"]]
    assert model.score(PROMPTS, own) == [[want[0][0]], [], [want[2][3], want[2][1]]]
    assert model.score(PROMPTS, [[], [], []]) == [[], [], []]
    assert model.score(PROMPTS, []) == [[], [], []]
    assert model.score([], ["a"]) == []
    assert model.score([PROMPT], ANSWERS[:2]) == [want[0][:2]]
    many = [f"{i}。" for i in range(100)]
    assert model.score([PROMPT] * 3, many) == [model.score(PROMPT, many)] * 3

    async def run() -> None:
        assert await model.score_async(PROMPTS, ANSWERS) == want
        assert await model.score_async(PROMPTS, own) == [[want[0][0]], [], [want[2][3], want[2][1]]]
        assert await model.score_async(PROMPT, ANSWERS) == want[0]
        if "queue_limit" not in options:  # one call alone fills such a short queue
            both = await asyncio.gather(*(model.score_async(prompt, ANSWERS) for prompt in PROMPTS))
            assert both == want

    asyncio.run(run())
    at_rest(model)


def test_the_engine_has_all_of_them_at_once(model: welm.Model) -> None:
    before = model.stats()
    questions = [f"{PROMPT * 40}第{i}句：" for i in range(40)]
    model.score(questions, ["疑是", "处处", "黄河", "白日"])
    after = at_rest(model)
    assert after.requests - before.requests == 160
    assert after.steps - before.steps < 80
    found = after.prefix_hit_tokens - before.prefix_hit_tokens
    assert found > 0.8 * (after.prompt_tokens - before.prompt_tokens)


def test_tokens_and_messages(model: welm.Model, bare: welm.Model) -> None:
    prompt, answer = PROMPT, "疑是地上霜。"
    ids, after = model.tokenize(prompt), model.tokenize(answer)
    want = model.score(prompt, [answer])
    assert model.score(ids, [answer]) == model.score(prompt, [after]) == model.score(ids, [after]) == want
    any_: Any = model
    assert any_.score([ids, prompt], [answer, after]) == [want * 2, want * 2]
    assert any_.score([ids, ids], [[after], [answer, after]]) == [want, want * 2]
    # As texts these two would merge into one token. As ids they stay two tokens.
    bright, moon = model.tokenize("明"), model.tokenize("月")
    assert bright + moon != model.tokenize("明月")
    for apart in (model.score(bright, ["月"]), model.score("明", [moon])):
        assert [t.id for t in apart[0].tokens] == moon
    assert model.score(prompt, [[]])[0] == welm.Score(0.0, ())
    assert bare.score([3, 4], [[5], [6, 7]])[1].tokens[1].id == 7
    with pytest.raises(welm.TokenizerError):
        bare.score([3, 4], ["a"])
    with pytest.raises(welm.ChatTemplateError):
        model.score([{"role": "user", "content": "x"}], ["a"])
    with pytest.raises(welm.TooLong, match="prompt 513"):
        model.score(ids, [range(513)])
    with pytest.raises(
        welm.InvalidOption, match="option `continuations`: expected tokens below 7040, got 7040"
    ):
        model.score(ids, [[7040]])
    at_rest(model)


def long_work(model: welm.Model) -> tuple[list[str], list[str]]:
    return ["春" * 300] * 100, [str(i) for i in range(200)]


def test_cancel_and_deadline(model: welm.Model) -> None:
    cancel = welm.CancelToken()
    assert len(model.score(PROMPT, ["疑"], cancel=cancel, deadline=60)) == 1
    threading.Timer(0.1, cancel.cancel).start()
    started = time.monotonic()
    with pytest.raises(welm.Cancelled, match="it was cancelled") as raised:
        model.score(*long_work(model), cancel=cancel)
    assert raised.value.reason == "cancelled"
    with pytest.raises(welm.Cancelled, match="the deadline passed") as raised:
        model.score(*long_work(model), deadline=0.1)
    assert raised.value.reason == "deadline"
    assert time.monotonic() - started < 20
    at_rest(model)

    async def run() -> None:
        with pytest.raises(welm.Cancelled, match="the deadline passed"):
            await model.score_async(*long_work(model), deadline=0.05)
        with pytest.raises(welm.Cancelled, match="it was cancelled"):
            await model.score_async(PROMPT, ["疑"], cancel=cancel)

    asyncio.run(run())
    at_rest(model)


def test_cancelling_the_task_ends_the_scoring(model: welm.Model) -> None:
    ticks = 0

    async def run() -> None:
        nonlocal ticks
        cancel = welm.CancelToken()
        task = asyncio.create_task(model.score_async(*long_work(model), cancel=cancel))
        while model.stats().open == 0:
            await asyncio.sleep(0.001)
            ticks += 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not cancel.cancelled, "it is the caller's"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.score_async(*long_work(model)), 0.05)

    threads = threading.active_count()
    asyncio.run(run())
    assert ticks > 0
    at_rest(model)
    until = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= threads


def test_errors_come_before_anything_is_computed(model: welm.Model) -> None:
    any_: Any = model
    with pytest.raises(TypeError, match=r"score_async\(\) got an unexpected keyword argument 'x'"):
        any_.score_async(PROMPT, ["a"], x=1)
    with pytest.raises(TypeError, match="argument 'continuations'"):
        any_.score_async(PROMPT, "a")

    async def run() -> None:
        with pytest.raises(welm.TooLong):
            await model.score_async([PROMPT, "春" * 600], ["a"])

    asyncio.run(run())
    at_rest(model)
