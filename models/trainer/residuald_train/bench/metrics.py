"""Detection metrics: how well scores and heatmaps find labelled anomalies. All are in 0..1."""

import numpy as np
from scipy import ndimage
from scipy.stats import binomtest

FALSE_POSITIVES = 0.3  # false-positive rate up to which the PRO curve is integrated


def auroc(normal, anomalous):
    """Scores [n] and [m] -> the probability that an anomaly scores above a normal record; ties count half."""
    from sklearn.metrics import roc_auc_score  # slow to import

    return float(roc_auc_score(np.arange(len(normal) + len(anomalous)) >= len(normal), np.r_[normal, anomalous]))


def detection(anomalous, scores):
    """anomalous bool [n], scores [n] -> {"auroc", "average_precision"}, as defined by scikit-learn."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "auroc": float(roc_auc_score(anomalous, scores)),
        "average_precision": float(average_precision_score(anomalous, scores)),
    }


def interval(k, n):
    """The exact 95 % confidence interval (low, high) of a proportion, k of n (Clopper & Pearson 1934)."""
    return binomtest(int(k), int(n)).proportion_ci(0.95, method="exact")


def pessimistic_average_precision(normal, anomalous):
    """Scores [n] and [m] -> the mean of the precision at each anomaly, in descending order of scores.

    Among equal scores, normal ones come first, so ties cannot improve the result. scikit-learn's average precision
    treats equal scores as one threshold instead.
    """
    scores, labels = np.concatenate([normal, anomalous]), np.r_[np.zeros(len(normal)), np.ones(len(anomalous))]
    labels = labels[np.lexsort((labels, -scores))]
    return float((np.cumsum(labels) / np.arange(1, len(labels) + 1))[labels == 1].mean())


def image_metrics(scores, labels):
    """scores [n], labels [n] (strings, "good" for normal) -> {"image": AUROC, "AP": average precision, class: AUROC}.

    Empty if there are no normal images or no anomalous ones.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    normal, rest = scores[labels == "good"], scores[labels != "good"]
    if not len(normal) or not len(rest):
        return {}
    out = {"image": auroc(normal, rest), "AP": pessimistic_average_precision(normal, rest)}
    classes = sorted(set(labels.tolist()) - {"good"})
    return out | {c: auroc(normal, scores[labels == c]) for c in classes}


def pixel_metrics(heat, masks):
    """heat float [n, H, W], masks bool [n, H, W] -> {"pixel": AUROC of pixels, "PRO"}.

    PRO (Bergmann et al. 2020) is the share of each connected region that is found, averaged over regions, as a function
    of the false-positive rate of all other pixels. It is integrated up to a rate of 0.3 and divided by 0.3. The result
    is empty if the masks are all true or all false.
    """
    if not masks.any() or masks.all():
        return {}
    edges = np.quantile(heat, np.linspace(0, 1, 4097)[1:-1])
    edges = np.unique(np.concatenate([edges, np.linspace(heat.min(), heat.max(), 4096)]))
    bins = np.searchsorted(edges, heat, side="right")
    count = len(edges) + 1

    def reached(levels):
        """Bins of pixels -> the share of pixels at or above each bin, highest bin first."""
        return np.cumsum(np.bincount(levels, minlength=count)[::-1]) / len(levels)

    false = np.r_[0, reached(bins[~masks])]
    true = np.r_[0, reached(bins[masks])]
    regions = []
    for level, mask in zip(bins, masks, strict=True):
        labelled, n = ndimage.label(mask, np.ones((3, 3)))
        regions += [reached(level[labelled == k]) for k in range(1, n + 1)]
    overlap = np.r_[0, np.mean(regions, 0)]
    grid = np.linspace(0, FALSE_POSITIVES, 1001)
    return {"pixel": float(np.trapezoid(true, false)), "PRO": float(np.interp(grid, false, overlap).mean())}
