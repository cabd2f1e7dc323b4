"""The noise of the forward process, and the scheduler that the bundle names, both in the terms of diffusers.

x_t = α_t x_0 + σ_t ε with α_t² = ∏ (1 - β_s) and σ_t² = 1 - α_t² (Ho et al. 2020).
"""

import numpy as np
import torch

TIMESTEPS = 1000
STEPS = 30  # default number of steps of the bundle

# The content of scheduler_config.json. The network returns the clean sample.
CONFIG = {
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": TIMESTEPS,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "sample",
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "timestep_spacing": "linspace",
    "final_sigmas_type": "zero",
}


def make_scheduler(**changes):
    """A diffusers scheduler of the bundle's config, with some fields changed."""
    import diffusers  # slow to import

    config = CONFIG | changes
    return getattr(diffusers, config["_class_name"]).from_config(config)


def signal_and_noise():
    """(α [T], σ [T]) float32 of the timesteps 0..T-1."""
    betas = np.linspace(CONFIG["beta_start"], CONFIG["beta_end"], TIMESTEPS)
    kept = np.cumprod(1 - betas)
    return torch.as_tensor(np.sqrt(kept)).float(), torch.as_tensor(np.sqrt(1 - kept)).float()


class TrainingNoise:
    """Draws timesteps such that log(σ/α) is about normal, which trains most where most of the structure is decided."""

    MEAN, DEVIATION = -0.7, 1.5  # of log(σ/α); EDM (Karras et al. 2022) has -1.2 and 1.2 for images

    def __init__(self):
        signal, noise = signal_and_noise()
        self.log_ratio = (noise / signal).log()

    def draw(self, count, g):
        """-> timesteps int64 [count]."""
        wanted = torch.randn(count, generator=g) * self.DEVIATION + self.MEAN
        return torch.searchsorted(self.log_ratio, wanted).clamp(max=TIMESTEPS - 1)

    def spread(self, count):
        """The same distribution without chance: timesteps int64 [count] at its even quantiles."""
        normal = torch.distributions.Normal(self.MEAN, self.DEVIATION)
        wanted = normal.icdf((torch.arange(count) + 0.5) / count)
        return torch.searchsorted(self.log_ratio, wanted).clamp(max=TIMESTEPS - 1)
