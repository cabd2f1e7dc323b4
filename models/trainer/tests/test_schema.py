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


def test_a_table_says_what_becomes_of_each_column(history, tmp_path, capsys):
    out = tmp_path / "schema.json"
    assert main(["schema", "--data", str(history), "--label", "label", "--drop", "count", "--out", str(out)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().err.splitlines() if line}
    assert "left out" in lines["id"]
    assert "looks like an id" in lines["id"]
    assert "left out" in lines["currency"]
    assert "constant" in lines["currency"]
    assert "number" in lines["amount"]
    assert "such as" in lines["amount"]
    assert "category, 3 values" in lines["merchant.category"]
    assert "time: hour of day, day of week" in lines["time"]
    assert "missing)" in lines["twice"]
    assert "label" in lines["label"]
    assert "--drop" in lines["count"]


@pytest.mark.parametrize("leak", ["number", "category"])
def test_a_column_that_gives_the_label_away_is_said(leak, tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):
        fraud = i % 8 == 0
        number = 100 + rng.normal() if fraud else rng.normal()
        category = "blocked" if fraud and i % 16 else ("paid", "open")[i % 2]
        status = {"number": number, "category": "blocked" if fraud else ("paid", "open")[i // 2 % 2]}[leak]
        rows.append({"status": status, "amount": rng.normal(), "kind": category, "fraud": int(fraud)})
    data = tmp_path / "d.ndjson"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = []
    for verb in ("schema", "tabular"):
        arguments = [verb, "--data", str(data), "--label", "fraud", "--out", str(tmp_path / verb)]
        assert main([*arguments, *(["--dry-run"] if verb == "tabular" else [])]) == 0
        said.append(capsys.readouterr().err)
    for text in said:
        assert "`status` alone tells anomalies from normal rows (AUROC 1.000)" in text
        assert "--drop status" in text
        assert "`amount` alone" not in text


def test_a_dry_run_counts_what_the_schema_refuses(tmp_path, capsys):
    data, schema = tmp_path / "d.ndjson", tmp_path / "schema.json"
    rows = [{"a": i % 7, "b": "x"} for i in range(60)] + [{"a": "much"}] * 3 + [{"b": 1}] * 2
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["tabular", "--data", str(data), "--schema", str(schema), "--out", str(tmp_path / "out"), "--dry-run"]
    schema.write_text(json.dumps({"kind": "tabular", "features": [{"name": "a", "path": "a", "type": "number"}]}))
    assert main(command) == 0
    told = capsys.readouterr()
    assert "rows: 60 normal rows fit the schema, 5 are refused" in told.out
    assert "refuses 5 of 65 rows" in told.err
    assert "3 × " in told.err
    assert "2 × " in told.err
    assert 'for instance in {"a": "much"}' in told.err
    assert 'for instance in {"b": 1}' in told.err
    time = {"name": "a", "path": "a", "type": "timestamp", "part": "hour_of_day"}
    schema.write_text(json.dumps({"kind": "tabular", "features": [time]}))
    assert main(command) == 65
    assert "refuses all 65 rows" in capsys.readouterr().err


def test_a_bundle_has_format_2_only_if_an_older_daemon_would_misread_it():
    from residuald_train.bundle.export import bundle_format

    plain = {"name": "a", "path": "a", "type": "timestamp", "part": "hour_of_day", "epoch_unit": "s"}
    assert bundle_format({"kind": "tabular", "features": [plain]}) == 1
    assert bundle_format({"kind": "image", "height": 8}) == 1
    for more in ({"missing_values": [-1]}, {"epoch_unit": "d"}, {"time_zone": "UTC"}):
        assert bundle_format({"kind": "tabular", "features": [plain | more]}) == 2
