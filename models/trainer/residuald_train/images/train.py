"""Trains the blind recipe on random crops of normal images. `descend`, the training loop, also trains `ddim`."""

import contextlib
import io
import math
import os
import time
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from .. import TrainerError
from .corruption import Corruption, uniform
from .scorer import Scorer, standardise

SAVE_EVERY = 60.0  # seconds
GAUSSIAN_IMAGES = 300  # most images that the Gaussian of the features is fitted to
EDGE_CROPS = 0.25  # probability, for each axis, that a crop touches the image's edge


@dataclass(frozen=True)
class Options:
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

    def same_run(self):
        """The options that must be the same when a checkpoint is resumed."""
        return {k: v for k, v in asdict(self).items() if k not in ("device", "amp", "threads")}


class Crops:
    """Takes random crops, stretched by up to 18 %, with random mirroring, brightness and contrast."""

    def __init__(self, images, size, device, g):
        self.images, self.size, self.device, self.g = images, size, device, g

    def __call__(self, n):
        """n -> n standardised crops [n, C, size, size]."""
        g, s = self.g, self.size
        rows = torch.randint(len(self.images), (n,), generator=g)
        x, _, _ = standardise(torch.as_tensor(self.images[rows.numpy()]).to(self.device))
        theta = torch.zeros(n, 2, 3)
        for axis, length in enumerate((x.shape[3], x.shape[2])):
            share = (s * uniform((n,), 0.85, 1.18, g) / length).clamp(max=1)
            place = uniform((n,), -1, 1, g)
            place = torch.where(torch.rand(n, generator=g) < EDGE_CROPS, place.sign(), place)
            flip = (torch.rand(n, generator=g) < 0.5).float() * 2 - 1
            theta[:, axis, axis], theta[:, axis, 2] = share * flip, place * (1 - share)
        grid = F.affine_grid(theta, (n, x.shape[1], s, s), align_corners=False).to(x.device)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        gain = uniform((n, 1, 1, 1), 0.85, 1.15, g)
        return x * gain.to(x.device) + (0.15 * torch.randn(n, 1, 1, 1, generator=g)).to(x.device)


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


def fit(shape, images, options, checkpoint=None, resume=False, sheet=None, stop=None):
    """Normal images uint8 [n, H, W, C] -> Scorer in eval mode, on the CPU. For the other arguments see `descend`."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    crop = min(options.crop, *(s - s % 16 for s in images.shape[1:3]))
    scorer = Scorer(shape, options.widths, options.blocks).to(device, memory_format=torch.channels_last)
    corruption = Corruption(crop, options.seed + 1, device)
    crops = Crops(images, crop, device, corruption.g)

    def batch_loss():
        x = crops(options.batch)
        y = corruption(x)
        return loss(scorer, x, y, options), x, y

    descend(scorer, batch_loss, corruption.g, options, checkpoint, resume, sheet, stop)
    some = np.random.default_rng(options.seed).permutation(len(images))[:GAUSSIAN_IMAGES]
    scorer.fit_features(images[np.sort(some)])
    return scorer


def descend(scorer, batch_loss, g, options, checkpoint=None, resume=False, sheet=None, stop=None):
    """Runs AdamW with warm-up and cosine decay -> the scorer with the moving average of its weights, on the CPU.

    `batch_loss()` -> (loss, *tensors to draw); all its randomness must come from `g`. `checkpoint`: a file that is
    saved every minute; with `resume`, training continues from it. `sheet(scorer, *tensors, step)` is called ten times
    during training. `stop`: the step after which to end, with the schedule unfinished.
    """
    torch.set_num_threads(options.threads)
    scorer.train()
    average = {k: v.detach().clone() for k, v in scorer.state_dict().items()}
    adam = torch.optim.AdamW(scorer.parameters(), lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.99))
    step, before = 0, 0.0
    if resume and checkpoint and checkpoint.exists():
        step, before = restore(checkpoint, scorer, adam, average, g, options)
    began = saved = time.monotonic()
    bar = tqdm(total=options.steps, initial=step, desc="train", unit=" steps", mininterval=0.5)

    def spent():
        return before + time.monotonic() - began

    while step != stop and (done := progress(step, spent(), options)) < 1:
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
        for name, value in scorer.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - keep)
        bar.update()
        if step % 50 == 0:
            bar.set_postfix_str(f"loss {error.item():.4f}", refresh=False)
        if sheet and step % max(1, options.steps // 10) == 0:
            sheet(scorer, *shown, step)
        if checkpoint and time.monotonic() - saved > SAVE_EVERY:
            save(checkpoint, scorer, adam, average, g, options, step, spent())
            saved = time.monotonic()
    bar.close()
    if checkpoint:
        save(checkpoint, scorer, adam, average, g, options, step, spent())
    scorer.load_state_dict(average)
    scorer.steps = step
    return scorer.to("cpu", memory_format=torch.contiguous_format).eval()


def progress(step, seconds, options):
    """The share of the training that is done, in 0..1, by steps or by minutes, whichever is larger."""
    return max(step / options.steps, seconds / 60 / options.minutes if options.minutes else 0)


def save(path, scorer, adam, average, g, options, step, spent):
    """Saves a checkpoint by one rename, so that an interruption leaves the previous one."""
    state = {"step": step, "spent": spent, "options": options.same_run(), "model": scorer.state_dict()}
    state |= {"adam": adam.state_dict(), "average": average, "generator": g.get_state()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(buffer.getvalue())
    fresh.replace(path)


def restore(path, scorer, adam, average, g, options):
    """Loads a checkpoint into its arguments -> (steps done, seconds spent)."""
    state = torch.load(path, map_location=next(scorer.parameters()).device, weights_only=True)
    here, there = options.same_run(), state["options"]
    differ = [k for k in here if here[k] != there.get(k) and k not in ("steps", "minutes")]
    if differ:
        raise TrainerError(f"{path} belongs to a run with another {', '.join(differ)}; start again without --resume")
    scorer.load_state_dict(state["model"])
    adam.load_state_dict(state["adam"])
    average.update(state["average"])
    g.set_state(state["generator"].cpu())
    return state["step"], state["spent"]
