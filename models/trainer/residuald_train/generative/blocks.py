"""How each feature becomes dimensions: blocks of levels, and curves.

A feature with few different values (a category, a boolean, a weekday, a count) is a block of levels. Each level has a
code, and the closest code decodes. Any other number is one dimension, by a curve. If it has atoms or missing values, a
block of levels tells what a value is: ordinary, the nearest atom, or missing. Hours lie on a circle.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtri

from .curves import choose_knots, decimals, find_atoms, mid_ranks

MOST_LEVELS = 40  # different values up to which a number is a block of levels
ROWS_A_LEVEL = 8  # and the fewest rows for each of them
APART = 1.4  # scale of one-hot codes


@dataclass
class Levels:
    """Levels of one feature. The value of level k lies in [low[k], high[k]); NaN is the level `missing`."""

    feature: int
    values: np.ndarray  # [K], what each level decodes to; NaN for a missing value
    codes: np.ndarray  # [K, d]
    low: np.ndarray  # [K]
    high: np.ndarray  # [K]


@dataclass
class Curve:
    """A continuous feature: one dimension, or two if it is `circular`."""

    feature: int
    values: np.ndarray  # [k], the knots, ascending
    z: np.ndarray  # [k]: standardised z of each knot, or its turn in 0..1 on the circle
    decimals: int
    circular: bool = False
    atoms: np.ndarray = field(default_factory=lambda: np.zeros(0))
    missing: bool = False

    @property
    def kinds(self):
        """What a value can be besides an ordinary one."""
        return (["atom"] if len(self.atoms) else []) + (["missing"] if self.missing else [])


def block(number, feature, column):
    """A feature and its training values float32 [n] -> Levels or Curve."""
    missing = feature.missing == "impute" and bool(np.isnan(column).any())
    present = column[~np.isnan(column)].astype(np.float64)
    if feature.type == "categorical":
        return categories(number, np.unique(present[present >= 0]), missing)
    if len(present) == 0:
        return categories(number, np.zeros(0), missing)
    distinct, rank, share = mid_ranks(present)
    if feature.type == "bool" or feature.part == "day_of_week":
        return categories(number, distinct, missing)
    if len(distinct) <= min(MOST_LEVELS, max(2, len(present) // ROWS_A_LEVEL)):
        return ordered(number, distinct, rank, share, missing)
    return continuous(number, feature, present, missing)


def categories(number, values, missing):
    low, high = borders(values)
    return Levels(number, *with_missing(values, low, high, one_hot(len(values) + missing), missing))


def ordered(number, values, rank, share, missing):
    """Numbers in one dimension of unit variance, in their order; a second one tells what is missing."""
    z = ndtri(rank)
    z = z - (z * share).sum()
    codes = (z / max(math.sqrt((z * z * share).sum()), 1e-6))[:, None] if len(values) > 1 else np.zeros((1, 0))
    low, high = borders(values)
    if missing:
        flag = one_hot(2)
        codes = np.concatenate([codes, np.repeat(flag[:1], len(codes), 0)], 1)
        codes = np.concatenate([codes, [[0.0] * (codes.shape[1] - 1) + [flag[1, 0]]]])
    return Levels(number, *with_missing(values, low, high, codes, missing))


def with_missing(values, low, high, codes, missing):
    if missing:
        values, low, high = np.append(values, np.nan), np.append(low, np.inf), np.append(high, np.inf)
    return values, codes, low, high


def borders(values):
    """Distinct ascending values -> (low [K], high [K]), halfway between neighbours."""
    middle = (values[1:] + values[:-1]) / 2
    return np.concatenate([[-np.inf], middle])[: len(values)], np.append(middle, np.inf)[: len(values)]


def one_hot(k):
    """Codes of k levels [k, d]: one dimension for two levels, none for fewer."""
    if k < 3:
        return np.array([[-1.0], [1.0]]) * APART / math.sqrt(2) if k == 2 else np.zeros((k, 0))
    return (np.eye(k) - 1 / k) * APART


def continuous(number, feature, present, missing):
    distinct, rank, share = mid_ranks(present)
    if feature.part == "hour_of_day":
        keep = choose_knots(rank, np.zeros(len(rank), bool))
        return Curve(number, distinct[keep], rank[keep], -1, circular=True, missing=missing)
    atoms = find_atoms(share)
    keep, z = choose_knots(rank, atoms), ndtri(rank)
    z = z - (z * share).sum()
    z = z / max(math.sqrt((z * z * share).sum()), 1e-6)
    return Curve(number, distinct[keep], z[keep], decimals(present), atoms=distinct[atoms], missing=missing)
