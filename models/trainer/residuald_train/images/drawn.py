"""Draws defects into normal images with a text-to-image pipeline: `--defects PROMPT … --draw-with DIR`.

A square of an image is painted anew under a soft mask, as StableDiffusionInpaintPipeline of diffusers does it with a
U-Net for text to image: noise is added to the square, and after each step what lies outside the mask is put back, with
the noise of that step. What was drawn is then blended in under the mask, so that no pixel outside it changes, even if
the VAE blurs.
"""

import hashlib
import inspect
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F

from .. import TrainerError
from ..console import bar, say
from ..training import SAVE_EVERY, check_same_run, interrupted, load_state, save_state, stop_between_steps
from .defects import Pairs, patches
from .text_encoder import TextEncoder

PAIRS = 256  # default number of pairs
STRENGTH = 0.8  # share of the steps that are taken, as in image-to-image
STEPS, GUIDANCE = 20, 7.5  # if model_index.json names none
MOST_BYTES = 2 << 30  # of drawn squares in memory
FAINT = 3.0  # mean change under the mask, in levels of 255, below which a defect counts as hardly visible
LUMA = 0.299, 0.587, 0.114
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    *(f"{part}/{name}" for part in ("text_encoder", "unet", "vae_decoder") for name in ("config.json", "model.onnx")),
    "vae_encoder/model.onnx",
)


@dataclass(frozen=True)
class Pipeline:
    """What the configuration of a pipeline's folder says, checked against the images that it is to draw into."""

    folder: Path
    sha256: str  # of unet/model.onnx
    channels: int  # of its images
    latent: int  # channels of its latent images
    scale: int  # pixels of an image for one value of a latent image, on a side
    scaling_factor: float
    side: int  # of the squares that it draws, in pixels
    native: int  # side of the images that it draws by default
    scheduler: dict
    steps: int
    guidance: float


def read_pipeline(folder, shape):
    """A folder in optimum's layout of a StableDiffusionPipeline, and a bundle's Shape -> Pipeline.

    Raises TrainerError if files are missing, or if channels or sizes do not fit.
    """
    folder = Path(folder)
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise TrainerError(
            f"--draw-with {folder}: is no text-to-image pipeline with its text encoder; it lacks {', '.join(missing)}"
        )
    index, unet, vae = (read(folder / name) for name in (FILES[0], "unet/config.json", "vae_decoder/config.json"))
    try:
        levels, latent, channels = len(unet["block_out_channels"]), vae["latent_channels"], vae["out_channels"]
        taken, scale = unet["in_channels"], 2 ** (len(vae["block_out_channels"]) - 1)
        native = unet["sample_size"] * scale
    except (KeyError, TypeError) as error:
        raise TrainerError(f"--draw-with {folder}: unet/ or vae_decoder/config.json lacks {error}") from None
    if taken != latent or unet.get("time_cond_proj_dim") or unet.get("addition_embed_type") == "text_time":
        raise TrainerError(
            f"--draw-with {folder}: its U-Net takes more than latent images of {latent} channels, timesteps and words; "
            "only Stable Diffusion 1 and 2 and pipelines of residuald-train text-to-image draw defects"
        )
    if channels not in (3, shape.channels):
        raise TrainerError(
            f"--draw-with {folder}: draws {channels} channels, which does not fit --channels {shape.channels}"
        )
    multiple = scale * 2 ** (levels - 1)
    least = min(shape.height, shape.width, native)
    if least < multiple:
        raise TrainerError(
            f"--draw-with {folder}: draws squares of multiples of {multiple} pixels, larger than --size "
            f"{shape.height}x{shape.width}; give a larger --size"
        )
    return Pipeline(
        folder=folder,
        sha256=hashlib.sha256((folder / "unet/model.onnx").read_bytes()).hexdigest(),
        channels=channels,
        latent=latent,
        scale=scale,
        scaling_factor=vae.get("scaling_factor", 0.18215),
        side=least - least % multiple,
        native=native,
        scheduler=read(folder / FILES[1]),
        steps=index.get("steps", STEPS),
        guidance=index.get("guidance", GUIDANCE),
    )


def read(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainerError(f"{path} is not JSON ({error})") from None


def make_scheduler(config, folder):
    import diffusers  # slow to import

    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin) and hasattr(kind, "add_noise")):
        raise TrainerError(
            f"--draw-with {folder}: diffusers has no scheduler {config.get('_class_name')} that adds noise"
        )
    # As in diffusers' Stable Diffusion pipelines: latent images go beyond -1..1.
    return kind.from_config(config | ({"clip_sample": False} if "clip_sample" in config else {}))


class Painter:
    """Runs a Pipeline's graphs in ONNX Runtime on the CPU. `words`: prompts, which may repeat."""

    def __init__(self, pipeline, words, threads):
        self.about, self.scheduler = pipeline, make_scheduler(pipeline.scheduler, pipeline.folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3

        def graph(part):
            path = str(pipeline.folder / part / "model.onnx")
            return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        self.unet, self.decoder, self.encoder = graph("unet"), graph("vae_decoder"), graph("vae_encoder")
        encoder = TextEncoder(pipeline.folder)
        for word in words:
            if (tokens := len(encoder.tokenizer.encode(word).ids)) > encoder.length:
                raise TrainerError(
                    f"--defects {word!r}: has {tokens} tokens, but the text encoder reads {encoder.length}"
                )
        states = encoder.states([*words, ""])
        self.states = {word: states[[-1, i]] for i, word in enumerate(words)}  # the empty prompt first
        self.timestep = next(each for each in self.unet.get_inputs() if each.name == "timestep")

    def encode(self, x):
        """Images [1, C, s, s] in -1..1 -> latent images, the mean if the graph gives a distribution."""
        (found,) = self.encoder.run(None, {"sample": x.numpy()})
        return torch.as_tensor(found[:, : self.about.latent]) * self.about.scaling_factor

    def decode(self, latent):
        (found,) = self.decoder.run(None, {"latent_sample": (latent / self.about.scaling_factor).numpy()})
        return torch.as_tensor(found)

    def predict(self, latent, t, word):
        """The U-Net's output with classifier-free guidance (Ho and Salimans 2022)."""
        guided = self.about.guidance > 1
        states = self.states[word][0 if guided else 1 :]
        kind = np.float32 if "float" in self.timestep.type else np.int64
        t = np.full([1] * len(self.timestep.shape), t.item(), kind)
        inputs = {"sample": latent.expand(len(states), -1, -1, -1).numpy(), "timestep": t}
        (out,) = self.unet.run(None, inputs | {"encoder_hidden_states": states})
        out = torch.as_tensor(out)
        return out[:1] + self.about.guidance * (out[1:] - out[:1]) if guided else out

    def paint(self, x, mask, word, g):
        """Image [1, C, s, s] in -1..1, mask [1, 1, s, s] in 0..1 -> the image, painted anew where the mask is not 0."""
        clean, scheduler, about = self.encode(x), self.scheduler, self.about
        inside = (F.max_pool2d(mask, about.scale) > 0.05).float()
        noise = torch.randn(clean.shape, generator=g)
        scheduler.set_timesteps(about.steps)
        first = (about.steps - max(1, int(about.steps * STRENGTH))) * scheduler.order
        timesteps = scheduler.timesteps[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        takes = inspect.signature(scheduler.step).parameters
        more = {"generator": g} if "generator" in takes else {}
        latent = scheduler.add_noise(clean, noise, timesteps[:1])
        for i, t in enumerate(timesteps):
            out = self.predict(scheduler.scale_model_input(latent, t), t, word)
            latent = scheduler.step(out, t, latent, **more).prev_sample
            known = scheduler.add_noise(clean, noise, timesteps[i + 1 : i + 2]) if i + 1 < len(timesteps) else clean
            latent = inside * latent + (1 - inside) * known
        return self.decode(latent)


def draw_pairs(pipeline, images, options, checkpoint=None, resume=False):
    """Normal images uint8 [n, H, W, C] -> Pairs, as many as `options.defects.pairs`; prompts take turns.

    Pair i depends on `options.seed`, the images and i alone. `checkpoint`: a file that is saved every minute and on
    Ctrl-C; with `resume`, drawing continues from it. Raises TrainerError if the squares need too much memory.
    """
    defects, side = options.defects, pipeline.side
    count, (h, w, c) = defects.pairs, images.shape[1:]
    if count * side * side * c > MOST_BYTES:
        most = MOST_BYTES // (side * side * c)
        raise TrainerError(f"--draw-pairs {count}: at most {most} of {side}x{side} pixels fit into 2 GiB")
    if 2 * side < pipeline.native:
        say(f"defects: drawn on squares of {side} pixels; the pipeline is for {pipeline.native}, so look at them first")
    about = {"defects": str(defects), "seed": options.seed, "images": hashlib.sha256(images.tobytes()).hexdigest()}
    square = np.empty((count, side, side, c), np.uint8)
    place, change, done = np.zeros((3, count, 2), np.int64), np.zeros(count), 0
    if resume and checkpoint and checkpoint.exists():
        state = load_state(checkpoint)
        check_same_run(checkpoint, about, state["about"], free=())
        done = state["done"]
        square[:done], place, change = state["square"].numpy(), state["place"].numpy(), state["change"].numpy()

    def keep():
        arrays = {"square": square[:done], "place": place, "change": change}
        save_state(checkpoint, {"about": about, "done": done} | {k: torch.as_tensor(v) for k, v in arrays.items()})

    painter = Painter(pipeline, defects.words, options.threads) if done < count else None
    saved, steps = time.monotonic(), bar(total=count, initial=done, desc="draw defects", unit=" images")
    with stop_between_steps() as asked:
        for i in range(done, count):
            if asked:
                if not checkpoint:
                    raise KeyboardInterrupt
                steps.close()
                keep()
                raise interrupted(checkpoint)
            g = torch.Generator().manual_seed(int(np.random.SeedSequence([options.seed, i]).generate_state(1)[0]))
            row, top, left = (int(torch.randint(n, (), generator=g)) for n in (len(images), h - side + 1, w - side + 1))
            mask = patches(1, side, g)
            x = images[row, top : top + side, left : left + side]
            square[i], change[i] = painted(painter, x, mask, defects.words[i % len(defects.words)], g)
            place[:, i] = (row, row), (top, left), middle(mask)
            done = i + 1
            steps.update()
            if checkpoint and time.monotonic() - saved > SAVE_EVERY:
                keep()
                saved = time.monotonic()
    steps.close()
    if checkpoint:
        keep()
    faint = int((change < FAINT).sum())
    say(f"defects: drew {count}; {faint} of them change their place by less than {FAINT:g} of 255 levels")
    return Pairs(place[0, :, 0], place[1], place[2], square)


def painted(painter, x, mask, word, g):
    """Square uint8 [s, s, C], mask [1, 1, s, s] -> (uint8 [s, s, C] with a defect, mean change under the mask)."""
    clean = torch.as_tensor(x).float().permute(2, 0, 1)[None]
    wide = clean.expand(1, painter.about.channels, -1, -1) / 127.5 - 1
    drawn = (painter.paint(wide, mask, word, g).clamp(-1, 1) + 1) * 127.5
    if not torch.isfinite(drawn).all():
        raise TrainerError(f"--draw-with {painter.about.folder}: drew {word!r} with values that are not finite numbers")
    if drawn.shape[1] > clean.shape[1]:
        drawn = (drawn * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    change = float((mask * (drawn - clean).abs()).sum() / (mask.sum() * clean.shape[1]))
    y = (clean + mask * (drawn - clean)).round().clamp(0, 255)
    return y[0].permute(1, 2, 0).to(torch.uint8).numpy(), change


def middle(mask):
    """Mask [1, 1, s, s] -> (down, right): the middle of what is masked, in pixels."""
    at = (mask[0, 0] > 0.5).nonzero().float()
    return at.mean(0).round().long().tolist() if len(at) else [mask.shape[2] // 2] * 2
