"""The verbs `images` and `bench-images`."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .. import TrainerError
from .pixels import Shape, Tiles

MIN_PICTURES = 16
LAYOUTS = (
    "DIR: train/good, test/CLASS and ground_truth/CLASS/STEM_mask.png (Anomalib's layout); with --normal NAME a folder "
    "a class, masks beside the pictures as STEM.png; otherwise any folder of normal pictures."
)


def add_verbs(verb):
    """`verb(name, run, text, example)` -> a parser."""
    p = verb(
        "images",
        images_verb,
        f"Train on normal pictures and export a bundle. {LAYOUTS}",
        "images --data pictures --out models/mine --size 256 --samples /tmp/sheets",
    )
    common(p)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    p.add_argument("--name", help="the model's name (default: the folder's)")
    p.add_argument("--version", default="1", help="the model's version (default 1)")
    p.add_argument("--held-out", type=float, default=0.2, metavar="SHARE", help="of the normals, to calibrate on (0.2)")
    p.add_argument("--seed", type=int, default=0, help="default 0")
    p.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help="saved every minute (default: OUT.checkpoint)")
    p.add_argument("--samples", type=Path, metavar="DIR", help="sheets: clean, corrupted, restored, added, seen")
    p.add_argument("--denoiser", action="store_true", help="ddim: put denoiser.onnx and its schedule into the bundle")
    p.add_argument("--dry-run", action="store_true", help="print the options and what was found, train nothing")
    p = verb(
        "bench-images",
        bench_verb,
        f"Train and measure for several seeds, beside patch-kNN, PCA and a PaDiM-like Gaussian. {LAYOUTS}",
        "bench-images --data tiles --normal MT_Free --groups tiles/tiles.csv --seeds 3",
    )
    common(p)
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


def common(p):
    p.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of pictures")
    p.add_argument("--normal", metavar="NAME", help="the normal class's folder, in a folder a class")
    p.add_argument("--groups", type=Path, metavar="CSV", help="image,tile: pictures of one tile stay on one side")
    p.add_argument("--recipe", choices=["blind", "ddim"], default="blind", help="default blind")
    p.add_argument("--size", type=size, default=(256, 256), metavar="N or HxW", help="of the model's input (256)")
    p.add_argument("--channels", type=int, choices=[1, 3], default=1, help="1 gray (default), 3 colour")
    p.add_argument("--tiles", type=tiles, metavar="SCALE,OVERLAP", help="cut large pictures: 0.5,32 resizes by 0.5")
    p.add_argument("--steps", type=int, help="training steps (default: the recipe's)")
    p.add_argument("--minutes", type=float, help="end earlier, the schedule with it")
    p.add_argument("--batch", type=int, help="pictures a step (default: the recipe's)")
    p.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default auto")
    p.add_argument("--amp", action="store_true", default=None, help="bfloat16 (default: on a GPU)")
    p.add_argument("--threads", type=int, help="of the CPU (default: all)")


def size(text):
    h, _, w = text.lower().partition("x")
    return int(h), int(w or h)


def tiles(text):
    scale, _, overlap = text.partition(",")
    return Tiles(float(scale), int(overlap or 0))


def shape_of(args):
    h, w = args.size
    for name, ok, wants in [
        ("--size", min(h, w) >= 32 and max(h, w) <= 512, "32 to 512 pixels"),
        ("--tiles", not args.tiles or args.tiles.scale > 0, "a positive scale"),
        ("--tiles", not args.tiles or 0 <= args.tiles.overlap < min(h, w), "an overlap smaller than a tile"),
        ("--steps", args.steps is None or args.steps > 0, "a positive number"),
        ("--minutes", args.minutes is None or args.minutes > 0, "a positive number"),
        ("--batch", args.batch is None or args.batch > 1, "two or more"),
        ("--threads", args.threads is None or args.threads > 0, "a positive number"),
    ]:
        if not ok:
            raise TrainerError(f"{name} wants {wants}")
    return Shape(h, w, args.channels, args.tiles)


def options_of(args, seed):
    import torch  # loads slowly: only where it is needed

    from . import ddim
    from .train import Options

    there = torch.cuda.is_available()
    if args.device == "cuda" and not there:
        raise TrainerError("--device cuda: torch finds no GPU here")
    device = "cuda" if there and args.device != "cpu" else "cpu"
    given = {"steps": args.steps, "minutes": args.minutes, "batch": args.batch, "threads": args.threads}
    given |= {"amp": device == "cuda" if args.amp is None else args.amp, "device": device, "seed": seed}
    kind = Options if args.recipe == "blind" else ddim.Options
    return kind(**{k: v for k, v in given.items() if v is not None})


def images_verb(args):
    shape = shape_of(args)
    if not 0 < args.held_out < 1:
        raise TrainerError("--held-out wants a share between 0 and 1")
    if args.denoiser and args.recipe != "ddim":
        raise TrainerError("--denoiser is for --recipe ddim")
    from . import ddim, train
    from .data import fingerprint, read_folder, split
    from .export import bundle, check_out, run_onnx, session, write
    from .metrics import image_metrics, picture_scores
    from .pixels import to_rows
    from .sheet import training_sheets

    args.name = args.name or args.out.resolve().name
    check_out(args.out)
    good, bad = read_folder(args.data, args.normal, args.groups)
    options = options_of(args, args.seed)
    shown = asdict(options) | {"recipe": args.recipe, "held_out": args.held_out}
    print("options:", json.dumps({"name": args.name, "version": args.version, "out": str(args.out)} | shown))
    print("input:", json.dumps(shape.manifest()))
    print(f"pictures: {len(good)} normal, {len(bad)} labelled; {len({p.group for p in good})} groups of normal ones")
    if args.dry_run:
        return
    if len(good) < MIN_PICTURES:
        raise TrainerError(f"{len(good)} normal pictures; training wants at least {MIN_PICTURES}")
    fit_on, held = split(good, args.held_out, args.seed)
    print(f"split: {len(fit_on)} to train on, {len(held)} held out, by group")
    x, _ = to_rows(fit_on, shape)

    checkpoint = args.checkpoint or args.out.resolve().with_name(args.out.resolve().name + ".checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    recipe = train if args.recipe == "blind" else ddim
    sheet = training_sheets(args.samples) if args.samples else None
    began = time.monotonic()
    scorer = recipe.fit(shape, x, options, checkpoint, args.resume, sheet)
    minutes = (time.monotonic() - began) / 60

    y, owner = to_rows(held, shape)
    training = {"seed": args.seed, "rows": len(fit_on), "held_out_rows": len(held), "steps": scorer.steps}
    training |= {"minutes": round(minutes, 1), "data": fingerprint(good), "options": shown}
    facts = {"name": args.name, "version": args.version, "training": training}
    files, parity, score = bundle(scorer, y, owner, facts, ddim.denoiser_files(scorer) if args.denoiser else {})
    write(args.out, files)
    if not args.checkpoint:
        os.unlink(checkpoint)

    quantiles = zip((0.5, 0.9, 0.99, 1), np.quantile(score, (0.5, 0.9, 0.99, 1)), strict=True)
    print("held-out scores:", ", ".join(f"{q:g} {value:.3f}" for q, value in quantiles))
    run, began = session(files["model.onnx"]), time.perf_counter()
    some = y[np.arange(16) % len(y)]
    run_onnx(run, some, 1)
    cost = (time.perf_counter() - began) / len(some) * 1e3
    print(f"cost: {cost:.1f} ms a row of {shape.height}x{shape.width} on one core")
    print(f"parity: ONNX Runtime and torch differ by at most {parity:.1e}")
    if bad:
        z, owner = to_rows(bad, shape)
        found = picture_scores(run_onnx(run, z)[0], owner)
        labels = ["good"] * len(score) + [p.label for p in bad]
        measured = image_metrics(np.concatenate([score, found]), labels)
        print("detection (AUROC x 100):", ", ".join(f"{k} {100 * v:.1f}" for k, v in measured.items()))
    print(f"wrote {args.out} ({len(files['model.onnx']) / 1e6:.2f} MB model)")


def bench_verb(args):
    shape = shape_of(args)
    from .bench import bench
    from .data import read_folder

    good, bad = read_folder(args.data, args.normal, args.groups)
    total = bench(good, bad, shape, lambda seed: options_of(args, seed), args.seeds, args.part, not args.no_peers)
    if args.json:
        args.json.write_text(json.dumps(total, indent=1) + "\n")
