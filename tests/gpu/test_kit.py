"""Rehearses the GPU kit on the CPU, so that its scripts do not fail on a machine with a GPU."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "benches/gpu"
sys.path.insert(0, str(BENCH))
import kit as kit_module  # noqa: E402
import page  # noqa: E402

TARGET = Path(os.environ.get("RESIDUALD", ROOT / "target/debug/residuald")).parent


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A kit like that of kit.py, with the checkout's binaries and the small image bundle instead of the large one."""
    root = tmp_path_factory.mktemp("kit")
    for folder in ("bin", "bundles", "trainer"):
        (root / folder).mkdir()
    (root / "bin/residuald").symlink_to(TARGET / "residuald")
    (root / "bin/device").symlink_to(TARGET / "examples/device")
    (root / "bundles/payments").symlink_to(ROOT / "models/payments")
    for name in ("surface", "image256"):
        (root / "bundles" / name).symlink_to(ROOT / "models/surface")
    kit_module.cpu_only_bundle(root / "bundles/cpu-only")
    for name in ("payments", "image256"):
        kit_module.half(root / "bundles" / name / "model.onnx", root / f"{name}.float16.onnx")
    kit_module.without_arctan(root / "bundles/payments/model.onnx", root / "payments.cuda-only.onnx")
    with (
        gzip.open(ROOT / "models/payments/sample.ndjson.gz") as sample,
        gzip.open(root / "records.ndjson.gz", "wb") as out,
    ):
        out.writelines(islice(sample, 100))
    (root / "trainer/residuald_train").symlink_to(ROOT / "models/trainer/residuald_train")
    return root


def run(kit, out, *arguments):
    command = [sys.executable, BENCH / "run.py", "--kit", kit, "--out", out, "--provider", "cpu", "--tiny", *arguments]
    environment = {"ORT_DYLIB_PATH": str(ROOT / ".onnxruntime/libonnxruntime.so")} | os.environ
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    print(ended.stdout, ended.stderr)
    return ended, json.loads((out / "results.json").read_text())


def test_every_step_passes_on_the_cpu_although_one_hangs(kit, tmp_path):
    ended, results = run(kit, tmp_path, "--hang")
    steps = results["steps"]
    assert steps.pop("hang")["status"] == "stopped at its deadline of 2 s"
    assert ended.returncode == 1, "a step that hangs must make the run fail"
    for name, step in steps.items():
        log = (tmp_path / f"{name}.log").read_text()
        assert step["status"] == "done", (name, step, log)
        assert all(step["found"]["holds"].values()), (name, step["found"]["holds"], log)
    # On the CPU both sides are the same program.
    assert steps["agreement"]["found"]["payments"]["agree"] == 1
    assert steps["golden"]["found"]["checks"]["surface on cpu"]["golden"]["records"] > 0
    ways = steps["rows"]["found"]["ways"]
    sums = {name: [size["score_sum"] for size in way["sizes"]] for name, way in ways.items() if "float16" not in name}
    assert len(sums) > 5
    for name, found in sums.items():
        assert found == pytest.approx(sums["scorer"], rel=1e-4), name

    written = tmp_path / "GPU.md"
    subprocess.run([sys.executable, BENCH / "page.py", tmp_path / "results.json", "--out", written], check=True)
    text = written.read_text()
    for heading in (
        "Golden records",
        "Errors",
        "Verdicts",
        "256 × 256",
        "end to end",
        "One process on the CPU",
    ):
        assert heading in text
    assert (tmp_path / "gpu-rows.svg").exists()
    assert "**stopped at its deadline of 2 s**" in text


def test_a_failed_check_is_reported(kit, tmp_path):
    broken = tmp_path / "kit"
    shutil.copytree(kit, broken, symlinks=True)
    (broken / "bundles/surface").unlink()
    ended, results = run(broken, tmp_path / "out", "--only", "golden")
    assert ended.returncode == 1
    assert results["steps"]["golden"]["found"]["holds"]["golden records of surface on cpu"] is False
    assert "FAILED: golden records of surface on cpu" in ended.stdout
    assert "| **no** |" in "\n".join(page.promises(results))


def test_an_exhausted_budget_is_reported(kit, tmp_path):
    ended, results = run(kit, tmp_path, "--only", "machine", "--budget", "0.5")
    assert ended.returncode == 1
    assert results["steps"]["machine"]["status"].startswith("not run")


def test_parts_join_again(tmp_path):
    kit = tmp_path / "kit"
    (kit / "scripts").mkdir(parents=True)
    (kit / "bin").mkdir()
    (kit / "scripts/run.py").write_text("import sys; print('ran', *sys.argv[3:])")
    (kit / "bin/residuald").write_bytes(Path("/bin/true").read_bytes())
    (kit / "noise").write_bytes(os.urandom(300_000))
    kit_module.pack(kit, tmp_path / "parts", "-0", part=100_000)
    parts = sorted((tmp_path / "parts").glob("kit.tar.xz.*"))
    assert len(parts) > 2
    assert all(part.stat().st_size <= 100_000 for part in parts)
    join = ["bash", BENCH / "join.sh", tmp_path / "parts", "--only", "golden"]
    joined = subprocess.run(join, capture_output=True, text=True)
    assert joined.stdout.strip() == "ran --only golden", joined.stderr
    assert (tmp_path / "parts/kit/noise").read_bytes() == (kit / "noise").read_bytes()
    parts[1].write_bytes(b"damaged")
    damaged = subprocess.run(join, capture_output=True, text=True)
    assert damaged.returncode == 65
    assert "copy it again" in damaged.stderr
