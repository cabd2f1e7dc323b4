"""Does delivery hold while everything around it breaks?

A stream goes through residuald on three brokers of a real Apache Kafka while daemons are killed, stopped and restarted,
brokers go and come, the network fails, clocks jump and disks are full, by a plan that a seed gives. Then every record
produced is looked for.

    .venv/bin/python tests/chaos --records 100000 --kills 10 --delivery exactly-once --seed 7

Standard error tells what happens; the last line of standard output is one JSON object: produced, lost, duplicated,
reordered, kills and more. Ends with 0 if the guarantee held: nothing lost, nothing reordered, nothing with another
content than it should have, and with exactly-once nothing duplicated.
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
import disk
from cluster import ROOT, Cluster, missing_tools
from daemons import GROUP, GROUPS, TOPICS, Fleet
from faults import ADDED, World
from kafka import TopicPartition
from plan import LANES, make_plan, parse_faults
from stream import Records, Stream
from verify import Findings, expected_verdicts, verify

BROKERS = 3
PARTITIONS = 6
# No commit for so long, with records waiting and no fault at work, is a daemon that hangs.
STALLED = 180  # seconds
TELL_EVERY = 5  # seconds
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
    report = run(options, plan)
    print(json.dumps(report))
    sys.exit(not report["held"])


def without_missing(plan):
    """The faults that can be done here."""
    for kind, missing in {"clock": clock.missing, "disk": disk.missing}.items():
        if any(fault.kind == kind for fault in plan) and (why := missing()):
            say(f"!!! SKIPPED the fault {kind}: {why}")
            if os.environ.get("RESIDUALD_TEST_STRICT"):
                sys.exit(1)
            plan = [fault for fault in plan if fault.kind != kind]
    return plan


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10, help="kill -9 of a daemon")
    parser.add_argument("--delivery", choices=["exactly-once", "at-least-once"], default="exactly-once")
    parser.add_argument("--seed", type=int, default=0, help="of the plan (0)")
    parser.add_argument("--daemons", type=int, default=2)
    parser.add_argument("--group", choices=GROUPS, default="cooperative", help="how replicas share (cooperative)")
    parser.add_argument("--session", type=float, default=3, help="the group's session timeout in seconds (3)")
    parser.add_argument("--faults", default=",".join(LANES), help=f"kind[:count],... (all kinds: {' '.join(LANES)})")
    parser.add_argument("--rate", type=float, default=0, help="records a second, at most (as fast as they are judged)")
    parser.add_argument("--dir", type=Path, default=ROOT / "target/chaos", help="for logs (target/chaos)")
    parser.add_argument("--residuald", type=Path, default=built_last(), help="the binary (release or debug, the newer)")
    parser.add_argument("--plan-only", action="store_true", help="show the plan and end")
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
        show = Show(options, plan, world, records)
        try:
            seconds = show.go_on()
        finally:
            fleet.kill()
        say("reading what came out")
        findings = Findings()
        if show.stream.failure is None:
            findings = verify(cluster.bootstrap, records, show.stream.placed, expected)
        for what, text in findings.examples:
            say(f"{what}: {text[:300]}")
        if findings.lost:
            say("what kcat reads is kept for a second opinion")
            keep_for_a_second_opinion(cluster.bootstrap, options.dir)
    return result(options, show, findings, seconds)


def keep_for_a_second_opinion(bootstrap, folder):
    """Scores as another client sees them, committed and all, since the cluster goes away: partition, offset, id."""
    for isolation in ("read_committed", "read_uncommitted"):
        command = ["kcat", "-b", ",".join(bootstrap), "-C", "-e", "-q", "-t", TOPICS["scores"], "-f", "%p %o %h\\n"]
        with open(folder / f"scores-{isolation}.txt", "w") as out:
            subprocess.run([*command, "-X", f"isolation.level={isolation}"], stdout=out, check=False)


class Show:
    """The stream, the faults and the daemons, side by side."""

    def __init__(self, options, plan, world, records):
        self.options, self.world, self.records = options, world, records
        self.lanes = {lane: [f for f in plan if f.lane == lane] for lane in dict.fromkeys(LANES.values())}
        # The next fault of each lane; the stream does not go past them.
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

    def go_on(self):
        """Until all is produced, all is committed and every fault is over; returns how long it took."""
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
        """Keeps the count of what is committed; gives up when nothing is for too long."""
        moved, told = time.monotonic(), 0.0
        while True:
            committed = self.committed()
            total = sum(max(0, offset) for offset in committed.values())
            now = time.monotonic()
            if total != self.done or self.world.fleet.troubles:
                moved = now
            self.done = total
            if now - told > TELL_EVERY:
                told = now
                say(f"{self.stream.acknowledged} produced, {total} committed, {self.world.done}")
                self.world.fleet.scrape()
            if self.stream.failure:
                self.world.fleet.violation(f"the harness' producer failed: {self.stream.failure!r}")
                return
            finished = not self.stream.is_alive() and not any(lane.is_alive() for lane in lanes)
            if finished and committed == self.stream.ends():
                return
            if now - moved > STALLED:
                self.world.fleet.violation(f"stalled: no commit for {STALLED} s at {committed}, {self.stream.ends()}")
                return
            time.sleep(0.2)

    def committed(self):
        # They become more where some are added.
        partitions = range(len(self.stream.placed))
        offsets = self.world.cluster.committed(GROUP, [TopicPartition(TOPICS["in"], p) for p in partitions])
        return {p: max(0, offsets.get(p, 0)) for p in partitions}

    def check_commits(self):
        """The group's last word; what an ended daemon leaves open may take a moment."""
        if (committed := self.committed()) != self.stream.ends():
            self.world.fleet.violation(f"committed {committed}, produced up to {self.stream.ends()}")
        due = PARTITIONS + ADDED * self.world.done.get("partitions", 0)
        used = sum(1 for placed in self.stream.placed if placed)
        if used < due and self.stream.failure is None:
            self.world.fleet.violation(f"records went to {used} partitions of {due}: a longer stream is needed")


def result(options, show, findings, seconds):
    fleet = show.world.fleet
    exact = options.delivery == "exactly-once"
    # Only a daemon whose clock is wrong may leave a time out.
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
    if not report["held"]:
        say(f"the daemons' logs are in {options.dir}")
    (options.dir / "report.json").write_text(
        json.dumps(report | {"violations": fleet.violations, "examples": findings.examples}, indent=1)
    )
    return report


if __name__ == "__main__":
    main()
