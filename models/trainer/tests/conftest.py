import json

import numpy as np
import pytest
import residuald

from residuald_train.cli import main
from residuald_train.tabular.features import encode


def payments(n=600, seed=0):
    """Small nested records with mixed types: a category, a boolean, a time, and missing values."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        amount = float(np.round(rng.lognormal(3, 1), 2))
        record = {
            "id": f"p-{i:04}",
            "time": f"2026-01-{1 + i % 28:02}T{rng.integers(8, 20):02}:{rng.integers(60):02}:00Z",
            "amount": amount,
            "count": int(rng.integers(4)),
            "merchant": {"category": str(rng.choice(["grocery", "fuel", "travel"], p=[0.6, 0.3, 0.1]))},
            "present": bool(rng.random() < 0.7),
            "currency": "EUR",
            "tags": ["a", "b"],
            "label": 0,
        }
        if rng.random() < 0.8:
            record["twice"] = 2 * amount + float(rng.normal())
        out.append(record)
    return out


WORDS = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "red": 5, "blue": 6, "square": 7}


def encoded(records, features):
    """Records (dicts or JSON texts) that the schema accepts -> float32 [n, F]."""
    X, accepted, refused = encode(
        residuald.Table([r if isinstance(r, str) else json.dumps(r) for r in records]), features
    )
    assert accepted.all(), refused
    return X


@pytest.fixture(scope="session")
def history(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "history.ndjson"
    path.write_text("".join(json.dumps(r) + "\n" for r in payments()))
    return path


@pytest.fixture(scope="session")
def train_small(history):
    """A function that trains on the small records and writes a bundle -> exit code."""
    options = ["--label", "label", "--recipe", "blind", "--steps", "150", "--width", "32"]
    return lambda out: main(["tabular", "--data", str(history), *options, "--out", str(out)])


@pytest.fixture(scope="session")
def small(train_small, tmp_path_factory):
    """A bundle trained on the small records."""
    out = tmp_path_factory.mktemp("bundles") / "small"
    assert train_small(out) == 0
    return out


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A text encoder whose states are a table of random embeddings, and 0 for padding."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from residuald_train.images.text_encoder import only_ids

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = Tokenizer(models.WordLevel(WORDS, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    for part in ("tokenizer", "text_encoder"):
        (folder / part).mkdir()
    tokenizer.save(str(folder / "tokenizer/tokenizer.json"))
    about = {"model_max_length": 6, "pad_token": "[PAD]"}
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(about))
    config = {"hidden_size": 16, "max_position_embeddings": 6, "vocab_size": len(WORDS)}
    (folder / "text_encoder/config.json").write_text(json.dumps(config))
    table = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    inputs = "input_ids", "attention_mask", "token_type_ids"
    of_ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in inputs]
    states = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", "t", 16])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Add", ["attention_mask", "token_type_ids"], ["weight"]),
        helper.make_node("Cast", ["weight"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["as_float", "last"], ["wide"]),
        helper.make_node("Mul", ["found", "wide"], ["last_hidden_state"]),
    ]
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([2]), "last")]
    graph = helper.make_graph(nodes, "encoder", of_ids, [states], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(only_ids(model, 0), folder / "text_encoder/model.onnx")
    return folder


@pytest.fixture(scope="session")
def denoiser():
    """An untrained U-Net of text-to-image pipelines, whose weights its graph holds in full."""
    import torch

    from residuald_train.images.text_to_image import Options, make_denoiser, round_weights

    torch.manual_seed(0)
    net = make_denoiser(Options(drawn=64, widths=(16, 32)), 3, 16).eval()
    round_weights(net)
    return net


@pytest.fixture(scope="session")
def pipeline_files(encoder, denoiser):
    """({path in the folder: bytes}, error of the graph) of a text-to-image pipeline for 64x64 RGB images."""
    from residuald_train.images.text_encoder import TextEncoder
    from residuald_train.images.text_to_image import Options, files

    return files(denoiser, TextEncoder(encoder), Options(threads=1))
