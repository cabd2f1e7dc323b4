"""The tables of `bench` as Markdown, of those sets and seeds that all methods have."""

from collections import Counter

import numpy as np

AGAINST = "1-NN"


def grid(runs, key):
    """-> (methods, sets, seeds, values [method, set, seed]); sets and seeds that every method has."""
    methods = list(dict.fromkeys(r["method"] for r in runs))
    values = {(r["method"], r["set"], r["seed"]): r[key] for r in runs}
    every = {(s, seed) for _, s, seed in values}
    whole = {(s, seed) for s, seed in every if all((m, s, seed) in values for m in methods)}
    found = Counter(seed for _, seed in whole)
    seeds = sorted(seed for seed, count in found.items() if count == max(found.values()))  # others are under way
    sets = sorted(s for s in {s for s, _ in whole} if all((s, seed) in whole for seed in seeds))
    return methods, sets, seeds, np.array([[[values[m, s, k] for k in seeds] for s in sets] for m in methods])


def means_table(runs):
    """± is the standard error: of the mean over seeds (these sets, other seeds), of the difference over sets."""
    methods, sets, seeds, auroc = grid(runs, "auroc")
    if not sets:
        return "No set has been run with all methods yet."
    _, _, _, ap = grid(runs, "ap")
    seconds, micros = (grid(runs, key)[3] for key in ("fit_seconds", "microseconds_a_row"))
    lines = [
        f"{len(sets)} sets, {len(seeds)} seeds. ±: standard error of a mean over seeds, of a difference over sets.",
        "",
        f"| method | AUROC | AP | AUROC over {AGAINST} | AP over {AGAINST} | training, s a set | µs a row |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    base = methods.index(AGAINST) if AGAINST in methods else None
    for k in np.argsort(-auroc.mean((1, 2))):
        cells = [methods[k], seeds_cell(auroc[k]), seeds_cell(ap[k])]
        cells += ["" if base in (None, k) else sets_cell(v[k] - v[base]) for v in (auroc, ap)]
        cells += [f"{seconds[k].mean():.2f}", f"{micros[k].mean():.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seeds_cell(values):
    """[set, seed]"""
    means = values.mean(0)
    error = f" ± {means.std(ddof=1) / np.sqrt(len(means)):.2f}" if len(means) > 1 else ""
    return f"{means.mean():.2f}{error}"


def sets_cell(difference):
    """[set, seed]"""
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


def costs_table(costs):
    batches = list(next(iter(costs.values())))
    lines = [
        "| graph | " + " | ".join(f"batches of {b}" for b in batches) + f" | over MLP 256x3, {batches[-1]} |",
        "|" + " --- |" * (len(batches) + 2),
    ]
    for name, cost in costs.items():
        ratio = cost[batches[-1]] / costs["MLP 256x3"][batches[-1]]
        lines.append(f"| {name} | " + " | ".join(f"{cost[b]:.2f}" for b in batches) + f" | {ratio:.2f} |")
    return "\n".join(lines)
