"""Converts fitted estimators of scikit-learn and PyOD to ONNX, and wraps them."""

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from .. import TrainerError
from ..console import say
from .bundle import wrap
from .columns import Column
from .graph import Builder
from .records import records

OPSETS = {"": 20, "ai.onnx.ml": 3}
IR_VERSION = 10
SAMPLES = {"IsolationForest", "LocalOutlierFactor", "GaussianMixture", "BayesianGaussianMixture"}  # have score_samples
DOUBLE = SAMPLES - {"IsolationForest"}  # in float32, near ties between neighbours would be broken differently
RECONSTRUCTING = "PCA", "IncrementalPCA"
PYOD = "AutoEncoder", "IForest", "LOF", "OCSVM", "PCA"


def from_onnx(model, schema, data, out, **options):
    """Makes a bundle of an ONNX model -> its folder. `wrap` describes the arguments."""
    return wrap(model, data, out, schema, **options)


def from_sklearn(estimator, schema, data, out, **options):
    """Makes a bundle of a fitted estimator of scikit-learn -> its folder. Raises TrainerError.

    `estimator`: an outlier detector or a mixture, whose score counts, or a PCA, whose reconstruction counts; also the
    last step of a Pipeline. An estimator that was fitted on a DataFrame gets its columns by name; categories stay text,
    and the estimator's own encoder encodes them. One that was fitted on an array gets them in the order of the schema,
    or of the data without one. `schema`, `data`, `out` and `options` are those of `wrap`.
    """
    check_fitted_detector(estimator, chosen="kind" in options or "output" in options)
    found = records(data, schema)
    last = steps(estimator)[-1]
    names = named_columns(estimator, found.features)
    if names is not None:
        found = found.choose(names)
    else:
        say_order(data, found.features, options)
    if type(last).__name__ in RECONSTRUCTING:
        columns = affine_columns(steps(estimator)[:-1], found.features)
        return finish(principal(last), found, out, options | {"columns": columns, "kind": "reconstruction"})
    if (count := getattr(estimator, "n_features_in_", len(found.features))) != len(found.features):
        raise TrainerError(
            f"the estimator was fitted on {count} columns, but the schema has {len(found.features)} features"
        )
    samples = type(last).__name__ in SAMPLES
    content = converted(estimator, last, found.features, by_name(estimator), samples)
    output = "score_samples" if samples else "scores" if hasattr(last, "decision_function") else None
    missing = "model" if takes_missing(estimator) else "fill"
    return finish(content, found, out, {"output": output, "missing": missing} | options)


def from_pyod(detector, schema, data, out, **options):
    """Makes a bundle of a fitted detector of PyOD -> its folder. Raises TrainerError for one that has no ONNX form.

    The score is PyOD's own `decision_function`, less its lowest value if that is negative. `schema`, `data`, `out` and
    `options` are those of `wrap`.
    """
    kind = type(detector).__name__
    if kind not in PYOD:
        raise TrainerError(f"PyOD's {kind} cannot be converted to ONNX; these can: {', '.join(PYOD)}")
    if not hasattr(detector, "decision_scores_"):
        raise TrainerError(f"this {kind} instance is not fitted yet: call fit before")
    found = records(data, schema)
    say_order(data, found.features, options)
    if kind == "AutoEncoder":
        content, columns = autoencoder(detector, found.features)
        chosen = {"columns": columns, "kind": "reconstruction", "error": "distance"}
        return finish(content, found, out, chosen | options)
    if kind == "PCA":
        return finish(distances(detector), found, out, {"higher_is": "anomalous"} | options)
    inner = detector.detector_
    content = converted(inner, inner, found.features, False, kind == "LOF")
    return finish(content, found, out, {"output": "score_samples" if kind == "LOF" else "scores"} | options)


def finish(content, found, out, options):
    """Wraps a converted model with records that are read already."""
    return wrap(content, found, out, **options)


def check_fitted_detector(estimator, chosen):
    """Raises TrainerError unless the estimator is fitted and scores anomalies. `chosen`: the user said what it is."""
    from sklearn.base import is_outlier_detector
    from sklearn.exceptions import NotFittedError
    from sklearn.utils import get_tags
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        raise TrainerError(str(error)) from None
    last = steps(estimator)[-1]
    scores = is_outlier_detector(last) or get_tags(last).estimator_type == "density_estimator"
    if not (scores or chosen or type(last).__name__ in RECONSTRUCTING):
        raise TrainerError(
            f"{type(last).__name__} is not an outlier detector: fit one, such as IsolationForest, OneClassSVM, "
            "LocalOutlierFactor(novelty=True), GaussianMixture or PCA"
        )


def say_order(data, features, options):
    """Says which columns of named data the model gets, in which order, if it was fitted on an array."""
    if not isinstance(data, np.ndarray) and not options.get("columns"):
        say(f"columns are taken by position: {', '.join(feature.path for feature in features[:100])}")


def steps(estimator):
    """The steps of a Pipeline, or the estimator alone."""
    return (
        [step for _, step in estimator.steps if step not in (None, "passthrough")]
        if hasattr(estimator, "steps")
        else [estimator]
    )


def by_name(estimator):
    """Whether the estimator picks its columns by name, as a ColumnTransformer does."""
    return type(steps(estimator)[0]).__name__ == "ColumnTransformer"


def named_columns(estimator, features):
    """The names of the features that an estimator was fitted on, in its order; None if it was fitted on an array."""
    fitted = getattr(estimator, "feature_names_in_", None)
    if fitted is None:
        return None
    known = {feature.path: feature.name for feature in features} | {feature.name: feature.name for feature in features}
    if lacking := [name for name in fitted if name not in known]:
        raise TrainerError(
            f"the estimator was fitted on columns that the schema does not have: {', '.join(lacking[:20])}"
        )
    return [known[name] for name in fitted]


def takes_missing(estimator):
    """Whether the estimator's first step fills in missing values."""
    return "Imputer" in type(steps(estimator)[0]).__name__


def converted(estimator, last, features, separate, samples):
    """A fitted estimator -> the bytes of its ONNX model, by skl2onnx."""
    try:
        import skl2onnx
        from skl2onnx.common import data_types
    except ImportError:
        raise TrainerError("skl2onnx is not installed; it converts estimators to ONNX: pip install skl2onnx") from None
    number = data_types.DoubleTensorType if type(last).__name__ in DOUBLE else data_types.FloatTensorType
    text = data_types.StringTensorType
    inputs = [("X", number([None, len(features)]))]
    if separate:
        inputs = [(f.name, (text if f.type == "categorical" else number)([None, 1])) for f in features]
    options = {id(last): {"score_samples": True}} if samples else None
    failed = None
    for target in (OPSETS, OPSETS[""]):  # some converters of skl2onnx take the one, some only the other
        try:
            model = skl2onnx.convert_sklearn(estimator, initial_types=inputs, target_opset=target, options=options)
            return model.SerializeToString()
        except Exception as error:
            failed = failed or " ".join(str(error).split())[:300]
    raise TrainerError(f"skl2onnx cannot convert {type(estimator).__name__}: {failed}")


def affine_columns(scalers, features):
    """The scaling steps before a PCA -> Columns with their means and scales. Raises TrainerError for other steps."""
    mean, scale = np.zeros(len(features)), np.ones(len(features))
    for step in scalers:
        kind = type(step).__name__
        if kind in ("StandardScaler", "RobustScaler", "MaxAbsScaler"):
            center = getattr(step, "mean_" if kind == "StandardScaler" else "center_", None)
            center, spread = 0 if center is None else center, 1 if step.scale_ is None else step.scale_
        elif kind == "MinMaxScaler" and not step.clip:
            center, spread = -step.min_ / step.scale_, 1 / step.scale_
        else:
            raise TrainerError(
                f"a PCA after {kind} cannot be wrapped, because {kind} does not scale each column by itself; use "
                "StandardScaler, RobustScaler, MaxAbsScaler or MinMaxScaler before it"
            )
        mean, scale = mean + scale * center, scale * spread
    return [Column(f.name, mean=float(m), scale=float(s)) for f, m, s in zip(features, mean, scale, strict=True)]


def principal(pca):
    """A fitted PCA -> the bytes of a model that projects rows on its components and back."""
    builder, count = Builder(OPSETS, IR_VERSION), pca.n_features_in_
    center = builder.constant(pca.mean_, np.float32)
    z = builder.add("Sub", "z", center)
    z = builder.add("MatMul", z, builder.constant(pca.components_.T, np.float32))
    z = builder.add("MatMul", z, builder.constant(pca.components_, np.float32))
    builder.add("Add", z, center, output="reconstruction")
    row = (TensorProto.FLOAT, ["batch", count])
    return builder.model([("z", *row)], [("reconstruction", *row)])


def distances(detector):
    """PyOD's PCA -> the bytes of a model of its score: the sum of distances to the components, by their weights."""
    builder, count = Builder(OPSETS, IR_VERSION), detector.selected_components_.shape[1]
    x = builder.cast("x", TensorProto.DOUBLE)
    if detector.standardization:
        x = builder.add("Sub", x, builder.constant(detector.scaler_.mean_))
        x = builder.add("Div", x, builder.constant(detector.scaler_.scale_))
    x = builder.add("Unsqueeze", x, builder.constant(np.array([1], np.int64)))
    away = builder.add("Sub", x, builder.constant(detector.selected_components_[None].astype(np.float64)))
    square = builder.add("Mul", away, away)
    square = builder.add("MatMul", square, builder.constant(np.ones((count, 1))))
    weight = 1 / np.broadcast_to(detector.selected_w_components_, (len(detector.selected_components_),))
    flat = builder.add("Reshape", builder.add("Sqrt", square), builder.constant(np.array([-1, len(weight)], np.int64)))
    score = builder.add("MatMul", flat, builder.constant(weight[:, None].astype(np.float64)))
    builder.add("Cast", score, to=TensorProto.FLOAT, output="anomaly_score")
    row = ("x", TensorProto.FLOAT, ["batch", count])
    return builder.model([row], [("anomaly_score", TensorProto.FLOAT, ["batch", 1])])


def autoencoder(detector, features):
    """PyOD's AutoEncoder -> (the bytes of its ONNX model, Columns with its scaling)."""
    import torch

    from ..bundle.export import to_onnx

    columns = [Column(feature.name) for feature in features]
    if detector.preprocessing:
        scaling = zip(columns, detector.X_mean, detector.X_std, strict=True)
        columns = [replace(c, mean=float(m), scale=float(s) + 1e-8) for c, m, s in scaling]
    module = detector.model.cpu().eval()
    return to_onnx(module, (torch.zeros(3, len(features)),), outputs=("reconstruction",)), columns
