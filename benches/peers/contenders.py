"""The contenders and their commands. Each reads a topic until SIGTERM and writes anomalies; see README.md."""

import json
import os
from dataclasses import dataclass, replace
from functools import partial

from broker import ROOT

PEERS = ROOT / "benches/peers"
BUNDLE = ROOT / "models/payments"
DDPM = ROOT / ".cache/peers/ddpm.pt"
# Bundles for the same payments with a slower scorer. `make bench-peers` trains them.
HEAVIER = {"`best`": ROOT / ".cache/peers/best", "`best`, 256 wide": ROOT / ".cache/peers/wide"}
RESIDUALD = ROOT / "target/release/residuald"
PYTHON, QUIX_PYTHON = ROOT / ".venv/bin/python", PEERS / ".venv/bin/python"
CLASSES = f"{PEERS}/java/target/classes:{PEERS}/java/target/libs/*"
ENVIRONMENT = os.environ | {"ORT_DYLIB_PATH": str(ROOT / ".onnxruntime/libonnxruntime.so")}


@dataclass(frozen=True)
class Contender:
    """How to run a contender and what to expect of it.

    `members` is the size of its consumer group. `share` is the share of the records that it gets, so that a slow
    contender does not take too long. `flags` says whether it publishes only anomalies or all verdicts. `misses` is the
    share of residuald's anomalies that it may miss.
    """

    command: callable
    processes: int = 1
    members: int = 1
    share: float = 1.0
    flags: str = "anomalies"
    misses: float = 0.0


def residuald(brokers, group, topic, anomalies, bundle=BUNDLE):
    settings = {
        "kafka.brokers": brokers,
        "kafka.topics": topic,
        "kafka.group_id": group,
        "model.bundle": json.dumps(str(bundle)),
        "output.anomalies_topic": anomalies,
        "http.listen": "127.0.0.1:0",
    }
    return [RESIDUALD, "run", *(f"--set={name}={value}" for name, value in settings.items())]


def screened(*arguments, bundle=BUNDLE):
    return [*residuald(*arguments, bundle=bundle), "--set=screen.mode=on"]


def python(*arguments, bundle=BUNDLE):
    return [PYTHON, PEERS / "python_consumer.py", bundle, *arguments]


def quix(*arguments):
    return [QUIX_PYTHON, PEERS / "quix_consumer.py", BUNDLE, *arguments]


def java(*arguments):
    return ["java", "-Xmx512m", "-cp", CLASSES, "residuald.Peer", BUNDLE, *arguments, "2"]


def ddpm(*arguments):
    return [PYTHON, PEERS / "ddpm_consumer.py", DDPM, BUNDLE, *arguments]


CONTENDERS = {
    "residuald": Contender(residuald),
    "residuald with its screen": Contender(screened, misses=0.001),
    "Python, one process": Contender(python),
    "Python, two processes": Contender(python, processes=2, members=2),
    "Quix Streams, two processes": Contender(quix, processes=2, members=2, share=0.25),
    "Java, two threads": Contender(java, members=2),
    "DDPM in PyTorch": Contender(ddpm, share=0.01, flags="all"),
}


def with_scorer(bundle):
    """The fastest peer and residuald on another bundle. The screen may miss 1 % (1 of some 190) of the anomalies."""
    fastest = "Python, two processes", "residuald", "residuald with its screen"
    return {
        name: replace(
            CONTENDERS[name],
            command=partial(CONTENDERS[name].command, bundle=bundle),
            share=0.5,
            misses=CONTENDERS[name].misses and 0.01,
        )
        for name in fastest
    }
