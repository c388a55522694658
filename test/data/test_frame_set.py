"""frames.json: what is written is read equal, and every kind of damage gives one clear line."""

import copy
import dataclasses
import json

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


def test_images_must_lie_in_the_folder(tmp_path, frame_set):
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="expected a file in"):
        write_frame_set(tmp_path / "other", frame_set)


NAN, SKEW = np.eye(4).tolist(), np.eye(4).tolist()
NAN[0][3], SKEW[0][1] = float("nan"), 0.1


@pytest.mark.parametrize(
    "place, value, words",
    [
        (("format",), "sld frames 9", "format 'sld frames 9'; expected"),
        (("format",), None, "format None"),
        (("frames", 0, "name"), "../a", "plain name"),
        (("frames", 0, "image"), "/etc/passwd", "plain name"),
        (("frames", 0, "name"), ".a", "plain name"),
        (("frames", 0, "name"), "a\\b", "plain name"),
        (("frames", 0, "name"), "", "plain name"),
        (("frames", 0, "name"), "image-000001", "named twice"),
        (("frames", 0, "image"), "none.jpg", "none.jpg: no such file"),
        (("frames", 1, "depth"), "frames.json", "neither JPEG nor PNG"),
        (("frames", 0, "camera"), 5, "camera 5; expected one of 1"),
        (("frames", 0, "camera"), -1, "camera -1"),
        (("frames", 0, "camera"), True, "expected int"),
        (("frames", 1, "T_world_camera"), NAN, "finite"),
        (("frames", 1, "T_world_camera"), SKEW, "not a rigid"),
        (("frames", 1, "T_world_camera"), [[1, 2], [3]], "4x4"),
        (("frames", 1, "T_world_camera"), {}, "4x4"),
        (("frames", 1, "T_world_camera"), "x", "4x4"),
        (("frames", 0, "stamp_ns"), 2**70, "64 bits"),
        (("frames", 0, "stamp_ns"), 1.5, "expected int"),
        (("frames", 0, "session"), 3, "session: expected str"),
        (("frames", 0), 3, "no frame set"),
        (("frames",), {}, "frames: expected list"),
        (("cameras", 0, "fx"), float("inf"), "finite"),
        (("cameras", 0, "fx"), "1", "all numbers"),
        (("cameras", 0, "width"), 9, "8x6 but its camera is 9x6"),
        (("cameras", 0), [], "no frame set|all numbers"),
        (("intrinsics_known",), 1, "expected bool"),
        (("world_frame",), None, "world_frame: expected str"),
        (("rejected",), {"a": 1}, "expected texts"),
    ],
)
def test_every_field_is_checked(tmp_path, frame_set, place, value, words):
    write_frame_set(tmp_path, frame_set)
    content = json.loads((tmp_path / "frames.json").read_text())
    group = content
    for key in place[:-1]:
        group = group[key]
    group[place[-1]] = copy.deepcopy(value)
    (tmp_path / "frames.json").write_text(json.dumps(content))
    with pytest.raises(SldError, match=words) as caught:
        read_frame_set(tmp_path)
    assert "frames.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "no frame set"),
        ("[" * 100_000, "damaged"),
        ("{}", "format"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, words):
    (tmp_path / "frames.json").write_text(text)
    with pytest.raises(SldError, match=words):
        read_frame_set(tmp_path)


def test_missing_fields_links_outwards_and_other_images_are_refused(tmp_path, frame_set):
    write_frame_set(tmp_path, frame_set)
    image = frame_set.frames[0].image_path
    cv2.imwrite(str(image), np.zeros((12, 16, 3), np.uint8))
    with pytest.raises(SldError, match="'image-000000': image is 16x12 but its camera is 8x6"):
        read_frame_set(tmp_path)
    image.unlink()
    image.symlink_to("/etc/passwd")
    with pytest.raises(SldError, match="no such file in"):
        read_frame_set(tmp_path)
    with pytest.raises(SldError, match="cannot be read"):
        read_frame_set(tmp_path / "none")
    content = json.loads((tmp_path / "frames.json").read_text())
    del content["frames"][0]["depth"]
    (tmp_path / "frames.json").write_text(json.dumps(content))
    with pytest.raises(SldError):
        read_frame_set(tmp_path)
