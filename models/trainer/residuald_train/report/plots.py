"""Plots as SVG. Their colours are CSS variables of the page, so that they follow its light or dark scheme."""

import io
import itertools
import re

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

SIZE = 5.2, 3.0  # inches; small, so that text stays readable on a narrow page
BINS = 60
# matplotlib writes these codes, and `svg` replaces them with the CSS variables of these names.
NAMES = {"#000001": "ink", "#000002": "faint", "#000003": "line", "#000004": "calibration"}
NAMES |= {"#000005": "normal", "#000006": "anomaly", "#000007": "threshold"}
COLOUR = {name: code for code, name in NAMES.items()}
LINES = COLOUR["calibration"], COLOUR["anomaly"], COLOUR["normal"], COLOUR["threshold"]
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "residuald",
    "font.size": 9,
    "text.color": COLOUR["ink"],
    "axes.labelcolor": COLOUR["faint"],
    "axes.edgecolor": COLOUR["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLOUR["line"],
    "grid.linewidth": 0.5,
    "xtick.color": COLOUR["line"],
    "ytick.color": COLOUR["line"],
    "xtick.labelcolor": COLOUR["faint"],
    "ytick.labelcolor": COLOUR["faint"],
    "figure.facecolor": "none",
    "legend.frameon": False,
}


def svg(draw, label):
    """Calls `draw(axes)` with matplotlib axes -> an <svg> element with `label` for screen readers."""
    with rc_context(STYLE):
        figure = Figure(SIZE, layout="constrained")
        draw(figure.add_subplot())
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' width="[^"]*pt"| height="[^"]*pt"| version="1.1"| xmlns(:\w+)?="[^"]*"', "", text, count=5)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    prefix = re.sub(r"\W+", "-", label.lower()) + "-"  # ids must be unique in the page
    text = re.sub(r'( id="| xlink:href="#|url\(#)', rf"\g<1>{prefix}", text).replace("xlink:href", "href")
    for code, name in NAMES.items():
        text = text.replace(code, f"var(--{name})")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def curves_plot(curves):
    """Plots the loss curves of the manifest, [{denoiser, steps, loss}] -> <svg>."""

    def draw(axes):
        for colour, curve in zip(itertools.cycle(LINES), curves, strict=False):
            at = (np.arange(len(curve["loss"])) + 0.5) * curve["steps"]
            axes.plot(at, curve["loss"], color=colour, linewidth=1.2, label=curve["denoiser"])
        losses = np.concatenate([curve["loss"] for curve in curves])
        if 0 < 10 * losses.min() < losses.max():
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        axes.set(xlabel="step", ylabel="loss")
        axes.legend()

    return svg(draw, "The loss by training step")


def bin_edges(calibration, scored):
    """The BINS + 1 edges of histogram bins, geometrically spaced over all scores."""
    scores = [calibration.quantiles[[0, -1]], *([scored.score] if scored else [])]
    low, high = min(map(np.min, scores)), max(map(np.max, scores))
    low = max(low, high * 1e-4, 1e-9)
    return np.geomspace(low * 0.97, max(high, low) * 1.03, BINS + 1)


def share_above(calibration, scores):
    """Scores [n] -> for each, the share of calibration records that score at least as high [n]."""
    return (calibration.p_value(scores) * (calibration.count + 1) - 1) / calibration.count


def groups(scored):
    """[(scores, label, colour)] for the normal and the anomalous records of the data."""
    if scored is None:
        return []
    name = "normals of the data" if scored.labelled else "the data"
    found = [(scored.normal_scores, name, COLOUR["normal"]), (scored.anomaly_scores, "anomalies", COLOUR["anomaly"])]
    return [group for group in found if len(group[0])]


def distribution_plot(calibration, scored):
    """Plots the share of records in each of BINS score bins -> <svg>. Each group adds up to 100 %."""
    at = bin_edges(calibration, scored)

    def draw(axes):
        mass = -100 * np.diff(share_above(calibration, at))
        axes.stairs(mass.clip(0), at, color=COLOUR["calibration"], fill=True, alpha=0.3)
        axes.stairs(mass.clip(0), at, color=COLOUR["calibration"], label="calibration")
        for scores, name, colour in groups(scored):
            counts = np.histogram(scores.clip(at[0], at[-1]), at)[0]
            axes.stairs(100 * counts / len(scores), at, color=colour, label=name, linewidth=1.2)
        log_scores(axes, at)
        axes.set_ylabel("% of the records")
        legend_above(axes)

    return svg(draw, "How scores are distributed")


def exceedance_plot(calibration, scored, thresholds):
    """Plots the share of records above each score, on two logarithmic axes -> <svg>. `thresholds`: {rate: score}."""
    at = np.geomspace(*bin_edges(calibration, scored)[[0, -1]], 400)

    def draw(axes):
        curves = [(share_above(calibration, at), "calibration", COLOUR["calibration"])]
        for scores, name, colour in groups(scored):
            ordered = np.sort(scores)
            curves.append((1 - np.searchsorted(ordered, at, side="right") / len(ordered), name, colour))
        for values, name, colour in curves:
            axes.plot(at, np.where(values > 0, values, np.nan), color=colour, label=name, linewidth=1.2)
        for score in thresholds.values():
            axes.axvline(score, color=COLOUR["threshold"], linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yscale("log")
        for rate, score in thresholds.items():
            axes.text(
                score, axes.get_ylim()[0], f" {rate:g}", color=COLOUR["threshold"], rotation=90, ha="right", fontsize=7
            )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        log_scores(axes, at)
        axes.set_ylabel("share that scores higher")
        legend_above(axes)

    return svg(draw, "The share of records above a score")


def log_scores(axes, at):
    axes.set_xscale("log")
    axes.set_xlim(at[0], at[-1])
    axes.set_xlabel("score")
    plain_ticks(axes.xaxis)


def plain_ticks(axis):
    """Writes tick labels without exponents. Labels ticks between decades only if the axis spans few decades."""
    low, high = axis.get_view_interval()
    write = FuncFormatter(lambda v, _: f"{v:g}")
    axis.set_major_formatter(write)
    decades = np.log10(high / low) if low > 0 else 9
    first = (1, 2, 3, 5) if decades < 1.2 else (1, 2, 5)
    few = FuncFormatter(lambda v, _: f"{v:g}" if round(v / 10 ** np.floor(np.log10(v) + 1e-9)) in first else "")
    axis.set_minor_formatter(few if decades < 2.2 else NullFormatter())


def legend_above(axes):
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, columnspacing=1, handlelength=1.2)
