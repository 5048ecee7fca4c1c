"""Ctrl-C: the request is cancelled, and `KeyboardInterrupt` comes soon. Each test runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HEAD = """
import os, signal, sys, threading, time, welm
PROMPT = "床前明月光，"
LONG = {"max_tokens": 480, "n": 64, "ignore_eos": True}
sent = 0.0

def interrupt():
    global sent
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)

def soon(call, wait=0.1):
    # The quickest of up to twenty: a busy machine may delay any of them.
    late = []
    while not late or (late[-1] >= 0.1 and len(late) < 20):
        threading.Timer(wait, interrupt).start()
        try:
            call()
        except KeyboardInterrupt:
            late.append(time.monotonic() - sent)
        else:
            sys.exit("not interrupted")
    print(f"{late[-1] * 1e3:.1f} ms")
    assert late[-1] < 0.1, late

def at_rest(model):
    until = time.monotonic() + 20
    while (model.stats().open or model.stats().blocks_used) and time.monotonic() < until:
        time.sleep(0.001)
    assert (model.stats().open, model.stats().blocks_used) == (0, 0)
"""


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", HEAD + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "call",
    [
        "model.generate(PROMPT, **LONG)",
        "model.generate([PROMPT] * 8, **LONG)",
        "list(model.stream(PROMPT, **LONG))",
        "list(small.stream(PROMPT, **LONG))",
    ],
)
def test_generating(call: str) -> None:
    run(f"""
model = welm.Model()
small = welm.Model(max_running=1)  # most wait
soon(lambda: {call})
at_rest(model)
at_rest(small)
assert model.generate(PROMPT, max_tokens=5).usage.completion_tokens == 5
""")


def test_scoring() -> None:
    run("""
model = welm.Model()
soon(lambda: model.score("春" * 300, [str(i) for i in range(20_000)]))
at_rest(model)
assert len(model.score(PROMPT, ["疑"])) == 1
""")


def test_logits() -> None:
    run("""
model = welm.Model(chunk_tokens=1)
model.logits("春")  # imports numpy, which cannot be interrupted and tried again
soon(lambda: [model.logits("春" * 480) for _ in range(100)])
at_rest(model)
""")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights that takes a while to load, or to quantise."""
    folder = tmp_path_factory.mktemp("large")
    dim, hidden, layers, vocab = 1024, 2816, 12, 4096
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": vocab,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [vocab, dim], "model.norm.weight": [dim]}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{x}_proj.weight": [dim, dim] for x in "qkvo"}
        shapes |= {f"{at}mlp.{x}_proj.weight": [hidden, dim] for x in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = [dim, hidden]
        shapes |= {f"{at}{x}_layernorm.weight": [dim] for x in ("input", "post_attention")}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    random = np.random.default_rng(0)
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            file.write((random.standard_normal(int(np.prod(shape)), np.float32) * 0.02).tobytes())
    return folder


def test_loading(large: Path) -> None:
    run(
        """
started = time.monotonic()
welm.Model(sys.argv[1], dtype="int8", threads=1)
took = time.monotonic() - started
soon(lambda: [welm.Model(sys.argv[1], dtype="int8", threads=1) for _ in range(20)], wait=took / 2)
try:
    welm.Model(sys.argv[1], progress=lambda *_: signal.raise_signal(signal.SIGINT))
except KeyboardInterrupt:
    pass
else:
    sys.exit("not interrupted")
""",
        large,
    )


def test_quantizing(large: Path, tmp_path: Path) -> None:
    run(
        """
soon(lambda: [welm.quantize(sys.argv[1], f"{sys.argv[2]}/{i}") for i in range(20)])
assert not [name for _, _, names in os.walk(sys.argv[2]) for name in names if "partial" in name]
""",
        large,
        tmp_path,
    )


def test_any_handler_that_raises_ends_the_call() -> None:
    run("""
class Late(Exception):
    pass

def late(*_):
    raise Late

model = welm.Model()
signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try:
    model.generate(PROMPT, **LONG)
except Late:
    pass
else:
    sys.exit("not raised")
at_rest(model)
# A signal handler that does not raise changes nothing.
signal.signal(signal.SIGALRM, lambda *_: None)
want = model.generate(PROMPT, max_tokens=100, n=8, seed=1, ignore_eos=True)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.005)
got = model.generate(PROMPT, max_tokens=100, n=8, seed=1, ignore_eos=True)
signal.setitimer(signal.ITIMER_REAL, 0)
assert got.choices == want.choices
""")


def test_asyncio() -> None:
    run("""
import asyncio
model = welm.Model()

async def batch():
    await model.generate_async([PROMPT] * 8, **LONG)

soon(lambda: asyncio.run(model.generate_async(PROMPT, **LONG)), wait=0.2)
soon(lambda: asyncio.run(batch()), wait=0.2)
at_rest(model)
""")
