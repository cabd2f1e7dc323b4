#!/usr/bin/env python3
"""The load generator: writes the sample repeatedly into a topic, at full speed or at a steady rate.

load.py BROKERS TOPIC RECORDS [RATE]
"""

import gzip
import sys
import time
from pathlib import Path

import orjson
from confluent_kafka import Producer

SAMPLE = Path(__file__).resolve().parents[2] / "models/payments/sample.ndjson.gz"
PACE = 0.001  # seconds between two batches at a steady rate
# Milliseconds. At 1, load generator and broker would need twice the CPU. At 5, librdkafka's default, lingering would be
# a large part of the measured latency.
LINGER = 2
AT_ONCE, QUEUE = 1000, 50_000  # records; librdkafka's own limit is 100,000


def main():
    brokers, topic, records, *rate = sys.argv[1:]
    records, rate = int(records), float(rate[0]) if rate else None
    with gzip.open(SAMPLE) as lines:
        sample = [{"value": line.rstrip(), "key": orjson.loads(line)["card_id"]} for line in lines]
    settings = {"enable.idempotence": True, "linger.ms": LINGER}
    producer = Producer({"bootstrap.servers": brokers} | settings)
    producer.list_topics(topic)  # connects before the clock starts
    began, sent = time.monotonic(), 0
    while sent < records:
        if rate:
            time.sleep(PACE)
        due = int((time.monotonic() - began) * rate) if rate else sent + AT_ONCE
        due = min(due, records, sent + AT_ONCE)
        first = sent % len(sample)
        batch = sample[first : first + due - sent]
        if batch and producer.produce_batch(topic, batch) != len(batch):
            sys.exit(f"load.py: the producer's queue is full at {len(producer)} messages")
        sent += len(batch)
        producer.poll(0)
        while len(producer) > QUEUE:
            producer.poll(0.01)
    producer.flush()
    if rate and (late := time.monotonic() - began - records / rate) > 0.5:
        sys.exit(f"load.py: finished {late:.1f} s late; this machine is too slow or too busy for {rate:,.0f} records/s")


if __name__ == "__main__":
    main()
