#!/usr/bin/env python3
"""Measures what output.restored_topic costs, on a real Apache Kafka.

    benches/restored.py BUNDLE RECORDS.ndjson --field NAME [--records N] [--rounds N] [--set KEY=VALUE]

BUNDLE has a generative part. RECORDS.ndjson has complete records, of which 0 %, 10 % and 100 % lose the top-level
field NAME. Choose a feature that the bundle allows to be missing: otherwise these records are dead letters and not
scored. Each of the three streams has a topic of its own, which is filled first. In each round, a daemon with and a
daemon without a restored topic read each stream. Prints one line per stream and round, and at the end one JSON line
with the ratios of the rates. Compare the ratios, not the rates: both halves of a round ran under the same load of the
machine. Needs `make build kafka` and Java.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import delivery

SHARES = (0.0, 0.1, 1.0)
OUTPUTS = ("anomalies", "dead-letters", "restored")


def topic(share: float) -> str:
    return f"in-{round(100 * share)}"


def fill(brokers: str, lines: list[str], field: str, share: float, records: int) -> None:
    """Sends `records` records, of which `share` lack the field."""
    with tempfile.NamedTemporaryFile("w", suffix=".ndjson") as file:
        for i, line in enumerate(itertools.islice(itertools.cycle(lines), records)):
            record = json.loads(line)
            if int((i + 1) * share) > int(i * share) and field not in record:
                sys.exit(f"record {i + 1} has no field {field}: give complete records")
            if int((i + 1) * share) > int(i * share):
                del record[field]
            file.write(json.dumps(record) + "\n")
        file.flush()
        command = [delivery.RESIDUALD, "produce", file.name, "--topic", topic(share), "--brokers", brokers, "--json"]
        subprocess.run(command, check=True, stdout=subprocess.PIPE)


def records_per_second(settings: list[str], records: int) -> float:
    """Throughput of one daemon, from the first consumed record until all have an outcome."""
    flags = [part for setting in settings for part in ("--set", setting)]
    with tempfile.TemporaryFile("w+") as log:
        daemon = subprocess.Popen([delivery.RESIDUALD, "run", *flags], stderr=log)
        try:
            address = delivery.await_address(daemon, log)
            started = None
            while daemon.poll() is None:
                counts, now = delivery.status(address), time.monotonic()
                finished = counts["scored"] + counts["dead_letters"]
                if started is None and counts["consumed"] > 0:
                    started, at_start = now, finished
                if finished >= records:
                    return (records - at_start) / (now - started)
                time.sleep(0.02)
            log.seek(0)
            sys.exit(f"the daemon exited before {records} records had an outcome. Its log: {log.read()}")
        finally:
            daemon.terminate()
            daemon.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--field", required=True, help="the top-level field that records lose")
    parser.add_argument("--records", type=int, default=20_000, help="records of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for both daemons")
    options = parser.parse_args()
    lines = options.data.read_text().splitlines()
    ratios: dict[float, list[float]] = {share: [] for share in SHARES}
    delivery.TOPICS = (*OUTPUTS, *map(topic, SHARES))
    with delivery.cluster(1) as brokers:
        for share in SHARES:
            fill(brokers, lines, options.field, share, options.records)
        for number, share in itertools.product(range(options.rounds), SHARES):
            rates = {}
            # The order alternates, so that a trend in the machine's load favours neither daemon.
            for restores in (False, True) if number % 2 == 0 else (True, False):
                settings = [
                    f"kafka.brokers={brokers}",
                    f"kafka.topics={topic(share)}",
                    f"kafka.group_id={topic(share)}-{restores}-{number}",
                    f"model.bundle={json.dumps(str(options.bundle.resolve()))}",
                    "http.listen=127.0.0.1:0",
                    *(["output.restored_topic=restored"] if restores else []),
                    *options.set,
                ]
                rates[restores] = records_per_second(settings, options.records)
            ratios[share].append(rates[True] / rates[False])
            told = f"{rates[False]:,.0f} records/s without and {rates[True]:,.0f} with a restored topic"
            print(f"round {number + 1}, {share:.0%} incomplete: {told}, {ratios[share][-1]:.3f}", flush=True)
    result = {"records": options.records, "rounds": options.rounds, "field": options.field}
    result["ratios"] = {topic(share): round(statistics.median(ratios[share]), 3) for share in SHARES}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
