"""`residuald-train text-to-image`: trains on images with captions. The training itself is `images/text_to_image.py`."""

from pathlib import Path

from .shared import add_distill, add_training, add_verb, distill_check, require, training_options


def add_parser(verbs):
    p = add_verb(
        verbs,
        "text-to-image",
        run,
        "Train a pipeline that draws images from words, on images with captions. `residuald generate --prompt` draws "
        "from it; its layout is that of diffusers and optimum.",
        "text-to-image --data images --captions captions.csv --text-encoder minilm --out models/mine",
    )
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of images")
    p.add_argument(
        "--captions",
        type=Path,
        required=True,
        metavar="CSV",
        help="file with the columns image (path below DIR) and caption; an image may have several lines",
    )
    p.add_argument(
        "--text-encoder",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with tokenizer/ and text_encoder/, which is not trained; examples/minilm.py makes one",
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the pipeline")
    p.add_argument("--channels", type=int, choices=[1, 3], default=3, help="1 gray, 3 colour (default)")
    p.add_argument(
        "--size",
        type=int,
        default=128,
        metavar="N",
        help="train on squares of N pixels, cut from the middle (default 128)",
    )
    p.add_argument("--drawn", type=int, metavar="N", help="size of a drawn image without --size (default 256)")
    add_distill(p, " and without guidance")
    add_training(p, steps=8000, batch=8)


def run(args):
    require(
        ("--size", args.size >= 32 and args.size % 16 == 0, "be a multiple of 16, at least 32"),
        (
            "--drawn",
            args.drawn is None or (args.drawn >= 32 and args.drawn % 16 == 0),
            "be a multiple of 16, at least 32",
        ),
        distill_check(args),
    )
    from ..images.text_to_image import Options, train

    options = training_options(Options, args, size=args.size, drawn=args.drawn)
    where = args.data, args.captions, args.text_encoder
    train(*where, args.channels, options, args.out, args.checkpoint, args.resume, args.force, args.distill)
