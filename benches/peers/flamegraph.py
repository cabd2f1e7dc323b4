#!/usr/bin/env python3
"""Profiles residuald on Apache Kafka: writes a flame graph and prints CPU µs per record for each kind of thread.

    benches/peers/flamegraph.py OUT.svg [--binary FILE] [--records N] [--slow-broker] [--set KEY=VALUE ...]

Reads a backlog, as run.py does. --slow-broker gives the broker the lowest priority, so that it responds as late as a
busy or remote one. Needs perf (Debian: linux-perf) and inferno (cargo install inferno); `make bench-peers` sets up
the rest.
"""

import argparse
import collections
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import broker
import measure
from contenders import ENVIRONMENT, RESIDUALD, Contender, residuald

HERTZ = 499


def threads(pid):
    """{thread name: CPU seconds} of a process."""
    spent = collections.Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip()
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        spent[name] += (int(fields[11]) + int(fields[12])) / measure.TICK
    return spent


def flamegraph(recorded, svg, title):
    script = subprocess.run(
        ["perf", "script", "--no-inline", "-i", recorded], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    folded = subprocess.run(["inferno-collapse-perf"], check=True, input=script.stdout, stdout=subprocess.PIPE)
    command = ["inferno-flamegraph", "--title", title, "--hash", "--minwidth", "0.2"]
    with open(svg, "wb") as out:
        subprocess.run(command, check=True, input=folded.stdout, stdout=out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("svg", metavar="OUT.svg")
    parser.add_argument("--binary", default=RESIDUALD)
    parser.add_argument("--records", type=int, default=600_000)
    parser.add_argument("--slow-broker", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for residuald run")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def command(*arguments):
        _, *rest = residuald(*arguments)
        return [options.binary, *rest, *(f"--set={setting}" for setting in options.set)]

    if options.slow_broker:
        os.nice(19)
    with broker.started() as kafka, tempfile.TemporaryDirectory() as directory:
        if options.slow_broker:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        kafka.create("dead-letters")
        measure.fill(kafka, "in", options.records)
        # A warm-up without perf, in which the broker's JVM compiles its code.
        measure.throughput(kafka, Contender(command), "warm-up", "in", options.records)
        kafka.create("out")
        ends = kafka.ends("in")
        with measure.running(kafka, Contender(command), "profiled", "in", "out") as run:
            run.wait("the first commit", lambda: kafka.lag("profiled", "in", ends) < options.records, 60)
            pid = run.processes[0].pid
            recorded = f"{directory}/perf.data"
            command = ["perf", "record", "-q", "-F", str(HERTZ), "--call-graph", "dwarf,16384", "-o", recorded]
            perf = subprocess.Popen([*command, "-p", str(pid)], env=ENVIRONMENT)
            run.wait("reading the topic", lambda: kafka.lag("profiled", "in", ends) == 0, measure.PATIENCE)
            spent = threads(pid)
            perf.send_signal(signal.SIGINT)
            perf.wait()
        flamegraph(recorded, options.svg, f"residuald, {options.records:,} payments behind Apache Kafka")
    for name, seconds in spent.most_common():
        if (cost := seconds / options.records * 1e6) >= 0.05:
            print(f"{name:16} {cost:5.2f} µs per record")
    print(f"{'all':16} {sum(spent.values()) / options.records * 1e6:5.2f}")


if __name__ == "__main__":
    main()
