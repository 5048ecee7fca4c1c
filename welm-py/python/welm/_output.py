"""The types of results: frozen dataclasses. They can be compared, pickled, matched, and made by hand in a test."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from welm._welm import Histogram

FinishReason: TypeAlias = Literal["stop", "end_of_text", "length", "cancelled", "deadline"]
"""Why a sequence ended: a stop string or token, the model's own end, ``max_tokens``, a cancelled request, its
deadline."""


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """One token."""

    id: int
    """Its number in the vocabulary."""
    logprob: float | None = None
    """Natural logarithm of its probability under the model, before temperature and truncation; ``None`` if not
    asked for, and for the first token of an echoed prompt, which has no token before it."""
    alternatives: tuple[Token, ...] = ()
    """The likeliest tokens at this position, likeliest first; as many as ``logprobs`` asked for."""
    bytes: builtins.bytes = b""
    """Its bytes, which may be part of a character; none for a special token."""

    @property
    def text(self) -> str:
        """Its bytes as text; parts of a character become U+FFFD."""
        return self.bytes.decode("utf-8", "replace")

    def __repr__(self) -> str:
        """The token as text, without its alternatives."""
        logprob = "" if self.logprob is None else f", logprob={self.logprob:.4f}"
        return f"Token(id={self.id}, text={self.text!r}{logprob})"


@dataclass(frozen=True, slots=True)
class Finish:
    """How a sequence ended."""

    reason: FinishReason
    """Why."""
    completion_tokens: int
    """Tokens generated, the end token not counted."""
    cached_tokens: int
    """Prompt tokens that were found in the prefix cache."""
    end_token: int | None = None
    """The token that ended it: an end token of the model, or one of ``stop_token_ids``. It is not part of text and
    tokens. ``None`` if it ended otherwise."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a stream."""

    index: int
    """Which of the ``n`` sequences it belongs to."""
    text: str
    """The next part of the text. It may be empty while a character is incomplete, or while the text could be the
    beginning of a stop string."""
    tokens: tuple[Token, ...] = field(default=(), repr=False)
    """Tokens generated since the last piece; with ``echo``, the first piece has the prompt's."""
    finish: Finish | None = None
    """Set on the last piece of a sequence."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One generated sequence."""

    text: str
    """The text; with ``echo``, the prompt is in front of it."""
    tokens: tuple[Token, ...] = field(default=(), repr=False)
    """Its tokens; with ``echo``, those of the prompt are in front of them."""
    finish_reason: FinishReason = "length"
    """Why it ended."""
    end_token: int | None = None
    """The token that ended it; see :class:`Finish`."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a request used."""

    prompt_tokens: int
    """Tokens of the prompt."""
    completion_tokens: int
    """Tokens generated, over all sequences."""
    cached_tokens: int
    """Prompt tokens whose keys and values came from the prefix cache."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to a request.

    In a notebook, one with ``logprobs`` shows its texts coloured by probability.
    """

    choices: tuple[Choice, ...]
    """The ``n`` sequences."""
    seed: int
    """The seed that was used; the same request with this seed gives the same text."""
    usage: Usage
    """Tokens used."""

    @property
    def text(self) -> str:
        """The text of the first sequence."""
        return self.choices[0].text if self.choices else ""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first sequence ended; ``None`` only if there is none, for instance in a value made by hand."""
        return self.choices[0].finish_reason if self.choices else None

    def _repr_html_(self) -> str | None:
        """HTML for notebooks. ``None`` without log-probabilities: then notebooks show the repr."""
        from welm._html import html_of

        return html_of(self)


@dataclass(frozen=True, slots=True)
class Score:
    """The log-likelihood of a given continuation."""

    logprob: float
    """Sum of the tokens' log-probabilities, natural logarithm."""
    tokens: tuple[Token, ...] = field(default=(), repr=False)
    """The continuation's tokens, each with its log-probability."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory that a model takes, in bytes."""

    total_bytes: int
    """Everything together."""
    mapped_bytes: int
    """Weights that are used directly from the mapped file; the system can drop them from memory and read them again."""
    converted_bytes: int
    """Weights that are converted or quantised into memory."""
    cache_bytes: int
    """The KV cache."""
    scratch_bytes: int
    """Activations, logits and all else that a step needs; on the CPU also the tokenizer and the queues of requests."""
    context_tokens: int
    """Most tokens of one sequence."""
    cache_tokens: int
    """Tokens that the KV cache holds, over all sequences."""


@dataclass(frozen=True, slots=True)
class TypeCount:
    """How many tensors of a model have a type."""

    name: str
    """The name of the type in the file format, such as ``Q4_K`` or ``BF16``."""
    tensors: int
    """Tensors of this type."""
    elements: int
    """Their elements."""
    bytes: int | None
    """Their bytes in the files; ``None`` for a type that is not supported."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a model's files contain, whether they can be loaded or not."""

    format: Literal["gguf", "safetensors"]
    """The format of the files."""
    family: str | None
    """The family, as named in the file, such as ``llama``."""
    elements: int
    """Elements of all tensors."""
    types: tuple[TypeCount, ...]
    """Types of the tensors, those with the most elements first."""
    settings: dict[str, str]
    """Numbers, flags and short texts of the metadata or of ``config.json``."""
    config: ModelConfig | None
    """The model's shape; ``None`` if the files cannot be loaded."""
    tokenizer: str | None
    """The kind of tokenizer, such as ``byte-level BPE`` or ``SentencePiece unigram``; ``None`` if the files have no
    tokenizer or cannot be loaded."""
    tokenizer_tokens: int | None
    """How many tokens the tokenizer has; ``None`` where ``tokenizer`` is."""
    has_chat_template: bool
    """Whether there is a template for chats; ``False`` if the files cannot be loaded."""
    unsupported: str | None
    """Why the files cannot be loaded, whatever the options; ``None`` if they can."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters of an engine at one moment."""

    requests: int
    """Requests accepted into the queue."""
    rejected: int
    """Requests refused because the queue was full."""
    open: int
    """Requests that are not finished."""
    queue_depth: int
    """Sequences that wait in the queue and have not started."""
    running: int
    """Sequences in the current step."""
    preemptions: int
    """How often a sequence lost its part of the KV cache to others, and was computed again."""
    steps: int
    """Steps of the engine."""
    prompt_tokens: int
    """Prompt tokens, computed or found in the prefix cache."""
    prefix_hit_tokens: int
    """Prompt tokens found in the prefix cache."""
    completion_tokens: int
    """Tokens generated."""
    blocks_total: int
    """Blocks of the KV cache."""
    blocks_used: int
    """Blocks that sequences use."""
    blocks_cached: int
    """Blocks that no sequence uses, kept because a later prompt may begin with the same tokens."""
    time_to_first_token: Histogram
    """From submission to the first token."""
    time_between_tokens: Histogram
    """Between two tokens of a sequence."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shapes of a model, and the settings that its arithmetic depends on."""

    family: str
    """The family, as named in the file: ``welm``, ``gpt_neox``, ``llama``."""
    n_params: int
    """Parameters."""
    vocab_size: int
    """Rows of the embedding, and length of the logits."""
    dim: int
    """Width of the residual stream."""
    n_layers: int
    """Layers."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Width of a head."""
    hidden_dim: int
    """Width of the hidden layer of the feed-forward network."""
    max_context: int
    """Most tokens of a sequence."""
    norm: Literal["layernorm", "rmsnorm"]
    """Normalisation."""
    norm_eps: float
    """Added to the variance, or the mean square."""
    activation: Literal["gelu", "gelu_tanh", "swiglu", "geglu"]
    """Nonlinearity."""
    rotary_dim: int
    """Leading values of each head that the rotary embedding rotates."""
    rope_base: float
    """Base of the rotary embedding's frequencies."""
    rope_scaling: Literal["linear", "dynamic", "yarn", "llama3", "longrope", "per_frequency"] | None
    """How the rotary embedding's frequencies are scaled for long contexts."""
    parallel_residual: bool
    """Whether attention and feed-forward network of a layer read the same input."""
    tied_output: bool
    """Whether the output projection is the embedding."""
    attention_bias: bool
    """Whether q, k and v have biases. The attention's output has one, too, except in Qwen2."""
    mlp_bias: bool
    """Whether the feed-forward projections have biases."""
    bos_token_id: int | None
    """The token that starts a text, if there is one."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end a text."""
