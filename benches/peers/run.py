#!/usr/bin/env python3
"""Compares residuald with other consumers on one Apache Kafka: same topic, same bundle, same anomalies.

    benches/peers/run.py [--records N] [--rounds N] [--seconds S] [--only NAME] [--fast]

In each round every contender reads a backlog of the sample's payments in its own consumer group. It then gets a steady
load at half of the rate that it reached, and one at a rate common to all. Each round starts with a different contender.
Broker, load generator, contender and this script share the machine. Writes benches/results.json and
benches/RESULTS.md. `make bench-peers` sets everything up.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback

import broker
import measure
import report
from contenders import BUNDLE, CONTENDERS, ENVIRONMENT, HEAVIER, RESIDUALD, with_scorer
from scoring import Bundle
from versions import machine, versions

RESULTS = broker.ROOT / "benches"
# Largest relative difference between the scores of two runtimes. Records this close to the threshold may differ.
TOLERANCE = 1e-4


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def slug(name, *more):
    return "-".join([name.lower().replace(",", "").replace(" ", "-"), *map(str, more)])


def in_turn(names, number):
    """Rotates `names`, so that each round starts with a different one."""
    first = number % len(names)
    return names[first:] + names[:first]


class Bench:
    def __init__(self, kafka, names, options):
        self.kafka, self.names, self.options = kafka, names, options
        self.filled, self.failures, self.lateness = {}, [], {}

    def records(self, contender):
        return int(self.options.records * contender.share)

    def topic(self, records):
        """The topic with a backlog of `records` records, filled on first use."""
        if records not in self.filled:
            say(f"filling a topic with {records:,} records")
            self.filled[records] = f"in-{records}"
            measure.fill(self.kafka, self.filled[records], records)
        return self.filled[records]

    def attempt(self, name, what, run, *arguments):
        try:
            return run(*arguments)
        except broker.StuckError as trouble:
            say(f"FAILED {name}, {what}: {trouble}")
            lines = str(trouble).rstrip().splitlines()
            self.failures.append(f"{name}, {what}: " + " ".join(dict.fromkeys([lines[0], lines[-1]])))
        except Exception as error:
            traceback.print_exc()
            self.failures.append(f"{name}, {what}: {error!r}")

    def backlog(self, number, order, contenders=CONTENDERS, bundle=BUNDLE):
        runs, scores = {}, {}
        threshold = Bundle(bundle).threshold
        for name in order:
            contender = contenders[name]
            records = self.records(contender)
            topic, group = self.topic(records), slug(name, bundle.name, number)
            measured = self.attempt(name, "backlog", measure.throughput, self.kafka, contender, group, topic, records)
            if measured:
                runs[name], scores[name] = measured
                run = runs[name]
                say(f"{name}: {run['rate']:,.0f} records/s, {run['cpu']:.1f} µs, {run['memory']:.0f} MiB")
        if "residuald" in scores:
            for name, found in scores.items():
                contender = contenders[name]
                if contender.flags == "anomalies":
                    ends = self.kafka.ends(self.topic(self.records(contender)))
                    sets = scores["residuald"], found, ends, threshold, contender.misses
                    missed = self.attempt(name, "agreement", agree, *sets)
                    if contender.misses and missed is not None:
                        runs[name]["missed"] = missed
        return runs

    def heavier(self, number):
        """Measures the backlog with the slower scorers -> {scorer: {contender: its run}}."""
        runs = {}
        for scorer, bundle in HEAVIER.items():
            say(f"with {scorer}")
            contenders = with_scorer(bundle)
            runs[scorer] = self.backlog(number, in_turn(list(contenders), number), contenders, bundle)
        return runs

    def late(self, number, order, runs, what, rates):
        warm_up, seconds = (2, 5) if self.options.fast else (5, self.options.seconds)
        for name in order:
            if name not in runs or name not in rates:
                continue
            group, rate = slug(name, number, what), rates[name]
            what_for = f"at {rate:,.0f} records/s"
            load = self.kafka, CONTENDERS[name], group, rate, seconds, warm_up
            measured = self.attempt(name, what_for, measure.latency, *load)
            if measured:
                late, busy = measured
                runs[name][what] = report.percentiles(late) | {"rate": rate, "busy": busy}
                self.lateness.setdefault((name, what), []).extend(late)
                p = runs[name][what]
                say(f"{name} at {rate:,.0f}/s: p50 {p['p50']:.0f}, p99 {p['p99']:.0f}, p99.9 {p['p99.9']:.0f} ms")

    def round(self, number):
        order = in_turn(self.names, number)
        runs = self.backlog(number, order)
        own = {name: run["rate"] / 2 for name, run in runs.items()}
        bundled = {name: rate for name, rate in own.items() if CONTENDERS[name].flags == "anomalies"}
        self.late(number, order, runs, "own", own)
        self.late(number, order, runs, "common", dict.fromkeys(bundled, min(bundled.values(), default=0)))
        return runs


def agree(ours, theirs, ends, threshold, may_miss):
    """Checks that two contenders flagged the same records before the offsets `ends` -> the share of ours they missed.

    `ours` and `theirs` map (partition, offset) to a score. They may differ in records within TOLERANCE of the
    threshold, and `theirs` may lack a share `may_miss` of ours. Raises StuckError otherwise, or if scores differ.
    """
    ours = {place: score for place, score in ours.items() if place[1] < ends[place[0]]}
    missed = ours.keys() - theirs.keys()
    if len(missed) > may_miss * len(ours):
        missed = set()
    for place in (ours.keys() ^ theirs.keys()) - missed:
        score = ours.get(place) or theirs[place]
        if abs(score / threshold - 1) > TOLERANCE:
            raise broker.StuckError(f"only one of the two contenders flagged record {place} with score {score}")
    for place in ours.keys() & theirs.keys():
        if abs(theirs[place] / ours[place] - 1) > TOLERANCE:
            raise broker.StuckError(
                f"the scores {ours[place]} and {theirs[place]} of record {place} differ by more than {TOLERANCE}"
            )
    return len(missed) / len(ours)


def quality():
    """Detection metrics of the bundle and of the DDPM on the labelled sample."""
    import ddpm
    from contenders import DDPM

    command = [RESIDUALD, "score", BUNDLE / "sample.ndjson.gz", "--bundle", BUNDLE, "--label", "label", "--json"]
    bundle = json.loads(subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT).stdout)["labelled"]
    return {"bundle": bundle, "DDPM": ddpm.quality(DDPM)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--records",
        type=int,
        default=2_000_000,
        help="records for the fast contenders; slow ones get a fraction (default 2000000)",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=int, default=20, help="seconds of steady load, after a warm-up of 5 (default 20)"
    )
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), metavar="NAME", help=", ".join(CONTENDERS))
    parser.add_argument("--fast", action="store_true", help="run one short round as a smoke test; writes no files")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # runs the cleanup
    if options.fast:
        options.records, options.rounds = 100_000, 1
    with broker.started() as kafka:
        kafka.create("dead-letters")
        bench = Bench(kafka, options.only or list(CONTENDERS), options)
        # A warm-up, in which the broker's JVM compiles its code.
        bench.backlog("warm-up", ["Python, two processes"])
        rounds, heavier = [], []
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            rounds.append(bench.round(number))
            heavier.append({} if options.only or options.fast else bench.heavier(number))
        if dead := sum(kafka.ends("dead-letters").values()):
            bench.failures.append(f"{dead} records became dead letters; expected none")
    results = {
        "machine": machine(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "records": options.records,
        "seconds": options.seconds,
        "failures": bench.failures,
        "quality": quality(),
        "rounds": rounds,
        "heavier": heavier,
        "latency": {f"{name}, {what}": report.percentiles(late) for (name, what), late in bench.lateness.items()},
    }
    page = report.page(results)
    print(page)
    if not options.fast:
        (RESULTS / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        (RESULTS / "RESULTS.md").write_text(page)
    sys.exit(1 if bench.failures else 0)


if __name__ == "__main__":
    main()
