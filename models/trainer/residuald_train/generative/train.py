"""Fits the denoiser. Reproducible from the seed on one machine.

A part of the training rows only chooses the weights: the moving average with the lowest loss there is kept, so that a
small table does not end as a copy of its rows.
"""

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from .. import TrainerError
from ..console import bar, say_curve
from ..training import progress
from .network import Denoiser
from .schedule import TrainingNoise
from .space import Space

CHUNK = 2048
MOST_VALIDATION = 2000


@dataclass(frozen=True)
class Options:
    seed: int = 0
    steps: int = 8000
    minutes: float | None = None
    batch: int = 256
    width: int = 256
    blocks: int = 3
    dropout: float = 0.0
    lr: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.999
    unconditional: float = 0.6  # share of the rows without any known feature
    validation: float = 0.1  # share of the training rows that choose the weights
    check_every: int = 250  # steps between the losses on these
    patience: int = 12  # checks without a lower loss after which training stops


class Rows:
    """Training rows in the denoiser's space, with the level of each group."""

    def __init__(self, space, X):
        x = torch.as_tensor(X).split(CHUNK)
        with torch.no_grad():
            self.samples = torch.cat([space.encode(part) for part in x])
            self.levels = torch.cat([space.level_marks(part).bool() for part in x])

    def __len__(self):
        return len(self.samples)


def random_known(count, features, unconditional, g):
    """Which features are known, float32 [count, F] of 0 and 1: none, or a random share of them."""
    share = torch.rand(count, 1, generator=g)
    some = torch.rand(count, 1, generator=g) >= unconditional
    return ((torch.rand(count, features, generator=g) < share) & some).float()


def losses(space, denoiser, samples, levels, t, noise, known):
    """-> [N]: cross-entropy of the groups of levels and squared error of F, over what is not known, a part each."""
    signal, sigma, mask = denoiser.signal[t], denoiser.noise[t], known @ space.owner
    x = torch.where(mask > 0, samples, signal * samples + sigma * noise)
    h, parts = denoiser.trunk(x, t, mask), []
    if space.coded:
        parts.append(-(denoiser.log_shares(h) * levels) @ space.members * (1 - known @ space.group_owner))
    if space.coded < space.dims:
        wanted = (signal * noise - sigma * samples)[:, space.coded :]
        parts.append((denoiser.lines(h) - wanted).square() * (1 - mask[:, space.coded :]))
    parts = torch.cat(parts, 1)
    return parts.sum(1) / parts.shape[1]


class Validation:
    """The loss on rows that training does not see, always with the same noise."""

    REPEAT = 2

    def __init__(self, space, rows, numbers, options, g):
        self.space, self.rows = space, rows
        self.numbers = numbers.repeat(max(1, math.ceil(self.REPEAT * 500 / len(numbers))))
        n = len(self.numbers)
        self.t = TrainingNoise().spread(n)[torch.randperm(n, generator=g)]
        self.noise = torch.randn(n, space.dims, generator=g)
        self.known = random_known(n, len(space.features), options.unconditional, g)

    @torch.no_grad()
    def loss(self, denoiser):
        total = 0.0
        for part in torch.arange(len(self.numbers)).split(CHUNK):
            row = self.numbers[part]
            samples, levels = self.rows.samples[row], self.rows.levels[row].float()
            each = losses(self.space, denoiser, samples, levels, self.t[part], self.noise[part], self.known[part])
            total += float(each.sum())
        return total / len(self.numbers)


def fit(features, X, options, quiet=False):
    """X float32 [n, F], NaN = missing -> (Space, Denoiser in eval mode, facts about the training).

    Raises TrainerError if the loss is not finite.
    """
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    g = torch.Generator().manual_seed(options.seed)
    space = Space(features, X)
    rows = Rows(space, X)
    order = torch.randperm(len(rows), generator=g)
    kept = min(MOST_VALIDATION, max(1, round(options.validation * len(rows))))
    validation, numbers = Validation(space, rows, order[:kept], options, g), order[kept:]
    denoiser = Denoiser(space, options.width, options.blocks, options.dropout)
    average = copy.deepcopy(denoiser).eval()
    weights, means = list(denoiser.parameters()), list(average.parameters())
    adam = torch.optim.AdamW(weights, lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.99), fused=True)
    drawn, best, best_weights, checks, began = TrainingNoise(), math.inf, None, [], time.monotonic()
    shown, step, since = bar(total=options.steps, desc="train generative", unit=" steps", disable=quiet), 0, 0
    done = 0.0
    while done < 1:
        adam.param_groups[0]["lr"] = options.lr * min(1, step / 200) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-6
        row = numbers[torch.randint(len(numbers), (options.batch,), generator=g)]
        noise = torch.randn(options.batch, space.dims, generator=g)
        known = random_known(options.batch, len(features), options.unconditional, g)
        t = drawn.draw(options.batch, g)
        error = losses(space, denoiser, rows.samples[row], rows.levels[row].float(), t, noise, known).mean()
        if not torch.isfinite(error):
            raise TrainerError(f"the loss became {error.item()} at step {step}; check the data for extreme values")
        adam.zero_grad(set_to_none=True)
        error.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        step += 1
        keep = min(options.ema, step / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(means, weights, 1 - keep)
        shown.update()
        done = progress(step, time.monotonic() - began, options.steps, options.minutes)
        if step % options.check_every == 0 or done >= 1:
            checks.append(validation.loss(average))
            shown.set_postfix_str(f"loss {checks[-1]:.4f}", refresh=False)
            since += 1
            if checks[-1] < best:
                best, since = checks[-1], 0
                best_weights = copy.deepcopy(average.state_dict())
            if since >= options.patience:
                break
    shown.close()
    average.load_state_dict(best_weights)
    if not quiet:
        say_curve("train generative", checks)
    facts = {
        "steps": step,
        "seconds": round(time.monotonic() - began),
        "validation_loss": [round(c, 5) for c in checks],
    }
    return space, average.requires_grad_(False), facts
