"""`residuald-train paraphrases`: a pipeline learns other words for its captions. See `images/paraphrases.py`."""

from pathlib import Path

from .shared import add_force, add_seed, add_verb, positive_or_default, require


def add_parser(verbs):
    p = add_verb(
        verbs,
        "paraphrases",
        run,
        "Teach a pipeline of `text-to-image` other words for its captions, from pairs of a caption and a paraphrase, "
        "without images. A small network before the denoiser finds the nearest caption. The pipeline then draws only "
        "the captions of the pairs, so give it all that it shall draw.",
        "paraphrases models/mine --pairs pairs.csv --out models/mine-paraphrases",
    )
    p.add_argument("model", type=Path, metavar="MODEL", help="the folder of a pipeline, with its text encoder")
    p.add_argument(
        "--pairs",
        type=Path,
        required=True,
        metavar="CSV",
        help="file with the columns caption (one that the pipeline was trained on) and paraphrase",
    )
    p.add_argument(
        "--held-out",
        type=Path,
        metavar="CSV",
        help="file with other pairs of these captions, to measure on (default: a tenth of the pairs)",
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the new pipeline")
    p.add_argument("--steps", type=int, help="training steps (default 1500)")
    p.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    add_seed(p)
    add_force(p)


def run(args):
    require(
        ("--steps", positive_or_default(args.steps), "be a positive number"),
        ("--threads", positive_or_default(args.threads), "be a positive number"),
    )
    from ..images.paraphrases import Options, train

    given = {name: value for name in ("steps", "threads", "seed") if (value := getattr(args, name)) is not None}
    train(args.model, args.pairs, args.held_out, Options(**given), args.out, args.force)
