#!/usr/bin/env python3
"""The sample into a topic, again and again, as fast as the broker takes it or at a steady rate.

load.py BROKERS TOPIC RECORDS [RATE]
"""

import gzip
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import orjson
from confluent_kafka import Producer

SAMPLE = Path(__file__).resolve().parents[2] / "models/payments/sample.ndjson.gz"
# The rest of the second is slept away in naps of a millisecond.
NAP = 0.001


def main():
    brokers, topic, records, *rate = sys.argv[1:]
    with gzip.open(SAMPLE) as lines:
        sample = [(line.rstrip(), orjson.loads(line)["card_id"]) for line in lines]
    producer = Producer(
        {
            "bootstrap.servers": brokers,
            "enable.idempotence": True,
            "linger.ms": 1 if rate else 50,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    producer.list_topics(topic)  # connected before the clock starts
    feed, sent, records = islice(cycle(sample), int(records)), 0, int(records)
    began = time.monotonic()
    while sent < records:
        due = min(records, int((time.monotonic() - began) * float(rate[0])) if rate else sent + 1000)
        for payload, key in islice(feed, due - sent):
            while True:
                try:
                    producer.produce(topic, payload, key)
                    break
                except BufferError:
                    producer.poll(0.01)
        sent = due
        producer.poll(0)
        if rate:
            time.sleep(NAP)
    producer.flush()
    late = time.monotonic() - began - records / float(rate[0]) if rate else 0
    if late > 0.5:
        sys.exit(f"the load came {late:.1f} s late: the machine cannot make {rate[0]} records/s")


if __name__ == "__main__":
    main()
