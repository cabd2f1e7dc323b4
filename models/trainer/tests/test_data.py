"""Tests of `--max-rows`, which draws rows at random over all files."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from residuald_train.cli import main
from residuald_train.tabular.data import draw, read

ROWS = 3000
PARTS = [np.arange(0, 700), np.arange(700, ROWS)]


def columns(rows):
    return {
        "at": rows,
        "half": rows / 2,
        "word": [f'w "{i}",\nnext' if i % 3 else "" for i in rows.tolist()],
        "late": [None if i < 2500 else 1.5 for i in rows.tolist()],
    }


def write(folder, kind):
    """Writes the rows to two files of one format -> their paths."""
    paths = [folder / f"part{i}.{kind}" for i in range(2)]
    for path, rows in zip(paths, PARTS, strict=True):
        table = columns(rows)
        if kind == "parquet":
            pa.parquet.write_table(pa.table(table), path, row_group_size=100)
        elif kind.startswith("csv"):
            with gzip.open(path, "wb") if kind.endswith("gz") else path.open("wb") as stream:
                pa.csv.write_csv(pa.table(table), stream)
        elif kind == "npz":
            np.savez(path, X=np.stack([table["at"], table["half"]], 1), y=rows % 5 == 0)
        else:
            lines = zip(*(v.tolist() if isinstance(v, np.ndarray) else v for v in table.values()), strict=True)
            text = "".join(json.dumps(dict(zip(table, line, strict=True))) + "\n" for line in lines).encode()
            path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    return paths


def present(column):
    return [None if value != value else value for value in column.tolist()]


@pytest.mark.parametrize("kind", ["parquet", "csv", "csv.gz", "ndjson", "ndjson.gz", "npz"])
def test_a_sample_is_some_of_the_rows_as_they_are(tmp_path, kind):
    paths = write(tmp_path, kind)
    whole, sample = read(paths), read(paths, 1000, seed=1)
    assert (whole.rows, sample.rows) == (ROWS, 1000)
    at = "x0" if kind == "npz" else "at"
    rows = np.searchsorted(whole.columns[at], sample.columns[at])
    assert len(set(rows)) == 1000
    assert 180 < (rows < 700).sum() < 290
    assert list(sample.columns) == list(whole.columns)
    for path, column in sample.columns.items():
        assert present(column) == present(whole.columns[path][rows]), path
    assert [f["sha256"] for f in sample.files] == [f["sha256"] for f in whole.files]
    assert [f["rows"] for f in sample.files] == [700, 2300]
    assert sum(f["drawn"] for f in sample.files) == 1000
    assert "of 2300 rows, drawn at random" in sample.messages[-1]
    assert read(paths, ROWS).messages == whole.messages
    np.testing.assert_array_equal(read(paths, 1000, seed=1).columns[at], sample.columns[at])
    assert not np.array_equal(read(paths, 1000, seed=2).columns[at], sample.columns[at])


def test_draw_is_uniform_over_files():
    counts = np.zeros(10)
    for seed in range(3000):
        for start, rows in zip((0, 2, 2), draw([2, 0, 8], 4, seed), strict=True):
            counts[start + rows] += 1
    assert abs(counts / 3000 - 0.4).max() < 0.05
    assert draw([2, 3], 5, 0) == [None, None]


def test_a_file_that_nothing_was_drawn_from(tmp_path):
    paths = write(tmp_path, "ndjson")
    paths[0].write_text('{"at": 5000}\n')
    seen = read(paths, 40, seed=0)
    assert seen.rows == 40
    assert len(seen.files) == 1


def test_tabular_says_that_it_drew(tmp_path, capsys):
    paths = write(tmp_path, "parquet")
    options = ["--drop", "word", "late", "--recipe", "kernel", "--max-rows", "500", "--out", str(tmp_path / "b")]
    assert main(["tabular", "--data", *map(str, paths), *options]) == 0
    assert "of 2300 rows, drawn at random (--max-rows)" in capsys.readouterr().err
    training = json.loads((tmp_path / "b" / "manifest.json").read_text())["training"]
    assert training["rows"] + training["held_out_rows"] == 500
