"""The model that lm-eval sees: it turns lm-eval's requests into tokens, and their answers into lm-eval's results.

Tokens, windows and truncation are lm-eval's own definitions, those of its `hf` model. One thing differs: the last token
that is scored counts as part of the context here. So `max_length` is one less than the context of the model.
"""

# lm-eval and tqdm have no types that a type checker knows, and need not be there when it runs.
# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import logging
import os
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import welm
from welm._prompts import added_tokens
from welm.eval.asking import Asker
from welm.eval.journal import EvalError, Journal
from welm.eval.requests import Request, Runner, Scored
from welm.eval.tasks.ranking import LogLikelihood

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

WINDOW = 4096
"""Requests of lm-eval that are tokenized and computed together, so that memory does not grow with their number."""
MAX_GEN_TOKS = 256
"""Most tokens that are generated if a task does not say, as in other models of lm-eval."""
SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
"""Settings of generation that the engine has by the same names, beside the temperature."""
HARMLESS = {"do_sample": (True, False), "num_beams": (1,), "use_cache": (True,)}
"""Other settings that are allowed, with their allowed values."""

T = TypeVar("T")


def longest(model: welm.Model) -> int:
    """Most tokens of a request to a model, lm-eval's way of counting."""
    return min(model.memory.context_tokens, model.memory.cache_tokens) - 1


@register_model("welm")
class WelmLM(TemplateLM):
    """A model for lm-eval, by the name `welm`."""

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | welm.Model | None = None,
        *,
        journal: Journal | None = None,
        identity: str = "",
        runner: Runner | None = None,
        window: int = WINDOW,
        prefix_token_id: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """Loads a model, or takes one.

        ``pretrained`` is a Hugging Face folder, an int8 folder or a GGUF file, without it the small model of the
        package; ``options`` are those of :class:`welm.Model`. Answers that ``journal`` has for requests to a model with
        this ``identity`` are not computed again. ``runner`` computes requests elsewhere, so many together as ``window``
        says; the model is then used for its tokenizer only. ``prefix_token_id`` comes before a text that has nothing
        before it; by default it is the token that begins texts, or else the first that ends them. Batch sizes have no
        effect: the engine makes its own.
        """
        super().__init__()
        self.model = pretrained if isinstance(pretrained, welm.Model) else welm.Model(pretrained, **options)
        self.asker = Asker(self.model, journal=journal, identity=identity, runner=runner)
        self.window = window
        self.max_length = longest(self.model)
        """Most tokens of a request, lm-eval's way of counting."""
        self.max_gen_toks = MAX_GEN_TOKS
        config = self.model.config
        begin = config.bos_token_id if prefix_token_id is None else prefix_token_id
        self._prefix = next(iter(config.eos_token_ids), None) if begin is None else begin
        self._added = added_tokens(self.model)
        self.counts = self.asker.counts
        """Those of the asker, requests that were ``shortened``, and those whose texts the tokenizer ``joined``."""

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._required(next(iter(self.model.config.eos_token_ids), None))

    @property
    def prefix_token_id(self) -> int:
        """The token before a text that has nothing before it."""
        return self._required(self._prefix)

    def _required(self, token: int | None) -> int:
        if token is None:
            raise EvalError("the model has no token that begins or ends a text; give prefix_token_id")
        return token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        """The tokens of a text; spellings of special tokens are these tokens, as in transformers."""
        ids = self.model.tokenize(string, parse_special=True)
        has_begin = add_special_tokens is None and ids[:1] == [self._prefix]
        return ids if add_special_tokens is False or has_begin else [*self._added, *ids]

    # Chat templates.

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation."""
        goes_on = None if add_generation_prompt else True
        return self.model.chat_prompt(chat_history, add_generation_prompt, continue_final_message=goes_on)

    @property
    def tokenizer_name(self) -> str:
        """Distinguishes templates in lm-eval's own cache of prompts."""
        return f"welm-{self.asker.identity}"

    # Requests.

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Scored]:
        """Log-likelihoods of continuations, each with whether greedy decoding would have given it."""
        results: list[Scored] = []
        with self._show("loglikelihood", len(requests), disable_tqdm):
            for window in windows(requests, self.window):
                results += super().loglikelihood(window, disable_tqdm=True)
        return results

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a context and of what follows, as lm-eval defines them.

        If the tokenizer joins the end of the context with what follows, some text is in neither. Such pairs are
        counted.
        """
        kept = context.rstrip()
        whole, before = self.tok_encode(context + continuation), self.tok_encode(kept)
        self.counts["joined"] += whole[: len(before)] != before
        return before, whole[len(before) :]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_kwargs: Any
    ) -> list[Scored]:
        todo = [self._score(context, continuation, texts) for texts, context, continuation in requests]
        # Some tasks ask for the number of tokens.
        return [
            (LogLikelihood(answer.result[0], len(continuation)), answer.result[1])
            for answer, (_, _, continuation) in zip(self.asker.answers(todo), requests, strict=True)
        ]

    def _score(
        self, context: list[int], continuation: list[int], texts: tuple[str, str] | None = None
    ) -> Request:
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            got = f"{len(continuation)}" + (f", {texts[1][:40]!r} and so on" if texts else "")
            raise EvalError(
                f"expected continuations of at most {self.max_length} tokens, got {got}: the context has "
                f"{self.max_length + 1}"
            )
        context = context or [self.prefix_token_id]
        self.counts["shortened"] += len(context) > room
        return Request(array("I", context[-room:]), array("I", continuation), {})

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts; those longer than the context in windows, as lm-eval defines them."""
        results: list[float] = []
        with self._show("loglikelihood_rolling", None, disable_tqdm):
            for window in windows(requests, max(1, self.window // 16)):
                todo: list[Request] = []
                counts: list[int] = []
                for request in window:
                    (text,) = request.args
                    pairs = get_rolling_token_windows(
                        self.tok_encode(text),
                        self.prefix_token_id,
                        max_seq_len=self.max_length,
                        context_len=1,
                    )
                    parts = [self._score(*make_disjoint_window(pair)) for pair in pairs]
                    todo += parts
                    counts.append(len(parts))
                answers = iter(self.asker.answers(todo))
                results += [sum(next(answers).result[0] for _ in range(count)) for count in counts]
        return results

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations of prompts."""
        results: list[str] = []
        seen: Counter[bytes] = Counter()
        with self._show("generate_until", len(requests), disable_tqdm):
            for window in windows(requests, self.window):
                todo = [self._generate(request.args, seen) for request in window]
                results += [answer.result for answer in self.asker.answers(todo)]
        return results

    def _generate(self, args: tuple[str, dict[str, Any]], seen: Counter[bytes]) -> Request:
        context, settings = args
        options = generation(settings, self.max_gen_toks)
        prompt = self.tok_encode(context) or [self.prefix_token_id]
        if options["max_tokens"] >= self.max_length:
            # The task asks for more than the context has room for. Half of that is left to the prompt.
            options["max_tokens"] = self.max_length - min(len(prompt), self.max_length // 2)
        room = self.max_length - options["max_tokens"]
        self.counts["shortened"] += len(prompt) > room
        request = Request(array("I", prompt[-room:]), None, options)
        if options["temperature"]:
            # Repeats of a request draw other numbers, and another run the same ones.
            key = bytes.fromhex(request.key(""))
            options["seed"] = int.from_bytes(key[:4], "little") + seen[key]
            seen[key] += 1
        return request

    def _show(self, what: str, total: int | None, disable: bool) -> Any:
        """A progress bar, if stderr is a terminal."""
        bar = tqdm(desc=what, total=total, unit=" requests", disable=disable or None)
        self.asker.progress = bar.update
        return bar


def windows(requests: Sequence[T], size: int) -> Iterator[list[T]]:
    """The requests, some at a time."""
    for start in range(0, len(requests), size):
        yield list(requests[start : start + size])


def generation(settings: dict[str, Any], max_gen_toks: int = MAX_GEN_TOKS) -> dict[str, Any]:
    """The options of :meth:`welm.Model.generate` for a task's `generation_kwargs`; refuses what the engine lacks."""
    given = normalize_gen_kwargs(settings, max_gen_toks)
    until = [stop for stop in given.pop("until") if stop]
    options: dict[str, Any] = {
        "max_tokens": given.pop("max_gen_toks"),
        "temperature": float(given.pop("temperature", 0.0)),
        "top_p": 1.0,
        "top_k": 0,
        "stop": until,
    }
    for name, value in given.items():
        if name in SAMPLING:
            options[name] = value
        elif value is not None and value not in HARMLESS.get(name, ()):
            known = ", ".join(("until", "max_gen_toks", "temperature", *SAMPLING))
            raise EvalError(f"generation_kwargs: expected some of {known}, got {name}: {value!r}")
    if not given.get("do_sample"):
        options["temperature"] = 0.0
    return options
