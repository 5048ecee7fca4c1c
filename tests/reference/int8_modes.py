"""Measures how exact each int8 format of weights and activations is, with fake quantisation in float32.

    pip install gguf torch transformers
    python tests/reference/int8_modes.py SmolLM2-135M-Instruct.Q4_1.gguf SCRATCH [ROW ...]

The model is dequantised and runs in transformers in float32 over the windows of running_text.json, each
from an empty cache. Its results are the truth. Each ROW runs it again with weights and inputs of the layers'
matrices rounded as the row says. (The embedding, which is also the output matrix, is not rounded.) Accumulation,
attention, cache, norms and residuals stay float32, so a row shows the effect of the format only. The figures
are those of truth.py. Each row is added to SCRATCH/table.md and SCRATCH/results.jsonl at once. Rows that are
already there are skipped.

A row is a list of words, in any order:

    w32 w64 w128 wrow     weights int8 in groups of this many along K, or one scale for the row;
                          scale = max / 127 as float16. Without: float32.
    a32 a64 a128 atok     the same for activations, with float32 scales. Without: bfloat16.
    stored32              the weights were rounded as by w32 before (a model stored as int8)
    wbf16                 weights times scale rounded to bfloat16 (a bfloat16 product: W8A16)
    h32 h64 h128 ...      both are rotated along K by a Hadamard matrix, in blocks of this size
    hmax                  the same with the largest power of two that divides K
    hall                  one Hadamard matrix over all of K (Paley times Sylvester)
    p64                   the same in blocks of 64 channels that are K / 64 apart
    hp64                  h64, then p64
    signs signs2 ...      fixed random signs before the rotation; the number is the seed
    rbf16                 activations without a group are also rounded to bfloat16 after the rotation
    smooth                SmoothQuant, alpha 0.5, from the first window's maxima
    gains                 the same without data: the weights of the norm before are used as the maxima
                          (1 if there is no norm before)
    qkv: o: gate: down:   the words after it are for the inputs of these matrices only
                          (gate: means gate and up)

Activations are first rounded to bfloat16, because a kernel reads them so. Then they are smoothed, rotated and
quantised in float32. Weights are smoothed and rotated from their float32 values. Rounding is to nearest even.

"rest" is the mean without the position of the largest value. One position (window 5, second token) is so
sensitive that its value is anything between 0.01 and 7 nats with any rounding, which is up to 0.0015 of the mean.
"step" is the smaller of the two group sizes: how many values along K can be summed in int32 before a scale
must be applied.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gguf_models import llama_from_file

INPUTS = {  # kind of input -> the matrices that read it
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
ROWS = [
    "abf16", "w32", "w32 wbf16",  # W8A16
    "w32 a32", "w32 atok", "wrow atok", "w128 a128", "w64 a64", "wrow a128", "wrow a64",
    *(f"{row} {rotation}" for rotation in ("h64", "h32")
      for row in ("w32 atok", "wrow atok", "w128 a128", "wrow a128", "wrow a64")),
    *(f"{row} {rotation}" for rotation in ("p64", "hp64", "hmax", "hall")
      for row in ("wrow atok", "w128 a128")),
    "w128 atok h64", "w256 a256 h64", "w512 a512 h64", "wrow a256 h64",
    "wrow atok h64 signs", "wrow atok h64 signs2", "wrow atok hall signs",
    # which matrices matter
    "wrow atok h64 o: w32 a32 down: w32 a32", "wrow atok h64 qkv: w32 a32 gate: w32 a32",
    "wrow atok h64 down: w128 a128 h64", "wrow atok o: wrow atok h64 down: wrow atok h64",
    "wrow smooth", "wrow atok smooth", "wrow a128 smooth", "wrow atok h64 smooth",
    "wrow atok h64 smooth signs", "wrow atok h64 smooth o: wrow atok h64 down: wrow atok h64",
    "wrow atok h64 gains",
    # a model kept as int8 in groups of 32; decode from the same weights; one side alone
    "wrow atok h64 stored32", "w128 a128 h64 stored32", "wrow atok h64 smooth stored32",
    "wrow h64 rbf16 wbf16", "wrow h64 smooth rbf16 wbf16", "wrow h64", "atok h64",
]


def sylvester(n):
    """The Hadamard matrix (n, n) with entries +-1; n is a power of two."""
    h = torch.ones(1, 1)
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


def paley(q):
    """A Hadamard matrix of order q + 1, or 2 q + 2 if q is 1 modulo 4. q: an odd prime."""
    squares = {i * i % q for i in range(1, q)}
    character = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, q)])
    core = torch.stack([character.roll(i) for i in range(q)]).T
    s = torch.zeros(q + 1, q + 1)
    s[0, 1:], s[1:, 0], s[1:, 1:] = 1, 1 if q % 4 == 1 else -1, core
    eye = torch.eye(q + 1)
    if q % 4 == 3:
        return s + eye
    return torch.kron(s, torch.tensor([[1.0, 1], [1, -1]])) + torch.kron(eye, torch.tensor([[1.0, -1], [-1, -1]]))


def hadamard(n):
    """An orthogonal matrix (n, n) with entries +-1 / sqrt(n)."""
    power = n & -n
    for order, prime in ((1, None), (12, 11), (20, 19), (36, 17)):
        if n % order == 0 and (n // order) & (n // order - 1) == 0:
            h = torch.kron(paley(prime), sylvester(n // order)) if prime else sylvester(n)
            assert torch.equal(h @ h.T, n * torch.eye(n))
            return h / n ** 0.5
    raise ValueError(f"no Hadamard matrix of order {n} = {n // power} * {power}")


def in_blocks(x, block):
    """Multiplies each block along K of x (..., K) by a Hadamard matrix."""
    assert x.shape[-1] % block == 0, f"K {x.shape[-1]} is not a multiple of {block}"
    return (x.reshape(*x.shape[:-1], -1, block) @ hadamard(block)).reshape(x.shape)


def spread(x, block):
    """Reorders channels so that channels that are K / block apart become neighbours."""
    return x.reshape(*x.shape[:-1], block, -1).swapaxes(-1, -2).reshape(x.shape)


def rotate(x, rotation, signs):
    """Rotates x (..., K) along K, as the words `rotation` and `signs` (0: none) say."""
    k = x.shape[-1]
    if signs:
        generator = torch.Generator().manual_seed(k * signs)
        x = x * (torch.randint(0, 2, (k,), generator=generator) * 2 - 1)
    if rotation is None:
        return x
    if rotation == "hmax":
        return in_blocks(x, k & -k)
    if rotation == "hall":
        return in_blocks(x, k)
    block = int(rotation.lstrip("hp"))
    if rotation[0] == "h":
        x = in_blocks(x, block)
    return in_blocks(spread(x, block), block) if "p" in rotation else x


def int8(x, group, f16_scale):
    """Rounds x (..., K) to int8 and back, with one scale for each `group` values along K (0: for all of K)."""
    k = x.shape[-1]
    group = group or k
    x = nn.functional.pad(x, (0, -k % group)).unflatten(-1, (-1, group))
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale = scale.half().float() if f16_scale else scale
    q = (x / scale.clamp_min(torch.finfo(torch.float32).tiny)).round_().clamp_(-127, 127)
    return (q * scale).flatten(-2)[..., :k]


class Format:
    """The words for the matrices that read one kind of activations."""

    def __init__(self, words):
        self.w_group = self.a_group = self.rotation = None
        self.signs = 0
        self.w_bf16, self.stored32 = "wbf16" in words, "stored32" in words
        self.a_bf16 = "rbf16" in words
        self.smooth = next((word for word in ("smooth", "gains") if word in words), None)
        for word in words:
            if word in ("abf16", "wbf16", "rbf16", "stored32", "smooth", "gains"):
                continue
            if word.startswith("signs"):
                self.signs = int(word[5:] or 1)
                continue
            size = {"row": 0, "tok": 0}.get(word[1:])
            if word[0] == "w":
                self.w_group = int(word[1:]) if size is None else size
            elif word[0] == "a":
                self.a_group = int(word[1:]) if size is None else size
            else:
                self.rotation = word

    def step(self):
        """The smaller of the two group sizes. 0: all of K. None: no int8 product."""
        if self.w_group is None or self.a_group is None:
            return None
        return min((g for g in (self.w_group, self.a_group) if g), default=0)


def parse(row):
    """Parses a row to {kind of input: Format}."""
    own, common, words = {}, [], None
    for word in row.split():
        if word.endswith(":"):
            words = own.setdefault(word[:-1], [])
        else:
            (common if words is None else words).append(word)
    assert set(own) <= set(INPUTS), row
    return {kind: Format(own.get(kind, common)) for kind in INPUTS}


class Rounded(nn.Module):
    """A matrix whose weights and inputs are rounded as `format` says. None: not rounded."""

    def __init__(self, linear, kind):
        super().__init__()
        assert linear.bias is None
        self.weight, self.kind = linear.weight.detach(), kind  # (N, K) f32
        self.format = None
        self.smoothers = {}  # {"smooth" or "gains": (K) f32}
        self.maxima = None  # (K) f32, of the magnitudes of the inputs of the last calibrating run
        self.calibrate = False

    def set(self, format):
        self.format, self.ready = format, self.weight
        if format is None:
            return
        w = int8(self.weight, 32, f16_scale=True) if format.stored32 else self.weight
        if format.smooth:
            w = w * self.smoothers[format.smooth]
        w = rotate(w, format.rotation, format.signs)
        if format.w_group is not None:
            w = int8(w, format.w_group, f16_scale=True)
        self.ready = w.bfloat16().float() if format.w_bf16 else w

    def forward(self, x):
        if self.calibrate:
            self.maxima = x.abs().amax((0, 1))
        if self.format is not None:
            x = x.bfloat16().float()
            if self.format.smooth:
                x = x / self.smoothers[self.format.smooth]
            x = rotate(x, self.format.rotation, self.format.signs)
            if self.format.a_group is not None:
                x = int8(x, self.format.a_group, f16_scale=False)
            elif self.format.a_bf16:
                x = x.bfloat16().float()
        return nn.functional.linear(x, self.ready)


def replace(model):
    """Replaces every matrix of the layers by a Rounded. Returns [(layer, kind, Rounded)]."""
    found = []
    for layer in model.model.layers:
        for kind, names in INPUTS.items():
            for name in names:
                parent = layer.self_attn if kind in ("qkv", "o") else layer.mlp
                rounded = Rounded(getattr(parent, name), kind)
                rounded.set(None)
                setattr(parent, name, rounded)
                found.append((layer, kind, rounded))
    return found


def set_smoothers(matrices):
    """Sets SmoothQuant's smoothers: max|x| ^ 0.5 / max|w| ^ 0.5 for each channel, or |gain| instead of max|x|.

    Matrices that read the same activations share them."""
    together = {}
    for layer, kind, rounded in matrices:
        together.setdefault((layer, kind), []).append(rounded)
    for (layer, kind), group in together.items():
        norm = {"qkv": layer.input_layernorm, "gate": layer.post_attention_layernorm}.get(kind)
        gains = torch.ones_like(group[0].maxima) if norm is None else norm.weight.detach().abs()
        w_maxima = torch.stack([r.weight.abs().amax(0) for r in group]).amax(0).clamp_min(1e-5)
        for rounded in group:
            rounded.smoothers = {
                name: (x_maxima.clamp_min(1e-5) / w_maxima).sqrt()
                for name, x_maxima in (("smooth", rounded.maxima), ("gains", gains))}


@torch.no_grad()
def logprobs(model, ids):
    """Yields the log-probabilities of each window, (window_len, vocab_size) f32. ids: (n_windows, window_len)"""
    for window in ids:
        hidden = model.model(input_ids=window[None], use_cache=False).last_hidden_state[0]
        yield model.lm_head(hidden).log_softmax(-1)


class Tally:
    """Collects, window by window, the results of one row and the truth."""

    def __init__(self):
        self.nll, self.kl, self.same_top1 = [], [], []

    def add(self, ids, logprobs, truth):
        self.nll.append(-logprobs[:-1].gather(1, ids[1:, None])[:, 0].double().numpy())
        self.kl.append((truth.exp() * (truth - logprobs)).sum(-1, dtype=torch.float64).numpy())
        self.same_top1.append((truth.argmax(-1) == logprobs.argmax(-1)).numpy())

    def summary(self, truth_nll, windows=slice(None)):
        nll, kl, same, base = (
            np.concatenate(x[windows]) for x in (self.nll, self.kl, self.same_top1, truth_nll))
        return {
            "ppl_ratio": round(float(np.exp(nll.mean() - base.mean())), 5),
            "mean_kl": round(float(kl.mean()), 6),
            "rest_kl": round(float((kl.sum() - kl.max()) / (len(kl) - 1)), 6),
            "median_kl": round(float(np.median(kl)), 6),
            "p99_kl": round(float(np.percentile(kl, 99)), 5),
            "max_kl": round(float(kl.max()), 4),
            "max_kl_at": [int(i) for i in divmod(int(kl.argmax()), len(self.kl[0]))],
            "top1": round(float(same.mean()), 4),
        }


HEAD = """| row | step | mean KL | rest | median | p99 | max | top-1 | ppl ratio | mean KL, windows 2-9 |
|---|---|---|---|---|---|---|---|---|---|
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("gguf", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--fixtures", type=Path, default=here.parent / "fixtures")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    table, results = args.scratch / "table.md", args.scratch / "results.jsonl"
    if not table.exists():
        table.write_text(HEAD)
        results.write_text("")
    done = {json.loads(line)["row"] for line in results.read_text().splitlines()}

    record = json.loads((args.fixtures / "running_text.json").read_text())
    ids = torch.tensor([window["ids"] for window in record["windows"]])
    model, _ = llama_from_file(args.gguf)
    matrices = replace(model)
    for _, _, rounded in matrices:
        rounded.calibrate = True
    truth = []
    for lines in logprobs(model, ids):
        truth.append(lines)
        if len(truth) == 1:
            set_smoothers(matrices)
            for _, _, rounded in matrices:
                rounded.calibrate = False
    truth_nll = [-t[:-1].gather(1, i[1:, None])[:, 0].double().numpy() for t, i in zip(truth, ids)]

    for row in args.rows:
        if row in done:
            continue
        start = time.monotonic()
        formats = parse(row)
        with torch.no_grad():
            for _, kind, rounded in matrices:
                rounded.set(formats[kind])
        tally = Tally()
        for window, lines, true_lines in zip(ids, logprobs(model, ids), truth):
            tally.add(window, lines, true_lines)
        r, last = tally.summary(truth_nll), tally.summary(truth_nll, slice(1, None))
        steps = [format.step() for format in formats.values()]
        step = "/".join(dict.fromkeys({0: "K", None: "-"}.get(s, str(s)) for s in steps))
        seconds = round(time.monotonic() - start, 1)
        with table.open("a") as out:
            out.write(f"| {row} | {step} | {r['mean_kl']:.5f} | {r['rest_kl']:.5f} | {r['median_kl']:.5f} | {r['p99_kl']:.5f} "
                      f"| {r['max_kl']:.3f} | {r['top1']:.4f} | {r['ppl_ratio']:.5f} | {last['mean_kl']:.5f} |\n")
        with results.open("a") as out:
            out.write(json.dumps({"row": row, **r, "last_windows": last, "seconds": seconds}) + "\n")
        print(row, r, seconds, flush=True)


if __name__ == "__main__":
    main()
