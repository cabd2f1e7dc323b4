"""The denoiser's space: raw rows float32 [N, F] to D dimensions of about unit variance, and back.

A raw row is that of the bundle: NaN is missing, a category is its index in the vocabulary or -1 if it is not in there.
`blocks` tells how a feature becomes dimensions. A missing value is a level like any other, so the pattern of missing
values is drawn too. A category that is not in the vocabulary, or not in the training rows, is encoded as zero and never
drawn.
"""

import math

import numpy as np
import torch
from torch import nn

from ..preprocessing import FINITE, clock
from .blocks import Curve, Levels, block, one_hot
from .curves import Tables

CIRCLE = math.sqrt(2)  # radius, for unit variance


class Space(nn.Module):
    """Converts rows [N, F] to dimensions [N, D] and back.

    Level l (of L in all) belongs to a group: the levels of a feature, or the kinds of its values.
    """

    def __init__(self, features, X):
        """`features`: list of F Features. X float32 [n, F]: the training rows."""
        super().__init__()
        self.features = features
        found = [block(j, f, X[:, j]) for j, f in enumerate(features)]
        self.levels_list = [b for b in found if isinstance(b, Levels)]
        self.curves = [b for b in found if isinstance(b, Curve)]
        self.lines = [c for c in self.curves if not c.circular]
        self.circles = [c for c in self.curves if c.circular]
        self.kinds = [c for c in self.curves if c.kinds]
        groups = [(b.feature, b.codes) for b in self.levels_list]
        groups += [(c.feature, one_hot(1 + len(c.kinds))) for c in self.kinds]
        self._place(groups)
        self._fit_levels()
        self._fit_curves()

    def _buffer(self, name, value, dtype=torch.float32):
        self.register_buffer(name, torch.as_tensor(np.array(value), dtype=dtype))

    def _place(self, groups):
        """Lays out dimensions: those of the groups of levels, then lines, then circles (sin, cos)."""
        F = len(self.features)
        sizes, widths = [len(codes) for _, codes in groups], [codes.shape[1] for _, codes in groups]
        owner = [j for (j, _), width in zip(groups, widths, strict=True) for _ in range(width)]
        self.coded = len(owner)  # dimensions of codes, which come first
        owner += [c.feature for c in self.lines] + [c.feature for c in self.circles for _ in range(2)]
        self.dims, self.groups = len(owner), len(groups)
        codes, row, column = np.zeros((sum(sizes), self.dims)), 0, 0
        for (_, code), size, width in zip(groups, sizes, widths, strict=True):
            codes[row : row + size, column : column + width] = code
            row, column = row + size, column + width
        starts, most = np.cumsum([0, *sizes])[:-1].astype(int), max(sizes, default=1)
        padded = starts[:, None] + np.minimum(np.arange(most), np.array(sizes, int)[:, None] - 1)
        self._buffer("owner", np.eye(F)[np.array(owner, int)].T)  # [F, D] of 0 and 1
        self._buffer("group_owner", np.eye(F)[np.array([j for j, _ in groups], int)].T)  # [F, G]
        self._buffer("codes", codes)  # [L, D]
        self._buffer("half_norm", (codes**2).sum(1) / 2)  # [L]
        self._buffer("members", np.repeat(np.eye(len(groups)), np.array(sizes, int), 0))  # [L, G]
        self._buffer("padded", padded, torch.long)  # [G, most]: levels of each group, the last one repeated
        self._buffer("starts", starts, torch.long)

    def _fit_levels(self):
        every = np.eye(len(self.features))
        levels = [(b.feature, k) for b in self.levels_list for k in range(len(b.values))]
        self._buffer("level_pick", every[np.array([j for j, _ in levels], int)].T)
        for name in "low", "high":
            ends = [np.clip(getattr(b, name), -2 * FINITE, 2 * FINITE) for b in self.levels_list]
            self._buffer(name, np.concatenate([*ends, []]))
        categorical = [self.features[j].type == "categorical" for j, _ in levels]
        values = np.concatenate([*(b.values for b in self.levels_list), []])
        # A category is its own level only; a number that is not among the levels is the closest one.
        self.low.copy_(
            torch.where(torch.tensor(categorical, dtype=torch.bool), torch.as_tensor(values - 0.5), self.low)
        )
        self.high.copy_(
            torch.where(torch.tensor(categorical, dtype=torch.bool), torch.as_tensor(values + 0.5), self.high)
        )
        self._buffer("value", values)
        self._buffer("level_missing", np.isnan(values))

    def _fit_curves(self):
        lines, circles, F = self.lines, self.circles, len(self.features)
        pick = np.zeros((F, len(self.curves)))
        for column, curve in enumerate([*lines, *circles]):
            pick[curve.feature, column] = 1
        self._buffer("curve_pick", pick)
        self.forth = Tables([c.values for c in [*lines, *circles]], [c.z for c in [*lines, *circles]])
        self.back = Tables([c.z for c in [*lines, *circles]], [c.values for c in [*lines, *circles]])
        scales = [10.0**c.decimals if c.decimals >= 0 else 0.0 for c in [*lines, *circles]]
        self._buffer("scale", scales)
        most = max([1, *(len(c.atoms) for c in self.curves)])
        ordered = [*lines, *circles]
        atoms = [np.append(c.atoms, np.full(most - len(c.atoms), np.inf)) for c in ordered]
        self._buffer("atoms", np.array(atoms).reshape(len(atoms), most))  # [C, A], infinite where there are fewer
        middles = [(a[1:] + a[:-1]) / 2 for a in atoms]
        self._buffer("middles", np.array(middles).reshape(len(atoms), most - 1))
        self._buffer("first_atom", np.arange(len(ordered)) * most, torch.long)
        position = {c.feature: i for i, c in enumerate(ordered)}
        self._buffer("kind_curve", [position[c.feature] for c in self.kinds], torch.long)
        # How the columns (ordinary, atom, missing) of the kinds become levels, and which level means which.
        spread, row = np.zeros((3 * len(self.kinds), sum(1 + len(c.kinds) for c in self.kinds))), 0
        for i, c in enumerate(self.kinds):
            for k, kind in enumerate(["ordinary", *c.kinds]):
                spread[3 * i + ("ordinary", "atom", "missing").index(kind), row + k] = 1
            row += 1 + len(c.kinds)
        self._buffer("kind_spread", spread)

    # -- rows to dimensions ----------------------------------------------------------------------------------

    def level_marks(self, x):
        """[N, F] -> [N, L] of 0 and 1: the level of each group."""
        nan = torch.isnan(x).float()
        filled = torch.where(torch.isnan(x), 0.0, x).clamp(-FINITE, FINITE)
        parts = []
        if self.levels_list:
            value, lacking = filled @ self.level_pick, nan @ self.level_pick
            inside = ((value >= self.low) & (value < self.high)).float() * (1 - lacking)
            parts.append(torch.where(self.level_missing > 0, lacking, inside))
        if self.kinds:
            value, lacking = (filled @ self.curve_pick)[:, self.kind_curve], (nan @ self.curve_pick)[:, self.kind_curve]
            atom = (value.unsqueeze(2) == self.atoms[self.kind_curve]).long().sum(2).float() * (1 - lacking)
            kinds = torch.stack([1 - atom - lacking, atom, lacking], 2).flatten(1)
            parts.append(kinds @ self.kind_spread)
        return torch.cat(parts, 1) if parts else x[:, :0]

    def encode(self, x):
        """[N, F] -> sample [N, D], all features known."""
        parts = []
        if self.coded:
            parts.append(self.level_marks(x) @ self.codes[:, : self.coded])
        if self.curves:
            nan = torch.isnan(x).float()
            filled = torch.where(torch.isnan(x), 0.0, x).clamp(-FINITE, FINITE)
            z = self.forth(filled @ self.curve_pick)
            present = 1 - nan @ self.curve_pick
            lines = len(self.lines)
            parts.append((z * present)[:, :lines])
            if self.circles:
                angle = z[:, lines:] * (2 * math.pi)
                turned = torch.stack([angle.sin(), angle.cos()], 2) * CIRCLE * present[:, lines:].unsqueeze(2)
                parts.append(turned.flatten(1))
        return torch.cat(parts, 1)

    def forward(self, x, known):
        """Rows x [N, F], known [N, F] of 0 and 1 -> (sample [N, D], 0 where not known; mask [N, D])."""
        mask = known @ self.owner
        return self.encode(x) * mask, mask

    # -- dimensions to rows ----------------------------------------------------------------------------------

    def decode(self, sample):
        """[N, D] -> rows [N, F]: rounded, within the bounds of the training rows, NaN where missing."""
        out, lacking = 0.0, 0.0
        chosen = self.chosen_levels(sample) if self.groups else None
        if self.levels_list:
            g = len(self.levels_list)
            value = self.value[chosen[:, :g]]
            pick = np.zeros((g, len(self.features)))
            pick[np.arange(g), [b.feature for b in self.levels_list]] = 1
            pick = torch.as_tensor(pick, dtype=torch.float32)
            out = out + torch.where(torch.isnan(value), 0.0, value) @ pick
            lacking = lacking + torch.isnan(value).float() @ pick
        if self.curves:
            value, gone = self.curve_values(sample, chosen)
            out = out + value @ self.curve_pick.T
            lacking = lacking + gone @ self.curve_pick.T
        return torch.where(lacking > 0, torch.nan, out)

    def chosen_levels(self, sample):
        """[N, D] -> [N, G]: the level of each group whose code is closest."""
        near = sample @ self.codes.T - self.half_norm
        return near[:, self.padded].argmax(2) + self.starts

    def curve_values(self, sample, chosen):
        """[N, D] -> (values [N, C], missing [N, C] of 0 and 1) of the curves."""
        lines, circles = len(self.lines), len(self.circles)
        parts = [sample[:, self.coded : self.coded + lines]]
        if circles:
            turned = sample[:, self.coded + lines :].unflatten(1, (circles, 2))
            turn = clock(turned[:, :, 0], turned[:, :, 1], torch.ones(circles), torch.zeros(circles))
            parts.append(turn)
        value = self.back(torch.cat(parts, 1))
        rounded = (value * self.scale).round() / self.scale.clamp(min=1)
        value = torch.where(self.scale > 0, rounded, value)
        value = torch.minimum(torch.maximum(value, self.back.least), self.back.most)
        if not self.kinds:
            return value, torch.zeros_like(value)
        which = (value.unsqueeze(2) >= self.middles).long().sum(2) + self.first_atom
        atom = self.atoms.flatten()[which]
        marks = nn.functional.one_hot(chosen[:, len(self.levels_list) :], len(self.codes)).float().sum(1)
        kinds = (marks[:, len(self.value) :] @ self.kind_spread.T).unflatten(1, (len(self.kinds), 3))
        spread = torch.zeros(len(self.kinds), lines + circles)
        spread[torch.arange(len(self.kinds)), self.kind_curve] = 1
        is_atom, gone = kinds[:, :, 1] @ spread, kinds[:, :, 2] @ spread
        value = torch.where(is_atom > 0, torch.where(torch.isinf(atom), value, atom), value)
        return torch.where(gone > 0, 0.0, value), gone
