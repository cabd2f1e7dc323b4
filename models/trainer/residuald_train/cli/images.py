"""`residuald-train images`: trains on images. The training itself is `images/pipeline.py`."""

from pathlib import Path

from .. import TrainerError
from .shared import LAYOUTS, add_force, add_images, add_resume, add_seed, add_verb, image_options, image_shape, require


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
        help="write contact sheets during training; columns: clean, corrupted, restored, added, found",
    )
    p.add_argument("--denoiser", action="store_true", help="ddim: add denoiser.onnx and its schedule to the bundle")
    add_force(p)
    p.add_argument("--dry-run", action="store_true", help="print the options and the number of images, train nothing")


def run(args):
    shape = image_shape(args)
    require(("--held-out", 0 < args.held_out < 1, "be a share between 0 and 1"))
    if args.denoiser and args.recipe != "ddim":
        raise TrainerError("--denoiser requires --recipe ddim")
    from ..images.pipeline import Settings, train_bundle

    settings = Settings(
        data=args.data,
        normal=args.normal,
        groups=args.groups,
        shape=shape,
        recipe=args.recipe,
        options=image_options(args, args.seed),
        out=args.out,
        name=args.name or args.out.resolve().name,
        version=args.version,
        held_out=args.held_out,
        seed=args.seed,
        resume=args.resume,
        checkpoint=args.checkpoint,
        samples=args.samples,
        denoiser=args.denoiser,
        dry_run=args.dry_run,
        force=args.force,
    )
    train_bundle(settings)
