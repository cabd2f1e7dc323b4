"""Fits a recipe: split, steps, a moving average of the weights, the terms' weights; reproducible from the seed."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from . import TrainerError
from .coreset import Kernel
from .ddim import Reverse
from .diffusion import Blind, Hybrid, loss
from .nets import Space
from .recipes import RECIPES, TAME
from .score import Scorer, Term, masked

DROP = 0.05  # how often a feature that may be missing is hidden from the network, so that it learns to fill in
FLOOR = 0.01  # of what is typical: a smaller residual means nothing, and float32 would make much of its noise
LEAST_DEVIATION = 0.1  # of log E, that a term without variation (duplicates) does not silence the others
CURVE = 200  # points of a loss curve that the manifest keeps
TYPICAL_ROWS = 2000  # that the terms' means and deviations are taken from


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
    """Rows 0..n-1 at random -> (train, held out)."""
    order = np.random.default_rng(seed).permutation(n)
    k = max(1, round(n * held_out))
    return order[k:], order[:k]


def fit(features, X, options, quiet=False):
    """X float32 [n, F], NaN = missing -> Scorer in eval mode. Raises TrainerError if the loss is not finite."""
    torch.set_num_threads(1)  # the sum of a reduction depends on how it is split
    torch.manual_seed(options.seed)
    g = torch.Generator().manual_seed(options.seed)
    space = Space(features, X, options.recipe in TAME)
    with torch.no_grad():
        Z, observed = space(torch.as_tensor(X))
        optional = [j for j, f in enumerate(features) if f.missing == "impute"]
        parts = RECIPES[options.recipe]
        kernel = None
        if any(part.wants_kernel for part in parts):
            kernel = Kernel(Z, space.sums[:, optional], options.coreset, seed=options.seed)
    made = {}  # parts that ask the same denoiser share it
    for part in parts:
        if (part.denoiser, part.noise) not in made:
            made[part.denoiser, part.noise] = make_denoiser(part, space, optional, kernel, options)
    terms = [Term(part, made[part.denoiser, part.noise]) for part in parts]
    scorer = Scorer(features, space, terms, kernel, options.recipe)
    for term in {id(term.denoiser): term for term in terms}.values():
        if term.denoiser is not None:
            curve = train(scorer, term, Z, observed, g, options, quiet)
            scorer.curves.append({"denoiser": term.part.denoiser, **curve})
    with torch.no_grad():
        settle(scorer, Z, observed, g)
    return scorer.eval()


def make_denoiser(part, space, optional, kernel, options):
    dims, pick = len(space.owner), space.sums[:, optional].T.contiguous()
    if part.denoiser == "blind":
        return Blind(dims, len(optional), options.width)
    if part.denoiser == "hybrid":
        return Hybrid(dims, pick, options.width, max(1e-4, FLOOR * kernel.variance))
    return Reverse(dims, pick, options.width, seed=options.seed) if part.denoiser == "ddim" else None


def train(scorer, term, Z, observed, g, options, quiet=False):
    """Fits the term's denoiser on Z [n, D], of which `observed` [n, F] is known -> its loss curve."""
    optional, owner, denoiser = scorer.optional, scorer.space.owner, term.denoiser

    def batch_loss():
        rows = torch.randint(0, len(Z), (options.batch,), generator=g)
        known = torch.ones(options.batch, scorer.space.sums.shape[1]) if observed is None else observed[rows]
        x, shown = Z[rows], known.clone()
        if len(optional):
            shown[:, optional] *= (torch.rand(options.batch, len(optional), generator=g) >= DROP).float()
        seen, hidden = shown[:, owner], 1 - shown[:, optional]
        if term.part.denoiser == "ddim":
            return denoiser.loss(x, seen, hidden, known[:, owner], g)

        def denoise(xt):
            with torch.no_grad():
                kernel = scorer.ask_kernel(xt, hidden, seen, rows) if term.part.wants_kernel else None
            return denoiser(xt, hidden, kernel)

        return loss(denoise, x, seen, known[:, owner], term.part.noise, g)

    return descend(denoiser, batch_loss, options, quiet)


def settle(scorer, Z, observed, g):
    """Sets the whitening and the terms' constants from training rows, which the kernel leaves out of its centers."""
    rows = torch.randperm(len(Z), generator=g)[:TYPICAL_ROWS]
    z, seen = Z[rows], None if observed is None else observed[rows]
    columns = scorer.space.of_columns(seen)
    if any(term.part.whiten for term in scorer.terms):
        kernel = scorer.ask_kernel(z, scorer.hidden(z, seen), columns, rows)
        for term in scorer.terms:
            if term.part.whiten:
                term.whitening = whitening(masked(z - kernel, columns))
    energies = torch.cat([energy for _, _, energy, _ in scorer.ask(z, seen, rows)], 1)
    scorer.floor.copy_((FLOOR * energies.median(0).values).clamp(min=1e-5)[:, None])
    logs = torch.cat([log for *_, log in scorer.ask(z, seen, rows)], 1)
    weight = torch.tensor([term.part.weight for term in scorer.terms]) / logs.std(0).clamp(min=LEAST_DEVIATION)
    scorer.typical.copy_(logs.mean(0)[:, None])
    scorer.exponent.copy_((weight / weight.sum())[:, None])


def whitening(residual, shrink=0.5):
    """Symmetric W [D, D] such that residuals r [n, D] become r W without correlation (ZCA), as far as the shrinkage to
    equal variances lets them, and as long as they were; symmetric, so that a column stays its feature's."""
    covariance = (residual.T @ residual / len(residual)).double()
    mean = covariance.diagonal().mean()
    covariance = (1 - shrink) * covariance + (shrink * mean + 1e-6) * torch.eye(len(covariance))
    values, vectors = torch.linalg.eigh(covariance)
    return ((vectors * ((mean + 1e-6) / values).sqrt()) @ vectors.T).float().contiguous()


def descend(model: nn.Module, batch_loss, options, quiet=False):
    """AdamW with warm-up and cosine; leaves the moving average of the weights in `model` -> the loss curve."""
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
            raise TrainerError(f"the loss became {error.item()} at step {step}; look for broken values in the data")
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
    return curve(losses)


def curve(losses):
    """A loss a step -> {"steps": how many each point is the mean of, "loss": at most CURVE points}."""
    steps = max(1, math.ceil(len(losses) / CURVE))
    parts = [losses[i : i + steps] for i in range(0, len(losses), steps)]
    return {"steps": steps, "loss": [float(f"{np.mean(part):.5g}") for part in parts]}
