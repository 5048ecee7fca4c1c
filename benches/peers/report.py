"""Results of `run` as a table and a chart.

    python3 report.py results.json [--table table.md] [--chart chart.svg]

The best setting of each engine counts. A limit is the best that this machine could do with the bytes and operations of
welm, from rates that were measured right before welm. For a step it is the longer of bytes / bandwidth and operations
of the products / peak rate; for a prompt it is operations / peak rate. Weights in 8 bits or less count against the int8
peak, others against that of f32. "Of limit" is the median of each measurement's share of its own limit. That and the
ratios are those of the fastest welm column.

The chart needs matplotlib; the table needs nothing.
"""

import argparse
import json
import statistics
from pathlib import Path


def middle(values):
    return statistics.median(values)


def best_setting(samples):
    """(tok/s, setting, samples) of the setting with the best median, among those that were measured in most rounds. A
    setting that was tried once could win by luck."""
    by_setting = {}
    for sample in samples:
        by_setting.setdefault(sample["setting"], []).append(sample)
    rate = lambda item: (len(item[1]), middle([s["tok_per_s"] for s in item[1]]))
    setting, own = max(by_setting.items(), key=rate)
    return middle([s["tok_per_s"] for s in own]), setting, own


LIMITS = {"read": "read_gb_per_s", "int8": "int8_gop_per_s", "f32": "f32_gflop_per_s"}


def limit(sample):
    """tok/s at most, of a welm process."""
    limits = {key: sample["limits"][field]["best"] for key, field in LIMITS.items()}
    load = next(r for r in sample["records"] if r["record"] == "load")
    peak = limits["int8" if load["weight_bytes"] < 1.3 * load["parameters"] else "f32"] * 1e9
    for r in sample["records"]:
        if r["record"] == "prefill":
            return r["n"] / (r["product_ops"] / peak)
        if r["record"] == "decode":
            return r["batch"] / max(r["step_bytes"] / (limits["read"] * 1e9), r["step_ops"] / peak)
    return None


def what(point):
    if point[0] == "p":
        return f"prompt of {point[1:]}"
    batch, context = point[1:].split("@")
    return f"{batch} sequence{'s' if batch != '1' else ''} at {context}"


def ordered(values):
    return list(dict.fromkeys(values))


def rows_of(results):
    """For each shape, number of threads and point: every engine's best, welm's limit, and ratios to each peer."""
    rows = []
    samples = results["samples"]
    for shape, threads, point in ordered((s["shape"], s["threads"], s["point"]) for s in samples):
        here = [s for s in samples if (s["shape"], s["threads"], s["point"]) == (shape, threads, point)]
        row = {"shape": shape, "threads": threads, "point": point, "engines": {}, "ratios": {}}
        for engine in ordered(s["engine"] for s in here):
            rate, setting, own = best_setting([s for s in here if s["engine"] == engine])
            rates = [s["tok_per_s"] for s in own]
            row["engines"][engine] = {"tok_per_s": rate, "setting": setting, "least": min(rates), "most": max(rates)}
            if engine.startswith("welm"):
                row["engines"][engine]["limit"] = middle([limit(s) for s in own])
                row["engines"][engine]["share"] = middle([s["tok_per_s"] / limit(s) for s in own])
        welm = {e: r for e, r in row["engines"].items() if e.startswith("welm")}
        if welm:
            row["welm"] = max(welm, key=lambda engine: welm[engine]["tok_per_s"])
            for engine, other in row["engines"].items():
                if not engine.startswith("welm"):
                    row["ratios"][engine] = welm[row["welm"]]["tok_per_s"] / other["tok_per_s"]
        rows.append(row)
    return rows


def digits(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def table(results):
    rows = rows_of(results)
    lines = ["# welm beside other engines on the CPU", ""]
    cpu = results["limits"][0]["cpu"]
    lines += [f"{cpu}, {results['system']}, {results['date']}; welm {results['commit']}; "
              f"{', '.join(results['packages'])}; medians of {results['rounds']} round{'s' * (results['rounds'] != 1)}, tokens in a second.", ""]
    lines += ["| threads | read, GB/s | int8, GOP/s | f32, GFLOP/s |", "|---|---|---|---|"]
    for threads in ordered(r["threads"] for r in results["limits"]):
        rounds = [r for r in results["limits"] if r["threads"] == threads]
        cells = [digits(middle([r[field]["best"] for r in rounds])) for field in LIMITS.values()]
        lines.append(f"| {threads} | {' | '.join(cells)} |")
    for shape in ordered(row["shape"] for row in rows):
        own = [row for row in rows if row["shape"] == shape]
        engines = ordered(engine for row in own for engine in row["engines"])
        peers = [engine for engine in engines if not engine.startswith("welm")]
        heads = ["what", "threads", *engines, "limit", "of limit", *(f"welm / {peer}" for peer in peers)]
        lines += ["", f"## {shape}", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for row in own:
            rate = lambda engine: digits(row["engines"][engine]["tok_per_s"]) if engine in row["engines"] else ""
            most = row["engines"][row["welm"]]["limit"] if "welm" in row else None
            of_limit = row["engines"][row["welm"]]["share"] if most else None
            cells = [what(row["point"]), str(row["threads"]), *map(rate, engines)]
            cells += [digits(most), f"{of_limit:.2f}"] if most else ["", ""]
            cells += [f"{row['ratios'][peer]:.2f}" if peer in row["ratios"] else "" for peer in peers]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", "| engine | load, s | to the first token, s | peak memory, MB |", "|---|---|---|---|"]
        for engine in engines:
            processes = [s["records"] for s in results["samples"] if (s["shape"], s["engine"]) == (shape, engine)]
            loads = [records[0] for records in processes]
            # The memory of an interpreter before loading does not count for the engine.
            peak = max((r[-1].get("peak_rss_bytes") or 0) - (r[-1].get("rss_before_bytes") or 0) for r in processes)
            seconds = [middle([load[key] for load in loads]) for key in ("seconds", "ready_seconds")]
            lines.append(f"| {engine} | {seconds[0]:.2f} | {seconds[1]:.2f} | {peak / 1e6:.0f} |")
    settings = [
        f"{row['shape']} {row['point']}, {row['threads']} threads: {engine}, {r['setting']}"
        for row in rows for engine, r in row["engines"].items()
        if not engine.startswith("welm") and r["setting"] not in ("default", "flash attention auto")
    ]
    if settings:
        lines += ["", "Where another setting than a peer's default was its best:", ""]
        lines += [f"- {line}" for line in settings]
    if results["failures"]:
        lines += ["", "Failed:", ""]
        lines += [f"- {f['shape']} {f['point']}, {f['threads']} threads: {f['engine']}, {f['setting']}: {f['error']}"
                  for f in results["failures"]]
    return "\n".join(lines) + "\n"


def chart(results, path):
    """For each shape, at the largest number of threads: bars of each engine, as shares of welm's limit."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "welm"  # the same file from the same figures
    from matplotlib import pyplot

    threads = max(r["threads"] for r in results["limits"])
    rows = [row for row in rows_of(results) if row["threads"] == threads and "welm" in row]
    shapes = ordered(row["shape"] for row in rows)
    if not shapes:
        return
    figure, axes = pyplot.subplots(len(shapes), 1, figsize=(11, 3.4 * len(shapes)), squeeze=False)
    colors = {
        "welm": ["#0b6e4f", "#58b88f"], "llama.cpp": ["#c8553d", "#e79a86"], "CTranslate2": ["#4a6fa5"],
        "mistral.rs": ["#8a6bbf"], "OpenVINO": ["#d9a441"],
    }
    for axis, shape in zip(axes[:, 0], shapes):
        own = [row for row in rows if row["shape"] == shape]
        engines = ordered(engine for row in own for engine in row["engines"])
        left, width = {family: list(c) for family, c in colors.items()}, 0.8 / len(engines)
        for i, engine in enumerate(engines):
            color = left[engine.split()[0]].pop(0)
            for x, row in enumerate(own):
                if engine not in row["engines"]:
                    continue
                rate = row["engines"][engine]["tok_per_s"]
                height = rate / row["engines"][row["welm"]]["limit"]
                at = x + (i - (len(engines) - 1) / 2) * width
                axis.bar(at, height, width * 0.94, color=color, label=engine if x == 0 else None)
                axis.text(at, height, digits(rate), ha="center", va="bottom", fontsize=6.5)
        axis.axhline(1, color="#444", linewidth=0.8, linestyle="--")
        axis.set_xticks(range(len(own)), [what(row["point"]) for row in own], fontsize=8)
        axis.set_ylabel("share of the limit")
        axis.set_title(f"{shape}, {threads} threads; tokens in a second above the bars", fontsize=9, loc="left")
        axis.legend(fontsize=7, frameon=False, ncols=len(engines), loc="upper right")
        axis.set_ylim(0, 1.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--chart", type=Path)
    args = parser.parse_args()
    results = json.loads(args.results.read_text())
    text = table(results)
    print(text, end="")
    if args.table:
        args.table.write_text(text)
    if args.chart:
        chart(results, args.chart)


if __name__ == "__main__":
    main()
