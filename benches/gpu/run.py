"""Tests and measures residuald on this machine's GPU, prints how each step ended and writes results.json.

    python run.py --kit KIT --out OUT                  all steps, as join.sh calls it
    python run.py --kit KIT --only golden,rows         some of them
    python run.py --kit KIT --provider cpu --tiny      a rehearsal without a GPU, as `make test` runs it

Each step is a separate process with a deadline, so a step that hangs does not stop the others. results.json is written
after every step, so an interrupted run keeps its measurements. page.py turns it into a page.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import steps

HERE = Path(__file__).resolve().parent


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kit", type=Path, required=True, metavar="DIR", help="the folder that kit.py wrote")
    p.add_argument(
        "--out", type=Path, default=Path("gpu-results"), metavar="DIR", help="folder for results.json and the logs"
    )
    p.add_argument(
        "--provider", choices=["cuda", "cpu"], default="cuda", help="cpu is a rehearsal without a GPU (default cuda)"
    )
    p.add_argument("--tiny", action="store_true", help="few records and small batches")
    p.add_argument(
        "--budget", type=float, default=480, metavar="SECONDS", help="time limit for all steps together (default 480)"
    )
    p.add_argument("--only", metavar="STEP,...", help=f"run only these steps, out of {', '.join(steps.STEPS)}")
    p.add_argument("--hang", action="store_true", help="first run a step that never ends, to test the deadline")
    p.add_argument("--step", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.step:
        found = steps.run(args.step, args.kit.resolve(), args.provider, args.tiny)
        json.dump(found, sys.stdout)
        return 0
    chosen = args.only.split(",") if args.only else list(steps.STEPS)
    if unknown := [name for name in chosen if name not in steps.STEPS]:
        p.error(f"--only names unknown steps: {', '.join(unknown)}; the steps are {', '.join(steps.STEPS)}")
    return run_all((["hang"] if args.hang else []) + chosen, args)


def run_all(names, args):
    args.out.mkdir(parents=True, exist_ok=True)
    results = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "provider": args.provider,
        "tiny": args.tiny,
        "steps": {},
    }
    started = time.monotonic()
    for i, name in enumerate(names, 1):
        left = args.budget - (time.monotonic() - started)
        print(f"[{i}/{len(names)}] {name} ", end="", flush=True)
        step = run_step(name, min(steps.DEADLINES[name], left), args)
        results["steps"][name] = step
        print(step["status"], f"({step['seconds']:.0f} s)", *failed(step), flush=True)
        part = args.out / "results.json.part"
        part.write_text(json.dumps(results, indent=1) + "\n")
        part.rename(args.out / "results.json")
    bad = [name for name, step in results["steps"].items() if step["status"] != "done" or failed(step)]
    print(f"{len(names) - len(bad)} of {len(names)} steps passed; the results are in {args.out / 'results.json'}")
    return int(bad != [])


def failed(step):
    """A message for each check that failed in a completed step."""
    return [f"FAILED: {name}" for name, holds in step.get("found", {}).get("holds", {}).items() if holds is False]


def run_step(name, deadline, args):
    """Runs one step in its own process group and kills the whole group at the deadline."""
    if deadline <= 1:
        return {"status": "not run: earlier steps used up the time budget", "seconds": 0}
    command = [sys.executable, __file__, "--kit", args.kit, "--provider", args.provider, "--step", name]
    command += ["--tiny"] if args.tiny else []
    started = time.monotonic()
    with tempfile.TemporaryFile() as found, open(args.out / f"{name}.log", "wb") as log:
        process = subprocess.Popen([*map(str, command)], stdout=found, stderr=log, start_new_session=True)
        try:
            code = process.wait(deadline)
            status = "done" if code == 0 else f"failed with exit status {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped at its deadline of {deadline:.0f} s"
        finally:
            kill(process)
        step = {"status": status, "seconds": time.monotonic() - started}
        found.seek(0)
        text = found.read()
    if status == "done":
        step["found"] = json.loads(text)
    else:
        step["log"] = (args.out / f"{name}.log").read_text(errors="replace")[-2000:]
    return step


def kill(process):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
