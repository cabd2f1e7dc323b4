#!/usr/bin/env python3
"""The hand-tuned Python peer: confluent-kafka in batches, orjson, and ONNX Runtime with one thread per process.

    python_consumer.py BUNDLE BROKERS GROUP TOPIC ANOMALIES

Runs until SIGTERM. Delivery is at least once: offsets are committed after all verdicts before them are delivered.
"""

import signal
import sys
import time

import orjson
from confluent_kafka import Consumer, Producer, TopicPartition
from scoring import Bundle

BATCH, WAIT = 1024, 0.005  # `consume` returns after this many records or seconds, whichever comes first
COMMIT = 1.0


def delivered(error, _):
    """Raises delivery errors. librdkafka calls this when the producer is polled or flushed, so before a commit."""
    if error:
        raise RuntimeError(error)


class Peer:
    def __init__(self, bundle, brokers, group, topic, anomalies):
        self.bundle, self.topic, self.anomalies = Bundle(bundle), topic, anomalies
        self.done = {}  # partition -> the last offset that was judged and not yet committed
        self.running = True
        common = {"bootstrap.servers": brokers}
        self.producer = Producer(
            common | {"enable.idempotence": True, "linger.ms": 5, "compression.type": "lz4"} | {"message.timeout.ms": 0}
        )
        self.consumer = Consumer(
            common
            | {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
            # Milliseconds to wait before refilling a full local queue. The default of 1000 halves the throughput.
            | {"fetch.queue.backoff.ms": 5, "heartbeat.interval.ms": 500}
        )
        self.consumer.subscribe([topic], on_revoke=lambda *_: self.commit())

    def commit(self):
        if self.done:
            self.producer.flush()
            offsets = [TopicPartition(self.topic, partition, last + 1) for partition, last in self.done.items()]
            self.consumer.commit(offsets=offsets, asynchronous=False)
            self.done = {}

    def judge(self, messages):
        rows, judged = [], []
        row, loads = self.bundle.row, orjson.loads
        for message in messages:
            try:
                rows.append(row(loads(message.value())))
                judged.append(message)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if message.error():
                    raise RuntimeError(message.error()) from None
                self.send("dead-letters", message.value(), message.key(), {"error": repr(error)})
        if rows:
            score, residual, expected = self.bundle.score(rows)
            for i in self.bundle.flagged(score):
                message = judged[i]
                place = message.topic(), message.partition(), message.offset()
                verdict = self.bundle.verdict(*place, message.value(), rows[i], score[i], residual[i], expected[i])
                self.send(self.anomalies, verdict, message.key())
        self.done |= {message.partition(): message.offset() for message in messages}

    def send(self, topic, value, key, headers=None):
        while True:
            try:
                return self.producer.produce(topic, value, key, headers=headers, on_delivery=delivered)
            except BufferError:
                self.producer.poll(0.01)

    def run(self):
        committed = time.monotonic()
        while self.running:
            messages = self.consumer.consume(BATCH, WAIT)
            if messages:
                self.judge(messages)
            self.producer.poll(0)
            if time.monotonic() - committed > COMMIT:
                self.commit()
                committed = time.monotonic()
        self.commit()
        self.consumer.close()

    def stop(self, *_):
        self.running = False


if __name__ == "__main__":
    peer = Peer(*sys.argv[1:])
    signal.signal(signal.SIGTERM, peer.stop)
    peer.run()
