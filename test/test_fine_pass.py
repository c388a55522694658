"""The fine pass on a corner of the rendered room, whose landmarks and poses are exact."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import small_room
import torch

from sld_core import fine_pass, geometry
from sld_core.config.scene import FineConfig, ImageConfig, LabelConfig, PnpConfig, SceneConfig
from sld_core.fine_pass import FinePass, GreyImage, levels
from sld_core.landmarks import visibility
from sld_core.training import fine_templates
from sld_core.training.training_set import TrainingSet
from sld_core.types import Frame, Labels, Landmarks, Refused

CONFIG = SceneConfig(image=ImageConfig(max_side_px=320))
POSES = small_room.sway(24)


def corners(T_world_camera, number):
    """World points at corners of an image."""
    image, depth_mm = small_room.shoot(T_world_camera, number)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    xy = cv2.goodFeaturesToTrack(grey, 80, 0.02, 8)[:, 0] + 0.5
    depth = depth_mm[xy[:, 1].astype(int), xy[:, 0].astype(int)] / 1000
    camera = small_room.CAMERA
    ray = (xy - [camera.cx, camera.cy]) / [camera.fx, camera.fy]
    return geometry.transform(
        T_world_camera, np.column_stack([ray, np.ones(len(ray))]) * depth[:, None]
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Landmarks at corners of four of the images, templates from all but every sixth."""
    folder = small_room.write_photos(tmp_path_factory.mktemp("wall"), POSES, with_depth=True)
    frames = [
        Frame(
            f"img-{i:03d}",
            folder / f"img-{i:03d}.jpg",
            small_room.CAMERA,
            T,
            folder / f"img-{i:03d}.depth.png",
        )
        for i, T in enumerate(POSES)
    ]
    xyz_L3 = np.concatenate([corners(POSES[i], i) for i in (0, 6, 12, 18)])
    train = [f for i, f in enumerate(frames) if i % 6 != 3]
    found = [visibility.label_frame(f, xyz_L3, LabelConfig()) for f in train]
    training_set = TrainingSet(
        tuple(train),
        Landmarks(xyz_L3, np.arange(len(xyz_L3))),
        Labels(*(np.stack(part) for part in zip(*found, strict=True))),
        tuple(frames[3::6]),
        np.zeros(3),
        True,
    )
    templates = fine_templates.learn(training_set, CONFIG, lambda progress: None)
    return training_set, templates


def fine_of(taught, **settings):
    training_set, templates = taught
    xyz_L3 = training_set.landmarks.xyz_L3
    return FinePass(templates, xyz_L3, replace(FineConfig(), **settings), PnpConfig())


def off(T, metres=0.02, degrees=0.5):
    """A pose beside T, as the guided pass may give it."""
    turned = geometry.rotation_from_vector(np.radians([degrees, -degrees, degrees])) @ T[:3, :3]
    return geometry.make_transform(turned, T[:3, 3] + metres * np.array([1, -1, 0.5]))


def look(
    taught, T_true, T_start, camera=small_room.CAMERA, fit_focal=False, change=None, **settings
):
    """What the fine pass makes of the image from T_true, starting at T_start."""
    image, _ = small_room.room().render(camera, T_true, np.random.default_rng(99))
    image = change(image) if change else image
    images = levels(image, camera, 320, taught[1].zoom_S)
    return fine_of(taught, **settings).refine(images, camera, T_start, fit_focal)


def error_mm_deg(pose, T_true):
    metres, radians = geometry.pose_error(pose.T_world_camera, T_true)
    return 1000 * metres, np.degrees(radians)


def test_a_pose_off_by_pixels_becomes_one_of_millimetres(taught):
    errors = []
    for i in (3, 9, 15, 21):  # held out
        detections, pose = look(taught, POSES[i], off(POSES[i]))
        errors.append(error_mm_deg(pose, POSES[i]))
        assert len(pose.inlier_K) == len(detections)
        assert 0.4 * pose.agreement.looked_for < pose.agreement.found <= pose.agreement.looked_for
    assert np.max(errors, axis=0)[0] < 12  # 33 at the start
    assert np.median(errors, axis=0)[0] < 5 and np.median(errors, axis=0)[1] < 0.15


def test_rolled_nearer_and_darker_views_are_found_alike(taught):
    T = POSES[9]
    rolled = T @ geometry.make_transform(
        geometry.rotation_from_vector(np.array([0, 0, 0.9])), np.zeros(3)
    )
    nearer = geometry.make_transform(T[:3, :3], T[:3, 3] + 0.5 * T[:3, 2])
    for view in (rolled, nearer):
        assert error_mm_deg(look(taught, view, off(view))[1], view)[0] < 6
    dark = look(taught, T, off(T), change=lambda image: (image * 0.3 + 10).astype(np.uint8))[1]
    assert error_mm_deg(dark, T)[0] < 5


def test_another_wall_and_a_mirrored_image_are_refused_with_the_count(taught):
    behind = small_room.sway(24, opposite=True)[3]
    _, refused = look(taught, behind, POSES[3])
    assert isinstance(refused, Refused) and "landmarks" in refused.reason
    _, mirrored = look(
        taught, POSES[9], POSES[9], change=lambda image: np.ascontiguousarray(image[:, ::-1])
    )
    assert isinstance(mirrored, Refused)


def test_a_doubtful_pose_is_held_against_what_chance_finds_in_the_same_image(taught):
    """With a share that nothing reaches every pose is doubtful. A right one stays far above chance;
    where templates fit as well a little beside, the count says nothing."""
    T = POSES[9]
    _, pose = look(taught, T, off(T), clear_share=1.0)
    assert error_mm_deg(pose, T)[0] < 12
    fine = fine_of(taught, clear_share=1.0)
    counts = {}

    def beside(images, T_world_camera, way):
        counts[way] = real(images, T_world_camera, way)
        return counts[way]

    real, fine._found_beside = fine._found_beside, beside
    image, _ = small_room.room().render(small_room.CAMERA, T, np.random.default_rng(99))
    images = levels(image, small_room.CAMERA, 320, taught[1].zoom_S)
    _, pose = fine.refine(images, small_room.CAMERA, off(T))
    assert len(counts) == 4 and max(counts.values()) < 0.1 * pose.agreement.found
    fine._found_beside = lambda *_: pose.agreement.found
    _, refused = fine.refine(images, small_room.CAMERA, off(T))
    assert isinstance(refused, Refused)


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_the_focal_length_is_found_from_a_wrong_one(taught, factor):
    """With the pose that fits the wrong focal length best: nearer or farther."""
    T, given = POSES[9], small_room.CAMERA.zoomed(factor)
    depth = 2.0 * (factor - 1)
    start = geometry.make_transform(T[:3, :3], T[:3, 3] - depth * T[:3, 2])
    image, _ = small_room.room().render(small_room.CAMERA, T, np.random.default_rng(99))
    images = levels(image, given, 320, taught[1].zoom_S)
    _, pose = fine_of(taught, first_search_px=10).refine(images, given, start, fit_focal=True)
    assert pose.focal.factor * factor == pytest.approx(1.0, abs=0.01)
    assert abs(pose.focal.factor * factor - 1) < 5 * pose.focal.sigma + 0.002


def test_errors_are_as_large_as_their_covariance_after_calibration(taught):
    training_set, templates = taught
    config = fine_templates.calibrated(templates, training_set, CONFIG)
    assert config.noise < FineConfig().noise  # a rendered room is cleaner than the default
    ratio = (config.floor_px / FineConfig().floor_px) ** 2
    assert config.noise / FineConfig().noise == pytest.approx(ratio, rel=1e-6)
    nees = []
    for i in (3, 9, 15, 21):
        _, pose = look(
            taught, POSES[i], off(POSES[i]), noise=config.noise, floor_px=config.floor_px
        )
        error = geometry.pose_difference(POSES[i], pose.T_world_camera)
        nees.append(error @ np.linalg.solve(pose.covariance_66, error))
    assert 0.5 < np.mean(nees) < 20  # 6 where it is exact


def test_landmarks_seen_from_one_direction_are_unsure_along_it(taught):
    training_set, templates = taught
    seen = templates.views_L >= 3
    sigma = np.sqrt(np.linalg.eigvalsh(templates.covariance_L33[seen]))
    along = np.linalg.eigh(templates.covariance_L33[seen])[1][:, :, 2]
    assert (sigma[:, 2] > sigma[:, 0]).all()
    cosine = np.abs(np.einsum("li,li->l", along, templates.direction_L3[seen]))
    assert np.median(cosine) > 0.9


def test_only_landmarks_that_mapping_saw_from_nearby_directions_are_looked_for(taught):
    fine = fine_of(taught)
    inside, _ = fine.expected(small_room.CAMERA, POSES[9])
    behind, _ = fine.expected(small_room.CAMERA, small_room.sway(24, opposite=True)[9])
    assert len(inside) > 50 and len(behind) == 0
    few, _ = fine_of(taught, max_landmarks=20).expected(small_room.CAMERA, POSES[9])
    np.testing.assert_array_equal(few, inside[:20])


def test_an_image_has_the_levels_of_detail_it_is_large_enough_for():
    camera = small_room.CAMERA
    image = np.zeros((240, 320, 3), np.uint8)
    sides = [x.grey_HW.shape[1] for x in levels(image, camera, 320, (0.5, 1.0, 3.0))]
    assert sides == [160, 320]
    large = np.zeros((720, 960, 3), np.uint8)
    found = levels(large, camera.resized(960, 720), 320, (0.5, 1.0, 3.0))
    assert [x.grey_HW.shape[1] for x in found] == [160, 320, 960]
    assert found[2].camera.fx == pytest.approx(900.0)


def test_peaks_to_a_fraction_of_a_step_and_rims_marked():
    y, x = np.mgrid[-4:5, -4:5].astype(float)
    maps = np.stack(
        [1 - 0.01 * ((x - dx) ** 2 + 2 * (y - dy) ** 2) for dx, dy in ((1.3, -2.2), (4, 0))]
    )
    offset, height, at_rim = fine_pass.peaks(maps)
    np.testing.assert_allclose(offset[0], [1.3, -2.2], atol=1e-9)
    assert at_rim.tolist() == [False, True] and height[0] > 0.99


def test_correlation_is_that_of_numpy_and_flat_windows_show_nothing():
    rng = np.random.default_rng(0)
    windows = rng.uniform(0, 255, (3, 9, 9)).astype(np.float32)
    windows[2] = 7
    patch = fine_pass.normalised(rng.normal(size=(3, 5, 5)).astype(np.float32))
    found = fine_pass.correlate(windows, torch.from_numpy(patch))
    for k in range(2):
        for i in range(5):
            for j in range(5):
                expected = np.corrcoef(windows[k, i : i + 5, j : j + 5].ravel(), patch[k].ravel())
                assert found[k, i, j] == pytest.approx(expected[0, 1], abs=2e-3)
    assert np.abs(found[2]).max() < 1e-3


def test_windows_are_sampled_at_corner_origin_pixels_along_their_axes():
    """A ramp: grey is x + 100 y at pixel centres."""
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    ramp = (x + 100 * y).astype(np.float32)
    A = np.array([[[0.5, 0.0], [0.0, 2.0]]])
    window = fine_pass.sample(ramp, np.array([[20.0, 15.0]]), A, 3)
    expected = [[20 + 0.5 * i + 100 * (15 + 2.0 * j) for i in (-1, 0, 1)] for j in (-1, 0, 1)]
    np.testing.assert_allclose(window[0], expected, atol=2)


def test_grey_images_zoom_their_camera_only():
    image = GreyImage.of(np.zeros((240, 320, 3), np.uint8), small_room.CAMERA)
    assert image.zoomed(1.5).camera.fx == 450.0 and image.zoomed(1.5).grey_HW is image.grey_HW
