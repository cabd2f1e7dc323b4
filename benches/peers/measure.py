"""Runs one contender once and measures its throughput on a backlog or its latency at a steady load."""

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from broker import StuckError
from contenders import ENVIRONMENT, PEERS, PYTHON
from kafka.errors import KafkaError

TICK = os.sysconf("SC_CLK_TCK")
# The shares of a backlog's verdicts between which its rate is timed. This leaves out startup, joining the group and
# warm-up, and the last batches, when some threads are already idle.
FROM, TO = 0.25, 0.95
PATIENCE, START = 300, 60  # timeouts in seconds for reading a backlog and for all members to join the group


class Running:
    """The processes of a contender, with samples of their CPU time and memory."""

    def __init__(self, commands):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.processes = [
            subprocess.Popen(command, stdout=self.log, stderr=self.log, env=ENVIRONMENT) for command in commands
        ]
        self.spent, self.memory = [], {}
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)
        self.watcher.start()

    def watch(self):
        while not self.ended.wait(0.05):
            # A process may exit between two samples. The main thread reports that.
            with contextlib.suppress(OSError, StopIteration, IndexError):
                cpu = sum(cpu_seconds(process.pid) for process in self.processes)
                self.spent.append((time.time(), cpu))
                for process in self.processes:
                    self.memory[process.pid] = peak_memory(process.pid)

    def check(self):
        for process in self.processes:
            if process.poll() is not None:
                raise StuckError(
                    f"a process of the contender exited with status {process.returncode}; the end of its log:\n"
                    + self.tail()
                )

    def wait(self, what, ready, patience):
        deadline, trouble = time.monotonic() + patience, ""
        while time.monotonic() < deadline:
            self.check()
            try:
                if ready():
                    return
            except KafkaError as error:  # the coordinator of the first group takes a while to start
                trouble = f" ({error})"
            time.sleep(0.2)
        raise StuckError(f"{what} took more than {patience} s{trouble}; the end of the log:\n{self.tail()}")

    def stop(self):
        """Stops the processes with SIGTERM. Kills one that takes more than a minute, and raises StuckError."""
        self.ended.set()
        self.watcher.join()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise StuckError(
                    f"a process did not exit within a minute of SIGTERM; the end of its log:\n{self.tail()}"
                ) from None

    def kill(self):
        self.ended.set()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.log.close()

    def cpu_between(self, start, end):
        """CPU seconds between two Unix times, interpolated between samples."""
        times, cpu = zip(*self.spent, strict=True)
        return float(np.interp(end, times, cpu) - np.interp(start, times, cpu))

    def tail(self):
        self.log.seek(0)
        return "".join(self.log.readlines()[-15:])


def cpu_seconds(pid):
    """User and system time of a process with all its threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def machine_ticks():
    """(busy, idle) time of all cores since boot, in clock ticks."""
    user, nice, system, idle, wait, *more = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return user + nice + system + sum(more), idle + wait


def peak_memory(pid):
    """The peak resident size of a process in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


@contextlib.contextmanager
def running(broker, contender, group, topic, anomalies):
    command = list(map(str, contender.command(broker.address, group, topic, anomalies)))
    run = Running([command] * contender.processes)
    try:
        yield run
    finally:
        run.kill()


def load(broker, topic, records, *rate):
    command = [PYTHON, PEERS / "load.py", broker.address, topic, str(records), *map(str, rate)]
    return subprocess.Popen(list(map(str, command)))


def fill(broker, topic, records):
    broker.create(topic)
    if load(broker, topic, records).wait() != 0:
        raise StuckError(f"load.py failed to fill topic {topic} (see above)")


def throughput(broker, contender, name, topic, records):
    """Measures a contender on a backlog -> (metrics, {(partition, offset): score}).

    The metrics are `rate` (records per second), `cpu` (µs per record), `memory` (MiB), and the numbers of `verdicts`
    and of `repeated` verdicts.
    """
    anomalies = f"out-{name}"
    broker.create(anomalies)
    ends = broker.ends(topic)
    with running(broker, contender, name, topic, anomalies) as run:
        run.wait("reading the topic", lambda: broker.lag(name, topic, ends) == 0, PATIENCE)
        run.stop()
        if left := broker.lag(name, topic, ends):
            raise StuckError(f"{left} records are not committed after SIGTERM")
        verdicts = broker.verdicts(anomalies)
        broker.delete(anomalies)
        first, last = int(FROM * len(verdicts)), int(TO * len(verdicts)) - 1
        start, end = (verdicts[i][2] / 1e3 for i in (first, last))
        timed = records * (last - first) / len(verdicts)
        scores = {place: score for place, score, _ in verdicts}
        return {
            "rate": timed / (end - start),
            "cpu": run.cpu_between(start, end) / timed * 1e6,
            "memory": sum(run.memory.values()),
            "verdicts": len(scores),
            "repeated": len(verdicts) - len(scores),
        }, scores


def latency(broker, contender, name, rate, seconds, warm_up):
    """Measures a contender at `rate` records per second -> (latencies, busy share of the machine's CPU).

    A latency is the number of milliseconds from sending a record to the append of its verdict.
    """
    topic, anomalies = f"in-{name}", f"out-{name}"
    broker.create(topic)
    broker.create(anomalies)
    records = int(rate * (warm_up + seconds))
    with running(broker, contender, name, topic, anomalies) as run:
        run.wait("joining the group", lambda: broker.joined(name, contender.members), START)
        feed, before = load(broker, topic, records, rate), machine_ticks()
        try:
            run.wait("the load", lambda: feed.poll() is not None, warm_up + seconds + 30)
            busy, idle = (after - start for after, start in zip(machine_ticks(), before, strict=True))
        finally:
            feed.kill()
        if feed.returncode != 0:
            raise StuckError(f"load.py failed at {rate:,.0f} records/s (see above)")
        ends = broker.ends(topic)
        run.wait("reading the rest of the load", lambda: broker.lag(name, topic, ends) == 0, 60)
        run.stop()
        sent, late = broker.sent(topic), []
        began = min(times[0] for times in sent.values()) + 1000 * warm_up
        for (partition, offset), _, appended in broker.verdicts(anomalies):
            at = sent[partition][offset]
            if at >= began:
                late.append(int(appended - at))
        broker.delete(topic, anomalies)
        return late, busy / (busy + idle)
