"""`residuald-train tabular`: trains on records. The training itself is in `tabular/pipeline.py`."""

from pathlib import Path

from .shared import (
    RECIPES,
    add_data,
    add_drop,
    add_force,
    add_keep,
    add_max_rows,
    add_minutes,
    add_missing,
    add_resume,
    add_seed,
    add_verb,
    check_contamination,
    data_source,
    positive_or_default,
    require,
)


def add_parser(verbs):
    p = add_verb(
        verbs,
        "tabular",
        run,
        "Train on normal rows and export a bundle.",
        "tabular --data history.ndjson.gz --schema schema.json --label fraud --out models/payments",
    )
    add_data(p)
    add_drop(p)
    add_keep(p)
    add_missing(p)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    p.add_argument("--name", help="the model's name (default: the folder's)")
    p.add_argument("--version", default="1", help="the model's version (default 1)")
    p.add_argument("--schema", type=Path, metavar="FILE", help="an edited schema (default: infer one)")
    p.add_argument(
        "--held-out",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of the normal rows to calibrate on, not to train on (default 0.2)",
    )
    p.add_argument(
        "--contamination",
        type=float,
        default=0,
        metavar="SHARE",
        help="suspected share of unlabelled anomalies; this share of the most unusual rows is left out",
    )
    add_max_rows(p)
    add_seed(p)
    p.add_argument("--recipe", choices=RECIPES, default="best", help="how to score (default best); see README.md")
    p.add_argument(
        "--coreset",
        type=int,
        metavar="N",
        help="centers of each kernel (default 1000, and up to 4000 in a table with few columns)",
    )
    p.add_argument("--steps", type=int, default=1000, help="training steps of 128 rows (default 1000); kernel has none")
    add_minutes(p)
    p.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="cpu",
        help="where to train the networks (default cpu: they are small, and the same seed gives the same bytes there)",
    )
    add_resume(p)
    p.add_argument("--width", type=int, default=96, help="width of the network (default 96)")
    p.add_argument(
        "--nearest",
        nargs="?",
        const=True,
        metavar="COL",
        help="store normal records in the bundle, so that the daemon can show the most similar one beside an anomaly; "
        "stores the schema's fields unchanged, one record for each center of the kernel, with COL as its id",
    )
    p.add_argument(
        "--generative",
        action="store_true",
        help="also train a denoiser that rows can be drawn from: residuald generate, impute, denoise, rehearse. "
        "The bundle then holds up to 20,000 training rows and as many held-out ones, for the privacy gate",
    )
    p.add_argument(
        "--generative-steps", type=int, default=8000, metavar="N", help="most training steps of 256 rows (default 8000)"
    )
    p.add_argument("--generative-minutes", type=float, metavar="MINUTES", help="limit of its training time")
    p.add_argument("--segment", metavar="COL", help="calibrate a separate threshold for each value of this column")
    add_force(p)
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="print the options and the schema, count the rows that it refuses, and train nothing",
    )


def run(args):
    source = data_source(args)
    check_contamination(args.contamination)
    from ..generative.train import Options
    from ..tabular.pipeline import MIN_ROWS, Settings, train_bundle
    from ..training import choose_device

    require(
        ("--held-out", 0 < args.held_out < 1, "be a share between 0 and 1"),
        ("--steps", args.steps > 0, "be a positive number"),
        ("--minutes", positive_or_default(args.minutes), "be a positive number"),
        ("--width", args.width > 0, "be a positive number"),
        ("--generative-steps", args.generative_steps > 0, "be a positive number"),
        ("--generative-minutes", positive_or_default(args.generative_minutes), "be a positive number"),
        ("--coreset", args.coreset is None or args.coreset > 1, "be two or more"),
        ("--max-rows", args.max_rows >= MIN_ROWS, f"be at least {MIN_ROWS}"),
    )
    settings = Settings(
        source,
        out=args.out,
        name=args.name or args.out.resolve().name,
        version=args.version,
        schema=args.schema,
        recipe=args.recipe,
        seed=args.seed,
        steps=args.steps,
        minutes=args.minutes,
        device=choose_device(args.device),
        resume=args.resume,
        checkpoint=args.checkpoint,
        width=args.width,
        coreset=args.coreset,
        held_out=args.held_out,
        contamination=args.contamination,
        nearest=args.nearest,
        segment=args.segment,
        generative=Options(args.seed, args.generative_steps, args.generative_minutes) if args.generative else None,
        dry_run=args.dry_run,
        force=args.force,
    )
    train_bundle(settings)
