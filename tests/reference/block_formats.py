"""Writes blocks of every coded GGUF format, and the values that gguf's Python gives them.

    python tests/reference/block_formats.py [--out tests/fixtures]

Needs numpy, gguf and safetensors. Half of the blocks have random bits and scales of a usual size. The others have the
largest and the smallest scales that are finite."""

import argparse
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.numpy import save_file

# name -> the offsets of the f16 scales in a block, in bytes. MXFP4 has a one-byte exponent instead.
FORMATS = {
    "Q5_0": [0], "Q5_1": [0, 2], "IQ4_NL": [0], "MXFP4": [],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0],
}
SCALES = [0.0127, -0.31, 65504.0, 2.0 ** -24, -65504.0, 0.0]
EXPONENTS = [120, 124, 0, 1, 252, 2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("tests/fixtures"))
    out = parser.parse_args().out
    random = np.random.default_rng(20)
    tensors = {}
    for name, places in FORMATS.items():
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (len(SCALES), size), dtype=np.uint8)
        for i in range(len(SCALES)):
            for place, step in zip(places, (0, 1)):
                scale = np.float16(SCALES[(i + step) % len(SCALES)])
                blocks[i, place:place + 2] = np.frombuffer(scale.tobytes(), np.uint8)
            if name == "MXFP4":
                blocks[i, 0] = EXPONENTS[i]
        tensors[f"{name}.blocks"] = blocks
        tensors[f"{name}.values"] = gguf.quants.dequantize(blocks.reshape(-1), kind).reshape(len(SCALES), values)
    save_file(tensors, out / "block_formats.safetensors", {"about": "tests/reference/block_formats.py"})


main()
