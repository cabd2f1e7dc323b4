#!/usr/bin/env python3
"""residuald beside other consumers on one Apache Kafka: the same topic, the same bundle, the same anomalies.

    benches/peers/run.py [--records N] [--rounds N]

A topic of 4 partitions is filled with the payments of the sample, again and again. Then each contender in turn reads
all of it in a group of its own, writes the anomalies and commits its offsets; who goes first changes by round. Broker,
contender and this script share the machine. Prints a line a round, and writes benches/results.json and
benches/RESULTS.md: medians, and of each round the ratio of residuald to each peer, which is what counts. All must find
the same number of anomalies. `make bench-peers` sets up.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BENCHES = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(BENCHES))

from delivery import RESIDUALD, ROOT, SAMPLE_RECORDS, await_address, cluster, fill, status  # noqa: E402

BUNDLE = ROOT / "models/payments"
LIBRARY = {"ORT_DYLIB_PATH": str(ROOT / ".onnxruntime/libonnxruntime.so")}
TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """User and system time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def memory(pid):
    """The most that was resident, in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def residuald(brokers, group, records, _):
    settings = {
        "kafka.brokers": brokers,
        "kafka.topics": "in",
        "kafka.group_id": group,
        "model.bundle": json.dumps(str(BUNDLE)),
        "http.listen": "127.0.0.1:0",
    }
    command = [RESIDUALD, "run", *(f"--set={name}={value}" for name, value in settings.items())]
    with tempfile.TemporaryFile("w+") as log:
        daemon = subprocess.Popen(command, stderr=log, env=os.environ | LIBRARY)
        try:
            address, first = await_address(daemon, log), None
            while True:
                counts, now = status(address), time.monotonic()
                if first is None and counts["consumed"]:
                    first, cpu, before = now, cpu_seconds(daemon.pid), counts["scored"]
                if counts["scored"] + counts["dead_letters"] >= records:
                    break
                time.sleep(0.01)
            spent = cpu_seconds(daemon.pid) - cpu
            return {
                "rate": (records - before) / (now - first),
                "cpu": spent / (records - before) * 1e6,
                "memory": memory(daemon.pid),
                "anomalies": counts["anomalies"],
            }
        finally:
            daemon.terminate()
            daemon.wait(60)


def python(brokers, group, records, processes):
    command = [sys.executable, Path(__file__).parent / "python_consumer.py", BUNDLE, brokers, group]
    done = subprocess.run([*command, str(records), str(processes)], check=True, capture_output=True, text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    return {
        "rate": records / (report["ended"] - report["first"]),
        "cpu": report["cpu_seconds"] / records * 1e6,
        "memory": report["memory"],
        "anomalies": report["anomalies"],
    }


CONTENDERS = {
    "residuald": (residuald, None),
    "Python, one process": (python, 1),
    "Python, two processes": (python, 2),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=400_000, help="rounded up to 20,000")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    times = -(-options.records // SAMPLE_RECORDS)
    records, rounds = times * SAMPLE_RECORDS, []
    with cluster(1) as brokers:
        fill(brokers, times)
        for number in range(options.rounds):
            names = list(CONTENDERS)
            found = {}
            for name in names[number % len(names) :] + names[: number % len(names)]:
                run, argument = CONTENDERS[name]
                found[name] = run(brokers, f"{name.replace(' ', '-').replace(',', '')}-{number}", records, argument)
            if len({run["anomalies"] for run in found.values()}) != 1:
                sys.exit(f"they disagree: { {name: run['anomalies'] for name, run in found.items()} }")
            rounds.append(found)
            print(f"round {number + 1}:", ", ".join(f"{n} {r['rate']:,.0f}/s" for n, r in found.items()), flush=True)
    results = {"records": records, "cores": os.cpu_count(), "machine": platform.machine(), "rounds": rounds}
    (BENCHES / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (BENCHES / "RESULTS.md").write_text(markdown(results))
    print(markdown(results))


def markdown(results):
    rounds = results["rounds"]
    lines = [
        "# Beside other consumers",
        "",
        f"`benches/peers/run.py`: {results['records']:,} payments in 4 partitions of an Apache Kafka on the same "
        f"{results['cores']} cores, medians of {len(rounds)} rounds (smallest to largest), the same "
        f"{rounds[0]['residuald']['anomalies']:,} anomalies by all. "
        "The ratio is taken in each round.",
        "",
        "| | records/s | residuald over it | CPU, µs a record | memory, MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in rounds[0]:
        runs = [r[name] for r in rounds]
        ratio = spread([r["residuald"]["rate"] / r[name]["rate"] for r in rounds], ".2f") if name != "residuald" else ""
        cells = [spread([r["rate"] for r in runs], ",.0f"), ratio]
        cells += [spread([r["cpu"] for r in runs], ".1f"), spread([r["memory"] for r in runs], ".0f")]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values, form):
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    main()
