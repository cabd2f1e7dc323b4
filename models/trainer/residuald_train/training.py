"""What the training of tables and of images share: checkpoints, the progress of a run, and loss curves."""

import contextlib
import io
import math
import signal
import threading
from dataclasses import asdict

import numpy as np
import torch

from . import TrainerError

SAVE_EVERY = 60.0  # seconds between checkpoints
CURVE_POINTS = 200  # most points of a loss curve in the manifest


class ResumableOptions:
    """What the options of a training on images, a dataclass, have in common."""

    def same_run(self):
        """The options that must be the same when a checkpoint is resumed."""
        return {k: v for k, v in asdict(self).items() if k not in ("device", "amp", "threads")}


def choose_device(wanted):
    """auto, cpu or cuda -> cpu or cuda. Raises TrainerError if cuda is wanted and torch finds no GPU."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise TrainerError("--device cuda: torch finds no GPU on this machine; use --device cpu")
    return "cuda" if available and wanted != "cpu" else "cpu"


def progress(step, seconds, steps, minutes):
    """The share of a training that is done, in 0..1, by steps or by minutes (or None), whichever is larger."""
    return max(step / steps, seconds / 60 / minutes if minutes else 0)


def loss_curve(losses):
    """Losses by step -> {"steps": steps that each point averages, "loss": at most CURVE_POINTS points}."""
    steps = max(1, math.ceil(len(losses) / CURVE_POINTS))
    parts = [losses[i : i + steps] for i in range(0, len(losses), steps)]
    return {"steps": steps, "loss": [float(f"{np.mean(part):.5g}") for part in parts]}


def save_state(path, state):
    """Saves a checkpoint by one rename, so that an interruption leaves the previous one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(buffer.getvalue())
    fresh.replace(path)


def load_state(path, device="cpu"):
    """Reads a checkpoint. Raises TrainerError if the file is not one."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise TrainerError(f"{path} is not a checkpoint ({text}); start again without --resume") from None


def check_same_run(path, here, there, free=("steps", "minutes")):
    """Raises TrainerError if a checkpoint belongs to a run with other options, except those in `free`."""
    if differ := [key for key in here if here[key] != there.get(key) and key not in free]:
        raise TrainerError(f"{path} belongs to a run with another {', '.join(differ)}; start again without --resume")


@contextlib.contextmanager
def stop_between_steps():
    """Yields a list that has an item once Ctrl-C was pressed, so that no step is cut in two. Twice stops at once."""
    asked = []

    def ask(*_):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread gets signals
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(path):
    """The exception to raise after Ctrl-C, when a checkpoint has been saved."""
    return KeyboardInterrupt(f"{path} holds what was trained so far; the same command with --resume continues")
