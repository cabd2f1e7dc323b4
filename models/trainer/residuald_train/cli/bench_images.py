"""`residuald-train bench-images`: measures detection on images for several seeds."""

import json
from functools import partial
from pathlib import Path

from .shared import LAYOUTS, add_images, add_verb, image_options, image_shape


def add_parser(verbs):
    p = add_verb(
        verbs,
        "bench-images",
        run,
        f"Train and measure for several seeds, beside patch-kNN, PCA and a PaDiM-like Gaussian. {LAYOUTS}",
        "bench-images --data tiles --normal MT_Free --groups tiles/tiles.csv --seeds 3",
    )
    add_images(p)
    p.add_argument("--seeds", type=int, default=3, help="default 3")
    p.add_argument(
        "--part",
        choices=["all", "development", "report"],
        default="all",
        help="all: hold out 30%% of the normal groups, others each seed. development: the same in one half of the "
        "groups, to choose settings. report: train on that half's normals, measure on the other half",
    )
    p.add_argument("--no-peers", action="store_true", help="leave the simpler methods out")
    p.add_argument("--json", type=Path, metavar="FILE", help="write every number there")


def run(args):
    shape = image_shape(args)
    from ..bench.images import bench
    from ..images.data import read_folder

    good, bad = read_folder(args.data, args.normal, args.groups)
    total = bench(good, bad, shape, partial(image_options, args), args.seeds, args.part, not args.no_peers)
    if args.json:
        args.json.write_text(json.dumps(total, indent=1) + "\n")
