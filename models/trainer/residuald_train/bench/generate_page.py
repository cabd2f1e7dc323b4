"""GENERATE.md: the results of `bench-generate` as tables."""

import numpy as np

METRICS = {
    "quality": ("quality", 3, "mean of shapes and trends; 1 is best"),
    "shapes": ("column shapes", 3, "sdmetrics; 1 is best"),
    "trends": ("pair trends", 3, "sdmetrics; 1 is best"),
    "c2st": ("C2ST", 3, "AUROC of gradient boosting, real against drawn; 0.5 is best"),
    "utility": ("utility", 3, "trained on drawn rows minus trained on real rows, tested on real ones; 0 is best"),
    "closer_to_training": ("closer to training", 3, "share of drawn rows closer to a training row than to a real one"),
    "seconds": ("CPU s", 0, "training and drawing, one thread"),
}


def page(results):
    """The content of results.json -> Markdown."""
    parts = []
    for part in sorted({run["part"] for run in results["runs"]}, reverse=True):
        runs = [run for run in results["runs"] if run["part"] == part]
        parts.append(f"## Sets: {part}\n\n{means(runs)}\n\n{by_set(runs, 'quality')}\n\n{by_set(runs, 'c2st')}")
    ours = [run for run in results["runs"] if run.get("gate")]
    parts += [gate_table(ours)] if ours else []
    parts += [impute_table(ours)] if any(run["impute"] for run in ours) else []
    legend = "\n".join(f"- {title}: {text}" for title, _, text in METRICS.values())
    return f"# Drawn tables\n\n{legend}\n\n" + "\n\n".join(parts) + "\n"


def grid(runs, metric):
    """-> (sets, methods, {(set, method): mean over seeds})."""
    sets, methods = (
        sorted({r["set"] for r in runs}),
        sorted({r["method"] for r in runs}, key=lambda m: (m != "residuald", m)),
    )
    values = {}
    for name in sets:
        for method in methods:
            found = [r[metric] for r in runs if r["set"] == name and r["method"] == method]
            if found and not np.all(np.isnan(found)):
                values[name, method] = float(np.nanmean(found))
    return sets, methods, values


def means(runs):
    """Means over the sets that a method has run on, and those of residuald on the same sets."""
    sets, methods, _ = grid(runs, "quality")
    titles = [title for title, _, _ in METRICS.values()]
    lines = [["method", "sets", "seeds", *titles]]
    for method in methods:
        mine = [r for r in runs if r["method"] == method]
        on = {r["set"] for r in mine}
        lines.append([method, len(on), len({r["seed"] for r in mine}), *row_of_means(runs, method, on)])
        if on != set(sets):
            lines.append([f"residuald on these {len(on)}", len(on), "", *row_of_means(runs, "residuald", on)])
    return markdown(lines)


def row_of_means(runs, method, on):
    cells = []
    for metric, (_, digits, _) in METRICS.items():
        _, _, values = grid([r for r in runs if r["set"] in on], metric)
        found = [v for (_, m), v in values.items() if m == method]
        cells.append(f"{np.mean(found):.{digits}f}" if found else "")
    return cells


def by_set(runs, metric):
    sets, methods, values = grid(runs, metric)
    title, digits, _ = METRICS[metric]
    lines = [[title, *methods]]
    for name in sets:
        lines.append([name, *(f"{values[name, m]:.{digits}f}" if (name, m) in values else "" for m in methods)])
    return markdown(lines)


def markdown(lines):
    head, *rest = [" | ".join(map(str, line)) for line in lines]
    return "\n".join(f"| {line} |" for line in [head, " | ".join(["---"] * len(lines[0])), *rest])


def gate_table(runs):
    """How many of all trials the privacy gate passed."""
    total = sum(run["gate"]["trials"] for run in runs)
    kinds = {
        "held_out": "a held-out half of the real rows (should pass)",
        "drawn": "rows drawn by residuald",
        "copies": "training rows with little noise (should fail)",
        "some_copies": "real rows, 10 % of them training rows with little noise (should fail)",
    }
    lines = [["rows", "passed", "of"]]
    lines += [[text, sum(run["gate"][name] for run in runs), total] for name, text in kinds.items()]
    return f"## Privacy gate\n\n{markdown(lines)}"


def impute_table(runs):
    """Mean rank and mean error of each imputer over the runs, for each rule."""
    parts = ["## Imputation\n"]
    for rule, text in {
        "random": "20 % hidden at random",
        "large": "40 % of the values above the median hidden",
    }.items():
        found = [run["impute"][rule] for run in runs if rule in run["impute"]]
        methods = list(found[0]["error"])
        lines = [["imputer", "mean rank", "mean absolute error", "root mean square error", "90 % interval holds"]]
        errors = np.array([[f["error"][m] for m in methods] for f in found])
        ranks = errors.argsort(1).argsort(1).mean(0) + 1
        for k, method in enumerate(methods):
            rmse = np.mean([f["rmse"][method] for f in found])
            held = f"{np.mean([f['coverage'] for f in found]):.3f}" if method == "residuald" else ""
            lines.append([method, f"{ranks[k]:.2f}", f"{errors[:, k].mean():.3f}", f"{rmse:.3f}", held])
        parts.append(f"{text}, {len(found)} runs, errors in standard deviations:\n\n{markdown(lines)}\n")
    return "\n".join(parts)
