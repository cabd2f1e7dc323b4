"""Makes a bundle of a foreign ONNX model, from top to bottom: `residuald-train wrap`."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import residuald

from .. import TrainerError
from ..bundle.calibrate import Calibration, calibrate
from ..bundle.export import as_json, check_out, make_manifest, write
from ..bundle.golden import golden_lines, golden_records
from ..bundle.served import microseconds_a_row
from ..console import say
from ..tabular.features import encode, schema_to_json
from . import images
from .columns import columns_of
from .direction import direction, distorted
from .model import load
from .proof import ROUNDING, batch_difference, check_finite, opened, outputs
from .records import Records, records
from .schedule import schedule
from .tables import KINDS, OCCLUDED, Plan, Scorer, kind_of, takes_columns, typical

BATCH = 256
RELATIVE, ABSOLUTE, LOOSEST = 1e-5, 1e-6, 0.01  # tolerance of golden scores
ROUNDED = 2.0**-22  # relative change of a number that shows how sensitive a score is to rounding
GOLDEN_CANDIDATES = 1000


@dataclass(frozen=True)
class Settings:
    """The options of `residuald-train wrap`. None means: choose, and say what was chosen."""

    name: str | None = None  # of the model; by default that of the folder
    version: str = "1"
    kind: str | None = None  # score, reconstruction, denoiser or anomaly-map
    output: str | None = None  # the model's output to use
    columns: list | None = None  # what the model's input columns are
    higher_is: str | None = None  # anomalous or normal
    reasons: str | None = None  # occlusion or deviation
    missing: str = "fill"  # or model: the model itself takes missing values
    scheduler: Path | None = None  # a denoiser's scheduler_config.json
    timesteps: tuple | None = None
    pixel_mean: tuple | None = None  # of images, per channel, in 0..1
    pixel_std: tuple | None = None
    size: tuple | None = None  # height and width, for a model of images with dynamic sides
    error: str = "mean square"  # the score of a reconstruction; or distance, the root of the sum of squares
    embed_data: bool = False  # put external data into the graph
    false_alarm_rate: float = 0.001
    seed: int = 0
    force: bool = False


def wrap(model, data, out, schema=None, source=None, **options):
    """Makes a bundle of a foreign ONNX model. Raises TrainerError that says what to change.

    `model`: a path, or the bytes of a model. `data`: normal records that the model was not trained on: paths of files,
    a residuald.Table, a DataFrame, or an array [n, F]; for a model of images, a folder. `out`: the bundle's folder.
    `schema`: a path or a list of features; None infers one. `source`: a DataSource. `options`: those of Settings.
    """
    settings, out = Settings(**options), Path(out)
    settings = replace(settings, name=settings.name or out.resolve().name)
    check_out(out, settings.force)
    where = str(model) if not isinstance(model, bytes) else "the model"
    foreign = load(model, settings.embed_data)
    say(*foreign.notes)
    of_images = any(len(value.shape) == 4 for value in foreign.inputs)
    check_applicable(settings, of_images, schema, source)
    if of_images:
        files, lines = images.bundle(foreign, data, settings, where, source)
    else:
        files, lines = bundle(foreign, data, schema, source, settings, where)
    write(out, files, settings.force)
    print(*lines, f"wrote {out}; next: residuald check --bundle {out}", sep="\n")
    return out


def check_applicable(settings, of_images, schema, source):
    """Raises TrainerError for an option that says nothing about this kind of model, rather than ignoring it."""
    for_tables = {"columns": settings.columns, "reasons": settings.reasons, "higher-is": settings.higher_is}
    for_tables |= {"schema": schema, "label": source and source.label, "missing": settings.missing != "fill"}
    for_images = {"pixel-mean": settings.pixel_mean, "pixel-std": settings.pixel_std, "size": settings.size}
    wrong = [name for name, given in (for_tables if of_images else for_images).items() if given]
    if wrong:
        one, other = ("images", "table rows") if of_images else ("table rows", "images")
        raise TrainerError(f"--{wrong[0]} is for models of {other}, but this is a model of {one}")


def check_kind(settings, kind):
    """The same for the options of one kind of model."""
    of_kind = {"score": {"reasons": settings.reasons, "higher-is": settings.higher_is}}
    of_kind["denoiser"] = {"scheduler": settings.scheduler, "timesteps": settings.timesteps}
    for wanted, options in of_kind.items():
        for name, given in options.items():
            if given and kind != wanted:
                raise TrainerError(f"--{name} is for a model of kind {wanted}, but this one is of kind {kind}")


def bundle(foreign, data, schema, source, settings, where):
    """A model of table rows -> ({name: bytes} of the bundle, the lines of a summary)."""
    found = data if isinstance(data, Records) else records(data, schema, source)
    columns = columns_of(settings.columns, found.features)
    found = found.choose([column.feature for column in columns])
    rng = np.random.default_rng(settings.seed)
    scorer, lines = planned(foreign, found, columns, settings, where, rng)
    graph = invariant(scorer, found.X, where)
    run = opened(graph, where)
    got = outputs(run, found.X, BATCH)
    check_finite(found.X, got, "records")
    golden, tolerance = golden_of(run, found, scorer.plan.lowest, rng)
    files = {
        "model.onnx": graph,
        "calibration.json": as_json(calibrate(got[0], got[1])),
        "golden.ndjson": golden,
    }
    training = {"seed": settings.seed, "held_out_rows": len(found.X), "data": found.facts}
    facts = {"name": settings.name, "version": settings.version, "training": training}
    manifest = make_manifest(files, facts, schema_to_json(found.features), facts_of(scorer), tolerance)
    lines += summary(files, got[0], settings.false_alarm_rate)
    cost = microseconds_a_row(run, np.resize(found.X, (1024, found.X.shape[1])), rounds=1)
    runs = f", {1 + len(found.features)} runs of the model for each" if scorer.plan.reasons == "occlusion" else ""
    lines.append(f"cost: {cost:.1f} µs per record on one core, in batches of 256{runs}")
    return files | {"manifest.json": manifest}, lines


def planned(foreign, found, columns, settings, where, rng):
    """Chooses what to do with the model's outputs -> (Scorer, lines that say so)."""
    features = found.features
    usual = typical(features, found.X)
    if settings.kind not in (None, *KINDS):
        raise TrainerError(f"--kind {settings.kind}: a model of table rows is one of {', '.join(KINDS)}")
    Scorer(foreign, features, columns, Plan("score", ""), usual, where)  # checks the inputs
    width = None if takes_columns(foreign) else sum(column.width for column in columns)
    kind, output = kind_of(foreign, width, settings.kind, settings.output, where)
    check_kind(settings, kind)
    plan = Plan(
        kind, output, passes_missing=settings.missing == "model", reasons="reconstruction", error=settings.error
    )
    lines = [f"model: {foreign.producer or 'unknown producer'}, read as {kind} from `{output}`"]
    if kind == "denoiser":
        alphas, predicts = schedule(settings.scheduler, settings.timesteps)
        plan = replace(plan, alphas=alphas, predicts=predicts)
        lines.append(f"denoiser: predicts {predicts}, at timesteps {', '.join(map(str, alphas))}")
    if kind == "score":
        reasons = settings.reasons or ("occlusion" if len(features) <= OCCLUDED else "deviation")
        plan = replace(plan, reasons=reasons)
        raw = Scorer(foreign, features, columns, plan, usual, where)
        plan, said = directed(raw, found, settings, where, rng)
        lines += [said, f"reasons: by {reasons}" + ("" if settings.reasons else WHY[reasons])]
    return Scorer(foreign, features, columns, plan, usual, where), lines


WHY = {
    "occlusion": "; a feature's share is how far the score falls when the feature gets its typical value",
    "deviation": f", because more than {OCCLUDED} features would need as many runs of the model for each record; a "
    "feature's share is its squared distance from the typical value, which does not ask the model",
}


def directed(scorer, found, settings, where, rng):
    """Finds out which way the model's score points, and its lowest value -> (Plan, a line that says so)."""
    run = opened(scorer.raw(), where)
    (normal,) = outputs(run, found.X, BATCH, ["raw"])
    if not np.isfinite(normal).all():
        bad = int((~np.isfinite(normal)).sum())
        raise TrainerError(f"{where}: `{scorer.plan.output}` is not finite for {bad} of {len(normal)} normal records")
    (broken,) = outputs(run, distorted(found.features, found.X, rng), BATCH, ["raw"])
    given = None if settings.higher_is is None else settings.higher_is == "anomalous"
    kept = np.isfinite(broken)
    higher, said = direction(scorer.plan.output, scorer.model.producer, given, normal, broken[kept])
    lowest = float(min((normal if higher else -normal).min(), 0))
    sign = "" if higher else "-"
    if lowest or sign:
        said += f"; score = {sign}{scorer.plan.output}" + (f" {-lowest:+g}, at least 0" if lowest else "")
    return replace(scorer.plan, higher=higher, lowest=lowest), said


def invariant(scorer, X, where):
    """The bytes of a graph that gives a record the same bits in any batch. Raises TrainerError if none can be made."""
    graph = scorer.onnx()
    apart = batch_difference(opened(graph, where), X)
    if not apart:
        return graph
    if apart > ROUNDING or scorer.model.one_by_one:
        raise TrainerError(
            f"{where}: the score of a record depends on the rest of its batch: it changes by {apart:.1e} of its size. "
            "Export the model in evaluation mode, without statistics over the batch"
        )
    say(
        f"batches: rounding depends on a record's place in its batch (by {apart:.1e}), so the model runs on one record "
        "at a time; this is slower, but a record always gets the same score"
    )
    scorer.model.one_by_one = True
    return invariant(scorer, X, where)


def golden_of(run, found, lowest, rng):
    """Golden records whose scores are finite and robust -> (golden.ndjson, (relative, absolute tolerance))."""
    some = [found.table.record(row) for row in rng.permutation(len(found.X))[:GOLDEN_CANDIDATES]]
    lines = golden_records(found.features, some, rng)
    X, accepted, _ = encode(residuald.Table(lines), found.features)
    lines, X = [line for line, fits in zip(lines, accepted, strict=True) if fits], X[accepted]
    got = outputs(run, X, BATCH)
    finite = np.isfinite(got[0]) & np.isfinite(got[1]).all(1) & np.isfinite(got[2]).all(1)
    if not finite.all():
        say(
            f"golden records: {int((~finite).sum())} of {len(lines)} with extreme or missing values get no finite "
            "score; the daemon makes such a record a dead letter, `unscorable`"
        )
    numbers = np.array([feature.type == "number" for feature in found.features])
    absolute = min(LOOSEST, max(ABSOLUTE, ABSOLUTE * 10 * abs(lowest)))
    moved = np.zeros(len(X))
    for sign in (-1, 1):
        near = (X * np.where(numbers, 1 + sign * ROUNDED, 1)).astype(np.float32)
        with np.errstate(invalid="ignore"):  # of records without a finite score, which are left out anyway
            moved = np.maximum(moved, np.abs(outputs(run, near, BATCH)[0] - got[0].astype(np.float64)))
    for relative in (RELATIVE, 1e-4, 1e-3, LOOSEST):
        keep = finite & (4 * moved <= absolute + relative * np.abs(got[0]))
        if keep[:32].sum() >= min(16, len(keep)):
            break
    if not keep.any():
        raise TrainerError(
            "every golden score changes when a number is rounded; the daemon could not verify the bundle"
        )
    kept = [line for line, good in zip(lines, keep, strict=True) if good]
    return golden_lines(kept, got[0][keep]), (relative, absolute)


def facts_of(scorer):
    """What the manifest says about scoring."""
    plan, model = scorer.plan, scorer.model
    score = {
        "score": f"{'' if plan.higher else '-'}{plan.output}" + (f" {-plan.lowest:+g}" if plan.lowest else ""),
        "reconstruction": f"{plan.error} of the reconstruction's errors, in the model's own columns",
        "denoiser": "mean squared error of the predicted noise",
    }
    out = {
        "recipe": f"foreign: {plan.kind}",
        "score": score[plan.kind],
        "output": plan.output,
        "calls": 1 + len(scorer.features) if plan.reasons == "occlusion" else max(1, len(plan.alphas)),
        "opset": model.opsets.get(""),
        "model": {"producer": model.producer, "sha256": model.sha256, "one_by_one": model.one_by_one},
        "reasons": plan.reasons,
    }
    if plan.kind == "score":
        out |= {"higher_is": "anomalous" if plan.higher else "normal", "lowest": plan.lowest}
    if plan.kind == "denoiser":
        out |= {"timesteps": list(plan.alphas), "alphas": list(plan.alphas.values()), "predicts": plan.predicts}
    if scorer.encoder:
        out["columns"] = [asdict(column) for column in scorer.encoder.columns]
    return out


def summary(files, score, rate):
    """Lines about the calibration, and what is odd about it."""
    calibration = Calibration(json.loads(files["calibration.json"]))
    yield f"calibrated on {len(score)} normal records; the model must not have been trained on them"
    if rate * (calibration.count + 1) < 1:
        yield (
            f"a false-alarm rate of {rate:g} needs {round(1 / rate) - 1} records; these support rates down to "
            f"{calibration.finest_rate():.2g}"
        )
        return
    threshold = calibration.threshold(rate)
    above = int((score > threshold).sum())
    yield f"threshold at a false-alarm rate of {rate:g}: {threshold:.6g}"
    if above < 0.9 * (calibration.rank(rate) - 1):
        yield (
            f"many records share the score {threshold:.6g}: only {above} of {len(score)} lie above the threshold, so "
            "fewer are flagged than asked for"
        )
