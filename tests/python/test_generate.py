"""Generating: pinned tokens, batches, options, scores, logits."""

from __future__ import annotations

import array
import asyncio
import datetime
import json
import math
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import welm

from conftest import FIXTURES, GREEDY, PROMPT, at_rest, read_safetensors


def ids(choice: welm.Choice) -> list[int]:
    return [token.id for token in choice.tokens]


def test_greedy_tokens_of_the_small_model(model: welm.Model) -> None:
    want = GREEDY
    got = model.generate(PROMPT, max_tokens=len(want), temperature=0, ignore_eos=True)
    assert ids(got.choices[0]) == want
    tokens = model.tokenize(PROMPT)
    assert got.usage == welm.Usage(len(tokens), len(want), 0)
    for way in (tokens, tuple(tokens), np.array(tokens, np.uint32), array.array("I", tokens)):
        assert ids(model.generate(way, max_tokens=8, temperature=0).choices[0]) == want[:8]


@pytest.mark.parametrize(
    "name", ["neox_sequential", "neox_odd", "welm", "llama_gqa", "llama_bf16", "llama_sharded"]
)
def test_greedy_tokens_of_every_family(name: str) -> None:
    """The tokens that the Rust tests pin, from transformers."""
    want = read_safetensors(FIXTURES / name / "expected.safetensors")
    model = welm.Model(FIXTURES / name, cache_dtype="f32")
    got = model.generate(want["prompt"].flatten(), max_tokens=64, temperature=0, ignore_eos=True)
    assert ids(got.choices[0]) == want["greedy"].flatten().tolist()
    logits = model.logits(want["prompt"].flatten()).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    logprobs -= logits.max(1, keepdims=True)
    assert np.abs(logprobs - want["logprobs"]).max() < 1e-4


def test_a_batch_is_its_prompts_alone(model: welm.Model) -> None:
    prompts: list[str | list[int]] = [
        "春眠不觉晓，",
        "白日依山尽，",
        "Hello, ",
        model.tokenize("红豆生南国，"),
    ]
    each: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"seed": 11, "n": 3},
        {"seed": 5, "logprobs": 2, "echo": True},
    ]
    for options in each:
        alone = [model.generate(p, max_tokens=20, **options) for p in prompts]
        together = model.generate(prompts, max_tokens=20, **options)
        assert [g.choices for g in together] == [g.choices for g in alone]
        assert [g.seed for g in together if "seed" in options] == [g.seed for g in alone if "seed" in options]


def test_what_is_a_batch(model: welm.Model) -> None:
    tokens = model.tokenize(PROMPT)
    none: list[str] = []
    assert model.generate(none, max_tokens=1) == []
    assert len(model.generate([PROMPT], max_tokens=1)) == 1
    assert len(model.generate((PROMPT, tokens), max_tokens=1)) == 2
    assert len(model.generate([tokens, np.array(tokens)], max_tokens=1)) == 2
    assert model.generate(tokens, max_tokens=1).usage.prompt_tokens == len(tokens)
    assert model.generate(np.array([], np.uint32), max_tokens=1).usage.prompt_tokens == 1
    wrong: list[Any] = [3, None, b"bytes", bytearray(3), {"a": 1}, [1.5], [[PROMPT]], [PROMPT, 3], [[b"a"]]]
    for prompt in wrong:
        with pytest.raises(TypeError):
            model.generate(prompt, max_tokens=1)


def test_a_batch_that_is_longer_than_the_queue() -> None:
    model = welm.Model(queue_limit=3, max_running=2)
    prompts = [PROMPT[: 1 + i % 6] for i in range(40)]
    got = model.generate(prompts, max_tokens=30, temperature=0)
    assert [g.text for g in got] == [model.generate(p, max_tokens=30, temperature=0).text for p in prompts]
    with pytest.raises(welm.InvalidOption, match="at most 3"):
        model.generate(["春", "夏"], max_tokens=1, n=4)


def test_one_bad_prompt_cancels_its_batch(model: welm.Model) -> None:
    with pytest.raises(welm.TooLong):
        model.generate([PROMPT, "春" * 600, PROMPT], max_tokens=400, ignore_eos=True)
    at_rest(model)


def test_seeds(model: welm.Model) -> None:
    first = model.generate(PROMPT, max_tokens=30)
    assert model.generate(PROMPT, max_tokens=30, seed=first.seed).choices == first.choices
    assert model.generate(PROMPT, max_tokens=30, seed=2**64 - 1).seed == 2**64 - 1
    assert len({model.generate(PROMPT, max_tokens=30).text for _ in range(8)}) > 1


def test_sampling_options_take_effect(model: welm.Model) -> None:
    greedy = model.generate(PROMPT, max_tokens=16, temperature=0).text
    each: list[dict[str, Any]] = [{"top_p": 0.0}, {"top_k": 1}, {"min_p": 1.0}, {"top_k": np.int64(1)}]
    for options in each:
        assert model.generate(PROMPT, max_tokens=16, seed=1, **options).text == greedy
    assert model.generate(PROMPT, max_tokens=40, temperature=0, repetition_penalty=2.0).text[:16] != greedy
    for penalty in ("frequency_penalty", "presence_penalty"):
        strong: dict[str, Any] = {penalty: 100}
        tokens = model.generate(PROMPT, max_tokens=40, temperature=0, **strong).choices[0].tokens
        assert len({token.id for token in tokens}) == len(tokens)
    first = model.generate(PROMPT, max_tokens=1, temperature=0).choices[0].tokens[0].id
    ruled_out = model.generate(PROMPT, max_tokens=1, temperature=0, logit_bias={first: -math.inf})
    assert ruled_out.choices[0].tokens[0].id != first
    forced = model.generate(PROMPT, max_tokens=3, seed=1, logit_bias={40: 100})
    assert [token.id for token in forced.choices[0].tokens] == [40] * 3
    hot = model.generate(PROMPT, max_tokens=16, temperature=5, top_p=1, top_k=0, seed=1)
    assert hot.text != greedy


def test_n_and_echo(model: welm.Model) -> None:
    got = model.generate(PROMPT, max_tokens=12, n=5, seed=3, echo=True)
    assert len(got.choices) == 5
    assert len({choice.text for choice in got.choices}) > 1
    assert all(choice.text.startswith(PROMPT) for choice in got.choices)
    assert got.choices[0].tokens[0].id == model.tokenize(PROMPT)[0]
    assert got.text == got.choices[0].text


def test_stop_strings(model: welm.Model) -> None:
    whole = model.generate(PROMPT, max_tokens=40, temperature=0).text
    for stop in ("。", ["。", "永不出现"], ("光。",)):
        got = model.generate(PROMPT, max_tokens=40, temperature=0, stop=stop).choices[0]
        at = min(whole.find(s) for s in ([stop] if isinstance(stop, str) else stop) if s in whole)
        assert (got.text, got.finish_reason) == (whole[:at], "stop")
    assert model.generate(PROMPT, max_tokens=4, temperature=0, stop=None).text == whole[:4]


def test_logprobs(model: welm.Model) -> None:
    got = model.generate(PROMPT, max_tokens=12, temperature=0, logprobs=3)
    logits = model.logits(model.tokenize(PROMPT), from_=4)
    assert logits.shape == (1, model.config.vocab_size)
    logprobs = logits[0].astype(np.float64)
    logprobs -= np.log(np.exp(logprobs).sum())
    first = got.choices[0].tokens[0]
    assert first.logprob is not None
    assert abs(first.logprob - logprobs.max()) < 1e-4
    assert [t.id for t in first.alternatives] == np.argsort(-logprobs)[:3].tolist()
    assert first.alternatives[0].id == first.id
    assert all(len(t.alternatives) == 3 for t in got.choices[0].tokens)
    assert model.generate(PROMPT, max_tokens=1, logprobs=0).choices[0].tokens[0].alternatives == ()
    assert model.generate(PROMPT, max_tokens=1).choices[0].tokens[0].logprob is None
    echoed = model.generate(PROMPT, max_tokens=2, echo=True, logprobs=0).choices[0].tokens
    assert echoed[0].logprob is None
    assert all(t.logprob is not None for t in echoed[1:])


def test_why_a_text_ends(model: welm.Model) -> None:
    assert model.generate(PROMPT, max_tokens=3).choices[0].finish_reason == "length"
    assert model.generate(PROMPT, max_tokens=400, seed=7).choices[0].finish_reason == "end_of_text"
    past: list[float | datetime.timedelta] = [0, 0.0, datetime.timedelta(0), 1e-9]
    for deadline in past:
        got = model.generate(PROMPT, max_tokens=400, ignore_eos=True, deadline=deadline)
        assert got.choices[0].finish_reason == "deadline"
    far: list[float | datetime.timedelta | None] = [1e9, math.inf, datetime.timedelta(days=1), None]
    for late in far:
        assert model.generate(PROMPT, max_tokens=3, deadline=late).choices[0].finish_reason == "length"
    started = time.monotonic()
    got = model.generate(PROMPT, max_tokens=480, n=64, ignore_eos=True, deadline=0.1)
    assert {choice.finish_reason for choice in got.choices} == {"deadline"}
    assert time.monotonic() - started < 5
    at_rest(model)


def test_cancelling_from_another_thread(model: welm.Model) -> None:
    cancel = welm.CancelToken()
    assert not cancel.cancelled
    timer = threading.Timer(0.1, cancel.cancel)
    timer.start()
    got = model.generate([PROMPT, PROMPT], max_tokens=480, n=32, ignore_eos=True, cancel=cancel)
    assert {choice.finish_reason for g in got for choice in g.choices} == {"cancelled"}
    assert cancel.cancelled
    assert repr(cancel) == "CancelToken(cancelled=True)"
    assert model.generate(PROMPT, cancel=cancel).choices[0].finish_reason == "cancelled"
    at_rest(model)


def test_scores(model: welm.Model) -> None:
    continuations = ["疑是地上霜。", "一二三四五。", ""]
    scores = model.score(PROMPT, continuations)
    echoed = model.generate(PROMPT + continuations[0], max_tokens=0, echo=True, logprobs=0).choices[0].tokens
    tail = [t.logprob or 0.0 for t in echoed[len(model.tokenize(PROMPT)) :]]
    assert scores[0].logprob == pytest.approx(sum(tail), abs=1e-4)
    assert [t.id for t in scores[0].tokens] == model.tokenize(continuations[0])
    assert (scores[2].logprob, scores[2].tokens) == (0.0, ())
    assert model.score(PROMPT, []) == []
    many = [f"{i}。" for i in range(100)]
    assert model.score(PROMPT, many) == [model.score(PROMPT, [c])[0] for c in many]
    with pytest.raises(TypeError):
        model.score(PROMPT, "疑是地上霜。")  # one text is not a list of them
    at_rest(model)


def test_every_token_of_a_continuation_is_scored(model: welm.Model) -> None:
    start = model.config.bos_token_id
    assert start is not None
    for prompt, continuation in [("", "春"), ("", "春眠不觉晓，"), ("床前", "明月光"), ("t", "he")]:
        own, tokens = model.tokenize(prompt), model.tokenize(prompt + continuation)
        shared = 0
        while own[shared : shared + 1] == tokens[shared : shared + 1] != []:
            shared += 1
        given = tokens if shared else [start, *tokens]
        echoed = model.generate(given, max_tokens=0, echo=True, logprobs=0).choices[0].tokens
        (score,) = model.score(prompt, [continuation])
        assert score.tokens == echoed[max(shared, 1) :]
        assert score.logprob == pytest.approx(sum(t.logprob or 0.0 for t in score.tokens))
        assert score.logprob < 0
        assert all(t.logprob is not None for t in score.tokens)


def test_ends_by_tokens(model: welm.Model) -> None:
    greedy: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    ids = [t.id for t in model.generate(PROMPT, **greedy).choices[0].tokens]
    (choice,) = model.generate(PROMPT, stop_token_ids=np.array([9, ids[4]]), **greedy).choices
    end = ids.index(ids[4])
    assert [t.id for t in choice.tokens] == ids[:end]
    assert (choice.finish_reason, choice.end_token) == ("stop", ids[4])
    finish = [p.finish for p in model.stream(PROMPT, stop_token_ids=[ids[4]], **greedy) if p.finish]
    assert [(f.reason, f.end_token, f.completion_tokens) for f in finish] == [("stop", ids[4], end)]
    (spelled,) = model.generate(PROMPT, stop="<pad>", logit_bias={2: 100.0}, **greedy).choices
    assert (spelled.text, spelled.finish_reason, spelled.end_token) == ("", "stop", None)
    (plain,) = model.generate(PROMPT, max_tokens=400, temperature=0).choices
    assert (plain.finish_reason, plain.end_token) == ("end_of_text", model.config.eos_token_ids[0])


def test_salts_keep_apart_what_was_computed() -> None:
    model = welm.Model()
    prompt = list(range(300, 364))
    cached = [
        model.generate(prompt, max_tokens=2, temperature=0, cache_salt=salt).usage.cached_tokens
        for salt in ("a", "b", None, "a", "b", None)
    ]
    assert cached == [0, 0, 0, 48, 48, 48]


def test_where_nothing_is_left_to_choose_that_is_an_error(model: welm.Model) -> None:
    out = dict.fromkeys(range(model.config.vocab_size), -math.inf)
    with pytest.raises(welm.InvalidOption, match="`logit_bias`: expected to leave a token to choose"):
        model.generate(PROMPT, logit_bias=out)
    at_rest(model)


def test_siblings_of_a_sequence_that_ends_before_them(model: welm.Model) -> None:
    options: dict[str, Any] = {"n": 3, "echo": True, "logprobs": 0, "max_tokens": 0}
    want = model.generate([5, 6, 7], **options)
    assert [len(choice.tokens) for choice in want.choices] == [3, 3, 3]
    assert asyncio.run(model.generate_async([5, 6, 7], seed=want.seed, **options)) == want
    assert sum(piece.finish is not None for piece in model.stream([5, 6, 7], **options)) == 3
    at_rest(model)


def test_logits_are_an_array_of_ones_own(model: welm.Model) -> None:
    logits = model.logits(PROMPT)
    assert (logits.dtype.name, logits.ndim, logits.flags.writeable) == ("float32", 2, True)
    logits[0, 0] = 1.0
    assert (model.logits(PROMPT, from_=3) == model.logits(PROMPT)[3:]).all()
    with pytest.raises(welm.InvalidOption, match="from"):
        model.logits(PROMPT, 1000)


@pytest.mark.parametrize(
    "text", ["", "床前明月光，", "Hello\n\n世界 🎉", "ﷺ\x00\u200b", "a" * 3000, "<|endoftext|>"]
)
def test_tokens_and_back(model: welm.Model, text: str) -> None:
    tokens = model.tokenize(text)
    assert model.detokenize(tokens) == text
    assert model.detokenize(np.array(tokens, np.uint32)) == text
    assert b"".join(map(model.token_bytes, tokens)) == text.encode()


def test_special_tokens(model: welm.Model) -> None:
    (end,) = model.config.eos_token_ids
    assert model.is_special(end)
    assert model.token_bytes(end) == b""
    assert model.detokenize([end]) == ""
    name = next(n for n in ("<|endoftext|>", "</s>", "<eos>") if model.token_id(n) == end)
    assert model.tokenize(name, parse_special=True) == [end]
    assert end not in model.tokenize(name)
    assert model.token_id("no such token") is None
    assert model.generate(name + "春", max_tokens=1, parse_special=True).usage.prompt_tokens == 2 + (
        model.generate("春", max_tokens=1).usage.prompt_tokens - len(model.tokenize("春"))
    )


def test_without_a_tokenizer(bare: welm.Model) -> None:
    assert bare.generate([1, 2, 3], max_tokens=2).text == ""
    assert bare.detokenize([1, 2]) == ""
    with pytest.raises(welm.TokenizerError):
        bare.generate("text")
    with pytest.raises(welm.TokenizerError):
        bare.tokenize("text")


def test_company_changes_no_text(model: welm.Model) -> None:
    """32 threads; half of their requests are cancelled while they run."""
    prompts = [
        "床前明月光，",
        "春眠不觉晓，",
        "《秋思》\n",
        "甲：你好",
        "Hello, world. ",
        "白日依山尽，黄河入海流。",
    ]

    def options(i: int) -> welm.Generation:
        return model.generate(
            prompts[i % 6],
            max_tokens=30 + i,
            temperature=[0.0, 0.7, 1.3][i % 3],
            seed=i,
            n=1 + i % 3,
            logprobs=[None, 2][i % 2],
            ignore_eos=True,
        )

    alone = [options(i) for i in range(32)]
    together: list[welm.Generation | None] = [None] * 32
    wrong: list[str] = []

    def run(i: int) -> None:
        for _ in range(3):
            if i % 2:
                stream = model.stream(prompts[i % 6], max_tokens=400, temperature=0, ignore_eos=True)
                text = ""
                for count, piece in enumerate(stream):
                    text += piece.text
                    if count == i:
                        stream.cancel()
                whole = greedy[prompts[i % 6]]
                if not whole.startswith(text.rstrip("\ufffd")):
                    wrong.append(text)
            else:
                together[i] = options(i)

    greedy = {p: model.generate(p, max_tokens=400, temperature=0, ignore_eos=True).text for p in prompts}
    threads = [threading.Thread(target=run, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for got, want in zip(together[::2], alone[::2], strict=True):
        assert got is not None
        assert got.choices == want.choices  # log-probabilities included, to the bit
    at_rest(model)


def test_the_gil_is_released(model: welm.Model) -> None:
    """Another thread counts while this one waits."""
    count, stop = 0, False

    def run() -> None:
        nonlocal count
        while not stop:
            count += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for call in (
            lambda: model.generate(PROMPT, max_tokens=300, n=8, ignore_eos=True),
            lambda: list(model.stream(PROMPT, max_tokens=100, ignore_eos=True)),
            lambda: model.score("春" * 300, [str(i) for i in range(32)]),
            lambda: model.logits("春" * 400),
            lambda: model.tokenize("床前明月光，疑是地上霜。\n" * 20_000),
            lambda: welm.Model(),
        ):
            before, started = count, time.thread_time()
            call()
            # A thread counts to a thousand in a tenth of a millisecond; with the GIL held it could not count at all.
            assert count - before > 1000, time.thread_time() - started
    finally:
        stop = True
        thread.join()


def test_memory_does_not_grow(model: welm.Model) -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def some(count: int) -> None:
        for i in range(count):
            model.generate([PROMPT, PROMPT], max_tokens=4, logprobs=5, n=2, seed=i)
            next(model.stream(PROMPT, max_tokens=50, seed=i))

    some(150)
    before = resident()
    some(500)
    assert resident() - before < 1500, "kB"


def test_models_come_and_go() -> None:
    """Streams keep their model alive; the engine ends with the last one."""
    before = threading.active_count()
    for _ in range(20):
        stream = welm.Model(threads=1).stream(PROMPT, max_tokens=20, temperature=0)
        assert next(stream).text == "月"
        assert len("".join(piece.text for piece in stream)) > 10
    assert threading.active_count() == before


def test_chat(model: welm.Model, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "你好"}]
    assert not model.has_chat_template
    with pytest.raises(welm.ChatTemplateError, match="this model has none"):
        model.chat_prompt(messages)
    for file in Path(welm.NANO).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for m in messages %}{{ m.role }}：{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}乙：{% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    chat = welm.Model(tmp_path)
    assert chat.has_chat_template
    assert chat.chat_prompt(messages) == "user：你好\n乙："
    assert chat.chat_prompt(messages, add_generation_prompt=False) == "user：你好\n"
    assert chat.chat_tokens(messages) == chat.tokenize("user：你好\n乙：", parse_special=True)
    assert chat.generate(chat.chat_tokens(messages), max_tokens=2).usage.completion_tokens <= 2
    # Other keys, lists of parts, missing content: the template gets all of it.
    assert chat.chat_prompt([{"role": "user"}], False) == "user：\n"
    assert chat.chat_prompt([{"role": "user", "content": None, "x": 1}], False) == "user：\n"
    assert chat.chat_prompt([{"role": "user", "content": [{"text": "a"}, 2**70]}], False) == (
        "user：[{'text': 'a'}, 1180591620717411303424]\n"
    )


class Lying(Sequence[Any]):
    """A list of messages that claims to be very long."""

    def __len__(self) -> int:
        return 2**36

    def __getitem__(self, i: Any) -> Any:
        if i > 0:
            raise IndexError
        return {"role": "user", "content": "x"}


def test_chat_requests(model: welm.Model) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"b": (1, 2.0, True), "a": None}}}
    messages = [{"role": "assistant", "content": "", "tool_calls": [call], "audio": None}]
    keys = "{% for m in messages %}{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}{% endfor %}"
    assert model.chat_prompt(messages, chat_template=keys) == (
        "role=assistant;content=;tool_calls=[{'type': 'function', 'function': "
        "{'name': 'f', 'arguments': {'b': [1, 2.0, True], 'a': None}}}];"
    )
    user = [{"role": "user", "content": "x"}]
    given = (
        "{{ tools is none }}{{ documents is none }}{{ tools | tojson }}{{ mood }}{{ add_generation_prompt }}"
    )
    assert model.chat_prompt(user, chat_template=given) == "TrueTruenullTrue"
    assert (
        model.chat_prompt(
            user, False, tools=[{"b": 1, "a": 2}], documents=[], mood={"x": [None]}, chat_template=given
        )
        == """FalseFalse[{"b": 1, "a": 2}]{'x': [None]}False"""
    )
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{{ '<a>' if add_generation_prompt }}"
    begun = [*user, {"role": "assistant", "content": "It is"}]
    for key in (True, "content"):
        text = model.chat_prompt(begun, continue_final_message=key, chat_template=turns)
        assert text == "<user>x</><assistant>It is"
    assert model.chat_tokens(begun, chat_template=turns) == model.tokenize(
        "<user>x</><assistant>It is</><a>", parse_special=True
    )
    assert model.chat_prompt(Lying(), chat_template=turns) == "<user>x</><a>"
    mapping = MappingProxyType({"role": "user", "content": "x"})
    assert model.chat_prompt((mapping,), chat_template=turns) == "<user>x</><a>"


def test_wrong_chat_requests_name_what_is_wrong(model: welm.Model) -> None:
    def prompt(*args: Any, **kwargs: Any) -> str:
        return model.chat_prompt(*args, **{"chat_template": "x", **kwargs})

    user = {"role": "user", "content": "x"}
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    for value, error, text in (
        (object(), TypeError, "expected None, a bool, a number, a str, a list or a dict, got object"),
        ({1, 2}, TypeError, "got set"),
        (b"x", TypeError, "got bytes"),
        ({1: 2}, TypeError, "expected keys that are str, got int"),
        (cycle, welm.InvalidOption, "expected values in at most 100 others"),
        (deep, welm.InvalidOption, "expected values in at most 100 others"),
        (2**200, welm.InvalidOption, "at most 127 bits"),
        ("\ud800", welm.InvalidOption, "surrogate"),
    ):
        with pytest.raises(error, match=re.escape("messages[1].content") + ".*" + re.escape(text)):
            prompt([user, {"role": "user", "content": value}])
        with pytest.raises(error, match=r"mood.*" + re.escape(text)):
            prompt([user], mood=value)
    for messages, text in (
        ("user", "got str"),
        (user, "got dict"),
        ([3], r"messages\[0\]: expected a dict, got int"),
        (None, "got None"),
    ):
        with pytest.raises(TypeError, match=text):
            prompt(messages)
    for kwargs, error, text in (
        ({"tools": {}}, TypeError, "argument 'tools': expected a list of dicts, got dict"),
        ({"tools": [1]}, TypeError, r"argument 'tools': tools\[0\]: expected a dict, got int"),
        ({"documents": ["x"]}, TypeError, r"argument 'documents': documents\[0\]: expected a dict, got str"),
        ({"tokenize": False}, welm.InvalidOption, "tokenize"),
        ({"messages": []}, welm.InvalidOption, "messages"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            welm.InvalidOption,
            "continue_final",
        ),
        (
            {"continue_final_message": "name"},
            welm.InvalidOption,
            'expected a key of the last message, got "name", which it does not have',
        ),
    ):
        with pytest.raises(error, match=text):
            prompt([user], **kwargs)
    with pytest.raises(welm.InvalidOption, match="at least one"):
        prompt([])
    with pytest.raises(welm.ChatTemplateError, match="line 2: not supported in templates: the tag include"):
        prompt([user], chat_template="\n{% include 'x' %}")


def test_quantize(tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    welm.quantize(FIXTURES / "welm", tmp_path / "int8", progress=lambda *report: reports.append(report))
    assert reports[-1][0] == reports[-1][1] > 0
    assert welm.Model(tmp_path / "int8").generate([1, 2], max_tokens=3).usage.completion_tokens <= 3
    with pytest.raises(welm.Cancelled):
        welm.quantize(FIXTURES / "welm", tmp_path / "no", progress=lambda *_: False)
    assert not (tmp_path / "no" / "model.safetensors").exists()
    with pytest.raises(ZeroDivisionError):
        welm.quantize(FIXTURES / "welm", tmp_path / "no", progress=lambda done, total: 1 / 0)
    with pytest.raises(welm.InvalidFile, match="int8 already"):
        welm.quantize(welm.NANO, tmp_path / "no")
