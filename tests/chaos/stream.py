"""The input: the shipped sample, repeated, with bad records and tombstones at known positions; and its producer."""

import gzip
import json
import threading
import time
from dataclasses import dataclass

from cluster import ROOT
from kafka import KafkaProducer

SAMPLE = ROOT / "models/payments/sample.ndjson.gz"
BUNDLE = ROOT / "models/payments"
# Distances between bad records and between tombstones. They are primes, so that every record of the sample is hit.
BAD_EVERY = 997
TOMBSTONE_EVERY = 1499
# The reason that the dead letter must name, and a function that spoils a good record in this way.
BAD = (
    ("malformed", lambda good: good[:-20]),
    ("malformed", lambda good: b"\xff\xfe" + good),
    ("wrong_type", lambda good: good.replace(b'"amount":', b'"amount":"a lot","_":', 1)),
    ("out_of_range", lambda good: good.replace(b'"amount":', b'"amount":1e39,"_":', 1)),
    ("missing", lambda good: good.replace(b'"amount":', b'"_":', 1)),
    ("duplicate", lambda good: good.replace(b'"amount":', b'"amount":1.0,"amount":', 1)),
)


@dataclass(frozen=True)
class Record:
    kind: str  # good, tombstone, or the reason why it is bad
    line: int  # line number in the sample
    key: bytes
    value: bytes | None
    headers: list
    timestamp: int


class Records:
    """The records of the stream by number. The same number always gives the same record."""

    def __init__(self, count):
        self.count = count
        self.lines = gzip.decompress(SAMPLE.read_bytes()).splitlines()
        self.keys = [json.loads(line)["card_id"].encode() for line in self.lines]
        # Timestamps lie in the past, a millisecond apart. They identify records, because verdicts carry them.
        self.first_timestamp = int(time.time() * 1000) - count

    def __getitem__(self, n):
        line = n % len(self.lines)
        key, value, timestamp = self.keys[line], self.lines[line], self.first_timestamp + n
        kind = self.kind(n)
        if kind == "good":
            return Record(kind, line, key, value, [], timestamp)
        headers = [("n", str(n).encode()), ("empty", b""), ("binary", bytes(range(256)))]
        if kind == "tombstone":
            return Record(kind, line, key, None, headers, timestamp)
        _, spoil = BAD[n // BAD_EVERY % len(BAD)]
        return Record(kind, line, key, spoil(value), headers, timestamp)

    @staticmethod
    def kind(n):
        if n % BAD_EVERY == BAD_EVERY // 2:
            return BAD[n // BAD_EVERY % len(BAD)][0]
        return "tombstone" if n % TOMBSTONE_EVERY == TOMBSTONE_EVERY // 2 else "good"


class Stream(threading.Thread):
    """Produces every record, never far ahead of the group's commits, and notes at which offset each was stored.

    `limit()` returns how many records may be produced by now.
    """

    def __init__(self, bootstrap, topic, partitions, records, rate, limit):
        super().__init__(name="stream", daemon=True)
        self.bootstrap, self.topic, self.records, self.rate, self.limit = bootstrap, topic, records, rate, limit
        # The number of the record by partition and offset.
        self.placed = [[] for _ in range(partitions)]
        self.acknowledged = 0
        self.failure = None
        self.stopped = threading.Event()
        self.producer = None

    def partitions(self):
        """The partitions of the topic that the producer knows."""
        return self.producer.partitions_for(self.topic)

    def run(self):
        self.producer = producer = KafkaProducer(
            bootstrap_servers=self.bootstrap,
            enable_idempotence=True,
            acks="all",
            linger_ms=10,
            batch_size=1 << 16,
            compression_type="lz4",
            delivery_timeout_ms=600_000,
            # So that the producer soon writes to new partitions.
            metadata_max_age_ms=1000,
        )
        try:
            self.send_all(producer)
            producer.flush()
        except Exception as e:
            self.failure = self.failure or e
        finally:
            producer.close(timeout=30)

    def send_all(self, producer):
        started = time.monotonic()
        for n in range(self.records.count):
            while n >= self.limit() or (self.rate and n > (time.monotonic() - started) * self.rate):
                if self.stopped.is_set():
                    return
                time.sleep(0.01)
            if self.failure or self.stopped.is_set():
                return
            r = self.records[n]
            sent = producer.send(self.topic, r.value, r.key, r.headers, timestamp_ms=r.timestamp)
            sent.add_callback(self.put, n).add_errback(self.failed)

    def put(self, n, where):
        while len(self.placed) <= where.partition:
            self.placed.append([])
        placed = self.placed[where.partition]
        # A retried batch may be acknowledged after a batch with higher offsets.
        placed.extend([None] * (where.offset + 1 - len(placed)))
        if placed[where.offset] is not None:
            self.failed(RuntimeError(f"records {placed[where.offset]} and {n} were both acknowledged at {where}"))
        placed[where.offset] = n
        self.acknowledged += 1

    def failed(self, error):
        self.failure = self.failure or error

    def ends(self):
        return {partition: len(placed) for partition, placed in enumerate(self.placed)}
