"""Reading for training: what is said and recorded of the files. The reading itself is tested in python/tests."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from residuald_train import TrainerError
from residuald_train.cli import main
from residuald_train.tabular.data import file_facts, read
from residuald_train.tabular.labels import DataSource, read_labelled, split_by_label

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
