"""What is usual at each place of normal images, and how far these images show the same thing at the same place."""

import torch
import torch.nn.functional as F
from torch import nn

BOX = 9 / 128  # side of the box that maps are averaged over, as a share of the map's shorter side
FLOOR = 0.25  # added to a profile, in units of its median
LEVEL = 0.05  # added to the contrast before the logarithm, in units of its mean


def box(x, share=BOX):
    """Maps [n, h, w] -> their means over boxes, with reflected edges. The box has an odd side of 3 or more."""
    k = max(1, round((share * min(x.shape[1:]) - 1) / 2))
    return F.avg_pool2d(F.pad(x[:, None], (k, k, k, k), mode="reflect"), 2 * k + 1, 1)[:, 0]


def profile(heat, share=BOX):
    """Heat [n, h, w] of normal images -> what is usual at each place [h, w]; always positive."""
    usual = box(heat.mean(0)[None], share)[0]
    usual = usual + FLOOR * usual.median()
    return usual.clamp(min=float(1e-3 * usual.mean()) + 1e-6)


def contrast(normalise, z):
    """Standardised images z [n, C, H, W] -> their local contrast [n, H/2, W/2], by the `Normalise` of the network."""
    z, c = normalise(z)[0], z.shape[1]
    return F.avg_pool2d(z[:, :c].abs().mean(1), 2)


def registration(contrast):
    """Local contrast [n, h, w] of normal images, n > 1 -> r in 0..1, how far all show the same thing at the same place.

    The share of the variance of its logarithm, within images, that the place explains: 0 if images are shifted against
    each other at random. The share that n images have by chance is subtracted, and r is twice the rest, at most 1.
    """
    level = torch.log(box(contrast) + LEVEL * contrast.mean() + 1e-6)
    level = level - level.mean((1, 2), keepdim=True)
    whole, chance = level.var(), 1 / len(contrast)
    if whole < 1e-9:
        return 0.0
    share = (level.mean(0).var() / whole - chance) / (1 - chance)
    return float((2 * share).clamp(0, 1))


class Profile(nn.Module):
    """Heat [N, h, w] -> the mean over all places of heat divided by what is usual there [N]."""

    def __init__(self, usual):
        super().__init__()
        self.register_buffer("usual", usual, persistent=False)
        self.register_buffer("weight", (1 / usual / usual.numel()).flatten()[None, :, None, None], persistent=False)

    @classmethod
    def fit(cls, heat):
        """Heat [n, h, w] of normal images -> Profile."""
        return cls(profile(heat))

    def forward(self, heat):
        # As a convolution, which ONNX Runtime computes image by image: a mean would depend on the place in the batch.
        return F.conv2d(heat.flatten(1)[:, :, None, None], self.weight).flatten()
