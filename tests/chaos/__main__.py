"""Chaos test: checks the delivery guarantee while daemons, brokers, network, clocks and disks fail.

A stream passes through residuald on three brokers of a real Apache Kafka. Meanwhile daemons are killed, stopped and
restarted, brokers crash and return, the network fails, clocks jump and disks fill up, following a plan that depends
only on the seed. Afterwards the output is checked for every record that was produced.

    .venv/bin/python tests/chaos --records 100000 --kills 10 --delivery exactly-once --seed 7

Progress goes to standard error. The last line of standard output is a JSON object with the numbers of records that were
produced, lost, duplicated and reordered, the number of kills, and more. The exit status is 0 if the guarantee held:
nothing was lost, reordered or wrong, and with exactly-once nothing was duplicated.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import clock
import diagnosis
import disk
import evidence
from cluster import ROOT, Cluster, missing_tools
from daemons import GROUP, GROUPS, TOPICS, Fleet
from faults import ADDED, World
from kafka import TopicPartition
from plan import LANES, make_plan, parse_faults
from stream import Records, Stream
from verify import Findings, expected_verdicts, verify

BROKERS = 3
PARTITIONS = 6
# A daemon counts as hung after this time without a commit, while records wait and no fault is active.
STALLED = 180  # seconds
REPORT_EVERY = 5  # seconds
# Number of lines of a diagnosis that are printed. The file has all.
SAID = 60
STARTED = time.monotonic()


def main():
    options = parse_options()
    counts = parse_faults(options.faults, options.kills)
    plan = make_plan(options.seed, options.records, counts, options.daemons, BROKERS, options.session)
    say(f"seed {options.seed}: {len(plan)} faults")
    for fault in plan:
        print(f"  after {fault.at:>8} records and {fault.wait:.2f} s: {fault}", file=sys.stderr)
    if options.plan_only:
        return
    if missing := missing_tools(options.residuald):
        say(f"!!! SKIPPED chaos: {missing}")
        sys.exit(bool(os.environ.get("RESIDUALD_TEST_STRICT")))
    plan = without_missing(plan)
    options.fake_clocks = any(fault.kind == "clock" for fault in plan)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    disk.unmount_left_over(options.dir / "kafka")
    shutil.rmtree(options.dir, ignore_errors=True)
    options.dir.mkdir(parents=True)
    held = False
    try:
        report = run(options, plan)
        held = report["held"]
    finally:
        if not held:
            say(f"the evidence is in {evidence.keep(options.dir, options.seed)}")
    print(json.dumps(report))
    sys.exit(not held)


def without_missing(plan):
    """Removes the faults that this machine cannot inject, and says why. With RESIDUALD_TEST_STRICT, exits instead."""
    for kind, missing in {"clock": clock.missing, "disk": disk.missing}.items():
        if any(fault.kind == kind for fault in plan) and (why := missing()):
            say(f"!!! SKIPPED fault {kind}: {why}")
            if os.environ.get("RESIDUALD_TEST_STRICT"):
                sys.exit(1)
            plan = [fault for fault in plan if fault.kind != kind]
    return plan


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10, help="how often a daemon is killed with SIGKILL (10)")
    parser.add_argument("--delivery", choices=["exactly-once", "at-least-once"], default="exactly-once")
    parser.add_argument("--seed", type=int, default=0, help="seed of the plan of faults (0)")
    parser.add_argument("--daemons", type=int, default=2)
    parser.add_argument(
        "--group", choices=GROUPS, default="cooperative", help="consumer group protocol or strategy (cooperative)"
    )
    parser.add_argument("--session", type=float, default=3, help="the group's session timeout in seconds (3)")
    parser.add_argument("--faults", default=",".join(LANES), help=f"kind[:count],... (all kinds: {' '.join(LANES)})")
    parser.add_argument("--rate", type=float, default=0, help="most records to produce per second (0: no limit)")
    parser.add_argument("--dir", type=Path, default=ROOT / "target/chaos", help="folder for logs (target/chaos)")
    parser.add_argument("--residuald", type=Path, default=built_last(), help="the binary (newest of release and debug)")
    parser.add_argument("--plan-only", action="store_true", help="print the plan and exit")
    return parser.parse_args()


def built_last():
    builds = [ROOT / "target" / build / "residuald" for build in ("release", "debug")]
    return max(builds, key=lambda path: path.stat().st_mtime if path.exists() else 0)


def say(text):
    print(f"{time.monotonic() - STARTED:7.1f} s  {text}", file=sys.stderr, flush=True)


def run(options, plan):
    expected = expected_verdicts(options.residuald)
    records = Records(options.records)
    with Cluster(options.dir / "kafka", BROKERS) as cluster:
        for broker in {fault.target for fault in plan if fault.kind == "disk"}:
            cluster.put_on_small_disk(broker)
        cluster.create_topics(list(TOPICS.values()), PARTITIONS)
        fleet = Fleet(options.dir, cluster.proxied, options)
        world = World(cluster, fleet)
        show = ChaosRun(options, plan, world, records)
        try:
            seconds = show.run()
        finally:
            fleet.kill()
        say("reading the output topics")
        findings = Findings()
        if show.stream.failure is None:
            findings = verify(cluster.bootstrap, records, show.stream.placed, expected)
        for what, text in findings.examples:
            say(f"{what}: {text[:300]}")
        if findings.lost or (findings.duplicated and options.delivery == "exactly-once"):
            say("saving the topics, as the brokers store them and as kcat reads them")
            evidence.save_segments(cluster, TOPICS.values(), options.dir / "segments")
            save_as_kcat_reads(cluster.bootstrap, options.dir)
            explain(options, fleet, findings)
    return result(options, show, findings, seconds)


def explain(options, fleet, findings):
    """Writes what the brokers' segments say about duplicates."""
    if not findings.repeats:
        return
    daemons = {pid: log for slot in fleet.slots for pid, log in slot.processes.items()}
    lines = diagnosis.explain(findings.repeats, options.dir / "segments", daemons)
    (options.dir / "diagnosis.txt").write_text("\n".join(lines) + "\n")
    for line in lines[:SAID]:
        say(line[:300])


def save_as_kcat_reads(bootstrap, folder):
    """Saves the scores topic as another client sees it, with each isolation level: partition, offset and headers.

    The cluster is gone afterwards, so this is the only evidence that does not come from the verifier.
    """
    for isolation in ("read_committed", "read_uncommitted"):
        command = ["kcat", "-b", ",".join(bootstrap), "-C", "-e", "-q", "-t", TOPICS["scores"], "-f", "%p %o %h\\n"]
        with open(folder / f"scores-{isolation}.txt", "w") as out:
            subprocess.run([*command, "-X", f"isolation.level={isolation}"], stdout=out, check=False)


class ChaosRun:
    """Runs the stream, the faults and the daemons concurrently."""

    def __init__(self, options, plan, world, records):
        self.options, self.world, self.records = options, world, records
        self.lanes = {lane: [f for f in plan if f.lane == lane] for lane in dict.fromkeys(LANES.values())}
        # By lane: the record at which the next fault strikes. The stream stays close to the first of them.
        self.waiting = {lane: faults[0].at for lane, faults in self.lanes.items() if faults}
        self.ahead = max(2000, min(20_000, options.records // 20))
        self.done = 0
        cluster = world.cluster
        self.stream = Stream(
            cluster.bootstrap, TOPICS["in"], PARTITIONS, records, options.rate, limit=self.may_be_produced
        )
        world.stream = self.stream
        self.ended = threading.Event()

    def may_be_produced(self):
        return min([self.done, *self.waiting.values()]) + self.ahead

    def run(self):
        """Runs until every record is produced and committed and every fault is over -> seconds that this took."""
        started = time.monotonic()
        self.world.fleet.start()
        self.stream.start()
        lanes = [threading.Thread(target=self.strike, args=(lane,), daemon=True) for lane in self.lanes]
        for lane in lanes:
            lane.start()
        self.watch(lanes)
        self.ended.set()
        self.stream.stopped.set()
        seconds = time.monotonic() - started
        for lane in lanes:
            lane.join(120)
        self.world.fleet.scrape()
        say("asking the daemons to stop")
        self.world.fleet.stop()
        self.check_commits()
        return seconds

    def strike(self, lane):
        for i, fault in enumerate(self.lanes[lane]):
            self.waiting[lane] = fault.at
            while self.done < fault.at:
                if self.ended.wait(0.05):
                    return
            time.sleep(fault.wait)
            say(f"{fault}")
            try:
                self.world.strike(fault)
            except Exception as e:
                self.world.fleet.violation(f"{fault}: {e}")
            say(f"    over: {fault} ({i + 1} of {len(self.lanes[lane])})")
        self.waiting.pop(lane, None)

    def watch(self, lanes):
        """Counts committed records until the run is complete. Gives up after STALLED seconds without a commit."""
        moved, reported = time.monotonic(), 0.0
        while True:
            committed = self.committed()
            total = sum(max(0, offset) for offset in committed.values())
            now = time.monotonic()
            if total != self.done or self.world.fleet.troubles:
                moved = now
            self.done = total
            if now - reported > REPORT_EVERY:
                reported = now
                say(f"{self.stream.acknowledged} produced, {total} committed, {self.world.done}")
                self.world.fleet.scrape()
            if self.stream.failure:
                self.world.fleet.violation(f"the test's own producer failed: {self.stream.failure!r}")
                return
            finished = not self.stream.is_alive() and not any(lane.is_alive() for lane in lanes)
            if finished and committed == self.stream.ends():
                return
            if now - moved > STALLED:
                self.world.fleet.violation(
                    f"stalled: no commit for {STALLED} s; committed {committed}, produced up to {self.stream.ends()}"
                )
                return
            time.sleep(0.2)

    def committed(self):
        # The fault `partitions` adds partitions during the run.
        partitions = range(len(self.stream.placed))
        offsets = self.world.cluster.committed(GROUP, [TopicPartition(TOPICS["in"], p) for p in partitions])
        return {p: max(0, offsets.get(p, 0)) for p in partitions}

    def check_commits(self):
        """Checks that the group's final offsets are the ends of the topic, and that added partitions were used."""
        if (committed := self.committed()) != self.stream.ends():
            self.world.fleet.violation(f"committed {committed}, produced up to {self.stream.ends()}")
        due = PARTITIONS + ADDED * self.world.done.get("partitions", 0)
        used = sum(1 for placed in self.stream.placed if placed)
        if used < due and self.stream.failure is None:
            self.world.fleet.violation(f"only {used} of {due} partitions got records; raise --records")


def result(options, show, findings, seconds):
    fleet = show.world.fleet
    exact = options.delivery == "exactly-once"
    # A message may lack its timestamp only if a daemon's clock was wrong.
    wrong = findings.wrong + (0 if show.world.done.get("clock") else findings.timeless)
    broken = findings.lost or findings.reordered or wrong or (exact and findings.duplicated)
    kinds = [show.records.kind(n) for n in range(options.records)]
    report = {
        "produced": show.stream.acknowledged,
        "lost": findings.lost,
        "duplicated": findings.duplicated,
        "reordered": findings.reordered,
        "kills": show.world.done.get("kill", 0),
        "wrong": wrong,
        "timeless": findings.timeless,
        "held": not (broken or fleet.violations or show.stream.acknowledged != options.records),
        "delivery": options.delivery,
        "seed": options.seed,
        "daemons": options.daemons,
        "group": options.group,
        "faults": show.world.done,
        "exits": fleet.exits,
        "verdicts": findings.read["scores"],
        "anomalies": findings.read["anomalies"],
        "dead_letters": findings.read["dead"],
        "tombstones": kinds.count("tombstone"),
        "seconds": round(seconds, 1),
    }
    for violation in fleet.violations:
        say(f"VIOLATED: {violation}")
    for what, text in findings.examples:
        if exact or what != "duplicated":
            say(f"{what}: {text[:600]}")
    (options.dir / "report.json").write_text(
        json.dumps(report | {"violations": fleet.violations, "examples": findings.examples}, indent=1)
    )
    return report


if __name__ == "__main__":
    main()
