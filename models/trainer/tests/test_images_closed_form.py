"""Tests of the recipes `kernel` and `best`: each term against NumPy, and bundles that the daemon's code judges with."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from residuald import Bundle
from scipy import ndimage

from residuald_train.bench.metrics import auroc
from residuald_train.bundle.served import run_onnx, session
from residuald_train.cli import main
from residuald_train.images import best, kernel, patches, terms
from residuald_train.images.gaussian import NOISE, Coarse, Gaussian, strongest
from residuald_train.images.pixels import Shape, load, rows
from residuald_train.images.profile import Profile, contrast, profile, registration
from residuald_train.images.scorer import Normalise, Scorer, run_torch, standardise


def objects(rng, n, size=64, channels=1, shifted=False):
    """n images of one object with noise, uint8 [n, H, W, C]; `shifted`: of one texture instead, rolled at random."""
    smooth = ndimage.gaussian_filter(
        np.random.default_rng(7).standard_normal((size, size, channels)), (2, 2, 0), mode="wrap"
    )
    base = 128 + 40 * smooth / smooth.std()
    shift = rng.integers(0, size, (n, 2)) if shifted else np.zeros((n, 2), int)
    x = np.stack([np.roll(base, tuple(s), (0, 1)) for s in shift]) + 6 * rng.standard_normal((n, size, size, channels))
    return x.clip(0, 255).astype(np.uint8)


def with_defect(rng, x):
    """The images with a dark square of 7 pixels, each at another place."""
    x = x.copy()
    for image, (top, left) in zip(x, rng.integers(6, 50, (len(x), 2)), strict=True):
        image[top : top + 7, left : left + 7] = image[top : top + 7, left : left + 7] // 2
    return x


def names(n):
    return np.array([f"object {i}" for i in range(n)])


def lower_median(x):
    return np.sort(x.ravel())[(x.size - 1) // 2]


def coarse(x):
    return Coarse(Shape(*x.shape[1:]))(standardise(torch.as_tensor(x))[0])


# --- each term against NumPy ---------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (40, 56), (32, 500)])
def test_cells_are_the_means_of_their_pixels(size):
    z = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    fine = z.repeat(32, 2).repeat(32, 3)  # each pixel as 32 x 32, so that no cell cuts one
    want = fine.reshape(2, 3, 32, size[0], 32, size[1]).mean((3, 5))
    assert np.allclose(Coarse(Shape(*size, 3))(torch.as_tensor(z)), want, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_residual_is_that_of_a_gaussians_posterior_mean(channels):
    rng = np.random.default_rng(0)
    a, y = (rng.standard_normal((n, channels * 1024)) @ np.diag(rng.uniform(0.1, 2, channels * 1024)) for n in (12, 3))
    mean, covariance = a.mean(0), np.cov(a.T, bias=True)
    noise = NOISE * np.trace(covariance) / len(covariance)
    want = noise * np.linalg.solve(covariance + noise * np.eye(len(covariance)), (y - mean).T).T
    fitted = Gaussian.fit(torch.as_tensor(a).view(-1, channels, 32, 32))
    got = fitted(torch.as_tensor(y).float().view(-1, channels, 32, 32))
    assert np.allclose(got.flatten(1), want, atol=1e-4)
    top = np.sort((want**2).reshape(3, channels, -1).mean(1))[:, -10:].mean(1) ** 0.5
    assert np.allclose(strongest(got), top, rtol=1e-4)


def test_a_profile_is_the_mean_heat_in_a_box_and_a_quarter_of_its_median():
    heat = np.random.default_rng(0).uniform(0, 3, (5, 128, 96))
    usual = ndimage.uniform_filter(heat.mean(0), 7, mode="mirror")  # 7 of 96, as 9 of 128
    usual += lower_median(usual) / 4
    assert np.allclose(profile(torch.as_tensor(heat)), usual, rtol=1e-5)
    fitted = Profile.fit(torch.as_tensor(heat).float())
    assert np.allclose(fitted(torch.as_tensor(heat).float()), (heat / usual).mean((1, 2)), rtol=1e-5)


def test_patches_are_restored_by_a_softmax_over_the_centers():
    a = coarse(objects(np.random.default_rng(0), 10, channels=3))
    half = torch.arange(10) % 2 == 0
    term = patches.Patches.fit(a, half)
    flat = np.stack([a[0, :, y : y + 4, x : x + 4] for y in range(0, 29, 2) for x in range(0, 29, 2)])
    flat = (flat - flat.mean((2, 3), keepdims=True)).reshape(225, 48)
    every, _ = patches.unfold(a)
    every = every.reshape(-1, 48).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(every.T))
    want = (flat - every.mean(0)) @ (vectors[:, -12:] / np.sqrt(values[-12:]))
    y = torch.conv2d(a[:1], term.kernel, stride=2) + term.offset
    y = y[0].flatten(1).T.numpy()
    assert np.allclose(np.abs(y), np.abs(want), atol=1e-3)  # the sign of an eigenvector is arbitrary
    known = term.centers[:, :, 0, 0].numpy()
    square = ((y[:, None] - known) ** 2).sum(2)
    weight = np.exp(-(square - square.min(1, keepdims=True)) / term.width)
    residual = ((y - weight / weight.sum(1, keepdims=True) @ known) ** 2).sum(1).reshape(15, 15)
    want = np.sort((residual / term.usual.numpy()).ravel())[-2:].mean()
    assert np.isclose(term(a)[0], want, rtol=1e-3)


def test_the_networks_term_by_place_divides_heat_and_surprise():
    rng = np.random.default_rng(0)
    blind, heat, surprise = Scorer(Shape(64, 64, 1)), rng.uniform(0, 1, (6, 32, 32)), rng.uniform(0.5, 2, (6, 4, 4))
    fitted = best.ByPlace(blind, torch.as_tensor(heat), torch.as_tensor(surprise))
    got = fitted(torch.as_tensor(heat)[:, None], torch.as_tensor(surprise))

    def relative(x, k):
        usual = ndimage.uniform_filter(x.mean(0), k, mode="mirror")
        return x / (usual + lower_median(usual) / 4)

    inner = relative(heat, 3)[:, 1:-1, 1:-1].reshape(6, -1)
    want = (np.sort(inner)[:, -12:].mean(1) + 0.001) * relative(surprise, 3).reshape(6, -1).max(1)
    assert np.allclose(got, want, rtol=1e-5)


# --- their sum -----------------------------------------------------------------------------


def test_a_sum_with_one_weight_is_its_first_term():
    t = torch.as_tensor(np.random.default_rng(0).lognormal(0, 0.5, 50)).float()
    total = terms.Sum({"one": 1, "other": 0}, (t, t.flip(0)))
    assert torch.allclose(total((t, t)), t, rtol=1e-5)
    assert torch.isfinite(total((torch.zeros(1), t[:1]))).all()


def test_far_terms_still_grow_but_slowly():
    z = torch.linspace(-1e4, 1e4, 100_001)
    held = terms.capped(z)
    assert (held.diff() > 0).all()
    assert torch.equal(held[z.abs() < 10], z[z.abs() < 10])
    assert held.abs().max() < 20


def test_no_image_is_judged_by_what_was_fitted_to_its_group():
    groups = np.repeat(["a", "b", "c", "d", "e"], 4)
    fold = terms.folds(groups, terms.FOLDS, 0)
    assert all(len(set(fold[groups == name].tolist())) == 1 for name in "abcde")
    seen = []
    x = torch.arange(20)
    out = terms.out_of_fold(lambda x, rows: seen.append(set(groups[rows.numpy()])) or (lambda x: x), x, fold)
    assert torch.equal(out, x)
    assert [set("abcde") - names for names in seen] == [set(groups[(fold == k).numpy()]) for k in range(4)]
    few = terms.folds(np.array(["a"] * 9), terms.FOLDS, 0)
    assert sorted(set(few.tolist())) == [0, 1, 2, 3]


# --- what they find ------------------------------------------------------------------------


def test_objects_are_registered_and_shifted_textures_are_not():
    rng, normalise = np.random.default_rng(0), Normalise(64)

    def r(x):
        return registration(contrast(normalise, standardise(torch.as_tensor(x))[0]))

    assert r(objects(rng, 40)) > 0.9
    assert r(objects(rng, 40, shifted=True)) < 0.1
    assert r(np.full((4, 64, 64, 1), 9, np.uint8)) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_kernel_finds_a_defect_on_an_object(channels):
    rng = np.random.default_rng(0)
    x, normal, bad = (objects(rng, n, channels=channels) for n in (40, 40, 40))
    scorer = kernel.fit(Shape(64, 64, channels), x, names(40), kernel.Options(threads=1))
    score, heat, clean = run_torch(scorer, np.concatenate([normal, with_defect(rng, bad)]))
    assert auroc(score[:40], score[40:]) > 0.9
    assert heat.shape == (80, 64, 64)
    assert clean.shape == (80, 64, 64, channels)


def test_images_that_are_all_the_same_can_be_fitted():
    x = np.full((16, 32, 32, 1), 77, np.uint8)
    scorer = kernel.fit(Shape(32, 32, 1), x, names(16), kernel.Options(threads=1))
    score = run_torch(
        scorer, np.concatenate([x[:2], np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)])
    )[0]
    assert np.isfinite(score).all()
    assert score[:2].max() < score[2:].min()


def test_few_images_of_fewer_groups_are_enough(capsys):
    x = objects(np.random.default_rng(0), 7, size=48)
    scorer = kernel.fit(Shape(48, 48, 1), x, np.array(list("aaabbbb")), kernel.Options(threads=1))
    assert "2 groups, fewer than 4 folds" in capsys.readouterr().err
    assert np.isfinite(run_torch(scorer, x)[0]).all()


def test_many_images_are_a_sample_and_that_is_said(capsys):
    assert len(terms.some_rows(names(1500), 0)) == terms.MOST
    assert "fitted to 1,000 of 1,500 rows" in capsys.readouterr().err


def test_best_without_registration_is_blind():
    rng, shape = np.random.default_rng(0), Shape(48, 48, 1)
    blind = Scorer(shape).eval()
    torch.nn.init.normal_(blind.net.out.weight, std=0.1)
    x = rng.integers(0, 256, (16, 48, 48, 1), np.uint8)
    scorer = best.add_closed_forms(blind, x, names(16), 0)
    scorer.sum.weights[1:] = [0.0] * 4
    for got, want in zip(run_torch(scorer, x), run_torch(blind, x), strict=True):
        assert np.allclose(got, want, rtol=1e-5)


def test_best_costs_at_most_half_as_much_again():
    shape = Shape(256, 256, 1)
    x = objects(np.random.default_rng(0), 16, size=256)
    blind = Scorer(shape).eval()
    scorer = best.add_closed_forms(blind, x, names(16), 0)
    assert scorer.facts()["gflop"] <= 1.5 * blind.facts()["gflop"]


# --- bundles -------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "channels"), [("kernel", 3), ("best", 1)])
def test_a_bundle_gives_the_daemons_scores_in_any_batch(recipe, channels, tmp_path, capsys):
    rng = np.random.default_rng(0)
    data = tmp_path / "images"
    data.mkdir()
    for i, image in enumerate(objects(rng, 24, size=48, channels=channels)):
        Image.fromarray(image.squeeze()).save(data / f"{i:02}.png")
    steps = ["--steps", "4", "--batch", "2"] if recipe == "best" else []
    out = tmp_path / "bundle"
    options = ["--data", str(data), "--size", "40x56", "--channels", str(channels), "--threads", "1", *steps]
    assert main(["images", *options, "--recipe", recipe, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "registration: " in printed
    assert "weights: " in printed
    manifest = json.loads((out / "manifest.json").read_text())
    scoring = manifest["scoring"]
    assert scoring["recipe"] == manifest["training"]["options"]["recipe"] == recipe
    assert 0 <= scoring["registration"] <= 1
    assert np.isclose(sum(term["weight"] for term in scoring["terms"]), 1, atol=0.01)
    assert (manifest["training"]["curves"] == []) == (recipe == "kernel")
    images, shape = sorted(data.iterdir())[:16], Shape(40, 56, channels)
    daemon = Bundle.load(out).score(images).anomaly_score  # loading checks the golden images
    x = np.concatenate([rows(load(path, channels), shape) for path in images])
    run, order = session((out / "model.onnx").read_bytes()), rng.permutation(32) % 16
    alone = run_onnx(run, x, 16)
    assert np.array_equal(daemon, alone[0])
    for one, among in zip(alone, run_onnx(run, x[order], 32), strict=True):
        assert np.array_equal(one[order], among)


def test_what_kernel_does_not_use_is_refused(tmp_path, capsys):
    options = ["images", "--data", str(tmp_path), "--out", str(tmp_path / "b"), "--recipe", "kernel"]
    assert main([*options, "--steps", "9"]) == 65
    assert "--steps has no effect with --recipe kernel, which trains nothing" in capsys.readouterr().err
