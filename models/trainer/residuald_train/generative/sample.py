"""Draws rows with the bundle's scheduler, by diffusers. `residuald generate` does the same from the graphs."""

import numpy as np
import torch

from .schedule import STEPS, make_scheduler

BATCH = 2048


@torch.no_grad()
def draw(space, denoiser, count, seed=0, steps=STEPS, x=None, known=None, **changes):
    """-> rows float32 [count, F].

    `x`, `known` [count, F]: what is held, as for Space.forward. `changes`: of the scheduler's config.
    """
    g = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, count, BATCH):
        n = min(BATCH, count - start)
        held = mask = torch.zeros(n, space.dims)
        if x is not None:
            held, mask = space(torch.as_tensor(x[start : start + n]), torch.as_tensor(known[start : start + n]))
        parts.append(space.decode(draw_samples(denoiser, held, mask, g, steps, **changes)))
    return torch.cat(parts).numpy() if parts else np.zeros((0, len(space.features)), np.float32)


def draw_samples(denoiser, held, mask, g, steps=STEPS, **changes):
    """Known values `held` [N, D] where `mask` [N, D] is 1 -> samples [N, D]."""
    scheduler = make_scheduler(**changes)
    scheduler.set_timesteps(steps)
    sample = torch.randn(held.shape, generator=g) * scheduler.init_noise_sigma * (1 - mask) + held
    for t in scheduler.timesteps:
        clean = denoiser(scheduler.scale_model_input(sample, t), torch.full((len(sample),), int(t)), mask)
        sample = scheduler.step(clean, t, sample, generator=g).prev_sample
        sample = torch.where(mask > 0, held, sample)
    return sample
