"""`residuald-train schema`: infers the input schema of data files."""

import json
from pathlib import Path

from ..console import say
from ..tabular.features import infer_schema, schema_to_json
from ..tabular.labels import read_labelled, split_by_label
from .shared import add_data, add_drop, add_keep, add_verb, data_source


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
    p.add_argument("--out", type=Path, metavar="FILE", help="the schema file to write (default: standard output)")


def run(args):
    table, label = read_labelled(data_source(args))
    features = infer_schema(split_by_label(table, label)[0], label, args.drop, args.keep)
    text = json.dumps(schema_to_json(features, label), indent=1, ensure_ascii=False)
    if args.out:
        args.out.write_text(text + "\n")
        say(f"wrote {args.out}; edit it, then: residuald-train tabular --schema {args.out} ...")
    else:
        print(text)
