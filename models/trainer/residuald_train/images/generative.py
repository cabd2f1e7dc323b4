"""What `residuald-train images --generative` adds to a bundle: a denoiser that draws images, and its scheduler.

The denoiser is trained as in DDPM (Ho et al. 2020, algorithm 1) on x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε, with t uniform in
0..T-1. It predicts v = √ᾱ_t ε - √(1 - ᾱ_t) x_0 (Salimans and Ho 2022): where there is hardly anything but noise, an
error of ε would become a large error of the image, so a short training on ε draws wrong brightness. The files have the
names of diffusers. An image is one row of the bundle: the whole image at the bundle's size, or a tile. Its values are
x / 127.5 - 1.
"""

import json
import math
import os
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .. import TrainerError
from ..bundle.export import as_json, to_onnx
from ..bundle.half import halved, round_weights
from ..bundle.served import session
from ..training import ResumableOptions
from . import distillation
from .ddim import Scorer, make_denoiser
from .train import descend

STEPS = 50  # default number of steps of a draw, as in diffusers' DDIMPipeline
GOLDEN_VALUES = 50_000  # of golden points in all, so that generative.json stays small
MOST_GOLDEN = 4
TOLERANCE = 1e-3  # largest difference between ONNX Runtime and torch, relative to values above 1; residuald's own
WIDTHS = 32, 64, 96, 96  # of the U-Net's levels, each at half the size of the one before
COARSEST = 4  # least pixels on a side of the coarsest level
PATCHED = 64  # least pixels on a side from which the U-Net takes 2x2 blocks of pixels as channels


@dataclass(frozen=True)
class Options(ResumableOptions):
    seed: int = 0
    steps: int = 4000
    minutes: float | None = None
    batch: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.998
    device: str = "cpu"
    amp: bool = False
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    layers: int = 1


@dataclass(frozen=True)
class Network:
    """The options of `make_denoiser`."""

    widths: tuple
    layers: int


class Denoiser(nn.Module):
    """sample float32 [N, C, H, W], timestep int64 [N] -> out_sample float32 [N, C, H, W], which is v.

    A UNet2DModel of diffusers. It takes blocks of pixels of larger images as channels, which costs a quarter of the
    time. Images whose sides do not fit its levels are padded by reflection. The output is cut.
    """

    def __init__(self, shape, options):
        super().__init__()
        least = min(shape.height, shape.width)
        self.block = 1 if least < PATCHED else 2
        levels = max(1, min(len(WIDTHS), int(math.log2(max(1, least / self.block / COARSEST))) + 1))
        multiple = 2 ** (levels - 1) * self.block
        self.pad = [0, -shape.width % multiple, 0, -shape.height % multiple]
        self.network = make_denoiser(self.blocks(shape), Network(WIDTHS[:levels], options.layers))

    def blocks(self, shape):
        """The shape of an image in blocks."""
        b = self.block
        return replace(shape, height=-(-shape.height // b), width=-(-shape.width // b), channels=shape.channels * b * b)

    def forward(self, sample, timestep):
        h, w = sample.shape[2:]
        padded = F.pad(sample, self.pad, mode="reflect") if any(self.pad) else sample
        out = self.network(F.pixel_unshuffle(padded, self.block), timestep, return_dict=False)[0]
        return F.pixel_shuffle(out, self.block)[:, :, :h, :w]


class Plain(nn.Module):
    """A denoiser that is called like a diffusers model, with the inputs and outputs of `Denoiser`."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample, timestep):
        return self.denoiser(sample, timestep, return_dict=False)[0]


def make_scheduler():
    from diffusers import DDIMScheduler  # slow to import

    return DDIMScheduler(num_train_timesteps=1000, clip_sample=True, prediction_type="v_prediction")


def fit(shape, images, options, checkpoint=None, resume=False, stop=None):
    """Images uint8 [n, H, W, C] -> Denoiser in eval mode, on the CPU, with its `steps` and `losses`.

    Images are not mirrored, because the drawn ones would be. For the last three arguments see `train.descend`.
    """
    torch.manual_seed(options.seed)
    device, scheduler = torch.device(options.device), make_scheduler()
    denoiser = Denoiser(shape, options).to(device)
    g = torch.Generator().manual_seed(options.seed + 1)
    alphas = scheduler.alphas_cumprod.to(device)

    def batch_loss():
        rows = torch.randint(len(images), (options.batch,), generator=g)
        x = to_sample(torch.as_tensor(images[rows.numpy()]).to(device))
        noise = torch.randn(x.shape, generator=g).to(device)
        t = torch.randint(len(alphas), (options.batch,), generator=g).to(device)
        a = alphas[t].view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            out = denoiser(a.sqrt() * x + (1 - a).sqrt() * noise, t)
        v = a.sqrt() * noise - (1 - a).sqrt() * x
        return ((out.float() - v).square().mean(),)

    return descend(denoiser, batch_loss, g, options, checkpoint, resume, None, stop, "train generative")


def distill(shape, denoiser, options, steps, checkpoint, resume):
    """A denoiser of `fit` -> (a student that draws in `steps` steps, its scheduler, facts for the manifest)."""

    def call(network, sample, t, _rows, _guidance):
        return network(sample, t)

    task = distillation.Task((shape.channels, shape.height, shape.width), make_scheduler(), call)
    return distillation.distill(task, denoiser, steps, options, checkpoint, resume)


def to_sample(x):
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in -1..1."""
    return x.float().permute(0, 3, 1, 2) / 127.5 - 1


def check_size(recipe, shape):
    """Raises TrainerError if the recipe has a denoiser that works on padded images, which are not the bundle's."""
    h, w, multiple = shape.height, shape.width, Scorer.MULTIPLE
    if recipe == "ddim" and (h % multiple or w % multiple):
        raise TrainerError(
            f"--generative with --recipe ddim needs a size of multiples of {multiple}, not {h}x{w}: "
            "give another --size, or --recipe blind, which trains a denoiser for any size"
        )


@torch.no_grad()
def files(denoiser, shape, scheduler, seed=0, steps=STEPS, distilled=False):
    """Denoiser -> ({name: bytes} of the three files, largest difference between ONNX Runtime and torch).

    `steps`: the default of a draw. `distilled`: whether the denoiser knows only these. Rounds the denoiser's weights to
    float16, which is how the graph stores them.
    """
    image = shape.channels, shape.height, shape.width
    example = torch.zeros(2, *image), torch.zeros(2, dtype=torch.long)
    round_weights(denoiser)
    graph = halved(to_onnx(denoiser, example, ("sample", "timestep"), ("out_sample",), batched=2))
    golden = golden_points(denoiser, image, scheduler, seed)
    error = check_graph(graph, golden)
    config = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    config |= {"_class_name": type(scheduler).__name__}
    about = {"steps": steps, "distilled": distilled, "golden": as_lists(golden)}
    content = {"denoiser.onnx": graph, "scheduler_config.json": (json.dumps(config, indent=2) + "\n").encode()}
    return content | {"generative.json": as_json(about)}, error


def golden_points(denoiser, image, scheduler, seed):
    """-> {name: array [P, ...]}: what the denoiser makes of noise at evenly spaced timesteps. No image of the data."""
    count = max(1, min(MOST_GOLDEN, GOLDEN_VALUES // math.prod(image)))
    last = scheduler.config.num_train_timesteps - 1
    t = torch.linspace(last, 0, count).long()
    noise = torch.randn(count, *image, generator=torch.Generator().manual_seed(seed))
    noisy = ((1 - scheduler.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1) * noise * 100).round() / 100
    found = {"timestep": t, "noisy": noisy, "out_sample": denoiser(noisy, t)}
    return {name: value.numpy() for name, value in found.items()}


def check_graph(graph, golden):
    """Compares the graph in ONNX Runtime with torch -> the largest difference. Raises TrainerError if it is large."""
    inputs = {"sample": golden["noisy"], "timestep": golden["timestep"]}
    (got,) = session(graph).run(["out_sample"], inputs)
    want = golden["out_sample"]
    error = float((np.abs(got - want) / np.maximum(1, np.abs(want))).max())
    if not error <= TOLERANCE / 10:
        raise TrainerError(f"ONNX Runtime and torch disagree by {error} on denoiser.onnx; nothing was written")
    return error


def as_lists(golden):
    """{name: array [P, ...]} -> P objects, images as flat lists in the order of [C, H, W]."""

    def rounded(values, digits):
        return [round(float(v), digits) for v in values.ravel()]

    return [
        {"timestep": int(t), "noisy": rounded(noisy, 2), "out_sample": rounded(out, 5)}
        for t, noisy, out in zip(golden["timestep"], golden["noisy"], golden["out_sample"], strict=True)
    ]
