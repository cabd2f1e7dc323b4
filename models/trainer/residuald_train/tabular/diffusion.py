"""Forward noising, the trained denoisers and their loss.

Forward process: x_t = x + σn. A network sees x_t but not σ, and learns the posterior mean E[x | x_t] over all noise
levels at once (denoising score matching, Vincent 2011; blind: Kadkhodaie & Simoncelli 2021). Its residual x_t - D(x_t)
is then -σ² times the score of the noised density (Tweedie; Robbins 1956).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from .network import Net, row_sum, zero_linear


@dataclass(frozen=True)
class Noise:
    """The distribution of noise levels and the weight of their loss.

    σ is log-uniform on [low, high]. The weight is ((1 + σ²) / σ²)^power: power 0 gives the plain squared error, and
    power 1 the squared error relative to that of the best linear denoiser of standard normal data.
    """

    low: float = 0.03
    high: float = 3.0
    power: int = 0


class Blind(nn.Module):
    """x_t [N, D], indicators of hidden features [N, I] -> D(x_t) [N, D], log E[(x_t - x)² | x_t] [N, D]."""

    calls = 1

    def __init__(self, dims, indicators, width=96):
        super().__init__()
        self.net = Net(dims + 1 + indicators, width)
        self.mean = zero_linear(width, dims)
        self.log_spread = zero_linear(width, dims)

    def forward(self, x, hidden, _=None):
        r = (1 + row_sum(x * x) / x.shape[1]).sqrt()
        h = self.net(torch.cat([x / r, r.log(), hidden], 1))
        return x - r * self.mean(h), self.log_spread(h).clamp(-8, 8)


class Hybrid(nn.Module):
    """As Blind, but the network also sees the kernel's residual [N, D] and works in units of its length.

    `pick` [I, D] of 0 and 1: the columns of each feature that may be hidden. The kernel's output fills them in.
    `floor` is added to the mean squared residual, so that the unit is at least √floor.
    """

    calls = 1

    def __init__(self, dims, pick, width=96, floor=1e-4):
        super().__init__()
        self.floor = floor
        self.register_buffer("pick", pick)
        self.net = Net(2 * dims + 2 + len(pick), width)
        self.mean = zero_linear(width, dims)
        self.log_spread = zero_linear(width, dims)

    def forward(self, x, hidden, kernel):
        if hidden.shape[1]:
            x = x + hidden @ self.pick * kernel
        e = x - kernel
        r = (1 + row_sum(x * x) / x.shape[1]).sqrt()
        s = (self.floor + row_sum(e * e) / x.shape[1]).sqrt()
        h = self.net(torch.cat([x / r, e / s, r.log(), s.log(), hidden], 1))
        return x - s * self.mean(h), (self.log_spread(h) + 2 * s.log()).clamp(-10, 8)


def add_noise(x, noise: Noise, g):
    """The forward process: x [N, D] -> (x_t [N, D], loss weight [N, 1]), with its own σ for each row."""
    u = torch.rand(len(x), 1, generator=g).to(x.device)
    sigma = torch.exp(u * math.log(noise.high / noise.low) + math.log(noise.low))
    return x + sigma * torch.randn(x.shape, generator=g).to(x.device), ((1 + sigma**2) / sigma**2) ** noise.power


def loss(denoise, x, seen, known, noise: Noise, g):
    """Mean squared error of D, plus 0.05 times the negative log-likelihood of the second head.

    `denoise(x_t)` -> (D, log variance). x [N, D] is clean. `seen` [N, D] of 0 and 1 marks the values that the network
    gets, and `known` [N, D] those that are known and count in the loss. The second head's loss improves the first head.
    """
    xt, weight = add_noise(x, noise, g)
    xt = xt * seen
    D, lv = denoise(xt)
    nll = lv + (xt - x).square() * torch.exp(-lv)
    return (((x - D).square() * weight + 0.05 * nll) * known).sum() / known.sum().clamp(min=1)
