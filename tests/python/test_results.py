"""Results: repr, equality, pickling, HTML."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
from html import unescape
from html.parser import HTMLParser

import pytest

import welm

from conftest import PROMPT


def test_generations(model: welm.Model) -> None:
    got = model.generate(PROMPT, max_tokens=8, temperature=0, logprobs=2, n=2)
    same = model.generate(PROMPT, max_tokens=8, temperature=0, logprobs=2, n=2, seed=got.seed)
    assert got.choices == same.choices
    assert got != model.generate(PROMPT, max_tokens=7, temperature=0, logprobs=2, n=2, seed=got.seed)
    assert pickle.loads(pickle.dumps(got)) == got
    assert copy.deepcopy(got) == got
    assert hash(got) == hash(copy.copy(got))
    with pytest.raises(dataclasses.FrozenInstanceError):
        got.seed = 3  # type: ignore[misc]
    match got:
        case welm.Generation(choices=(welm.Choice(text=text), _)):
            assert text == got.text
        case _:
            pytest.fail("no match")
    choice = f"Choice(text={got.text!r}, finish_reason='length', end_token=None)"
    assert repr(got).startswith(f"Generation(choices=({choice}, ")
    token = got.choices[0].tokens[0]
    assert repr(token) == f"Token(id={token.id}, text='月', logprob={token.logprob:.4f})"
    assert repr(welm.Token(5)) == "Token(id=5, text='')"
    assert dataclasses.asdict(got)["choices"][0]["tokens"][0]["bytes"] == "月".encode()


def test_pieces_and_scores(model: welm.Model) -> None:
    pieces = list(model.stream(PROMPT, max_tokens=3, temperature=0))
    assert pickle.loads(pickle.dumps(pieces)) == pieces
    assert repr(pieces[0]) == "Piece(index=0, text='月', finish=None)"
    (score,) = model.score(PROMPT, ["疑"])
    assert pickle.loads(pickle.dumps(score)) == score
    assert repr(score) == f"Score(logprob={score.logprob})"


def test_config_memory_stats(model: welm.Model) -> None:
    config = model.config
    assert (config.family, config.n_params, config.vocab_size) == ("welm", 6_541_312, 7040)
    assert (config.dim, config.n_layers, config.n_heads, config.head_dim) == (256, 6, 4, 64)
    assert (config.norm, config.activation, config.rope_scaling) == ("layernorm", "gelu", None)
    assert pickle.loads(pickle.dumps(config)) == config

    memory = model.memory
    assert memory == welm.Model.estimate(threads=1) == welm.Model.estimate(welm.NANO, threads=1)
    parts = memory.mapped_bytes + memory.converted_bytes + memory.cache_bytes + memory.scratch_bytes
    assert memory.total_bytes == parts
    assert welm.Model.estimate(cache_tokens=512).cache_bytes < memory.cache_bytes

    before = model.stats()
    model.generate(PROMPT, max_tokens=5, ignore_eos=True)
    after = model.stats()
    assert after.requests == before.requests + 1
    assert after.completion_tokens == before.completion_tokens + 5
    assert pickle.loads(pickle.dumps(after)) == after
    times = after.time_to_first_token
    assert times.count == before.time_to_first_token.count + 1 == sum(times.counts)
    assert len(times.counts) == len(times.bounds)
    assert (times.bounds[0], times.bounds[-1]) == (1e-4, math.inf)
    assert times.sum > 0
    assert times.quantile(0.5) in times.bounds
    assert times != before.time_to_first_token
    empty = welm.Histogram([0] * len(times.counts), 0.0)
    assert (empty.count, empty.quantile(0.9)) == (0, 0.0)
    assert repr(empty) == "Histogram(count=0, sum=0, p50=0, p99=0)"


def test_a_model(model: welm.Model) -> None:
    assert repr(model) == f"<welm.Model welm, 6541312 parameters, {model.backend}>"
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(model)


class Page(HTMLParser):
    """Text, tooltips and tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.titles: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]


def test_html(model: welm.Model) -> None:
    assert model.generate(PROMPT, max_tokens=4)._repr_html_() is None
    for seed in range(20):  # at high temperature: bytes that make characters, and bytes that do not
        got = model.generate(
            PROMPT, max_tokens=30, temperature=3, top_k=0, top_p=1, seed=seed, logprobs=2, echo=seed % 2 == 0
        )
        html = got._repr_html_()
        assert html is not None
        page = Page(html)
        assert page.text == got.text
        assert page.tags == {"div", "span"}
        assert len(re.findall("<span ", html)) == len(page.titles) > 0


def test_html_is_escaped_and_whole() -> None:
    def token(data: bytes, p: float, *alternatives: welm.Token) -> welm.Token:
        return welm.Token(1, math.log(p), alternatives, data)

    text = '<b onclick="x">月'
    whole = tuple(token(text[i : i + 3].encode(), 0.5) for i in range(0, 15, 3))
    month = "月".encode()
    parts = (token(month[:1], 0.5, token(b'"<i>', 0.25)), token(month[1:], 0.5))
    usage = welm.Usage(1, 1, 0)
    got = welm.Generation((welm.Choice(text, whole + parts),), 0, usage)
    page = Page(got._repr_html_() or "")
    assert page.text == text
    assert page.tags == {"div", "span"}
    assert page.titles[-1] == "25.0%", "the tokens of one character share its probability"

    other = welm.Generation((welm.Choice("a", (token(b"a", 0.5, token(b'"<i>', 0.25)),)),), 0, usage)
    html = other._repr_html_() or ""
    assert "<i>" not in html
    assert Page(html).titles == ["50.0%\n'\"<i>' 25.0%"]
    assert "hsl(60 " in unescape(html)


def test_html_ends_where_the_text_ends(model: welm.Model) -> None:
    got = model.generate(PROMPT, max_tokens=40, temperature=0, logprobs=0, stop="光。")
    assert got.choices[0].finish_reason == "stop"
    assert Page(got._repr_html_() or "").text == got.text
