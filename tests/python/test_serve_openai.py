"""OpenAI's HTTP API, used by OpenAI's own library."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

import openai
import pytest

import welm
from welm.serve.openai_completions import Logprobs

from conftest import PROMPT, at_rest, begun, with_template
from serving import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}：{{ m.content }}\n{% endfor %}"
    "{{ mood }}{% if add_generation_prompt %}assistant：{% endif %}"
)
MESSAGES: list[Any] = [
    {"role": "system", "content": "作诗"},
    {"role": "user", "content": "床前明月光"},
    {"role": "assistant", "content": "疑是地上霜"},
    {"role": "user", "content": [{"type": "text", "text": "举头"}, {"type": "text", "text": "望明月"}]},
]
FLAT = [*MESSAGES[:3], {"role": "user", "content": "举头望明月"}]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> welm.Model:
    return welm.Model(with_template(tmp_path_factory.mktemp("chat"), TEMPLATE), threads=1)


@pytest.fixture(scope="module")
def server(chat: welm.Model) -> Iterator[Running]:
    with Running(chat, model_names=("mine", "other/name"), keys={"sk-a": "alice"}) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-a", max_retries=0, timeout=20) as made:
        yield made


def greedy(chat: welm.Model, prompt: Any, **options: Any) -> welm.Generation:
    got: welm.Generation = chat.generate(prompt, **{"temperature": 0, "top_p": 1, "top_k": 0, **options})
    return got


# Models.


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mine", "other/name"]
    assert client.models.retrieve("other/name").owned_by == "welm"
    with pytest.raises(openai.NotFoundError, match="expected mine, other/name, got gpt"):
        client.models.retrieve("gpt")


# Completions.


def test_completions(client: openai.OpenAI, chat: welm.Model) -> None:
    want = greedy(chat, PROMPT)
    got = client.completions.create(model="mine", prompt=PROMPT, temperature=0)
    assert (got.object, got.model, got.id[:5]) == ("text_completion", "mine", "cmpl-")
    (choice,) = got.choices
    assert (choice.text, choice.index, choice.finish_reason, choice.logprobs) == (
        want.text,
        0,
        "length",
        None,
    )
    assert got.usage is not None
    used = (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens)
    assert used == (want.usage.prompt_tokens, 16, want.usage.prompt_tokens + 16)


def test_prompts_of_every_kind(client: openai.OpenAI, chat: welm.Model) -> None:
    tokens = chat.tokenize(PROMPT)
    for prompt, texts in (
        (tokens, [PROMPT]),
        ([PROMPT, "春眠"], [PROMPT, "春眠"]),
        ([tokens, chat.tokenize("春眠")], [PROMPT, "春眠"]),
    ):
        got = client.completions.create(model="mine", prompt=prompt, temperature=0, n=2, max_tokens=8)
        want = [greedy(chat, text, max_tokens=8).text for text in texts for _ in range(2)]
        assert [choice.text for choice in got.choices] == want
        assert [choice.index for choice in got.choices] == list(range(len(want)))


def test_options_reach_the_engine(client: openai.OpenAI, chat: welm.Model) -> None:
    options: dict[str, Any] = {
        "temperature": 0.9, "top_p": 0.8, "n": 3, "seed": 5, "presence_penalty": 0.5, "frequency_penalty": -0.2,
        "max_tokens": 24, "stop": ["。", "，"], "logit_bias": {"41": -100, "7": 1.5},
    }  # fmt: skip
    more = {"top_k": 30, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True, "stop_token_ids": [12]}
    got = client.completions.create(model="mine", prompt=PROMPT, **options, extra_body=more)
    want = chat.generate(PROMPT, **{**options, **more, "logit_bias": {41: -100.0, 7: 1.5}})
    assert [choice.text for choice in got.choices] == [choice.text for choice in want.choices]
    assert client.completions.create(model="mine", prompt=PROMPT, seed=-3).choices[0].text == (
        chat.generate(PROMPT, seed=2**64 - 3, temperature=1, top_p=1, top_k=0).text
    )


def test_logprobs_and_echo(client: openai.OpenAI, chat: welm.Model) -> None:
    want = greedy(chat, PROMPT, echo=True, logprobs=3, max_tokens=6)
    got = client.completions.create(
        model="mine", prompt=PROMPT, echo=True, logprobs=3, max_tokens=6, temperature=0
    )
    (choice,) = got.choices
    assert choice.text == want.text
    assert choice.logprobs is not None
    told = choice.logprobs
    assert told.token_logprobs == [token.logprob for token in want.choices[0].tokens]
    assert told.tokens == [token.text for token in want.choices[0].tokens]
    assert told.text_offset is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    for at, name in zip(told.text_offset, told.tokens, strict=True):
        assert choice.text[at:].startswith(name)
    assert told.top_logprobs is not None
    for top, token in zip(told.top_logprobs[1:], want.choices[0].tokens[1:], strict=True):
        assert top == {one.text: one.logprob for one in (*token.alternatives, token)}
    scored = client.completions.create(model="mine", prompt=PROMPT, echo=True, logprobs=0, max_tokens=0)
    assert scored.choices[0].text == PROMPT
    assert scored.choices[0].logprobs is not None
    assert scored.choices[0].logprobs.token_logprobs == told.token_logprobs[:-6]


def test_a_part_of_a_character_is_told_by_its_bytes(client: openai.OpenAI, chat: welm.Model) -> None:
    tokens = chat.tokenize("😀")
    assert len(tokens) > 1
    got = client.completions.create(model="mine", prompt=tokens, echo=True, logprobs=0, max_tokens=0)
    assert got.choices[0].logprobs is not None
    names = got.choices[0].logprobs.tokens or []
    assert all(name.startswith("bytes:\\x") for name in names)
    assert bytes.fromhex("".join(names).replace("bytes:", "").replace("\\x", "")) == "😀".encode()


def test_offsets_count_characters(client: openai.OpenAI, chat: welm.Model) -> None:
    tokens = [*chat.tokenize("😀"), *chat.tokenize("春")]
    got = client.completions.create(model="mine", prompt=tokens, echo=True, logprobs=0, max_tokens=0)
    assert got.choices[0].logprobs is not None
    assert got.choices[0].logprobs.text_offset == [0] * (len(tokens) - 1) + [1]


def test_the_token_that_was_chosen_is_among_the_alternatives(client: openai.OpenAI) -> None:
    for logprobs in (0, 1):
        got = client.completions.create(
            model="mine", prompt=PROMPT, temperature=3, seed=1, logprobs=logprobs, max_tokens=12
        )
        told = got.choices[0].logprobs
        assert told is not None
        assert told.tokens is not None
        assert told.token_logprobs is not None
        assert told.top_logprobs is not None
        assert max(map(len, told.top_logprobs)) == 1 + logprobs
        for top, token, logprob in zip(told.top_logprobs, told.tokens, told.token_logprobs, strict=True):
            assert top[token] == logprob


@pytest.mark.parametrize(
    ("parts", "offsets"),
    [
        ([b"a\xf0\x9f", b"b"], [0, 2]),
        ([b"a\xf0\x9f", b"\xe6\x98\xa5"], [0, 2]),
        ([b"\xe0", b"\x80", b"c"], [0, 1, 2]),
        ([b"\xef\xbf", b"\xbd", b"c"], [0, 0, 1]),
        ([b"\xe6", b"\x98\xa5\xe6", b"", b"d"], [0, 0, 1, 2]),
        ([b"\xed\xa0", b"a"], [0, 2]),
    ],
)
def test_offsets_after_a_character_that_stays_incomplete(parts: list[bytes], offsets: list[int]) -> None:
    class Part:
        logprob, alternatives = None, ()

        def __init__(self, given: bytes) -> None:
            self.bytes = given

    tokens: Any = [Part(part) for part in parts]
    assert Logprobs().of(tokens)["text_offset"] == offsets
    assert b"".join(parts).decode(errors="replace")[offsets[-1]] == parts[-1].decode()[0]


def test_streams_have_the_same_texts(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "mine", "prompt": [PROMPT, "春眠"], "n": 2, "seed": 3, "max_tokens": 20, "stop": "。", "logprobs": 1,
    }  # fmt: skip
    whole = client.completions.create(**options)
    texts, reasons = [""] * 4, [""] * 4
    tokens: list[list[Any]] = [[] for _ in range(4)]
    offsets: list[list[int]] = [[] for _ in range(4)]
    usages = []
    for chunk in client.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or ""
            if choice.logprobs is not None:
                tokens[choice.index] += choice.logprobs.token_logprobs or []
                offsets[choice.index] += choice.logprobs.text_offset or []
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert tokens == [choice.logprobs and choice.logprobs.token_logprobs for choice in whole.choices]
    assert offsets == [choice.logprobs and choice.logprobs.text_offset for choice in whole.choices]
    assert usages[:-1] == [None] * (len(usages) - 1)
    assert usages[-1] is not None
    assert whole.usage is not None
    assert usages[-1].completion_tokens == whole.usage.completion_tokens
    assert usages[-1].prompt_tokens == whole.usage.prompt_tokens


# Chat.


def test_a_conversation(client: openai.OpenAI, chat: welm.Model) -> None:
    want = greedy(chat, chat.chat_tokens(FLAT), max_tokens=12)
    got = client.chat.completions.create(model="mine", messages=MESSAGES, temperature=0, max_tokens=12)
    (choice,) = got.choices
    assert (choice.message.role, choice.message.content) == ("assistant", want.text)
    assert (choice.finish_reason, choice.logprobs, got.object) == ("length", None, "chat.completion")
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (want.usage.prompt_tokens, 12)
    newer = client.chat.completions.create(
        model="mine", messages=MESSAGES, temperature=0, max_completion_tokens=12, response_format={"type": "text"},
        tool_choice="none", user="u", metadata={"a": "b"}, store=False, service_tier="auto",
    )  # fmt: skip
    assert newer.choices[0].message.content == want.text
    developer: Any = [{"role": "developer", "content": "作诗"}, *MESSAGES[1:]]
    got = client.chat.completions.create(model="mine", messages=developer, temperature=0, max_tokens=12)
    assert got.choices[0].message.content == want.text


def test_without_a_limit_an_answer_may_fill_the_context(client: openai.OpenAI, chat: welm.Model) -> None:
    got = client.chat.completions.create(
        model="mine", messages=FLAT, temperature=0, extra_body={"ignore_eos": True}
    )
    assert got.usage is not None
    assert got.usage.total_tokens == chat.memory.context_tokens
    assert got.choices[0].finish_reason == "length"


def test_the_template_gets_what_is_its(client: openai.OpenAI, chat: welm.Model) -> None:
    more = {"chat_template_kwargs": {"mood": "愁"}, "add_generation_prompt": False}
    got = client.chat.completions.create(
        model="mine", messages=FLAT, temperature=0, max_tokens=8, extra_body=more
    )
    want = greedy(chat, chat.chat_tokens(FLAT, False, mood="愁"), max_tokens=8)
    assert got.choices[0].message.content == want.text
    # Names that are parameters of the server's own functions are names like others.
    names = dict.fromkeys(("self", "job", "function", "given", "variables"), "x")
    body = {"model": "mine", "messages": FLAT, "max_tokens": 1, "chat_template_kwargs": names}
    assert client.post("/chat/completions", body=body, cast_to=object)


def test_chat_streams_have_the_same_texts(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "mine", "messages": MESSAGES, "n": 3, "seed": 4, "max_tokens": 20, "logprobs": True,
        "top_logprobs": 2, "stop": ["。"],
    }  # fmt: skip
    whole = client.chat.completions.create(**options)
    texts, roles, reasons = [""] * 3, [""] * 3, [""] * 3
    tokens: list[list[Any]] = [[] for _ in range(3)]
    used = None
    for chunk in client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        used = chunk.usage or used
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role or ""
            reasons[choice.index] = choice.finish_reason or ""
            if choice.logprobs is not None:
                tokens[choice.index] += choice.logprobs.content or []
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == ["assistant"] * 3
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert tokens == [choice.logprobs and choice.logprobs.content for choice in whole.choices]
    assert all(len(token.top_logprobs) == 2 for token in tokens[0])
    assert used == whole.usage


def test_helpers_of_the_library(client: openai.OpenAI) -> None:
    """Its own accumulation of a stream."""
    options: dict[str, Any] = {"model": "mine", "messages": FLAT, "temperature": 0, "stop": ["，"]}
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    whole = client.chat.completions.create(**options)
    assert final.choices[0].message.content == whole.choices[0].message.content


# Responses.


def test_responses(client: openai.OpenAI, chat: welm.Model) -> None:
    want = greedy(chat, chat.chat_tokens(FLAT), max_tokens=12)
    got = client.responses.create(
        model="mine", instructions="作诗", input=FLAT[1:], temperature=0, max_output_tokens=12, store=False
    )
    assert got.output_text == want.text
    assert (got.status, got.incomplete_details and got.incomplete_details.reason) == (
        "incomplete", "max_output_tokens",
    )  # fmt: skip
    assert got.usage is not None
    assert (got.usage.input_tokens, got.usage.output_tokens) == (want.usage.prompt_tokens, 12)
    kept = client.responses.create(
        model="mine", input="春", max_output_tokens=1, user="u", metadata={"a": "b"}
    )
    assert (kept.user, kept.metadata) == ("u", {"a": "b"})
    short = client.responses.create(model="mine", input="春", max_output_tokens=4, extra_body={"seed": 2})
    assert short.output_text == chat.generate(
        chat.chat_tokens([{"role": "user", "content": "春"}]), seed=2, max_tokens=4, temperature=1, top_p=1, top_k=0
    ).text  # fmt: skip


def test_streams_of_responses(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "mine", "input": "春", "temperature": 0, "max_output_tokens": 8}
    whole = client.responses.create(**options)
    events: list[Any] = list(client.responses.create(**options, stream=True))
    assert [event.type for event in events[:4]] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert events[-1].type == f"response.{whole.status}"
    assert events[-1].response.output_text == text
    ended: dict[str, Any] = {**options, "max_output_tokens": 60, "extra_body": {"stop": "。"}}
    with client.responses.stream(**ended) as stream:
        assert stream.get_final_response().output_text == client.responses.create(**ended).output_text


# Cancelling.


def test_a_stream_that_is_closed_is_cancelled(client: openai.OpenAI, chat: welm.Model) -> None:
    before = chat.stats().completion_tokens
    stream = client.completions.create(
        model="mine", prompt=PROMPT, n=32, max_tokens=480, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    at_rest(chat)
    assert chat.stats().completion_tokens - before < 32 * 480 / 2


def test_a_client_that_hangs_up_cancels(server: Running, chat: welm.Model) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-a", max_retries=0) as client:
            task = asyncio.ensure_future(
                client.completions.create(
                    model="mine", prompt=PROMPT, n=32, max_tokens=480, extra_body={"ignore_eos": True}
                )
            )
            await asyncio.sleep(0.2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    before = chat.stats().completion_tokens
    asyncio.run(run())
    at_rest(chat)
    assert chat.stats().completion_tokens - before < 32 * 480 / 2


# Errors.


@pytest.mark.parametrize("key", ["sk-b", "sk-a b"])
def test_a_wrong_key(server: Running, key: str) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        with pytest.raises(openai.AuthenticationError):
            client.completions.create(model="mine", prompt="x")
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="mine", messages=FLAT)


COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"n": 0}, "n"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "warm"}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 100_000}, "max_tokens"),
    ({"x" * 1000: 1}, "x" * 40),
    ({"seed": 1.5}, "seed"),
    ({"stop": 3}, "stop"),
    ({"stop": [3]}, "stop"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"100000": 1}}, "logit_bias"),
    ({"logit_bias": {"4": "x"}}, "logit_bias"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[1], 2.5]}, "prompt"),
    ({"prompt": [100_000]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"store": True}, "store"),
    ({"use_beam_search": True}, "use_beam_search"),
    ({"guided_json": {}}, "guided_json"),
]


@pytest.mark.parametrize(("more", "name"), COMPLETIONS, ids=[str(more) for more, _ in COMPLETIONS])
def test_wrong_fields_of_completions(client: openai.OpenAI, more: dict[str, Any], name: str) -> None:
    body = {"model": "mine", "prompt": PROMPT, **more}
    for stream in (False, True)[: 1 if "stream_options" in more else 2]:
        with pytest.raises(openai.BadRequestError) as error:
            client.post("/completions", body={"stream": stream, **body}, cast_to=object)
        assert error.value.param == name
        assert error.value.type == "invalid_request_error"


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT: list[tuple[dict[str, Any], str]] = [
    ({"tools": [TOOL]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [TOOL["function"]]}, "functions"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        "response_format",
    ),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": 3}, "logprobs"),
    ({"messages": []}, "messages"),
    ({"messages": ["x"]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": "x", "typo": 1}]}, "messages[0].typo"),
    ({"chat_template_kwargs": {"chat_template": "{{ 'x' * 60 }}"}}, "chat_template_kwargs.chat_template"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"max_tokens": 100_000}, "max_tokens"),
    ({"typo": 1}, "typo"),
]


@pytest.mark.parametrize(("more", "name"), CHAT, ids=[str(more) for more, _ in CHAT])
def test_wrong_fields_of_chat(client: openai.OpenAI, more: dict[str, Any], name: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/chat/completions", body={"model": "mine", "messages": FLAT, **more}, cast_to=object)
    assert error.value.param == name


RESPONSES: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"n": 4}, "n"),
    ({"store": True}, "store"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "text"),
    ({"reasoning": {"effort": "high"}}, "reasoning"),
    ({"truncation": "auto"}, "truncation"),
    ({"include": ["reasoning.encrypted_content"]}, "include"),
    ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input[0]"),
    ({"input": []}, "input"),
]


@pytest.mark.parametrize(("more", "name"), RESPONSES, ids=[str(more) for more, _ in RESPONSES])
def test_wrong_fields_of_responses(client: openai.OpenAI, more: dict[str, Any], name: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.post("/responses", body={"model": "mine", "input": "春", **more}, cast_to=object)
    assert error.value.param == name


def test_what_is_lacking_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model="mine", input="x")
    with pytest.raises(openai.NotFoundError, match="no such endpoint"):
        client.files.list()
    with pytest.raises(openai.NotFoundError, match="expected mine"):
        client.completions.create(model="gpt", prompt="x")
    long: Any = {"role": "user", "content": "春" * 600}
    with pytest.raises(
        openai.BadRequestError, match=r"model's maximum context length is \d+ tokens"
    ) as error:
        client.chat.completions.create(model="mine", messages=[long])
    assert (error.value.code, error.value.param) == ("context_length_exceeded", None)


def test_a_model_without_a_template(model: welm.Model) -> None:
    with Running(model) as server:
        body = {"model": "welm", "messages": FLAT}
        assert "none" in server.post("/v1/chat/completions", body)[2]["error"]["message"]


def test_deadlines(server: Running, client: openai.OpenAI, chat: welm.Model) -> None:
    body: dict[str, Any] = {"model": "mine", "prompt": PROMPT, "n": 64, "max_tokens": 480}
    more: dict[str, Any] = {"extra_headers": {"X-Request-Timeout": "0.1"}, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.InternalServerError) as error:
        client.completions.create(**body, **more)
    assert (error.value.status_code, error.value.code) == (504, "timeout")
    # OpenAI's clients would send it twice more.
    assert error.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.APIError, match=r"not finished in 0.1 s"):
        for _ in client.completions.create(**body, **more, stream=True):
            pass
    for wrong in ("x", "0", "-1", "nan", "inf"):
        status, _, answer = server.post("/v1/completions", body, "sk-a", {"X-Request-Timeout": wrong})
        assert (status, answer["error"]["message"][:17]) == (400, "X-Request-Timeout")
    at_rest(chat)


# The engine's own endpoints.


def test_tokens_and_scores(server: Running, chat: welm.Model) -> None:
    for prefix in ("", "/v1"):
        status, _, got = server.post(f"{prefix}/tokenize", {"prompt": PROMPT}, "sk-a")
        assert (status, got["tokens"], got["count"]) == (
            200,
            chat.tokenize(PROMPT),
            len(chat.tokenize(PROMPT)),
        )
        assert got["max_model_len"] == chat.memory.context_tokens
        _, _, text = server.post(f"{prefix}/detokenize", {"tokens": got["tokens"]}, "sk-a")
        assert text == {"prompt": PROMPT}
    long = PROMPT * chat.memory.context_tokens  # a client may want to know where to cut it
    status, _, got = server.post("/tokenize", {"prompt": long}, "sk-a")
    assert (status, got["tokens"]) == (200, chat.tokenize(long))
    got = server.post("/tokenize", {"messages": MESSAGES}, "sk-a")[2]
    assert got["tokens"] == chat.chat_tokens(FLAT)
    body = {"model": "mine", "prompt": PROMPT, "continuations": ["疑是", chat.tokenize("月")]}
    status, _, got = server.post("/v1/score", body, "sk-a")
    want = chat.score(PROMPT, ["疑是", "月"])
    assert [one["logprob"] for one in got["scores"]] == [one.logprob for one in want]
    assert [[t["logprob"] for t in one["tokens"]] for one in got["scores"]] == [
        [t.logprob for t in one.tokens] for one in want
    ]
    faults: list[tuple[str, dict[str, Any]]] = [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": 3}),
        ("/detokenize", {"tokens": ["x"]}),
        ("/score", {"prompt": "x"}),
        ("/score", {"prompt": ["a", "b"], "continuations": ["x"]}),
        ("/score", {"prompt": "x", "continuations": [3]}),
        ("/score", {"prompt": "x", "continuations": ["y"] * 1025}),
        ("/tokenize", {"messages": MESSAGES, "chat_template_kwargs": {"chat_template": "x"}}),
    ]
    for path, wrong in faults:
        assert server.post(path, wrong, "sk-a")[0] == 400, (path, wrong)
        assert server.post(path, wrong)[0] == 401


def test_a_request_has_one_latency_however_many_sequences_it_has(model: welm.Model) -> None:
    with Running(model) as running:
        body = {"model": "welm", "prompt": PROMPT, "n": 3, "max_tokens": 2}
        assert running.post("/v1/completions", body)[0] == 200
        late = {**body, "max_tokens": 480, "ignore_eos": True}
        assert running.post("/v1/completions", late, headers={"X-Request-Timeout": "0.05"})[0] == 504
        lines = running.get("/metrics")[2].decode().splitlines()
        (count,) = (line for line in lines if line.startswith("vllm:e2e_request_latency_seconds_count"))
        assert float(count.rsplit(" ", 1)[1]) == 2


def test_metrics(server: Running, client: openai.OpenAI, chat: welm.Model) -> None:
    client.completions.create(model="mine", prompt=PROMPT, max_tokens=5)
    status, _, body = server.get("/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if line[:1] != "#")
    labels = '{engine="0",model_name="mine"}'
    stats = chat.stats()
    assert float(values[f"vllm:generation_tokens_total{labels}"]) == stats.completion_tokens
    assert float(values[f"vllm:prompt_tokens_total{labels}"]) == stats.prompt_tokens
    assert float(values[f"vllm:num_requests_running{labels}"]) == 0
    assert float(values[f"vllm:kv_cache_usage_perc{labels}"]) == 0
    assert float(values[f"vllm:time_to_first_token_seconds_count{labels}"]) == stats.time_to_first_token.count
    assert (
        float(values['vllm:request_success_total{engine="0",finished_reason="length",model_name="mine"}'])
        >= 1
    )
    assert math.isclose(
        float(values[f"vllm:inter_token_latency_seconds_sum{labels}"]), stats.time_between_tokens.sum
    )
    assert json.loads(server.get("/health")[2]) == {"status": "ok"}
    assert json.loads(server.get("/ready")[2]) == {"status": "ready"}


def test_a_comment_keeps_a_slow_stream_alive(chat: welm.Model) -> None:
    with Running(chat, keep_alive=0.05, parallel=1) as server:
        body = {"model": "welm", "prompt": PROMPT, "max_tokens": 480, "ignore_eos": True}
        long = json.dumps({**body, "n": 16}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        with server.connect() as first:
            first.sendall(head % len(long) + long)
            begun(chat)
            short = json.dumps({"model": "welm", "prompt": PROMPT, "stream": True}).encode()
            told = server.raw(head % len(short) + short)
        assert b"\n: keep-alive\n\n" in told
        assert told.count(b"data: ") > 3
        assert b"data: [DONE]" in told
    at_rest(chat)
