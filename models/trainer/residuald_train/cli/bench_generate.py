"""`residuald-train bench-generate`: measures drawn tables beside other generators."""

from pathlib import Path

from .. import TrainerError
from ..console import say
from .shared import add_verb, positive_or_default, require

OURS, PEERS = "residuald", ("ctgan", "tvae", "copula", "forest")


def add_parser(verbs):
    p = add_verb(
        verbs,
        "bench-generate",
        run,
        "Draw rows from a model of every table, and compare their quality and privacy with those of other generators.",
        "bench-generate --data sets --seeds 5 --out build/generate",
    )
    p.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of labelled sets, .npz (X, y); normal rows are used"
    )
    p.add_argument("--table", type=Path, metavar="FILE", help="records of normal rows, with --schema")
    p.add_argument("--schema", type=Path, metavar="FILE", help="the schema of --table")
    p.add_argument("--seeds", type=int, default=5, metavar="N", help="number of seeds (default 5)")
    p.add_argument("--method", nargs="+", choices=[OURS, *PEERS], help="default: residuald and the peers installed")
    p.add_argument(
        "--part",
        choices=["all", "development", "report"],
        default="all",
        help="development: the half of the sets on which settings were chosen; report: the others; both have --table",
    )
    p.add_argument("--steps", type=int, metavar="N", help="most training steps (default: those of --generative)")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of results.json, which is continued")
    p.add_argument("--fast", action="store_true", help="few rows and training steps, for CI")


def run(args):
    from ..bench import generate, generate_peers

    require(
        ("--seeds", args.seeds > 0, "be a positive number"),
        ("--steps", positive_or_default(args.steps), "be a positive number"),
    )
    if (args.table is None) != (args.schema is None):
        raise TrainerError("--table and --schema go together")
    if not (args.data or args.table):
        raise TrainerError("pass --data, --table, or both")
    there = generate_peers.available()
    if missing := [name for name in args.method or PEERS if name != OURS and name not in there]:
        say(f"without {', '.join(missing)}: not installed (pip install -r models/trainer/generate.lock)")
    methods = [m for m in args.method or [OURS, *PEERS] if m == OURS or m in there]
    steps = args.steps or (300 if args.fast else None)
    tables = [(args.table, args.schema)] if args.table else []
    options = {"steps": steps} if steps else None
    generate.bench(args.data, tables, args.seeds, methods, args.out, args.part, args.fast, options)
    print(f"wrote {args.out / 'GENERATE.md'}")
