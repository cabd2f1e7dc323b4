"""`residuald-train screen`: adds a screen to a bundle."""

from pathlib import Path

from ..tabular.features import encode
from ..tabular.labels import read_labelled_like, split_by_label
from ..tabular.refusals import say_refusals
from .shared import add_bundle, add_data, add_force, add_max_rows, add_seed, add_verb, data_source


def add_parser(verbs):
    p = add_verb(
        verbs,
        "screen",
        run,
        "Add a screen to a bundle: a small network that finds clearly normal records, which the scorer then skips.",
        "screen models/payments --data history.ndjson.gz --label fraud",
    )
    add_bundle(p, "; changed in place")
    add_data(p)
    add_max_rows(p)
    add_seed(p)
    p.add_argument("--out", type=Path, metavar="DIR", help="write the new bundle here and leave BUNDLE unchanged")
    add_force(p)


def run(args):
    from ..bundle.export import check_out, write
    from ..bundle.screen import add_screen, summary
    from ..bundle.served import Served

    out = args.out or args.bundle
    replace = args.force or out.resolve() == args.bundle.resolve()
    check_out(out, replace)
    served = Served(args.bundle)
    table, label = read_labelled_like(data_source(args), served.manifest)
    normals = split_by_label(table, label)[0]
    X, accepted, refused = encode(normals, served.features)
    say_refusals(normals, served.features, accepted, refused)
    files, answers = add_screen(served, X[accepted], args.seed)
    write(out, files, replace)
    print(*summary(served, files, answers, X[accepted]), sep="\n")
    print(f'wrote {out}; next: screen.mode = "audit", then "on"')
