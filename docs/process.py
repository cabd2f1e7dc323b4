"""Runs the commands of src/process.md in an empty folder, and draws its pictures: `make process`.

The pictures show the files that the commands wrote, so the page cannot drift from what the programs do.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
PAGE = HERE / "src/process.md"
REAL, DRAWN = "#8fa1b0", "#d9730d"
SIGMAS = ["0.2", "0.5", "2"]


def blocks():
    """The code of the page -> (language, text), in order."""
    return re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text(), re.S)


def run(folder, shorter):
    """Runs all code of the page in `folder`. `shorter` replaces the number of training steps."""
    for language, text in blocks():
        if shorter:
            text = re.sub(r"--generative-steps \d+", f"--generative-steps {shorter}", text)
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
        print(text, flush=True)
        subprocess.run(command, cwd=folder, check=True)


def table(path):
    """A CSV file of position and speed -> [N, 2]."""
    return np.loadtxt(path, delimiter=",", skiprows=1)


def records(path):
    """NDJSON of position and speed -> [N, 2]."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return np.array([[row["position_mm"], row["speed_m_s"]] for row in rows])


def panels(titles, side=2.3):
    """A row of square panels -> (figure, axes)."""
    figure, axes = plt.subplots(1, len(titles), figsize=(side * len(titles), side + 0.3), layout="constrained")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xticks=[], yticks=[], xlim=(-55, 55), ylim=(-4.1, 4.1))
        axis.title.set_fontsize(9)
    return figure, axes


def dots(axis, points, color, **options):
    axis.scatter(*points[:600].T, s=3, color=color, linewidths=0, **options)


def forward(folder):
    config = json.loads((folder / "crank/scheduler_config.json").read_text())
    kept = np.cumprod(1 - np.linspace(config["beta_start"], config["beta_end"], config["num_train_timesteps"]))
    clean = table(folder / "crank.csv")
    clean /= clean.std(axis=0)
    noise = np.random.default_rng(0).standard_normal(clean.shape)
    timesteps = [0, 100, 300, 600, 999]
    figure, axes = panels([f"t = {t}" for t in timesteps])
    for axis, t in zip(axes, timesteps, strict=True):
        axis.set(xlim=(-3, 3), ylim=(-3, 3))
        dots(axis, np.sqrt(kept[t]) * clean + np.sqrt(1 - kept[t]) * noise, REAL)
    return figure


def learned(folder):
    grid = table(folder / "grid.csv")
    figure, axes = panels([f"σ = {sigma}" for sigma in SIGMAS], 3)
    for axis, sigma in zip(axes, SIGMAS, strict=True):
        dots(axis, table(folder / "crank.csv"), REAL)
        move = records(folder / f"to-mean-{sigma}.ndjson") - grid
        axis.quiver(*grid.T, *move.T, angles="xy", scale_units="xy", scale=1, width=0.005, color=DRAWN)
    return figure


def reverse(folder):
    last = len(list((folder / "states").glob("*.csv"))) - 1
    states = [0, last // 2, last - 7, last - 3, last - 1, last]
    figure, axes = panels(["noise", *(f"after step {state}" for state in states[1:])])
    for axis, state in zip(axes, states, strict=True):
        dots(axis, table(folder / "crank.csv"), REAL, alpha=0.4)
        dots(axis, table(folder / f"states/{state:04d}.csv"), DRAWN)
    return figure


def denoised(folder):
    figure, axes = panels(["noisy", "denoised"], 3)
    for axis, points in zip(axes, [table(folder / "noisy.csv"), records(folder / "clean.ndjson")], strict=True):
        dots(axis, table(folder / "crank.csv"), REAL, alpha=0.4)
        dots(axis, points, DRAWN)
    return figure


def detected(folder):
    verdicts = [json.loads(line) for line in (folder / "verdicts.ndjson").read_text().splitlines()]
    side = round(len(verdicts) ** 0.5)
    scores = np.array([verdict["anomaly_score"] for verdict in verdicts]).reshape(side, side)
    position, speed = (axis.reshape(side, side) for axis in table(folder / "grid.csv").T)
    figure, axis = plt.subplots(figsize=(4.5, 3.6), layout="constrained")
    shades = axis.contourf(position, speed, scores, 20, cmap="Oranges")
    axis.contour(position, speed, scores, [verdicts[0]["threshold"]], colors="black", linewidths=1)
    dots(axis, table(folder / "crank.csv"), REAL)
    axis.set(xlabel="position, mm", ylabel="speed, m/s")
    figure.colorbar(shades, label="score")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "src/process", help="folder of the pictures")
    parser.add_argument("--steps", type=int, help="fewer training steps than the page has, to try it")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, arguments.steps)
        for draw in (forward, learned, reverse, denoised, detected):
            path = arguments.out / f"{draw.__name__}.png"
            draw(folder).savefig(path, dpi=110)
            plt.close("all")
            Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
            print(path)


if __name__ == "__main__":
    main()
