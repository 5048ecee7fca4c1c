"""``info``: shows a model's shape, the memory that it takes, and which devices can compute with it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import welm
from welm._cli.answer import print_json
from welm._cli.arguments import add_json, add_loading, loading, only_path
from welm._cli.streams import one_line
from welm._cli.terminal import megabytes, put

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterable, Iterator

SUMMARY = """Shows a model's shape, the memory that it takes, and which devices can compute with it.

Of the weights little is read, and a GPU need not be there. The memory is what loading with these flags would take. For
files that cannot be loaded it shows what they contain, and why they cannot be loaded."""
EXAMPLES = ("info", "info smollm2.gguf", "info my-model --dtype int8 --cache-tokens 65536 --json")


def add_arguments(parser: ArgumentParser) -> None:
    """Adds flags and positional arguments."""
    add_json(parser, "print a JSON object, sizes in bytes")
    add_loading(parser, path=False)


def run(args: Namespace) -> int:
    """Runs the command; gives the exit code."""
    path = only_path(args)
    description = welm.Model.describe(path)
    config = description.config
    if config is None:
        tell_unsupported(path or welm.NANO, description, json=args.json)
        return 0
    options = loading(args)
    estimate = welm.Model.estimate(path, **options)
    path = path or welm.NANO
    if args.json:
        value: dict[str, Any] = {
            "path": path,
            **about(description),
            **dataclasses.asdict(config),
            "tokenizer": description.tokenizer,
            "tokenizer_tokens": description.tokenizer_tokens,
            "has_chat_template": description.has_chat_template,
            "memory": dataclasses.asdict(estimate),
            "devices": devices(path, options),
        }
        print_json(value)
        return 0
    rows = [("path", path), ("format", description.format), *shape(config), *types(description)]
    rows.append(("tokenizer", tokenizer(description)))
    rows.append(("chat template", "yes" if description.has_chat_template else "no"))
    for device in devices(path, options):
        able = device["unsupported"] is None
        size = megabytes(device["total_bytes"]) if able else ""
        rows.append((device["device"], f"can, with {size} of its memory" if able else device["unsupported"]))
    print_rows([*rows, *memory(estimate, config.n_params)])
    return 0


def devices(path: str | None, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The kinds of devices: the memory that loading with these options would take there, or why it would not load."""
    found: list[dict[str, Any]] = []
    for device in ("cpu", "cuda"):
        there: dict[str, Any] = {**options, "device": device}
        try:
            total = welm.Model.estimate(path, **there).total_bytes
            found.append({"device": device, "total_bytes": total, "unsupported": None})
        except welm.Error as error:
            found.append({"device": device, "total_bytes": None, "unsupported": str(error)})
    return found


def about(description: welm.Description) -> dict[str, Any]:
    """What files contain, for ``--json``."""
    names = ("format", "types", "unsupported")
    return {name: value for name, value in dataclasses.asdict(description).items() if name in names}


def types(description: welm.Description) -> Iterator[tuple[str, str]]:
    """The types of the tensors, in words, a row each."""
    name = "types"
    for count in description.types:
        size = "" if count.bytes is None else f", {megabytes(count.bytes)}"
        tensors = "tensor" if count.tensors == 1 else "tensors"
        yield name, f"{count.name}: {count.tensors} {tensors}, {count.elements:,} elements{size}"
        name = ""
    if not description.types:
        yield name, "no tensors"


def tokenizer(description: welm.Description) -> str:
    """The kind of tokenizer, in words."""
    if description.tokenizer is None:
        return "none"
    return f"{description.tokenizer} of {description.tokenizer_tokens:,} tokens"


def tell_unsupported(path: str, description: welm.Description, *, json: bool) -> None:
    """Shows what files contain that cannot be loaded, and why they cannot."""
    if json:
        value = {"path": path, "family": description.family, "n_params": description.elements}
        print_json({**value, **about(description), "settings": description.settings})
        return
    print_rows(
        [
            ("path", path),
            ("format", description.format),
            ("family", description.family or "not told"),
            ("parameters", f"{description.elements:,}"),
            *types(description),
            ("not supported", description.unsupported or ""),
            ("settings", ""),
        ]
    )
    for name, setting in description.settings.items():
        put(f"  {one_line(name)} = {one_line(setting)}")


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    """A table of two columns."""
    for name, value in rows:
        put(f"{name:15} {one_line(value)}".rstrip())


def shape(config: welm.ModelConfig) -> Iterator[tuple[str, str]]:
    """A model's shape, in words."""
    heads = f"{config.n_heads} heads of {config.head_dim}"
    if config.n_kv_heads != config.n_heads:
        heads += f", {config.n_kv_heads} of keys and values"
    scaling = f", {config.rope_scaling} scaling" if config.rope_scaling else ""
    yield "family", config.family
    yield "parameters", f"{config.n_params:,}"
    yield "layers", f"{config.n_layers} of dim {config.dim}, {heads}, hidden dim {config.hidden_dim}"
    yield "residual", "parallel" if config.parallel_residual else "sequential"
    yield "norm", f"{config.norm}, epsilon {config.norm_eps:g}"
    yield "activation", config.activation
    yield "rotary", f"{config.rotary_dim} of {config.head_dim} values, base {config.rope_base:g}{scaling}"
    yield (
        "vocabulary",
        f"{config.vocab_size:,}{', output tied to the embedding' if config.tied_output else ''}",
    )
    yield "begin, end", f"{config.bos_token_id}, {', '.join(map(str, config.eos_token_ids)) or None}"
    yield "context", f"{config.max_context:,} tokens"


def memory(estimate: welm.Estimate, n_params: int | None = None) -> Iterator[tuple[str, str]]:
    """The parts of the memory, in words."""
    bits = 8 * (estimate.mapped_bytes + estimate.converted_bytes) / n_params if n_params else 0
    each = f"; {bits:.1f} bits a parameter, both together" if n_params else ""
    yield "memory", f"{megabytes(estimate.total_bytes)} in all"
    yield "  mapped", f"{megabytes(estimate.mapped_bytes)} of weights, read where they lie in the file"
    yield "  converted", f"{megabytes(estimate.converted_bytes)} of weights{each}"
    yield (
        "  cache",
        f"{megabytes(estimate.cache_bytes)} for {estimate.cache_tokens:,} tokens of keys and values",
    )
    yield "  scratch", megabytes(estimate.scratch_bytes)
