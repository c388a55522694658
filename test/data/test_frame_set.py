"""frames.json: what is written is read equal, and damage gives one clear line."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest

from sld_core.data.frame_set import read_frame_set, write_frame_set
from sld_core.geometry import make_transform, rotation_from_vector
from sld_core.types import Camera, Frame, FrameSet, SldError

CAMERA = Camera(8, 6, 10.0, 11.0, 4.1, 3.3)


@pytest.fixture
def frame_set(tmp_path):
    frames = []
    for i in range(2):
        image, depth = tmp_path / f"image-{i:06d}.color.jpg", tmp_path / f"image-{i:06d}.depth.png"
        cv2.imwrite(str(image), np.zeros((6, 8, 3), np.uint8))
        cv2.imwrite(str(depth), np.zeros((3, 4), np.uint16))
        T = make_transform(
            rotation_from_vector(np.array([0.1, 0.2, 0.3])), np.array([1 / 3, -2, 1e-9])
        )
        frames.append(
            Frame(
                f"image-{i:06d}",
                image,
                CAMERA,
                T if i else None,
                depth if i else None,
                1_700_000_000_123_456_789 + i,
                "häll/run",
                "run.mp4 at 0.25 s",
            )
        )
    return FrameSet(tuple(frames), True, "odom", True, {"x.jpg": "damaged: no JPEG"})


def test_a_frame_set_is_read_back_equal(tmp_path, frame_set):
    write_frame_set(tmp_path, frame_set)
    again = read_frame_set(tmp_path)
    assert dataclasses.replace(again, frames=()) == dataclasses.replace(frame_set, frames=())
    for a, b in zip(again.frames, frame_set.frames, strict=True):
        assert dataclasses.replace(a, T_world_camera=None) == dataclasses.replace(
            b, T_world_camera=None
        )
    assert (
        again.frames[0].T_world_camera is None
        and (again.frames[1].T_world_camera == frame_set.frames[1].T_world_camera).all()
    )


def test_a_frame_set_can_be_moved_as_a_whole(tmp_path, frame_set):
    write_frame_set(tmp_path, frame_set)
    moved = shutil.copytree(tmp_path, tmp_path.with_name(tmp_path.name + " moved"))
    assert read_frame_set(moved).frames[1].depth_path == moved / "image-000001.depth.png"


@pytest.mark.parametrize(
    "place, value, words",
    [
        (("format",), "sld frames 9", "format 'sld frames 9'; expected"),
        (("frames", 0, "image"), "none.jpg", "none.jpg: cannot be read"),
        (("frames", 1, "depth"), "frames.json", "neither JPEG nor PNG"),
        (("frames", 0, "camera"), 5, "IndexError"),
        (("frames", 1, "T_world_camera"), [[1, 2], [3]], "ValueError"),
        (("frames", 0), 3, "TypeError"),
        (("frames",), None, "TypeError"),
        (("cameras", 0, "width"), 9, "8x6 but its camera is 9x6"),
        (("cameras", 0), [], "TypeError"),
    ],
)
def test_damage_is_named(tmp_path, frame_set, place, value, words):
    write_frame_set(tmp_path, frame_set)
    content = json.loads((tmp_path / "frames.json").read_text())
    group = content
    for key in place[:-1]:
        group = group[key]
    group[place[-1]] = value
    (tmp_path / "frames.json").write_text(json.dumps(content))
    with pytest.raises(SldError, match=words) as caught:
        read_frame_set(tmp_path)
    assert "frames.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "frames.json").write_text(text)
    with pytest.raises(SldError, match="frames.json: damaged .*; make the frames again"):
        read_frame_set(tmp_path)


@pytest.mark.parametrize("key", ["name", "image", "depth", "camera", "T_world_camera", "session"])
def test_a_missing_field_is_named(tmp_path, frame_set, key):
    write_frame_set(tmp_path, frame_set)
    content = json.loads((tmp_path / "frames.json").read_text())
    del content["frames"][0][key]
    (tmp_path / "frames.json").write_text(json.dumps(content))
    with pytest.raises(SldError, match=f"KeyError: '{key}'"):
        read_frame_set(tmp_path)


def test_missing_and_other_images_are_named(tmp_path, frame_set):
    write_frame_set(tmp_path, frame_set)
    image = frame_set.frames[0].image_path
    cv2.imwrite(str(image), np.zeros((12, 16, 3), np.uint8))
    with pytest.raises(SldError, match="image is 16x12 but its camera is 8x6"):
        read_frame_set(tmp_path)
    image.unlink()
    with pytest.raises(SldError, match="image-000000.color.jpg: cannot be read"):
        read_frame_set(tmp_path)
    with pytest.raises(SldError, match="none/frames.json: cannot be read"):
        read_frame_set(tmp_path / "none")
