"""Makes an 8-bit copy of a bundle and measures how its scores change: `residuald-train quantize`."""

import json
import time

import numpy as np
import residuald

from .. import TrainerError
from ..bench.metrics import detection
from ..tabular.data import file_facts
from ..tabular.features import encode
from ..tabular.refusals import say_refusals
from .calibrate import INTERVALS, TAIL, Calibration, calibrate, score_distribution
from .export import as_json
from .golden import golden_lines, one_line, record_text
from .int8 import BATCH, check_batches, robust_rows, to_int8
from .served import run_onnx, session, sha256s

RATES = 1e-2, 1e-3  # false-alarm rates at which verdicts are compared
RANGE_ROWS, RANGE_SHARE = 4096, 0.25  # most normal rows that set the activations' ranges, and their largest share
MIN_ROWS, MIN_GOLDEN = 100, 32
RELATIVE, ABSOLUTE = 1e-2, 1e-3  # tolerance of golden scores
ROBUST = RELATIVE / 10  # largest relative change of a golden score when weights change in their last digits
SPEED_ROWS, SPEED_ROUNDS = 4096, 15
FROM_SCORES = "screen.onnx", "screen.json"  # made from the float scores, so they are not copied


def quantize(served, table, anomalous=None):
    """Makes the files of the quantized bundle -> {name: bytes}. Raises TrainerError.

    `served`: a Served bundle. `table`: records [rows]. `anomalous`: bool [rows], known anomalies, or None. Some of the
    normal rows set the activations' ranges, and the others make the new calibration. The two graphs are compared on
    these others and on the anomalies. The result goes into the manifest as `scoring.quantization`.
    """
    if "quantization" in served.manifest.get("scoring", {}):
        raise TrainerError(f"{served.folder} is already quantized; pass the bundle that it was made from")
    X, accepted, refused = encode(table, served.features)
    say_refusals(table, served.features, accepted, refused)
    anomalous = np.zeros(len(table), bool) if anomalous is None else anomalous
    normal = np.random.default_rng(0).permutation(np.flatnonzero(accepted & ~anomalous))
    if len(normal) < MIN_ROWS:
        raise TrainerError(f"{len(normal)} normal rows fit the bundle's schema; quantize needs at least {MIN_ROWS}")
    ranges, rest = np.split(normal, [min(RANGE_ROWS, int(RANGE_SHARE * len(normal)))])
    compared = np.concatenate([rest, np.flatnonzero(accepted & anomalous)])

    model, facts = to_int8(served.files["model.onnx"], X[ranges])
    check_batches(model, X[normal])
    run = session(model)
    before, after = (run_onnx(graph, X[compared])[:2] for graph in (served.session, run))
    facts |= {"range_rows": len(ranges), "calibration_rows": len(rest), "refused_rows": int((~accepted).sum())}
    facts["data"] = file_facts(table)
    facts |= {"measured": compare(before, after, len(rest)) | speed(served.session, run, X[normal])}

    old = json.loads(served.files["calibration.json"])
    content = calibrate(*(part[: len(rest)] for part in after), *segments_of(old, table, rest))
    spare = (one_line(table.record(int(row))) for row in rest)
    files = {name: held for name, held in served.files.items() if name not in FROM_SCORES} | {
        "model.onnx": model,
        "calibration.json": as_json(content),
        "golden.ndjson": golden(served.files["golden.ndjson"], spare, model, served.features),
    }
    # `screen` and `calibration` of the old manifest describe files that are left out or replaced.
    manifest = {key: value for key, value in served.manifest.items() if key not in ("screen", "calibration")} | {
        "version": f"{served.manifest['version']}-int8",
        "files": sha256s(files),
        "scoring": served.manifest.get("scoring", {}) | {"quantization": facts},
        "golden": {"relative_tolerance": RELATIVE, "absolute_tolerance": ABSOLUTE},
    }
    return files | {"manifest.json": as_json(manifest, indent=1)}


def summary(served, files):
    """Yields the lines of a summary for the user."""
    facts = json.loads(files["manifest.json"])["scoring"]["quantization"]
    found, rows = facts["measured"], facts["calibration_rows"]
    change, (old, new) = found["score_change"], found["microseconds_a_row"]
    yield f"quantized: {len(facts['layers'])} layers, with activation ranges from {facts['range_rows']} normal rows"
    yield (
        f"calibrated: on {rows} normal rows (before: {served.calibration.count}), "
        f"for false-alarm rates down to {1 / (rows + 1):.2g}"
    )
    yield (
        f"scores: changed by {change['median']:.2%} in the median and at most {change['largest']:.1%}, "
        f"over {found['rows']} rows"
    )
    for row in found["verdicts"]:
        yield (
            f"verdicts at a false-alarm rate of {row['false_alarm_rate']:g}: {row['same']:.3%} the same; "
            f"{row['flagged'][0]} flagged before, {row['flagged'][1]} now, {row['flagged_by_both']} by both, "
            f"{row['with_the_same_first_reason']} of these with the same first reason"
        )
    if "auroc" in found:
        area, precision = ("{:.4f} -> {:.4f}".format(*found[key]) for key in ("auroc", "average_precision"))
        yield f"detection: AUROC {area}, average precision {precision} ({found['anomalies']} labelled anomalies)"
    yield (
        f"cost: {old:.1f} -> {new:.1f} µs per row on one core of this machine, in batches of {BATCH}: "
        f"{found['speedup']:.2f} times as fast"
    )
    if facts["refused_rows"]:
        yield f"left out: {facts['refused_rows']} rows that the schema refuses"
    if left := [name for name in served.files if name not in files]:
        yield f"left out: {', '.join(left)}, which depend on the scores; make them again with `residuald-train screen`"


def compare(before, after, normals):
    """Compares (score [n], residual [n, F]) of both graphs; the first `normals` rows are normal -> measurements."""
    change = np.abs(after[0].astype(float) - before[0]) / np.maximum(np.abs(before[0]), 1e-12)
    found = {
        "rows": len(change),
        "anomalies": len(change) - normals,
        "score_change": {"median": float(np.median(change)), "largest": float(change.max())},
    }
    if normals < len(change):
        truth = np.arange(len(change)) >= normals
        areas = [detection(truth, score) for score, _ in (before, after)]
        found |= {name: [area[name] for area in areas] for name in ("auroc", "average_precision")}
    return found | {"verdicts": [verdicts(before, after, normals, rate) for rate in RATES if rate * (normals + 1) >= 1]}


def verdicts(before, after, normals, rate):
    """Compares both graphs' verdicts. Each graph has its own threshold at this false-alarm rate on the normal rows."""
    old, new = (
        score > Calibration(score_distribution(score[:normals], INTERVALS, TAIL)).threshold(rate)
        for score, _ in (before, after)
    )
    both = old & new
    reason = before[1][both].argmax(1) == after[1][both].argmax(1)
    return {
        "false_alarm_rate": rate,
        "same": float((old == new).mean()),
        "flagged": [int(old.sum()), int(new.sum())],
        "flagged_by_both": int(both.sum()),
        "with_the_same_first_reason": int(reason.sum()),
    }


def speed(before, after, X):
    """Times two sessions alternately on one core -> µs per row (minimum over rounds) and speedup (median over rounds).

    X float32 [n, F].
    """
    X, spent = np.resize(X, (SPEED_ROWS, X.shape[1])), np.zeros((SPEED_ROUNDS, 2))
    for times in spent:
        for i in range(0, len(X), BATCH):
            for k, run in enumerate((before, after)):
                began = time.perf_counter()
                run.run(None, {"x": X[i : i + BATCH]})
                times[k] += time.perf_counter() - began
    micros = spent.min(0) / len(X) * 1e6
    return {
        "microseconds_a_row": [round(float(m), 2) for m in micros],
        "speedup": round(float(np.median(spent[:, 0] / spent[:, 1])), 3),
        "batch": BATCH,
    }


def segments_of(calibration, table, rows):
    """Returns the path of the calibration's segment field and its value in each of the rows, or () without segments."""
    by = calibration.get("segments", {}).get("by")
    if by is None:
        return ()
    path = by.get("field") if isinstance(by, dict) else None
    if path is None:
        raise TrainerError(
            "the bundle's segments are message keys, which files do not contain; remove the segments "
            "(`residuald calibrate --no-segments`), quantize, then run `residuald calibrate --by-key` on the topic"
        )
    return path, table.take(rows).segments(path)


def golden(content, spare, model, features):
    """Makes golden.ndjson with the scores of `model`, without records whose score depends on one activation's rounding.

    `content`: the float bundle's golden.ndjson. `spare`: an iterator of other records as JSON strings, used if fewer
    than MIN_GOLDEN are left. Raises TrainerError if none is left.
    """
    lines = [record_text(line) for line in content.decode().splitlines() if line.strip()]
    least = min(MIN_GOLDEN, len(lines))

    def rows(lines):
        return encode(residuald.Table(lines), features)[0]

    def robust(lines):
        return [line for line, keep in zip(lines, robust_rows(model, rows(lines), ROBUST), strict=True) if keep]

    chosen = robust(lines)
    more = [line for _, line in zip(range(4 * least), spare, strict=False)] if len(chosen) < least else []
    if more:
        chosen += robust(more)[: least - len(chosen)]
    if not chosen:
        raise TrainerError(
            "every golden score depends on how one activation is rounded, so other machines could not verify the "
            "bundle; nothing was written"
        )
    return golden_lines(chosen, run_onnx(session(model), rows(chosen))[0])
