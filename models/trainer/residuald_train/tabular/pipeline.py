"""The whole of tabular training, from files of records to a bundle: `residuald-train tabular`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .. import TrainerError
from ..bench.metrics import auroc
from ..bundle import nearest
from ..bundle.export import check_out, write
from ..bundle.served import microseconds_a_row, run_onnx, session
from ..console import say
from ..generative.pipeline import generative_files
from ..generative.train import Options as GenerativeOptions
from .contamination import suspects
from .data import file_facts
from .export import make_bundle
from .features import add_missing, encode, infer_schema, load_schema, schema_to_json
from .labels import DataSource, anomalous_rows, check_column, read_labelled, split_by_label
from .leaks import say_leaks
from .refusals import say_refusals
from .train import Options, fit, split

MIN_ROWS = 32
GOLDEN_CANDIDATES = 1000  # held-out rows that golden records are drawn from
QUANTILES = 0.5, 0.9, 0.99, 0.999, 1  # of the held-out scores, for the summary


@dataclass(frozen=True)
class Settings:
    """The options of `residuald-train tabular`."""

    source: DataSource
    out: Path
    name: str
    version: str = "1"
    schema: Path | None = None
    recipe: str = "best"
    seed: int = 0
    steps: int = 1000
    minutes: float | None = None  # limit of training time
    device: str = "cpu"
    resume: bool = False
    checkpoint: Path | None = None
    width: int = 96
    coreset: int | None = None
    held_out: float = 0.2  # share of the normal rows to calibrate on
    contamination: float = 0  # suspected share of unlabelled anomalies
    nearest: str | bool | None = None  # keep normal records: the column of their ids, or True without ids
    segment: str | None = None  # the column to calibrate by
    generative: GenerativeOptions | None = None  # also train a model to draw rows from
    dry_run: bool = False
    force: bool = False  # replace an existing bundle


def train_bundle(settings):
    """Trains on the files of `settings.source` and writes the bundle to `settings.out`."""
    check_out(settings.out, settings.force)
    features, label = load_schema(settings.schema) if settings.schema else (None, None)
    table, label = read_labelled(settings.source, label)
    normals, anomalies = split_by_label(table, label)
    features = choose_features(features, normals, label, settings)
    say_leaks(table, anomalous_rows(table, label), features)

    options = Options(
        settings.recipe,
        settings.seed,
        settings.steps,
        width=settings.width,
        coreset=settings.coreset,
        minutes=settings.minutes,
        device=settings.device,
    )
    recorded = options_of_manifest(options, label, settings)
    about = {"name": settings.name, "version": settings.version, "out": str(settings.out)}
    print("options:", json.dumps(about | recorded))
    print("schema:", json.dumps(schema_to_json(features), ensure_ascii=False, indent=1))
    if settings.dry_run:
        _X, accepted, refused = encode(normals, features)
        say_refusals(normals, features, accepted, refused)
        print(f"rows: {accepted.sum()} normal rows fit the schema, {(~accepted).sum()} are refused")
        return

    rows = select_rows(normals, features, settings)
    checkpoint = checkpoint_of(settings)
    scorer = fit(features, rows.X[rows.train], options, checkpoint=checkpoint, resume=settings.resume)

    training = {"seed": settings.seed} | rows.facts
    training |= {
        "ranges": ranges(features, rows.X[rows.train]),
        "rows": len(rows.train),
        "held_out_rows": len(rows.held_out),
        "data": file_facts(table),
        "options": recorded,
    }
    more = nearest_files(scorer, rows, normals, options, settings.nearest)
    if settings.generative:
        added, training["generative"] = generative_files(
            features, rows.X[rows.train], rows.X[rows.held_out], settings.generative
        )
        more |= added
    held_out = normals.take(rows.held_out)
    files, parity, score = make_bundle(
        scorer,
        features,
        held_out=rows.X[rows.held_out],
        records=[held_out.record(row) for row in range(min(GOLDEN_CANDIDATES, len(held_out)))],
        facts={"name": settings.name, "version": settings.version, "training": training},
        segment=settings.segment,
        segment_values=held_out.segments(settings.segment) if settings.segment else None,
        more=more,
    )
    write(settings.out, files, settings.force)
    if not settings.checkpoint:
        checkpoint.unlink(missing_ok=True)
    print_summary(files["model.onnx"], features, score, parity, rows.X[rows.held_out], anomalies)
    print(f"wrote {settings.out} ({len(files['model.onnx']) / 1e6:.2f} MB model)")


def checkpoint_of(settings):
    """The path of the checkpoint, whose folder exists. Says so if --resume finds none."""
    out = settings.out.resolve()
    checkpoint = settings.checkpoint or out.with_name(out.name + ".checkpoint")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if settings.resume and not checkpoint.exists():
        say(f"--resume: there is no {checkpoint}; training starts from the beginning")
    return checkpoint


def ranges(features, X):
    """X float32 [n, F] -> {name: [lowest, highest]} of the numbers, for `residuald profile`."""
    numbers = [(i, f.name) for i, f in enumerate(features) if f.type == "number" and np.isfinite(X[:, i]).any()]
    return {name: [float(np.nanmin(X[:, i])), float(np.nanmax(X[:, i]))] for i, name in numbers}


@dataclass
class Rows:
    """The encoded normal rows and how they are used."""

    X: np.ndarray  # float32 [n, F]
    train: np.ndarray  # numbers of the rows to train on
    held_out: np.ndarray  # numbers of the rows to calibrate on
    facts: dict  # for the manifest


def choose_features(features, table, label, settings):
    """The schema's features, or inferred ones, without the label and --drop. Checks --nearest and --segment."""
    if settings.nearest not in (None, True):
        check_column(table, settings.nearest, "--nearest")
    if features is None:
        source = settings.source
        features = infer_schema(table, label, source.drop, source.keep, source.missing)
    features = add_missing(features, settings.source.missing)
    features = [f for f in features if f.path not in settings.source.drop and not (label and f.path == label["path"])]
    if settings.segment:
        check_segment(settings.segment, table, features)
    return features


def check_segment(path, table, features):
    check_column(table, path, "--segment")
    for feature in features:
        if feature.path.startswith(path + ".") or path.startswith(feature.path + "."):
            raise TrainerError(f"--segment: `{path}` is not a separate field, because a feature is at `{feature.path}`")


def options_of_manifest(options, label, settings):
    recorded = {key: value for key, value in asdict(options).items() if value not in (None, "cpu")} | {
        "held_out": settings.held_out,
        "max_rows": settings.source.max_rows,
        "label": label,
    }
    recorded |= {"segment": settings.segment} if settings.segment else {}
    return recorded | {"contamination": settings.contamination}


def select_rows(table, features, settings):
    """Encodes the normal rows, leaves out refused and suspected ones, and splits the others -> Rows."""
    X, accepted, refused = encode(table, features)
    say_refusals(table, features, accepted, refused)
    kept, facts = np.flatnonzero(accepted), {}
    if settings.contamination and len(kept):
        suspected = suspects(features, X[kept], settings.contamination, settings.seed)
        kept, facts["suspected_rows"] = kept[~suspected], int(suspected.sum())
        print(
            f"suspected: {suspected.sum()} rows are left out of training and calibration as likely anomalies; if they "
            f"were normal, the false-alarm rate will exceed the requested one by up to {settings.contamination:g}"
        )
    if len(kept) < MIN_ROWS:
        raise TrainerError(f"{len(kept)} normal rows fit the schema; training needs at least {MIN_ROWS}")
    train, held_out = split(len(kept), settings.held_out, settings.seed)
    print(f"rows: {len(train)} to train on, {len(held_out)} held out")
    return Rows(X, kept[train], kept[held_out], facts)


def nearest_files(scorer, rows, table, options, column):
    """The files of `--nearest`, or {} without it. `column` holds the records' ids; True means without ids."""
    if not column:
        return {}
    ids = None if column is True else column
    return nearest.files(scorer, rows.X[rows.train], options, table.take(rows.train), ids)


def print_summary(model, features, score, parity, held_out, anomalies):
    """Prints quantiles of the held-out scores, cost, parity error, and AUROC if there are labelled anomalies."""
    run = session(model)
    quantiles = zip(QUANTILES, np.quantile(score, QUANTILES), strict=True)
    cost = microseconds_a_row(run, np.resize(held_out, (16_384, len(features))), rounds=1)
    print("held-out scores:", ", ".join(f"{q:g} {value:.3f}" for q, value in quantiles))
    print(f"cost: {cost:.1f} µs per row on one core, in batches of 256")
    print(f"parity: ONNX Runtime and torch differ by at most {parity:.1e}")
    if anomalies is None or not len(anomalies):
        return
    X, accepted, _ = encode(anomalies, features)
    if accepted.any():
        area = auroc(score, run_onnx(run, X[accepted])[0])
        print(f"detection: AUROC {area:.4f} ({accepted.sum()} labelled anomalies against the held-out normals)")
