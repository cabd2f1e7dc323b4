"""Simpler methods with which recipes are compared. They are fitted on the same rows with standardised features.

No peer is tuned. Each has the settings that its library or its paper gives.
"""

import warnings

import numpy as np

from .. import TrainerError

SVM_ROWS = 2_000  # most training rows of the one-class SVM, whose fitting takes time with the square of their number


def nearest(train, neighbours):
    """The mean distance to the nearest training rows."""
    distances = neighbour_distances(train, neighbours)
    return lambda x: distances(x).mean(1)


def neighbour_distances(train, neighbours):
    """A function from rows [m, F] to the distances [m, k] to their nearest training rows."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(neighbours, len(train)), algorithm="auto", n_jobs=1).fit(train)
    return lambda x: index.kneighbors(x)[0]


def dte_np(train):
    """DTE-NP of "On Diffusion Modeling for Anomaly Detection" (ICLR 2024), with the settings of its code.

    The expected timestep of 1,000 under an inverse gamma posterior of the noise variance, a = F / 2 - 1, whose scale is
    half the mean squared distance to five neighbours.
    """
    distances = neighbour_distances(train, 5)
    variance = 1 - np.cumprod(1 - np.linspace(1e-4, 1e-2, 1000))

    def score(x):
        scale = (distances(x) ** 2).mean(1, keepdims=True) / 2
        log = -(train.shape[1] / 2) * np.log(variance) - scale / variance
        share = np.exp(log - log.max(1, keepdims=True))
        return share @ np.arange(1000) / share.sum(1)

    return score


def local_outlier_factor(train):
    from sklearn.neighbors import LocalOutlierFactor

    model = LocalOutlierFactor(n_neighbors=min(20, len(train) - 1), novelty=True, n_jobs=1).fit(train)
    return lambda x: -model.score_samples(x)


def one_class_svm(train, seed):
    """At most SVM_ROWS training rows."""
    from sklearn.svm import OneClassSVM

    rows = np.random.default_rng(seed).permutation(len(train))[:SVM_ROWS]
    model = OneClassSVM().fit(train[rows])
    return lambda x: -model.score_samples(x)


def principal_components(train):
    """The sum over the principal components of the squared coordinate over its variance (Shyu et al. 2003)."""
    center = train.mean(0)
    variance, axes = np.linalg.eigh(np.cov((train - center).T).reshape(train.shape[1], -1))
    kept = variance > 1e-9 * variance.max()
    return lambda x: (((x - center) @ axes[:, kept]) ** 2 / variance[kept]).sum(1)


def isolation_forest(train, seed):
    from sklearn.ensemble import IsolationForest

    model = IsolationForest(random_state=seed, n_jobs=1).fit(train)
    return lambda x: -model.score_samples(x)


def ecod(train):
    """ECOD (Li et al. 2022), where each row is asked about alone, as in a stream.

    The tails are those of the training rows and the row itself, as PyOD computes them for one row. For many rows
    PyOD takes the tails from all of them, so that anomalies hide one another. Of the two tails and the one that the
    skewness points to, the largest counts, so the skewness never matters.
    """
    columns, n = np.sort(train, 0).T, len(train)

    def score(x):
        total = np.zeros(len(x))
        for column, values in zip(columns, x.T, strict=True):
            below = np.searchsorted(column, values, "right") + 1
            above = n - np.searchsorted(column, values, "left") + 1
            total -= np.log(np.minimum(below, above) / (n + 1))
        return total

    return score


def autoencoder(train, seed):
    from pyod.models.auto_encoder import AutoEncoder

    model = AutoEncoder(random_state=seed, verbose=0, preprocessing=False).fit(train)
    return model.decision_function


def deep_svdd(train, seed):
    """Deep SVDD, which was the best of PyOD's deep methods (also LUNAR and DIF) on five sets; see RESEARCH.md."""
    from pyod.models.deep_svdd import DeepSVDD

    model = DeepSVDD(n_features=train.shape[1], random_state=seed, verbose=0, preprocessing=False).fit(train)
    return model.decision_function


PEERS = {
    "1-NN": lambda x, seed: nearest(x, 1),
    "mean 5-NN": lambda x, seed: nearest(x, 5),
    "DTE-NP": lambda x, seed: dte_np(x),
    "LOF": lambda x, seed: local_outlier_factor(x),
    "one-class SVM": one_class_svm,
    "PCA": lambda x, seed: principal_components(x),
    "isolation forest": isolation_forest,
    "ECOD": lambda x, seed: ecod(x),
    "autoencoder (untuned)": autoencoder,
    "Deep SVDD (untuned)": deep_svdd,
}
FROM_PYOD = "autoencoder (untuned)", "Deep SVDD (untuned)"


def available():
    """The names of the peers that can run here. Some of them need PyOD to be installed."""
    try:
        import pyod  # noqa: F401
    except ImportError:
        return [name for name in PEERS if name not in FROM_PYOD]
    return list(PEERS)


def fit(name, train, seed):
    """Fits a peer to training rows float32 [n, F] -> a function from rows [m, F] to scores [m], higher for anomalies.

    Raises TrainerError if the peer cannot be fitted on these rows.
    """
    mean, deviation = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    deviation[deviation < 1e-12] = 1
    scaled = (train - mean) / deviation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            score = PEERS[name](scaled, seed)
        except ValueError as error:
            raise TrainerError(f"{name}: {error}") from None
    return lambda x: np.nan_to_num(np.asarray(score((x - mean) / deviation), np.float64))
