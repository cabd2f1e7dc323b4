#!/usr/bin/env python3
"""The sample into a topic, again and again, as fast as the broker takes it or at a steady rate.

load.py BROKERS TOPIC RECORDS [RATE]
"""

import gzip
import sys
import time
from pathlib import Path

import orjson
from confluent_kafka import Producer

SAMPLE = Path(__file__).resolve().parents[2] / "models/payments/sample.ndjson.gz"
PACE = 0.001  # seconds: a steady rate is kept in steps of this
# Milliseconds. At 1 load and broker would need twice the CPU, at 5, librdkafka's default, the load itself would be
# a good part of the latency.
LINGER = 2
AT_ONCE, QUEUE = 1000, 50_000  # records; librdkafka's own limit is 100,000


def main():
    brokers, topic, records, *rate = sys.argv[1:]
    records, rate = int(records), float(rate[0]) if rate else None
    with gzip.open(SAMPLE) as lines:
        sample = [{"value": line.rstrip(), "key": orjson.loads(line)["card_id"]} for line in lines]
    settings = {"enable.idempotence": True, "linger.ms": LINGER}
    producer = Producer({"bootstrap.servers": brokers} | settings)
    producer.list_topics(topic)  # connected before the clock starts
    began, sent = time.monotonic(), 0
    while sent < records:
        if rate:
            time.sleep(PACE)
        due = int((time.monotonic() - began) * rate) if rate else sent + AT_ONCE
        due = min(due, records, sent + AT_ONCE)
        first = sent % len(sample)
        batch = sample[first : first + due - sent]
        if batch and producer.produce_batch(topic, batch) != len(batch):
            sys.exit("the producer's queue is full")
        sent += len(batch)
        producer.poll(0)
        while len(producer) > QUEUE:
            producer.poll(0.01)
    producer.flush()
    if rate and (late := time.monotonic() - began - records / rate) > 0.5:
        sys.exit(f"the load came {late:.1f} s late: this machine cannot make {rate:,.0f} records/s")


if __name__ == "__main__":
    main()
