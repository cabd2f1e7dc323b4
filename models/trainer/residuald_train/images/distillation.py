"""`--distill N`: a student that draws in N steps what its teacher, the trained denoiser, draws in 20 or more.

First the teacher draws images from noise by DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), with guidance if it reads
words. Its way from noise to image is cut at the N timesteps that DDIM visits. One DDIM step has to lead from each cut
to the next. Solved for the clean image, this gives the target of progressive distillation (Salimans and Ho 2022, arXiv
2202.00512, appendix G), for many steps of the teacher in place of two. With N = 1 it is the denoising student of Luhman
and Luhman (2021, arXiv 2101.02388).

Then the student, which starts with the teacher's weights, learns these targets by their mean squared error. It is
called without guidance, so it learns what guidance does (Meng et al. 2022, arXiv 2210.03142), and a step costs one
call.

The draws stay in a file, because a draw costs more than a training step. Each is used REUSED times.
"""

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ..console import bar, say
from ..training import ResumableOptions, interrupted, progress, stop_between_steps
from .train import descend

TEACHER_STEPS = 20  # at least; a multiple of N, so that the teacher passes the student's timesteps
SHARE = 0.25  # of the training's steps: as many has the student
REUSED = 16
MOST_BYTES = 8 << 30  # of draws
NOISE = "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "rescale_betas_zero_snr"


@dataclass(frozen=True)
class Task:
    """What a denoiser is called with.

    `call(network, sample float32 [N, C, H, W], t int64 [N], rows int64 [N], guidance)` -> its output, with
    classifier-free guidance above 1. `rows` are numbers of captions below `captions`.
    """

    shape: tuple  # C, H, W of what it denoises
    scheduler: object  # of its training, of diffusers
    call: Callable
    captions: int = 1
    words: torch.Tensor | None = None  # what it reads, for the fingerprint
    guidance: float = 1.0


@dataclass(frozen=True)
class Options(ResumableOptions):
    distill: int  # steps of a draw
    seed: int
    steps: int  # of training
    minutes: float | None  # limit of the teacher's drawing, and of the training
    batch: int
    device: str
    amp: bool
    threads: int
    lr: float = 1e-3
    weight_decay: float = 0.0
    ema: float = 0.99


def distill(task, teacher, steps, training, checkpoint, resume=False):
    """Trained denoiser in eval mode -> (a student that draws in `steps` steps, its scheduler, facts for a manifest).

    `training`, `checkpoint`: the options of the teacher's training and its file; the distillation's are beside it.
    """
    given, path = options(steps, training), checkpoints(checkpoint, steps)[0]
    student = fit(task, teacher, given, path, resume)
    found, few = compare(task, teacher, student, given)
    unit = "step" if steps == 1 else "steps"
    print(
        f"distilled: {steps} {unit} of the student differ by {found:.3f} from {teacher_steps(steps)} of the teacher, "
        f"{steps} of the teacher by {few:.3f} (root mean square of values in -1..1, {given.batch} new draws)"
    )
    facts = {"draw_steps": steps, "steps": student.steps, "student": round(found, 4), "teacher": round(few, 4)}
    return student, student_scheduler(task.scheduler), facts


def checkpoints(training, steps):
    """The training's checkpoint -> the distillation's files beside it: of the student, and of the draws."""
    name = f"{training.name}.distill-{steps}"
    return [training.with_name(name), training.with_name(name + ".draws")]


def options(distill, training):
    """The number of steps and the options of the teacher's training -> Options."""
    shared = {name: getattr(training, name) for name in ("seed", "batch", "device", "amp", "threads")}
    minutes = training.minutes and SHARE * training.minutes
    return Options(distill, steps=max(1, round(SHARE * training.steps)), minutes=minutes, **shared)


def student_scheduler(scheduler):
    """The training's scheduler -> the DDIMScheduler that visits the student's timesteps."""
    from diffusers import DDIMScheduler  # slow to import

    return DDIMScheduler(**noise_levels(scheduler), timestep_spacing="trailing", clip_sample=False)


def teacher_scheduler(scheduler):
    from diffusers import DPMSolverMultistepScheduler  # slow to import

    return DPMSolverMultistepScheduler(**noise_levels(scheduler), timestep_spacing="trailing")


def noise_levels(scheduler):
    return {name: scheduler.config[name] for name in NOISE if name in scheduler.config}


def teacher_steps(distill):
    """The least multiple of `distill` that is at least TEACHER_STEPS."""
    return distill * -(-TEACHER_STEPS // distill)


def fit(task, teacher, options, checkpoint, resume=False, stop=None):
    """Teacher, in eval mode -> the student, in eval mode, on the CPU.

    `checkpoint`: the file of the student's training; that of the draws is beside it. For the last two arguments see
    `train.descend`. With `resume`, what another teacher or other words have left in these files is not used.
    """
    teacher, (cuts, alphas) = teacher.to(options.device), student_cuts(task, options.distill)
    file = Draws(checkpoint.with_name(checkpoint.name + ".draws"), task, teacher, options)
    if resume and file.path.exists() and not file.ours():
        say(f"{file.path} belongs to another training; the distillation starts again")
    resume = resume and file.ours()
    if not resume:
        checkpoint.unlink(missing_ok=True)  # so that a later --resume does not find that of another teacher
    drawn = draw_paths(task, teacher, options, file, resume, enough=resume and checkpoint.exists())
    rows = torch.cat([start(task, options, i)[1] for i in range(len(drawn) // options.batch)])
    g, device = torch.Generator().manual_seed(options.seed + 2), torch.device(options.device)
    student, batch = copy.deepcopy(teacher), torch.arange(options.batch)

    def batch_loss():
        row = torch.randint(len(drawn), (options.batch,), generator=g)
        step = (batch + int(torch.randint(options.distill, (), generator=g))) % options.distill
        path = torch.as_tensor(drawn[row.numpy()]).float()
        x, target = path[:, 0], path[batch, 1 + step]
        for i in range(options.distill - 1):
            moved = ddim_step(x, path[:, 1 + i], alphas[i], alphas[i + 1])
            x = torch.where((step > i).view(-1, 1, 1, 1), moved, x)
        x, t, a = (value.to(device) for value in (x, cuts[step], alphas[step].float().view(-1, 1, 1, 1)))
        with torch.autocast(device.type, torch.bfloat16, enabled=options.amp):
            out = task.call(student, x, t, rows[row].to(device), 1.0).float()
        if task.scheduler.config.prediction_type == "v_prediction":
            out = a.sqrt() * x - (1 - a).sqrt() * out
        return ((out - target.to(device)).square().mean(),)

    say(f"distill, 2 of 2: trains a student to draw in {options.distill} steps, {options.steps:,} steps of training")
    student = descend(student, batch_loss, g, options, checkpoint, resume, None, stop, "distill")
    teacher.to("cpu")
    return student


def student_cuts(task, distill):
    """-> (timesteps int64 [distill], their alphas and that of the image, 1: float64 [distill + 1])."""
    scheduler = student_scheduler(task.scheduler)
    scheduler.set_timesteps(distill)
    cuts = scheduler.timesteps.long()
    return cuts, torch.cat([scheduler.alphas_cumprod[cuts].double(), torch.ones(1, dtype=torch.float64)])


def ddim_step(x, clean, a, after):
    """x at alpha `a`, and the clean image -> x at alpha `after` (Song et al. 2021, η = 0)."""
    ratio = ((1 - after) / (1 - a)).sqrt().item()
    return ratio * x + (after.sqrt() - ratio * a.sqrt()).item() * clean


def ddim_target(x, moved, a, after):
    """The clean image with which a DDIM step leads from x at alpha `a` to `moved` at alpha `after`."""
    ratio = ((1 - after) / (1 - a)).sqrt().item()
    return (moved - ratio * x) / (after.sqrt() - ratio * a.sqrt()).item()


class Draws:
    """A file of draws. Its first line says whose they are. Then come rows of float16 [1 + N, C, H, W].

    A row is the noise, and the student's target in each step.
    """

    def __init__(self, path, task, teacher, options):
        self.path, self.shape, self.batch = path, (1 + options.distill, *task.shape), options.batch
        about = {name: value for name, value in asdict(options).items() if name in ("distill", "seed", "batch")}
        about |= {"shape": task.shape, "guidance": task.guidance, "captions": task.captions}
        tensors = [*teacher.state_dict().values(), *([] if task.words is None else [task.words])]
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.head = (json.dumps(about | {"sha256": digest.hexdigest()}) + "\n").encode()
        self.bytes = 2 * int(np.prod(self.shape))  # of a row

    def ours(self):
        """Whether the file is there and of this teacher, these words and these options."""
        if not self.path.exists():
            return False
        with open(self.path, "rb") as f:
            return f.read(len(self.head)) == self.head

    def begin(self, resume):
        """Starts the file; with `resume`, cuts off what is no whole batch -> how many batches of rows it has."""
        if not resume:
            self.path.write_bytes(self.head)
        batches = (self.path.stat().st_size - len(self.head)) // (self.bytes * self.batch)
        os.truncate(self.path, len(self.head) + batches * self.bytes * self.batch)
        return batches

    def read(self, count):
        """-> the first `count` rows as they are needed, float16 [count, 1 + N, C, H, W]."""
        return np.memmap(self.path, np.float16, "r", len(self.head), (count, *self.shape))


def start(task, options, i):
    """What batch i of the draws starts with -> (noise float32 [N, C, H, W] of float16's precision, rows [N])."""
    g = torch.Generator().manual_seed(int(np.random.SeedSequence([options.seed, i]).generate_state(1)[0]))
    rows = torch.randint(task.captions, (options.batch,), generator=g)
    return torch.randn(options.batch, *task.shape, generator=g).half().float(), rows


def draw_paths(task, teacher, options, file, resume, enough):
    """Lets the teacher draw, and goes on where it was interrupted -> the rows of `file`. Draws no more if `enough`."""
    size, steps = options.batch, teacher_steps(options.distill)
    count = max(1, min(options.steps // REUSED, MOST_BYTES // (file.bytes * size)))  # of batches
    if count < options.steps // REUSED:
        say(f"distill: {count * size:,} draws fill {MOST_BYTES >> 30} GiB, so each is used more than {REUSED} times")
    (_, alphas), scheduler = student_cuts(task, options.distill), teacher_scheduler(task.scheduler)
    done = file.begin(resume)
    guided = f" and a guidance of {task.guidance:g}" if task.guidance > 1 else ""
    space = f"{file.path}, {count * size * file.bytes / 1e6:,.0f} MB"
    say(f"distill, 1 of 2: the teacher draws {count * size:,} images in {steps} steps{guided} ({space})")
    torch.set_num_threads(options.threads)
    began = time.monotonic()
    shown = bar(total=count * size, initial=min(done, count) * size, desc="draw", unit=" images")
    with open(file.path, "ab") as f, stop_between_steps() as asked:
        while not enough and (not done or progress(done, time.monotonic() - began, count, options.minutes) < 1):
            if asked:
                shown.close()
                raise interrupted(file.path)
            noise, rows = start(task, options, done)
            states = draw(
                task, teacher, scheduler, noise.to(options.device), rows.to(options.device), steps, task.guidance
            )
            at = [x.cpu() for x in states[:: steps // options.distill]]
            targets = [ddim_target(*at[i : i + 2], *alphas[i : i + 2]) for i in range(options.distill)]
            f.write(torch.stack([noise, *targets], 1).half().numpy().tobytes())
            f.flush()
            done += 1
            shown.update(size)
    shown.close()
    if not enough and done < count:
        say(f"distill: {done * size:,} images were drawn in {options.minutes:g} minutes")
    return file.read(min(done, count) * size)


@torch.no_grad()
def draw(task, network, scheduler, noise, rows, steps, guidance=1.0):
    """Noise float32 [N, C, H, W] -> the states of a draw, 1 + steps; the first is the noise, the last the image."""
    scheduler.set_timesteps(steps)
    states = [noise]
    for t in scheduler.timesteps:
        out = task.call(network, states[-1], t.to(noise.device).expand(len(noise)), rows, guidance)
        states.append(scheduler.step(out, t, states[-1]).prev_sample)
    return states


def compare(task, teacher, student, options):
    """New noise -> how far images are from the teacher's in many steps: (the student's, the teacher's in as few steps).

    The root of the mean squared error, of values in -1..1.
    """
    noise, rows = start(task, options, -1 % 2**32)
    scheduler, steps = teacher_scheduler(task.scheduler), options.distill
    wanted = draw(task, teacher, scheduler, noise, rows, teacher_steps(steps), task.guidance)[-1]
    few = draw(task, teacher, scheduler, noise, rows, steps, task.guidance)[-1]
    found = draw(task, student, student_scheduler(task.scheduler), noise, rows, steps)[-1]
    return tuple((x.clamp(-1, 1) - wanted.clamp(-1, 1)).square().mean().sqrt().item() for x in (found, few))
