"""Generates the table of values in the chart's README from values.yaml and its comments."""

import json
import re

import yaml

BEGIN, END = "<!-- values: pytest tests/chart --regenerate -->", "<!-- end of values -->"


def with_table(readme, values):
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    rows = [f"| `{key}` | `{json.dumps(default)}` | {text} |" for key, default, text in documented(values)]
    return "\n".join([before + BEGIN, "| value | default | what |", "| --- | --- | --- |", *rows, END + after])


def documented(values):
    """[(key, default, description)] of each value. A map with a description counts as one value."""
    lines = values.split("\n")
    return list(rows(yaml.compose(values), lines, ()))


def rows(mapping, lines, path):
    for key, value in mapping.value:
        own = (*path, key.value)
        text = description(lines, key.start_mark.line)
        if text is None and isinstance(value, yaml.MappingNode) and value.value:
            yield from rows(value, lines, own)
        else:
            yield ".".join(own), yaml.safe_load(yaml.serialize(value)), text


def description(lines, line):
    """The comment that starts with "# --" on the line above a key, or None."""
    above = re.fullmatch(r"\s*# -- (.*)", lines[line - 1])
    return above and above[1]
