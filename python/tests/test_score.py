"""Scoring in Python: the same bits as `residuald score`, for every kind of data."""

import json
import os
import pickle
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import residuald
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
RESIDUALD = os.environ.get("RESIDUALD", str(ROOT / "target/debug/residuald"))
PAYMENTS = ROOT / "models/payments"
SURFACE = ROOT / "models/surface"
RECORDS = 2000


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The first records of the sample, as NDJSON."""
    path = tmp_path_factory.mktemp("sample") / "sample.ndjson"
    whole = residuald.read([PAYMENTS / "sample.ndjson.gz"])
    path.write_bytes(b"".join(whole.record(row) + b"\n" for row in range(RECORDS)))
    return path


@pytest.fixture(scope="session")
def bundle():
    return residuald.Bundle.load(PAYMENTS)


@pytest.fixture(scope="session")
def verdicts(bundle, sample):
    return bundle.score(sample)


@pytest.fixture(scope="session")
def lines(sample):
    """What `residuald score --out` says of the records."""
    out = sample.with_name("verdicts.ndjson")
    subprocess.run([RESIDUALD, "score", sample, "--bundle", PAYMENTS, "--out", out], check=True, capture_output=True)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_verdicts_are_those_of_the_command(verdicts, lines):
    assert len(verdicts) == len(lines) == RECORDS
    for row, line in enumerate(lines):
        assert np.float32(line["anomaly_score"]) == verdicts.anomaly_score[row]
        assert line["p_value"] == verdicts.p_value[row]
        assert line["severity"] == verdicts.severity[row]
    assert verdicts.is_anomaly.sum() > 5
    flagged = {line.pop("record") - 1: line for line in lines if line["severity"]}
    assert verdicts.verdicts == flagged


def test_the_frame_and_the_reasons(bundle, verdicts, lines):
    frame = verdicts.frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame["anomaly_score"].dtype == np.float32
    assert frame["is_anomaly"].sum() == verdicts.is_anomaly.sum()
    assert frame["refused"].isna().all()
    reasons = verdicts.reasons()
    row = int(np.argmax(verdicts.anomaly_score))
    first, top = lines[row]["relevant_attribution"][0], reasons[reasons["row"] == row].iloc[0]
    assert (top["feature"], top["observed"]) == (first["feature"], json.dumps(first["observed"]).strip('"'))
    assert top["share"] == np.float32(first["share"])
    assert frame["reason"][row] == first["feature"]
    assert set(reasons["row"]) == set(np.flatnonzero(verdicts.is_anomaly))
    assert isinstance(verdicts.frame("polars"), pl.DataFrame)
    assert isinstance(verdicts.reasons("arrow"), pa.Table)
    assert set(verdicts.frame("dict")) == set(frame.columns)


def flat(record, prefix=""):
    for key, value in record.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.fixture(scope="session")
def records(sample):
    return [json.loads(line) for line in sample.read_text().splitlines()]


KINDS = {
    "dicts": lambda records: records,
    "JSON texts": lambda records: [json.dumps(record) for record in records],
    "pandas, dotted columns": lambda records: pd.DataFrame([dict(flat(record)) for record in records]),
    "pandas, times": lambda records: pd.DataFrame([dict(flat(record)) for record in records]).assign(
        time=lambda frame: pd.to_datetime(frame["time"])
    ),
    "pandas, categoricals": lambda records: pd.DataFrame([dict(flat(record)) for record in records]).astype(
        {"currency": "category"}
    ),
    "polars": lambda records: pl.DataFrame([dict(flat(record)) for record in records]),
    "polars, nested": lambda records: pl.DataFrame(records),
    "arrow": lambda records: pl.DataFrame(records).to_arrow(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_gets_the_same_bits(bundle, verdicts, records, kind):
    data = KINDS[kind](records)
    scored = bundle.score(data)
    assert scored.anomaly_score.tobytes() == verdicts.anomaly_score.tobytes()
    assert scored.verdicts == verdicts.verdicts
    frame = scored.frame()
    assert type(frame).__module__.startswith(type(data).__module__.split(".")[0] if kind[0] == "p" else "p")


def test_a_pandas_index_is_kept(bundle, records):
    frame = pd.DataFrame([dict(flat(record)) for record in records[:300]], index=[f"r{i}" for i in range(300)])
    scored = bundle.score(frame, explain="all", reasons=1)
    assert list(scored.frame().index) == list(frame.index)
    assert list(scored.reasons()["row"]) == list(frame.index)


def test_a_named_index_of_pandas_is_a_column_and_another_is_not(numbers):
    frame = pd.DataFrame(np.random.default_rng(1).normal(size=(50, 2)), columns=["a", "b.c"])
    expected = numbers.score(frame).anomaly_score
    assert (numbers.score(frame.set_index("a")).anomaly_score == expected).all()
    unnamed = numbers.score(frame.sample(frac=1, random_state=0))
    assert (unnamed.frame()["anomaly_score"].sort_index() == expected).all()
    assert residuald.frames.table_of(frame.set_index(np.arange(50) ** 2)).paths == ["a", "b.c"]


def test_an_array_of_numbers_is_read_in_the_schemas_order(tmp_path, numbers):
    X = np.random.default_rng(1).normal(size=(50, 2))
    X[3, 1] = np.nan
    scored = numbers.score(X)
    frame = numbers.score(pd.DataFrame(X, columns=["a", "b.c"]))
    assert scored.anomaly_score.tobytes() == frame.anomaly_score.tobytes()
    assert scored.anomaly_score.dtype == np.float32
    objects = numbers.score(X.astype(object))
    assert objects.anomaly_score.tobytes() == frame.anomaly_score.tobytes()
    X[4, 0] = np.inf
    refused = numbers.score(X)
    assert list(refused.refused) == [4]
    assert refused.refused[4][0] == "out_of_range"
    with pytest.raises(residuald.Error, match=r"must be \[n, 2\].*it is \[50, 1\]"):
        numbers.score(X[:, :1])


@pytest.fixture(scope="session")
def numbers(tmp_path_factory):
    """A bundle of two numbers."""
    folder = tmp_path_factory.mktemp("numbers")
    X = np.random.default_rng(0).normal(size=(2000, 2))
    pd.DataFrame(X, columns=["a", "b.c"]).to_csv(folder / "a.csv", index=False)
    fields = [("a", "reject"), ("b.c", "impute")]
    features = [{"name": path, "path": path, "type": "number", "missing": missing} for path, missing in fields]
    (folder / "schema.json").write_text(json.dumps({"kind": "tabular", "features": features}))
    options = ["--data", "a.csv", "--schema", "schema.json", "--recipe", "kernel", "--out", "b"]
    subprocess.run([sys.executable, "-m", "residuald_train.cli", "tabular", *options], cwd=folder, check=True)
    return residuald.Bundle.load(folder / "b")


def test_refused_records_get_nan_and_the_daemons_reason(bundle, records):
    bad = [*records[:3], {"amount": "x"}, records[3]]
    scored = bundle.score(bad)
    assert np.isnan(scored.anomaly_score).tolist() == [False, False, False, True, False]
    [(reason, (count, example))] = scored.refusals().items()
    assert (reason, count) == ("wrong_type", 1) or reason == "missing", scored.refused
    assert example
    assert not scored.is_anomaly[3]
    assert scored.frame()["refused"][3].startswith(reason)


def test_a_line_that_is_no_record_keeps_its_place_and_notes_are_kept(bundle, records, tmp_path):
    lines = [json.dumps(records[0]), "nonsense", json.dumps(records[1])]
    (tmp_path / "a.ndjson").write_text("\n".join(lines) + "\n")
    scored = bundle.score(tmp_path / "a.ndjson")
    assert scored.refused.keys() == {1}
    assert scored.refused[1][0] == "malformed"
    assert (scored.anomaly_score[[0, 2]] == bundle.score(records[:2]).anomaly_score).all()
    pd.DataFrame([dict(flat(record)) for record in records[:9]]).to_csv(tmp_path / "a.csv", sep=";", index=False)
    assert "separated by ';'" in bundle.score([tmp_path / "a.csv"]).notes[0]


def test_records_in_envelopes_get_the_scores_of_those_without(bundle, records, tmp_path):
    some = records[:40]
    expected = bundle.score(some).anomaly_score
    changes = [{"before": None, "after": record, "op": "c"} for record in some]
    path = tmp_path / "changes.ndjson"

    def in_file(rows, **options):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return bundle.score(path, **options).anomaly_score

    debezium = {"envelope": ["debezium"]}
    assert (in_file(changes, **debezium) == expected).all()
    assert (bundle.score(changes, envelope="debezium").anomaly_score == expected).all()
    texts = [json.dumps({"specversion": "1.0", "data": change}) for change in changes]
    assert (bundle.score(texts, envelope=["cloudevents", "debezium"]).anomaly_score == expected).all()
    assert (in_file([{"body": {"events": some}}], unwrap="body.events") == expected).all()
    assert (in_file([[change] for change in changes], unwrap="list", **debezium) == expected).all()

    # A hint names the argument.
    hint = bundle.score(changes[:1]).refused[0][1]
    assert hint.endswith('it looks like a change event of Debezium: give envelope=["debezium"]')
    mixed = bundle.score([changes[0], {"before": some[0], "after": None, "op": "d"}, some[1]], envelope=["debezium"])
    assert (mixed.anomaly_score[0], len(mixed)) == (expected[0], 3)
    assert mixed.refused[1] == ("delete", "there is nothing to score")
    assert 'envelope=["debezium"] expects a change event' in mixed.refused[2][1]
    for options, message in [
        ({"envelope": ["debezum"]}, "envelope: expected none"),
        ({"unwrap": "list"}, "unwrap applies to files"),
    ]:
        with pytest.raises(ValueError, match=message):
            bundle.score(some, **options)
    with pytest.raises(ValueError, match="envelope applies to JSON records"):
        bundle.score(pd.DataFrame(some), envelope=["debezium"])


def test_decimals_and_uuids_of_a_database_are_read(bundle, records):
    rows = [{**record, "amount": Decimal(str(record["amount"])), "id": UUID(int=7)} for record in records[:9]]
    assert (bundle.score(rows).anomaly_score == bundle.score(records[:9]).anomaly_score).all()


def test_nan_in_records_is_missing_if_it_may_be(bundle, records, tmp_path):
    feature = next(
        f for f in bundle.features if f["type"] == "number" and f["missing"] == "impute" and "." not in f["path"]
    )
    gone = [{**record, feature["path"]: None} for record in records[:9]]
    nan = [{**record, feature["path"]: float("nan")} for record in gone]
    expected = bundle.score(gone).anomaly_score
    path = tmp_path / "nan.ndjson"
    path.write_text("".join(json.dumps(record) + "\n" for record in nan))
    for data in nan, path:
        refused = bundle.score(data).refused
        assert len(refused) == 9
        assert "or give allow_nan=True, which reads it as missing" in refused[0][1]
        assert (bundle.score(data, allow_nan=True).anomaly_score == expected).all()
    frame = pd.DataFrame(pd.json_normalize(gone[:3]))
    assert (bundle.score(frame, allow_nan=True).anomaly_score == expected[:3]).all()


def test_images_with_twelve_bits_of_sixteen(surface, tmp_path):
    eight = [np.random.default_rng(i).integers(0, 255, (96, 128), np.uint8) for i in range(20)]
    wide = [((image.astype(np.uint32) * 4095 + 127) // 255).astype(np.uint16) for image in eight]
    paths = [tmp_path / f"{i:02}.png" for i in range(20)]
    for path, image in zip(paths, wide, strict=True):
        Image.fromarray(image).save(path)
    expected = surface.score(eight[:3]).anomaly_score
    assert (surface.score(paths[:3], bit_depth=12).anomaly_score == expected).all()
    dark = surface.score(paths)
    assert "use only 12 bits so far" in dark.notes[0]
    assert "give bit_depth=12" in dark.notes[0]
    assert (dark.anomaly_score[:3] != expected).any()
    assert "bit_depth=10 allows at most 1023" in surface.score(paths[:1], bit_depth=10).refused[0][1]
    with pytest.raises(ValueError, match="apply to tables only"):
        surface.score(paths, allow_nan=True)


def test_data_that_cannot_be_records_is_refused(bundle, records):
    for data, message in [
        (records[0], "a dict is one record"),
        (pd.Series([1]), "a Series holds one column"),
        ([1, 2], "must be a data frame"),
        (np.zeros((3, 2)), "a column for each feature"),
        (np.zeros((3, 22)), "several features read the field `time`, so an array has no column for it"),
    ]:
        with pytest.raises(residuald.Error, match=message):
            bundle.score(data)
    assert len(bundle.score([])) == 0
    with pytest.raises(ValueError, match="key= applies only"):
        bundle.score(records, key="card_id")
    with pytest.raises(residuald.Error, match=r"nowhere refused\n.*manifest\.json"):
        residuald.Bundle.load("nowhere")


@pytest.mark.parametrize("data", [None, 5, 1.5, True, np.float64(2), object()])
def test_what_holds_no_records_is_refused(bundle, data):
    with pytest.raises(residuald.Error, match="is not data: give a data frame"):
        bundle.score(data)


def test_a_lazy_frame_must_be_collected(bundle, records):
    with pytest.raises(residuald.Error, match=r"call \.collect\(\)"):
        bundle.score(pl.DataFrame(records).lazy())


def test_a_record_that_is_not_json_is_refused(bundle):
    with pytest.raises(residuald.Error, match="a record is not JSON: keys must be"):
        bundle.score([{("a", "b"): 1}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": -1}, "threads must be a whole number from 1 to 1024, not -1"),
        ({"threads": 0}, "from 1 to 1024, not 0"),
        ({"threads": 10**12}, "from 1 to 1024, not 1000000000000"),
        ({"threads": "2"}, "from 1 to 1024, not '2'"),
        ({"false_alarm_rate": "x"}, "false_alarm_rate must be a number between 0 and 1, not 'x'"),
        ({"false_alarm_rate": float("nan")}, "between 0 and 1, not nan"),
        ({"threshold": "x"}, "threshold must be a number above 0, not 'x'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        residuald.Bundle.load(PAYMENTS, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reasons": -1}, "reasons must be a whole number of at least 0, not -1"),
        ({"reasons": 1.5}, "at least 0, not 1.5"),
        ({"progress": 3}, "progress must be a function"),
        ({"key": 3}, "key must be the name of a column, not 3"),
        ({"explain": None}, "explain must be"),
        ({"bit_depth": 8}, "bit_depth must be a whole number from 9 to 16, not 8"),
        ({"bit_depth": 12}, "maps and bit_depth apply to images only"),
    ],
)
def test_options_of_score_out_of_range(bundle, records, options, message):
    with pytest.raises(ValueError, match=message):
        bundle.score(records[:3], **options)
    assert len(bundle.score(records[:3], reasons=2**70)) == 3


def test_thresholds(records):
    strict = residuald.Bundle.load(PAYMENTS, false_alarm_rate=0.01, threads=1)
    loose = residuald.Bundle.load(PAYMENTS, threshold=1e6)
    assert strict.score(records).is_anomaly.sum() > 20
    assert loose.score(records).is_anomaly.sum() == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        residuald.Bundle.load(PAYMENTS, false_alarm_rate=2)


def test_a_pickled_bundle_is_the_same(bundle, records, tmp_path):
    copy = pickle.loads(pickle.dumps(bundle))
    assert copy.sha256 == bundle.sha256
    assert (copy.score(records).anomaly_score == bundle.score(records).anomaly_score).all()


@pytest.fixture(scope="session")
def surface():
    return residuald.Bundle.load(SURFACE)


def test_images_get_the_bits_of_the_command(surface, tmp_path):
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 255, (96, 128), np.uint8) for _ in range(3)]
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    out = tmp_path / "verdicts.ndjson"
    subprocess.run([RESIDUALD, "score", tmp_path, "--bundle", SURFACE, "--out", out], check=True, capture_output=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    expected = np.array([line["anomaly_score"] for line in lines], np.float32)
    for images in (paths, [path.read_bytes() for path in paths], arrays, [Image.open(path) for path in paths]):
        scored = surface.score(images, explain="all", maps=True)
        assert scored.anomaly_score.tobytes() == expected.tobytes()
        assert scored.reasons()["share"].between(0, 1).all()
        heatmap, reconstruction = scored.maps[0]
        assert heatmap.startswith(b"\x89PNG")
        assert reconstruction.startswith(b"\x89PNG")
    broken = surface.score([b"nonsense", arrays[0]])
    assert list(broken.refused) == [0]
    assert np.isnan(broken.anomaly_score[0])
    with pytest.raises(residuald.Error, match="must be uint8"):
        surface.score([arrays[0] / 255])


def test_pillows_modes(surface):
    gray = np.random.default_rng(0).integers(0, 255, (96, 128), np.uint8)
    image, inverse = Image.fromarray(gray), Image.fromarray(255 - gray)
    zero = Image.new("L", image.size)
    same = {
        "RGB": image.convert("RGB"),
        "RGBA": image.convert("RGBA"),
        "LA": image.convert("LA"),
        "P": image.convert("P"),
        "PA": image.convert("P").convert("PA"),
        "RGBX": Image.merge("RGBX", [image, image, image, zero]),
        "CMYK": Image.merge("CMYK", [inverse, inverse, inverse, zero]),
        "I;16": Image.fromarray(gray.astype(np.uint16) * 257),
    }
    assert {mode: of_mode.mode for mode, of_mode in same.items()} == {mode: mode for mode in same}
    refused = [Image.new(mode, (96, 128)) for mode in ("F", "I", "LAB", "HSV", "YCbCr", "RGBa", "La")]
    scored = surface.score([image, *same.values(), *refused])
    assert (scored.anomaly_score[: 1 + len(same)] == scored.anomaly_score[0]).all()
    assert list(scored.refused) == list(range(1 + len(same), len(scored)))
    assert "a PIL image of mode F cannot be converted exactly" in scored.refused[1 + len(same)][1]
    assert sorted(scored.notes) == [
        "1 images of mode CMYK were converted to RGB",
        "1 images of mode PA were converted to RGBA",
        "1 images of mode RGBX were converted to RGB",
    ]


def test_an_image_that_cannot_be_read_is_refused_alone(surface, tmp_path):
    gray = np.random.default_rng(0).integers(0, 255, (96, 128), np.uint8)
    Image.fromarray(gray).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    cut = Image.open(tmp_path / "cut.png")
    scored = surface.score([tmp_path / "none.png", tmp_path / "a.png", tmp_path, cut, gray])
    assert np.isnan(scored.anomaly_score).tolist() == [True, False, True, True, False]
    assert scored.anomaly_score[1] == scored.anomaly_score[4]
    assert "No such file" in scored.refused[0][1]
    assert str(tmp_path / "none.png") in scored.refused[0][1]
    assert "Is a directory" in scored.refused[2][1]
    assert "Pillow cannot read the image" in scored.refused[3][1]
    with pytest.raises(residuald.Error, match=r"No such file.*none\.png"):
        surface.score(tmp_path / "none.png")
    assert surface.score(Image.fromarray(gray)).anomaly_score[0] == scored.anomaly_score[4]


def test_an_array_of_gray_images_and_what_is_no_image(surface):
    stack = np.random.default_rng(0).integers(0, 255, (3, 96, 128), np.uint8)
    for array in (stack, stack[0]):
        with pytest.raises(residuald.Error, match=r"give \[array\] for one image.*list\(array\) for gray images"):
            surface.score(array)
    whole = surface.score(stack[..., None])
    assert (surface.score(list(stack)).anomaly_score == whole.anomaly_score).all()
    assert np.isfinite(whole.anomaly_score).all()
    for data in (pd.DataFrame({"a": [1]}), {"a": 1}):
        with pytest.raises(residuald.Error, match="reads images, not tables"):
            surface.score(data)
    with pytest.raises(residuald.Error, match="must be a path, bytes"):
        surface.score([5])
    with pytest.raises(residuald.Error, match="NoneType is not data"):
        surface.score(None)


def test_an_interrupt_ends_scoring(bundle, records):
    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bundle.score(records, progress=stop)
    assert len(bundle.score(records[:5])) == 5, "the bundle is still usable"
