"""An Apache Kafka for the bench, and what is asked of it: topics, groups, what a contender wrote and when."""

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
    """It did not get where it should in time."""


@contextlib.contextmanager
def started():
    """One broker; gone with all its data afterwards."""
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
        """Messages of `in…` keep the time of sending; all others have that of the broker's append."""
        kind = "CreateTime" if topic.startswith("in") else "LogAppendTime"
        self.admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs={"message.timestamp.type": kind})])

    def delete(self, *topics):
        self.admin.delete_topics(list(topics))

    def ends(self, topic):
        """Offset behind the last message, by partition."""
        with self.reader() as reader:
            return {p: reader.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(PARTITIONS)}

    def lag(self, group, topic, ends):
        """Messages whose offset is not committed."""
        committed = self.admin.list_group_offsets({group: None})[group]
        done = {place.partition: found.offset for place, found in committed.items() if place.topic == topic}
        return sum(end - max(done.get(partition, 0), 0) for partition, end in ends.items())

    def joined(self, group, members):
        """Whether all of the group are there and share out all partitions."""
        found = self.admin.describe_groups([group])[group]
        if found["group_state"] != "Stable":
            return False
        given = [
            sum(len(topic["partitions"]) for topic in member["member_assignment"]["assigned_partitions"])
            for member in found["members"]
        ]
        return len(given) == members and sum(given) == PARTITIONS and all(given)

    def read(self, topic):
        """Each message once, as (partition, offset, milliseconds since 1970, bytes)."""
        ends = self.ends(topic)
        with self.reader() as reader:
            reader.assign([TopicPartition(topic, partition, 0) for partition in ends])
            left, deadline = sum(ends.values()), time.monotonic() + 120
            while left:
                if time.monotonic() > deadline:
                    raise StuckError(f"{left} messages of {topic} could not be read")
                for message in reader.consume(10_000, 0.1):
                    if message.error():
                        raise StuckError(f"{topic}: {message.error()}")
                    left -= 1
                    yield message.partition(), message.offset(), message.timestamp()[1], message.value()

    def sent(self, topic):
        """When each message was sent: {partition: milliseconds by offset}."""
        times = {p: np.zeros(end, np.int64) for p, end in self.ends(topic).items()}
        for partition, offset, sent, _ in self.read(topic):
            times[partition][offset] = sent
        return times

    def verdicts(self, topic):
        """[((partition, offset) of the record, score, milliseconds when it was appended)], in the order of time."""
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
