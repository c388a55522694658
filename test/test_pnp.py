import numpy as np
import pytest

from sld_core import geometry, pnp
from sld_core.config.scene import PnpConfig
from sld_core.types import Camera, Detections, Refused

CAMERA = Camera(640, 480, 500.0, 500.0, 320.0, 240.0)
CONFIG = PnpConfig()
T_TRUE = geometry.make_transform(
    geometry.rotation_from_vector(np.array([0.4, -0.2, 0.7])), np.array([1.0, -2.0, 0.5])
)


def scene(rng, count):
    """Landmarks 2 to 6 m in front of the true camera."""
    z = rng.uniform(2, 6, count)
    xy = (rng.uniform(0, 1, (count, 2)) * [640, 480] - [320, 240]) / 500
    return geometry.transform(T_TRUE, np.column_stack([xy * z[:, None], z]))


def detect(rng, xyz, sigma_px, outliers=0.0):
    xy, _ = geometry.project(CAMERA, geometry.invert(T_TRUE), xyz)
    xy = xy + rng.normal(0, sigma_px, xy.shape)
    wrong = rng.random(len(xyz)) < outliers
    xy[wrong] = rng.uniform(0, 1, (wrong.sum(), 2)) * [640, 480]
    return Detections(
        np.arange(len(xyz)), xy, np.linspace(1, 0.3, len(xyz)), np.full(len(xyz), sigma_px)
    )


def test_exact_detections_give_the_exact_pose():
    rng = np.random.default_rng(0)
    xyz = scene(rng, 50)
    found = pnp.estimate(detect(rng, xyz, 1e-9), xyz, CAMERA, CONFIG)
    metres, radians = geometry.pose_error(found.T_world_camera, T_TRUE)
    assert metres < 1e-6 and radians < 1e-6 and found.inlier_K.all()


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_the_focal_length_is_fitted_with_a_true_sigma(factor):
    """Many times, with noise: right on average, and off as much as it says."""
    off = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        xyz = scene(rng, 80)
        found = pnp.refine(
            T_TRUE,
            detect(rng, xyz, 0.5),
            xyz,
            CAMERA.zoomed(factor),
            PnpConfig(ransac_px=200.0),
            fit_focal=True,
        )
        off.append((found.focal.factor * factor - 1) / found.focal.sigma)
    assert abs(np.mean(off)) < 0.6 and 0.7 < np.std(off) < 1.4


def test_a_detection_that_is_unsure_along_a_line_counts_across_it():
    """Along x every detection is off by 20 px and says so; across it is exact."""
    rng = np.random.default_rng(3)
    xyz = scene(rng, 60)
    exact = detect(rng, xyz, 1e-9)
    shifted = exact.xy_px_K2 + np.where(np.arange(60) % 2, 1, -1)[:, None] * [5.0, 0.0]
    covariance = np.broadcast_to(np.diag([400.0, 1e-4]), (60, 2, 2))
    found = Detections(exact.landmark_K, shifted, exact.score_K, np.full(60, 14.0), covariance)
    pose = pnp.refine(T_TRUE, found, xyz, CAMERA, PnpConfig(robust_px=100.0))
    metres, _ = geometry.pose_error(pose.T_world_camera, T_TRUE)
    assert metres < 1e-3
    assert found.scaled(2.0).covariance_K22[0, 0, 0] == 1600


def test_jacobian_agrees_with_differences():
    rng = np.random.default_rng(1)
    xyz = scene(rng, 5)
    zero = np.zeros((5, 2))
    _, J, _ = pnp.linearize(T_TRUE, xyz, zero, CAMERA)
    for k in range(6):
        step = np.zeros(6)
        step[k] = 1e-6
        moved = geometry.make_transform(
            geometry.rotation_from_vector(step[3:]) @ T_TRUE[:3, :3], T_TRUE[:3, 3] + step[:3]
        )
        difference = (
            pnp.linearize(moved, xyz, zero, CAMERA)[0] - pnp.linearize(T_TRUE, xyz, zero, CAMERA)[0]
        ) / 1e-6
        np.testing.assert_allclose(J[:, :, k], difference, rtol=1e-3, atol=1e-2)


def test_half_of_the_detections_may_be_wrong():
    rng = np.random.default_rng(2)
    for _ in range(10):
        xyz = scene(rng, 150)
        found = pnp.estimate(detect(rng, xyz, 1.0, outliers=0.5), xyz, CAMERA, CONFIG)
        metres, radians = geometry.pose_error(found.T_world_camera, T_TRUE)
        assert metres < 0.03 and np.degrees(radians) < 0.5


def test_covariance_is_that_of_repeated_measurements():
    """Monte Carlo: the spread of 400 estimates against the covariance that each claims."""
    rng = np.random.default_rng(3)
    xyz = scene(rng, 60)
    errors, claimed = [], []
    for _ in range(400):
        found = pnp.refine(T_TRUE, detect(rng, xyz, 0.5), xyz, CAMERA, CONFIG)
        turn = found.T_world_camera[:3, :3] @ T_TRUE[:3, :3].T
        w = (
            np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
            / 2
        )
        errors.append(np.concatenate([found.T_world_camera[:3, 3] - T_TRUE[:3, 3], w]))
        claimed.append(found.covariance_66)
    measured, claimed = np.cov(np.array(errors).T), np.mean(claimed, 0)
    ratio = np.sqrt(np.diag(claimed) / np.diag(measured))
    assert (ratio > 0.85).all() and (ratio < 1.25).all(), ratio
    np.testing.assert_allclose(correlation(claimed), correlation(measured), atol=0.15)


def correlation(C):
    return C / np.sqrt(np.outer(np.diag(C), np.diag(C)))


@pytest.mark.parametrize(
    "count, expected", [(0, "0 landmarks detected"), (9, "9 landmarks detected")]
)
def test_too_few_detections_are_refused(count, expected):
    rng = np.random.default_rng(4)
    xyz = scene(rng, max(count, 1))[:count]
    found = detect(rng, xyz, 1.0) if count else _none()
    assert expected in pnp.estimate(found, xyz, CAMERA, CONFIG).reason


def test_random_detections_are_refused():
    rng = np.random.default_rng(5)
    xyz = scene(rng, 200)
    assert isinstance(
        pnp.estimate(detect(rng, xyz, 1.0, outliers=1.1), xyz, CAMERA, CONFIG), Refused
    )


def test_landmarks_on_a_line_do_not_pass():
    rng = np.random.default_rng(6)
    xyz = geometry.transform(
        T_TRUE, np.column_stack([np.linspace(-1, 1, 40), np.zeros(40), np.full(40, 3.0)])
    )
    for _ in range(20):
        assert isinstance(pnp.estimate(detect(rng, xyz, 0.5), xyz, CAMERA, CONFIG), Refused)
        assert isinstance(pnp.refine(T_TRUE, detect(rng, xyz, 0.5), xyz, CAMERA, CONFIG), Refused)


def test_detections_are_weighted_by_their_sigma():
    """Half of the detections are 10 times worse. Over 30 trials the mean error is smaller when
    their sigma says so."""
    rng = np.random.default_rng(7)
    sigma = np.where(np.arange(100) < 50, 0.3, 3.0)
    knowing, blind = [], []
    for _ in range(30):
        xyz = scene(rng, 100)
        exact, _ = geometry.project(CAMERA, geometry.invert(T_TRUE), xyz)
        xy = exact + rng.normal(0, 1, exact.shape) * sigma[:, None]
        for errors, said in ((knowing, sigma), (blind, np.ones(100))):
            found = pnp.refine(
                T_TRUE, Detections(np.arange(100), xy, np.ones(100), said), xyz, CAMERA, CONFIG
            )
            errors.append(geometry.pose_error(found.T_world_camera, T_TRUE)[0])
    assert np.mean(knowing) < 0.8 * np.mean(blind)


def _none() -> Detections:
    return Detections(np.zeros(0, int), np.zeros((0, 2)), np.zeros(0), np.zeros(0))


def test_a_pose_too_uncertain_for_its_distance_is_refused():
    """Few landmarks in one corner of the image: a fit, but one that a little noise moves by
    decimetres."""
    rng = np.random.default_rng(8)
    z = rng.uniform(3.9, 4.1, 14)
    corner = geometry.transform(
        T_TRUE, np.column_stack([rng.uniform(0.5, 0.7, 14) * z, rng.uniform(0.3, 0.45, 14) * z, z])
    )
    refused = pnp.estimate(detect(rng, corner, 3.0), corner, CAMERA, CONFIG)
    assert "too uncertain" in refused.reason


def test_a_scene_without_scale_is_uncertain_in_units_not_in_metres():
    rng = np.random.default_rng(5)
    xyz = scene(rng, 50)
    found = detect(rng, xyz, 1.0)
    limited = [
        PnpConfig(max_position_sigma_m=limit, max_relative_sigma=1e-9) for limit in (1.0, np.inf)
    ]
    in_metres, in_units = (pnp.estimate(found, xyz, CAMERA, config).reason for config in limited)
    assert " m, " in in_metres and " m away" in in_metres
    assert " units, " in in_units and " units away" in in_units and " m " not in in_units
