"""Stages of a job: done once, gone on with after a kill, and what they store."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sld_core import stages
from sld_core.geometry import make_transform
from sld_core.sfm.reconstruction_file import read_reconstruction, write_reconstruction
from sld_core.types import Camera, Frame, Reconstruction, SldError


class Make:
    """A stage that writes a file, and counts how often it is made."""

    def __init__(self, found=None, error=None):
        self.found, self.error, self.times, self.met = found or {"n": 1}, error, 0, []

    def __call__(self, folder):
        self.times += 1
        self.met.append(sorted(p.name for p in folder.iterdir() if p.name != stages.RECORD))
        (folder / f"part-{self.times}").write_text("x")
        if self.error:
            raise self.error
        return self.found


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_stage_is_done_once_for_each_key(tmp_path):
    folder, make = tmp_path / "work" / "sfm", Make({"n": 3})
    done = stages.run(folder, "a", make)
    assert (done.folder, done.key, done.found) == (folder, "a", {"n": 3}) and done.seconds >= 0
    assert stages.run(folder, "a", make) == done == stages.read_record(folder) and make.times == 1
    assert names(folder.parent) == ["sfm"] and names(folder) == ["part-1", "stage.json"]
    make.found = {"n": 4}
    assert stages.run(folder, "b", make).found == {"n": 4} == stages.read_record(folder).found
    assert (
        make.times == 2 and make.met == [[], []] and names(folder) == ["part-2", "stage.json"]
    )  # nothing of the old one


def test_a_killed_stage_goes_on_if_nothing_changed(tmp_path):
    folder, make = tmp_path / "sfm", Make(error=KeyboardInterrupt())
    for key in "aab":
        with pytest.raises(KeyboardInterrupt):
            stages.run(folder, key, make)
        assert stages.read_record(folder) is None and names(tmp_path) == ["sfm.partial"]
    make.error = None
    stages.run(folder, "b", make)
    assert make.met == [
        [],
        ["part-1"],
        [],
        ["part-3"],
    ]  # kept for the same key, emptied for another
    assert names(tmp_path) == ["sfm"]


@pytest.mark.parametrize("error", [SldError("bad"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_stage_that_fails_leaves_the_old_one_alone(tmp_path, error):
    folder = tmp_path / "sfm"
    old = stages.run(folder, "a", Make())
    with pytest.raises(type(error)):
        stages.run(folder, "b", Make(error=error))
    assert stages.read_record(folder) == old and names(folder) == ["part-1", "stage.json"]
    with pytest.raises(
        SldError,
        match=r"there\.txt: cannot be written \(No space left on device; \d+ MB are free in",
    ):
        stages.run(folder, "b", Make(error=OSError(28, "No space left on device", "there.txt")))
    assert stages.read_record(folder) == old


@pytest.mark.parametrize(
    "error, words",
    [
        (
            OSError(2, "No such file or directory", "there.jpg"),
            r"there\.jpg: cannot be used \(No such file or directory\)",
        ),
        (
            OSError(30, "Read-only file system", "there.txt"),
            r"there\.txt: cannot be written \(Read-only file system\)",
        ),
        (
            OSError("cannot identify image file"),
            r"sfm: cannot be used \(cannot identify image file\)",
        ),
    ],
)
def test_what_a_stage_cannot_read_is_not_said_to_be_unwritable(tmp_path, error, words):
    with pytest.raises(SldError, match=words):
        stages.run(tmp_path / "sfm", "a", Make(error=error))
    (tmp_path / "file").write_text("")
    with pytest.raises(SldError, match=r"file.*: cannot be written \(Not a directory\)"):
        stages.run(tmp_path / "file" / "sfm", "a", Make())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        '{"key": "a"}',
        '{"key": "a", "found": null, "seconds": 1}',
        '{"key": "a", "found": [1], "seconds": 1}',
        '{"key": "a", "found": {}, "seconds": "x"}',
        b"\xff\xfe",
    ],
)
def test_a_stage_with_a_damaged_record_is_made_again(tmp_path, text):
    folder, make = tmp_path / "sfm", Make()
    for place_of in (folder, tmp_path / "sfm.partial"):
        place_of.mkdir()
        (place_of / stages.RECORD).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert stages.read_record(folder) is None
    assert stages.run(folder, "a", make).found == {"n": 1} and make.times == 1
    assert stages.read_record(folder).key == "a" and names(tmp_path) == ["sfm"]


def test_keys_tell_settings_apart():
    assert stages.key_of("a", {"x": 1, "y": [2.5, None]}, Path("p")) == stages.key_of(
        "a", {"y": [2.5, None], "x": 1}, Path("p")
    )
    keys = {
        stages.key_of(*parts)
        for parts in [
            ("a", "b"),
            ("ab",),
            ("a", ["b"]),
            ("b", "a"),
            ("a", None),
            ("a", 0),
            ("a", False),
        ]
    }
    assert len(keys) == 7


# the store ----------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """A reconstruction of two frames whose images lie beside the folder it is stored in."""
    folder, images = tmp_path / "map" / "sfm", tmp_path / "map" / "frames"
    folder.mkdir(parents=True)
    camera, pose = (
        Camera(8, 6, 10.5, 11.0, 4.1, 3.3),
        lambda i: make_transform(np.eye(3), np.array([i, 2, 3.0])),
    )
    frames = tuple(
        Frame(
            f"image-{i}",
            images / f"küche {i}.jpg",
            camera,
            pose(i),
            images / "d.png" if i else None,
            2**62 + i,
            "s",
            f"v.mp4 at {i} s",
        )
        for i in range(2)
    )
    rng = np.random.default_rng(0)
    points, frame_of = np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1])
    reconstruction = Reconstruction(
        frames, rng.normal(size=(3, 3)), rng.random(3), points, frame_of, rng.random((4, 2))
    )
    write_reconstruction(folder, reconstruction)
    return folder, reconstruction


def assert_equal(a, b):
    for name in ("points_N3", "error_px_N", "obs_point_M", "obs_frame_M", "obs_xy_M2"):
        assert (
            np.array_equal(getattr(a, name), getattr(b, name))
            and getattr(a, name).dtype == getattr(b, name).dtype
        )
    for f, g in zip(a.frames, b.frames, strict=True):
        assert np.array_equal(f.T_world_camera, g.T_world_camera)
        assert replace(f, T_world_camera=None) == replace(g, T_world_camera=None)


def test_a_stored_reconstruction_is_read_equal_also_after_a_move(stored, tmp_path):
    folder, reconstruction = stored
    assert names(folder) == ["reconstruction.npz"]
    assert_equal(read_reconstruction(folder), reconstruction)
    (tmp_path / "map").rename(tmp_path / "elsewhere")
    frames = read_reconstruction(tmp_path / "elsewhere" / "sfm").frames
    assert [f.image_path for f in frames] == [
        tmp_path / "elsewhere" / "frames" / f"küche {i}.jpg" for i in range(2)
    ]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:200], lambda data: b"", lambda data: b"text", lambda data: data[:-30]],
)
def test_a_damaged_reconstruction_is_one_clear_error(stored, damage):
    path = stored[0] / "reconstruction.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        SldError, match="reconstruction.npz: cannot be read .* delete .* and run the stage again"
    ):
        read_reconstruction(stored[0])
    path.unlink()
    with pytest.raises(SldError, match="cannot be read"):
        read_reconstruction(stored[0])
