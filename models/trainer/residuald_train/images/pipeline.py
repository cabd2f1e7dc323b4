"""The whole of training on images, from a folder to a bundle: `residuald-train images`."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .. import TrainerError
from ..bench.metrics import image_metrics
from ..bundle.export import check_out, write
from ..bundle.served import run_onnx, session
from ..console import say
from ..report.sheet import contact_sheet, training_sheets
from ..training import loss_curve
from . import best, ddim, distillation, drawn, generative, kernel, train
from .data import fingerprint, read_folder, split
from .export import BATCH, make_bundle
from .generative import Options as GenerativeOptions
from .new_group import new_group, told
from .pixels import Shape, image_scores, readable, to_rows

MIN_IMAGES = 16
QUANTILES = 0.5, 0.9, 0.99, 1
COST_ROWS = 16
SHOWN = 16  # drawn defects on the contact sheet


@dataclass(frozen=True)
class Settings:
    """The options of `residuald-train images`."""

    data: Path  # the folder of images
    normal: str | None  # name of the folder with the normal class
    groups: Path | None  # CSV file that says which images belong together
    shape: Shape
    recipe: str
    options: train.Options | ddim.Options | kernel.Options
    out: Path
    name: str
    version: str
    held_out: float  # share of the normal images to calibrate on
    seed: int
    resume: bool
    checkpoint: Path | None
    samples: Path | None  # folder for contact sheets
    dry_run: bool
    force: bool = False  # replace an existing bundle
    draw_with: drawn.Pipeline | None = None  # draws the defects of the options
    generative: GenerativeOptions | None = None  # also add a denoiser to draw images from
    distill: int | None = None  # so that it draws in so few steps


def train_bundle(settings):
    """Trains on the images of `settings.data` and writes the bundle to `settings.out`."""
    check_out(settings.out, settings.force)
    if settings.generative:
        generative.check_size(settings.recipe, settings.shape)
    good, labelled = read_folder(settings.data, settings.normal, settings.groups)
    good, notes = readable(good, settings.shape)
    labelled, more = readable(labelled, settings.shape)
    for note in (*notes, *more):
        say(note)
    recorded = asdict(settings.options) | {"recipe": settings.recipe, "held_out": settings.held_out}
    if recorded.get("defects") is None:
        recorded.pop("defects", None)
    if settings.shape.bit_depth < 16:
        recorded["bit_depth"] = settings.shape.bit_depth
    about = {"name": settings.name, "version": settings.version, "out": str(settings.out)}
    print("options:", json.dumps(about | recorded))
    print("input:", json.dumps(settings.shape.manifest()))
    groups = len({image.group for image in good})
    print(f"images: {len(good)} normal, {len(labelled)} labelled; {groups} groups of normal ones")
    if settings.dry_run:
        return
    if len(good) < MIN_IMAGES:
        raise TrainerError(f"--data has {len(good)} normal images; training needs at least {MIN_IMAGES}")

    fit_on, held_out = split(good, settings.held_out, settings.seed)
    print(f"split: {len(fit_on)} to train on, {len(held_out)} held out, by group")
    x, owner = to_rows(fit_on, settings.shape)
    scorer, checkpoint, minutes = fit(settings, x, np.array([image.group for image in fit_on])[owner])
    more, drawing = generative_files(settings, scorer, x, checkpoint) if settings.generative else ({}, {})

    y, owner = to_rows(held_out, settings.shape)
    training = {"seed": settings.seed, "rows": len(fit_on), "held_out_rows": len(held_out), "steps": scorer.steps}
    training |= {
        "minutes": round(minutes, 1),
        "curves": [{"denoiser": settings.recipe, **loss_curve(scorer.losses)}] if scorer.losses else [],
        "data": fingerprint(good),
        "options": recorded,
        **drawing,
    }
    facts = {"name": settings.name, "version": settings.version, "training": training}
    files, parity, score = make_bundle(scorer, y, owner, facts, more)
    write(settings.out, files, settings.force)
    if not settings.checkpoint:
        distilled = distillation.checkpoints(second(checkpoint), settings.distill) if settings.distill else ()
        for path in (checkpoint, second(checkpoint), of_defects(checkpoint), *distilled):
            path.unlink(missing_ok=True)
    print_summary(files["model.onnx"], scorer.facts(), settings.shape, y, score, parity, labelled)
    if settings.groups and (found := new_group(score, [image.group for image in held_out])):
        print(*told(found), sep="\n")
    print(f"wrote {settings.out} ({len(files['model.onnx']) / 1e6:.2f} MB model)")


def fit(settings, x, groups):
    """Trains on x uint8 [n, H, W, C], groups [n] -> (Scorer, the checkpoint's path, minutes of training)."""
    out = settings.out.resolve()
    checkpoint = settings.checkpoint or out.with_name(out.name + ".checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    began, more = time.monotonic(), {}
    if settings.recipe == "kernel":
        return kernel.fit(settings.shape, x, groups, settings.options), checkpoint, (time.monotonic() - began) / 60
    recipe = ddim if settings.recipe == "ddim" else train
    sheet = training_sheets(settings.samples) if settings.samples else None
    if settings.draw_with:
        more["pairs"] = draw_defects(settings, x, of_defects(checkpoint))
    scorer = recipe.fit(settings.shape, x, settings.options, checkpoint, settings.resume, sheet, **more)
    if settings.recipe == "best":
        scorer = best.add_closed_forms(scorer, x, groups, settings.seed)
    return scorer, checkpoint, (time.monotonic() - began) / 60


def draw_defects(settings, x, checkpoint):
    """Training images uint8 [n, H, W, C] -> Pairs of them with defects; also drawn into the folder of samples."""
    pairs = drawn.draw_pairs(settings.draw_with, x, settings.options, checkpoint, settings.resume)
    if settings.samples:
        some = np.arange(min(SHOWN, len(pairs.row)))
        contact_sheet(pairs.with_defect(x, some), SHOWN).save(settings.samples / "defects.png")
    return pairs


def of_defects(checkpoint):
    """The path of what a pipeline has drawn so far, beside the recipe's checkpoint."""
    return checkpoint.with_name(checkpoint.name + ".defects")


def second(checkpoint):
    """The path of the generative denoiser's checkpoint, beside the recipe's."""
    return checkpoint.with_name(checkpoint.name + ".generative")


def generative_files(settings, scorer, x, checkpoint):
    """A trained Scorer and its images uint8 [n, H, W, C] -> ({name: bytes}, facts for the manifest's training)."""
    options, facts, steps = settings.generative, {}, generative.STEPS
    if settings.recipe == "ddim":
        denoiser, scheduler = generative.Plain(scorer.denoiser).eval(), scorer.scheduler
        say("generative: the denoiser of the recipe; it was trained on mirrored images as well, so it draws them, too")
    else:
        say(f"generative: trains a denoiser on {len(x)} {'tiles' if settings.shape.tiles else 'images'}")
        began, scheduler = time.monotonic(), generative.make_scheduler()
        denoiser = generative.fit(settings.shape, x, options, second(checkpoint), settings.resume)
        facts = {"steps": denoiser.steps, "seconds": round(time.monotonic() - began), "options": options.same_run()}
        facts |= {"curve": loss_curve(denoiser.losses)}
        if settings.distill:
            where = second(checkpoint), settings.resume
            denoiser, scheduler, told = generative.distill(settings.shape, denoiser, options, settings.distill, *where)
            steps, facts["distilled"] = settings.distill, told
            say("generative: the distilled denoiser is for drawing; `denoise` and `inpaint` need one without --distill")
    distilled = "distilled" in facts
    content, error = generative.files(denoiser, settings.shape, scheduler, options.seed, steps, distilled)
    size = sum(map(len, content.values())) / 1e6
    print(f"generative: {size:.1f} MB; ONNX Runtime and torch differ by at most {error:.1e}")
    return content, {"generative": facts}


def print_summary(model, facts, shape, y, score, parity, labelled):
    """Prints what the terms weigh, quantiles of held-out scores, cost, parity error, AUROC if images are labelled."""
    run = session(model)
    if "terms" in facts:
        weights = ", ".join(f"{term['term']} {term['weight']:.2f}" for term in facts["terms"])
        print(f"registration: {facts['registration']:.2f} (1: every image shows the same thing at the same place)")
        print(f"weights: {weights}")
    quantiles = zip(QUANTILES, np.quantile(score, QUANTILES), strict=True)
    print("held-out scores:", ", ".join(f"{q:g} {value:.3f}" for q, value in quantiles))
    rows, began = y[np.arange(COST_ROWS) % len(y)], time.perf_counter()
    run_onnx(run, rows, 1)
    cost = (time.perf_counter() - began) / len(rows) * 1e3
    print(f"cost: {cost:.1f} ms per row of {shape.height}x{shape.width} on one core")
    print(f"parity: ONNX Runtime and torch differ by at most {parity:.1e}")
    if labelled:
        x, owner = to_rows(labelled, shape)
        found = image_scores(run_onnx(run, x, BATCH)[0], owner)
        labels = ["good"] * len(score) + [image.label for image in labelled]
        measured = image_metrics(np.concatenate([score, found]), labels)
        print("detection (AUROC x 100):", ", ".join(f"{k} {100 * v:.1f}" for k, v in measured.items()))
