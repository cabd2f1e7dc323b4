"""An Apache Kafka for the bench, and what is asked of it: topics, groups, what a contender wrote and when."""

import contextlib
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson
from confluent_kafka import Consumer, ConsumerGroupState, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4


class Stuck(RuntimeError):
    """It did not get where it should in time."""


@contextlib.contextmanager
def started():
    """One broker; gone with all its data afterwards."""
    with tempfile.TemporaryDirectory(prefix="residuald-peers-") as directory:

        def kafka(*arguments):
            command = [ROOT / "tests/kafka/kafka.sh", *arguments, "--dir", directory]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        try:
            yield Broker(kafka("start").splitlines()[-1])
        finally:
            kafka("stop")


class Broker:
    def __init__(self, address):
        self.address = address
        self.admin = AdminClient({"bootstrap.servers": address})

    def create(self, topic):
        """Of its messages the time when the broker appended them is kept as well as, in `in…` alone, that of sending."""
        kind = "CreateTime" if topic.startswith("in") else "LogAppendTime"
        new = NewTopic(topic, PARTITIONS, config={"message.timestamp.type": kind})
        self.admin.create_topics([new])[topic].result()

    def delete(self, *topics):
        for done in self.admin.delete_topics(list(topics)).values():
            done.result()

    def ends(self, topic):
        """Offset behind the last message, by partition."""
        with self.reader() as reader:
            return {p: reader.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(PARTITIONS)}

    def lag(self, group, topic, ends):
        """Messages whose offset is not committed."""
        request = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, p) for p in ends])
        found = self.admin.list_consumer_group_offsets([request])[group].result().topic_partitions
        return sum(ends[p.partition] - max(p.offset, 0) for p in found)

    def joined(self, group, members):
        """Whether all of the group are there and share out all partitions."""
        found = self.admin.describe_consumer_groups([group])[group].result()
        given = [len(member.assignment.topic_partitions) for member in found.members]
        stable = found.state == ConsumerGroupState.STABLE
        return stable and len(given) == members and sum(given) == PARTITIONS and all(given)

    def read(self, topic):
        """Each message once, as (partition, offset, milliseconds since 1970, bytes)."""
        ends = self.ends(topic)
        with self.reader() as reader:
            reader.assign([TopicPartition(topic, partition, 0) for partition in ends])
            left, deadline = sum(ends.values()), time.monotonic() + 120
            while left:
                if time.monotonic() > deadline:
                    raise Stuck(f"{left} messages of {topic} could not be read")
                for message in reader.consume(10_000, 0.1):
                    if message.error():
                        raise Stuck(f"{topic}: {message.error()}")
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
