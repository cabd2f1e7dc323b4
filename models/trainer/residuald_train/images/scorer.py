"""The scorer graph of the blind recipe, which is exported to ONNX: images in; score, heat and reconstruction out."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..report.sheet import heat_colours, to_pixels
from .unet import UNet, flops

LOCAL = 10.0  # σ of the local contrast normalisation, in pixels
FLOOR = 0.08  # added to the local deviation, in standard deviations of the image
LIMIT = 6.0  # network inputs are clipped to this, in deviations


class Blur(nn.Module):
    """Blurs each channel of [N, C, H, W] with a Gaussian of σ pixels, truncated at 3σ, with reflected edges."""

    def __init__(self, sigma):
        super().__init__()
        self.k = k = math.ceil(3 * sigma)
        t = torch.arange(-k, k + 1, dtype=torch.float64)
        w = torch.exp(-t * t / (2 * sigma * sigma))
        self.register_buffer("w", (w / w.sum()).float(), persistent=False)

    def forward(self, x):
        _, c, h, w = x.shape
        k = self.k
        x = F.pad(x.reshape(-1, 1, h, w), (k, k, k, k), mode="reflect" if k < min(h, w) else "replicate")
        x = F.conv2d(F.conv2d(x, self.w.view(1, 1, -1, 1)), self.w.view(1, 1, 1, -1))
        return x.reshape(-1, c, h, w)


class Normalise(nn.Module):
    """Standardised images [N, C, H, W] -> network input [N, 2C, H, W], local deviation [N, 1, H, W].

    Local contrast normalisation (Jarrett et al. 2009): z = x - G(x), z / (√G(z²) + floor), clipped. The input also
    contains the image itself, because the normalisation removes large light and dark areas.
    """

    def __init__(self, size):
        super().__init__()
        self.blur = Blur(min(LOCAL, size / 6))

    def forward(self, x):
        z = x - self.blur(x)
        deviation = self.blur(z.square().mean(1, keepdim=True)).clamp(min=0).sqrt() + FLOOR
        return torch.cat([(z / deviation).clamp(-LIMIT, LIMIT), x.clamp(-LIMIT, LIMIT)], 1), deviation


def standardise(x):
    """uint8 [N, H, W, C] -> (standardised float32 [N, C, H, W], mean [N, C, 1, 1], deviation [N, 1, 1, 1]).

    All channels share one deviation, so that the faint colours of a gray image are not amplified.
    """
    x = x.float().permute(0, 3, 1, 2)
    mean = x.mean((2, 3), keepdim=True)
    deviation = (x - mean).square().mean((1, 2, 3), keepdim=True).sqrt() + 1
    return (x - mean) / deviation, mean, deviation


class Scorer(nn.Module):
    """x uint8 [N, H, W, C] -> score [N], heat [N, H, W], reconstruction uint8 [N, H, W, C].

    Calls the network once on the image, without adding noise. Heat, at half the image's size, is |r| times the
    probability that a pixel is corrupted. The returned heat is blurred and includes the border.

    score = (h + 0.001) u. h is the mean of the 12 highest heat values inside the border. u tells how unlikely the
    network's coarse features are at the 2 % least likely positions, and is about 1 for normal images. It is their mean
    Mahalanobis distance to one Gaussian for all positions, divided by the square root of the number of features.

    The names of submodules and buffers are part of the exported file: renaming one changes the bytes of model.onnx.
    """

    TOP, BORDER, HEAVY = 12, 3 / 128, 8 / 128
    PLACES, LEAST, MOST = 0.02, 1e-3, 1e3

    def __init__(self, shape, widths=(16, 32, 48, 64), blocks=(0, 0, 1, 1)):
        super().__init__()
        self.shape = shape
        self.steps, self.losses = 0, []  # set by the training
        h, w, c = shape.height, shape.width, shape.channels
        self.pad = [(-w % 16) // 2, -w % 16 - (-w % 16) // 2, (-h % 16) // 2, -h % 16 - (-h % 16) // 2]
        self.normalise = Normalise(min(h, w))
        self.net = UNet(2 * c, c, widths, blocks)
        self.half = h // 2, w // 2
        side = min(self.half)
        self.border = round(self.BORDER * side)
        self.heavy = Blur(self.HEAVY * side)
        dims = sum(widths[-3:])
        # Fitted after training, so not part of a checkpoint.
        self.register_buffer("center", torch.zeros(1, dims, 1, 1), persistent=False)
        self.register_buffer("whiten", torch.eye(dims)[:, :, None, None], persistent=False)

    def forward(self, x):
        _, heat, levels, *maps = self.look(x)
        return self.score(heat) * self.unlikely(self.surprise(levels)), *self.finish(*maps)

    def look(self, x):
        """x -> (z [N, C, H, W], heat [N, 1, H/2, W/2], the network's levels, and two maps for `finish`)."""
        z, mean, deviation = standardise(x)
        inputs, local = self.normalise(z)
        levels = self.net.levels(F.pad(inputs, self.pad, mode="reflect"))
        r, level = self.net.head(levels[-1])
        h, w = self.shape.height, self.shape.width
        left, _, top, _ = self.pad
        r, level = (t[:, :, top : top + h, left : left + w] for t in (r, level))
        heat = self.heat(r, level)
        shown = F.interpolate(self.heavy(heat), size=(h, w), mode="bilinear", align_corners=False).squeeze(1)
        clean = ((z - r * local) * deviation + mean).round().clamp(0, 255)
        return z, heat, levels, shown, clean

    def finish(self, shown, clean):
        """The maps of `look` -> heat [N, H, W], reconstruction uint8 [N, H, W, C]."""
        return shown.clamp(min=0), clean.to(torch.uint8).permute(0, 2, 3, 1)

    def facts(self):
        """Facts about the recipe for the manifest."""
        h, w, c = self.shape.height, self.shape.width, self.shape.channels
        return {
            "recipe": "blind",
            "calls": 1,
            "aggregation": f"mean of the highest {self.TOP} of {self.half[0]}x{self.half[1]} values of heat, "
            "times the mean Mahalanobis distance of the features at the unlikeliest 2 % of places",
            "border": f"{self.border} of these left out at each edge",
            "gflop": round(flops(self, torch.zeros(1, h, w, c, dtype=torch.uint8)) / 1e9, 3),
        }

    def sheet(self, x, y):
        """Clean and corrupted [N, C, h, w] -> columns of a contact sheet: clean, corrupted, restored, added, found."""
        inputs, local = self.normalise(y)
        r, level = self.net(inputs)
        added = ((y - x).abs() / local).mean(1).cpu().numpy()
        found = (r.abs().mean(1) * torch.sigmoid(level)[:, 0]).cpu().numpy()
        return [to_pixels(x), to_pixels(y), to_pixels(y - r * local), heat_colours(added, 3), heat_colours(found, 3)]

    def heat(self, r, level):
        """r [N, C, H, W], level [N, 1, H, W] -> heat [N, 1, H/2, W/2]."""
        heat = r.abs().mean(1, keepdim=True) * torch.sigmoid(level)
        return F.avg_pool2d(heat, 2)

    def features(self, levels):
        """The three coarsest levels, averaged to the resolution of the coarsest -> [N, dims, h, w]."""
        return torch.cat([levels[0], F.avg_pool2d(levels[1], 2), F.avg_pool2d(levels[2], 4)], 1)

    def surprise(self, levels):
        """The Mahalanobis distance of the features at each place, over the root of their number -> [N, h, w]."""
        return F.conv2d(self.features(levels) - self.center, self.whiten).square().mean(1).sqrt()

    def unlikely(self, surprise):
        """Surprise [N, h, w] -> u [N], as defined above."""
        d = surprise.flatten(1)
        return d.topk(max(1, int(self.PLACES * d.shape[1])), 1).values.mean(1).clamp(max=self.MOST)

    @torch.no_grad()
    def fit_features(self, images, batch=16):
        """Sets the Gaussian of the features from normal images uint8 [n, H, W, C]."""
        dims = self.center.shape[1]
        count, total, squares = 0, torch.zeros(dims, dtype=torch.float64), torch.zeros(dims, dims, dtype=torch.float64)
        for i in range(0, len(images), batch):
            inputs, _ = self.normalise(standardise(torch.as_tensor(images[i : i + batch]))[0])
            f = self.features(self.net.levels(F.pad(inputs, self.pad, mode="reflect")))
            f = f.permute(1, 0, 2, 3).flatten(1).double()
            count, total, squares = count + f.shape[1], total + f.sum(1), squares + f @ f.T
        mean = total / count
        covariance = squares / count - mean[:, None] * mean
        covariance += (1e-3 * covariance.diagonal().mean() + 1e-6) * torch.eye(dims)
        whiten = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), torch.eye(dims).double(), upper=False)
        self.center.copy_(mean.float()[None, :, None, None])
        self.whiten.copy_(whiten.float()[:, :, None, None])

    def score(self, heat):
        """Heat [N, 1, H/2, W/2] -> h + 0.001 [N], as defined above."""
        b = self.border
        inner = heat[:, 0, b : self.half[0] - b, b : self.half[1] - b]
        return inner.flatten(1).topk(self.TOP, 1).values.mean(1) + self.LEAST


@torch.no_grad()
def run_torch(scorer, x, batch=16):
    """uint8 [n, H, W, C] -> (score, heat, reconstruction) as numpy arrays."""
    device = next(scorer.buffers()).device
    parts = [scorer(torch.as_tensor(x[i : i + batch]).to(device)) for i in range(0, len(x), batch)]
    return tuple(torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))
