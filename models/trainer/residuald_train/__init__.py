"""Trains a diffusion model on normal records and exports it as a bundle for the residuald daemon.

The modules in the order a record meets them: `data` reads files into columns, `infer` guesses a schema,
`features` turns records into rows, `nets`, `coreset`, `diffusion` and `ddim` are the denoisers and their losses,
`recipes` says what a score is made of, `train` fits it, `score` is the graph that the daemon runs, `calibrate`
describes its scores, `export` writes the bundle, `served` reads it, `card` describes it. `sets`, `peers`,
`bench` and `report` measure.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("residuald-train")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0.1.0"


class TrainerError(Exception):
    """Something the user can put right; its message is one line that says what to do."""
