"""The false alarms of a group of images that was not there: each held-out group is judged by the others' threshold.

`residuald calibrate --by` says the same of segments.
"""

import numpy as np

RATE = 0.01


def new_group(score, groups, rate=RATE):
    """Scores [n] of held-out normal images and their groups [n] -> facts, or None with fewer than two groups.

    `expected`: the false-alarm rate of the others' thresholds on themselves, `flagged`: the mean share of a group that
    they flag, `most`: the largest share. A group like these exceeds it with a probability of at most 1 / (groups + 1).
    """
    names, index = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    shares, expected = [], []
    for i in range(len(names)):
        others = np.sort(score[index != i])
        rank = max(1, int(rate * (len(others) + 1) + 1e-9))
        shares.append(float((score[index == i] > others[-rank]).mean()))
        expected.append(rank / (len(others) + 1))
    most = int(np.argmax(shares))
    return {
        "groups": len(names),
        "expected": round(float(np.mean(expected)), 6),
        "flagged": round(float(np.mean(shares)), 6),
        "most": round(shares[most], 6),
        "most_group": str(names[most]),
    }


def told(facts):
    """The facts of `new_group` -> lines for the summary."""
    groups, flagged, expected = facts["groups"], facts["flagged"], facts["expected"]
    lines = [
        f"a new group: {100 * flagged:.1f} % of its normal images would be flagged, where {100 * expected:.1f} % are "
        f"expected, if it is like the {groups} held-out groups (each was judged by the threshold of the others); the "
        f"most is {100 * facts['most']:.1f} %, for {facts['most_group']!r}; more has a chance of 1 in {groups + 1}"
    ]
    if flagged > 2 * expected:
        lines.append(
            f"a new group has about {flagged / expected:.0f} times the false alarms: "
            "calibrate with normal images of it (`residuald calibrate --by`) before you trust its alerts"
        )
    return lines
