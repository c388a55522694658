import dataclasses
import json

import numpy as np
import pytest

from sld_core.evaluation.metrics import QueryResult, accuracy, format_table, summarize
from sld_core.evaluation.report import write_report
from sld_core.geometry import make_transform, rotation_from_vector
from sld_core.types import SceneReport


def result(cm: float, deg: float = 0.0, accepted: bool = True, ms: float = 10.0) -> QueryResult:
    T_true = make_transform(
        rotation_from_vector(np.array([0.3, -0.2, 0.5])), np.array([1.0, 2.0, 3.0])
    )
    error = make_transform(rotation_from_vector(np.radians([0, deg, 0.0])), np.zeros(3))
    T_estimated = T_true @ error
    T_estimated[:3, 3] += [0, cm / 100, 0]
    return QueryResult(
        "frame",
        T_true,
        T_estimated if accepted else None,
        "" if accepted else "too few landmarks",
        ms / 1000,
    )


RESULTS = [
    result(1, 1),
    result(1, 3),
    result(4, 4),
    result(8, 1),
    result(60, 1),
    result(3, 11),
    result(0, accepted=False, ms=50),
    result(0, accepted=False),
]


def test_recall_counts_over_all_queries_and_needs_both_position_and_rotation():
    metrics = accuracy(RESULTS)
    assert metrics["queries"] == 8 and metrics["accepted"] == 6
    assert metrics["recall_2cm_2deg"] == pytest.approx(1 / 8)
    assert metrics["recall_5cm_5deg"] == pytest.approx(3 / 8)
    assert metrics["recall_10cm_10deg"] == pytest.approx(4 / 8)


def test_medians_and_percentile_are_over_accepted_fixes():
    metrics = accuracy(RESULTS)
    assert metrics["median_cm"] == pytest.approx(3.5)  # 1 1 3 4 8 60
    assert metrics["median_deg"] == pytest.approx(2.0)  # 1 1 1 3 4 11
    assert metrics["p99_cm"] == pytest.approx(
        8 + 0.95 * 52
    )  # 0.99 * 5 = 4.95 steps from the lowest


def test_a_wrong_fix_is_an_accepted_one_off_by_50_cm_or_10_degrees():
    assert accuracy(RESULTS)["wrong_fixes"] == 2
    assert accuracy([result(49, 9)])["wrong_fixes"] == 0
    assert accuracy([result(0, accepted=False)])["wrong_fixes"] == 0


def test_costs_come_from_the_report_and_the_query_times():
    report = SceneReport(
        seconds={"tracks": 20.0, "head": 12.5}, counts={}, loss_curve=[], validation={}
    )
    metrics = summarize(RESULTS, report, scene_bytes=500_000)
    assert (
        metrics["teach_s"] == 32.5
        and metrics["head_train_s"] == 12.5
        and metrics["scene_bytes"] == 500_000
    )
    assert metrics["query_ms_p50"] == pytest.approx(10)
    assert metrics["query_ms_p95"] == pytest.approx(
        10 + 0.65 * 40
    )  # 0.95 * 7 = 6.65 steps of eight sorted times


def test_nothing_accepted_gives_zero_recall_and_no_median_and_stays_json():
    metrics = summarize([result(0, accepted=False)])
    assert (
        metrics["recall_10cm_10deg"] == 0
        and metrics["median_cm"] is None
        and metrics["scene_bytes"] is None
    )
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert "median position" in format_table(metrics)


def test_the_table_shows_tf_beside_pose():
    metrics = summarize(RESULTS)
    lines = format_table(
        metrics | {f"tf_{key}": value for key, value in accuracy(RESULTS[:1]).items()}
    ).splitlines()
    assert lines[0].split() == ["~/pose", "TF"]
    assert next(line for line in lines if line.startswith("recall 5 cm")).split()[-2:] == [
        "37.5%",
        "100.0%",
    ]


def test_no_results_is_misuse():
    with pytest.raises(ValueError, match="at least one"):
        accuracy([])


def test_the_page_shows_what_there_is(tmp_path):
    """Two pictures always, two more of a training; queries without a right fix by name."""
    page = tmp_path / "report.html"
    write_report(page, "A scene", summarize(RESULTS), RESULTS)
    text = page.read_text()
    assert text.count("<figure>") == 2 and "Loss while" not in text
    assert "frame: too few landmarks" in text and "frame: wrong by 60 cm, 1.0 deg" in text

    curve = [(0, 3.0), (100, 1.0)]
    report = SceneReport(seconds={"head": 12.5}, counts={}, loss_curve=curve, validation={})
    drive = [r.T_true for r in RESULTS]
    landmarks = np.random.default_rng(0).normal(0, 2, (50, 3))
    options = dict(scene=report, map_poses=drive, landmarks_L3=landmarks, notes=["a < b"])
    write_report(page, "A scene", summarize(RESULTS[:1]), RESULTS[:1], **options)
    text = page.read_text()
    assert text.count("<figure>") == 4 and "Where the 12 s of teaching" in text
    assert "a &lt; b" in text and "Every query was localized, none of them wrongly." in text


def test_errors_are_held_against_their_covariance():
    """1 cm off with a sigma of 1 cm is 1; a rotation by 0.1 rad with a sigma of 0.05 is 4."""
    covariance = np.diag([1e-4] * 3 + [0.0025] * 3)
    moved = dataclasses.replace(result(1), covariance_66=covariance)
    turned = dataclasses.replace(result(0, np.degrees(0.1)), covariance_66=covariance)
    assert moved.nees == pytest.approx(1.0) and turned.nees == pytest.approx(4.0)
    far = dataclasses.replace(result(10), covariance_66=covariance)
    metrics = accuracy([moved, turned, far, result(0, accepted=False)])
    assert metrics["inside_95"] == pytest.approx(2 / 3)
    assert metrics["nees_median"] == pytest.approx(4.0)
    assert accuracy([result(1)])["inside_95"] is None
