"""Puts a server under the load of many clients, a third of whom hang up, and measures what the others see.

    python benches/serve/load.py serve URL --model NAME --out served.json
    python benches/serve/load.py direct MODEL.gguf --out direct.json
    python benches/serve/load.py check MODEL.gguf served.json
    python benches/serve/load.py report served.json other.json --plot serve.png

`serve` is for any server with OpenAI's `/v1/completions`. `direct` gives the same requests to the engine in this
process. `check` computes each answer that was finished again, alone, and compares. `report` makes a table.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WORDS = (
    "春眠不觉晓，处处闻啼鸟。", "The history of the city begins with a small harbour.", "def main(argv):\n    return 0\n",
    "白日依山尽，黄河入海流。", "She opened the window and looked at the sea.", "问题：百年孤独的作者是？\n回答：",
)  # fmt: skip
KINDS = 150


@dataclass
class Ask:
    """One of the requests that clients choose from."""

    prompt: str
    max_tokens: int
    seed: int
    stream: bool


def asks(longest: int = 40) -> list[Ask]:
    """Prompts of one to so many verses or lines, a few to a few hundred tokens; answers of 8 to 128 tokens."""
    chance = random.Random(7)
    made = []
    for seed in range(KINDS):
        length = min(int(4 ** chance.uniform(0, 2.6)), longest)
        prompt = "".join(chance.choice(WORDS) for _ in range(length))
        made.append(Ask(prompt, int(2 ** chance.uniform(3, 7)), seed, chance.random() < 0.7))
    return made


@dataclass
class Seen:
    """What a client saw."""

    kind: int
    text: str = ""
    finished: bool = False
    hung_up: bool = False
    first: float | None = None
    between: list[float] = field(default_factory=list)


class Clock:
    """Notes when pieces come."""

    def __init__(self, seen: Seen) -> None:
        self.seen, self.last, self.began = seen, 0.0, time.perf_counter()

    def piece(self) -> None:
        now = time.perf_counter()
        if self.seen.first is None:
            self.seen.first = now - self.began
        else:
            self.seen.between.append(now - self.last)
        self.last = now


async def over_http(
    url: str, name: str, key: str, kind: int, ask: Ask, patience: int | None, seen: Seen
) -> None:
    """One request; a client with `patience` hangs up after so many pieces, or so many hundredths of a second."""
    parts = urlsplit(url)
    body = json.dumps(
        {
            "model": name, "prompt": ask.prompt, "max_tokens": ask.max_tokens, "seed": ask.seed, "temperature": 0.8,
            "stream": ask.stream, "top_p": 1.0,
        }
    ).encode()  # fmt: skip
    clock = Clock(seen)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 22)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
        writer.write(
            f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        if patience is not None and not ask.stream:
            try:
                await asyncio.wait_for(reader.read(1), patience / 100)
            except asyncio.TimeoutError:
                pass
            seen.hung_up = True
            return
        status = int((await reader.readline()).split()[1])
        if status != 200:
            raise RuntimeError(f"status {status}: {(await reader.read(2000))[-300:]!r}")
        pieces = 0
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                told = json.loads(line[6:])
                if "error" in told:
                    raise RuntimeError(told["error"])
                seen.text += told["choices"][0]["text"]
                clock.piece()
                pieces += 1
                if patience is not None and pieces >= patience:
                    seen.hung_up = True
                    return
            elif line.startswith(b"data: [DONE]"):
                seen.finished = True
            elif line.startswith(b"{"):
                seen.text = json.loads(line)["choices"][0]["text"]
                seen.finished = True
                clock.piece()
        if not seen.finished:
            raise RuntimeError("the answer has no end")
    finally:
        writer.close()


async def in_process(model: Any, kind: int, ask: Ask, patience: int | None, seen: Seen) -> None:
    """The same in this process."""
    clock = Clock(seen)
    options = {"max_tokens": ask.max_tokens, "seed": ask.seed, "temperature": 0.8, "top_p": 1.0, "top_k": 0}
    if not ask.stream:
        whole = model.generate_async(ask.prompt, **options)
        try:
            got = await asyncio.wait_for(whole, None if patience is None else patience / 100)
        except asyncio.TimeoutError:
            seen.hung_up = True
            return
        seen.text, seen.finished = got.text, True
        clock.piece()
        return
    pieces = 0
    async with model.stream_async(ask.prompt, **options) as stream:
        async for piece in stream:
            seen.text += piece.text
            if piece.text or piece.finish:
                clock.piece()
                pieces += 1
            if patience is not None and pieces >= patience:
                seen.hung_up = True
                return
    seen.finished = True


async def crowd(one: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Clients that ask again and again until the time is over."""
    kinds, began, all_seen, faults = asks(args.longest), time.perf_counter(), [], []
    seconds = args.seconds

    async def client(number: int) -> None:
        chance = random.Random(number)
        while time.perf_counter() - began < seconds and not faults:
            kind = chance.randrange(len(kinds))
            patience = chance.randint(1, 40) if chance.random() < 1 / 3 else None
            seen = Seen(kind)
            try:
                await one(kind, kinds[kind], patience, seen)
            except Exception as error:
                faults.append(f"{type(error).__name__}: {error}")
            all_seen.append(seen)

    async def progress() -> None:
        while True:
            await asyncio.sleep(10)
            done = time.perf_counter() - began
            print(
                f"\r{done:.0f} of {seconds:.0f} s, {len(all_seen)} requests",
                end="",
                file=sys.stderr,
                flush=True,
            )

    watching = asyncio.ensure_future(progress())
    await asyncio.gather(*(client(number) for number in range(args.connections)))
    watching.cancel()
    print(file=sys.stderr)
    return {
        "seconds": time.perf_counter() - began,
        "faults": faults,
        "seen": [asdict(seen) for seen in all_seen],
    }


async def generated(url: str) -> float | None:
    """The tokens that a server has generated, if it tells."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
    for line in (await reader.read()).decode().splitlines():
        if line.startswith("vllm:generation_tokens_total"):
            return float(line.rsplit(" ", 1)[1])
    return None


async def serve(args: argparse.Namespace) -> dict[str, Any]:
    before = await generated(args.target)

    async def one(kind: int, ask: Ask, patience: int | None, seen: Seen) -> None:
        await over_http(args.target, args.model, args.key, kind, ask, patience, seen)

    told = await crowd(one, args)
    after = await generated(args.target)
    told["tokens"] = None if before is None or after is None else after - before
    return told


async def direct(args: argparse.Namespace) -> dict[str, Any]:
    import welm

    model = welm.Model(args.target, threads=args.threads)
    told = await crowd(lambda *given: in_process(model, *given), args)
    told["tokens"] = model.stats().completion_tokens
    return told


def check(args: argparse.Namespace) -> int:
    """Every finished answer against the same request alone."""
    import welm

    model = welm.Model(args.target, threads=args.threads, prefix_cache=False)
    kinds, alone, wrong, compared = asks(args.longest), {}, 0, 0
    for seen in json.loads(Path(args.more[0]).read_text())["seen"]:
        if not seen["finished"]:
            continue
        ask = kinds[seen["kind"]]
        if seen["kind"] not in alone:
            got = model.generate(
                ask.prompt, max_tokens=ask.max_tokens, seed=ask.seed, temperature=0.8, top_p=1, top_k=0
            )
            alone[seen["kind"]] = got.text
        compared += 1
        wrong += seen["text"] != alone[seen["kind"]]
    print(f"{compared} finished answers of {len(alone)} kinds, {wrong} differ from the same request alone")
    return int(wrong > 0 or compared == 0)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(int(q * len(values)), len(values) - 1)] if values else float("nan")


def report(args: argparse.Namespace) -> int:
    runs = {Path(path).stem: json.loads(Path(path).read_text()) for path in [args.target, *args.more]}
    print(
        "| | finished | hung up | failed | answers/s | tokens/s | first p50 | first p99 | between p50 | between p99 |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    drawn = {}
    for name, run in runs.items():
        streamed = [seen for seen in run["seen"] if asks()[seen["kind"]].stream]
        first = [seen["first"] for seen in streamed if seen["first"] is not None]
        between = [gap for seen in streamed for gap in seen["between"]]
        drawn[name] = (first, between)
        finished = sum(seen["finished"] for seen in run["seen"])
        rate = f"{run['tokens'] / run['seconds']:.0f}" if run.get("tokens") else "-"
        cells = [
            finished, sum(seen["hung_up"] for seen in run["seen"]), len(run["faults"]),
            f"{finished / run['seconds']:.2f}", rate,
            *(f"{quantile(values, q) * 1000:.0f} ms" for values in (first, between) for q in (0.5, 0.99)),
        ]  # fmt: skip
        print("|", " | ".join([name, *map(str, cells)]), "|")
    if args.plot:
        plot(drawn, args.plot)
    return 0


def plot(drawn: dict[str, tuple[list[float], list[float]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, which, title in zip(axes, (0, 1), ("first token", "between tokens"), strict=True):
        for name, values in drawn.items():
            ordered = sorted(values[which])
            axis.plot(
                [v * 1000 for v in ordered],
                [100 * (n + 1) / len(ordered) for n in range(len(ordered))],
                label=name,
            )
        axis.set(
            xscale="log", xlabel="ms", ylabel="% of clients" if which == 0 else "% of tokens", title=title
        )
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("serve", "direct", "check", "report"))
    parser.add_argument("target")
    parser.add_argument("more", nargs="*")
    parser.add_argument("--model", default="welm")
    parser.add_argument("--key", default="none")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--longest", type=int, default=40)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out")
    parser.add_argument("--plot")
    args = parser.parse_args()
    if args.what in ("check", "report"):
        return check(args) if args.what == "check" else report(args)
    told = asyncio.run(serve(args) if args.what == "serve" else direct(args))
    Path(args.out).write_text(json.dumps(told))
    print(f"{len(told['seen'])} requests in {told['seconds']:.0f} s; failed: {told['faults'][:3]}")
    return int(bool(told["faults"]))


if __name__ == "__main__":
    sys.exit(main())
