"""What goes wrong, where in the stream. The same seed gives the same plan."""

import random
from dataclasses import dataclass

# Kind: what it does it to. Faults of one lane follow each other; lanes go on side by side, so a daemon may be killed
# while a broker is down.
LANES = {
    "kill": "daemons",
    "stop": "daemons",
    "freeze": "daemons",
    "term": "daemons",
    "rolling": "daemons",
    "brokers": "brokers",
    "crash": "brokers",
    "network": "network",
}
NETWORK_MODES = ("cut", "hole", "deaf", "slow")
# The last record that a fault may wait for, as a share of the stream: what follows shows that it was survived.
LAST = 0.95


@dataclass(frozen=True)
class Fault:
    """Strikes `wait` seconds after `at` records are committed."""

    at: int
    kind: str
    wait: float
    # A daemon or broker, from 1; 0 is all of them.
    target: int
    seconds: float
    mode: str = ""

    @property
    def lane(self):
        return LANES[self.kind]

    def __str__(self):
        whom = f"{'broker' if self.lane == 'brokers' else 'daemon'} {self.target}" if self.target else "all"
        how = f" {self.mode}" if self.mode else ""
        lasts = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind}{how}, {whom}{lasts}"


def parse_faults(text, kills):
    """`kill,stop:3,network` to {kind: count}; what has no count happens once for every ten kills, at least once."""
    counts = {}
    for part in text.split(","):
        kind, _, count = part.strip().partition(":")
        if kind not in LANES:
            raise ValueError(f"no fault is named '{kind}': one of {', '.join(LANES)}")
        usual = kills if kind == "kill" else max(1, kills // 10)
        counts[kind] = int(count) if count else usual
    return counts


def make_plan(seed, records, counts, daemons, brokers, session):
    """Faults by where they strike; `session` is the group's session timeout in seconds."""
    rng = random.Random(seed)
    plan = []
    for kind, count in counts.items():
        for number in range(count):
            at = rng.randrange(int(records * 0.02), int(records * LAST))
            plan.append(one(rng, kind, number, at, daemons, brokers, session))
    return sorted(plan, key=lambda fault: fault.at)


def one(rng, kind, number, at, daemons, brokers, session):
    wait = rng.uniform(0, 1.5)
    daemon = rng.randint(1, daemons)
    match kind:
        case "stop":
            return Fault(at, kind, wait, daemon, session * rng.uniform(1.5, 2.5))
        case "freeze":
            return Fault(at, kind, wait, daemon, session * rng.uniform(0.3, 0.9))
        case "rolling" | "brokers":
            return Fault(at, kind, wait, 0, 0)
        case "crash":
            return Fault(at, kind, wait, rng.randint(1, brokers), rng.uniform(1, 8))
        case "network":
            mode = NETWORK_MODES[number % len(NETWORK_MODES)]
            # Every third time all daemons are cut off.
            return Fault(at, kind, wait, 0 if number % 3 == 2 else daemon, session * rng.uniform(0.5, 2.5), mode)
        case _:
            return Fault(at, kind, wait, daemon, 0)
