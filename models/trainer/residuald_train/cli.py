"""The command line: one verb a function, `residuald-train --help` lists them."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from . import TrainerError, __version__
from .data import label_is_normal, read
from .features import encode, load_schema, schema_to_json
from .images import cli as images
from .infer import infer

MIN_ROWS, MAX_ROWS = 32, 1_000_000
MOST_SUSPECTED = 0.2
RECIPES = "kernel", "blind", "hybrid", "ddim", "best"


def parser():
    top = argparse.ArgumentParser(prog="residuald-train", description="Trains models for residuald.")
    top.add_argument("--version", action="version", version=f"residuald-train {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name, run, text, example):
        p = verbs.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  residuald-train {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        p.set_defaults(run=run)
        return p

    def data_of(p, required=True):
        p.add_argument(
            "--data", nargs="+", required=required, metavar="FILE", help=".csv .parquet .ndjson (also .gz) .npz"
        )
        p.add_argument("--label", metavar="COL", help="column that tells normal rows; never a feature")
        p.add_argument("--normal", metavar="VALUE", help="its value on normal rows (default 0)")
        return p

    def bundle_of(p, more=""):
        p.add_argument("bundle", type=Path, metavar="BUNDLE", help=f"the bundle's folder, of kind tabular{more}")
        return p

    def rows_of(p):
        data_of(p).add_argument("--drop", nargs="+", default=[], metavar="COL", help="columns that are not features")
        return p

    p = rows_of(
        verb(
            "schema",
            schema_verb,
            "Guess the input schema of data files, for you to edit.",
            "schema --data history.ndjson.gz --label fraud --out schema.json",
        )
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: standard output)")

    p = rows_of(
        verb(
            "tabular",
            tabular_verb,
            "Train on normal rows and export a bundle.",
            "tabular --data history.ndjson.gz --schema schema.json --label fraud --out models/payments",
        )
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    p.add_argument("--name", help="the model's name (default: the folder's)")
    p.add_argument("--version", default="1", help="the model's version (default 1)")
    p.add_argument("--schema", type=Path, metavar="FILE", help="an edited schema (default: guess one)")
    p.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="of the normals, to calibrate on (0.2)")
    p.add_argument(
        "--contamination",
        type=float,
        default=0,
        metavar="SHARE",
        help="of the rows, suspected to be anomalies that nobody labelled: so many of the strangest are left out",
    )
    p.add_argument(
        "--max-rows",
        type=int,
        default=MAX_ROWS,
        metavar="N",
        help=f"of more rows, N are drawn at random over all files (default {MAX_ROWS:,})",
    )
    p.add_argument("--seed", type=int, default=0, help="default 0")
    p.add_argument("--recipe", choices=RECIPES, default="best", help="what scores (default best); see README.md")
    p.add_argument("--coreset", type=int, default=1000, metavar="N", help="centers of the kernel (default 1000)")
    p.add_argument("--steps", type=int, default=1000, help="training steps of 128 rows (default 1000); kernel: none")
    p.add_argument("--width", type=int, default=96, help="of the network (default 96)")
    p.add_argument(
        "--nearest",
        nargs="?",
        const=True,
        metavar="COL",
        help="keep normal records (one a center of the kernel, the schema's fields, COL as their id) for the daemon to "
        "show beside an anomaly; they are in the bundle as they came",
    )
    p.add_argument("--segment", metavar="COL", help="calibrate by its values: thresholds for each segment of the rows")
    p.add_argument("--dry-run", action="store_true", help="print the options and the schema, train nothing")

    p = verb(
        "screen",
        screen_verb,
        "Add a screen to a bundle: a small network that spares the scorer the records that are clearly normal.",
        "screen models/payments --data history.ndjson.gz --label fraud",
    )
    data_of(bundle_of(p, "; changed in place")).set_defaults(drop=[])
    p.add_argument("--max-rows", type=int, default=MAX_ROWS, metavar="N", help=f"as for tabular (default {MAX_ROWS:,})")
    p.add_argument("--seed", type=int, default=0, help="default 0")
    p.add_argument("--out", type=Path, metavar="DIR", help="leave BUNDLE as it is and write the other here")

    p = verb(
        "quantize",
        quantize_verb,
        "Make a bundle's networks 8-bit integers, with thresholds that fit, and tell what that changes.",
        "quantize models/payments --data models/payments/sample.ndjson.gz --label label --out models/payments-int8",
    )
    data_of(bundle_of(p)).set_defaults(drop=[])
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the other bundle's folder")

    p = verb(
        "report",
        report_verb,
        "Write a bundle's model card: one HTML file with its facts, thresholds and, given data, how it does.",
        "report models/payments --data models/payments/sample.ndjson.gz --label label --out report.html",
    )
    data_of(bundle_of(p), required=False).set_defaults(drop=[])
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page, of one file that loads nothing")

    p = verb(
        "bench",
        bench_verb,
        "Train and measure recipes on every labelled set of a folder, beside simpler methods.",
        "bench --data sets --protocol clean --seeds 5 --recipe best hybrid kernel --out build/quality",
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="of .npz (X, y) and .csv (y or label)")
    p.add_argument("--protocol", nargs="+", choices=["clean", "published"], default=["clean"], help="default clean")
    p.add_argument("--seeds", type=int, default=5, metavar="N", help="default 5")
    p.add_argument("--recipe", nargs="+", choices=RECIPES, default=["best", "hybrid", "kernel", "blind"])
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for results.json, gone on from, and results.md"
    )
    p.add_argument("--steps", type=int, metavar="N", help="training steps (default: the recipe's)")
    p.add_argument(
        "--contamination",
        type=float,
        default=0,
        metavar="SHARE",
        help="of the training rows, made of labelled anomalies that the test then lacks; recipes run thrice: "
        "without them (clean), with them, and told of the share",
    )
    p.add_argument("--jobs", type=int, metavar="N", help="runs at a time, one core each (default: all cores)")
    p.add_argument("--no-peers", action="store_true", help="leave the simpler methods out")
    p.add_argument("--fast", action="store_true", help="the smallest sets and few rows, for CI")
    images.add_verbs(verb)
    return top


def say(*lines):
    print(*lines, sep="\n", file=sys.stderr)


def load(args, label=None):
    """Reads the data -> (table, label or None); a label is {"path", "normal"}."""
    table = read(args.data, getattr(args, "max_rows", MAX_ROWS), getattr(args, "seed", 0))
    say(*table.messages)
    if args.label:
        label = {"path": args.label, "normal": plain(args.normal or "0")}
    elif args.normal:
        raise TrainerError("--normal wants --label: which column holds the value?")
    elif label is None and "y" in table.columns and all(str(f).endswith(".npz") for f in args.data):
        label = {"path": "y", "normal": 0}
        say("label: `y`, normal = 0 (the custom of NPZ files)")
    if label and label["path"] not in table.columns:
        raise TrainerError(f"the label column `{label['path']}` is not in the data; there are: {some(table.columns)}")
    for column in args.drop:
        if column not in table.columns:
            raise TrainerError(f"--drop: no column `{column}`; there are: {some(table.columns)}")
    return table, label


def load_like(args, served):
    """As load; without --label by the label that the bundle was trained with, where the data has it."""
    table, label = load(args)
    if label is None and (trained := served.manifest.get("training", {}).get("options", {}).get("label")):
        label = trained if trained["path"] in table.columns else None
    return table, label


def some(names):
    return ", ".join(list(names)[:40])


def plain(text):
    """A command-line value as JSON would have it: 0 -> 0, normal. -> "normal."."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def normals(table, label):
    """-> (normal rows, the other rows)."""
    if not label:
        return table, None
    normal = label_is_normal(table.columns[label["path"]], label["normal"])
    if not normal.any():
        seen = list(dict.fromkeys(map(str, table.columns[label["path"]][:1000].tolist())))[:10]
        raise TrainerError(f"no row has `{label['path']}` = {label['normal']!r}; it holds {some(seen)}; set --normal")
    return table.take(np.flatnonzero(normal)), table.take(np.flatnonzero(~normal))


def guess(table, label, drop):
    features, messages = infer(table, {*drop, *([label["path"]] if label else [])})
    say(*(f"schema: {message}" for message in messages))
    return features


def schema_verb(args):
    table, label = load(args)
    text = json.dumps(
        schema_to_json(guess(normals(table, label)[0], label, args.drop), label), indent=1, ensure_ascii=False
    )
    if args.out:
        args.out.write_text(text + "\n")
        say(f"wrote {args.out}; edit it, then: residuald-train tabular --schema {args.out} ...")
    else:
        print(text)


def check_contamination(share):
    if not 0 <= share <= MOST_SUSPECTED:
        raise TrainerError(f"--contamination wants a share from 0 to {MOST_SUSPECTED}: what is more common is normal")


def tabular_verb(args):
    check_contamination(args.contamination)
    for name, ok, wants in [
        ("--held-out", 0 < args.held_out < 1, "a share between 0 and 1"),
        ("--steps", args.steps > 0, "a positive number"),
        ("--width", args.width > 0, "a positive number"),
        ("--coreset", args.coreset > 1, "two or more"),
        ("--max-rows", args.max_rows >= MIN_ROWS, f"at least {MIN_ROWS}"),
    ]:
        if not ok:
            raise TrainerError(f"{name} wants {wants}")
    # torch loads slowly: only where it is needed
    from . import nearest
    from .contamination import suspects
    from .export import bundle, check_out, run_onnx, session, write
    from .score import auroc
    from .served import microseconds_a_row
    from .train import Options, fit, split

    args.name = args.name or args.out.resolve().name
    check_out(args.out)
    features, label = load_schema(args.schema) if args.schema else (None, None)
    table, label = load(args, label)
    if args.nearest not in (None, True) and args.nearest not in table.columns:
        raise TrainerError(f"--nearest: no column `{args.nearest}`; there are: {some(table.columns)}")
    table, others = normals(table, label)
    if features is None:
        features = guess(table, label, args.drop)
    features = [f for f in features if f.path not in args.drop and not (label and f.path == label["path"])]

    if args.segment:
        check_segment(args.segment, table, features)

    options = Options(args.recipe, args.seed, args.steps, width=args.width, coreset=args.coreset)
    shown = asdict(options) | {"held_out": args.held_out, "max_rows": args.max_rows, "label": label}
    shown |= {"segment": args.segment} if args.segment else {}
    shown |= {"contamination": args.contamination}
    print("options:", json.dumps({"name": args.name, "version": args.version, "out": str(args.out)} | shown))
    print("schema:", json.dumps(schema_to_json(features), ensure_ascii=False, indent=1))
    if args.dry_run:
        return

    X, accepted, refused = encode(table, features)
    for reason, count in refused.most_common(10):
        say(f"left out {count} rows that the schema refuses: {reason}")
    kept = np.flatnonzero(accepted)
    facts = {"seed": args.seed}
    if args.contamination and len(kept):
        strange = suspects(features, X[kept], args.contamination, args.seed)
        kept, facts["suspected_rows"] = kept[~strange], int(strange.sum())
        print(
            f"suspected: {strange.sum()} rows are left out, of those to calibrate on too: where they were normal, "
            f"false alarms come more often than asked, by up to {args.contamination:g} of the records"
        )
    if len(kept) < MIN_ROWS:
        raise TrainerError(f"{len(kept)} normal rows fit the schema; training wants at least {MIN_ROWS}")
    fit_rows, held_rows = split(len(kept), args.held_out, args.seed)
    fit_rows, held_rows = kept[fit_rows], kept[held_rows]
    print(f"rows: {len(fit_rows)} to train on, {len(held_rows)} held out")
    scorer = fit(features, X[fit_rows], options)

    facts |= {"rows": len(fit_rows), "held_out_rows": len(held_rows), "data": table.files}
    facts = {"name": args.name, "version": args.version, "training": facts | {"options": shown}}
    records = [table.record(int(i)) for i in held_rows[:1000]]
    more = {}
    if args.nearest:
        name = None if args.nearest is True else args.nearest
        more = nearest.files(scorer, X[fit_rows], options, table.take(fit_rows), name)
    values = table.columns[args.segment][held_rows].tolist() if args.segment else None
    files, parity, score = bundle(scorer, features, X[held_rows], records, facts, args.segment, values, more)
    write(args.out, files)

    quantiles = zip((0.5, 0.9, 0.99, 0.999, 1), np.quantile(score, (0.5, 0.9, 0.99, 0.999, 1)), strict=True)
    run = session(files["model.onnx"])
    cost = microseconds_a_row(run, np.resize(X[held_rows], (16_384, len(features))), rounds=1)
    print("held-out scores:", ", ".join(f"{q:g} {value:.3f}" for q, value in quantiles))
    print(f"cost: {cost:.1f} µs a row on one core, in batches of 256")
    print(f"parity: ONNX Runtime and torch differ by at most {parity:.1e}")
    if others is not None and others.rows:
        Y, accepted, _ = encode(others, features)
        if accepted.any():
            area = auroc(score, run_onnx(run, Y[accepted])[0])
            print(f"detection: AUROC {area:.4f} ({accepted.sum()} labelled anomalies against the held-out normals)")
    print(f"wrote {args.out} ({len(files['model.onnx']) / 1e6:.2f} MB model)")


def screen_verb(args):
    from . import screen
    from .export import check_out, write
    from .served import Served, microseconds_a_row, session

    out = args.out or args.bundle
    check_out(out)
    served = Served(args.bundle)
    table, label = load_like(args, served)
    X, accepted, refused = encode(normals(table, label)[0], served.features)
    for reason, count in refused.most_common(10):
        say(f"left out {count} rows that the schema refuses: {reason}")
    if accepted.sum() < screen.LEAST_ROWS:
        raise TrainerError(f"{accepted.sum()} normal rows fit the schema; a screen wants at least {screen.LEAST_ROWS}")
    X = X[accepted]
    files, answers = screen.add(served, X, args.seed)
    write(out, files)

    for rate in (1e-2, 1e-3, 1e-4):
        if rate < served.calibration.finest_rate():
            continue
        bound = answers.bound(served.calibration.threshold(rate), screen.MISSED)
        if bound is None:
            print(f"at a false-alarm rate of {rate:g}: too few probes score above the threshold for a bound")
        else:
            print(f"at a false-alarm rate of {rate:g}: clears {answers.cleared(bound):.1%} of normal records")
    batch = np.resize(X, (16_384, X.shape[1]))
    costs = [microseconds_a_row(run, batch) for run in (session(files["screen.onnx"]), served.session)]
    print("cost: {:.2f} µs a row on one core, in batches of 256; the scorer {:.2f}".format(*costs))
    print(f'wrote {out}; next: screen.mode = "audit", then "on"')


def quantize_verb(args):
    from .export import check_out, write
    from .quantize import quantize, summary
    from .served import Served

    check_out(args.out)
    if args.out.resolve() == args.bundle.resolve():
        raise TrainerError(f"--out {args.out} is the bundle itself; give another folder, so that both can be compared")
    served = Served(args.bundle)
    table, label = load_like(args, served)
    anomalous = ~label_is_normal(table.columns[label["path"]], label["normal"]) if label else None
    files = quantize(served, table, anomalous)
    write(args.out, files)
    print(*summary(served, files), f"wrote {args.out}", sep="\n")


def report_verb(args):
    from .card import Judged, card
    from .served import Served

    served, judged = Served(args.bundle), None
    if not args.data and (args.label or args.normal):
        raise TrainerError("--label and --normal want --data: which records do they tell apart?")
    if args.data:
        table, label = load_like(args, served)
        anomalous = ~label_is_normal(table.columns[label["path"]], label["normal"]) if label else None
        judged = Judged(served, table, anomalous)
    args.out.write_text(card(served, judged), encoding="utf-8")
    print(f"wrote {args.out}" + (f" ({len(judged.score)} of {judged.read} records scored)" if judged else ""))


def check_segment(path, table, features):
    if path not in table.columns:
        raise TrainerError(f"--segment: no column `{path}`; there are: {some(table.columns)}")
    for feature in features:
        if feature.path.startswith(path + ".") or path.startswith(feature.path + "."):
            raise TrainerError(f"--segment: `{path}` cannot be a value where a feature is at `{feature.path}`")


def bench_verb(args):
    from . import peers
    from .bench import bench

    check_contamination(args.contamination)
    for name, value in [("--seeds", args.seeds), ("--steps", args.steps), ("--jobs", args.jobs)]:
        if value is not None and value < 1:
            raise TrainerError(f"{name} wants a positive number")
    beside = [] if args.no_peers else peers.available()
    left_out = [] if args.no_peers else [name for name in peers.PEERS if name not in beside]
    if left_out:
        say(f"without {', '.join(left_out)}: PyOD is not installed (pip install 'residuald-train[bench]')")
    bench(
        args.data,
        args.protocol,
        args.seeds,
        args.recipe,
        beside,
        args.out,
        fast=args.fast,
        steps=args.steps,
        jobs=args.jobs,
        contamination=args.contamination,
    )


def main(argv=None):
    code = attempt(argv)
    if argv is None and code:
        # A failed read leaves threads of PyArrow behind. Python's normal exit may destroy them while they run, which
        # aborts the process with a signal instead of this code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def attempt(argv):
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except TrainerError as error:
        say(f"residuald-train: {error}")
        return 65
    except OSError as error:
        say(f"residuald-train: {error}")
        return 74
    except KeyboardInterrupt:
        say("residuald-train: stopped; nothing was written")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
