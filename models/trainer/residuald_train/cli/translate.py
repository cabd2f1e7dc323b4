"""`residuald-train translate`: trains on pairs of images. The training itself is `images/translation.py`."""

from pathlib import Path

from .shared import add_force, add_minutes, add_resume, add_seed, add_verb, positive_or_default, require


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
    p.add_argument("--steps", type=int, help="training steps (default 4000)")
    add_minutes(p)
    p.add_argument("--batch", type=int, help="crops in each step (default 16)")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train (default auto)")
    p.add_argument("--amp", action="store_true", default=None, help="train in bfloat16 (default: only on a GPU)")
    p.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    add_seed(p)
    add_resume(p)
    add_force(p)


def run(args):
    require(
        ("--crop", args.crop >= 16 and args.crop % 16 == 0, "be a multiple of 16"),
        ("--held-out", 0 < args.held_out < 1, "be a share between 0 and 1"),
        ("--steps", positive_or_default(args.steps), "be a positive number"),
        ("--minutes", positive_or_default(args.minutes), "be a positive number"),
        ("--batch", positive_or_default(args.batch), "be a positive number"),
        ("--threads", positive_or_default(args.threads), "be a positive number"),
    )
    from ..images.translation import Options, train
    from ..training import choose_device

    device = choose_device(args.device)
    given = {"steps": args.steps, "minutes": args.minutes, "batch": args.batch, "threads": args.threads}
    given |= {"amp": device == "cuda" if args.amp is None else args.amp, "device": device}
    given |= {"seed": args.seed, "crop": args.crop}
    options = Options(**{name: value for name, value in given.items() if value is not None})
    channels = args.source_channels or args.channels, args.channels
    train(args.pairs, channels, options, args.out, args.held_out, args.checkpoint, args.resume, args.force)
