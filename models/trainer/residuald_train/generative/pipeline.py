"""What `residuald-train tabular --generative` adds to a bundle."""

from dataclasses import asdict

from ..console import say
from .export import files
from .schedule import STEPS
from .train import Options, fit


def generative_files(features, train, held_out, options: Options):
    """Rows float32 [n, F] and [m, F] -> ({name: bytes}, facts for the manifest)."""
    say(f"generative: trains the denoiser on {len(train)} rows")
    space, denoiser, facts = fit(features, train, options)
    content, error = files(space, denoiser, train, held_out, options.seed)
    size = sum(map(len, content.values())) / 1e6
    print(
        f"generative: {space.dims} dimensions, {facts['steps']} steps in {facts['seconds']} s, loss on rows apart "
        f"{min(facts['validation_loss']):.4f}, {STEPS} steps a draw, {size:.1f} MB; ONNX Runtime "
        f"and torch differ by at most {error:.1e}"
    )
    return content, {
        "dimensions": space.dims,
        "options": {k: v for k, v in asdict(options).items() if v is not None},
    } | facts
