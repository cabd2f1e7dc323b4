"""The noise-blind denoiser and its loss.

Forward process: x_t = x + σn. The network sees x_t but never σ, and learns the posterior mean E[x | x_t] over
all noise levels at once (denoising score matching, Vincent 2011; blind: Kadkhodaie & Simoncelli 2021). Its
residual x_t - D(x_t) is then -σ² times the score of the noised density (Tweedie; Robbins 1956).
"""

import math

import torch
from torch import nn

from .nets import Net, row_sum, zero_linear

SIGMA_MIN, SIGMA_MAX = 0.03, 3.0


class Blind(nn.Module):
    """x_t [N, D] and indicators of what is observed [N, I] -> D(x_t) [N, D], log E[(x_t - x)² | x_t] [N, D]."""

    def __init__(self, dims, indicators, width=96):
        super().__init__()
        self.net = Net(dims + 1 + indicators, width)
        self.mean = zero_linear(width, dims)
        self.log_spread = zero_linear(width, dims)

    def forward(self, x, indicators):
        r = (1 + row_sum(x * x) / x.shape[1]).sqrt()
        h = self.net(torch.cat([x / r, r.log(), indicators], 1))
        return x - r * self.mean(h), self.log_spread(h).clamp(-8, 8)


def loss(model, x, seen, indicators, known, g):
    """Mean over the features of the squared error of D, and a little of the second head's likelihood.

    x [N, D] clean, `seen` [N, D] what the network may look at, `known` [N, D] what is known and may be learned
    from, all of 0 and 1. The second head is not used for the score; learning it makes the first one better.
    """
    u = torch.rand(len(x), 1, generator=g)
    sigma = torch.exp(u * math.log(SIGMA_MAX / SIGMA_MIN) + math.log(SIGMA_MIN))
    noise = sigma * torch.randn(x.shape, generator=g)
    xt = (x + noise) * seen
    D, lv = model(xt, indicators)
    nll = lv + (xt - x).square() * torch.exp(-lv)
    return (((x - D).square() + 0.05 * nll) * known).sum() / known.sum().clamp(min=1)
