"""Schemas, and one record by one."""

import math

import numpy as np
import pytest
import residuald

NUMBER = {"name": "f", "path": "v", "type": "number"}
BOOL = {"name": "f", "path": "v", "type": "bool"}
CATEGORY = {"name": "f", "path": "v", "type": "categorical", "vocabulary": ["5411", "1.5", "true", "grocery"]}
HOUR = {"name": "f", "path": "v", "type": "timestamp", "part": "hour_of_day", "epoch_unit": "ms"}
DAY = {"name": "f", "path": "v", "type": "timestamp", "part": "day_of_week"}
MONEY = NUMBER | {"number_format": "decimal_comma", "missing_values": ["-"], "missing": "impute"}
REFUSED = None

CASES = [
    (NUMBER, "1", 1.0),
    (NUMBER, "0.1", np.float32(0.1)),
    (NUMBER, "1e39", REFUSED),
    (NUMBER, "NaN", REFUSED),
    (NUMBER, '"1"', REFUSED),
    (NUMBER, "true", REFUSED),
    (NUMBER, "null", REFUSED),
    (MONEY, '"1.234,50 €"', 1234.5),
    (MONEY, '"-"', math.nan),
    (BOOL, "true", 1.0),
    (BOOL, "0", 0.0),
    (BOOL, "2", REFUSED),
    (CATEGORY, '"grocery"', 3.0),
    (CATEGORY, "5411", 0.0),
    (CATEGORY, "true", 2.0),
    (CATEGORY, '"new"', -1.0),
    (CATEGORY, "{}", REFUSED),
    (HOUR, '"2026-01-05t00:30:00.000+02:00"', 22.5),
    (HOUR, "1767594600000", 6.5),
    (HOUR, '"2026-02-30T00:00:00Z"', REFUSED),
    (DAY, '"2026-01-05T00:30:00+02:00"', 6.0),
    (DAY, "1767594600", REFUSED),
]


@pytest.mark.parametrize(("feature", "value", "want"), CASES)
def test_one_value(feature, value, want):
    # Another feature is there, because a record without any is refused.
    features, record = [feature, {"name": "w", "path": "w", "type": "number"}], f'{{"v": {value}, "w": 7}}'
    if want is REFUSED:
        with pytest.raises(residuald.RefusedError):
            residuald.decode(features, record)
        return
    row = residuald.decode(features, record)
    assert (row.dtype, row.shape) == (np.float32, (2,))
    np.testing.assert_array_equal(row, np.float32([want, 7]))
    np.testing.assert_array_equal(residuald.Schema(features).decode(record.encode()), row)


def test_a_record_without_any_feature_is_refused():
    features = [{"name": name, "path": name, "type": "number", "missing": "impute"} for name in "ab"]
    assert np.isnan(residuald.decode(features, '{"a": 1}')[1])
    with pytest.raises(residuald.RefusedError, match=r"none of the fields that the schema reads .*: `a`, `b`"):
        residuald.decode(features, '{"c": 1}')


@pytest.mark.parametrize("record", ["", "{", "[]", '"x"', '{"v": 1, "v": 2}', '{"v": NaN}', b'{"v": 1, "\xff": 1}'])
def test_what_is_no_record(record):
    with pytest.raises(residuald.RefusedError):
        residuald.decode([NUMBER], record)


def test_a_schema_is_completed():
    assert residuald.check_schema([NUMBER, HOUR | {"name": "h"}]) == [
        NUMBER | {"missing": "reject"},
        HOUR | {"name": "h", "missing": "reject"},
    ]
    schema = residuald.Schema([MONEY])
    assert len(schema) == 1
    assert residuald.check_schema(schema)[0]["missing_values"] == ["-"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "text"}, "unknown variant `text`"),
        ({"colour": 1}, "has no key `colour`"),
        ({"vocabulary": ["a"]}, "has no key `vocabulary`"),
        ({"type": "categorical"}, "missing field `vocabulary`"),
        ({"type": "categorical", "vocabulary": ["a", "a"]}, "distinct"),
        ({"type": "timestamp"}, "missing field `part`"),
        ({"missing": "drop"}, "unknown variant `drop`"),
        ({"path": "a..b"}, "an empty part"),
        ({"time_zone": "Mars/Olympus"}, "Mars/Olympus"),
    ],
)
def test_a_wrong_schema_names_feature_and_fault(change, message):
    with pytest.raises(residuald.Error, match=f"feature `x`.*{message}"):
        residuald.check_schema([{"name": "x", "path": "x", "type": "number", **change}])


def test_every_fault_is_told_at_once():
    with pytest.raises(residuald.Error, match=r"feature 0 has no name.*feature `b`"):
        residuald.check_schema([{}, {"name": "b", "path": "b", "type": "text"}])
    with pytest.raises(residuald.Error, match="listed twice"):
        residuald.check_schema([NUMBER, NUMBER])
