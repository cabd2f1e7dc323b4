"""The steps of run.py. Each returns a dict of its findings, in which `holds` maps each check to whether it passed."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

AGREE = 0.999  # least share of verdicts that must agree between CPU and GPU
IMAGE_FLOOR = 0.8  # least throughput of the scorer, relative to ONNX Runtime alone on inputs in device memory

# Seconds. run.py also holds all of them to its --budget.
DEADLINES = {
    "hang": 2,
    "machine": 40,
    "golden": 90,
    "refused": 45,
    "agreement": 90,
    "rows": 110,
    "images": 110,
    "daemon": 90,
    "workers": 60,
    "limits": 45,
    "scaling": 90,
    "torch_rows": 90,
    "torch_images": 120,
}


class Run:
    """Calls the kit's programs on one provider."""

    def __init__(self, kit, provider, tiny):
        self.kit, self.provider, self.tiny = kit, provider, tiny

    def residuald(self, *arguments, **environment):
        return call(self.kit / "bin/residuald", *arguments, **environment)

    def device(self, bundle, *arguments, provider=None):
        """Runs benches/gpu/device.rs -> {"sizes": its measurements}, or {"error": its last line} if it fails."""
        seconds = 0.02 if self.tiny else 0.3
        command = (self.bundle(bundle), "--provider", provider or self.provider, "--seconds", seconds, *arguments)
        ended = call(self.kit / "bin/device", *command)
        if ended.returncode:
            return {"error": last_line(ended.stderr)}
        return {"sizes": [json.loads(line) for line in ended.stdout.splitlines()]}

    def bundle(self, name):
        return self.kit / "bundles" / name

    def bench(self, bundle, *arguments):
        rounds = ("--rounds", 1, "--records", 400) if self.tiny else ("--rounds", 1)
        ended = self.residuald("bench", "--bundle", self.bundle(bundle), "--json", *rounds, *arguments)
        if ended.returncode:
            return {"error": last_line(ended.stderr)}
        return json.loads(ended.stdout.splitlines()[-1])


def call(program, *arguments, **environment):
    command = [str(part) for part in (program, *arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    print("$", " ".join(command), f"-> {ended.returncode}", ended.stderr[-3000:], file=sys.stderr, flush=True)
    return ended


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][-600:] if lines else "the program printed no message"


def run(name, kit, provider, tiny):
    return STEPS[name](Run(kit, provider, tiny)) if name in STEPS else hang()


def hang():
    """A step that never ends, to test the deadline."""
    while True:
        time.sleep(60)


def machine(run):
    """Describes this machine and checks that the kit's programs find their libraries."""
    found = {"cpu": first(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()), "cores": os.cpu_count()}
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=name,driver_version,memory.total"
        found["gpu"] = call("nvidia-smi", query, "--format=csv,noheader").stdout.strip()
    version = "import torch; print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version())"
    found["torch"] = call(sys.executable, "-c", version).stdout.strip()
    found["residuald"] = run.residuald("--version").stdout.strip()
    library = Path(os.environ["ORT_DYLIB_PATH"])
    missing = []
    for provider in library.parent.glob("libonnxruntime_providers_*.so"):
        for line in call("ldd", provider).stdout.splitlines():
            if "not found" in line:
                missing.append(f"{provider.name} lacks {line.split()[0]}")
    found["missing_libraries"] = missing
    lacks = any("providers_cuda" in line for line in missing)
    return found | {"holds": {"CUDA's libraries are found": run.provider == "cpu" or not lacks}}


def first(pattern, text):
    match = re.search(pattern, text)
    return match.group(1) if match and match.lastindex else None


def providers(run):
    return ["cpu"] if run.provider == "cpu" else ["cuda", "tensorrt"]


def check(run, bundle, provider, *settings, **environment):
    given = (
        'kafka.brokers="localhost:9092"',
        'kafka.topics="t"',
        f'model.bundle="{run.bundle(bundle)}"',
        f'inference.provider="{provider}"',
        "threshold.quantile=0.5",
        *settings,
    )
    options = [part for setting in given for part in ("--set", setting)]
    with tempfile.NamedTemporaryFile(suffix=".toml") as empty:
        started = time.monotonic()
        ended = run.residuald("check", "--config", empty.name, "--json", *options, **environment)
    found = {"exit": ended.returncode, "seconds": time.monotonic() - started}
    if ended.returncode:
        return found | {"error": last_line(ended.stderr)}
    report = json.loads(ended.stdout)
    return found | {key: report[key] for key in ("provider", "placement", "golden")}


def golden(run):
    """Checks that every bundle reproduces the trainer's scores within its tolerance, and records its placement."""
    found, holds = {}, {}
    for provider in providers(run):
        for bundle in ("payments", "surface", "image256"):
            checked = check(run, bundle, provider)
            found[f"{bundle} on {provider}"] = checked
            # The kit lacks TensorRT's libraries, so an error is expected where the machine lacks them too.
            if provider != "tensorrt":
                holds[f"golden records of {bundle} on {provider}"] = checked["exit"] == 0
    return {"checks": found, "holds": holds}


def refused(run):
    """Checks that a missing GPU and a graph that only a CPU can run are errors, unless fallback is allowed."""
    hidden = check(run, "payments", "cuda", CUDA_VISIBLE_DEVICES="-1")
    allowed = check(run, "payments", "cuda", "inference.fallback=true", CUDA_VISIBLE_DEVICES="-1")
    on_cpu = check(run, "cpu-only", "cpu")
    on_gpu = check(run, "cpu-only", "cuda")
    return {
        "no GPU": hidden,
        "no GPU, fallback": allowed,
        "a graph for CPUs, on the CPU": on_cpu,
        "a graph for CPUs, on CUDA": on_gpu,
        "holds": {
            "a missing GPU is an error": hidden["exit"] not in (0, 70, 101),
            "fallback runs on the CPU": allowed.get("provider") == "cpu",
            "the graph for CPUs works on the CPU": on_cpu["exit"] == 0,
            "on a GPU, a graph for CPUs is an error": on_gpu["exit"] not in (0, 70, 101),
        },
    }


def agreement(run):
    """Judges the same records and images on the CPU and on the GPU and compares the verdicts."""
    found, holds = {}, {}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        few = work / "few.ndjson.gz"
        for bundle, file in (
            ("payments", run.kit / "records.ndjson.gz"),
            ("surface", run.bundle("surface") / "sample.ndjson.gz"),
        ):
            if run.tiny:
                with gzip.open(file, "rb") as lines, gzip.open(few, "wb") as out:
                    out.writelines(islice(lines, 40))
                file = few
            verdicts = {}
            for provider in ("cpu", run.provider):
                out, started = work / f"{provider}.ndjson", time.monotonic()
                ended = run.residuald(
                    *("score", file, "--bundle", run.bundle(bundle), "--provider", provider, "--out", out, "--json")
                )
                if ended.returncode:
                    return {"error": last_line(ended.stderr), "holds": {f"{bundle} is scored on {provider}": False}}
                with open(out) as lines:
                    read = [json.loads(line) for line in lines]
                scores = {line["record"]: (line["anomaly_score"], line["anomaly_grade"] > 1) for line in read}
                verdicts[provider] = scores
                found[f"{bundle}, seconds on {provider}"] = time.monotonic() - started
            compared = compare(verdicts["cpu"], verdicts[run.provider])
            found[bundle] = compared
            holds[f"verdicts of {bundle} agree"] = compared["agree"] >= AGREE
    return found | {"holds": holds}


def compare(a, b):
    if a.keys() != b.keys():
        return {"agree": 0, "records": len(a), "differ": len(a.keys() ^ b.keys())}
    same = sum(a[record][1] == b[record][1] for record in a)
    worst = max(abs(a[r][0] - b[r][0]) / max(abs(a[r][0]), 1e-6) for r in a)
    flagged = sum(flag for _, flag in a.values())
    return {
        "records": len(a),
        "flagged": flagged,
        "flagged by both": sum(a[r][1] and b[r][1] for r in a),
        "agree": same / len(a),
        "worst_relative_difference": worst,
    }


def ways(run, bundle, sizes):
    """Measures throughput by batch size, for each way to move batches to the device and each precision."""
    batches = ("--batches", ",".join(map(str, sizes)))

    def measure(way, *options, **more):
        return run.device(bundle, *batches, "--way", way, *options, **more)

    half = ("--graph", run.kit / f"{bundle}.float16.onnx")
    # Tabular models have one node that only a CPU can run, and a CUDA graph must not contain such a node.
    whole = ("--graph", run.kit / "payments.cuda-only.onnx") if bundle == "payments" else ()
    found = {
        "CPU, one core, scorer": measure("scorer", provider="cpu"),
        "scorer": measure("scorer"),
        "ordinary memory": measure("pageable"),
        "in device memory": measure("device"),
        "CUDA graph, in device memory": measure("graph", *whole),
        "CUDA graph, with copies": measure("graph-copies", *whole),
        "TF32, in device memory": measure("device", "--tf32"),
        "float16, in device memory": measure("device", *half),
    }
    if whole:
        found["no node on the CPU, in device memory"] = measure("device", *whole)
    else:
        found["float16, CUDA graph"] = measure("graph", *half)
        found["NHWC, float16, in device memory"] = measure("device", "--nhwc", *half)
    return found


def every_way_ran(ways):
    return {f"{name} runs": "sizes" in measured for name, measured in ways.items()}


def rate(measured, batch):
    for size in measured.get("sizes", []):
        if size["batch"] == batch:
            return size["rows_per_second"]
    return None


def on_device(ways, sizes):
    """[(batch size, the scorer's rate / the rate on inputs in device memory)], where both were measured."""
    rates = [(size, rate(ways["scorer"], size), rate(ways["in device memory"], size)) for size in sizes]
    return [(size, scorer / device) for size, scorer, device in rates if scorer and device]


def rows(run):
    sizes = (1, 16, 64) if run.tiny else (1, 16, 64, 256, 1024, 4096, 16384)
    found = ways(run, "payments", sizes)
    core = [rate(found["CPU, one core, scorer"], size) for size in sizes]
    device = [rate(found["scorer"], size) for size in sizes]
    crosses = [s for s, c, d in zip(sizes, core, device, strict=True) if c and d and d > c]
    share = on_device(found, sizes)
    return {
        "ways": found,
        "faster than one core from a batch of": crosses[0] if crosses else None,
        "share of the time on the device": share,
        "holds": every_way_ran(found),
    }


def images(run):
    sizes = (1, 2) if run.tiny else (1, 4, 16, 64, 256)
    found = ways(run, "image256", sizes)
    share = on_device(found, sizes)
    best = max((ratio for _, ratio in share), default=0)
    return {
        "ways": found,
        "share of the time on the device": share,
        "holds": {
            f"the image scorer reaches {IMAGE_FLOOR} of ONNX Runtime's throughput": run.tiny or best >= IMAGE_FLOOR
        },
    }


def daemon(run):
    """Measures the pipeline end to end on the embedded broker: consume, decode, score, publish."""
    found = {}
    plans = [
        ("payments", 4096, ("--sessions", 2)),
        ("image256", 32, ("--sessions", 2)),
        ("surface", 64, ("--sessions", 2)),
    ]
    for bundle, batch, sessions in plans:
        size = ("--batch", 16 if run.tiny else batch)
        records = () if run.tiny or bundle == "payments" else ("--records", 2000)
        for provider in dict.fromkeys(("cpu", run.provider)):
            given = (*records, "--provider", provider, *(size + sessions if provider != "cpu" else ()))
            found[f"{bundle} on {provider}"] = run.bench(bundle, *given)
    ran = {f"{name} end to end": "error" not in bench for name, bench in found.items()}
    return {"bench": found, "holds": ran}


def workers(run):
    """Measures concurrent sessions on one card."""
    found = {}
    for bundle, batch in (("payments", 64 if run.tiny else 4096), ("image256", 1 if run.tiny else 16)):
        for sessions in (1, 2) if run.tiny else (1, 2, 4):
            measured = run.device(bundle, "--batches", batch, "--sessions", sessions)
            found[f"{bundle}, {sessions} sessions"] = measured
    return {"sessions": found, "holds": {"two sessions share a card": "sizes" in found["payments, 2 sessions"]}}


def limits(run):
    """Checks that the memory limit holds, and times the first run and a second start."""
    batch = ("--batches", 1 if run.tiny else 64)
    found = {
        "image256, no limit": run.device("image256", *batch),
        "image256, 16 MiB": run.device("image256", *batch, "--memory", 16 * 2**20),
        "image256, 8 GiB": run.device("image256", *batch, "--memory", 8 * 2**30),
    }
    found["start of image256, again"] = check(run, "image256", run.provider)
    holds = {"a batch that needs more memory than allowed is refused": "error" in found["image256, 16 MiB"]}
    if run.provider == "cpu":
        holds = {"the scorer ran": "sizes" in found["image256, no limit"]}  # the limit applies to GPUs only
    return found | {"holds": holds}


def torch_rows(run):
    return torch(run, "payments")


def torch_images(run):
    return torch(run, "image256")


def torch(run, bundle):
    """Measures the bundle's network in PyTorch, eager and compiled, on inputs in device memory."""
    network = Path(__file__).with_name("network.py")
    device = "cuda" if run.provider == "cuda" else "cpu"
    arguments = (sys.executable, network, bundle, "--kit", run.kit, "--device", device)
    ended = call(*arguments, *(["--tiny"] if run.tiny else []))
    found = {"rates": [json.loads(line) for line in ended.stdout.splitlines()]}
    if ended.returncode:
        found["error"] = last_line(ended.stderr)
    return found | {"holds": {f"PyTorch ran {bundle}": ended.returncode == 0}}


def scaling(run):
    """Measures one process on the CPU with 1 to 16 workers: the scorers alone, and the whole pipeline."""
    cores = os.cpu_count() or 1
    counts = [1, 2] if run.tiny else [n for n in (1, 2, 4, 8, 12, 16) if n <= cores]
    found = {n: run.bench("payments", "--sessions", n) for n in counts}
    return {"sessions": found, "holds": {"every count ran": all("error" not in bench for bench in found.values())}}


STEPS = {
    step.__name__: step
    for step in (
        *(machine, golden, refused, agreement, rows, images, daemon, workers, limits, scaling),
        *(torch_rows, torch_images),
    )
}
