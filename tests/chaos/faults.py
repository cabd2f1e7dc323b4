"""Injects the faults. Each function returns once its fault is over."""

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster import Cluster, wait_for
from daemons import TOPICS, Fleet
from stream import Stream

# Number of partitions that the fault `partitions` adds.
ADDED = 2


@dataclass
class World:
    """The systems that faults act on, and how often each kind has struck."""

    cluster: Cluster
    fleet: Fleet
    stream: Stream | None = None
    done: dict = field(default_factory=dict)

    def strike(self, fault):
        FAULTS[fault.kind](self, fault)
        self.done[fault.kind] = self.done.get(fault.kind, 0) + 1

    @contextmanager
    def trouble(self):
        """Marks a fault as active. Until a while after it, a daemon that is stopped may fail to drain cleanly."""
        self.fleet.troubles += 1
        try:
            yield
        finally:
            self.fleet.troubles -= 1
            self.fleet.trouble_ended = time.monotonic()


def kill(world, fault):
    """Kills a daemon with SIGKILL, after waiting for it to run."""
    slot = world.fleet[fault.target]
    wait_for(f"daemon {fault.target} to run", lambda: slot.signal(signal.SIGKILL, expected=-signal.SIGKILL))


def stop(world, fault):
    """Suspends a daemon with SIGSTOP and resumes it.

    `stop` lasts longer than the session timeout and `freeze` less. `sleep` lasts longer than every timeout of the group
    and of transactions.
    """
    slot = world.fleet[fault.target]
    with world.trouble():
        wait_for(f"daemon {fault.target} to be ready", slot.ready)
        if slot.signal(signal.SIGSTOP):
            time.sleep(fault.seconds)
            slot.signal(signal.SIGCONT)


def term(world, fault):
    """Stops a daemon with SIGTERM. It must drain and exit with 0 in time."""
    world.fleet[fault.target].terminate()


def rolling(world, fault):
    """Restarts every daemon with SIGTERM, one after the other. Each is ready again before the next one stops."""
    for slot in world.fleet.slots:
        before = slot.process
        slot.terminate()
        wait_for(
            f"daemon {slot.number} to be back", lambda slot=slot, old=before: slot.process is not old and slot.ready()
        )


def brokers(world, fault):
    """Restarts every broker, one after the other. The next one stops when all replicas are in sync again."""
    with world.trouble():
        for broker in range(1, world.cluster.brokers + 1):
            world.cluster.kafka_sh("stop-broker", broker)
            world.cluster.kafka_sh("start-broker", broker)
            world.cluster.await_in_sync(list(TOPICS.values()))


def crash(world, fault):
    """Kills a broker with SIGKILL and starts it again after a while."""
    with world.trouble():
        world.cluster.kafka_sh("kill", fault.target)
        time.sleep(fault.seconds)
        world.cluster.kafka_sh("start-broker", fault.target)
        world.cluster.await_in_sync(list(TOPICS.values()))


def network(world, fault):
    """Makes the network between the brokers and one daemon, or all, reset connections, drop bytes or be slow."""
    client = world.fleet[fault.target].client if fault.target else "*"
    with world.trouble():
        world.cluster.proxy.set(fault.mode, client)
        time.sleep(fault.seconds)
        world.cluster.proxy.set("pass", client)


def clock(world, fault):
    """Moves the wall clock of a daemon, which stays there until the next clock fault."""
    slot = world.fleet[fault.target]
    slot.clock.shift(fault.mode)

    def jumped():
        off = slot.days_off()
        return off is not None and abs(off - int(fault.mode[:-1])) < 0.1

    wait_for(f"the clock of daemon {fault.target} to be off by {fault.mode}", jumped)


def disk(world, fault):
    """Fills a broker's disk, so that the broker exits, and starts it again once there is space."""
    cluster, broker = world.cluster, fault.target
    small = cluster.disks[broker]
    with world.trouble():
        try:
            wait_for(f"the disk of broker {broker} to be full", small.fill)
            wait_for(f"broker {broker} to exit because its disk is full", lambda: not cluster.runs(broker))
            time.sleep(fault.seconds)
        finally:
            small.make_room()
        cluster.kafka_sh("start-broker", broker)
        cluster.await_in_sync(list(TOPICS.values()))


def partitions(world, fault):
    """Adds partitions to the input topic and waits until the producer knows them."""
    known = len(world.stream.partitions())
    world.cluster.add_partitions(TOPICS["in"], known + ADDED)
    wait_for("the producer to know the new partitions", lambda: len(world.stream.partitions()) == known + ADDED)


FAULTS = {
    "kill": kill,
    "stop": stop,
    "freeze": stop,
    "term": term,
    "rolling": rolling,
    "brokers": brokers,
    "crash": crash,
    "network": network,
    "sleep": stop,
    "clock": clock,
    "disk": disk,
    "partitions": partitions,
}
