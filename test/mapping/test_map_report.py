"""Pictures and the report of a map: what they count, choose and survive, not how they look."""

import base64
import re
import warnings
from dataclasses import replace

import cv2
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from sld_core import geometry, html
from sld_core.mapping.report import close_ups, plan_view, timeline
from sld_core.mapping.report.report import MapReport, write_map_report
from sld_core.types import Camera, Frame, FrameSet, Landmarks, Reconstruction, SldError, Visibility

CAMERA = Camera(160, 120, 120.0, 120.0, 80.0, 60.0)
HOSTILE = "<script>alert('x')</script>$\\frac{1}$_\udcff\n"
V, H, U = Visibility.VISIBLE, Visibility.HIDDEN, Visibility.UNKNOWN


@pytest.fixture(autouse=True)
def no_warnings():
    """Nothing that is not finite may reach a mean, a cast or a logarithm unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Glyph")
        yield


@pytest.fixture(scope="module")
def image_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "image.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8))
    return path


def looking_at_origin(azimuth_deg, distance=2.0):
    """A camera at height 0 around the origin, z of the world up."""
    a = np.radians(azimuth_deg)
    forward = -np.array([np.cos(a), np.sin(a), 0])
    down = np.array([0, 0, -1.0])
    R = np.stack([np.cross(down, forward), down, forward], 1)
    return geometry.make_transform(R, -distance * forward)


def ring(image_path, azimuths_deg, sessions=None, points=None, stamp_s=0.0):
    """Cameras around the origin that all see all points (the origin first)."""
    frames = tuple(
        Frame(
            f"image-{i:06d}",
            image_path,
            CAMERA,
            looking_at_origin(a),
            session=sessions[i] if sessions else "",
            stamp_ns=int(1e9 * stamp_s * i),
        )
        for i, a in enumerate(azimuths_deg)
    )
    points = (
        np.array([[0, 0, 0], [0.1, 0, 0.2], [0, 0.2, 0.1]], float) if points is None else points
    )
    point, frame = np.divmod(np.arange(len(points) * len(frames)), len(frames))
    xy = np.array(
        [
            geometry.project(CAMERA, geometry.invert(frames[f].T_world_camera), points[[p]])[0][0]
            for p, f in zip(point, frame)
        ]
    )
    return Reconstruction(
        frames, points, np.full(len(points), 0.5), point, frame, xy.reshape(-1, 2)
    )


def drawn(figure):
    """Everything is computed only when a figure is drawn."""
    return html.pixels(figure)


def dots(axes):
    return [c for c in axes.collections if isinstance(c, PathCollection)]


# from above ---------------------------------------------------------------------------------------


def test_a_plan_has_x_to_the_right_and_y_up_where_z_is_up():
    x, y = html.seen_from_above(np.array([0, 0, 1.0]))(np.array([[1, 2, 3.0]]))
    assert (x[0], y[0]) == pytest.approx((1, 2))


def test_stray_points_and_a_stray_camera_do_not_shrink_the_picture(image_path):
    r = ring(
        image_path, range(0, 360, 10), points=np.random.default_rng(0).uniform(-1, 1, (200, 3))
    )
    points = r.points_N3.copy()
    points[:3] = 1e6, -1e7, 1e9
    far = replace(
        r.frames[0], T_world_camera=geometry.make_transform(np.eye(3), np.array([1e5, 0, 0]))
    )
    figure = plan_view.plan(replace(r, points_N3=points, frames=(far, *r.frames[1:])))
    axes = figure.axes[0]
    assert axes.get_xlim() == pytest.approx(
        (-2.2, 2.2), abs=0.1
    ) and axes.get_ylim() == pytest.approx((-2.2, 2.2), abs=0.1)
    assert "1 of them outside" in figure.get_suptitle()
    drawn(figure)


def test_the_path_is_dotted_where_images_were_lost_and_the_title_counts_them(image_path):
    r = ring(image_path, range(0, 100, 10))
    frames = tuple(
        replace(f, name=f"image-{9 + i + (i > 4)}") for i, f in enumerate(r.frames)
    )  # 9 to 13, 15 to 19
    figure = plan_view.plan(
        replace(r, frames=frames), {"image-14": "no matches", "image-99": "no matches"}
    )
    axes = figure.axes[0]
    joined, gaps = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert len(joined.get_segments()) == 8 and len(gaps.get_segments()) == 1
    assert gaps.get_segments()[0] == pytest.approx(
        np.array([[*r.frames[i].T_world_camera[:2, 3]] for i in (4, 5)])
    )
    assert figure.get_suptitle() == "From above: 10 of 12 images have a pose"


def test_photographs_in_no_order_are_not_joined(image_path):
    order = np.random.default_rng(0).permutation(60)
    figure = plan_view.plan(ring(image_path, 6.0 * order, points=np.zeros((1, 3))))
    assert not [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]


def test_axes_say_when_there_is_no_scale_and_sessions_beyond_the_colours_are_counted(image_path):
    r = ring(image_path, range(0, 360, 20), sessions=[f"{HOSTILE}{i % 9}" for i in range(18)])
    figure = plan_view.plan(r, metric=False, up_3=None)
    assert figure.axes[0].get_xlabel() == "units (no scale)"
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "4 more sessions" in labels
    drawn(figure)


@pytest.mark.parametrize(
    "azimuths, up_3",
    [([], None), ([0, 0, 0], None), ([], (0, 0, 1)), ([0], (0, 0, 1)), ([0, 180], (0, 0, 1))],
)
def test_few_cameras_in_one_place_without_points(image_path, azimuths, up_3):
    r = ring(image_path, azimuths, points=np.zeros((0, 3)))
    nothing = Landmarks(np.zeros((0, 3)), np.zeros(0, int))
    plan_view.plan(r, (), nothing, up_3=up_3)
    drawn(plan_view.coverage(r, nothing, np.zeros(len(azimuths), int), up_3=up_3))


# coverage -----------------------------------------------------------------------------------------


def test_coverage_counts_only_visible_landmarks_and_rings_those_below_the_minimum(image_path):
    r = ring(image_path, [0, 90, 180])
    landmarks = Landmarks(r.points_N3, np.arange(3))
    visibility_FL = np.array([[V, V, V], [V, U, U], [H, H, V]], np.uint8)
    shown = MapReport("", {}, FrameSet((), True), r, {}, landmarks, visibility_FL)
    assert shown.count_F.tolist() == [3, 1, 1]
    figure = plan_view.coverage(r, landmarks, shown.count_F, minimum=2)
    above, histogram = figure.axes[:2]
    assert figure.get_suptitle() == "2 of 3 viewpoints see fewer than 2 landmarks (ringed)"
    rings = dots(above)[-1].get_offsets()
    assert np.asarray(rings) == pytest.approx(np.array([[0, 2], [-2, 0]]))
    bars = {bar.get_x(): bar.get_height() for bar in histogram.patches if bar.get_height()}
    assert bars == {1: 2, 3: 1}


@pytest.mark.parametrize("minimum", [1, 7, 20, 50])
def test_no_bar_of_the_histogram_is_both_below_the_minimum_and_not(image_path, minimum):
    r = ring(image_path, range(100), points=np.zeros((1, 3)))
    landmarks = Landmarks(np.zeros((100, 3)), np.zeros(100, int))
    count_F = np.arange(100)  # frame i sees i landmarks
    bars = plan_view.coverage(r, landmarks, count_F, minimum).axes[1].patches
    below = sum(bar.get_height() for bar in bars if bar.get_hatch())
    assert below == minimum and sum(bar.get_height() for bar in bars) == 100
    assert all((bar.get_x() + bar.get_width() <= minimum) == bool(bar.get_hatch()) for bar in bars)


# timeline -----------------------------------------------------------------------------------------


def lines(axes, color):
    """The middle x of every vertical bar of a colour."""
    found = [
        c
        for c in axes.collections
        if isinstance(c, LineCollection) and np.allclose(c.get_color()[0], color_of(color))
    ]
    return sorted(float(s[0, 0]) for c in found for s in c.get_segments() if s[0, 0] == s[1, 0])


def color_of(name):
    from matplotlib.colors import to_rgba

    return to_rgba(name)


def frame_set(image_path, sessions, stamps_s=None, **rejected):
    frames = tuple(
        Frame(
            f"image-{i:06d}",
            image_path,
            CAMERA,
            session=s,
            stamp_ns=int(1e9 * stamps_s[i]) if stamps_s else 0,
            source=f"{s}.mp4 at {stamps_s[i]:.2f} s" if stamps_s else "",
        )
        for i, s in enumerate(sessions)
    )
    return FrameSet(frames, True, rejected=rejected.get("rejected", {}))


def test_the_timeline_puts_lost_and_rejected_images_at_their_seconds(image_path):
    frames = frame_set(
        image_path,
        "aaabb",
        [0.0, 1.0, 2.0, 0.0, 1.0],
        rejected={"a.mp4 at 1.50 s": "blurred", "c.mp4": "no video"},
    )
    figure = timeline.timeline(frames, ["image-000000", "image-000002", "image-000003"])
    axes = figure.axes[0]
    assert lines(axes, timeline.LOST) == [1.0, 1.0] and lines(axes, timeline.REGISTERED) == [
        0.0,
        0.0,
        2.0,
    ]
    assert lines(axes, timeline.REJECTED) == [1.5]
    assert (
        axes.get_xlabel() == "seconds"
        and figure.get_suptitle() == "2 of 5 images found no place in the map"
    )
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a\n2 of 3", "b\n1 of 2"]
    assert "2 rejected before (1 of them at an unknown time)" in [
        t.get_text() for t in figure.axes[0].get_legend().get_texts()
    ]


def test_rejected_images_of_a_bag_have_the_seconds_of_its_clock(image_path):
    frames = tuple(
        Frame(
            f"image-{i:06d}",
            image_path,
            CAMERA,
            session="bag",
            stamp_ns=1_700_000_000_000_000_000 + i * 10**9,
            source=f"bag /image at {1_700_000_000 + i}.000 s",
        )
        for i in range(5)
    )
    figure = timeline.timeline(
        FrameSet(frames, True, rejected={"bag /image at 1700000002.500 s": "blurred"}), []
    )
    assert lines(figure.axes[0], timeline.REJECTED) == pytest.approx([2.5])


def test_without_stamps_the_timeline_counts_images(image_path):
    axes = timeline.timeline(frame_set(image_path, "aaaa"), ["image-000003"]).axes[0]
    assert axes.get_xlabel() == "image" and lines(axes, timeline.LOST) == [0, 1, 2]


def test_of_many_sessions_those_that_lost_most_are_shown(image_path):
    names = [f"s{i:02d}" for i in range(40) for _ in range(2)]
    frames = frame_set(image_path, names)
    figure = timeline.timeline(
        frames, [f.name for f in frames.frames if f.session not in ("s07", "s33")]
    )
    labels = " ".join(t.get_text() for t in figure.axes[0].get_yticklabels())
    assert "s07" in labels and "s33" in labels and "24 sessions" in figure.get_suptitle()
    drawn(timeline.timeline(FrameSet((), True), []))


# photographs --------------------------------------------------------------------------------------


def test_the_four_views_are_distinct_frames_that_show_the_point_from_all_sides(image_path):
    r = ring(image_path, [0, 1, 2, 90, 91, 180, 181, 270, 271])
    views = close_ups.different_views(r, 0)
    frames = r.obs_frame_M[views]
    assert (
        len(set(frames)) == 4 and (r.obs_point_M[views] == 0).all() and (np.diff(frames) > 0).all()
    )
    azimuths = np.array([0, 1, 2, 90, 91, 180, 181, 270, 271])[frames]
    assert sorted(round(a / 90) * 90 % 360 for a in azimuths) == [0, 90, 180, 270]


def test_an_image_that_shows_a_point_twice_counts_once_and_one_view_is_refused(image_path):
    r = ring(image_path, [0, 30], points=np.zeros((1, 3)))
    twice = replace(
        r,
        obs_point_M=np.zeros(3, int),
        obs_frame_M=np.array([0, 0, 1]),
        obs_xy_M2=np.full((3, 2), 60.0),
    )
    assert twice.obs_frame_M[close_ups.different_views(twice, 0)].tolist() == [0, 1]
    with pytest.raises(SldError, match="seen by 0 images"):
        close_ups.different_views(r, 17)


def test_the_best_track_is_the_wide_one_and_one_of_the_landmarks(image_path):
    wide = ring(image_path, range(0, 180, 20))
    narrow_points = wide.obs_frame_M < 3  # points 1 and 2 are seen by three neighbours only
    keep = (wide.obs_point_M == 0) | narrow_points
    r = replace(
        wide,
        **{name: getattr(wide, name)[keep] for name in ("obs_point_M", "obs_frame_M", "obs_xy_M2")},
    )
    assert close_ups.best_track(r) == 0
    assert close_ups.best_track(r, Landmarks(r.points_N3[[2]], np.array([2]))) == 2


def test_the_patch_is_centred_on_the_keypoint():
    image = np.zeros((120, 160, 3), np.uint8)
    image[50:52, 30:32] = 255  # centred on the corner (31, 51)
    patch = close_ups._patch(image, 31.0, 51.0, 16.0)[..., 0].astype(float)
    y, x = np.indices(patch.shape) + 0.5
    assert (np.sum(x * patch) / patch.sum(), np.sum(y * patch) / patch.sum()) == pytest.approx(
        (80, 80), abs=0.05
    )


def test_sparse_depth_holds_the_depths_of_a_frames_own_points(image_path):
    r = ring(image_path, [0, 90])  # from x = 2 the point (0.1, 0, 0.2) is 1.9 away along the axis
    depth = close_ups.sparse_depth(r, 0)
    assert depth.shape == (120, 160) and sorted(depth[depth > 0].tolist()) == pytest.approx(
        [1.9, 2.0, 2.0]
    )
    assert depth[60, 80] == pytest.approx(2)


def test_depths_share_one_scale_and_the_titles_say_what_is_known():
    before, after = np.zeros((30, 40)), np.full((60, 80), 3.0)
    before[:15] = 1.0
    figure = close_ups.depth_pair(np.zeros((120, 160, 3), np.uint8), before, after)
    images = [axes.images[0] for axes in figure.axes[1:3]]
    assert images[0].get_clim() == images[1].get_clim() == pytest.approx((1, 3))
    assert [axes.get_title(loc="left") for axes in figure.axes[1:3]] == [
        "before: 50 % known",
        "after: 100 % known",
    ]
    nothing = np.zeros((3, 4))
    drawn(close_ups.depth_pair(np.zeros((120, 160, 3), np.uint8), nothing, nothing))


# report -------------------------------------------------------------------------------------------


def report(path, r, frames, **changes):
    landmarks = Landmarks(r.points_N3, np.arange(len(r.points_N3)))
    arguments = dict(
        title="A room",
        summary={"metric": True},
        frame_set=frames,
        reconstruction=r,
        lost={},
        landmarks=landmarks,
        visibility_FL=np.full((len(r.frames), len(landmarks)), V),
        split_F=("train",) * len(r.frames),
        depth_folder=None,
        seconds={"sfm": 12.0},
        notes=[],
    )
    write_map_report(path, MapReport(**(arguments | changes)))
    return path.read_text()


def test_the_report_tells_numbers_losses_and_reasons(image_path, tmp_path):
    r = ring(image_path, range(0, 120, 10))
    depth = tmp_path / "depth"
    depth.mkdir()
    for f in r.frames[:5]:
        cv2.imwrite(str(depth / f"{f.name}.depth.png"), np.full((60, 80), 2000, np.uint16))
    text = report(
        tmp_path / "r.html",
        r,
        FrameSet(r.frames, True, rejected={"a.jpg": "blurred: 3.1"}),
        lost={"image-000077": "no matches"},
        depth_folder=depth,
        seconds={"frames": 1.0, "sfm": 12.5},
        notes=["one note"],
        summary={
            "metric": False,
            "components": 2,
            "residual": {"rms_m": 0.0123},
            "reprojection_px": 0.8,
        },
    )
    for expected in (
        "12 of 13 images (92.3 %)",
        "no scale",
        "image-000077: no matches",
        "a.jpg: blurred: 3.1",
        "one note",
        "0.8",
        "rms_m 0.0123",
        "<td>rejected before</td><td>1 (1 blurred)</td>",
        "<td>separate pieces</td><td>2</td>",
        "frames 1, sfm 12.5, in all 13.5",
        "12 train",
    ):
        assert expected in text, expected
    assert (
        text.count("<img") == 7 and text.count("data:image/jpeg") == 3
    )  # two depths and one track are photographs
    assert "There is no picture" not in text and "http" not in re.sub(r"base64,[^\"]*", "", text)


def test_legends_are_drawn_by_matplotlib_3_6_too(image_path, monkeypatch):
    """There, a legend of a figure knows no place outside of the axes (Ubuntu 24.04)."""

    def old_legend(*_, loc="", **__):
        assert not loc.startswith("outside"), "needs matplotlib 3.7"

    monkeypatch.setattr(Figure, "legend", old_legend)
    r = ring(image_path, range(0, 120, 10))
    frames = FrameSet(r.frames, True)
    for figure in (plan_view.plan(r), timeline.timeline(frames, [f.name for f in r.frames])):
        drawn(figure)
        axes = figure.axes[0]
        legend = axes.get_legend().get_window_extent()
        assert legend.y0 >= axes.bbox.y1 - 1 or legend.x0 >= axes.bbox.x1 - 1  # above, or beside
        assert figure.bbox.x1 >= legend.x1 and figure.bbox.y1 >= legend.y1  # all of it is seen


def test_names_from_outside_are_escaped(image_path, tmp_path):
    r = ring(image_path, range(0, 60, 10), sessions=[HOSTILE] * 6)
    r = replace(r, frames=tuple(replace(f, name=f"{HOSTILE}{i}") for i, f in enumerate(r.frames)))
    text = report(
        tmp_path / "r.html",
        r,
        FrameSet(r.frames, True, rejected={HOSTILE: HOSTILE}),
        title=HOSTILE,
        lost={HOSTILE: HOSTILE},
        notes=[HOSTILE],
        summary={HOSTILE: HOSTILE, "metric": True},
        seconds={HOSTILE: 1.0},
        split_F=[HOSTILE] * 6,
        depth_folder=tmp_path / HOSTILE.replace("/", "").replace("\udcff", ""),
    )
    assert "<script" not in text and "&lt;script&gt;" in text


def test_a_depth_folder_without_depth_is_said(image_path, tmp_path):
    r = ring(image_path, range(0, 60, 10))
    text = report(tmp_path / "r.html", r, FrameSet(r.frames, True), depth_folder=tmp_path)
    assert f"No depth images were found in {tmp_path}" in text


def test_a_picture_that_cannot_be_drawn_leaves_its_reason(image_path, tmp_path):
    r = ring(image_path, range(0, 60, 10))
    gone = replace(r, frames=tuple(replace(f, image_path=tmp_path / "gone.jpg") for f in r.frames))
    assert re.search(
        r"There is no picture here: .*gone\.jpg: cannot be read",
        report(tmp_path / "r.html", gone, FrameSet(r.frames, True)),
    )


@pytest.mark.parametrize("frames", [1, 3])
def test_a_report_of_almost_nothing(image_path, tmp_path, frames):
    r = ring(image_path, [0.0] * frames, points=np.zeros((0, 3)))
    text = report(
        tmp_path / "r.html",
        r,
        FrameSet((), True),
        landmarks=None,
        visibility_FL=None,
        split_F=None,
        seconds={},
        summary={},
    )
    assert "no point of the reconstruction is seen by two images" in text


def test_a_report_of_thousands_of_frames_stays_small(image_path, tmp_path):
    rng = np.random.default_rng(0)
    n, frames = 40_000, 2000
    sessions = [f"s{i // 200}" for i in range(frames)]
    r = ring(
        image_path,
        np.linspace(0, 360, frames),
        sessions=sessions,
        points=np.zeros((1, 3)),
        stamp_s=0.25,
    )
    point, frame = np.sort(rng.integers(0, n, 200_000)), rng.integers(0, frames, 200_000)
    r = Reconstruction(
        r.frames,
        rng.normal(0, 1, (n, 3)),
        rng.uniform(0, 1, n),
        point,
        frame,
        rng.uniform(20, 100, (200_000, 2)),
    )
    landmarks = Landmarks(r.points_N3[:1000], np.arange(1000))
    lost = {f"lost-{i}": "no matches with any other image" for i in range(3000)}
    text = report(
        tmp_path / "r.html",
        r,
        FrameSet(r.frames, True, rejected=lost),
        lost=lost,
        landmarks=landmarks,
        visibility_FL=rng.integers(0, 3, (frames, 1000)).astype(np.uint8),
    )
    assert (tmp_path / "r.html").stat().st_size < 3_000_000
    assert text.count("<li>") == 602 and "and 2,700 more" in text
    assert all(
        base64.b64decode(uri)[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
        for uri in re.findall(r"base64,([^\"]+)", text)
    )
