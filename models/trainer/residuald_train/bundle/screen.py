"""`screen.onnx` and `screen.json`: a small network that recognises clearly normal records, so the scorer can skip them.

It is distilled from the bundle's own scorer (Hinton et al. 2015): it learns the logarithm of the score on normal and on
perturbed rows. Only the order of scores around thresholds matters, so scores outside that range are clamped to it.
"""

import itertools

import numpy as np
import torch
from torch import nn

from .. import TrainerError, console
from ..preprocessing import Preprocessing
from .export import as_json, to_onnx
from .served import microseconds_a_row, run_onnx, session, sha256s

WIDTHS = 64, 32
ROWS = 600_000  # rows that the scorer scores for training; a third of them is normal
STEPS, BATCH, LEARNING_RATE = 12_000, 512, 3e-3
MIN_ROWS, HELD_OUT = 500, 0.2
MISSED = 1e-3  # the daemon's default of screen.missed_share
PROBES, NORMALS = 12_000, 10_000  # most held-out rows whose screen outputs and scores are stored in the bundle
MAX_PROBE = np.float32(2)  # in thresholds; probes that score higher are ignored, because they are too easy
UNDERESTIMATE = 8.0  # loss factor where the screen is below the score; only this makes the daemon miss anomalies
HEADROOM = 0.3  # how far above the highest threshold the log score is still learned
EPSILON = 1e-6  # added to scores before the logarithm, to avoid log(0)
UNSEEN = 0.02  # probability that a value of a perturbed row becomes unseen or missing
NOISE = 0.03, 30.0  # range of the noise strength in perturbed rows, in standard deviations
RATES = 1e-2, 1e-3, 1e-4  # false-alarm rates of the summary


class Screen(nn.Module):
    """x float32 [N, F] -> an estimate of the log score, float32 [N]."""

    def __init__(self, space):
        super().__init__()
        self.space = space
        sizes = [len(space.owner), *WIDTHS]
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, x):
        z, _ = self.space(x)
        return self.net(z).squeeze(1)


def perturbed_rows(space, X, count, rng):
    """X float32 [n, F] -> float32 [count, F]: random rows of X, most of them with a random subset of features changed.

    A changed feature has the value of another row, noise of a random strength, or both. A few values become unseen or
    missing.
    """
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
        rows = np.where(noisy, space.inverse(moved, torch.as_tensor(rows)).numpy(), rows)

    categorical = np.array([f.type == "categorical" for f in features])
    optional = np.array([f.missing == "impute" for f in features])
    rows = np.where((rng.random(shape) < UNSEEN) & categorical, -1, rows)
    rows = np.where((rng.random(shape) < UNSEEN) & optional, np.nan, rows)
    return rows.astype(np.float32)


def distil(served, X, seed, quiet=False):
    """Normal rows X float32 [n, F] -> a Screen that has learned the scores of `served` near its thresholds."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    screen = Screen(Preprocessing(served.features, X))
    normal = X[rng.integers(0, len(X), ROWS // 3)]
    rows = np.concatenate([normal, perturbed_rows(screen.space, X, ROWS - len(normal), rng)])
    target = torch.cat([log_score(served, part) for part in bar(np.array_split(rows, 100), "score", quiet)])
    with torch.no_grad():
        Z = torch.cat([screen.space(torch.as_tensor(part))[0] for part in np.array_split(rows, 100)])
    low, high = np.log(served.calibration.quantiles[[len(served.calibration.quantiles) // 2, -1]] + EPSILON)
    high += HEADROOM
    adam = torch.optim.AdamW(screen.net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for _ in bar(range(STEPS), "learn", quiet):
        batch = torch.randint(0, len(Z), (BATCH,), generator=generator)
        guess, truth = screen.net(Z[batch]).squeeze(1), target[batch]
        error = guess - truth
        error = torch.where(truth > high, (guess - high).clamp(max=0), error)
        error = torch.where(truth < low, (guess - low).clamp(min=0), error)
        error = torch.where(error < 0, UNDERESTIMATE * error, error)
        adam.zero_grad(set_to_none=True)
        nn.functional.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1).backward()
        adam.step()
        schedule.step()
    return screen.eval()


def log_score(served, X):
    return torch.as_tensor(np.log(served.score(X)[0] + EPSILON))


def bar(steps, what, quiet):
    return console.bar(steps, desc=what, disable=quiet)


class ScreenAnswers:
    """Outputs of screen and scorer on held-out normal rows and on probes.

    A probe is a perturbed row whose score is near the thresholds. The daemon chooses its bound from these outputs.
    """

    def __init__(self, served, run, space, X, rng):
        self.golden = run_onnx(run, served.golden)[0]
        self.normals = screen_and_score(served, run, X[rng.permutation(len(X))[:NORMALS]])
        quantiles, kept = served.calibration.quantiles, []
        low, high = quantiles[len(quantiles) * 9 // 10], MAX_PROBE * quantiles[-1]
        while sum(len(part) for part, _ in kept) < PROBES and len(kept) < 100:
            guess, score = screen_and_score(served, run, perturbed_rows(space, X, PROBES, rng))
            useful = (score > low) & (score <= high)
            kept.append((guess[useful], score[useful]))
        self.probes = tuple(np.concatenate(parts)[:PROBES] for parts in zip(*kept, strict=True))

    def content(self):
        """The content of screen.json."""

        def short(values):
            return [float(str(value)) for value in values]  # only as many digits as float32 needs

        def pairs(found):
            return {"screen": short(found[0]), "score": short(found[1])}

        return {"golden": short(self.golden), "normals": pairs(self.normals), "probes": pairs(self.probes)}

    def bound(self, threshold, missed):
        """The highest screen output that clears a record, so that the scorer is skipped; None with too few probes.

        With this bound the screen clears at most a share `missed` of the records above the threshold. The definition is
        the same as in src/bundle/screen.rs.
        """
        guess, score = self.probes
        above = np.sort(guess[(score > threshold) & (score <= MAX_PROBE * threshold)])
        rank = int(missed * (len(above) + 1) + 1e-9)
        if not rank:
            return None
        below = np.nextafter(above[rank - 1], np.float32(-np.inf))
        return min(below, np.log(threshold + EPSILON) + self.underestimate(missed))

    def underestimate(self, missed):
        """The quantile `missed` of (screen output - log score) on the highest-scoring tenth of the normal rows."""
        guess, score = self.normals
        highest = np.argsort(-score, kind="stable")[: -(-len(score) // 10)]
        errors = np.sort(guess[highest] - np.log(score[highest] + EPSILON))
        return errors[max(int(missed * (len(errors) + 1) + 1e-9), 1) - 1]

    def cleared(self, bound):
        """The share of normal rows that the screen clears, for which the scorer is skipped."""
        return float((self.normals[0] <= bound).mean())


def screen_and_score(served, run, X):
    """X float32 [n, F] -> (screen outputs [n], scores [n])."""
    return run_onnx(run, X)[0], served.score(X)[0]


def add_screen(served, X, seed=0, quiet=False):
    """Normal rows X float32 [n, F] -> (the bundle's files including the screen, ScreenAnswers). Raises TrainerError."""
    if len(X) < MIN_ROWS:
        raise TrainerError(f"{len(X)} normal rows fit the schema; a screen needs at least {MIN_ROWS}")
    rng = np.random.default_rng(seed)
    held, fit = np.split(rng.permutation(len(X)), [max(1, round(len(X) * HELD_OUT))])
    screen = distil(served, X[fit], seed, quiet)
    model = to_onnx(screen, (torch.zeros(3, X.shape[1]),), outputs=("screen",))
    found = ScreenAnswers(served, session(model), screen.space, X[held], rng)
    files = served.files | {"screen.onnx": model, "screen.json": as_json(found.content())}
    manifest = dict(served.manifest)
    manifest["files"] = sha256s(files)
    manifest["screen"] = {"rows": len(fit), "held_out_rows": len(held), "seed": seed, "widths": WIDTHS, "steps": STEPS}
    return files | {"manifest.json": as_json(manifest, indent=1)}, found


def summary(served, files, answers, X):
    """Yields the lines of a summary for the user. X float32 [n, F]: rows to time the screen on."""
    for rate in RATES:
        if rate < served.calibration.finest_rate():
            continue
        bound = answers.bound(served.calibration.threshold(rate), MISSED)
        if bound is None:
            yield f"at a false-alarm rate of {rate:g}: too few probes score above the threshold to set a bound"
        else:
            yield f"at a false-alarm rate of {rate:g}: clears {answers.cleared(bound):.1%} of normal records"
    batch = np.resize(X, (16_384, X.shape[1]))
    costs = [microseconds_a_row(run, batch) for run in (session(files["screen.onnx"]), served.session)]
    yield "cost: {:.2f} µs per row on one core, in batches of 256; the scorer costs {:.2f}".format(*costs)
