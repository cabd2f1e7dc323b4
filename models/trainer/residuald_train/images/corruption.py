"""The forward process of the blind image recipe: noise whose strength varies over the image.

y = x + m (z - x), where m is a random soft mask (blobs or thin lines) and z one of several kinds of foreign content.
The network learns from synthetic defects as in DRÆM (Zavrtanik et al. 2021) and NSA (Schlüter et al. 2022), but as a
denoiser: it predicts y - x, and how strong the corruption is at each pixel.
"""

import math

import torch
import torch.nn.functional as F

CLEAN = 0.15  # share of images that are not corrupted
SECOND = 0.4  # probability of a second corruption
AMPLITUDE = 0.4, 5.0  # in standard deviations of the image's fine structure
KINDS = "noise", "other", "blur", "contrast", "stroke"
BANK = 512  # masks and noise fields of each kind; made once and cropped at random


def uniform(shape, low, high, g):
    return torch.empty(shape).uniform_(low, high, generator=g)


def log_uniform(shape, low, high, g):
    return uniform(shape, math.log(low), math.log(high), g).exp()


def chance(g):
    return float(torch.rand((), generator=g))


def integer(n, g):
    return int(torch.randint(n, (), generator=g))


def column(n, low, high, g):
    """Log-uniform random numbers [n, 1, 1, 1]."""
    return log_uniform((n, 1, 1, 1), low, high, g)


def gaussian_field(n, size, cells_y, cells_x, g):
    """Smooth Gaussian noise [n, 1, size, size] of unit deviation: cells_y x cells_x knots, interpolated and rotated."""
    f = torch.randn(n, 1, max(2, cells_y), max(2, cells_x), generator=g)
    f = F.interpolate(f, size=(size, size), mode="bicubic", align_corners=False)
    angle = uniform((n,), 0, math.pi, g)
    c, s, zero = angle.cos(), angle.sin(), torch.zeros(n)
    turn = torch.stack([torch.stack([c, -s, zero], 1), torch.stack([s, c, zero], 1)], 1)
    grid = F.affine_grid(turn, f.shape, align_corners=False)
    f = F.grid_sample(f, grid, padding_mode="reflection", align_corners=False)
    return f / (f.flatten(1).std(1).view(n, 1, 1, 1) + 1e-6)


def cells(size, g, finest=1):
    """A random number of knots, log-uniform on [2, size / finest]."""
    return int(2 ** (1 + chance(g) * math.log2(size / finest / 2)))


def blobs(n, size, g):
    """Masks [n, 1, size, size] in 0..1: softly thresholded noise whose area is log-uniform on 0.2 to 30 %."""
    f = gaussian_field(n, size, cells(size, g, 4), cells(size, g, 4), g)
    area = log_uniform((n,), 0.002, 0.3, g)
    ordered = f.flatten(1).sort(1, descending=True).values
    level = ordered.gather(1, (area * size * size).long().clamp(8, size * size - 1)[:, None]).view(n, 1, 1, 1)
    return torch.sigmoid((f - level) * column(n, 6, 60, g))


def lines(n, size, g, jagged=0.0):
    """Masks of thin curves, 0.5 to 2.5 pixels wide: zero crossings of smooth noise, cut off at random."""
    knots = int(2 ** (1 + 2.5 * chance(g)))
    f = gaussian_field(n, size, knots, knots, g)
    slope = ((f[:, :, 1:] - f[:, :, :-1])[..., :-1].square() + (f[..., 1:] - f[..., :-1])[:, :, :-1].square()).sqrt()
    slope = F.pad(slope, (0, 1, 0, 1), mode="replicate") + 1e-3
    if jagged:
        f = f + jagged * slope * gaussian_field(n, size, size // 8, size // 8, g)
    line = torch.exp(-((f / (slope * uniform((n, 1, 1, 1), 0.5, 2.5, g))).square()))
    where = gaussian_field(n, size, 3, 3, g)
    return line * torch.sigmoid((where - uniform((n, 1, 1, 1), 0, 1.5, g)) * 20)


def regions(n, size, g):
    """Masks with long, slightly wavy, sharp edges: half planes and bands, half of the time axis-aligned."""
    t = torch.linspace(-1, 1, size)
    angle = uniform((n, 1, 1, 1), 0, math.pi, g)
    angle = torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.5, (angle / (math.pi / 2)).floor() * math.pi / 2, angle)
    wave = gaussian_field(n, size, 4, 4, g) * column(n, 0.01, 0.1, g)
    u = t.view(1, 1, 1, -1) * angle.cos() + t.view(1, 1, -1, 1) * angle.sin() + wave
    v = t.view(1, 1, -1, 1) * angle.cos() - t.view(1, 1, 1, -1) * angle.sin() + wave.flip(2)
    sharp = size / 2 / uniform((n, 1, 1, 1), 0.15, 1.0, g)
    out = torch.ones(n, 1, size, size)
    for axis in (u, v):
        low, width = uniform((n, 1, 1, 1), -1.5, 0.8, g), column(n, 0.15, 3, g)
        out = out * torch.sigmoid((axis - low) * sharp) * torch.sigmoid((low + width - axis) * sharp)
    return out


class Corruption:
    """Corrupts images x [n, C, s, s] -> y of the same shape.

    All randomness comes from one generator. Masks and noise fields are made once and cropped at random.
    """

    def __init__(self, size, seed, device="cpu", amplitude=AMPLITUDE, kinds=KINDS):
        self.g = g = torch.Generator().manual_seed(seed)
        self.size, self.amplitude, self.kinds, self.device = size, amplitude, kinds, device
        bank = size + size // 4
        self.blobs = self.bank(lambda: blobs(8, bank, g))
        self.regions = self.bank(lambda: regions(8, bank, g), 0.5)
        self.lines = self.bank(lambda: lines(8, bank, g, jagged=6.0 * (chance(g) < 0.5)), 0.5)
        self.fields = self.bank(lambda: gaussian_field(8, bank, *self.knots(bank), g) / 8 + 0.5)

    def bank(self, make, share=1.0):
        return torch.cat([(make().clamp(0, 1) * 255).round().byte() for _ in range(int(BANK * share) // 8)])

    def knots(self, size):
        first = cells(size, self.g)
        return first, first if chance(self.g) < 0.5 else cells(size, self.g)

    def pick(self, bank, n):
        """n random crops of the bank in 0..1, [n, 1, size, size], transposed and mirrored at random."""
        g, out = self.g, []
        for i in torch.randint(len(bank), (n,), generator=g).tolist():
            for _ in range(4):  # try again if the crop of a mask is empty
                piece = self.window(bank[i])
                if int(piece.max()) > 127:
                    break
            turns = torch.rand(3, generator=g) < 0.5
            piece = piece.transpose(1, 2) if turns[0] else piece
            out.append(piece.flip([d for d in (1, 2) if turns[d]]))
        return torch.stack(out).to(self.device).float() / 255

    def window(self, field):
        room, s = field.shape[-1] - self.size + 1, self.size
        y, x = integer(room, self.g), integer(room, self.g)
        return field[:, y : y + s, x : x + s]

    def mask(self, n, thin):
        """Masks [n, 1, size, size]: lines if `thin`, otherwise blobs (45 %), regions (30 %) or lines (25 %)."""
        kind = 1.0 if thin else chance(self.g)
        return self.pick(self.blobs if kind < 0.45 else self.regions if kind < 0.75 else self.lines, n)

    def field(self, n):
        return (self.pick(self.fields, n) - 0.5) * 8

    def offset(self, n, c):
        """Normal noise [n, c, 1, 1], with probability 1/2 the same for all channels."""
        o = torch.randn(n, c, 1, 1, generator=self.g)
        return (o if chance(self.g) < 0.5 else o[:, :1].expand(n, c, 1, 1)).to(self.device)

    def __call__(self, x):
        g, n = self.g, len(x)
        y, part = x.clone(), max(1, n // 4)
        spread = fine_structure(x)
        for turn in range(2):
            for a in range(0, n, part):
                if turn and chance(g) > SECOND:
                    continue
                at = slice(a, min(n, a + part))
                y[at] = self.corrupt(y[at], x, spread[at])
        keep = (torch.rand(n, 1, 1, 1, generator=g) > CLEAN).to(x.device)
        return torch.where(keep, y, x)

    def corrupt(self, x, others, spread):
        """Applies one random kind of corruption to all of x."""
        g, n, c, s = self.g, len(x), x.shape[1], self.size
        kind = self.kinds[integer(len(self.kinds), g)]
        m = self.mask(n, thin=kind == "stroke")
        a = column(n, *self.amplitude, g).to(x.device) * spread
        if kind == "noise":
            z = x + 0.8 * a * (self.field(n) + self.offset(n, c))
        elif kind == "other":  # content of another image, or of another position
            z = others[torch.randperm(len(others), generator=g)[:n].to(x.device)]
            z = z.transpose(2, 3) if chance(g) < 0.3 else z
            z = torch.roll(z, (integer(s, g), integer(s, g)), (2, 3))
            if chance(g) < 0.5:  # keep the local brightness, as in seamless cloning
                z = z + mean_under(x, m) - mean_under(z, m)
        elif kind == "blur":
            k = (5, 9, 17)[integer(3, g)]
            z = F.avg_pool2d(x, k, 1, k // 2, count_include_pad=False) + 0.5 * a * self.offset(n, c)
        elif kind == "contrast":
            mu = mean_under(x, m)
            z = mu + (x - mu) * column(n, 0.3, 3, g).to(x.device) + a * self.offset(n, c)
        else:  # a stroke: dark twice as often as bright, like cracks and scratches
            z = x.mean((2, 3), keepdim=True) if chance(g) < 0.5 else x
            z = z + a * (1 if chance(g) < 1 / 3 else -1) * (1 + 0.3 * self.offset(n, c))
        return x + m * (z - x)


def fine_structure(x):
    """The standard deviation of x [n, c, s, s] from its means over 16x16 pixels -> [n, 1, 1, 1]."""
    coarse = F.interpolate(F.avg_pool2d(x, 16), scale_factor=16.0)
    return (x - coarse).std((1, 2, 3), keepdim=True) + 0.02


def mean_under(x, m):
    """The mean of x [n, c, s, s] weighted by the mask m [n, 1, s, s] -> [n, c, 1, 1]."""
    return (x * m).sum((2, 3), keepdim=True) / (m.sum((2, 3), keepdim=True) + 1e-3)
