"""A real Apache Kafka cluster. Daemons reach it through a proxy, and the test itself reaches it directly."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from disk import SmallDisk
from kafka import KafkaAdminClient
from kafka.admin import NewTopic
from kafka.errors import InvalidPartitionsError, KafkaError, TopicAlreadyExistsError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KAFKA = ROOT / "tests/kafka/kafka.sh"
RETRY = 0.5  # seconds


class Cluster:
    """A context manager that runs the brokers and the proxy; gives access to topics and the group's offsets."""

    def __init__(self, folder, brokers):
        self.folder = folder
        self.brokers = brokers
        # {broker: its disk}, for brokers whose disk can be filled up.
        self.disks = {}

    def __enter__(self):
        base = free_ports(self.brokers)
        own = ("--brokers", self.brokers, "--proxied", base, "--while-pid", os.getpid())
        self.bootstrap = self.kafka_sh("start", *own).split()[-1].split(",")
        self.proxied = ",".join(f"127.0.0.1:{base + i}" for i in range(self.brokers))
        self.proxy = Proxy(self.folder / "proxied")
        self.admin = self.new_admin()
        return self

    def __exit__(self, *_):
        self.proxy.end()
        self.admin.close()
        self.kafka_sh("stop")
        for disk in self.disks.values():
            disk.unmount()

    def kafka_sh(self, *arguments):
        command = [KAFKA, *map(str, arguments), "--dir", self.folder]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"kafka.sh {' '.join(map(str, arguments))} failed with exit status {done.returncode}")
        return done.stdout

    def new_admin(self):
        return patient(lambda: KafkaAdminClient(bootstrap_servers=self.bootstrap, request_timeout_ms=5000))

    def create_topics(self, names, partitions):
        topics = [NewTopic(name, num_partitions=partitions, replication_factor=self.brokers) for name in names]
        # A broker has just been moved to a small disk. Attempts may fail meanwhile, or succeed but lose their response.
        with contextlib.suppress(TopicAlreadyExistsError):
            patient(lambda: self.admin.create_topics(topics), but=TopicAlreadyExistsError)
        self.await_in_sync(names)

    def add_partitions(self, topic, total):
        admin = self.new_admin()
        try:
            # An earlier attempt may have succeeded, although its response was lost with its broker.
            with contextlib.suppress(InvalidPartitionsError):
                patient(lambda: admin.create_partitions({topic: total}), but=InvalidPartitionsError)
        finally:
            admin.close()
        self.await_in_sync([topic])

    def put_on_small_disk(self, broker):
        """Moves a broker without topics to a disk that can be filled up."""
        data = self.folder / f"data-{broker}"
        disk = self.disks[broker] = SmallDisk(self.folder / f"disk-{broker}")
        self.kafka_sh("stop-broker", broker)
        subprocess.run(["cp", "-a", "--sparse=always", f"{data}/.", disk.folder], check=True)
        shutil.rmtree(data)
        data.symlink_to(disk.folder)
        self.kafka_sh("start-broker", broker)

    def runs(self, broker):
        """Whether the broker's process still runs. It may have exited by itself."""
        pid = (self.folder / f"server-{broker}.pid").read_text().strip()
        try:
            return f"server-{broker}.properties" in Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return False

    def await_in_sync(self, names, patience=120):
        """Waits until every replica is in sync, so that the next broker may stop."""

        # A client of its own, because a request to a stopped broker may block it for long.
        admin = self.new_admin()

        def in_sync():
            described = patient(lambda: admin.describe_topics(names))
            partitions = [p for topic in described for p in topic["partitions"]]
            return partitions and all(len(p["isr_nodes"]) == self.brokers for p in partitions)

        try:
            wait_for("all replicas to be in sync", in_sync, patience)
        finally:
            admin.close()

    def committed(self, group, partitions):
        """{partition: offset} that the group has committed; -1 if it has committed none."""

        def ask():
            try:
                return self.admin.list_group_offsets({group: partitions})
            except KafkaError:
                # The client keeps asking a coordinator that is gone, so use a new one.
                self.admin.close()
                self.admin = self.new_admin()
                raise

        answer = patient(ask)
        return {tp.partition: meta.offset for tp, meta in answer[group].items()}


class Proxy:
    """Runs proxy.py in a separate process, so that it does not compete with the test for Python's lock."""

    def __init__(self, listeners):
        command = [sys.executable, HERE / "proxy.py", listeners]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.confirmed()

    def set(self, mode, client="*"):
        self.process.stdin.write(f"{mode} {client}\n")
        self.process.stdin.flush()
        self.confirmed()

    def confirmed(self):
        if self.process.stdout.readline() != "ok\n":
            raise RuntimeError("the proxy exited (see above)")

    def end(self):
        self.process.kill()
        self.process.wait()


def free_ports(count):
    """The first of `count` consecutive ports that are free at the moment."""
    while True:
        base = random.SystemRandom().randrange(20_000, 30_000)
        held = []
        try:
            held = [socket.create_server(("127.0.0.1", base + i)) for i in range(count)]
            return base
        except OSError:
            continue
        finally:
            for own in held:
                own.close()


def patient(question, patience=120, but=()):
    """Calls `question`, and retries for `patience` seconds while it raises KafkaError, except errors of type `but`."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return question()
        except KafkaError as error:
            if isinstance(error, but) or time.monotonic() > deadline:
                raise
            time.sleep(RETRY)


def wait_for(what, found, patience=120):
    deadline = time.monotonic() + patience
    while not (answer := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {patience} s while waiting for {what}")
        time.sleep(0.1)
    return answer


def missing_tools(binary):
    """Tells the user what to install for this test; None if nothing is missing."""
    if not binary.exists():
        return "build residuald (`make build`)"
    if not shutil.which("java"):
        return "install java (`make tools`; Debian: openjdk-17-jre-headless)"
    if not (ROOT / ".kafka/libs").exists() and not shutil.which("mvn"):
        return "install Maven and Apache Kafka (`make tools kafka`)"
    return None
