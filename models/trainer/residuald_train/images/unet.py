"""The network of the blind recipe: a small U-Net that gets neither the position nor the strength of the corruption."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn


class Conv(nn.Sequential):
    """3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, inputs, outputs, stride=1):
        norm = nn.BatchNorm2d(outputs, momentum=0.05)
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm, nn.ReLU())


class Block(nn.Module):
    """Two convolutions with a residual connection (He et al. 2016)."""

    def __init__(self, width):
        super().__init__()
        self.first = Conv(width, width)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width, momentum=0.05)

    def forward(self, x):
        return F.relu(x + self.norm(self.second(self.first(x))))


class UNet(nn.Module):
    """[N, inputs, H, W] -> r [N, channels, H, W], level logit [N, 1, H, W]; H and W must be multiples of 16.

    Takes 2x2 blocks of pixels as channels, so that the finest convolutions run at half the resolution. `blocks`: the
    number of residual blocks at each width on the way down. On the way up, each width has at most one.
    """

    def __init__(self, inputs, channels, widths=(16, 32, 48, 64), blocks=(0, 0, 1, 1)):
        super().__init__()
        self.channels = channels
        steps = list(pairwise(widths))
        self.stem = Conv(4 * inputs, widths[0])
        self.down = nn.ModuleList(Conv(a, b, stride=2) for a, b in steps)
        self.encode = nn.ModuleList(nn.Sequential(*map(Block, [w] * n)) for w, n in zip(widths, blocks, strict=True))
        self.lateral = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in steps)
        self.merge = nn.ModuleList(Conv(2 * a, a) for a, _ in steps)
        self.decode = nn.ModuleList(
            nn.Sequential(*map(Block, [w] * min(1, n))) for w, n in zip(widths[:-1], blocks[:-1], strict=True)
        )
        self.out = nn.Conv2d(widths[0], 4 * (channels + 1), 3, 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def levels(self, x):
        """[N, inputs, H, W] -> the features on the way up, coarsest first."""
        h = self.encode[0](self.stem(F.pixel_unshuffle(x, 2)))
        skips = [h]
        for down, encode in zip(self.down, self.encode[1:], strict=True):
            h = encode(down(h))
            skips.append(h)
        up = [h]
        for k in reversed(range(len(self.down))):
            h = F.interpolate(self.lateral[k](h), scale_factor=2.0, mode="nearest")
            h = self.decode[k](self.merge[k](torch.cat([h, skips[k]], 1)))
            up.append(h)
        return up

    def forward(self, x):
        return self.head(self.levels(x)[-1])

    def head(self, finest):
        """The finest features -> (r, level logit)."""
        out = F.pixel_shuffle(self.out(finest), 2)
        return out[:, : self.channels], out[:, self.channels :]


def flops(model, *example):
    """The number of floating-point operations in convolutions and matrix products; a multiply-add counts as two."""
    from torch.utils.flop_counter import FlopCounterMode  # here, because its import warns where Triton is missing

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*example)
    return counter.get_total_flops()
