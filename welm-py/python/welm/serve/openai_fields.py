"""What OpenAI's endpoints have in common: fields of requests, tokens, usage, reasons of an end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import welm
from welm.serve.wire import is_list

if TYPE_CHECKING:
    from welm.serve.fields import Fields

MOST_LOGPROBS = 20

_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "n": 1,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    # Not OpenAI's, but with the same names in other servers:
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "ignore_eos": False,
}
"""Fields that are options of the engine, with OpenAI's defaults."""

_LISTS = ("stop", "stop_token_ids")


def sampling(fields: Fields) -> dict[str, Any]:
    """The engine's options in a request."""
    options = {name: fields.take(name, default=default) for name, default in _SAMPLING.items()}
    if options["top_k"] == -1:  # vLLM's word for no limit
        options["top_k"] = 0
    for name in _LISTS:
        if (value := fields.take(name)) is not None:
            options[name] = value
    if (seed := fields.take("seed", int)) is not None:
        options["seed"] = seed % 2**64  # negative ones are allowed here
    if (bias := fields.take("logit_bias", dict)) is not None:
        options["logit_bias"] = {}
        for token, value in bias.items():
            if (
                not token.isdecimal()
                or len(token) > 10
                or isinstance(value, bool)
                or not isinstance(value, int | float)
            ):
                fields.refuse("logit_bias", 'expected token ids and numbers, such as {"40": -2.5}')
            options["logit_bias"][int(token)] = value
    fields.ignore("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata")
    fields.only("service_tier", "there is one tier", "auto", "default")
    fields.only("store", "answers are not stored", False)
    return options


def streamed(fields: Fields) -> tuple[bool, bool]:
    """Whether the answer is a stream, and whether usage comes at its end."""
    stream: bool = fields.take("stream", bool, default=False)
    given = fields.take("stream_options", dict)
    if given is None:
        return stream, False
    if not stream:
        fields.refuse("stream_options", "only a stream has them")
    inner = type(fields)(given, "stream_options.")
    usage: bool = inner.take("include_usage", bool, default=False)
    inner.ignore("include_obfuscation")  # padding, which is not sent
    inner.end()
    return stream, usage


def usage_of(used: list[welm.Usage]) -> dict[str, Any]:
    """The tokens of one request, which may have had several prompts."""
    prompt = sum(one.prompt_tokens for one in used)
    completion = sum(one.completion_tokens for one in used)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in used)},
    }


def reason_of(reason: str) -> str:
    """Why a sequence ended, in OpenAI's words."""
    return "length" if reason == "length" else "stop"


def are_tokens(value: object) -> bool:
    """Whether a prompt is token ids."""
    return is_list(value) and value != [] and all(type(token) is int for token in value)


def spelling(token: welm.Token) -> str:
    """A token as OpenAI writes it: its text, or its bytes if they are no text by themselves."""
    try:
        return token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def logprob_of(token: welm.Token) -> float | None:
    """A log-probability that JSON can have; one of minus infinity is -9999, as OpenAI has it."""
    if token.logprob is None:
        return None
    return token.logprob if token.logprob > -math.inf else -9999.0
