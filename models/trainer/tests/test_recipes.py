"""Tests of every recipe: the graph agrees with torch, a score depends only on its record, and reasons add up to it."""

import numpy as np
import pytest
import torch
from test_model import FEATURES, rows

from residuald_train.bench.metrics import auroc
from residuald_train.bundle.export import to_onnx
from residuald_train.bundle.parity import MARGIN, allowed_error, check_parity, rounding_sensitivity
from residuald_train.bundle.served import run_onnx, session
from residuald_train.tabular.coreset import Kernel, coreset
from residuald_train.tabular.features import Feature
from residuald_train.tabular.ranks import Ranks
from residuald_train.tabular.recipes import RECIPES
from residuald_train.tabular.scorer import run_torch
from residuald_train.tabular.train import Options, fit


@pytest.fixture(scope="module", params=RECIPES)
def fitted(request):
    scorer = fit(FEATURES, rows(), Options(request.param, steps=200, width=32, coreset=100), quiet=True)
    return scorer, to_onnx(scorer)


def fresh(seed=2, n=512):
    X = rows(n, seed)
    X[:40, 0] = np.geomspace(1e3, 3e38, 40)
    X[40:80, 4] = -np.geomspace(1e3, 3e38, 40)
    return X


def test_graph_equals_torch_also_far_out(fitted):
    scorer, model = fitted
    X = fresh()
    check_parity(scorer, model, X)
    for want, got in zip(run_torch(scorer, X), run_onnx(session(model), X), strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got[80:], want[80:], rtol=2e-3, atol=1e-3)


def assert_independent_of_batch(run, X):
    """Checks that a row's outputs have the same bits in any batch and position -> the outputs of X."""
    want = run.run(None, {"x": X})
    for batch in (16, 64, 256):
        order = np.random.default_rng(batch).permutation(len(X)).reshape(-1, batch)
        for part in order:
            for got, reference in zip(run.run(None, {"x": X[part]}), want, strict=True):
                assert got.tobytes() == reference[part].tobytes()
    return want


def test_a_score_does_not_depend_on_its_batch(fitted):
    run, X = session(fitted[1]), fresh(3)
    want = assert_independent_of_batch(run, X)
    for batch in (1, 3, 7):  # ONNX Runtime uses other kernels here, so the bits may differ
        np.testing.assert_allclose(run_onnx(run, X[:63], batch)[0], want[0][:63], rtol=1e-5, atol=1e-6)


def test_residuals_add_up_to_the_score(fitted):
    score, residual, _ = run_torch(fitted[0], fresh(4))
    assert (residual >= 0).all()
    np.testing.assert_allclose(residual.sum(1), score.astype(float) ** 2, rtol=1e-4)
    assert (residual[np.isnan(fresh(4))] == 0).all()


def test_constants_are_those_of_normal_rows(fitted):
    scorer, _ = fitted
    assert abs(float(scorer.exponent.sum()) - 1) < 1e-6
    if not scorer.plain:
        score = run_torch(scorer, rows(2000, 5))[0]
        assert 0.5 < np.exp(np.log(score).mean()) < 2


def test_a_broken_value_scores_higher_and_is_the_reason(fitted):
    scorer, _ = fitted
    X = rows(400, 6)
    X = X[~np.isnan(X).any(1)]
    broken = X.copy()
    broken[:, 4] = 2000
    score, residual, _ = run_torch(scorer, broken)
    assert auroc(run_torch(scorer, X)[0], score) > 0.95
    if scorer.recipe != "ddim":
        assert (residual.argmax(1) == 4).mean() > 0.75  # the nearest center may be one with another value of `a` too


def points(n=300, d=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=g) @ torch.randn(2, d, generator=g)


def test_kernel_is_the_posterior_mean():
    Z, x = points(), points(20, seed=1)
    kernel = Kernel(Z, torch.zeros(4, 0), size=1000)
    weight = torch.exp(-torch.cdist(x.double(), Z.double()).square() / (2 * kernel.variance))
    want = weight @ Z.double() / weight.sum(1, keepdim=True)
    np.testing.assert_allclose(kernel(x, torch.zeros(20, 0))[0], want, atol=1e-4)


def test_kernel_fills_in_what_is_hidden():
    Z, x = points(), points(20, seed=0)[:20]
    sums = torch.zeros(4, 1)
    sums[3] = 1
    kernel = Kernel(Z, sums, size=1000)
    z = x.clone()
    z[:, 3] = 0
    want = torch.softmax(-torch.cdist(x[:, :3], Z[:, :3]).square() / (2 * kernel.variance), 1) @ Z
    np.testing.assert_allclose(kernel(z, torch.ones(20, 1))[0], want, atol=1e-3)


def test_leaving_a_row_out_is_fitting_without_it():
    Z = points()
    kernel = Kernel(Z, torch.zeros(4, 0), size=50)
    assert kernel.counts.sum() == len(Z)
    rows_ = torch.arange(30)
    got, free = kernel.without(rows_, Z[rows_], torch.zeros(30, 0), torch.ones(30, 4))
    for i in rows_.tolist():
        counts, owner = kernel.counts.clone(), kernel.owner[i]
        centers = kernel.centers.clone()
        counts[owner] -= 1
        if counts[owner]:
            centers[owner] = (centers[owner] * kernel.counts[owner] - Z[i]) / counts[owner]
        logits = counts.log() - (Z[i] - centers).square().sum(1) / (2 * kernel.variance)
        np.testing.assert_allclose(got[i], torch.softmax(logits, 0) @ centers, atol=2e-3)
        want = -2 * kernel.variance * (torch.logsumexp(logits, 0) - counts.sum().log())
        np.testing.assert_allclose(free[i, 0], want, atol=1e-3)


def test_coreset_counts_every_row():
    Z = points(500)
    centers, counts, owner = coreset(Z, 40, 0)
    assert counts.sum() == 500
    np.testing.assert_allclose(centers[7], Z[owner == 7].mean(0), atol=1e-5)
    assert torch.equal(coreset(Z, 40, 0)[0], centers)
    assert len(coreset(Z, 500, 0)[0]) == 500


def test_duplicates_and_constants():
    X = np.repeat(rows(40), 10, 0)
    X[:, 0] = 5
    scorer = fit(FEATURES, X, Options("best", steps=30, width=32, coreset=100), quiet=True)
    model = to_onnx(scorer)
    check_parity(scorer, model, np.concatenate([X, fresh()]))
    assert np.isfinite(run_onnx(session(model), fresh())[0]).all()


def test_a_score_between_centers_depends_on_rounding():
    """Two distant clusters: for a record between them, rounding decides to which it belongs."""
    heap = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32) / 300
    X = np.concatenate([heap + 3, heap + 5])
    scorer = fit([Feature(f"x{j}", f"x{j}", "number") for j in range(2)], X, Options("kernel", coreset=2), quiet=True)
    centers = scorer.kernel.centers
    z = torch.lerp(centers[0], centers[1], torch.linspace(0, 1, 100_001)[:, None])
    shares = scorer.kernel.shares(scorer.kernel.logits(z, z[:, :0]))[0][:, 0]
    between = z[(shares - 0.5).abs().argmin()][None]
    rows = np.concatenate([X, scorer.space.inverse(between, between).numpy()])
    moved, limit = rounding_sensitivity(scorer, rows), allowed_error(scorer, run_torch(scorer, rows)[0])
    assert (MARGIN * moved[:-1] <= limit[:-1]).all()
    assert MARGIN * moved[-1] > 10 * limit[-1]
    check_parity(scorer, to_onnx(scorer), rows)


def test_free_energy_is_the_negative_log_density():
    Z, x = points(), points(20, seed=1)
    kernel = Kernel(Z, torch.zeros(4, 0), size=1000)
    density = torch.exp(-torch.cdist(x.double(), Z.double()).square() / (2 * kernel.variance)).mean(1)
    free = kernel(x, torch.zeros(20, 0))[1][:, 0]
    np.testing.assert_allclose(free, -2 * kernel.variance * density.log(), atol=1e-4)
    assert (kernel(Z, torch.zeros(len(Z), 0))[1] >= 0).all()


def test_the_expected_value_lowers_the_free_energy_by_its_squared_residual():
    Z, x = points(), 3 * points(50, seed=1)
    kernel, none = Kernel(Z, torch.zeros(4, 0), size=100), torch.zeros(50, 0)
    mean, free = kernel(x, none)
    for j in range(4):
        moved = x.clone()
        moved[:, j] = mean[:, j]
        fell = (free - kernel(moved, none)[1])[:, 0]
        assert (fell >= (x - mean)[:, j].square() * (1 - 1e-4) - 1e-4).all()


def test_ranks_are_normal_scores_and_can_be_undone():
    g = torch.Generator().manual_seed(0)
    Z = torch.randn(4000, 3, generator=g)
    Z[:, 0] = Z[:, 0].exp()
    Z[:, 0] = (Z[:, 0] - Z[:, 0].mean()) / Z[:, 0].std()
    Z[:, 2] = (Z[:, 2] > 1).float()
    ranks = Ranks(Z, [0, 1])
    r = ranks(Z)
    np.testing.assert_allclose(r[:, :2].std(0), 1, atol=0.02)
    assert torch.equal(r[:, 2], Z[:, 2])
    np.testing.assert_allclose(np.quantile(r[:, 0], (0.1, 0.5, 0.9)), (-1.28, 0, 1.28), atol=0.1)
    far = torch.cat([Z, torch.tensor([[-20.0, 25, 3], [30, -30, 0]])])
    np.testing.assert_allclose(ranks.inverse(ranks(far)), far, rtol=1e-4, atol=1e-4)
    order = far[:, 0].argsort()
    assert (ranks(far)[order, 0].diff() >= 0).all()
    assert ranks(far)[-1, 0] > 20  # as far as before


def test_ranks_of_few_values_and_of_none():
    Z = torch.tensor([[0.0, 5], [0, 5], [1, 5], [4, 5]])
    ranks = Ranks(Z, [0, 1], torch.tensor([[1.0, 0]] * 4))
    assert (ranks(Z)[:, 0].unique().diff() > 0.1).all()
    assert torch.isfinite(ranks(Z)).all()
    np.testing.assert_allclose(ranks.inverse(ranks(Z))[:, 0], Z[:, 0], atol=1e-5)
    assert torch.equal(Ranks(Z, [])(Z), Z)


def test_what_is_oddly_small_in_a_skewed_value_is_found():
    """A value at the low end of a wide lognormal column is near all others in standard deviations, but not in ranks."""
    rng = np.random.default_rng(0)
    X = np.exp(2 * rng.normal(size=(3000, 2))).astype(np.float32)
    odd = np.exp(2 * rng.normal(size=(200, 2))).astype(np.float32)
    odd[:, 0] = np.exp(2 * -3.5)
    features = [Feature(f"x{j}", f"x{j}", "number") for j in range(2)]
    found = {}
    for recipe in ("kernel", "best"):
        scorer = fit(features, X[:2000], Options(recipe, steps=50, width=16), quiet=True)
        score, residual, expected = run_torch(scorer, odd)
        found[recipe] = auroc(run_torch(scorer, X[2000:])[0], score)
    assert found["best"] > 0.75
    assert found["best"] > found["kernel"] + 0.1
    mended, top = odd.copy(), residual.argmax(1)
    mended[np.arange(len(odd)), top] = expected[np.arange(len(odd)), top]
    assert (run_torch(scorer, mended)[0] < score).mean() > 0.9
