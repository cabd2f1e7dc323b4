"""The machine's CPU and the versions of all programs and libraries, without host names or paths."""

import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

from broker import ROOT
from contenders import PEERS, RESIDUALD


def machine():
    info = Path("/proc/cpuinfo").read_text()
    return re.search(r"model name\s*: (.*)", info)[1].strip() if "model name" in info else platform.machine()


def versions():
    peer, server = (Path(pom).read_text() for pom in (PEERS / "java/pom.xml", ROOT / "tests/kafka/pom.xml"))
    pinned = dict(re.findall(r"^(\w+)==(\S+)", (PEERS / "requirements-quix.txt").read_text(), re.M))
    artifacts = dict(re.findall(r"<artifactId>([\w-]+)</artifactId>\s*<version>([\d.]+)</version>", peer))
    library = next((ROOT / ".onnxruntime").glob("libonnxruntime.so.*")).name
    java = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    return {
        "residuald": said([RESIDUALD, "--version"]).split()[1],
        "ONNX Runtime of residuald": library.removeprefix("libonnxruntime.so."),
        "Apache Kafka": re.search(r"<kafka.version>(.*?)<", server)[1],
        "Python": platform.python_version(),
        "confluent-kafka": version("confluent-kafka"),
        "orjson": version("orjson"),
        "ONNX Runtime of Python": version("onnxruntime"),
        "Quix Streams": pinned["quixstreams"],
        "PyTorch": version("torch"),
        "Java": re.search(r'version "(.*?)"', java)[1],
        "kafka-clients": artifacts["kafka-clients"],
        "Jackson": artifacts["jackson-databind"],
        "ONNX Runtime of Java": artifacts["onnxruntime"],
    }


def said(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
