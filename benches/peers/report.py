"""Formats the results of run.py as a Markdown page."""

import math
import statistics

import numpy as np

US, SCREENED, PEER = "residuald", "residuald with its screen", "Python, two processes"
# Fewest samples for p99.9. With fewer it would be hardly more than the maximum.
ENOUGH = 2000


def percentiles(late):
    p50, p99, p999 = np.percentile(late, [50, 99, 99.9])
    return {"samples": len(late), "p50": float(p50), "p99": float(p99), "p99.9": float(p999)}


def page(results):
    rounds = results["rounds"]
    count = "one round" if len(rounds) == 1 else f"{len(rounds)} rounds"
    parts = [
        "# Comparison with other consumers",
        f"`make bench-peers` measured this in {count} on {results['cores']} cores of an {results['machine']}, shared "
        "by broker, load generator and contender. [peers/README.md](peers/README.md) describes the method.",
        "## Throughput on a backlog",
        f"The backlog has {results['records']:,} payments in 4 partitions (Quix Streams gets a quarter and the DDPM a "
        "hundredth of them). The table shows medians over the rounds (minimum to maximum). Ratios are taken within "
        "each round. CPU covers all threads and processes of the contender. Memory is the sum of the peak resident "
        "sizes of its processes.",
        backlog(rounds),
        *heavier(results),
        "## Latency at a steady load",
        "Milliseconds from sending a record (its timestamp) to the broker's append of its verdict, pooled over the "
        "rounds (minimum to maximum of the single rounds). In this table the load is half of the rate that the "
        "contender reached on the backlog:",
        latency(results, "own"),
        "In this table the load is the same for all: half of the rate of the slowest contender that runs the bundle:",
        latency(results, "common"),
        "## Detection",
        "Measured on the 20,000 labelled payments of the sample, with a threshold for 1 false alarm in 1,000 from "
        "held-out normal payments. All contenders except the DDPM run the same bundle and flag the same records, which "
        "was checked in every round. The DDPM was trained on the same rows.",
        quality(results["quality"]),
    ]
    if results["failures"]:
        parts += ["## Failed", "\n".join(f"- {failure}" for failure in results["failures"])]
    parts += ["## Versions", ", ".join(f"{name} {number}" for name, number in results["versions"].items()) + "."]
    return "\n\n".join(parts) + "\n"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def names_of(rounds):
    return list(dict.fromkeys(name for found in sorted(rounds, key=lambda r: US not in list(r)[:1]) for name in found))


def backlog(rounds):
    rows = []
    for name in names_of(rounds):
        runs = [found[name] for found in rounds if name in found]
        ratios = []
        for ours in (US, SCREENED):
            both = [found for found in rounds if name in found and ours in found and name != ours]
            ratios.append(spread([found[ours]["rate"] / found[name]["rate"] for found in both], ".2f"))
        rows.append(
            [
                name,
                spread([run["rate"] for run in runs], ",.0f"),
                *ratios,
                spread([run["cpu"] for run in runs], ",.1f"),
                spread([run["memory"] for run in runs], ",.0f"),
            ]
        )
    head = ["", "records/s", "residuald / this", "residuald with screen / this", "CPU, µs per record", "memory, MiB"]
    missed = [found[SCREENED]["missed"] for found in rounds if "missed" in found.get(SCREENED, {})]
    said = f"\n\nThe screen missed {spread(missed, '.3%')} of residuald's anomalies." if missed else ""
    return table(head, rows) + said


def heavier(results):
    rounds = results["heavier"]
    if not any(rounds):
        return []
    rows = []
    for scorer in rounds[0]:
        found = [runs[scorer] for runs in rounds if {PEER, US, SCREENED} <= runs.get(scorer, {}).keys()]
        rates = [spread([runs[name]["rate"] for runs in found], ",.0f") for name in (PEER, US, SCREENED)]
        ratios = [spread([runs[name]["rate"] / runs[PEER]["rate"] for runs in found], ".2f") for name in (US, SCREENED)]
        missed = spread([runs[SCREENED].get("missed", math.nan) for runs in found], ".2%")
        rows.append([scorer, *rates, *ratios, missed])
    screened_ratio = f"{SCREENED} / Python"
    head = ["scorer", PEER, US, SCREENED, f"{US} / Python", screened_ratio, "anomalies missed by the screen"]
    return [
        "## Slower scorers",
        "Records/s on half as many of the same payments, compared with the fastest peer. The bundles are trained on "
        "the history of `models/payments` with the trainer's defaults, except for 2,000 steps. Each has its own "
        "screen.",
        table(head, rows),
    ]


def latency(results, what):
    rows = []
    for name in names_of(results["rounds"]):
        pooled = results["latency"].get(f"{name}, {what}")
        runs = [found[name][what] for found in results["rounds"] if what in found.get(name, {})]
        if pooled:
            cells = [f"{pooled[p]:,.0f} {between([run[p] for run in runs], ',.0f')}".strip() for p in ("p50", "p99")]
            cells.append(f"{pooled['p99.9']:,.0f}" if pooled["samples"] >= ENOUGH else "too few")
            rate = statistics.median(run["rate"] for run in runs)
            busy = f"{statistics.median(run['busy'] for run in runs):.0%}"
            rows.append([name, f"{rate:,.0f}", *cells, f"{pooled['samples']:,}", busy])
    return table(["", "records/s", "p50", "p99", "p99.9", "verdicts", "machine busy"], rows)


def quality(found):
    rows = [
        [name, *(f"{found[kind][what]:.3f}" for what in ("auroc", "average_precision", "precision", "recall"))]
        for name, kind in (("the bundle (all other contenders)", "bundle"), ("DDPM in PyTorch", "DDPM"))
    ]
    return table(["", "AUROC", "average precision", "precision", "recall"], rows)


def spread(values, form):
    return f"{statistics.median(values):{form}} {between(values, form)}".strip() if values else ""


def between(values, form):
    return f"({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
