"""Rows that a schema refuses: how many, why, and an example of each reason."""

import numpy as np
import residuald

from .. import TrainerError
from ..console import say

MOST_REASONS = 3
LOOKED_AT = 1000  # most refused rows in which examples are searched
LONGEST_EXAMPLE = 160  # characters of a record


def say_refusals(table, features, accepted, refused):
    """Says how many rows are refused, and for what. `accepted`: bool [rows]; `refused`: Counter {reason: rows}.

    Raises TrainerError if all rows are refused.
    """
    count = int((~accepted).sum())
    if not count:
        return
    reasons = "; ".join(f"{rows} × {reason}" for reason, rows in refused.most_common(MOST_REASONS))
    more = sum(rows for _, rows in refused.most_common()[MOST_REASONS:])
    reasons += f"; {more} for other reasons" if more else ""
    if not accepted.any():
        raise TrainerError(f"the schema refuses all {count} rows: {reasons}; edit the schema or the data")
    say(f"the schema refuses {count} of {len(accepted)} rows, which are left out: {reasons}")
    say(*(f"  {reason}, for instance in {record}" for reason, record in examples(table, features, accepted, refused)))


def examples(table, features, accepted, refused):
    """The first record of each of the most frequent reasons -> [(reason, JSON text, cut)]."""
    wanted, found = [reason for reason, _ in refused.most_common(MOST_REASONS)], {}
    schema = residuald.Schema([feature.to_json() for feature in features])
    for row in np.flatnonzero(~accepted)[:LOOKED_AT]:
        record = table.record(int(row))
        try:
            schema.decode(record)
        except residuald.RefusedError as error:
            text = " ".join(record.decode(errors="replace").split())
            short = text if len(text) <= LONGEST_EXAMPLE else f"{text[:LONGEST_EXAMPLE]}…"
            found.setdefault(str(error), short)
        if all(reason in found for reason in wanted):
            break
    return [(reason, found[reason]) for reason in wanted if reason in found]
