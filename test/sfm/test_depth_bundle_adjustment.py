"""Depth images in the bundle adjustment."""

import copy
from dataclasses import replace

import cv2
import numpy as np
import pycolmap
import pytest
from small_room import against, sway, write_photos

from sld_core.config.mapping import SfmConfig
from sld_core.data.sources import from_photos
from sld_core.sfm import depth_bundle_adjustment, solve
from sld_core.sfm.depth_bundle_adjustment import adjust_with_depth, scale_spread

POSES = sway(14)
JUMP = SfmConfig().depth_jump


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Frames with depth, and the folder of a map of them that depth took no part in."""
    folder = tmp_path_factory.mktemp("place")
    write_photos(folder / "photos", POSES, with_depth=True)
    frame_set = from_photos(folder / "photos", folder / "frames")
    (folder / "sfm").mkdir()
    found = solve.solve(frame_set, folder / "sfm", SfmConfig())
    assert not found.notes and not 0.98 < against(found.reconstruction.frames, POSES).scale < 1.02
    return frame_set, folder / "sfm"


def by_name(frame_set):
    return {f.image_path.name: f for f in frame_set.frames}


def torn(folder, every=2, nearer=0.15):
    """The map, five times too large, with some cameras nearer to all that they see, and points
    scattered."""
    model, rng = pycolmap.Reconstruction(folder / "model"), np.random.default_rng(0)
    model.transform(pycolmap.Sim3d(5.0, pycolmap.Rotation3d(), np.zeros(3)))
    centre = np.mean([p.xyz for p in model.points3D.values()], 0)
    for image_id in sorted(model.reg_image_ids())[::every]:
        pose = model.image(image_id).cam_from_world()
        place = pose.inverse().translation
        frame = model.frame(model.image(image_id).frame_id)
        frame.rig_from_world = pycolmap.Rigid3d(
            pose.rotation, -(pose.rotation * (place + nearer * (centre - place)))
        )
    for point in model.points3D.values():
        point.xyz = point.xyz + rng.normal(0, 0.1)
    return model


def test_torn_parts_come_together_in_metres(place):
    frame_set, folder = place
    model = torn(folder)
    before = scale_spread(model, by_name(frame_set), JUMP)
    assert (before > 0.05).all()
    assert adjust_with_depth(model, by_name(frame_set), 0.1, JUMP)
    assert (scale_spread(model, by_name(frame_set), JUMP) < before / 5).all()
    reconstruction = solve.read_model(model, by_name(frame_set))
    fit = against(reconstruction.frames, POSES)
    assert fit.scale == pytest.approx(1, abs=0.01) and fit.median_m < 0.02


def test_a_few_torn_images_are_reason_enough(place):
    """Most images agree before and after: it is the others that count."""
    frame_set, folder = place

    def renewed(model):
        return model

    model, notes = depth_bundle_adjustment.held_by_depth(
        torn(folder, every=5, nearer=0.3), renewed, by_name(frame_set), SfmConfig()
    )
    assert "took part" in notes[0]
    assert against(
        solve.read_model(model, by_name(frame_set)).frames, POSES
    ).scale == pytest.approx(1, abs=0.02)


def test_without_depth_nothing_moves(place, tmp_path):
    _, folder = place
    write_photos(tmp_path / "photos", POSES)
    frame_of = by_name(from_photos(tmp_path / "photos", tmp_path / "frames"))
    model = torn(folder)
    before = copy.deepcopy(model)
    assert scale_spread(model, frame_of, JUMP) is None
    assert not adjust_with_depth(model, frame_of, 0.1, JUMP)
    for image_id in model.reg_image_ids():
        np.testing.assert_array_equal(
            model.image(image_id).cam_from_world().matrix(),
            before.image(image_id).cam_from_world().matrix(),
        )


def test_it_takes_part_where_images_disagree_on_the_scale(place):
    """Here they hardly do, so any disagreement is called one."""
    frame_set, folder = place
    found = solve.solve(frame_set, folder, SfmConfig(depth_spread=0.0))
    assert len(found.notes) == 1 and "depth images took part in the adjustment" in found.notes[0]
    fit = against(found.reconstruction.frames, POSES)
    assert fit.scale == pytest.approx(1, abs=0.01) and fit.median_m < 0.015 and found.lost == {}


def test_depth_that_contradicts_the_matches_is_left_out(place, tmp_path):
    """As depth of another camera would."""
    frame_set, _ = place
    frames = []
    for i, frame in enumerate(frame_set.frames):
        slope = np.linspace(500, 500 + 700 * (i % 5 + 1), 320)
        path = tmp_path / f"{i}.png"
        path.write_bytes(
            cv2.imencode(".png", np.tile(slope, (240, 1)).astype(np.uint16))[1].tobytes()
        )
        frames.append(replace(frame, depth_path=path))
    found = solve.solve(replace(frame_set, frames=tuple(frames)), tmp_path, SfmConfig())
    assert len(found.notes) == 1 and "are they aligned with the images?" in found.notes[0]
    assert against(found.reconstruction.frames, POSES).median_m < 0.015
