"""`sld bench paper`: equal recall, resumable steps, the page and its numbers; no training beyond a
second."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from sld_core import cli, stages
from sld_core.bench.paper import plan as paper_plan
from sld_core.bench.paper import report, scenes
from sld_core.bench.paper import steps as paper_steps
from sld_core.bench.paper.presets import PRESETS, SCENES, Preset, scaled_down
from sld_core.bench.paper.report import first_reached, speedup
from sld_core.bench.paper.scenes import Bench, evaluate, recorded
from sld_core.bench.paper.steps import Step
from sld_core.config.settings import override
from sld_core.stages import Done
from sld_core.types import (
    Camera,
    Detections,
    Frame,
    Localization,
    PoseEstimate,
    SldError,
    Visibility,
)

NOTHING = Detections(np.zeros(0, int), np.zeros((0, 2)), np.zeros(0), np.zeros(0))


# equal recall -------------------------------------------------------------------------------------


def test_speedup_at_the_best_recall_of_the_slow_one():
    slow = [(10.0, 0.0), (50.0, 0.3), (100.0, 0.6), (200.0, 0.5)]
    fast = [(1.0, 0.1), (4.0, 0.62), (8.0, 0.9)]
    assert speedup(slow, fast) == {"recall": 0.6, "slow_s": 100.0, "fast_s": 4.0, "speedup": 25.0}
    assert speedup(slow, fast, 0.3) == {
        "recall": 0.3,
        "slow_s": 50.0,
        "fast_s": 4.0,
        "speedup": 12.5,
    }


def test_no_speedup_where_there_is_nothing_to_compare():
    assert (
        speedup([(10.0, 0.0)], [(1.0, 0.9)])["speedup"] is None
    )  # the slow one found nothing: any ratio would be a fancy
    assert speedup([], [(1.0, 0.9)])["speedup"] is None
    assert speedup([(10.0, 0.5)], [(1.0, 0.4)]) == {
        "recall": 0.5,
        "slow_s": 10.0,
        "fast_s": None,
        "speedup": None,
    }


def test_the_first_time_counts_even_where_recall_falls_later():
    assert first_reached([(1, 0.2), (2, 0.7), (3, 0.1)], 0.5) == 2
    assert first_reached([(1, 0.2)], 0.5) is None


# steps --------------------------------------------------------------------------------------------


class Count:
    def __init__(self, answer=None, error=None):
        self.calls, self.answer, self.error = 0, answer or {"n": 1}, error

    def __call__(self, folder, found):
        self.calls += 1
        if self.error:
            raise self.error
        return self.answer


def test_a_second_call_goes_on_where_the_first_ended(tmp_path):
    first, broken = Count(), Count(error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        paper_steps.run([Step("a", 1, first), Step("b", 1, broken)], tmp_path, 100)
    second, third = Count(), Count({"n": 3})
    done, missing = paper_steps.run([Step("a", 1, second), Step("b", 1, third)], tmp_path, 100)
    assert (first.calls, second.calls, third.calls) == (1, 0, 1)
    assert missing == {} and done["b"].found == {"n": 3}
    assert json.loads((tmp_path / "b" / "stage.json").read_text())["found"] == {"n": 3}


def test_a_step_is_redone_when_its_settings_or_what_it_needs_changed(tmp_path):
    def calls(settings):
        a, b = Count(), Count()
        paper_steps.run([Step("a", 1, a, settings), Step("b", 1, b, needs=("a",))], tmp_path, 100)
        return a.calls, b.calls

    assert calls({"landmarks": 20}) == (1, 1)
    assert calls({"landmarks": 20}) == (0, 0)
    assert calls({"landmarks": 30}) == (1, 1)


def test_a_method_that_fails_does_not_stop_the_others(tmp_path):
    steps = [
        Step("a", 1, Count(error=SldError("too dark"))),
        Step("b", 1, Count(), needs=("a",)),
        Step("c", 1, Count()),
    ]
    done, missing = paper_steps.run(steps, tmp_path, 100)
    assert list(done) == ["c"]
    assert missing == {"a": "failed: too dark", "b": "needs a"}
    assert not paper_steps.run([Step("a", 1, Count())], tmp_path, 100)[
        1
    ]  # a failure is not remembered


def test_what_would_end_too_late_is_left_out_and_done_by_the_next_call(tmp_path):
    now = [0.0]

    class Slow(Count):
        def __call__(self, folder, found):
            now[0] += 50
            return super().__call__(folder, found)

    steps = [Step("a", 50, Slow()), Step("b", 60, Slow()), Step("c", 40, Slow())]
    done, missing = paper_steps.run(steps, tmp_path, 100, lambda: now[0])
    assert list(done) == ["a", "c"]
    assert missing == {"b": "takes about 60 s, 50 s were left; call again to continue"}
    assert list(paper_steps.run(steps, tmp_path, 100, lambda: now[0])[0]) == ["a", "b", "c"]


# scenes -------------------------------------------------------------------------------------------


def test_a_set_without_its_lists_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(SldError, match="map.txt: no such file.*--scenes"):
        recorded(tmp_path / "attic", tmp_path, Preset())


def test_a_room_is_rendered_once_and_its_queries_are_another_drive(tmp_path, monkeypatch):
    class Grey:
        def render(self, camera, T_world_camera, noise):
            return np.full((camera.height, camera.width, 3), 128, np.uint8), np.ones(
                (camera.height, camera.width), np.float32
            )

    monkeypatch.setattr(scenes.Room, "make", lambda seed: Grey())
    bench = Bench(tmp_path, tmp_path, Preset(room_frames=10, room_queries=3))
    place = bench.scene("room2")
    assert (len(place.frames), len(place.queries), place.frames[0].camera.width) == (10, 3, 640)
    assert not {f.image_path for f in place.frames} & {f.image_path for f in place.queries}
    written = place.frames[0].image_path.stat().st_mtime_ns
    assert bench.scene("room2").frames[0].image_path.stat().st_mtime_ns == written


def test_evaluation_counts_what_is_found_and_moves_answers_back(tmp_path):
    frames = [_frame(tmp_path, i) for i in range(4)]
    origin_3 = np.array([3.0, 0.0, 0.0])

    def localize(image_HW3, camera):
        i = int(image_HW3[0, 0, 0]) // 50
        if i == 3:
            return Localization(None, "too dark", NOTHING)
        T = frames[i].T_world_camera.copy()
        T[:3, 3] += [0, 0.04 * i, 0] - origin_3  # 0, 4 and 8 cm off
        return Localization(PoseEstimate(T, np.eye(6), np.zeros(0, bool), 1.0), "", NOTHING)

    found = evaluate(localize, frames, origin_3)
    assert (
        found["queries"],
        found["accepted"],
        found["recall_5cm_5deg"],
        found["recall_10cm_10deg"],
    ) == (4, 3, 0.5, 0.75)
    assert found["median_cm"] == pytest.approx(4)


def _frame(folder, i):
    path = folder / f"{i}.png"
    cv2.imwrite(str(path), np.full((16, 16, 3), 50 * i, np.uint8))
    T = np.eye(4)
    T[0, 3] = i
    return Frame(str(i), path, Camera(16, 16, 16.0, 16.0, 8.0, 8.0), T)


# the plan -----------------------------------------------------------------------------------------


def plan(settings=(), scenes=("kitchen", "office"), data="/data"):
    return paper_plan.steps(
        Bench(Path(data), Path("/out"), override(PRESETS["cpu"], list(settings))), scenes
    )


def test_every_headline_and_both_tables_have_a_step_for_them():
    names = [step.name for step in plan()]
    assert len(set(names)) == len(names)
    for name in (
        "cells kitchen",
        "paper kitchen",
        "sld_star kitchen",
        "curves kitchen",
        "prototype kitchen",
        "coordinates kitchen",
        "backbone",
        "paper kitchen on backbone",
        "cells kitchen on backbone",
        "fill",
        "cells office",
        "sld_star office",
    ):
        assert name in names


def test_the_multi_scene_backbone_never_sees_the_first_scene():
    backbone = next(step for step in plan() if step.name == "backbone")
    assert backbone.make.args[1] == ["office", "room1"]
    with pytest.raises(SldError, match="nothing to learn from"):
        plan(["rooms=0"], ["kitchen"])


def test_only_the_steps_that_a_setting_concerns_are_redone():
    def changed(setting):
        return {
            a.name.split()[0]
            for a, b in zip(plan(), plan([setting]))
            if stages.key_of(a.settings) != stages.key_of(b.settings)
        }

    assert changed("sld_star.target.loss=focal") == {"sld_star", "nbe"}
    assert changed("backbone.epochs=7") == {
        "backbone"
    }  # those on it follow because it is made anew
    assert changed("scene.head.heatmap.width=64") == {
        "cells",
        "paper",
        "prototype",
        "curves",
        "backbone",
    }
    assert changed("scene.landmarks.count=20") == {step.name.split()[0] for step in plan()}


def test_the_cpu_preset_ends_within_the_hour_by_its_own_estimate():
    preset = PRESETS["cpu"]
    assert preset.limit_s <= 3600 - 100  # for the page
    assert sum(step.about_s for step in plan(scenes=SCENES)) <= preset.limit_s


# the page -----------------------------------------------------------------------------------------


def row(scene, method, recall, table=1):
    return {
        "table": table,
        "scene": scene,
        "method": method,
        "train_s": 12.0,
        "fill_s": None,
        "recall_5cm_5deg": recall,
        "recall_2cm_2deg": 0.1,
        "accepted": 5,
        "queries": 6,
        "median_cm": None,
        "median_deg": 0.5,
        "mb": 1.0,
        "query_ms": 30.0,
    }


def done(**found):
    return {
        name.replace("_kitchen", " kitchen"): Done(Path(), "", value, 7.0)
        for name, value in found.items()
    }


FOUND = done(
    paper_kitchen={
        "rows": [row("kitchen", "paper", 0.7)],
        "curves": {"paper": [(40.0, 0.3), (90.0, 0.7)]},
    },
    cells_kitchen={"rows": [row("kitchen", "cells", 0.9), row("office", "cells", 0.4)]},
    sld_star_kitchen={
        "rows": [row("kitchen", "sld_star", 0.5)],
        "curves": {"sld_star": [(200.0, 0.2), (400.0, 0.5)]},
    },
    curves_kitchen={
        "curves": {
            "cells": [(11.0, 0.4), (16.0, 0.8)],
            "cells, buffer filled before": [(1.0, 0.4), (6.0, 0.8)],
        }
    },
    backbone={"rows": [row("office", "its own head", 0.3, 2)]},
    fill={"fill": [{"processes": 1, "seconds": 10.0}, {"processes": 2, "seconds": 8.0}]},
)


def test_metrics_hold_the_contract():
    numbers = report.metrics(FOUND, "kitchen", {"preset": "cpu", "machine": "a toaster"})
    assert [
        numbers[f"{name}_recall_5cm_5deg"] for name in ("paper_head", "default_head", "sld_star")
    ] == [0.7, 0.9, 0.5]
    assert numbers["speedup_to_equal_recall"] == 400 / 16  # filling the buffer counts
    assert numbers["speedup_to_equal_recall_head_only"] == 400 / 6
    assert numbers["speedup_to_equal_recall_paper_head"] == 400 / 90
    assert [(r["scene"], r["method"]) for r in numbers["rows"] if r["table"] == 2] == [
        ("office", "its own head"),
        ("office", "cells"),
    ]


def test_metrics_of_a_run_that_got_nowhere_are_none():
    numbers = report.metrics({}, "kitchen", {})
    for key in (
        "speedup_to_equal_recall",
        "paper_head_recall_5cm_5deg",
        "default_head_recall_5cm_5deg",
        "sld_star_recall_5cm_5deg",
    ):
        assert numbers[key] is None


def test_the_page_shows_tables_pictures_what_was_scaled_down_and_what_is_missing(tmp_path):
    numbers = report.metrics(FOUND, "kitchen", {"preset": "cpu", "machine": "a toaster"})
    report.write(
        tmp_path,
        numbers,
        scaled_down(PRESETS["cpu"], SCENES),
        {"coordinates desk": "failed: too dark"},
        [tmp_path / "steps" / "backbone" / "figure7.png"],
    )
    text = (tmp_path / "paper.md").read_text()
    assert (
        "| kitchen | cells | 12 | - | **90.0%** |" in text
        and "| kitchen | paper | 12 | - | 70.0% |" in text
    )
    assert "| 50.0% | 400 s | 90.0 s (4x) | 16.0 s (25x) | 6.0 s (67x) |" in text
    assert "| 80.0% | not in 400 s | not reached | 16.0 s (over 25x) | 6.0 s (over 67x) |" in text
    assert "| 2 | 8.0 | 1.25 |" in text
    assert (
        "- landmarks: 300 of each scene" in text and "- coordinates desk: failed: too dark" in text
    )
    assert "](steps/backbone/figure7.png)" in text
    for name in ("recall.png", "fill.png"):
        assert f"({name})" in text and (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "metrics.json").read_text())["speedup_to_equal_recall"] == 25


def test_where_the_baseline_found_nothing_the_page_says_so_instead_of_a_ratio():
    found = FOUND | done(
        sld_star_kitchen={
            "rows": [row("kitchen", "sld_star", 0.0)],
            "curves": {"sld_star": [(400.0, 0.0)]},
        }
    )
    numbers = report.metrics(found, "kitchen", {"preset": "cpu", "machine": "a toaster"})
    assert numbers["speedup_to_equal_recall"] is None
    assert (
        numbers["speedup_at_least"] == 400 / 11
    )  # it needs more than 400 s to 40 %, the head 11 s
    assert "no query within 5 cm / 5 deg in 400 s" in report.markdown(numbers, [], {})


def test_the_command_refuses_bad_input_in_one_line(tmp_path, capsys):
    from sld_core.cli import main

    base = ["bench", "paper", "--output", str(tmp_path), "--data", str(tmp_path)]
    twice = ["--scenes", "a", "a"]
    for more, text in (
        (["--set", "sofas=3"], "no such setting"),
        (twice, "names a scene twice"),
        ([], "map.txt: no such file"),
    ):
        assert main(base + more) == 2
        error = capsys.readouterr().err
        assert text in error and len(error.splitlines()) == 1


def test_heads_of_backbone_training_are_decoded_as_they_are_validated():
    """A bump half a cell aside its peak: the squared centroid over five cells finds it, the plain
    one over three does not."""
    from sld_core import heatmap
    from sld_core.bench.paper.baseline_methods import TrainedHead
    from sld_core.config.training import BackboneTrainingConfig
    from sld_core.training.targets import render

    target, _ = render(
        torch.tensor([[[60.0, 52.0]]]),
        torch.ones(1, 1, dtype=torch.uint8) * Visibility.VISIBLE,
        (12, 12),
        8.0,
    )
    config = override(BackboneTrainingConfig(), ["target.loss=squares"])
    found = heatmap.decode(
        TrainedHead(lambda _: target, config)(torch.zeros(4, 12, 12)), config.scene.decode
    )
    np.testing.assert_allclose(found.xy_px_K2, [[60, 52]], atol=0.2)


def test_a_method_that_lacks_memory_does_not_stop_the_others(tmp_path):
    steps = [
        Step("a", 1, Count(error=RuntimeError("CUDA out of memory\nand more"))),
        Step("b", 1, Count()),
    ]
    done, missing = paper_steps.run(steps, tmp_path, 100)
    assert list(done) == ["b"] and missing == {"a": "failed: CUDA out of memory"}


def test_the_gpu_preset_runs_on_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "paper", "--preset", "gpu", "--output", str(tmp_path)]) == 2
    assert "device cuda: torch finds no CUDA device" in capsys.readouterr().err
