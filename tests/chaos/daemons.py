"""Runs daemons as child processes and restarts them whenever they exit, as an orchestrator would."""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from datetime import UTC, datetime

from clock import Clock
from cluster import ROOT
from stream import BUNDLE

TOPICS = {"in": "in", "scores": "scores", "anomalies": "anomalies", "dead": "dead-letters"}
GROUP = "chaos"
ALARM_RATE = 0.01
DRAIN = 15.0  # seconds
# Time that a daemon may take beyond its drain: for starting up, for a last commit, and on a busy machine.
DRAIN_GRACE = 15.0
BACKOFF = 0.5  # seconds between an exit and the next start
# Longest time between two polls of a daemon. The fault `sleep` lasts longer.
MAX_POLL_INTERVAL = 45  # seconds
# Exit codes that are allowed here: success, and Kafka unreachable. docs/src/command-line.md lists all exit codes.
NAMED_CODES = {0, 69}

# Consumer settings of a replica for each value of --group.
GROUPS = {
    "eager": lambda slot: {"partition.assignment.strategy": "range,roundrobin"},
    "cooperative": lambda slot: {"partition.assignment.strategy": "cooperative-sticky"},
    "static": lambda slot: {"group.instance.id": f"chaos-{slot}"},
    "consumer": lambda slot: {"group.protocol": "consumer"},
}


class Fleet:
    """All daemons, with the violations that were observed."""

    def __init__(self, folder, brokers, options):
        self.violations = []
        self.exits = {}
        self.slots = [Slot(self, slot, folder, brokers, options) for slot in range(1, options.daemons + 1)]
        # The number of active faults that may prevent a clean exit, and when the last of them ended.
        self.troubles = 0
        self.trouble_ended = 0.0

    def __getitem__(self, slot):
        return self.slots[slot - 1]

    def start(self):
        for slot in self.slots:
            slot.thread.start()

    def violation(self, text):
        if text not in self.violations:
            self.violations.append(text)

    def troubled_since(self, moment):
        return self.troubles > 0 or self.trouble_ended > moment

    def scrape(self):
        for slot in self.slots:
            slot.scrape()

    def stop(self):
        """Stops all daemons at once with SIGTERM. Each must drain and exit with 0."""
        for slot in self.slots:
            slot.wanted = False
        for stopper in [threading.Thread(target=slot.terminate) for slot in self.slots]:
            stopper.start()
        for slot in self.slots:
            slot.thread.join(DRAIN + 2 * DRAIN_GRACE)
        for slot in self.slots:
            for log in slot.logs:
                if "panicked" in log.read_text(errors="replace"):
                    self.violation(f"a daemon panicked, see {log}")

    def kill(self):
        for slot in self.slots:
            slot.wanted = False
            slot.signal(signal.SIGKILL)
            slot.signal(signal.SIGCONT)


class Slot:
    """One replica: its configuration and its current process."""

    def __init__(self, fleet, number, folder, brokers, options):
        self.fleet = fleet
        self.number = number
        self.folder = folder
        self.binary = options.residuald
        self.config = folder / f"daemon-{number}.toml"
        self.config.write_text(config(number, brokers, options))
        self.clock = Clock(folder / f"clock-{number}") if options.fake_clocks else None
        self.process = None
        self.logs = []
        # {process id: its log}
        self.processes = {}
        self.wanted = True
        # The exit code that a fault causes next: -9 or 0. None if no fault is about to end the process.
        self.expected = None
        self.started = 0.0
        self.thread = threading.Thread(target=self.supervise, name=f"daemon-{number}", daemon=True)

    @property
    def client(self):
        return f"chaos-{self.number}"

    def supervise(self):
        while self.wanted:
            log = self.folder / f"daemon-{self.number}.{len(self.logs) + 1}.log"
            self.logs.append(log)
            with log.open("w") as stderr:
                command = [self.binary, "run", "--config", self.config]
                self.started, self.expected = time.monotonic(), None
                own = environment() | (self.clock.environment() if self.clock else {})
                self.process = subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL, env=own)
            self.processes[self.process.pid] = log
            code = self.process.wait()
            if self.clock:
                self.clock.forget(self.process.pid)
            self.ended(code)
            if self.wanted:
                time.sleep(BACKOFF)

    def ended(self, code):
        exits = self.fleet.exits
        exits[str(code)] = exits.get(str(code), 0) + 1
        what = f"daemon {self.number} exited with {code}, see {self.logs[-1]}"
        if code == self.expected:
            return
        # SIGTERM came before the signal handler was installed: the daemon had not logged anything yet.
        starting = self.logs[-1].stat().st_size == 0
        if code == -signal.SIGTERM and self.expected == 0 and starting:
            return
        if code not in NAMED_CODES:
            self.fleet.violation(what)
        elif self.expected == 0 and not self.fleet.troubled_since(self.started):
            self.fleet.violation(f"{what}; without an active fault, it must exit with 0 after SIGTERM")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number, expected=None):
        """Sends a signal -> False if the process does not run. `expected` is the exit code that this will cause."""
        if not self.alive():
            return False
        if expected is not None:
            self.expected = expected
        self.process.send_signal(number)
        return True

    def terminate(self):
        """Stops the daemon with SIGTERM -> seconds until it exited. Taking longer than the drain is a violation."""
        process, asked = self.process, time.monotonic()
        if not self.signal(signal.SIGTERM, expected=0):
            return None
        try:
            process.wait(DRAIN + DRAIN_GRACE)
        except subprocess.TimeoutExpired:
            self.fleet.violation(f"daemon {self.number} did not exit in time after SIGTERM, see {self.logs[-1]}")
            process.kill()
        return time.monotonic() - asked

    def address(self):
        for line in self.logs[-1].read_text(errors="replace").splitlines() if self.logs else ():
            if line.startswith("{") and '"address"' in line:
                return json.loads(line)["address"]
        return None

    def get(self, path, put=None):
        """The body of a response, or None if the daemon is down, stopped, or not ready."""
        try:
            question = urllib.request.Request(f"http://{self.address()}{path}", put, method="PUT" if put else "GET")
            with urllib.request.urlopen(question, timeout=1) as answer:
                return answer.read().decode()
        except (OSError, ValueError):
            return None

    def ready(self):
        return self.alive() and self.get("/readyz") is not None

    def days_off(self):
        """The error of the daemon's wall clock in days, or None if unknown.

        The time comes from a line that the daemon logs when its log level is set.
        """
        level = self.get("/log-level")
        if level is None or self.get("/log-level", put=level.encode()) is None:
            return None
        told = [line for line in self.logs[-1].read_text().splitlines() if "changing the log level" in line]
        if not told:
            return None
        said = datetime.fromisoformat(json.loads(told[-1])["timestamp"])
        return (said - datetime.now(UTC)).total_seconds() / 86_400

    def scrape(self):
        for line in (self.get("/metrics") or "").splitlines():
            name, _, value = line.partition(" ")
            if name == "residuald_records_unaccounted" and float(value) != 0:
                self.fleet.violation(f"daemon {self.number}: {line}, see {self.logs[-1]}")


def environment():
    return {"ORT_DYLIB_PATH": str(ROOT / ".onnxruntime/libonnxruntime.so"), "RUST_BACKTRACE": "1", **os.environ}


def timeouts(options):
    poll = {"max.poll.interval.ms": int(max(MAX_POLL_INTERVAL, options.session) * 1000)}
    # KIP-848: the session timeout is the broker's.
    if options.group == "consumer":
        return poll
    return poll | {"session.timeout.ms": int(options.session * 1000), "heartbeat.interval.ms": 500}


def config(slot, brokers, options):
    """residuald.toml of one replica."""
    sections = {
        "kafka": {
            "brokers": brokers,
            "topics": [TOPICS["in"]],
            "group_id": GROUP,
            "delivery": options.delivery,
            "connect_timeout": "20s",
            "drain_timeout": f"{DRAIN:.0f}s",
        },
        # The proxy identifies the daemon by this name.
        "kafka.client": {"client.id": f"chaos-{slot}"},
        "kafka.consumer": GROUPS[options.group](slot) | timeouts(options),
        "model": {"bundle": str(BUNDLE)},
        "inference": {"workers": 1},
        "threshold": {"false_alarm_rate": ALARM_RATE},
        "output": {
            "anomalies_topic": TOPICS["anomalies"],
            "scores_topic": TOPICS["scores"],
            "dead_letter_topic": TOPICS["dead"],
            "include_record": False,
            "attributions": 1,
        },
        "http": {"listen": "127.0.0.1:0"},
        # The transactions of a run that does not hold.
        "telemetry": {"log_format": "json", "log_level": "info,residuald::kafka::producer=debug"},
    }
    lines = []
    for section, settings in sections.items():
        lines.append(f"[{section}]")
        lines += [f'"{name}" = {json.dumps(value)}' for name, value in settings.items()]
    return "\n".join(lines) + "\n"
