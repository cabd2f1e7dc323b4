"""Models that the daemon could not serve as promised are refused, with what to change; those that can be helped are
helped, and it is said.
"""

import numpy as np
import onnx
import pytest
from conftest import SCHEMA, normals, write_ndjson
from onnx import TensorProto, helper, numpy_helper

import residuald_train
from residuald_train import TrainerError
from residuald_train.cli import main

FLOAT = TensorProto.FLOAT
ROW, SCORE = ("x", FLOAT, [None, 6]), ("anomaly_score", FLOAT, [None, 1])


def model(nodes, inputs=(ROW,), outputs=(SCORE,), constants=(), opset=17, domains=(), ir_version=8):
    """The bytes of an ONNX model. `nodes`: (operator, inputs, outputs, attributes)."""
    made = [helper.make_node(op, i, o, **attributes) for op, i, o, attributes in nodes]
    info = lambda tensors: [helper.make_tensor_value_info(*tensor) for tensor in tensors]  # noqa: E731
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    graph = helper.make_graph(made, "g", info(inputs), info(outputs), constants)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


LENGTH = [("Mul", ["x", "x"], ["square"], {}), ("MatMul", ["square", "ones"], ["anomaly_score"], {})]
ONES = [("ones", np.ones((6, 1), np.float32))]


def plain(**options):
    return model(LENGTH, constants=ONES, **options)


def external():
    made = plain()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return made


def noisy():
    nodes = [("RandomNormalLike", ["x"], ["n"], {}), ("Add", ["x", "n"], ["y"], {}), LENGTH[1]]
    return model([*nodes[:2], ("MatMul", ["y", "ones"], ["anomaly_score"], {})], constants=ONES)


def noisy_inside():
    """A random operator in the branch of an If."""
    branch = helper.make_graph(
        [helper.make_node("RandomNormalLike", ["x"], ["n"])], "b", [], [helper.make_tensor_value_info("n", FLOAT, None)]
    )
    nodes = [
        ("If", ["yes"], ["n"], {"then_branch": branch, "else_branch": branch}),
        ("MatMul", ["n", "ones"], ["anomaly_score"], {}),
    ]
    return model(nodes, constants=[*ONES, ("yes", np.array(True))])


def batch_statistics():
    """Centers every row on the mean of its batch."""
    nodes = [
        ("ReduceMean", ["x"], ["mean"], {"axes": [0]}),
        ("Sub", ["x", "mean"], ["away"], {}),
        ("Mul", ["away", "away"], ["square"], {}),
        LENGTH[1],
    ]
    return model(nodes, constants=ONES)


def not_a_number():
    return model([("Log", ["x"], ["y"], {}), ("MatMul", ["y", "ones"], ["anomaly_score"], {})], constants=ONES)


REFUSED = {
    "external data": (external, "keeps its data in another file"),
    "custom operators": (
        lambda: model([("Magic", ["x"], ["anomaly_score"], {"domain": "my.ops"})], domains=["my.ops"]),
        "operator my.ops:Magic",
    ),
    "random operators": (noisy, "RandomNormalLike is random"),
    "random operators in a branch": (noisy_inside, "RandomNormalLike is random"),
    "an old opset": (lambda: plain(opset=6, ir_version=3), "opset 6 is too old"),
    "a future opset": (lambda: plain(opset=99), "refuses it.*opset"),
    "a future IR version": (lambda: plain(ir_version=99), "refuses it.*IR version"),
    "a fixed batch": (lambda: plain(inputs=[("x", FLOAT, [8, 6])], outputs=[("anomaly_score", FLOAT, [8, 1])]), "of 8"),
    "a dynamic number of columns": (lambda: plain(inputs=[("x", FLOAT, [None, None])]), "dynamic number of columns"),
    "another number of columns": (
        lambda: model(LENGTH, [("x", FLOAT, [None, 5])], constants=[("ones", np.ones((5, 1), np.float32))]),
        "has 5 columns, but these features give 6",
    ),
    "inputs that are no features": (
        lambda: model([("Add", ["a", "b"], ["anomaly_score"], {})], [("a", FLOAT, [None, 1]), ("b", FLOAT, [None, 1])]),
        "no feature is called `a`",
    ),
    "statistics of the batch": (batch_statistics, "depends on the rest of its batch"),
    "outputs that are no numbers": (not_a_number, "not finite for"),
    "no fitting output": (
        lambda: model(
            [("Mul", ["x", "x"], ["y"], {}), ("Concat", ["x", "y"], ["z"], {"axis": 1})],
            outputs=[("z", FLOAT, [None, 12])],
        ),
        "no output is a score",
    ),
    "a score or a reconstruction": (
        lambda: model(
            [*LENGTH[:1], ("MatMul", ["square", "ones"], ["one"], {}), ("Identity", ["x"], ["two"], {})],
            outputs=[("one", FLOAT, [None, 1]), ("two", FLOAT, [None, 6])],
            constants=ONES,
        ),
        "`one` and `two` could be meant; choose with --kind",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_served_is_refused_with_the_reason(fault, tmp_path):
    make, said = REFUSED[fault]
    with pytest.raises(TrainerError, match=said):
        residuald_train.wrap(make().SerializeToString(), normals(500, 0), tmp_path / "bundle", SCHEMA)
    assert not (tmp_path / "bundle").exists()


def test_what_is_not_a_model_is_refused(tmp_path, capsys):
    (tmp_path / "model.onnx").write_bytes(b"\xff\xfenot a model")
    data = str(write_ndjson(tmp_path / "n.ndjson", normals(200, 0)))
    assert main(["wrap", str(tmp_path / "model.onnx"), "--data", data, "--out", str(tmp_path / "b")]) == 65
    assert "is not an ONNX model" in capsys.readouterr().err
    assert main(["wrap", str(tmp_path / "none.onnx"), "--data", data, "--out", str(tmp_path / "b")]) == 65
    assert "No such file" in capsys.readouterr().err


def test_a_score_that_points_the_other_way_is_found_out(tmp_path, capsys):
    """The length of the row is higher for distorted records; its negative is high for normal ones."""
    negative = model(
        [*LENGTH[:1], ("MatMul", ["square", "ones"], ["s"], {}), ("Neg", ["s"], ["t"], {})],
        outputs=[("t", FLOAT, [None, 1])],
        constants=ONES,
    )
    residuald_train.wrap(negative.SerializeToString(), normals(500, 0), tmp_path / "bundle", SCHEMA)
    assert "higher `t` is normal, because distorted records score lower" in capsys.readouterr().out
    named = model(
        [*LENGTH[:1], ("MatMul", ["square", "ones"], ["s"], {}), ("Neg", ["s"], ["pred_score"], {})],
        outputs=[("pred_score", FLOAT, [None, 1])],
        constants=ONES,
    ).SerializeToString()
    with pytest.raises(TrainerError, match=r"higher `pred_score` of .* should be anomalous, but .* --higher-is"):
        residuald_train.wrap(named, normals(500, 0), tmp_path / "named", SCHEMA)
    residuald_train.wrap(named, normals(500, 0), tmp_path / "named", SCHEMA, higher_is="normal")


def assert_scores_are_squared_lengths(judge, folder):
    """What the daemon's binary says of fresh rows, with the bundle in `folder`."""
    rows = normals(300, 1)
    _, verdicts = judge(folder / "bundle", write_ndjson(folder / "rows.ndjson", rows))
    got = [verdict["anomaly_score"] for verdict in verdicts]
    np.testing.assert_allclose(got, (rows.astype(np.float64) ** 2).sum(1), rtol=1e-5)


def test_a_fixed_batch_of_one_runs_on_one_record_at_a_time(tmp_path, check, judge, capsys):
    one = plain(inputs=[("x", FLOAT, [1, 6])], outputs=[("anomaly_score", FLOAT, [1, 1])])
    residuald_train.wrap(one.SerializeToString(), normals(500, 0), tmp_path / "bundle", SCHEMA)
    assert "fixed batch of 1, so it runs on one record at a time" in capsys.readouterr().err
    check(tmp_path / "bundle")
    assert_scores_are_squared_lengths(judge, tmp_path)


def test_rounding_that_depends_on_the_place_in_the_batch_is_avoided(tmp_path, check, capsys):
    """ReduceSum adds a row's numbers in groups that depend on where the row begins."""
    wide = [{"name": f"f{j}", "path": f"f{j}", "type": "number"} for j in range(13)]
    nodes = [
        ("Mul", ["x", "x"], ["square"], {}),
        ("ReduceSum", ["square", "axis"], ["anomaly_score"], {"keepdims": 1}),
    ]
    made = model(nodes, [("x", FLOAT, [None, 13])], constants=[("axis", np.array([1], np.int64))])
    rows = np.random.default_rng(0).standard_normal((600, 13)).astype(np.float32)
    residuald_train.wrap(made.SerializeToString(), rows, tmp_path / "bundle", wide)
    assert "so the model runs on one record at a time" in capsys.readouterr().err
    check(tmp_path / "bundle")
    from residuald_train.bundle.served import session
    from residuald_train.foreign.proof import batch_difference

    assert batch_difference(session((tmp_path / "bundle" / "model.onnx").read_bytes()), rows) == 0


def test_an_old_opset_is_converted(tmp_path, check, judge, capsys):
    """skl2onnx writes opset 9 for a one-class SVM. Here Unsqueeze has its axes as an attribute, as until opset 12."""
    nodes = [*LENGTH[:1], ("MatMul", ["square", "ones"], ["s"], {})]
    nodes += [("Squeeze", ["s"], ["flat"], {"axes": [1]}), ("Unsqueeze", ["flat"], ["anomaly_score"], {"axes": [1]})]
    old = model(nodes, constants=ONES, opset=9, ir_version=4)
    residuald_train.wrap(old.SerializeToString(), normals(500, 0), tmp_path / "bundle", SCHEMA)
    assert "has opset 9; it was converted to opset 17 and gives the same outputs" in capsys.readouterr().err
    check(tmp_path / "bundle")
    assert_scores_are_squared_lengths(judge, tmp_path)


def test_external_data_is_embedded_if_asked_for(tmp_path, check):
    """As torch.onnx.export and Anomalib write it: the weights in a file beside the model."""
    whole, options = plain(), {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0}
    onnx.save(whole, tmp_path / "model.onnx", **options)
    assert (tmp_path / "model.onnx.data").exists()
    with pytest.raises(TrainerError, match=r"keeps its data in another file.*--embed-data"):
        residuald_train.wrap(tmp_path / "model.onnx", normals(500, 0), tmp_path / "bundle", SCHEMA)
    residuald_train.wrap(tmp_path / "model.onnx", normals(500, 0), tmp_path / "bundle", SCHEMA, embed_data=True)
    check(tmp_path / "bundle")
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(TrainerError, match="external data cannot be read"):
        residuald_train.wrap(tmp_path / "model.onnx", normals(500, 0), tmp_path / "other", SCHEMA, embed_data=True)


def test_names_inside_the_model_may_be_those_of_the_bundle(tmp_path, check):
    """Inner tensors called `score` and `residual`, and a constant called `reconstruction`."""
    made = model(
        [
            ("Mul", ["x", "x"], ["score"], {}),
            ("MatMul", ["score", "reconstruction"], ["residual"], {}),
            ("Sqrt", ["residual"], ["anomaly_score"], {}),
        ],
        constants=[("reconstruction", np.ones((6, 1), np.float32))],
    )
    residuald_train.wrap(made.SerializeToString(), normals(500, 0), tmp_path / "bundle", SCHEMA)
    check(tmp_path / "bundle")


def test_ties_at_the_threshold_are_said(tmp_path, capsys):
    """A score of 0 or 1, of which a tenth of the normal records get 1: a rate of 5 % is not possible."""
    made = model(
        [
            ("Slice", ["x", "a", "b", "axis"], ["first"], {}),
            ("Greater", ["first", "limit"], ["over"], {}),
            ("Cast", ["over"], ["anomaly_score"], {"to": FLOAT}),
        ],
        constants=[
            ("a", np.array([0])),
            ("b", np.array([1])),
            ("axis", np.array([1])),
            ("limit", np.float32(np.quantile(normals(2000, 0)[:, 0], 0.9))),
        ],
    )
    options = {"false_alarm_rate": 0.05, "higher_is": "anomalous"}
    residuald_train.wrap(made.SerializeToString(), normals(2000, 0), tmp_path / "bundle", SCHEMA, **options)
    assert "many records share the score 1: only 0 of 2000 lie above the threshold" in capsys.readouterr().out


def test_a_bundle_is_not_overwritten_unasked(tmp_path):
    residuald_train.wrap(plain().SerializeToString(), normals(500, 0), tmp_path / "bundle", SCHEMA)
    with pytest.raises(TrainerError, match="--force"):
        residuald_train.wrap(plain().SerializeToString(), normals(500, 0), tmp_path / "bundle", SCHEMA)
    assert onnx.load(tmp_path / "bundle" / "model.onnx").producer_name == "residuald-train"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"pixel_mean": (0.5,)}, "--pixel-mean is for models of images"),
        ({"timesteps": (3,)}, "--timesteps is for a model of kind denoiser"),
        ({"output": "nothing"}, "has no output `nothing`"),
        ({"kind": "reconstruction"}, "no output is a score, float .* or float .N, 6. like its input"),
        ({"columns": ["s0", "s0"]}, "feature `s0` is listed twice"),
        ({"columns": ["s0:onehot", "s1"]}, "`s0` is a number, which has no categories"),
        ({"columns": [{"feature": "s0", "scale": 0}]}, "scale not 0"),
        ({"columns": ["s0", "s9"]}, "no feature `s9` in the schema"),
        ({"columns": ["s0", "s1"]}, "has 6 columns, but these features give 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(option, said, tmp_path):
    with pytest.raises(TrainerError, match=said):
        residuald_train.wrap(plain().SerializeToString(), normals(500, 0), tmp_path / "bundle", SCHEMA, **option)
