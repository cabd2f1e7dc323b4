"""What a scheduler's configuration may say, and what is refused by name."""

import json

import numpy as np
import pytest
import residuald
from residuald import Error, Scheduler

DDPM = {"_class_name": "DDPMScheduler"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "_class_name"),
        (
            {"_class_name": "HeunDiscreteScheduler"},
            "the scheduler HeunDiscreteScheduler is unknown: there are DDPMScheduler, ",
        ),
        (DDPM | {"beta_schedule": "cosine"}, '`beta_schedule` is "cosine": it must be one of linear, '),
        (DDPM | {"prediction_type": "flow"}, "`prediction_type`"),
        (DDPM | {"num_train_timesteps": 0}, "from 1 to 100000"),
        (DDPM | {"num_train_timesteps": 10**9}, "from 1 to 100000"),
        (DDPM | {"num_train_timesteps": "many"}, '`num_train_timesteps` is "many"'),
        (DDPM | {"clip_sample": "no"}, "must be true or false"),
        (DDPM | {"beta_end": 3.0}, "betas are not all between 0 and 1"),
        (DDPM | {"beta_end": float("nan")}, "must be a number"),
        (DDPM | {"variance_type": "fixed_large_log"}, "use fixed_large"),
        (DDPM | {"trained_betas": [0.1, "x"]}, "`trained_betas`"),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "prediction_type": "sample"}, "`prediction_type`"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True},
            "only one of",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "sigma_min"),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "it must be 1, 2 or 3"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_p": {"_class_name": "DDIMScheduler"}}, "`solver_p`"),
        ({"_class_name": "UniPCMultistepScheduler", "use_dynamic_shifting": True}, "`use_dynamic_shifting`"),
    ],
)
def test_refused_by_name(config, message):
    with pytest.raises(Error) as refused:
        Scheduler(config)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "steps", "message"),
    [
        (DDPM, 0, "0 steps"),
        (DDPM, 1001, "more than num_train_timesteps, 1000"),
        (DDPM, 10**9, "a sampler takes 1 to 100000"),
        (DDPM | {"steps_offset": 1}, 1000, "timestep 1000"),
        # Rounding makes 62 timesteps, the last of them -1, which diffusers takes from the schedule's end.
        (DDPM | {"timestep_spacing": "trailing"}, 61, "timestep -1"),
        (
            {"_class_name": "PNDMScheduler"},
            3,
            "3 steps are too few: Runge-Kutta steps need 4; take more, or set skip_prk_steps",
        ),
        ({"_class_name": "LCMScheduler"}, 51, "original_inference_steps, 50"),
        ({"_class_name": "UniPCMultistepScheduler", "lower_order_final": False}, 10, "would be infinite"),
    ],
)
def test_steps_that_cannot_be(config, steps, message):
    with pytest.raises(Error, match=message):
        Scheduler(config).run(steps)


def test_unknown_fields_are_told():
    config = DDPM | {"_diffusers_version": "0.42.1", "skip_prk_steps": True, "a": 1}
    assert Scheduler(config).ignored == ["a", "skip_prk_steps"]


def test_what_was_not_set_takes_the_default_of_the_class_that_reads_it():
    """As diffusers: a file of DDPM lists its defaults, which are not those of LCM."""
    config = DDPM | {"beta_start": 0.0001, "beta_end": 0.02, "_use_default_values": ["beta_start", "beta_end"]}
    as_lcm = Scheduler(config, class_name="LCMScheduler")
    assert as_lcm.class_name == "LCMScheduler"
    lcm = Scheduler({"_class_name": "LCMScheduler"})
    np.testing.assert_array_equal(as_lcm.alphas_cumprod, lcm.alphas_cumprod)


def test_infinity_as_python_writes_it():
    config = {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -float("inf")}
    assert "-Infinity" in json.dumps(config)
    assert len(Scheduler(config).run(7)) == 7


def test_eta():
    assert not Scheduler({"_class_name": "DDIMScheduler"}).run(4).adds_noise(0)
    assert Scheduler({"_class_name": "DDIMScheduler"}, eta=0.5).run(4).adds_noise(0)
    with pytest.raises(Error, match="from 0 to 1"):
        Scheduler({"_class_name": "DDIMScheduler"}, eta=1.5)
    with pytest.raises(Error, match="only DDIMScheduler has it"):
        Scheduler(DDPM, eta=0.5)


def test_sizes_and_order():
    x = np.zeros((2, 3), np.float32)
    run = Scheduler(DDPM).run(4)
    with pytest.raises(Error, match="the noise has 0 values, the sample 6"):
        run.step(0, x, x)
    with pytest.raises(Error, match="the model's output has 12 values, the sample 6"):
        run.step(0, np.zeros((2, 6)), x, x)
    with pytest.raises(Error, match="step 4: the plan has 4 steps"):
        run.step(4, x, x, x)
    with pytest.raises(Error, match="twice the sample's 6"):
        Scheduler(DDPM | {"variance_type": "learned"}).run(4).step(0, x, x, x)
    multistep = Scheduler({"_class_name": "UniPCMultistepScheduler"}).run(4)
    multistep.step(0, x, x)
    with pytest.raises(Error, match="the solver needs step 1 first"):
        multistep.step(2, x, x)
    with pytest.raises(Error, match="3 values, and 6 in the step before"):
        multistep.step(1, x[:1], x[:1])


def test_noise_is_normal_and_of_the_sample_alone():
    noise = residuald.normals(3, range(50), 2, 200)
    assert noise.shape == (2, 50, 200)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    np.testing.assert_array_equal(residuald.normals(3, [49, 7], 1, 200)[0], noise[0, [49, 7]])
    assert not np.array_equal(residuald.normals(4, [0], 1, 200)[0], noise[0, :1])
    with pytest.raises(Error, match="ask for fewer"):
        residuald.normals(0, [0], 2**20, 2**20)
