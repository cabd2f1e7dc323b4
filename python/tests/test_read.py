"""Files of every format, read by the daemon's code."""

import gzip
import json
import signal
import threading

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import residuald

ROWS = [
    {"amount": 1.5, "kind": "a", "count": 1, "at": "2026-01-02T03:04:05Z", "paid": True, "label": 0},
    {"amount": None, "kind": "b", "count": 2, "at": "2026-01-03T15:00:00Z", "paid": False, "label": 1},
    {"amount": 3.25, "kind": None, "count": 3, "at": "2026-01-04T00:30:00Z", "paid": True, "label": 0},
]
SCHEMA = [
    {"name": "amount", "path": "amount", "type": "number", "missing": "impute"},
    {"name": "kind", "path": "kind", "type": "categorical", "vocabulary": ["b", "a"], "missing": "impute"},
    {"name": "count", "path": "count", "type": "number"},
    {"name": "hour", "path": "at", "type": "timestamp", "part": "hour_of_day"},
    {"name": "paid", "path": "paid", "type": "bool"},
]
X = np.array(
    [[1.5, 1, 1, 3 + 4 / 60 + 5 / 3600, 1], [np.nan, 0, 2, 15, 0], [3.25, np.nan, 3, 0.5, 1]],
    np.float32,
)


def csv(rows):
    lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
    return "".join(line + "\n" for line in lines).encode()


def ndjson(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(params=["csv", "csv.gz", "ndjson", "ndjson.gz", "jsonl", "parquet"])
def file(request, tmp_path):
    path = tmp_path / f"records.{request.param}"
    if request.param == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(ROWS), path)
        return path
    content = (csv if request.param.startswith("csv") else ndjson)(ROWS)
    path.write_bytes(gzip.compress(content) if request.param.endswith("gz") else content)
    return path


def test_every_format_gives_the_same_rows(file):
    table = residuald.read([file])
    assert (len(table), table.paths) == (3, list(ROWS[0]))
    assert table.files == [{"path": file, "rows": 3, "drawn": None}]
    rows, accepted, refused = table.encode(SCHEMA)
    assert (rows.dtype, rows.shape, rows.flags.c_contiguous) == (np.float32, (3, 5), True)
    np.testing.assert_array_equal(rows, X)
    assert accepted.tolist() == [True] * 3
    assert refused == {}
    assert table.is_normal("label", "0").tolist() == [True, False, True]
    assert table.is_normal("label", "0.0").tolist() == [True, False, True]
    assert table.texts("kind") == ["a", "b", None]
    np.testing.assert_array_equal(table.numbers("amount"), [1.5, np.nan, 3.25])
    assert np.isnan(table.numbers("kind")).all()
    assert json.loads(table.record(1))["kind"] == "b"


def test_a_record_of_ndjson_keeps_its_bytes(tmp_path):
    (tmp_path / "r.ndjson").write_bytes(b'{"b": 1.50,  "a": [1, {"c": null}]}\n')
    assert residuald.read([tmp_path / "r.ndjson"]).record(0) == b'{"b": 1.50,  "a": [1, {"c": null}]}'


def test_npz_columns_are_named_by_number(tmp_path):
    np.savez(tmp_path / "d.npz", X=np.arange(6.0).reshape(3, 2) / 3, y=np.array([0, 1, 0]))
    table = residuald.read([tmp_path / "d.npz"])
    assert table.paths == ["x0", "x1", "y"]
    np.testing.assert_array_equal(table.numbers("x1"), np.array([1, 3, 5]) / 3)
    assert table.is_normal("y", "0").tolist() == [True, False, True]


def test_refused_records_are_counted_by_reason(tmp_path):
    (tmp_path / "r.ndjson").write_bytes(ndjson([*ROWS, {"count": "many"}, {}, {"count": 1e39}]))
    rows, accepted, refused = residuald.read([tmp_path / "r.ndjson"]).encode(SCHEMA[:3])
    assert accepted.tolist() == [True] * 3 + [False] * 3
    assert np.isnan(rows[3:]).all()
    assert sum(refused.values()) == 3
    assert all("count" in reason for reason in refused)


def test_rows_are_taken_in_order(tmp_path):
    (tmp_path / "r.ndjson").write_bytes(ndjson(ROWS))
    table = residuald.read([tmp_path / "r.ndjson"])
    part = table.take(np.array([2, 0, 2]))
    assert part.numbers("count").tolist() == [3, 1, 3]
    for wrong in ([3], [-1]):
        with pytest.raises(IndexError):
            table.take(np.array(wrong))
    with pytest.raises(IndexError, match="the table has 3"):
        table.record(3)


def test_a_sample_is_drawn_over_all_files(tmp_path):
    for part, count in enumerate((300, 700)):
        rows = [{"at": 1000 * part + i} for i in range(count)]
        (tmp_path / f"{part}.ndjson").write_bytes(ndjson(rows))
    files = [tmp_path / "0.ndjson", tmp_path / "1.ndjson"]
    table = residuald.read(files, max_rows=100, seed=1)
    at = table.numbers("at")
    assert (len(set(at)), (np.diff(at) > 0).all()) == (100, True)
    assert [f["rows"] for f in table.files] == [300, 700]
    assert sum(f["drawn"] for f in table.files) == 100
    assert 10 < (at < 1000).sum() < 50
    assert "100 of 1000 rows, drawn at random" in table.notes[-1]
    np.testing.assert_array_equal(residuald.read(files, 100, 1).numbers("at"), at)
    assert not np.array_equal(residuald.read(files, 100, 2).numbers("at"), at)
    assert residuald.read(files, 1000).files[0]["drawn"] is None


def test_segments_are_named_as_in_the_daemon():
    values = ["fuel", 5411, 5411.0, 1.50, True, "", None, [1], -0.0, "x" * 257]
    table = residuald.Table([json.dumps({"kind": value}) for value in values])
    assert table.segments("kind") == ["fuel", "5411", "5411", "1.5", "true", "", None, None, "-0", None]


def test_a_schema_is_guessed_with_reasons(tmp_path):
    rows = [{"id": f"p-{i}", "amount": (i * 7 % 61) ** 0.5, "same": 1, "label": i % 2} for i in range(60)]
    (tmp_path / "r.ndjson").write_bytes(ndjson(rows))
    table = residuald.read([tmp_path / "r.ndjson"])
    features, notes = table.infer(leave_out=["label"])
    assert [f["name"] for f in features] == ["amount"]
    assert any("`id`" in note for note in notes)
    assert any("`same`" in note for note in notes)
    kept, _ = table.infer(leave_out=["label"], keep=["id"])
    assert "id" in [f["name"] for f in kept]
    assert residuald.check_schema(features) == features
    with pytest.raises(residuald.Error, match="no column can be learned from"):
        table.infer(leave_out=["id", "amount", "label"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("absent.csv", None),
        ("empty.ndjson", b""),
        ("head.csv", b"a,b\n"),
        ("lists.ndjson", b"[1]\n" * 20),
        ("cut.parquet", b"PAR1"),
        ("cut.npz", b"PK"),
        ("no-gzip.csv.gz", b"a,b\n1,2\n"),
        ("table.xls", b""),
        ("text.ndjson", b"\xff\xfe\x00" * 100),
    ],
)
def test_errors_name_the_file(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(residuald.Error, match=name) as error:
        residuald.read([tmp_path / name])
    assert "\n" not in str(error.value)


@pytest.fixture
def long_reading(tmp_path):
    (tmp_path / "r.ndjson").write_bytes(ndjson(ROWS * 4000))
    return [tmp_path / "r.ndjson"] * 2000


@pytest.fixture
def interruptible():
    """Python's own handler of SIGINT. A shell lets its background processes ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_reading_can_be_interrupted(long_reading):
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        residuald.read(long_reading, max_rows=10)


def test_progress_is_told_and_may_stop_the_reading(long_reading):
    told = []

    def progress(*args):
        told.append(args)
        if len(told) == 9:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        residuald.read(long_reading, 10, progress=progress)
    path, done, total, unit = told[3]
    assert (path, unit) == (long_reading[0], "bytes")
    assert 0 < done <= total == long_reading[0].stat().st_size


def test_other_threads_run_while_a_file_is_read(long_reading):
    counted, stop = [0], threading.Event()

    def count():
        while not stop.wait(0.001):
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    residuald.read(long_reading[:50], 10)
    stop.set()
    thread.join()
    assert counted[0] > 10


def test_records_are_taken_out_of_envelopes_and_lists_as_the_daemon_does(tmp_path):
    path = tmp_path / "changes.ndjson"
    decimal = {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}}
    after = {"field": "after", "type": "struct", "fields": [{"field": "amount"} | decimal]}
    schema = {"type": "struct", "fields": [after]}

    def change(after, op):
        return {"schema": schema, "payload": {"before": None, "after": after, "op": op}}

    # 12345 with the scale 2.
    changes = [change({"amount": "MDk="}, "c"), change(None, "d"), change({"amount": "+w=="}, "u")]
    path.write_bytes(ndjson(changes))
    assert (
        residuald.read([path]).notes[0].endswith('it looks like a change event of Debezium: give envelope=["debezium"]')
    )
    table = residuald.read([path], envelope=["debezium"])
    assert table.numbers("amount").tolist() == [123.45, -0.05]
    assert table.notes == [f"{path}: left out, because there is nothing to score: 1 (delete)"]

    lines = '{"records": [{"a": 1, "b": 1}, {"a": NaN, "b": 1}]}', '{"records": []}', '{"records": [{"a": 3, "b": 1}]}'
    path.write_text("\n".join(lines))
    table = residuald.read([path], unwrap="records", allow_nan=True)
    np.testing.assert_array_equal(table.numbers("a"), [1, np.nan, 3])
    features = [{"name": name, "path": name, "type": "number", "missing": "impute"} for name in "ab"]
    rows, accepted, _ = table.encode(features)
    assert accepted.all()
    np.testing.assert_array_equal(rows[:, 0], [1, np.nan, 3])

    with pytest.raises(ValueError, match="envelope: expected none, or one or more of connect"):
        residuald.read([path], envelope=["debezum"])
    with pytest.raises(residuald.Error, match=r'envelope=\["connect"\] expects an object with `schema`'):
        residuald.read([path], envelope=["connect"])


def test_json_of_several_lines_and_null_lines_are_read(tmp_path):
    path = tmp_path / "records.json"
    path.write_text("null\n".join(json.dumps(row, indent=2) + "\n" for row in ROWS))
    table = residuald.read(path)
    rows, accepted, _ = table.encode(SCHEMA)
    assert accepted.all()
    np.testing.assert_array_equal(rows, X)
    assert table.notes == [
        f"{path}: its JSON objects take several lines each: read one after the other",
        f"{path}: left out, because there is nothing to score: 2 (tombstone)",
    ]


def test_an_index_of_pandas_is_a_column_only_if_it_has_a_name(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0, 4.0] * 20}, index=np.random.default_rng(0).permutation(60))
    assert residuald.Table.from_arrow(frame).paths == ["a"]
    assert residuald.Table.from_arrow(frame.rename_axis("k")).paths == ["a", "k"]
    # Parquet keeps it under a name of pandas' own, which is no feature.
    frame.to_parquet(tmp_path / "a.parquet")
    table = residuald.read(tmp_path / "a.parquet")
    assert table.paths == ["a", "__index_level_0__"]
    features, notes = table.infer()
    assert [feature["name"] for feature in features] == ["a"]
    assert notes[0].startswith("`__index_level_0__` is the index of a pandas frame, which has no name: left out")
    kept, _ = table.infer(keep=["__index_level_0__"])
    assert [feature["name"] for feature in kept] == ["a", "__index_level_0__"]


def test_infinite_numbers_are_said(tmp_path):
    frame = pd.DataFrame({"x0": [1.0, np.inf, -np.inf, np.nan], "x1": [1.0, 2.0, 3.0, 4.0]})
    said = "2 numbers are infinite, which JSON does not have: written as null"
    frame.to_parquet(tmp_path / "a.parquet")
    pa.feather.write_feather(frame, tmp_path / "a.arrow")
    np.savez(tmp_path / "a.npz", X=frame.to_numpy())
    for name in "a.parquet", "a.arrow", "a.npz":
        table = residuald.read(tmp_path / name)
        assert table.notes == [f"{tmp_path / name}: {said}"]
        np.testing.assert_array_equal(table.numbers("x0"), [1, np.nan, np.nan, np.nan])
    assert residuald.Table.from_arrow(frame).notes == [said]
    assert residuald.Table.from_rows(["x0", "x1"], frame.to_numpy()).notes == [said]


def test_durations_are_seconds_in_a_frame_and_in_its_parquet(tmp_path):
    frame = pd.DataFrame({"d": pd.to_timedelta([1500, 250], unit="ms"), "n": [1, 2]})
    frame.to_parquet(tmp_path / "a.parquet")
    pl.from_pandas(frame).write_parquet(tmp_path / "b.parquet")
    expected = residuald.Table.from_arrow(frame).numbers("d").tolist()
    assert expected == [1.5, 0.25]
    for name in "a.parquet", "b.parquet":
        table = residuald.read(tmp_path / name)
        assert table.numbers("d").tolist() == expected
        assert table.notes[0].endswith("`d` holds durations: read as seconds, as they are in Arrow")


def test_nan_is_a_fault_only_where_a_feature_reads_it(tmp_path):
    path = tmp_path / "nan.ndjson"
    path.write_text('{"a": 1, "x": NaN}\n{"a": NaN, "x": 2}\n')
    table = residuald.read([path])
    assert len(table) == 2
    _, accepted, refused = table.encode([{"name": "a", "path": "a", "type": "number", "missing": "impute"}])
    assert accepted.tolist() == [True, False]
    assert [reason for reason in refused if "NaN is not JSON" in reason and "allow_nan" in reason]
