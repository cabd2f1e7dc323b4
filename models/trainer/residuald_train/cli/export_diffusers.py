"""`residuald-train export-diffusers`: writes what a bundle draws images with as a pipeline of diffusers."""

from pathlib import Path

from ..console import say
from .shared import add_force, add_verb


def add_parser(verbs):
    p = add_verb(
        verbs,
        "export-diffusers",
        run,
        "Write what a bundle draws images with as a pipeline in the layout of diffusers and optimum, for other tools. "
        "What `text-to-image` writes has this layout already.",
        "export-diffusers models/parts --out parts-pipeline",
    )
    p.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="the folder of a bundle of `residuald-train images --generative`"
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the pipeline")
    add_force(p)


def run(args):
    from ..images.export_diffusers import export

    steps, notes = export(args.bundle, args.out, args.force)
    for note in notes:
        say(f"note: {note}")
    print(f"wrote {args.out}, a pipeline that draws with {steps} steps")
