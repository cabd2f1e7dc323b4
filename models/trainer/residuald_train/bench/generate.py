"""Measures generators of tables: `residuald-train bench-generate`.

Each measurement is an entry of `runs` in results.json. A run that is already there is not repeated.
"""

import json
import time

from .. import __version__
from ..console import say
from . import generate_peers as peers
from .generate_data import check_files, development, load
from .generate_metrics import measure
from .generate_page import page

OURS = "residuald"


def bench(folder, tables, seeds, methods, out, part="all", fast=False, options=None):
    """Runs what OUT/results.json lacks, saves it after each run, and writes OUT/GENERATE.md."""
    files = check_files(folder, tables)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"trainer": __version__, "fast": fast, "runs": []}
    done = {(run["set"], run["seed"], run["method"]) for run in results["runs"]}
    for seed in range(seeds):
        for file, schema in files:
            name = file.name.split(".")[0]
            if part != "all" and not schema and development(name) != (part == "development"):
                continue
            wanted = [method for method in methods if (name, seed, method) not in done]
            table = load(file, schema, seed, fast) if wanted else None
            if table is None:
                continue
            for method in wanted:
                if method == OURS or peers.fits(method, table):
                    results["runs"].append(run_one(table, method, seed, options))
                    path.write_text(json.dumps(results, indent=1) + "\n")
                    say(f"{name}, seed {seed}, {method}: {shown(results['runs'][-1])}")
    (out / "GENERATE.md").write_text(page(results))


def run_one(table, method, seed, options=None):
    """Fits a generator on table.train and draws as many rows as table.real has -> an entry of `runs`."""
    count, began = len(table.real), time.process_time()
    drawn = ours(table, count, seed, options) if method == OURS else peers.draw(method, table, count, seed)
    seconds = time.process_time() - began
    about = {"set": table.name, "part": "development" if development(table.name) else "report", "seed": seed}
    about |= {"method": method, "rows": len(table.train), "features": len(table.features)}
    return about | {"seconds": round(seconds, 1)} | measure(table, drawn, seed)


def ours(table, count, seed, options=None):
    from ..generative.sample import draw
    from ..generative.train import Options, fit

    space, denoiser, _ = fit(table.features, table.train, Options(seed=seed, **(options or {})), quiet=True)
    return draw(space, denoiser, count, seed)


def shown(run):
    metrics = "shapes", "trends", "c2st", "utility", "closer_to_training"
    return ", ".join(f"{name} {run[name]:.3f}" for name in metrics) + f", {run['seconds']:.0f} s"
