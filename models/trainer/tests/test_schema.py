"""Tests of schema inference and of the supported file formats."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from residuald_train import TrainerError
from residuald_train.tabular.data import read
from residuald_train.tabular.features import check_feature, encode, load_schema
from residuald_train.tabular.schema_inference import infer_features


def test_infers_a_mixed_schema(history):
    features, messages = infer_features(read([history]), {"label"})
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
    text = "\n".join(messages)
    assert "`id` looks like an id" in text
    assert "`currency` is constant" in text
    assert any("`tags` holds arrays" in m for m in read([history]).messages)


def test_reads_the_same_from_every_format(tmp_path):
    rows = {
        "a": [1.5, None, 3.25] * 9,
        "kind": ["x", "y", None] * 9,
        "n": [1, 2, 3] * 9,
        "when": ["2026-01-02T03:04:05Z"] * 27,
    }
    csv = "a,kind,n,when\n" + "".join(
        ",".join("" if v is None else str(v) for v in row) + "\n" for row in zip(*rows.values(), strict=True)
    )
    (tmp_path / "d.csv").write_text(csv)
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(csv.encode()))
    pa.parquet.write_table(pa.table(rows), tmp_path / "d.parquet")
    lines = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    (tmp_path / "d.ndjson").write_text("".join(json.dumps(r) + "\n" for r in lines))
    first = None
    for name in ("d.csv", "d.csv.gz", "d.parquet", "d.ndjson"):
        table = read([tmp_path / name])
        X = encode(table, infer_features(table)[0])[0]
        first = X if first is None else first
        np.testing.assert_array_equal(X, first)
        assert table.record(1) == {"kind": "y", "n": 2, "when": "2026-01-02T03:04:05Z"}


def test_nested_parquet_becomes_dotted_paths(tmp_path):
    nested = [{"category": c, "age": i} for i, c in enumerate("ababab")]
    pa.parquet.write_table(pa.table({"merchant": nested}), tmp_path / "d.parquet")
    table = read([tmp_path / "d.parquet"])
    assert set(table.columns) == {"merchant.category", "merchant.age"}
    assert table.record(2) == {"merchant": {"category": "a", "age": 2}}


def test_npz_columns_are_named_by_number(tmp_path):
    np.savez(tmp_path / "d.npz", X=np.arange(12.0).reshape(6, 2), y=np.zeros(6))
    assert list(read([tmp_path / "d.npz"]).columns) == ["x0", "x1", "y"]


def test_rare_categories_are_unseen(tmp_path):
    values = ["common"] * 500 + [f"rare{i}" for i in range(150)]
    (tmp_path / "d.ndjson").write_text("".join(json.dumps({"c": v}) + "\n" for v in values))
    table = read([tmp_path / "d.ndjson"])
    features = infer_features(table)[0]
    assert len(features[0].vocabulary) == 100
    assert features[0].vocabulary[0] == "common"
    assert (encode(table, features)[0] == -1).sum() == 51


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a.b": 1}\n', "rename the column"),
        ('{"a": {"b.c": 1}}\n', "rename the column"),
        ("", "has no rows"),
        ("[1]\n" * 20, "not a JSON object"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, content, message):
    (tmp_path / "d.ndjson").write_text(content)
    with pytest.raises(TrainerError, match=message) as error:
        read([tmp_path / "d.ndjson"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "text"}, "`type` must be one of"),
        ({"colour": 1}, "unknown key `colour`"),
        ({"type": "categorical"}, "`vocabulary`"),
        ({"type": "timestamp"}, "`part`"),
        ({"missing": "drop"}, "`missing`"),
        ({"path": "a..b"}, "`path`"),
    ],
)
def test_a_wrong_schema_names_feature_and_fault(change, message):
    with pytest.raises(TrainerError, match=f"feature `x`: .*{message}"):
        check_feature({"name": "x", "path": "x", "type": "number", **change})


def test_schema_round_trip(tmp_path, history):
    features, _ = infer_features(read([history]), {"label"})
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"kind": "tabular", "features": [f.to_json() for f in features]}))
    assert load_schema(path) == (features, None)
