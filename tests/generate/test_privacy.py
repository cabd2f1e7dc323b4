"""The privacy gate: a generator that repeats its training rows is refused, and an honest one is not."""

import hashlib
import json
import shutil

import numpy as np
from conftest import read


def with_reference(bundle, folder, rows):
    """A copy of the bundle with other reference rows."""
    shutil.copytree(bundle, folder)
    np.save(folder / "reference.npy", np.ascontiguousarray(rows, np.float32))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["reference.npy"] = hashlib.sha256((folder / "reference.npy").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_generator_that_repeats_training_rows_is_refused(bundle, generate, tmp_path):
    out, done = generate("--count", 1500)
    assert done.returncode == 0, done.stderr
    reference = np.load(bundle / "reference.npy")
    half = len(reference) // 2
    drawn = rows(read(out), json.loads((bundle / "manifest.json").read_text())["input"]["features"])
    # Training rows that the generator "repeats": what it draws, with little noise in the amounts, among others.
    amount = 2
    planted = drawn[: half // 4].copy()
    planted[:, amount] = np.round(planted[:, amount] + 0.01, 2)
    training = np.concatenate([planted, reference[: half - len(planted)]])
    copied = with_reference(bundle, tmp_path / "memoriser", np.concatenate([training, reference[half:]]))
    out, done = generate("--count", 1500, name="copies.ndjson", model=copied)
    assert done.returncode == 65, done.stderr
    assert "give away training data" in done.stderr
    assert not out.exists()
    assert not list(tmp_path.glob("copies*"))
    _, done = generate("--count", 1500, "--allow-copies", name="copies.ndjson", model=copied)
    assert done.returncode == 0, done.stderr


def rows(records, features):
    """Records -> float32 [n, F], as the daemon decodes them."""
    import residuald

    table = residuald.Table([json.dumps(record) for record in records])
    X, accepted, _ = table.encode(features)
    assert accepted.all()
    return X
