"""Tests of preprocessing, the loss, and the scorer graph with its numerics."""

import numpy as np
import pytest
import torch

from residuald_train import TrainerError
from residuald_train.bench.metrics import auroc
from residuald_train.bundle.export import to_onnx
from residuald_train.bundle.parity import check_parity
from residuald_train.bundle.served import run_onnx, session
from residuald_train.preprocessing import Preprocessing, clock
from residuald_train.tabular.features import Feature
from residuald_train.tabular.scorer import run_torch
from residuald_train.tabular.train import Options, fit, split

FEATURES = [
    Feature("a", "a", "number"),
    Feature("kind", "kind", "categorical", "impute", vocabulary=("x", "y", "z")),
    Feature("hour", "t", "timestamp", part="hour_of_day"),
    Feature("flag", "flag", "bool"),
    Feature("b", "b", "number", "impute"),
    Feature("weekday", "t", "timestamp", part="day_of_week"),
]


def rows(n=400, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.lognormal(2, 1, n)
    kind = rng.choice([-1, 0, 1, 2], n, p=[0.02, 0.6, 0.28, 0.1])
    X = np.stack(
        [
            a,
            kind,
            rng.normal(14, 2, n) % 24,
            rng.random(n) < 0.3,
            2 * a + rng.normal(0, 0.1, n),
            rng.integers(0, 7, n),
        ],
        1,
    )
    X = X.astype(np.float32)
    X[rng.random(n) < 0.1, 4] = np.nan
    X[rng.random(n) < 0.1, 1] = np.nan
    return X


@pytest.fixture(scope="module")
def scorer():
    return fit(FEATURES, rows(), Options("blind", steps=1500, width=32))


def standard(v):
    return (v - np.nanmean(v)) / np.nanstd(v)


def test_space_equals_a_plain_numpy_one():
    X = rows()
    z, observed = (t.numpy() for t in Preprocessing(FEATURES, X)(torch.as_tensor(X)))
    plain = [standard(np.arcsinh(standard(X[:, j].astype(float)))) for j in (0, 3, 4)]
    angle = [X[:, j] * 2 * np.pi / period for j, period in ((2, 24), (5, 7))]
    blocks = [(np.sin(w), np.cos(w)) for w in angle]
    scale = [np.sqrt(s.var() + c.var()) for s, c in blocks]
    cyclic = [(part[i] - part[i].mean()) / k for i in (0, 1) for part, k in zip(blocks, scale, strict=True)]
    hot = np.stack([X[:, 1] == code for code in (0, 1, 2, -1)], 1)[~np.isnan(X[:, 1])]
    p = hot.mean(0)
    one_hot = np.zeros((len(X), 4))
    one_hot[~np.isnan(X[:, 1])] = (hot - p) / np.sqrt((p * (1 - p)).sum())
    want = np.column_stack([*plain, *cyclic, one_hot])
    np.testing.assert_allclose(z, np.nan_to_num(want), atol=2e-5)
    np.testing.assert_array_equal(observed, ~np.isnan(X))


def test_every_feature_has_unit_variance():
    X = rows(4000)
    space = Preprocessing(FEATURES, X)
    z, observed = space(torch.as_tensor(X))
    energy = (z * z @ space.sums).sum(0) / observed.sum(0)
    np.testing.assert_allclose(energy.numpy(), 1, rtol=1e-3)


def test_space_and_back():
    X = rows(50)
    space = Preprocessing(FEATURES, X)
    back = space.inverse(space(torch.as_tensor(X))[0], torch.full(X.shape, torch.nan)).numpy()
    known = ~np.isnan(X) & (X != -1)
    np.testing.assert_allclose(back[known], X[known], atol=1e-3)


def test_a_category_is_never_expected_in_its_own_place():
    X = rows(50)
    space = Preprocessing(FEATURES, X)
    back = space.inverse(space(torch.as_tensor(X))[0], torch.as_tensor(X)).numpy()
    for j, feature in enumerate(FEATURES):
        if feature.type == "categorical":
            assert (back[:, j] != X[:, j]).all()


@pytest.mark.parametrize(("part", "period"), [("hour_of_day", 24), ("day_of_week", 7)])
def test_clock(part, period):
    value = torch.arange(period).float()[:, None]
    angle = value * 2 * torch.pi / period
    np.testing.assert_allclose(
        clock(3 * angle.sin(), 3 * angle.cos(), torch.tensor([period]), torch.tensor([part == "day_of_week"])),
        value,
        atol=1e-4,
    )


def test_score_is_the_root_mean_square_residual(scorer):
    X = rows(60, 1)
    score, residual, _ = run_torch(scorer, X)
    assert (residual >= 0).all()
    assert (residual[np.isnan(X)] == 0).all()
    np.testing.assert_allclose(score, np.sqrt(residual.sum(1)), rtol=1e-6)
    with torch.no_grad():
        z, observed = scorer.space(torch.as_tensor(X))
        D, _ = scorer.terms[0].denoiser(z, 1 - observed[:, scorer.optional])
        np.testing.assert_allclose(
            score**2, ((z - D) ** 2 * observed[:, scorer.space.owner]).sum(1) / observed.sum(1), rtol=1e-5
        )


def test_graph_equals_torch_also_far_out(scorer):
    X = rows(500, 2)
    X[:40, 0] = np.geomspace(1e3, 3e38, 40)
    X[40:80, 4] = -np.geomspace(1e3, 3e38, 40)
    model = to_onnx(scorer)
    assert check_parity(scorer, model, X) < 1e-4
    for want, got in zip(run_torch(scorer, X)[1:], run_onnx(session(model), X)[1:], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_a_score_does_not_depend_on_its_batch(scorer):
    """Outputs are bit-identical in batches that are a multiple of 16, to which the daemon pads them."""
    run, X = session(to_onnx(scorer)), rows(512, 3)
    want = run.run(None, {"x": X})
    for batch in (16, 48, 64, 256):
        order = np.random.default_rng(batch).permutation(len(X) // batch * batch)
        for part in order.reshape(-1, batch):
            for got, reference in zip(run.run(None, {"x": X[part]}), want, strict=True):
                assert got.tobytes() == reference[part].tobytes()


def test_missing_values_are_filled_in(scorer):
    X = rows(300, 4)
    X = X[~np.isnan(X).any(1)]
    hidden = X.copy()
    hidden[:, 4] = np.nan
    guess = run_torch(scorer, hidden)[2][:, 4]
    assert np.corrcoef(np.log(guess.clip(0.1)), np.log(X[:, 4].clip(0.1)))[0, 1] > 0.8
    assert np.median(abs(guess - X[:, 4])) < 0.8 * np.median(abs(np.median(X[:, 4]) - X[:, 4]))


def test_broken_dependencies_score_higher(scorer):
    X = rows(400, 5)
    broken = X.copy()
    broken[:, 4] = X[::-1, 4]
    both = ~np.isnan(broken[:, 4])
    assert auroc(run_torch(scorer, X)[0], run_torch(scorer, broken[both])[0]) > 0.65


def test_nan_stops_the_training():
    with pytest.raises(TrainerError, match="the loss became nan at step"):
        fit(FEATURES, rows(), Options("blind", steps=300, width=32, lr=1e20))


def test_split_is_disjoint_and_whole():
    train, held_out = split(101, 0.2, 0)
    assert sorted([*train, *held_out]) == list(range(101))
    assert len(held_out) == 20
