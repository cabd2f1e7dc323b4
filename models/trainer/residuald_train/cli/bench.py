"""`residuald-train bench`: measures recipes on labelled data sets."""

from pathlib import Path

from ..console import say
from .shared import RECIPES, add_verb, check_contamination, positive_or_default, require


def add_parser(verbs):
    p = add_verb(
        verbs,
        "bench",
        run,
        "Train recipes on every labelled data set in a folder, measure detection and compare with simpler methods.",
        "bench --data adbench oddbench --protocol clean --seeds 5 --recipe best hybrid kernel --out build/quality",
    )
    p.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="folders of labelled sets, each a family of its own: .npz (X, y), .csv (y or label), or .npz with a fixed "
        "split (train, test, test_labels), as those of OddBench",
    )
    p.add_argument(
        "--protocol",
        nargs="+",
        choices=["clean", "published"],
        default=["clean"],
        help="how to split the sets that have no fixed split (default clean)",
    )
    p.add_argument(
        "--part",
        choices=["all", "development", "report"],
        default="all",
        help="development: the half of each family on which settings are chosen; report: the other (default both)",
    )
    p.add_argument("--seeds", type=int, default=5, metavar="N", help="number of seeds (default 5)")
    p.add_argument("--recipe", nargs="+", choices=RECIPES, default=["best", "hybrid", "kernel", "blind"])
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the results; if it holds a results.json of an earlier run, that run is continued",
    )
    p.add_argument("--steps", type=int, metavar="N", help="training steps (default: the recipe's)")
    p.add_argument(
        "--contamination",
        type=float,
        default=0,
        metavar="SHARE",
        help="move labelled anomalies from the test rows to the training rows until they are this share of them; each "
        "recipe then runs three times: without these rows (clean), with them, and told of the share",
    )
    p.add_argument("--jobs", type=int, metavar="N", help="parallel runs, one core each (default: all cores)")
    p.add_argument("--no-peers", action="store_true", help="do not run the simpler methods")
    p.add_argument("--fast", action="store_true", help="use only the smallest sets and few rows, for CI")


def run(args):
    from ..bench import tabular_peers as peers
    from ..bench.tabular import bench

    check_contamination(args.contamination)
    require(
        ("--seeds", args.seeds > 0, "be a positive number"),
        ("--steps", positive_or_default(args.steps), "be a positive number"),
        ("--jobs", positive_or_default(args.jobs), "be a positive number"),
    )
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
        part=args.part,
    )
