"""Trains recipes on every data set in a folder and compares them with simpler methods: `residuald-train bench`.

A recipe's scores are those of its exported bundle in ONNX Runtime. Each measurement is an entry of `runs` in
`results.json`. A run that is already there is not repeated.
"""

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from .. import TrainerError, __version__, console
from ..bundle.calibrate import Calibration, calibrate
from .datasets import CAPS, FAST_CAPS, HALVES, contaminate, half, load_split, protocols_of
from .metrics import detection
from .quality_page import page
from .result_tables import costs_table, leads_table, means_table, sets_table, trust_table, trust_totals

VERSION = 2  # of results.json; raised when a measurement changes its meaning
SUFFIXES = ".npz", ".csv"
FAST_SETS = 5  # number of sets with --fast, the smallest ones
WORKERS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TQDM_DISABLE"), "1")
CLEAN, TOLD = "clean", "told"
HOW_TO_READ = (
    "Settings are chosen on the development half of each family alone; the CRC-32 of a set's name decides its half. "
    "`clean` splits the normal rows at random, `published` as the DTE paper's code does, `fixed` as the file says. "
    "No peer is tuned. A set counts as won if the mean over seeds is above that of 1-NN. An id leaks if a column that "
    "identifies rows tells anomalies from normal rows alone (AUROC of at least 0.6 in one direction)."
)
COST_FEATURES, COST_BATCHES, COST_ROWS = 30, (64, 256, 1024), 2048
FLAGGED_AT, CHECKED_AT = 1e-2, (1e-2, 1e-3)  # false-alarm rates at which reasons and thresholds are checked


def find_sets(folder, fast, part="all"):
    """The files of the folder, sorted, of one half or of both; with `fast` only the smallest."""
    files = sorted(p for p in Path(folder).iterdir() if p.suffix in SUFFIXES) if Path(folder).is_dir() else []
    if not files:
        raise TrainerError(
            f"--data {folder} has no {' or '.join(SUFFIXES)} file; pass a folder of labelled data sets in these formats"
        )
    files = [p for p in files if part in ("all", half(p.stem))]
    return sorted(sorted(files, key=lambda p: p.stat().st_size)[:FAST_SETS]) if fast else files


def run_one(path, protocol, seed, method, recipes, fast, steps, contamination=0.0):
    """Fits one method on one split of one set -> an entry of `runs`."""
    from threadpoolctl import threadpool_limits

    data = load_split(path, protocol, seed, FAST_CAPS if fast else CAPS)
    if contamination:
        data = contaminate(data, contamination, seed)
    name, _, variant = method.partition(", ")
    with threadpool_limits(1):
        if name in recipes:
            seconds, score, facts = fit_recipe(name, data, seed, steps, variant, contamination)
        else:
            seconds, score, facts = fit_peer(name, data, seed)
        again = max(1, 2048 // len(data.test))
        rows, spent = np.concatenate([data.test] * again), []
        for _ in range(3):
            began = time.process_time()
            scores = score(rows)
            spent.append(time.process_time() - began)
    areas = detection(data.anomalous, scores[: len(data.test)])
    return {
        "family": path.parent.name,
        "set": path.stem,
        "half": half(path.stem),
        "protocol": protocol,
        "seed": seed,
        "method": method,
        "auroc": 100 * areas["auroc"],
        "ap": 100 * areas["average_precision"],
        "fit_seconds": round(seconds, 3),
        "microseconds_a_row": round(min(spent) / len(rows) * 1e6, 3),
        "rows": len(data.train),
        "features": data.train.shape[1],
        **({"leaks": list(data.leaks)} if data.leaks else {}),
        **({"mixed": data.mixed} if contamination else {}),
        **facts,
    }


def fit_recipe(name, data, seed, steps, variant="", share=0.0):
    """Trains a recipe -> (CPU seconds of training, a function from rows to scores, facts).

    `variant` CLEAN trains without the anomalies mixed in. TOLD leaves out the suspected share. The bundle is calibrated
    on the normal test rows, but no measurement uses its thresholds, and scores do not depend on them.
    """
    from ..bundle.served import run_onnx, session
    from ..tabular.contamination import suspects
    from ..tabular.export import make_bundle
    from ..tabular.features import Feature
    from ..tabular.train import Options, fit

    began = time.process_time()
    features = [Feature(f"x{j}", f"x{j}", "number") for j in range(data.train.shape[1])]
    train = data.train[: len(data.train) - data.mixed] if variant == CLEAN else data.train
    found = {}
    if variant == TOLD:
        suspected = suspects(features, train, share, seed)
        train = train[~suspected]
        found = {"found": int(suspected[len(suspected) - data.mixed :].sum())}
    scorer = fit(features, train, Options(name, seed, **({"steps": steps} if steps else {})), quiet=True)
    seconds = time.process_time() - began
    normal = data.test[~data.anomalous]
    records = [{f.name: float(v) for f, v in zip(features, row, strict=True)} for row in normal[:200]]
    records = [json.dumps(record).encode() for record in records]
    facts = {"name": name, "version": "bench", "training": {"seed": seed, "rows": len(data.train)}}
    files, parity, _ = make_bundle(scorer, features, normal, records, facts)
    run = session(files["model.onnx"])
    facts = {"parity": parity, "bytes": len(files["model.onnx"]), **check_trust(run, data, seed), **found}
    return seconds, lambda rows: run_onnx(run, rows)[0], facts


def check_trust(run, data, seed):
    """Checks thresholds and reasons -> {"reason_lowers", "false_alarms"}, or {} without normal rows.

    Thresholds are calibrated on a random half of the normal rows outside training and checked on the other half.

    false_alarms: {rate: [rows flagged, rows evaluated, expected share k / (n + 1)]} for each supported rate.
    reason_lowers: [k, n]. n is the number of evaluated test rows flagged at FLAGGED_AT (or the lowest supported rate).
    k of them score lower when the feature with the largest residual is replaced by its reconstruction.
    """
    from ..bundle.served import run_onnx

    X = data.test if data.spare is None else np.concatenate([data.test, data.spare])
    score, residual, expected = run_onnx(run, X)
    normal = np.concatenate([np.flatnonzero(~data.anomalous), np.arange(len(data.test), len(X))])
    normal = np.random.default_rng(2000 + seed).permutation(normal)
    half, fresh = normal[: len(normal) // 2], normal[len(normal) // 2 :]
    if not len(half):
        return {}
    calibration = Calibration(calibrate(score[half], residual[half]))
    finest = calibration.finest_rate()
    alarms = {
        f"{rate:g}": [
            int((score[fresh] > calibration.threshold(rate)).sum()),
            len(fresh),
            calibration.rank(rate) / (calibration.count + 1),
        ]
        for rate in CHECKED_AT
        if rate >= finest
    }
    evaluated = np.concatenate([fresh[fresh < len(data.test)], np.flatnonzero(data.anomalous)])
    flagged = evaluated[score[evaluated] > calibration.threshold(max(FLAGGED_AT, finest))]
    rows, top, every = data.test[flagged].copy(), residual[flagged].argmax(1), np.arange(len(flagged))
    rows[every, top] = expected[flagged, top]
    lowered = int((run_onnx(run, rows)[0] < score[flagged]).sum()) if len(flagged) else 0
    return {"reason_lowers": [lowered, len(flagged)], "false_alarms": alarms}


def fit_peer(name, data, seed):
    """Fits a peer -> (CPU seconds of fitting, a function from rows to scores, {})."""
    from .tabular_peers import fit

    began = time.process_time()
    score = fit(name, data.train, seed)
    return time.process_time() - began, score, {}


def costs(recipes):
    """Times recipes and a plain 256x3 MLP on one thread with 30 features -> {name: {batch: µs per row}}, best of 30."""
    import torch
    from torch import nn

    from ..bundle.export import to_onnx
    from ..bundle.served import session
    from ..tabular.features import Feature
    from ..tabular.train import Options, fit

    rng = np.random.default_rng(0)
    X = (rng.normal(size=(4000, 8)) @ rng.normal(size=(8, COST_FEATURES))).astype(np.float32)
    X += rng.normal(size=X.shape).astype(np.float32)
    features = [Feature(f"x{j}", f"x{j}", "number") for j in range(COST_FEATURES)]
    layers, inputs = [], COST_FEATURES
    for _ in range(3):
        layers, inputs = [*layers, nn.Linear(inputs, 256), nn.SiLU()], 256
    mlp = nn.Sequential(*layers, nn.Linear(256, COST_FEATURES))
    graphs = {"MLP 256x3": to_onnx(mlp, (torch.zeros(3, COST_FEATURES),), ("input",), ("out",))}
    graphs |= {name: to_onnx(fit(features, X, Options(name, steps=20), quiet=True)) for name in recipes}
    runs = {name: session(graph) for name, graph in graphs.items()}
    out = {name: dict.fromkeys(map(str, COST_BATCHES), np.inf) for name in runs}
    for _ in range(30):  # every round times all graphs, so that a busy moment affects all of them
        for name, run in runs.items():
            field = run.get_inputs()[0].name
            for batch in COST_BATCHES:
                began = time.perf_counter()
                for i in range(0, COST_ROWS, batch):
                    run.run(None, {field: X[i : i + batch]})
                spent = (time.perf_counter() - began) / COST_ROWS * 1e6
                out[name][str(batch)] = min(out[name][str(batch)], round(spent, 2))
    return out


def bench(
    folders, protocols, seeds, recipes, peers, out, fast=False, steps=None, jobs=None, contamination=0.0, part="all"
):
    """Runs all measurements that OUT/results.json lacks and saves it after each; then writes the Markdown and HTML.

    `folders`: one for each family of sets, which is named after it. `part`: a half of each family, or "all".
    """
    if len({folder.resolve().name for folder in folders}) < len(folders):
        raise TrainerError("--data: two folders have the same name, which names the family of their sets; rename one")
    files = [file for folder in folders for file in find_sets(folder.resolve(), fast, part)]
    if not files:
        raise TrainerError(f"--data has no set of the {part} half; its sets are all of the other")
    variants = [f"{name}, {variant}" for name in recipes for variant in (CLEAN, TOLD)] if contamination else []
    out.mkdir(parents=True, exist_ok=True)
    path, settings = out / "results.json", {"fast": fast, "steps": steps, "trainer": __version__, "version": VERSION}
    settings |= {"contamination": contamination} if contamination else {}
    results = {"settings": settings, "costs": {}, "runs": []}
    if path.exists():
        results = json.loads(path.read_text())
        if results["settings"] != settings:
            raise TrainerError(f"{path} has other settings ({results['settings']}); pass another folder with --out")
    done = {(r["family"], r["set"], r["protocol"], r["seed"], r["method"]) for r in results["runs"]}
    wanted = [
        (file, protocol, seed, method)
        for seed in range(seeds)
        for file in files
        for protocol in protocols_of(file, protocols)
        for method in [*recipes, *variants, *peers]
        if (file.parent.name, file.stem, protocol, seed, method) not in done
    ]

    def save():
        results["runs"].sort(key=lambda r: (r["family"], r["protocol"], r["method"], r["set"], r["seed"]))
        write(path, json.dumps(results, indent=1) + "\n")
        write(out / "results.md", markdown(results))

    os.environ |= WORKERS  # spawned processes inherit them before their libraries load
    failed, bar = [], console.bar(total=len(wanted), desc="bench", unit=" runs")
    with ProcessPoolExecutor(jobs or os.cpu_count(), get_context("spawn")) as pool:
        tasks = {pool.submit(run_one, *task, recipes, fast, steps, contamination): task for task in wanted}
        for task in as_completed(tasks):
            file, protocol, seed, method = tasks[task]
            try:
                results["runs"].append(task.result())
                save()
            except TrainerError as error:
                failed.append(f"{file.name}, {protocol}, seed {seed}, {method}: {error}")
            bar.set_postfix_str(f"{file.stem} {method}", refresh=False)
            bar.update()
    bar.close()
    if any(name not in results["costs"] for name in recipes):
        results["costs"] |= costs(recipes)
    save()
    write(out / "results.html", page(sections(results["runs"]), markdown(results)))
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(markdown(results).split("\n\n## Each set")[0])
    print(f"wrote {path}, {out / 'results.md'} and {out / 'results.html'}")
    if failed:
        raise TrainerError(f"{len(failed)} of {len(wanted)} runs failed (see above); run again to repeat them")


def write(path, text):
    """Writes a file by one rename, so that an interruption leaves the previous one."""
    fresh = path.with_suffix(path.suffix + ".part")
    fresh.write_text(text)
    fresh.replace(path)


def markdown(results):
    """The content of results.json -> the text of results.md."""
    settings = results["settings"]
    lines = ["# Detection results", ""]
    if settings["fast"]:
        lines += ["Measured with `--fast` on the smallest sets and few rows. Not comparable with a full run.", ""]
    if share := settings.get("contamination"):
        lines += [
            f"{100 * share:g} % of the training rows are labelled anomalies from the test rows (at most half of a "
            f"set's anomalies). `{CLEAN}` trains without them, and `{TOLD}` trains with `--contamination {share:g}`.",
            "",
        ]
    lines += [HOW_TO_READ, ""]
    found = sections(results["runs"])
    for title, runs in found.items():
        lines += [f"## {title}", "", means_table(runs), "", leads_table(runs), ""]
        leaking = {r["set"] for r in runs if r.get("leaks")}
        if leaking:
            rest = [r for r in runs if r["set"] not in leaking]
            lines += [f"Without the {len(leaking)} sets in which an id leaks:", "", leads_table(rest), ""]
        if totals := trust_totals(runs):
            lines += [f"### Thresholds and reasons: {title}", "", totals, ""]
    if results["costs"]:
        lines += [f"## Cost: µs per row, one thread, {COST_FEATURES} features", "", costs_table(results["costs"]), ""]
    for title, runs in found.items():
        lines += [f"## Each set: {title}; AUROC / average precision", "", sets_table(runs), ""]
        if table := trust_table(runs):
            lines += [
                f"## Each set: {title}; false alarms at 1e-2 and 1e-3; reasons that lower the score",
                "",
                table,
                "",
            ]
    return "\n".join(lines)


def sections(runs):
    """Runs -> {title: the runs of one half of a family under one protocol}, report halves first."""
    order = {(r["family"], r["protocol"], r["half"]) for r in runs}
    order = sorted(order, key=lambda key: (HALVES.index(key[2]) == 0, *key))
    return {
        f"{family}, {protocol}: {part} half": [
            r for r in runs if (r["family"], r["protocol"], r["half"]) == (family, protocol, part)
        ]
        for family, protocol, part in order
    }
