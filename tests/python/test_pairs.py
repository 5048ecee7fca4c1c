"""Pairs of options: every kind of call gives the same text, whatever the other options are."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

import welm

from conftest import PROMPT, at_rest

N = (1, 2, 3)
ECHO = (False, True)
LOGPROBS = (None, 0, 2)
MAX_TOKENS = (0, 1, 5)
STOP = (None, "，")
IGNORE_EOS = (False, True)


def joined(pieces: list[welm.Piece], n: int) -> list[welm.Choice]:
    """The choices that result from pieces."""
    choices: list[welm.Choice] = []
    for index in range(n):
        own = [piece for piece in pieces if piece.index == index]
        (finish,) = [piece.finish for piece in own if piece.finish]
        assert own[-1].finish is finish
        text = "".join(piece.text for piece in own)
        tokens = tuple(token for piece in own for token in piece.tokens)
        choices.append(welm.Choice(text, tokens, finish.reason))
    assert {piece.index for piece in pieces} == set(range(n))
    return choices


@pytest.mark.parametrize("max_tokens", MAX_TOKENS)
@pytest.mark.parametrize("n", N)
def test_all_ways_of_asking(model: welm.Model, n: int, max_tokens: int) -> None:
    prompt = model.tokenize(PROMPT)

    async def whole(**options: Any) -> welm.Generation:
        return await model.generate_async(prompt, **options)

    async def batch(**options: Any) -> list[welm.Generation]:
        return await model.generate_async([prompt, prompt], **options)

    async def pieces(**options: Any) -> list[welm.Piece]:
        return [piece async for piece in model.stream_async(prompt, **options)]

    async def company(**options: Any) -> tuple[welm.Generation, list[welm.Piece], welm.Generation]:
        return await asyncio.gather(whole(**options), pieces(**options), whole(**options))

    for i, (echo, logprobs, stop) in enumerate(itertools.product(ECHO, LOGPROBS, STOP)):
        ignore_eos = IGNORE_EOS[(i + n + max_tokens) % 2]  # beside every value of every other option
        options: dict[str, Any] = {
            "n": n,
            "echo": echo,
            "logprobs": logprobs,
            "max_tokens": max_tokens,
            "stop": stop,
            "ignore_eos": ignore_eos,
            "seed": 7,
        }
        want = model.generate(prompt, **options)
        # The expected value: the same sequences, without other options.
        plain = model.generate(prompt, n=n, seed=7, max_tokens=max_tokens, stop=stop, ignore_eos=ignore_eos)
        assert len(want.choices) == n, options
        head = len(prompt) if echo else 0
        for choice, alone in zip(want.choices, plain.choices, strict=True):
            assert choice.text == (PROMPT if echo else "") + alone.text, options
            assert choice.finish_reason == alone.finish_reason, options
            assert [t.id for t in choice.tokens[head:]] == [t.id for t in alone.tokens], options
            assert [t.id for t in choice.tokens[:head]] == (prompt if echo else []), options
            if max_tokens == 0:
                assert choice.finish_reason == "length", options
            for at, token in enumerate(choice.tokens):
                has = logprobs is not None and not (echo and at == 0)
                assert (token.logprob is not None) == has, options
                assert len(token.alternatives) == (logprobs if has else 0), options
        assert want.usage.prompt_tokens == len(prompt)
        assert want.usage.completion_tokens == plain.usage.completion_tokens

        assert joined(list(model.stream(prompt, **options)), n) == list(want.choices), options
        assert asyncio.run(whole(**options)).choices == want.choices, options
        assert joined(asyncio.run(pieces(**options)), n) == list(want.choices), options
        assert [g.choices for g in asyncio.run(batch(**options))] == [want.choices] * 2, options
        first, second, third = asyncio.run(company(**options))
        assert (first.choices, third.choices) == (want.choices, want.choices), options
        assert joined(second, n) == list(want.choices), options
    at_rest(model)
