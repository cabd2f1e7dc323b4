"""Schemas as the trainer reads, guesses and writes them. The rules are tested in python/tests and in Rust."""

import json

import numpy as np
import pytest

from residuald_train import TrainerError
from residuald_train.cli import main
from residuald_train.tabular.data import read
from residuald_train.tabular.features import check_features, encode, infer_schema, load_schema

LABEL = {"path": "label", "normal": 0}


def test_infers_a_mixed_schema(history, capsys):
    features = infer_schema(read([history]), LABEL)
    found = {f.name: (f.path, f.type, f.missing) for f in features}
    assert found == {
        "time_hour_of_day": ("time", "timestamp", "reject"),
        "time_day_of_week": ("time", "timestamp", "reject"),
        "amount": ("amount", "number", "reject"),
        "count": ("count", "number", "reject"),
        "merchant_category": ("merchant.category", "categorical", "reject"),
        "present": ("present", "bool", "reject"),
        "twice": ("twice", "number", "impute"),
    }
    assert next(f for f in features if f.vocabulary).vocabulary == ("grocery", "fuel", "travel")
    said = capsys.readouterr().err
    assert all(f"schema: `{path}` " in said for path in ("id", "currency", "tags"))


def test_a_column_that_looks_like_an_id_is_kept_if_asked(history, tmp_path):
    data = ["--data", str(history), "--label", "label"]
    out = tmp_path / "schema.json"
    assert main(["schema", *data, "--keep", "id", "--out", str(out)]) == 0
    assert "id" in [f.path for f in load_schema(out)[0]]
    assert main(["schema", *data, "--keep", "colour"]) == 65


def test_rare_categories_are_unseen(tmp_path):
    values = ["common"] * 500 + [f"rare{i}" for i in range(150)]
    (tmp_path / "d.ndjson").write_text("".join(json.dumps({"c": v}) + "\n" for v in values))
    table = read([tmp_path / "d.ndjson"])
    features = infer_schema(table, None)
    assert len(features[0].vocabulary) == 100
    assert features[0].vocabulary[0] == "common"
    assert (encode(table, features)[0] == -1).sum() == 51


def test_a_field_that_no_record_has_is_said(history):
    features = check_features([{"name": "x", "path": "nowhere", "type": "number"}])
    with pytest.raises(TrainerError, match="`nowhere` of feature `x` is not in the data"):
        encode(read([history]), features)


def test_schema_round_trip(tmp_path, history):
    entries = [
        {
            "name": "m",
            "path": "m",
            "type": "number",
            "number_format": "decimal_comma",
            "missing": "reject",
            "unit": "EUR",
        },
        {"name": "t", "path": "t", "type": "timestamp", "part": "hour_of_day", "epoch_unit": "ns", "missing": "impute"},
        {"name": "b", "path": "b", "type": "bool", "true_values": ["Y"], "false_values": ["N"], "missing": "reject"},
    ]
    features = [*infer_schema(read([history]), LABEL), *check_features(entries)]
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"kind": "tabular", "features": [f.to_json() for f in features], "label": LABEL}))
    assert load_schema(path) == (features, LABEL)
    assert [f.to_json() for f in features[-3:]] == entries


def test_a_wrong_schema_names_file_and_fault(tmp_path):
    path = tmp_path / "schema.json"
    for features, fault in [
        ([{"name": "x", "path": "x", "type": "text"}], "feature `x`"),
        ([{"name": "x", "path": "x", "type": "number", "colour": 1}], "no key `colour`"),
        (7, "features"),
    ]:
        path.write_text(json.dumps({"kind": "tabular", "features": features}))
        with pytest.raises(TrainerError, match=f"schema.json: .*{fault}"):
            load_schema(path)


def test_npz_columns_are_named_by_number(tmp_path):
    np.savez(tmp_path / "d.npz", X=np.arange(12.0).reshape(6, 2), y=np.zeros(6))
    assert [f.name for f in infer_schema(read([tmp_path / "d.npz"]), {"path": "y", "normal": 0})] == ["x0", "x1"]
