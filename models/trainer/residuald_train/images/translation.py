"""What `residuald-train translate` writes: a denoiser that draws an image of the target domain, given its source.

The source is joined to the noisy target along the channels, as in Palette (Saharia et al. 2022, arXiv 2111.05826).
Training is that of `generative.fit`: the denoiser predicts v. The schedule ends in noise alone (Lin et al. 2023, arXiv
2305.08891), so the first step depends on the source only.

The network is a U-Net of diffusers without attention. It trains on crops and translates images of any size.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .. import TrainerError
from ..bundle.export import check_out, to_onnx, write
from ..bundle.served import session
from ..console import bar, say
from ..training import ResumableOptions
from .data import SUFFIXES, is_image
from .generative import to_sample
from .pixels import load, pixels
from .train import descend

FEWEST = 8  # pairs
MOST_BYTES = 4 << 30  # of decoded pairs in memory
BLOCK = 2  # the U-Net takes 2x2 blocks of pixels as channels
STEPS = 1  # default steps of a translation; more steps draw finer detail that is less certain
TOLERANCE = 1e-4  # largest difference between ONNX Runtime and torch, relative to values above 1


@dataclass(frozen=True)
class Options(ResumableOptions):
    seed: int = 0
    steps: int = 4000
    minutes: float | None = None
    batch: int = 16
    crop: int = 64
    widths: tuple = (32, 64, 96, 96)
    layers: int = 1
    lr: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.998
    device: str = "cpu"
    amp: bool = False
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


class Denoiser(nn.Module):
    """sample float32 [N, C + S, H, W], timestep int64 [N] -> v float32 [N, C, H, W].

    The sample is the noisy target of C channels and the source of S channels, for any H and W. Images whose sides do
    not fit the U-Net's levels are padded by reflection, and the output is cut.
    """

    def __init__(self, target, source, options):
        super().__init__()
        from diffusers import UNet2DModel  # slow to import

        n = len(options.widths)
        self.multiple = BLOCK * 2 ** (n - 1)
        self.network = UNet2DModel(
            sample_size=options.crop // BLOCK,
            in_channels=(target + source) * BLOCK**2,
            out_channels=target * BLOCK**2,
            block_out_channels=options.widths,
            layers_per_block=options.layers,
            norm_num_groups=16,
            down_block_types=("DownBlock2D",) * n,
            up_block_types=("UpBlock2D",) * n,
            add_attention=False,
        )

    def forward(self, sample, timestep):
        h, w = sample.shape[2:]
        padded = sample.index_select(2, self.reflected(h)).index_select(3, self.reflected(w))
        out = self.network(F.pixel_unshuffle(padded, BLOCK), timestep, return_dict=False)[0]
        return F.pixel_shuffle(out, BLOCK)[:, :, :h, :w]

    def reflected(self, side):
        """The pixels along a side after padding to a multiple at its end."""
        at = torch.arange((side + self.multiple - 1) // self.multiple * self.multiple)
        return (side - 1 - (side - 1 - at).abs()).clamp(min=0)


def make_scheduler():
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
    )


def read_pairs(folder, source_channels, target_channels, crop):
    """DIR with source/NAME and target/NAME -> [(source, target)], uint8 [H, W, channels] of the same size each.

    Raises TrainerError if an image has no partner, the sizes of a pair differ, or a side is shorter than `crop`.
    """
    folder = Path(folder)
    found = {kind: listed(folder / kind) for kind in ("source", "target")}
    for kind, other in (("source", "target"), ("target", "source")):
        if alone := sorted(found[kind].keys() - found[other].keys()):
            names = ", ".join(alone[:5])
            raise TrainerError(f"{folder / other} lacks {len(alone)} images that {folder / kind} has: {names}")
    if len(found["source"]) < FEWEST:
        raise TrainerError(f"{folder} has {len(found['source'])} pairs; training needs at least {FEWEST}")
    pairs, size = [], 0
    for name in bar(sorted(found["source"]), desc="read", unit=" pairs"):
        source, target = found["source"][name], found["target"][name]
        pair = pixels(load(source, source_channels)), pixels(load(target, target_channels))
        (h, w), other = pair[0].shape[:2], pair[1].shape[:2]
        if (h, w) != other:
            raise TrainerError(f"{source} has {w}x{h} pixels and its target {other[1]}x{other[0]}; align them first")
        if min(h, w) < crop:
            raise TrainerError(
                f"{source} has {w}x{h} pixels, but training takes crops of {crop}; pass a smaller --crop"
            )
        size += sum(image.nbytes for image in pair)
        if size > MOST_BYTES:
            raise TrainerError(
                f"{folder} has more than {MOST_BYTES >> 30} GiB of pixels; cut the images or leave some out"
            )
        pairs.append(pair)
    return pairs


def listed(folder):
    """-> {name below the folder without its suffix: path}. Raises TrainerError."""
    if not folder.is_dir():
        raise TrainerError(f"{folder} is not a folder; --pairs needs source/NAME and target/NAME")
    found = {}
    for path in sorted(p for p in folder.rglob("*") if is_image(p, folder)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise TrainerError(f"{found[name]} and {path} have the same name without the suffix")
        found[name] = path
    if not found:
        raise TrainerError(f"{folder} contains no images ({', '.join(sorted(SUFFIXES))})")
    return found


class Crops:
    """Takes random crops of pairs, mirrored at random."""

    def __init__(self, pairs, size, g):
        self.pairs, self.size, self.g = pairs, size, g

    def __call__(self, n):
        """n -> (sources [n, S, size, size], targets [n, C, size, size]), values from -1 to 1."""
        both = [], []
        for _ in range(n):
            pair = self.pairs[self.below(len(self.pairs))]
            h, w = pair[0].shape[:2]
            y, x = self.below(h - self.size + 1), self.below(w - self.size + 1)
            turn = -1 if self.below(2) else 1
            for out, image in zip(both, pair, strict=True):
                out.append(image[y : y + self.size, x : x + self.size][:, ::turn])
        return [to_sample(torch.as_tensor(np.stack(images))) for images in both]

    def below(self, n):
        return int(torch.randint(n, (1,), generator=self.g))


def fit(pairs, options, checkpoint=None, resume=False, stop=None):
    """Pairs of `read_pairs` -> Denoiser in eval mode, on the CPU. For the last three arguments see `train.descend`."""
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    source, target = (image.shape[2] for image in pairs[0])
    denoiser = Denoiser(target, source, options).to(device)
    g = torch.Generator().manual_seed(options.seed + 1)
    crops, alphas = Crops(pairs, options.crop, g), make_scheduler().alphas_cumprod.to(device)

    def batch_loss():
        given, x = (part.to(device) for part in crops(options.batch))
        noise = torch.randn(x.shape, generator=g).to(device)
        t = torch.randint(len(alphas), (options.batch,), generator=g)
        t[: options.batch // 2] = len(alphas) - 1  # noise alone: the first step, of which most depends
        t = t.to(device)
        a = alphas[t].view(-1, 1, 1, 1)
        sample = torch.cat([a.sqrt() * x + (1 - a).sqrt() * noise, given], 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            out = denoiser(sample, t)
        v = a.sqrt() * noise - (1 - a).sqrt() * x
        return ((out.float() - v).square().mean(),)

    return descend(denoiser, batch_loss, g, options, checkpoint, resume, None, stop, "train translation")


@torch.no_grad()
def files(denoiser, target, source, options):
    """Denoiser -> ({path in the folder: bytes}, largest difference between ONNX Runtime and torch)."""
    example = torch.zeros(2, target + source, options.crop, options.crop), torch.zeros(2, dtype=torch.long)
    graph = to_onnx(denoiser, example, ("sample", "timestep"), ("out_sample",), batched=2, any_size=("sample",))
    error = check_graph(graph, denoiser, target + source, options)
    index = {
        "_class_name": "DDIMPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "conditioning": "concat",
        "steps": STEPS,
    }
    unet = {"in_channels": target + source, "out_channels": target, "sample_size": options.crop}
    scheduler = {k: v for k, v in make_scheduler().config.items() if not k.startswith("_")}
    content = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler"} | scheduler,
        "unet/config.json": {"_class_name": "UNet2DModel"} | unet,
    }
    as_bytes = {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in content.items()}
    return as_bytes | {"unet/model.onnx": graph}, error


def check_graph(graph, denoiser, channels, options):
    """Compares the graph in ONNX Runtime with torch on two sizes -> the largest difference. Raises TrainerError."""
    run, g, error = session(graph), torch.Generator().manual_seed(options.seed), 0.0
    for h, w in ((options.crop, options.crop), (options.crop + 7, options.crop - 5)):
        sample, t = torch.randn(2, channels, h, w, generator=g), torch.tensor([999, 20])
        want = denoiser(sample, t).numpy()
        (got,) = run.run(["out_sample"], {"sample": sample.numpy(), "timestep": t.numpy()})
        error = max(error, float((np.abs(got - want) / np.maximum(1, np.abs(want))).max()))
    if not error <= TOLERANCE:
        raise TrainerError(f"ONNX Runtime and torch disagree by {error} on the denoiser; nothing was written")
    return error


@torch.no_grad()
def translate(denoiser, source, steps=STEPS, seed=0):
    """Source uint8 [H, W, S] -> target uint8 [H, W, C], by `steps` of DDIM from noise."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    given = to_sample(torch.as_tensor(source[None]))
    channels = denoiser.network.config.out_channels // BLOCK**2
    sample = torch.randn(1, channels, *source.shape[:2], generator=torch.Generator().manual_seed(seed))
    for t in scheduler.timesteps:
        out = denoiser(torch.cat([sample, given], 1), t[None])
        sample = scheduler.step(out, t, sample).prev_sample
    found = ((sample[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255)
    return found.to(torch.uint8).numpy()


def psnr(image, other):
    """The peak signal-to-noise ratio of two uint8 images, in dB."""
    square = np.square(image.astype(float) - other).mean()
    return float("inf") if square == 0 else float(10 * np.log10(255**2 / square))


def train(folder, channels, options, out, held_out=0.1, checkpoint=None, resume=False, force=False):
    """Trains on the pairs of `folder` and writes a pipeline to `out`. `channels`: of source and target.

    Prints how near translations of held-out pairs come to their targets.
    """
    check_out(out, force, "pipeline")
    pairs = read_pairs(folder, *channels, options.crop)
    order = np.random.default_rng(options.seed).permutation(len(pairs))
    apart = max(1, round(held_out * len(pairs)))
    fit_on, judge = [pairs[i] for i in order[apart:]], [pairs[i] for i in order[:apart]]
    print(f"pairs: {len(fit_on)} to train on, {len(judge)} held out")
    kept = checkpoint or out.resolve().with_name(out.name + ".checkpoint")
    kept.parent.mkdir(parents=True, exist_ok=True)
    denoiser = fit(fit_on, options, kept, resume)
    content, error = files(denoiser, channels[1], channels[0], options)
    write(out, content, force, "pipeline")
    if not checkpoint:
        kept.unlink(missing_ok=True)
    say(f"ONNX Runtime and torch differ by at most {error:.1e}")
    found = np.mean([psnr(target, translate(denoiser, source)) for source, target in judge])
    same = f" (source itself: {np.mean([psnr(t, s) for s, t in judge]):.1f} dB)" if channels[0] == channels[1] else ""
    print(f"held-out pairs: {found:.1f} dB PSNR in the default steps ({STEPS}){same}")
    print(f"wrote {out} ({sum(map(len, content.values())) / 1e6:.1f} MB)")
