"""PyTorch on the shapes that welm-bench-gpu has measured, in the same run, and both in one table.

    python3 peer.py bench.jsonl [--record record.json] [--table table.md] [--device 0]
                                [--peer torch.json | --no-torch] [--built-from TEXT]

Measures the limits of the device (a large copy, the largest int8 and bf16 matrix products), attention by every backend
of scaled_dot_product_attention that takes the shape, and products by torch._int_mm and torch.matmul. Random operands:
with zeros a device draws less power and seems faster than it is. Launches are replayed as a CUDA graph where PyTorch
can record them, and operands that memory bounds are larger than the L2 cache, as in the benchmark.

--peer takes these figures from a file, as --save-peer writes it. --record is for benches/record.

No GPU has run the measuring half of this script yet.
"""

import argparse
import json
import subprocess
import sys

COLD_BYTES = 384 << 20  # larger than any L2 cache
SECONDS = 0.05  # of a sample
SAMPLES = 7
# The goals: the fraction that each kernel should reach, of a limit or of PyTorch's best time.
AIMS = {
    "attention_decode": "0.85 of copy",
    "product few": "0.85 of copy",
    "attention_prefill": "1 of PyTorch, at first 0.7",
    "product int8": "0.8 of PyTorch",
    "model_decode": "0.75 of copy",
    "model_prefill": "0.5 of int8",
}


# ---- measuring --------------------------------------------------------------------------------------------


class Clock:
    """Times of launches on a device, in microseconds."""

    def __init__(self, torch):
        self.torch = torch

    def replayed(self, launches, sets):
        """The launches as one CUDA graph, or one by one if PyTorch cannot record them."""
        torch = self.torch
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(launches):
                    self.launch(i % sets)
            return graph.replay
        except RuntimeError:
            torch.cuda.synchronize()

            def one_by_one():
                for i in range(launches):
                    self.launch(i % sets)

            return one_by_one

    def seconds(self, f, n):
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(n):
            f()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def us(self, launch, sets=1):
        """The median time of launch(set), over all sets in turn."""
        self.launch = launch
        for i in range(sets):
            launch(i)
        self.torch.cuda.synchronize()
        one = self.seconds(lambda: [launch(i) for i in range(sets)], 1) / sets
        passes = max(1, min(256 // sets, int(SECONDS / 4 / one / sets) + 1))
        replay = self.replayed(passes * sets, sets)
        one = self.seconds(replay, 1)
        n = max(1, int(SECONDS / one) + 1)
        self.seconds(replay, n)  # the clocks of an idle device are low
        samples = sorted(self.seconds(replay, n) for _ in range(SAMPLES))
        return samples[SAMPLES // 2] / (n * passes * sets) * 1e6


def limits(torch, clock):
    """GB/s of a copy, reads and writes together; T/s of the largest products."""
    best = {}

    def keep(name, rate):
        best[name] = max(rate, best.get(name, 0))

    for n_bytes in [256 << 20, 1 << 30, 4 << 30]:
        try:
            a = torch.zeros(n_bytes, dtype=torch.uint8, device="cuda")
            b = torch.empty_like(a)
        except torch.cuda.OutOfMemoryError:
            break
        keep("copy_gb_per_s", 2 * n_bytes / clock.us(lambda _: b.copy_(a)) / 1e3)
        del a, b
    for m, k, n in [(4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192)]:
        try:
            for name, multiply in [("bf16_tera_per_s", bf16_product), ("int8_tera_per_s", int8_product)]:
                keep(name, 2 * m * k * n / clock.us(multiply(torch, m, k, n)) / 1e6)
        except torch.cuda.OutOfMemoryError:
            break
    return best


def bf16_product(torch, m, k, n):
    a, b = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for shape in [(m, k), (n, k)])
    return lambda _: a @ b.T


def int8_product(torch, m, k, n):
    a, b = (torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda") for shape in [(m, k), (n, k)])
    return lambda _: torch._int_mm(a, b.T)


def products(torch, clock, sizes):
    m, k, n = sizes["n"], sizes["cols"], sizes["rows"]
    return attempts(
        torch,
        {
            "_int_mm": lambda: clock.us(int8_product(torch, m, k, n)),
            "bf16 matmul": lambda: clock.us(bf16_product(torch, m, k, n)),
        },
    )


def attention(torch, clock, sizes):
    """Causal attention of a prompt, or of one token of each of some sequences over all keys."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    heads, kv_heads, width = sizes["n_heads"], sizes["n_kv_heads"], sizes["head_dim"]
    prompt = "n" in sizes
    batch = sizes.get("batch", 1)
    n_q, n_k = (sizes["n"], sizes["n"]) if prompt else (1, sizes["kv_len"])
    n_bytes = 4 * batch * kv_heads * n_k * width
    sets = 1 if prompt else max(1, min(256, -(-COLD_BYTES // n_bytes)))

    def random(n_heads, n):
        return torch.randn(batch, n_heads, n, width, dtype=torch.bfloat16, device="cuda")

    def measure(backend, repeat):
        operands = []
        for _ in range(sets):
            q, k, v = random(heads, n_q), random(kv_heads, n_k), random(kv_heads, n_k)
            if repeat:
                k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
            operands.append((q, k, v))
        grouped = {"enable_gqa": True} if heads != kv_heads and not repeat else {}

        def launch(i):
            torch.nn.functional.scaled_dot_product_attention(*operands[i], is_causal=prompt, **grouped)

        with sdpa_kernel(backend):
            return clock.us(launch, sets)

    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    if n_q * n_k <= 4096 * 4096:  # it writes all scores
        backends["math"] = SDPBackend.MATH
    tries = {}
    for name, backend in backends.items():
        tries[f"sdpa {name}"] = lambda backend=backend: measure(backend, False)
        if heads != kv_heads:
            # Keys and values are repeated first, for backends without grouped heads. They read more bytes than needed.
            tries[f"sdpa {name}, repeated"] = lambda backend=backend: measure(backend, True)
    return attempts(torch, tries)


def attempts(torch, tries):
    """Times of the backends that run, and error messages of the others."""
    us, failed = {}, {}
    for name, measure in tries.items():
        try:
            us[name] = round(measure(), 3)
        except (RuntimeError, TypeError, ValueError) as error:  # OutOfMemoryError is a RuntimeError
            failed[name] = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        torch.cuda.empty_cache()
    return {"us": us, "failed": failed}


def measure_torch(results, device):
    import torch

    torch.cuda.set_device(device)
    torch.manual_seed(1)
    clock = Clock(torch)
    peer = {"torch": torch.__version__, "device": torch.cuda.get_device_name(device), "kernels": []}
    peer |= limits(torch, clock)
    measured = []
    for result in results:
        key = (result["group"], result["sizes"])
        if key in measured or "skipped" in result:
            continue
        if result["group"].startswith("attention_"):
            figures = attention(torch, clock, result["sizes"])
        elif result["group"] == "product" and result["limit"] != "copy":
            figures = products(torch, clock, result["sizes"])
        else:
            continue
        measured.append(key)
        peer["kernels"].append({"group": key[0], "sizes": key[1], **figures})
    return peer


# ---- merging ----------------------------------------------------------------------------------------------


def merge(device, results, peer):
    """One record: the device, its limits, and each result compared with them and with PyTorch's."""
    copy = max(device["copy_gb_per_s"], peer.get("copy_gb_per_s", 0))
    rates = {
        "copy_gb_per_s": copy,
        "bf16_tera_per_s": peer.get("bf16_tera_per_s"),
        "int8_tera_per_s": peer.get("int8_tera_per_s"),
    }
    merged = []
    for result in results:
        result = dict(result)
        result.pop("record")
        result.pop("of_copy", None)  # of one of two copies; both may be slower than the other
        if "gb_per_s" in result:
            result["of_copy"] = round(result["gb_per_s"] / copy, 4)
        for kind in ("bf16", "int8"):
            limit = rates[f"{kind}_tera_per_s"]
            if limit and "tera_per_s" in result and (kind == result["limit"] or result["group"] == "model_prefill"):
                result[f"of_{kind}"] = round(result["tera_per_s"] / limit, 4)
        key = (result["group"], result["sizes"])
        found = [k for k in peer.get("kernels", []) if (k["group"], k["sizes"]) == key]
        if found and "us" in result:
            result["failed"] = found[0]["failed"]
            result["peers"] = found[0]["us"]
            # Products are compared with products of their own kind, attention with the fastest.
            kind = {"int8": "_int_mm", "bf16": "bf16 matmul"}[result["limit"]] if key[0] == "product" else None
            rivals = {name: us for name, us in found[0]["us"].items() if kind in (None, name)}
            if rivals:
                best = min(rivals, key=rivals.get)
                result["peer"], result["peer_us"] = best, rivals[best]
                result["of_peer"] = round(rivals[best] / result["us"], 4)
        if aim := AIMS.get(aim_key(result)):
            result["aim"] = aim
        merged.append(result)
    described = {key: value for key, value in device.items() if key not in ("record", "copy_gb_per_s")}
    return {"device": described, "torch": peer.get("torch"), "limits": rates, "results": merged}


def aim_key(result):
    if result["group"] != "product":
        return result["group"]
    if 16 < result["sizes"]["n"] <= 64:
        return None  # neither a single weight read nor a large product
    return {"copy": "product few", "int8": "product int8"}.get(result["limit"])


def table(record):
    """Markdown."""
    device, rates = record["device"], record["limits"]

    def rate(name, unit):
        return f"{rates[name]:.4g} {unit}" if rates[name] else "not measured"

    lines = [
        f"{device['name']}, compute capability {device['capability']}, {device['multiprocessors']} multiprocessors, "
        f"{device['memory_bytes'] / 1e9:.1f} GB"
        + (f", driver {device['driver']}" if device.get("driver") else "")
        + f". welm {device['welm']}"
        + (f", {device['built_from']}" if device.get("built_from") else "")
        + f". PyTorch: {record['torch'] or 'not there'}.",
        "",
        f"Limits: copy {rate('copy_gb_per_s', 'GB/s')} (reads and writes together), bf16 products "
        f"{rate('bf16_tera_per_s', 'TFLOP/s')}, int8 products {rate('int8_tera_per_s', 'TOP/s')}. Predicted: of the "
        "limit, on an H100 (benches/src/cases/predict.rs).",
        "",
        "| what | | sizes | us | least to most | rate | of the limit | predicted | PyTorch, us | its time / ours "
        "| aim |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["results"]:
        sizes = ", ".join(f"{name} {value}" for name, value in r["sizes"].items())
        cells = [r["group"], r["variant"], sizes]
        predicted = f"{r['predicted']:.2g}" if "predicted" in r else ""
        if "skipped" in r:
            cells += [r["skipped"], "", "", "", predicted, "", ""]
        else:
            shown = ["of_copy"] if r["limit"] == "copy" else ["of_int8", "of_bf16"]
            of = [f"{r[key]:.3g} {key.replace('_', ' ')}" for key in shown if key in r]
            fast = f"{r['gb_per_s']:.4g} GB/s" if r["limit"] == "copy" else f"{r['tera_per_s']:.4g} T/s"
            peer = f"{r['peer']} {r['peer_us']:g}" if "peer" in r else ""
            cells += [f"{r['us']:g}", f"{r['least_us']:g} to {r['most_us']:g}", fast, ", ".join(of)]
            cells += [predicted, peer, f"{r['of_peer']:.3g}" if "of_peer" in r else ""]
        lines.append("| " + " | ".join(cells + [r.get("aim", "")]) + " |")
    return "\n".join(lines) + "\n"


def driver_version(device):
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", str(device)]
    try:
        return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", help="what welm-bench-gpu --json has written")
    parser.add_argument("--device", type=int, default=0, help="number of the CUDA device")
    parser.add_argument("--peer", help="figures of PyTorch, in place of measuring them")
    parser.add_argument("--save-peer", help="where to write those that are measured")
    parser.add_argument("--no-torch", action="store_true", help="no figures of PyTorch")
    parser.add_argument("--record", help="where to write all of it, as JSON")
    parser.add_argument("--table", help="where to write the table; it is printed in any case")
    parser.add_argument("--built-from", help="where the programs came from, for the record")
    args = parser.parse_args()

    with open(args.bench) as file:
        # If the benchmark was stopped, the last line is incomplete.
        lines = [json.loads(line) for line in file if line.endswith("\n")]
    devices = [line for line in lines if line["record"] == "device"]
    if len(devices) != 1:
        sys.exit(f"{args.bench}: expected one device, got {len(devices)}")
    results = [line for line in lines if line["record"] != "device"]
    device = devices[0] | {"driver": driver_version(args.device), "built_from": args.built_from}
    peer = {}
    if args.peer:
        with open(args.peer) as file:
            peer = json.load(file)
    elif not args.no_torch:
        peer = measure_torch(results, args.device)
        if args.save_peer:
            with open(args.save_peer, "w") as file:
                json.dump(peer, file, indent=1)
    record = merge(device, results, peer)
    text = table(record)
    print(text)
    for path, content in [(args.record, json.dumps(record, indent=1) + "\n"), (args.table, text)]:
        if path:
            with open(path, "w") as file:
                file.write(content)


if __name__ == "__main__":
    main()
