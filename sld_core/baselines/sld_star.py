"""SLD* (Do and Sinha, 3DV 2024), the paper's baseline: one whole network per block of landmarks,
trained for the scene on patches of its images.

The network is EfficientNet-Lite0 at stride 8, four dilated branches, and one heatmap per landmark.
Unlike models.lite0 it keeps its batch normalization, so that all of it can be trained, and includes
the last stage (320 channels), with stride 1 in the stages after stride 8. The stages after the
first of these are dilated by 2, so that ImageNet's weights see what they were trained on; after the
second it should be 4, but patches are 12 cells wide, and most of a kernel of 17 would see nothing,
for a quarter more time.

The recipe: 8 patches of 96x96 an image, half of them around a visible landmark, Gaussian targets of
20 px, sum of squares, AdamW from 1e-3, halved every fifth of the training. In addition to what is
published, images are augmented as for our own heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sld_core import heatmap
from sld_core.baselines.config import SldStarConfig
from sld_core.baselines.loop import Budget, LossCurve, fit
from sld_core.config.scene import BufferConfig, DecodeConfig, SceneConfig
from sld_core.heatmap import STRIDE, ScoreMaps, grid_size
from sld_core.models import weights
from sld_core.models.heatmap_head import DilatedBlock, heatmaps, scores
from sld_core.models.lite0 import BN_EPS, InvertedResidual
from sld_core.models.precision import autocast
from sld_core.training import augmentation, targets
from sld_core.training.run import Run
from sld_core.training.training_set import TrainingSet
from sld_core.training.working_images import WorkingImages, unrotated
from sld_core.types import Camera, Detections, SldError, Visibility

# expands, stride, dilation of the first block, dilation of the others, repeats, side (the centre of
# output i is at input 2i + side)
STAGES = (
    (False, 1, 1, 1, 1, 0),
    (True, 2, 1, 1, 2, 1),
    (True, 2, 1, 1, 2, 0),
    (True, 1, 1, 2, 3, 0),
    (True, 1, 2, 2, 3, 0),
    (True, 1, 2, 2, 4, 0),
    (True, 1, 2, 2, 1, 0),
)
CHANNELS = 320


# the model ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SldStar:
    """Trained networks, each with its block of landmarks, as one baseline."""

    networks: tuple[SldStarNetwork, ...]
    blocks: tuple[range, ...]
    xyz_L3: np.ndarray
    config: SldStarConfig

    @property
    def ransac_px(self) -> float:
        return self.config.ransac_px

    def find(self, image_HW3: np.ndarray, camera: Camera) -> tuple[Detections, np.ndarray]:
        """Detections of all networks, best first, and the landmarks (L, 3)."""
        parts = []
        for network, block in zip(self.networks, self.blocks):
            found = detect(network, image_HW3, self.config)
            parts.append(replace(found, landmark_K=found.landmark_K + block.start))
        return pooled(parts), self.xyz_L3


class SldStarNetwork(nn.Module):
    """image_B3HW in 0..1, sides multiples of 8 -> logits_BLhw at stride 8; starts from ImageNet's
    weights."""

    def __init__(self, landmarks: int):
        super().__init__()
        self.features = TrainableLite0()
        self.dilated = DilatedBlock(CHANNELS, CHANNELS)
        self.heatmaps = heatmaps(CHANNELS, landmarks)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.heatmaps(self.dilated(self.features(image_B3HW)))


class TrainableLite0(nn.Module):
    """image_B3HW in 0..1 -> features_B320hw at stride 8."""

    def __init__(self):
        super().__init__()
        state = weights.load(weights.LITE0)
        self.stem = ConvBn(state, "_conv_stem", "_bn0", stride=2, side=1)
        stages, index = [], 0
        for expands, stride, first, following, repeats, side in STAGES:
            stage = []
            for repeat in range(repeats):
                p = f"_blocks.{index}."
                if repeat == 0:
                    depthwise = dict(stride=stride, side=side, dilation=first)
                else:
                    depthwise = dict(dilation=following)
                parts = [ConvBn(state, p + "_expand_conv", p + "_bn0")] if expands else []
                parts += [
                    ConvBn(state, p + "_depthwise_conv", p + "_bn1", depthwise=True, **depthwise),
                    ConvBn(state, p + "_project_conv", p + "_bn2"),
                ]
                stage.append(InvertedResidual(parts, skip=repeat > 0))
                index += 1
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        return self.stages(F.relu6(self.stem((image_B3HW * 255 - 127) / 128)))


class ConvBn(nn.Module):
    """A convolution without bias and its batch normalization, from a state dict. Output i is
    centred on input stride * i + side."""

    def __init__(
        self,
        state: dict[str, Tensor],
        conv: str,
        bn: str,
        stride: int = 1,
        side: int = 0,
        dilation: int = 1,
        depthwise: bool = False,
    ):
        super().__init__()
        weight = state[conv + ".weight"]
        outputs, inputs, kernel, _ = weight.shape
        half, groups = kernel // 2 * dilation, outputs if depthwise else 1
        self.shift = (half - side, half + side) * 2 if side else None
        padding = 0 if side else half
        self.conv = nn.Conv2d(
            inputs * groups, outputs, kernel, stride, padding, dilation, groups, bias=False
        )
        self.conv.weight.data.copy_(weight)
        self.bn = nn.BatchNorm2d(outputs, BN_EPS)
        self.bn.load_state_dict({name: state[f"{bn}.{name}"] for name in self.bn.state_dict()})

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.shift) if self.shift else x
        if self.conv.groups == 1:
            return self.bn(self.conv(x))
        # depthwise convolutions are two to four times slower in bfloat16
        with torch.autocast(x.device.type, enabled=False):
            return self.bn(self.conv(x.float()))


def split_blocks(landmarks: int, networks: int) -> tuple[range, ...]:
    """Consecutive landmarks for each network, as evenly as possible: split_blocks(10, 3) is 0-3,
    4-6, 7-9."""
    if networks > landmarks:
        raise SldError(f"{networks} networks for {landmarks} landmarks: expected at most one each")
    parts = np.array_split(np.arange(landmarks), networks)
    return tuple(range(part[0], part[-1] + 1) for part in parts)


@torch.inference_mode()
def detect(network: SldStarNetwork, image_HW3: np.ndarray, config: SldStarConfig) -> Detections:
    """Landmarks of one network in one uint8 RGB image: peaks above min_score, each at the centroid
    of squared scores around it.

    SLD* weights detections by their squared score, so sigma_px is divided by the score."""
    network.eval()
    device = next(network.parameters()).device
    height, width = image_HW3.shape[:2]
    image_3HW = torch.from_numpy(np.ascontiguousarray(image_HW3)).to(device).permute(2, 0, 1)
    padding = (0, -width % STRIDE, 0, -height % STRIDE)
    image_13HW = F.pad(image_3HW[None].float() / 255, padding, mode="replicate")
    with autocast(device, enabled=config.bf16):
        logits = network(image_13HW.contiguous(memory_format=torch.channels_last))
    h, w = grid_size(height, width)
    score_Lhw = scores(logits.float(), config.target.loss)[0]
    maps = ScoreMaps(
        score_Lhw,
        score_Lhw.new_zeros(2, h, w),
        score_Lhw.new_full((h, w), config.detection_px / STRIDE),
        config.reach,
        2.0,
        config.threshold,
    )
    detections = heatmap.decode(maps, DecodeConfig(min_score=config.min_score))
    return replace(detections, sigma_px_K=detections.sigma_px_K / detections.score_K)


def pooled(parts: list[Detections]) -> Detections:
    """All detections as one, best score first."""
    score_K = np.concatenate([part.score_K for part in parts])
    order = np.argsort(-score_K, kind="stable")
    return Detections(
        np.concatenate([part.landmark_K for part in parts])[order],
        np.concatenate([part.xy_px_K2 for part in parts])[order],
        score_K[order],
        np.concatenate([part.sigma_px_K for part in parts])[order],
    )


# the recipe ---------------------------------------------------------------------------------------

Watch = Callable[[int, float, SldStar], None]  # steps, seconds of training, the model as it is


def train_ensemble(
    training_set: TrainingSet, config: SldStarConfig, scene: SceneConfig, run: Run
) -> tuple[SldStar, LossCurve]:
    """Train config.networks networks, one after the other, each for a block of consecutive
    landmarks and for config.seconds; the loss curves follow one another."""
    blocks = split_blocks(len(training_set.landmarks), config.networks)
    networks, curve = [], []
    for i, block in enumerate(blocks):
        own_seed = replace(run, seed=run.seed + i)
        model, part = train(training_set, config, scene, own_seed, landmarks=block)
        networks += model.networks
        curve += part
    return SldStar(tuple(networks), blocks, training_set.landmarks.xyz_L3, config), curve


def train(
    training_set: TrainingSet,
    config: SldStarConfig,
    scene: SceneConfig,
    run: Run,
    watch: Watch = lambda *_: None,
    landmarks: range | None = None,
) -> tuple[SldStar, LossCurve]:
    """Train one network for `landmarks`, a block of consecutive ones (default: all). `scene` says
    how images are sized and augmented; they are not rotated upright."""
    block = landmarks or range(len(training_set.landmarks))
    torch.manual_seed(run.seed)
    rng = np.random.default_rng(run.seed)
    network = SldStarNetwork(len(block)).to(run.device, memory_format=torch.channels_last)
    model = SldStar((network,), (block,), training_set.landmarks.xyz_L3, config)
    images = unrotated(training_set.frames, scene.image.max_side_px)
    drawn = augmented_images(training_set, images, block, scene.buffer, rng)

    def batch_loss(done: float) -> Tensor:
        parts = [patches(*next(drawn), config, rng) for _ in range(config.images)]
        image_NPP3, xy_NL2, visibility_NL = (
            torch.from_numpy(np.concatenate(part)).to(run.device) for part in zip(*parts)
        )
        # a view: they stay channels_last in memory
        image_N3PP = image_NPP3.permute(0, 3, 1, 2).float() / 255
        visibility_NL = targets.hidden_outside(
            xy_NL2, visibility_NL, config.patch_px, config.target
        )
        network.train()
        device = torch.device(run.device).type
        with autocast(device, enabled=config.bf16):
            logits_NLhw = network(image_N3PP)
        return targets.heatmap_loss(logits_NLhw, xy_NL2, visibility_NL, config.target)

    steps = math.ceil(config.epochs * len(training_set.frames) / config.images)
    curve = fit(
        network,
        batch_loss,
        config.schedule,
        Budget(steps, config.seconds),
        run,
        lambda step, seconds: watch(step, seconds, model),
        config.watch_steps,
    )
    return model, curve


def augmented_images(
    training_set: TrainingSet,
    images: WorkingImages,
    block: range,
    config: BufferConfig,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Endless (image_HW3, xy_L2, visibility_L): all frames in random order, again and again. Images
    are read once and kept in memory."""
    loaded = [images.load(i) for i in range(len(images.frames))]
    columns = slice(block.start, block.stop)
    while True:
        for i in rng.permutation(len(loaded)):
            image, A = loaded[i]
            xy_L2 = training_set.labels.xy_FL2[i, columns] @ A[:, :2].T + A[:, 2]
            image, xy_L2 = augmentation.augment(image, xy_L2, config, rng)
            yield image, xy_L2, training_set.labels.visibility_FL[i, columns]


def patches(
    image_HW3: np.ndarray,
    xy_L2: np.ndarray,
    visibility_L: np.ndarray,
    config: SldStarConfig,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Square patches (P, S, S, 3) of an image, the landmarks' pixels in each (P, L, 2) and their
    visibility (P, L). The first half of them hold a visible landmark somewhere, if there is one;
    the others lie anywhere."""
    side, size = config.patch_px, np.array(image_HW3.shape[1::-1])
    if side % STRIDE or side > size.min():
        raise SldError(
            f"patches of {side} px: expected a multiple of {STRIDE}, at most the image's "
            f"{size[0]}x{size[1]}; set patch_px"
        )
    corner_P2 = rng.integers(0, size - side + 1, (config.patches, 2))
    with np.errstate(invalid="ignore"):
        inside = ((xy_L2 >= 0) & (xy_L2 < size)).all(1)
    shown = xy_L2[inside & (visibility_L == Visibility.VISIBLE)]
    if len(shown):
        half = config.patches // 2
        around = rng.choice(shown, half).astype(int) - rng.integers(0, side, (half, 2))
        corner_P2[:half] = np.clip(around, 0, size - side)
    cut = np.stack([image_HW3[y : y + side, x : x + side] for x, y in corner_P2])
    xy_PL2 = (xy_L2[None] - corner_P2[:, None]).astype(np.float32)
    return cut, xy_PL2, np.repeat(visibility_L[None], len(corner_P2), 0)
