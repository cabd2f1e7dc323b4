"""Simpler methods with which image recipes are compared.

Each takes training rows uint8 [n, H, W, C] and test rows uint8 [m, H, W, C] and returns the test rows' heat [m, h, w].
"""

import numpy as np
import torch
import torch.nn.functional as F

from ..images.scorer import standardise


def resized(x, size):
    """uint8 [n, H, W, C] -> standardised float32 [n, C, size, size]."""
    parts = [
        F.interpolate(standardise(torch.as_tensor(x[i : i + 64]))[0], (size, size), mode="bilinear", antialias=True)
        for i in range(0, len(x), 64)
    ]
    return torch.cat(parts)


@torch.no_grad()
def pca(train, test, seed, size=64, components=32):
    """Squared distance from the subspace of the first principal components of the training images."""
    torch.manual_seed(seed)
    a, b = resized(train, size).flatten(1), resized(test, size)
    mean = a.mean(0)
    _, _, v = torch.svd_lowrank(a - mean, q=min(components, len(a) - 1))
    d = b.flatten(1) - mean
    return (d - d @ v @ v.T).square().view(b.shape).mean(1).numpy()


@torch.no_grad()
def patch_knn(train, test, seed, size=128, patch=8, stride=4, bank=4000):
    """Distance of each patch of pixels to the nearest of about `bank` patches of the training images."""

    def patches(x):
        return F.unfold(x, patch, stride=stride).transpose(1, 2)

    g = torch.Generator().manual_seed(seed)
    x = resized(train, size)
    some = torch.cat([p[torch.randint(len(p), (1 + bank // len(x),), generator=g)] for p in map(one(patches), x)])
    side = (size - patch) // stride + 1
    return np.stack([torch.cdist(one(patches)(t), some).min(1).values.view(side, side) for t in resized(test, size)])


def one(f):
    return lambda x: f(x[None])[0]


@torch.no_grad()
def padim(scorer, train, test, seed, dims=64):
    """Mahalanobis distance of the network's features at each position from a Gaussian fitted to the training images.

    PaDiM (Defard et al. 2021) uses pretrained features. Here the features are the three coarsest levels of the network.
    """

    def features(x):
        out = []
        for i in range(0, len(x), 16):
            inputs, _ = scorer.normalise(standardise(torch.as_tensor(x[i : i + 16]))[0])
            up = scorer.net.levels(F.pad(inputs, scorer.pad, mode="reflect"))[:3]
            side = up[1].shape[-2] // 2, up[1].shape[-1] // 2
            out.append(torch.cat([F.adaptive_avg_pool2d(u, side) for u in up], 1))
        return torch.cat(out)

    g = torch.Generator().manual_seed(seed)
    a, b = features(train), features(test)
    pick = torch.randperm(a.shape[1], generator=g)[:dims]
    a, b = (t[:, pick].flatten(2).permute(2, 0, 1) for t in (a, b))  # [positions, n, dims]
    mean = a.mean(1, keepdim=True)
    covariance = (a - mean).transpose(1, 2) @ (a - mean) / len(train)
    covariance += 0.01 * covariance.diagonal(dim1=1, dim2=2).mean() * torch.eye(len(pick))
    d = b - mean
    squared = (torch.linalg.solve(covariance, d.transpose(1, 2)).transpose(1, 2) * d).sum(2)
    side = scorer.shape.height + sum(scorer.pad[2:])
    return squared.clamp(min=0).sqrt().T.reshape(len(test), side // 16, -1).numpy()


@torch.no_grad()
def pixel_gaussian(train, test, size=64):
    """Distance of each pixel from its mean over the training images, in its standard deviations there."""
    a, b = resized(train, size), resized(test, size)
    deviation = a.std(0)
    return ((b - a.mean(0)) / (deviation + 0.1 * deviation.mean() + 1e-6)).square().mean(1).numpy()


def top_mean(heat, share=0.01):
    """heat [n, h, w] -> scores [n]: the mean of the highest 1 % of values."""
    flat = np.sort(heat.reshape(len(heat), -1), 1)
    return flat[:, -max(1, int(share * flat.shape[1])) :].mean(1)
