"""Tests that duplicates are explained from what Kafka's tool prints, and that only the last failed runs are kept."""

from types import SimpleNamespace

import diagnosis
import evidence
from verify import Repeats

HEAD = "baseSequence: 0 lastSequence: 0"
TAIL = "size: 90 magic: 2 compresscodec: none crc: 1 isvalid: true"


def batch(first, last, producer, epoch, time, control=False):
    return (
        f"baseOffset: {first} lastOffset: {last} count: {last - first + 1} {HEAD} producerId: {producer} "
        f"producerEpoch: {epoch} partitionLeaderEpoch: 0 isTransactional: true isControl: {str(control).lower()} "
        f"deleteHorizonMs: OptionalLong.empty position: 0 CreateTime: {time} {TAIL}"
    )


def marker(offset, producer, time, kind):
    said = f"| offset: {offset} CreateTime: {time} keySize: 4 valueSize: 6 endTxnMarker: {kind} coordinatorEpoch: 0"
    return [batch(offset, offset, producer, 0, time, control=True), said]


def commit(at, producer, time, offset):
    key = '{"type":"1","data":{"group":"chaos","topic":"in","partition":0}}'
    value = f'{{"version":"4","data":{{"offset":{offset},"leaderEpoch":-1,"metadata":"m","commitTimestamp":{time}}}}}'
    said = f"| offset: {at} CreateTime: {time} keySize: 17 valueSize: 64 sequence: 0 key: {key} payload: {value}"
    return [batch(at, at, producer, 0, time), said]


def state(name, producer, time, status):
    value = f'{{"producerId":{producer},"previousProducerId":1,"producerEpoch":0,"transactionStatus":{status}}}'
    key = f'{{"type":"0","data":{{"transactionalId":"{name}"}}}}'
    return [batch(0, 0, -1, -1, time), f'| offset: 0 key: {key} payload: {{"version":"1","data":{value}}}']


# Producer 7 publishes the records 10 to 12, but its last commit goes back to 10, and producer 8 publishes them again.
SAID = {
    "scores-0": [
        batch(0, 2, 7, 0, 1000),
        *marker(3, 7, 1100, "COMMIT"),
        batch(4, 6, 8, 0, 2000),
        *marker(7, 8, 2100, "COMMIT"),
    ],
    "__consumer_offsets-0": [
        *commit(0, 7, 1050, 13),
        *commit(1, 7, 1060, 10),
        *marker(2, 7, 1100, "COMMIT"),
        *commit(3, 8, 2050, 13),
        *marker(4, 8, 2100, "COMMIT"),
    ],
    "__transaction_state-0": [*state("chaos-vm-51-ab", 7, 1100, 4), *state("chaos-vm-52-cd", 8, 2100, 4)],
}


def test_duplicates_are_explained(monkeypatch, tmp_path):
    for partition in SAID:
        (tmp_path / partition).mkdir()
        (tmp_path / partition / "0.log").touch()
    monkeypatch.setattr(diagnosis, "dump", lambda segments, *_: SAID[segments[0].parent.name])
    repeats = {0: Repeats("scores", 3, ((0, 10), (0, 0), (0, 4)), ((0, 12), (0, 2), (0, 6)))}
    daemons = {51: SimpleNamespace(name="daemon-1.1.log"), 52: SimpleNamespace(name="daemon-2.4.log")}
    said = "\n".join(diagnosis.explain(repeats, tmp_path, daemons))
    assert "3 of in-0, offsets 10 to 12" in said
    first = "batch 0 to 2 at 00:00:01.000: COMMIT at 00:00:01.100, epoch 0; producer 7, chaos-vm-51-ab, daemon-1.1.log"
    again = "batch 4 to 6 at 00:00:02.000: COMMIT at 00:00:02.100, epoch 0; producer 8, chaos-vm-52-cd, daemon-2.4.log"
    assert said.index(first) < said.index(again)
    assert "10 at 00:00:01.060 GOES BACK: COMMIT" in said
    assert said.count("GOES BACK") == 1
    assert "00:00:02.100 epoch 0 complete commit" in said


def test_only_the_last_failed_runs_are_kept(tmp_path):
    for run in range(evidence.KEPT + 2):
        folder = tmp_path / "chaos"
        folder.mkdir()
        (folder / "daemon-1.1.log").write_text(str(run))
        kept = evidence.keep(folder, run)
        assert (kept / "daemon-1.1.log").read_text() == str(run)
    assert len(list(kept.parent.iterdir())) == evidence.KEPT
    assert kept.exists()
