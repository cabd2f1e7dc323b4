"""How features become a foreign model's columns: categories as text, one-hot or ordinal, missing values, another order.

Scores of the daemon must equal those of the fitted pipeline on the same records, also for categories that it has never
seen and for missing values.
"""

import json

import numpy as np
import pytest
import torch
from conftest import SCHEMA, normals, write_ndjson
from test_tables import export
from torch import nn

import residuald_train
from residuald_train import TrainerError

VOCABULARY = ["travel", "fuel", "grocery"]  # not in alphabetic order, which scikit-learn's encoders use
MIXED = [
    {"name": "amount", "path": "amount", "type": "number"},
    {"name": "category", "path": "merchant.category", "type": "categorical", "vocabulary": VOCABULARY},
    {"name": "abroad", "path": "abroad", "type": "bool"},
    {"name": "hours", "path": "hours", "type": "number", "missing": "impute"},
]


def payments(count, seed):
    """Rows (amount, category, abroad, hours); hours is None in a tenth of them."""
    rng = np.random.default_rng(seed)
    category = rng.choice(VOCABULARY, count, p=[0.1, 0.3, 0.6])
    amount = rng.lognormal(np.where(category == "travel", 6, 3), 0.5).astype(np.float32)
    hours = np.where(rng.random(count) < 0.1, np.nan, rng.normal(10, 2, count)).astype(np.float32)
    return [
        (float(a), str(c), bool(b), None if np.isnan(h) else float(h))
        for a, c, b, h in zip(amount, category, rng.random(count) < 0.2, hours, strict=True)
    ]


def write(path, rows):
    def record(a, c, b, h):
        return {"amount": a, "merchant": {"category": c}, "abroad": b} | ({} if h is None else {"hours": h})

    path.write_text("".join(json.dumps(record(*row)) + "\n" for row in rows))
    return path


UNUSUAL = [(9e4, "fuel", True, 1.0), (20.0, "casino", False, 10.0), (20.0, "grocery", True, None)]


def scores(verdicts):
    return np.array([verdict["anomaly_score"] for verdict in verdicts])


def test_a_pipeline_on_named_columns_encodes_its_own_categories(tmp_path, check, judge):
    """One input for each column. Text stays text, so the pipeline's encoders see what they saw in training."""
    pandas = pytest.importorskip("pandas")
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import IsolationForest
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    def frame(rows):
        out = pandas.DataFrame(rows, columns=["amount", "category", "abroad", "hours"])
        return out.astype({"abroad": float, "hours": float})

    encode = ColumnTransformer(
        [
            ("category", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["category"]),
            ("numbers", SimpleImputer(), ["amount", "abroad", "hours"]),
        ]
    )
    model = make_pipeline(encode, IsolationForest(n_estimators=20, random_state=0)).fit(frame(payments(2000, 0)))
    normal, rows = write(tmp_path / "normal.ndjson", payments(3000, 1)), payments(1000, 2) + UNUSUAL
    residuald_train.from_sklearn(model, MIXED, [normal], tmp_path / "bundle", missing="model")
    check(tmp_path / "bundle")
    report, verdicts = judge(tmp_path / "bundle", write(tmp_path / "rows.ndjson", rows))
    assert report["scored"] == len(rows)
    np.testing.assert_allclose(scores(verdicts), -model.score_samples(frame(rows)), rtol=1e-5)


def test_columns_are_those_that_the_estimator_was_fitted_on(tmp_path, check, judge):
    """Fitted on a DataFrame with some of the columns, in another order; calibrated on a DataFrame."""
    pandas = pytest.importorskip("pandas")
    from sklearn.ensemble import IsolationForest

    used = ["s4", "s0", "s2"]

    def frame(count, seed):
        return pandas.DataFrame(normals(count, seed), columns=[feature["name"] for feature in SCHEMA])

    model = IsolationForest(n_estimators=20, random_state=0).fit(frame(1000, 0)[used])
    residuald_train.from_sklearn(model, SCHEMA, frame(1000, 1), tmp_path / "bundle")
    check(tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert [feature["name"] for feature in manifest["input"]["features"]] == used
    _, verdicts = judge(tmp_path / "bundle", write_ndjson(tmp_path / "rows.ndjson", normals(500, 2)))
    np.testing.assert_allclose(scores(verdicts), -model.score_samples(frame(500, 2)[used]), rtol=1e-5)


@pytest.mark.parametrize("encoding", ["onehot", "ordinal"])
def test_codes_follow_the_models_order_of_categories(encoding, tmp_path, check, judge):
    """The encoder sorted its categories; the schema has another order. `columns` says the model's."""
    from sklearn.mixture import GaussianMixture
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

    rows, more = payments(3000, 0), payments(500, 2) + UNUSUAL
    chosen = {"onehot": OneHotEncoder(handle_unknown="ignore", sparse_output=False)}
    chosen["ordinal"] = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=7)
    encoder = chosen[encoding].fit([[row[1]] for row in rows])

    def matrix(rows):
        codes = encoder.transform([[row[1]] for row in rows])
        return np.concatenate([codes, [[row[0] / 100, row[2]] for row in rows]], 1).astype(np.float32)

    model = GaussianMixture(3, random_state=0, reg_covar=1e-3).fit(matrix(rows))
    from skl2onnx import to_onnx

    content = to_onnx(model, matrix(rows[:1]), options={id(model): {"score_samples": True}}, target_opset=20)
    category = {"feature": "category", "encoding": encoding, "values": list(encoder.categories_[0])}
    columns = [category | ({"unseen": 7} if encoding == "ordinal" else {})]
    columns += [{"feature": "amount", "scale": 100}, "abroad"]
    normal = write(tmp_path / "normal.ndjson", payments(3000, 1))
    residuald_train.wrap(content.SerializeToString(), [normal], tmp_path / "bundle", MIXED, columns=columns)
    check(tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert [feature["name"] for feature in manifest["input"]["features"]] == ["category", "amount", "abroad"]
    _, verdicts = judge(tmp_path / "bundle", write(tmp_path / "rows.ndjson", more))
    want = np.maximum(-model.score_samples(matrix(more)) - manifest["scoring"]["lowest"], 0)
    np.testing.assert_allclose(scores(verdicts), want, rtol=1e-5, atol=1e-5 * np.median(want))


def test_an_encoding_is_never_guessed(tmp_path):
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4))
    export(model, (torch.zeros(3, 4),), ["x"], ["y"], tmp_path / "model.onnx")
    normal = write(tmp_path / "normal.ndjson", payments(300, 1))
    with pytest.raises(TrainerError, match=r"`category` is categorical.*category:onehot.*travel, fuel.*ordinal"):
        residuald_train.wrap(tmp_path / "model.onnx", [normal], tmp_path / "bundle", MIXED)


def test_a_reconstructed_category_is_one_of_the_vocabulary(tmp_path, check, judge):
    """An autoencoder of one-hot columns that always answers `grocery` and an amount of 30."""

    class Always(nn.Module):
        def forward(self, x):
            return x * 0 + torch.tensor([30.0, 0, 1, 0])

    export(Always(), (torch.zeros(3, 4),), ["x"], ["y"], tmp_path / "model.onnx")
    order = ["fuel", "grocery", "travel"]
    columns = ["amount", {"feature": "category", "encoding": "onehot", "values": order}]
    normal = write(tmp_path / "normal.ndjson", payments(300, 1))
    residuald_train.wrap(tmp_path / "model.onnx", [normal], tmp_path / "bundle", MIXED, columns=columns)
    check(tmp_path / "bundle")
    rows = [(30.0, "travel", False, 1.0), (32.0, "grocery", False, 1.0), (30.0, "casino", False, 1.0)]
    _, verdicts = judge(tmp_path / "bundle", write(tmp_path / "rows.ndjson", rows))
    np.testing.assert_allclose(scores(verdicts), [2 / 4, 4 / 4, 1 / 4], rtol=1e-6)
    first = verdicts[0]["relevant_attribution"][0]
    assert (first["feature"], first["observed"], first["expected"]) == ("category", "travel", "grocery")


def test_a_missing_value_counts_as_typical_and_is_no_reason(tmp_path, check, judge):
    from sklearn.ensemble import IsolationForest

    schema = [SCHEMA[0], SCHEMA[1] | {"missing": "impute"}, *SCHEMA[2:]]
    calibrate = normals(2000, 1)
    model = IsolationForest(n_estimators=20, random_state=0).fit(normals(1000, 0))
    residuald_train.from_sklearn(model, schema, calibrate, tmp_path / "bundle")
    check(tmp_path / "bundle")
    row = normals(1, 5)[0].tolist()
    record = {f"s{j}": value for j, value in enumerate(row) if j != 1}
    (tmp_path / "one.ndjson").write_text(json.dumps(record) + "\n")
    _, (verdict,) = judge(tmp_path / "bundle", tmp_path / "one.ndjson")
    row[1] = float(np.median(calibrate[:, 1]))
    assert verdict["anomaly_score"] == pytest.approx(-model.score_samples(np.float32([row]))[0], rel=1e-5)
    assert verdict["feature_imputed"] == ["s1"]
    assert "s1" not in [reason["feature"] for reason in verdict["relevant_attribution"]]
