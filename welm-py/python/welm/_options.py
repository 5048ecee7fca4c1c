"""Options as dictionaries that type checkers know: ``Model(**options)``, ``model.generate(prompt, **options)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta
    from typing import Literal, SupportsIndex

    from _typeshed import SupportsLenAndGetItem

    from welm._welm import CancelToken


class LoadOptions(TypedDict, total=False):
    """Options of :class:`welm.Model`, without ``progress``, and of ``welm.Model.estimate``."""

    device: str
    dtype: Literal["auto", "f32", "bf16", "int8", "float32", "bfloat16"]
    cache_dtype: Literal["auto", "f32", "bf16", "f16", "float32", "bfloat16", "float16"]
    activations: Literal["auto", "int8", "int8_rotated", "int16", "int8-rotated"]
    threads: SupportsIndex | None
    isa: str | None
    context_tokens: SupportsIndex | None
    cache_tokens: SupportsIndex | None
    chunk_tokens: SupportsIndex | None
    max_running: SupportsIndex
    queue_limit: SupportsIndex
    prefix_cache: bool
    copy_weights: bool
    memory_limit: SupportsIndex | None
    allow_unread_tensors: bool
    guard_mapped_files: bool


class GenerateOptions(TypedDict, total=False):
    """Options of ``generate``, ``stream`` and ``chat``, and of their ``async`` forms."""

    max_tokens: SupportsIndex
    temperature: float
    top_p: float
    top_k: SupportsIndex
    n: SupportsIndex
    echo: bool
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float] | None
    stop: str | Sequence[str] | None
    stop_token_ids: SupportsLenAndGetItem[SupportsIndex] | None
    ignore_eos: bool
    logprobs: SupportsIndex | None
    seed: SupportsIndex | None
    deadline: float | timedelta | None
    cancel: CancelToken | None
    parse_special: bool
    cache_salt: str | None
