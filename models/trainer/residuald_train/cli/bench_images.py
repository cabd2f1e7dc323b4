"""`residuald-train bench-images`: measures detection on images for several seeds."""

import json
from functools import partial
from pathlib import Path

from .shared import LAYOUTS, add_images, add_verb, image_defects, image_options, image_shape


def add_parser(verbs):
    p = add_verb(
        verbs,
        "bench-images",
        run,
        "Train with several seeds, measure detection, compare with patch-kNN, PCA, a Gaussian of each pixel and a "
        "PaDiM-like method. --recipe blind or best trains one network and measures blind, best and kernel; the others "
        f"measure themselves. {LAYOUTS}",
        "bench-images --data tiles --normal MT_Free --groups tiles/tiles.csv --seeds 3",
    )
    add_images(p)
    p.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds (default 3)")
    p.add_argument(
        "--part",
        choices=["all", "development", "report"],
        default="all",
        help="all: test on 30%% of the normal groups, different ones for each seed. development: the same within one "
        "half of the groups, to choose settings. report: train on the normal images of that half, test on the other",
    )
    p.add_argument(
        "--checkpoints",
        type=Path,
        metavar="DIR",
        help="keep the networks here; a run with the same images and options takes them from here, or continues them",
    )
    p.add_argument("--no-peers", action="store_true", help="do not run the simpler methods")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")


def run(args):
    shape = image_shape(args)
    defects, draw_with = image_defects(args, shape)
    from ..bench.images import bench
    from ..images.data import read_folder

    good, bad = read_folder(args.data, args.normal, args.groups)
    options = partial(image_options, args, defects=defects)
    total = bench(
        good,
        bad,
        shape,
        options,
        args.seeds,
        args.part,
        not args.no_peers,
        draw_with=draw_with,
        checkpoints=args.checkpoints,
    )
    if args.json:
        args.json.write_text(json.dumps(total, indent=1) + "\n")
