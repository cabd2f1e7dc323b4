"""Whether the privacy gate passes what it should pass, and refuses copies."""

import numpy as np
import torch

from ..generative.privacy import check_drawn, reference_rows

TRIALS = 4
NOISE = 0.05  # of copied rows, in standard deviations
MOST = 4000  # rows a trial draws


def measure(table, drawn, space, seed):
    """-> {"trials", and how many of them passed: "held_out", "drawn", "copies", "some_copies" (10 %)}.

    A trial splits the real rows into a half that the reference knows and one that it does not.
    """
    rng, passed = np.random.default_rng(5000 + seed), dict.fromkeys(("held_out", "drawn", "copies", "some_copies"), 0)
    for trial in range(TRIALS):
        order = rng.permutation(len(table.real))
        half = len(order) // 2
        reference = reference_rows(table.train, table.real[order[:half]], seed=trial)
        fresh = table.real[order[half:]][:MOST]
        copies = copied(space, table.train, len(fresh), rng)
        some = np.where(rng.random((len(fresh), 1)) < 0.1, copies, fresh)
        tried = {"held_out": fresh, "drawn": drawn[:MOST], "copies": copies, "some_copies": some}
        for name, rows in tried.items():
            passed[name] += check_drawn(space, rows, reference)["passed"]
    return {"trials": TRIALS} | passed


@torch.no_grad()
def copied(space, train, count, rng):
    """A memoriser: training rows with NOISE on their continuous dimensions."""
    z = space.encode(torch.as_tensor(train[rng.integers(len(train), size=count)]))
    z[:, space.coded :] += NOISE * torch.as_tensor(rng.normal(size=(count, space.dims - space.coded))).float()
    return space.decode(z).numpy()
