"""For programs written for transformers: ``from_pretrained`` and ``generate`` with its common arguments.

>>> import welm.hf
>>> model = welm.hf.from_pretrained(welm.NANO)
>>> model.generate([[3989, 3414, 2896]], max_new_tokens=2, do_sample=False)
[[3989, 3414, 2896, 3302, 3099]]

What is the same as in transformers: the arguments' names, meanings and defaults, ``generation_config.json`` included;
the order of the sampling filters; that ids come back behind the prompt's, with the end token, padded with
``pad_token_id``; that greedy decoding of the same weights in f32 with ``cache_dtype="f32"`` gives the same ids.

What differs:

- ``from_pretrained`` takes a local folder or GGUF file and downloads nothing; its options are those of
  :class:`welm.Model`, and ``torch_dtype`` and ``device_map`` for the ones that have an equal there.
- Sampling draws other random numbers: reproducible by the argument ``seed``, not by ``torch.manual_seed``. With a seed,
  rows that have the same prompt are the same; ``num_return_sequences`` gives different ones.
- Arguments that the engine has no equal for are refused with :class:`welm.InvalidOption`, never ignored; so are
  those that come from a generation config.
- ``stop_strings`` needs no ``tokenizer``.
- ``attention_mask`` may mark padding in front of a prompt or behind it, but no holes.
- ids may be nested lists, a numpy array or a torch tensor, in rows or just one; the same kind comes back. This module
  imports neither numpy nor torch.
- Any number of threads may call ``generate`` at the same time.
"""

from __future__ import annotations

import json
import math
import os
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import welm

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = ["CausalLM", "from_pretrained"]

_NEUTRAL: dict[str, tuple[object, ...]] = {
    # What cannot be done, with the values that do not ask for it (None and False never do).
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "length_penalty": (1.0,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "guidance_scale": (1.0,),
}
_INSTEAD = {
    "inputs": "pass `input_ids`",
    "inputs_embeds": "pass `input_ids`",
    "num_beams": "sample `num_return_sequences` and rank them by `score` of welm.Model",
    "num_beam_groups": "use `num_return_sequences`",
    "early_stopping": "leave it out: there is no beam search",
    "length_penalty": "leave it out: there is no beam search",
    "diversity_penalty": "raise `temperature`",
    "penalty_alpha": "use `top_p` or `min_p`",
    "typical_p": "use `top_p` or `min_p`",
    "epsilon_cutoff": "use `min_p`",
    "eta_cutoff": "use `min_p`",
    "top_h": "use `min_p`",
    "no_repeat_ngram_size": "use `repetition_penalty`",
    "encoder_no_repeat_ngram_size": "use `repetition_penalty`",
    "encoder_repetition_penalty": "use `repetition_penalty`",
    "bad_words_ids": "use `suppress_tokens` or `stop_strings`",
    "force_words_ids": "rank candidates by `score` of welm.Model",
    "constraints": "rank candidates by `score` of welm.Model",
    "sequence_bias": "use `model.generate(logit_bias=...)` of welm.Model",
    "begin_suppress_tokens": "use `suppress_tokens`",
    "forced_bos_token_id": "append the token to `input_ids`",
    "forced_eos_token_id": "append the token to what comes back",
    "min_length": "`model.generate(ignore_eos=True)` of welm.Model generates exactly `max_tokens`",
    "min_new_tokens": "`model.generate(ignore_eos=True)` of welm.Model generates exactly `max_tokens`",
    "guidance_scale": "put it into the prompt",
    "logits_processor": "use `model.logits` of welm.Model",
    "stopping_criteria": "use `stop_strings` or `max_time`, or break out of `model.stream` of welm.Model",
    "prefix_allowed_tokens_fn": "use `model.logits` of welm.Model",
    "streamer": "use `model.stream` of welm.Model",
    "synced_gpus": "a model runs on one device",
    "assistant_model": "leave it out",
    "prompt_lookup_num_tokens": "leave it out",
    "num_assistant_tokens": "leave it out",
    "custom_generate": "write the loop over `model.stream` of welm.Model",
    "return_dict_in_generate": "`model.generate(logprobs=...)` of welm.Model returns log-probabilities",
    "output_scores": "use `model.generate(logprobs=...)` of welm.Model",
    "output_logits": "use `model.logits` of welm.Model",
    "output_attentions": "attentions are never in memory",
    "output_hidden_states": "hidden states are not kept",
    "past_key_values": "equal beginnings of prompts are shared by themselves",
    "use_cache": "there is always a cache",
    "cache_implementation": "there is one cache; see `cache_dtype` of welm.Model",
    "cache_config": "there is one cache; see `cache_dtype` of welm.Model",
    "token_type_ids": "leave it out",
    "position_ids": "leave it out: positions are counted from the first token that is not padding",
    "renormalize_logits": "leave it out",
    "watermarking_config": "leave it out",
    "compile_config": "nothing is compiled",
}
# Of a generation config, and nothing that a generation depends on here.
_NO_MATTER = (
    "transformers_version",
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "tokenizer",
)


# Rows, and ids of a row; no model's context is as long.
_MOST = 1 << 22

# Options of loading: the value that is met anyway, and what would do in place of others.
_LOADING: dict[str, tuple[bool, str]] = {
    "load_in_8bit": (False, 'use dtype="int8"'),
    "load_in_4bit": (False, "use a GGUF file in Q4_0 or Q4_1"),
    "quantization_config": (False, 'use dtype="int8", or `welm.quantize`'),
    "attn_implementation": (False, "leave it out: there is one attention"),
    "trust_remote_code": (False, "leave it out: code of models is never run"),
    "max_memory": (False, "use memory_limit="),
    "local_files_only": (True, "leave it out: nothing is downloaded"),
    "low_cpu_mem_usage": (True, "leave it out: files are mapped"),
    "use_safetensors": (True, "leave it out: weights come from safetensors or GGUF files"),
}


def _device(device_map: Any) -> str:
    """One device for the whole model."""
    device: Any = device_map
    if isinstance(device_map, dict):
        places: list[Any] = list(device_map.items())  # pyright: ignore[reportUnknownArgumentType]
        if len(places) != 1 or places[0][0] != "":
            raise _refuse("device_map", f"expected one device for the whole model, got {places}")
        device = places[0][1]
    return f"cuda:{device}" if isinstance(device, int) else str(device or "auto")


def _refuse(option: str, reason: str) -> welm.InvalidOption:
    error = welm.InvalidOption(f"option `{option}`: {reason}")
    error.option = option
    return error


def from_pretrained(folder: str | os.PathLike[str], **options: Any) -> CausalLM:
    """Loads a model from a local folder or GGUF file.

    Options are those of :class:`welm.Model`. Also taken are ``torch_dtype`` (``"auto"``, ``"float32"``,
    ``torch.bfloat16``...) for ``dtype``, and ``device_map`` (``"auto"``, ``"cpu"``, ``"cuda:1"``, ``{"": "cuda"}``)
    for ``device``. Others are refused by name. Raises what :class:`welm.Model` raises.
    """
    if not os.path.exists(folder):
        reason = f"expected a local folder or GGUF file, got {os.fspath(folder)!r}; nothing is downloaded"
        raise _refuse("folder", reason)
    if "torch_dtype" in options:
        options["dtype"] = options.pop("torch_dtype")
    if "dtype" in options:
        options["dtype"] = str(options["dtype"]).removeprefix("torch.")
    if "device_map" in options:
        options["device"] = _device(options.pop("device_map"))
    for name in [name for name in options if name in _LOADING]:
        met, instead = _LOADING[name]
        value = options.pop(name)
        if value is not None and value is not met:
            raise _refuse(name, f"not offered; {instead}")
    return CausalLM(welm.Model(folder, **options), _generation_config(folder))


def _generation_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``generation_config.json`` says, if there is one."""
    path = os.path.join(folder, "generation_config.json")
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            config: Any = json.load(file)
    except ValueError as error:
        config = error
    if isinstance(config, dict):
        return cast("dict[str, Any]", config)
    invalid = welm.InvalidFile(f"{path}: expected a JSON object, got {config!r}")
    invalid.path = path
    raise invalid


class CausalLM:
    """A loaded model with transformers' ``generate``; what :func:`from_pretrained` returns."""

    def __init__(self, model: welm.Model, generation_config: Mapping[str, Any] | None = None) -> None:
        """Around a model; ``generation_config`` has defaults for :meth:`generate`."""
        self.model = model
        """The engine's own interface: stream, score, logits, stats."""
        self.generation_config: dict[str, Any] = dict(generation_config or {})
        """Defaults of :meth:`generate`; may be changed."""

    @property
    def config(self) -> welm.ModelConfig:
        """Shape and settings."""
        return self.model.config

    @property
    def device(self) -> str:
        """Where to put the ids: ``"cpu"``, wherever the model runs."""
        return "cpu"

    def eval(self) -> CausalLM:
        """Itself: it is never in training."""
        return self

    def generate(self, input_ids: Any, generation_config: Any = None, **arguments: Any) -> Any:
        """Continues prompts; gives prompts and new tokens, in rows of equal length, as the kind that ``input_ids`` is.

        ``input_ids`` are rows of ids, or one. ``generation_config``, a mapping or transformers' object, stands in
        place of the one from the model's folder; arguments go before either:

        - ``max_new_tokens``, or ``max_length`` with the prompt counted in (default 20);
        - ``do_sample``: ``False``, the default, is greedy, whatever the next ones say;
        - ``temperature`` (1.0), ``top_k`` (50), ``top_p`` (1.0), ``min_p`` (none), ``repetition_penalty`` (1.0);
        - ``suppress_tokens``: ids that are never generated;
        - ``num_return_sequences`` (1): rows for each prompt, next to each other;
        - ``stop_strings``: a text or several, which end a row and are part of it;
        - ``max_time``: seconds;
        - ``attention_mask``, ``pad_token_id`` (the end token);
        - ``eos_token_id``: one or several ids that end a row, and are part of it, in place of the model's own;
        - ``seed``: of the random numbers; ``None`` draws one.

        Raises :class:`welm.InvalidOption`, a ``ValueError``, for what is not offered, with what would do instead,
        and what :meth:`welm.Model.generate` raises.
        """
        values = {**self._defaults(generation_config), **arguments}
        mask, seed = values.pop("attention_mask", None), values.pop("seed", None)
        rows, is_one = _rows("input_ids", input_ids)
        prompts = _without_padding(rows, mask)
        pad = self._pad(values.get("pad_token_id"), values.get("eos_token_id"))
        options = self._options(values, max(map(len, rows), default=0))
        # What the model's own file says beyond that, transformers does not look at either.
        _check_rest(values, {*arguments, *(values if generation_config is not None else ())})

        generations = self.model.generate(prompts, seed=seed, **options)
        n = options["n"]
        whole: list[list[int]] = []
        for row, generation in zip(rows, generations, strict=True):
            for choice in generation.choices:
                end = () if choice.end_token is None else (choice.end_token,)
                whole.append([*row, *(token.id for token in choice.tokens), *end])
        width = max(map(len, whole), default=0)
        padded = [row + [pad] * (width - len(row)) for row in whole]
        return _as_kind(input_ids, padded[0] if is_one and n == 1 else padded)

    def _defaults(self, given: Any) -> Mapping[str, Any]:
        if given is None:
            return self.generation_config
        values = given.to_diff_dict() if hasattr(given, "to_diff_dict") else given
        try:
            return dict(values)
        except (TypeError, ValueError):
            reason = f"expected a mapping or GenerationConfig, got {type(given).__name__}"
            raise TypeError(f"argument 'generation_config': {reason}") from None

    def _options(self, values: dict[str, Any], prompt_len: int) -> dict[str, Any]:
        """Those of :meth:`welm.Model.generate`; what is understood is taken out of ``values``."""
        max_new, max_length = values.pop("max_new_tokens", None), values.pop("max_length", None)
        if max_new is None:
            length = 20 if max_length is None else max_length
            if length <= prompt_len:
                reason = f"expected more than the prompt's {prompt_len} tokens, got {length}"
                raise _refuse("max_length", f"{reason}; set `max_new_tokens`")
            max_new = length - prompt_len
        n = _or(values.pop("num_return_sequences", None), 1)
        sampling = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
        chosen = {name: _or(values.pop(name, None), off) for name, off in sampling.items()}
        if not values.pop("do_sample", False):
            if n != 1:
                reason = f"expected 1 with do_sample=False, got {n}: all would be the same"
                raise _refuse("num_return_sequences", reason)
            chosen = {"temperature": 0.0}
        elif chosen["temperature"] == 0:
            raise _refuse("temperature", "expected more than 0 with do_sample=True; use do_sample=False")
        penalty = _or(values.pop("repetition_penalty", None), 1.0)
        options = {**chosen, "max_tokens": max_new, "n": n, "repetition_penalty": penalty}
        options["stop"], options["deadline"] = values.pop("stop_strings", None), values.pop("max_time", None)
        if (never := values.pop("suppress_tokens", None)) is not None and never is not False:
            # As transformers, which knows no id beyond the vocabulary here.
            ids = {int(token) for token in (_listed(never) if _is_rows(never) else [never])}
            options["logit_bias"] = dict.fromkeys(ids & set(range(self.config.vocab_size)), -math.inf)
        own = set(self.config.eos_token_ids)
        if (end := values.pop("eos_token_id", None)) is not None:
            asked = [int(token) for token in (_listed(end) if _is_rows(end) else [end])]
            if set(asked) != own:
                # As transformers, where an id beyond the vocabulary, such as -1, never comes.
                known = set(asked) & set(range(self.config.vocab_size))
                options["stop_token_ids"], options["ignore_eos"] = sorted(known), True
        return options

    def _pad(self, given: Any, end: Any) -> int:
        if given is not None:
            return int(given)
        ends = self.config.eos_token_ids if end is None else _listed(end) if _is_rows(end) else [end]
        return int(ends[0]) if len(ends) else 0


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_rest(values: Mapping[str, Any], asked: Collection[str]) -> None:
    """Refuses what is left, if it asks for anything; unknown names only if they were ``asked``."""
    for name, value in values.items():
        if name in _NO_MATTER or name == "pad_token_id":
            continue
        if name not in _INSTEAD:
            if name not in asked:
                continue
            raise TypeError(f"generate() got an unexpected keyword argument '{name}'")
        number = type(value) in (bool, int, float)  # an array has no truth value
        off = (True,) if name == "use_cache" else (False, *_NEUTRAL.get(name, ()))
        if value is not None and not (number and value in off):
            raise _refuse(name, f"not offered; {_INSTEAD[name]}")


def _is_rows(value: Any) -> bool:
    return hasattr(value, "__len__")


def _listed(value: Any, name: str = "ids") -> list[Any]:
    """A list, of a tensor or array too. Nothing is allocated by the length that it claims to have."""
    if hasattr(value, "tolist"):
        return cast("list[Any]", value.tolist())
    listed: list[Any] = list(islice(value, _MOST + 1))
    if len(listed) > _MOST:
        raise _refuse(name, f"expected at most {_MOST} elements, got more")
    return listed


def _rows(name: str, value: Any) -> tuple[list[list[int]], bool]:
    """Rows of numbers, and whether it was just one."""
    if not _is_rows(value):
        raise TypeError(f"argument '{name}': expected rows of token ids, got {type(value).__name__}")
    listed = _listed(value, name)
    is_one = bool(listed) and not _is_rows(listed[0])
    if is_one != any(not _is_rows(row) for row in listed):
        raise TypeError(f"argument '{name}': expected rows, or one row, got both")
    rows: list[list[Any]] = [listed] if is_one else [_listed(row, name) for row in listed]
    if any(_is_rows(item) for row in rows for item in row):
        raise TypeError(f"argument '{name}': expected one or two dimensions")
    return rows, is_one


def _without_padding(rows: list[list[int]], mask: Any) -> list[list[int]]:
    """Prompts: the tokens where the mask is not 0."""
    if mask is None:
        return rows
    masks, _ = _rows("attention_mask", mask)
    if list(map(len, masks)) != list(map(len, rows)):
        shapes = f"{list(map(len, rows))}, got {list(map(len, masks))}"
        raise _refuse("attention_mask", f"expected rows as long as those of input_ids, {shapes}")
    prompts: list[list[int]] = []
    for row, keep in zip(rows, masks, strict=True):
        first = next((at for at, bit in enumerate(keep) if bit), len(row))
        prompt = [token for token, bit in zip(row, keep, strict=True) if bit]
        if not all(keep[first : first + len(prompt)]):
            raise _refuse("attention_mask", "expected padding in front of a prompt or behind it, got holes")
        prompts.append(prompt)
    return prompts


def _as_kind(like: Any, rows: Sequence[Any]) -> Any:
    """Rows as what ``like`` is."""
    if hasattr(like, "new_tensor"):  # of torch: the same type of number, on the same device
        return like.new_tensor(rows)
    if hasattr(like, "__array_interface__"):
        import sys

        return sys.modules["numpy"].array(rows, dtype=like.dtype)
    return rows
