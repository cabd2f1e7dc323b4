"""How well scores and heat find what is labelled. All in 0..1; nan where there is nothing to compare."""

import numpy as np
from scipy import ndimage

from ..score import auroc

FALSE_POSITIVES = 0.3  # up to where the curve of PRO is integrated


def picture_scores(score, owner):
    """Scores of rows -> of pictures: the highest of their tiles."""
    out = np.full(owner.max() + 1, -np.inf)
    np.maximum.at(out, owner, score)
    return out


def average_precision(normal, anomalous):
    """The mean precision at each anomaly, highest scores first; of equal scores the normal ones come first."""
    scores, labels = np.concatenate([normal, anomalous]), np.r_[np.zeros(len(normal)), np.ones(len(anomalous))]
    labels = labels[np.lexsort((labels, -scores))]
    return float((np.cumsum(labels) / np.arange(1, len(labels) + 1))[labels == 1].mean())


def image_metrics(scores, labels):
    """scores [n], labels [n] of text, "good" for normal -> {image, AP, and each class}."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    normal, rest = scores[labels == "good"], scores[labels != "good"]
    if not len(normal) or not len(rest):
        return {}
    out = {"image": float(auroc(normal, rest)), "AP": average_precision(normal, rest)}
    classes = sorted(set(labels.tolist()) - {"good"})
    return out | {c: float(auroc(normal, scores[labels == c])) for c in classes}


def pixel_metrics(heat, masks):
    """heat float [n, H, W], masks bool [n, H, W] -> {pixel, PRO}.

    PRO: the share of each connected region that is found, averaged over regions, against the false positives among
    all other pixels, integrated up to 30 % and divided by 0.3 (Bergmann et al. 2020).
    """
    if not masks.any() or masks.all():
        return {}
    edges = np.quantile(heat, np.linspace(0, 1, 4097)[1:-1])
    edges = np.unique(np.concatenate([edges, np.linspace(heat.min(), heat.max(), 4096)]))
    bins = np.searchsorted(edges, heat, side="right")
    count = len(edges) + 1

    def reached(levels):
        """The share of pixels at or above each bin, highest bin first."""
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
