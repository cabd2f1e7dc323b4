"""Trains image recipes with several seeds and compares them with simpler methods: `residuald-train bench-images`."""

import hashlib
import json
import time

import numpy as np
import torch
import torch.nn.functional as F

from .. import TrainerError
from ..images import best, ddim, kernel
from ..images.data import develop_report_groups, split
from ..images.drawn import draw_pairs
from ..images.pixels import image_scores, load, mask_rows, to_rows
from ..images.scorer import Scorer, run_torch
from ..images.train import fit
from . import image_peers as peers
from .metrics import image_metrics, pixel_metrics

TEST_SHARE = 0.3


def train_test_images(good, bad, part, seed):
    """Returns the images to train on, and the normal and anomalous ones to test on. No group is on both sides.

    Raises TrainerError if no image has a defect.

    The parts are:

    all: tests on the test images of Anomalib's layout if it has test/good. Otherwise tests on 30 % of the normal
    groups, different ones for each seed, and on every group that has a defect.
    development: the same within the half of the groups on which settings are chosen.
    report: trains on the normal images of that half and tests on the other half.
    """
    if all(p.normal for p in bad):
        raise TrainerError("the folder has no images with a defect to measure on; --help describes the folder layouts")
    if part == "all" and any(p.normal for p in bad):  # Anomalib's layout, with its own normal test images
        tested = {p.group for p in bad}
        return [p for p in good if p.group not in tested], bad
    good, bad = good + [p for p in bad if p.normal], [p for p in bad if not p.normal]
    develop, report = develop_report_groups(good + bad)
    if part == "report":
        defect = {p.group for p in bad}
        train = [p for p in good if p.group in develop and p.group not in defect]
        return train, [p for p in good + bad if p.group in report]
    if part == "development":
        good, bad = ([p for p in ps if p.group in develop] for ps in (good, bad))
    defect = {p.group for p in bad}
    train, held = split([p for p in good if p.group not in defect], TEST_SHARE, seed)
    return train, held + [p for p in good if p.group in defect] + bad


def measure(scores, heat, labels, masks):
    """Scores [n], labels [n] of images, heat [m, h, w], masks [m, H, W] of rows (or None) -> {measure: value}."""
    out = image_metrics(scores, labels)
    if masks is not None and heat is not None:
        out |= pixel_metrics(fit_to(heat, masks.shape[1:]), masks)
    return out


def fit_to(heat, size):
    """Resizes heat [n, h, w] to [n, *size] by bilinear interpolation."""
    if heat.shape[1:] == size:
        return heat
    x = torch.as_tensor(np.ascontiguousarray(heat))[:, None].float()
    return F.interpolate(x, size, mode="bilinear", align_corners=False)[:, 0].numpy()


def one_seed(train, test, shape, options, with_peers=True, draw_with=None, checkpoints=None):
    """Trains the recipes that `options` are of -> ({method: {measure: value}}, facts about the training).

    With the options of `blind` the network is trained once, for `blind` and `best`; `kernel` is measured beside them.
    `draw_with`: the Pipeline that draws the defects of `options`. `checkpoints`: a folder that keeps networks, so that
    another run with the same images and options does not train again.
    """
    x, owner = to_rows(train, shape)
    y, owner_of_y = to_rows(test, shape)
    labels = [p.label for p in test]
    masked = any(p.mask for p in test)
    sizes = [load(p.path, shape.channels).size for p in test]
    masks = np.concatenate([mask_rows(p.mask, s, shape) for p, s in zip(test, sizes, strict=True)]) if masked else None
    began, cpu = time.monotonic(), time.process_time()
    scorers = fit_recipes(x, np.array([p.group for p in train])[owner], shape, options, draw_with, checkpoints)
    facts = {
        "steps": max(scorer.steps for scorer in scorers.values()),
        "minutes": (time.monotonic() - began) / 60,
        "core_minutes": (time.process_time() - cpu) / 60,
        "registration": next((scorer.r for scorer in scorers.values() if hasattr(scorer, "r")), None),
    }
    out = {}
    for name, scorer in scorers.items():
        score, heat, _ = run_torch(scorer, y)
        out[name] = measure(image_scores(score, owner_of_y), heat, labels, masks)
    for name, found in peers_of(scorers, x, y, shape, options.seed).items() if with_peers else ():
        heat = found()
        out[name] = measure(image_scores(peers.top_mean(heat), owner_of_y), heat, labels, masks)
    return out, facts


def fit_recipes(x, groups, shape, options, draw_with=None, checkpoints=None):
    """Training rows uint8 [n, H, W, C] and their groups [n] -> {recipe: Scorer}, those that `options` are of."""
    if isinstance(options, kernel.Options):
        return {"kernel": kernel.fit(shape, x, groups, options)}
    checkpoint = checkpoints and checkpoints / name_of_network(x, options)
    if isinstance(options, ddim.Options):
        return {"ddim": ddim.fit(shape, x, options, checkpoint, resume=True)}
    more = {"pairs": draw_pairs(draw_with, x, options)} if draw_with else {}
    blind = fit(shape, x, options, checkpoint, resume=True, **more)
    closed = kernel.fit(shape, x, groups, kernel.Options(options.seed, threads=options.threads))
    return {"best": best.add_closed_forms(blind, x, groups, options.seed), "blind": blind, "kernel": closed}


def name_of_network(x, options):
    """The name of a checkpoint: the hash of the training rows and options."""
    text = json.dumps([type(options).__module__, x.shape, options.same_run()], sort_keys=True)
    return hashlib.sha256(text.encode() + x.tobytes()).hexdigest()[:16] + ".pt"


def peers_of(scorers, x, y, shape, seed):
    """{recipe: Scorer}, training and test rows -> {simpler method: function that gives the test rows' heat}."""
    torch.manual_seed(seed)
    random = Scorer(shape).eval()
    methods = {
        "PaDiM-like": lambda: peers.padim(scorers["blind"], x, y, seed),
        "PaDiM-like, random features": lambda: peers.padim(random, x, y, seed),
        "patch-kNN": lambda: peers.patch_knn(x, y, seed),
        "PCA": lambda: peers.pca(x, y, seed),
        "Gaussian of each pixel": lambda: peers.pixel_gaussian(x, y),
    }
    if "blind" not in scorers:
        del methods["PaDiM-like"]  # needs the features of the network
    return methods


def bench(
    good, bad, shape, make_options, seeds, part="all", with_peers=True, say=print, draw_with=None, checkpoints=None
):
    """Runs every seed and prints the table -> {method: {measure: [a value for each seed]}}."""
    total = {}
    if checkpoints:
        checkpoints.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        train, test = train_test_images(good, bad, part, seed)
        count = {c: sum(p.label == c for p in test) for c in sorted({p.label for p in test})}
        groups = len({p.group for p in train}), len({p.group for p in test})
        say(f"seed {seed}: {len(train)} images to train on ({groups[0]} groups)")
        say(f"seed {seed}: images to test on, by class ({groups[1]} groups): {count}")
        found, facts = one_seed(train, test, shape, make_options(seed), with_peers, draw_with, checkpoints)
        say(f"seed {seed}: {json.dumps({k: round(v, 2) for k, v in facts.items() if v is not None})}")
        for method, values in found.items():
            say(f"seed {seed}: {method}: " + ", ".join(f"{k} {100 * v:.1f}" for k, v in values.items()))
            for name, value in values.items():
                total.setdefault(method, {}).setdefault(name, []).append(value)
    say(table(total))
    return total


def table(total):
    """A Markdown table of the means over seeds, ± half of their range."""
    names = list(dict.fromkeys(name for values in total.values() for name in values))
    lines = ["| x 100 | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 1)]
    for method, values in total.items():
        cells = [cell(values[n]) if n in values else "" for n in names]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(values):
    half = (max(values) - min(values)) / 2
    return f"{100 * np.mean(values):.1f}" + (f" ± {100 * half:.1f}" if len(values) > 1 else "")
