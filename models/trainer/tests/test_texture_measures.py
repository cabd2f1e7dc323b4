"""Tests of the measures of drawn textures."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the examples need scikit-image")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import texture_measures as measures


def test_the_squared_discrepancy_is_the_unbiased_estimate():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(5, 3)) + 1

    def mean(x, y, same):
        pairs = [(i, j) for i in range(5) for j in range(5) if not (same and i == j)]
        return np.mean([(x[i] @ y[j] / 3 + 1) ** 3 for i, j in pairs])

    want = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert measures.squared_mmd(a, b) == pytest.approx(want)


def test_the_distance_is_zero_for_the_same_distribution_and_grows_with_the_shift():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 8)), rng.normal(size=(400, 8))
    same, near, far = (measures.kid(a + shift, b)[0] for shift in (0, 0.5, 1))
    assert abs(same) < near / 10 < far / 20


def test_a_place_of_the_photograph_is_found_mirrored_brighter_and_with_less_contrast():
    photograph = np.random.default_rng(0).integers(0, 256, (60, 50), np.uint8)
    patch = photograph[20:36, 7:23]
    for shown in (patch, patch[:, ::-1], 40 + 0.5 * patch):
        found, place = measures.likeness(shown, photograph)
        assert found == pytest.approx(1, abs=1e-4)
        assert np.corrcoef(place.ravel(), shown.ravel())[0, 1] == pytest.approx(1)
    assert measures.likeness(np.random.default_rng(1).normal(size=(16, 16)), photograph)[0] < 0.5


def test_random_phase_keeps_mean_and_spectrum_and_nothing_else():
    wave = np.sin(np.arange(32) * 2 * np.pi * 3 / 32)
    image = (128 + 50 * wave[:, None] * wave + np.zeros((3, 32, 32))).transpose(1, 2, 0).round().astype(np.uint8)
    made = measures.gaussian_texture(image, np.random.default_rng(0))
    assert np.abs(made.mean((0, 1)) - image.mean((0, 1))).max() < 0.5
    smooth = measures.periodic(image.astype(float) - image.mean((0, 1)))
    spectra = [np.abs(np.fft.fft2(x[..., 0]))[3, 3] for x in (smooth, made)]
    assert spectra[1] == pytest.approx(spectra[0], rel=0.02)
    assert np.abs(made.astype(float) - image).mean() > 10


def test_a_periodic_image_is_its_own_periodic_component():
    x = np.random.default_rng(0).normal(size=(16, 12, 3))
    x[-1], x[:, -1] = x[0], x[:, 0]
    x[-1], x[:, -1] = x[0], x[:, 0]
    assert np.allclose(measures.periodic(x), x)
    ramp = np.broadcast_to(np.linspace(0, 30, 16)[:, None, None], (16, 12, 3))
    jumps = [abs(y[0] - y[-1]).mean() for y in (ramp, measures.periodic(ramp))]
    assert jumps[1] < jumps[0] / 3
