"""Keeps the evidence of a run that did not hold: all logs, and the messages as the brokers store them."""

import shutil
import time
from pathlib import Path

# Number of failed runs that are kept.
KEPT = 5
INTERNAL = ("__consumer_offsets", "__transaction_state")


def save_segments(cluster, topics, folder):
    """Copies the log segments of these topics and of the internal ones, before the cluster deletes its data.

    Every broker has every partition, and all replicas are in sync, so one broker's copy is enough.
    """
    data = cluster.folder / "data-1"
    for topic in (*INTERNAL, *topics):
        for segment in data.glob(f"{topic}-*/*.log"):
            copy = folder / segment.relative_to(data)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(segment, copy)


def keep(folder, seed):
    """Moves the folder of a failed run to where the next run does not delete it -> its new path."""
    failed = folder.with_name(f"{folder.name}-failed")
    failed.mkdir(exist_ok=True)
    kept = failed / f"{time.strftime('%Y%m%d-%H%M%S')}-seed-{seed}"
    shutil.move(folder, kept)
    for old in sorted(failed.iterdir())[:-KEPT]:
        shutil.rmtree(old)
    return Path(kept)
