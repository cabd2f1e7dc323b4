"""The published baseline: a denoising diffusion model (DDPM) on table rows, scored by its reconstruction error.

    ddpm.py HISTORY MODEL [--updates N]

trains it on the rows of the history that the bundle models/payments was trained on.

This reimplements the DDPM of Livernoche et al., "On Diffusion Modeling for Anomaly Detection", ICLR 2024 (arXiv
2305.18593), with the settings of their code (github.com/vicliv/DTE, diffusion/ddpm.py). There are 1000 noise steps with
β from 1e-4 to 0.01, and a residual network (Gorishniy et al. 2021) conditioned on the step. Scoring runs the last 250
reverse steps without noise, starting from the record itself. The score is the mean squared difference between the
record and the result.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import nn

BUNDLE = Path(__file__).resolve().parents[2] / "models/payments"
STEPS, STEPS_BACK, TIME = 1000, 250, 256
BATCH, RATE, DECAY = 64, 1e-4, 5e-4
FALSE_ALARMS = 1e-3
# Some 100 of their epochs of at most 25,000 rows. They train for up to 400 and stop when the loss stops falling.
UPDATES = 40_000


class Rows(nn.Module):
    """Rows [N, F] of a bundle's features (NaN is missing) -> standardised columns [N, D], one for each category."""

    def __init__(self, features, rows):
        super().__init__()
        self.categories = {j: len(f["vocabulary"]) for j, f in enumerate(features) if f["type"] == "categorical"}
        self.numbers = [j for j in range(len(features)) if j not in self.categories]
        columns = self.columns(rows)
        known = ~columns.isnan()
        count, zeroed = known.sum(0).clamp(min=1), columns.nan_to_num().double()
        self.register_buffer("mean", (zeroed.sum(0) / count).float())
        variance = ((zeroed - self.mean).square() * known).sum(0) / count
        self.register_buffer("deviation", torch.where(variance > 0, variance.sqrt(), 1.0).float())

    def columns(self, rows):
        # Code 0 stands for missing and unseen values. Its one-hot column is dropped.
        codes = {j: rows[:, j].nan_to_num(-1).long() + 1 for j in self.categories}
        known = [nn.functional.one_hot(codes[j], n + 1)[:, 1:] for j, n in self.categories.items()]
        return torch.cat([rows[:, self.numbers], *known], 1)

    def forward(self, rows):
        return ((self.columns(rows) - self.mean) / self.deviation).nan_to_num(0)


class Block(nn.Module):
    def __init__(self, width=128, hidden=256):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm1d(width),
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(hidden, width),
            nn.Dropout(0.1),
        )

    def forward(self, x):
        return x + self.layers(x)


class Denoiser(nn.Module):
    """Noised rows x_t [N, D] and `shift(t)`, with t [N] or [1] -> the estimated noise [N, D]."""

    def __init__(self, columns, width=128):
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(TIME, TIME), nn.SiLU(), nn.Linear(TIME, TIME), nn.SiLU(), nn.Linear(TIME, width)
        )
        self.first = nn.Linear(columns, width)
        self.blocks = nn.Sequential(Block(), Block(), Block())
        self.last = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, columns))
        half = torch.arange(TIME // 2) / (TIME // 2)
        self.register_buffer("frequencies", torch.exp(-math.log(10_000) * half))

    def shift(self, t):
        angle = t[:, None].float() * self.frequencies
        return self.time(torch.cat([angle.cos(), angle.sin()], -1))

    def forward(self, x, shift):
        return self.last(self.blocks(self.first(x) + shift))


class DDPM(nn.Module):
    def __init__(self, features, rows):
        super().__init__()
        self.rows = Rows(features, rows)
        self.denoiser = Denoiser(len(self.rows.mean))
        self.beta = torch.linspace(1e-4, 0.01, STEPS)
        self.alpha = torch.cumprod(1 - self.beta, 0)

    def loss(self, x):
        t = torch.randint(STEPS, (len(x),))
        noise, alpha = torch.randn_like(x), self.alpha[t][:, None]
        found = self.denoiser(alpha.sqrt() * x + (1 - alpha).sqrt() * noise, self.denoiser.shift(t))
        return (found - noise).square().mean()

    @torch.inference_mode()
    def score(self, rows):
        """Rows float32 [n, F] -> scores [n]. Computes values that depend only on the step once for all rows."""
        x = start = self.rows(rows)
        shifts = self.denoiser.shift(torch.arange(STEPS_BACK))
        for t in reversed(range(STEPS_BACK)):
            noise = self.denoiser(x, shifts[t])
            x = (x - self.beta[t] / (1 - self.alpha[t]).sqrt() * noise) / (1 - self.beta[t]).sqrt()
        return (start - x).square().mean(1)


def load(file):
    """Loads a trained model -> (the model, its threshold for 1 false alarm in 1000)."""
    saved = torch.load(file, weights_only=True)
    features = manifest()["input"]["features"]
    model = DDPM(features, torch.zeros(1, len(features)))
    model.load_state_dict(saved["model"])
    return model.eval(), saved["threshold"]


def quality(file):
    return torch.load(file, weights_only=True)["quality"]


def manifest():
    return json.loads((BUNDLE / "manifest.json").read_text())


def train(history, file, updates):
    from residuald_train.tabular.data import read
    from residuald_train.tabular.features import check_features, encode
    from residuald_train.tabular.train import split

    facts, features = manifest()["training"], manifest()["input"]["features"]
    checked = check_features(features)
    rows, accepted, _ = encode(read([history]), checked)
    used, held = split(len(rows), facts["options"]["held_out"], facts["seed"])
    if not accepted.all() or (len(used), len(held)) != (facts["rows"], facts["held_out_rows"]):
        sys.exit(
            f"{history} does not hold the rows that {BUNDLE} was trained on; "
            "write it again with models/trainer/examples/payments.py"
        )
    rows = torch.from_numpy(rows)
    torch.manual_seed(0)
    model = DDPM(features, rows[used])
    fit(model, model.rows(rows[used]), updates)
    normal = model.eval().score(rows[held]).sort().values
    threshold = normal[-int(FALSE_ALARMS * (len(normal) + 1))].item()
    sample = read([BUNDLE / "sample.ndjson.gz"])
    scores = model.score(torch.from_numpy(encode(sample, checked)[0])).numpy()
    found = judge(scores, (~sample.is_normal("label", "0")).astype(int), threshold)
    print(json.dumps(found))
    torch.save({"model": model.state_dict(), "threshold": threshold, "quality": found}, file)


def fit(model, x, updates):
    optimizer = torch.optim.Adam(model.denoiser.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
    began, done, total = time.monotonic(), 0, 0.0
    while done < updates:
        for batch in torch.randperm(len(x)).split(BATCH)[: updates - done]:
            if len(batch) < BATCH:
                break
            optimizer.zero_grad()
            loss = model.loss(x[batch])
            loss.backward()
            optimizer.step()
            done, total = done + 1, total + loss.item()
            if done % 2000 == 0:
                print(f"{done} of {updates} updates, {time.monotonic() - began:.0f} s, loss {total / 2000:.4f}")
                total = 0.0


def judge(scores, labels, threshold):
    from sklearn.metrics import average_precision_score, roc_auc_score

    flagged = scores > threshold
    return {
        "auroc": float(roc_auc_score(labels, scores)),
        "average_precision": float(average_precision_score(labels, scores)),
        "precision": float(labels[flagged].mean()),
        "recall": float(flagged[labels == 1].mean()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("history", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--updates", type=int, default=UPDATES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train(options.history, options.model, options.updates)


if __name__ == "__main__":
    main()
