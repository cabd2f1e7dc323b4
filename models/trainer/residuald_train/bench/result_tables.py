"""Formats the results of `bench` as Markdown tables, over the sets and seeds on which every method has run."""

from collections import Counter

import numpy as np

from .metrics import interval

AGAINST = "1-NN"
RATES = "0.01", "0.001"
ENOUGH = 100  # flagged rows of a set, to judge its reasons alone


def grid(runs, key):
    """Runs -> (methods, sets, seeds, values of `key` [method, set, seed]), for sets and seeds that every method has."""
    methods = list(dict.fromkeys(r["method"] for r in runs))
    values = {(r["method"], r["set"], r["seed"]): r[key] for r in runs}
    every = {(s, seed) for _, s, seed in values}
    whole = {(s, seed) for s, seed in every if all((m, s, seed) in values for m in methods)}
    found = Counter(seed for _, seed in whole)
    seeds = sorted(seed for seed, count in found.items() if count == max(found.values()))  # the others are incomplete
    sets = sorted(s for s in {s for s, _ in whole} if all((s, seed) in whole for seed in seeds))
    return methods, sets, seeds, np.array([[[values[m, s, k] for k in seeds] for s in sets] for m in methods])


def means_table(runs):
    """A table of each method's means. ± is the standard error: over seeds for a mean, over sets for a difference."""
    methods, sets, seeds, auroc = grid(runs, "auroc")
    if not sets:
        return "No set has been run with all methods yet."
    _, _, _, ap = grid(runs, "ap")
    seconds, micros = (grid(runs, key)[3] for key in ("fit_seconds", "microseconds_a_row"))
    lines = [
        f"{len(sets)} sets, {len(seeds)} seeds. ± is the standard error: over seeds for AUROC and AP, over sets for "
        "differences.",
        "",
        f"| method | AUROC | AP | AUROC − {AGAINST} | AP − {AGAINST} | training, s per set | µs per row |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = methods.index(AGAINST) if AGAINST in methods else None
    for k in np.argsort(-auroc.mean((1, 2))):
        cells = [methods[k], seeds_cell(auroc[k]), seeds_cell(ap[k])]
        cells += ["" if base in (None, k) else sets_cell(v[k] - v[base]) for v in (auroc, ap)]
        cells += [f"{seconds[k].mean():.2f}", f"{micros[k].mean():.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def leads_table(runs):
    """A table of each method's lead over AGAINST: mean, median, without its two best sets, worst, won and lost."""
    methods, sets, _, auroc = grid(runs, "auroc")
    if len(sets) < 3 or AGAINST not in methods:
        return f"Leads over {AGAINST} need three sets."
    _, _, _, ap = grid(runs, "ap")
    base = methods.index(AGAINST)
    leads = [[(values[k] - values[base]).mean(1) for values in (auroc, ap)] for k in range(len(methods))]
    lines = [
        f"Lead over {AGAINST} on {len(sets)} sets, AUROC / AP:",
        "",
        "| method | mean | median | without its two best sets | worst set | sets won : lost |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for k in np.argsort([-lead[0].mean() for lead in leads]):
        if k == base:
            continue
        lead = leads[k]
        cells = [" / ".join(f"{v:+.2f}" for v in map(measure, lead)) for measure in (np.mean, np.median, without_two)]
        worst = int(np.argmin(lead[0]))
        cells += [f"{sets[worst]} {lead[0][worst]:+.2f} / {lead[1].min():+.2f}"]
        cells += [" / ".join(f"{(v > 0).sum()} : {(v < 0).sum()}" for v in lead)]
        lines.append(f"| {methods[k]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def without_two(values):
    return np.sort(values)[:-2].mean()


def seeds_cell(values):
    """values [set, seed] -> the mean, ± its standard error over seeds."""
    means = values.mean(0)
    error = f" ± {means.std(ddof=1) / np.sqrt(len(means)):.2f}" if len(means) > 1 else ""
    return f"{means.mean():.2f}{error}"


def sets_cell(difference):
    """difference [set, seed] -> the mean, ± its standard error over sets."""
    means = difference.mean(1)
    error = f" ± {means.std(ddof=1) / np.sqrt(len(means)):.2f}" if len(means) > 1 else ""
    return f"{means.mean():+.2f}{error}"


def sets_table(runs):
    methods, sets, _, auroc = grid(runs, "auroc")
    if not sets:
        return ""
    _, _, _, ap = grid(runs, "ap")
    lines = ["| set | " + " | ".join(methods) + " |", "|" + " --- |" * (len(methods) + 1)]
    for j, name in enumerate(sets):
        cells = [f"{auroc[k, j].mean():.2f} / {ap[k, j].mean():.2f}" for k in range(len(methods))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def runs_with_checks(runs):
    """{method: its runs that checked thresholds and reasons}. Runs of peers and of older versions did not."""
    found = {}
    for run in runs:
        if "false_alarms" in run:
            found.setdefault(run["method"], []).append(run)
    return found


def pooled(pairs):
    """[k, n, expected share] of several runs -> the sums (k, n, expected k)."""
    return sum(p[0] for p in pairs), sum(p[1] for p in pairs), sum(p[1] * p[2] for p in pairs)


def share_cell(k, n):
    if not n:
        return "none"
    low, high = interval(k, n)
    return f"{100 * k / n:.3g} % ({100 * low:.3g} to {100 * high:.3g}), {k} of {n}"


def trust_totals(runs):
    """Tables of false alarms and reasons over all sets and seeds. A row that several seeds judge counts each time."""
    found = runs_with_checks(runs)
    if not found:
        return ""
    lines = [
        "The thresholds are calibrated on a random half of the normal rows outside training (those of the test, and at "
        "most 100,000 more). False alarms are counted on the other half, if the first is large enough for the rate. "
        "The expected rate is k / (n + 1), the closest one that n calibration rows allow. Parentheses hold 95 % "
        "intervals of a binomial proportion. They ignore that the rows of a set share a threshold and that seeds share "
        "rows. The ratio (observed / expected) is the mean over sets, ± its standard error.",
        "",
        "| recipe | " + " | ".join(f"false alarms at {float(rate):g} | expected | ratio" for rate in RATES) + " |",
        "|" + " --- |" * (1 + 3 * len(RATES)),
    ]
    for method, own in found.items():
        cells = [method]
        for rate in RATES:
            own_rate = [run for run in own if rate in run["false_alarms"]]
            k, n, wanted = pooled([run["false_alarms"][rate] for run in own_rate])
            cells += [share_cell(k, n), f"{100 * wanted / n:.3g} %" if n else "", ratio_cell(own_rate, rate)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "A reason lowers the score if the score falls when the feature with the largest residual is replaced by "
        "its reconstruction. This is counted over the test rows flagged at a false-alarm rate of 1e-2, or at the "
        "lowest supported rate if that is higher.",
        "",
        f"| recipe | reason lowers the score | lowest of a set with at least {ENOUGH} flagged rows |",
        "| --- | --- | --- |",
    ]
    for method, own in found.items():
        every = share_cell(*np.sum([run["reason_lowers"] for run in own], 0).tolist())
        lines.append(f"| {method} | {every} | {lowest_cell(own)} |")
    return "\n".join(lines)


def lowest_cell(runs):
    """The set, of those with ENOUGH flagged rows, in which reasons lower the score least often."""
    by_set = {}
    for run in runs:
        by_set[run["set"]] = np.add(by_set.get(run["set"], 0), run["reason_lowers"])
    shares = {name: k / n for name, (k, n) in by_set.items() if n >= ENOUGH}
    if not shares:
        return "no such set"
    name = min(shares, key=shares.get)
    return f"{100 * shares[name]:.3g} %, {name}, of {len(shares)} sets"


def ratio_cell(runs, rate):
    """The ratio of observed to expected false alarms: pooled over the seeds of each set, then averaged over sets."""
    by_set = {}
    for run in runs:
        by_set.setdefault(run["set"], []).append(run["false_alarms"][rate])
    ratios = [k / wanted for k, _, wanted in map(pooled, by_set.values())]
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}, 1 set" if ratios else ""
    return f"{np.mean(ratios):.2f} ± {np.std(ratios, ddof=1) / np.sqrt(len(ratios)):.2f}, {len(ratios)} sets"


def trust_table(runs):
    """A table with a line for each set and a cell for each recipe: false alarms at both rates, reasons that lower."""
    found = runs_with_checks(runs)
    if not found:
        return ""
    lines = ["| set | " + " | ".join(found) + " |", "|" + " --- |" * (len(found) + 1)]
    for name in sorted({run["set"] for own in found.values() for run in own}):
        cells = []
        for own in found.values():
            own = [run for run in own if run["set"] == name]
            alarms = [pooled([r["false_alarms"][rate] for r in own if rate in r["false_alarms"]]) for rate in RATES]
            lowers = np.sum([run["reason_lowers"] for run in own], 0).tolist() if own else (0, 0)
            shares = [f"{100 * k / n:.3g} %" if n else "-" for k, n, *_ in (*alarms, lowers)]
            cells.append(f"{shares[0]}, {shares[1]} of {alarms[0][1]}; {shares[2]} of {lowers[1]}" if own else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs_table(costs):
    batches = list(next(iter(costs.values())))
    lines = [
        "| graph | "
        + " | ".join(f"batches of {b}" for b in batches)
        + f" | relative to MLP 256x3, batches of {batches[-1]} |",
        "|" + " --- |" * (len(batches) + 2),
    ]
    for name, cost in costs.items():
        ratio = cost[batches[-1]] / costs["MLP 256x3"][batches[-1]]
        lines.append(f"| {name} | " + " | ".join(f"{cost[b]:.2f}" for b in batches) + f" | {ratio:.2f} |")
    return "\n".join(lines)
