"""Formats the results of run.py as a Markdown page and a plot."""

import io
import math
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

RATES = 10_000, 100_000, 1_000_000, 10_000_000
# Planned share of the CPU. The rest is for bursts, rebalances and other programs.
PLANNED = 0.6
# Records per second of one process, which has a single intake thread.
MOST_PER_PROCESS = 150_000
CORES_PER_PROCESS = 4
# Assumptions, not measured here: MB/s that a broker accepts, replicas of each record, price of a core.
BROKER_MB, REPLICAS, DOLLARS_A_CORE_HOUR = 100, 3, 0.04


def cost(report, part="end_to_end"):
    return report[part]["cpu_us_per_record"]


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def text(results):
    template = Path(__file__).with_name("page.md").read_text()
    return template.format(
        machine=results["machine"],
        features=by_features(results["tables"]),
        messages=by_message(results["messages"]),
        images=by_side(results["pictures"]),
        kafka=by_partition(results["kafka"]),
        records=f"{results['records']:,}",
        sizing=sizing(results),
        planned=f"{PLANNED:.0%}",
        cores=CORES_PER_PROCESS,
        most=f"{MOST_PER_PROCESS:,}",
        broker_mb=BROKER_MB,
        replicas=REPLICAS,
        dollars=DOLLARS_A_CORE_HOUR,
        share=PLANNED,
    )


def by_features(tables):
    recipes = list(dict.fromkeys(found["recipe"] for found in tables))
    head = ["features", "bytes", "consume", "decode"]
    head += [f"{recipe}: score" for recipe in recipes] + [f"{recipe}: whole" for recipe in recipes]
    head += [f"{recipe}: records/s per core" for recipe in recipes]
    rows = []
    for features in dict.fromkeys(found["features"] for found in tables):
        of = {found["recipe"]: found for found in tables if found["features"] == features}
        first = next(iter(of.values()))
        row = [features, f"{first['bytes']:,}", number(cost(first, "consume")), number(cost(first, "decode"))]
        row += [number(cost(of[recipe], "score")) for recipe in recipes]
        row += [number(cost(of[recipe])) for recipe in recipes]
        rows.append([*row, *(number(1e6 / cost(of[recipe])) for recipe in recipes)])
    return table(head, rows)


def by_message(messages):
    head = ["bytes", "consume", "decode", "score", "whole", "with its screen", "records/s per core", "MB/s per core"]
    rows = []
    for found in messages:
        parts = [number(cost(found, part)) for part in ("consume", "decode", "score", "end_to_end", "screened")]
        rate = 1e6 / cost(found)
        rows.append([f"{found['bytes']:,}", *parts, number(rate), number(rate * found["bytes"] / 1e6)])
    return table(head, rows)


def by_side(images):
    head = ["pixels", "bytes", "decode, ms", "score, ms", "whole, ms", "images/s per core"]
    rows = []
    for found in images:
        parts = [number(cost(found, part) / 1e3) for part in ("decode", "score", "end_to_end")]
        rows.append([f"{found['side']}²", f"{found['bytes']:,}", *parts, number(1e6 / cost(found))])
    return table(head, rows)


def by_partition(kafka):
    head = ["partitions", "processes", "screen", "records/s", "µs per record", "memory, MiB"]
    rows = [
        [run["partitions"], run["processes"], run["screen"], *(number(run[k]) for k in ("rate", "cpu", "memory"))]
        for run in kafka
    ]
    return table(head, rows)


def sizing(results):
    one = {run["screen"]: run["cpu"] for run in results["kafka"] if run["processes"] == 1}
    size = results["messages"][0]["bytes"]
    head = ["records/s", "per day", "screen", "cores", "processes", "partitions", "MB/s in", "brokers", "$ per day"]
    rows = []
    for rate in RATES:
        for screen, microseconds in sorted(one.items()):
            cores = rate * microseconds / 1e6 / PLANNED
            processes = max(math.ceil(cores / CORES_PER_PROCESS), math.ceil(rate / MOST_PER_PROCESS))
            megabytes = rate * size / 1e6
            brokers = max(3, math.ceil(megabytes * REPLICAS / BROKER_MB))
            dollars = max(cores, 1) * 24 * DOLLARS_A_CORE_HOUR
            row = [f"{rate:,}", f"{rate * 86_400 / 1e9:,.1f} billion", screen, number(cores), processes, 4 * processes]
            rows.append([*row, number(megabytes), brokers, number(dollars)])
    return table(head, rows)


def plot(results):
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "residuald", "font.size": 9, "axes.grid": True}):
        figure = Figure((11, 3.4), layout="constrained", facecolor="white")
        left, middle, right = figure.subplots(1, 3)
        for recipe in dict.fromkeys(found["recipe"] for found in results["tables"]):
            of = [found for found in results["tables"] if found["recipe"] == recipe]
            left.loglog([found["features"] for found in of], [cost(found) for found in of], "o-", label=recipe)
        left.set(xlabel="features", ylabel="CPU µs per record")
        sizes = [found["bytes"] for found in results["messages"]]
        for part, label in (("end_to_end", "whole"), ("screened", "with its screen"), ("consume", "consume")):
            costs = [cost(found, part) for found in results["messages"]]
            middle.loglog(sizes, costs, "o-", label=label)
        middle.set(xlabel="bytes per message (payments)")
        sides = [found["side"] for found in results["pictures"]]
        right.loglog(sides, [cost(found) / 1e3 for found in results["pictures"]], "o-")
        right.set(xlabel="side in pixels", ylabel="CPU ms per image")
        right.minorticks_off()
        right.set_xticks(sides, sides)
        for axes in (left, middle):
            axes.legend(frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return out.getvalue()
