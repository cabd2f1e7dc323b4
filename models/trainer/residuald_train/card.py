"""The model card: one HTML file that says what a bundle is and how it does on data. `residuald-train report`.

Scores are those of the bundle's graph in ONNX Runtime, thresholds those of its calibration; labels only judge.
"""

import numpy as np
from scipy.stats import betabinom

from . import TrainerError, __version__
from .calibrate import RateTooFineError
from .card_plots import curves_plot, distribution_plot, exceedance_plot
from .features import encode
from .pages import render
from .served import microseconds_a_row
from .tables import interval

RATES, VOLUMES = (1e-2, 1e-3, 1e-4), (10_000, 1_000_000, 100_000_000)
CHECKED = 1e-1, 1e-2, 1e-3
REASONED = 1e-2  # the false-alarm rate of the records whose reasons are shown
EXAMPLES, FEATURES_SHOWN, REASONS_SHOWN = 6, 5, 15
DAYS = "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"


class Judged:
    """Scored records: those that are taken for normal (all of them without labels) and labelled anomalies."""

    def __init__(self, served, table, anomalous=None):
        """`anomalous` bool [rows], None: there are no labels."""
        X, accepted, self.refused = encode(table, served.features)
        if not accepted.any():
            raise TrainerError(f"no record of the data fits the schema: {self.refused.most_common(1)[0][0]}")
        self.labelled = anomalous is not None
        self.anomalous = anomalous[accepted] if self.labelled else np.zeros(accepted.sum(), bool)
        self.rows, self.read, self.X = np.flatnonzero(accepted), table.rows, X[accepted]
        self.score, self.residual, self.expected = served.score(self.X)
        self.normal_scores, self.anomaly_scores = self.score[~self.anomalous], self.score[self.anomalous]
        self.files = table.files


def card(served, judged=None):
    """Served bundle and Judged records, if there are any -> the page."""
    facts = {
        "bundle": served,
        "manifest": served.manifest,
        "training": served.manifest.get("training") or {},
        "scoring": served.manifest.get("scoring") or {},
        "features": served.features,
        "golden_met": served.golden_met(),
        "judged": judged,
        "thresholds": [threshold_row(served.calibration, rate) for rate in RATES],
        "volumes": VOLUMES,
        "cost": {batch: microseconds(served, batch) for batch in (256, 1)},
        "version": __version__,
    }
    facts["curves"] = facts["training"].get("curves")
    facts["curves_plot"] = curves_plot(facts["curves"]) if facts["curves"] else None
    facts["distribution"] = distribution_plot(served.calibration, judged)
    facts["exceedance"] = exceedance_plot(served.calibration, judged, supported(served.calibration, RATES))
    if judged:
        known = {file["sha256"] for file in facts["training"].get("data", ())}
        facts["trained_on"] = [file["file"] for file in judged.files if file["sha256"] in known]
        facts |= {"checks": checks(served.calibration, judged), "reasons": reasons(served, judged)}
        facts["detection"] = detection(served.calibration, judged) if judged.anomalous.any() else None
        facts["examples"] = examples(served, judged)
    return render("card.html", facts, {"figures": figures, "count": "{:,}".format, "percent": percent})


def supported(calibration, rates):
    """{rate: threshold} of the rates that the sample can tell apart."""
    return {rate: calibration.threshold(rate) for rate in rates if rate * (calibration.count + 1) >= 1 - 1e-9}


def threshold_row(calibration, rate):
    try:
        return {"rate": rate, "threshold": calibration.threshold(rate), "needed": None}
    except RateTooFineError as error:
        return {"rate": rate, "threshold": None, "needed": error.needed}


def share(flagged, n):
    low, high = interval(flagged, n)
    return {"flagged": int(flagged), "n": int(n), "share": flagged / n, "low": low, "high": high}


def checks(calibration, judged):
    """How many normal records are flagged at each rate, and how many are usual.

    The threshold is the k-th largest of n calibration scores. Of m other records drawn alike a beta-binomial number
    (m, k, n + 1 - k; Vovk 2012) lies above it, so `usual` also counts in that the calibration is a sample.
    """
    m, rows = len(judged.normal_scores), []
    for rate, threshold in supported(calibration, CHECKED).items() if m else ():
        k = calibration.rank(rate)
        row = {"rate": rate, **share((judged.normal_scores > threshold).sum(), m)}
        low, high = betabinom(m, k, calibration.count + 1 - k).interval(0.95)
        row |= {"usual_low": low / m, "usual_high": high / m}
        row["verdict"] = "more than usual" if row["flagged"] > high else "less" if row["flagged"] < low else "as usual"
        rows.append(row)
    return rows


def detection(calibration, judged):
    """AUROC and average precision in [0, 1], recall and precision at the rates that the calibration supports."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    rows = []
    for rate, threshold in supported(calibration, CHECKED).items():
        found, false = (judged.anomaly_scores > threshold).sum(), (judged.normal_scores > threshold).sum()
        precision = found / (found + false) if found + false else None
        rows.append({"rate": rate, **share(found, len(judged.anomaly_scores)), "precision": precision})
    both = len(judged.normal_scores) > 0
    return {
        "auroc": roc_auc_score(judged.anomalous, judged.score) if both else None,
        "ap": average_precision_score(judged.anomalous, judged.score) if both else None,
        "rows": rows,
    }


def reasoned(calibration):
    """-> (false-alarm rate, threshold) whose flagged records are explained: REASONED, or the finest one."""
    rate = max(REASONED, calibration.finest_rate())
    return rate, calibration.threshold(rate)


def reasons(served, judged):
    """How often each feature has the largest share of the residual, over flagged records."""
    rate, threshold = reasoned(served.calibration)
    flagged = judged.score > threshold
    top = judged.residual[flagged].argmax(1)
    count = {
        name: np.bincount(top[rows], minlength=len(served.features))
        for name, rows in (("anomalies", judged.anomalous[flagged]), ("normals", ~judged.anomalous[flagged]))
    }
    total = count["anomalies"] + count["normals"]
    order = [int(j) for j in np.argsort(-total, kind="stable") if total[j]]
    rows = [
        {"feature": served.features[j].name, "flagged": int(total[j]), **{n: int(c[j]) for n, c in count.items()}}
        for j in order[:REASONS_SHOWN]
    ]
    rest = sum(int(total[j]) for j in order[REASONS_SHOWN:])
    return {"rate": rate, "flagged": int(flagged.sum()), "rows": rows, "rest": rest}


def examples(served, judged):
    """Some flagged records, from the highest score to the lowest, with the features that add most."""
    _, threshold = reasoned(served.calibration)
    flagged = np.flatnonzero(judged.score > threshold)
    flagged = flagged[np.argsort(-judged.score[flagged], kind="stable")]
    picked = flagged[np.unique(np.linspace(0, len(flagged) - 1, EXAMPLES).round().astype(int))] if len(flagged) else []
    out = []
    for i in picked:
        total, order = judged.residual[i].sum(), np.argsort(-judged.residual[i], kind="stable")
        rows = [
            {
                "feature": served.features[j].name,
                "unit": served.features[j].unit,
                "observed": told(served.features[j], judged.X[i, j], judged.expected[i, j])[0],
                "expected": told(served.features[j], judged.X[i, j], judged.expected[i, j])[1],
                "share": judged.residual[i, j] / total,
            }
            for j in order[:FEATURES_SHOWN]
            if judged.residual[i, j] > 0
        ]
        out.append(
            {
                "row": int(judged.rows[i]) + 1,
                "score": judged.score[i],
                "p_value": float(served.calibration.p_value(judged.score[i])),
                "grade": judged.score[i] / threshold,
                "anomalous": bool(judged.anomalous[i]),
                "reason": rows[0]["feature"],
                "rows": rows,
                "missing": [f.name for f, value in zip(served.features, judged.X[i], strict=True) if np.isnan(value)],
            }
        )
    return out


def told(feature, observed, expected):
    """(observed, expected) in the user's terms, as in the daemon's verdicts."""
    if feature.type == "categorical":
        words = [*feature.vocabulary, "(not seen in training)"]
        return words[int(observed)], words[int(expected)]
    if feature.type == "bool":
        return "true" if observed >= 0.5 else "false", f"{100 * float(expected):.0f} % true"
    if feature.type == "timestamp":
        return moment(feature, observed), moment(feature, expected)
    return figures(observed), figures(expected)


def moment(feature, value):
    if feature.part == "day_of_week":
        return DAYS[round(float(value)) % 7]
    minutes = round(float(value) * 60) % 1440
    return f"{minutes // 60:02}:{minutes % 60:02}"


def microseconds(served, batch):
    """µs a row on one thread, over the golden records."""
    X = np.resize(served.golden, (4096 if batch > 1 else 512, len(served.features)))
    return microseconds_a_row(served.session, X, batch)


def figures(value, digits=4):
    """A number with so many significant digits, without an exponent unless it is far out."""
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
