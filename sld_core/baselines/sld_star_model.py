"""SLD* (Do and Sinha, 3DV 2024), the paper's baseline: one whole network per block of landmarks,
trained for the scene.

EfficientNet-Lite0 at stride 8, four dilated branches, one heatmap per landmark. Other than
models.lite0, it keeps its batch normalisation, so that all of it can be trained, and goes on to the
last stage (320 channels): the strides of the stages after stride 8 are 1. What follows the first of
them is dilated by 2, so that ImageNet's weights see what they were trained to see; behind the
second it would be 4, but patches are 12 cells wide, and most of a kernel of 17 would see nothing,
for a quarter more time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sld_core import heatmap
from sld_core.config.scene import DecodeConfig
from sld_core.config.training import SldStarConfig
from sld_core.heatmap import STRIDE, ScoreMaps, grid_size
from sld_core.models import weights
from sld_core.models.heatmap_head import DilatedBlock, heatmaps, scores
from sld_core.models.lite0 import BN_EPS, InvertedResidual
from sld_core.types import Camera, Detections, SldError

# (expands, stride, dilation of the first block and of the others, repeats, centre of output i in
# input pixels: 2i + side)
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


class SldStarNetwork(nn.Module):
    """image_B3HW in 0..1, sides multiples of 8 -> logits_BLhw at stride 8; starts from ImageNet's
    weights."""

    def __init__(self, landmarks: int):
        super().__init__()
        self.features = TrainableLite0()
        self.dilated = DilatedBlock(CHANNELS, CHANNELS)
        self.heatmaps = heatmaps(CHANNELS, landmarks)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
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
                depthwise = (
                    dict(stride=stride, side=side, dilation=first)
                    if repeat == 0
                    else dict(dilation=following)
                )
                parts = [ConvBn(state, p + "_expand_conv", p + "_bn0")] if expands else []
                parts += [
                    ConvBn(state, p + "_depthwise_conv", p + "_bn1", depthwise=True, **depthwise),
                    ConvBn(state, p + "_project_conv", p + "_bn2"),
                ]
                stage.append(InvertedResidual(parts, skip=repeat > 0))
                index += 1
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)

    def forward(self, image_B3HW: torch.Tensor) -> torch.Tensor:
        return self.stages(F.relu6(self.stem((image_B3HW * 255 - 127) / 128)))


class ConvBn(nn.Module):
    """A convolution without bias and its batch normalisation, from a state dict. Output i is
    centred on input stride * i + side."""

    def __init__(
        self,
        state: dict[str, torch.Tensor],
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
        self.conv = nn.Conv2d(
            inputs * groups,
            outputs,
            kernel,
            stride,
            0 if side else half,
            dilation,
            groups,
            bias=False,
        )
        self.conv.weight.data.copy_(weight)
        self.bn = nn.BatchNorm2d(outputs, BN_EPS)
        self.bn.load_state_dict({name: state[f"{bn}.{name}"] for name in self.bn.state_dict()})

    def forward(self, x):
        x = F.pad(x, self.shift) if self.shift else x
        if self.conv.groups == 1:
            return self.bn(self.conv(x))
        with torch.autocast(
            x.device.type, enabled=False
        ):  # depthwise, bfloat16 takes two to four times as long
            return self.bn(self.conv(x.float()))


@dataclass(frozen=True)
class SldStar:
    """Trained networks, each with the landmarks of its block, as one that finds all of them (a
    peers.Baseline)."""

    networks: tuple[SldStarNetwork, ...]
    landmarks: tuple[range, ...]
    xyz_L3: np.ndarray
    config: SldStarConfig

    @property
    def ransac_px(self) -> float:
        return self.config.ransac_px

    def find(self, image_HW3: np.ndarray, camera: Camera) -> tuple[Detections, np.ndarray]:
        """Detections of all networks, best first, and where the landmarks are (L, 3)."""
        found = [
            shifted(detect(network, image_HW3, self.config), block.start)
            for network, block in zip(self.networks, self.landmarks)
        ]
        return pooled(found), self.xyz_L3


def blocks(landmarks: int, networks: int) -> tuple[range, ...]:
    """Consecutive landmarks for each network, as evenly as can be: blocks(10, 3) = 0-3, 4-6,
    7-9."""
    if networks > landmarks:
        raise SldError(f"{networks} networks for {landmarks} landmarks: expected at most one each")
    return tuple(
        range(part[0], part[-1] + 1) for part in np.array_split(np.arange(landmarks), networks)
    )


@torch.inference_mode()
def detect(network: SldStarNetwork, image_HW3: np.ndarray, config: SldStarConfig) -> Detections:
    """Landmarks of one network in one uint8 RGB image: peaks above min_score, each at the centroid
    of squared scores around it.

    SLD* weights detections by their squared score: sigma_px falls with the score."""
    network.eval()
    device = next(network.parameters()).device
    height, width = image_HW3.shape[:2]
    image = (
        torch.from_numpy(np.ascontiguousarray(image_HW3)).to(device).permute(2, 0, 1)[None].float()
        / 255
    )
    image = F.pad(image, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
    with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
        logits = network(image.contiguous(memory_format=torch.channels_last))
    h, w = grid_size(height, width)
    score = scores(logits.float(), config.loss)[0]
    maps = ScoreMaps(
        score,
        score.new_zeros(2, h, w),
        score.new_full((h, w), config.detection_px / STRIDE),
        config.reach,
        2.0,
        config.threshold,
    )
    detections = heatmap.decode(maps, DecodeConfig(min_score=config.min_score))
    return replace(detections, sigma_px_K=detections.sigma_px_K / detections.score_K)


def shifted(detections: Detections, by: int) -> Detections:
    """With `by` added to every landmark's index."""
    return replace(detections, landmark_K=detections.landmark_K + by)


def pooled(parts: list[Detections]) -> Detections:
    """All of them as one, best score first."""
    fields = zip(*((d.landmark_K, d.xy_px_K2, d.score_K, d.sigma_px_K) for d in parts))
    landmark, xy, score, sigma = (np.concatenate(f) for f in fields)
    order = np.argsort(-score, kind="stable")
    return Detections(landmark[order], xy[order], score[order], sigma[order])
