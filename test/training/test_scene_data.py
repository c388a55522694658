"""A labelled dataset -> a scene file -> poses of new images, in metres or in units of its own."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from small_drive import write_drive

from sld_core import cli, scene_file, synthetic
from sld_core.config.scene import LabelConfig, LandmarkConfig, TrackConfig
from sld_core.data import frame_folder as folders
from sld_core.data.formats.indoor6 import read_scene_data, write_scene_data
from sld_core.geometry import make_transform, pose_error, rotation_from_vector
from sld_core.landmarks import selection, visibility
from sld_core.sfm import triangulation
from sld_core.training.training_set import MIN_VALIDATION, first_landmarks, projections, split_rows
from sld_core.types import Camera, Frame, Landmarks, SceneData, SldError

QUICK = ["--head", "prototype", "--set", "image.max_side_px=480"]
SCALE, R = 0.4, rotation_from_vector(np.array([0.3, -0.5, 0.8]))
SHIFT = np.array([2.0, -1.0, 0.5])


@pytest.fixture(scope="module")
def sequence(tmp_path_factory):
    """Part of the demo's mapping drive, and queries between its frames."""
    return write_drive(tmp_path_factory.mktemp("room"))


@pytest.fixture(scope="module")
def data(sequence, tmp_path_factory):
    """The drive as `sld map` labels it: every tenth frame is for validation, and one, which is
    damaged, for the test."""
    frames = folders.read_frames(sequence, sequence / "map.txt")
    whole = triangulation.reconstruct(
        frames, tmp_path_factory.mktemp("work"), TrackConfig(max_features=1000, neighbours=8)
    )
    chosen = selection.select(whole, LandmarkConfig(count=400))
    visibility_FL = visibility.label(whole, chosen, LabelConfig()).visibility_FL
    split_F = tuple(
        "val" if i % 10 == 5 else "test" if i == 12 else "train" for i in range(len(frames))
    )
    named = tuple(
        replace(f, name=f"image-{i:06d}", source=f"frames/{f.image_path.name}")
        for i, f in enumerate(whole.frames)
    )
    return SceneData(named, split_F, chosen, visibility_FL, True, "map")


@pytest.fixture(scope="module")
def dataset(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    write_scene_data(folder, data)
    image = next(
        f.image_path for f, s in zip(read_scene_data(folder).frames, data.split_F) if s == "test"
    )
    header = image.read_bytes()[:700]
    image.unlink()  # a link to the sequence
    image.write_bytes(header)  # its size can be told, but whoever looks at it fails
    return folder


def unscaled(data: SceneData) -> SceneData:
    """The same in a frame and unit of its own, as from photographs alone."""

    def moved(xyz_N3):
        return SCALE * xyz_N3 @ R.T + SHIFT

    def moved_pose(T):
        return make_transform(R @ T[:3, :3], moved(T[None, :3, 3])[0])

    frames = [replace(f, T_world_camera=moved_pose(f.T_world_camera)) for f in data.frames]
    return replace(
        data,
        frames=tuple(frames),
        landmarks=replace(data.landmarks, xyz_L3=moved(data.landmarks.xyz_L3)),
        metric=False,
    )


@pytest.fixture(scope="module")
def without_scale(data, tmp_path_factory):
    """A dataset without scale, and the scene taught from it."""
    folder = tmp_path_factory.mktemp("unscaled")
    write_scene_data(folder / "data", unscaled(data))
    assert (
        cli.main(
            [
                "teach",
                "--scene-data",
                str(folder / "data"),
                "--output",
                str(folder / "room.sld"),
                *QUICK,
            ]
        )
        == 0
    )
    return folder


def evaluate(scene, sequence, out, *more):
    assert (
        cli.main(
            [
                "evaluate",
                str(scene),
                "--frames",
                str(sequence),
                "--list",
                "query.txt",
                "--json",
                str(out),
                *more,
            ]
        )
        == 0
    )
    return json.loads(out.read_text())


def test_a_dataset_becomes_a_scene(dataset, sequence, tmp_path, capsys):
    output = tmp_path / "room.sld"
    assert cli.main(["teach", "--scene-data", str(dataset), "--output", str(output), *QUICK]) == 0
    assert "held-out frames: 3, " in capsys.readouterr().out
    scene = scene_file.load(output)
    assert (
        scene.metric
        and len(scene.landmarks) == 400
        and scene.config.landmarks.count == 400
        and scene.camera == synthetic.DEMO_CAMERA
    )
    assert scene.report.counts["frames"] == 26 and scene.report.validation["queries"] == 3
    assert set(scene.report.seconds) == {"frames", "buffer", "head", "templates"}
    metrics = evaluate(output, sequence, tmp_path / "m.json")
    assert (
        metrics["queries"] == 7
        and metrics["accepted"] >= 6
        and metrics["wrong_fixes"] == 0
        and metrics["median_cm"] < 3
    )
    assert capsys.readouterr().err.count("warning") == 0
    assert cli.main(["info", str(output)]) == 0
    assert "metric           yes" in capsys.readouterr().out


def test_the_first_landmarks_of_several_cameras_far_from_the_origin(data, tmp_path, capsys):
    """Photographs of two cameras of other shapes, in UTM coordinates."""
    shift, frames = np.array([5e5, 5e6, 100.0]), []
    for i, frame in enumerate(data.frames):
        T = frame.T_world_camera.copy()
        T[:3, 3] += shift
        image_path, camera = frame.image_path, frame.camera
        if i % 5 < 2:
            camera = Camera(
                800,
                450,
                camera.fx * 1.25,
                camera.fy * 1.25,
                camera.cx * 1.25,
                (camera.cy - 60) * 1.25,
            )
            image_path = tmp_path / f"{frame.name}.jpg"
            cv2.imwrite(
                str(image_path), cv2.resize(cv2.imread(str(frame.image_path))[60:420], (800, 450))
            )
        frames.append(replace(frame, T_world_camera=T, image_path=image_path, camera=camera))
    far = replace(
        data,
        frames=tuple(frames),
        landmarks=replace(data.landmarks, xyz_L3=data.landmarks.xyz_L3 + shift),
    )
    write_scene_data(tmp_path / "far", far)
    output = tmp_path / "far.sld"
    assert (
        cli.main(
            [
                "teach",
                "--scene-data",
                str(tmp_path / "far"),
                "--output",
                str(output),
                "--landmarks",
                "300",
                *QUICK,
            ]
        )
        == 0
    )
    scene = scene_file.load(output)
    assert scene.camera == synthetic.DEMO_CAMERA  # that of most frames
    np.testing.assert_allclose(scene.landmarks.xyz_L3, far.landmarks.xyz_L3[:300], atol=1e-6)
    answers = localized(
        output, [str(f.image_path) for f in frames if f.camera == synthetic.DEMO_CAMERA][:6], capsys
    )
    truth = [f.T_world_camera for f in frames if f.camera == synthetic.DEMO_CAMERA]
    errors = [
        pose_error(np.array(a["T_world_camera"]), T)[0]
        for a, T in zip(answers, truth)
        if a["accepted"]
    ]
    assert len(errors) >= 5 and np.median(errors) < 0.03


def localized(scene, images, capsys):
    capsys.readouterr()
    assert cli.main(["localize", str(scene), *images]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_scene_without_scale_says_so(without_scale, sequence, tmp_path, capsys):
    scene = scene_file.load(without_scale / "room.sld")
    assert not scene.metric and set(scene.report.validation) == {
        "queries",
        "accepted",
        "median_deg",
    }
    assert cli.main(["info", str(without_scale / "room.sld")]) == 0
    shown = capsys.readouterr().out
    assert (
        "units of the scene, not in metres" in shown
        and "held-out frames  3, " in shown
        and "cm" not in shown
    )
    (answer,) = localized(
        without_scale / "room.sld", [str(sequence / "frames/frame-000004.color.jpg")], capsys
    )
    assert answer["metric"] is False and answer["accepted"]
    assert evaluate(without_scale / "room.sld", sequence, tmp_path / "m.json")["metric"] is False
    error = capsys.readouterr().err
    assert "warning: the scene 'room' is not metric" in error and "--align-to" in error


def test_a_scene_without_scale_is_measured_after_alignment(
    without_scale, sequence, tmp_path, capsys, monkeypatch
):
    def no_space(path):
        pytest.fail("alignment writes nothing")

    monkeypatch.setattr(shutil, "disk_usage", no_space)
    metrics = evaluate(
        without_scale / "room.sld",
        sequence,
        tmp_path / "m.json",
        "--align-to",
        str(without_scale / "data"),
        "--report",
        str(tmp_path / "r.html"),
    )
    assert metrics["accepted"] >= 6 and metrics["wrong_fixes"] == 0 and metrics["median_cm"] < 3
    assert (
        metrics["metric"] is True
        and metrics["align_images"] == 30
        and metrics["align_scale"] == pytest.approx(1 / SCALE, rel=1e-4)
    )
    assert metrics["align_median_cm"] < 0.1 and metrics["align_median_deg"] < 0.1
    captured = capsys.readouterr()
    assert "aligned by 30 images: scale 2.5" in captured.out and "warning" not in captured.err
    assert "aligned by 30 images" in (tmp_path / "r.html").read_text()


def test_alignment_by_a_dataset_that_the_scene_is_not_of(
    without_scale, dataset, sequence, tmp_path, capsys
):
    base = [
        "evaluate",
        str(without_scale / "room.sld"),
        "--frames",
        str(sequence),
        "--list",
        "query.txt",
        "--align-to",
    ]
    assert cli.main([*base, str(dataset)]) == 2
    assert "landmarks are not those of" in capsys.readouterr().err
    other = tmp_path / "other"
    (other / "frames").mkdir(parents=True)
    for name in ("frames/frame-000000", "frames/frame-000001"):
        for ending in (".color.jpg", ".pose.txt"):
            (other / (name + ending)).write_bytes((sequence / (name + ending)).read_bytes())
    (other / "camera-intrinsics.txt").write_bytes((sequence / "camera-intrinsics.txt").read_bytes())
    base[3] = str(other)
    assert cli.main([*base[:4], "--align-to", str(without_scale / "data")]) == 2
    assert "2 of its 30 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--landmarks", "401"], "401 landmarks were asked for, the dataset has 400"),
        (["--set", "landmarks.count=500"], "500 landmarks were asked for, the dataset has 400"),
        (["--frames", "."], "give either --frames DIR or --bag DIR or --scene-data DIR"),
        (["--list", "a.txt"], "a dataset has its own split"),
    ],
)
def test_a_clumsy_user_gets_one_line(dataset, tmp_path, arguments, expected, capsys):
    assert (
        cli.main(
            [
                "teach",
                "--scene-data",
                str(dataset),
                "--output",
                str(tmp_path / "x.sld"),
                *QUICK,
                *arguments,
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            lambda d: replace(d, split_F=("val",) * len(d.frames)),
            "none of 30 frames of the dataset is for training",
        ),
        (lambda d: first_landmarks(d, 19), "the dataset has 19 landmarks; expected 20 to 20000"),
        (
            lambda d: replace(
                d, visibility_FL=np.where(np.arange(400) < 5, d.visibility_FL, 2).astype(np.uint8)
            ),
            "only 5 of 400 landmarks are visible",
        ),
    ],
)
def test_a_dataset_with_nothing_to_learn(data, tmp_path, change, expected):
    from sld_core.config.scene import SceneConfig
    from sld_core.training.run import Run
    from sld_core.training.teach import SceneOutput, teach_scene_data

    output = SceneOutput(tmp_path / "x.sld", "x")
    with pytest.raises(SldError, match=expected):
        teach_scene_data(change(data), SceneConfig(), output, Run())


def test_a_dataset_that_other_programs_made(data, tmp_path, capsys):
    """Lens distortion of 3 px in the corner, in the plain layout of Indoor-6: images are
    undistorted in the work folder."""
    write_scene_data(tmp_path / "data", data)
    for path in tmp_path.glob("data/*.intrinsics.txt"):
        words = path.read_text().split()
        words[5] = "0.01"
        path.unlink()
        path.write_text(" ".join(words) + "\n")
    (tmp_path / "data/scene.json").unlink()
    (tmp_path / "data/unknown-400.txt").unlink()
    work = tmp_path / "work"
    assert (
        cli.main(
            [
                "teach",
                "--scene-data",
                str(tmp_path / "data"),
                "--output",
                str(tmp_path / "x.sld"),
                "--work",
                str(work),
                *QUICK,
                "--set",
                "image.max_side_px=128",
                "--set",
                "validation_fraction=0",
            ]
        )
        == 0
    )
    assert (
        len(list((work / "undistorted").glob("*.color.jpg"))) == 30
        and scene_file.load(tmp_path / "x.sld").metric
    )


# numbers ------------------------------------------------------------------------------------------


def test_which_frames_teach_and_which_check():
    split_F = ["test", *["train"] * 78, "test", *["val"] * 20]
    train, validation = split_rows(split_F, 0.05)
    assert train == list(range(1, 79)) and validation == [
        80,
        85,
        90,
        94,
        99,
    ]  # 5 % of 98 frames, spread over the 20
    assert len(split_rows(split_F, 0.0)[1]) == 0
    assert len(split_rows(["train"] * 10 + ["val"] * 9, 0.05)[1]) == MIN_VALIDATION
    assert len(split_rows(["train"] * 10 + ["val"] * 2, 0.05)[1]) == 2
    train, validation = split_rows(["test", *["train"] * 40], 0.05)
    assert validation == [20, 21] and train == [i for i in range(1, 41) if i not in validation]
    assert split_rows(["train"] * 40, 0.0) == (list(range(40)), [])


def test_each_frame_projects_with_its_own_camera():
    frames = [
        Frame("a", None, Camera(100, 80, 50.0, 60.0, 50.0, 40.0), np.eye(4)),
        Frame(
            "b",
            None,
            Camera(30, 20, 10.0, 10.0, 15.0, 10.0),
            make_transform(np.eye(3), np.array([0, 0, 3.0])),
        ),
    ]
    xy = projections(frames, np.array([[1.0, 2.0, 4.0], [0, 0, 2.0]]))
    np.testing.assert_allclose(xy[0], [[62.5, 70], [50, 40]])
    np.testing.assert_allclose(xy[1], [[25, 30], [np.nan, np.nan]])  # the second is behind b


def test_the_first_landmarks_keep_their_columns():
    data = SceneData(
        (),
        (),
        Landmarks(np.arange(9.0).reshape(3, 3), np.array([7, 8, 9])),
        np.array([[0, 1, 2]], np.uint8),
        True,
    )
    few = first_landmarks(data, 2)
    assert few.landmarks.xyz_L3.tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ] and few.landmarks.point_L.tolist() == [7, 8]
    assert few.visibility_FL.tolist() == [[0, 1]]
