"""SLD*, bearings and scene coordinates: what they are made of by hand-checkable numbers, and that
each learns a toy place."""

import cv2
import numpy as np
import pytest
import torch

from sld_core import geometry, heatmap
from sld_core.baselines import ace, nbe, sld_star
from sld_core.baselines.augmented_views import View, augmented, views
from sld_core.baselines.config import BearingConfig, CoordinateConfig, SldStarConfig
from sld_core.baselines.localize import localize
from sld_core.baselines.loop import Budget
from sld_core.bench.paper.scenes import evaluate
from sld_core.camera.images import read_image
from sld_core.config.scene import (
    BufferConfig,
    ImageConfig,
    SceneConfig,
    ScheduleConfig,
    TargetConfig,
)
from sld_core.config.settings import from_dict
from sld_core.models.backbone import Backbone
from sld_core.models.heatmap_head import DilatedBlock
from sld_core.models.lite0 import Lite0
from sld_core.training.run import Run
from sld_core.training.training_set import TrainingSet
from sld_core.types import Camera, Detections, Frame, Labels, Landmarks, SldError, Visibility

CAMERA = Camera(128, 96, 110.0, 110.0, 64.0, 48.0)
SMALL = ImageConfig(max_side_px=128)
PLAIN = SceneConfig(
    image=SMALL,
    buffer=BufferConfig(
        augmented_passes=0,
        max_rotation_deg=0.0,
        min_scale=1.0,
        max_scale=1.0,
        contrast=0.0,
        brightness=0.0,
        channel_shift=0.0,
        blur_probability=0.0,
        noise=0.0,
    ),
)


@pytest.fixture(scope="module")
def training_set(tmp_path_factory):
    """A tilted poster two metres away, seen by six cameras around it; a landmark at each of its 24
    coloured spots."""
    folder, rng = tmp_path_factory.mktemp("poster"), np.random.default_rng(0)
    poster = cv2.GaussianBlur(
        cv2.resize(
            rng.integers(0, 256, (24, 32, 3), np.uint8), (512, 384), interpolation=cv2.INTER_CUBIC
        ),
        (0, 0),
        2,
    )
    x, y = np.meshgrid(np.linspace(-0.9, 0.9, 6), np.linspace(-0.6, 0.6, 4))
    xyz_L3 = np.stack([x.ravel(), y.ravel(), 2 + 0.3 * x.ravel()], 1)
    frames = []
    for i in range(6):
        position = rng.uniform(-0.25, 0.25, 3)
        T = geometry.make_transform(
            geometry.rotation_from_vector(rng.uniform(-0.08, 0.08, 3)), position
        )
        corners = np.array(
            [
                (a, b, 2 + 0.3 * a)
                for a, b in ((-1.28, -0.96), (1.28, -0.96), (1.28, 0.96), (-1.28, 0.96))
            ]
        )
        xy, _ = geometry.project(CAMERA, geometry.invert(T), corners)
        square = np.array([(0, 0), (512, 0), (512, 384), (0, 384)])
        H = cv2.getPerspectiveTransform(np.float32(square - 0.5), np.float32(xy - 0.5))
        path = folder / f"{i}.png"
        cv2.imwrite(str(path), cv2.warpPerspective(poster, H, (128, 96), flags=cv2.INTER_AREA))
        frames.append(Frame(f"{i}", path, CAMERA, T))
    xy_FL2 = np.stack(
        [geometry.project(CAMERA, geometry.invert(f.T_world_camera), xyz_L3)[0] for f in frames]
    )
    inside = ((xy_FL2 >= 0) & (xy_FL2 < [128, 96])).all(2)
    labels = Labels(
        np.where(inside, Visibility.VISIBLE, Visibility.HIDDEN).astype(np.uint8), xy_FL2
    )
    return TrainingSet(
        tuple(frames), Landmarks(xyz_L3, np.arange(24)), labels, (), np.zeros(3), True
    )


# SLD* ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_unstrided_dilated_stages_compute_what_imagenet_trained():
    """Every second output of the stages behind stride 8 is, exactly, that of the network with its
    strides."""
    reference, network = Lite0().eval(), sld_star.TrainableLite0().eval()
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    strided = torch.nn.functional.relu6(reference.stem((image - reference.mean) / reference.std))
    ours = torch.nn.functional.relu6(network.stem((image * 255 - 127) / 128))
    for theirs, stage in zip(reference.stages, network.stages):
        strided, ours = theirs(strided), stage(ours)
        every = ours.shape[2] // strided.shape[2]
        torch.testing.assert_close(ours[..., ::every, ::every], strided, atol=2e-3, rtol=1e-3)
    assert every == 2 and ours.shape[1:] == (112, 8, 12)
    assert network(image).shape == (1, 320, 8, 12)


def test_all_of_it_is_trained():
    network = sld_star.SldStarNetwork(5)
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    "landmarks, networks, expected",
    [
        (10, 3, ["0-3", "4-6", "7-9"]),
        (1000, 8, [f"{i}-{i + 124}" for i in range(0, 1000, 125)]),
        (4, 1, ["0-3"]),
        (3, 3, ["0-0", "1-1", "2-2"]),
    ],
)
def test_blocks_are_consecutive_and_even(landmarks, networks, expected):
    assert [f"{b[0]}-{b[-1]}" for b in sld_star.split_blocks(landmarks, networks)] == expected


def test_more_networks_than_landmarks():
    with pytest.raises(SldError, match="5 networks for 4 landmarks"):
        sld_star.split_blocks(4, 5)


class Says(torch.nn.Module):
    """A network whose heatmaps are given."""

    def __init__(self, heatmaps_Lhw):
        super().__init__()
        self.said = torch.nn.Parameter(torch.from_numpy(np.float32(heatmaps_Lhw)))

    def forward(self, image_B3HW):
        return self.said[None]


def gaussian(x_px, y_px, height=1.0, sigma_px=20.0):
    """A heatmap of a 128x96 image around a pixel."""
    y, x = np.mgrid[:12, :16] * 8 + 4
    return height * np.exp(-((x - x_px) ** 2 + (y - y_px) ** 2) / (2 * sigma_px**2))


def test_detections_of_all_networks_are_pooled():
    first, second = (
        Says([gaussian(30, 40, 0.9), gaussian(70, 50, 0.3)]),
        Says([gaussian(61, 43, 0.95)]),
    )
    star = sld_star.SldStar(
        (first, second), (range(0, 2), range(2, 3)), np.zeros((3, 3)), SldStarConfig(bf16=False)
    )
    found, xyz = star.find(np.zeros((96, 128, 3), np.uint8), CAMERA)
    assert (
        found.landmark_K.tolist() == [2, 0] and len(xyz) == 3
    )  # best first; the faint one is below 0.55
    np.testing.assert_allclose(found.xy_px_K2, [[61, 43], [30, 40]], atol=0.7)
    # SLD* weights by the squared score: twice as sure, a quarter of the variance
    np.testing.assert_allclose(
        found.sigma_px_K * found.score_K, SldStarConfig().detection_px, rtol=1e-6
    )


def test_patches(training_set):
    rng, config = np.random.default_rng(0), SldStarConfig(patches=8, patch_px=32)
    y, x = np.mgrid[:96, :128]
    image = np.stack([x, y, 0 * x], 2).astype(np.uint8)  # every pixel says where it is
    xy = np.array([[100.5, 20.5], [-40.0, 10.0], [60.0, 60.0]])
    visibility = np.array([Visibility.VISIBLE, Visibility.VISIBLE, Visibility.UNKNOWN])
    held = []
    for _ in range(50):
        cut, xy_P, v_P = sld_star.patches(image, xy, visibility, config, rng)
        corner = cut[:, 0, 0, :2].astype(float)
        assert (
            cut.shape == (8, 32, 32, 3) and (corner <= [96, 64]).all() and (v_P == visibility).all()
        )
        np.testing.assert_allclose(xy_P, xy - corner[:, None], atol=1e-4)
        held.append(((xy_P[:, 0] >= 0) & (xy_P[:, 0] < 32)).all(1))
    held = np.array(held)
    assert held[
        :, :4
    ].all()  # the only landmark to be seen inside the image is in all of the first half
    assert 0.02 < held[:, 4:].mean() < 0.5
    assert len(np.unique(xy_P[:4, 0], axis=0)) > 1  # but not always at the same place


def test_patches_larger_than_the_image():
    with pytest.raises(SldError, match="at most the image's 128x96; set patch_px"):
        sld_star.patches(
            np.zeros((96, 128, 3), np.uint8),
            np.zeros((1, 2)),
            np.ones(1),
            SldStarConfig(patch_px=104),
            None,
        )


class Tiny(torch.nn.Module):
    """In the place of the whole network: the colours of a cell and its neighbours."""

    def __init__(self, landmarks):
        super().__init__()
        self.cells = torch.nn.Conv2d(3, 64, 8, 8)
        self.normal = torch.nn.BatchNorm2d(64)
        self.dilated, self.heatmaps = DilatedBlock(64, 64), torch.nn.Conv2d(64, landmarks, 1)

    def forward(self, image_B3HW):
        return self.heatmaps(self.dilated(self.normal(self.cells(image_B3HW))))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(sld_star, "SldStarNetwork", Tiny)


def test_the_recipe_learns_a_poster(training_set, tiny):
    """Overfits six images in seconds: the loss falls, the watcher is called, and landmarks are
    found."""
    config = SldStarConfig(
        epochs=40,
        images=2,
        patches=6,
        patch_px=64,
        target=TargetConfig("cells", sigma_px=8.0),
        schedule=ScheduleConfig("halving", learning_rate=5e-3, warm_up=0.0),
        min_score=0.2,
        reach=2,
        watch_steps=80,
        bf16=False,
    )
    seen = []
    model, curve = sld_star.train(
        training_set,
        config,
        PLAIN,
        Run(),
        watch=lambda step, seconds, model: seen.append((step, seconds)),
    )
    assert [step for step, _ in seen] == [80, 120] and 0 < seen[0][1] < seen[1][1]
    assert curve[-1][0] == 120 and curve[-1][1] < 0.5 * curve[0][1]
    answer = localize(model, read_image(training_set.frames[2].image_path), CAMERA, 128)
    shown = training_set.labels.visibility_FL[2] == Visibility.VISIBLE
    assert len(answer.detections) > 0.7 * shown.sum()
    error_px = np.linalg.norm(
        answer.detections.xy_px_K2 - training_set.labels.xy_FL2[2, answer.detections.landmark_K],
        axis=1,
    )
    assert np.median(error_px) < 2.5  # under a third of a cell
    assert answer.accepted


def test_the_time_ends_the_training(training_set, tiny):
    config = SldStarConfig(seconds=0.5, epochs=10**6, watch_steps=10**9, patch_px=32, bf16=False)
    seen = []
    sld_star.train(
        training_set,
        config,
        PLAIN,
        Run(),
        watch=lambda step, seconds, model: seen.append(seconds),
    )
    assert len(seen) == 1 and 0.5 <= seen[0] < 5


def test_an_ensemble_is_trained_block_by_block(training_set, tiny):
    config = SldStarConfig(networks=3, epochs=1, images=6, patches=2, patch_px=32, bf16=False)
    model, curve = sld_star.train_ensemble(training_set, config, PLAIN, Run())
    assert model.blocks == (range(0, 8), range(8, 16), range(16, 24)) and [
        step for step, _ in curve
    ] == [1, 1, 1]
    assert [n.heatmaps.out_channels for n in model.networks] == [8, 8, 8]
    assert not torch.equal(model.networks[0].heatmaps.weight, model.networks[1].heatmaps.weight)


def test_the_same_seed_gives_the_same_network(training_set, tiny):
    config = SldStarConfig(epochs=2, images=3, patches=2, patch_px=32, bf16=False)
    once, again = (
        sld_star.train(training_set, config, SceneConfig(image=SMALL), Run(seed=3))
        for _ in range(2)
    )
    assert once[1] == again[1]
    for a, b in zip(once[0].networks[0].parameters(), again[0].networks[0].parameters()):
        assert torch.equal(a, b)


def test_the_clock_stands_still_in_a_pause():
    now = [10.0]
    budget = Budget(100, 20.0, clock=lambda: now[0])
    now[0] = 14.0
    with budget.pause():
        now[0] = 1000.0
    assert budget.seconds == 4.0 and budget.done == 0.2 and budget.seconds_left == 16.0
    budget.step = 50
    assert budget.done == 0.5
    now[0] = 1030.0
    assert budget.done == 1.0


# bearings -----------------------------------------------------------------------------------------


def test_bearings_turn_with_the_image(training_set):
    """An image turned about the principal point shows what a rolled camera sees, also of what lies
    behind."""
    a = 0.3
    roll = geometry.rotation_from_vector(np.array([0, 0, a]))
    K = CAMERA.K
    view = View(0, None, CAMERA, K @ roll @ np.linalg.inv(K), None)
    plain = nbe.true_bearings(View(0, None, CAMERA, np.eye(3), None), training_set)
    np.testing.assert_allclose(nbe.true_bearings(view, training_set), plain @ roll.T, atol=1e-12)
    xy = training_set.labels.xy_FL2[0]
    ray = np.column_stack([(xy - [64, 48]) / 110, np.ones(24)])
    np.testing.assert_allclose(plain, ray / np.linalg.norm(ray, axis=1)[:, None], atol=1e-12)


def test_the_homography_of_an_augmented_image_moves_its_spots():
    """A bright spot is found where the homography takes it."""
    for trial in range(10):
        rng = np.random.default_rng(trial)
        at = rng.uniform([50, 40], [78, 56])
        y, x = np.mgrid[:96, :128] + 0.5
        image = np.repeat(
            (255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 18))[..., None], 3, 2
        ).astype(np.uint8)
        config = BufferConfig(
            contrast=0,
            brightness=0,
            channel_shift=0,
            blur_probability=0,
            noise=0,
            max_tilt_deg=20.0,
        )
        image, H = augmented(image, config, rng)
        moved = H @ [*at, 1]
        moved = moved[:2] / moved[2]
        weight = image[..., 0].astype(float)
        np.testing.assert_allclose(
            [(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()], moved, atol=0.5
        )


def test_only_certain_bearings_in_front_stand_in_for_detections():
    config = BearingConfig(max_sigma_deg=5.0, max_angle_deg=60.0)
    detections = Detections(
        np.array([1]), np.array([[10.0, 20.0]]), np.array([0.8]), np.array([1.0])
    )
    behind, aside, ahead, diagonal = [0, 0, -1.0], [1, 0, 0.1], [0, 0, 1.0], [0.6, 0, 0.8]
    bearing = np.array([behind, ahead, aside, diagonal, ahead, ahead])
    bearing /= np.linalg.norm(bearing, axis=1)[:, None]
    sigma = np.radians([1, 1, 1, 1, 2, 9])
    pool = nbe.joined(detections, bearing, sigma, CAMERA, config)
    assert pool.landmark_K.tolist() == [
        1,
        3,
        4,
    ]  # the detected one stays, then the most certain; 5 is too uncertain
    np.testing.assert_allclose(pool.xy_px_K2, [[10, 20], [64 + 110 * 0.75, 48], [64, 48]])
    np.testing.assert_allclose(
        pool.sigma_px_K, [1, 110 * np.radians(1) / 0.64, 110 * np.radians(2)]
    )
    assert (np.diff(pool.score_K) < 0).all() and pool.score_K[0] == 0.8


def test_the_likeliest_sigma_is_the_error():
    """For an angle e of two coordinates the likelihood is highest at sigma = e / sqrt 2."""
    e = 0.1
    true, off = (
        torch.tensor([[[0, 0, 1.0]]]),
        torch.tensor([[[np.sin(e), 0, np.cos(e)]]], dtype=torch.float32),
    )
    loss = [
        float(nbe.bearing_loss(off, torch.full((1, 1), float(np.log(part * e / 2**0.5))), true))
        for part in (0.9, 1.0, 1.1)
    ]
    assert loss[1] < loss[0] and loss[1] < loss[2]


def test_bearings_help_where_detections_are_too_few(training_set):
    """Three exact detections fix no pose; with the bearings of all others they do, and the
    detections keep the last word."""
    backbone = Backbone("lite0")
    config = BearingConfig(
        steps=300,
        batch=6,
        hidden=64,
        dropout=0.0,
        schedule=ScheduleConfig(weight_decay=0.0, warm_up=0.0),
    )
    model, curve = nbe.train(training_set, backbone, config, PLAIN, Run())
    assert curve[-1][1] < curve[0][1] - 2

    class Star:
        ransac_px = 20.0

        def find(self, image, camera):
            keep = np.array([0, 9, 20])
            return Detections(
                keep, training_set.labels.xy_FL2[0, keep], np.full(3, 0.9), np.full(3, 0.5)
            ), training_set.landmarks.xyz_L3

    frame = training_set.frames[0]
    image = read_image(frame.image_path)
    assert localize(Star(), image, CAMERA, 128).reason.startswith("3 landmarks detected")
    answer = localize(nbe.WithBearings(Star(), model), image, CAMERA, 128)
    assert geometry.pose_error(answer.pose.T_world_camera, frame.T_world_camera)[0] < 0.15


def test_what_is_too_sure_of_itself_is_doubted():
    """Errors of three times the sigma: the median angle of two normal ones is 1.18 sigma."""
    said = torch.tensor([[[0, 0, 1.0]]]), torch.full((1, 1), float(np.log(0.01)))
    off = torch.tensor([[[np.sin(0.03), 0, np.cos(0.03)]]], dtype=torch.float32)
    assert nbe.calibrate_sigma(lambda _: said, torch.zeros(1, 4), off) == pytest.approx(
        3 / 1.1774, rel=1e-3
    )
    assert (
        nbe.calibrate_sigma(lambda _: said, torch.zeros(1, 4), said[0])
        == 1.0
        == nbe.calibrate_sigma(None, torch.zeros(0, 4), off)
    )


# scene coordinates --------------------------------------------------------------------------------


def test_the_reprojection_loss_by_hand():
    """One cell that looks straight ahead with a focal length of 100 px; the usual depth is 2."""

    def loss(xyz, scale_px=1000.0):
        T = torch.eye(4)[None]
        focal, depth = torch.full((1, 2), 100.0), torch.tensor([2.0])
        return float(
            ace.reprojection_loss(
                torch.tensor([xyz]), torch.zeros(1, 2), T, focal, depth, scale_px, 1000.0
            )
        )

    assert loss([0.0, 0.0, 7.0]) == pytest.approx(0, abs=1e-3)  # anywhere on the ray
    assert loss([0.1, 0.0, 2.0]) == pytest.approx(5, rel=1e-3)  # 0.1 / 2 * 100 px
    assert loss([0.1, 0.0, 2.0], 2.0) == pytest.approx(2 * np.tanh(2.5), rel=1e-3)
    assert loss([0.0, 1.0, -4.0], 1.0) == pytest.approx(
        1 + (1 + 6) / 2, rel=1e-3
    )  # behind: drawn to (0, 0, 2)
    behind = torch.tensor([[0.0, 0.0, -4.0]], requires_grad=True)
    rest = (
        torch.zeros(1, 2),
        torch.eye(4)[None],
        torch.full((1, 2), 100.0),
        torch.tensor([2.0]),
        1.0,
        1000.0,
    )
    ace.reprojection_loss(behind, *rest).backward()
    assert behind.grad[0, 2] < 0 and torch.isfinite(behind.grad).all()


def test_rays_of_augmented_cells_meet_their_points(training_set):
    """A cell's ray in the frame, moved by the warp, comes back to the cell's centre in the
    image."""
    scene = SceneConfig(image=SMALL, buffer=BufferConfig(augmented_passes=1))
    whitening = torch.nn.Identity()

    class Tells(torch.nn.Module):  # features that say which cell they are of
        device, channels = "cpu", 2

        def features(self, image_HW3, device="cpu"):
            h, w = heatmap.grid_size(*image_HW3.shape[:2])
            return torch.from_numpy(ace.cell_centres((h, w)).T.reshape(2, h, w).astype(np.float32))

    seen = list(views(training_set, Tells(), scene, Run()))
    assert [v.frame for v in seen] == [i for i in range(6) for _ in range(2)]
    for view in seen:
        centre, ray = ace.cells_of(view, whitening, 1000)
        xy = ray.double().numpy() * 110 + [64, 48]
        moved = np.column_stack([xy, np.ones(len(xy))]) @ view.warp_33.T
        np.testing.assert_allclose(moved[:, :2] / moved[:, 2:], centre.numpy(), atol=0.1)
        assert len(ray) > 60 and (xy > -0.01).all() and (xy < [128.01, 96.01]).all()
    assert len(ace.cells_of(seen[0], whitening, 50)[0]) == 50


def test_coordinates_learn_a_poster(training_set):
    config = CoordinateConfig(steps=300, batch=512, hidden=64, blocks=1, cells=192, watch_steps=200)
    seen = []
    model, curve = ace.train(
        training_set,
        Backbone("lite0"),
        config,
        PLAIN,
        Run(),
        watch=lambda step, *_: seen.append(step),
    )
    assert seen == [200, 300] and [step for step, _ in curve][-1] == 300
    metrics = evaluate(
        lambda image, camera: localize(model, image, camera, 128), training_set.frames
    )
    # an untrained one is off by 25 cm or more
    assert metrics["accepted"] == 6 and metrics["median_cm"] < 2, metrics


# the pose solve -----------------------------------------------------------------------------------


def test_larger_images_are_scaled_down_and_detections_back(training_set):
    frame, xy = training_set.frames[0], training_set.labels.xy_FL2[0]

    class Perfect:
        ransac_px = 20.0

        def find(self, image, camera):
            assert image.shape == (48, 64, 3) and (camera.width, camera.fx) == (64, 55)
            return Detections(
                np.arange(24), xy / 2, np.ones(24), np.full(24, 0.5)
            ), training_set.landmarks.xyz_L3

    answer = localize(Perfect(), cv2.imread(str(frame.image_path)), CAMERA, 64)
    assert geometry.pose_error(answer.pose.T_world_camera, frame.T_world_camera)[0] < 1e-6
    np.testing.assert_allclose(answer.detections.xy_px_K2, xy)
    np.testing.assert_allclose(answer.detections.sigma_px_K, 1.0)
    assert set(answer.seconds) == {"find", "pnp"}


@pytest.mark.parametrize(
    "kind, values, expected",
    [
        (SldStarConfig, {"patches": 0}, "from 1 to"),
        (SldStarConfig, {"target": {"loss": "cosine"}}, "one of cells, squares"),
        (BearingConfig, {"dropout": 1.0}, "from 0.0 to 0.95"),
        (CoordinateConfig, {"hiden": 3}, "unknown setting hiden"),
    ],
)
def test_settings_are_checked(kind, values, expected):
    with pytest.raises(SldError, match=expected):
        from_dict(values, kind)
