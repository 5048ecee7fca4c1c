"""An embeddable engine for language models.

>>> import welm
>>> model = welm.Model()  # the small model in this package; or the path of another
>>> print(model.generate("床前明月光，", max_tokens=48, seed=7).text)  # doctest: +SKIP

Any number of threads and ``asyncio`` tasks may use one :class:`Model`: their requests are computed together. The same
request with the same seed gives the same text, whatever else is computed at the same time.
"""

import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING

from welm._errors import (
    Cancelled,
    ChatTemplateError,
    ConfigError,
    DeviceError,
    DeviceLost,
    EmptyPrompt,
    EngineStopped,
    Error,
    ForkError,
    InvalidFile,
    InvalidOption,
    IoError,
    NotFinite,
    OutOfMemory,
    QueueFull,
    TensorError,
    TokenizerError,
    TooLong,
    Unavailable,
)
from welm._output import (
    Choice,
    Description,
    Estimate,
    Finish,
    FinishReason,
    Generation,
    ModelConfig,
    Piece,
    Score,
    Stats,
    Token,
    TypeCount,
    Usage,
)
from welm._welm import CancelToken, Histogram, InternalError, Model, Stream, __version__, quantize

if _TYPE_CHECKING:
    from welm._aio import AsyncStream
    from welm._options import GenerateOptions, LoadOptions

NANO: str = _os.path.join(_os.path.dirname(__file__), "welm-nano")
"""The folder of the small model in this package, which :class:`Model` takes without a path."""

__all__ = [
    "NANO",
    "AsyncStream",
    "CancelToken",
    "Cancelled",
    "ChatTemplateError",
    "Choice",
    "ConfigError",
    "Description",
    "DeviceError",
    "DeviceLost",
    "EmptyPrompt",
    "EngineStopped",
    "Error",
    "Estimate",
    "Finish",
    "FinishReason",
    "ForkError",
    "GenerateOptions",
    "Generation",
    "Histogram",
    "InternalError",
    "InvalidFile",
    "InvalidOption",
    "IoError",
    "LoadOptions",
    "Model",
    "ModelConfig",
    "NotFinite",
    "OutOfMemory",
    "Piece",
    "QueueFull",
    "Score",
    "Stats",
    "Stream",
    "TensorError",
    "Token",
    "TokenizerError",
    "TooLong",
    "TypeCount",
    "Unavailable",
    "Usage",
    "__version__",
    "quantize",
]


def __getattr__(name: str) -> object:
    # Importing asyncio and typing takes longer than all the rest, and not every program needs them.
    if name == "AsyncStream":
        from welm._aio import AsyncStream

        return AsyncStream
    if name in ("GenerateOptions", "LoadOptions"):
        from welm import _options

        return getattr(_options, name)
    raise AttributeError(f"module 'welm' has no attribute {name!r}")
