#!/usr/bin/env python3
"""Compares the throughput of exactly-once and at-least-once delivery on a real Apache Kafka.

    benches/delivery.py [--records N] [--rounds N] [--brokers N] [--window 100ms] [--every-verdict] [--set KEY=VALUE]

A topic is filled first. In each round, a daemon of each kind then reads the whole topic in its own consumer group.
Prints one line per round and at the end one JSON line: the records per second of both kinds, and each round's ratio.
Compare the ratios, not the rates: both halves of a round ran under the same load of the machine.
Needs `make build kafka` and Java.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESIDUALD = ROOT / "target/release/residuald"
KAFKA = ROOT / "tests/kafka/kafka.sh"
SAMPLE = ROOT / "models/payments/sample.ndjson.gz"
SAMPLE_RECORDS = 20_000
PARTITIONS = 4
TOPICS = ("in", "anomalies", "scores", "dead-letters")
KINDS = ("at-least-once", "exactly-once")


def kafka(directory: Path, *arguments: str) -> str:
    command = [KAFKA, *arguments, "--dir", directory]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def cluster(brokers: int):
    with tempfile.TemporaryDirectory(prefix="residuald-delivery-") as directory:
        started = kafka(Path(directory), "start", "--brokers", str(brokers))
        try:
            for topic in TOPICS:
                kafka(Path(directory), "topic", "create", topic, "--partitions", str(PARTITIONS))
            yield started.splitlines()[-1]
        finally:
            kafka(Path(directory), "stop")


def fill(brokers: str, times: int) -> None:
    for _ in range(times):
        command = [RESIDUALD, "produce", SAMPLE, "--topic", "in", "--brokers", brokers]
        subprocess.run([*command, "--key", "card_id", "--json"], check=True, stdout=subprocess.PIPE)


def status(address: str) -> dict:
    with urllib.request.urlopen(f"http://{address}/status", timeout=10) as answer:
        return json.load(answer)["records"]


def records_per_second(settings: list[str], records: int) -> float:
    """Throughput of one daemon, measured from the first consumed record until all `records` are scored."""
    flags = [part for setting in settings for part in ("--set", setting)]
    with tempfile.TemporaryFile("w+") as log:
        command = [RESIDUALD, "run", *flags]
        daemon = subprocess.Popen(command, stderr=log)
        try:
            address = await_address(daemon, log)
            started = None
            while True:
                if daemon.poll() is not None:
                    log.seek(0)
                    sys.exit(f"the daemon exited before it had scored {records} records. Its log: {log.read()}")
                counts = status(address)
                now = time.monotonic()
                if started is None and counts["consumed"] > 0:
                    started, at_start = now, counts["scored"]
                if counts["scored"] >= records:
                    return (records - at_start) / (now - started)
                time.sleep(0.02)
        finally:
            daemon.terminate()
            daemon.wait(60)


def await_address(daemon: subprocess.Popen, log) -> str:
    while daemon.poll() is None:
        log.seek(0)
        for line in log:
            if "address=" in line:
                return line.rsplit("address=", 1)[1].split()[0]
        time.sleep(0.05)
    log.seek(0)
    sys.exit(f"the daemon exited before it logged its HTTP address. Its log: {log.read()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--records", type=int, default=400_000, help="records to score, rounded up to a multiple of 20,000"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--brokers", type=int, default=1)
    parser.add_argument("--window", default="100ms", help="kafka.transaction_window")
    parser.add_argument("--every-verdict", action="store_true", help="publish scores of normal records too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for both kinds")
    options = parser.parse_args()
    times = -(-options.records // SAMPLE_RECORDS)
    records = times * SAMPLE_RECORDS
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with cluster(options.brokers) as brokers:
        fill(brokers, times)
        for number in range(options.rounds):
            # The order alternates, so that a trend in the machine's load favours neither kind.
            for kind in KINDS if number % 2 == 0 else reversed(KINDS):
                settings = [
                    f"kafka.brokers={brokers}",
                    "kafka.topics=in",
                    f"kafka.group_id={kind}-{number}",
                    f"kafka.delivery={kind}",
                    f"kafka.transaction_window={options.window}",
                    f"model.bundle={json.dumps(str(ROOT / 'models/payments'))}",
                    "http.listen=127.0.0.1:0",
                    *(["output.scores_topic=scores"] if options.every_verdict else []),
                    *options.set,
                ]
                rates[kind].append(records_per_second(settings, records))
            least, exactly = (rates[kind][-1] for kind in KINDS)
            print(f"round {number + 1}: {least:,.0f} and {exactly:,.0f} records/s, {exactly / least:.3f}", flush=True)
    ratios = [exactly / least for least, exactly in zip(*(rates[kind] for kind in KINDS), strict=True)]
    result = {
        "records": records,
        "rounds": options.rounds,
        "brokers": options.brokers,
        "window": options.window,
        "every_verdict": options.every_verdict,
        "at_least_once_records_per_second": round(statistics.median(rates["at-least-once"])),
        "exactly_once_records_per_second": round(statistics.median(rates["exactly-once"])),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
