"""The scorer graph: raw row in; score, residual and reconstruction out. This module is what is exported."""

import numpy as np
import torch
from torch import nn

from .nets import row_sum

SLIGHT = 1e-6  # of a term's part in an explanation: all alike where none saw anything unusual


class Term(nn.Module):
    """A denoiser, None where it is the kernel, and how its residual counts: see `recipes.Part`."""

    def __init__(self, part, denoiser=None):
        super().__init__()
        self.part, self.denoiser = part, denoiser
        self.register_buffer("whitening", None)

    def forward(self, z, D, columns):
        """z, the denoiser's D and `columns`, what is observed (None: all), [N, D] -> the squared residual [N, D]."""
        error = masked(z - D, columns)
        if self.whitening is not None:
            error = error @ self.whitening
        return error * error


def masked(values, mask):
    return values if mask is None else values * mask


def row_mean(values, mask):
    """[N, k] -> [N, 1] over what the mask says is there."""
    if mask is None:
        return row_sum(values) * (1 / values.shape[1])
    return row_sum(values * mask) / row_sum(mask).clamp(min=1)


class Scorer(nn.Module):
    """x float32 [N, F] -> score [N], residual [N, F], reconstruction [N, F].

    Each term is a denoiser that is asked once, on the clean record; E is its mean squared residual over the features
    that are observed. With one plain term the score is √E, in standard deviations. Otherwise it is
    Π (E_k / typical_k)^(a_k / 2) with Σ a_k = 1: its logarithm is a weighted sum of standard scores on normal records.

    residual_f is score² times feature f's share of E, averaged over the terms by how much each has raised the score
    above what is usual, max(0, a_k log(E_k / typical_k)); so is the reconstruction. A term that sees nothing unusual
    says nothing of what is. Residuals add up to the score's square, whatever the recipe.
    """

    def __init__(self, features, space, terms, kernel=None, recipe="blind"):
        super().__init__()
        self.recipe = recipe
        self.space, self.kernel, self.curves = space, kernel, []
        self.optional = [j for j, f in enumerate(features) if f.missing == "impute"]
        self.register_buffer("pick", torch.eye(len(features))[:, self.optional])
        self.terms = nn.ModuleList(terms)
        self.plain = len(terms) == 1 and not terms[0].part.spread and not terms[0].part.whiten
        self.register_buffer("floor", torch.full((len(terms), 1), 1e-9))  # of E: what lies below is equally normal
        self.register_buffer("typical", torch.zeros(len(terms), 1))  # of log E
        self.register_buffer("exponent", torch.full((len(terms), 1), 1 / len(terms)))

    def forward(self, x):
        z, observed = self.space(x)
        found = self.ask(z, observed)
        if self.plain:
            D, energy, total, _ = found[0]
            return total.sqrt().squeeze(1), energy, self.space.raw(D, x)
        over = torch.cat([log for *_, log in found], 1) - self.typical.T
        log, weight = over @ self.exponent, self.blame(over)
        share = sum(energy * (w / total) for w, (_, energy, total, _) in zip(weight, found, strict=True))
        answers = {}  # terms that ask the same denoiser share its answer
        for w, (D, *_) in zip(weight, found, strict=True):
            answers[D] = answers[D] + w if D in answers else w
        D = sum(w * D for D, w in answers.items())
        return (log / 2).exp().squeeze(1), share * log.exp(), self.space.raw(D, x)

    def blame(self, over):
        """[N, K], logarithms over the usual ones -> of each term its weight in the explanation [N, 1]."""
        raised = over.clamp(min=0) * self.exponent.T + SLIGHT
        return (raised / row_sum(raised)).split(1, 1)

    def facts(self):
        """For the manifest."""
        parts = [term.part for term in self.terms]
        score = "weighted geometric mean of the terms' root mean square residuals, each over its typical one"
        return {
            "recipe": self.recipe,
            "calls": sum(d.calls for d in {term.denoiser for term in self.terms} if d is not None),
            "score": "root mean square residual per feature, in standard deviations" if self.plain else score,
            "terms": [
                {"denoiser": part.denoiser, "exponent": round(float(exponent), 6)}
                | ({"noise_levels": {"min": part.noise.low, "max": part.noise.high}} if part.trained else {})
                | {key: True for key in ("spread", "whiten") if getattr(part, key)}
                for part, exponent in zip(parts, self.exponent, strict=True)
            ],
        } | ({"coreset": len(self.kernel.centers)} if self.kernel is not None else {})

    def ask(self, z, observed, rows=None):
        """Each term's (D [N, D], E's part of each feature [N, F], E [N, 1], log E and its spread [N, 1]).

        `rows` [N]: the rows of the training data that these are, for the kernel to leave out.
        """
        hidden, columns = self.hidden(z, observed), self.space.of_columns(observed)
        kernel = self.ask_kernel(z, hidden, columns, rows)
        count = len(self.space.features) if observed is None else row_sum(observed).clamp(min=1)
        answers, out = {None: (kernel, None)}, []
        for term, floor in zip(self.terms, self.floor, strict=True):
            if term.denoiser not in answers:
                answers[term.denoiser] = term.denoiser(z, hidden, kernel)
            D, log_spread = answers[term.denoiser]
            energy = self.space.of_features(term(z, D, columns))
            if not self.plain:
                energy = masked(energy + floor, observed)
            energy = energy * (1 / count)
            total = row_sum(energy)
            log = total.clamp(min=1e-30).log()
            if term.part.spread:
                log = log + row_mean(log_spread, columns)
            out.append((D, energy, total, log))
        return out

    def hidden(self, z, observed):
        """[N, I]: 1 where a feature that may be missing is."""
        return z[:, :0] if observed is None else 1 - observed @ self.pick

    def ask_kernel(self, z, hidden, columns, rows=None):
        if self.kernel is None:
            return None
        return self.kernel(z, hidden) if rows is None else self.kernel.without(rows, z, hidden, columns)


@torch.no_grad()
def run_torch(scorer, X):
    """X [n, F] -> (score, residual, reconstruction) as numpy arrays."""
    parts = [scorer(torch.as_tensor(X[i : i + 4096])) for i in range(0, len(X), 4096)]
    return tuple(torch.cat(p).numpy() for p in zip(*parts, strict=True))


def auroc(normal, anomalous):
    """The chance that an anomaly scores above a normal record, ties counting half."""
    scores = np.concatenate([normal, anomalous])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(normal), len(anomalous)
    return (ranks[n:].sum() - m * (m + 1) / 2) / (n * m)
