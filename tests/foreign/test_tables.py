"""Models of table rows from elsewhere, served by the daemon: the same scores as in Python, and the false-alarm rate
that was asked for.

Each case fits a model, makes a bundle of it and returns Python's own scores of other rows. `residuald score` must agree
to 1e-5, flag as many fresh normal records as asked for within 10 %, and name the feature that is broken.
"""

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import NAMES, RESIDUALD, ROOT, SCHEMA, normals, write_ndjson
from torch import nn

import residuald_train

torch.set_num_threads(1)
RATE = 0.05
FRESH = 40_000


@dataclass
class Data:
    """Rows to fit a model on and to calibrate on, float32 [n, 6]."""

    fit: np.ndarray
    calibrate: np.ndarray


@pytest.fixture(scope="session")
def data():
    return Data(normals(2000, 0), normals(40_000, 1))


@pytest.fixture(scope="session")
def fresh():
    return normals(FRESH, 2)


def isolation_forest(data, out):
    from sklearn.ensemble import IsolationForest

    model = IsolationForest(n_estimators=50, random_state=0).fit(data.fit)
    residuald_train.from_sklearn(model, SCHEMA, data.calibrate, out)
    return lambda X: -model.score_samples(X)


def one_class_svm(data, out):
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import OneClassSVM

    model = make_pipeline(StandardScaler(), OneClassSVM(nu=0.02)).fit(data.fit)
    residuald_train.from_sklearn(model, SCHEMA, data.calibrate, out)
    return lambda X: np.maximum(-model.decision_function(X) - lowest(out), 0)


def mixture(data, out):
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(2, random_state=0).fit(data.fit)
    residuald_train.from_sklearn(model, SCHEMA, data.calibrate, out)
    return lambda X: np.maximum(-model.score_samples(X) - lowest(out), 0)


def local_outlier_factor(data, out):
    from sklearn.neighbors import LocalOutlierFactor

    model = LocalOutlierFactor(novelty=True).fit(data.fit[:500])
    residuald_train.from_sklearn(model, SCHEMA, data.calibrate, out, reasons="deviation")
    return lambda X: -model.score_samples(X)


def principal_components(data, out):
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), PCA(3)).fit(data.fit)
    residuald_train.from_sklearn(model, SCHEMA, data.calibrate, out)

    def score(X):
        z = model[0].transform(X.astype(np.float64))
        return ((z - model[1].inverse_transform(model[1].transform(z))) ** 2).mean(1)

    return score


def pyod_forest(data, out):
    from pyod.models.iforest import IForest

    model = IForest(n_estimators=50, random_state=0).fit(data.fit)
    residuald_train.from_pyod(model, SCHEMA, data.calibrate, out)
    return lambda X: np.maximum(model.decision_function(X) - lowest(out), 0)


def pyod_components(data, out):
    from pyod.models.pca import PCA

    model = PCA().fit(data.fit)
    residuald_train.from_pyod(model, SCHEMA, data.calibrate, out)
    return model.decision_function


def pyod_autoencoder(data, out):
    from pyod.models.auto_encoder import AutoEncoder

    model = AutoEncoder(epoch_num=3, hidden_neuron_list=[8, 3], verbose=0, device="cpu").fit(data.fit)
    residuald_train.from_pyod(model, SCHEMA, data.calibrate, out)
    return model.decision_function


def torch_autoencoder(data, out):
    """Exported as its author would, scaled outside of the graph, and wrapped on the command line."""
    torch.manual_seed(0)
    mean, scale = data.fit.mean(0), data.fit.std(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 6))
    train(model, torch.as_tensor((data.fit - mean) / scale), lambda x: (model(x) - x).square().mean())
    export(model, (torch.zeros(3, 6),), ["row"], ["restored"], out.parent / "model.onnx")
    columns = [{"feature": n, "mean": float(m), "scale": float(s)} for n, m, s in zip(NAMES, mean, scale, strict=True)]
    (out.parent / "columns.json").write_text(json.dumps(columns))
    wrapped(out, data, "--columns", out.parent / "columns.json")

    def score(X):
        z = torch.as_tensor(((X - mean) / scale).astype(np.float64))
        with torch.no_grad():
            return (model.double()(z) - z).square().mean(1).numpy()

    return score


class Denoiser(nn.Module):
    """Called like a model of diffusers: (sample [N, 6], timestep [1]) -> the noise [N, 6]."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(7, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 6))

    def forward(self, sample, timestep):
        t = (timestep.to(sample.dtype) / 1000).reshape(-1, 1) * torch.ones_like(sample[:, :1])
        return self.net(torch.cat([sample, t], 1))


def denoiser(data, out):
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    scheduler, model = DDPMScheduler(), Denoiser()
    mean, scale = data.fit.mean(0), data.fit.std(0)

    def loss(x):
        t, noise = torch.randint(1000, (len(x),)), torch.randn_like(x)
        a = scheduler.alphas_cumprod[t][:, None]
        return (model(a.sqrt() * x + (1 - a).sqrt() * noise, t) - noise).square().mean()

    train(model, torch.as_tensor((data.fit - mean) / scale), loss)
    export(model, (torch.zeros(3, 6), torch.tensor([1])), ["sample", "timestep"], ["out_sample"], out.parent / "d.onnx")
    scheduler.save_pretrained(out.parent)
    columns = [{"feature": n, "mean": float(m), "scale": float(s)} for n, m, s in zip(NAMES, mean, scale, strict=True)]
    config = out.parent / "scheduler_config.json"
    residuald_train.wrap(out.parent / "d.onnx", data.calibrate, out, SCHEMA, columns=columns, scheduler=config)
    scoring = json.loads((out / "manifest.json").read_text())["scoring"]

    def score(X):
        x = torch.as_tensor(((X - mean) / scale).astype(np.float64))
        noise = np.random.default_rng(0).standard_normal((len(scoring["timesteps"]), 6)).astype(np.float32)
        errors = []
        for t, n in zip(scoring["timesteps"], torch.as_tensor(noise).double(), strict=True):
            a = scheduler.alphas_cumprod[t].double()
            with torch.no_grad():
                errors.append(model.double()(a.sqrt() * x + (1 - a).sqrt() * n, torch.tensor([t])) - n)
        return torch.stack(errors).square().mean((0, 2)).numpy()

    return score


def train(model, X, loss, steps=600):
    adam = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        adam.zero_grad()
        loss(X[torch.arange(step * 128, step * 128 + 128) % len(X)].float()).backward()
        adam.step()
    model.eval()


def export(model, example, inputs, outputs, path):
    shapes = tuple({0: torch.export.Dim("batch")} if i == 0 else None for i in range(len(inputs)))
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            model,
            example,
            path,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def wrapped(out, data, *options):
    """`residuald-train wrap` on the command line -> what it prints."""
    normal, schema = write_ndjson(out.parent / "normals.ndjson", data.calibrate), out.parent / "schema.json"
    schema.write_text(json.dumps({"kind": "tabular", "features": SCHEMA}))
    command = [sys.executable, "-m", "residuald_train.cli", "wrap", out.parent / "model.onnx", "--schema", schema]
    command += ["--data", normal, "--out", out, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def lowest(out):
    return json.loads((out / "manifest.json").read_text())["scoring"]["lowest"]


CASES = [
    isolation_forest,
    one_class_svm,
    mixture,
    local_outlier_factor,
    principal_components,
    pyod_forest,
    pyod_components,
    pyod_autoencoder,
    torch_autoencoder,
    denoiser,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_daemon_gives_pythons_scores(case, data, fresh, tmp_path, check, judge):
    if case.__name__.startswith("pyod"):
        pytest.importorskip("pyod")
    own = case(data, tmp_path / "bundle")
    check(tmp_path / "bundle")
    broken = normals(200, 3)
    broken[:, 4] += 20  # of a standard deviation below 1
    X = np.concatenate([fresh, broken])
    report, verdicts = judge(tmp_path / "bundle", write_ndjson(tmp_path / "fresh.ndjson", X), RATE)
    assert (report["scored"], report["dead_letters"]) == (len(X), 0)
    found, want = np.array([verdict["anomaly_score"] for verdict in verdicts]), own(X)
    # A score far below the typical one is the difference of larger numbers, and float32 has rounded those.
    facts = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["scoring"]
    least = max(np.median(want), abs(facts.get("lowest", 0)))
    assert (np.abs(found - want) / np.maximum(want, least)).max() < 1e-5
    flagged = np.array([verdict["severity"] is not None for verdict in verdicts])
    assert 0.9 * RATE < flagged[:FRESH].mean() < 1.1 * RATE
    # How many it finds is the model's own matter: an isolation forest sees little in one feature of six.
    reasons = [v["relevant_attribution"][0]["feature"] for v in verdicts[FRESH:] if v["severity"] is not None]
    assert len(reasons) > 3 * RATE * len(broken)
    assert reasons.count("s4") > 0.8 * len(reasons)


def test_scores_are_the_same_through_a_broker(data, fresh, tmp_path, judge):
    """The daemon reads the records from a real Apache Kafka, and publishes the scores of `residuald score`."""
    sys.path.insert(0, str(ROOT / "tests"))
    import stream_dataset as stream

    isolation_forest(data, tmp_path / "bundle")
    path = write_ndjson(tmp_path / "fresh.ndjson", fresh[:3000])
    _, on_file = judge(tmp_path / "bundle", path, stream.ALARM_RATE)
    if missing := [tool for tool in stream.NEEDED if not stream.shutil.which(tool)]:
        pytest.skip(f"!!! NOT TESTED ON A BROKER: install {', '.join(missing)}")
    with stream.Cluster(tmp_path / "kafka") as brokers:
        bundle, rate = tmp_path / "bundle", stream.ALARM_RATE
        verdicts, status = stream.judge_stream(RESIDUALD, brokers, bundle, path, 3000, rate)
    assert (status["scored"], status["unaccounted"]) == (3000, 0)
    streamed = {json.dumps(v["record"], sort_keys=True): v["anomaly_score"] for v in verdicts}
    for row, verdict in zip(fresh[:3000].tolist(), on_file, strict=True):
        record = json.dumps(dict(zip(NAMES, row, strict=True)), sort_keys=True)
        assert streamed[record] == verdict["anomaly_score"]
