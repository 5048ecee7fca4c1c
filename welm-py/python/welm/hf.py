"""For programs written for transformers: ``from_pretrained`` and ``generate`` with its common arguments.

>>> import welm.hf
>>> model = welm.hf.from_pretrained(welm.NANO)
>>> model.generate([[3989, 3414, 2896]], max_new_tokens=2, do_sample=False)
[[3989, 3414, 2896, 3302, 3099]]

These things are the same as in transformers: the arguments' names, meanings and defaults, also those from
``generation_config.json``; the order of the sampling filters; the result, which is the prompt's ids and then the new
ones, with the end token, padded with ``pad_token_id``. Greedy decoding of the same weights in f32 with
``cache_dtype="f32"`` gives the same ids.

These things differ:

- ``from_pretrained`` takes a local folder or GGUF file and downloads nothing. Its options are those of
  :class:`welm.Model`, and ``torch_dtype`` and ``device_map`` in place of ``dtype`` and ``device``.
- Sampling draws other random numbers. The argument ``seed`` makes them reproducible, ``torch.manual_seed`` does not.
  With a seed, rows that have the same prompt are the same; ``num_return_sequences`` gives different ones.
- Arguments that the engine does not have are refused with :class:`welm.InvalidOption`, never ignored; so are those that
  come from a generation config.
- ``stop_strings`` needs no ``tokenizer``.
- ``attention_mask`` may mark padding in front of a prompt or after it, but no holes.
- ids may be nested lists, a numpy array or a torch tensor, several rows or just one; the result is of the same kind.
  This module imports neither numpy nor torch. A value of the wrong kind is :class:`welm.InvalidOption`, a
  ``ValueError``, with the argument's name.
- Any number of threads may call ``generate`` at the same time.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, cast

import welm
from welm._arrays import as_kind, is_array, list_of, refuse, rows_of, shown, whole

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["CausalLM", "from_pretrained"]

_NEUTRAL: dict[str, tuple[object, ...]] = {
    # Arguments that are not supported, with the values that ask for nothing and so are allowed. None, False and empty
    # values are always allowed.
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
    "use_cache": (True,),
    "disable_compile": (True,),
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
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
    "assistant_tokenizer": "leave it out",
    "assistant_early_exit": "leave it out",
    "assistant_confidence_threshold": "leave it out",
    "assistant_ensemble_weight": "leave it out",
    "assistant_lookbehind": "leave it out",
    "target_lookbehind": "leave it out",
    "is_assistant": "leave it out",
    "max_matching_ngram_size": "leave it out",
    "num_assistant_tokens": "leave it out",
    "num_assistant_tokens_schedule": "leave it out",
    "speculation_type": "leave it out",
    "use_mtp": "leave it out",
    "dola_layers": "leave it out",
    "low_memory": "leave it out",
    "negative_prompt_ids": "put it into the prompt",
    "negative_prompt_attention_mask": "put it into the prompt",
    "exponential_decay_length_penalty": "use `max_new_tokens`",
    "remove_invalid_values": "logits that are not finite are an error",
    "forced_decoder_ids": "append the tokens to `input_ids`",
    "token_healing": "leave it out",
    "use_model_defaults": "leave it out",
    "prefill_chunk_size": "see `chunk_tokens` of welm.Model",
    "max_cache_len": "see `cache_tokens` of welm.Model",
    "continuous_batching_config": "requests are batched by themselves",
    "disable_compile": "nothing is compiled",
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
# Keys of a generation config that have no effect here.
_NO_MATTER = (
    "transformers_version",
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "tokenizer",
)


# Options of the engine, with their names in this module.
_NAMES = {
    "prompt": "input_ids",
    "max_tokens": "max_new_tokens",
    "n": "num_return_sequences",
    "stop": "stop_strings",
    "deadline": "max_time",
    "logit_bias": "suppress_tokens",
    "stop_token_ids": "eos_token_id",
}

# Options of loading that are not supported: the value that is allowed, as are None, False and empty values, and what to
# do instead of others.
_LOADING: dict[str, tuple[bool | str, str]] = {
    "load_in_8bit": (False, 'use dtype="int8"'),
    "load_in_4bit": (False, "use a GGUF file with weights of four bits, such as Q4_K_M"),
    "quantization_config": (False, 'use dtype="int8", or `welm.quantize`'),
    "attn_implementation": (False, "leave it out: there is one attention"),
    "trust_remote_code": (False, "leave it out: code of models is never run"),
    "max_memory": (False, "use memory_limit="),
    "local_files_only": (True, "leave it out: nothing is downloaded"),
    "low_cpu_mem_usage": (True, "leave it out: files are mapped"),
    "use_safetensors": (True, "leave it out: weights come from safetensors or GGUF files"),
    "force_download": (False, "leave it out: nothing is downloaded"),
    "resume_download": (False, "leave it out: nothing is downloaded"),
    "revision": ("main", "pass the folder of that revision"),
    "subfolder": ("", "pass that folder"),
    "variant": ("", "pass a folder with those files"),
    "token": (False, "leave it out: nothing is downloaded"),
    "cache_dir": ("", "pass the model's folder: nothing is downloaded"),
    "proxies": ("", "leave it out: nothing is downloaded"),
    "output_loading_info": (False, "what does not fit is an error"),
    "ignore_mismatched_sizes": (False, "what does not fit is an error"),
    "offload_folder": ("", "leave it out: files are mapped"),
    "offload_state_dict": (False, "leave it out: files are mapped"),
    "tp_plan": ("", "a model runs on one device"),
}


def _device(device_map: Any) -> str:
    """One device for the whole model."""
    device: Any = device_map
    if isinstance(device_map, dict) and device_map:
        places: list[Any] = list(device_map.items())  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]
        if len(places) != 1 or places[0][0] != "":
            raise refuse("device_map", f"expected one device for the whole model, got {shown(places)}")
        device = places[0][1]
    if device is None or device == {}:
        return "auto"
    is_number = isinstance(device, int) and not isinstance(device, bool)
    name = f"cuda:{device}" if is_number else str(device)
    if name != "auto" and not re.fullmatch(r"cpu|cuda(:\d+)?", name, re.ASCII):
        raise refuse("device_map", f"expected auto, cpu, cuda or cuda:N, got {shown(device_map)}")
    return name


def _dtype(dtype: Any) -> str:
    """The name of a dtype, as the engine takes it."""
    name = str(dtype).removeprefix("torch.")
    if not isinstance(dtype, str) and name == str(dtype):  # such as numpy's
        raise refuse("dtype", f'expected a name such as "float32", or a dtype of torch, got {shown(dtype)}')
    return name


def from_pretrained(folder: str | os.PathLike[str], **options: Any) -> CausalLM:
    """Loads a model from a local folder or GGUF file.

    Options are those of :class:`welm.Model`. Also taken are ``torch_dtype`` (``"auto"``, ``"float32"``,
    ``torch.bfloat16``...) for ``dtype``, and ``device_map`` (``"auto"``, ``"cpu"``, ``"cuda:1"``, ``{"": "cuda"}``)
    for ``device``. Others are refused by name. Raises what :class:`welm.Model` raises.
    """
    given: Any = folder
    if not isinstance(given, (str, os.PathLike)) or not os.path.exists(folder):
        reason = f"expected a local folder or GGUF file, got {shown(folder)}; nothing is downloaded"
        raise refuse("folder", reason)
    folder = os.fsdecode(folder)
    for ours, theirs, read in (("dtype", "torch_dtype", _dtype), ("device", "device_map", _device)):
        values = {name: options.pop(name) for name in (ours, theirs) if name in options}
        names = {name: read(value) for name, value in values.items() if value is not None}
        if len(set(names.values())) > 1:
            raise refuse(theirs, f"expected the same as {ours}, {names[ours]}, got {names[theirs]}")
        if names:
            options[ours] = names.popitem()[1]
    for name in [name for name in options if name in _LOADING]:
        met, instead = _LOADING[name]
        if not _asks_nothing(options.pop(name), (met,)):
            raise refuse(name, f"not offered; {instead}")
    return CausalLM(welm.Model(folder, **options), _generation_config(folder))


def _generation_config(folder: str) -> dict[str, Any]:
    """The settings in ``generation_config.json``, if there is one."""
    path = os.path.join(folder, "generation_config.json")
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            config: Any = json.load(file)
    except OSError as error:
        unread = welm.IoError(f"{path}: {error.strerror}")
        unread.path = path
        raise unread from error
    except (ValueError, RecursionError) as error:
        config = error
    if isinstance(config, dict):
        return cast("dict[str, Any]", config)
    invalid = welm.InvalidFile(f"{path}: expected a JSON object, got {shown(config)}")
    invalid.path = path
    raise invalid


class CausalLM:
    """A loaded model with the ``generate`` of transformers, which :func:`from_pretrained` returns."""

    def __init__(self, model: welm.Model, generation_config: Mapping[str, Any] | None = None) -> None:
        """Wraps a model; ``generation_config`` has defaults for :meth:`generate`."""
        self.model = model
        """The engine's own interface: stream, score, logits, stats."""
        self.generation_config: dict[str, Any] = dict(generation_config or {})
        """Defaults of :meth:`generate`; may be changed."""

    @property
    def config(self) -> welm.ModelConfig:
        """Shapes and settings of the model."""
        return self.model.config

    @property
    def device(self) -> str:
        """Where to put the ids: ``"cpu"``, wherever the model runs."""
        return "cpu"

    def eval(self) -> CausalLM:
        """Returns itself: the model is never in training mode."""
        return self

    def generate(self, input_ids: Any, generation_config: Any = None, **arguments: Any) -> Any:
        """Continues prompts; gives prompts and new tokens, in rows of equal length, of the same kind as ``input_ids``.

        ``input_ids`` are rows of ids, or one row. What ``generation_config`` sets, a mapping or an object of
        transformers, overrides what the model's folder sets. Arguments override both:

        - ``max_new_tokens`` (20, or what the context has room for), or ``max_length`` with the prompt counted in;
        - ``do_sample``: ``False``, the default, is greedy, whatever the temperature and the filters are;
        - ``temperature`` (1.0), ``top_k`` (50), ``top_p`` (1.0), ``min_p`` (none), ``repetition_penalty`` (1.0);
        - ``suppress_tokens``: ids that are never generated;
        - ``num_return_sequences`` (1): rows for each prompt, next to each other;
        - ``stop_strings``: a text or several, which end a row and are part of it;
        - ``max_time``: seconds;
        - ``attention_mask``, ``pad_token_id`` (the end token);
        - ``eos_token_id``: one or several ids that end a row, and are part of it, in place of the model's own;
        - ``seed``: of the random numbers; ``None`` draws one.

        Raises :class:`welm.InvalidOption`, a ``ValueError``, for an argument that is not supported, and says what to
        use instead. Also raises what :meth:`welm.Model.generate` raises.
        """
        given = {**_settings(generation_config), **arguments}
        values = {**self.generation_config, **given}
        mask, seed = values.pop("attention_mask", None), values.pop("seed", None)
        rows, is_one = _ids(input_ids)
        prompts = _without_padding(rows, mask)
        vocab_size = self.config.vocab_size
        for token in (token for prompt in prompts for token in prompt):
            if not 0 <= token < vocab_size:
                raise refuse("input_ids", f"expected ids of 0 to {vocab_size - 1}, got {token}")
        pad = self._pad(values.get("pad_token_id"), values.get("eos_token_id"))
        as_kind("input_ids", input_ids, [vocab_size - 1, pad])  # fails now if elements cannot hold every id
        options = self._options(values, max(map(len, rows), default=0))
        # Other settings in the model's own file are ignored, as in transformers.
        _check_rest(values, set(given))

        try:
            generations = self.model.generate(prompts, seed=seed, **options)
        except (welm.InvalidOption, TypeError) as error:
            _raise_as_here(error)
        n = options["n"]
        whole: list[list[int]] = []
        for row, generation in zip(rows, generations, strict=True):
            for choice in generation.choices:
                end = () if choice.end_token is None else (choice.end_token,)
                whole.append([*row, *(token.id for token in choice.tokens), *end])
        width = max(map(len, whole), default=0)
        padded = [row + [pad] * (width - len(row)) for row in whole]
        return as_kind("input_ids", input_ids, padded[0] if is_one and n == 1 else padded)

    def _options(self, values: dict[str, Any], prompt_len: int) -> dict[str, Any]:
        """The options of :meth:`welm.Model.generate`; arguments that are used are taken out of ``values``."""
        max_new, max_length = _count(values, "max_new_tokens"), _count(values, "max_length")
        if max_new is None:
            if max_length is None:
                max_length = max(min(prompt_len + 20, self.model.memory.context_tokens), prompt_len + 1)
            if max_length <= prompt_len:
                reason = f"expected more than the prompt's {prompt_len} tokens, got {max_length}"
                raise refuse("max_length", f"{reason}; set `max_new_tokens`")
            max_new = max_length - prompt_len
        n = _or(_count(values, "num_return_sequences"), 1)
        chosen: dict[str, Any] = {"top_k": _or(_count(values, "top_k"), 50)}
        for name, off in (("temperature", 1.0), ("top_p", 1.0), ("min_p", 0.0)):
            chosen[name] = _or(_real(values, name), off)
        if not _switch(values, "do_sample"):
            if n != 1:
                reason = f"expected 1 with do_sample=False, got {n}: all would be the same"
                raise refuse("num_return_sequences", reason)
            chosen = {"temperature": 0.0}
        elif chosen["temperature"] == 0:
            reason = "expected more than 0 with do_sample=True, got 0; use do_sample=False"
            raise refuse("temperature", reason)
        penalty = _or(_real(values, "repetition_penalty"), 1.0)
        options = {**chosen, "max_tokens": max_new, "n": n, "repetition_penalty": penalty}
        options["stop"], options["deadline"] = _texts(values, "stop_strings"), _real(values, "max_time")
        never = values.pop("suppress_tokens", None)
        if never is not None and never is not False:
            # Ids outside the vocabulary are ignored, as in transformers.
            ids = set(_some_ids("suppress_tokens", never))
            options["logit_bias"] = dict.fromkeys(ids & set(range(self.config.vocab_size)), -math.inf)
        own = set(self.config.eos_token_ids)
        if (end := values.pop("eos_token_id", None)) is not None:
            asked = _some_ids("eos_token_id", end)
            if set(asked) != own:
                # An id outside the vocabulary, such as -1, never comes, as in transformers.
                known = set(asked) & set(range(self.config.vocab_size))
                options["stop_token_ids"], options["ignore_eos"] = sorted(known), True
        return options

    def _pad(self, given: Any, end: Any) -> int:
        if given is not None:
            return whole("pad_token_id", given, "an id")
        ends = self.config.eos_token_ids if end is None else _some_ids("eos_token_id", end)
        return ends[0] if ends else 0


def _settings(config: Any) -> dict[str, Any]:
    """What a generation config sets."""
    if config is None:
        return {}
    try:
        return dict(config.to_diff_dict() if hasattr(config, "to_diff_dict") else config)
    except Exception:  # an object may raise what it likes
        reason = f"expected a mapping or GenerationConfig, got {shown(config)}"
        raise refuse("generation_config", reason) from None


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _count(values: dict[str, Any], name: str) -> int | None:
    """Takes a number of things out."""
    value = values.pop(name, None)
    if value is None:
        return None
    number = whole(name, value, "a whole number, 0 or more")
    if number < 0:
        raise refuse(name, f"expected 0 or more, got {number}")
    return number


def _real(values: dict[str, Any], name: str) -> float | None:
    """Takes a number out."""
    value = values.pop(name, None)
    if value is None:
        return None
    try:
        if not isinstance(value, (str, bytes, bytearray)) and not is_array(value):
            return float(value)
    except Exception:  # an object may raise what it likes
        pass
    raise refuse(name, f"expected a number, got {shown(value)}")


def _switch(values: dict[str, Any], name: str) -> bool:
    """Takes yes or no out."""
    value = values.pop(name, None)
    if _asks_nothing(value, (0,)):
        return False
    if not _asks_nothing(value, (True,)):
        raise refuse(name, f"expected True or False, got {shown(value)}")
    return True


def _texts(values: dict[str, Any], name: str) -> list[str] | None:
    """Takes a text or several out."""
    value = values.pop(name, None)
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else list_of(name, value, "a text or a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise refuse(name, f"expected a text or a list of texts, got {shown(text)} in it")
    return texts


def _some_ids(name: str, value: Any) -> list[int]:
    """One id, or several."""
    listed: list[Any] = list_of(name, value, "ids") if is_array(value) else [value]
    return [whole(name, token, "an id, or a list of ids") for token in listed]


def _asks_nothing(value: Any, neutral: tuple[object, ...]) -> bool:
    """Whether a value is ``None``, ``False``, empty, or one of the ``neutral`` ones."""
    try:
        plain = value.tolist() if hasattr(value, "tolist") else value
        # Types are checked first, because == of an object may return anything.
        if plain is None or isinstance(plain, (int, float, str)):
            return plain is None or plain is False or plain == "" or plain in neutral
        return len(plain) == 0
    except Exception:  # an object may raise what it likes
        return False


def _check_rest(values: Mapping[str, Any], asked: Collection[str]) -> None:
    """Refuses what is left, if it asks for anything; unknown names only if they were ``asked``."""
    for name, value in values.items():
        if name in _NO_MATTER or name == "pad_token_id":
            continue
        if name not in _INSTEAD:
            if name not in asked:
                continue
            raise TypeError(f"generate() got an unexpected keyword argument '{name}'")
        is_off = name == "use_cache" and value is not None and not value
        if is_off or not _asks_nothing(value, _NEUTRAL.get(name, ())):
            raise refuse(name, f"not offered, got {shown(value)}; {_INSTEAD[name]}")


def _raise_as_here(error: Exception) -> NoReturn:
    """Raises an error of the engine's arguments again, with the names of this module."""
    found = re.match(r"(?:option `|argument ')(\w+)[`']: (.*)", str(error), re.DOTALL)
    if not found:
        raise error
    raise refuse(_NAMES.get(found[1], found[1]), found[2]) from None


def _ids(value: Any) -> tuple[list[list[int]], bool]:
    """Rows of ids, and whether just one was given."""
    if isinstance(value, Mapping):
        reason = "expected rows of token ids, or one row, got a mapping"
        raise refuse("input_ids", f"{reason}; unpack what a tokenizer gives: generate(**inputs)")
    rows, is_one = rows_of("input_ids", value, "token ids")
    return [[whole("input_ids", token, "token ids") for token in row] for row in rows], is_one


def _without_padding(rows: list[list[int]], mask: Any) -> list[list[int]]:
    """Prompts: the tokens where the mask is not 0."""
    if mask is None:
        return rows
    masks, _ = rows_of("attention_mask", mask, "0 or 1")
    if list(map(len, masks)) != list(map(len, rows)):
        shapes = f"{shown(list(map(len, rows)))}, got {shown(list(map(len, masks)))}"
        raise refuse("attention_mask", f"expected rows as long as those of input_ids, {shapes}")
    prompts: list[list[int]] = []
    for row, keep in zip(rows, masks, strict=True):
        for bit in keep:
            if not isinstance(bit, (bool, int, float)) or bit not in (0, 1):
                raise refuse("attention_mask", f"expected 0 or 1, got {shown(bit)}")
        first = next((at for at, bit in enumerate(keep) if bit), len(row))
        prompt = [token for token, bit in zip(row, keep, strict=True) if bit]
        if not all(keep[first : first + len(prompt)]):
            raise refuse("attention_mask", "expected padding in front of a prompt or after it, got holes")
        prompts.append(prompt)
    return prompts
