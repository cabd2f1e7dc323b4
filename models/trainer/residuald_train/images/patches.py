"""A closed-form denoiser of small patches: the exact posterior mean over patches of normal images, from any place."""

import torch
import torch.nn.functional as F
from torch import nn

from .profile import profile

PATCH, STRIDE = 4, 2  # in cells of the coarse image
DIMS = 12  # directions that are kept
CENTERS, POOL = 1000, 20_000  # patches that the denoiser knows, and patches from which they are chosen
BOX = 3 / 16
TOP = 0.01  # the share of places that the term takes
CHUNK = 20_000  # patches that are compared with the centers at a time, while fitting


class Patches(nn.Module):
    """Coarse images a [N, C, 32, 32] -> how badly their worst patches are restored, over what is usual there [N].

    Patches of 4x4 cells, two apart, minus their means, are whitened to 12 dimensions. The denoiser is that of the
    empirical distribution of `centers` with noise of variance h² / 2: a softmax of -d² / h² over them (Vincent 2011).
    """

    def __init__(self, mean, whiten, centers, width, usual):
        super().__init__()
        self.register_buffer("kernel", as_kernel(whiten), persistent=False)  # [dims, C, 4, 4]
        self.register_buffer("offset", -(mean @ whiten).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("centers", centers[:, :, None, None], persistent=False)  # [k, dims, 1, 1]
        self.register_buffer("square", centers.square().sum(1).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("usual", usual, persistent=False)
        self.width = float(width)
        self.top = max(1, int(TOP * usual.numel()))

    @classmethod
    def fit(cls, a, half, seed=0):
        """Coarse normal images [n, C, 32, 32], half bool [n], the images that the width is chosen with -> Patches."""
        flat, side = unfold(a)
        mean = flat.flatten(0, 1).mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(flat.flatten(0, 1).T.double()))
        values, vectors = values[-DIMS:], vectors[:, -DIMS:]
        scale = torch.where(values > 1e-6 * values.sum() + 1e-12, values.clamp(min=1e-12).rsqrt(), 0)
        whiten = (vectors * scale).float()
        y = (flat - mean) @ whiten
        g = torch.Generator().manual_seed(seed)
        known, other = farthest(y[~half], g), y[half]
        parts = other.flatten(0, 1).split(CHUNK)
        width = torch.cat([squares(part, known).min(1).values for part in parts]).median().clamp(min=1e-6)
        residual = torch.cat([(part - restore(part, known, width)).square().sum(1) for part in parts])
        residual = residual.view(len(other), side, side)
        return cls(mean, whiten, farthest(y, g), width, profile(residual, BOX))

    def forward(self, a):
        y = F.conv2d(a, self.kernel, stride=STRIDE) + self.offset
        score = 2 * F.conv2d(y, self.centers) - self.square
        near = torch.softmax(score / self.width, 1)
        residual = (y - F.conv_transpose2d(near, self.centers)).square().sum(1)
        return (residual / self.usual).flatten(1).topk(self.top, 1).values.mean(1)


def unfold(a):
    """Coarse images [n, C, 32, 32] -> (patches minus their channels' means [n, places, C * 16], places a side)."""
    n, c = a.shape[:2]
    flat = F.unfold(a, PATCH, stride=STRIDE).transpose(1, 2).reshape(n, -1, c, PATCH * PATCH)
    return (flat - flat.mean(3, keepdim=True)).flatten(2), (a.shape[2] - PATCH) // STRIDE + 1


def as_kernel(whiten):
    """The whitening [C * 16, dims] of patches minus their means -> kernel [dims, C, 4, 4] for patches as they are."""
    kernel = whiten.T.reshape(whiten.shape[1], -1, PATCH * PATCH)
    return (kernel - kernel.mean(2, keepdim=True)).reshape(*kernel.shape[:2], PATCH, PATCH).contiguous()


def farthest(y, g):
    """Patches [n, places, dims] -> at most CENTERS of POOL random ones, each the farthest from those before it."""
    y = y.flatten(0, 1)
    y = y[torch.randperm(len(y), generator=g)[:POOL]]
    chosen, nearest = [0], torch.full((len(y),), torch.inf)
    for _ in range(min(CENTERS, len(y)) - 1):
        nearest = torch.minimum(nearest, (y - y[chosen[-1]]).square().sum(1))
        chosen.append(int(nearest.argmax()))
    return y[chosen]


def squares(y, centers):
    """Patches [n, dims] -> their squared distances to the centers [n, k]."""
    return torch.cdist(y, centers).square()


def restore(y, centers, width):
    """Patches [n, dims] -> their posterior means [n, dims]."""
    return torch.softmax(-squares(y, centers) / width, 1) @ centers
