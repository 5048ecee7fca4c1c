"""Streams: they have whole characters, no stop string, and the text of `generate`; deleting one cancels its request."""

from __future__ import annotations

import gc
import threading

import pytest

import welm

from conftest import PROMPT, at_rest

PROMPTS = ["床前明月光，", "こんにちは、", "😀🎉 ", "春眠\n", "English and 中文 "]


@pytest.mark.parametrize("seed", range(60))
def test_pieces_are_the_text(model: welm.Model, seed: int) -> None:
    """At high temperature: tokens of every kind, bytes that make characters and bytes that do not."""
    prompt = PROMPTS[seed % 5]

    def generate(stop: list[str]) -> tuple[welm.Generation, list[welm.Piece]]:
        options = {
            "max_tokens": 40,
            "temperature": [1.0, 1.6, 5.0][seed % 3],
            "top_k": 0,
            "top_p": 1.0,
            "seed": seed,
            "stop": stop,
        }
        whole = model.generate(prompt, ignore_eos=True, **options)  # type: ignore[call-overload]
        pieces = list(model.stream(prompt, ignore_eos=True, **options))  # type: ignore[arg-type]
        return whole, pieces

    whole, pieces = generate([])
    (choice,) = whole.choices
    assert "".join(p.text for p in pieces) == whole.text
    assert tuple(t for p in pieces for t in p.tokens) == choice.tokens
    assert b"".join(t.bytes for t in choice.tokens).decode("utf-8", "replace") == whole.text
    finish = pieces[-1].finish
    assert finish is not None
    assert (finish.reason, finish.completion_tokens) == ("length", 40)
    assert all(p.finish is None for p in pieces[:-1])

    stop = [s for s in (whole.text[3:6], whole.text[9:11], "永不出现") if s]
    cut, pieces = generate(stop)
    shown = ""
    for piece in pieces:
        shown += piece.text
        assert cut.text.startswith(shown)
    assert shown == cut.text
    assert not any(s in shown for s in stop)


def test_several_sequences(model: welm.Model) -> None:
    whole = model.generate(PROMPT, max_tokens=20, n=4, seed=5, echo=True)
    texts = [""] * 4
    for piece in model.stream(PROMPT, max_tokens=20, n=4, seed=5, echo=True):
        texts[piece.index] += piece.text
    assert texts == [choice.text for choice in whole.choices]


def test_a_stream_knows_its_request(model: welm.Model) -> None:
    stream = model.stream(PROMPT, max_tokens=3, seed=9)
    assert (stream.seed, stream.prompt_tokens) == (9, 5)
    assert repr(stream) == "Stream(seed=9, prompt_tokens=5)"
    assert iter(stream) is stream
    assert len(list(stream)) == 3
    assert list(stream) == []
    with pytest.raises(StopIteration):
        next(stream)


def test_errors_of_a_request_come_at_once(model: welm.Model) -> None:
    with pytest.raises(welm.InvalidOption):
        model.stream(PROMPT, top_p=3)
    with pytest.raises(TypeError):
        model.stream([PROMPT])  # type: ignore[arg-type]


def test_cancelling_and_dropping(model: welm.Model) -> None:
    options = {"max_tokens": 480, "temperature": 0.0, "ignore_eos": True}
    whole = model.generate(PROMPT, **options).text  # type: ignore[call-overload]

    stream = model.stream(PROMPT, **options)  # type: ignore[arg-type]
    text = next(stream).text
    stream.cancel()
    rest = list(stream)
    assert rest[-1].finish is not None
    assert rest[-1].finish.reason == "cancelled"
    assert whole.startswith(text + "".join(p.text for p in rest).rstrip("\ufffd"))

    with model.stream(PROMPT, **options) as stream:  # type: ignore[arg-type]
        next(stream)
    at_rest(model)

    stream = model.stream(PROMPT, **options)  # type: ignore[arg-type]
    next(stream)
    assert model.stats().open == 1
    del stream
    gc.collect()
    at_rest(model)

    stream = model.stream(PROMPT, **options)  # type: ignore[arg-type]
    threading.Timer(0.05, stream.cancel).start()
    pieces = list(stream)
    assert pieces[-1].finish is not None
    assert pieces[-1].finish.reason in ("cancelled", "length")
    at_rest(model)


def test_the_first_piece_does_not_wait_for_the_last(model: welm.Model) -> None:
    before = model.stats().completion_tokens
    with model.stream(PROMPT, max_tokens=480, n=8, ignore_eos=True) as stream:
        next(stream)
        assert model.stats().completion_tokens - before < 480 * 8 / 4
        for _ in stream:
            pass
    assert model.stats().completion_tokens - before == 480 * 8


def test_threads_may_share_a_stream(model: welm.Model) -> None:
    stream = model.stream(PROMPT, max_tokens=200, temperature=0, ignore_eos=True)
    lists: list[list[welm.Piece]] = [[] for _ in range(4)]
    threads = [threading.Thread(target=into.extend, args=(stream,)) for into in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(p.tokens) for pieces in lists for p in pieces) == 200
