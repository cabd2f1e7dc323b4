"""Starts an Apache Kafka for the benches; manages its topics and reads groups, verdicts and append times."""

import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
from confluent_kafka import Consumer, TopicPartition
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4


class StuckError(RuntimeError):
    """A contender or the load generator failed, timed out or produced wrong results."""


@contextlib.contextmanager
def started():
    """Starts one broker. Afterwards it is stopped and its data is deleted."""
    with tempfile.TemporaryDirectory(prefix="residuald-peers-") as directory:

        def kafka(*arguments):
            command = [ROOT / "tests/kafka/kafka.sh", *arguments, "--dir", directory]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        try:
            yield Broker(kafka("start", "--while-pid", str(os.getpid())).splitlines()[-1])
        finally:
            kafka("stop")


class Broker:
    def __init__(self, address):
        self.address = address
        self.admin = KafkaAdminClient(bootstrap_servers=address)

    def create(self, topic):
        """Creates a topic. Timestamps are send times in topics called `in…` and append times in all others."""
        kind = "CreateTime" if topic.startswith("in") else "LogAppendTime"
        self.admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs={"message.timestamp.type": kind})])

    def delete(self, *topics):
        self.admin.delete_topics(list(topics))

    def ends(self, topic):
        """{partition: end offset}, the offset after the last message."""
        with self.reader() as reader:
            return {p: reader.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(PARTITIONS)}

    def lag(self, group, topic, ends):
        """The number of messages before the offsets `ends` that the group has not committed."""
        committed = self.admin.list_group_offsets({group: None})[group]
        done = {place.partition: found.offset for place, found in committed.items() if place.topic == topic}
        return sum(end - max(done.get(partition, 0), 0) for partition, end in ends.items())

    def joined(self, group, members):
        """Whether the group has `members` members and each partition is assigned to one of them."""
        found = self.admin.describe_groups([group])[group]
        if found["group_state"] != "Stable":
            return False
        given = [
            sum(len(topic["partitions"]) for topic in member["member_assignment"]["assigned_partitions"])
            for member in found["members"]
        ]
        return len(given) == members and sum(given) == PARTITIONS and all(given)

    def read(self, topic):
        """Yields all messages of a topic as (partition, offset, timestamp in Unix milliseconds, value)."""
        ends = self.ends(topic)
        with self.reader() as reader:
            reader.assign([TopicPartition(topic, partition, 0) for partition in ends])
            left, deadline = sum(ends.values()), time.monotonic() + 120
            while left:
                if time.monotonic() > deadline:
                    raise StuckError(f"{left} messages of topic {topic} were not read within 120 s")
                for message in reader.consume(10_000, 0.1):
                    if message.error():
                        raise StuckError(f"{topic}: {message.error()}")
                    left -= 1
                    yield message.partition(), message.offset(), message.timestamp()[1], message.value()

    def sent(self, topic):
        """{partition: int64 array, indexed by offset, of the Unix milliseconds at which each message was sent}."""
        times = {p: np.zeros(end, np.int64) for p, end in self.ends(topic).items()}
        for partition, offset, sent, _ in self.read(topic):
            times[partition][offset] = sent
        return times

    def verdicts(self, topic):
        """[((partition, offset) of the record, score, append time in Unix milliseconds)], sorted by append time."""
        found = []
        for _, _, appended, payload in self.read(topic):
            verdict = orjson.loads(payload)
            place = verdict["id"].partition("@")[0].rsplit("-", 2)[1:]
            found.append((tuple(map(int, place)), verdict["anomaly_score"], appended))
        return sorted(found, key=lambda verdict: verdict[2])

    @contextlib.contextmanager
    def reader(self):
        settings = {"group.id": "reader", "enable.auto.commit": False, "fetch.queue.backoff.ms": 5}
        reader = Consumer({"bootstrap.servers": self.address} | settings)
        try:
            yield reader
        finally:
            reader.close()
