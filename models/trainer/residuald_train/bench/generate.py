"""Measures generators of tables: `residuald-train bench-generate`.

Each measurement is an entry of `runs` in results.json. A run that is already there is not repeated.
"""

import json
import time

from .. import __version__
from ..console import say
from . import generate_gate, generate_impute, generate_metrics
from . import generate_peers as peers
from .datasets import half
from .generate_data import check_files, load
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
            if part != "all" and not schema and half(name) != part:
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
    count, began, model = len(table.real), time.process_time(), None
    if method == OURS:
        drawn, model, facts = ours(table, count, seed, options)
    else:
        drawn, facts = peers.draw(method, table, count, seed), {}
    seconds = time.process_time() - began
    about = {"set": table.name, "part": half(table.name), "seed": seed}
    about |= {"method": method, "rows": len(table.train), "features": len(table.features)}
    about |= {"seconds": round(seconds, 1)} | facts | generate_metrics.measure(table, drawn, seed)
    if model:
        about["gate"] = generate_gate.measure(table, drawn, model[0], seed)
        about["impute"] = generate_impute.measure(table, *model, seed)
    return about


def ours(table, count, seed, options=None):
    """-> (drawn rows, (space, denoiser), facts)."""
    from ..generative.sample import draw
    from ..generative.train import Options, fit

    space, denoiser, facts = fit(table.features, table.train, Options(seed=seed, **(options or {})), quiet=True)
    return draw(space, denoiser, count, seed), (space, denoiser), {"steps": facts["steps"]}


def shown(run):
    metrics = "shapes", "trends", "c2st", "utility", "closer_to_training"
    return ", ".join(f"{name} {run[name]:.3f}" for name in metrics) + f", {run['seconds']:.0f} s"
