from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from os import PathLike
from types import TracebackType
from typing import Any, Final, Literal, SupportsIndex, TypeAlias, final, overload

from _typeshed import SupportsLenAndGetItem
from numpy import float32
from numpy.typing import NDArray
from typing_extensions import Self

from welm._aio import AsyncStream
from welm._errors import Error
from welm._output import Description, Estimate, Generation, ModelConfig, Piece, Score, Stats

__all__ = [
    "CancelToken",
    "Histogram",
    "InternalError",
    "Model",
    "Request",
    "Scoring",
    "Selector",
    "Stream",
    "Submit",
    "__version__",
    "option_tables",
    "quantize",
]

__version__: Final[str]

# Lists, tuples, and arrays of the standard library or of numpy.
_Tokens: TypeAlias = SupportsLenAndGetItem[SupportsIndex]
_Messages: TypeAlias = Sequence[Mapping[str, Any]]
_Prompt: TypeAlias = str | _Tokens | _Messages
_Continuation: TypeAlias = str | _Tokens
_Progress: TypeAlias = Callable[[int, int], object]

def quantize(
    src: str | PathLike[str], dst: str | PathLike[str], /, *, progress: _Progress | None = None
) -> None: ...

_OptionRow: TypeAlias = tuple[str, str, str | None, str, str, tuple[Any, ...]]

def option_tables() -> tuple[list[_OptionRow], list[_OptionRow]]: ...

class InternalError(Error): ...

@final
class CancelToken:
    def __new__(cls) -> Self: ...
    def cancel(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...

@final
class Histogram:
    def __new__(cls, counts: Sequence[int], sum: float) -> Self: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def bounds(self) -> tuple[float, ...]: ...
    @property
    def sum(self) -> float: ...
    @property
    def count(self) -> int: ...
    def quantile(self, q: float) -> float: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __getnewargs__(self) -> tuple[tuple[int, ...], float]: ...
    __hash__: None  # type: ignore[assignment]

@final
class Stream:
    def __iter__(self) -> Self: ...
    def __next__(self) -> Piece: ...
    def cancel(self) -> None: ...
    @property
    def seed(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...

@final
class Model:
    def __new__(
        cls,
        path: str | PathLike[str] | None = None,
        *,
        device: str = "auto",
        dtype: Literal["auto", "f32", "bf16", "int8", "float32", "bfloat16"] = "auto",
        cache_dtype: Literal["auto", "f32", "bf16", "f16", "float32", "bfloat16", "float16"] = "auto",
        activations: Literal["auto", "int8", "int8_rotated", "int16", "int8-rotated"] = "auto",
        threads: SupportsIndex | None = None,
        isa: str | None = None,
        context_tokens: SupportsIndex | None = None,
        cache_tokens: SupportsIndex | None = None,
        chunk_tokens: SupportsIndex | None = None,
        max_running: SupportsIndex = 64,
        queue_limit: SupportsIndex = 1024,
        prefix_cache: bool = True,
        copy_weights: bool = False,
        memory_limit: SupportsIndex | None = None,
        allow_unread_tensors: bool = False,
        guard_mapped_files: bool = True,
        progress: _Progress | None = None,
    ) -> Self: ...
    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, too; it is one prompt
        self,
        prompt: _Prompt,
        /,
        *,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: Sequence[str] | Sequence[_Tokens] | Sequence[_Messages] | Sequence[_Prompt],
        /,
        *,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> list[Generation]: ...
    def stream(
        self,
        prompt: _Prompt,
        /,
        *,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> Stream: ...
    @overload
    def generate_async(  # type: ignore[overload-overlap]  # a str is a sequence of str, too; it is one prompt
        self,
        prompt: _Prompt,
        /,
        *,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> Coroutine[Any, Any, Generation]: ...
    @overload
    def generate_async(
        self,
        prompt: Sequence[str] | Sequence[_Tokens] | Sequence[_Messages] | Sequence[_Prompt],
        /,
        *,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> Coroutine[Any, Any, list[Generation]]: ...
    def stream_async(
        self,
        prompt: _Prompt,
        /,
        *,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> AsyncStream: ...
    def chat(
        self,
        messages: _Messages,
        /,
        *,
        add_generation_prompt: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str | None = None,
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> Generation: ...
    def chat_stream(
        self,
        messages: _Messages,
        /,
        *,
        add_generation_prompt: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str | None = None,
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> Stream: ...
    def chat_async(
        self,
        messages: _Messages,
        /,
        *,
        add_generation_prompt: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str | None = None,
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> Coroutine[Any, Any, Generation]: ...
    def chat_stream_async(
        self,
        messages: _Messages,
        /,
        *,
        add_generation_prompt: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str | None = None,
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        max_tokens: SupportsIndex = 16,
        temperature: float = 0.85,
        top_p: float = 0.95,
        top_k: SupportsIndex = 50,
        n: SupportsIndex = 1,
        echo: bool = False,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] | None = None,
        stop_token_ids: _Tokens | None = None,
        ignore_eos: bool = False,
        logprobs: SupportsIndex | None = None,
        seed: SupportsIndex | None = None,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        parse_special: bool = False,
        cache_salt: str | None = None,
    ) -> AsyncStream: ...
    @overload
    def score(  # type: ignore[overload-overlap]  # a str is a sequence of str, too; it is one prompt
        self,
        prompt: _Prompt,
        continuations: Sequence[_Continuation],
        /,
        *,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        logprobs: SupportsIndex = 0,
        cache_salt: str | None = None,
    ) -> list[Score]: ...
    @overload
    def score(
        self,
        prompt: Sequence[str] | Sequence[_Tokens] | Sequence[_Messages] | Sequence[_Prompt],
        continuations: Sequence[_Continuation] | Sequence[Sequence[_Continuation]],
        /,
        *,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        logprobs: SupportsIndex = 0,
        cache_salt: str | None = None,
    ) -> list[list[Score]]: ...
    @overload
    def score_async(  # type: ignore[overload-overlap]  # a str is a sequence of str, too; it is one prompt
        self,
        prompt: _Prompt,
        continuations: Sequence[_Continuation],
        /,
        *,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        logprobs: SupportsIndex = 0,
        cache_salt: str | None = None,
    ) -> Coroutine[Any, Any, list[Score]]: ...
    @overload
    def score_async(
        self,
        prompt: Sequence[str] | Sequence[_Tokens] | Sequence[_Messages] | Sequence[_Prompt],
        continuations: Sequence[_Continuation] | Sequence[Sequence[_Continuation]],
        /,
        *,
        deadline: float | timedelta | None = None,
        cancel: CancelToken | None = None,
        logprobs: SupportsIndex = 0,
        cache_salt: str | None = None,
    ) -> Coroutine[Any, Any, list[list[Score]]]: ...
    def logits(self, prompt: _Prompt, /, from_: SupportsIndex = 0) -> NDArray[float32]: ...
    def tokenize(self, text: str, /, parse_special: bool = False) -> list[int]: ...
    def detokenize(self, tokens: _Tokens, /) -> str: ...
    @property
    def has_chat_template(self) -> bool: ...
    def chat_prompt(
        self,
        messages: _Messages,
        /,
        add_generation_prompt: bool | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str: ...
    def chat_tokens(
        self,
        messages: _Messages,
        /,
        add_generation_prompt: bool | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> list[int]: ...
    def token_bytes(self, token: SupportsIndex, /) -> bytes: ...
    def token_id(self, token: str, /) -> int | None: ...
    def is_special(self, token: SupportsIndex, /) -> bool: ...
    def check_health(self) -> None: ...
    def stats(self) -> Stats: ...
    @staticmethod
    def describe(path: str | PathLike[str] | None = None) -> Description: ...
    @staticmethod
    def estimate(
        path: str | PathLike[str] | None = None,
        *,
        device: str = "auto",
        dtype: Literal["auto", "f32", "bf16", "int8", "float32", "bfloat16"] = "auto",
        cache_dtype: Literal["auto", "f32", "bf16", "f16", "float32", "bfloat16", "float16"] = "auto",
        activations: Literal["auto", "int8", "int8_rotated", "int16", "int8-rotated"] = "auto",
        threads: SupportsIndex | None = None,
        isa: str | None = None,
        context_tokens: SupportsIndex | None = None,
        cache_tokens: SupportsIndex | None = None,
        chunk_tokens: SupportsIndex | None = None,
        max_running: SupportsIndex = 64,
        queue_limit: SupportsIndex = 1024,
        prefix_cache: bool = True,
        copy_weights: bool = False,
        memory_limit: SupportsIndex | None = None,
        allow_unread_tensors: bool = False,
        guard_mapped_files: bool = True,
    ) -> Estimate: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def memory(self) -> Estimate: ...
    @property
    def backend(self) -> str: ...

# Classes that `welm._aio` uses.

@final
class Submit:
    def send(self) -> Request: ...

@final
class Scoring:
    def run(self) -> list[Score] | list[list[Score]]: ...
    def cancel(self) -> None: ...

@final
class Request:
    def cancel(self) -> None: ...
    def abandon(self) -> None: ...
    @property
    def seed(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...

@final
class Selector:
    def __new__(cls) -> Self: ...
    def add(self, request: Request, listener: object) -> int | None: ...
    def wait(self, number: int) -> list[tuple[Any, Any]] | None: ...
    def give_up(self, number: int) -> list[Any]: ...
