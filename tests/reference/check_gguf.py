"""Runs the tiny GGUF fixtures with llama.cpp, and compares with the results of transformers.

    pip install llama-cpp-python safetensors numpy
    python tests/reference/check_gguf.py [--fixtures tests/fixtures]

llama.cpp rounds activations (to 8 bits for quantised matrices), and takes GELU from a float16 table of its tanh
form. So only the float32 Llama agrees closely. This checks that layout, names and metadata of the files are as
llama.cpp expects them.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from llama_cpp_run import LlamaCpp, log_softmax


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--fixtures", type=Path, default=here.parent / "fixtures")
    args = parser.parse_args()
    text = json.loads((args.fixtures / "expected.json").read_text())["gguf_text"]
    for folder in sorted(args.fixtures.glob("gguf_*")):
        expected = load_file(folder / "expected.safetensors")
        prompt = expected["prompt"].tolist()
        model = LlamaCpp(folder / "model.gguf", n_ctx=128, kv_f32=True)
        assert model.encode(text["text"]) == text["ids"]
        logprobs = log_softmax(model.logits(prompt))
        want = expected["logprobs"].astype(np.float64)
        kl = (np.exp(want) * (want - logprobs)).sum(-1)
        whole = prompt + expected["greedy"].tolist()
        predicted = model.logits(whole)[len(prompt) - 1:-1].argmax(-1)
        same = int((predicted == expected["greedy"]).sum())
        print(f"{folder.name:18} max |logprob difference| {np.abs(want - logprobs).max():.2e}"
              f"  mean KL {kl.mean():.2e}  greedy {same}/{len(predicted)}")


if __name__ == "__main__":
    main()
