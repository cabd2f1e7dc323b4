"""Trains image recipes with several seeds and compares them with simpler methods: `residuald-train bench-images`."""

import json
import time

import numpy as np
import torch
import torch.nn.functional as F

from .. import TrainerError
from ..images import ddim
from ..images.data import develop_report_groups, split
from ..images.drawn import draw_pairs
from ..images.pixels import image_scores, load, mask_rows, to_rows
from ..images.scorer import run_torch
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


def one_seed(train, test, shape, options, with_peers=True, draw_with=None):
    """Trains the recipe to which `options` belong -> ({method: {measure: value}}, facts about the training).

    `draw_with`: the Pipeline that draws the defects of `options`.
    """
    x, _ = to_rows(train, shape)
    classical = isinstance(options, ddim.Options)
    began, cpu = time.monotonic(), time.process_time()
    more = {"pairs": draw_pairs(draw_with, x, options)} if draw_with else {}
    scorer = (ddim.fit if classical else fit)(shape, x, options, **more)
    facts = {
        "steps": scorer.steps,
        "minutes": (time.monotonic() - began) / 60,
        "core_minutes": (time.process_time() - cpu) / 60,
    }
    y, owner = to_rows(test, shape)
    labels = [p.label for p in test]
    masked = any(p.mask for p in test)
    sizes = [load(p.path, shape.channels).size for p in test]
    masks = np.concatenate([mask_rows(p.mask, s, shape) for p, s in zip(test, sizes, strict=True)]) if masked else None
    score, heat, _ = run_torch(scorer, y)
    name = "ddim" if classical else "blind"
    out = {name: measure(image_scores(score, owner), heat, labels, masks)}
    methods = {
        "PaDiM-like": lambda: peers.padim(scorer, x, y, options.seed),
        "patch-kNN": lambda: peers.patch_knn(x, y, options.seed),
        "PCA": lambda: peers.pca(x, y, options.seed),
    }
    if classical:
        del methods["PaDiM-like"]  # needs the features of the blind network
    if with_peers:
        for name, found in methods.items():
            heat = found()
            out[name] = measure(image_scores(peers.top_mean(heat), owner), heat, labels, masks)
    return out, facts


def bench(good, bad, shape, make_options, seeds, part="all", with_peers=True, say=print, draw_with=None):
    """Runs every seed and prints the table -> {method: {measure: [a value for each seed]}}."""
    total = {}
    for seed in range(seeds):
        train, test = train_test_images(good, bad, part, seed)
        count = {c: sum(p.label == c for p in test) for c in sorted({p.label for p in test})}
        groups = len({p.group for p in train}), len({p.group for p in test})
        say(f"seed {seed}: {len(train)} images to train on ({groups[0]} groups)")
        say(f"seed {seed}: images to test on, by class ({groups[1]} groups): {count}")
        found, facts = one_seed(train, test, shape, make_options(seed), with_peers, draw_with)
        say(f"seed {seed}: {json.dumps({k: round(v, 2) for k, v in facts.items()})}")
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
