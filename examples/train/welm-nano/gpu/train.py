#!/usr/bin/env python3
"""Pre-trains welm-nano for a given time, in a folder that `make` has made.

    python3 train.py --minutes 8 --out FOLDER [--set pretrain.batch=64 ...]
    python3 train.py --take FOLDER RECIPE

The first measures the speed, takes as many tokens as the time allows, and writes into FOLDER the model in parts of less
than 16 MiB, its history, the plot, and the settings that it was trained with. The second puts them in their place among
the results of a recipe, which gets the same settings by hand; `welm train export` goes on from there.
"""

import argparse
import json
import lzma
import os
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PART = 15 << 20
PROBE = 100
"""Steps of the first of two short runs; the second has three times as many. A run of one step goes before them, because
the first run of a process takes longer to begin."""

os.environ["HF_HUB_OFFLINE"] = "1"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="changes")
    parser.add_argument("--take", nargs=2, type=Path, metavar=("FOLDER", "RECIPE"))
    args = parser.parse_args()
    if args.take:
        take(*args.take)
    elif args.out:
        train(args.minutes, args.out, [change.partition("=") for change in args.changes])
    else:
        parser.error("expected --out or --take")
    return 0


def train(minutes: float, out: Path, changes: list) -> None:
    began = time.monotonic()
    site = HERE / "site"
    if not site.exists():
        shutil.unpack_archive(HERE / "site.tar.xz", site)
    sys.path.insert(0, str(site))
    import welm.train
    from welm.train.pretrain.shapes import shape_of

    for packed in (HERE / "out" / "tokens" / "all").glob("*.ds.xz"):
        with lzma.open(packed) as file, open(packed.with_suffix(""), "wb") as plain:
            shutil.copyfileobj(file, plain)
        packed.unlink()
    recipe = welm.train.read(HERE / "recipe.toml")
    given = {name.removeprefix("pretrain."): json.loads(value) for name, _, value in changes}
    row = type(recipe.pretrain).model_validate({**recipe.pretrain.model_dump(), **given})
    step = row.batch * shape_of(row).context

    def run(tokens: int, **more) -> float:
        started = time.monotonic()
        settings = type(row).model_validate({**row.model_dump(), "tokens": tokens, **more})
        welm.train.run("pretrain", recipe.model_copy(update={"pretrain": settings}))
        (out / "settings.json").write_text(settings.model_dump_json(indent=1))
        return time.monotonic() - started

    out.mkdir(parents=True, exist_ok=True)
    quick = {"measure_characters": 1, "prompts": ()}
    run(step, **quick)
    first, second = run(PROBE * step, **quick), run(3 * PROBE * step, **quick)
    if second <= first:
        raise SystemExit(
            f"expected {3 * PROBE} steps to take longer than {PROBE}, got {second} and {first} seconds"
        )
    speed = 2 * PROBE * step / (second - first)
    left = 60 * minutes - (time.monotonic() - began) - first
    tokens = int(speed * left * 0.9)
    if tokens < step:
        raise SystemExit(
            f"expected more minutes: at {speed:,.0f} tokens a second nothing can be done in {left:.0f} seconds"
        )
    print(
        f"{speed:,.0f} tokens a second; {tokens:,} tokens in the {left:.0f} seconds that are left", flush=True
    )
    run(tokens, save_every=max(1, int(120 * speed / step)))
    trained = HERE / "out" / "pretrain"
    for name in ("history.jsonl", "loss.png"):
        shutil.copy(trained / name, out)
    shutil.copy(trained / "model" / "config.json", out)
    data = (trained / "model" / "model.safetensors").read_bytes()
    for number, at in enumerate(range(0, len(data), PART)):
        (out / f"model.safetensors.{number}").write_bytes(data[at : at + PART])


def take(folder: Path, path: Path) -> None:
    import welm.train
    from welm.train.pretrain import mark_of
    from welm.train.recipe import Pretrain
    from welm.train.steps import begin, mark_done

    recipe = welm.train.read(path)
    settings = Pretrain.model_validate_json((folder / "settings.json").read_text())
    if settings.settings != recipe.pretrain.settings:
        raise SystemExit(f"{path}: expected in [pretrain] the settings of {folder / 'settings.json'}")
    out = recipe.out / "pretrain"
    mark = mark_of(recipe)
    begin(out, mark, settings.settings)
    (out / "model").mkdir(exist_ok=True)
    shutil.copy(folder / "config.json", out / "model")
    for name in ("history.jsonl", "loss.png"):
        shutil.copy(folder / name, out)
    parts = sorted(folder.glob("model.safetensors.*"), key=lambda part: int(part.suffix[1:]))
    with open(out / "model" / "model.safetensors", "wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    mark_done(out, mark)


if __name__ == "__main__":
    raise SystemExit(main())
