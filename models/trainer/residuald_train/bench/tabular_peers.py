"""Simpler methods with which recipes are compared. They are fitted on the same rows with standardised features."""

import warnings

import numpy as np

from .. import TrainerError


def nearest(train, neighbours):
    """The mean distance to the nearest training rows."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=min(neighbours, len(train)), algorithm="auto", n_jobs=1).fit(train)
    return lambda x: index.kneighbors(x)[0].mean(1)


def isolation_forest(train, seed):
    from sklearn.ensemble import IsolationForest

    model = IsolationForest(random_state=seed, n_jobs=1).fit(train)
    return lambda x: -model.score_samples(x)


def ecod(train):
    from pyod.models.ecod import ECOD

    model = ECOD(n_jobs=1).fit(train)
    return model.decision_function


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
    "isolation forest": isolation_forest,
    "ECOD": lambda x, seed: ecod(x),
    "autoencoder": autoencoder,
    "Deep SVDD": deep_svdd,
}
FROM_PYOD = "ECOD", "autoencoder", "Deep SVDD"


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
