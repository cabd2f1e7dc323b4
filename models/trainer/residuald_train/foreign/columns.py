"""How a record's features become the columns that a foreign model was trained on, and back.

The daemon gives a row of features: numbers as they are, booleans as 0 or 1, a category as its index in the vocabulary
(-1 if unseen). A foreign model expects the columns of its own training. Nothing here is guessed: categories need an
encoding, which says the order of the model's categories.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import TensorProto

from .. import TrainerError
from .graph import ML
from .model import FLOATS, INTEGERS

FINITE = np.float32(3e38)
ENCODINGS = "number", "ordinal", "onehot"
UNSEEN_TEXT = "\u2205 unseen"  # for models that take categories as text


@dataclass(frozen=True)
class Column:
    """One feature's columns in the model's input: one for a number or an ordinal code, one for each category.

    `values`: the model's categories in its order. `codes`: for ordinal, the model's number for each. `unseen`: for
    ordinal, its number for any other category. A column is then (value - mean) / scale.
    """

    feature: str
    encoding: str = "number"
    values: tuple[str, ...] = ()
    codes: tuple[float, ...] = ()
    unseen: float = -1
    mean: float = 0
    scale: float = 1

    @property
    def width(self):
        return len(self.values) if self.encoding == "onehot" else 1


def columns_of(entries, features):
    """--columns or the `columns` of a Python call -> Columns, in the model's order. Raises TrainerError.

    An entry is a name, `NAME:ordinal` or `NAME:onehot` (both with the categories in the vocabulary's order), a dict
    with the fields of Column, or a Column. None means all features in the schema's order. A path to a JSON file holds a
    list of such entries.
    """
    if isinstance(entries, str | Path):
        entries = [entries]
    if entries and len(entries) == 1 and str(entries[0]).endswith(".json"):
        entries = read(Path(entries[0]))
    known = {feature.name: feature for feature in features}
    columns = [parsed(entry, known) for entry in (entries or [feature.name for feature in features])]
    seen = [column.feature for column in columns]
    if twice := [name for name in seen if seen.count(name) > 1]:
        raise TrainerError(f"columns: feature `{twice[0]}` is listed twice")
    return columns


def read(path):
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TrainerError(f"cannot read the columns in {path}: {error}") from None
    if not isinstance(entries, list):
        raise TrainerError(f"{path}: the columns must be a list, one entry for each feature in the model's order")
    return entries


def parsed(entry, known):
    """One entry -> Column, checked against the features {name: Feature}."""
    if isinstance(entry, str):
        name, _, encoding = (
            (entry, "", "") if entry in known else entry.rpartition(":") if ":" in entry else (entry,) * 3
        )
        entry = {"feature": name} | ({"encoding": encoding} if encoding and name != encoding else {})
    try:
        column = entry if isinstance(entry, Column) else Column(**entry)
    except TypeError:
        fields = ", ".join(Column.__dataclass_fields__)
        raise TrainerError(f"columns: {json.dumps(entry)} must be an object with the fields {fields}") from None
    feature = known.get(column.feature)
    if feature is None:
        raise TrainerError(
            f"columns: no feature `{column.feature}` in the schema; it has {', '.join(list(known)[:40])}"
        )
    if column.encoding not in ENCODINGS:
        raise TrainerError(f"columns: {column.feature}: encoding must be one of {', '.join(ENCODINGS)}")
    if feature.type != "categorical":
        if column.encoding != "number":
            raise TrainerError(f"columns: `{column.feature}` is a {feature.type}, which has no categories to encode")
        if not (np.isfinite(column.mean) and np.isfinite(column.scale) and column.scale):
            raise TrainerError(f"columns: `{column.feature}`: mean and scale must be finite, and scale not 0")
        return column
    values = tuple(map(str, column.values or feature.vocabulary))
    codes = tuple(map(float, column.codes or range(len(values))))
    if len(codes) != len(values):
        raise TrainerError(f"columns: `{column.feature}` has {len(values)} values but {len(codes)} codes")
    return replace(column, values=values, codes=codes)


def check_encoded(columns, features):
    """Raises TrainerError for a category without an encoding."""
    known = {feature.name: feature for feature in features}
    for column in columns:
        vocabulary = known[column.feature].vocabulary
        if vocabulary and column.encoding == "number":
            first = ", ".join(vocabulary[:3])
            raise TrainerError(
                f"`{column.feature}` is categorical, and how the model encodes it is not known. Write "
                f"{column.feature}:onehot (a column for each of {first}, … in this order) or {column.feature}:ordinal "
                f"({vocabulary[0]} = 0, and so on) in --columns, or the model's own order in a file: see "
                "docs/src/own-models.md"
            )


class Encoder:
    """The step from a row of features [N, F] to the model's row [N, D], as parts of a graph, and back."""

    def __init__(self, columns, features):
        check_encoded(columns, features)
        self.columns, self.features = columns, features
        self.width = sum(column.width for column in columns)
        self.owner = [j for j, column in enumerate(columns) for _ in range(column.width)]
        self.mean = np.array([c.mean for c in columns for _ in range(c.width)], np.float32)
        self.scale = np.array([c.scale for c in columns for _ in range(c.width)], np.float32)

    def forward(self, builder, x):
        """x float32 [M, F] without NaN -> the model's row [M, D]."""
        if any(column.encoding != "number" for column in self.columns):
            x = self.expanded(builder, x)
        if self.mean.any():
            x = builder.add("Sub", x, builder.constant(self.mean))
        if (self.scale != 1).any():
            x = builder.add("Div", x, builder.constant(self.scale))
        return x

    def expanded(self, builder, x):
        """Compares categories with their codes, then puts each column in its place by an exact matrix product."""
        of, code, category, weight = [], [], [], []  # for each intermediate column
        first = 0
        for j, (column, feature) in enumerate(zip(self.columns, self.features, strict=True)):
            if column.encoding == "number":
                of, code, category = [*of, j], [*code, 0], [*category, False]
                weight.append((first, 1.0))
            elif column.encoding == "onehot":
                for k, index in enumerate(indices(column, feature)):
                    of, code, category = [*of, j], [*code, index], [*category, True]
                    weight.append((first + k, 1.0))
            else:
                known = indices(column, feature)
                others = [i for i in range(-1, len(feature.vocabulary)) if i not in known]
                pairs = [*zip(known, column.codes, strict=True), *((i, column.unseen) for i in others)]
                for index, value in pairs:
                    of, code, category = [*of, j], [*code, index], [*category, True]
                    weight.append((first, value))
            first += column.width
        pick = np.eye(len(self.features), dtype=np.float32)[:, of]
        place = np.zeros((len(of), self.width), np.float32)
        for i, (column, value) in enumerate(weight):
            place[i, column] = value
        raw = builder.add("MatMul", x, builder.constant(pick))
        equal = builder.cast(builder.add("Equal", raw, builder.constant(np.array(code, np.float32))))
        mixed = builder.add("Where", builder.constant(np.array(category)), equal, raw)
        return builder.add("MatMul", mixed, builder.constant(place))

    def per_feature(self, builder, values):
        """[M, D] -> [M, F]: the sum over each feature's columns."""
        if self.width == len(self.columns):
            return values
        return builder.add("MatMul", values, builder.constant(np.eye(len(self.columns), dtype=np.float32)[self.owner]))

    def inverse(self, builder, z):
        """The model's row [M, D] -> values in the record's units [M, F]; a category becomes its index."""
        if (self.scale != 1).any():
            z = builder.add("Mul", z, builder.constant(self.scale))
        if self.mean.any():
            z = builder.add("Add", z, builder.constant(self.mean))
        z = builder.add("Clip", z, builder.constant(-FINITE), builder.constant(FINITE))
        parts, first = [], 0
        for column, feature in zip(self.columns, self.features, strict=True):
            part = sliced(builder, z, first, first + column.width)
            first += column.width
            if feature.type == "categorical":
                part = likeliest(builder, part, column, feature)
            elif feature.type == "bool":
                part = builder.add("Clip", part, *(builder.constant(np.float32(v)) for v in (0, 1)))
            parts.append(part)
        plain = all(f.type not in ("bool", "categorical") for f in self.features)
        return z if plain else builder.add("Concat", *parts, axis=1)


def indices(column, feature):
    """The daemon's index of each of the model's categories; -2, which no record has, for one that it does not know."""
    index = {value: i for i, value in enumerate(feature.vocabulary)}
    return [index.get(value, -2) for value in column.values]


def likeliest(builder, part, column, feature):
    """One-hot columns [M, K], or an ordinal code [M, 1] -> the daemon's index of the category [M, 1]."""
    if column.encoding == "ordinal":
        away = builder.add("Sub", part, builder.constant(np.array([column.codes], np.float32)))
        part = builder.add("Neg", builder.add("Abs", away))
    which = builder.add("ArgMax", part, axis=1, keepdims=1)
    known = np.maximum(np.array(indices(column, feature), np.float32), -1)
    return builder.add("Gather", builder.constant(known), which, axis=0)


def sliced(builder, tensor, first, last, axis=1):
    """The columns first to last - 1 of a tensor."""
    ends = (builder.constant(np.array([value], np.int64)) for value in (first, last, axis))
    return builder.add("Slice", tensor, *ends)


def separate_inputs(builder, x, model, features):
    """x [M, F] -> {input: [M, 1]} for a model with an input for each feature, by its name.

    Text gets the category's own text, so a model that encodes categories itself needs no encoding here.
    """
    feeds = {}
    for value in model.inputs:
        j = next(j for j, feature in enumerate(features) if feature.name == value.name)
        part = sliced(builder, x, j, j + 1)
        if value.element == TensorProto.STRING:
            texts = dict(enumerate(features[j].vocabulary))
            part = builder.cast(part, TensorProto.INT64)
            part = builder.add(
                "LabelEncoder",
                part,
                domain=ML,
                keys_int64s=list(texts),
                values_strings=list(texts.values()),
                default_string=UNSEEN_TEXT,
            )
        elif value.element != TensorProto.FLOAT:
            part = builder.cast(part, value.element)
        feeds[value.name] = part
    return feeds


def check_separate(model, features, where):
    """Raises TrainerError unless each input of the model is a column [N, 1] of a type that its feature can give."""
    known = {feature.name: feature for feature in features}
    for value in model.inputs:
        feature = known.get(value.name)
        if feature is None:
            raise TrainerError(
                f"{where} has {len(model.inputs)} inputs. A model has one input of rows, or one for each feature by "
                f"its name; but no feature is called `{value.name}`. The features are {', '.join(list(known)[:40])}"
            )
        text = value.element == TensorProto.STRING
        if value.shape != (None, 1) or (text and feature.type != "categorical"):
            raise TrainerError(f"{where}: input {value} does not fit the {feature.type} feature `{feature.name}`")
        if feature.type == "categorical" and not text and value.element in INTEGERS | FLOATS:
            raise TrainerError(
                f"{where}: input {value} is a number, but `{feature.name}` is categorical; make it a number in the "
                "schema, or export the model with text for this input"
            )
