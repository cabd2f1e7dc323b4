"""What scoring returns: a verdict for each record, as columns, as frames, and as the daemon's JSON."""

import json
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .frames import frame

Kind = Literal["pandas", "polars", "arrow", "dict"]

SEVERITIES = np.array([None, "warning", "critical"], dtype=object)


class Verdicts:
    """The verdicts on n records, in their order. The names are those of the daemon's messages.

    anomaly_score: float32 [n], at least 0. NaN for a record that was refused.
    p_value: float64 [n], the probability that a normal record scores at least this high.
    anomaly_grade: float32 [n], the score divided by the threshold. Above 1 is an anomaly.
    threshold: float32 [n].
    notes: what was left out, guessed or changed while the data were read, a sentence each.
    refused: {row: (reason, detail)} of the records that have no score. The daemon makes them dead letters.
    """

    def __init__(self, bundle: Any, outputs: dict[str, Any], kind: Kind, index: Any) -> None:
        self.bundle = bundle
        self.anomaly_score: NDArray[np.float32] = outputs["anomaly_score"]
        self.p_value: NDArray[np.float64] = outputs["p_value"]
        self.anomaly_grade: NDArray[np.float32] = outputs["anomaly_grade"]
        self.threshold: NDArray[np.float32] = outputs["threshold"]
        self.refused: dict[int, tuple[str, str]] = {row: (reason, detail) for row, reason, detail in outputs["refused"]}
        self.notes: list[str] = outputs["notes"]
        self._severity = outputs["severity"]
        self._segment = outputs["segment"]
        self._segments = np.array([*outputs["segments"], None], dtype=object)
        self._verdicts = outputs["verdicts"]
        self._maps = outputs["maps"]
        self._kind = kind
        self._index = index

    def like(self, kind: Kind, index: Any) -> "Verdicts":
        """Makes frames of that kind by default, with that index of a pandas frame. Returns self."""
        self._kind, self._index = kind, index
        return self

    def __len__(self) -> int:
        return len(self.anomaly_score)

    def __repr__(self) -> str:
        refused = f", {len(self.refused)} refused" if self.refused else ""
        return f"<Verdicts on {len(self)} records: {int(self.is_anomaly.sum())} anomalies{refused}>"

    @property
    def is_anomaly(self) -> NDArray[np.bool_]:
        """bool [n]. False for a record that was refused."""
        return self._severity > 0

    @property
    def severity(self) -> NDArray[np.object_]:
        """object [n]: None, "warning" or "critical"."""
        return SEVERITIES[self._severity]

    @property
    def segment(self) -> NDArray[np.object_]:
        """object [n]: the segment whose threshold applies. None = the threshold of all records."""
        return self._segments[self._segment]

    @cached_property
    def verdicts(self) -> dict[int, dict[str, Any]]:
        """{row: the verdict as a dict} of the explained records, as the daemon publishes it."""
        return {row: json.loads(text) for row, text in self._verdicts}

    @property
    def maps(self) -> dict[int, tuple[bytes, bytes]]:
        """{row: (heatmap, reconstruction)} of the explained images, each a PNG as bytes."""
        return {row: (heatmap, reconstruction) for row, heatmap, reconstruction in self._maps}

    def refusals(self) -> dict[str, tuple[int, str]]:
        """{reason: (count, example)}, the most frequent first."""
        counts: dict[str, tuple[int, str]] = {}
        for reason, detail in self.refused.values():
            count, example = counts.get(reason, (0, detail))
            counts[reason] = count + 1, example
        return dict(sorted(counts.items(), key=lambda entry: -entry[1][0]))

    def frame(self, kind: Kind | None = None) -> Any:
        """A row for each record: score, p-value, grade, threshold, severity, segment, the first reason, and `refused`.

        kind: "pandas", "polars", "arrow", or "dict" for columns. Default: what was scored. Keeps the index of a pandas
        frame.
        """
        first = np.full(len(self), None, dtype=object)
        for row, verdict in self.verdicts.items():
            reasons = verdict.get("relevant_attribution") or [{}]
            first[row] = reasons[0].get("feature")
        refused = np.full(len(self), None, dtype=object)
        for row, (reason, detail) in self.refused.items():
            refused[row] = f"{reason}: {detail}"
        columns = {
            "anomaly_score": self.anomaly_score,
            "p_value": self.p_value,
            "anomaly_grade": self.anomaly_grade,
            "threshold": self.threshold,
            "is_anomaly": self.is_anomaly,
            "severity": self.severity,
        }
        columns |= {"segment": self.segment} if len(self._segments) > 1 else {}
        columns |= {"reason": first} if self.bundle.kind == "tabular" else {}
        return frame(columns | {"refused": refused}, kind or self._kind, self._index)

    def reasons(self, kind: Kind | None = None) -> Any:
        """A row for each reason of the explained records, the largest share first.

        For tables: row, feature, share, observed, expected, unit. `row` counts from 0, or is the index of a pandas
        frame. Observed and expected values are text here, because a column mixes numbers and categories; `verdicts`
        has them as they are. For images: row, x, y, width, height, share, area of each region, in pixels.
        """
        image = self.bundle.kind == "image"
        found, part = [], "regions" if image else "relevant_attribution"
        for row, verdict in self.verdicts.items():
            found += [(row, reason) for reason in verdict[part]]
        rows = np.array([row for row, _ in found], dtype=np.int64)
        columns = {"row": rows if self._index is None else self._index[rows]}
        if image:
            for name in ("x", "y", "width", "height", "share", "area"):
                columns[name] = np.array([reason[name] for _, reason in found])
            return frame(columns, kind or self._kind, None)
        columns["feature"] = np.array([reason["feature"] for _, reason in found], dtype=object)
        columns["share"] = np.array([reason["share"] for _, reason in found], dtype=np.float32)
        for name in ("observed", "expected"):
            columns[name] = np.array([shown(reason[name]) for _, reason in found], dtype=object)
        columns["unit"] = np.array([reason.get("unit") for _, reason in found], dtype=object)
        return frame(columns, kind or self._kind, None)


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
