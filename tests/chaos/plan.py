"""The plan of faults: what fails, and at which record of the stream. The same seed gives the same plan."""

import itertools
import random
from dataclasses import dataclass, replace

# The lane of each kind of fault. Faults of one lane happen one after the other. Lanes run concurrently, so a daemon may
# be killed while a broker is down.
LANES = {
    "kill": "daemons",
    "stop": "daemons",
    "freeze": "daemons",
    "term": "daemons",
    "rolling": "daemons",
    "brokers": "brokers",
    "crash": "brokers",
    "network": "network",
    "sleep": "daemons",
    "clock": "daemons",
    "disk": "brokers",
    "partitions": "topics",
}
NETWORK_MODES = ("cut", "hole", "deaf", "slow")
# The last position of a fault, as a share of the stream. The records after it show that the daemons recovered.
LAST = 0.95
# The same for added partitions, which need enough records afterwards.
LAST_PARTITIONS = 0.6
# The offsets of the clock, in this order: a day ahead, a day behind, correct again.
CLOCKS = ("+1d", "-1d", "+0d")


@dataclass(frozen=True)
class Fault:
    """A fault that strikes `wait` seconds after `at` records are committed."""

    at: int
    kind: str
    wait: float
    # The number of a daemon or broker, from 1; 0 means all of them.
    target: int
    seconds: float
    mode: str = ""

    @property
    def lane(self):
        return LANES[self.kind]

    def __str__(self):
        whom = f"{'broker' if self.lane == 'brokers' else 'daemon'} {self.target}" if self.target else "all"
        if self.lane == "topics":
            whom = "the input topic"
        how = f" {self.mode}" if self.mode else ""
        lasts = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.kind}{how}, {whom}{lasts}"


def parse_faults(text, kills):
    """Parses `kill,stop:3,network` -> {kind: count}. Raises ValueError for an unknown kind.

    Without a count, a fault happens once for every ten kills, but at least once. A sleep is long and happens once for
    every fifty. The clock jumps three times for every ten: ahead, behind and back.
    """
    counts = {}
    for part in text.split(","):
        kind, _, count = part.strip().partition(":")
        if kind not in LANES:
            raise ValueError(f"--faults: unknown kind '{kind}'; use {', '.join(LANES)}")
        usual = {"kill": kills, "sleep": max(1, kills // 50), "clock": len(CLOCKS) * max(1, kills // 10)}
        counts[kind] = int(count) if count else usual.get(kind, max(1, kills // 10))
    return counts


def make_plan(seed, records, counts, daemons, brokers, session):
    """The faults, sorted by position in the stream. `session` is the group's session timeout in seconds."""
    rng = random.Random(seed)
    plan = []
    for kind, count in counts.items():
        for number in range(count):
            last = LAST_PARTITIONS if kind == "partitions" else LAST
            at = rng.randrange(int(records * 0.02), int(records * last))
            plan.append(make_fault(rng, kind, number, at, daemons, brokers, session))
    return with_clocks(sorted(plan, key=lambda fault: fault.at))


def with_clocks(plan):
    """Sets the clock faults' offsets in turn. All hit the same daemon, so that each of them changes its clock."""
    modes = itertools.cycle(CLOCKS)
    target = next((fault.target for fault in plan if fault.kind == "clock"), 0)
    return [replace(fault, mode=next(modes), target=target) if fault.kind == "clock" else fault for fault in plan]


def make_fault(rng, kind, number, at, daemons, brokers, session):
    wait = rng.uniform(0, 1.5)
    daemon = rng.randint(1, daemons)
    match kind:
        case "stop":
            return Fault(at, kind, wait, daemon, session * rng.uniform(1.5, 2.5))
        case "freeze":
            return Fault(at, kind, wait, daemon, session * rng.uniform(0.3, 0.9))
        case "sleep":
            return Fault(at, kind, wait, daemon, rng.uniform(60, 70))
        case "disk":
            return Fault(at, kind, wait, rng.randint(1, brokers), rng.uniform(3, 10))
        case "rolling" | "brokers" | "partitions":
            return Fault(at, kind, wait, 0, 0)
        case "crash":
            return Fault(at, kind, wait, rng.randint(1, brokers), rng.uniform(1, 8))
        case "network":
            mode = NETWORK_MODES[number % len(NETWORK_MODES)]
            # Every third network fault hits all daemons.
            return Fault(at, kind, wait, 0 if number % 3 == 2 else daemon, session * rng.uniform(0.5, 2.5), mode)
        case _:
            return Fault(at, kind, wait, daemon, 0)
