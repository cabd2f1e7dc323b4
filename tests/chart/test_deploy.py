"""Lints container images, Compose and systemd files and compares them with what they depend on. Builds no image."""

import configparser
import os
import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from tools import CHART, ROOT, residuald, run, skip, tool

DEPLOY = ROOT / "deploy"
CRATE = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
DEFAULTS = tomllib.loads((ROOT / "src/default.toml").read_text())
DRAIN = int(DEFAULTS["kafka"]["drain_timeout"].removesuffix("s"))


# --- From source ------------------------------------------------------------------------------


def test_make_install_puts_what_runs_anywhere(tmp_path):
    residuald("--version")
    binary = Path(os.environ.get("RESIDUALD") or ROOT / "target/release/residuald")
    # With the copy that `make onnxruntime` downloaded, the installation downloads nothing.
    shutil.copytree(ROOT / ".onnxruntime", tmp_path / "lib/onnxruntime", symlinks=True)
    made = run("make", "-C", ROOT, "install", f"PREFIX={tmp_path}", f"RESIDUALD={binary}")
    assert made.returncode == 0, made.stderr
    settings = [f"model.bundle={ROOT / 'models/payments'}", "kafka.topics=payments"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    # The binary is found by PATH, in a folder and an environment that are independent of the checkout.
    command = ["env", "-i", f"PATH={tmp_path / 'bin'}:/usr/bin:/bin", "residuald", "check", *arguments]
    checked = run(*command, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_the_readme_names_what_a_build_needs():
    (line,) = re.findall(r"^sudo apt-get install (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    # make, cc and c++; cmake and c++ for librdkafka; pkg-config and the headers for openssl-sys; pip for ONNX Runtime.
    needed = {"build-essential", "cmake", "pkg-config", "libssl-dev", "zlib1g-dev", "python3-pip"}
    assert set(line.split()) == needed


# --- Images ----------------------------------------------------------------------------------


@pytest.fixture(params=["Dockerfile", "Dockerfile.cuda"])
def dockerfile(request):
    return DEPLOY / request.param


def test_hadolint_has_nothing_to_say(dockerfile):
    linted = run(tool("hadolint", "make venv"), dockerfile)
    assert linted.returncode == 0, linted.stdout


def test_an_images_labels_are_the_crates(dockerfile):
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', dockerfile.read_text()))
    for label, key in [
        ("title", "name"),
        ("version", "version"),
        ("licenses", "license"),
        ("description", "description"),
    ]:
        assert labels[label] == CRATE[key]


def test_an_image_is_compiled_by_what_the_crate_promises(dockerfile):
    assert f"FROM rust:{CRATE['rust-version']}-" in dockerfile.read_text()


def test_what_an_image_copies_is_in_its_context(dockerfile):
    """.dockerignore admits exactly the files that the images copy, and all of them exist."""
    lines = [line.split() for line in dockerfile.read_text().splitlines() if line.startswith("COPY ")]
    copied = {source for line in lines if "--from" not in line[1] for source in line[1:-1]}
    ignored, *let_through = re.findall(r"(?m)^[^#\s]+", (ROOT / ".dockerignore").read_text())
    assert ignored == "*"
    let_through = {pattern.removeprefix("!") for pattern in let_through}
    assert copied == {re.sub("^(benches|python)/.*", r"\1", path) for path in let_through}
    assert [path for path in let_through if not (ROOT / path).exists()] == []


# --- Compose ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_it_is_as_the_compose_specification_says():
    checker = tool("check-jsonschema", "make venv")
    checked = run(checker, "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    assert checked.returncode == 0, checked.stdout


def test_residuald_takes_composes_settings(compose):
    service = compose["services"]["residuald"]
    checked = residuald("check", "--set", f"model.bundle={ROOT / 'models/payments'}", **service["environment"])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN
    assert (ROOT / service["environment"]["RESIDUALD__MODEL__BUNDLE"]).is_dir()


def test_residuald_takes_the_producers_command(compose):
    """The command fails because Kafka is unreachable (69), not because of its arguments (64) or its file (65)."""
    command = compose["services"]["producer"]["command"]
    command = [str(ROOT / part) if part.startswith("models/") else part for part in command]
    command[command.index("--brokers") + 1] = "127.0.0.1:1"
    assert residuald(*command).returncode == 69


def test_every_topic_that_residuald_needs_is_made(compose):
    made = re.search(r"for topic in (.*); do", compose["services"]["topics"]["command"][-1])[1].split()
    output, environment = DEFAULTS["output"], compose["services"]["residuald"]["environment"]
    read = environment["RESIDUALD__KAFKA__TOPICS"]
    assert set(made) == {read, output["anomalies_topic"], output["dead_letter_topic"]}
    command = compose["services"]["producer"]["command"]
    assert command[command.index("--topic") + 1] == read


def test_compose_mounts_what_is_there(compose):
    mounted = [DEPLOY / v.split(":")[0] for s in compose["services"].values() for v in s.get("volumes", [])]
    assert len(mounted) == 3
    missing = [path for path in mounted if not path.exists()]
    assert not missing, missing


def test_prometheus_takes_its_settings(compose, tmp_path):
    rules = CHART / "files/residuald.rules.yaml"
    (tmp_path / rules.name).write_text(rules.read_text())
    (tmp_path / "prometheus.yml").write_text(compose["configs"]["prometheus"]["content"])
    checked = run(tool("promtool", "make tools"), "check", "config", tmp_path / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alertmanager_takes_its_settings(compose, tmp_path):
    (tmp_path / "alertmanager.yml").write_text(compose["configs"]["alertmanager"]["content"])
    checked = run(tool("amtool", "make tools"), "check-config", tmp_path / "alertmanager.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


# --- systemd ---------------------------------------------------------------------------------

UNIT = DEPLOY / "systemd/residuald.service"


def test_systemd_takes_the_unit(tmp_path):
    # systemd-analyze requires that the started program exists.
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/residuald", "/bin/true"))
    checked = run(tool("systemd-analyze", "install systemd"), "verify", "--man=no", unit)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_unit_is_as_closed_as_it_was():
    """systemd's exposure level is 10 for an open unit, and OK up to 2. The rest is the network, which Kafka needs."""
    analyze = tool("systemd-analyze", "install systemd")
    report = run(analyze, "security", "--offline=true", "--no-pager", UNIT).stdout
    exposure = re.search(r"Overall exposure level for residuald.service: ([\d.]+)", report)
    if exposure is None:
        skip("systemd-analyze cannot check a file; install systemd 250 or newer")
    assert float(exposure[1]) <= 1.5


def test_the_unit_waits_for_the_drain_and_starts_again_what_may_heal():
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str
    unit.read(UNIT)
    service = unit["Service"]
    assert int(service["TimeoutStopSec"].removesuffix("s")) > DRAIN
    # The exit codes of src/cli/failure.rs that a restart cannot fix.
    assert service["RestartPreventExitStatus"].split() == ["64", "65", "78"]
