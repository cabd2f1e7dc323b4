"""The residual network of every trained tabular denoiser, and row sums that do not depend on the batch."""

import torch
from torch import nn


class Net(nn.Module):
    """Pre-LayerNorm residual blocks: [N, inputs] -> [N, h], the input of a linear head.

    `shift` [N, h] or [1, h] is added after the first layer; the DDIM denoiser passes its timestep embedding there.
    """

    def __init__(self, inputs, h=96, blocks=2):
        super().__init__()
        self.inp = nn.Linear(inputs, h)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(h), nn.Linear(h, 2 * h), nn.SiLU(), nn.Linear(2 * h, h)) for _ in range(blocks)
        )
        self.out = nn.Sequential(nn.LayerNorm(h), nn.SiLU())

    def forward(self, x, shift=0):
        h = self.inp(x) + shift
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


def row_sum(x):
    """Sums each row, [N, k] -> [N, 1], by a matrix product, so that a score does not depend on its batch.

    ONNX Runtime's Reduce operators round a row differently depending on its position in the batch.
    """
    return x @ torch.ones(x.shape[1], 1, device=x.device, dtype=x.dtype)


def zero_linear(h, outputs):
    """A linear layer whose output is zero before training."""
    linear = nn.Linear(h, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
