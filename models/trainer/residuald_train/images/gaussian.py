"""A closed-form denoiser of whole images: the exact one of a Gaussian that is fitted to normal images."""

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 32  # images are averaged to SIDE x SIDE
NOISE = 2.0  # σ², in units of the mean variance of a value
LEAST_GAIN, DIRECTIONS = 0.02, 256  # directions with a smaller gain are left out, and all but the first so many
TOP = 10  # the values of the residual that the term takes


class Coarse(nn.Module):
    """Standardised images [N, C, H, W] -> [N, C, 32, 32], the mean of each cell of a grid; its borders cut pixels."""

    def __init__(self, shape):
        super().__init__()
        self.register_buffer("down", area_weights(shape.height), persistent=False)
        self.register_buffer("across", area_weights(shape.width).T.contiguous(), persistent=False)

    def forward(self, z):
        return self.down @ z @ self.across


def area_weights(length, cells=SIDE):
    """How much of each of `length` pixels lies in each cell, as a share of the cell -> [cells, length]."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * length / cells
    pixels = torch.arange(length, dtype=torch.float64)
    inside = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (inside.clamp(min=0) * cells / length).float()


class Gaussian(nn.Module):
    """Coarse images a [N, C, 32, 32] -> what the denoiser takes away from them, of the same shape.

    For a ~ N(m, Σ) and white noise of variance σ² the posterior mean is m + V g Vᵀ (a - m), where V are the
    eigenvectors of Σ and g = λ / (λ + σ²) (Wiener 1949). It is asked without adding noise, as the network is. This is a
    soft principal component analysis.
    """

    def __init__(self, mean, basis, gain):
        super().__init__()
        self.register_buffer("mean", mean.float()[None], persistent=False)
        self.register_buffer("basis", basis.float()[:, :, None, None], persistent=False)  # [k, C * 32 * 32, 1, 1]
        self.register_buffer("gain", gain.float()[None, :, None, None], persistent=False)

    @classmethod
    def fit(cls, a):
        """Coarse normal images [n, C, 32, 32] -> Gaussian."""
        flat = a.double().flatten(1)
        mean = flat.mean(0)
        _, singular, basis = torch.linalg.svd(flat - mean, full_matrices=False)
        variance = singular.square() / len(flat)
        gain = variance / (variance + NOISE * variance.sum() / flat.shape[1] + 1e-12)
        # At least one, because an empty basis cannot be exported; images that are all the same have gain 0.
        k = min(max(1, int((gain > LEAST_GAIN).sum())), DIRECTIONS)
        return cls(mean.view(a.shape[1:]), basis[:k], gain[:k])

    def forward(self, a):
        d = a - self.mean
        # As convolutions, which ONNX Runtime computes image by image: a matrix product would depend on the batch.
        code = F.conv2d(d.flatten(1)[:, :, None, None], self.basis)
        return d - F.conv_transpose2d(code * self.gain, self.basis).view(d.shape)


def strongest(residual):
    """The denoiser's residual [N, C, 32, 32] -> the root mean square of its 10 strongest places [N]."""
    square = residual.square().mean(1).flatten(1)
    return square.topk(TOP, 1).values.mean(1).sqrt()
