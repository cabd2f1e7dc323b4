"""The denoiser: a residual MLP that sees the noised sample, the noise level, and which dimensions are known.

For a group of levels it returns the posterior mean, a softmax over the levels times their codes, and is trained
by cross-entropy (Dieleman et al. 2022, "Continuous diffusion for categorical data"). For a continuous dimension it is
preconditioned as in EDM (Karras et al. 2022): x_0 = α x_t - σ F, so that F has unit variance at every noise level.
"""

import math

import torch
from torch import nn

from ..tabular.network import zero_linear
from .schedule import signal_and_noise

CAP = 15.0  # bounds the logits, so that their exponentials need no maximum over the batch's rows


class Denoiser(nn.Module):
    """sample [N, D], timestep int64 [N], mask [N, D] (1 = known) -> the expected clean sample [N, D]."""

    def __init__(self, space, width=256, blocks=3, dropout=0.0):
        super().__init__()
        self.dims, self.coded = space.dims, space.coded
        self.width, self.depth = width, blocks
        signal, noise = signal_and_noise()
        self.register_buffer("signal", signal[:, None])
        self.register_buffer("noise", noise[:, None])
        self.register_buffer("level", ((noise / signal).log() / 4)[:, None])
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(-1, 5))
        self.register_buffer("codes", space.codes[:, : space.coded].clone())
        self.register_buffer("members", space.members.clone())
        self.inp = nn.Linear(3 * self.dims, width)
        self.time = nn.Sequential(nn.Linear(13, width), nn.SiLU(), nn.Linear(width, width * (blocks + 1)))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * width, width),
            )
            for _ in range(blocks)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.SiLU())
        if self.coded:
            self.logits = zero_linear(width, len(space.codes))
        if self.coded < self.dims:
            self.lines = zero_linear(width, self.dims - self.coded)

    def trunk(self, sample, timestep, mask):
        """-> [N, width]."""
        level = self.level[timestep]
        angle = level * self.frequencies
        shifts = self.time(torch.cat([level, angle.sin(), angle.cos()], 1)).split(self.width, 1)
        # Apart, because a clean value means more than a noisy one; added in one layer, known values matter too little.
        h = self.inp(torch.cat([sample * (1 - mask), sample * mask, mask], 1)) + shifts[0]
        for block, shift in zip(self.blocks, shifts[1:], strict=True):
            h = h + block(h + shift)
        return self.out(h)

    def log_shares(self, h):
        """[N, width] -> log-probabilities of the levels [N, L]."""
        logits = CAP * torch.tanh(self.logits(h) / CAP)
        total = logits.exp() @ self.members  # [N, G]
        return logits - total.log() @ self.members.T

    def forward(self, sample, timestep, mask):
        h, parts = self.trunk(sample, timestep, mask), []
        if self.coded:
            parts.append(self.log_shares(h).exp() @ self.codes)
        if self.coded < self.dims:
            F = self.lines(h)
            parts.append(self.signal[timestep] * sample[:, self.coded :] - self.noise[timestep] * F)
        clean = torch.cat(parts, 1)
        return mask * sample + (1 - mask) * clean
