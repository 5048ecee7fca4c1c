"""What the compiler makes of the CUDA kernels: registers, shared memory, spills, and the instructions that matter.

    WELM_EMULATOR_LOG=/tmp/launches cargo test -p welm-tests --test kernels
    python3 benches/resources.py --launches /tmp/launches > benches/record/cuda-kernels.md

Shared memory is dynamic, so that the compiler does not know it: it is what the launchers asked of the emulator.

Needs nvcc, cuobjdump and nvdisasm, on PATH or beside the nvcc of the active Python environment (PyPI packages
nvidia-cuda-nvcc, nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm). No GPU: this is what a kernel is compiled to, not how
fast it runs. Exits with 1 if a kernel spills registers, or if a prompt kernel of sm_90a has no warpgroup products.
"""

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path

CUDA = Path(__file__).resolve().parent.parent / "welm-kernels" / "cuda"
# Tensor cores by generation (HGMMA, IGMMA: warpgroups), the copy engine, asynchronous copies, spills.
INSTRUCTIONS = ["HGMMA", "IGMMA", "HMMA", "IMMA", "UTMALDG", "UBLKCP", "LDGSTS", "LDSM", "LDL", "STL"]


def tool(name):
    beside = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin" / name
    found = shutil.which(name) or (str(beside) if beside.exists() else None)
    if not found:
        sys.exit(f"{name} was not found; see the head of this file")
    return found


def compile_file(source, arch, cubin):
    """Registers, bytes of stack and of spills for each kernel."""
    code = f"arch=compute_{arch},code=sm_{arch}"
    command = [tool("nvcc"), "-std=c++17", "-O3", "-I", CUDA, "-cubin", f"-gencode={code}", "-Xptxas", "-v"]
    report = subprocess.run([*command, source, "-o", cubin], check=True, capture_output=True, text=True).stderr
    kernels, name = {}, None
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match[1]
            kernels[name] = {}
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            kernels[name] |= {"stack": int(match[1]), "spills": int(match[2])}
        elif match := re.search(r"Used (\d+) registers", line):
            kernels[name]["registers"] = int(match[1])
    return kernels


def count_instructions(cubin):
    """How often each of INSTRUCTIONS stands in each kernel."""
    listing = subprocess.run([tool("cuobjdump"), "-sass", cubin], check=True, capture_output=True, text=True).stdout
    counts, name = {}, None
    for line in listing.splitlines():
        if match := re.search(r"Function : (\w+)", line):
            name = match[1]
            counts[name] = Counter()
        elif match := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)", line):
            if match[1] in INSTRUCTIONS:
                counts[name][match[1]] += 1
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["80", "90a"])
    parser.add_argument("--launches", type=Path, required=True)
    arguments = parser.parse_args()
    shared = Counter()
    for line in arguments.launches.read_text().splitlines():
        name, _, size = line.split()
        shared[name] = max(shared[name], int(size))
    version = subprocess.run([tool("nvcc"), "--version"], check=True, capture_output=True, text=True).stdout
    release = re.search(r"V([\d.]+)", version)[1]
    print("# What the CUDA kernels are compiled to\n")
    print(f"nvcc {release}, by `benches/resources.py`. Static: nothing here was run on a GPU.\n")
    print("Registers are per thread, before `setmaxnreg` moves them between the warpgroups of a block; shared memory is")
    print("in bytes per block, the most that the tests asked for.\n")
    bad = []
    for arch in arguments.arch:
        print(f"## sm_{arch}\n")
        print("| kernel | registers | shared | stack | spills | instructions |\n|---|---|---|---|---|---|")
        for source in sorted(CUDA.glob("*.cu")):
            with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
                kernels = compile_file(source, arch, cubin.name)
                counts = count_instructions(cubin.name)
            for name, kernel in sorted(kernels.items()):
                found = ", ".join(f"{counts[name][i]} {i}" for i in INSTRUCTIONS if counts[name][i])
                sizes = f"{kernel['registers']} | {shared[name]} | {kernel['stack']} | {kernel['spills']}"
                print(f"| {name} | {sizes} | {found} |")
                if kernel["spills"] or ("_sm90" in name and not re.search("HGMMA|IGMMA", found)):
                    bad.append(f"{name} on sm_{arch}")
        print()
    for kernel in bad:
        print(f"not as it should be: {kernel}", file=sys.stderr)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
