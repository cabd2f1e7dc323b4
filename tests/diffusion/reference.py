"""Diffusers' own schedulers beside ours, step by step, with the same model outputs and noise.

PyTorch's roots, exponentials and logarithms of float32 are Intel's or Sleef's: up to an ulp from the correctly rounded
value, and another on another processor. Where a schedule has 1 - alpha near 0, that ulp alone is more than 1e-5 of a
sample. So diffusers can also be run with correctly rounded functions (`rounded`), as ours are.
"""

import importlib
import warnings
from contextlib import contextmanager

import diffusers
import numpy as np
import residuald
import torch

# Where diffusers draws the noise of a step itself.
DRAWS = ["scheduling_ddpm", "scheduling_ddim", "scheduling_euler_ancestral_discrete", "scheduling_lcm"]
DRAWS += ["scheduling_dpmsolver_multistep"]


def in_double(function):
    """A function of float32 tensors, computed in float64 and rounded once."""

    def rounded(x, *arguments, **options):
        if isinstance(x, torch.Tensor) and x.dtype == torch.float32:
            return function(x.double(), *arguments, **options).float()
        return function(x, *arguments, **options)

    return rounded


@contextmanager
def rounded(enabled=True):
    """PyTorch's functions round correctly."""
    names = ["sqrt", "exp", "log", "expm1"]
    places = [(torch, name) for name in [*names, "sigmoid"]]
    places += [(torch.Tensor, name) for name in [*names, "__pow__"]]
    before = [getattr(owner, name) for owner, name in places]
    for (owner, name), function in zip(places, before, strict=True):
        if enabled:
            setattr(owner, name, in_double(function))
    try:
        yield
    finally:
        for (owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, function)


@contextmanager
def noise_from(noise):
    """Diffusers' schedulers take `noise`, a function without arguments, for what they draw."""
    modules = [importlib.import_module(f"diffusers.schedulers.{name}") for name in DRAWS]
    drawn = [module.randn_tensor for module in modules]
    for module in modules:
        module.randn_tensor = lambda *_, **__: torch.from_numpy(noise())
    try:
        yield
    finally:
        for module, draw in zip(modules, drawn, strict=True):
            module.randn_tensor = draw


def diffusers_steps(config, steps, eta, sample, outputs, noises, class_name=None):
    """Diffusers' scheduler -> its timesteps, initial deviation, scaled inputs and samples, one for each step.

    `class_name` replaces the class of the configuration.
    """
    warnings.filterwarnings("ignore", module="diffusers")
    warnings.filterwarnings("ignore", category=FutureWarning)
    with np.errstate(all="ignore"):
        name = class_name or config["_class_name"]
        scheduler = getattr(diffusers, name).from_config(config)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        sigma = float(scheduler.init_noise_sigma)
        x = torch.from_numpy(sample * np.float32(sigma))
        options = {"eta": eta} if name == "DDIMScheduler" else {}
        inputs, samples, at = [], [], 0
        with noise_from(lambda: noises[at]):
            for at, t in enumerate(scheduler.timesteps):
                inputs.append(scheduler.scale_model_input(x, t).numpy().copy())
                x = scheduler.step(torch.from_numpy(outputs[at]), t, x, **options).prev_sample
                samples.append(x.numpy().copy())
    return scheduler.timesteps.numpy(), sigma, inputs, samples


def our_steps(config, steps, eta, sample, outputs, noises, class_name=None):
    """The same of ours."""
    run = residuald.Scheduler(config, class_name, eta).run(steps)
    x = sample * np.float32(run.init_noise_sigma)
    inputs, samples = [], []
    for i in range(len(run)):
        inputs.append(run.scale_input(i, x))
        x = run.step(i, outputs[i], x, noises[i])
        samples.append(x)
    return run.timesteps, run.init_noise_sigma, inputs, samples


def draws(seed, steps, shape=(3, 2, 4, 4), times=1):
    """An initial sample, and a model output and noise for each step and some more: PNDM takes 9."""
    rng = np.random.default_rng(seed)
    count = steps + 10
    outputs = rng.standard_normal((count, shape[0], times * shape[1], *shape[2:])).astype(np.float32)
    noises = rng.standard_normal((count, *shape)).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32), outputs, noises


def difference(a, b):
    """The greatest difference of two samples in units of the second's greatest value. Both NaN or infinite is none."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    alike = finite | (np.isnan(a) & np.isnan(b)) | (a == b)
    if not alike.all():
        return np.inf
    if not finite.any():
        return 0.0
    return np.abs(a[finite] - b[finite]).max() / max(np.abs(b[finite]).max(), 1e-30)
