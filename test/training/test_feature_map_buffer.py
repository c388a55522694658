"""The buffer of feature maps, and the patches cut out of it."""

import cv2
import numpy as np
import pytest
import torch

from sld_core.config.scene import (
    BufferConfig,
    HeadConfig,
    HeatmapConfig,
    SceneConfig,
    TargetConfig,
)
from sld_core.models.heads import Whitening
from sld_core.training import feature_map_buffer
from sld_core.training.distributed import ALONE, World
from sld_core.training.feature_map_buffer import FeatureMapBuffer
from sld_core.training.run import Run
from sld_core.training.training_set import TrainingSet
from sld_core.training.working_images import unrotated
from sld_core.types import Camera, Frame, Labels, Landmarks, SldError, Visibility

HIDDEN, VISIBLE, UNKNOWN = (int(state) for state in Visibility)


class Colours:
    """A backbone without weights: each cell's mean colour, its squares and its differences to the
    next; 8 channels."""

    channels = 8

    def features(self, image_HW3, device):
        image = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)[None].float() / 255
        mean = torch.nn.functional.avg_pool2d(image, 8, ceil_mode=True)[0]
        return torch.cat([mean, mean**2, (mean.roll(1, 1) - mean)[:2]])


@pytest.fixture(scope="module")
def training_set(tmp_path_factory):
    """Five images, one of another camera, of coloured noise; landmarks everywhere and nowhere."""
    folder, rng, frames = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for i in range(5):
        camera = Camera(128 if i < 4 else 160, 104, 100.0, 100.0, 64.0, 52.0)
        cv2.imwrite(
            str(folder / f"{i}.png"),
            rng.integers(0, 255, (camera.height, camera.width, 3), dtype=np.uint8),
        )
        frames.append(Frame(str(i), folder / f"{i}.png", camera, np.eye(4)))
    xy, visibility = rng.uniform(-100, 200, (5, 40, 2)), rng.integers(0, 3, (5, 40), dtype=np.uint8)
    xy[:, 0] = np.nan
    visibility[:, 0] = HIDDEN
    return TrainingSet(
        tuple(frames),
        Landmarks(np.zeros((40, 3)), np.arange(40)),
        Labels(visibility, xy),
        (),
        np.zeros(3),
        True,
    )


def fill(training_set, folder, world=ALONE, **head):
    config = SceneConfig(
        buffer=BufferConfig(augmented_passes=2, channels=6),
        head=HeadConfig(heatmap=HeatmapConfig(**head)),
    )
    return feature_map_buffer.fill(
        training_set, Colours(), config, folder, Run(seed=3, world=world)
    )


@pytest.fixture
def whitening(monkeypatch):
    """Of all ranks the same, without processes to ask."""
    white = Whitening(8, 6)
    white.matrix.copy_(torch.eye(6, 8))
    monkeypatch.setattr(feature_map_buffer, "fit_whitening", lambda *_: white)


def test_shares_of_several_ranks_are_what_one_fills(training_set, whitening, tmp_path):
    whole, _ = fill(training_set, tmp_path)
    assert len(whole) == 15 and whole.plain_M.tolist() == [True, False, False] * 5
    parts = [fill(training_set, tmp_path, World(rank, 3))[0] for rank in range(3)]
    for name in ("feature_NC", "shape_M2", "frame_M", "plain_M", "xy_ML2", "visibility_ML"):
        torch.testing.assert_close(
            torch.cat([getattr(p, name) for p in parts]),
            getattr(whole, name),
            rtol=0,
            atol=0,
            equal_nan=True,
        )


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_file_holds_what_memory_would_and_leaves_nothing(
    training_set, whitening, tmp_path, precision
):
    in_memory, _ = fill(training_set, tmp_path, precision=precision)
    in_file, _ = fill(training_set, tmp_path / "new", precision=precision, memory_mb=0.0)
    assert in_file.feature_NC.dtype == getattr(torch, precision)
    assert torch.equal(in_file.feature_NC, in_memory.feature_NC) and not list(
        (tmp_path / "new").iterdir()
    )


def test_a_full_disk_is_one_error(training_set, whitening, tmp_path, monkeypatch):
    monkeypatch.setattr(
        feature_map_buffer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})()
    )
    with pytest.raises(SldError, match="feature maps take .* 0 MB free"):
        fill(training_set, tmp_path, memory_mb=0.0)


def test_plain_maps_are_the_images_features(training_set, whitening, tmp_path):
    buffer, _ = fill(training_set, tmp_path)
    image, _ = unrotated(training_set.frames, 640).load(4)
    assert buffer.shape_M2[12].tolist() == [13, 20]
    torch.testing.assert_close(
        buffer.map(12), Colours().features(image, "cpu")[:6], atol=1e-3, rtol=1e-3
    )


def addressed(shapes=((13, 16), (14, 20)), landmarks=5):
    """A buffer whose features say which map, row and column they are of; landmark 0 is everywhere
    visible, the others never."""
    cells = [
        torch.tensor([(m, y, x) for y in range(h) for x in range(w)])
        for m, (h, w) in enumerate(shapes)
    ]
    xy = torch.full((len(shapes), landmarks, 2), -1000.0)
    xy[:, 0] = torch.tensor([[100.0, 20.0], [9.0, 70.0]])
    visibility = torch.full((len(shapes), landmarks), UNKNOWN, dtype=torch.uint8)
    visibility[:, 0] = VISIBLE
    sizes = torch.tensor([len(c) for c in cells])
    return FeatureMapBuffer(
        torch.cat(cells).half(),
        sizes.cumsum(0) - sizes,
        torch.tensor(shapes),
        torch.arange(2),
        torch.ones(2, dtype=bool),
        xy,
        visibility,
    )


def test_patches_are_squares_of_the_maps_and_landmarks_move_along():
    buffer, config = addressed(), HeatmapConfig(patches=200, patch_px=48)
    patches = feature_map_buffer.cut(
        buffer, torch.arange(2), config, torch.Generator().manual_seed(0)
    )
    assert patches.features_BChw.shape == (200, 3, 6, 6)
    for features, xy, visibility in zip(
        patches.features_BChw, patches.xy_BL2, patches.visibility_BL
    ):
        m, y, x = (int(v) for v in features[:, 0, 0])
        h, w = buffer.shape_M2[m].tolist()
        assert 0 <= y <= h - 6 and 0 <= x <= w - 6
        assert (
            torch.equal(features[1], (y + torch.arange(6.0))[:, None].expand(6, 6).half())
            and (features[0] == m).all()
        )
        assert torch.equal(features[2], (x + torch.arange(6.0)).expand(6, 6).half())
        np.testing.assert_allclose(xy[0], buffer.xy_ML2[m, 0] - 8 * torch.tensor([x, y]))
        assert (
            visibility[0] == VISIBLE and (visibility[1:] == HIDDEN).all()
        )  # unknown, but not here
    holds = ((patches.xy_BL2[:, 0] >= 0) & (patches.xy_BL2[:, 0] < 48)).all(1)
    assert holds[:100].all() and not holds[100:].all()
    corners = {tuple(f[:, 0, 0].int().tolist()) for f in patches.features_BChw}
    assert len(corners) > 60  # everywhere, not only in a few places


def test_unknown_stays_unknown_where_it_may_be():
    buffer = addressed()
    buffer.xy_ML2[:, 1] = 60.0
    patches = feature_map_buffer.cut(
        buffer,
        torch.arange(1),
        HeatmapConfig(patches=50, patch_px=96, target=TargetConfig(sigma_px=20.0)),
        torch.Generator().manual_seed(0),
    )
    assert (patches.visibility_BL[:, 1] == UNKNOWN).all()


def test_a_patch_larger_than_a_map_is_as_large_as_the_smallest_map():
    patches = feature_map_buffer.cut(
        addressed(),
        torch.arange(2),
        HeatmapConfig(patches=3, patch_px=4096),
        torch.Generator().manual_seed(0),
    )
    assert patches.features_BChw.shape[2:] == (13, 13)
