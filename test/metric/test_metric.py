"""Scale, frame and up of a reconstruction: a box-shaped room whose size, place and tilt are
known."""

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from sld_core import geometry
from sld_core.camera.images import read_image
from sld_core.config.mapping import MetricConfig
from sld_core.config.scene import TrackConfig
from sld_core.data import frame_folder as folders
from sld_core.geometry import make_transform, rotation_from_vector
from sld_core.metric import distances, gravity, scale, tags
from sld_core.metric.align import Alignment, align, moved
from sld_core.types import Camera, Frame, FrameSet, Reconstruction, SldError

SHARED = Path(os.environ.get("SLD_SHARED", Path(__file__).resolve().parents[3] / "shared")) / "data"
CAMERA = Camera(320, 240, 250.0, 250.0, 160.0, 120.0)
LOW, HIGH = np.array([-3.0, -2.5, 0.0]), np.array([3.0, 2.5, 2.6])  # of the room, metres
SCALE = 0.4  # metres per unit of the reconstruction
R_WORLD_SFM = rotation_from_vector(np.array([0.8, -1.9, 0.5]))
T_WORLD_SFM = np.array([4.0, -7.0, 2.0])


def looking(position, yaw, pitch=0.0) -> np.ndarray:
    """A camera at `position` (z up) that looks along yaw, `pitch` downwards (radians)."""
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    return make_transform(
        np.stack([right, np.cross(forward, right), forward], 1), np.asarray(position, float)
    )


def circle(count=30) -> list[np.ndarray]:
    """A drive around the room with a little pitch, looking outwards."""
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return [
        looking([1.2 * np.cos(a), 1.2 * np.sin(a), 1.0 + 0.1 * np.sin(3 * a)], a, 0.1)
        for a in angles
    ]


def on_the_walls(count=1200) -> np.ndarray:
    """Points on all six sides of the room."""
    rng = np.random.default_rng(1)
    points = rng.uniform(LOW, HIGH, (count, 3))
    side = rng.integers(0, 6, count)
    points[np.arange(count), side // 2] = np.where(side % 2 == 0, LOW[side // 2], HIGH[side // 2])
    return points


def reconstruction_of(poses, points, camera=CAMERA, folder=Path("/nowhere")) -> Reconstruction:
    """The world as structure from motion would give it: exact, but in a frame and unit of its
    own."""
    frames, obs = [], []
    for i, T in enumerate(poses):
        xy, z = geometry.project(camera, geometry.invert(T), points)
        seen = np.flatnonzero((z > 0.1) & ((xy > 0) & (xy < [camera.width, camera.height])).all(1))
        obs.append(np.column_stack([seen, np.full(len(seen), i), xy[seen]]))
        T_sfm = make_transform(
            R_WORLD_SFM.T @ T[:3, :3], R_WORLD_SFM.T @ (T[:3, 3] - T_WORLD_SFM) / SCALE
        )
        frames.append(Frame(f"image-{i:06d}", folder / f"image-{i:06d}.color.jpg", camera, T_sfm))
    obs = np.concatenate(obs)
    obs = obs[np.argsort(obs[:, 0], kind="stable")]
    return Reconstruction(
        tuple(frames),
        (points - T_WORLD_SFM) @ R_WORLD_SFM / SCALE,
        np.zeros(len(points)),
        obs[:, 0].astype(int),
        obs[:, 1].astype(int),
        obs[:, 2:],
    )


def frame_set_of(reconstruction, poses=None, z_up=True, **changes) -> FrameSet:
    poses = [None] * len(reconstruction.frames) if poses is None else poses
    frames = tuple(
        dataclasses.replace(f, T_world_camera=T, **{k: v[i] for k, v in changes.items()})
        for i, (f, T) in enumerate(zip(reconstruction.frames, poses))
    )
    return FrameSet(frames, True, "odom" if any(T is not None for T in poses) else "", z_up)


@pytest.fixture(scope="module")
def room():
    return reconstruction_of(circle(), on_the_walls())


def pose_errors(reconstruction, poses):
    return np.array(
        [geometry.pose_error(f.T_world_camera, T) for f, T in zip(reconstruction.frames, poses)]
    )


# odometry -----------------------------------------------------------------------------------------


def test_exact_odometry_gives_back_the_world(room):
    result = align(room, frame_set_of(room, circle()), MetricConfig())
    assert result.metric and result.source == "odometry" and result.upright == "tf"
    assert result.scale == pytest.approx(SCALE, rel=1e-9)
    np.testing.assert_allclose(result.R, R_WORLD_SFM, atol=1e-9)
    np.testing.assert_allclose(result.t, T_WORLD_SFM, atol=1e-8)
    there = moved(room, result)
    np.testing.assert_allclose(there.points_N3, on_the_walls(), atol=1e-8)
    assert pose_errors(there, circle()).max() < 1e-8
    assert (
        result.residual["odometry_inlier_share"] == 1
        and result.residual["odometry_median_m"] < 1e-9
    )
    assert result.residual["up_to_tf_deg"] < 0.5


def drifting(poses, seed=0, lost=0.0):
    """Odometry: 2 cm and 0.5 deg of noise, a slow drift of 5 cm, and a share of poses that are
    anywhere."""
    rng = np.random.default_rng(seed)
    out, drift = [], np.cumsum(rng.normal(0, 0.05 / len(poses) ** 0.5, (len(poses), 3)), axis=0)
    for T, d in zip(poses, drift):
        noise = make_transform(
            rotation_from_vector(rng.normal(0, np.radians(0.5), 3)), rng.normal(0, 0.02, 3) + d
        )
        out.append(make_transform(noise[:3, :3] @ T[:3, :3], T[:3, 3] + noise[:3, 3]))
    for i in rng.permutation(len(poses))[: int(lost * len(poses))]:
        out[i] = looking(rng.uniform(-20, 20, 3), rng.uniform(0, 6))
    return out


@pytest.mark.parametrize("lost", [0.0, 0.2, 0.4])
def test_drift_and_lost_poses(room, lost):
    result = align(room, frame_set_of(room, drifting(circle(), lost=lost)), MetricConfig())
    assert result.source == "odometry" and result.scale == pytest.approx(SCALE, rel=0.02)
    errors = pose_errors(moved(room, result), circle())
    assert np.median(errors[:, 0]) < 0.05 and np.degrees(errors[0, 1]) < 1.5
    assert result.residual["odometry_inlier_share"] == pytest.approx(1 - lost, abs=0.11)


def test_a_straight_line_leaves_no_rotation_free():
    """All positions on one line: only the orientations say how the scene is turned about it."""
    line = [looking([x, 0, 1.0], 0.4) for x in np.linspace(-2, 2, 15)]
    room = reconstruction_of(line, on_the_walls())
    exact = align(room, frame_set_of(room, line), MetricConfig())
    np.testing.assert_allclose(exact.R, R_WORLD_SFM, atol=1e-8)
    result = align(room, frame_set_of(room, drifting(line)), MetricConfig())
    assert result.scale == pytest.approx(SCALE, rel=0.03)
    assert np.degrees(pose_errors(moved(room, result), line)[:, 1]).max() < 1


def test_a_robot_that_stood_still_most_of_the_time():
    """Two thirds of the frames at one place say nothing of the scale: the others must."""
    poses = [looking([0, 0, 1.0], 0.2 * i) for i in range(20)] + [
        looking([0.2 * i, 0, 1.0], 0.3) for i in range(1, 11)
    ]
    room = reconstruction_of(poses, on_the_walls())
    result = align(room, frame_set_of(room, drifting(poses)), MetricConfig())
    assert result.scale == pytest.approx(SCALE, rel=0.05)


def turning(count=12):
    return [looking([0.5, 0, 1.2], 2 * np.pi * i / count, 0.1) for i in range(count)]


def test_turning_on_the_spot_gives_no_scale_and_says_so():
    room, jitter = reconstruction_of(turning(), on_the_walls()), drifting(turning(), seed=3)
    wobbling = [
        make_transform(T[:3, :3], T[:3, 3] + 0.01 * np.sin(range(i, i + 3)))
        for i, T in enumerate(turning())
    ]
    noisy = reconstruction_of(wobbling, on_the_walls())
    with pytest.raises(SldError, match="no scale from odometry: the camera did not move"):
        align(room, frame_set_of(room, jitter), MetricConfig(source="odometry"))
    with pytest.raises(SldError, match="no scale from odometry: the camera moved over 0.1. m only"):
        align(noisy, frame_set_of(noisy, jitter), MetricConfig(source="odometry"))
    result = align(room, frame_set_of(room, turning()), MetricConfig())
    assert not result.metric and result.source == "none" and result.upright == "tf"
    assert any("not metric" in note for note in result.notes) and any(
        "odometry" in note for note in result.notes
    )
    assert scale.median_depth(moved(room, result)) == pytest.approx(3)
    np.testing.assert_allclose(result.R[2], R_WORLD_SFM[2], atol=1e-6)


def test_an_uncertain_scale_is_refused():
    """Half a metre of drive known to 15 cm."""
    rng = np.random.default_rng(0)
    line = [looking([x, 0, 1.0], 0.4) for x in np.linspace(0, 0.5, 12)]
    room = reconstruction_of(line, on_the_walls())
    poor = [make_transform(T[:3, :3], T[:3, 3] + rng.normal(0, 0.15, 3)) for T in line]
    with pytest.raises(SldError, match="uncertain by|do not fit"):
        align(room, frame_set_of(room, poor), MetricConfig(source="odometry"))


def test_poses_of_the_base_instead_of_the_camera_are_recognised(room):
    base = [
        T @ make_transform(np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0.0]]), np.zeros(3))
        for T in circle()
    ]
    with pytest.raises(
        SldError,
        match="do not fit those of the images: median .* expected poses of the camera "
        "optical frame",
    ):
        align(room, frame_set_of(room, base), MetricConfig(source="odometry"))
    result = align(room, frame_set_of(room, base), MetricConfig())
    assert (
        not result.metric
        and result.upright == "planes"
        and any("frame of the given poses is not used" in n for n in result.notes)
    )


def test_poses_far_from_the_origin(room):
    """UTM coordinates."""
    far = [make_transform(T[:3, :3], T[:3, 3] + [5e5, 5e6, 100]) for T in circle()]
    result = align(room, frame_set_of(room, far), MetricConfig())
    assert (
        result.scale == pytest.approx(SCALE, rel=1e-7)
        and pose_errors(moved(room, result), far)[:, 0].max() < 1e-6
    )


def test_some_frames_without_poses(room):
    poses = [T if i % 3 else None for i, T in enumerate(circle())]
    assert align(room, frame_set_of(room, poses), MetricConfig()).scale == pytest.approx(SCALE)
    few = [T if i < 2 else None for i, T in enumerate(circle())]
    with pytest.raises(SldError, match="2 registered images have a pose"):
        align(room, frame_set_of(room, few), MetricConfig(source="odometry"))


def test_a_frame_not_known_to_be_upright_is_kept(room):
    result = align(room, frame_set_of(room, circle(), z_up=False), MetricConfig())
    assert result.upright == "none" and "not known to have z up" in result.notes[-1]
    np.testing.assert_allclose(result.R, R_WORLD_SFM, atol=1e-9)


# depth --------------------------------------------------------------------------------------------


def depth_of_room(T, camera, width, height) -> np.ndarray:
    """mm uint16, (height, width): rays through the pixel centres, from inside the box."""
    c = camera.resized(width, height)
    x, y = (np.arange(width) + 0.5 - c.cx) / c.fx, (np.arange(height) + 0.5 - c.cy) / c.fy
    rays = np.dstack([*np.meshgrid(x, y), np.ones((height, width))]) @ T[:3, :3].T
    with np.errstate(divide="ignore"):
        to_side = np.where(rays > 0, (HIGH - T[:3, 3]) / rays, (LOW - T[:3, 3]) / rays)
    return (1000 * to_side.min(2)).round().astype(np.uint16)


@pytest.fixture(scope="module")
def depth_paths(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("depth"), []
    for i, T in enumerate(circle()[:10]):
        depth = depth_of_room(T, CAMERA, 160, 120)
        depth[:, 40:50] = 0  # a gap
        depth[60:, 100:110] = 500  # something in front that the points do not know
        paths.append(folder / f"{i}.depth.png")
        cv2.imwrite(str(paths[-1]), depth)
    return paths + [None] * 20


def test_depth_images_of_half_the_size(room, depth_paths):
    result = align(room, frame_set_of(room, depth_path=depth_paths), MetricConfig())
    assert (
        result.metric
        and result.source == "depth"
        and result.scale == pytest.approx(SCALE, rel=0.002)
    )
    assert result.residual["depth_mad_percent"] < 0.5 and result.residual["depth_frames"] == 10
    assert result.upright == "planes"
    size = np.ptp(moved(room, result).points_N3, axis=0)
    assert size[2] == pytest.approx(2.6, rel=0.02)  # floor to ceiling stands upright


def test_parts_of_different_size_are_told(room, tmp_path):
    """Of ten frames two see everything a fifth nearer than the map says, as in a part that drifted
    in scale."""
    paths = []
    for i, T in enumerate(circle()[:10]):
        paths.append(tmp_path / f"{i}.png")
        cv2.imwrite(
            str(paths[-1]),
            (depth_of_room(T, CAMERA, 160, 120) * (0.8 if i < 2 else 1.0)).astype(np.uint16),
        )
    result = align(room, frame_set_of(room, depth_path=paths + [None] * 20), MetricConfig())
    assert result.scale == pytest.approx(SCALE, rel=0.01)
    assert [
        note
        for note in result.notes
        if "disagrees with the map's scale by 22 % or more, by its depth" in note
    ]


def test_depth_samples_are_those_under_the_pixel():
    """A 4x3 depth image of an 8x6 camera: pixel (3.2, 2.9) lies in column 1, row 1."""
    depth = np.full((3, 4), 2.0)
    depth[1, 1] = 2.05
    xy = np.array([[3.2, 2.9], [4.1, 2.9], [0.5, 2.9], [3.2, 5.9]])
    camera = Camera(8, 6, 5.0, 5.0, 4.0, 3.0)
    np.testing.assert_allclose(
        scale.sample_smooth(depth, camera, xy, 0.05), [2.05, 2.0, 0, 0]
    )  # borders are left out
    np.testing.assert_allclose(scale.sample_smooth(depth, camera, xy, 0.01), 0)
    depth[0, 2] = 0
    np.testing.assert_allclose(scale.sample_smooth(depth, camera, xy, 0.05), 0)


def test_depth_that_shows_something_else_is_refused(room, tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(30):
        paths.append(tmp_path / f"{i}.png")
        cv2.imwrite(str(paths[-1]), np.full((120, 160), np.exp(rng.uniform(6, 9)), np.uint16))
    with pytest.raises(SldError, match="do not fit together: half of the ratios are more than"):
        align(room, frame_set_of(room, depth_path=paths), MetricConfig(source="depth"))
    cv2.imwrite(str(paths[0]), np.zeros((120, 160), np.uint16))
    with pytest.raises(SldError, match="only 0 points lie on measured depth"):
        align(room, frame_set_of(room, depth_path=[paths[0]] * 30), MetricConfig(source="depth"))


def test_two_sources_are_compared(room, depth_paths):
    """Odometry that is 8 % too long: its frame and metres are taken, and the note says what depth
    says."""
    stretched = [make_transform(T[:3, :3], 1.08 * T[:3, 3]) for T in circle()]
    frames = frame_set_of(room, stretched, depth_path=depth_paths)
    result = align(room, frames, MetricConfig())
    assert result.source == "odometry" and result.scale == pytest.approx(1.08 * SCALE, rel=1e-6)
    assert result.residual["depth_scale_ratio"] == pytest.approx(1 / 1.08, rel=0.005)
    assert any("depth gives a scale -7." in note for note in result.notes)
    other = align(room, frames, MetricConfig(source="depth"))
    assert (
        other.scale == pytest.approx(SCALE, rel=0.002) and other.upright == "tf"
    )  # its metres, in the frame of odometry
    np.testing.assert_allclose(other.R, R_WORLD_SFM, atol=1e-6)
    assert other.residual["odometry_scale_ratio"] == pytest.approx(1.08, rel=0.005)


# tags ---------------------------------------------------------------------------------------------

TAG_CAMERA = Camera(640, 480, 520.0, 520.0, 320.0, 240.0)
TAG_M = 0.20


def shoot(T, placed, family="apriltag_36h11") -> np.ndarray:
    """A grey wall at x = 3 with tags: (id, y and z of the centre); drawn four times too large, then
    averaged."""
    dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, tags.FAMILIES[family]))
    modules = dictionary.markerSize + 2
    big = TAG_CAMERA.resized(4 * 640, 4 * 480)
    canvas = np.full((big.height, big.width), 150, np.uint8)
    for tag, y, z in placed:
        marker = cv2.aruco.generateImageMarker(dictionary, tag, 40 * modules)
        marker = cv2.copyMakeBorder(marker, 40, 40, 40, 40, cv2.BORDER_CONSTANT, value=255)
        m = TAG_M / (
            40 * modules
        )  # metres a marker pixel; seen from -x, image right is -y and image down is -z
        half = marker.shape[0] / 2 * m
        plane = np.array(
            [[0, 0, 3.0], [-m, 0, y + half], [0, -m, z + half], [0, 0, 1]]
        )  # corner-origin marker pixels to the world
        H = big.K @ geometry.invert(T)[:3] @ plane
        shift = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        H = np.linalg.inv(shift) @ H @ shift
        drawn = cv2.warpPerspective(marker, H, (big.width, big.height), flags=cv2.INTER_LINEAR)
        mask = cv2.warpPerspective(
            np.full_like(marker, 255), H, (big.width, big.height), flags=cv2.INTER_NEAREST
        )
        canvas[mask > 0] = drawn[mask > 0]
    small = cv2.resize(canvas, (640, 480), interpolation=cv2.INTER_AREA)
    return np.clip(small + np.random.default_rng(0).normal(0, 2, small.shape), 0, 255).astype(
        np.uint8
    )


def tag_room(folder, placed_of, family="apriltag_36h11"):
    """Eight views of the wall from 1.2 to 2 m; `placed_of` frame index -> tags."""
    poses = [
        looking([3 - 1.2 - 0.1 * i, -0.7 + 0.2 * i, 1.3 + 0.05 * i], -0.35 * (-0.7 + 0.2 * i), 0.02)
        for i in range(8)
    ]
    room = reconstruction_of(poses, on_the_walls(), TAG_CAMERA, folder)
    for i, (T, f) in enumerate(zip(poses, room.frames)):
        cv2.imwrite(
            str(f.image_path), shoot(T, placed_of(i), family), [cv2.IMWRITE_JPEG_QUALITY, 95]
        )
    return room


@pytest.fixture(scope="module")
def two_tags(tmp_path_factory):
    return tag_room(tmp_path_factory.mktemp("tags"), lambda i: [(3, 0.3, 1.5), (8, -0.3, 1.2)])


def test_tags_give_the_scale(two_tags):
    config = MetricConfig(tag_size_m=TAG_M)
    result = align(two_tags, frame_set_of(two_tags), config)
    assert (
        result.metric
        and result.source == "tags"
        and result.scale == pytest.approx(SCALE, rel=0.002)
    )
    assert (
        result.residual["tags"] == 2
        and result.residual["tags_views"] >= 12
        and result.residual["tags_mad_percent"] < 1
    )
    assert (
        align(two_tags, frame_set_of(two_tags), MetricConfig()).source == "none"
    )  # of unknown size they say nothing


def test_tags_are_found_with_the_opencv_of_ubuntu_24_04(two_tags, monkeypatch):
    """OpenCV 4.6 has no ArucoDetector, and crashes where its function did not make the
    parameters."""
    image = read_image(two_tags.frames[3].image_path)
    found = dict(tags.detect(image, "apriltag_36h11"))
    new, made = cv2.aruco, []

    def create():
        made.append(new.DetectorParameters())
        return made[-1]

    def detect(gray, dictionary, parameters):
        assert parameters is made[-1]
        return new.ArucoDetector(dictionary, parameters).detectMarkers(gray)

    old = SimpleNamespace(
        DetectorParameters_create=create,
        detectMarkers=detect,
        getPredefinedDictionary=new.getPredefinedDictionary,
        CORNER_REFINE_SUBPIX=new.CORNER_REFINE_SUBPIX,
        DICT_APRILTAG_36h11=new.DICT_APRILTAG_36h11,
    )
    monkeypatch.setattr(cv2, "aruco", old)
    again = dict(tags.detect(image, "apriltag_36h11"))
    assert set(again) == set(found) == {3, 8} and made
    np.testing.assert_array_equal(again[3], found[3])
    monkeypatch.delattr(cv2, "aruco")
    with pytest.raises(SldError, match="finds no tags: install OpenCV 4.7 or later"):
        tags.detect(image, "apriltag_36h11")


def test_corners_of_tags_are_those_of_our_pixels(two_tags):
    """Half a pixel of offset would show here: the corners of the black square project where the
    detector sees them."""
    found = tags.find_tags(two_tags, MetricConfig(tag_size_m=TAG_M))[3]
    square = np.array(
        [
            [3.0, 0.3 + dy, 1.5 + dz]
            for dy, dz in ((0.1, 0.1), (-0.1, 0.1), (-0.1, -0.1), (0.1, -0.1))
        ]
    )
    square = (square - T_WORLD_SFM) @ R_WORLD_SFM / SCALE
    off = [
        s.xy_42
        - geometry.project(
            TAG_CAMERA, geometry.invert(two_tags.frames[s.frame].T_world_camera), square
        )[0]
        for s in found
    ]
    assert np.abs(np.mean(off, axis=(0, 1))).max() < 0.05 and np.abs(off).max() < 0.3


def test_a_tag_printed_twice_is_left_out(tmp_path):
    room = tag_room(tmp_path, lambda i: [(3, 0.3, 1.5), (8, -0.3, 1.2) if i % 2 else (8, 0.0, 1.0)])
    result = align(room, frame_set_of(room), MetricConfig(source="tags", tag_size_m=TAG_M))
    assert result.scale == pytest.approx(SCALE, rel=0.01) and result.residual["tags"] == 1
    assert any("tag 8 is left out" in note and "printed twice" in note for note in result.notes)


def test_tags_of_another_family(tmp_path):
    room = tag_room(tmp_path, lambda i: [(3, 0.3, 1.5)], "aruco_4x4_50")
    result = align(
        room, frame_set_of(room), MetricConfig(tag_size_m=TAG_M, tag_family="aruco_4x4_50")
    )
    assert result.scale == pytest.approx(SCALE, rel=0.01)
    with pytest.raises(SldError, match="no tag of apriltag_36h11 was found.*metric.source=none"):
        align(room, frame_set_of(room), MetricConfig(tag_size_m=TAG_M))


def test_an_image_that_is_not_its_cameras(two_tags, tmp_path):
    other = tmp_path / "small.jpg"
    cv2.imwrite(str(other), np.zeros((240, 320), np.uint8))
    wrong = dataclasses.replace(
        two_tags,
        frames=(dataclasses.replace(two_tags.frames[0], image_path=other), *two_tags.frames[1:]),
    )
    with pytest.raises(SldError, match="the image is 320x240 but its camera is 640x480"):
        align(wrong, frame_set_of(wrong), MetricConfig(tag_size_m=TAG_M))


# distances ----------------------------------------------------------------------------------------


def test_the_distance_between_two_cameras(room):
    """Opposite cameras of the circle are 2.4 m apart (and 0.0 in height: sin(0) = sin(3 pi) =
    0)."""
    result = align(room, frame_set_of(room), MetricConfig(distance="image-000000 image-000015 2.4"))
    assert (
        result.metric
        and result.source == "distance"
        and result.scale == pytest.approx(SCALE, rel=1e-9)
    )
    named = frame_set_of(room, source=[f"/home/me/photos/p {i}.jpg" for i in range(30)])
    assert align(
        room, named, MetricConfig(distance="'p 0.jpg' 'p 15.jpg' = 2.4m")
    ).scale == pytest.approx(SCALE, rel=1e-9)


def test_the_distance_between_two_clicked_points(room):
    """Two points on one wall, each clicked in another image, half a pixel to the side."""
    world, clicks = on_the_walls(), []
    for frame in (2, 5):
        of_frame = room.obs_frame_M == frame
        k = np.flatnonzero(of_frame)[7]
        x, y = room.obs_xy_M2[k] - 0.5  # as image viewers count
        clicks.append((f"image-{frame:06d}:{x + 0.4:.2f},{y:.2f}", world[room.obs_point_M[k]]))
    metres = np.linalg.norm(clicks[0][1] - clicks[1][1])
    result = align(
        room,
        frame_set_of(room),
        MetricConfig(distance=f"{clicks[0][0]} {clicks[1][0]} {metres:.4f}"),
    )
    assert result.scale == pytest.approx(SCALE, rel=0.02)


def test_several_distances_are_averaged_robustly(room):
    three = (
        "image-000000 image-000015 2.4; image-000000 image-000015 2.42; image-000000 "
        "image-000015 4.8;"
    )
    result = align(room, frame_set_of(room), MetricConfig(distance=three))
    assert (
        result.scale == pytest.approx(SCALE * 2.42 / 2.4) and result.residual["distance_count"] == 3
    )
    assert result.residual["distance_spread_percent"] == pytest.approx(
        100 * np.log(4.8 / 2.42)
    ) and "differ" in " ".join(result.notes)


def test_a_distance_beside_odometry_checks_it(room):
    stretched = [make_transform(T[:3, :3], 1.08 * T[:3, 3]) for T in circle()]
    result = align(
        room, frame_set_of(room, stretched), MetricConfig(distance="image-000000 image-000015 2.4")
    )
    assert result.source == "odometry" and result.residual["distance_scale_ratio"] == pytest.approx(
        1 / 1.08
    )
    assert any(
        "distance gives a scale -7.4 % off" in note and "metric.source=distance" in note
        for note in result.notes
    )
    chosen = align(
        room,
        frame_set_of(room, stretched),
        MetricConfig(distance="image-000000 image-000015 2.4", source="distance"),
    )
    assert chosen.scale == pytest.approx(SCALE) and chosen.upright == "tf"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a b", "2 words; expected"),
        ("a b c d", "4 words"),
        ("a b 1,85", "'1,85' is no number of metres"),
        ("a b -2", "expected 0.001 to 100000"),
        ("a b nan", "expected 0.001"),
        ("'a b 2", "No closing quotation"),
        ("image-000000 nobody 2", "no image is called 'nobody'"),
        ("image-000000:900,2 image-000001:3,3 2", "outside of the image of 320x240 pixels"),
        ("image-000003 image-000003 2", "at the same place"),
    ],
)
def test_distances_that_cannot_be_used(room, text, expected):
    with pytest.raises(SldError, match=expected):
        align(room, frame_set_of(room), MetricConfig(distance=text))


def test_a_click_on_nothing_and_a_lost_image(room):
    bare = dataclasses.replace(room, obs_xy_M2=np.minimum(room.obs_xy_M2, [200, 240]))
    with pytest.raises(
        SldError,
        match="image-000000:310,100: no point is known within 8 px .*, the nearest is 1.. px away",
    ):
        align(
            bare, frame_set_of(bare), MetricConfig(distance="image-000000:310,100 image-000001 2")
        )
    lost = dataclasses.replace(room.frames[0], name="image-000099")
    frames = frame_set_of(room)
    frames = dataclasses.replace(frames, frames=(*frames.frames, lost))
    with pytest.raises(SldError, match="image-000099 was not registered"):
        align(room, frames, MetricConfig(distance="image-000099 image-000001 2"))


def test_ends_of_a_distance():
    one, two = distances.parse_distance("a.jpg:3,4.5 b:c 1.85; x y=2")
    assert (one.a.name, one.a.xy, one.b.name, one.b.xy, one.metres) == (
        "a.jpg",
        (3.0, 4.5),
        "b:c",
        None,
        1.85,
    )
    assert two.metres == 2 and distances.parse_distance(" ; ") == []
    assert distances.parse_distance("image-000003:312.5,200 image-000003:400,210 = 1.85")[
        0
    ].b.xy == (400, 210)


# up -----------------------------------------------------------------------------------------------


def test_planes_correct_a_tilted_prior():
    """All cameras look one way and roll by 12 degrees: the images are wrong about up, the walls are
    not."""
    roll = make_transform(rotation_from_vector(np.array([0, 0, np.radians(12)])), np.zeros(3))
    poses = [looking([-2 + 0.2 * i, 0.1 * (i % 4), 1.2], 0.3, 0.15) @ roll for i in range(15)]
    room = reconstruction_of(poses, on_the_walls(2500))
    up = gravity.find_up(room, MetricConfig())
    assert up.kind == "planes" and up.planes_to_views_deg == pytest.approx(12, abs=5)
    assert gravity.angle_deg(up.direction_3, R_WORLD_SFM.T @ [0, 0, 1]) < 0.5
    result = align(room, frame_set_of(room), MetricConfig())
    first = moved(room, result).frames[0].T_world_camera
    np.testing.assert_allclose(first[:3, 3], 0, atol=1e-9)
    assert abs(first[1, 2]) < 1e-9 and first[0, 2] > 0.9  # it looks along x
    assert result.upright == "planes" and result.residual["planes_to_views_deg"] > 7


def test_without_planes_the_images_say_what_is_up():
    rng = np.random.default_rng(0)
    room = reconstruction_of(circle(), rng.uniform(LOW, HIGH, (400, 3)))
    result = align(room, frame_set_of(room), MetricConfig())
    assert result.upright == "views" and any("no floor" in note for note in result.notes)
    assert (
        gravity.angle_deg(result.R[2], R_WORLD_SFM[2]) < 0.5
    )  # 6 degrees of pitch do not count, as the camera turned about


def test_up_of_views_that_all_look_down_one_way():
    poses = np.stack([looking([0.1 * i, 0, 1], 0.0, 0.2) for i in range(5)])
    assert gravity.angle_deg(gravity.up_of_views(poses), np.array([0, 0, 1.0])) == pytest.approx(
        np.degrees(0.2)
    )


def test_a_first_camera_that_looks_straight_down_has_a_frame_too():
    R = gravity.upright_rotation(np.array([0, 0, 1.0]), looking([0, 0, 2], 0.7, np.pi / 2))
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(
        R[0], [np.cos(0.7), np.sin(0.7), 0], atol=1e-9
    )  # the top of its image


# all of it ----------------------------------------------------------------------------------------


def test_no_scale_at_all(room):
    result = align(room, frame_set_of(room), MetricConfig())
    assert (
        not result.metric
        and result.source == "none"
        and scale.median_depth(moved(room, result)) == pytest.approx(3)
    )
    asked = align(room, frame_set_of(room, circle()), MetricConfig(source="none"))
    assert (
        not asked.metric
        and asked.upright == "tf"
        and gravity.angle_deg(asked.R[2], R_WORLD_SFM[2]) < 1e-6
    )


@pytest.mark.parametrize(
    "source, expected",
    [
        ("odometry", "0 registered images have a pose"),
        ("depth", "no frame has a depth image"),
        ("tags", "size of the tags is not given"),
        ("distance", "no distance is given"),
    ],
)
def test_a_source_asked_for_that_is_not_there(room, source, expected):
    with pytest.raises(SldError, match=f"no scale from {source}: .*{expected}"):
        align(room, frame_set_of(room), MetricConfig(source=source))


def test_too_little_for_a_scene(room):
    with pytest.raises(SldError, match="1 registered images and 1200 points: too few"):
        align(dataclasses.replace(room, frames=room.frames[:1]), frame_set_of(room), MetricConfig())


def test_an_alignment_is_told_in_json(room):
    result = align(room, frame_set_of(room, drifting(circle())), MetricConfig())
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert set(told) == {field.name for field in dataclasses.fields(Alignment)}
    np.testing.assert_array_equal(told["R"], result.R)
    assert (told["scale"], told["source"]) == (result.scale, "odometry")


@pytest.mark.shared
def test_depth_makes_the_kitchen_metric(tmp_path):
    """Ten frames with poses 0.7 times too small and turned: depth gives back the scale, planes
    agree with each other."""
    kitchen = SHARED / "kitchen"
    if not kitchen.is_dir():
        pytest.skip(
            f"no recorded kitchen at {kitchen}; set SLD_SHARED to the folder that holds data/"
        )
    shrunk = []
    given = folders.read_frames(kitchen, kitchen / "map.txt")[10:30:2]
    for f in given:
        T = f.T_world_camera
        shrunk.append(
            dataclasses.replace(
                f,
                T_world_camera=make_transform(
                    R_WORLD_SFM @ T[:3, :3], 0.7 * R_WORLD_SFM @ T[:3, 3]
                ),
            )
        )
    small = reconstruct(shrunk, tmp_path)
    result = align(
        small,
        FrameSet(tuple(dataclasses.replace(f, T_world_camera=None) for f in shrunk), True),
        MetricConfig(),
    )
    assert result.source == "depth" and result.scale == pytest.approx(1 / 0.7, rel=0.02)
    back = align(small, FrameSet(tuple(given), True, "map"), MetricConfig())
    assert back.source == "odometry" and back.scale == pytest.approx(1 / 0.7, rel=1e-3)


def reconstruct(frames, folder):
    from sld_core.sfm import triangulation  # brings pycolmap, which the other tests do not need

    return triangulation.reconstruct(
        frames, folder, TrackConfig(max_features=1000, neighbours=6, refine_poses=False)
    )
