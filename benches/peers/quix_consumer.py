#!/usr/bin/env python3
"""The Quix Streams peer. The contender with two processes starts this script twice.

    quix_consumer.py BUNDLE BROKERS GROUP TOPIC ANOMALIES

Runs until SIGTERM. Quix calls user code for single records, so a sink collects the batches. Quix flushes sinks before
it commits offsets, which gives at-least-once delivery. Scoring each record in `apply` was slower.
"""

import sys
import time

import orjson
from quixstreams import Application
from quixstreams.sinks import BaseSink
from scoring import Bundle

BATCH, WAIT = 256, 0.005  # most records in a batch, and seconds that its first record may wait for others
COMMIT = 1.0


def delivered(error, _):
    """Raises delivery errors. librdkafka calls this when the producer is polled or flushed, so before a commit."""
    if error:
        raise RuntimeError(error)


class Scorer(BaseSink):
    def __init__(self, bundle, producer, anomalies):
        super().__init__()
        self.bundle, self.producer, self.anomalies = bundle, producer, anomalies
        self.waiting, self.since = [], 0.0

    def add(self, value, key, timestamp, headers, topic, partition, offset):
        payload, row = value
        now = time.monotonic()
        if not self.waiting:
            self.since = now
        self.waiting.append((row, payload, key, (topic, partition, offset)))
        if len(self.waiting) >= BATCH or now - self.since > WAIT:
            self.judge()

    def judge(self):
        score, residual, expected = self.bundle.score([row for row, *_ in self.waiting])
        for i in self.bundle.flagged(score):
            row, payload, key, place = self.waiting[i]
            verdict = self.bundle.verdict(*place, payload, row, score[i], residual[i], expected[i])
            self.producer.produce(self.anomalies, verdict, key, on_delivery=delivered)
        self.producer.poll(0)
        self.waiting = []

    def flush(self):
        if self.waiting:
            self.judge()
        self.producer.flush()


def main():
    bundle, brokers, group, topic, anomalies = sys.argv[1:]
    bundle = Bundle(bundle)
    app = Application(
        brokers,
        consumer_group=group,
        auto_offset_reset="earliest",
        commit_interval=COMMIT,
        consumer_poll_timeout=WAIT,
        consumer_extra_config={"fetch.queue.backoff.ms": 5, "heartbeat.interval.ms": 500},
        producer_extra_config={"linger.ms": 5, "compression.type": "lz4", "message.timeout.ms": 0},
        auto_create_topics=False,
        loglevel="WARNING",
    )
    row, loads = bundle.row, orjson.loads

    def read(payload):
        return payload, row(loads(payload))

    with app.get_producer() as producer:
        records = app.dataframe(app.topic(topic, value_deserializer="bytes", key_deserializer="bytes"))
        records.apply(read).sink(Scorer(bundle, producer, anomalies))
        app.run()


if __name__ == "__main__":
    main()
