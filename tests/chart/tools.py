"""Finds the commands that tests need, or skips with a message; and renders the chart with Helm."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/residuald"
TOOLS = ROOT / ".tools"
VALUES = sorted((Path(__file__).parent / "values").glob("*.yaml"))
SKIPPED = set()


def skip(install):
    if os.environ.get("RESIDUALD_TEST_STRICT"):
        pytest.fail(f"RESIDUALD_TEST_STRICT is set and a tool is missing: {install}")
    SKIPPED.add(install)
    pytest.skip(install)


def tool(name, install):
    """The path of a command, searched in .tools, beside this Python and in PATH."""
    places = [str(TOOLS), str(Path(sys.executable).parent), os.environ["PATH"]]
    found = shutil.which(name, path=os.pathsep.join(places))
    return found or skip(f"{name} is missing ({install})")


def run(*command, **options):
    return subprocess.run([str(part) for part in command], text=True, capture_output=True, **options)


def residuald(*arguments, **environment):
    """Runs the binary with only `environment` and ONNX Runtime's path in its environment."""
    binary = Path(os.environ.get("RESIDUALD") or ROOT / "target/release/residuald")
    if not binary.exists():
        skip("residuald is not built (make build onnxruntime)")
    runtime = os.environ.get("ORT_DYLIB_PATH") or str(ROOT / ".onnxruntime/libonnxruntime.so")
    return run(binary, *arguments, env={"ORT_DYLIB_PATH": runtime, **environment})


def helm(*arguments):
    return run(tool("helm", "make chart-tools"), *arguments)


def template(*arguments):
    """Runs `helm template` on the chart, with a fixed Kubernetes version, because the default changes with Helm."""
    return helm("template", "residuald", CHART, "--namespace", "scoring", "--kube-version", "1.37.0", *arguments)


@cache
def manifests(values):
    rendered = template("--values", values)
    assert rendered.returncode == 0, rendered.stderr
    return rendered.stdout


def objects(text):
    return [document for document in yaml.safe_load_all(text) if document]
