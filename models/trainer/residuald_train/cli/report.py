"""`residuald-train report`: writes a bundle's model card."""

from pathlib import Path

from .. import TrainerError
from ..tabular.labels import anomalous_rows, read_labelled_like
from .shared import add_bundle, add_data, add_verb, data_source


def add_parser(verbs):
    p = add_verb(
        verbs,
        "report",
        run,
        "Write a bundle's model card: one HTML file with its facts, thresholds and, given data, how well it detects.",
        "report models/payments --data models/payments/sample.ndjson.gz --label label --out report.html",
    )
    add_bundle(p)
    add_data(p, required=False)
    p.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the HTML file to write; it loads no other file"
    )


def run(args):
    from ..bundle.served import Served
    from ..report.card import ScoredRecords, card

    served, scored = Served(args.bundle), None
    if not args.data and (args.label or args.normal):
        raise TrainerError("--label and --normal require --data: they tell which of its records are normal")
    if args.data:
        table, label = read_labelled_like(data_source(args), served.manifest)
        scored = ScoredRecords(served, table, anomalous_rows(table, label))
    args.out.write_text(card(served, scored), encoding="utf-8")
    print(f"wrote {args.out}" + (f" ({len(scored.score)} of {scored.read} records scored)" if scored else ""))
