"""Reading for training: what is said and recorded of the files. The reading itself is tested in python/tests."""

import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from residuald_train import TrainerError
from residuald_train.bench.datasets import read_set
from residuald_train.cli import main
from residuald_train.foreign.records import table_of
from residuald_train.tabular.data import file_facts, read
from residuald_train.tabular.labels import DataSource, anomalous_rows, read_labelled, read_labelled_like, split_by_label

ROWS = 3000
PARTS = [np.arange(0, 700), np.arange(700, ROWS)]


@pytest.fixture
def parts(tmp_path):
    """Two Parquet files -> their paths."""
    paths = [tmp_path / f"part{i}.parquet" for i in range(2)]
    for path, rows in zip(paths, PARTS, strict=True):
        late = [None if i < 2500 else 1.5 for i in rows.tolist()]
        columns = {"at": rows, "half": np.sin(rows), "late": late, "odd": rows % 5 == 0}
        pa.parquet.write_table(pa.table(columns), path, row_group_size=100)
    return paths


def test_the_files_are_recorded_with_their_hashes(parts):
    facts = [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "rows": len(rows)}
        for path, rows in zip(parts, PARTS, strict=True)
    ]
    assert file_facts(read(parts)) == facts
    sampled = file_facts(read(parts, 1000, seed=1))
    assert sum(file.pop("drawn") for file in sampled) == 1000
    assert sampled == facts


def test_a_file_that_nothing_was_drawn_from_is_not_recorded(parts, tmp_path):
    (tmp_path / "one.ndjson").write_text('{"at": 5000}\n')
    table = read([tmp_path / "one.ndjson", *parts], 40, seed=0)
    assert len(table) == 40
    assert [file["file"] for file in file_facts(table)] == ["part0.parquet", "part1.parquet"]


def test_tabular_says_that_it_drew(parts, tmp_path, capsys):
    options = ["--drop", "late", "at", "--recipe", "kernel", "--max-rows", "500", "--out", str(tmp_path / "b")]
    assert main(["tabular", "--data", *map(str, parts), *options]) == 0
    assert "500 of 3000 rows, drawn at random" in capsys.readouterr().err
    training = json.loads((tmp_path / "b" / "manifest.json").read_text())["training"]
    assert training["rows"] + training["held_out_rows"] == 500


def test_rows_are_split_by_label(parts):
    table, label = read_labelled(DataSource(parts, label="odd", normal="false"))
    assert label == {"path": "odd", "normal": False}
    normals, anomalies = split_by_label(table, label)
    assert (len(normals), len(anomalies)) == (2400, 600)
    assert (anomalies.numbers("at") % 5 == 0).all()
    assert len(split_by_label(table, label | {"normal": 0})[0]) == 2400
    with pytest.raises(TrainerError, match="no row has `odd` = 'x'; it holds true, false"):
        split_by_label(table, label | {"normal": "x"})


@pytest.fixture
def partly(tmp_path):
    """400 rows: 300 normal ones, 60 anomalies, and 40 without a label."""
    rows = [{"x": i % 37, "z": i % 11} | ({"odd": int(i >= 300)} if i < 360 else {"odd": None}) for i in range(400)]
    del rows[399]["odd"]
    path = tmp_path / "partly.ndjson"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_without_a_label_are_neither_normal_nor_anomalous(partly, capsys):
    table, label = read_labelled(DataSource([partly], label="odd"))
    assert "40 of 400 rows have no `odd`: left out" in capsys.readouterr().err
    assert anomalous_rows(table, label).sum() == 60
    assert [len(part) for part in split_by_label(table, label)] == [300, 60]
    trained = {"training": {"options": {"label": {"path": "odd", "normal": 0}}}}
    table, label = read_labelled_like(DataSource([partly]), trained)
    assert (len(table), anomalous_rows(table, label).sum()) == (360, 60)


def test_bench_leaves_out_rows_without_a_label(partly):
    partly.write_text(partly.read_text().replace("odd", "label"))
    X, anomalous = read_set(partly)
    assert (len(X), anomalous.sum()) == (360, 60)


def test_a_label_that_no_row_has_is_refused(tmp_path):
    (tmp_path / "a.ndjson").write_text('{"x": 1, "odd": null}\n' * 3)
    with pytest.raises(TrainerError, match="`odd` is missing in all 3 rows"):
        read_labelled(DataSource([tmp_path / "a.ndjson"], label="odd"))


def test_a_model_card_counts_only_labelled_records(partly, tmp_path, capsys):
    data = ["--data", str(partly), "--label", "odd"]
    assert main(["tabular", *data, "--recipe", "kernel", "--out", str(tmp_path / "b")]) == 0
    training = json.loads((tmp_path / "b" / "manifest.json").read_text())["training"]
    assert training["rows"] + training["held_out_rows"] == 300
    assert main(["report", str(tmp_path / "b"), *data, "--out", str(tmp_path / "card.html")]) == 0
    assert "(360 of 360 records scored)" in capsys.readouterr().out


def test_hints_name_the_flags_of_the_verbs(tmp_path, capsys):
    path = tmp_path / "events.ndjson"
    change = {"before": None, "after": {"amount": 1}, "op": "c"}
    path.write_text((json.dumps({"specversion": "1.0", "data": change}) + "\n") * 3)
    read_labelled(DataSource([path]))
    assert "give --envelope cloudevents,debezium" in capsys.readouterr().err
    with pytest.raises(TrainerError, match=r"--envelope connect expects an object"):
        read([path], envelope=["connect"])


def test_columns_keep_their_order_where_the_first_row_lacks_a_value():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [np.nan, 1.0], "c": [None, "x"], "d": [0.0, 1.0]})
    for data in frame, frame.to_dict("records"):
        assert table_of(data, None).paths == ["a", "b", "c", "d"]
    assert table_of(frame[["a", "b", "d"]].to_numpy(), None).paths == ["f0", "f1", "f2"]
