"""The wheel in an environment of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "target" / "wheels"
WITH_IT = {"residuald", "numpy", "onnxruntime", "flatbuffers", "packaging", "protobuf"}
PROGRAM = """
import sys, time
began = time.perf_counter()
import residuald
taken = time.perf_counter() - began
assert "torch" not in sys.modules and "pandas" not in sys.modules
table = residuald.Table([b'{"a": 1}', b'{"a": 2}'])
assert table.encode(table.infer()[0])[0].tolist() == [[1.0], [2.0]]
bundle = residuald.Bundle.load(sys.argv[1])
verdicts = bundle.score([sys.argv[1] + "/sample.ndjson.gz"])
assert verdicts.is_anomaly.any() and not verdicts.refused
assert verdicts.frame("dict")["severity"][verdicts.is_anomaly].all()
assert "onnxruntime" not in sys.modules and "torch" not in sys.modules
print(taken, residuald.__file__)
"""


def test_the_wheel_installs_alone(tmp_path):
    wheels = list(WHEELS.glob("residuald-*.whl"))
    if not wheels:
        if os.environ.get("RESIDUALD_TEST_STRICT"):
            pytest.fail(f"no wheel in {WHEELS}: make venv")
        pytest.skip(f"no wheel in {WHEELS}: make venv")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheels[0]]
    subprocess.run(install, check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0] for line in installed.stdout.splitlines()}
    assert names - {"pip", "setuptools", "wheel"} == WITH_IT
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "ORT_DYLIB_PATH")}
    times = []
    for _ in range(3):
        command = [python, "-I", "-c", PROGRAM, ROOT / "models/payments"]
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert run.returncode == 0, run.stderr
        taken, path = run.stdout.split()
        assert str(tmp_path) in path
        times.append(float(taken))
    assert min(times) < 0.3, times
