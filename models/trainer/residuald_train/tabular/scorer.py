"""The scorer graph, which is exported to ONNX: raw rows in; scores, residuals and reconstructions out."""

import torch
from torch import nn

from .network import row_sum

SLIGHT = 1e-6  # added to each term's weight in the explanation, so that all count equally if none raised the score


class Term(nn.Module):
    """One term of the score: a denoiser (None for the kernel) with its `recipes.TermSpec`."""

    def __init__(self, spec, denoiser=None):
        super().__init__()
        self.spec, self.denoiser = spec, denoiser

    def forward(self, z, D, columns):
        """z, the denoiser's output D and the mask of observed columns (None: all), each [N, D] -> squared residual."""
        error = masked(z - D, columns)
        return error * error


def masked(values, mask):
    return values if mask is None else values * mask


def row_mean(values, mask):
    """[N, k] -> [N, 1]: the mean where the mask is 1."""
    if mask is None:
        return row_sum(values) * (1 / values.shape[1])
    return row_sum(values * mask) / row_sum(mask).clamp(min=1)


class Scorer(nn.Module):
    """x float32 [N, F] -> score [N], residual [N, F], reconstruction [N, F].

    Each term's denoiser is evaluated once, on the record without noise. E is the mean squared residual over the
    observed features, or the free energy divided by their number, which the features share as their squared residuals.
    A single plain term gives the score √E, in standard deviations. Otherwise

        score = Π (E_k / typical_k)^(a_k / 2), Σ a_k = 1,

    so log score is a weighted sum of the terms' standard scores on normal records.

    residual_f is score² times feature f's share of E, averaged over the terms. A term's weight in that average is the
    square of how much it raised the score above what is typical: max(0, a_k log(E_k / typical_k))². So a term that sees
    nothing unusual does not explain anything. The square prefers one term, because expected values that are mixed of
    several need not lower the score of any. The reconstruction is averaged by the same weights. Residuals add up to
    score².

    The names of submodules and buffers (`space` is the preprocessing) are part of the exported file: renaming one
    changes the bytes of model.onnx.
    """

    def __init__(self, features, space, terms, kernel=None, recipe="blind", ranks=None, rank_kernel=None):
        """`rank_kernel`: the kernel of the space `ranks`, for the terms that are in it."""
        super().__init__()
        self.recipe = recipe
        self.space, self.kernel, self.curves = space, kernel, []
        self.ranks, self.rank_kernel = ranks, rank_kernel
        self.optional = [j for j, f in enumerate(features) if f.missing == "impute"]
        self.register_buffer("pick", torch.eye(len(features))[:, self.optional])
        self.terms = nn.ModuleList(terms)
        self.plain = len(terms) == 1 and not terms[0].spec.spread and not terms[0].spec.free
        self.register_buffer("floor", torch.full((len(terms), 1), 1e-9))  # of E; smaller residuals count as equal
        self.register_buffer("typical", torch.zeros(len(terms), 1))  # of log E
        self.register_buffer("exponent", torch.full((len(terms), 1), 1 / len(terms)))

    def forward(self, x):
        z, observed = self.space(x)
        found = self.evaluate_terms(z, observed)
        if self.plain:
            D, energy, total, _ = found[0]
            return total.sqrt().squeeze(1), energy, self.space.inverse(D, x)
        over = torch.cat([log for *_, log in found], 1) - self.typical.T
        log, weight = over @ self.exponent, self.explanation_weights(over)
        share = sum(energy * (w / total) for w, (_, energy, total, _) in zip(weight, found, strict=True))
        answers = {}  # terms with the same denoiser share its output
        for w, (D, *_) in zip(weight, found, strict=True):
            answers[D] = answers[D] + w if D in answers else w
        D = sum(w * D for D, w in answers.items())
        return (log / 2).exp().squeeze(1), share * log.exp(), self.space.inverse(D, x)

    def explanation_weights(self, over):
        """log(E_k / typical_k) [N, K] -> K weights [N, 1] of the terms in the explanation, which add up to 1."""
        raised = over.clamp(min=0) * self.exponent.T + SLIGHT
        raised = raised * raised
        return (raised / row_sum(raised)).split(1, 1)

    def facts(self):
        """Facts about the recipe for the manifest."""
        specs = [term.spec for term in self.terms]
        score = "weighted geometric mean of the terms' root mean square residuals, each over its typical one"
        return {
            "recipe": self.recipe,
            "calls": sum(d.calls for d in {term.denoiser for term in self.terms} if d is not None),
            "score": "root mean square residual per feature, in standard deviations" if self.plain else score,
            "terms": [
                {"denoiser": spec.denoiser, "exponent": round(float(exponent), 6)}
                | ({"noise_levels": {"min": spec.noise.low, "max": spec.noise.high}} if spec.trained else {})
                | {key: True for key in ("spread", "free", "ranks") if getattr(spec, key)}
                for spec, exponent in zip(specs, self.exponent, strict=True)
            ],
        } | {
            name: len(kernel.centers)
            for name, kernel in (("coreset", self.kernel), ("rank_coreset", self.rank_kernel))
            if kernel is not None
        }

    def evaluate_terms(self, z, observed, rows=None):
        """Evaluates every term -> [(D [N, D], each feature's part of E [N, F], E [N, 1], log E + log spread [N, 1])].

        `rows` [N]: the numbers of the training rows that z was made from, so that the kernels can leave them out.
        """
        hidden, columns = self.hidden(z, observed), self.space.per_column(observed)
        kernel, free = evaluate(self.kernel, z, hidden, columns, rows)
        answers = {None: (kernel, None)}
        if self.ranks is not None:
            r = masked(self.ranks(z), columns)
            rank_kernel, rank_free = evaluate(self.rank_kernel, r, hidden, columns, rows)
            expected = self.ranks.inverse(rank_kernel)
        count = len(self.space.features) if observed is None else row_sum(observed).clamp(min=1)
        out = []
        for term, floor in zip(self.terms, self.floor, strict=True):
            if term.spec.ranks:
                D, log_spread, squares = expected, None, term(r, rank_kernel, columns)
            else:
                if term.denoiser not in answers:
                    answers[term.denoiser] = term.denoiser(z, hidden, kernel)
                D, log_spread = answers[term.denoiser]
                squares = term(z, D, columns)
            energy = self.space.per_feature(squares)
            if not self.plain:
                energy = masked(energy + floor, observed)
            if term.spec.free:
                energy = energy * (((rank_free if term.spec.ranks else free) + count * floor) / row_sum(energy))
            energy = energy * (1 / count)
            total = row_sum(energy)
            log = total.clamp(min=1e-30).log()
            if term.spec.spread:
                log = log + row_mean(log_spread, columns)
            out.append((D, energy, total, log))
        return out

    def hidden(self, z, observed):
        """[N, I]: 1 where a feature that may be missing is missing."""
        return z[:, :0] if observed is None else 1 - observed @ self.pick


def evaluate(kernel, z, hidden, columns, rows=None):
    """A Kernel or None -> (mean [N, D], free energy [N, 1]) of z. `rows`: see `Scorer.evaluate_terms`."""
    if kernel is None:
        return None, None
    return kernel(z, hidden) if rows is None else kernel.without(rows, z, hidden, columns)


@torch.no_grad()
def run_torch(scorer, X):
    """X [n, F] -> (score, residual, reconstruction) as numpy arrays."""
    parts = [scorer(torch.as_tensor(X[i : i + 4096])) for i in range(0, len(X), 4096)]
    return tuple(torch.cat(p).numpy() for p in zip(*parts, strict=True))
