"""Matchability, normals, labels from depth, and that test images leave no trace in the
landmarks."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch

from sld_core import cli, geometry, synthetic
from sld_core.bench.landmarks import selection_rules
from sld_core.config.scene import LabelConfig, LandmarkConfig
from sld_core.config.settings import from_dict, to_dict
from sld_core.landmarks import matchability, normals, selection, visibility
from sld_core.sfm.subset import without_frames
from sld_core.types import Camera, Frame, Landmarks, Reconstruction, SldError, Visibility

CAMERA = Camera(64, 48, 50.0, 50.0, 32.0, 24.0)
V = Visibility


def at(x: float, z: float = 0.0, turn_y_deg: float = 0.0) -> np.ndarray:
    """A camera at (x, 0, z) that looks along +z, turned to the right by an angle."""
    return geometry.make_transform(
        geometry.rotation_from_vector(np.array([0, np.radians(turn_y_deg), 0])), np.array([x, 0, z])
    )


def reconstruct(frames, points: np.ndarray) -> Reconstruction:
    """All points, seen without noise by all frames."""
    point, frame = (
        g.ravel()
        for g in np.meshgrid(np.arange(len(points)), np.arange(len(frames)), indexing="ij")
    )
    xy = np.stack(
        [geometry.project(f.camera, geometry.invert(f.T_world_camera), points)[0] for f in frames]
    )
    return Reconstruction(
        tuple(frames), points, np.zeros(len(points)), point, frame, xy[frame, point]
    )


@pytest.fixture
def line(tmp_path):
    """Eight cameras on a line look at 300 points 2 m ahead."""
    rng = np.random.default_rng(0)
    frames = [
        Frame(str(i), tmp_path / f"{i}.png", CAMERA, at(0.1 * i), session=str(i // 4))
        for i in range(8)
    ]
    return reconstruct(
        frames,
        np.column_stack(
            [rng.uniform(-0.3, 1.0, 300), rng.uniform(-0.5, 0.5, 300), np.full(300, 2.0)]
        ),
    )


# selection ----------------------------------------------------------------------------------------


def test_test_images_leave_no_trace(line):
    """Whatever the images left out saw, from wherever: the landmarks are those of the training
    images alone."""
    rng = np.random.default_rng(1)
    few = LandmarkConfig(count=60, min_views=4)
    expected = selection.select(without_frames(line, [6, 7]), few)
    test = line.obs_frame_M >= 6
    keep = ~test | (rng.random(len(test)) < 0.5)
    moved = [dataclasses.replace(f, T_world_camera=at(5.0), session="new") for f in line.frames[6:]]
    noisy = dataclasses.replace(
        line,
        obs_xy_M2=np.where(test[:, None], rng.uniform(0, 48, (len(test), 2)), line.obs_xy_M2),
        error_px_N=rng.uniform(0, 50, 300),
        frames=(*line.frames[:6], *moved),
    )
    gone = dataclasses.replace(
        noisy,
        obs_point_M=line.obs_point_M[keep],
        obs_frame_M=line.obs_frame_M[keep],
        obs_xy_M2=noisy.obs_xy_M2[keep],
    )
    for changed in (noisy, gone):
        got = selection.select(without_frames(changed, [6, 7]), few)
        np.testing.assert_array_equal(got.point_L, expected.point_L)
        np.testing.assert_array_equal(got.xyz_L3, expected.xyz_L3)


def test_reprojection_error_by_hand(line):
    """One of seven observations of point 0 is off by 4 px, one of point 1 lies behind its camera,
    point 2 was never seen."""
    xy = line.obs_xy_M2.copy()
    xy[:2] += [4.0, 0.0]
    frames = (dataclasses.replace(line.frames[0], T_world_camera=at(0.0, z=3.0)), *line.frames[1:])
    keep = (line.obs_point_M != 2) & ~((line.obs_point_M != 1) & (line.obs_frame_M == 0))
    r = dataclasses.replace(
        line,
        frames=frames,
        obs_point_M=line.obs_point_M[keep],
        obs_frame_M=line.obs_frame_M[keep],
        obs_xy_M2=xy[keep],
    )
    assert selection.reprojection_px(r)[:4] == pytest.approx([4 / 7, np.inf, np.inf, 0.0], abs=1e-9)


def test_a_point_of_all_sessions_is_more_salient(line):
    half = dataclasses.replace(
        line, frames=tuple(dataclasses.replace(f, session="one") for f in line.frames)
    )
    only_first = (line.obs_point_M > 0) | (line.obs_frame_M < 4)
    r = dataclasses.replace(
        line,
        **{k: getattr(line, k)[only_first] for k in ("obs_point_M", "obs_frame_M", "obs_xy_M2")},
    )
    same = dataclasses.replace(r, frames=half.frames)
    difference = selection.saliency_of(same) - selection.saliency_of(r)
    assert difference[0] == pytest.approx(0.5) and difference[1:] == pytest.approx(0.0)


def test_matchability_changes_the_order_by_its_weight(line):
    match_N = np.zeros(300)
    match_N[7] = 1.0
    few = LandmarkConfig(count=20, matchability_weight=0.0)
    assert 7 not in selection.select(line, few, match_N).point_L[:1]
    assert (
        selection.select(line, dataclasses.replace(few, matchability_weight=10.0), match_N).point_L[
            0
        ]
        == 7
    )


def test_the_first_of_many_are_those_of_few_also_with_matchability(line):
    match_N = np.random.default_rng(2).random(300)
    for config in selection_rules(LandmarkConfig(count=100), [2.0]).values():
        many = selection.select(line, config, match_N).point_L
        np.testing.assert_array_equal(
            many[:30],
            selection.select(line, dataclasses.replace(config, count=30), match_N).point_L,
        )
        assert len(set(many.tolist())) == 100


def test_spreading_in_a_large_scene_by_the_definition():
    """Pass by pass over all points in order, each at its distance from all chosen before; and equal
    points only once."""
    points = np.random.default_rng(3).uniform(0, 1, (400, 3)).round(1)
    config, chosen = LandmarkConfig(), []
    spacing = config.first_spacing * np.linalg.norm(
        np.subtract(*np.percentile(points, [95, 5], axis=0))
    )
    while len(chosen) < 150:
        for i in range(400):
            distance = np.linalg.norm(points[chosen] - points[i], axis=1).min(initial=np.inf)
            if distance > 0 and distance >= spacing and len(chosen) < 150:
                chosen.append(i)
        spacing *= config.spacing_shrink
    assert selection.spread(points, 150, config).tolist() == chosen
    assert len(selection.spread(points, 400, config)) == len(np.unique(points, axis=0))
    assert selection.spread(points, 5, dataclasses.replace(config, first_spacing=0.0)).tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


# matchability -------------------------------------------------------------------------------------


class FakeBackbone:
    """Sees nothing but the colour in the middle of each cell; different colours have features far
    apart."""

    channels, device = 32, "cpu"

    def features(self, image_HW3, device="cpu"):
        colour = torch.from_numpy(image_HW3[4::8, 4::8].astype(np.float32))
        return torch.sin(
            colour @ torch.randn(3, 32, generator=torch.Generator().manual_seed(0)) / 20
        ).permute(2, 0, 1)


@pytest.fixture
def wall(tmp_path):
    """A wall of 13x6 tiles of 16 cm in front of six cameras one tile apart: each tile fills one
    cell. The left five columns and the right ones have colours of their own; the three columns
    between are all alike."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (6, 13, 3)).astype(np.uint8)
    colours[:, 5:8] = [200, 30, 60]
    frames = []
    for i in range(6):
        image = np.repeat(np.repeat(colours[:, i : i + 8], 8, 0), 8, 1)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image[..., ::-1])
        frames.append(Frame(str(i), tmp_path / f"{i}.png", CAMERA, at(0.16 * i)))
    column, row = (g.ravel() for g in np.meshgrid(np.arange(13), np.arange(6)))
    points = np.column_stack([(column - 3.5) * 0.16, (row - 2.5) * 0.16, np.full(len(column), 1.0)])
    r = reconstruct(frames, points)
    inside = ((r.obs_xy_M2 > 0) & (r.obs_xy_M2 < [64, 48])).all(1)
    return dataclasses.replace(
        r, **{k: getattr(r, k)[inside] for k in ("obs_point_M", "obs_frame_M", "obs_xy_M2")}
    ), column


def test_tiles_that_are_all_alike_match_worse_than_those_that_are_not(wall):
    r, column = wall
    config = LandmarkConfig(min_views=3, min_span_deg=1.0, matchability_views=6)
    said = []
    out = matchability.matchability(
        r, FakeBackbone(), 640, config, np.random.default_rng(0), said.append
    )
    candidate = selection.is_candidate(r, config)
    alike = candidate & (column >= 5) & (column < 8)
    assert candidate.sum() > 40 and (out[~candidate] == 0).all() and ((out >= 0) & (out <= 1)).all()
    assert out[alike].max() < 0.2 < 0.5 < np.median(out[candidate & ~alike])
    assert said[-1].fraction == 1.0


def test_frames_are_chosen_where_points_are_not_yet_seen():
    """Frames 0 and 1 see points 0-9, frame 2 sees 10-14, frame 3 sees nothing new."""
    point = np.concatenate([np.arange(10), np.arange(10), np.arange(10, 15), [0]])
    frame = np.repeat([0, 1, 2, 3], [10, 10, 5, 1])

    def choose(**settings):
        return matchability.covering_frames(point, frame, 4, LandmarkConfig(**settings))

    assert choose(matchability_frames=2, matchability_views=2) == [0, 1]
    assert choose(matchability_frames=3, matchability_views=2) == [0, 1, 2]
    assert choose(matchability_views=2) == [0, 1, 2]  # the last one brings nothing
    assert choose(matchability_views=3) == [0, 1, 2, 3]


def test_a_candidate_that_no_two_chosen_frames_see_gets_the_median(wall):
    r, _ = wall
    config = LandmarkConfig(min_views=3, min_span_deg=1.0, matchability_frames=2)
    out = matchability.matchability(r, FakeBackbone(), 640, config, np.random.default_rng(0))
    assert (out[selection.is_candidate(r, config)] > 0).all()


def test_without_candidates_nothing_is_compared(line):
    none = LandmarkConfig(min_views=100)
    out = matchability.matchability(line, FakeBackbone(), 640, none, np.random.default_rng(0))
    assert out.tolist() == [0.0] * 300


# depth --------------------------------------------------------------------------------------------


def depth_frame(folder, name: str, depth_m: np.ndarray, T: np.ndarray) -> Frame:
    cv2.imwrite(str(folder / f"{name}.depth.png"), np.round(1000 * depth_m).astype(np.uint16))
    return Frame(name, folder / f"{name}.jpg", CAMERA, T, folder / f"{name}.depth.png")


def wall_depth(T: np.ndarray, z: float) -> np.ndarray:
    """What a camera sees of the plane at world z."""
    y, x = np.mgrid[:48, :64] + 0.5
    ray = np.stack([(x - 32) / 50, (y - 24) / 50, np.ones_like(x)], -1) @ T[:3, :3].T
    with np.errstate(divide="ignore"):
        depth = (z - T[2, 3]) / ray[..., 2]
    return np.where((depth > 0) & (depth < 60), depth, 0)


@pytest.mark.parametrize(
    "measured, expected",
    [
        (1.0, V.HIDDEN),  # something at half the distance
        (1.38, V.HIDDEN),  # 31 % nearer
        (1.42, V.UNKNOWN),  # 29 % nearer
        (1.93, V.VISIBLE),
        (2.07, V.VISIBLE),  # within 5 %
        (2.5, V.UNKNOWN),  # nothing there
        (0.0, V.UNKNOWN),  # no measurement
    ],
)
def test_the_rule_of_thirty_percent(tmp_path, measured, expected):
    frame = depth_frame(tmp_path, "f", np.full((48, 64), measured), np.eye(4))
    assert visibility.label_frame(frame, np.array([[0, 0, 2.0]]), LabelConfig())[0].tolist() == [
        expected
    ]
    tracks_show = visibility.label_frame(
        frame, np.array([[0, 0, 2.0]]), LabelConfig(depth_shows=False)
    )[0]
    assert tracks_show.tolist() == [V.UNKNOWN if expected == V.VISIBLE else expected]
    assert visibility.label_frame(frame, np.array([[0, 0, 2.0]]), LabelConfig(use_depth=False))[
        0
    ].tolist() == [V.UNKNOWN]


def test_at_the_edge_of_an_occluder_the_far_side_counts(tmp_path):
    """The occluder ends in the pixel column of the landmark: one pixel beside, the depth agrees."""
    depth = np.full((48, 64), 2.0)
    depth[:, :33] = 1.0
    frame = depth_frame(tmp_path, "f", depth, np.eye(4))
    on_edge = np.array([[0.02, 0, 2.0]])  # pixel x = 32.5
    assert visibility.label_frame(frame, on_edge, LabelConfig())[0][0] == V.VISIBLE
    assert visibility.label_frame(frame, on_edge, LabelConfig(depth_reach_px=0))[0][0] == V.HIDDEN


def test_agreement_with_tracks_by_hand(tmp_path):
    """Four landmarks at 2 m are tracked in frame 0, whose depth says: agrees, agrees, occluded,
    nothing; frame 1 tracks none."""
    depth = np.full((48, 64), 2.0)
    depth[:, 28:36], depth[:, 36:] = 1.0, 0.0
    frames = (
        depth_frame(tmp_path, "0", depth, np.eye(4)),
        depth_frame(tmp_path, "1", depth, at(0.0, z=60.0)),
    )
    x_px = np.array([10, 20, 32, 50])
    xyz = np.column_stack([(x_px - 32) / 25, np.zeros(4), np.full(4, 2.0)])
    r = Reconstruction(
        frames,
        xyz,
        np.zeros(4),
        np.arange(4),
        np.zeros(4, int),
        np.column_stack([x_px, np.full(4, 24.0)]),
    )
    made, report = visibility.label_and_report(r, Landmarks(xyz, np.arange(4)), LabelConfig())
    assert (
        report.tracked,
        report.tracked_visible,
        report.tracked_hidden,
        report.tracked_unknown,
    ) == (4, 0.5, 0.25, 0.25)
    assert (
        made.visibility_FL[0].tolist() == [V.VISIBLE] * 4
    )  # a track was seen: no depth image knows better
    assert report.visible == 0.5 and report.fewest_visible == 0
    nothing = dataclasses.replace(
        r, obs_point_M=np.zeros(0, int), obs_frame_M=np.zeros(0, int), obs_xy_M2=np.zeros((0, 2))
    )
    assert (
        visibility.label_and_report(nothing, Landmarks(xyz, np.arange(4)), LabelConfig())[
            1
        ].tracked_visible
        is None
    )


# normals ------------------------------------------------------------------------------------------


@pytest.fixture
def plane(tmp_path):
    """A plane at z = 2 with depth images of three cameras before it; a camera edge-on, and one
    behind it without depth."""
    poses = [at(-0.3), at(0.0), at(0.3, turn_y_deg=-10)]
    frames = [depth_frame(tmp_path, str(i), wall_depth(T, 2.0), T) for i, T in enumerate(poses)]
    edge_on = Frame(
        "edge", tmp_path / "e.jpg", CAMERA, at(-3.0, z=1.9, turn_y_deg=90)
    )  # 3 m beside the middle, 10 cm before the plane
    behind = Frame("behind", tmp_path / "b.jpg", CAMERA, at(0.0, z=4.0, turn_y_deg=180))
    xyz = np.array([[0, 0, 2.0], [0.2, 0.1, 2.0], [-0.1, -0.2, 2.0]])
    r = reconstruct([*frames, edge_on, behind], xyz)
    seen = r.obs_frame_M < 3
    r = dataclasses.replace(
        r,
        obs_point_M=r.obs_point_M[seen],
        obs_frame_M=r.obs_frame_M[seen],
        obs_xy_M2=r.obs_xy_M2[seen],
    )
    return r, Landmarks(xyz, np.arange(3))


def test_normals_of_a_plane_face_the_cameras(plane):
    found = normals.normals_of(*plane, LabelConfig())
    np.testing.assert_allclose(found, np.tile([0, 0, -1.0], (3, 1)), atol=0.01)


def test_a_plane_seen_edge_on_or_from_behind_is_hidden(plane):
    r, lm = plane
    found = normals.normals_of(r, lm, LabelConfig())
    without_normals = visibility.label(r, lm, LabelConfig())
    with_normals = visibility.label(r, lm, LabelConfig(), found)
    assert (without_normals.visibility_FL[3:] == V.UNKNOWN).all()
    assert (with_normals.visibility_FL[3:] == V.HIDDEN).all()
    assert (with_normals.visibility_FL[:3] == V.VISIBLE).all()
    # 3 m beside and 10 cm before the middle: 88.1 degrees
    loose = LabelConfig(normal_max_deg=88.5)
    assert visibility.label_frame(r.frames[3], lm.xyz_L3[:1], loose, found[:1])[0][0] == V.UNKNOWN
    assert (
        visibility.label_frame(
            r.frames[3], lm.xyz_L3[:1], dataclasses.replace(loose, normal_max_deg=87.5), found[:1]
        )[0][0]
        == V.HIDDEN
    )


def test_a_normal_that_a_track_contradicts_is_dropped(plane):
    r, lm = plane
    r = dataclasses.replace(
        r,
        obs_point_M=np.append(r.obs_point_M, 1),
        obs_frame_M=np.append(r.obs_frame_M, 4),
        obs_xy_M2=np.vstack([r.obs_xy_M2, [0, 0]]),
    )
    found = normals.normals_of(r, lm, LabelConfig())
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()
    assert not normals.faces_away(found[1:2], np.array([[0, 0, 1.0]]), LabelConfig()).any()


def test_no_normal_without_depth_or_at_an_edge(tmp_path, plane):
    r, lm = plane
    bare = dataclasses.replace(
        r, frames=tuple(dataclasses.replace(f, depth_path=None) for f in r.frames)
    )
    assert np.isnan(normals.normals_of(bare, lm, LabelConfig())).all()
    depth = np.full((48, 64), 2.0)
    depth[:, 32:] = 3.0
    frame = depth_frame(tmp_path, "step", depth, np.eye(4))
    found = normals.depth_normals(
        frame, depth, np.array([[0.0, 0, 2.0], [-0.6, 0, 2.0], [9.0, 0, 2.0], [0, 0, -1.0]])
    )
    assert np.isfinite(found).all(1).tolist() == [False, True, False, False]


# settings -----------------------------------------------------------------------------------------


def test_settings_of_older_scenes_take_the_defaults_and_limits_hold():
    old = {"base_count": 1000, "min_views": 6, "first_spacing": 0.1}
    assert from_dict(old, LandmarkConfig) == LandmarkConfig()
    assert from_dict(to_dict(LabelConfig()), LabelConfig) == LabelConfig()
    for values, kind in (
        ({"matchability_weight": -1.0}, LandmarkConfig),
        ({"normal_max_deg": 200.0}, LabelConfig),
        ({"depth_reach_px": 1000}, LabelConfig),
    ):
        with pytest.raises(SldError, match="expected a number from"):
            from_dict(values, kind)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--repeat", "0"], "--repeat 0"),
        (["--samples", "-1"], "--samples -1"),
        (["--set", "landmarks.first_spacing=2"], "expected a number from 0.0 to 1.0"),
        (["--device", "gpu"], "expected cpu, cuda or cuda:N"),
        (
            ["--json", "/dev/null/x.json"],
            "--json /dev/null/x.json: cannot write there",
        ),  # before the minutes of work
        ([], "no such folder of frames"),
    ],
)
def test_a_clumsy_benchmark_gets_one_line(arguments, expected, tmp_path, capsys):
    nowhere = str(tmp_path / "nowhere")
    assert (
        cli.main(
            [
                "bench",
                "landmarks",
                "--frames",
                nowhere,
                "--map",
                "map.txt",
                "--query",
                "query.txt",
                *arguments,
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and error.startswith("sld: ")


@pytest.mark.slow
def test_the_table_has_a_row_for_each_pair_of_rules(tmp_path, capsys):
    """Twenty seconds: part of the demo room, which has depth."""
    drive = synthetic.drive(0, 240)
    synthetic.write_sequence(
        tmp_path, synthetic.Room.make(0), synthetic.DEMO_CAMERA, drive[:60:3], drive[11:50:12]
    )
    quick = [
        "--set",
        "landmarks.count=300",
        "--set",
        "tracks.max_features=1200",
        "--set",
        "landmarks.min_views=4",
    ]
    assert (
        cli.main(
            [
                "bench",
                "landmarks",
                "--frames",
                str(tmp_path),
                "--map",
                "map.txt",
                "--query",
                "query.txt",
                "--json",
                str(tmp_path / "m.json"),
                *quick,
            ]
        )
        == 0
    )
    rows = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert len(rows) == len({(r["selection"], r["labels"]) for r in rows}) == 12
    best = next(
        r
        for r in rows
        if (r["selection"], r["labels"]) == ("saliency, spread", "tracks, depth, normals")
    )
    assert (
        best["accepted"] == 4
        and best["median_cm"] < 5
        and best["tracked_visible"] > 0.8
        and best["tracked_hidden"] < 0.05
    )
    assert len(capsys.readouterr().out.splitlines()) == 13
