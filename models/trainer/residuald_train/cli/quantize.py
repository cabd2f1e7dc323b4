"""`residuald-train quantize`: makes an 8-bit copy of a bundle."""

from pathlib import Path

from .. import TrainerError
from ..tabular.labels import anomalous_rows, read_labelled_like
from .shared import add_bundle, add_data, add_force, add_verb, data_source


def add_parser(verbs):
    p = add_verb(
        verbs,
        "quantize",
        run,
        "Make a copy of a bundle with 8-bit networks and new thresholds, and print how scores and verdicts change.",
        "quantize models/payments --data models/payments/sample.ndjson.gz --label label --out models/payments-int8",
    )
    add_bundle(p)
    add_data(p)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new bundle's folder")
    add_force(p)


def run(args):
    from ..bundle.export import check_out, write
    from ..bundle.quantize import quantize, summary
    from ..bundle.served import Served

    if args.out.resolve() == args.bundle.resolve():
        raise TrainerError(f"--out {args.out} is the bundle itself; pass another folder, so that both can be compared")
    check_out(args.out, args.force)
    served = Served(args.bundle)
    table, label = read_labelled_like(data_source(args), served.manifest)
    files = quantize(served, table, anomalous_rows(table, label))
    write(args.out, files, args.force)
    print(*summary(served, files), f"wrote {args.out}", sep="\n")
