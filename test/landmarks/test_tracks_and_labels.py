import dataclasses
import zlib

import cv2
import numpy as np
import pytest

from sld_core import geometry
from sld_core.config.scene import LabelConfig, LandmarkConfig, TrackConfig
from sld_core.data import frame_folder as folders
from sld_core.landmarks import selection, visibility
from sld_core.sfm import triangulation
from sld_core.sfm.subset import without_frames
from sld_core.training.training_set import hold_out
from sld_core.types import Camera, Frame, Reconstruction, SldError, Visibility

CAMERA = Camera(64, 48, 50.0, 50.0, 32.0, 24.0)


def looking_along_z(x: float) -> np.ndarray:
    return geometry.make_transform(np.eye(3), np.array([x, 0.0, 0.0]))


@pytest.fixture
def reconstruction(tmp_path):
    """Eight cameras on a line look along z at points 2 m ahead, all seen by all."""
    rng = np.random.default_rng(0)
    frames = tuple(
        Frame(str(i), tmp_path / f"{i}.jpg", CAMERA, looking_along_z(0.1 * i), session=str(i // 4))
        for i in range(8)
    )
    points = np.column_stack(
        [rng.uniform(-0.3, 1.0, 300), rng.uniform(-0.5, 0.5, 300), np.full(300, 2.0)]
    )
    point, frame = (g.ravel() for g in np.meshgrid(np.arange(300), np.arange(8), indexing="ij"))
    xy = np.stack(
        [
            geometry.project(CAMERA, geometry.invert(frames[f].T_world_camera), points[p : p + 1])[
                0
            ][0]
            for p, f in zip(point, frame)
        ]
    )
    return Reconstruction(frames, points, np.full(300, 0.5), point, frame, xy)


def test_the_first_landmarks_of_many_are_the_landmarks_of_few(reconstruction):
    config = LandmarkConfig(count=100)
    many = selection.select(reconstruction, config)
    few = selection.select(reconstruction, dataclasses.replace(config, count=30))
    np.testing.assert_array_equal(many.point_L[:30], few.point_L)


def test_landmarks_do_not_depend_on_the_order_of_points_and_observations(reconstruction):
    rng = np.random.default_rng(1)
    point, observation = rng.permutation(300), rng.permutation(len(reconstruction.obs_point_M))
    shuffled = dataclasses.replace(
        reconstruction,
        points_N3=reconstruction.points_N3[point],
        obs_point_M=np.argsort(point)[reconstruction.obs_point_M][observation],
        obs_frame_M=reconstruction.obs_frame_M[observation],
        obs_xy_M2=reconstruction.obs_xy_M2[observation],
    )
    chosen, again = (
        selection.select(r, LandmarkConfig(count=100)) for r in (reconstruction, shuffled)
    )
    np.testing.assert_array_equal(again.xyz_L3, chosen.xyz_L3)


def without(reconstruction, drop_M):
    """The same without some observations."""
    rest = ("obs_point_M", "obs_frame_M", "obs_xy_M2")
    kept = {name: getattr(reconstruction, name)[~drop_M] for name in rest}
    return dataclasses.replace(reconstruction, **kept)


def test_frames_that_see_few_landmarks_get_more_of_what_they_see(reconstruction):
    """Two frames see only a third of the points, two others only the rest. Without a number, and
    only up to the most allowed; with a number it is kept."""
    point, frame = reconstruction.obs_point_M, reconstruction.obs_frame_M
    blind = (point < 200) & (frame < 2) | (point >= 200) & ((frame == 2) | (frame == 3))
    thinned = without(reconstruction, blind)
    config = LandmarkConfig(base_count=30, per_view=25)
    few = selection.select(thinned, dataclasses.replace(config, count=30))
    assert len(few) == 30 and (selection.in_sight(thinned, few.point_L) < 25).any()
    more = selection.select(thinned, config)
    np.testing.assert_array_equal(more.point_L[:30], few.point_L)
    assert len(np.unique(more.point_L)) == len(more) > 30
    assert (selection.in_sight(thinned, more.point_L) >= 25).all()
    capped = selection.select(thinned, dataclasses.replace(config, max_count=35))
    np.testing.assert_array_equal(capped.point_L, more.point_L[:35])


def test_points_of_fewer_views_count_where_there_are_no_better_ones(reconstruction):
    """One frame sees only points that few others see."""
    point, frame = reconstruction.obs_point_M, reconstruction.obs_frame_M
    rare = point >= 250
    thinned = without(reconstruction, (rare & (frame >= 4)) | (~rare & (frame == 0)))
    config = LandmarkConfig(base_count=30, per_view=10)
    chosen = selection.select(thinned, config).point_L
    assert (chosen >= 250).sum() == 10 and selection.in_sight(thinned, chosen)[0] == 10
    strict = selection.select(thinned, dataclasses.replace(config, fallback_views=6)).point_L
    assert (strict < 250).all()


def test_a_handful_of_landmarks_is_refused_in_one_line():
    with pytest.raises(SldError, match="landmarks.count=5: expected at least 20, or 0"):
        LandmarkConfig(count=5)


def test_landmarks_keep_their_distance(reconstruction):
    config = LandmarkConfig(first_spacing=0.1)
    points = reconstruction.points_N3
    low, high = np.percentile(points, [5, 95], axis=0)
    spacing = 0.1 * np.linalg.norm(high - low)
    first_pass = selection.spread(points, 10, config)
    between = np.linalg.norm(points[first_pass][:, None] - points[first_pass][None], axis=2)
    assert between[~np.eye(10, dtype=bool)].min() >= spacing
    assert (
        len(set(selection.spread(points, 300, config))) == 300
    )  # in the end every point is placed, once


def test_a_point_seen_too_rarely_or_from_one_side_is_no_candidate(reconstruction):
    far = dataclasses.replace(reconstruction, points_N3=reconstruction.points_N3 * [1, 1, 50.0])
    assert not selection.is_candidate(far, LandmarkConfig()).any()
    assert selection.is_candidate(reconstruction, LandmarkConfig()).all()
    rare = without_frames(reconstruction, [0, 1, 2])
    assert not selection.is_candidate(rare, LandmarkConfig()).any()
    with pytest.raises(SldError, match="only 0 points"):
        selection.select(rare, LandmarkConfig())


def test_angular_span_by_hand(reconstruction):
    """A point 2 m ahead of the middle of a 0.7 m baseline is seen over 2 atan(0.35 / 2)."""
    r = dataclasses.replace(
        reconstruction,
        points_N3=np.array([[0.35, 0, 2.0]]),
        error_px_N=np.zeros(1),
        obs_point_M=np.zeros(8, int),
        obs_frame_M=np.arange(8),
        obs_xy_M2=np.zeros((8, 2)),
    )
    assert selection.angular_span(r)[0] == pytest.approx(2 * np.arctan(0.35 / 2), rel=0.01)


def test_held_out_frames_leave_no_trace(reconstruction):
    held_out = hold_out(8, 0.25, chunk=2)
    assert len(held_out) == 2 and held_out[1] == held_out[0] + 1
    rest = without_frames(reconstruction, held_out)
    assert len(rest.frames) == 6 and len(rest.obs_point_M) == 6 * 300
    assert {rest.frames[i].name for i in rest.obs_frame_M} == {
        f.name for i, f in enumerate(reconstruction.frames) if i not in held_out
    }
    assert hold_out(100, 0.0) == [] and len(hold_out(200, 0.05)) == 10


def test_labels_behind_an_occluder(tmp_path):
    """A wall at 1 m covers the left half; landmarks at 2 m behind it are hidden, on the right they
    are visible."""
    depth = np.full((48, 64), 2000, np.uint16)
    depth[:, :32] = 1000
    depth[:, 60:] = 0  # no measurement
    cv2.imwrite(str(tmp_path / "d.png"), depth)
    frame = Frame("f", tmp_path / "f.jpg", CAMERA, np.eye(4), tmp_path / "d.png")

    def at(x_px, z):
        return [(x_px - 32) / 50 * z, 0, z]

    xyz = np.array(
        [at(16, 2.0), at(48, 2.0), at(16, 1.0), at(62, 2.0), at(70, 2.0), [0, 0, -1.0], at(48, 2.4)]
    )
    V = Visibility
    seen, xy = visibility.label_frame(frame, xyz, LabelConfig())
    assert seen.tolist() == [
        V.HIDDEN,
        V.VISIBLE,
        V.VISIBLE,
        V.UNKNOWN,
        V.HIDDEN,
        V.HIDDEN,
        V.UNKNOWN,
    ]
    np.testing.assert_allclose(xy[1], [48, 24])


def test_without_depth_only_tracks_tell(reconstruction):
    chosen = selection.select(reconstruction, LandmarkConfig(count=50))
    first = without_frames(reconstruction, [7])
    first = dataclasses.replace(
        first, frames=reconstruction.frames
    )  # frame 7 stays, its observations are gone
    out = visibility.label(first, chosen, LabelConfig())
    inside = out.visibility_FL != Visibility.HIDDEN
    assert (out.visibility_FL[:7][inside[:7]] == Visibility.VISIBLE).all()
    assert (out.visibility_FL[7][inside[7]] == Visibility.UNKNOWN).all() and inside[7].any()


# folders of frames --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    np.savetxt(tmp_path / "camera-intrinsics.txt", [[50, 0, 31.5], [0, 50, 23.5], [0, 0, 1]])
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"frame-{i:06d}.color.jpg"), np.zeros((48, 64, 3), np.uint8))
        np.savetxt(tmp_path / f"frame-{i:06d}.pose.txt", looking_along_z(i))
    (tmp_path / "map.txt").write_text("frame-000000\nframe-000002\n")
    return tmp_path


def test_a_folder_of_frames(folder):
    frames = folders.read_frames(folder, folder / "map.txt")
    assert [f.name for f in frames] == ["frame-000000", "frame-000002"]
    assert frames[1].T_world_camera[0, 3] == 2 and frames[0].camera == CAMERA
    assert len(folders.read_frames(folder)) == 3


@pytest.mark.parametrize(
    "break_it, expected",
    [
        (lambda d: (d / "map.txt").write_text("frame-000009\n"), "no such image"),
        (lambda d: (d / "map.txt").write_text(""), "names no frames"),
        (lambda d: (d / "map.txt").write_text("../../etc/passwd\n"), "leads out of"),
        (lambda d: (d / "map.txt").write_text("frame-000000\nframe-000000\n"), "twice"),
        (lambda d: (d / "camera-intrinsics.txt").unlink(), "camera-intrinsics.txt: cannot be read"),
        (lambda d: (d / "camera-intrinsics.txt").write_text("1 2 3"), "expected a 3x3 matrix"),
        (
            lambda d: (d / "camera-intrinsics.txt").write_text("99 0 63.5 0 99 47.5 0 0 1"),
            "image is 64x48 but .* is for images of about 128x96",
        ),
        (lambda d: (d / "frame-000000.pose.txt").write_text("nan " * 16), "expected 4x4 finite"),
        (
            lambda d: (d / "frame-000000.pose.txt").write_text("2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1"),
            "not a rigid",
        ),
        (lambda d: (d / "frame-000000.pose.txt").write_text("hello"), "expected 4x4 numbers"),
        (lambda d: (d / "frame-000000.color.jpg").write_bytes(b"no image"), "neither JPEG nor PNG"),
        (
            lambda d: (d / "frame-000000.color.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00"),
            "damaged JPEG",
        ),
    ],
)
def test_each_flaw_of_a_folder_is_named(folder, break_it, expected):
    break_it(folder)
    with pytest.raises(SldError, match=expected):
        folders.read_frames(folder, folder / "map.txt")


def test_a_list_with_a_byte_order_mark_and_windows_line_ends(folder):
    (folder / "map.txt").write_bytes(b"\xef\xbb\xbfframe-000000\r\nframe-000001\r\n")
    assert len(folders.read_frames(folder, folder / "map.txt")) == 2


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path):
    from sld_core.camera.images import read_image

    _, png = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))
    bomb = bytearray(png.tobytes())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(SldError, match="60000x60000 pixels"):
        read_image(tmp_path / "bomb.png")
    with pytest.raises(SldError, match="cannot be read"):
        read_image(tmp_path)


# upright images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("roll", [-2.5, -0.7, 0.3, 1.5])
def test_a_rolled_image_is_turned_upright(roll):
    """A camera rolled about its axis: after turning the image, a point above another one is above
    it in the image."""
    from sld_core.camera.images import rotate

    level = np.array(
        [[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]
    )  # camera axes in a z-up world: looks along +y
    T = geometry.make_transform(
        level @ geometry.rotation_from_vector(np.array([0, 0, roll])), np.zeros(3)
    )
    angle = geometry.upright_angle(T, np.array([0, 0, 1.0]))
    assert angle == pytest.approx(roll)
    xy, _ = geometry.project(CAMERA, geometry.invert(T), np.array([[0, 5.0, 0], [0, 5.0, 0.5]]))
    _, A = rotate(np.zeros((48, 64, 3), np.uint8), angle)
    low, high = xy @ A[:, :2].T + A[:, 2]
    assert high[1] < low[1] - 1 and high[0] == pytest.approx(low[0], abs=1e-6)


def test_straight_down_there_is_no_upright():
    T = geometry.make_transform(np.diag([1.0, -1.0, -1.0]), np.zeros(3))
    assert geometry.upright_angle(T, np.array([0, 0, 1.0])) == 0.0


def test_pixels_move_with_a_rotated_image():
    from sld_core.camera.images import rotate

    y, x = np.mgrid[:48, :64] + 0.5
    spot = 250 * np.exp(-((x - 20.2) ** 2 + (y - 30.7) ** 2) / 10)
    for angle in (0.4, -1.2, 2.0):
        turned, A = rotate(np.repeat(spot[..., None], 3, 2).astype(np.uint8), angle)
        y2, x2 = np.mgrid[: turned.shape[0], : turned.shape[1]] + 0.5
        weight = turned[..., 0].astype(float)
        found = [(weight * x2).sum() / weight.sum(), (weight * y2).sum() / weight.sum()]
        np.testing.assert_allclose(found, A[:, :2] @ [20.2, 30.7] + A[:, 2], atol=0.1)
        corners = np.array([[0, 0], [64, 0], [0, 48], [64, 48.0]]) @ A[:, :2].T + A[:, 2]
        assert (corners > -1e-6).all() and (corners <= np.array(turned.shape[1::-1]) + 1e-6).all()


def test_a_robot_that_does_not_roll_pays_nothing():
    from sld_core.localizer import roll_attempts

    assert roll_attempts(0.0, 0.0) == [0.0]
    attempts = (
        np.degrees(roll_attempts(np.radians(-60), np.radians(30))).round().astype(int).tolist()
    )
    assert attempts[0] == 0 and sorted(attempts) == [-70, -35, 0, 35]


# tracks with known poses: in whose folder they work, and what becomes of their stored result ------


@pytest.fixture
def frames(tmp_path):
    """Three frames, of which only the paths and poses count here."""
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        path.write_bytes(b"image")
    return [Frame(path.stem, path, CAMERA, np.eye(4)) for path in paths]


@pytest.fixture
def times(monkeypatch):
    """How often tracks were computed: in place of the real thing, one point that all frames see."""
    made = []

    def reconstruct(frames, work, config, seed, progress):
        (work / "features.db").write_text("ours")
        made.append(work)
        return Reconstruction(
            tuple(frames),
            np.array([[1.0, 2, 3]]),
            np.zeros(1),
            np.zeros(3, int),
            np.arange(3),
            np.ones((3, 2)),
        )

    monkeypatch.setattr(triangulation, "reconstruct", reconstruct)
    return made


def once(frames, work):
    return triangulation.reconstruct_once(frames, work, TrackConfig(), 0, lambda _: None)


@pytest.mark.parametrize("name", ["stage.json", "features.db", "model", "pairs.txt"])
def test_a_folder_of_somebody_else_is_left_alone(frames, times, tmp_path, name):
    """Such as that of a stage of a map, whose features would be gone."""
    work = tmp_path / "lobby" / "work" / "sfm"
    (work / "model").mkdir(parents=True) if name == "model" else work.mkdir(parents=True)
    if name != "model":
        (work / name).write_text("somebody else's")
    with pytest.raises(SldError, match="sfm.*; choose a new or empty folder"):
        once(frames, work)
    assert not times and [path.name for path in work.iterdir()] == [name]


def test_a_folder_of_ours_is_used_again(frames, times, tmp_path):
    first = once(frames, tmp_path / "new")
    assert (
        np.array_equal(once(frames, tmp_path / "new").points_N3, first.points_N3)
        and len(times) == 1
    )
    (tmp_path / "new" / "tracks.npz").unlink()  # as a killed run leaves it
    once(frames, tmp_path / "new")
    assert len(times) == 2
    (tmp_path / "new" / triangulation.MARK).unlink()  # as older versions left it
    once(frames, tmp_path / "new")
    assert len(times) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")  # which is not in the way
    once(frames, tmp_path / "mine")
    assert len(times) == 3 and (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:200], lambda data: b"", lambda data: b"text", lambda data: data[:-30]],
)
def test_a_damaged_result_is_computed_anew(frames, times, tmp_path, caplog, damage):
    first, path = once(frames, tmp_path), tmp_path / "tracks.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(once(frames, tmp_path).points_N3, first.points_N3) and len(times) == 2
    assert (
        len(caplog.messages) == 1
        and "tracks.npz: cannot be read" in caplog.text
        and "tracks are computed again" in caplog.text
    )
    once(frames, tmp_path)
    assert len(times) == 2
