"""COLMAP's depth maps, and PatchMatch up to the refusal without CUDA."""

import numpy as np
import pycolmap
import pytest

from sld_core.depth import patch_match
from sld_core.types import Camera, Frame, Reconstruction, SldError


def write_map(path, depth_HW):
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = np.shape(depth_HW)
    path.write_bytes(f"{width}&{height}&1&".encode() + np.asarray(depth_HW, "<f4").tobytes())


def test_the_layout_of_a_depth_map(tmp_path):
    """Three columns, two rows, x fastest: byte by byte."""
    path = tmp_path / "a.jpg.geometric.bin"
    path.write_bytes(b"3&2&1&" + np.array([1, 2, 3, 4, 5, -1], "<f4").tobytes())
    np.testing.assert_array_equal(patch_match.read_depth_map(path), [[1, 2, 3], [4, 5, 0]])


def test_we_read_what_colmap_reads(tmp_path):
    """The same numbers at the same pixels by COLMAP's own reader."""
    depth = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    write_map(tmp_path / "depth.bin", depth)
    theirs = pycolmap.DepthMap()
    theirs.read(tmp_path / "depth.bin")
    np.testing.assert_array_equal(theirs.to_array(), depth)
    np.testing.assert_array_equal(patch_match.read_depth_map(tmp_path / "depth.bin"), depth)


def test_depths_that_are_none(tmp_path):
    write_map(tmp_path / "depth.bin", np.array([[np.nan, np.inf, -2, 0, 3]]))
    np.testing.assert_array_equal(
        patch_match.read_depth_map(tmp_path / "depth.bin"), [[0, 0, 0, 0, 3]]
    )


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", "no depth map of COLMAP"),
        (b"hello, this is no depth map at all", "no depth map of COLMAP"),
        (b"-3&2&1&" + bytes(24), "no depth map of COLMAP"),
        (b"3&2&3&" + bytes(72), "no depth map of COLMAP"),  # a map of normals
        (b"99999&99999&1&" + bytes(24), "cut off"),  # 40 GB announced, none allocated
        (b"0&2&1&", "cut off"),
        (b"3&2&1&" + bytes(23), "cut off"),
        (b"3&2&1&" + bytes(25), "cut off"),
    ],
)
def test_damaged_and_hostile_maps(tmp_path, data, text):
    (tmp_path / "map.bin").write_bytes(data)
    with pytest.raises(SldError, match=text):
        patch_match.read_depth_map(tmp_path / "map.bin")


def test_a_missing_map_is_named(tmp_path):
    with pytest.raises(SldError, match="missing.bin: cannot be read"):
        patch_match.read_depth_map(tmp_path / "missing.bin")


@pytest.fixture
def reconstruction(tmp_path):
    """Two frames in folders of their own and a point that both see."""
    import cv2

    frames = []
    for name in ("a/image-000000", "b/image-000000"):
        path = tmp_path / "frames" / f"{name}.color.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
        frames.append(Frame(name, path, Camera(64, 48, 50.0, 50.0, 32.0, 24.0), np.eye(4)))
    seen = np.array([0, 0]), np.array([0, 1]), np.array([[32.0, 24], [32, 24]])
    return Reconstruction(tuple(frames), np.array([[0, 0, 2.0]]), np.zeros(1), *seen)


@pytest.mark.skipif(patch_match.has_cuda(), reason="pycolmap has CUDA here")
def test_without_cuda_the_alternatives_are_named(reconstruction, tmp_path):
    with pytest.raises(SldError, match="CUDA.*depth images.*monocular"):
        patch_match.patch_match(reconstruction, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_the_call_goes_up_to_colmap_s_own_refusal(reconstruction, tmp_path, monkeypatch):
    """Model and undistorted images are written as COLMAP wants them; without CUDA it is COLMAP that
    stops."""
    if patch_match.has_cuda():
        pytest.skip("pycolmap has CUDA here")
    monkeypatch.setattr(patch_match, "has_cuda", lambda: True)
    with pytest.raises(SldError, match="PatchMatch failed.*CUDA"):
        patch_match.patch_match(reconstruction, tmp_path / "work")
    assert (tmp_path / "work/images/a/image-000000.color.png").exists() and (
        tmp_path / "work/images/b/image-000000.color.png"
    ).exists()


def test_maps_are_found_by_frame(reconstruction, tmp_path):
    write_map(
        tmp_path / "work/stereo/depth_maps/b/image-000000.color.png.geometric.bin",
        np.ones((48, 64)),
    )
    found = patch_match.depth_maps(reconstruction.frames, tmp_path / "frames", tmp_path / "work")
    assert list(found) == ["b/image-000000"] and patch_match.read_depth_map(
        found["b/image-000000"]
    ).shape == (48, 64)
