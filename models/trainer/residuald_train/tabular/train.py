"""Fits a recipe: trains its denoisers, then sets the constants of its terms. Reproducible from the seed."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .. import TrainerError
from ..preprocessing import Preprocessing
from .coreset import Kernel
from .ddim import ReverseProcess
from .diffusion import Blind, Hybrid, loss
from .recipes import ASINH_RECIPES, RECIPES
from .scorer import Scorer, Term, masked

DROP = 0.05  # probability of hiding an optional feature in training, so that the network learns to fill it in
FLOOR = 0.01  # share of the typical residual below which differences are float32 noise
LEAST_DEVIATION = 0.1  # of log E; keeps a term without variation (duplicate rows) from dominating the others
CURVE_POINTS = 200  # most points of a loss curve in the manifest
TYPICAL_ROWS = 2000  # most rows from which the terms' means and deviations are computed


@dataclass(frozen=True)
class Options:
    recipe: str = "best"
    seed: int = 0
    steps: int = 1000
    batch: int = 128
    width: int = 96
    coreset: int = 1000
    lr: float = 2e-3
    weight_decay: float = 1e-4
    ema: float = 0.995


def split(n, held_out, seed):
    """Row numbers 0..n-1, shuffled -> (train, held out)."""
    order = np.random.default_rng(seed).permutation(n)
    k = max(1, round(n * held_out))
    return order[k:], order[:k]


def fit(features, X, options, quiet=False):
    """X float32 [n, F], NaN = missing -> Scorer in eval mode. Raises TrainerError if the loss is not finite."""
    torch.set_num_threads(1)  # the rounding of a sum depends on how threads split it
    torch.manual_seed(options.seed)
    g = torch.Generator().manual_seed(options.seed)
    space = Preprocessing(features, X, asinh_numbers=options.recipe in ASINH_RECIPES)
    with torch.no_grad():
        Z, observed = space(torch.as_tensor(X))
        optional = [j for j, f in enumerate(features) if f.missing == "impute"]
        specs = RECIPES[options.recipe]
        kernel = None
        if any(spec.needs_kernel for spec in specs):
            kernel = Kernel(Z, space.sums[:, optional], options.coreset, seed=options.seed)
    denoisers = {}  # terms with the same denoiser and noise share it
    for spec in specs:
        if (spec.denoiser, spec.noise) not in denoisers:
            denoisers[spec.denoiser, spec.noise] = make_denoiser(spec, space, optional, kernel, options)
    terms = [Term(spec, denoisers[spec.denoiser, spec.noise]) for spec in specs]
    scorer = Scorer(features, space, terms, kernel, options.recipe)
    for term in {id(term.denoiser): term for term in terms}.values():
        if term.denoiser is not None:
            curve = train(scorer, term, Z, observed, g, options, quiet)
            scorer.curves.append({"denoiser": term.spec.denoiser, **curve})
    with torch.no_grad():
        set_constants(scorer, Z, observed, g)
    return scorer.eval()


def make_denoiser(spec, space, optional, kernel, options):
    """An untrained denoiser, or None for the kernel, which the scorer holds itself."""
    dims, pick = len(space.owner), space.sums[:, optional].T.contiguous()
    if spec.denoiser == "blind":
        return Blind(dims, len(optional), options.width)
    if spec.denoiser == "hybrid":
        return Hybrid(dims, pick, options.width, max(1e-4, FLOOR * kernel.variance))
    return ReverseProcess(dims, pick, options.width, seed=options.seed) if spec.denoiser == "ddim" else None


def train(scorer, term, Z, observed, g, options, quiet=False):
    """Trains the term's denoiser on Z [n, D] -> its loss curve. `observed` [n, F] of 0 and 1; None means all."""
    optional, owner, denoiser = scorer.optional, scorer.space.owner, term.denoiser

    def batch_loss():
        rows = torch.randint(0, len(Z), (options.batch,), generator=g)
        known = torch.ones(options.batch, scorer.space.sums.shape[1]) if observed is None else observed[rows]
        x, shown = Z[rows], known.clone()
        if len(optional):
            shown[:, optional] *= (torch.rand(options.batch, len(optional), generator=g) >= DROP).float()
        seen, hidden = shown[:, owner], 1 - shown[:, optional]
        if term.spec.denoiser == "ddim":
            return denoiser.loss(x, seen, hidden, known[:, owner], g)

        def denoise(xt):
            with torch.no_grad():
                kernel = scorer.kernel_mean(xt, hidden, seen, rows) if term.spec.needs_kernel else None
            return denoiser(xt, hidden, kernel)

        return loss(denoise, x, seen, known[:, owner], term.spec.noise, g)

    return descend(denoiser, batch_loss, options, quiet)


def set_constants(scorer, Z, observed, g):
    """Sets each term's whitening, floor, mean and exponent from training rows. The kernel leaves each row out."""
    rows = torch.randperm(len(Z), generator=g)[:TYPICAL_ROWS]
    z, seen = Z[rows], None if observed is None else observed[rows]
    columns = scorer.space.per_column(seen)
    if any(term.spec.whiten for term in scorer.terms):
        kernel = scorer.kernel_mean(z, scorer.hidden(z, seen), columns, rows)
        for term in scorer.terms:
            if term.spec.whiten:
                term.whitening = whitening(masked(z - kernel, columns))
    energies = torch.cat([energy for _, _, energy, _ in scorer.evaluate_terms(z, seen, rows)], 1)
    scorer.floor.copy_((FLOOR * energies.median(0).values).clamp(min=1e-5)[:, None])
    logs = torch.cat([log for *_, log in scorer.evaluate_terms(z, seen, rows)], 1)
    weight = torch.tensor([term.spec.weight for term in scorer.terms]) / logs.std(0).clamp(min=LEAST_DEVIATION)
    scorer.typical.copy_(logs.mean(0)[:, None])
    scorer.exponent.copy_((weight / weight.sum())[:, None])


def whitening(residual, shrink=0.5):
    """Residuals r [n, D] -> symmetric W [D, D] such that r W is decorrelated (ZCA) and on average as long as r.

    `shrink` in 0..1: how far the covariance is shrunk towards equal variances. W is symmetric (ZCA), so that each
    column still belongs to its feature.
    """
    covariance = (residual.T @ residual / len(residual)).double()
    mean = covariance.diagonal().mean()
    covariance = (1 - shrink) * covariance + (shrink * mean + 1e-6) * torch.eye(len(covariance))
    values, vectors = torch.linalg.eigh(covariance)
    return ((vectors * ((mean + 1e-6) / values).sqrt()) @ vectors.T).float().contiguous()


def descend(model: nn.Module, batch_loss, options, quiet=False):
    """Runs AdamW with warm-up and cosine decay -> the loss curve. `model` gets the moving average of its weights."""
    weights = list(model.parameters())
    average = [w.detach().clone() for w in weights]
    adam = torch.optim.AdamW(weights, lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.99))
    losses = []
    bar = tqdm(range(options.steps), desc="train", unit=" steps", mininterval=0.5, disable=quiet)
    for step in bar:
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / options.steps)
        adam.param_groups[0]["lr"] = options.lr * min(1, step / 100) * cosine + 1e-6
        error = batch_loss()
        if not torch.isfinite(error):
            raise TrainerError(f"the loss became {error.item()} at step {step}; check the data for extreme values")
        losses.append(error.item())
        adam.zero_grad(set_to_none=True)
        error.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        keep = min(options.ema, (step + 1) / (step + 10))
        torch._foreach_mul_(average, keep)
        torch._foreach_add_(average, [w.detach() for w in weights], alpha=1 - keep)
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {losses[-1]:.4f}", refresh=False)
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
    return loss_curve(losses)


def loss_curve(losses):
    """Losses by step -> {"steps": steps that each point averages, "loss": at most CURVE_POINTS points}."""
    steps = max(1, math.ceil(len(losses) / CURVE_POINTS))
    parts = [losses[i : i + steps] for i in range(0, len(losses), steps)]
    return {"steps": steps, "loss": [float(f"{np.mean(part):.5g}") for part in parts]}
