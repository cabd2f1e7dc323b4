"""`residuald-train translate`: trains on pairs of images. The training itself is `images/translation.py`."""

from pathlib import Path

from .shared import add_training, add_verb, require, training_options


def add_parser(verbs):
    p = add_verb(
        verbs,
        "translate",
        run,
        "Train a model that turns images of one kind into another, such as those of a second camera, from pairs of the "
        "same scene: DIR/source/NAME and DIR/target/NAME. `residuald translate` applies it.",
        "translate --pairs cameras --out models/b-to-a",
    )
    p.add_argument("--pairs", type=Path, required=True, metavar="DIR", help="the folder with source and target")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the pipeline")
    p.add_argument("--channels", type=int, choices=[1, 3], default=3, help="of the targets: 1 gray, 3 colour (default)")
    p.add_argument("--source-channels", type=int, choices=[1, 3], help="of the sources (default: as --channels)")
    p.add_argument("--crop", type=int, default=64, metavar="N", help="train on crops of N pixels (default 64)")
    p.add_argument(
        "--held-out", type=float, default=0.1, metavar="SHARE", help="share of the pairs to measure on (default 0.1)"
    )
    add_training(p, steps=4000, batch=16)


def run(args):
    require(
        ("--crop", args.crop >= 16 and args.crop % 16 == 0, "be a multiple of 16"),
        ("--held-out", 0 < args.held_out < 1, "be a share between 0 and 1"),
    )
    from ..images.translation import Options, train

    options = training_options(Options, args, crop=args.crop)
    channels = args.source_channels or args.channels, args.channels
    train(args.pairs, channels, options, args.out, args.held_out, args.checkpoint, args.resume, args.force)
