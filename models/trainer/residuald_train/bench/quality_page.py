"""Writes `results.html` of `bench`: the tables of results.md and plots, in one file without external resources."""

import numpy as np
from markdown import markdown

from ..report.pages import render
from ..report.plots import COLOUR, plain_ticks, svg
from ..tabular.recipes import RECIPES
from .result_tables import AGAINST, grid

RECIPE, PEER = COLOUR["anomaly"], COLOUR["calibration"]


MOST_NAMES = 40  # sets whose names a plot shows


def page(sections, text):
    """{title: runs} and the text of results.md -> the HTML page."""
    plots = {title: plots_of(title, runs) for title, runs in sections.items()}
    body = markdown(text, extensions=["tables"], output_format="html")
    return render("quality.html", {"plots": plots, "body": body})


def plots_of(title, runs):
    methods, sets, _, auroc = grid(runs, "auroc")
    if not sets:
        return []
    _, _, _, ap = grid(runs, "ap")
    micros = grid(runs, "microseconds_a_row")[3].mean((1, 2))
    order = np.argsort(auroc.mean((1, 2)))
    names, colours = [methods[k] for k in order], [RECIPE if methods[k] in RECIPES else PEER for k in order]
    made = []

    def means(axes):
        for y, (k, colour) in enumerate(zip(order, colours, strict=True)):
            axes.plot(auroc[k].mean(1), np.full(len(sets), y), "|", color=COLOUR["line"], markersize=9)
            axes.plot(auroc[k].mean(0), np.full(auroc.shape[2], y), ".", color=colour, markersize=4)
            axes.plot(auroc[k].mean(), y, "o", color=colour)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("AUROC, %")

    caption = "Mean AUROC of each method. Small dots are seeds and strokes are sets. Recipes are red."
    made.append({"svg": svg(means, f"AUROC by method, {title}"), "caption": caption})

    def against_cost(axes):
        axes.scatter(micros[order], auroc.mean((1, 2))[order], c=colours)
        for k in order:
            axes.annotate(methods[k], (micros[k], auroc[k].mean()), (4, 3), textcoords="offset points", fontsize=7)
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
        axes.set(xlabel="µs per row, one thread", ylabel="AUROC, %")

    caption = "Mean AUROC and cost of a row."
    made.append({"svg": svg(against_cost, f"AUROC against cost, {title}"), "caption": caption})

    if AGAINST in methods:
        base = methods.index(AGAINST)
        for k in order[::-1]:
            if methods[k] in RECIPES:
                lead = (auroc[k] - auroc[base]).mean(1)
                made.append(lead_plot(methods[k], lead, (ap[k] - ap[base]).mean(1), sets, title))
    return made


def lead_plot(name, auroc, ap, sets, title):
    order = np.argsort(auroc)

    def draw(axes):
        places = np.arange(len(sets))
        axes.axvline(0, color=COLOUR["faint"], linewidth=0.8)
        axes.plot(ap[order], places, "o", color=PEER, markersize=3, label="average precision")
        axes.plot(auroc[order], places, "o", color=RECIPE, markersize=4, label="AUROC")
        if len(sets) <= MOST_NAMES:
            axes.set_yticks(places, [sets[k] for k in order], fontsize=6)
        else:
            axes.set_yticks([])
        axes.set_xlabel("percentage points")
        axes.legend(fontsize=7)

    led = int((auroc > 0).sum())
    caption = (
        f"Difference between {name} and {AGAINST} on each set. {name} has the higher AUROC on {led} of {len(sets)}."
    )
    return {"svg": svg(draw, f"{name} minus {AGAINST}, {title}"), "caption": caption}
