"""The `ddim` recipe for tables: adds noise up to timestep t*, then takes a few deterministic denoising steps.

Training follows Ho et al. 2020, and the reverse process Song et al. 2021 (η = 0), with the schedule of diffusers. The
steps are unrolled in the graph. The noise is the same constant for every record, so a score depends only on its record.
"""

import math

import torch
from torch import nn

from .network import Net, zero_linear

TIMESTEPS = 1000


class TimeConditioned(nn.Module):
    """sample [N, D], indicators of hidden features [N, I], timestep [1] or [N, 1] -> the estimated noise [N, D]."""

    def __init__(self, dims, indicators, width):
        super().__init__()
        self.net = Net(dims + indicators, width)
        self.time = nn.Sequential(nn.Linear(17, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(8))
        self.noise = zero_linear(width, dims)

    def forward(self, sample, hidden, timestep):
        t = timestep / TIMESTEPS
        angle = t * self.frequencies
        shift = self.time(torch.cat([t, angle.sin(), angle.cos()], -1))
        return self.noise(self.net(torch.cat([sample, hidden], 1), shift))


class ReverseProcess(nn.Module):
    """z [N, D], indicators of hidden features [N, I] -> (z noised to t* and denoised again [N, D], None).

    `noise_level`: t* as a share of the timesteps. `calls`: number of DDIM steps.
    """

    def __init__(self, dims, pick, width, noise_level=0.25, calls=4, seed=0):
        super().__init__()
        from diffusers import DDIMScheduler  # slow to import

        self.schedule = DDIMScheduler(num_train_timesteps=TIMESTEPS, clip_sample=False).alphas_cumprod
        self.denoiser = TimeConditioned(dims, len(pick), width)
        start = round(noise_level * (TIMESTEPS - 1))
        self.calls = calls
        self.timesteps = [round(start * (calls - k) / calls) for k in range(calls)]
        self.alphas = [float(self.schedule[t]) for t in self.timesteps] + [1.0]
        self.register_buffer("pick", pick)
        self.register_buffer("constant", torch.randn(1, dims, generator=torch.Generator().manual_seed(seed)))

    def forward(self, z, hidden, _=None):
        seen = 1 - hidden @ self.pick if hidden.shape[1] else 1
        a = self.alphas[0]
        sample = a**0.5 * z + (1 - a) ** 0.5 * self.constant
        for t, a, after in zip(self.timesteps, self.alphas, self.alphas[1:], strict=False):
            noise = self.denoiser(sample * seen, hidden, torch.tensor([float(t)]))
            clean = (sample - (1 - a) ** 0.5 * noise) / a**0.5
            sample = after**0.5 * clean + (1 - after) ** 0.5 * noise
        return sample, None

    def loss(self, x, seen, hidden, known, g):
        """Mean squared error of the predicted noise. The masks are those of `diffusion.loss`."""
        t = torch.randint(TIMESTEPS, (len(x), 1), generator=g)
        noise, a = torch.randn(x.shape, generator=g).to(x.device), self.schedule[t].to(x.device)
        t = t.to(x.device)
        found = self.denoiser((a.sqrt() * x + (1 - a).sqrt() * noise) * seen, hidden, t.float())
        return ((found - noise).square() * known).sum() / known.sum().clamp(min=1)
