"""Tests that the broken feature of a flagged record has the largest share and that its expected value lowers the score.

Eight features depend on three hidden ones. One value of each test record is moved up or down by 4 marginal standard
deviations of its feature. A record counts if it is flagged at a false-alarm rate of 1e-2.
"""

import numpy as np
import pytest

from residuald_train.bundle.calibrate import Calibration, calibrate
from residuald_train.bundle.export import to_onnx
from residuald_train.bundle.served import run_onnx, session
from residuald_train.tabular.features import Feature
from residuald_train.tabular.train import Options, fit

FEATURES = [Feature(f"x{j}", f"x{j}", "number") for j in range(8)]
MOVED = 4.0
FLOOR = 0.95


def correlated(n, rng, mix):
    return (rng.normal(size=(n, len(mix))) @ mix + 0.5 * rng.normal(size=(n, mix.shape[1]))).astype(np.float32)


@pytest.mark.parametrize("recipe", ["blind", "kernel", "hybrid", "best"])
def test_the_reason_is_the_broken_feature(recipe):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(3, len(FEATURES)))
    train, held_out, broken = (correlated(n, rng, mix) for n in (4000, 2000, 1000))
    every, feature = np.arange(len(broken)), rng.integers(len(FEATURES), size=len(broken))
    broken[every, feature] += MOVED * rng.choice([-1, 1], len(broken)) * train.std(0)[feature]

    run = session(to_onnx(fit(FEATURES, train, Options(recipe, steps=300, width=64, coreset=500), quiet=True)))
    threshold = Calibration(calibrate(*run_onnx(run, held_out)[:2])).threshold(1e-2)
    score, residual, expected = run_onnx(run, broken)
    flagged = score > threshold
    assert flagged.mean() > 0.8
    top = residual.argmax(1)
    assert (top == feature)[flagged].mean() >= FLOOR
    mended = broken.copy()
    mended[every, top] = expected[every, top]
    assert (run_onnx(run, mended)[0] < score)[flagged].mean() >= FLOOR
