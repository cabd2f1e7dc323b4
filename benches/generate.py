"""What drawing a record costs, by the number of steps: .venv/bin/python benches/generate.py

Each number of steps draws twice, N and 3 N records, and the difference is the cost without start-up. It is the user
time of the process, all its threads together, so other work on the machine changes it little.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def cpu_seconds(command):
    """User time of a command, s."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(error)
    return usage.ru_utime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--residuald", default=ROOT / "target/release/residuald", type=Path)
    parser.add_argument("--bundle", default=ROOT / "models/payments", type=Path)
    parser.add_argument("--records", default=5000, type=int, help="N")
    parser.add_argument("--steps", default=[5, 10, 20, 30, 50, 100], type=int, nargs="+")
    arguments = parser.parse_args()
    print("| steps | CPU µs a record | of that a step |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for steps in arguments.steps:
            seconds = []
            for count in (arguments.records, 3 * arguments.records):
                out = Path(folder) / f"{steps}-{count}.ndjson"
                command = [arguments.residuald, "generate", arguments.bundle]
                command += ["--count", count, "--steps", steps, "--out", out, "--allow-copies"]
                seconds.append(cpu_seconds(list(map(str, command))))
            cost = (seconds[1] - seconds[0]) / (2 * arguments.records) * 1e6
            print(f"| {steps} | {cost:,.0f} | {cost / steps:.1f} |", flush=True)


if __name__ == "__main__":
    main()
