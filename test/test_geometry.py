import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sld_core import geometry
from sld_core.types import Camera, SldError

rotation_vectors = st.tuples(*[st.floats(-3, 3)] * 3).map(np.array)
QUARTER_TURN_Z = np.array([[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1.0]])


def test_transform_and_inverse_by_hand():
    np.testing.assert_allclose(
        geometry.transform(QUARTER_TURN_Z, np.array([[1.0, 0, 0]])), [[1, 3, 3]]
    )
    np.testing.assert_allclose(
        geometry.invert(QUARTER_TURN_Z) @ QUARTER_TURN_Z, np.eye(4), atol=1e-12
    )


def test_projection_by_hand():
    camera = Camera(640, 480, 500.0, 400.0, 320.0, 240.0)
    xy, z = geometry.project(camera, np.eye(4), np.array([[0.2, -0.1, 2.0], [0, 0, -1.0]]))
    np.testing.assert_allclose(xy[0], [370, 220])
    assert np.isnan(xy[1]).all() and z[1] == -1


def test_opencv_principal_point_gains_half_a_pixel():
    K = np.array([[500, 0, 319.5], [0, 500, 239.5], [0, 0, 1]])
    camera = Camera.from_opencv(640, 480, K)
    assert (camera.cx, camera.cy) == (320.0, 240.0)
    half = camera.resized(320, 240)
    assert (half.cx, half.cy, half.fx) == (
        160.0,
        120.0,
        250.0,
    )  # corner origin scales without an offset


@pytest.mark.parametrize(
    "bad",
    [
        (0, 480, 1, 1, 0, 0),
        (640, 480, 0, 500, 0, 0),
        (640, 480, 500, 500, float("nan"), 0),
        (640, 10**6, 1, 1, 0, 0),
    ],
)
def test_impossible_cameras_are_refused(bad):
    with pytest.raises(SldError):
        Camera(*bad)


@given(rotation_vectors)
@settings(deadline=None)
def test_quaternion_round_trip(w):
    R = geometry.rotation_from_vector(w)
    q = geometry.quaternion_from_rotation(R)
    assert abs(np.linalg.norm(q) - 1) < 1e-12 and q[3] >= 0
    np.testing.assert_allclose(geometry.rotation_from_quaternion(q), R, atol=1e-9)


def test_a_zero_quaternion_is_an_error():
    with pytest.raises(ValueError, match="finite"):
        geometry.rotation_from_quaternion(np.zeros(4))


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.5, 3.1])
def test_pose_error_keeps_small_and_large_angles(angle):
    T = geometry.make_transform(
        geometry.rotation_from_vector(np.array([0, angle, 0])), np.array([3.0, 4.0, 0])
    )
    metres, radians = geometry.pose_error(np.eye(4), T)
    assert metres == 5.0 and radians == pytest.approx(angle, rel=1e-6)


def test_interpolation_goes_halfway():
    T = geometry.make_transform(
        geometry.rotation_from_vector(np.array([0, 0, 1.0])), np.array([2.0, 0, 0])
    )
    middle = geometry.interpolate(np.eye(4), T, 0.5)
    np.testing.assert_allclose(
        middle,
        geometry.make_transform(
            geometry.rotation_from_vector(np.array([0, 0, 0.5])), np.array([1.0, 0, 0])
        ),
        atol=1e-12,
    )


def test_similarity_is_recovered():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(20, 3))
    R, t = geometry.rotation_from_vector(np.array([0.3, -1.0, 2.0])), np.array([1.0, 2, 3])
    scale, R_found, t_found = geometry.similarity(source, 1.7 * source @ R.T + t)
    assert scale == pytest.approx(1.7)
    np.testing.assert_allclose(R_found, R, atol=1e-9)
    np.testing.assert_allclose(t_found, t, atol=1e-9)
