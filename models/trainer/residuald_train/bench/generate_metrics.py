"""How close drawn rows are to real ones that no generator has seen."""

import warnings

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from .generate_data import discrete, frame, metadata

FOLDS = 3
TARGETS = 4  # columns that are tried as the target of train-on-synthetic-test-on-real
CATEGORIES = 4  # most categories of a target
TREES = {"max_iter": 60, "early_stopping": False}


def measure(table, drawn, seed):
    """Table, drawn rows [n, F] -> {metric: value}."""
    shapes, trends = report(table, drawn)
    return {
        "shapes": shapes,
        "trends": trends,
        "quality": float(np.nanmean([shapes, trends])),
        "c2st": c2st(table, drawn, seed),
        "utility": utility(table, drawn, seed),
        "closer_to_training": closer(table, drawn),
    }


def report(table, drawn):
    """sdmetrics' quality report against the real rows -> (column shapes, column pair trends; NaN if it has none)."""
    from sdmetrics.reports.single_table import QualityReport

    with warnings.catch_warnings(action="ignore"):
        made = QualityReport()
        real, fake = frame(table.features, table.real), frame(table.features, drawn)
        made.generate(real, fake, metadata(table.features), verbose=False)
    scores = made.get_properties().set_index("Property")["Score"]
    return float(scores["Column Shapes"]), float(scores["Column Pair Trends"])


def categorical(features):
    return [j for j, f in enumerate(features) if f.type == "categorical"]


def c2st(table, drawn, seed):
    """AUROC of a gradient boosting classifier that tells real rows from drawn ones, over folds; 0.5 is best."""
    n = min(len(table.real), len(drawn))
    X = np.concatenate([table.real[:n], drawn[:n]])
    y = np.repeat([0, 1], n)
    found = np.zeros(len(y))
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(X, y):
        model = HistGradientBoostingClassifier(
            **TREES, categorical_features=categorical(table.features), random_state=0
        )
        found[test] = model.fit(X[train], y[train]).predict_proba(X[test])[:, 1]
    return float(roc_auc_score(y, found))


def utility(table, drawn, seed):
    """Train on drawn rows and test on real ones -> the score minus that of training on the real training rows.

    The target is that of TARGETS random columns which is predicted best from the others with the real training rows.
    The score is R² for a number and AUROC (one against the rest) for a category or boolean.
    """
    if table.target is None:
        columns = np.random.default_rng(seed).permutation(len(table.features))[:TARGETS]
        table.target = max((predict(table, table.train, int(j)), int(j)) for j in columns)
    real, target = table.target
    return float(predict(table, drawn, target) - real)


def predict(table, train, target):
    rest = [j for j in range(len(table.features)) if j != target]
    categories = [i for i, j in enumerate(rest) if table.features[j].type == "categorical"]
    a, b = (rows[~np.isnan(rows[:, target])].copy() for rows in (train, table.real))
    empty = np.isnan(a).all(0)
    a[:, empty], b[:, empty] = 0, 0  # scikit-learn refuses a column without any value
    if discrete(table.features[target]):
        common = [v for v in np.unique(b[:, target]) if (b[:, target] == v).sum() >= 5]
        areas = []
        for value in common[:CATEGORIES]:
            y, z = a[:, target] == value, b[:, target] == value
            if not y.any() or y.all() or z.all():
                areas.append(0.5)
                continue
            model = HistGradientBoostingClassifier(**TREES, categorical_features=categories, random_state=0)
            areas.append(roc_auc_score(z, model.fit(a[:, rest], y).predict_proba(b[:, rest])[:, 1]))
        return float(np.mean(areas)) if areas else 0.5
    if len(a) < 10 or len(b) < 10:
        return 0.0
    model = HistGradientBoostingRegressor(**TREES, categorical_features=categories, random_state=0)
    found = model.fit(a[:, rest], a[:, target].astype(float)).predict(b[:, rest])
    return max(-1.0, float(r2_score(b[:, target].astype(float), found)))


def closer(table, drawn):
    """The share of drawn rows that are closer to a training row than to a real one, ties half; 0.5 is best."""
    from ..generative.privacy import distance_to_closest, encoded
    from ..generative.space import Space

    n = min(len(table.train), len(table.real))
    space = Space(table.features, table.train)
    z = encoded(space, drawn[:2000])
    t, h = (distance_to_closest(z, encoded(space, rows[:n])) for rows in (table.train, table.real))
    return float(np.mean((t < h) + 0.5 * (t == h)))
