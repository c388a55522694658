"""Videos: frames by time stamps, sessions, and files that are none."""

import os

import cv2
import numpy as np
import pytest

from sld_core.camera.calibration import Calibration
from sld_core.config.mapping import FramesConfig
from sld_core.data import video as videos
from sld_core.data.frame_selection import FrameQuality, count_reasons, select
from sld_core.data.frame_set import read_frame_set
from sld_core.data.sources import from_videos
from sld_core.types import SldError


def write_video(path, values=range(0, 240, 8), fps=30, size=(64, 48), pattern=None):
    """Images of one grey value each."""
    path.parent.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(
        str(path), cv2.VideoWriter_fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v")), fps, size
    )
    for value in values:
        writer.write(
            np.full((size[1], size[0], 3), value, np.uint8) if pattern is None else pattern(value)
        )
    writer.release()
    return path


def grey(frame):
    return int(cv2.imread(str(frame.image_path))[24, 32, 0])


def test_four_frames_a_second_by_time(tmp_path):
    seen = []
    frame_set = from_videos(
        [write_video(tmp_path / "run.mp4", range(0, 240, 8))],
        tmp_path / "out",
        progress=seen.append,
    )  # 30 images, 1 s
    # at 30 Hz: images 0, 8 (0.267 s, the first at or after 0.25), 15, 23, and so on
    assert [round(f.stamp_ns * 30 / 1e9) for f in frame_set.frames] == [0, 8, 15, 23]
    assert all(
        abs(grey(f) - 8 * i) <= 5 for f, i in zip(frame_set.frames, (0, 8, 15, 23), strict=True)
    )
    frame = frame_set.frames[1]
    assert (frame.name, frame.session, frame.source, frame.image_path.name) == (
        "image-000001",
        "run",
        "run.mp4 at 0.27 s",
        "image-000001.color.jpg",
    )
    assert (
        not frame_set.intrinsics_known and frame.camera.fx == 1.2 * 64 and frame_set.rejected == {}
    )
    assert read_frame_set(tmp_path / "out") == frame_set
    assert 0 < seen[0].fraction < seen[-1].fraction <= 1


def test_equal_names_in_different_folders_are_two_sessions(tmp_path):
    paths = [
        write_video(tmp_path / "a" / "run.mp4"),
        write_video(tmp_path / "b" / "run.mp4"),
        write_video(tmp_path / "walk.mp4"),
    ]
    frame_set = from_videos(paths, tmp_path / "out")
    assert [f.session for f in frame_set.frames] == ["a/run"] * 4 + ["b/run"] * 4 + ["walk"] * 4
    assert [f.name for f in frame_set.frames] == [f"image-{i:06d}" for i in range(12)]


def test_names_of_sessions(tmp_path):
    def names(*paths):
        return videos.session_names([tmp_path / path for path in paths])

    assert names("a/x/run.mp4", "b/x/run.mp4", "b/walk.mp4") == ["a/x/run", "b/x/run", "walk"]
    assert names("run.mp4", "run.avi") == ["run.mp4", "run.avi"]
    assert names("a/run.mp4", "a/run.avi", "b/run.mp4") == ["a/run.mp4", "run.avi", "b/run"]
    with pytest.raises(SldError, match="named twice"):
        names("run.mp4", "a/../run.mp4")


def test_sessions_of_names_that_are_no_labels(tmp_path):
    """Screen recordings of a Mac have a narrow no-break space before AM and PM."""
    first, second = (
        write_video(tmp_path / "at 3.04\u202fPM.mp4"),
        write_video(tmp_path / "at 3.04\xa0PM.mp4"),
    )
    frame_set = from_videos([first, second], tmp_path / "out")
    assert [f.session for f in frame_set.frames] == ["at 3.04 PM"] * 4 + ["at 3.04 PM (2)"] * 4
    assert frame_set.frames[0].source == "at 3.04\u202fPM.mp4 at 0.00 s"


def test_a_calibration_undistorts_and_another_size_is_named(tmp_path):
    K = np.array([[60.0, 0, 31.5], [0, 60, 23.5], [0, 0, 1]])
    calibration = Calibration(64, 48, K, np.array([0.3, 0, 0, 0, 0]), "plumb_bob", "lens.yaml")
    small, large = (
        write_video(tmp_path / "small.mp4", [200] * 30),
        write_video(tmp_path / "large.mp4", [200] * 30, size=(128, 96)),
    )
    frame_set = from_videos([small, large], tmp_path / "out", calibration=calibration)
    assert (
        frame_set.intrinsics_known
        and {f.session for f in frame_set.frames} == {"small"}
        and frame_set.frames[0].camera.cx == 32
    )
    assert (
        cv2.imread(str(frame_set.frames[0].image_path))[0, 0, 0] < 20
    )  # the corner lies beyond what the lens saw
    assert frame_set.rejected == {
        str(large): "other size: image is 128x96 but lens.yaml is for 64x48"
    }


def broken(tmp_path, kind):
    path = tmp_path / f"{kind}.mp4"
    if kind == "text":
        path.write_text("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n")
    elif kind == "empty":
        path.touch()
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes())
    elif kind == "without images":
        write_video(path, [])
    elif kind == "cut":
        whole = write_video(path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    return path


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "kind, words",
    [
        ("text", "no video: a text file"),
        ("empty", "no video: the file is empty"),
        ("noise", "no video: cannot"),
        ("without images", "no video|no frame"),
        ("cut", "no video: cannot"),
        ("missing", "No such file"),
        ("folder", "Is a directory"),
        ("pipe", "no video: a device or pipe"),
    ],
)
def test_what_is_no_video_is_named_and_skipped(tmp_path, kind, words):
    bad, good = broken(tmp_path, kind), write_video(tmp_path / "good.mp4")
    frame_set = from_videos([bad, good], tmp_path / "out")
    assert {f.session for f in frame_set.frames} == {"good"} and list(frame_set.rejected) == [
        str(bad)
    ]
    with pytest.raises(
        SldError, match=f"1 videos: no usable image .1 left out: .*{kind}.mp4: .*({words})"
    ):
        from_videos([bad], tmp_path / "nothing")
    assert not any((tmp_path / "nothing").iterdir())


def test_a_video_that_ends_early_gives_what_it_holds(tmp_path):
    path = write_video(tmp_path / "a.avi", range(0, 240, 2), size=(160, 120))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frame_set = from_videos([path], tmp_path / "out", FramesConfig(fps=10))
    assert 5 <= len(frame_set.frames) <= 25
    ((source, reason),) = frame_set.rejected.items()
    assert (
        source.startswith("a.avi after")
        and reason.startswith("damaged: the video ends after")
        and "of about 120" in reason
    )


def test_huge_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(SldError, match="too large: images of 64x48"):
        from_videos([write_video(tmp_path / "a.mp4")], tmp_path / "out")


def test_a_header_that_claims_a_huge_image(tmp_path):
    path = write_video(tmp_path / "a.avi", [10, 20], size=(64, 48))
    sof = b"\xff\xc0\x00\x11\x08"
    assert sof + bytes([0, 48, 0, 64]) in path.read_bytes()
    path.write_bytes(
        path.read_bytes().replace(
            sof + bytes([0, 48, 0, 64]),
            sof + (9000).to_bytes(2, "big") + (12000).to_bytes(2, "big"),
        )
    )
    with pytest.raises(SldError, match="a.avi: (too large|damaged)"):
        from_videos([path], tmp_path / "out")


def test_time_goes_on_where_stamps_are_missing_or_go_back():
    class Capture:
        def __init__(self, stamps_ms):
            self.stamps = stamps_ms

        def get(self, _):
            return self.stamps.pop(0)

    for stamps, expected in (
        ([0, 0, 0], [0, 0.1, 0.2]),
        ([0, 40, 90], [0, 0.04, 0.09]),
        ([0, 50, 20], [0, 0.05, 0.15]),
        ([float("nan"), -1], [0, 0.1]),
    ):
        capture, times = Capture(list(stamps)), []
        for i in range(len(stamps)):
            times.append(videos._time(capture, i, times[-1] if times else 0.0, 10.0))
        assert times == pytest.approx(expected)


def test_a_folder_that_holds_files_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(SldError, match="expected an empty folder"):
        from_videos([write_video(tmp_path / "a.mp4")], tmp_path / "out")


def checks(cell):
    """A chessboard with cells of this many pixels, so that its edges' sharpness is known to fall
    with blur."""
    y, x = np.mgrid[:96, :128]
    return np.repeat((((x // cell + y // cell) % 2) * 200 + 20).astype(np.uint8)[..., None], 3, 2)


def test_blurred_and_nearly_identical_frames_are_named_and_the_rest_renumbered(tmp_path):
    board = checks(8)
    shown = [np.roll(board, 3 * i, 1) for i in range(8)]
    shown[3] = cv2.GaussianBlur(shown[3], (0, 0), 4)
    shown[6] = shown[5]
    path = write_video(
        tmp_path / "a.avi", range(8), fps=4, size=(128, 96), pattern=lambda i: shown[i]
    )
    frame_set = from_videos(
        [path], tmp_path / "out", FramesConfig(reject_blurred=0.3, reject_similar=1.0)
    )
    assert [f.stamp_ns // 250_000_000 for f in frame_set.frames] == [0, 1, 2, 4, 5, 7]
    assert [f.name for f in frame_set.frames] == [f"image-{i:06d}" for i in range(6)]
    assert (
        frame_set.rejected["a.avi at 0.75 s"].startswith("blurred: sharpness")
        and "below 0.3 of its neighbours'" in frame_set.rejected["a.avi at 0.75 s"]
    )
    assert frame_set.rejected["a.avi at 1.50 s"].endswith("from a.avi at 1.25 s")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.jpg")) == [
        f"image-{i:06d}.color.jpg" for i in range(6)
    ]
    assert count_reasons(frame_set.rejected) == {"blurred": 1, "nearly identical": 1}
    assert len(from_videos([path], tmp_path / "all").frames) == 8  # off by default


def test_neighbours_are_those_of_the_session():
    def quality(session, sharpness):
        return FrameQuality(
            session, f"{session}{sharpness}", sharpness, np.zeros((2, 2), np.float32)
        )

    qualities = [
        quality("a", 100),
        quality("b", 10),
        quality("a", 90),
        quality("a", 20),
        quality("b", 9),
    ]
    keep, rejections = select(qualities, FramesConfig(reject_blurred=0.3))
    assert (
        keep == [0, 1, 2, 4]
        and rejections[0].reason == "blurred: sharpness 20 is below 0.3 of its neighbours' 95"
    )
