"""Draws a dashboard from its JSON and Prometheus' data, as an example image without Grafana.

    .venv/bin/pip install matplotlib
    .venv/bin/python -m pytest tests/monitoring --render DIR

Positions, titles, queries, legends and units are those of the dashboard. The style is not Grafana's.
"""

import re
import time

import matplotlib.pyplot as plt
import numpy as np

HOUR = 80  # seconds to show; the rules' clock runs 60 times as fast, so an hour takes a minute
UNITS = {"cps": "/s", "ops": "/s", "cpm": "/min", "s": " s", "percentunit": "", "bytes": " B"}


def render(stack, dashboard, fill, path):
    panels = dashboard["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = plt.figure(figsize=(16, height * 0.42), facecolor="#f4f5f5")
    for panel in panels:
        place = panel["gridPos"]
        left, width = place["x"] / 24, place["w"] / 24
        bottom, tall = 1 - (place["y"] + place["h"]) / height, place["h"] / height
        if panel["type"] == "row":
            figure.text(0.008, bottom + tall * 0.4, panel["title"], fontsize=13, weight="bold")
            continue
        axes = figure.add_axes([left + 0.035, bottom + 0.9 / height, width - 0.043, tall - 2.1 / height])
        axes.set_title(panel["title"], fontsize=10, loc="left")
        unit = UNITS.get(panel.get("fieldConfig", {"defaults": {}})["defaults"].get("unit"), "")
        draw = {"stat": stat, "table": table, "heatmap": heatmap}.get(panel["type"], lines)
        draw(axes, stack, panel, fill, unit)
    figure.savefig(path, dpi=75)
    plt.close(figure)


def stat(axes, stack, panel, fill, unit):
    values = stack.query(fill(panel["targets"][0]["expr"]))
    axes.text(0.5, 0.45, f"{values[0]:.4g}{unit}", fontsize=24, color="#1f60c4", ha="center", va="center")
    axes.axis("off")


def table(axes, stack, panel, fill, _unit):
    found = stack.ask("query", query=fill(panel["targets"][0]["expr"]))["result"]
    hidden = {"__name__", "job", "instance"}
    texts = [", ".join(f"{k} {v[:12]}" for k, v in one["metric"].items() if k not in hidden) for one in found]
    axes.text(0, 0.8, "\n".join(texts), fontsize=9, va="top")
    axes.axis("off")


def lines(axes, stack, panel, fill, unit):
    for target in panel["targets"]:
        for labels, times, values in shown(stack, fill(target["expr"])):
            legend = re.sub(r"{{(\w+)}}", lambda m, labels=labels: labels.get(m[1], ""), target["legendFormat"])
            axes.plot(times, values, linewidth=1.2, label=legend)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=7)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axes.legend(fontsize=7, loc="upper left", ncols=2, frameon=False)


def heatmap(axes, stack, panel, fill, _unit):
    """Draws the count in each bucket, which Grafana computes from cumulative buckets in the same way."""
    found = shown(stack, fill(panel["targets"][0]["expr"]))
    buckets = sorted(found, key=lambda one: float(one[0]["le"]))
    counts = np.diff([values for _, _, values in buckets], axis=0, prepend=0)
    axes.imshow(
        np.nan_to_num(counts), aspect="auto", origin="lower", cmap="viridis", extent=(-HOUR, 0, 0, len(buckets))
    )
    axes.set_yticks(range(1, len(buckets) + 1), [f"{float(labels['le']):.2g}" for labels, _, _ in buckets], fontsize=6)
    axes.tick_params(axis="x", labelsize=7)


def shown(stack, expression):
    """Yields (labels, times, values) for each series of a query over the last HOUR."""
    now = time.time()
    asked = {"query": expression, "start": now - HOUR, "end": now, "step": 1}
    for series in stack.ask("query_range", **asked)["result"]:
        times, values = zip(*((t - now, float(v)) for t, v in series["values"]), strict=True)
        yield series["metric"], times, values
