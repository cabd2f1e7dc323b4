"""`screen.onnx` and `screen.json`: a small network that tells in one look which records are clearly normal.

It is distilled from the bundle's own scorer (Hinton et al. 2015): it learns the logarithm of the score, on normal rows
and on rows made strange. Only the order around thresholds matters, so what lies outside of them counts as their edge.
"""

import itertools

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from .export import as_json, to_onnx
from .nets import Space
from .served import run_onnx, session, sha256s

WIDTHS = 64, 32
ROWS = 600_000  # that the scorer is asked for, a third of them normal
STEPS, BATCH, RATE = 12_000, 512, 3e-3
LEAST_ROWS, HELD_OUT = 500, 0.2
MISSED = 1e-3  # the daemon's default of screen.missed_share
PROBES, NORMALS = 12_000, 10_000  # held-out rows whose answers the bundle keeps
HARD = np.float32(2)  # thresholds: a probe that scores more is too easy to vouch for anomalies to come
UNDERRATED = 8.0  # how much worse it is to think too little of a record than too much
MARGIN = 0.3  # above the highest threshold, of the logarithm
LEAST = 1e-6  # of a score, that it has a logarithm
UNSEEN = 0.02  # how often a category becomes one never seen, and an optional value is left out
NOISE = 0.03, 30.0  # standard deviations


class Screen(nn.Module):
    """x float32 [N, F] -> about the logarithm of the score, float32 [N]."""

    def __init__(self, space):
        super().__init__()
        self.space = space
        sizes = [len(space.owner), *WIDTHS]
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, x):
        z, _ = self.space(x)
        return self.net(z).squeeze(1)


def strange(space, X, count, rng):
    """`count` rows float32 [count, F], each a row of X, most with a random share of the features changed: to those of
    another row, by noise of a random strength, or both; a few to what was never seen or to nothing."""
    features = space.features
    rows = X[rng.integers(0, len(X), count)]
    shape = rows.shape
    swapped = (rng.random((count, 1)) < 0.6) & (rng.random(shape) < rng.random((count, 1)) ** 2)
    one = np.flatnonzero(rng.random(count) < 0.5)
    swapped[one, rng.integers(0, shape[1], len(one))] = True
    rows = np.where(swapped, X[rng.integers(0, len(X), count)], rows)

    numbers = np.array([f.type == "number" for f in features])
    sigma = np.exp(rng.uniform(*np.log(NOISE), (count, 1))).astype(np.float32)
    noisy = (rng.random((count, 1)) < 0.7) & (rng.random(shape) < rng.random((count, 1)) ** 0.5)
    noisy &= numbers & ~np.isnan(rows)
    with torch.no_grad():
        z, _ = space(torch.as_tensor(rows))
        moved = z + torch.as_tensor(sigma * rng.standard_normal(z.shape, np.float32))
        rows = np.where(noisy, space.raw(moved, torch.as_tensor(rows)).numpy(), rows)

    categorical = np.array([f.type == "categorical" for f in features])
    optional = np.array([f.missing == "impute" for f in features])
    rows = np.where((rng.random(shape) < UNSEEN) & categorical, -1, rows)
    rows = np.where((rng.random(shape) < UNSEEN) & optional, np.nan, rows)
    return rows.astype(np.float32)


def distil(served, X, seed, quiet=False):
    """X float32 [n, F], normal rows -> Screen. `served` says what to learn, and where its thresholds are."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    screen = Screen(Space(served.features, X))
    normal = X[rng.integers(0, len(X), ROWS // 3)]
    rows = np.concatenate([normal, strange(screen.space, X, ROWS - len(normal), rng)])
    target = torch.cat([log_score(served, part) for part in bar(np.array_split(rows, 100), "ask the scorer", quiet)])
    with torch.no_grad():
        Z = torch.cat([screen.space(torch.as_tensor(part))[0] for part in np.array_split(rows, 100)])
    low, high = np.log(served.calibration.quantiles[[len(served.calibration.quantiles) // 2, -1]] + LEAST)
    high += MARGIN
    adam = torch.optim.AdamW(screen.net.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for _ in bar(range(STEPS), "learn", quiet):
        batch = torch.randint(0, len(Z), (BATCH,), generator=generator)
        guess, truth = screen.net(Z[batch]).squeeze(1), target[batch]
        error = guess - truth
        error = torch.where(truth > high, (guess - high).clamp(max=0), error)
        error = torch.where(truth < low, (guess - low).clamp(min=0), error)
        error = torch.where(error < 0, UNDERRATED * error, error)
        adam.zero_grad(set_to_none=True)
        nn.functional.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1).backward()
        adam.step()
        schedule.step()
    return screen.eval()


def log_score(served, X):
    return torch.as_tensor(np.log(served.score(X)[0] + LEAST))


def bar(steps, what, quiet):
    return tqdm(steps, desc=what, mininterval=0.5, disable=quiet)


class Answers:
    """What screen and scorer say of held-out rows: normal ones, and such made strange, of scores around thresholds."""

    def __init__(self, served, run, space, X, rng):
        self.golden = run_onnx(run, served.golden)[0]
        self.normals = answers(served, run, X[rng.permutation(len(X))[:NORMALS]])
        quantiles, kept = served.calibration.quantiles, []
        low, high = quantiles[len(quantiles) * 9 // 10], HARD * quantiles[-1]
        while sum(len(part) for part, _ in kept) < PROBES and len(kept) < 100:
            guess, score = answers(served, run, strange(space, X, PROBES, rng))
            useful = (score > low) & (score <= high)
            kept.append((guess[useful], score[useful]))
        self.probes = tuple(np.concatenate(parts)[:PROBES] for parts in zip(*kept, strict=True))

    def content(self):
        def short(values):
            return [float(str(value)) for value in values]  # the digits that float32 needs

        def pairs(found):
            return {"screen": short(found[0]), "score": short(found[1])}

        return {"golden": short(self.golden), "normals": pairs(self.normals), "probes": pairs(self.probes)}

    def bound(self, threshold, missed):
        """What a record's screen must exceed for the scorer to be asked, so that it is not for at most a share of
        `missed` of the records above the threshold; None where there are too few to tell. src/bundle/screen.rs."""
        guess, score = self.probes
        above = np.sort(guess[(score > threshold) & (score <= HARD * threshold)])
        rank = int(missed * (len(above) + 1) + 1e-9)
        if not rank:
            return None
        strange = np.nextafter(above[rank - 1], np.float32(-np.inf))
        return min(strange, np.log(threshold + LEAST) + self.underrated(missed))

    def underrated(self, missed):
        guess, score = self.normals
        highest = np.argsort(-score, kind="stable")[: -(-len(score) // 10)]
        errors = np.sort(guess[highest] - np.log(score[highest] + LEAST))
        return errors[max(int(missed * (len(errors) + 1) + 1e-9), 1) - 1]

    def cleared(self, bound):
        """The share of normal rows that the scorer need not see."""
        return float((self.normals[0] <= bound).mean())


def answers(served, run, X):
    """-> (screen [n], score [n])."""
    return run_onnx(run, X)[0], served.score(X)[0]


def add(served, X, seed=0, quiet=False):
    """X float32 [n, F], normal rows -> (the bundle's files with a screen among them, its `Answers`)."""
    rng = np.random.default_rng(seed)
    held, fit = np.split(rng.permutation(len(X)), [max(1, round(len(X) * HELD_OUT))])
    screen = distil(served, X[fit], seed, quiet)
    model = to_onnx(screen, (torch.zeros(3, X.shape[1]),), outputs=("screen",))
    found = Answers(served, session(model), screen.space, X[held], rng)
    files = served.files | {"screen.onnx": model, "screen.json": as_json(found.content())}
    manifest = dict(served.manifest)
    manifest["files"] = sha256s(files)
    manifest["screen"] = {"rows": len(fit), "held_out_rows": len(held), "seed": seed, "widths": WIDTHS, "steps": STEPS}
    return files | {"manifest.json": as_json(manifest, indent=1)}, found
