"""What a model is worth: held-out loss per character, samples, and the plot of a run."""

# pyright: basic, reportMissingImports=false, reportMissingModuleSource=false

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING, Any

import torch

from welm.train import plots
from welm.train.documents import HELDOUT, share_of, texts_of
from welm.train.tokenizer import END_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from welm.train.recipe import Recipe

TOGETHER = 4
"""Windows that are computed at once."""


def heldout(recipe: Recipe) -> dict[str, list[str]]:
    """Some held-out documents of each source."""
    found = {}
    for source in recipe.corpus.sources:
        texts = texts_of(recipe.out / "corpus", HELDOUT, source.name)
        found[source.name] = some_of(texts, recipe.pretrain.measure_characters)
    return {name: texts for name, texts in found.items() if texts}


def some_of(texts: Iterable[str], characters: int) -> list[str]:
    """Texts that have so many characters together, or all.

    A hash chooses them, so that they are from the whole source, and the same in any order.
    """
    taken: list[tuple[float, str]] = []  # a heap; the largest share is first
    size = 0
    for text in texts:
        heapq.heappush(taken, (-share_of(text, "measure"), text))
        size += len(text)
        while size - len(taken[0][1]) >= characters:
            size -= len(heapq.heappop(taken)[1])
    return [text for _, text in sorted(taken, reverse=True)]


def windows_of(ids: list[int], context: int) -> list[list[int]]:
    """Cuts ids into windows, each of which begins with the last token of the one before it."""
    return [ids[at : at + context + 1] for at in range(0, len(ids) - 1, context)]


def nats_per_character(
    logits: Callable[[torch.Tensor], torch.Tensor],
    encode: Callable[[str], list[int]],
    texts: Sequence[str],
    context: int,
) -> float:
    """The loss on documents: the sum of -ln p of all their tokens, divided by their characters.

    A document stands after an end token, and its own end token is predicted as well. A long one is cut into windows
    of ``context`` tokens, each without what comes before it.
    """
    windows = []
    for text in texts:
        ids = [END_ID, *encode(text), END_ID]
        windows += windows_of(ids, context)
    windows.sort(key=len)
    nats = 0.0
    for at in range(0, len(windows), TOGETHER):
        some = windows[at : at + TOGETHER]
        rows = torch.full((len(some), max(map(len, some))), -100)
        for row, ids in zip(rows, some, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        with torch.no_grad():
            out = logits(rows[:, :-1].clamp(min=0))
        nats += torch.nn.functional.cross_entropy(
            out.float().flatten(0, 1),
            rows[:, 1:].flatten().to(out.device),
            reduction="sum",
            ignore_index=-100,
        ).item()
    return nats / max(sum(map(len, texts)), 1)


def continued(model: Any, ids: list[int], tokens: int, seed: int) -> list[int]:
    """A sample of the tokens that come after a prompt. Random numbers outside are not touched."""
    prompt = torch.tensor([[END_ID, *ids]], device=model.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out: torch.Tensor = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=True,
            temperature=0.8,
            top_p=0.9,
            top_k=50,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )
    return [int(one) for one in out[0, prompt.shape[1] :]]


def plot(history: list[dict[str, Any]], row: int, path: Path) -> None:
    """The training loss, and the held-out loss of each source. ``row`` is the number of tokens of a step."""
    figure = plots.figure(9, 4.5)
    left, right = figure.subplots(1, 2)
    steps = [one for one in history if "loss" in one]
    left.plot(
        [one["step"] * row / 1e6 for one in steps], [one["loss"] for one in steps], lw=1, color=plots.BLUE
    )
    left.set_ylabel("training loss, nats a token")
    measured = [one for one in history if any(name.startswith("heldout/") for name in one)]
    names = sorted({name for one in measured for name in one if name.startswith("heldout/")})
    ends = {name: measured[-1].get(name, math.nan) for name in names} if measured else {}
    for name in sorted(names, key=lambda name: -ends[name]):
        points = [(one["step"] * row / 1e6, one[name] / math.log(2)) for one in measured if name in one]
        label = f"{name.removeprefix('heldout/')} {points[-1][1]:.2f}"
        right.plot(*zip(*points, strict=True), lw=1, marker=".", ms=3, label=label)
    right.set_ylabel("held-out loss, bits a character")
    if names:
        right.legend(frameon=False, fontsize=6, ncols=2)
    for axes in (left, right):
        axes.set_xlabel("million tokens")
    plots.save(figure, path)
