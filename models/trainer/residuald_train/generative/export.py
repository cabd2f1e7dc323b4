"""Makes the files of a bundle that can be drawn from: {name: bytes}."""

import numpy as np
import torch
from torch import nn

from .. import TrainerError
from ..bundle.export import as_json, to_onnx
from ..bundle.served import session
from .curves import decimals
from .privacy import as_npy, reference_rows
from .schedule import CONFIG, STEPS, TIMESTEPS

GOLDEN = 8
QUANTILES = np.linspace(0, 1, 101)
TOLERANCE = 1e-4  # largest difference between ONNX Runtime and torch in the denoiser's space


class Decode(nn.Module):
    """sample [N, D] -> x [N, F]."""

    def __init__(self, space):
        super().__init__()
        self.space = space

    def forward(self, sample):
        return self.space.decode(sample)


@torch.no_grad()
def files(space, denoiser, train, held_out, seed=0):
    """Rows [n, F], [m, F] -> ({name: bytes}, largest difference between ONNX Runtime and torch)."""
    F, D, rows = len(space.features), space.dims, 3
    reference = reference_rows(train, held_out, seed)
    t = torch.zeros(rows, dtype=torch.long)
    graphs = {
        "encode.onnx": graph(space, (torch.zeros(rows, F), torch.ones(rows, F)), ("x", "known"), ("sample", "mask")),
        "denoiser.onnx": graph(
            denoiser, (torch.zeros(rows, D), t, torch.zeros(rows, D)), ("sample", "timestep", "mask"), ("out_sample",)
        ),
        "decode.onnx": graph(Decode(space), (torch.zeros(rows, D),), ("sample",), ("x",)),
    }
    golden = golden_rows(space, denoiser, held_out, seed)
    error = check_graphs(graphs, golden)
    about = {
        "steps": STEPS,
        "reference": {"rows": len(reference) // 2},
        "marginals": marginals(space.features, train),
        "golden": as_lists(golden),
    }
    more = {"scheduler_config.json": as_json(CONFIG, 1), "generative.json": as_json(about)}
    return graphs | more | {"reference.npy": as_npy(reference)}, error


def graph(module, example, inputs, outputs):
    return to_onnx(module, example, inputs, outputs, batched=len(inputs))


def golden_rows(space, denoiser, x, seed):
    """Rows x [n, F] -> {name: array}, GOLDEN rows of each: what each graph makes of them, at several noise levels.

    `noisy` is the input of the denoiser and of the decoder: known dimensions are clean, the others noised up to
    `timestep`.
    """
    g, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    x = torch.as_tensor(x[rng.integers(len(x), size=GOLDEN)])
    known = (torch.rand(x.shape, generator=g) < 0.5).float()
    known[0], known[1] = 0, 1
    sample, mask = space(x, known)
    t = torch.linspace(0, TIMESTEPS - 1, GOLDEN).long()
    noise = torch.randn(sample.shape, generator=g)
    noisy = torch.where(mask > 0, sample, denoiser.signal[t] * space.encode(x) + denoiser.noise[t] * noise)
    found = {"x": x, "known": known, "sample": sample, "mask": mask, "timestep": t, "noisy": noisy}
    found |= {"out_sample": denoiser(noisy, t, mask), "decoded": space.decode(noisy)}
    return {name: value.numpy() for name, value in found.items()}


def check_graphs(graphs, golden):
    """Compares the graphs in ONNX Runtime with torch -> the largest difference. Raises TrainerError if it is too
    large.
    """
    run = {name: session(content) for name, content in graphs.items()}
    sample, mask = run["encode.onnx"].run(None, {"x": golden["x"], "known": golden["known"]})
    inputs = {"sample": golden["noisy"], "timestep": golden["timestep"], "mask": golden["mask"]}
    (out,) = run["denoiser.onnx"].run(["out_sample"], inputs)
    (decoded,) = run["decode.onnx"].run(None, {"sample": golden["noisy"]})
    pairs = [(sample, golden["sample"]), (mask, golden["mask"]), (out, golden["out_sample"])]
    error = max(float(np.abs(a - b).max()) for a, b in pairs)
    if not error <= TOLERANCE or not np.allclose(decoded, golden["decoded"], TOLERANCE, TOLERANCE, equal_nan=True):
        raise TrainerError(f"ONNX Runtime and torch disagree by {error} on the generative graphs; nothing was written")
    return error


def as_lists(golden):
    """{name: array [n, ...]} -> n objects of lists, NaN as None."""

    def plain(value):
        return value.tolist() if value.ndim == 0 else [None if np.isnan(v) else v for v in value.astype(object)]

    return [{name: plain(value[i]) for name, value in golden.items()} for i in range(GOLDEN)]


def marginals(features, X):
    """Training rows [n, F] -> the distribution of each feature."""
    return [marginal(feature, X[:, j]) for j, feature in enumerate(features)]


def marginal(feature, column):
    present = column[~np.isnan(column)]
    out = {"missing": float(np.isnan(column).mean())}
    if feature.type in ("bool", "categorical"):
        count = max(len(present), 1)
        values = range(2 if feature.type == "bool" else len(feature.vocabulary))
        shares = [float((present == k).sum() / count) for k in values]
        return {"shares": shares, "unseen": float((present < 0).sum() / count)} | out
    if feature.type == "bool":
        return {"shares": [float((present == k).mean()) if len(present) else 0.0 for k in (0, 1)], "unseen": 0.0} | out
    out = {"quantiles": np.quantile(present, QUANTILES).astype(np.float32).tolist() if len(present) else []} | out
    if feature.type == "number":
        digits = decimals(present) if len(present) else 0
        out["decimals"] = None if digits < 0 else digits
    return out
