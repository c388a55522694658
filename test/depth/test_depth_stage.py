"""The depth stage: a folder of depth images from sensor, PatchMatch or sparse points."""

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest

from sld_core.camera.images import read_depth
from sld_core.config.mapping import DepthConfig
from sld_core.config.settings import from_dict
from sld_core.depth import patch_match, stage
from sld_core.depth.completion import METHODS
from sld_core.geometry import make_transform
from sld_core.types import Camera, Frame, Reconstruction, SldError

WIDTH, HEIGHT = 96, 64


class FakeNetwork:
    """In place of MonocularDepth: inverse depth from the image's red channel, where the test
    painted it."""

    def __init__(self, model, preprocessing):
        pass

    def __call__(self, image):
        return image[..., 0].astype(np.float32)


@pytest.fixture
def room(tmp_path):
    """Two frames before a slanted wall, z = 2 + column / 96 in the camera, with 240 points on it,
    and depth images with a hole."""
    camera = Camera(WIDTH, HEIGHT, 80.0, 80.0, WIDTH / 2, HEIGHT / 2)
    rng = np.random.default_rng(0)
    z_HW = np.tile(2 + (np.arange(WIDTH) + 0.5) / WIDTH, (HEIGHT, 1))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 2] = np.round(400 / z_HW)  # cv2 writes BGR: red
    frames, points, observations = [], [], []
    for i in range(2):
        name = f"drive/image-{i:06d}"
        path = tmp_path / "frames" / f"{name}.color.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
        depth = np.round(1000 * z_HW[1::2, 1::2]).astype(
            np.uint16
        )  # half the resolution of the image
        depth[10:20, 10:30] = 0
        cv2.imwrite(str(path.with_name(f"image-{i:06d}.depth.png")), depth)
        T = make_transform(np.eye(3), np.array([0.0, 0, 5 * i]))
        frames.append(Frame(name, path, camera, T, path.with_name(f"image-{i:06d}.depth.png")))
        for xy in rng.uniform([0, 0], [WIDTH, HEIGHT], (240, 2)):
            z = 2 + xy[0] / WIDTH
            observations.append((len(points), i, *xy))
            points.append([*((xy - [WIDTH / 2, HEIGHT / 2]) / 80 * z), z + 5 * i])
    table = np.array(observations)
    point_M, frame_M = table[:, :2].astype(int).T
    return Reconstruction(
        tuple(frames), np.array(points), np.zeros(len(points)), point_M, frame_M, table[:, 2:]
    )


@pytest.fixture
def blind(room):
    """The same without depth images."""
    return replace(room, frames=tuple(replace(f, depth_path=None) for f in room.frames))


def run(reconstruction, folder, model=None, metric=True, **settings):
    seen = []
    report = stage.complete(
        reconstruction, folder, DepthConfig(**settings), model, seen.append, metric
    )
    assert report.source == "none" or seen[-1].fraction == 1
    return report


def test_sensor_depth_without_a_network(room, tmp_path):
    report = run(room, tmp_path / "depth")
    assert report.source == "sensor" and report.frames == 2 and report.filled == 0
    assert report.known == pytest.approx(1 - 200 / (48 * 32), abs=1e-6)
    assert report.errors["measured_mae"] < 0.02 and report.errors[
        "measured_scale"
    ] == pytest.approx(1, abs=0.01)
    assert "filled_mae" not in report.errors
    written = read_depth(tmp_path / "depth/drive/image-000000.depth.png")
    assert written.shape == (HEIGHT, WIDTH)
    # pixel centre to pixel centre: image column 50.5 lies in sensor column 25, which was taken at
    # image column 51
    assert written[60, 50] == pytest.approx(2 + 51.5 / WIDTH, abs=1e-3) and written[30, 40] == 0


def test_holes_of_the_sensor_are_completed(room, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MonocularDepth", FakeNetwork)
    report = run(room, tmp_path / "depth", "net.onnx")
    assert report.known + report.filled == pytest.approx(1)
    assert report.errors["filled_points"] > 20 and report.errors["filled_absrel"] < 0.02
    written = read_depth(tmp_path / "depth/drive/image-000001.depth.png")
    truth = 2 + (np.arange(WIDTH) + 0.5) / WIDTH
    np.testing.assert_allclose(written[30, 20:60], truth[20:60], rtol=0.03)


def test_sparse_points_are_completed(blind, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MonocularDepth", FakeNetwork)
    report = run(blind, tmp_path / "depth", "net.onnx", max_side_px=48)
    assert report.source == "completion" and "no CUDA" in report.reason
    assert 0.05 < report.known < 0.2 and report.known + report.filled == pytest.approx(1)
    assert (
        report.errors["filled_absrel"] < 0.02 and 50 < report.errors["filled_points"] < 150
    )  # a fifth of the points
    written = read_depth(tmp_path / "depth/drive/image-000001.depth.png")
    assert written.shape == (32, 48)
    np.testing.assert_allclose(written, np.tile(2 + (np.arange(48) + 0.5) / 48, (32, 1)), rtol=0.03)
    json.dumps(asdict(report))


def test_points_land_in_the_pixel_that_shows_them(blind):
    """A point at image (95.9, 0.1) is in the last column of the first row, at half resolution
    too."""
    one = replace(
        blind,
        points_N3=np.array([[0, 0, 3.0], [0, 0, 2.5]]),
        error_px_N=np.zeros(2),
        obs_point_M=np.array([0, 1]),
        obs_frame_M=np.array([0, 0]),
        obs_xy_M2=np.array([[95.9, 0.1], [95.2, 0.9]]),
    )
    depth = stage._Points.of(one, 0, (48, 32), 2.0).image((48, 32))
    assert depth[0, 47] == 2.5 and (depth > 0).sum() == 1  # the nearer of two


def test_patchmatch_maps_are_taken(blind, tmp_path, monkeypatch):
    """What COLMAP would have written, at its own resolution, goes the same way as sensor depth."""

    def computed(reconstruction, workspace):
        path = workspace / "a.bin"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"24&16&1&" + np.full((16, 24), 2.5, "<f4").tobytes())
        return {reconstruction.frames[0].name: path}

    monkeypatch.setattr(patch_match, "patch_match", computed)
    report = run(blind, tmp_path / "depth", source="patchmatch")
    assert report.source == "patchmatch" and report.known == pytest.approx(0.5)
    assert (read_depth(tmp_path / "depth/drive/image-000000.depth.png") == 2.5).all()
    assert (read_depth(tmp_path / "depth/drive/image-000001.depth.png") == 0).all()


def test_nothing_to_make_depth_from(blind, tmp_path):
    report = run(blind, tmp_path / "depth")
    assert (
        report.source == "none" and "no monocular network" in report.reason and report.frames == 0
    )
    assert not (tmp_path / "depth").exists()


def test_sources_that_are_not_possible(blind, tmp_path):
    for source, text in (
        ("sensor", "no frame has a depth image"),
        ("completion", "no monocular network"),
        ("patchmatch", "CUDA"),
    ):
        with pytest.raises(SldError, match=text):
            run(blind, tmp_path / "depth", source=source)
    assert not (tmp_path / "depth").exists()


def test_sensor_depth_is_of_no_use_in_a_world_without_metres(room, blind, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MonocularDepth", FakeNetwork)
    report = run(room, tmp_path / "none", metric=False)
    assert (
        report.source == "none"
        and report.notes == (stage.UNUSED,)
        and "2 of 2 frames have measured depth" in report.reason
    )
    report = run(room, tmp_path / "points", "net.onnx", metric=False)
    assert report.source == "completion" and report.notes == (stage.UNUSED,)
    with pytest.raises(
        SldError,
        match="measured depth is in metres and this scene is not; expected a scale .--distance",
    ):
        run(room, tmp_path / "sensor", metric=False, source="sensor")
    assert (
        run(blind, tmp_path / "blind", metric=False).notes
        == run(room, tmp_path / "asked", metric=False, source="none").notes
        == ()
    )


def test_a_scale_that_does_not_fit_is_noted(room, tmp_path):
    half = replace(
        room,
        points_N3=room.points_N3 * 0.5,
        frames=tuple(
            replace(f, T_world_camera=make_transform(np.eye(3), f.T_world_camera[:3, 3] * 0.5))
            for f in room.frames
        ),
    )
    notes = run(half, tmp_path / "depth").notes
    assert len(notes) == 1 and "2.00 times" in notes[0]


def test_frames_with_few_points_are_left_as_they_are(blind, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "MonocularDepth", FakeNetwork)
    report = run(blind, tmp_path / "depth", "net.onnx", min_known=1000)
    assert report.filled == 0 and "2 frames have too few" in report.notes[0]


def test_damaged_depth_images_are_named_and_left_out(room, tmp_path):
    room.frames[0].depth_path.write_bytes(b"no image")
    report = run(room, tmp_path / "depth")
    assert (
        report.frames == 2
        and len(report.notes) == 1
        and "image-000000.depth.png" in report.notes[0]
    )
    cv2.imwrite(str(room.frames[1].depth_path), np.ones((48, 48), np.uint16))
    with pytest.raises(SldError, match="no depth image can be used.*image-000000"):
        run(room, tmp_path / "other")


def test_depth_of_other_proportions_is_not_taken(room, tmp_path):
    cv2.imwrite(str(room.frames[1].depth_path), np.full((48, 48), 2000, np.uint16))
    report = run(room, tmp_path / "depth")
    assert (
        "48x48, the image is 96x64" in report.notes[0]
        and (read_depth(tmp_path / "depth/drive/image-000001.depth.png") == 0).all()
    )


def test_depths_too_far_for_16_bits_are_none(tmp_path):
    stage._write(tmp_path, "far", np.array([[65.535, 65.54, 0.0004, 1.2344]], np.float32))
    np.testing.assert_array_equal(
        cv2.imread(str(tmp_path / "far.depth.png"), cv2.IMREAD_UNCHANGED), [[65535, 0, 0, 1234]]
    )


def test_every_setting_is_checked():
    assert from_dict({}, DepthConfig) == DepthConfig()
    for values in (
        {"source": "magic"},
        {"max_side_px": 5},
        {"held_out": 0.0},
        {"method": "x"},
        {"gaussian_process": {"samples": 10**9}},
    ):
        with pytest.raises(SldError, match="expected"):
            from_dict(values, DepthConfig)
    assert set(METHODS) == set(DepthConfig.__dataclass_fields__["method"].metadata["choices"])
