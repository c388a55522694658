"""How good localization is over a set of queries: recall, medians, wrong fixes, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sld_core.geometry import pose_difference, pose_error
from sld_core.types import SceneReport

RECALL_CM_DEG = ((2, 2), (5, 5), (10, 10))
INSIDE_95 = 12.592  # of chi-squared with 6 degrees of freedom
WRONG_FIX_M = 0.5
WRONG_FIX_RAD = np.radians(10.0)
UNITLESS = ("queries", "accepted", "median_deg")  # of `accuracy`: valid in scenes without scale
HEAD_STAGE = "head"  # of SceneReport.seconds: head training

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class QueryResult:
    """The localization of one query image whose pose is known. Poses are camera to map, 4x4,
    metres; where there was no fix, `T_estimated` is None and `reason` says why. `seconds` of
    computation, NaN if unknown. `covariance_66` is that of PoseEstimate, with the noise of the true
    pose added where there is any; None if unknown."""

    name: str
    T_true: np.ndarray
    T_estimated: np.ndarray | None
    reason: str = ""
    seconds: float = float("nan")
    covariance_66: np.ndarray | None = None

    @property
    def accepted(self) -> bool:
        return self.T_estimated is not None

    @cached_property
    def errors(self) -> tuple[float, float]:
        """Position (metres) and rotation (radians); infinite where there was no fix."""
        if self.T_estimated is None:
            return np.inf, np.inf
        return pose_error(self.T_true, self.T_estimated)

    @property
    def nees(self) -> float:
        """Squared error in units of its covariance, about 6 where that is true; NaN if unknown."""
        if self.T_estimated is None or self.covariance_66 is None:
            return float("nan")
        error_6 = pose_difference(self.T_true, self.T_estimated)
        return float(error_6 @ np.linalg.solve(self.covariance_66, error_6))

    @property
    def is_wrong_fix(self) -> bool:
        """Accepted, but off by more than 50 cm or 10 degrees."""
        metres, radians = self.errors
        return self.accepted and (metres > WRONG_FIX_M or radians > WRONG_FIX_RAD)


def summarize(
    results: Sequence[QueryResult],
    report: SceneReport | None = None,
    scene_bytes: int | None = None,
) -> Metrics:
    """Accuracy, and the cost of teaching, of a query and of storage; None where unknown."""
    ms = 1000 * np.array([r.seconds for r in results])
    return accuracy(results) | {
        "teach_s": report.teach_s if report else None,
        "head_train_s": report.seconds.get(HEAD_STAGE, 0.0) if report else None,
        "query_ms_p50": _percentile(ms, 50),
        "query_ms_p95": _percentile(ms, 95),
        "scene_bytes": scene_bytes,
    }


def accuracy(results: Sequence[QueryResult]) -> Metrics:
    """Recall (0..1) over all queries, those without a fix included; medians and 99 % over accepted
    fixes."""
    if not results:
        raise ValueError("no query results: expected at least one to evaluate")
    metres, radians = np.array([r.errors for r in results]).T
    accepted = np.array([r.accepted for r in results])
    centimetres, degrees = 100 * metres, np.degrees(radians)
    nees = np.array([r.nees for r in results])
    nees = nees[np.isfinite(nees)]
    recall = {
        f"recall_{cm}cm_{deg}deg": float(np.mean((metres <= cm / 100) & (degrees <= deg)))
        for cm, deg in RECALL_CM_DEG
    }
    return {
        "queries": len(results),
        "accepted": int(accepted.sum()),
        **recall,
        "median_cm": _percentile(centimetres[accepted], 50),
        "median_deg": _percentile(degrees[accepted], 50),
        "p99_cm": _percentile(centimetres[accepted], 99),
        "wrong_fixes": sum(bool(r.is_wrong_fix) for r in results),
        "nees_median": _percentile(nees, 50),
        "inside_95": float(np.mean(nees < INSIDE_95)) if len(nees) else None,
    }


ROWS = (  # label, key of the metrics, how to print the value
    ("queries", "queries", "{:d}"),
    ("accepted fixes", "accepted", "{:d}"),
    ("recall 2 cm / 2 deg", "recall_2cm_2deg", "{:.1%}"),
    ("recall 5 cm / 5 deg", "recall_5cm_5deg", "{:.1%}"),
    ("recall 10 cm / 10 deg", "recall_10cm_10deg", "{:.1%}"),
    ("median position", "median_cm", "{:.2f} cm"),
    ("median rotation", "median_deg", "{:.2f} deg"),
    ("99 % of positions within", "p99_cm", "{:.1f} cm"),
    ("wrong fixes (> 50 cm or > 10 deg)", "wrong_fixes", "{:d}"),
    ("errors inside the 95 % ellipsoid", "inside_95", "{:.0%}"),
    ("median squared error / covariance", "nees_median", "{:.1f}"),
    ("teaching the scene", "teach_s", "{:.1f} s"),
    ("  of which head training", "head_train_s", "{:.1f} s"),
    ("query time, median", "query_ms_p50", "{:.0f} ms"),
    ("query time, 95 %", "query_ms_p95", "{:.0f} ms"),
    ("scene file", "scene_bytes", "{:,d} bytes"),
)


def table_rows(metrics: Metrics) -> list[list[str]]:
    """Label and printed value of every metric, and of its `tf_` counterpart where there are any."""
    prefixes = ("", "tf_") if any(key.startswith("tf_") for key in metrics) else ("",)
    return [
        [label, *(_printed(metrics, prefix + key, form) for prefix in prefixes)]
        for label, key, form in ROWS
    ]


def format_table(metrics: Metrics) -> str:
    """The metrics as lines of text for a terminal."""
    rows = table_rows(metrics)
    if len(rows[0]) == 3:
        rows.insert(0, ["", "~/pose", "TF"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))
        for row in rows
    )


def _printed(metrics: Metrics, key: str, form: str) -> str:
    if key not in metrics:
        return ""
    return "-" if metrics[key] is None else form.format(metrics[key])


def _percentile(values: np.ndarray, percent: float) -> float | None:
    values = values[np.isfinite(values)]
    return float(np.percentile(values, percent)) if len(values) else None
