"""Turns the results.json of run.py into a Markdown page with tables and two plots.

python benches/gpu/page.py gpu-results/results.json --out benches/GPU.md
"""

import argparse
import json
from pathlib import Path


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("results", type=Path)
    p.add_argument(
        "--out", type=Path, required=True, metavar="FILE.md", help="the page; the plots are written beside it"
    )
    args = p.parse_args()
    results = json.loads(args.results.read_text())
    found = {name: step.get("found", {}) for name, step in results["steps"].items()}
    lines = ["# On a GPU", "", *introduction(results, found), "", *results.get("notes", []), "", *promises(results), ""]
    for section in (golden, refused, agreement):
        lines += section(found)
    for name, title, unit in (
        ("rows", "Card payments, records a second", "records"),
        ("images", "RGB images of 256 × 256 pixels, images a second", "images"),
    ):
        if ways := found.get(name, {}).get("ways"):
            figure = args.out.with_name(f"gpu-{name}.svg")
            plot(ways, found.get(f"torch_{name}", {}).get("rates", []), unit, figure)
            lines += [f"## {title}", "", f"![{title}, by batch size]({figure.name})", ""]
            lines += [*throughput(ways, torch_rates(found, name)), "", *share(found[name], unit)]
    for section in (daemon, workers, limits, scaling):
        lines += section(found)
    args.out.write_text("\n".join(lines).rstrip() + "\n")
    print(args.out)


def introduction(results, found):
    machine = found.get("machine", {})
    card, driver, memory = (part.strip() for part in [*machine.get("gpu", "no GPU").split(","), "", ""][:3])
    cpu = machine.get("cpu") or "an unnamed CPU"
    return [
        f"{card}, {memory}, driver {driver}; {machine.get('cores')} cores of {cpu}; PyTorch, CUDA, cuDNN "
        f"{machine.get('torch')}; {machine.get('residuald')}; {results['time'][:10]}.",
        "",
        "To repeat this, pack the kit with `make gpu-kit` and run it with `benches/gpu/join.sh` on a machine with a "
        "card. `benches/gpu/page.py` then writes this page.",
    ]


def promises(results):
    lines = ["| step | seconds | check | passed |", "| --- | --- | --- | --- |"]
    for name, step in results["steps"].items():
        holds = step.get("found", {}).get("holds", {})
        seconds = f"{step['seconds']:.0f}"
        if step["status"] != "done":
            lines.append(f"| {name} | {seconds} | | **{step['status']}** |")
        for promise, held in holds.items():
            lines.append(f"| {name} | {seconds} | {promise} | {'yes' if held else '**no**'} |")
    return lines


def table(header, rows):
    return [
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(map(str, row)) + " |" for row in rows),
        "",
    ]


def number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def golden(found):
    checks = found.get("golden", {}).get("checks")
    if not checks:
        return []
    rows = []
    for name, check in checks.items():
        if "golden" in check:
            placed = ", ".join(
                f"{nodes} on {provider.removesuffix('ExecutionProvider')}"
                for provider, nodes in check["placement"].items()
            )
            rows.append(
                (
                    name,
                    check["golden"]["records"],
                    f"{check['golden']['worst_relative_error']:.1e}",
                    placed,
                    f"{check['seconds']:.1f}",
                )
            )
        else:
            rows.append((name, "", "", f"exit {check['exit']}: {check['error']}", f"{check['seconds']:.1f}"))
    header = (
        "bundle",
        "golden records",
        "worst relative error",
        "nodes that ONNX Runtime placed on each provider",
        "seconds to load and check",
    )
    return ["## Golden records and placement", "", *table(header, rows)]


def refused(found):
    checks = {k: v for k, v in found.get("refused", {}).items() if k != "holds"}
    rows = [(name, c["exit"], c.get("error") or f"runs on {c['provider']}") for name, c in checks.items()]
    return ["## Errors", "", *table(("case", "exit status", "message"), rows)] if rows else []


def agreement(found):
    rows = [
        (
            name,
            number(c["records"]),
            number(c["flagged"]),
            number(c["flagged by both"]),
            f"{100 * c['agree']:.4f} %",
            f"{c['worst_relative_difference']:.1e}",
        )
        for name, c in found.get("agreement", {}).items()
        if isinstance(c, dict) and "agree" in c and "flagged" in c
    ]
    header = (
        "records",
        "judged",
        "flagged on the CPU",
        "flagged by both",
        "same verdict",
        "worst relative difference of a score",
    )
    return ["## Verdicts, CPU against GPU", "", *table(header, rows)] if rows else []


def torch_rates(found, name):
    kinds = {}
    for line in found.get(f"torch_{name}", {}).get("rates", []):
        kinds.setdefault(f"PyTorch {line['kind']}", {})[line["batch"]] = line["rows_per_second"]
    return kinds


def rates(measured):
    return {size["batch"]: size["rows_per_second"] for size in measured.get("sizes", [])}


def throughput(ways, torch):
    columns = {name: rates(measured) for name, measured in ways.items()} | torch
    sizes = sorted({size for column in columns.values() for size in column})
    rows = [(name, *(number(column.get(size)) for size in sizes)) for name, column in columns.items() if column]
    lines = table(("way", *(f"batch {size:,}" for size in sizes)), rows)
    lines += [f"- {name}: {measured['error']}" for name, measured in ways.items() if "error" in measured]
    return lines


def share(found, unit):
    shares = ", ".join(f"{100 * ratio:.0f} % at {size:,}" for size, ratio in found["share of the time on the device"])
    lines = (
        [f"Throughput of the daemon's scorer relative to ONNX Runtime alone on inputs in device memory: {shares}.", ""]
        if shares
        else []
    )
    crossing = found.get("faster than one core from a batch of")
    if crossing:
        lines += [f"The GPU is faster than one core from a batch of {crossing:,} {unit}.", ""]
    return lines


def daemon(found):
    rows = []
    for name, bench in found.get("daemon", {}).get("bench", {}).items():
        if "error" in bench:
            rows.append((name, "", "", "", "", bench["error"]))
            continue
        rate = [number(bench[part]["records_per_second"]) for part in ("score", "end_to_end")]
        rows.append((name, bench["sessions"], *rate, f"{bench['end_to_end_over_score']:.2f}", ""))
    header = ("bundle", "workers", "scorers alone, records a second", "end to end", "ratio", "")
    return ["## The daemon end to end, on the embedded broker", "", *table(header, rows)] if rows else []


def workers(found):
    rows = []
    for name, measured in found.get("workers", {}).get("sessions", {}).items():
        for size in measured.get("sizes", []):
            rows.append((name, size["batch"], number(size["rows_per_second"])))
    return ["## Concurrent sessions on one card", "", *table(("", "batch", "rows a second"), rows)] if rows else []


def limits(found):
    rows = []
    for name, measured in found.get("limits", {}).items():
        for size in measured.get("sizes", []) if isinstance(measured, dict) else []:
            rows.append((name, size["batch"], number(size["rows_per_second"]), f"{size['first_ms']:.0f} ms"))
        if isinstance(measured, dict) and "error" in measured:
            rows.append((name, "", measured["error"], ""))
    return ["## Memory limit", "", *table(("", "batch", "images a second", "first run"), rows)] if rows else []


def scaling(found):
    rows = []
    for sessions, bench in found.get("scaling", {}).get("sessions", {}).items():
        if "error" not in bench:
            rate = [number(bench[part]["records_per_second"]) for part in ("score", "end_to_end")]
            rows.append((sessions, *rate, f"{bench['end_to_end_over_score']:.2f}", f"{bench['efficiency']:.2f}"))
    header = ("workers", "scorers alone, records a second", "end to end", "ratio", "efficiency of CPU time")
    return ["## One process on the CPU", "", *table(header, rows)] if rows else []


def plot(ways, torch, unit, path):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gpu"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    for name, measured in ways.items():
        if points := rates(measured):
            axes.plot(list(points), list(points.values()), marker=".", label=name)
    kinds = {}
    for line in torch:
        kinds.setdefault(f"PyTorch {line['kind']}", []).append((line["batch"], line["rows_per_second"]))
    for name, points in kinds.items():
        axes.plot(*zip(*points, strict=True), linestyle="--", marker=".", label=name)
    axes.set(xscale="log", yscale="log", xlabel=f"batch, {unit}", ylabel=f"{unit} a second")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
