"""Parts of records, and fields set: what is not changed keeps its spelling and its place."""

import pytest
from residuald import Error, select, set_field

RECORD = b'{"b": {"x": 1.50, "y": "\\u00e9", "z": {"w": [1, 2]}}, "a": null, "c": "1"}'


@pytest.mark.parametrize(
    ("paths", "want"),
    [
        ([], b"{}"),
        (["a", "c"], b'{"a":null,"c":"1"}'),
        (["b.x", "c", "b.z.w", "no", "c.d"], b'{"b":{"x":1.50,"z":{"w":[1, 2]}},"c":"1"}'),
        (["b"], b'{"b":{"x": 1.50, "y": "\\u00e9", "z": {"w": [1, 2]}}}'),
    ],
)
def test_select(paths, want):
    assert select(RECORD, paths) == want


@pytest.mark.parametrize(
    ("path", "value", "want"),
    [
        ("a", "2", b'{"a":2,"b":{"c":1.0}}'),
        ("b.c", '"x"', b'{"a":1,"b":{"c":"x"}}'),
        ("b.d.e", "null", b'{"a":1,"b":{"c":1.0,"d":{"e":null}}}'),
        ("a.b", "1", b'{"b":{"c":1.0},"a":{"b":1}}'),
        ("a", None, b'{"b":{"c":1.0}}'),
        ("b.c", None, b'{"a":1,"b":{}}'),
        ("x.y", None, b'{"a":1,"b":{"c":1.0}}'),
        ("a.b", None, b'{"a":1,"b":{"c":1.0}}'),
    ],
)
def test_set_field(path, value, want):
    assert set_field(b'{"a":1,"b":{"c":1.0}}', path, value) == want


def test_a_key_that_holds_dots_is_found():
    record = b'{"a.b":{"c":1},"d":{"e.f":2}}'
    assert select(record, ["a.b.c", "d.e.f"]) == record
    assert set_field(record, "a.b.c", "3") == b'{"a.b":{"c":3},"d":{"e.f":2}}'
    assert set_field(record, "d.e.f", None) == b'{"a.b":{"c":1},"d":{}}'
    assert set_field(record, "d.e.g", "3") == b'{"a.b":{"c":1},"d":{"e.f":2,"e":{"g":3}}}'


def test_what_is_no_record_is_an_error():
    for wrong in (b"[]", "1", b'{"a": \xff}'):
        with pytest.raises(Error):
            select(wrong, ["a"])
    with pytest.raises(Error, match="not JSON"):
        set_field(b"{}", "a", "tru")
