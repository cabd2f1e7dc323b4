"""Fits the denoiser: split, steps, a moving average of the weights; reproducible from the seed."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from . import TrainerError
from .diffusion import Blind, loss
from .nets import Space
from .score import Scorer

DROP = 0.05  # how often a feature that may be missing is hidden from the network, so that it learns to fill in


@dataclass(frozen=True)
class Options:
    seed: int = 0
    steps: int = 1000
    batch: int = 128
    width: int = 96
    lr: float = 2e-3
    weight_decay: float = 1e-4
    ema: float = 0.995


def split(n, held_out, seed):
    """Rows 0..n-1 at random -> (train, held out)."""
    order = np.random.default_rng(seed).permutation(n)
    k = max(1, round(n * held_out))
    return order[k:], order[:k]


def fit(features, X, options):
    """X float32 [n, F], NaN = missing -> Scorer in eval mode. Raises TrainerError if the loss is not finite."""
    torch.set_num_threads(1)  # the sum of a reduction depends on how it is split
    torch.manual_seed(options.seed)
    g = torch.Generator().manual_seed(options.seed)
    scorer = Scorer(features, Space(features, X), options.width)
    optional = scorer.optional
    with torch.no_grad():
        Z, observed = scorer.space(torch.as_tensor(X))

    def batch_loss():
        rows = torch.randint(0, len(Z), (options.batch,), generator=g)
        known, x = observed[rows], Z[rows]
        shown = known.clone()
        if len(optional):
            shown[:, optional] *= (torch.rand(options.batch, len(optional), generator=g) >= DROP).float()
        owner = scorer.space.owner
        return loss(scorer.denoiser, x, shown[:, owner], 1 - shown[:, optional], known[:, owner], g)

    descend(scorer.denoiser, batch_loss, options)
    return scorer.eval()


def descend(model: Blind, batch_loss, options):
    """AdamW with warm-up and cosine; leaves the moving average of the weights in `model`."""
    weights = list(model.parameters())
    average = [w.detach().clone() for w in weights]
    adam = torch.optim.AdamW(weights, lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.99))
    bar = tqdm(range(options.steps), desc="train", unit=" steps", mininterval=0.5)
    for step in bar:
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / options.steps)
        adam.param_groups[0]["lr"] = options.lr * min(1, step / 100) * cosine + 1e-6
        error = batch_loss()
        if not torch.isfinite(error):
            raise TrainerError(f"the loss became {error.item()} at step {step}; look for broken values in the data")
        adam.zero_grad(set_to_none=True)
        error.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        keep = min(options.ema, (step + 1) / (step + 10))
        torch._foreach_mul_(average, keep)
        torch._foreach_add_(average, [w.detach() for w in weights], alpha=1 - keep)
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {error.item():.4f}", refresh=False)
    with torch.no_grad():
        for weight, mean in zip(weights, average, strict=True):
            weight.copy_(mean)
