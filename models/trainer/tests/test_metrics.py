"""Tests of the detection metrics."""

import numpy as np
import pytest

from residuald_train.bench import metrics
from residuald_train.bench.metrics import auroc


def test_auroc():
    assert auroc(np.array([1.0, 2]), np.array([2.0, 3])) == 0.875


def test_perfect_heat():
    masks = np.zeros((3, 16, 16), bool)
    masks[0, 2:6, 2:6] = masks[1, 8:12, 3:9] = masks[1, 0:2, 0:2] = True
    heat = masks + np.random.default_rng(0).random(masks.shape) * 0.5
    found = metrics.pixel_metrics(heat, masks)
    assert found["pixel"] == pytest.approx(1, abs=1e-3)
    assert found["PRO"] == pytest.approx(1, abs=0.01)
    noise = metrics.pixel_metrics(np.random.default_rng(1).random(masks.shape), masks)
    assert noise["pixel"] == pytest.approx(0.5, abs=0.1)
    assert noise["PRO"] == pytest.approx(0.15, abs=0.1)


def test_image_metrics():
    found = metrics.image_metrics([1, 2, 3, 4, 0], ["good", "good", "a", "a", "b"])
    assert found == {"image": pytest.approx(2 / 3), "AP": pytest.approx((1 + 1 + 3 / 5) / 3), "a": 1.0, "b": 0.0}
