"""`residuald-train wrap`: makes a bundle of a model that was trained elsewhere. The work is in `foreign/`."""

from pathlib import Path

from .shared import (
    add_data,
    add_drop,
    add_force,
    add_keep,
    add_max_rows,
    add_seed,
    add_verb,
    data_source,
    require,
    size,
)


def add_parser(verbs):
    p = add_verb(
        verbs,
        "wrap",
        run,
        "Make a bundle of an ONNX model from elsewhere: scikit-learn, PyOD, Anomalib, an autoencoder, a denoiser. Adds "
        "what the daemon needs, calibrates on normal records, and proves the result. See docs/src/own-models.md.",
        "wrap model.onnx --schema schema.json --data normals.parquet --out models/mine",
    )
    p.add_argument("model", type=Path, metavar="MODEL", help="the ONNX file")
    add_data(p)
    add_drop(p)
    add_keep(p)
    p.add_argument("--schema", type=Path, metavar="FILE", help="the schema of the records (default: infer one)")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    p.add_argument("--name", help="the model's name (default: the folder's)")
    p.add_argument("--version", default="1", help="the model's version (default 1)")
    p.add_argument(
        "--columns",
        nargs="+",
        metavar="NAME[:ENCODING]",
        help="the model's input columns in its order: NAME, NAME:onehot or NAME:ordinal; or a JSON file with encodings "
        "and scales (default: the schema's features in their order)",
    )
    kinds = ["score", "reconstruction", "denoiser", "anomaly-map"]
    p.add_argument("--kind", choices=kinds, help="what the model returns (default: by its inputs and outputs)")
    p.add_argument("--output", metavar="NAME", help="the model's output to use (default: by name and shape)")
    p.add_argument(
        "--higher-is",
        choices=["anomalous", "normal"],
        help="which way a score points (default: the convention of its producer, tested on distorted records)",
    )
    p.add_argument(
        "--reasons",
        choices=["occlusion", "deviation"],
        help="for a score: run the model once more for each feature, or measure how far each feature is from its "
        "typical value (default: occlusion up to 64 features)",
    )
    p.add_argument(
        "--missing",
        choices=["fill", "model"],
        default="fill",
        help="what replaces missing values: the typical value, or the model itself (default fill)",
    )
    p.add_argument("--scheduler", type=Path, metavar="FILE", help="a denoiser's scheduler_config.json of diffusers")
    p.add_argument("--timesteps", type=int, nargs="+", metavar="T", help="a denoiser's (default: at 5, 10 and 25 %%)")
    p.add_argument(
        "--pixel-mean", type=float, nargs="+", metavar="V", help="subtracted from pixels in 0..1 (default 0)"
    )
    p.add_argument("--pixel-std", type=float, nargs="+", metavar="V", help="pixels are divided by it (default 1)")
    p.add_argument(
        "--embed-data", action="store_true", help="put external data, in files beside MODEL, into the bundle"
    )
    p.add_argument("--size", type=size, metavar="N or HxW", help="size of the images, if the model leaves it open")
    p.add_argument(
        "--false-alarm-rate",
        type=float,
        default=0.001,
        metavar="RATE",
        help="share of normal records that may be flagged, for the printed threshold (default 0.001)",
    )
    add_max_rows(p)
    add_seed(p)
    add_force(p)


def run(args):
    require(("--false-alarm-rate", 0 < args.false_alarm_rate < 1, "be a share between 0 and 1"))
    from ..foreign.bundle import wrap

    source = data_source(args)
    same = ("name", "version", "kind", "output", "columns", "higher_is", "reasons", "missing", "scheduler", "timesteps")
    same += ("pixel_mean", "pixel_std", "size", "embed_data", "false_alarm_rate", "seed", "force")
    wrap(args.model, args.data, args.out, args.schema, source, **{name: getattr(args, name) for name in same})
