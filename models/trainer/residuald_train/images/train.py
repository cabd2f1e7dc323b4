"""Trains the blind recipe on random crops of normal images. `descend`, the loop, also trains the other networks."""

import contextlib
import math
import os
import time
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .. import TrainerError
from ..console import bar, say_curve
from ..training import (
    SAVE_EVERY,
    ResumableOptions,
    check_same_run,
    interrupted,
    load_state,
    progress,
    save_state,
    stop_between_steps,
)
from .corruption import Corruption, uniform
from .defects import CodeDefects, Defects, DrawnDefects
from .scorer import Scorer, standardise

GAUSSIAN_IMAGES = 300  # most images that the Gaussian of the features is fitted to
EDGE_CROPS = 0.25  # probability, for each axis, that a crop touches the image's edge
NEAR = 0.7  # how far a crop's middle may be from the defect that it shows, in half crops


@dataclass(frozen=True)
class Options(ResumableOptions):
    seed: int = 0
    steps: int = 8000
    minutes: float | None = None  # limit of training time; also shortens the learning rate schedule
    batch: int = 8
    crop: int = 128
    widths: tuple = (16, 32, 48, 64)
    blocks: tuple = (0, 0, 1, 1)
    lr: float = 3e-3
    weight_decay: float = 1e-3
    ema: float = 0.998
    residual_weight: float = 5.0
    device: str = "cpu"
    amp: bool = False
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    defects: Defects | None = None


class Crops:
    """Takes random crops, stretched by up to 18 %, with random mirroring, brightness and contrast."""

    def __init__(self, images, size, device, g):
        self.images, self.size, self.device, self.g = images, size, device, g

    def __call__(self, n):
        """n -> n standardised crops [n, C, size, size]."""
        rows = torch.randint(len(self.images), (n,), generator=self.g)
        return self.cut(standardise(torch.as_tensor(self.images[rows.numpy()]).to(self.device))[0])[0]

    def cut(self, *images, around=None):
        """Standardised images, each [n, C, H, W] -> as many crops [n, C, size, size], all cut at the same places.

        `around` [n, 2]: points (x, y) in -1..1 that the crops show.
        """
        x, g, s = images[0], self.g, self.size
        n = len(x)
        theta = torch.zeros(n, 2, 3)
        for axis, length in enumerate((x.shape[3], x.shape[2])):
            share = (s * uniform((n,), 0.85, 1.18, g) / length).clamp(max=1)
            place = uniform((n,), -1, 1, g)
            if around is None:
                place = torch.where(torch.rand(n, generator=g) < EDGE_CROPS, place.sign(), place)
            else:
                place = ((around[:, axis] + NEAR * place * share) / (1 - share + 1e-6)).clamp(-1, 1)
            flip = (torch.rand(n, generator=g) < 0.5).float() * 2 - 1
            theta[:, axis, axis], theta[:, axis, 2] = share * flip, place * (1 - share)
        grid = F.affine_grid(theta, (n, x.shape[1], s, s), align_corners=False).to(x.device)
        cut = [F.grid_sample(each, grid, padding_mode="border", align_corners=False) for each in images]
        gain = uniform((n, 1, 1, 1), 0.85, 1.15, g).to(x.device)
        offset = (0.15 * torch.randn(n, 1, 1, 1, generator=g)).to(x.device)
        return [each * gain + offset for each in cut]


def target(x, y, local):
    """The network's targets: r [N, C, H, W] in local deviations, and level [N, 1, H, W] in 0..1."""
    r = (y - x) / local
    around = F.avg_pool2d(r.abs().mean(1, keepdim=True), 5, 1, 2, count_include_pad=False)
    return r, 1 - torch.exp(-around / 0.3)


def loss(scorer, x, y, options):
    """`residual_weight` (5) times the mean squared error of r, plus the binary cross-entropy of the level."""
    inputs, local = scorer.normalise(y)
    r, level = target(x, y, local)
    amp = torch.autocast(x.device.type, torch.bfloat16) if options.amp else contextlib.nullcontext()
    with amp:
        got_r, got_level = scorer.net(inputs.contiguous(memory_format=torch.channels_last))
    square = (got_r.float() - r).square().mean()
    return options.residual_weight * square + F.binary_cross_entropy_with_logits(got_level.float(), level)


def fit(shape, images, options, checkpoint=None, resume=False, sheet=None, stop=None, pairs=None):
    """Normal images uint8 [n, H, W, C] -> Scorer in eval mode, on the CPU.

    `pairs`: the Pairs that a pipeline drew, if `options.defects` names one. For the other arguments see `descend`.
    """
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    crop = min(options.crop, *(s - s % 16 for s in images.shape[1:3]))
    scorer = Scorer(shape, options.widths, options.blocks).to(device, memory_format=torch.channels_last)
    corruption = Corruption(crop, options.seed + 1, device)
    crops = Crops(images, crop, device, corruption.g)
    defects, mixed = options.defects, 0
    if defects:
        mixed = max(1, round(defects.share * options.batch))
        draw = DrawnDefects(pairs, crops) if pairs else CodeDefects(defects.words, corruption)

    def batch_loss():
        x = crops(options.batch)
        y = corruption(x)
        if defects:
            pair = draw(x[:mixed])
            x, y = (torch.cat([a, b[mixed:]]) for a, b in zip(pair, (x, y), strict=True))
        return loss(scorer, x, y, options), x, y

    descend(scorer, batch_loss, corruption.g, options, checkpoint, resume, sheet, stop)
    some = np.random.default_rng(options.seed).permutation(len(images))[:GAUSSIAN_IMAGES]
    scorer.fit_features(images[np.sort(some)])
    return scorer


def descend(scorer, batch_loss, g, options, checkpoint=None, resume=False, sheet=None, stop=None, name="train"):
    """Runs AdamW with warm-up and cosine decay -> the scorer with the moving average of its weights, on the CPU.

    `batch_loss()` -> (loss, *tensors to draw); all its randomness must come from `g`. `checkpoint`: a file that is
    saved every minute and on Ctrl-C; with `resume`, training continues from it. `sheet(scorer, *tensors, step)` is
    called ten times during training. `stop`: the step after which to end, with the schedule unfinished. `name`: of
    the progress bar and the loss curve.
    """
    torch.set_num_threads(options.threads)
    scorer.train()
    average = {k: v.detach().clone() for k, v in scorer.state_dict().items()}
    adam = torch.optim.AdamW(scorer.parameters(), lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.99))
    step, before, losses = 0, 0.0, []
    if resume and checkpoint and checkpoint.exists():
        step, before, losses = restore(checkpoint, scorer, adam, average, g, options)
    began = saved = time.monotonic()
    steps = bar(total=options.steps, initial=step, desc=name, unit=" steps")

    def spent():
        return before + time.monotonic() - began

    def keep_state():
        save(checkpoint, scorer, adam, average, g, options, step, spent(), losses)

    with stop_between_steps() if checkpoint else contextlib.nullcontext() as asked:
        while step != stop and (done := progress(step, spent(), options.steps, options.minutes)) < 1:
            if asked:
                steps.close()
                keep_state()
                raise interrupted(checkpoint)
            cosine = 0.5 + 0.5 * math.cos(math.pi * done)
            adam.param_groups[0]["lr"] = options.lr * (min(1, (step + 1) / 50) * cosine + 0.01)
            error, *shown = batch_loss()
            if not torch.isfinite(error):
                raise TrainerError(f"the loss became {error.item()} at step {step}; try another --seed")
            adam.zero_grad(set_to_none=True)
            error.backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            adam.step()
            step += 1
            keep = min(options.ema, step / (step + 9))
            for key, value in scorer.state_dict().items():
                if value.is_floating_point():
                    average[key].lerp_(value, 1 - keep)
            losses.append(error.item())
            steps.update()
            if step % 50 == 0:
                steps.set_postfix_str(f"loss {error.item():.4f}", refresh=False)
            if sheet and step % max(1, options.steps // 10) == 0:
                sheet(scorer, *shown, step)
            if checkpoint and time.monotonic() - saved > SAVE_EVERY:
                keep_state()
                saved = time.monotonic()
    steps.close()
    say_curve(name, losses)
    if checkpoint:
        keep_state()
    scorer.load_state_dict(average)
    scorer.steps, scorer.losses = step, losses
    return scorer.to("cpu", memory_format=torch.contiguous_format).eval()


def save(path, scorer, adam, average, g, options, step, spent, losses):
    """Saves a checkpoint."""
    state = {"step": step, "spent": spent, "options": options.same_run(), "model": scorer.state_dict()}
    state |= {"adam": adam.state_dict(), "average": average, "generator": g.get_state()}
    save_state(path, state | {"losses": losses})


def restore(path, scorer, adam, average, g, options):
    """Loads a checkpoint into its arguments -> (steps done, seconds spent, losses)."""
    state = load_state(path, next(scorer.parameters()).device)
    check_same_run(path, options.same_run(), state["options"])
    scorer.load_state_dict(state["model"])
    adam.load_state_dict(state["adam"])
    average.update(state["average"])
    g.set_state(state["generator"].cpu())
    return state["step"], state["spent"], state["losses"]
