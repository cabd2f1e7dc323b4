"""One contender, one run: how fast it takes a backlog, or how late its verdicts are at a rate."""

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
# Of a backlog's verdicts the first and the last are not timed: starting, joining the group and warming up, and the
# last batches, when some threads have nothing left to do.
FROM, TO = 0.25, 0.95
PATIENCE, START = 300, 60  # seconds for a backlog, and for the group to be complete; then it is killed


class Running:
    """The processes of a contender, and what they use."""

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
            # Gone between two looks: the main thread complains.
            with contextlib.suppress(OSError, StopIteration, IndexError):
                cpu = sum(cpu_seconds(process.pid) for process in self.processes)
                self.spent.append((time.time(), cpu))
                for process in self.processes:
                    self.memory[process.pid] = peak_memory(process.pid)

    def check(self):
        for process in self.processes:
            if process.poll() is not None:
                raise StuckError(f"a process ended with {process.returncode}:\n{self.tail()}")

    def wait(self, what, ready, patience):
        deadline, trouble = time.monotonic() + patience, ""
        while time.monotonic() < deadline:
            self.check()
            try:
                if ready():
                    return
            except KafkaError as error:  # the coordinator of the first group takes a while to be there
                trouble = f" ({error})"
            time.sleep(0.2)
        raise StuckError(f"{what} took more than {patience} s{trouble}:\n{self.tail()}")

    def stop(self):
        """As one does it to a service; what it then does not finish in a minute is killed."""
        self.ended.set()
        self.watcher.join()
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise StuckError(f"it did not end within a minute of SIGTERM:\n{self.tail()}") from None

    def kill(self):
        self.ended.set()
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.log.close()

    def cpu_between(self, start, end):
        """Seconds of CPU between two times since 1970."""
        times, cpu = zip(*self.spent, strict=True)
        return float(np.interp(end, times, cpu) - np.interp(start, times, cpu))

    def tail(self):
        self.log.seek(0)
        return "".join(self.log.readlines()[-15:])


def cpu_seconds(pid):
    """User and system time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def machine_seconds():
    """All cores: (busy, idle)."""
    user, nice, system, idle, wait, *more = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return user + nice + system + sum(more), idle + wait


def peak_memory(pid):
    """The most that was resident, in MiB."""
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
        raise StuckError(f"{topic} could not be filled")


def throughput(broker, contender, name, topic, records):
    """-> ({rate, cpu, memory, verdicts}, the scores by place)."""
    anomalies = f"out-{name}"
    broker.create(anomalies)
    ends = broker.ends(topic)
    with running(broker, contender, name, topic, anomalies) as run:
        run.wait("reading the topic", lambda: broker.lag(name, topic, ends) == 0, PATIENCE)
        run.stop()
        if left := broker.lag(name, topic, ends):
            raise StuckError(f"{left} records are not committed")
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
    """-> (milliseconds from sending a record to its verdict's append, one by one; share of the machine busy)."""
    topic, anomalies = f"in-{name}", f"out-{name}"
    broker.create(topic)
    broker.create(anomalies)
    records = int(rate * (warm_up + seconds))
    with running(broker, contender, name, topic, anomalies) as run:
        run.wait("joining the group", lambda: broker.joined(name, contender.members), START)
        feed, before = load(broker, topic, records, rate), machine_seconds()
        try:
            run.wait("the load", lambda: feed.poll() is not None, warm_up + seconds + 30)
            busy, idle = (after - start for after, start in zip(machine_seconds(), before, strict=True))
        finally:
            feed.kill()
        if feed.returncode != 0:
            raise StuckError("the load could not be made")
        ends = broker.ends(topic)
        run.wait("what was still on its way", lambda: broker.lag(name, topic, ends) == 0, 60)
        run.stop()
        sent, late = broker.sent(topic), []
        began = min(times[0] for times in sent.values()) + 1000 * warm_up
        for (partition, offset), _, appended in broker.verdicts(anomalies):
            at = sent[partition][offset]
            if at >= began:
                late.append(int(appended - at))
        broker.delete(topic, anomalies)
        return late, busy / (busy + idle)
