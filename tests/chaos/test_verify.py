"""Tests that the verifier detects faults: one message of a perfect output is removed, repeated, moved or changed."""

import json
from types import SimpleNamespace

import pytest
import verify
from daemons import TOPICS
from stream import Records

COUNT = 1600
RECORDS = Records(COUNT)
# Two partitions; the first holds the records with even numbers.
PLACED = [list(range(0, COUNT, 2)), list(range(1, COUNT, 2))]
VERDICT = {"anomaly_score": 0.060213897, "severity": None}
FLAGGED = {"anomaly_score": 0.5, "severity": "warning"}
EXPECTED = [FLAGGED if line == 7 else VERDICT for line in range(len(RECORDS.lines))]


def perfect():
    """{topic: its messages}, as they should be."""
    topics = {name: [] for name in TOPICS.values()}
    for n in range(COUNT):
        record, source = RECORDS[n], {"topic": "in", "partition": n % 2, "offset": n // 2}
        if record.kind == "tombstone":
            continue
        message = SimpleNamespace(partition=0, offset=n, key=record.key, timestamp=record.timestamp)
        if record.kind == "good":
            identity = f"in-{n % 2}-{n // 2}@01234567"
            body = {"id": identity, "time": "", "source": source, "model": {"sha256": "0123456789"}}
            message.value = json.dumps(body | EXPECTED[record.line]).encode()
            message.headers = [("ce_id", identity.encode())]
            topics["scores"].append(message)
            if EXPECTED[record.line] is FLAGGED:
                topics["anomalies"].append(message)
        else:
            added = {**source, "exception.class.name": f"residuald.decode.{record.kind}"}
            message.value = record.value
            message.headers = record.headers + [(verify.CONNECT + k, str(v).encode()) for k, v in added.items()]
            topics["dead-letters"].append(message)
    return topics


def find(topics, monkeypatch):
    monkeypatch.setattr(verify, "read", lambda _, topic: topics[topic])
    found = verify.verify(None, RECORDS, PLACED, EXPECTED)
    return found.lost, found.duplicated, found.reordered, found.wrong


def test_a_perfect_output_is_found_perfect(monkeypatch):
    topics = perfect()
    assert [len(topics[t]) for t in ("scores", "anomalies", "dead-letters")] == [COUNT - 3, 1, 2]
    assert find(topics, monkeypatch) == (0, 0, 0, 0)


@pytest.mark.parametrize("topic", ["scores", "anomalies", "dead-letters"])
def test_a_missing_message_is_lost_and_a_repeated_one_duplicated(topic, monkeypatch):
    topics = perfect()
    last = topics[topic].pop()
    assert find(topics, monkeypatch) == (1, 0, 0, 0)
    topics[topic] += [last, last]
    assert find(topics, monkeypatch) == (0, 1, 0, 0)


def test_a_step_back_is_reordered_unless_it_is_a_replay(monkeypatch):
    topics = perfect()
    scores = topics["scores"]
    # Every second record is from the same source partition.
    scores[10], scores[12] = scores[12], scores[10]
    assert find(topics, monkeypatch) == (0, 0, 1, 0)
    topics = perfect()
    topics["scores"][20:20] = topics["scores"][10:20]
    assert find(topics, monkeypatch) == (0, 10, 0, 0)


def alter(value, **changed):
    return json.dumps(json.loads(value) | changed).encode()


@pytest.mark.parametrize(
    ("topic", "change"),
    [
        ("scores", lambda m: {"key": b"another"}),
        ("scores", lambda m: {"timestamp": m.timestamp + 1}),
        ("scores", lambda m: {"value": alter(m.value, anomaly_score=0.060213901)}),
        ("scores", lambda m: {"value": alter(m.value, severity="warning")}),
        ("scores", lambda m: {"value": alter(m.value, id="in-0-0@00000000")}),
        ("dead-letters", lambda m: {"value": m.value + b" "}),
        ("dead-letters", lambda m: {"key": None}),
        ("dead-letters", lambda m: {"headers": m.headers[1:]}),
        ("dead-letters", lambda m: {"headers": m.headers[:-1]}),
    ],
)
def test_changed_content_is_wrong(topic, change, monkeypatch):
    topics = perfect()
    first = topics[topic][0]
    topics[topic][0] = SimpleNamespace(**vars(first) | change(first))
    assert find(topics, monkeypatch) == (0, 0, 0, 1)


def test_a_timestamp_may_be_left_out_if_the_message_says_so(monkeypatch):
    for topic in ("scores", "dead-letters"):
        topics = perfect()
        first = topics[topic][0]
        said = [*first.headers, (verify.OMITTED, b"key: why; value, timestamp: topic `x` does not accept this timestamp")]
        topics[topic][0] = SimpleNamespace(**vars(first) | {"timestamp": first.timestamp + 1, "headers": said})
        monkeypatch.setattr(verify, "read", lambda _, topic, topics=topics: topics[topic])
        found = verify.verify(None, RECORDS, PLACED, EXPECTED)
        assert (found.wrong, found.timeless) == (0, 1)


def test_a_message_without_a_record_or_in_another_topic_is_wrong(monkeypatch):
    topics = perfect()
    extra = topics["scores"][0]
    source = {"topic": "in", "partition": 1, "offset": COUNT}
    topics["scores"].append(SimpleNamespace(**vars(extra) | {"value": alter(extra.value, source=source)}))
    assert find(topics, monkeypatch) == (0, 0, 0, 1)
    topics = perfect()
    topics["anomalies"].append(topics["scores"][0])
    assert find(topics, monkeypatch) == (0, 0, 0, 1)
