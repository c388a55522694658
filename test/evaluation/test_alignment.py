"""Similarities between frames, and which images two folders share."""

import numpy as np
import pytest

from sld_core.evaluation.alignment import align_poses, common_images
from sld_core.geometry import make_transform, rotation_from_vector
from sld_core.types import SldError

SCALE, R, T = 2.5, rotation_from_vector(np.array([0.2, -1.1, 0.7])), np.array([100.0, -20.0, 3.0])


def poses(positions_N3, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack(
        [make_transform(rotation_from_vector(rng.normal(0, 1, 3)), p) for p in positions_N3]
    )


def moved(poses_N44):
    """The same cameras in a frame turned by R, 2.5 times as large, and shifted."""
    return np.stack([make_transform(R @ P[:3, :3], SCALE * R @ P[:3, 3] + T) for P in poses_N44])


ANYWHERE = np.random.default_rng(1).normal(0, 2, (20, 3))
LINE = np.arange(20)[:, None] * [0.1, 0.2, 0.0]


@pytest.mark.parametrize("positions", [ANYWHERE, LINE, LINE[:3]])
def test_a_known_similarity_is_recovered(positions):
    given = poses(positions)
    found = align_poses(given, moved(given))
    assert found.scale == pytest.approx(SCALE, rel=1e-9) and found.common == len(positions)
    np.testing.assert_allclose(found.R, R, atol=1e-9)
    np.testing.assert_allclose(found.t, T, atol=1e-8)
    assert found.median_m < 1e-8 and found.median_rad < 1e-8
    np.testing.assert_allclose([found.pose(P) for P in given], moved(given), atol=1e-8)
    np.testing.assert_allclose(
        found.points(np.array([[0, 0, 0], [1.0, 0, 0]])), [T, T + 2.5 * R[:, 0]], atol=1e-8
    )


def test_wrong_poses_among_the_right_ones_do_not_count():
    given = poses(ANYWHERE)
    reference = moved(given)
    reference[:5] = poses(np.full((5, 3), 50.0), seed=9)
    found = align_poses(given, reference)
    assert (
        found.scale == pytest.approx(SCALE, rel=1e-2)
        and np.abs(found.R - R).max() < 0.01
        and found.median_m < 0.05
    )


def test_errors_as_large_as_the_motion_do_not_shrink_the_scale():
    """A camera that turns on the spot: both its positions and the reference's are off by as much as
    it moves. Least squares would call the scene half as large as it is."""
    rng = np.random.default_rng(3)
    given = poses(rng.normal(0, 0.02, (200, 3)))
    reference = moved(given)
    given[:, :3, 3] += rng.normal(0, 0.015, (200, 3))
    reference[:, :3, 3] += SCALE * rng.normal(0, 0.015, (200, 3))
    assert align_poses(given, reference).scale == pytest.approx(SCALE, rel=0.1)


def test_remaining_differences_are_reported():
    given = poses(LINE)
    reference = moved(given)
    reference[::2, :3, 3] += [0, 0, 0.02]
    reference[1::2, :3, 3] -= [0, 0, 0.02]
    assert align_poses(given, reference).median_m == pytest.approx(0.02, rel=0.1)


def test_too_little_to_align():
    given = poses(ANYWHERE)
    with pytest.raises(SldError, match="2 images with poses in both frames: expected at least 3"):
        align_poses(given[:2], moved(given[:2]))
    with pytest.raises(SldError, match="taken from one place"):
        align_poses(poses(np.zeros((4, 3))), moved(poses(np.zeros((4, 3)))))


def test_images_are_the_same_where_one_path_ends_in_the_other():
    references = ["frames/a.jpg", "frames/b.jpg", "c.jpg"]
    places = ["/data/kitchen/" + r for r in references]
    assert common_images(
        ["b.jpg", "frames/a.jpg", "d.jpg", "", "lobby.mp4 at 1 s"], references, places
    ) == [(0, 1), (1, 0)]
    assert common_images(["/mnt/kitchen/frames/a.jpg", "../kitchen/c.jpg"], references, places) == [
        (0, 0),
        (1, 2),
    ]
    assert common_images(["depth/a.jpg"], references, places) == []


def test_images_of_the_same_name_are_told_apart_by_their_folders_or_left_out():
    references = ["seq-01/a.jpg", "seq-02/a.jpg"]
    places = ["/data/kitchen/" + r for r in references]
    assert common_images(["seq-02/a.jpg", "seq-01/a.jpg"], references, places) == [(0, 1), (1, 0)]
    assert common_images(["a.jpg"], references, places) == []  # it could be either
    # of a folder, those that the folder above tells
    assert common_images(
        ["seq-02/a.jpg", "seq-01/a.jpg"], ["a.jpg"], ["/data/kitchen/seq-02/a.jpg"]
    ) == [(0, 0)]
