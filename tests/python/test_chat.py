"""Chat in one call gives the same as `generate` for the conversation's tokens, with all options."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import welm

from conftest import PROMPT, at_rest, with_template

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGES = [{"role": "user", "content": "床前明月光"}]
TEMPLATE = (
    "<|endoftext|>{% for m in messages %}{{ m.content }}{% endfor %}"
    "{{ mood }}{% if add_generation_prompt %}，{% endif %}"
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> welm.Model:
    """A model with a chat template, which writes the token that starts a text."""
    return welm.Model(with_template(tmp_path_factory.mktemp("chat"), TEMPLATE))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"echo": True},
    {"echo": True, "n": 2, "logprobs": 1},
    {"echo": True, "max_tokens": 0, "logprobs": 0},
    {"stop": "，"},
    {"parse_special": True},
    {"ignore_eos": True, "stop_token_ids": [41]},
    {"cache_salt": "a", "n": 2},
    {"deadline": timedelta(hours=1), "logit_bias": {41: -math.inf}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_way_to_chat_is_the_same(chat: welm.Model, options: dict[str, Any]) -> None:
    options = {"seed": 7, "max_tokens": 12, **options}
    tokens, prompt = chat.chat_tokens(MESSAGES), chat.chat_prompt(MESSAGES)
    want = chat.generate(tokens, **options).choices
    whole = chat.chat(MESSAGES, **options)
    assert whole.usage.prompt_tokens == len(tokens)
    for got, choice in zip(whole.choices, want, strict=True):
        # In the text of a prompt of tokens, special tokens are left out.
        rest = got.text.removeprefix(prompt) if options.get("echo") else got.text
        assert rest == (
            choice.text.removeprefix(chat.detokenize(tokens)) if options.get("echo") else choice.text
        )
        assert (got.tokens, got.finish_reason) == (choice.tokens, choice.finish_reason)
    assert whole.finish_reason == whole.choices[0].finish_reason

    def texts(pieces: list[welm.Piece]) -> list[str]:
        return ["".join(p.text for p in pieces if p.index == i) for i in range(len(want))]

    async def run() -> list[welm.Piece]:
        assert (await chat.chat_async(MESSAGES, **options)).choices == whole.choices
        assert (await chat.generate_async(MESSAGES, **options)).choices == whole.choices
        async with chat.chat_stream_async(MESSAGES, **options) as stream:
            assert stream.prompt_tokens == len(tokens)
            return [piece async for piece in stream]

    expected = [choice.text for choice in whole.choices]
    with chat.chat_stream(MESSAGES, **options) as stream:
        assert texts(list(stream)) == expected
    with chat.stream(MESSAGES, **options) as stream:
        assert texts(list(stream)) == expected
    assert texts(asyncio.run(run())) == expected
    assert chat.generate(MESSAGES, **options).choices == whole.choices
    at_rest(chat)


def test_several_conversations_and_prompts_of_all_kinds(chat: welm.Model) -> None:
    greedy: dict[str, Any] = {"max_tokens": 6, "temperature": 0}
    other = [{"role": "user", "content": "春眠不觉晓"}]
    one, two = chat.chat(MESSAGES, **greedy), chat.chat(other, **greedy)
    both = chat.generate([MESSAGES, other], **greedy)
    assert [g.choices for g in both] == [one.choices, two.choices]
    mixed: list[Any] = [PROMPT, chat.tokenize(PROMPT), MESSAGES]
    assert [g.choices for g in chat.generate(mixed, **greedy)] == [
        chat.generate(prompt, **greedy).choices for prompt in mixed
    ]
    assert chat.logits(MESSAGES).tolist() == chat.logits(chat.chat_tokens(MESSAGES)).tolist()


def test_arguments_of_the_template(chat: welm.Model) -> None:
    def tokens(**arguments: Any) -> int:
        return chat.chat(MESSAGES, max_tokens=1, **arguments).usage.prompt_tokens

    alone = tokens()
    assert tokens(add_generation_prompt=True) == tokens(add_generation_prompt=None) == alone
    assert tokens(add_generation_prompt=False) == alone - 1
    assert tokens(variables={"mood": "好"}) == len(chat.chat_tokens(MESSAGES, mood="好")) > alone
    assert tokens(variables=None, tools=None, documents=None, chat_template=None) == alone
    tools = "{{ tools[0].name }}{{ documents | length }}"
    given: dict[str, Any] = {"tools": [{"name": "ab"}], "documents": [{}, {}], "chat_template": tools}
    assert chat.chat(MESSAGES, max_tokens=0, echo=True, **given).text == "ab2"
    begun = [*MESSAGES, {"role": "assistant", "content": "疑是"}]
    got = chat.chat(begun, max_tokens=0, echo=True, continue_final_message=True)
    assert got.text == chat.chat_prompt(begun, continue_final_message=True) == "<|endoftext|>床前明月光疑是"


def test_it_ends_as_other_requests_do(chat: welm.Model) -> None:
    whole = chat.chat(MESSAGES, max_tokens=400, temperature=0)
    assert whole.finish_reason == "end_of_text"
    assert whole.choices[0].end_token in chat.config.eos_token_ids
    cancel = welm.CancelToken()
    with chat.chat_stream(MESSAGES, max_tokens=400, ignore_eos=True, n=2, cancel=cancel) as stream:
        next(stream)
        cancel.cancel()
        assert [p.finish.reason for p in stream if p.finish] == ["cancelled"] * 2
    late = chat.chat(MESSAGES, deadline=0, echo=True)
    assert (late.finish_reason, late.text) == ("deadline", chat.chat_prompt(MESSAGES))

    async def run() -> None:
        task = asyncio.create_task(chat.chat_async(MESSAGES, max_tokens=400, ignore_eos=True, n=16))
        while chat.stats().open == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    at_rest(chat)


def test_wrong_conversations(chat: welm.Model, model: welm.Model) -> None:
    any_: Any = chat
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: model.chat(MESSAGES), welm.ChatTemplateError, "this model has none"),
        (lambda: model.generate(MESSAGES), welm.ChatTemplateError, "this model has none"),
        (lambda: any_.chat([]), welm.InvalidOption, "option `messages`: expected at least one, got none"),
        (lambda: any_.chat("hi"), TypeError, "argument 'messages': expected a list of dicts, got str"),
        (
            lambda: any_.chat(MESSAGES[0]),
            TypeError,
            "argument 'messages': expected a list of dicts, got dict",
        ),
        (
            lambda: any_.chat([MESSAGES]),
            TypeError,
            r"argument 'messages': messages\[0\]: expected a dict, got list",
        ),
        (
            lambda: any_.chat(MESSAGES, mood="x"),
            TypeError,
            r"chat\(\) got an unexpected keyword argument 'mood'",
        ),
        (
            lambda: any_.chat_stream_async(MESSAGES, max_token=1),
            TypeError,
            r"chat_stream_async\(\) got an unexpected keyword argument 'max_token'",
        ),
        (
            lambda: any_.chat(MESSAGES, variables=[1]),
            TypeError,
            "argument 'variables': expected a dict, got list",
        ),
        (
            lambda: any_.chat(MESSAGES, variables={"mood": {1}}),
            TypeError,
            "argument 'variables': variables.mood: expected None, a bool, .* got set",
        ),
        (
            lambda: any_.chat(MESSAGES, variables={"tools": []}),
            welm.InvalidOption,
            'option `variables`: expected names of the template\'s variables, got "tools", which is none',
        ),
        (lambda: any_.chat(MESSAGES, temperature=-1), welm.InvalidOption, "option `temperature`"),
        (lambda: any_.chat([{"role": "user", "content": "春" * 600}]), welm.TooLong, "context holds 512"),
        (
            lambda: any_.generate([MESSAGES, [3], "x", [{"role": {1}}]]),
            TypeError,
            r"argument 'messages': messages\[0\].role: expected None",
        ),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()
    at_rest(chat)
