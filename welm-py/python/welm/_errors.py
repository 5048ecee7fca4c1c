"""The exceptions: one class for each kind of the engine's errors, with attributes for what a program may want to know.

Every message says which file, tensor, setting or option is at fault, what was expected and what was found. Where Python
has a fitting class, that is a base class, too: ``except ValueError`` catches an option with a wrong value.
"""

from __future__ import annotations


class Error(Exception):
    """The base of all exceptions of this package."""

    __slots__ = ()  # so that it can be the base of `InternalError`, which is made in Rust


class InvalidOption(Error, ValueError):
    """An option has a value that is not allowed."""

    option: str
    """The option's name."""


class TooLong(Error, ValueError):
    """Prompt and ``max_tokens`` together do not fit the model's context or the KV cache."""

    prompt_tokens: int
    """Tokens of the prompt."""
    requested: int
    """Tokens of prompt and ``max_tokens``."""
    limit: int
    """The most that fits."""
    what: str
    """``"context"`` or ``"KV cache"``."""


class EmptyPrompt(Error, ValueError):
    """The prompt has no token, and the model has none to start an empty text with."""


class IoError(Error, OSError):
    """A file could not be opened, read, mapped or written."""

    path: str
    """The file or folder."""


class InvalidFile(Error):
    """A file was read, but its content is damaged or not of the format that it should be."""

    path: str
    """The file."""


class ConfigError(Error):
    """The model's configuration asks for something that is unknown or not supported."""

    setting: str
    """The key, as in the file."""


class TensorError(Error):
    """A tensor is missing, or has another shape or element type than the configuration asks for."""

    tensor: str
    """The tensor's name in the file."""


class TokenizerError(Error):
    """The tokenizer cannot be built, or failed on a text; or the model has none."""


class ChatTemplateError(Error):
    """The model has no chat template, or the template is not valid, or it raised an error."""


class OutOfMemory(Error, MemoryError):
    """The model does not fit in memory, which is checked before weights are read; or an answer does not fit.

    For an answer only ``required`` is known. All figures are bytes.
    """

    required: int
    """Sum of the three parts."""
    weights: int | None
    """Weights."""
    cache: int | None
    """KV cache."""
    scratch: int | None
    """Scratch."""
    available: int | None
    """What the machine, the device, or ``memory_limit`` allows."""
    fitting_cache_tokens: int | None
    """The largest ``cache_tokens`` with which it would fit, if any."""


class QueueFull(Error):
    """The request was refused because too many are waiting."""

    waiting: int
    """Sequences that were waiting."""
    limit: int
    """``queue_limit`` of the model."""


class Unavailable(Error):
    """The device or instruction set that was asked for is not available."""

    what: str
    """Device or instruction set."""


class NotFinite(Error):
    """The model gave logits that are not finite numbers.

    Its weights, or the device, are at fault; or a key or value is above 65,504 in a cache of f16, which ``began`` says.
    """

    position: int
    """The position of the token whose logits these are, counted from 0 at the start of the prompt."""
    got: str
    """The value, and for which token."""
    began: str
    """Where in the model: ``"in layer 3, at position 0"``, ``"in the embedding, ..."``, ``"after the last layer"``."""


class DeviceError(Error):
    """The device failed in a step; the requests of that step end with this, later ones are served."""


class DeviceLost(DeviceError):
    """The device's context is lost; this model cannot serve any more."""


class EngineStopped(Error):
    """The engine stopped after an internal fault; this model cannot serve any more."""


class Cancelled(Error):
    """A progress callback stopped the work; or a scoring was cancelled, or its deadline passed.

    Cancelling a generation is no error: it ends with that finish reason and the text so far.
    """

    reason: str
    """``"cancelled"`` or ``"deadline"``."""


class ForkError(Error, RuntimeError):
    """A model or stream was used in a process that was forked after it was made."""
