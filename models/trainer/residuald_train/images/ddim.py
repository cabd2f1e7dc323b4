"""The `ddim` recipe for images: adds noise up to timestep t*, then denoises with a UNet of Hugging Face diffusers.

Training follows Ho et al. 2020. The reverse process is deterministic (DDIM, Song et al. 2021). Its steps are unrolled
in the graph, and the noise is a constant in it. The method is that of AnoDDPM (Wyatt et al. 2022), but with the same
noise for every image.
"""

import os
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from ..report.sheet import heat_colours, to_pixels
from ..training import ResumableOptions
from .scorer import Blur
from .train import descend
from .unet import flops


@dataclass(frozen=True)
class Options(ResumableOptions):
    seed: int = 0
    steps: int = 4000
    minutes: float | None = None
    batch: int = 8
    crop: int = 512  # whole images, because the denoiser depends on the position
    widths: tuple = (32, 64, 96, 96)
    layers: int = 1
    noise_level: float = 0.25  # t*, as a share of the schedule's timesteps
    calls: int = 4
    lr: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.998
    device: str = "cpu"
    amp: bool = False
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


def make_denoiser(shape, options):
    """An untrained UNet2DModel of diffusers with group normalisation and attention at its coarsest level."""
    from diffusers import UNet2DModel

    n = len(options.widths)
    return UNet2DModel(
        sample_size=(shape.height, shape.width),
        in_channels=shape.channels,
        out_channels=shape.channels,
        block_out_channels=options.widths,
        layers_per_block=options.layers,
        norm_num_groups=16,
        down_block_types=("DownBlock2D",) * (n - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (n - 1),
    )


def make_scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(num_train_timesteps=1000, clip_sample=True)


class Scorer(nn.Module):
    """x uint8 [N, H, W, C] -> score [N], heat [N, H, W], reconstruction uint8 [N, H, W, C].

    `denoiser(sample, timestep, return_dict=False)` -> (output [N, C, H, W],), as diffusers models are called. The
    sample is x / 127.5 - 1, and the output is the noise, the clean image or v. `scheduler`: a diffusers scheduler, of
    which betas, prediction type and clipping are used. Heat is the blurred absolute error. The score is the mean of its
    highest 0.5 %.
    """

    TOP, SIGMA, MULTIPLE = 0.005, 2 / 128, 32

    def __init__(self, shape, denoiser, scheduler, noise_level=0.25, calls=4, seed=0):
        super().__init__()
        self.shape, self.denoiser, self.scheduler, self.calls = shape, denoiser, scheduler, calls
        h, w = shape.height, shape.width
        pad_h, pad_w = -h % self.MULTIPLE, -w % self.MULTIPLE
        self.pad = [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2]
        config = scheduler.config
        self.predicts, self.clip = config.prediction_type, config.clip_sample_range if config.clip_sample else None
        start = round(noise_level * (config.num_train_timesteps - 1))
        self.timesteps = [round(start * (calls - k) / calls) for k in range(calls)]
        self.alphas = [float(scheduler.alphas_cumprod[t]) for t in self.timesteps] + [1.0]
        g = torch.Generator().manual_seed(seed)
        self.register_buffer("noise", torch.randn(1, shape.channels, h + pad_h, w + pad_w, generator=g))
        self.blur = Blur(self.SIGMA * min(h, w))
        self.top = max(1, round(self.TOP * h * w))

    def forward(self, x):
        h, w = self.shape.height, self.shape.width
        clean = x.float().permute(0, 3, 1, 2) / 127.5 - 1
        left, _, top, _ = self.pad
        found = self.restore(F.pad(clean, self.pad, mode="reflect"))[:, :, top : top + h, left : left + w]
        heat = self.blur((clean - found).abs().mean(1, keepdim=True)).squeeze(1)
        score = heat.flatten(1).topk(self.top, 1).values.mean(1)
        pixels = ((found + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return score, heat, pixels.permute(0, 2, 3, 1)

    def restore(self, x):
        """Adds noise up to t*, then takes `calls` DDIM steps (η = 0). The schedule becomes constants of the graph."""
        a = self.alphas[0]
        sample = a**0.5 * x + (1 - a) ** 0.5 * self.noise
        for t, a, after in zip(self.timesteps, self.alphas, self.alphas[1:], strict=False):
            out = self.denoiser(sample, torch.tensor([t], device=x.device), return_dict=False)[0]
            clean, noise = self.parts(sample, out, a)
            sample = after**0.5 * clean + (1 - after) ** 0.5 * noise
        return sample

    def parts(self, sample, out, a):
        """The denoiser's output `out` at alpha `a` -> (clean image, clipped; noise), as in DDIMScheduler.step."""
        if self.predicts == "epsilon":
            clean, noise = (sample - (1 - a) ** 0.5 * out) / a**0.5, out
        elif self.predicts == "v_prediction":
            clean, noise = a**0.5 * sample - (1 - a) ** 0.5 * out, a**0.5 * out + (1 - a) ** 0.5 * sample
        else:
            clean, noise = out, (sample - a**0.5 * out) / (1 - a) ** 0.5
        return clean.clamp(-self.clip, self.clip) if self.clip else clean, noise

    def sheet(self, x, _):
        """Clean images [N, C, h, w] -> the columns of a contact sheet: clean, noised to t*, restored, error."""
        a, found = self.alphas[0], self.restore(x)
        noised = a**0.5 * x + (1 - a) ** 0.5 * self.noise
        error = (x - found).abs().mean(1).cpu().numpy()
        return [*(to_pixels(2.5 * t) for t in (x, noised, found)), heat_colours(error, 1)]

    def facts(self):
        """Facts about the recipe for the manifest."""
        h, w, c = self.shape.height, self.shape.width, self.shape.channels
        return {
            "recipe": "ddim",
            "calls": self.calls,
            "timesteps": self.timesteps,
            "aggregation": f"mean of the highest {self.top} of {h}x{w} values of heat",
            "gflop": round(flops(self, torch.zeros(1, h, w, c, dtype=torch.uint8)) / 1e9, 3),
        }


def fit(shape, images, options, checkpoint=None, resume=False, sheet=None, stop=None):
    """Normal images uint8 [n, H, W, C] -> Scorer in eval mode, on the CPU.

    The loss is the mean squared error of the predicted noise. The other arguments are those of `train.descend`.
    """
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    scheduler = make_scheduler()
    denoiser = make_denoiser(shape, options)
    scorer = Scorer(shape, denoiser, scheduler, options.noise_level, options.calls, options.seed).to(device)
    g = torch.Generator().manual_seed(options.seed + 1)
    last = scheduler.config.num_train_timesteps
    alphas = scheduler.alphas_cumprod.to(device)

    def batch_loss():
        rows = torch.randint(len(images), (options.batch,), generator=g)
        x = torch.as_tensor(images[rows.numpy()]).to(device).float().permute(0, 3, 1, 2) / 127.5 - 1
        flip = (torch.rand(options.batch, 1, 1, 1, generator=g) < 0.5).to(device)
        x = F.pad(torch.where(flip, x.flip(3), x), scorer.pad, mode="reflect")
        noise = torch.randn(x.shape, generator=g).to(device)
        t = torch.randint(last, (options.batch,), generator=g).to(device)
        a = alphas[t].view(-1, 1, 1, 1)
        y = a.sqrt() * x + (1 - a).sqrt() * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            out = denoiser(y, t, return_dict=False)[0]
        return (out.float() - noise).square().mean(), x, y

    return descend(scorer, batch_loss, g, options, checkpoint, resume, sheet, stop)
