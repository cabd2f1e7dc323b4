"""`residuald-train schema`: infers the input schema of data files, and shows what becomes of each column."""

import json
import shutil
import sys
import textwrap
from pathlib import Path

import residuald

from .. import TrainerError
from ..console import say
from ..tabular.features import check_features, schema_to_json
from ..tabular.labels import anomalous_rows, read_labelled, split_by_label
from .shared import add_data, add_drop, add_keep, add_missing, add_verb, data_source

WIDEST = 32  # characters of a column's name in the table


def add_parser(verbs):
    p = add_verb(
        verbs,
        "schema",
        run,
        "Infer the input schema of data files, as a draft for you to edit.",
        "schema --data history.ndjson.gz --label fraud --out schema.json",
    )
    add_data(p)
    add_drop(p)
    add_keep(p)
    add_missing(p)
    p.add_argument("--out", type=Path, metavar="FILE", help="the schema file to write (default: standard output)")


def run(args):
    from ..tabular.leaks import say_leaks

    source = data_source(args)
    table, label = read_labelled(source)
    normals = split_by_label(table, label)[0]
    wishes = [*source.drop, *([label["path"]] if label else [])], list(source.keep), list(source.missing)
    columns = normals.describe(*wishes)
    say(*rows_for_people(columns, label, source.drop))
    try:
        features = check_features(normals.infer(*wishes)[0])
    except residuald.Error as error:
        raise TrainerError(str(error)) from None
    say_leaks(table, anomalous_rows(table, label), features)
    text = json.dumps(schema_to_json(features, label, source.missing), indent=1, ensure_ascii=False)
    if args.out:
        args.out.write_text(text + "\n")
        say(f"wrote {args.out}; edit it, then: residuald-train tabular --schema {args.out} ...")
    else:
        print(text)


def rows_for_people(columns, label, drop):
    """What `Table.describe` returns, and the columns that were not looked at -> the lines of a table."""
    rows = [("column", "read as", "why, or examples")]
    for column in columns:
        why = "; ".join(column["notes"]) or f"such as {', '.join(column['examples'])}"
        missing = f" ({column['missing']} missing)" if column["missing"] else ""
        rows.append((column["path"], column["read_as"] or "left out", why + missing))
    rows += [(label["path"], "label", f"{label['normal']!r} is normal")] if label else []
    rows += [(path, "left out", "--drop") for path in drop]
    widths = [min(max(len(row[at]) for row in rows), WIDEST) for at in (0, 1)]
    room = max(shutil.get_terminal_size().columns - sum(widths) - 4, 40) if sys.stderr.isatty() else 10_000
    lines = []
    for name, read_as, why in rows:
        first, *more = textwrap.wrap(printable(why), room) or [""]
        lines.append(f"{printable(name):{widths[0]}}  {read_as:{widths[1]}}  {first}".rstrip())
        lines += [" " * (sum(widths) + 4) + line for line in more]
    return lines


def printable(text):
    """Escapes what a terminal would execute."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
