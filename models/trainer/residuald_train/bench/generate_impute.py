"""How well hidden numbers are filled in, beside mean, nearest neighbours and scikit-learn's iterative imputer."""

import warnings

import numpy as np

from ..generative.impute import impute

ROWS = 300
HIDDEN = 0.2
OURS = "residuald"


def hide(X, rule, rng):
    """Which values [n, F] are hidden: HIDDEN of them at random, or, by a rule, of those above their column's median."""
    chance = np.full(X.shape, HIDDEN)
    if rule == "large":
        chance = np.where(np.nanmedian(X, 0) < X, 2 * HIDDEN, 0)
    return (rng.random(X.shape) < chance) & ~np.isnan(X)


def measure(table, space, denoiser, seed):
    """-> {"random" | "large": {"error": {method: mean absolute error in deviations}, "rmse": ..., "coverage"}}.

    Only numbers with more than 10 different values are compared. Coverage: the share of hidden values within our 90 %
    interval, ends included.
    """
    X, rng, out = table.real[:ROWS], np.random.default_rng(4000 + seed), {}
    numbers = [j for j, f in enumerate(table.features) if f.type == "number" and len(np.unique(table.train[:, j])) > 10]
    if not numbers:
        return out
    spread = np.nanstd(table.train[:, numbers].astype(float), 0)
    for rule in ("random", "large"):
        hidden = hide(X, rule, rng)
        filled, low, high = impute(space, denoiser, X, hidden, seed=seed)
        at, truth = hidden[:, numbers], X[:, numbers].astype(float)
        found = {OURS: filled[:, numbers]} | peers(table, np.where(hidden, np.nan, X), numbers)
        errors = {name: (np.nan_to_num(value) - truth) / spread for name, value in found.items()}
        inside = (truth >= low[:, numbers]) & (truth <= high[:, numbers])
        out[rule] = {
            "error": {name: float(np.abs(e[at]).mean()) for name, e in errors.items()},
            "rmse": {name: float(np.sqrt((e[at] ** 2).mean())) for name, e in errors.items()},
            "coverage": float(inside[at].mean()),
        }
    return out


def peers(table, X, numbers):
    """Rows with NaN where hidden -> {name: their numbers, filled [n, k]}. Categories become one-hot columns.

    The iterative imputer is held within the range of the training rows; without that it diverges on the payments.
    """
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

    train, test = wide(table, table.train), wide(table, X)
    center, spread = np.nanmean(train, 0), np.nanstd(train, 0)
    spread[spread == 0] = 1
    train, test = (train - center) / spread, (test - center) / spread
    least, most = np.nan_to_num(np.nanmin(train, 0)), np.nan_to_num(np.nanmax(train, 0)) + 1e-9
    made = {
        "mean": SimpleImputer(keep_empty_features=True),
        "knn": KNNImputer(keep_empty_features=True),
        "iterative": IterativeImputer(keep_empty_features=True, random_state=0, min_value=least, max_value=most),
    }
    out = {}
    for name, imputer in made.items():
        with warnings.catch_warnings(action="ignore"):
            filled = imputer.fit(train).transform(test)
        out[name] = (filled * spread + center)[:, numbers]
    return out


def wide(table, X):
    """[n, F] -> [n, F + one-hot columns]: features in their order, categories 0 there and one-hot behind."""
    first, more = X.astype(float), []
    for j, feature in enumerate(table.features):
        if feature.type == "categorical":
            gone = np.isnan(X[:, j])
            more += [np.where(gone, np.nan, X[:, j] == k) for k in range(len(feature.vocabulary))]
            first[:, j] = 0
    return np.column_stack([first, *more])
