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
