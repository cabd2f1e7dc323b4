"""Explains duplicates: which transactions wrote the verdicts of a record, which daemon made each transaction, and what
the group committed around them.

Reads the brokers' own segments with Kafka's own tool, so it does not depend on any client.
"""

import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cluster import ROOT
from daemons import GROUP, TOPICS

TOOL = "org.apache.kafka.tools.DumpLogSegments"
STATES = ("empty", "ongoing", "prepare commit", "prepare abort", "complete commit", "complete abort", "dead", "fenced")
# How many ranges of duplicates are explained, and how many lines there are for each list of one of them.
MOST_RANGES = 12
MOST_LINES = 40
BATCH = re.compile(
    r"baseOffset: (\d+) lastOffset: (\d+) .*producerId: (-?\d+) producerEpoch: (-?\d+) .*CreateTime: (\d+)"
)
MARKER = re.compile(r"endTxnMarker: (\w+)")
COMMIT = re.compile(r'"topic":"([^"]+)","partition":(\d+)\}\} payload: .*"offset":(\d+),.*"metadata":"([^"]*)"')
STATE = re.compile(
    r'"transactionalId":"([^"]+)".*"producerId":(\d+),.*"producerEpoch":(-?\d+),.*"transactionStatus":(\d+)'
)


@dataclass
class Batch:
    """A batch of a partition, and how the transaction that wrote it ended."""

    first: int
    last: int
    producer: tuple[int, int]  # id and epoch; (-1, -1) without idempotence
    time: int  # ms
    ended: str = "still open"
    # Of __consumer_offsets: (topic, partition, offset, metadata).
    commits: list = field(default_factory=list)


def dump(segments, *options):
    """The lines that Kafka's tool prints for these segments."""
    if not segments:
        return []
    files = ",".join(map(str, sorted(segments)))
    command = ["java", "-Xmx512m", "-cp", f"{ROOT}/.kafka/libs/*", TOOL, "--deep-iteration", "--files", files, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.splitlines()


def batches(lines):
    """The batches of one partition. A marker ends the transaction of its producer, whatever its epoch."""
    found, of_producer = [], {}
    for line in lines:
        if head := BATCH.match(line):
            first, last, producer, epoch, moment = map(int, head.groups())
            batch = Batch(first, last, (producer, epoch), moment)
            if "isTransactional: false" in line:
                batch.ended = "outside any transaction"
            if "isControl: true" not in line:
                found.append(batch)
                if "isTransactional: true" in line:
                    of_producer.setdefault(producer, []).append(batch)
        elif marker := MARKER.search(line):
            for open_batch in of_producer.pop(producer, ()):
                open_batch.ended = f"{marker[1]} at {clock(moment)}, epoch {epoch}"
        elif (commit := COMMIT.search(line)) and f'"group":"{GROUP}"' in line:
            topic, partition, offset, metadata = commit.groups()
            batch.commits.append((topic, int(partition), int(offset), metadata))
    return found


def clock(ms):
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]


class Segments:
    """The saved segments of a run, read when they are needed."""

    def __init__(self, folder, daemons):
        self.folder = folder
        # {process id: the log of that daemon}
        self.daemons = daemons
        self.known = {}

    def of(self, topic, partition, *options):
        key = topic, partition
        if key not in self.known:
            self.known[key] = batches(dump(list(self.folder.glob(f"{topic}-{partition}/*.log")), *options))
        return self.known[key]

    def commits(self):
        """The batches of the group's commits, in the order of their partition; the group has only one."""
        partitions = sorted(self.folder.glob("__consumer_offsets-*"))
        every = [self.of("__consumer_offsets", p.name.rpartition("-")[2], "--offsets-decoder") for p in partitions]
        return max(every, key=lambda of: sum(len(batch.commits) for batch in of), default=[])

    def transactions(self):
        """(time, transactional.id, (producer id, epoch), state) of every change of a transaction, in time's order."""
        if "transactions" not in self.known:
            moment, found = 0, []
            for partition in self.folder.glob("__transaction_state-*"):
                for line in dump(list(partition.glob("*.log")), "--transaction-log-decoder"):
                    if head := BATCH.match(line):
                        moment = int(head[5])
                    elif state := STATE.search(line):
                        name, producer, epoch, status = state.groups()
                        found.append((moment, name, (int(producer), int(epoch)), STATES[int(status)]))
            self.known["transactions"] = sorted(found)
        return self.known["transactions"]

    def who(self, producer):
        """The transactional.id of a producer id, and its daemon, whose process id is part of it."""
        names = [name for _, name, of, _ in self.transactions() if of[0] == producer]
        if not names:
            return f"producer {producer}"
        own = [str(log.name) for pid, log in self.daemons.items() if f"-{pid}-" in names[0]]
        return f"producer {producer}, {names[0]}, {' or '.join(own) or 'no daemon of this run'}"


def explain(repeats, folder, daemons):
    """Lines that explain the first of `repeats`, as `Findings.repeats` has them."""
    segments = Segments(folder, daemons)
    lines = [f"{len(repeats)} ranges of duplicates, by input partition and output partition:"]
    seen, input_ranges = set(), {}
    for number, repeat in enumerate(repeats.values()):
        partition = repeat.first[0][0]
        low, high = input_ranges.get(partition, (repeat.first[0][1], repeat.first[0][1]))
        input_ranges[partition] = min(low, repeat.first[0][1]), max(high, repeat.last[0][1])
        if number < MOST_RANGES:
            lines += explain_range(repeat, segments, seen)
    for partition, (low, high) in sorted(input_ranges.items())[:MOST_RANGES]:
        lines.append(f"commits of {TOPICS['in']}-{partition} around the offsets {low} to {high}:")
        lines += explain_commits(partition, low, high, segments, seen)
    # Commits outside transactions have producer -1.
    for producer in sorted(seen - {-1}):
        lines.append(f"transactions of {segments.who(producer)}:")
        states = [t for t in segments.transactions() if t[2][0] == producer]
        lines += [f"  {clock(moment)} epoch {of[1]} {state}" for moment, _, of, state in states[-MOST_LINES:]]
    return lines


def explain_range(repeat, segments, seen):
    topic, partition = TOPICS[repeat.topic], repeat.first[0][0]
    yield f"{repeat.count} of {TOPICS['in']}-{partition}, offsets {repeat.first[0][1]} to {repeat.last[0][1]}:"
    for what, index in ("first", 1), ("again", 2):
        (out, low), (other, high) = repeat.first[index], repeat.last[index]
        wrote = [
            batch for batch in segments.of(topic, out) if batch.last >= min(low, high) and batch.first <= max(low, high)
        ]
        of_interest = [b for b in wrote if b.first <= low <= b.last or (out == other and b.first <= high <= b.last)]
        yield f"  {what} {topic}-{out} {low} to {topic}-{other} {high}"
        for batch in of_interest[:MOST_LINES]:
            seen.add(batch.producer[0])
            yield (
                f"    batch {batch.first} to {batch.last} at {clock(batch.time)}: {batch.ended}; "
                f"{segments.who(batch.producer[0])}"
            )


def explain_commits(partition, low, high, segments, seen):
    """The commits from the last one below the range to the first one beyond it, and those that go back."""
    of_partition = [
        (batch, offset, metadata)
        for batch in segments.commits()
        for topic, of, offset, metadata in batch.commits
        if (topic, of) == (TOPICS["in"], partition)
    ]
    margin, before, lines = high - low + 1, 0, []
    for batch, offset, metadata in of_partition:
        back = " GOES BACK" if offset < before and "ABORT" not in batch.ended else ""
        if back or low - margin <= offset <= high + margin:
            seen.add(batch.producer[0])
            who = segments.who(batch.producer[0])
            lines.append(f"  {offset} at {clock(batch.time)}{back}: {batch.ended}; {who}; '{metadata}'")
        if "ABORT" not in batch.ended:
            before = offset
    return lines[:MOST_LINES]
