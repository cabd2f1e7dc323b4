"""Other generators of tables, from their own packages: CTGAN, TVAE and a Gaussian copula of SDV, and ForestDiffusion.

All have their packages' default settings, but for ForestDiffusion, whose defaults take hours on one core.
"""

import importlib.util
import warnings

import numpy as np

from .generate_data import discrete, frame, metadata, rows

PACKAGES = {"ctgan": "sdv", "tvae": "sdv", "copula": "sdv", "forest": "ForestDiffusion"}
FOREST = {"n_t": 20, "duplicate_K": 10, "n_jobs": 1}  # the package's are 50, 100 and all cores
FOREST_COLUMNS = 24  # a model for each column and time; wider sets are left out


def available():
    return [name for name, package in PACKAGES.items() if importlib.util.find_spec(package)]


def fits(name, table):
    return name != "forest" or len(table.features) <= FOREST_COLUMNS


def draw(name, table, count, seed):
    """Fits a peer on table.train -> rows float32 [count, F]."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    np.random.seed(seed)
    with warnings.catch_warnings(action="ignore"):
        return forest(table, count, seed) if name == "forest" else sdv(name, table, count)


def sdv(name, table, count):
    from sdv import single_table
    from sdv.metadata import Metadata

    about = Metadata.load_from_dict({"tables": {"table": metadata(table.features)}})
    made = {
        "ctgan": lambda: single_table.CTGANSynthesizer(about, enable_gpu=False),
        "tvae": lambda: single_table.TVAESynthesizer(about, enable_gpu=False),
        "copula": lambda: single_table.GaussianCopulaSynthesizer(about),
    }[name]()
    made.fit({"table": frame(table.features, table.train)})
    drawn = made.sample(count)
    return rows(table.features, drawn["table"] if isinstance(drawn, dict) else drawn)


def forest(table, count, seed):
    from ForestDiffusion import ForestDiffusionModel

    X = table.train.astype(float)
    codes = [j for j, f in enumerate(table.features) if discrete(f)]
    values = {j: np.unique(X[:, j][~np.isnan(X[:, j])]) for j in codes}
    for j in codes:  # the package wants consecutive codes
        there = ~np.isnan(X[:, j])
        X[there, j] = np.searchsorted(values[j], X[there, j])
    two = [j for j in codes if len(values[j]) == 2]
    whole = [
        j
        for j, column in enumerate(X.T)
        if j not in codes and np.all(np.nan_to_num(column) == np.round(np.nan_to_num(column)))
    ]
    many = [j for j in codes if j not in two]
    model = ForestDiffusionModel(X, bin_indexes=two, cat_indexes=many, int_indexes=whole, seed=seed, **FOREST)
    drawn = np.asarray(model.generate(batch_size=count), float)[:, : X.shape[1]]
    for j in codes:
        there = ~np.isnan(drawn[:, j])
        drawn[there, j] = values[j][np.clip(np.round(drawn[there, j]).astype(int), 0, len(values[j]) - 1)]
    return drawn.astype(np.float32)
