"""What `residuald-train text-to-image` writes: a pipeline that draws images from words.

The folder has diffusers' layout of a StableDiffusionPipeline, so others' tools read it. There is no learned
autoencoder: the "latent image" is the image in blocks of BLOCK x BLOCK pixels, each block's values as channels. The
decoder only puts the blocks back in their places, so nothing is lost or blurred.

The U-Net predicts the clean image: a block has nearly as many values as the U-Net has channels, and noise would not fit
through it (Li and He 2025, arXiv 2511.13720). The loss is that of v (Salimans and Ho 2022), with its weights bounded
as min-SNR (Hang et al. 2023, arXiv 2303.09556). The schedule ends in noise alone (Lin et al. 2023, arXiv 2305.08891).
A share of the captions is left empty, for classifier-free guidance (Ho and Salimans 2022). Words are read by a text
encoder that is not trained.
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
from ..bundle.half import halved, round_weights
from ..bundle.served import session
from ..console import bar, say
from ..training import ResumableOptions
from . import csv_file, distillation
from .generative import to_sample
from .pixels import load, pixels
from .text_encoder import TextEncoder
from .train import descend

BLOCK = 4
FEWEST = 16  # images
MOST_BYTES = 8 << 30  # of decoded images in memory
STEPS, GUIDANCE = 20, 3.0  # defaults of a draw
EMPTY = 0.1  # share of the captions that are left empty in training
MAX_SNR = 5.0  # signal-to-noise ratio from which the loss's weight no longer grows
HIDDEN_STATES = "encoder_hidden_states"
TOLERANCE = 1e-3  # largest difference between ONNX Runtime and torch, relative to values above 1


@dataclass(frozen=True)
class Options(ResumableOptions):
    seed: int = 0
    steps: int = 8000
    minutes: float | None = None
    batch: int = 8
    size: int = 128  # of the squares that training sees; a multiple of 16
    drawn: int = 256  # default size of a drawn image; a multiple of 16
    widths: tuple = (64, 80, 80)
    lr: float = 1e-3
    weight_decay: float = 1e-4
    ema: float = 0.999
    device: str = "cpu"
    amp: bool = False
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


def make_denoiser(options, channels, width):
    """An untrained UNet2DConditionModel, fully convolutional, so that it draws larger images than it was trained on.

    Words steer it in two ways: its coarsest level attends to them, and their mean, weighted by attention, is added to
    the timestep's embedding, which every level gets. The latter is learned in fewer steps.
    """
    from diffusers import UNet2DConditionModel  # slow to import

    n = len(options.widths)
    return UNet2DConditionModel(
        sample_size=options.drawn // BLOCK,
        in_channels=channels * BLOCK**2,
        out_channels=channels * BLOCK**2,
        down_block_types=("DownBlock2D",) * (n - 1) + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (n - 1),
        block_out_channels=options.widths,
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=width,
        attention_head_dim=8,
        only_cross_attention=True,
        mid_block_only_cross_attention=True,
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
    )


def make_scheduler(kind="DDIMScheduler"):
    """The scheduler of training, or another of diffusers with the same noise levels.

    Noise grows faster than by default, because a block of pixels averages it out.
    """
    import diffusers

    return getattr(diffusers, kind)(
        num_train_timesteps=1000,
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.04,
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def read_captions(path, folder):
    """CSV with the columns image (path below `folder`) and caption -> [(path, caption)]. Raises TrainerError.

    An image may have several lines, one for each caption.
    """
    path, folder, found = Path(path), Path(folder), []
    for where, texts in csv_file.rows(path, ("image", "caption")):
        name, caption = (text.strip() for text in texts)
        if not name or not caption:
            raise TrainerError(f"{where}: lacks the {'caption' if name else 'image'}")
        if not (folder / name).is_file():
            raise TrainerError(f"{where}: there is no image {folder / name}")
        found.append((folder / name, caption))
    return found


def read_images(captions, channels, size):
    """-> (images uint8 [n, size, size, C], rows of each caption's image). Larger images are cut at their middle."""
    paths = sorted({path for path, _ in captions})
    if len(paths) < FEWEST:
        raise TrainerError(f"the captions name {len(paths)} images; training needs at least {FEWEST}")
    if len(paths) * size * size * channels > MOST_BYTES:
        raise TrainerError(f"{len(paths)} images take more than {MOST_BYTES >> 30} GiB; leave some out")
    out = np.empty((len(paths), size, size, channels), np.uint8)
    for i, path in enumerate(bar(paths, desc="read", unit=" images")):
        image = pixels(load(path, channels))
        h, w = image.shape[:2]
        if min(h, w) < size:
            raise TrainerError(
                f"{path} has {w}x{h} pixels, less than --size {size}; enlarge it, or pass a smaller --size"
            )
        y, x = (h - size) // 2, (w - size) // 2
        out[i] = image[y : y + size, x : x + size]
    row = {path: i for i, path in enumerate(paths)}
    return out, np.array([row[path] for path, _ in captions])


def fit(images, rows, states, options, checkpoint=None, resume=False, stop=None):
    """Images uint8 [n, H, W, C] -> denoiser in eval mode, on the CPU.

    `rows` int [m]: the image of each caption. `states` float32 [m + 1, tokens, width]: what the text encoder makes of
    the captions, and last of the empty one. Each image is drawn as often as any other. For the last three arguments see
    `train.descend`.
    """
    torch.manual_seed(options.seed)
    device, scheduler = torch.device(options.device), make_scheduler()
    denoiser = make_denoiser(options, images.shape[3], states.shape[2]).to(device)
    g = torch.Generator().manual_seed(options.seed + 1)
    alphas = scheduler.alphas_cumprod.to(device)
    of_image = [np.flatnonzero(rows == i) for i in range(len(images))]
    states = torch.as_tensor(states)

    def batch_loss():
        row = torch.randint(len(images), (options.batch,), generator=g)
        pick = torch.rand(options.batch, generator=g)
        empty = torch.rand(options.batch, generator=g) < EMPTY
        caption = [of_image[i][int(p * len(of_image[i]))] for i, p in zip(row.tolist(), pick.tolist(), strict=True)]
        words = states[torch.where(empty, len(states) - 1, torch.as_tensor(caption))].to(device)
        mirrored = torch.rand(options.batch, generator=g) < 0.5
        x = to_sample(torch.as_tensor(images[row.numpy()]).to(device))
        x = F.pixel_unshuffle(torch.where(mirrored.to(device).view(-1, 1, 1, 1), x.flip(3), x), BLOCK)
        noise = torch.randn(x.shape, generator=g).to(device)
        # One timestep of each equal part of the schedule: less noise in the loss.
        t = (torch.arange(options.batch) + torch.rand(options.batch, generator=g)) / options.batch
        t = (t * len(alphas)).long().clamp(max=len(alphas) - 1).to(device)
        a = alphas[t].view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            out = denoiser(a.sqrt() * x + (1 - a).sqrt() * noise, t, words, return_dict=False)[0]
        weight = (a / (1 - a)).clamp(max=MAX_SNR) + 1  # without the bound, the squared error of v
        return ((weight * (out.float() - x).square()).mean(),)

    return descend(denoiser, batch_loss, g, options, checkpoint, resume, None, stop, "train text to image")


class Decode(nn.Module):
    """latent_sample float32 [N, C b b, h, w] -> sample [N, C, b h, b w], b = BLOCK."""

    def forward(self, latent_sample):
        return F.pixel_shuffle(latent_sample, BLOCK)


class Encode(nn.Module):
    """sample float32 [N, C, b h, b w] -> latent_sample [N, C b b, h, w], b = BLOCK."""

    def forward(self, sample):
        return F.pixel_unshuffle(sample, BLOCK)


class Plain(nn.Module):
    """The denoiser with the inputs and the output of optimum's export."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, sample, timestep, encoder_hidden_states):
        return self.denoiser(sample, timestep, encoder_hidden_states, return_dict=False)[0]


@torch.no_grad()
def files(denoiser, encoder, options, scheduler=None, steps=STEPS, guidance=GUIDANCE, distilled=False):
    """Denoiser and TextEncoder -> ({path in the folder: bytes}, largest difference between ONNX Runtime and torch).

    `scheduler`: of diffusers. `steps`, `guidance`: the defaults of a draw. `distilled`: whether the denoiser knows only
    these steps.
    """
    scheduler = scheduler or make_scheduler("DPMSolverMultistepScheduler")
    kind = type(scheduler).__name__
    config = dict(denoiser.config)
    latent, side = config["in_channels"], config["sample_size"]
    channels, width = latent // BLOCK**2, config["cross_attention_dim"]
    example = {"sample": torch.zeros(2, latent, side, side), "timestep": torch.tensor(1)}
    example[HIDDEN_STATES] = torch.zeros(2, encoder.length, width)
    unet = halved(exported(Plain(denoiser), example, "out_sample"))
    image = torch.zeros(2, channels, side * BLOCK, side * BLOCK)
    graphs = {
        "unet": unet,
        "vae_decoder": exported(Decode(), {"latent_sample": example["sample"]}, "sample"),
        "vae_encoder": exported(Encode(), {"sample": image}, "latent_sample"),
    }
    blocks = {"_class_name": "AutoencoderKL", "in_channels": channels, "out_channels": channels, "scaling_factor": 1.0}
    blocks |= {"latent_channels": latent, "block_out_channels": [1] * (BLOCK.bit_length())}
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", kind],
        "text_encoder": ["transformers", "BertModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "steps": steps,
        "guidance": guidance,
        "distilled": distilled,
    }
    configs = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": plain(scheduler.config) | {"_class_name": kind},
        "unet/config.json": plain(config) | {"_class_name": "UNet2DConditionModel"},
        "vae_decoder/config.json": blocks,
        "vae_encoder/config.json": blocks,
    }
    found = {name: (json.dumps(value, indent=2) + "\n").encode() for name, value in configs.items()}
    found |= {f"{name}/model.onnx": graph for name, graph in graphs.items()} | encoder.files
    return found, check_graph(unet, denoiser, encoder, options)


def plain(config):
    """A diffusers configuration without what says how it came to be."""
    return {k: v for k, v in config.items() if not k.startswith("_")}


def exported(module, example, output):
    """Module and example inputs by name -> the bytes of a graph for any batch and size."""
    images = [name for name, value in example.items() if value.ndim == 4]
    batched = [name for name, value in example.items() if value.ndim]
    return to_onnx(module, tuple(example.values()), tuple(example), (output,), batched, images)


def check_graph(graph, denoiser, encoder, options):
    """Compares the graph in ONNX Runtime with torch -> the largest difference. Raises TrainerError if it is large."""
    run, g, error = session(graph), torch.Generator().manual_seed(options.seed), 0.0
    words = torch.as_tensor(encoder.states(["a check of the graph"]))
    side = denoiser.config.sample_size
    for h, w in ((side, side), (side // 2, side + 4)):
        sample = torch.randn(1, denoiser.config.in_channels, h, w, generator=g)
        for t in (0, 400, 999):
            want = denoiser(sample, t, words, return_dict=False)[0].numpy()
            inputs = {"sample": sample.numpy(), "timestep": np.array(t), HIDDEN_STATES: words.numpy()}
            (got,) = run.run(["out_sample"], inputs)
            error = max(error, float((np.abs(got - want) / np.maximum(1, np.abs(want))).max()))
    if not error <= TOLERANCE:
        raise TrainerError(f"ONNX Runtime and torch disagree by {error} on the denoiser; nothing was written")
    return error


def distill(denoiser, states, options, steps, checkpoint, resume):
    """A trained denoiser -> (a student that draws in `steps` steps without guidance, its scheduler, facts).

    `states`, `options`: those of the denoiser's training, see `fit`.
    """
    words, side = torch.as_tensor(states), options.size // BLOCK

    def call(network, sample, t, rows, guidance):
        out = network(sample, t, words[rows].to(sample.device), return_dict=False)[0]
        if guidance <= 1:
            return out
        empty = words[-1:].expand(len(sample), -1, -1).to(sample.device)
        empty = network(sample, t, empty, return_dict=False)[0]
        return empty + guidance * (out - empty)

    shape = denoiser.config.in_channels, side, side
    task = distillation.Task(shape, make_scheduler(), call, len(words) - 1, words, GUIDANCE)
    return distillation.distill(task, denoiser, steps, options, checkpoint, resume)


def train(data, captions, encoder, channels, options, out, checkpoint=None, resume=False, force=False, steps=None):
    """Trains on the images of the folder `data`, with the text encoder of a folder, and writes a pipeline to `out`.

    `steps`: distills the denoiser so that it draws in so few steps.
    """
    check_out(out, force, "pipeline")
    encoder, captions = TextEncoder(encoder), read_captions(captions, data)
    images, rows = read_images(captions, channels, options.size)
    print(f"images: {len(images)} with {len(captions)} captions")
    states = encoder.states([caption for _, caption in captions] + [""])
    kept = checkpoint or out.resolve().with_name(out.name + ".checkpoint")
    kept.parent.mkdir(parents=True, exist_ok=True)
    denoiser = fit(images, rows, states, options, kept, resume)
    drawing = {}
    if steps:
        denoiser, scheduler, _ = distill(denoiser, states, options, steps, kept, resume)
        drawing = {"scheduler": scheduler, "steps": steps, "guidance": 1.0, "distilled": True}
    round_weights(denoiser)
    content, error = files(denoiser, encoder, options, **drawing)
    write(out, content, force, "pipeline")
    if not checkpoint:
        for path in (kept, *(distillation.checkpoints(kept, steps) if steps else ())):
            path.unlink(missing_ok=True)
    size = sum(len(value) for name, value in content.items() if name not in encoder.files) / 1e6
    say(f"ONNX Runtime and torch differ by at most {error:.1e}")
    print(f"wrote {out} ({size:.1f} MB without the text encoder)")
