"""Compares the output with the input, record by record, without any code of residuald's daemon or of librdkafka.

Reads committed messages with kafka-python, which is pure Python. The expected verdicts come from `residuald score` on
the sample file, which does not use Kafka.
"""

import json
import struct
import subprocess
from array import array
from collections import Counter
from dataclasses import dataclass, field

from cluster import patient, wait_for
from daemons import ALARM_RATE, TOPICS, environment
from kafka import KafkaConsumer, TopicPartition
from stream import BUNDLE, SAMPLE

EXAMPLES = 10
# Time to wait until the broker aborts abandoned transactions; librdkafka's default timeout is a minute.
OPEN_TRANSACTION = 120  # seconds
CONNECT = "__connect.errors."
OMITTED = "residuald.omitted"


@dataclass
class Repeats:
    """Records of one input partition with a second message in one output partition."""

    topic: str
    count: int
    # The first and the last such record: its (partition, offset), and that of its first and of its repeated message.
    first: tuple
    last: tuple


@dataclass
class Findings:
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    # Messages with wrong content, and messages that should not exist.
    wrong: int = 0
    # Messages that declare that they lack their timestamp, because their topic would have refused it.
    timeless: int = 0
    # Number of messages in each topic, including repeats.
    read: Counter = field(default_factory=Counter)
    examples: list = field(default_factory=list)
    # Repeats by topic, input partition and output partition of the repeated message.
    repeats: dict = field(default_factory=dict)

    def repeated(self, topic, source, before, now):
        where, what = (topic, source[0], now[0]), (source, before, now)
        known = self.repeats.setdefault(where, Repeats(topic, 0, what, what))
        known.count, known.last = known.count + 1, what

    def found(self, what, text):
        setattr(self, what, getattr(self, what) + 1)
        if sum(1 for kind, _ in self.examples if kind == what) < EXAMPLES:
            self.examples.append((what, text))


def expected_verdicts(binary):
    """The verdict of `residuald score` for each line of the sample."""
    command = [binary, "score", SAMPLE, "--bundle", BUNDLE, "--false-alarm-rate", str(ALARM_RATE), "--out", "-"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"residuald score failed with exit status {done.returncode}: {done.stderr}")
    verdicts = []
    for line in done.stdout.splitlines():
        if line.startswith('{"record":'):
            verdict = json.loads(line)
            del verdict["record"]
            # The daemons are configured to give only one reason.
            verdict["relevant_attribution"] = verdict["relevant_attribution"][:1]
            verdicts.append(verdict)
    return verdicts


def verify(bootstrap, records, placed, expected):
    """Reads and checks all output -> Findings. `placed` holds the input record's number by partition and offset."""
    findings = Findings()
    topics = {
        "scores": Outcomes(findings, "scores", placed, lambda r: r.kind == "good"),
        "anomalies": Outcomes(
            findings, "anomalies", placed, lambda r: r.kind == "good" and expected[r.line]["severity"] is not None
        ),
        "dead": Outcomes(findings, "dead", placed, lambda r: r.kind not in ("good", "tombstone")),
    }
    for name, outcomes in topics.items():
        for message in read(bootstrap, TOPICS[name]):
            findings.timeless += leaves_time_out(message)
            source, differs = (dead_letter if name == "dead" else verdict)(message, records, placed, expected)
            outcomes.add(message, source, differs, records)
        outcomes.count_lost(records)
    return findings


class Outcomes:
    """The messages of one output topic: which are due, and where each was seen first."""

    def __init__(self, findings, topic, placed, due):
        self.findings, self.topic, self.placed, self.due = findings, topic, placed, due
        # For each input partition and offset, the partition and offset of its message; -1 without a message.
        self.seen_in = [array("i", [-1]) * len(offsets) for offsets in placed]
        self.seen_at = [array("q", [-1]) * len(offsets) for offsets in placed]
        # Only first occurrences must be in order, because records are judged again after a crash.
        self.last = {}

    def add(self, message, source, differs, records):
        findings = self.findings
        findings.read[self.topic] += 1
        where = f"{self.topic}-{message.partition}-{message.offset} of {source}"
        if differs:
            findings.found("wrong", f"{where}: {differs}")
        if source is None:
            return
        partition, offset = source
        if not self.due(records[self.placed[partition][offset]]):
            findings.found("wrong", f"{where}: this record does not belong in this topic")
        before = self.seen_in[partition][offset], self.seen_at[partition][offset]
        now = message.partition, message.offset
        if before[0] >= 0:
            findings.found("duplicated", f"{where}, first {self.topic}-{before[0]}-{before[1]}")
            findings.repeated(self.topic, source, before, now)
            return
        self.seen_in[partition][offset], self.seen_at[partition][offset] = now
        way = partition, message.partition
        if offset < self.last.get(way, -1):
            findings.found("reordered", f"{where}: after {self.last[way]}")
        self.last[way] = max(offset, self.last.get(way, -1))

    def count_lost(self, records):
        for partition, seen in enumerate(self.seen_in):
            for offset, output in enumerate(seen):
                if output < 0 and self.due(records[self.placed[partition][offset]]):
                    self.findings.found("lost", f"{partition}-{offset} is not in {self.topic}")


def verdict(message, records, placed, expected):
    """Checks a verdict -> ((partition, offset) of its record, what is wrong); either may be None.

    The first is None if the record was never produced, the second if the verdict is correct.
    """
    body = json.loads(message.value)
    source, headers = body.pop("source"), dict(message.headers)
    place = placed_at(placed, source["topic"], source["partition"], source["offset"])
    if place is None:
        return None, f"the source {source} was never produced"
    record = records[placed[place[0]][place[1]]]
    identity, model = body.pop("id"), body.pop("model")
    body.pop("time")
    due = expected[record.line]
    for what, is_right in {
        "key": message.key == record.key,
        "timestamp": message.timestamp == record.timestamp or leaves_time_out(message),
        "id": identity == f"{source['topic']}-{place[0]}-{place[1]}@{model['sha256'][:8]}",
        "ce_id": headers.get("ce_id") == identity.encode(),
        "score": float32(body["anomaly_score"]) == float32(due["anomaly_score"]),
        "verdict": body == due,
    }.items():
        if not is_right:
            return place, f"its {what} differs from that of record {placed[place[0]][place[1]]}: {message.value}"
    return place, None


def dead_letter(message, records, placed, _expected):
    """The same for a dead letter, which must have the record's unchanged content and Kafka Connect's headers."""
    added = {k[len(CONNECT) :]: v.decode() for k, v in message.headers if k.startswith(CONNECT)}
    place = placed_at(placed, added.get("topic"), int(added.get("partition", -1)), int(added.get("offset", -1)))
    if place is None:
        return None, f"the source {added} was never produced"
    record = records[placed[place[0]][place[1]]]
    for what, is_right in {
        "key": message.key == record.key,
        "value": message.value == record.value,
        "timestamp": message.timestamp == record.timestamp or leaves_time_out(message),
        "headers": [h for h in message.headers if not h[0].startswith((CONNECT, OMITTED))] == record.headers,
        "reason": added.get("exception.class.name") == f"residuald.decode.{record.kind}",
    }.items():
        if not is_right:
            return place, f"its {what} differs from that of record {placed[place[0]][place[1]]}: {message}"
    return place, None


def leaves_time_out(message):
    """Whether the message's OMITTED header says that its timestamp was left out.

    The header's format is `timestamp, key: reason; value: reason`.
    """
    notes = dict(message.headers).get(OMITTED, b"").decode().split("; ")
    return any("timestamp" in note.partition(": ")[0].split(", ") for note in notes)


def placed_at(placed, topic, partition, offset):
    known = topic == TOPICS["in"] and 0 <= partition < len(placed) and 0 <= offset < len(placed[partition])
    return (partition, offset) if known else None


def float32(number):
    return struct.pack("<f", number)


def read(bootstrap, topic):
    """Yields every committed message of a topic, after waiting for open transactions to end."""
    consumer = consumer_of(bootstrap, "read_committed")
    try:
        partitions = [TopicPartition(topic, p) for p in sorted(patient(lambda: consumer.partitions_for_topic(topic)))]
        ends = wait_for(
            f"the open transactions in {topic} to end",
            lambda: stable_ends(bootstrap, consumer, partitions),
            OPEN_TRANSACTION,
        )
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        while any(consumer.position(p) < ends[p] for p in partitions):
            for messages in consumer.poll(timeout_ms=500).values():
                yield from messages
    finally:
        consumer.close()


def stable_ends(bootstrap, consumer, partitions):
    """{partition: end offset}, or None while a transaction is open; then the isolation levels see different ends."""
    other = consumer_of(bootstrap, "read_uncommitted")
    try:
        ends = patient(lambda: other.end_offsets(partitions))
    finally:
        other.close()
    return ends if patient(lambda: consumer.end_offsets(partitions)) == ends else None


def consumer_of(bootstrap, isolation):
    return patient(
        lambda: KafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level=isolation,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_poll_records=5000,
            fetch_max_bytes=32 << 20,
            max_partition_fetch_bytes=4 << 20,
        )
    )
