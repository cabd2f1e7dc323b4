"""The noise schedule of a diffusers-style denoiser, from its scheduler_config.json. Imports torch through diffusers."""

import json
from pathlib import Path

from .. import TrainerError

SHARES = 0.05, 0.1, 0.25  # of the schedule: the timesteps unless others are given
PREDICTIONS = "epsilon", "v_prediction", "sample"


def schedule(config, timesteps=None):
    """A path or a dict -> ({timestep: share of the signal that is left}, what the denoiser predicts)."""
    if config is None:
        raise TrainerError(
            "a denoiser needs the noise schedule that it was trained with: pass diffusers' scheduler_config.json "
            "with --scheduler"
        )
    if not isinstance(config, dict):
        try:
            config = json.loads(Path(config).read_text())
        except (OSError, ValueError) as error:
            raise TrainerError(f"cannot read the schedule in {config}: {error}") from None
    from diffusers import DDPMScheduler  # slow to import

    try:
        scheduler = DDPMScheduler.from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TrainerError(f"diffusers cannot make a schedule of the configuration: {error}") from None
    total, predicts = scheduler.config.num_train_timesteps, scheduler.config.prediction_type
    if predicts not in PREDICTIONS:
        raise TrainerError(
            f"the schedule's prediction_type is `{predicts}`; it must be one of {', '.join(PREDICTIONS)}"
        )
    steps = sorted(timesteps or {max(1, round(share * (total - 1))) for share in SHARES})
    if not 0 <= steps[0] <= steps[-1] < total:
        raise TrainerError(f"--timesteps must be from 0 to {total - 1}, the last one of the schedule")
    return {int(t): float(scheduler.alphas_cumprod[t]) for t in steps}, predicts
