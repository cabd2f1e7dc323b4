"""Daemons as child processes, started again whenever they end, as an orchestrator would."""

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
# What a daemon may take beyond its drain: starting up, a last commit, a busy machine.
DRAIN_GRACE = 15.0
BACKOFF = 0.5  # seconds between an end and the next start
# Between two polls a daemon may take so long; the fault `sleep` takes longer.
MAX_POLL_INTERVAL = 45  # seconds
# How a sound daemon with sound settings may end: done, Kafka unreachable. All exit codes: docs/src/command-line.md
NAMED_CODES = {0, 69}

# How replicas share partitions: settings of one, by the name of the way.
GROUPS = {
    "eager": lambda slot: {"partition.assignment.strategy": "range,roundrobin"},
    "cooperative": lambda slot: {"partition.assignment.strategy": "cooperative-sticky"},
    "static": lambda slot: {"group.instance.id": f"chaos-{slot}"},
    "consumer": lambda slot: {"group.protocol": "consumer"},
}


class Fleet:
    """Every daemon, and whatever they did that they may not do."""

    def __init__(self, folder, brokers, options):
        self.violations = []
        self.exits = {}
        self.slots = [Slot(self, slot, folder, brokers, options) for slot in range(1, options.daemons + 1)]
        # How many faults are at work now that may keep a daemon from a clean end, and when the last was over.
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
        """SIGTERM to all at once; each has to drain and end with 0."""
        for slot in self.slots:
            slot.wanted = False
        for stopper in [threading.Thread(target=slot.terminate) for slot in self.slots]:
            stopper.start()
        for slot in self.slots:
            slot.thread.join(DRAIN + 2 * DRAIN_GRACE)
        for slot in self.slots:
            for log in slot.logs:
                if "panicked" in log.read_text(errors="replace"):
                    self.violation(f"a panic, see {log}")

    def kill(self):
        for slot in self.slots:
            slot.wanted = False
            slot.signal(signal.SIGKILL)
            slot.signal(signal.SIGCONT)


class Slot:
    """One replica: a name, a configuration, and the process that runs now."""

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
        self.wanted = True
        # The code that its next end should have, if somebody brings it about: -9, or 0.
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
            code = self.process.wait()
            if self.clock:
                self.clock.forget(self.process.pid)
            self.ended(code)
            if self.wanted:
                time.sleep(BACKOFF)

    def ended(self, code):
        exits = self.fleet.exits
        exits[str(code)] = exits.get(str(code), 0) + 1
        what = f"daemon {self.number} ended with {code}, see {self.logs[-1]}"
        if code == self.expected:
            return
        # Asked to stop before it caught signals: the first thing it says is that its model is ready.
        unborn = self.logs[-1].stat().st_size == 0
        if code == -signal.SIGTERM and self.expected == 0 and unborn:
            return
        if code not in NAMED_CODES:
            self.fleet.violation(what)
        elif self.expected == 0 and not self.fleet.troubled_since(self.started):
            self.fleet.violation(f"{what}: asked to stop in quiet, it has to end with 0")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number, expected=None):
        """False if nothing runs."""
        if not self.alive():
            return False
        if expected is not None:
            self.expected = expected
        self.process.send_signal(number)
        return True

    def terminate(self):
        """SIGTERM, and the time until it has ended, which must be within the drain's deadline."""
        process, asked = self.process, time.monotonic()
        if not self.signal(signal.SIGTERM, expected=0):
            return None
        try:
            process.wait(DRAIN + DRAIN_GRACE)
        except subprocess.TimeoutExpired:
            self.fleet.violation(f"daemon {self.number} did not end after SIGTERM, see {self.logs[-1]}")
            process.kill()
        return time.monotonic() - asked

    def address(self):
        for line in self.logs[-1].read_text(errors="replace").splitlines() if self.logs else ():
            if line.startswith("{") and '"address"' in line:
                return json.loads(line)["address"]
        return None

    def get(self, path, put=None):
        """The body; None from a daemon that is down, stopped, or not ready."""
        try:
            question = urllib.request.Request(f"http://{self.address()}{path}", put, method="PUT" if put else "GET")
            with urllib.request.urlopen(question, timeout=1) as answer:
                return answer.read().decode()
        except (OSError, ValueError):
            return None

    def ready(self):
        return self.alive() and self.get("/readyz") is not None

    def days_off(self):
        """How far its wall clock is off, by the line that it logs when its log level is set; None if it has no say."""
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
        # By its name the proxy knows it.
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
        "telemetry": {"log_format": "json"},
    }
    lines = []
    for section, settings in sections.items():
        lines.append(f"[{section}]")
        lines += [f'"{name}" = {json.dumps(value)}' for name, value in settings.items()]
    return "\n".join(lines) + "\n"
