#!/usr/bin/env python3
"""Checks residuald for memory growth: runs it on Apache Kafka and prints its resident size after each million records.

    benches/peers/soak.py [--records N] [--set KEY=VALUE ...]

Fails if the median size in the last tenth of the run differs by more than 5 % from that in the second tenth, or if a
record has no outcome. `make bench-peers` sets everything up.
"""

import argparse
import statistics
import sys
import time
import urllib.request
from pathlib import Path

import broker
import measure
from contenders import Contender, residuald
from kafka.admin import NewTopic

AT_ONCE = 1_000_000
LISTEN = "127.0.0.1:19465"
# Limits each partition, so that the disk does not fill. Unread records are a small part of this.
RETENTION = {"retention.bytes": str(1 << 29), "segment.bytes": str(1 << 27)}
MOST_DRIFT = 0.05


def resident(pid):
    """The resident size of a process in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def metric(name):
    with urllib.request.urlopen(f"http://{LISTEN}/metrics") as page:
        lines = page.read().decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith(f"{name} "))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=50_000_000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for residuald run")
    options = parser.parse_args()

    def command(*arguments):
        settings = [f"http.listen={LISTEN}", *options.set]
        return [*residuald(*arguments), *(f"--set={setting}" for setting in settings)]

    with broker.started() as kafka:
        kafka.create("dead-letters")
        kafka.admin.create_topics([NewTopic("in", broker.PARTITIONS, 1, topic_configs=RETENTION)])
        kafka.create("out")
        began, sizes = time.monotonic(), []
        with measure.running(kafka, Contender(command), "soak", "in", "out") as run:
            run.wait("joining the group", lambda: kafka.joined("soak", 1), measure.START)
            for sent in range(AT_ONCE, options.records + 1, AT_ONCE):
                feed = measure.load(kafka, "in", AT_ONCE)
                run.wait("the load", lambda feed=feed: feed.poll() is not None, measure.PATIENCE)
                caught_up = sent - AT_ONCE if sent < options.records else sent
                run.wait("judging", lambda n=caught_up: metric("residuald_records_scored_total") >= n, measure.PATIENCE)
                sizes.append(resident(run.processes[0].pid))
                rate = sent / (time.monotonic() - began)
                print(f"{sent:>12,} records, {rate:,.0f} records/s: {sizes[-1]:.0f} MiB", flush=True)
            unaccounted = metric("residuald_records_unaccounted")
            run.stop()
    tenth = max(1, len(sizes) // 10)
    early, late = statistics.median(sizes[tenth : 2 * tenth] or sizes), statistics.median(sizes[-tenth:])
    print(f"resident MiB: second tenth {early:.1f}, last tenth {late:.1f}, maximum {max(sizes):.1f}")
    print(f"records without an outcome: {unaccounted}")
    sys.exit(1 if abs(late / early - 1) > MOST_DRIFT or unaccounted else 0)


if __name__ == "__main__":
    main()
