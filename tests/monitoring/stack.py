"""Runs a daemon, Prometheus with the rules, Alertmanager and a receiver of alerts. The rules' clock is 60x as fast."""

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle

import yaml
from deployed import ROOT, RULES_FILE

BUNDLE = ROOT / "models/payments"
SAMPLE = "sample.ndjson.gz"
SPEED = 60  # an hour in the rules takes a minute here
QUIET = 3600 / SPEED  # seconds
STARTING = 20  # additional seconds of quiet stream, in which the other processes start
OUTBREAK = 60  # seconds
RATE = 100  # records per second, which even a busy machine can process
PATIENCE = 240  # timeout in seconds; long, because the machine may be busy
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Stack:
    """A context manager that runs all processes."""

    def __init__(self, folder, residuald, prometheus, alertmanager):
        self.folder = folder
        self.commands = residuald, prometheus, alertmanager
        self.processes = []
        self.receiver = Receiver()

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(PATIENCE)
        self.receiver.shutdown()

    def start(self):
        residuald, prometheus, alertmanager = self.commands
        self.daemon, self.prometheus, alerts = (f"127.0.0.1:{port}" for port in free_ports(3))
        self.spawn(residuald, "demo", "--bundle", bundle(self.folder), "--rate", RATE, "--listen", self.daemon)
        self.wait_for("the daemon", lambda: get(f"http://{self.daemon}/readyz"))
        rules = write(self.folder / "rules.yml", faster(yaml.safe_load(RULES_FILE.read_text())))
        config = write(self.folder / "prometheus.yml", prometheus_config(rules, self.daemon, alerts))
        self.spawn(
            prometheus,
            f"--config.file={config}",
            f"--storage.tsdb.path={self.folder / 'prometheus'}",
            f"--web.listen-address={self.prometheus}",
        )
        self.wait_for("a first scrape", lambda: self.query("residuald_build_info"))
        # Start Alertmanager last, because Prometheus considers the daemon down until the first scrape.
        config = write(self.folder / "alertmanager.yml", alertmanager_config(self.receiver.address))
        self.spawn(
            alertmanager,
            f"--config.file={config}",
            f"--storage.path={self.folder / 'alertmanager'}",
            f"--web.listen-address={alerts}",
            "--cluster.listen-address=",
        )
        self.wait_for("Alertmanager", lambda: get(f"http://{alerts}/-/ready"))

    def spawn(self, *command):
        with (self.folder / f"{len(self.processes)}.log").open("w") as log:
            environment = {"ORT_DYLIB_PATH": str(ROOT / ".onnxruntime/libonnxruntime.so"), **os.environ}
            command = [str(part) for part in command]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def live_through_an_outbreak(self):
        """Sets `quiet` (alerts during the quiet hour) and `alarms` (alerts until the outbreak's first page)."""
        time.sleep(QUIET)
        consumed = json.loads(get(f"http://{self.daemon}/status"))["records"]["consumed"]
        assert consumed < quiet_records(), "the machine is too slow: the outbreak began before the quiet hour was over"
        self.quiet = list(self.receiver.alerts)
        self.wait_for("a page", lambda: "page" in {alert["labels"]["severity"] for alert in self.receiver.alerts})
        self.alarms = list(self.receiver.alerts)

    def wait_for(self, what, found):
        deadline = time.monotonic() + PATIENCE
        while not found():
            ended = [process.args[0] for process in self.processes if process.poll() is not None]
            assert not ended, f"{ended} exited, see the logs in {self.folder}"
            assert time.monotonic() < deadline, f"timed out after {PATIENCE} s waiting for {what}, see {self.folder}"
            time.sleep(0.2)

    def ask(self, path, **parameters):
        """The data of a response of Prometheus' API, or None if the request failed."""
        answer = get(f"http://{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        return json.loads(answer)["data"] if answer else None

    def query(self, expression):
        """The values of an instant query; empty if Prometheus refuses it."""
        found = self.ask("query", query=expression)
        return [float(series["value"][1]) for series in found["result"]] if found else []


class Receiver:
    """A webhook that collects the alerts of Alertmanager."""

    def __init__(self):
        self.alerts = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.alerts += [alert for alert in message["alerts"] if alert["status"] == "firing"]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def shutdown(self):
        self.server.shutdown()
        self.server.server_close()


def quiet_records():
    return int(RATE * (QUIET + STARTING))


def bundle(folder):
    """A copy of the payments bundle with another sample: first normal payments, then a fraud in every ten records.

    One record in 500 lacks its amount.
    """
    made = shutil.copytree(BUNDLE, folder / "payments", ignore=shutil.ignore_patterns(SAMPLE))
    with gzip.open(BUNDLE / SAMPLE, "rt") as lines:
        records = [json.loads(line) for line in lines]
    normal = cycle([record for record in records if not record["label"]])
    fraud = cycle([record for record in records if record["label"]])
    with gzip.open(made / SAMPLE, "wt", compresslevel=1) as stream:
        for n in range(quiet_records() + RATE * OUTBREAK):
            record = next(fraud if n >= quiet_records() and n % 10 == 0 else normal)
            if n % 500 == 499:
                record = {key: value for key, value in record.items() if key != "amount"}
            stream.write(json.dumps(record) + "\n")
    return made


def faster(rules):
    """The same rules with every duration divided by SPEED."""

    def shorter(text):
        return re.sub(r"\b(\d+)([smhd])\b", lambda m: f"{int(m[1]) * UNITS[m[2]] * 1000 // SPEED}ms", text)

    for group in rules["groups"]:
        for rule in group["rules"]:
            rule |= {key: shorter(rule[key]) for key in ("expr", "for") if key in rule}
    return rules


def prometheus_config(rules, target, alertmanager):
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [{"job_name": "payments", "static_configs": [{"targets": [target]}]}],
    }


def alertmanager_config(receiver):
    return {
        "route": {"receiver": "test", "group_wait": "1s", "group_interval": "1s"},
        "receivers": [{"name": "test", "webhook_configs": [{"url": f"http://{receiver}/"}]}],
    }


def write(path, settings):
    path.write_text(yaml.safe_dump(settings))
    return path


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def get(url):
    """The body of the response, or None if the request failed."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return None
