"""Tests of the decoding rules that trainer and daemon share: each JSON value becomes a number or is refused."""

import math

import numpy as np
import pytest

from residuald_train.tabular.decode import RefusedError, decode, parse_record
from residuald_train.tabular.features import Feature, encode_column

REFUSED = None
NUMBER = Feature("f", "v", "number")
BOOL = Feature("f", "v", "bool")
CATEGORY = Feature("f", "v", "categorical", vocabulary=("5411", "1.50", "true", "grocery"))
HOUR = Feature("f", "v", "timestamp", part="hour_of_day", epoch_unit="ms")
DAY = Feature("f", "v", "timestamp", part="day_of_week")

CASES = [
    (NUMBER, "1", 1.0),
    (NUMBER, "0.1", np.float32(0.1)),
    (NUMBER, "-1e38", np.float32(-1e38)),
    (NUMBER, "1e39", REFUSED),
    (NUMBER, "1e400", REFUSED),
    (NUMBER, "1" + "0" * 400, REFUSED),
    (NUMBER, "NaN", REFUSED),
    (NUMBER, '"1"', REFUSED),
    (NUMBER, "true", REFUSED),
    (NUMBER, "null", REFUSED),
    (NUMBER, "[1]", REFUSED),
    (BOOL, "true", 1.0),
    (BOOL, "0", 0.0),
    (BOOL, "1.0", 1.0),
    (BOOL, "2", REFUSED),
    (BOOL, '"true"', REFUSED),
    (CATEGORY, '"grocery"', 3.0),
    (CATEGORY, "5411", 0.0),
    (CATEGORY, "1.50", 1.0),
    (CATEGORY, "1.5", -1.0),
    (CATEGORY, "true", 2.0),
    (CATEGORY, '"new"', -1.0),
    (CATEGORY, "{}", REFUSED),
    (HOUR, '"2026-01-05T06:30:00Z"', 6.5),
    (HOUR, '"2026-01-05t00:30:00.000+02:00"', 22.5),
    (HOUR, "1767594600000", 6.5),
    (HOUR, "-1800000", 23.5),
    (HOUR, '"2026-01-05"', REFUSED),
    (HOUR, '"2026-02-30T00:00:00Z"', REFUSED),
    (HOUR, '"2026-01-05T24:00:00Z"', REFUSED),
    (DAY, '"2026-01-05T00:30:00+02:00"', 6.0),
    (DAY, '"1969-12-31T23:00:00Z"', 2.0),
    (DAY, "1767594600", REFUSED),
]


@pytest.mark.parametrize(("feature", "text", "want"), CASES)
def test_one_value(feature, text, want):
    if want is REFUSED:
        with pytest.raises(RefusedError):
            decode(parse_record(f'{{"v": {text}}}'), [feature])
    else:
        assert decode(parse_record(f'{{"v": {text}}}'), [feature])[0] == want


@pytest.mark.parametrize("line", ["", "{", "[]", '"x"', '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 5000, b"\xff{}"])
def test_what_is_no_record(line):
    with pytest.raises(RefusedError):
        parse_record(line)


def test_missing_values():
    optional = Feature("f", "a.b", "number", "impute")
    for line in ('{"a": {"b": null}}', '{"a": {}}', '{"a": 3}', "{}"):
        assert math.isnan(decode(parse_record(line), [optional])[0])
    with pytest.raises(RefusedError, match="`v` is missing"):
        decode({}, [NUMBER])


def test_columns_follow_the_same_rules():
    values, refused = encode_column(np.array([1.0, np.nan, 1e39]), NUMBER)
    assert values[0] == 1
    assert set(refused) == {1, 2}
    mixed = np.array(["grocery", 5411, True, None, "new"], object)
    values, refused = encode_column(mixed, CATEGORY)
    assert [values[i] for i in (0, 1, 2, 4)] == [3, 0, 2, -1]
    assert set(refused) == {3}
