"""Each step of our schedulers is that of diffusers: 1e-5 of the sample's greatest value.

RESIDUALD_DIFFUSION_SEED and RESIDUALD_DIFFUSION_CONFIGS draw other and more configurations.
"""

import itertools
import json
import os
import random

import diffusers
import numpy as np
import pytest
import random_configs
import residuald
import torch
from reference import difference, diffusers_steps, draws, our_steps, rounded

diffusers.logging.set_verbosity_error()
torch.set_num_threads(1)

TOLERANCE = 1e-5
SEED = int(os.environ.get("RESIDUALD_DIFFUSION_SEED", random.randrange(2**31)))
CONFIGS = int(os.environ.get("RESIDUALD_DIFFUSION_CONFIGS", "200"))
LEARNED = ("learned", "learned_range")
GRID = [
    (name, prediction, spacing)
    for name in random_configs.CLASSES
    for prediction, spacing in itertools.product(random_configs.PREDICTIONS[name], random_configs.SPACINGS)
]


def greatest_difference(ours, theirs):
    """Of timesteps, initial deviation, inputs and samples."""
    assert len(ours[0]) == len(theirs[0])
    # Beta sigmas are SciPy's quantiles, whose last digits differ: a fractional timestep by an ulp.
    np.testing.assert_allclose(ours[0], theirs[0], rtol=3e-7, atol=1e-4)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
    pairs = [*zip(ours[2], theirs[2], strict=True), *zip(ours[3], theirs[3], strict=True)]
    return max(difference(a, b) for a, b in pairs)


@pytest.mark.parametrize(("name", "prediction", "spacing"), GRID)
def test_every_scheduler_prediction_and_spacing(name, prediction, spacing):
    config = {"_class_name": name, "prediction_type": prediction, "timestep_spacing": spacing}
    for steps in random_configs.STEPS:
        if name == "PNDMScheduler":
            # Runge-Kutta steps need four.
            config["skip_prk_steps"] = steps < 4
        drawn = draws(steps, steps)
        ours = our_steps(config, steps, 0.0, *drawn)
        for correctly in (False, True):
            with rounded(correctly):
                theirs = diffusers_steps(config, steps, 0.0, *drawn)
            # One step of PNDM from noise to the image magnifies PyTorch's rounding (decision 0055).
            tolerance = TOLERANCE if correctly or (name, steps) != ("PNDMScheduler", 1) else 2 * TOLERANCE
            assert greatest_difference(ours, theirs) <= tolerance, f"{steps} steps, {correctly=}"


def is_finite(steps):
    return all(np.isfinite(sample).all() for sample in steps[3])


def both(config, steps, eta, drawn, correctly):
    """Ours and theirs. None for what refuses."""
    try:
        with rounded(correctly):
            theirs = diffusers_steps(config, steps, eta, *drawn)
    # Whatever diffusers raises: some of what it cannot do is an IndexError.
    except Exception:
        theirs = None
    try:
        return our_steps(config, steps, eta, *drawn), theirs
    except residuald.Error:
        return None, theirs


def test_random_configurations(capsys):
    """With correctly rounded functions each is equal; with PyTorch's own nearly all (see reference.py)."""
    compared, within = 0, 0
    for number in range(CONFIGS):
        config, steps, eta = random_configs.configuration(np.random.default_rng([SEED, number]))
        drawn = draws(number, steps, times=2 if config.get("variance_type") in LEARNED else 1)
        what = f"seed {SEED}, number {number}: {config}, {steps} steps, {eta=}"
        ours, theirs = both(config, steps, eta, drawn, correctly=True)
        if ours is None:
            # Timestep -1, by a rounding of trailing spacing, takes the noisiest level for the cleanest.
            known = theirs is None or not is_finite(theirs) or theirs[0].min() < 0
            assert known, f"refused, and diffusers does it: {what}"
            continue
        if theirs is None:
            # Steps that visit a noise level twice: a singular matrix there, NaN here, which `generate` refuses.
            assert not is_finite(ours), f"diffusers refuses, and ours does not: {what}"
            continue
        assert greatest_difference(ours, theirs) <= TOLERANCE, what
        compared += 1
        with rounded(False):
            as_it_is = diffusers_steps(config, steps, eta, *drawn)
        pairs = zip(ours[3], as_it_is[3], strict=True)
        within += max(difference(a, b) for a, b in pairs) <= TOLERANCE
    with capsys.disabled():
        print(f"\nseed {SEED}: {compared} of {CONFIGS} compared, {within} within {TOLERANCE} of diffusers as it is")
    assert compared >= 0.9 * CONFIGS
    assert within >= 0.85 * compared


# What makes a class differ, so that another class that reads the file does not just get defaults.
SET = {
    "DDPMScheduler": {"clip_sample": False, "steps_offset": 1, "beta_schedule": "squaredcos_cap_v2"},
    "DDIMScheduler": {"set_alpha_to_one": False, "timestep_spacing": "trailing", "clip_sample_range": 2.0},
    "EulerDiscreteScheduler": {"sigma_min": 0.02, "sigma_max": 60.0, "use_karras_sigmas": True},
    "EulerAncestralDiscreteScheduler": {"prediction_type": "v_prediction"},
    "DPMSolverMultistepScheduler": {"solver_type": "heun", "use_karras_sigmas": True, "solver_order": 3},
    "UniPCMultistepScheduler": {"solver_type": "bh1", "sigma_min": 0.05, "use_exponential_sigmas": True},
    "LCMScheduler": {"timestep_scaling": 5.0, "original_inference_steps": 100},
    "PNDMScheduler": {"skip_prk_steps": True, "set_alpha_to_one": True},
}


@pytest.mark.parametrize(("name", "other"), itertools.permutations(random_configs.CLASSES, 2))
def test_a_file_that_another_class_reads(name, other, tmp_path):
    """As `from_config`: what the file sets counts, and what it only lists as default does not."""
    getattr(diffusers, name)(**SET[name]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    drawn = draws(1, 10)
    with rounded():
        theirs = diffusers_steps(config, 10, 0.0, *drawn, class_name=other)
    assert greatest_difference(our_steps(config, 10, 0.0, *drawn, class_name=other), theirs) <= TOLERANCE


@pytest.mark.parametrize("name", random_configs.CLASSES)
def test_the_same_bits_in_any_batch(name):
    """A sample of 64, of 7 and alone: the same bits after each step, and the same noise."""
    config = {"_class_name": name, "solver_order": 2}
    config |= {"thresholding": True} if name in ("DDPMScheduler", "DDIMScheduler", "LCMScheduler") else {}
    steps, dimensions = 10, 37
    outputs = residuald.normals(1, range(64), steps + 10, dimensions)

    def drawn(samples):
        run = residuald.Scheduler(config).run(steps)
        noise = residuald.normals(7, samples, steps + 11, dimensions)
        x, states = noise[0] * np.float32(run.init_noise_sigma), []
        for i in range(len(run)):
            x = run.step(i, outputs[i, list(samples)], x, noise[i + 1])
            states.append(x)
        return np.stack(states)

    whole = drawn(range(64))
    for size in (1, 7):
        parts = [drawn(range(64)[at : at + size]) for at in range(0, 64, size)]
        assert np.concatenate(parts, axis=1).tobytes() == whole.tobytes()


def test_forward_process():
    """add_noise is diffusers' at the timestep of each step."""
    clean, noise, _ = draws(3, 1)
    noise = noise[0]
    for name in random_configs.CLASSES:
        config = {"_class_name": name}
        run = residuald.Scheduler(config).run(10)
        scheduler = getattr(diffusers, name).from_config(config)
        scheduler.set_timesteps(10)
        for i in range(len(run)):
            at = scheduler.timesteps[i : i + 1].expand(len(clean))
            theirs = scheduler.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), at)
            assert difference(run.add_noise(i, clean, noise), theirs.numpy()) <= TOLERANCE
