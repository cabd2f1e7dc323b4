"""`residuald-train images`: trains on images. The training itself is `images/pipeline.py`."""

from pathlib import Path

from .. import TrainerError
from .shared import (
    LAYOUTS,
    add_distill,
    add_force,
    add_images,
    add_resume,
    add_seed,
    add_verb,
    distill_check,
    image_defects,
    image_options,
    image_shape,
    positive_or_default,
    require,
)


def add_parser(verbs):
    p = add_verb(
        verbs,
        "images",
        run,
        f"Train on normal images and export a bundle. {LAYOUTS}",
        "images --data images --out models/mine --size 256 --samples /tmp/sheets",
    )
    add_images(p)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    p.add_argument("--name", help="the model's name (default: the folder's)")
    p.add_argument("--version", default="1", help="the model's version (default 1)")
    p.add_argument(
        "--held-out",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of the normal images to calibrate on, not to train on (default 0.2)",
    )
    add_seed(p)
    add_resume(p)
    p.add_argument(
        "--samples",
        type=Path,
        metavar="DIR",
        help="write contact sheets during training; columns: clean, corrupted, restored, added, found. "
        "Defects of --draw-with are in defects.png, beside the images without them",
    )
    p.add_argument(
        "--generative",
        action="store_true",
        help="add a denoiser that images (with --tiles: tiles) can be drawn from: residuald generate. The recipe ddim "
        "has one, the others train one",
    )
    p.add_argument("--generative-steps", type=int, metavar="N", help="its training steps of 16 images (default 4000)")
    p.add_argument("--generative-minutes", type=float, metavar="MINUTES", help="limit of its training time")
    add_distill(p)
    add_force(p)
    p.add_argument("--dry-run", action="store_true", help="print the options and the number of images, train nothing")


def run(args):
    shape = image_shape(args)
    require(
        ("--held-out", 0 < args.held_out < 1, "be a share between 0 and 1"),
        ("--generative-steps", positive_or_default(args.generative_steps), "be a positive number"),
        (
            "--generative-minutes",
            positive_or_default(args.generative_minutes),
            "be a positive number",
        ),
        distill_check(args),
    )
    for name, given in (("steps", args.generative_steps), ("minutes", args.generative_minutes)):
        if given is not None and not args.generative:
            raise TrainerError(f"--generative-{name} has no effect without --generative")
        if given is not None and args.recipe == "ddim":
            raise TrainerError(f"--generative-{name} is not for --recipe ddim: ddim has one denoiser, so use --{name}")
    if args.distill and not args.generative:
        raise TrainerError("--distill has no effect without --generative")
    if args.distill and args.recipe == "ddim":
        raise TrainerError(
            "--distill is for --recipe blind, best and kernel: the denoiser of ddim predicts noise, which says nothing "
            "of the image in the first step"
        )
    from ..images.pipeline import Settings, train_bundle

    defects, draw_with = image_defects(args, shape)
    options = image_options(args, args.seed, defects)
    settings = Settings(
        data=args.data,
        normal=args.normal,
        groups=args.groups,
        shape=shape,
        recipe=args.recipe,
        options=options,
        draw_with=draw_with,
        out=args.out,
        name=args.name or args.out.resolve().name,
        version=args.version,
        held_out=args.held_out,
        seed=args.seed,
        resume=args.resume,
        checkpoint=args.checkpoint,
        samples=args.samples,
        dry_run=args.dry_run,
        force=args.force,
        generative=generative_options(args, options) if args.generative else None,
        distill=args.distill,
    )
    train_bundle(settings)


def generative_options(args, recipe):
    """The options of the generative denoiser: its own steps and minutes, and the recipe's seed, device and threads."""
    from ..images.generative import Options

    given = {"seed": args.seed, "device": recipe.device, "amp": recipe.amp, "threads": recipe.threads}
    given |= {"steps": args.generative_steps, "minutes": args.generative_minutes}
    return Options(**{k: v for k, v in given.items() if v is not None})
