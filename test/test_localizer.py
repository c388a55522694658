"""The localizer on heads whose errors are known."""

import numpy as np
import pytest
import torch
from torch import nn

from sld_core import geometry, heatmap, pnp
from sld_core.config.scene import DecodeConfig, SceneConfig
from sld_core.localizer import Localizer
from sld_core.scene_file import Scene
from sld_core.types import Camera, Landmarks

CAMERA = Camera(320, 240, 300.0, 300.0, 160.0, 120.0)
IMAGE = np.zeros((240, 320, 3), np.uint8)


class Anything(nn.Module):
    """A backbone without features."""

    def features(self, image_HW3, device):
        return torch.zeros(1, *heatmap.grid_size(*image_HW3.shape[:2]))


class Blobs(nn.Module):
    """A head that shows each landmark as a blob around its cell, cut off at the image's border."""

    def __init__(self, xy_L2):
        super().__init__()
        self.xy_cell = torch.from_numpy(heatmap.pixel_to_cell(xy_L2)).float()

    def forward(self, features_Chw):
        h, w = features_Chw.shape[1:]
        x, y = (
            (torch.arange(n)[None] - self.xy_cell[:, i : i + 1]) ** 2 for i, n in enumerate((w, h))
        )
        score_Lhw = (-0.5 * (x[:, None] + y[:, :, None])).exp()
        return heatmap.ScoreMaps(score_Lhw, torch.zeros(2, h, w), torch.full((h, w), 0.2))


def answer(**decode):
    """The localization of a camera at the origin, and the pixels of the landmarks it used."""
    cells = np.stack(np.meshgrid(np.arange(0, 40, 3), [0, 4, 8, 12, 16, 20, 24, 29]), -1).reshape(
        -1, 2
    )  # the outermost, and inner ones
    xy_px, depth = heatmap.cell_to_pixel(cells), np.random.default_rng(0).uniform(2, 5, len(cells))
    xyz_L3 = np.column_stack([(xy_px - [160, 120]) / 300 * depth[:, None], depth])
    scene = Scene(
        "wall",
        Landmarks(xyz_L3, np.arange(len(cells))),
        np.zeros(3),
        Blobs(xy_px),
        CAMERA,
        (0.0, 0.0),
        SceneConfig(decode=DecodeConfig(roll_margin_deg=0.0, **decode)),
        None,
    )
    found = Localizer(scene, backbone=Anything()).localize(IMAGE, CAMERA)
    return found, xy_px[found.detections.landmark_K]


def test_landmarks_cut_off_by_the_border_do_not_push_the_camera_back():
    everywhere, all_of_them = answer(guided_margin_px=0.0)
    inner, used = answer()
    assert len(all_of_them) == 14 * 8 and len(used) == 12 * 6
    pushed, T = everywhere.pose.T_world_camera, inner.pose.T_world_camera
    assert pushed[2, 3] < -0.003 and geometry.pose_error(T, np.eye(4))[0] < 1e-4


def test_a_margin_that_leaves_nothing_of_the_image_leaves_no_pose():
    found, used = answer(guided_margin_px=500.0)
    assert found.pose is None and "landmarks" in found.reason and len(used) == 0


class Points(nn.Module):
    """A head with one cell for each landmark and the exact position in it."""

    def __init__(self, xy_L2):
        super().__init__()
        self.xy_cell = torch.from_numpy(heatmap.pixel_to_cell(xy_L2)).float()

    def forward(self, features_Chw):
        h, w = features_Chw.shape[1:]
        score_Lhw, offset_2hw = torch.zeros(len(self.xy_cell), h, w), torch.zeros(2, h, w)
        for landmark, (x, y) in enumerate(self.xy_cell):
            column, row = round(float(x)), round(float(y))
            score_Lhw[landmark, row, column] = 0.9
            offset_2hw[:, row, column] = torch.stack([x - column, y - row])
        return heatmap.ScoreMaps(score_Lhw, offset_2hw, torch.full((h, w), 0.125))


@pytest.mark.parametrize("times", [1, 2])
def test_pixels_are_those_of_the_image_and_not_of_the_640_px_it_is_scaled_to(times, monkeypatch):
    """Every detection is a pixel to the left or to the right of its landmark, in turn, in an image
    640 pixels wide. Of a camera twice as wide these are two pixels."""
    working = Camera(640, 480, 600.0, 600.0, 320.0, 240.0)
    rows, columns = (grid.ravel() for grid in np.mgrid[4:56:4, 4:76:4])
    xy_px = heatmap.cell_to_pixel(np.stack([columns, rows], 1).astype(float))
    aside = np.where((rows + columns) // 4 % 2, 1.0, -1.0)
    depth = np.random.default_rng(0).uniform(2, 5, len(rows))
    xyz_L3 = np.column_stack([(xy_px - [320, 240]) / 600 * depth[:, None], depth])
    origin_3 = np.array([100.0, -50.0, 3.0])
    scene = Scene(
        "wall",
        Landmarks(xyz_L3 + origin_3, np.arange(len(rows))),
        origin_3,
        Points(xy_px + np.stack([aside, 0 * aside], 1)),
        working,
        (0.0, 0.0),
        SceneConfig(decode=DecodeConfig(roll_margin_deg=0.0)),
        None,
    )
    solve = pnp.refine

    def solve_for_good(*args):  # whoever writes into the result fails
        pose = solve(*args)
        pose.T_world_camera.setflags(write=False)
        return pose

    monkeypatch.setattr(pnp, "refine", solve_for_good)
    camera = working.resized(640 * times, 480 * times)
    image = np.zeros((camera.height, camera.width, 3), np.uint8)
    found = Localizer(scene, backbone=Anything()).localize(image, camera)
    assert np.abs(found.pose.T_world_camera[:3, 3] - origin_3).max() < 0.01
    assert found.pose.reprojection_px == pytest.approx(times, rel=0.02)
    np.testing.assert_allclose(found.detections.sigma_px_K, times)
    off = found.detections.xy_px_K2 - times * xy_px[found.detections.landmark_K]
    np.testing.assert_allclose(np.abs(off), [[times, 0]] * len(rows), atol=1e-3)
