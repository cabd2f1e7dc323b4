"""The faults. Each returns once it is over."""

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from cluster import Cluster, wait_for
from daemons import TOPICS, Fleet


@dataclass
class World:
    """What faults are done to."""

    cluster: Cluster
    fleet: Fleet
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
    """Stands still, `stop` for longer than its session, `freeze` for less, then goes on as if nothing had been."""
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


FAULTS = {
    "kill": kill,
    "stop": stop,
    "freeze": stop,
    "term": term,
    "rolling": rolling,
    "brokers": brokers,
    "crash": crash,
    "network": network,
}
