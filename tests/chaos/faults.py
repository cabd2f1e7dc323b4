"""The faults. Each returns once it is over."""

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster import Cluster, wait_for
from daemons import TOPICS, Fleet
from stream import Stream

# Partitions that one fault adds.
ADDED = 2


@dataclass
class World:
    """What faults are done to."""

    cluster: Cluster
    fleet: Fleet
    stream: Stream | None = None
    done: dict = field(default_factory=dict)

    def strike(self, fault):
        FAULTS[fault.kind](self, fault)
        self.done[fault.kind] = self.done.get(fault.kind, 0) + 1

    @contextmanager
    def trouble(self):
        """While it lasts, and for a while after, a daemon that stops may fail to drain."""
        self.fleet.troubles += 1
        try:
            yield
        finally:
            self.fleet.troubles -= 1
            self.fleet.trouble_ended = time.monotonic()


def kill(world, fault):
    """kill -9; one that is just being started is waited for."""
    slot = world.fleet[fault.target]
    wait_for(f"daemon {fault.target} to run", lambda: slot.signal(signal.SIGKILL, expected=-signal.SIGKILL))


def stop(world, fault):
    """Stands still, then goes on as if nothing had been: `stop` for longer than its session, `freeze` for less, `sleep`
    for longer than every interval that the group or a transaction knows."""
    slot = world.fleet[fault.target]
    with world.trouble():
        wait_for(f"daemon {fault.target} to be ready", slot.ready)
        if slot.signal(signal.SIGSTOP):
            time.sleep(fault.seconds)
            slot.signal(signal.SIGCONT)


def term(world, fault):
    """SIGTERM: it has to drain and end with 0 in time."""
    world.fleet[fault.target].terminate()


def rolling(world, fault):
    """Every daemon in turn is asked to stop, and is back before the next."""
    for slot in world.fleet.slots:
        before = slot.process
        slot.terminate()
        wait_for(
            f"daemon {slot.number} to be back", lambda slot=slot, old=before: slot.process is not old and slot.ready()
        )


def brokers(world, fault):
    """Every broker in turn is asked to stop and started again, the next when all replicas are in sync."""
    with world.trouble():
        for broker in range(1, world.cluster.brokers + 1):
            world.cluster.kafka_sh("stop-broker", broker)
            world.cluster.kafka_sh("start-broker", broker)
            world.cluster.await_in_sync(list(TOPICS.values()))


def crash(world, fault):
    """kill -9 of a broker, which stays away for a while."""
    with world.trouble():
        world.cluster.kafka_sh("kill", fault.target)
        time.sleep(fault.seconds)
        world.cluster.kafka_sh("start-broker", fault.target)
        world.cluster.await_in_sync(list(TOPICS.values()))


def network(world, fault):
    """The way between one daemon, or all, and the brokers is cut, swallows bytes or is slow."""
    client = world.fleet[fault.target].client if fault.target else "*"
    with world.trouble():
        world.cluster.proxy.set(fault.mode, client)
        time.sleep(fault.seconds)
        world.cluster.proxy.set("pass", client)


def clock(world, fault):
    """The wall clock of a daemon jumps, and stays there until the next jump."""
    slot = world.fleet[fault.target]
    slot.clock.shift(fault.mode)

    def jumped():
        off = slot.days_off()
        return off is not None and abs(off - int(fault.mode[:-1])) < 0.1

    wait_for(f"the clock of daemon {fault.target} to be off by {fault.mode}", jumped)


def disk(world, fault):
    """A broker's disk is full; Kafka then ends. It is started again once there is room."""
    cluster, broker = world.cluster, fault.target
    small = cluster.disks[broker]
    with world.trouble():
        try:
            wait_for(f"the disk of broker {broker} to be full", small.fill)
            wait_for(f"broker {broker} to end since its disk is full", lambda: not cluster.runs(broker))
            time.sleep(fault.seconds)
        finally:
            small.make_room()
        cluster.kafka_sh("start-broker", broker)
        cluster.await_in_sync(list(TOPICS.values()))


def partitions(world, fault):
    """The input topic gets more partitions, and the producer writes to them."""
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
