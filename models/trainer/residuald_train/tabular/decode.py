"""Decodes one JSON record into one row of numbers.

The daemon implements the same rules in Rust (src/decode): a record that is refused here becomes a dead letter there.
Each feature is one column of the row. NaN means missing; -1 means a category that is not in the vocabulary.
"""

import json
import math
import re

import numpy as np

EPOCH_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000}
FLOAT32_MAX = 3.4028235e38
RFC3339 = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(\.\d+)?([Zz]|([+-])(\d\d):(\d\d))", re.ASCII)


class RefusedError(ValueError):
    """The record does not match the schema. The daemon makes it a dead letter."""


class Decimal(float):
    """A JSON number with a fraction or exponent. It keeps its text, because the categories 1.50 and 1.5 differ."""

    def __new__(cls, text):
        number = super().__new__(cls, text)
        number.text = text
        return number


def _unique(pairs):
    record = dict(pairs)
    if len(record) != len(pairs):
        raise RefusedError("a key occurs twice")
    return record


def _not_json(token):
    raise RefusedError(f"{token} is not JSON")


def parse_record(line):
    """Parses one JSON object from str or bytes. Raises RefusedError for anything else."""
    try:
        hooks = {"parse_float": Decimal, "parse_constant": _not_json, "object_pairs_hook": _unique}
        record = json.loads(line, **hooks)
    except RefusedError:
        raise
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"not JSON: {error}") from None
    if not isinstance(record, dict):
        raise RefusedError("not a JSON object")
    return record


def lookup(record, path):
    """The value at a dotted path into nested objects, or None if it is absent."""
    for key in path.split("."):
        if not isinstance(record, dict):
            return None
        record = record.get(key)
    return record


def decode(record, features):
    """Decodes a record to a row float32 [F]. Raises RefusedError if it does not match the schema."""
    return np.array([decode_value(f, lookup(record, f.path)) for f in features], np.float32)


def decode_value(feature, value):
    """Decodes one JSON value (None if absent) to a float. Raises RefusedError if it does not match the feature."""
    if value is None:
        if feature.missing == "impute":
            return math.nan
        raise RefusedError(f"{feature.name}: `{feature.path}` is missing")
    try:
        return DECODERS[feature.type](feature, value)
    except RefusedError as error:
        raise RefusedError(f"{feature.name}: {error}") from None


def _number(feature, value):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RefusedError("not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= FLOAT32_MAX:
        raise RefusedError("does not fit float32")
    return number


def _bool(feature, value):
    if isinstance(value, bool | int | float) and value in (0, 1):
        return float(value)
    raise RefusedError("not a boolean")


def _categorical(feature, value):
    text = category(value)
    if text is None:
        raise RefusedError("not a category")
    return float(feature.codes.get(text, -1))


def category(value):
    """The name of a category: a string unchanged, a number or boolean as written in JSON, None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return value.text
    return repr(value) if isinstance(value, int | float) else None


def parse_rfc3339(text):
    """RFC 3339 string -> (days since 1970-01-01, seconds of the day) in UTC, or None if it is not RFC 3339."""
    match = RFC3339.fullmatch(text)
    if not match:
        return None
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    offset = 0
    if match[9]:
        if int(match[10]) > 23 or int(match[11]) > 59:
            return None
        offset = (int(match[10]) * 3600 + int(match[11]) * 60) * (-1 if match[9] == "-" else 1)
    try:
        days = int((np.datetime64(f"{year:04}-{month:02}-{day:02}") - np.datetime64("1970-01-01")).astype(int))
    except ValueError:
        return None
    if hour > 23 or minute > 59 or second > 59:
        return None
    carry, seconds = divmod(hour * 3600 + minute * 60 + second - offset, 86_400)
    return days + carry, seconds + float(match[7] or 0)


def _timestamp(feature, value):
    if isinstance(value, str):
        parsed = parse_rfc3339(value)
        if parsed is None:
            raise RefusedError("not an RFC 3339 timestamp")
        days, seconds = parsed
    elif feature.epoch_unit and not isinstance(value, bool) and isinstance(value, int | float):
        if not abs(value) < 1e18:
            raise RefusedError("the timestamp is out of range")
        days, seconds = divmod(float(value) / EPOCH_UNITS[feature.epoch_unit], 86_400)
    else:
        raise RefusedError("not a time")
    return seconds / 3600 if feature.part == "hour_of_day" else float((int(days) + 3) % 7)


DECODERS = {"number": _number, "bool": _bool, "categorical": _categorical, "timestamp": _timestamp}
