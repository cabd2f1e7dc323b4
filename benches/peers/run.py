#!/usr/bin/env python3
"""residuald beside other consumers on one Apache Kafka: the same topic, the same bundle, the same anomalies.

    benches/peers/run.py [--records N] [--rounds N] [--seconds S] [--only NAME] [--fast]

Each contender in turn, another one first in each round, takes a backlog of the sample's payments in a group of its
own, and then a steady load at half of the rate that it reached, and at one rate for all. Broker, load, contender and
this script share the machine. Writes benches/results.json and benches/RESULTS.md. `make bench-peers` sets up.
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
# How far a score may be off in another runtime, and so how near to the threshold a record may be judged otherwise.
TOLERANCE = 1e-4


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def slug(name, *more):
    return "-".join([name.lower().replace(",", "").replace(" ", "-"), *map(str, more)])


def in_turn(names, number):
    """Another one first in each round."""
    first = number % len(names)
    return names[first:] + names[:first]


class Bench:
    def __init__(self, kafka, names, options):
        self.kafka, self.names, self.options = kafka, names, options
        self.filled, self.failures, self.lateness = {}, [], {}

    def records(self, contender):
        return int(self.options.records * contender.share)

    def topic(self, records):
        """A backlog of so many, filled when it is first wanted."""
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
        """-> {scorer: its backlog}"""
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
    """Both must have flagged the same records of those before `ends`, but for one that is at the threshold, and for a
    share of `may_miss` of ours -> the share that they missed."""
    ours = {place: score for place, score in ours.items() if place[1] < ends[place[0]]}
    missed = ours.keys() - theirs.keys()
    if len(missed) > may_miss * len(ours):
        missed = set()
    for place in (ours.keys() ^ theirs.keys()) - missed:
        score = ours.get(place) or theirs[place]
        if abs(score / threshold - 1) > TOLERANCE:
            raise broker.StuckError(f"record {place} with score {score} was flagged by one only")
    for place in ours.keys() & theirs.keys():
        if abs(theirs[place] / ours[place] - 1) > TOLERANCE:
            raise broker.StuckError(f"record {place} has the scores {ours[place]} and {theirs[place]}")
    return len(missed) / len(ours)


def quality():
    """Of the bundle and of the DDPM, on the labelled sample."""
    import ddpm
    from contenders import DDPM

    command = [RESIDUALD, "score", BUNDLE / "sample.ndjson.gz", "--bundle", BUNDLE, "--label", "label", "--json"]
    bundle = json.loads(subprocess.run(command, check=True, capture_output=True, env=ENVIRONMENT).stdout)["labelled"]
    return {"bundle": bundle, "DDPM": ddpm.quality(DDPM)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=2_000_000, help="of the fastest; slower ones get a share")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=20, help="of steady load, after 5 that are not counted")
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), metavar="NAME", help=", ".join(CONTENDERS))
    parser.add_argument("--fast", action="store_true", help="one short round, to see that all works; writes nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and end what was started
    if options.fast:
        options.records, options.rounds = 100_000, 1
    with broker.started() as kafka:
        kafka.create("dead-letters")
        bench = Bench(kafka, options.only or list(CONTENDERS), options)
        # Once for nothing: the broker's own code is compiled by then.
        bench.backlog("warm-up", ["Python, two processes"])
        rounds, heavier = [], []
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            rounds.append(bench.round(number))
            heavier.append({} if options.only or options.fast else bench.heavier(number))
        if dead := sum(kafka.ends("dead-letters").values()):
            bench.failures.append(f"{dead} dead letters")
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
