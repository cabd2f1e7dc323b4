"""The results as a page."""

import math
import statistics

import numpy as np

US, SCREENED, PEER = "residuald", "residuald with its screen", "Python, two processes"
# Of fewer than this the thousandth is no more than the largest.
ENOUGH = 2000


def percentiles(late):
    p50, p99, p999 = np.percentile(late, [50, 99, 99.9])
    return {"samples": len(late), "p50": float(p50), "p99": float(p99), "p99.9": float(p999)}


def page(results):
    rounds = results["rounds"]
    count = "one round" if len(rounds) == 1 else f"{len(rounds)} rounds"
    parts = [
        "# Beside other consumers",
        f"Made by `make bench-peers`, in {count} on {results['cores']} cores of an {results['machine']}, where broker, "
        "load and contender run together. How it is measured: [peers/README.md](peers/README.md).",
        "## A backlog",
        f"{results['records']:,} payments in 4 partitions (Quix Streams a quarter, DDPM a hundredth of them), medians "
        "of the rounds (smallest to largest). The ratio is taken in each round. CPU is that of all threads and "
        "processes of the contender; memory the sum of what its processes had resident at most.",
        backlog(rounds),
        *heavier(results),
        "## Latency at a steady load",
        "Milliseconds from sending a record (its timestamp) to the broker's append of its verdict, pooled over the "
        "rounds (smallest to largest of a round's own). Half of the rate that the contender itself reached:",
        latency(results, "own"),
        "The same rate for all, half of what the slowest that runs the bundle reached:",
        latency(results, "common"),
        "## Detection",
        "On the 20,000 labelled payments of the sample, threshold for 1 false alarm in 1,000 from held-out normal "
        "payments. All but the DDPM run the same bundle and flag the same records, which was checked in every round; "
        "the DDPM was trained on the same rows.",
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
    head = ["", "records/s", "residuald over it", "with its screen over it", "CPU, µs a record", "memory, MiB"]
    missed = [found[SCREENED]["missed"] for found in rounds if "missed" in found.get(SCREENED, {})]
    said = f"\n\nOf residuald's anomalies the screen missed {spread(missed, '.3%')}." if missed else ""
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
    head = ["scorer", PEER, US, SCREENED, f"{US} over Python", "with its screen", "anomalies missed by the screen"]
    return [
        "## Where the scorer takes more arithmetic",
        "The same payments and the fastest peer, records/s of half as many records. The bundles are trained on the "
        "history of `models/payments`, with the trainer's defaults but for 2,000 steps; each with a screen of its own.",
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
        for name, kind in (("the bundle (all others)", "bundle"), ("DDPM in PyTorch", "DDPM"))
    ]
    return table(["", "AUROC", "average precision", "precision", "recall"], rows)


def spread(values, form):
    return f"{statistics.median(values):{form}} {between(values, form)}".strip() if values else ""


def between(values, form):
    return f"({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
