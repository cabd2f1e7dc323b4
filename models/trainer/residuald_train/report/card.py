"""The model card: one HTML file that describes a bundle and how well it works on data (`residuald-train report`).

Scores come from the bundle's graph in ONNX Runtime, thresholds from its calibration. Labels are used only to measure.
"""

import numpy as np
from scipy.stats import betabinom

from .. import __version__
from ..bench import metrics
from ..bundle.calibrate import RateTooFineError
from ..bundle.served import microseconds_a_row
from ..tabular.data import file_facts
from ..tabular.features import encode
from ..tabular.refusals import say_refusals
from .pages import render
from .plots import curves_plot, distribution_plot, exceedance_plot

RATES, VOLUMES = (1e-2, 1e-3, 1e-4), (10_000, 1_000_000, 100_000_000)
CHECKED_RATES = 1e-1, 1e-2, 1e-3
REASONS_RATE = 1e-2  # false-alarm rate of the records whose reasons are shown
EXAMPLES, FEATURES_SHOWN, REASONS_SHOWN = 6, 5, 15
DAYS = "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"


class ScoredRecords:
    """Records with their scores. Without labels, all of them count as normal."""

    def __init__(self, served, table, anomalous=None):
        """`table`: records [rows]. `anomalous`: bool [rows], or None without labels."""
        X, accepted, self.refused = encode(table, served.features)
        say_refusals(table, served.features, accepted, self.refused)
        self.labelled = anomalous is not None
        self.anomalous = anomalous[accepted] if self.labelled else np.zeros(accepted.sum(), bool)
        self.rows, self.read, self.X = np.flatnonzero(accepted), len(table), X[accepted]
        self.score, self.residual, self.expected = served.score(self.X)
        self.normal_scores, self.anomaly_scores = self.score[~self.anomalous], self.score[self.anomalous]
        self.files = file_facts(table)


def card(served, scored=None):
    """A Served bundle, and ScoredRecords or None -> the HTML page."""
    facts = {
        "bundle": served,
        "manifest": served.manifest,
        "training": served.manifest.get("training") or {},
        "scoring": served.manifest.get("scoring") or {},
        "features": served.features,
        "golden_passed": served.golden_passed(),
        "scored": scored,
        "thresholds": [threshold_row(served.calibration, rate) for rate in RATES],
        "volumes": VOLUMES,
        "cost": {batch: microseconds(served, batch) for batch in (256, 1)},
        "version": __version__,
    }
    facts["curves"] = facts["training"].get("curves")
    facts["curves_plot"] = curves_plot(facts["curves"]) if facts["curves"] else None
    facts["distribution"] = distribution_plot(served.calibration, scored)
    facts["exceedance"] = exceedance_plot(served.calibration, scored, supported(served.calibration, RATES))
    if scored:
        known = {file.get("sha256") for file in facts["training"].get("data", ())} - {None}
        facts["trained_on"] = [file["file"] for file in scored.files if file.get("sha256") in known]
        facts |= {"checks": checks(served.calibration, scored), "reasons": reasons(served, scored)}
        facts["detection"] = detection(served.calibration, scored) if scored.anomalous.any() else None
        facts["examples"] = examples(served, scored)
    return render("card.html", facts, {"figures": figures, "count": "{:,}".format, "percent": percent})


def supported(calibration, rates):
    """{rate: threshold} for the rates for which the calibration is large enough."""
    return {rate: calibration.threshold(rate) for rate in rates if rate * (calibration.count + 1) >= 1 - 1e-9}


def threshold_row(calibration, rate):
    try:
        return {"rate": rate, "threshold": calibration.threshold(rate), "needed": None}
    except RateTooFineError as error:
        return {"rate": rate, "threshold": None, "needed": error.needed}


def share(flagged, n):
    low, high = metrics.interval(flagged, n)
    return {"flagged": int(flagged), "n": int(n), "share": flagged / n, "low": low, "high": high}


def checks(calibration, scored):
    """Counts the normal records that are flagged at each rate, and tells whether this number is usual.

    The threshold is the k-th largest of n calibration scores. The number of records above it among m others of the same
    distribution is beta-binomial (m, k, n + 1 - k; Vovk 2012). This accounts for the calibration being a sample itself.
    """
    m, rows = len(scored.normal_scores), []
    for rate, threshold in supported(calibration, CHECKED_RATES).items() if m else ():
        k = calibration.rank(rate)
        row = {"rate": rate, **share((scored.normal_scores > threshold).sum(), m)}
        low, high = betabinom(m, k, calibration.count + 1 - k).interval(0.95)
        row |= {"usual_low": low / m, "usual_high": high / m}
        row["verdict"] = "more than usual" if row["flagged"] > high else "less" if row["flagged"] < low else "as usual"
        rows.append(row)
    return rows


def detection(calibration, scored):
    """AUROC, average precision, and recall and precision at the rates that the calibration supports, all in 0..1."""
    rows = []
    for rate, threshold in supported(calibration, CHECKED_RATES).items():
        found, false = (scored.anomaly_scores > threshold).sum(), (scored.normal_scores > threshold).sum()
        precision = found / (found + false) if found + false else None
        rows.append({"rate": rate, **share(found, len(scored.anomaly_scores)), "precision": precision})
    areas = metrics.detection(scored.anomalous, scored.score) if len(scored.normal_scores) else {}
    return {"auroc": areas.get("auroc"), "ap": areas.get("average_precision"), "rows": rows}


def reasons_threshold(calibration):
    """The threshold above which reasons are shown -> (false-alarm rate, threshold).

    The rate is REASONS_RATE, or the lowest supported one if that is higher.
    """
    rate = max(REASONS_RATE, calibration.finest_rate())
    return rate, calibration.threshold(rate)


def reasons(served, scored):
    """Counts how often each feature has the largest share of the residual, over flagged records."""
    rate, threshold = reasons_threshold(served.calibration)
    flagged = scored.score > threshold
    top = scored.residual[flagged].argmax(1)
    count = {
        name: np.bincount(top[rows], minlength=len(served.features))
        for name, rows in (("anomalies", scored.anomalous[flagged]), ("normals", ~scored.anomalous[flagged]))
    }
    total = count["anomalies"] + count["normals"]
    order = [int(j) for j in np.argsort(-total, kind="stable") if total[j]]
    rows = [
        {"feature": served.features[j].name, "flagged": int(total[j]), **{n: int(c[j]) for n, c in count.items()}}
        for j in order[:REASONS_SHOWN]
    ]
    rest = sum(int(total[j]) for j in order[REASONS_SHOWN:])
    return {"rate": rate, "flagged": int(flagged.sum()), "rows": rows, "rest": rest}


def examples(served, scored):
    """Some flagged records, from the highest score to the lowest, with the features of the largest shares."""
    _, threshold = reasons_threshold(served.calibration)
    flagged = np.flatnonzero(scored.score > threshold)
    flagged = flagged[np.argsort(-scored.score[flagged], kind="stable")]
    picked = flagged[np.unique(np.linspace(0, len(flagged) - 1, EXAMPLES).round().astype(int))] if len(flagged) else []
    out = []
    for i in picked:
        total, order = scored.residual[i].sum(), np.argsort(-scored.residual[i], kind="stable")
        rows = [
            {
                "feature": served.features[j].name,
                "unit": served.features[j].unit,
                "observed": readable(served.features[j], scored.X[i, j], scored.expected[i, j])[0],
                "expected": readable(served.features[j], scored.X[i, j], scored.expected[i, j])[1],
                "share": scored.residual[i, j] / total,
            }
            for j in order[:FEATURES_SHOWN]
            if scored.residual[i, j] > 0
        ]
        out.append(
            {
                "row": int(scored.rows[i]) + 1,
                "score": scored.score[i],
                "p_value": float(served.calibration.p_value(scored.score[i])),
                "grade": scored.score[i] / threshold,
                "anomalous": bool(scored.anomalous[i]),
                "reason": rows[0]["feature"],
                "rows": rows,
                "missing": [f.name for f, value in zip(served.features, scored.X[i], strict=True) if np.isnan(value)],
            }
        )
    return out


def readable(feature, observed, expected):
    """Raw values -> (observed, expected) as strings, formatted as in the daemon's verdicts."""
    if feature.type == "categorical":
        words = [*feature.vocabulary, "(not seen in training)"]
        return words[int(observed)], words[int(expected)]
    if feature.type == "bool":
        return "true" if observed >= 0.5 else "false", f"{100 * float(expected):.0f} % true"
    if feature.type == "timestamp":
        return time_text(feature, observed), time_text(feature, expected)
    return figures(observed), figures(expected)


def time_text(feature, value):
    if feature.part == "day_of_week":
        return DAYS[round(float(value)) % 7]
    minutes = round(float(value) * 60) % 1440
    return f"{minutes // 60:02}:{minutes % 60:02}"


def microseconds(served, batch):
    """µs per row on one thread, measured on the golden records."""
    X = np.resize(served.golden, (4096 if batch > 1 else 512, len(served.features)))
    return microseconds_a_row(served.session, X, batch)


def figures(value, digits=4):
    """A number with `digits` significant digits, without an exponent unless it is very large or small."""
    value = float(value)
    if value == 0 or not np.isfinite(value):
        return f"{value:g}"
    size = int(np.floor(np.log10(abs(value))))
    if not -4 <= size <= 9:
        return f"{value:.{digits - 1}e}"
    text = f"{float(f'{value:.{digits - 1}e}'):,.{max(0, digits - 1 - size)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(value):
    return f"{figures(100 * value, 3)} %"
