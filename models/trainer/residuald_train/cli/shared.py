"""Arguments and checks that several verbs share."""

import argparse
from pathlib import Path

from .. import TrainerError
from ..tabular.labels import MAX_ROWS, DataSource, json_value

MAX_CONTAMINATION = 0.2
# The keys of tabular.recipes.RECIPES, repeated here because importing them would import torch.
RECIPES = "kernel", "blind", "hybrid", "ddim", "best"
FORMATS = "csv", "tsv", "ndjson", "json", "parquet", "arrow", "npz"
LAYOUTS = (
    "DIR has one of three layouts. Anomalib's: train/good, test/CLASS and ground_truth/CLASS/STEM_mask.png. With "
    "--normal NAME: one folder for each class, with masks beside the images as STEM.png. Otherwise: normal images only."
)


def add_verb(verbs, name, run, text, example):
    """Adds a verb -> its argument parser. `run(args)` is called when the verb is used."""
    p = verbs.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  residuald-train {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.set_defaults(run=run)
    return p


def add_data(p, required=True):
    p.add_argument(
        "--data",
        nargs="+",
        required=required,
        metavar="FILE",
        help=".csv .tsv .ndjson .json (also .gz) .parquet .arrow .feather .npz; a folder of part files, a pattern in "
        "quotes such as 'part-*.csv', or - for standard input",
    )
    p.add_argument("--format", choices=FORMATS, help="format of the files (default: as their names or contents tell)")
    p.add_argument("--label", metavar="COL", help="column that tells normal rows from anomalies; never a feature")
    p.add_argument("--normal", metavar="VALUE", help="value of the label column on normal rows (default 0)")
    p.add_argument(
        "--envelope",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="NAME",
        help="what surrounds each JSON record, the outermost first, as the daemon's input.envelope: connect, debezium, "
        "cloudevents, mongo, json-string, avro-json",
    )
    p.add_argument(
        "--unwrap",
        default="none",
        metavar="PLACE",
        help="where the records of a line are, as the daemon's input.unwrap: list, or the path of a list",
    )
    p.add_argument("--allow-nan", action="store_true", help="read NaN and Infinity in JSON as missing")


def add_drop(p):
    p.add_argument("--drop", nargs="+", default=[], metavar="COL", help="columns that are not features")


def add_keep(p):
    text = "columns that are features, even if the guessed schema would leave them out as ids or as only growing"
    p.add_argument("--keep", nargs="+", default=[], metavar="COL", help=text)


def add_missing(p):
    text = (
        "values that count as missing in every column, separated by commas: --missing 'n.a.,?', and --missing=-1,9999 "
        "if the first is negative; the schema lists them as missing_values"
    )
    p.add_argument("--missing", type=spellings, default=(), metavar="LIST", help=text)


def spellings(text):
    """ "n.a.,-1" -> ("n.a.", -1)."""
    return tuple(json_value(part.strip()) for part in text.split(",") if part.strip())


def add_bundle(p, more=""):
    p.add_argument("bundle", type=Path, metavar="BUNDLE", help=f"the folder of a tabular bundle{more}")


def add_max_rows(p):
    p.add_argument(
        "--max-rows",
        type=int,
        default=MAX_ROWS,
        metavar="N",
        help=f"if the files hold more rows, draw N of them at random (default {MAX_ROWS:,})",
    )


def add_force(p):
    p.add_argument("--force", action="store_true", help="replace the bundle that --out holds already")


def add_minutes(p):
    p.add_argument("--minutes", type=float, help="limit of training time; also shortens the learning rate schedule")


def add_resume(p):
    p.add_argument("--resume", action="store_true", help="continue from the checkpoint of a run that was stopped")
    text = "checkpoint file, saved every minute and on Ctrl-C (default: OUT.checkpoint)"
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)


def add_training(p, steps, batch):
    """Adds what the trainings of image pipelines share. `steps` and `batch`: the defaults that the help names."""
    p.add_argument("--steps", type=int, help=f"training steps (default {steps})")
    add_minutes(p)
    p.add_argument("--batch", type=int, help=f"images in each step (default {batch})")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train (default auto)")
    p.add_argument("--amp", action="store_true", default=None, help="train in bfloat16 (default: only on a GPU)")
    p.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    add_seed(p)
    add_resume(p)
    add_force(p)


def training_options(options, args, **more):
    """Checks the options of `add_training` -> an instance of the dataclass `options`. None in `more` is its default."""
    from ..training import choose_device

    require(
        ("--steps", positive_or_default(args.steps), "be a positive number"),
        ("--minutes", positive_or_default(args.minutes), "be a positive number"),
        ("--batch", positive_or_default(args.batch), "be a positive number"),
        ("--threads", positive_or_default(args.threads), "be a positive number"),
    )
    device = choose_device(args.device)
    given = {name: getattr(args, name) for name in ("steps", "minutes", "batch", "threads", "seed")}
    given |= {"amp": device == "cuda" if args.amp is None else args.amp, "device": device} | more
    return options(**{name: value for name, value in given.items() if value is not None})


def add_distill(p, more=""):
    p.add_argument(
        "--distill",
        type=int,
        metavar="N",
        help=f"after training, distill the denoiser so that it draws in N steps, 1 to 4{more}; takes half as long "
        "again. With --resume and the --checkpoint of a finished training, nothing else is trained",
    )


def distill_check(args):
    """What `require` checks of --distill. The bound is that of images.distillation, which would import torch."""
    return "--distill", args.distill is None or 1 <= args.distill <= 4, f"be 1 to 4, not {args.distill}"


def add_seed(p):
    p.add_argument("--seed", type=int, default=0, help="random seed (default 0)")


def data_source(args):
    """Parsed arguments -> DataSource; a verb without --drop, --max-rows or --seed gets their defaults."""
    names = "drop", "keep", "max_rows", "seed", "format", "missing", "envelope", "unwrap", "allow_nan"
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return DataSource(args.data, args.label, args.normal, **given)


def require(*checks):
    """Raises TrainerError for the first failed check. A check is (option, passed, what the option must be)."""
    for option, holds, rule in checks:
        if not holds:
            raise TrainerError(f"{option} must {rule}")


def check_contamination(share):
    rule = f"be a share from 0 to {MAX_CONTAMINATION}: anything more common counts as normal"
    require(("--contamination", 0 <= share <= MAX_CONTAMINATION, rule))


def positive_or_default(value):
    return value is None or value > 0


def add_images(p):
    """Adds the options for training on images."""
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of images")
    p.add_argument("--normal", metavar="NAME", help="name of the folder with the normal class")
    p.add_argument(
        "--groups",
        type=Path,
        metavar="CSV",
        help="file with columns image,tile; images of one tile stay on the same side of every split",
    )
    p.add_argument(
        "--recipe",
        choices=["best", "kernel", "blind", "ddim"],
        default="blind",
        help="how to score (default blind). blind: a network. kernel: closed forms, made in seconds without training. "
        "best: both, with the closed forms weighted by how far all images show the same thing at the same place",
    )
    p.add_argument(
        "--size", type=size, default=(256, 256), metavar="N or HxW", help="model input size in pixels (default 256)"
    )
    p.add_argument("--channels", type=int, choices=[1, 3], default=1, help="1 gray (default), 3 colour")
    p.add_argument(
        "--tiles",
        type=tiles,
        metavar="SCALE,OVERLAP",
        help="cut large images into tiles: 0.5,32 resizes by 0.5 and lets tiles overlap by 32 pixels",
    )
    p.add_argument(
        "--bit-depth",
        type=int,
        default=16,
        metavar="BITS",
        help="how many bits the camera uses in gray images of 16 bits (default 16); set input.bit_depth to the same",
    )
    p.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    add_minutes(p)
    p.add_argument("--batch", type=int, help="images in each step (default: the recipe's)")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to train (default auto)")
    p.add_argument("--amp", action="store_true", default=None, help="train in bfloat16 (default: only on a GPU)")
    p.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    p.add_argument(
        "--defects",
        nargs="+",
        metavar="WORDS",
        help="mix images with drawn defects into training, for the recipes blind and best: scratch, hole and smear are "
        'drawn by code; with --draw-with, "a scratch" "a hole" and any other words are prompts (default: none)',
    )
    p.add_argument(
        "--draw-with",
        type=Path,
        metavar="DIR",
        help="folder of a text-to-image pipeline with its text encoder, such as models/textures or Stable Diffusion as "
        "optimum exports it, that paints the --defects into training images before training",
    )
    p.add_argument("--draw-pairs", type=int, metavar="N", help="how many images it paints (default 256)")


def size(text):
    """ "256" or "256x128" -> (height, width)."""
    h, _, w = text.lower().partition("x")
    return int(h), int(w or h)


def tiles(text):
    """ "0.5,32" -> Tiles(scale, overlap in pixels)."""
    from ..images.pixels import Tiles

    scale, _, overlap = text.partition(",")
    return Tiles(float(scale), int(overlap or 0))


def image_shape(args):
    """Checks the options of `add_images` -> Shape."""
    from ..images.pixels import Shape

    h, w = args.size
    require(
        ("--size", min(h, w) >= 32 and max(h, w) <= 512, "be 32 to 512 pixels"),
        ("--tiles", not args.tiles or args.tiles.scale > 0, "have a positive scale"),
        ("--tiles", not args.tiles or 0 <= args.tiles.overlap < min(h, w), "have an overlap smaller than a tile"),
        ("--bit-depth", 9 <= args.bit_depth <= 16, "be 9 to 16"),
        ("--steps", positive_or_default(args.steps), "be a positive number"),
        ("--minutes", positive_or_default(args.minutes), "be a positive number"),
        ("--batch", args.batch is None or args.batch > 1, "be two or more"),
        ("--threads", positive_or_default(args.threads), "be a positive number"),
    )
    return Shape(h, w, args.channels, args.tiles, args.bit_depth)


def image_defects(args, shape):
    """Parsed arguments -> (the Defects to train with or None, the Pipeline that draws them or None)."""
    words = args.defects and tuple(dict.fromkeys(" ".join(each.split()) for each in args.defects))
    for option, given in (("--draw-with", args.draw_with), ("--draw-pairs", args.draw_pairs)):
        if given is not None and not words:
            raise TrainerError(f"{option} has no effect without --defects")
    if not words:
        return None, None
    if args.recipe not in ("blind", "best"):
        raise TrainerError(f"--defects is for --recipe blind or best: {args.recipe} has no head that learns from them")
    from ..images import defects, drawn

    if not args.draw_with:
        if args.draw_pairs is not None:
            raise TrainerError("--draw-pairs has no effect without --draw-with")
        names = ", ".join(defects.NAMES)
        unknown = [each for each in words if each not in defects.NAMES]
        require(("--defects", not unknown, f"be {names} without --draw-with, not {', '.join(map(repr, unknown))}"))
        return defects.Defects(words), None
    pairs = drawn.PAIRS if args.draw_pairs is None else args.draw_pairs
    require(
        ("--draw-pairs", pairs >= len(words), f"be at least {len(words)}, one for each of the --defects"),
        ("--defects", all(words), "not be empty"),
    )
    pipeline = drawn.read_pipeline(args.draw_with, shape)
    return defects.Defects(words, pipeline=pipeline.sha256, pairs=pairs), pipeline


def image_options(args, seed, defects=None):
    """Parsed arguments -> the Options of the recipe. Raises TrainerError if --device cuda finds no GPU."""
    from ..images import ddim, kernel, train
    from ..training import choose_device

    device = choose_device(args.device)
    if args.recipe == "kernel":
        for name in ("steps", "minutes", "batch", "samples"):
            if getattr(args, name, None) is not None:
                raise TrainerError(f"--{name} has no effect with --recipe kernel, which trains nothing")
        threads = {} if args.threads is None else {"threads": args.threads}
        return kernel.Options(seed, device, device == "cuda" if args.amp is None else args.amp, **threads)
    given = {"steps": args.steps, "minutes": args.minutes, "batch": args.batch, "threads": args.threads}
    given |= {"amp": device == "cuda" if args.amp is None else args.amp, "device": device, "seed": seed}
    given |= {"defects": defects}
    options = ddim.Options if args.recipe == "ddim" else train.Options
    return options(**{k: v for k, v in given.items() if v is not None})
