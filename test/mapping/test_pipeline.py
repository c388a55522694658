"""`sld map` through the command line: images in, a dataset out, all at once or by stages; and what
cannot be used."""

import json
import os
import re
import shutil
import struct
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pycolmap
import pytest
from bag_messages import SECOND, START, compressed_image, write_mcap
from small_room import CAMERA, against, shoot, sway, write, write_photos

from sld_core import cli
from sld_core.camera.images import read_image
from sld_core.commands import map as map_command
from sld_core.config.mapping import MapConfig
from sld_core.config.settings import override
from sld_core.data.formats import indoor6
from sld_core.data.formats.indoor6 import read_scene_data
from sld_core.geometry import pose_error, similarity
from sld_core.localizer import Localizer
from sld_core.mapping import pipeline
from sld_core.sfm.reconstruction_file import read_reconstruction, write_reconstruction
from sld_core.types import SldError

POSES = sway(14)
STAGES = ["frames", "sfm", "metric", "depth", "landmarks", "labels", "dataset"]
# settings that have a stage made again
OTHERWISE = {
    "metric": ["--set", "metric.max_tilt_deg=34"],
    "labels": ["--set", "labels.depth_reach_px=2"],
}
FEW = ["--set", "landmarks.min_views=4", "--set", "landmarks.count=200"]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


# sld map all: photographs with depth --------------------------------------------------------------


def sld(*args):
    return cli.main(["map", *map(str, args)])


def stamps_of(output):
    return {stage: (output / "work" / stage / "stage.json").stat().st_mtime_ns for stage in STAGES}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), POSES, with_depth=True)


@pytest.fixture(scope="module")
def mapped(photos, tmp_path_factory):
    """A finished map of the photographs, and what `--json` said."""
    output = tmp_path_factory.mktemp("map") / "corner"
    told = output.parent / "out.json"
    assert sld("all", "--images", photos, "--output", output, "--json", told, *FEW) == 0
    return output, json.loads(told.read_text())


def test_photographs_with_depth_become_a_metric_dataset(mapped):
    output, told = mapped
    assert told["images"] == told["registered"] == 14
    assert told["metric"] and told["scale_source"] == "depth"
    assert 0 < told["reprojection_px"] < 1 and told["pieces"] == [14]
    assert told["lost"] == told["rejected"] == {}
    assert list(told["seconds"]) == STAGES and all(s >= 0 for s in told["seconds"].values())
    data = read_scene_data(output)
    assert data.metric and len(data.frames) == 14 == len(data.split_F)
    assert set(data.split_F) <= {"train", "val", "test"}
    assert len(data.landmarks) == told["landmarks"] >= 30 and data.visibility_FL.shape == (
        14,
        len(data.landmarks),
    )
    fit = against(data.frames, POSES)
    assert abs(fit.scale - 1) < 0.02 and fit.median_m < 0.015  # metres, to 2 %
    # landmarks lie on what the cameras see: the rendered depth at their pixels says so
    assert np.median(surface_errors(data, fit)) < 0.02
    assert {"scene.json", "report.html", "train_test_val.pkl", "sld-map.json", "work"} <= set(
        names(output)
    )
    assert names(output / "work") == sorted(STAGES)  # nothing half-made
    assert "Map of corner" in (output / "report.html").read_text()


def surface_errors(data, fit):
    """Relative difference of landmarks' depth to the rendered one, where the dataset calls them
    visible."""
    out, xyz = [], fit.points(data.landmarks.xyz_L3)
    for i, visible_L in enumerate(data.visibility_FL):
        depth = shoot(POSES[i], i)[1] / 1000
        seen = (xyz[visible_L == 1] - POSES[i][:3, 3]) @ POSES[i][:3, :3]
        x, y = (seen[:, :2] / seen[:, 2:] * 300 + [160.5, 120.5]).astype(int).T
        inside = (x >= 0) & (x < 320) & (y >= 0) & (y < 240)
        out.append(np.abs(seen[inside, 2] / depth[y[inside], x[inside]] - 1))
    return np.concatenate(out)


def test_what_is_done_is_not_done_again(mapped, photos, tmp_path, monkeypatch):
    output, told = mapped
    before = stamps_of(output)
    with monkeypatch.context() as patch:
        for work in (
            "sfm.solve.solve",
            "data.formats.indoor6.write_scene_data",
            "landmarks.visibility.label_and_report",
        ):
            patch.setattr(f"sld_core.{work}", None)
        again = tmp_path / "again.json"
        assert sld("all", "--images", photos, "--output", output, "--json", again, *FEW) == 0
    assert json.loads(again.read_text()) == told and stamps_of(output) == before


def test_a_stage_alone_redoes_only_what_follows(mapped, photos, tmp_path):
    output = tmp_path / "moved"  # a copy: work may be moved as a whole
    shutil.copytree(mapped[0], output)
    before = stamps_of(output)
    fewer = [*FEW[:2], "--set", "landmarks.count=20"]
    assert sld("landmarks", "--output", output, *fewer, "--json", tmp_path / "l.json") == 0
    found = json.loads((tmp_path / "l.json").read_text())
    assert found["landmarks"] == 20 and list(found["seconds"]) == ["landmarks"]
    assert len(read_scene_data(output).landmarks) == len(
        read_scene_data(mapped[0]).landmarks
    )  # the dataset is still the old one
    assert sld("all", "--images", photos, "--output", output, *fewer) == 0
    after = stamps_of(output)
    assert [stage for stage in STAGES if after[stage] != before[stage]] == [
        "landmarks",
        "labels",
        "dataset",
    ]
    few, many = read_scene_data(output), read_scene_data(mapped[0])
    assert np.array_equal(
        few.landmarks.xyz_L3, many.landmarks.xyz_L3[:20]
    )  # the first are the best
    assert sorted(p.name for p in output.glob("landmarks-*.txt")) == ["landmarks-20.txt"]


def test_a_stage_does_not_take_what_an_older_one_left(mapped, tmp_path, capsys):
    """Other metres: depth images of the old ones must not be compared with points of the new
    ones."""
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    assert sld("metric", "--output", output, "--set", "metric.source=none") == 0
    capsys.readouterr()
    for stage in ("landmarks", "labels", "dataset"):
        assert sld(stage, "--output", output, *FEW) == 2
        assert (
            "the stage 'depth' was done before metric changed; run `sld map depth --output "
            f"{output}` again" in one_line(capsys)
        )
    assert not json.loads((output / "work/metric/stage.json").read_text())["found"]["metric"]


def test_a_run_that_is_stopped_goes_on(mapped, photos, tmp_path, monkeypatch):
    output, given = (
        tmp_path / "map",
        ["--images", photos, "--output", tmp_path / "map", *FEW, "--set", "sfm.max_features=2000"],
    )
    shutil.copytree(mapped[0], output)
    before = stamps_of(output)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pycolmap, "incremental_mapping", stop)
        assert sld("all", *given) == 130
    assert stamps_of(output) == before and names(output / "work") == sorted(
        [*STAGES, "sfm.partial"]
    )
    assert len(read_scene_data(output).frames) == 14  # the old one
    found = features_of(output / "work" / "sfm.partial")
    assert sld("all", *given) == 0
    assert features_of(output / "work" / "sfm") == found and names(output / "work") == sorted(
        STAGES
    )
    assert [stage for stage in STAGES if stamps_of(output)[stage] != before[stage]] == STAGES[1:]
    assert read_scene_data(output).metric


def features_of(folder):
    with pycolmap.Database.open(folder / "features.db") as database:
        return database.num_images(), database.num_keypoints(), database.num_matches()


def test_a_dataset_that_was_deleted_is_written_again(mapped, photos, tmp_path):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    for path in output.iterdir():
        if path.is_file() and path.name != "sld-map.json":
            path.unlink()
    before = stamps_of(output)
    assert sld("all", "--images", photos, "--output", output, *FEW) == 0
    assert [stage for stage in STAGES if stamps_of(output)[stage] != before[stage]] == ["dataset"]
    assert len(read_scene_data(output).frames) == 14


def test_test_images_choose_no_landmarks(mapped, photos, tmp_path):
    """Landmarks are the same when the observations of the images held out are gone."""
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    settings = [*FEW, "--set", "split.test=0.2", "--set", "split.chunk=3"]
    assert sld("landmarks", "--output", output, *settings) == 0
    chosen = landmarks_of(output)
    assert list(chosen["split_F"]).count("test") >= 2
    reconstruction = read_reconstruction(output / "work" / "metric")
    held_out = np.flatnonzero(chosen["split_F"] != "train")
    rng = np.random.default_rng(0)
    keep = ~np.isin(reconstruction.obs_frame_M, held_out) | (
        rng.random(len(reconstruction.obs_frame_M)) < 0.1
    )
    write_reconstruction(
        output / "work" / "metric",
        replace(
            reconstruction,
            obs_point_M=reconstruction.obs_point_M[keep],
            obs_frame_M=reconstruction.obs_frame_M[keep],
            obs_xy_M2=reconstruction.obs_xy_M2[keep],
        ),
    )
    shutil.rmtree(output / "work" / "landmarks")
    assert sld("landmarks", "--output", output, *settings) == 0
    assert np.array_equal(landmarks_of(output)["xyz_L3"], chosen["xyz_L3"])


def landmarks_of(output):
    with np.load(output / "work" / "landmarks" / "landmarks.npz") as data:
        return dict(data)


# sld map all: videos, no scale --------------------------------------------------------------------


def write_video(path, images, fps=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (CAMERA.width, CAMERA.height)
    )
    for image in images:
        writer.write(image[..., ::-1])
    writer.release()
    return path


def test_two_videos_of_one_name_are_two_sessions_and_a_distance_makes_them_metric(tmp_path, capsys):
    videos = [
        write_video(tmp_path / part / "drive.avi", [shoot(POSES[i], i)[0] for i in order])
        for part, order in (("first", range(7)), ("second", range(7, 14)))
    ]
    np.savetxt(tmp_path / "K.txt", [[300, 0, 160], [0, 300, 120], [0, 0, 1]])
    output, told = tmp_path / "map", tmp_path / "out.json"
    given = ["--video", *videos, "--intrinsics", tmp_path / "K.txt", "--output", output]
    assert sld("all", *given, "--json", told, *FEW) == 0
    out = capsys.readouterr().out
    assert "NOT in metres" in out and "14 of 14 images placed" in out
    found = json.loads(told.read_text())
    assert found["images"] == found["registered"] == 14 and found["sessions"] == 2
    assert not found["metric"] and found["scale_source"] == "none"
    data = read_scene_data(output)
    assert not data.metric
    assert [f.session for f in data.frames] == ["first/drive"] * 7 + ["second/drive"] * 7
    assert len({f.name for f in data.frames}) == 14 and against(data.frames, POSES).median_m < 0.03

    metres = np.linalg.norm(POSES[0][:3, 3] - POSES[6][:3, 3])
    distance = ["--distance", f"image-000000 image-000006 {metres:.6f}"]
    before = stamps_of(output)
    assert sld("metric", "--output", output, *distance) == 0
    assert '"metric": true' in capsys.readouterr().out
    assert not read_scene_data(output).metric  # of the dataset, all stages after it decide
    assert (
        sld("all", "--output", output, "--json", told, *FEW, *distance) == 0
    )  # of the images it has
    assert [stage for stage in STAGES if stamps_of(output)[stage] != before[stage]] == STAGES[2:]
    data = read_scene_data(output)
    assert data.metric and json.loads(told.read_text())["scale_source"] == "distance"
    scale, _, _ = similarity(
        np.array([f.T_world_camera[:3, 3] for f in data.frames]),
        np.array([T[:3, 3] for T in POSES]),
    )
    assert abs(scale - 1) < 0.02


# from the map to a scene that localizes -----------------------------------------------------------


def test_a_map_is_taught_and_localizes_its_own_images(mapped, tmp_path):
    """Both halves, joined by nothing but the folder between them."""
    output, scene = mapped[0], tmp_path / "corner.sld"
    teach = ["teach", "--scene-data", output, "--output", scene, "--head", "prototype"]
    assert cli.main([str(argument) for argument in teach]) == 0
    errors, localizer = [], Localizer.load(scene)
    for frame in read_scene_data(output).frames:
        pose = localizer.localize(read_image(frame.image_path), frame.camera).pose
        if pose is not None:
            errors.append(pose_error(pose.T_world_camera, frame.T_world_camera))
    assert len(errors) >= 12 and (np.median(errors, axis=0) < [0.05, np.radians(2)]).all()


# without a scale; and what became of what a stage left --------------------------------------------


def warnings_of(caplog):
    return [r.message for r in caplog.records if r.levelname == "WARNING"]


def test_depth_in_metres_is_not_used_in_a_scene_without_them(mapped, tmp_path, capsys):
    output, told = tmp_path / "map", tmp_path / "out.json"
    shutil.copytree(mapped[0], output)
    unscaled = [*FEW, "--set", "metric.source=none"]
    assert sld("all", "--output", output, "--json", told, *unscaled) == 0
    found = json.loads(told.read_text())
    assert not found["metric"] and found["depth"]["source"] == "none"
    labels = found["labels"]
    assert labels["visible"] > 0.1 and labels["tracked_hidden"] < 0.05 and labels["hidden"] < 0.5
    unused = "the depth images are not used: they are in metres"
    assert any(note.startswith(unused) for note in found["notes"])
    assert f"note: {unused}" in capsys.readouterr().out
    assert unused in (output / "report.html").read_text()
    assert not list(output.glob("*.depth.png"))
    assert sld("depth", "--output", output, "--set", "depth.source=sensor") == 2
    assert "measured depth is in metres and this scene is not" in one_line(capsys)


def test_another_model_under_the_name_of_the_first_is_another_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"one")

    def key(model):
        return pipeline.MapJob(tmp_path / "map", model=model)._own_key("depth")

    one = key("net.onnx")
    assert one == key(tmp_path / "net.onnx") != key(None)  # by whatever way it is named
    (tmp_path / "net.onnx").write_bytes(b"another")
    another = key("net.onnx")
    (tmp_path / "net.onnx.json").write_text('{"preprocessing": "raw255"}')
    assert len({one, another, key("net.onnx")}) == 3
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    assert key("folder") != key("some/hub-name") == key("some/hub-name")
    ((path, _, _),) = pipeline.model_fingerprint("folder")
    assert path == str(tmp_path / "folder" / "config.json")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_depth_images_are_made_anew(mapped, tmp_path, capsys, caplog, damage):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    path = output / "work/depth/image-000004.depth.png"
    path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2]
    ) if damage == "truncated" else path.unlink()
    assert sld("labels", "--output", output, *OTHERWISE["labels"]) == 2
    text = one_line(capsys)
    assert f"`sld map depth --output {output}`" in text
    words = (
        "image-000004.depth.png: ends too early"
        if damage == "truncated"
        else "holds 13 of 14 depth images"
    )
    assert words in text
    assert sld("all", "--output", output, *FEW) == 0
    assert (
        len(told := warnings_of(caplog)) == 1
        and "the stage 'depth' is damaged and is done again" in told[0]
        and words in told[0]
    )
    before, after = stamps_of(mapped[0]), stamps_of(output)
    assert [s for s in STAGES if after[s] != before[s]] == STAGES[3:]
    assert path.read_bytes() == (mapped[0] / path.relative_to(output)).read_bytes()


def test_a_stage_that_names_images_of_before_is_not_called_damaged(
    mapped, tmp_path, caplog, monkeypatch
):
    """It is done again because the images are others; until that is done it stays."""
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    assert (
        sld("frames", "--images", write_photos(tmp_path / "fewer", POSES[:5]), "--output", output)
        == 0
    )
    assert not (output / "work/frames/images/image-000005.jpg").exists()

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sld_core.sfm.solve.solve", stop)
    assert sld("all", "--output", output, *FEW) == 130
    assert not warnings_of(caplog) and (output / "work/sfm/stage.json").exists()


def test_a_report_that_was_deleted_is_written_again(mapped, tmp_path, caplog):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    (output / "report.html").unlink()
    before = stamps_of(output)
    assert sld("all", "--output", output, *FEW) == 0
    assert [stage for stage in STAGES if stamps_of(output)[stage] != before[stage]] == [
        "dataset"
    ] and (output / "report.html").exists()
    assert "report.html: no such file" in warnings_of(caplog)[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"format": "sld sc',
        '{"format": "sld scene data", "version": 1, "complete": false, "files": []}',
    ],
)
def test_a_damaged_scene_json_counts_as_missing(mapped, tmp_path, monkeypatch, text):
    output, written = tmp_path / "map", []
    shutil.copytree(mapped[0], output)
    (output / "scene.json").write_text(text)
    monkeypatch.setattr(indoor6, "write_scene_data", lambda folder, _: written.append(folder))
    monkeypatch.setattr("sld_core.mapping.report.report.write_map_report", lambda *_: None)
    assert sld("all", "--output", output, *FEW) == 0 and written == [output]


def test_every_stage_says_at_its_start_that_it_works(mapped, tmp_path):
    output, seen = tmp_path / "map", []
    shutil.copytree(mapped[0], output)
    under_way = pipeline.MapJob(output, override(MapConfig(), ["seed=1"]), progress=seen.append)
    under_way.run("depth")
    for stage in ("landmarks", "labels", "dataset"):
        seen.clear()
        under_way.run(stage)
        assert seen and seen[0].fraction == 0, stage


def test_a_seed_repeats_only_the_stages_that_draw_by_chance(mapped, tmp_path):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    before = stamps_of(output)
    for stage in ("metric", "labels"):
        assert sld(stage, "--output", output, "--seed", 5) == 0
    assert stamps_of(output) == before
    assert sld("landmarks", "--output", output, "--seed", 5, *FEW) == 0
    assert stamps_of(output)["landmarks"] != before["landmarks"]


@pytest.mark.parametrize("error", [SldError("the disk is full"), OSError(5, "Input/output error")])
def test_frames_that_fail_leave_no_images(photos, tmp_path, monkeypatch, error):
    def fail(images, folder, *_):
        write(folder / "image-000000.jpg", np.zeros((48, 64, 3), np.uint8))
        raise error

    monkeypatch.setattr("sld_core.data.sources.from_photos", fail)
    assert sld("frames", "--images", photos, "--output", tmp_path / "map") == 2
    assert names(tmp_path / "map/work/frames.partial") == ["stage.json"]


# what cannot be used ------------------------------------------------------------------------------


def one_line(capsys):
    """The only line on standard error besides progress, which ends in a percentage, and what
    earlier stages advise."""
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if not re.fullmatch(r"[a-z ]+: +\d+%", line)
        and not line.startswith("the dataset follows with")
    ]
    assert len(lines) == 1 and lines[0].startswith("sld: "), lines
    return lines[0]


def refused(capsys, output, *args):
    """The error of a run that is refused and leaves nothing of a dataset behind."""
    assert sld(*args, "--output", output) == 2
    assert not output.exists() or set(names(output)) <= {"sld-map.json", "work"}
    if (output / "work").exists():
        assert set(names(output / "work")) <= {"frames.partial"}
    return one_line(capsys)


def then_it_works(output, photos):
    """The folder of the refused run is of use."""
    assert sld("frames", "--images", photos, "--output", output) == 0
    assert names(output / "work") == ["frames"]


def test_a_folder_with_other_files_is_not_touched(photos, tmp_path, capsys):
    mine = tmp_path / "mine"
    (mine / "sub").mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    for stage, source in (
        ("all", ["--images", photos]),
        ("frames", ["--images", photos]),
        ("sfm", []),
    ):
        assert sld(stage, *source, "--output", mine) == 2
        assert "holds files that are not a map of sld; choose a new or empty folder" in one_line(
            capsys
        )
    assert (
        names(mine) == ["sub", "thesis.txt"]
        and (mine / "thesis.txt").read_text() == "years of work"
    )
    assert sld("frames", "--images", photos, "--output", mine / "thesis.txt") == 2
    assert "thesis.txt" in one_line(capsys)
    (tmp_path / "empty").mkdir()
    then_it_works(tmp_path / "empty", photos)


def test_a_map_does_not_lie_among_its_images(tmp_path, capsys):
    for i in range(3):
        write(tmp_path / "photos" / f"{i}.png", np.full((48, 64, 3), i, np.uint8))
    assert "lies in" in refused(
        capsys, tmp_path / "photos" / "map", "all", "--images", tmp_path / "photos"
    )
    assert names(tmp_path / "photos") == ["0.png", "1.png", "2.png"]


def test_stages_before_their_time_name_the_command_to_run(photos, tmp_path, capsys):
    output = tmp_path / "map"
    for stage, missing in (
        ("sfm", "frames"),
        ("metric", "sfm"),
        ("depth", "metric"),
        ("landmarks", "metric"),
        ("labels", "landmarks"),
        ("dataset", "labels"),
    ):
        text = refused(capsys, output, stage)
        assert (
            f"the stage {missing!r} has not been done; run `sld map {missing} --output "
            f"{output}` first, or `sld map all`" in text
        )
        assert not output.exists()  # a typing error makes no folder
    then_it_works(output, photos)
    assert sld("metric", "--output", output) == 2 and "'sfm' has not been done" in one_line(capsys)


def test_what_is_not_there_is_named(tmp_path, capsys):
    none, output = tmp_path / "none", tmp_path / "map"
    for source in (["--images", none], ["--video", none], ["--bag", none]):
        assert f"{none}: no such file or folder" in refused(capsys, output, "all", *source)
        assert not output.exists()
    write(tmp_path / "photos" / "0.png", np.zeros((48, 64, 3), np.uint8))
    assert "no such file here or in" in refused(
        capsys, output, "all", "--images", tmp_path / "photos", "--list", "nope.txt"
    )
    assert "none" in refused(
        capsys, output, "frames", "--images", tmp_path / "photos", "--intrinsics", none
    )
    assert "--list and --poses belong to --images" in refused(
        capsys, output, "frames", "--video", none, "--poses"
    )
    text = refused(
        capsys, output, "frames", "--images", tmp_path / "photos", "--set", "frames.fps=0"
    )
    assert "setting frames.fps=0.0: expected a number from" in text
    with pytest.raises(SystemExit) as stop:
        sld("frames", "--output", output)
    assert stop.value.code == 2 and "--images --video --bag is required" in capsys.readouterr().err
    assert "'frames' has not been done" in refused(capsys, output, "all") and not output.exists()
    assert "--intrinsics without images" in refused(capsys, output, "all", "--intrinsics", none)


def bag_cut_to(size):
    def make(folder):
        stamps = range(START, START + 4 * SECOND, SECOND)
        jpeg = cv2.imencode(".jpg", shoot(POSES[0])[0])[1].tobytes()
        path = write_mcap(
            folder / "bag",
            [("/image/compressed", stamp, compressed_image(stamp, jpeg)) for stamp in stamps],
        )
        path.write_bytes(path.read_bytes()[:size])
        return ["--bag", path.parent]

    return make


def no_video(content):
    def make(folder):
        path = write_video(folder / "empty.avi", [])
        if content is not None:
            path.write_bytes(content)
        return ["--video", path]

    return make


def list_that_leads_out(folder):
    write(folder / "photos" / "a.jpg", np.zeros((48, 64, 3), np.uint8))
    write(folder / "secret.jpg", np.zeros((48, 64, 3), np.uint8))
    (folder / "list.txt").write_text("a\n../secret.jpg\n")
    return ["--images", folder / "photos", "--list", folder / "list.txt"]


def intrinsics_of_another_size(folder):
    write(folder / "photos" / "a.jpg", np.zeros((48, 64, 3), np.uint8))
    (folder / "camera.yaml").write_text(
        "image_width: 640\nimage_height: 480\ndistortion_model: plumb_bob\ncamera_matrix: "
        "{data: [500, 0, 320, 0, 500, 240, 0, 0, 1]}\n"
        "distortion_coefficients: {data: [0.0, 0.0, 0.0, 0.0, 0.0]}\n"
    )
    return ["--images", folder / "photos", "--intrinsics", folder / "camera.yaml"]


def only_a_bomb(folder):
    (folder / "photos").mkdir()
    (folder / "photos" / "bomb.png").write_bytes(bomb())
    return ["--images", folder / "photos"]


def bomb():
    """A PNG file of a few kilobytes that says it has 30000 x 30000 pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def two_photographs(folder):
    for i in range(2):
        write(folder / "photos" / f"{i}.jpg", shoot(POSES[i], i)[0])
    return ["--images", folder / "photos"]


@pytest.mark.parametrize(
    "make, words",
    [
        (bag_cut_to(0), "bag"),
        (bag_cut_to(60), "bag"),
        (no_video(None), "no usable image .1 left out"),
        (no_video(b""), "the file is empty"),
        (no_video(b"#EXTM3U\nhttp://example.com/a.ts\n"), "a text file"),
        (list_that_leads_out, "leads out"),
        (intrinsics_of_another_size, "64x48 but .*camera.yaml is for 640x480"),
        (only_a_bomb, "30000x30000"),
    ],
)
def test_hostile_input_is_one_clear_error_and_no_trash(make, words, photos, tmp_path, capsys):
    text = refused(capsys, tmp_path / "map", "all", *make(tmp_path))
    assert re.search(words, text), text
    then_it_works(tmp_path / "map", photos)


def test_given_poses_are_refined_and_all_of_them_needed(photos, tmp_path, capsys):
    output, posed = tmp_path / "map", ["--set", "sfm.mapper=posed"]
    given = [
        "--images",
        write_photos(tmp_path / "photos", POSES[:6], with_intrinsics=False),
        "--output",
        output,
    ]
    assert sld("frames", *given) == 0 and sld("sfm", "--output", output, *posed) == 2
    assert "needs a calibrated camera: give --intrinsics" in one_line(capsys)
    shutil.copy(photos / "camera-intrinsics.txt", tmp_path / "photos")
    assert sld("frames", *given) == 0 and sld("sfm", "--output", output, *posed) == 2
    assert "6 of 6 have none, the first is image-000000: give --poses" in one_line(capsys)
    for i, T in enumerate(POSES[:6]):
        np.savetxt(tmp_path / "photos" / f"img-{i:03d}.pose.txt", T)
    assert sld("frames", *given, "--poses") == 0
    assert sld("sfm", "--output", output, *posed) == 0 and sld("metric", "--output", output) == 0
    told = json.loads((output / "work/metric/stage.json").read_text())["found"]
    assert told["metric"]
    assert (told["scale_source"], told["world_frame"]) == ("odometry", "given")
    poses = [f.T_world_camera for f in read_reconstruction(output / "work" / "metric").frames]
    assert np.allclose(poses, POSES[:6], atol=0.01)  # in the frame of the given poses


@pytest.mark.parametrize(
    "text, words",
    [
        ("rubbish", "rubbish"),
        ("image-000000 image-000099 2", "image-000099"),
        ("image-000000 image-000001 nan", "nan"),
    ],
)
def test_a_distance_that_cannot_be_used_leaves_the_scale_as_it_was(
    mapped, tmp_path, capsys, text, words
):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    before = stamps_of(output)
    assert (
        sld("metric", "--output", output, "--distance", text, "--set", "metric.source=distance")
        == 2
    )
    assert words in one_line(capsys) and stamps_of(output) == before


def test_damaged_photographs_among_good_ones_are_skipped_and_named(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos", POSES[:3])
    (photos / "bomb.png").write_bytes(bomb())
    (photos / "cut.jpg").write_bytes((photos / "img-000.jpg").read_bytes()[:500])
    np.savetxt(photos / "img-000.pose.txt", np.full((4, 4), np.nan))
    np.savetxt(photos / "img-001.pose.txt", POSES[1])
    given = ["--images", photos, "--poses", "--output", tmp_path / "map"]
    assert sld("frames", *given, "--json", tmp_path / "out.json") == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["images"] == 3 and told["with_pose"] == 1
    assert set(told["rejected"]) == {"bomb.png", "cut.jpg", "img-000.pose.txt"}
    assert (
        "30000x30000" in told["rejected"]["bomb.png"]
        and "0 finite" in told["rejected"]["img-000.pose.txt"]
    )


def test_images_that_cannot_be_mapped_leave_what_was_done(tmp_path, capsys):
    """Structure from motion refuses; the frames stay, and so does a map that was made before."""
    output = tmp_path / "map"
    assert sld("all", *two_photographs(tmp_path), "--output", output) == 2
    assert "2 images: at least 3 are needed" in one_line(capsys)
    assert names(output) == ["sld-map.json", "work"] and set(names(output / "work")) == {
        "frames",
        "sfm.partial",
    }


def test_a_map_outlives_a_refused_run(mapped, tmp_path, capsys):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    before = stamps_of(output)
    assert sld("all", *only_a_bomb(tmp_path), "--output", output, *FEW) == 2
    assert "no usable image" in one_line(capsys)
    assert stamps_of(output) == before and len(read_scene_data(output).frames) == 14


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_work_is_named(mapped, tmp_path, capsys, damage):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    paths = [
        output / "work" / part for part in ("sfm/reconstruction.npz", "landmarks/landmarks.npz")
    ]
    for path in paths:
        path.write_bytes(path.read_bytes()[:300]) if damage == "truncated" else path.unlink()
    for stage, path in zip(("metric", "labels"), paths):
        assert sld(stage, "--output", output, *OTHERWISE[stage]) == 2
        text = one_line(capsys)
        assert f"{path}: cannot be read" in text and f"delete {path.parent}" in text


CUT = {"labels": "stage.json", "landmarks": "landmarks.npz", "metric": "reconstruction.npz"}


@pytest.mark.parametrize("stage", CUT)
def test_all_makes_a_damaged_stage_anew_and_says_so(mapped, photos, tmp_path, caplog, stage):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    path = output / "work" / stage / CUT[stage]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert sld("all", "--output", output, *FEW) == 0
    told = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert (
        len(told) == 1
        and f"the stage {stage!r} is damaged and is done again ({path}: cannot be read" in told[0]
    )
    before, after = stamps_of(mapped[0]), stamps_of(output)
    assert [s for s in STAGES if after[s] != before[s]] == STAGES[STAGES.index(stage) :]
    assert len(read_scene_data(output).landmarks) == mapped[1]["landmarks"]


def test_a_single_stage_says_what_to_run_for_a_damaged_one(
    mapped, photos, tmp_path, capsys, monkeypatch
):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    for part in ("sfm/stage.json", "frames/images/frames.json"):
        path = output / "work" / part
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        stage = part.split("/")[0]
        assert sld("metric", "--output", output, *OTHERWISE["metric"]) == 2
        text = one_line(capsys)
        assert (
            f"{path}: " in text
            and f"`sld map {stage} --output {output}`" in text
            and "or `sld map all`" in text
        )
        shutil.copy(mapped[0] / "work" / part, path) if stage == "sfm" else None
    assert sld("all", "--output", output, *FEW) == 2  # the images are not known any more
    assert (
        "frames.json: damaged" in (text := one_line(capsys))
        and "give the images again, by --images DIR" in text
    )
    assert (
        sld("frames", "--images", photos, "--output", output) == 0
    )  # which is not up to date, then
    assert (
        json.loads((output / "work/frames/images/frames.json").read_text())["frames"][13]["source"]
        == "img-013.jpg"
    )


def test_settings_that_are_not_given_again_are_named(mapped, tmp_path, caplog):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    assert sld("landmarks", "--output", output, *FEW) == 0 and not caplog.records
    assert sld("landmarks", "--output", output, *FEW[:2]) == 0
    assert [r.message for r in caplog.records] == [
        "the stage 'landmarks' is done again: landmarks.count was 200 and is the default 0 "
        "(settings are not remembered, give them "
        "each time)"
    ]


# a scene.json that is gone, and names that are no text --------------------------------------------


@pytest.mark.parametrize("text", [None, "", '{"format": "sld sc'])
def test_a_map_that_lost_its_scene_json_is_finished(mapped, tmp_path, text):
    output = tmp_path / "map"
    shutil.copytree(mapped[0], output)
    (output / "scene.json").unlink() if text is None else (output / "scene.json").write_text(text)
    before = stamps_of(output)
    assert sld("all", "--output", output, *FEW) == 0
    assert [stage for stage in STAGES if stamps_of(output)[stage] != before[stage]] == ["dataset"]
    assert (output / "scene.json").read_bytes() == (mapped[0] / "scene.json").read_bytes()


def test_names_that_are_no_text_are_printed_too(mapped, tmp_path, capsys, monkeypatch):
    photos = write_photos(tmp_path / "photos", POSES[:1])
    (photos / os.fsdecode(b"k\xfcche.jpg")).write_text("no image")
    monkeypatch.setattr(
        pipeline.MapJob,
        "run_all",
        lambda self: mapped[1] | {"rejected": self.run("frames").found["rejected"]},
    )
    output, told = tmp_path / "map", tmp_path / "out.json"
    assert sld("all", "--images", photos, "--output", output, "--json", told) == 0
    assert "left out: k\\udcfcche.jpg: damaged: " in capsys.readouterr().out
    assert list(json.loads(told.read_text())["rejected"]) == ["k\udcfcche.jpg"]


def test_json_is_written_before_anything_is_printed(mapped, tmp_path, monkeypatch):
    """To a reader that has seen enough, for example."""

    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setattr(pipeline.MapJob, "run_all", lambda self: mapped[1])
    monkeypatch.setattr(map_command, "_print_summary", gone)
    assert sld("all", "--output", tmp_path / "map", "--json", tmp_path / "out.json") == 141
    assert json.loads((tmp_path / "out.json").read_text()) == mapped[1]
