"""Tables that can be drawn from: the space, the denoiser, the bundle's files, and the privacy gate."""

import io
import json

import numpy as np
import pytest
import torch

from residuald_train.bundle.served import session
from residuald_train.cli import main
from residuald_train.generative.curves import decimals
from residuald_train.generative.export import files
from residuald_train.generative.privacy import check_drawn, reference_rows, upper_tail
from residuald_train.generative.sample import draw
from residuald_train.generative.space import Space
from residuald_train.generative.train import Options, fit
from residuald_train.tabular.features import Feature

FEATURES = [
    Feature("amount", "amount", "number"),
    Feature("paid", "paid", "number", "impute"),
    Feature("count", "count", "number"),
    Feature("kind", "kind", "categorical", vocabulary=("a", "b", "c", "never")),
    Feature("device", "device", "categorical", "impute", vocabulary=("x", "y")),
    Feature("new", "new", "bool", "impute"),
    Feature("hour", "time", "timestamp", part="hour_of_day"),
    Feature("day", "time", "timestamp", part="day_of_week"),
    Feature("constant", "constant", "number"),
]
SMALL = Options(steps=900, batch=128, width=64, blocks=2, lr=3e-3, ema=0.99, check_every=100)


def table(n, seed=0):
    """Rows float32 [n, 9] of mixed types. `paid` is twice the amount, 0 for a quarter, and missing with the device."""
    rng = np.random.default_rng(seed)
    amount = np.round(rng.lognormal(3, 1.2, n), 2)
    device = rng.choice([0, 1, np.nan], n, p=[0.5, 0.3, 0.2])
    paid = np.where(rng.random(n) < 0.25, 0, np.round(2 * amount + rng.normal(size=n), 1))
    columns = [
        amount,
        np.where(np.isnan(device), np.nan, paid),
        rng.poisson(2, n),
        rng.choice(3, n, p=[0.6, 0.38, 0.02]),
        device,
        np.where(rng.random(n) < 0.1, np.nan, rng.random(n) < 0.3),
        rng.beta(4, 3, n) * 24,
        rng.integers(7, size=n),
        np.full(n, 7.0),
    ]
    return np.stack(columns, 1).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return table(3000)


@pytest.fixture(scope="module")
def trained(rows):
    space, denoiser, _ = fit(FEATURES, rows[:2000], SMALL, quiet=True)
    return space, denoiser


def test_a_row_comes_back(rows):
    space, x = Space(FEATURES, rows), torch.as_tensor(rows)
    sample = space.encode(x)
    assert sample.std(0).max() < 1.5
    back = space.decode(sample)
    assert torch.equal(torch.isnan(back), torch.isnan(x))
    discrete = [j for j, f in enumerate(FEATURES) if f.name not in ("amount", "paid", "hour")]
    assert torch.equal(torch.nan_to_num(back[:, discrete]), torch.nan_to_num(x[:, discrete]))
    assert (back[:, 1] == 0).sum() == (x[:, 1] == 0).sum()  # the atom
    lost = torch.nan_to_num((back - x).abs() / (x.abs() + 1))
    assert lost.max() < 0.02
    assert lost.mean() < 1e-3


def test_what_is_decoded_is_within_the_data(rows):
    space = Space(FEATURES, rows)
    g = torch.Generator().manual_seed(0)
    x = space.decode(4 * torch.randn(2000, space.dims, generator=g)).numpy()
    for j in range(len(FEATURES)):
        present = x[~np.isnan(x[:, j]), j]
        assert present.min() >= np.nanmin(rows[:, j])
        assert present.max() <= np.nanmax(rows[:, j])
        assert np.isnan(x[:, j]).any() == (FEATURES[j].missing == "impute")
    assert decimals(x[:, 0]) <= 2
    assert decimals(x[~np.isnan(x[:, 1]), 1]) <= 1
    assert set(np.unique(x[:, 3])) == {0, 1, 2}  # `never` did not occur


def test_unknown_features_and_categories_are_zero(rows):
    space = Space(FEATURES, rows)
    x, known = torch.as_tensor(rows[:50].copy()), torch.zeros(50, len(FEATURES))
    known[:, 0] = known[:, 3] = 1
    x[0, 3], x[1, 3] = -1, 3
    sample, mask = space(x, known)
    assert mask.sum(0).tolist() == (space.owner[[0, 3]].sum(0) * 50).tolist()
    assert not sample[:, mask[0] == 0].any()
    of_kind = space.owner[3] > 0
    assert not sample[:2, of_kind].any()
    assert sample[2, of_kind].any()


def test_a_row_has_the_same_bits_in_any_batch(trained, rows):
    space, denoiser = trained
    content, _ = files(space, denoiser, rows[:2000], rows[2000:])
    known = np.ones_like(rows[:64])
    encode, decode = session(content["encode.onnx"]), session(content["decode.onnx"])
    sample = encode.run(["sample"], {"x": rows[:64], "known": known})[0]
    decoded = decode.run(None, {"sample": sample})[0]
    for batch in (16, 32):
        part = {"x": rows[16 : 16 + batch], "known": known[:batch]}
        again = encode.run(["sample"], part)[0]
        assert np.array_equal(again, sample[16 : 16 + batch])
        assert np.array_equal(decode.run(None, {"sample": again})[0], decoded[16 : 16 + batch], equal_nan=True)


def test_graphs_give_the_golden_values(trained, rows):
    space, denoiser = trained
    content, error = files(space, denoiser, rows[:2000], rows[2000:])
    assert error < 1e-4
    about = json.loads(content["generative.json"])
    assert about["reference"]["rows"] == 1000
    reference = np.load(io.BytesIO(content["reference.npy"]))
    assert reference.shape == (2000, len(FEATURES))
    assert reference.dtype == np.float32
    marginals = about["marginals"]
    assert [m.get("decimals") for m in marginals[:3]] == [2, 1, 0]
    assert marginals[3]["shares"][3] == 0
    assert sum(marginals[5]["shares"]) == pytest.approx(1)
    assert marginals[4]["missing"] == pytest.approx(np.isnan(rows[:2000, 4]).mean())
    for golden in about["golden"]:
        noisy = np.array([golden["noisy"]], np.float32)
        inputs = {"sample": noisy, "timestep": np.array([golden["timestep"]])}
        out = session(content["denoiser.onnx"]).run(None, inputs | {"mask": np.array([golden["mask"]], np.float32)})[0]
        assert np.allclose(out[0], golden["out_sample"], atol=1e-4)
        decoded = session(content["decode.onnx"]).run(None, {"sample": noisy})[0]
        assert np.allclose(decoded[0], np.array(golden["decoded"], float), rtol=1e-4, atol=1e-4, equal_nan=True)


def test_drawn_rows_resemble_the_data(trained, rows):
    space, denoiser = trained
    drawn = draw(space, denoiser, 2000, seed=1, steps=20)
    real = rows[2000:]
    assert abs(np.isnan(drawn[:, 4]).mean() - 0.2) < 0.05
    assert abs((drawn[:, 1] == 0).mean() - (real[:, 1] == 0).mean()) < 0.06
    assert abs((drawn[:, 3] == 0).mean() - 0.6) < 0.1
    there = ~np.isnan(drawn[:, 1])
    assert (~there == np.isnan(drawn[:, 4])).mean() > 0.9  # both are missing together
    paid = there & (drawn[:, 1] > 0)
    assert np.corrcoef(np.log(drawn[paid, 0]), np.log(drawn[paid, 1]))[0, 1] > 0.8
    assert np.array_equal(drawn, draw(space, denoiser, 2000, seed=1, steps=20), equal_nan=True)


def test_known_features_are_held_and_matter(trained, rows):
    space, denoiser = trained
    x, known = rows[2000:2400].copy(), np.zeros((400, len(FEATURES)), np.float32)
    x[:, 0], x[:, 4] = 200.0, np.nan
    known[:, [0, 4]] = 1
    drawn = draw(space, denoiser, 400, steps=20, x=x, known=known)
    assert np.allclose(drawn[:, 0], 200, rtol=0.01)
    assert np.isnan(drawn[:, 4]).all()
    assert np.isnan(drawn[:, 1]).mean() > 0.8  # 0.2 without the known device
    x[:, 4] = 0
    drawn = draw(space, denoiser, 400, steps=20, x=x, known=known)
    assert not np.isnan(drawn[:, 4]).any()
    assert np.nanmedian(drawn[drawn[:, 1] > 0, 1]) > 200


def test_gate_catches_copies_and_passes_held_out_rows():
    every = table(8000)
    train, held_out, fresh = every[:4000], every[4000:6000], every[6000:]
    space, reference = Space(FEATURES, train), reference_rows(train, held_out)
    assert check_drawn(space, fresh, reference)["passed"]
    rng = np.random.default_rng(0)
    for share in (0.1, 1):
        copied, drawn = rng.random(len(fresh)) < share, fresh.copy()
        drawn[copied] = train[rng.integers(len(train), size=copied.sum())]
        drawn[:, 0] = np.maximum(0.01, np.round(drawn[:, 0] * (1 + 0.01 * rng.normal(size=len(drawn))), 2))
        result = check_drawn(space, drawn, reference)
        assert not result["passed"], result


def test_upper_tail():
    assert upper_tail(10, 0) == pytest.approx(1)
    assert upper_tail(3, 3) == pytest.approx(1 / 8)
    assert upper_tail(10, 8) == pytest.approx(56 / 1024)
    assert upper_tail(0, 0) == 1


@pytest.mark.parametrize("kinds", [["number"], ["bool", "categorical"]])
def test_tables_of_one_kind(kinds):
    rng = np.random.default_rng(0)
    features = [Feature(f"x{k}", f"x{k}", kind, vocabulary=("a", "b", "c")) for k, kind in enumerate(kinds)]
    X = np.stack([rng.normal(size=300) if kind == "number" else rng.integers(2, size=300) for kind in kinds], 1)
    space, denoiser, _ = fit(features, X.astype(np.float32), Options(steps=20, batch=32, width=16), quiet=True)
    files(space, denoiser, X[:200].astype(np.float32), X[200:].astype(np.float32))
    assert draw(space, denoiser, 5, steps=5).shape == (5, len(kinds))


def test_verb_adds_the_files_to_the_bundle(history, tmp_path, capsys):
    out = tmp_path / "bundle"
    command = ["tabular", "--data", str(history), "--label", "label", "--recipe", "blind", "--steps", "20"]
    assert main([*command, "--generative", "--generative-steps", "30", "--out", str(out)]) == 0
    listed = json.loads((out / "manifest.json").read_text())
    names = {"scheduler_config.json", "denoiser.onnx", "encode.onnx", "decode.onnx", "reference.npy", "generative.json"}
    assert names <= listed["files"].keys()
    assert listed["training"]["generative"]["steps"] == 30
    assert "generative:" in capsys.readouterr().out
