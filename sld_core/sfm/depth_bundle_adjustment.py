"""Depth images in the bundle adjustment, in the manner of a stereo camera: each image with depth
gets a second camera beside it, in which a point at depth z appears f b / z pixels farther left.

A camera that hardly moves, or that turns through a doorway, does not fix the scale of what it sees:
all matches fit, and yet one part of the map is half as large as it should be. Depth connects the
scales of the parts. Where parallax is more precise than the sensor, whose errors are systematic,
depth only does harm; so it is used only where the depths of the images contradict each other."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sld_core.camera.images import read_depth
from sld_core.config.mapping import SfmConfig
from sld_core.config.scene import TrackConfig
from sld_core.metric.scale import sample_smooth, spread_over_images
from sld_core.optional import pycolmap
from sld_core.sfm.colmap import bundle_setup
from sld_core.sfm.mapper import drop_misfits
from sld_core.types import Frame

log = logging.getLogger(__name__)

MIN_SAMPLES = 100
KEPT_OBSERVATIONS = 0.9  # of those without depth images, that an adjustment by them must explain


@dataclass(frozen=True)
class DepthSamples:
    """Measured depths at observations of points: ids of image and point, keypoint and its pixel,
    metres along the optical axis."""

    image_K: np.ndarray
    point_K: np.ndarray
    xy_K2: np.ndarray
    depth_K: np.ndarray

    def __len__(self) -> int:
        return len(self.depth_K)


def held_by_depth(
    model: pycolmap.Reconstruction,
    renew: Callable[[pycolmap.Reconstruction], pycolmap.Reconstruction],
    frame_of: Mapping[str, Frame],
    config: SfmConfig | TrackConfig,
) -> tuple[pycolmap.Reconstruction, list[str]]:
    """The model adjusted with depth images, if their scales disagree before and agree afterwards;
    else unchanged."""
    before = scale_spread(model, frame_of, config.depth_jump)
    if before is None or before[1] <= config.depth_spread:
        return model, []
    said = (
        f"one image in ten disagreed with the map's scale by {100 * before[1]:.0f} % or "
        "more, by its depth"
    )
    matched, held = copy.deepcopy(model), copy.deepcopy(model)
    drop_misfits(matched, config.reprojection_px, 0.0)
    done = _adjust_with_depth(held, frame_of, config)
    if done:
        held = renew(held)
        done = _adjust_with_depth(held, frame_of, config)
    held.update_point_3d_errors()
    after = scale_spread(held, frame_of, config.depth_jump)
    helps = (
        done
        and after is not None
        and (after < before / 2).any()
        and (after < 1.2 * before).all()
        and held.compute_num_observations()
        >= KEPT_OBSERVATIONS * matched.compute_num_observations()
    )
    if not helps:
        return model, [
            f"{said}; depth images do not fit the matches, and the map is made without them: "
            "are they aligned with the images?"
        ]
    return held, [
        f"{said}: depth images took part in the adjustment, which leaves {100 * after[1]:.0f} %"
    ]


def _adjust_with_depth(
    model: pycolmap.Reconstruction, frame_of: Mapping[str, Frame], config: SfmConfig | TrackConfig
) -> bool:
    done = adjust_with_depth(model, frame_of, config.depth_baseline_m, config.depth_jump)
    drop_misfits(model, config.reprojection_px, 0.0)
    return done


def adjust_with_depth(
    model: pycolmap.Reconstruction,
    frame_of: Mapping[str, Frame],
    baseline_m: float,
    depth_jump: float,
) -> bool:
    """Bundle adjustment of poses and points of `model`, by pixels and by the depth images of
    `frame_of` (image name -> frame, of known pinhole lenses). `model` is in metres afterwards.
    False, and nothing is done, where too few points lie on measured depth.

    With `baseline_m` b, one pixel of a match weighs as much as z² / (f b) metres of depth: 8 cm at
    2 m for 0.1 m and f = 500. `depth_jump`: see metric.scale.sample_smooth."""
    samples = _samples(model, frame_of, depth_jump)
    if len(samples) < MIN_SAMPLES:
        return False
    metres = float(np.exp(np.median(_log_ratios(model, samples))))
    model.transform(pycolmap.Sim3d(metres, pycolmap.Rotation3d(), np.zeros(3)))
    log.info("%d depths take part in the adjustment", len(samples))
    stereo, point_of = _stereo(model, samples, baseline_m)
    _solve(stereo)
    for image_id in model.reg_image_ids():
        frame = model.frame(model.image(image_id).frame_id)
        frame.rig_from_world = stereo.image(image_id).cam_from_world()
    for point_id, twin_id in point_of.items():
        model.point3D(point_id).xyz = stereo.point3D(twin_id).xyz
    return True


def scale_spread(
    model: pycolmap.Reconstruction, frame_of: Mapping[str, Frame], depth_jump: float
) -> np.ndarray | None:
    """metric.scale.spread_over_images of a model; None where there is too little depth."""
    samples = _samples(model, frame_of, depth_jump)
    if len(samples) < MIN_SAMPLES:
        return None
    log_K = _log_ratios(model, samples)
    return spread_over_images([log_K[samples.image_K == i] for i in np.unique(samples.image_K)])


def _samples(
    model: pycolmap.Reconstruction, frame_of: Mapping[str, Frame], depth_jump: float
) -> DepthSamples:
    """All observations that hit a smooth patch of measured depth."""
    images, points, pixels, depths = [], [], [np.empty((0, 2))], []
    for image_id in sorted(model.reg_image_ids()):
        image = model.image(image_id)
        frame = frame_of[image.name]
        if frame.depth_path is None:
            continue
        seen = image.get_observation_points2D()
        xy_K2 = np.array([p.xy for p in seen]).reshape(-1, 2)
        depth_K = sample_smooth(read_depth(frame.depth_path), frame.camera, xy_K2, depth_jump)
        good = np.flatnonzero(depth_K > 0)
        images += [image_id] * len(good)
        points += [seen[k].point3D_id for k in good]
        pixels.append(xy_K2[good])
        depths += depth_K[good].tolist()
    return DepthSamples(
        np.array(images, int), np.array(points, int), np.concatenate(pixels), np.array(depths)
    )


def _log_ratios(model: pycolmap.Reconstruction, samples: DepthSamples) -> np.ndarray:
    """log(measured depth / depth of the point), infinite behind the camera."""
    pose_of = {
        i: model.image(i).cam_from_world().matrix() for i in np.unique(samples.image_K).tolist()
    }
    axis_K4 = np.array([pose_of[i][2] for i in samples.image_K.tolist()])
    xyz_K3 = np.array([model.point3D(p).xyz for p in samples.point_K.tolist()])
    z_K = (axis_K4[:, :3] * xyz_K3).sum(1) + axis_K4[:, 3]
    return np.where(z_K > 0, np.log(samples.depth_K / np.where(z_K > 0, z_K, 1.0)), np.inf)


def _stereo(
    model: pycolmap.Reconstruction, samples: DepthSamples, baseline_m: float
) -> tuple[pycolmap.Reconstruction, dict[int, int]]:
    """`model` with the second cameras, and its ids of points -> those there. Ids of images are the
    same; those of second cameras and images come after."""
    stereo = pycolmap.Reconstruction()
    for camera in model.cameras.values():
        _add_rig(stereo, camera, max(model.cameras) + camera.camera_id, baseline_m)
    first_second = max(model.images)
    for image_id in sorted(model.reg_image_ids()):
        image = model.image(image_id)
        images = [
            pycolmap.Image(
                name=image.name,
                camera_id=image.camera_id,
                image_id=image_id,
                keypoints=np.array([p.xy for p in image.points2D]),
            )
        ]
        mine = samples.image_K == image_id
        if mine.any():
            focal_px = model.cameras[image.camera_id].focal_length_x
            shifted_K2 = samples.xy_K2[mine].copy()
            shifted_K2[:, 0] -= focal_px * baseline_m / samples.depth_K[mine]
            images.append(
                pycolmap.Image(
                    name=f"depth of {image.name}",
                    camera_id=max(model.cameras) + image.camera_id,
                    image_id=first_second + image_id,
                    keypoints=shifted_K2,
                )
            )
        _add_frame(stereo, image, images)
    point_of = {
        point_id: stereo.add_point3D(point.xyz, point.track)
        for point_id, point in model.points3D.items()
    }
    for image_id in np.unique(samples.image_K).tolist():
        for keypoint, point_id in enumerate(samples.point_K[samples.image_K == image_id].tolist()):
            element = pycolmap.TrackElement(first_second + image_id, keypoint)
            stereo.add_observation(point_of[point_id], element)
    return stereo, point_of


def _add_rig(
    stereo: pycolmap.Reconstruction, camera: pycolmap.Camera, second_id: int, baseline_m: float
) -> None:
    """Add a camera and, as its rig, the same one `baseline_m` to its right."""
    second = pycolmap.Camera(
        model=camera.model,
        width=camera.width,
        height=camera.height,
        params=camera.params,
        camera_id=second_id,
    )
    stereo.add_camera(camera)
    stereo.add_camera(second)
    rig = pycolmap.Rig(rig_id=camera.camera_id)
    rig.add_ref_sensor(camera.sensor_id)
    to_the_right = pycolmap.Rigid3d(pycolmap.Rotation3d(), np.array([-baseline_m, 0, 0]))
    rig.add_sensor(second.sensor_id, to_the_right)
    stereo.add_rig(rig)


def _add_frame(
    stereo: pycolmap.Reconstruction, image: pycolmap.Image, images: list[pycolmap.Image]
) -> None:
    """Add the images of a rig with the pose of `image`."""
    frame = pycolmap.Frame(frame_id=image.image_id, rig_id=image.camera_id)
    for each in images:
        frame.add_data_id(each.data_id)
        each.frame_id = image.image_id
    frame.rig_from_world = image.cam_from_world()
    stereo.add_frame(frame)
    for each in images:
        stereo.add_image(each)
    stereo.register_frame(image.image_id)


def _solve(stereo: pycolmap.Reconstruction) -> None:
    options, which = bundle_setup(stereo, refine_lenses=False, max_iterations=100)
    options.refine_sensor_from_rig = False
    # many depths are far off at first, and some for good
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    options.ceres.solver_options.function_tolerance = 0.0  # torn parts come together slowly
    # one pose fixes the frame; the baselines hold the scale
    which.set_constant_rig_from_world_pose(min(stereo.reg_frame_ids()))
    pycolmap.create_default_bundle_adjuster(options, which, stereo).solve()
